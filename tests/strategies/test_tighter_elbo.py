"""The tightened bound as a GPyTorch objective."""

from collections.abc import Callable

import gpytorch
import pytest
import torch

from gpvi.approximations import Exact, InducingPoints
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import tighter_elbo
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from gpvi.strategies import SiteStrategy, TighterVariationalELBO

NOT_GAUSSIAN = [BernoulliLikelihood, PoissonLikelihood, StudentTLikelihood]


@pytest.fixture
def rows(make_rows: type) -> object:
    """Few inducing points, so that much is left open."""
    return make_rows(num_inducing=3)


def step(model: object, likelihood: object, rows: object) -> object:
    """The model after a natural step."""
    y = rows.targets(likelihood)
    model.variational_strategy.natural_step(likelihood, rows.x, y, step_size=1.0)
    return model


def gpytorch_model(make_model: type, rows: object, whitened: bool = True) -> object:
    kind = (
        gpytorch.variational.VariationalStrategy
        if whitened
        else gpytorch.variational.UnwhitenedVariationalStrategy
    )

    def strategy(model: object) -> object:
        q = gpytorch.variational.CholeskyVariationalDistribution(len(rows.z), mean_init_std=0.0)
        return kind(model, rows.z, q, jitter_val=1e-12)

    return make_model(strategy)


def test_gaussian_bound_equals_the_dense_formula(sparse_model: Callable, rows: object) -> None:
    """log N(y | 0, Qxx + s I) - 1/2 sum log(1 + d_n / s), Titsias (2025)."""
    noise, size = 0.05, len(rows.x)
    likelihood = GaussianLikelihood(noise=noise)
    model = step(sparse_model(site_parameters="natural"), likelihood, rows)
    mll = TighterVariationalELBO(likelihood, model, num_data=size)
    elbo = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=size)
    with torch.no_grad():
        output = model(rows.x)
        value, looser = size * mll(output, rows.y), size * elbo(output, rows.y)
        kernel = model.covar_module
        kzx, kxx = kernel(rows.z, rows.x).to_dense(), kernel(rows.x).to_dense()
        qxx = kzx.T @ torch.linalg.solve(kernel(rows.z).to_dense(), kzx)
        identity, zeros = torch.eye(size, dtype=torch.float64), torch.zeros_like(rows.y)
        normal = torch.distributions.MultivariateNormal
        cost = 0.5 * torch.log1p((kxx - qxx).diagonal() / noise).sum()
        expected = normal(zeros, qxx + noise * identity).log_prob(rows.y) - cost
        evidence = normal(zeros, kxx + noise * identity).log_prob(rows.y)
    assert value == pytest.approx(float(expected), abs=1e-7)
    assert looser + 1.0 < value < evidence


@pytest.mark.parametrize("make_likelihood", NOT_GAUSSIAN)
def test_other_likelihoods(make_likelihood: type, sparse_model: Callable, rows: object) -> None:
    """The ELBO at log_v = 0, the plain function at any, and never below the ELBO at the best."""
    likelihood, size = make_likelihood(), len(rows.x)
    y = rows.targets(likelihood)
    model = step(sparse_model(site_parameters="natural"), likelihood, rows)
    mll = TighterVariationalELBO(likelihood, model, num_data=size)
    with torch.no_grad():
        output = model(rows.x)
        elbo = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=size)(output, y)
        assert mll(output, y) == pytest.approx(float(elbo), abs=1e-12)
        posterior = model.variational_strategy.posterior(rows.x)
        mll.log_v.fill_(-0.7)
        expected = tighter_elbo(
            posterior, likelihood, y, log_v=torch.tensor(-0.7, dtype=torch.float64)
        )
        assert size * mll(output, y) == pytest.approx(float(expected), abs=1e-9)
        mll.set_scale(output, y)
        best = size * mll(output, y)
        assert best == pytest.approx(float(tighter_elbo(posterior, likelihood, y)), abs=1e-9)
        assert best > size * elbo + 1e-3
        for nearby in (-0.2, 0.2):
            mll.log_v.add_(nearby)
            assert size * mll(output, y) < best
            mll.log_v.sub_(nearby)


def test_scale_is_learnt_with_everything_else(sparse_model: Callable, rows: object) -> None:
    model, likelihood = sparse_model(), BernoulliLikelihood()
    mll = TighterVariationalELBO(likelihood, model, num_data=len(rows.x))
    optimizer = torch.optim.Adam(mll.parameters(), lr=0.05)
    trace = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = -mll(model(rows.x), rows.labels)
        loss.backward()
        optimizer.step()
        trace.append(loss.item())
    assert trace[-1] < trace[0]
    learnt = mll.log_v.item()
    mll.set_scale(model(rows.x), rows.labels)
    assert learnt < -0.01
    assert learnt == pytest.approx(mll.log_v.item(), abs=0.1)


@pytest.mark.parametrize("whitened", [True, False])
@pytest.mark.parametrize("make_likelihood", [GaussianLikelihood, BernoulliLikelihood])
def test_strategies_of_gpytorch(
    make_likelihood: type, whitened: bool, make_model: type, sparse_model: Callable, rows: object
) -> None:
    """Value and gradients equal those of SiteStrategy with the same q."""
    likelihood, y = make_likelihood(), rows.targets(make_likelihood())
    theirs, ours = gpytorch_model(make_model, rows, whitened), sparse_model()
    mean = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    factor = torch.tensor([[0.8, 0, 0], [0.1, 0.5, 0], [-0.2, 0.3, 0.6]], dtype=torch.float64)
    store = ours.variational_strategy._variational_distribution
    with torch.no_grad():
        store.variational_mean.copy_(mean)
        store.chol_variational_covar.copy_(factor)
        if not whitened:
            root = torch.linalg.cholesky(theirs.covar_module(rows.z).to_dense())
            mean, factor = root @ mean, root @ factor
        theirs(rows.x)  # GPyTorch initialises q on the first call
        q = theirs.variational_strategy._variational_distribution
        q.variational_mean.copy_(mean)
        q.chol_variational_covar.copy_(factor)
    values, gradients = [], []
    for model in (ours, theirs):
        mll = TighterVariationalELBO(likelihood, model, num_data=len(rows.x))
        mll.log_v.data.fill_(-0.5)
        values.append(mll(model(rows.x), y, inputs=rows.x))
        values[-1].backward()
        shared = [model.mean_module.raw_constant, *model.covar_module.parameters()]
        points = model.variational_strategy.inducing_points
        # Unwhitened, other things are held fixed where hyperparameters move.
        gradients.append([p.grad for p in ([*shared, points] if whitened else [])])
        if not whitened:
            assert points.grad.abs().max() > 0
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-8)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


def test_minibatches_average_to_the_whole(sparse_model: Callable, rows: object) -> None:
    likelihood = BernoulliLikelihood()
    model = step(sparse_model(site_parameters="natural"), likelihood, rows)
    mll = TighterVariationalELBO(likelihood, model, num_data=len(rows.x))
    mll.log_v.data.fill_(-0.5)
    with torch.no_grad():
        whole = mll(model(rows.x), rows.labels)
        batches = zip(rows.x.split(10), rows.labels.split(10), strict=True)
        parts = torch.stack([mll(model(x), y) for x, y in batches])
    torch.testing.assert_close(parts.mean(), whole)


def test_row_arguments_missing_targets_and_terms(sparse_model: Callable, rows: object) -> None:
    likelihood, size = GaussianLikelihood(noise=0.1), len(rows.x)
    model = step(sparse_model(site_parameters="natural"), likelihood, rows)
    generator = torch.Generator().manual_seed(0)
    weights, noise = torch.rand(2, size, dtype=torch.float64, generator=generator)
    y = torch.where(torch.arange(size) % 3 == 0, torch.nan, rows.y)
    with torch.no_grad():
        posterior = model.variational_strategy.posterior(rows.x)
        for target, extras in ((y, {}), (rows.y, {"weights": weights, "noise": noise})):
            mll = TighterVariationalELBO(likelihood, model, num_data=size)
            expected = tighter_elbo(posterior, likelihood, target, **extras)
            assert size * mll(model(rows.x), target, **extras) == pytest.approx(
                float(expected), abs=1e-9
            )
        split = TighterVariationalELBO(
            likelihood, model, num_data=size, beta=0.5, combine_terms=False
        )
        data, kl, prior = split(model(rows.x), rows.y)
        assert kl == pytest.approx(0.5 * float(posterior.kl()) / size)
        assert prior == 0.0
        whole = TighterVariationalELBO(likelihood, model, num_data=size, beta=0.5)
        assert whole(model(rows.x), rows.y) == pytest.approx(float(data - kl))
        with pytest.raises(InputError, match="exposures"):
            whole(model(rows.x), rows.y, exposures=weights)


def test_nothing_left_open_gives_the_elbo(make_model: type, rows: object) -> None:
    model = make_model(lambda m: SiteStrategy(m, Exact(), train_inputs=rows.x))
    likelihood, size = BernoulliLikelihood(), len(rows.x)
    with torch.no_grad():
        mll = TighterVariationalELBO(likelihood, model, num_data=size)
        mll.log_v.fill_(-3.0)
        elbo = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=size)
        assert mll(model(rows.x), rows.labels) == elbo(model(rows.x), rows.labels)
        mll.set_scale(model(rows.x), rows.labels)
        assert mll.log_v == -3.0


def test_eval_mode_scores_held_out_rows(sparse_model: Callable, rows: object) -> None:
    likelihood = GaussianLikelihood(noise=0.1)
    model = step(sparse_model(site_parameters="natural"), likelihood, rows)
    mll = TighterVariationalELBO(likelihood, model, num_data=len(rows.x))
    with torch.no_grad():
        train = mll(model(rows.x), rows.y)
        model.eval()
        assert mll(model(rows.x), rows.y) == pytest.approx(float(train), abs=1e-9)


def test_batch_of_functions_has_a_scale_each(make_model: type, rows: object) -> None:
    shape = torch.Size([2])
    model = make_model(
        lambda m: SiteStrategy(
            m,
            InducingPoints(inducing_points=rows.z),
            batch_shape=shape,
            site_parameters="natural",
        )
    )
    likelihood = BernoulliLikelihood()
    labels = torch.stack([rows.labels, torch.ones_like(rows.labels)])
    model.variational_strategy.natural_step(likelihood, rows.x, labels, step_size=1.0)
    mll = TighterVariationalELBO(likelihood, model, len(rows.x), batch_shape=shape)
    output = model(rows.x)
    before = mll(output, labels)
    mll.set_scale(output, labels)
    assert mll.log_v.shape == (2,)
    assert mll.log_v[0] != mll.log_v[1]
    assert bool((mll(output, labels) > before).all())
    wrong = TighterVariationalELBO(likelihood, model, len(rows.x))
    with pytest.raises(InputError, match=r"batch_shape=torch.Size\(\[2\]\)"):
        wrong.set_scale(output, labels)


def test_dtype_and_state_dict(sparse_model: Callable, rows: object) -> None:
    model = sparse_model()
    mll = TighterVariationalELBO(BernoulliLikelihood(), model, num_data=len(rows.x))
    assert mll.log_v.dtype == torch.float64
    mll.log_v.data.fill_(-1.0)
    other = TighterVariationalELBO(BernoulliLikelihood(), model, num_data=len(rows.x))
    other.load_state_dict(mll.state_dict())
    assert other.log_v == -1.0
    mll.float()
    assert mll(model(rows.x.float()), rows.labels.float()).dtype == torch.float32


def test_refusals(make_model: type, sparse_model: Callable, rows: object) -> None:
    likelihood, size = GaussianLikelihood(noise=0.1), len(rows.x)
    theirs = gpytorch_model(make_model, rows)
    mll = TighterVariationalELBO(likelihood, theirs, num_data=size)
    with pytest.raises(InputError, match=r"mll\(model\(x\), y, inputs=x\)"):
        mll(theirs(rows.x), rows.y)

    def grid(model: object) -> object:
        q = gpytorch.variational.CholeskyVariationalDistribution(5)
        return gpytorch.variational.GridInterpolationVariationalStrategy(
            model, grid_size=5, grid_bounds=[(0.0, 1.0)], variational_distribution=q
        )

    def decoupled(model: object) -> object:
        q = gpytorch.variational.CholeskyVariationalDistribution(3)
        return gpytorch.variational.BatchDecoupledVariationalStrategy(model, rows.z, q)

    def wrapped(model: object) -> object:
        base = SiteStrategy(model, InducingPoints(inducing_points=rows.z))
        return gpytorch.variational.IndependentMultitaskVariationalStrategy(base, num_tasks=2)

    plain = gpytorch.distributions.MultivariateNormal(rows.y, torch.eye(size).double())
    for strategy in (grid, decoupled, wrapped):
        model = make_model(strategy)
        mll = TighterVariationalELBO(likelihood, model, num_data=size)
        output = model(rows.x) if strategy is wrapped else plain
        with pytest.raises(UnsupportedError, match=type(model.variational_strategy).__name__):
            mll(output, rows.y, inputs=rows.x)

    several = sparse_model(batch_shape=torch.Size([3]))
    softmax = gpytorch.likelihoods.SoftmaxLikelihood(num_classes=3, mixing_weights=False)
    mll = TighterVariationalELBO(softmax, several, num_data=size)
    with pytest.raises(UnsupportedError, match="couples 3 latent functions"):
        mll(several(rows.x), rows.labels)

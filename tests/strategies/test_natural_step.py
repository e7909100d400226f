"""Natural steps against GPyTorch's NGD, SGPR and the exact process."""

import math
from collections.abc import Callable

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi.approximations import Exact, InducingPoints
from gpvi.exceptions import InputError, PriorCollapseWarning, UnsupportedError
from gpvi.inference import elbo
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood, StudentTLikelihood
from gpvi.strategies import SiteStrategy

JITTER = 1e-10


def ngd_model(make_model: type, z: Tensor) -> gpytorch.models.ApproximateGP:
    def strategy(model: gpytorch.models.ApproximateGP) -> object:
        q = gpytorch.variational.NaturalVariationalDistribution(len(z), mean_init_std=0.0)
        return gpytorch.variational.VariationalStrategy(model, z, q, jitter_val=JITTER)

    return make_model(strategy)


def natural_model(make_model: type, z: Tensor) -> gpytorch.models.ApproximateGP:
    def strategy(model: gpytorch.models.ApproximateGP) -> SiteStrategy:
        # Their jitter is absolute, ours relative to the mean diagonal of Kzz, which starts at ln 2.
        approximation = InducingPoints(inducing_points=z, jitter=JITTER / math.log(2.0))
        return SiteStrategy(model, approximation, site_parameters="natural")

    return make_model(strategy)


def natural(make_model: type, rows: object, approximation: object, **options: object) -> object:
    def strategy(model: gpytorch.models.ApproximateGP) -> SiteStrategy:
        return SiteStrategy(model, approximation, site_parameters="natural", **options)

    return make_model(strategy)


@pytest.mark.parametrize("name", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("size", [40, 10], ids=["one batch", "four minibatches"])
def test_equals_gpytorch_ngd(name: str, size: int, make_model: type, rows: object) -> None:
    # GPyTorch's own Bernoulli evaluates log Phi by a series good to 1e-5 only; ours serves both.
    likelihood = (
        gpytorch.likelihoods.GaussianLikelihood().double()
        if name == "gaussian"
        else BernoulliLikelihood()
    )
    y = rows.targets(likelihood)
    theirs, ours = ngd_model(make_model, rows.z), natural_model(make_model, rows.z)
    mll = gpytorch.mlls.VariationalELBO(likelihood, theirs, num_data=len(y))
    optimizer = gpytorch.optim.NGD(theirs.variational_parameters(), num_data=len(y), lr=0.4)
    for x_batch, y_batch in zip(rows.x.split(size), y.split(size), strict=True):
        optimizer.zero_grad()
        (-mll(theirs(x_batch), y_batch)).backward()
        optimizer.step()
        ours.variational_strategy.natural_step(
            likelihood, x_batch, y_batch, step_size=0.4, num_data=len(y)
        )
    x_new = torch.linspace(-0.2, 1.2, 9, dtype=torch.float64).unsqueeze(-1)
    theirs.eval(), ours.eval()
    with torch.no_grad():
        ours_q, theirs_q = ours(x_new), theirs(x_new)
        gap = (
            ours.variational_strategy.kl_divergence() - theirs.variational_strategy.kl_divergence()
        )
    torch.testing.assert_close(ours_q.mean, theirs_q.mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(ours_q.variance, theirs_q.variance, rtol=0, atol=1e-7)
    assert abs(gap) < 1e-7


@pytest.mark.parametrize("sites", ["tied", "data"])
def test_one_gaussian_step_equals_sgpr(sites: str, make_model: type, rows: object) -> None:
    """The collapsed bound and predictions of Titsias (2009), from dense formulas."""
    options = {} if sites == "tied" else {"train_inputs": rows.x}
    approximation = InducingPoints(inducing_points=rows.z, jitter=0.0)
    model = natural(make_model, rows, approximation, **options)
    noise = 0.05
    likelihood = GaussianLikelihood(noise=noise)
    strategy = model.variational_strategy
    strategy.natural_step(likelihood, rows.x, rows.y, step_size=1.0)
    x_new = torch.linspace(-0.2, 1.2, 9, dtype=torch.float64).unsqueeze(-1)
    with torch.no_grad():
        kernel = model.covar_module
        kzz, kzx = kernel(rows.z).to_dense(), kernel(rows.z, rows.x).to_dense()
        kzs, kxx = kernel(rows.z, x_new).to_dense(), kernel(rows.x).to_dense()
        qxx = kzx.T @ torch.linalg.solve(kzz, kzx)
        covariance = qxx + noise * torch.eye(len(rows.x), dtype=torch.float64)
        collapsed = torch.distributions.MultivariateNormal(
            torch.zeros(len(rows.x)).double(), covariance
        )
        expected = collapsed.log_prob(rows.y) - 0.5 * (kxx - qxx).trace() / noise
        sigma = torch.linalg.inv(kzz + kzx @ kzx.T / noise)
        mean = kzs.T @ sigma @ kzx @ rows.y / noise
        variance = (
            kernel(x_new, diag=True)
            - (kzs * torch.linalg.solve(kzz, kzs)).sum(0)
            + (kzs * (sigma @ kzs)).sum(0)
        )
        value = elbo(strategy.posterior(rows.x), likelihood, rows.y)
        model.eval()
        predicted = model(x_new)
    assert abs(value - expected) < 1e-8
    torch.testing.assert_close(predicted.mean, mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(predicted.variance, variance, rtol=0, atol=1e-8)


class ExactModel(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, likelihood: object, model: object) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = model.mean_module, model.covar_module

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@pytest.mark.parametrize("approximation", ["inducing points at the rows", "exact"])
def test_equals_the_exact_process(approximation: str, make_model: type, make_rows: type) -> None:
    rows = make_rows(size=15)
    rows.x = torch.linspace(0.0, 3.0, 15, dtype=torch.float64).unsqueeze(-1)
    if approximation == "exact":
        model = natural(make_model, rows, Exact(), train_inputs=rows.x)
    else:
        points = InducingPoints(inducing_points=rows.x, jitter=1e-12)
        model = natural(make_model, rows, points)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = 0.1
    model.mean_module.constant = 0.3
    strategy = model.variational_strategy
    strategy.natural_step(likelihood, rows.x, rows.y, step_size=1.0)
    exact = ExactModel(rows.x, rows.y, likelihood, model)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, exact)
    x_new = torch.linspace(-0.5, 3.5, 9, dtype=torch.float64).unsqueeze(-1)
    with torch.no_grad():
        expected = mll(exact(rows.x), rows.y) * len(rows.x)
        bound = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(rows.x))
        value = bound(model(rows.x), rows.y) * len(rows.x)
        exact.eval(), model.eval()
        ours, theirs = model(x_new), exact(x_new)
    assert abs(value - expected) < 1e-6
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.covariance_matrix, theirs.covariance_matrix, rtol=0, atol=1e-6)


def test_data_sites_keep_their_optimum_when_the_kernel_moves(
    make_model: type, rows: object
) -> None:
    """One site per row: with a Gaussian likelihood the step need not be repeated."""
    likelihood = GaussianLikelihood(noise=0.05)
    values = {}
    for name, options in (("tied", {}), ("data", {"train_inputs": rows.x})):
        points = InducingPoints(inducing_points=rows.z)
        strategy = natural(make_model, rows, points, **options).variational_strategy
        strategy.natural_step(likelihood, rows.x, rows.y, step_size=1.0)
        strategy.model.covar_module.base_kernel.lengthscale = 0.12
        with torch.no_grad():
            moved = elbo(strategy.posterior(rows.x), likelihood, rows.y)
            strategy.natural_step(likelihood, rows.x, rows.y, step_size=1.0)
            best = elbo(strategy.posterior(rows.x), likelihood, rows.y)
        values[name] = float(best - moved)
    assert abs(values["data"]) < 1e-9
    assert values["tied"] > 1e-3


def test_missing_targets_weights_and_row_arguments(sparse_model: Callable, rows: object) -> None:
    likelihood = GaussianLikelihood(noise=0.1)
    keep = torch.arange(len(rows.y)) % 4 != 0
    y_missing = torch.where(keep, rows.y, torch.nan)
    weights = torch.where(keep, 2.0, 0.0).double()
    noise = torch.linspace(0.1, 0.5, len(rows.y), dtype=torch.float64)
    known = GaussianLikelihood(noise=0.1, learn_noise=False)
    sites = {}
    for name, x, y, model_likelihood, extras in (
        ("missing", rows.x, y_missing, likelihood, {}),
        ("left out", rows.x[keep], rows.y[keep], likelihood, {"num_data": len(rows.y[keep])}),
        ("weights", rows.x, rows.y, likelihood, {"weights": weights}),
        ("half noise", rows.x[keep], rows.y[keep], GaussianLikelihood(noise=0.05), {}),
        ("noise", rows.x, rows.y, known, {"noise": noise, "weights": noise}),
        ("unit noise", rows.x, rows.y, GaussianLikelihood(noise=1.0), {}),
    ):
        strategy = sparse_model(site_parameters="natural").variational_strategy
        strategy.natural_step(model_likelihood, x, y, step_size=1.0, **extras)
        sites[name] = strategy._variational_distribution.sites().lam1
    for one, other in (("missing", "left out"), ("weights", "half noise"), ("noise", "unit noise")):
        torch.testing.assert_close(sites[one], sites[other])


def test_several_latents_take_a_mixing_matrix(make_model: type, rows: object) -> None:
    """Two latent functions behind three outputs: damped steps reach a fixed point."""
    mixing = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]], dtype=torch.float64)
    y = torch.stack([rows.y, 0.5 * rows.y + 0.5, torch.ones_like(rows.y)])
    points = InducingPoints(inducing_points=rows.z)
    model = natural(make_model, rows, points, batch_shape=torch.Size([2]))
    strategy, likelihood = model.variational_strategy, GaussianLikelihood(noise=0.1)
    for _ in range(40):
        strategy.natural_step(likelihood, rows.x, y, step_size=0.5, mixing=mixing)
    before = strategy._variational_distribution.sites()
    strategy.natural_step(likelihood, rows.x, y, step_size=0.5, mixing=mixing)
    after = strategy._variational_distribution.sites()
    torch.testing.assert_close(after.lam1, before.lam1, rtol=1e-6, atol=1e-6)
    model.eval()
    with torch.no_grad():
        fitted = mixing.T @ model(rows.x).mean
    assert (fitted - y).abs().mean() < 0.15


def test_clipping_keeps_q_proper_where_the_likelihood_is_not_log_concave(
    sparse_model: Callable, rows: object
) -> None:
    y = torch.full_like(rows.y, 8.0)
    likelihood = StudentTLikelihood()
    plain, clipped = (sparse_model(site_parameters="natural") for _ in range(2))
    clipped.variational_strategy.natural_step(likelihood, rows.x, y, step_size=1.0)
    plain.variational_strategy.natural_step(
        likelihood, rows.x, y, step_size=1.0, min_precision=None
    )
    lowest = [
        torch.linalg.eigvalsh(m.variational_strategy._variational_distribution.sites().lam2)[0]
        for m in (plain, clipped)
    ]
    assert lowest[0] < -1e-3 <= lowest[1]


def test_leaves_everything_but_the_sites_alone(sparse_model: Callable, rows: object) -> None:
    model, likelihood = sparse_model(site_parameters="natural"), BernoulliLikelihood()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    output = model(rows.x)
    model.variational_strategy.natural_step(likelihood, rows.x, rows.labels, step_size=0.5)
    assert torch.equal(torch.random.get_rng_state(), state)
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert {name.rpartition(".")[2] for name in changed} == {"lam1", "lam2"}
    # A graph from before the step is still good.
    output.mean.sum().backward()
    assert all(p.grad is None for p in likelihood.parameters())


def test_shares_its_prior_with_the_next_call(
    sparse_model: Callable, rows: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and only while nothing has changed."""
    model, likelihood = sparse_model(site_parameters="natural"), GaussianLikelihood(noise=0.1)
    strategy, built = model.variational_strategy, []
    original = InducingPoints.prior

    def spy(self: InducingPoints, *arguments: object, **options: object) -> object:
        built.append(1)
        return original(self, *arguments, **options)

    def step() -> None:
        strategy.natural_step(likelihood, rows.x, rows.y, step_size=0.5)

    def gradient() -> list[Tensor]:
        model.zero_grad()
        model(rows.x).mean.square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    monkeypatch.setattr(InducingPoints, "prior", spy)
    step()
    first = gradient()
    assert len(built) == 1
    torch.testing.assert_close(gradient(), first)  # a graph of its own
    assert len(built) == 2
    step(), step()
    assert len(built) == 3
    model.covar_module.base_kernel.lengthscale = 0.2
    moved = gradient()
    assert len(built) == 4
    torch.testing.assert_close(gradient(), moved, rtol=0, atol=0)
    with torch.no_grad():
        step()
    assert all(bool(g.any()) for g in gradient())
    step()
    model(rows.x[:5])
    assert len(built) == 9


def test_accepts_inputs_without_a_column_dim(sparse_model: Callable, rows: object) -> None:
    flat, column = (sparse_model(site_parameters="natural") for _ in range(2))
    likelihood = GaussianLikelihood()
    flat.variational_strategy.natural_step(likelihood, rows.x[:, 0], rows.y, step_size=1.0)
    column.variational_strategy.natural_step(likelihood, rows.x, rows.y, step_size=1.0)
    torch.testing.assert_close(flat.state_dict(), column.state_dict())


def test_refusals(sparse_model: Callable, make_model: type, rows: object) -> None:
    likelihood = GaussianLikelihood()
    strategy = sparse_model(site_parameters="natural").variational_strategy
    with pytest.raises(InputError, match=r"step_size is 1\.5"):
        strategy.natural_step(likelihood, rows.x, rows.y, step_size=1.5)
    with pytest.raises(InputError, match="exposures"):
        strategy.natural_step(likelihood, rows.x, rows.y, step_size=1.0, exposures=rows.y)
    with pytest.raises(InputError, match="further batch dims"):
        strategy.natural_step(likelihood, rows.x.expand(2, -1, -1), rows.y, step_size=1.0)
    with pytest.raises(UnsupportedError, match="site_parameters='natural'"):
        sparse_model().variational_strategy.natural_step(likelihood, rows.x, rows.y, step_size=1.0)
    exact = natural(make_model, rows, Exact(), train_inputs=rows.x).variational_strategy
    with pytest.raises(InputError, match="is not train_inputs"):
        exact.natural_step(likelihood, rows.x[:5], rows.y[:5], step_size=1.0)
    with pytest.raises(InputError, match="leave num_data out"):
        exact.natural_step(likelihood, rows.x, rows.y, step_size=1.0, num_data=100)


def test_warns_when_the_step_was_forgotten(sparse_model: Callable, rows: object) -> None:
    model = sparse_model(site_parameters="natural").eval()
    with pytest.warns(PriorCollapseWarning, match="call natural_step") as got, torch.no_grad():
        model(rows.x)
    assert got[0].filename == __file__

"""GPyTorch's conventions: parameters, modes, caches, copies, errors."""

import copy
import pickle
from collections.abc import Callable

import gpytorch
import pytest
import torch
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from gpvi.approximations import Exact, InducingPoints, Posterior
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood
from gpvi.strategies import SiteStrategy


def exact_model(make_model: type, x: Tensor, **options: object) -> object:
    return make_model(lambda m: SiteStrategy(m, Exact(), train_inputs=x, **options))


def loss(model: object, rows: object) -> Tensor:
    mll = gpytorch.mlls.VariationalELBO(BernoulliLikelihood(), model, num_data=len(rows.x))
    return -mll(model(rows.x), rows.labels)


# ---------------------------------------------------------------------- parameters


@pytest.mark.parametrize("site_parameters", ["gradient", "natural"])
def test_every_parameter_is_registered_once_and_on_its_side(
    site_parameters: str, sparse_model: Callable, make_model: type, rows: object
) -> None:
    for model in (
        sparse_model(site_parameters=site_parameters),
        exact_model(make_model, rows.x, site_parameters=site_parameters),
    ):
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        everything = [id(p) for p in model.parameters()]
        assert len(names) == len(everything) == len(set(everything))
        hyper, variational = (
            {name.rpartition(".")[2] for name, _ in pairs}
            for pairs in (model.named_hyperparameters(), model.named_variational_parameters())
        )
        assert {"raw_constant", "raw_outputscale", "raw_lengthscale"} <= hyper
        assert hyper - {"inducing_points"} == {"raw_constant", "raw_outputscale", "raw_lengthscale"}
        tied = "inducing_points" in hyper
        gradient = (
            {"variational_mean", "chol_variational_covar"}
            if tied
            else {"pseudo_target", "log_precision"}
        )
        assert variational == (gradient if site_parameters == "gradient" else set())


def test_priors_count_once(sparse_model: Callable, rows: object) -> None:
    model = sparse_model()
    prior = gpytorch.priors.GammaPrior(2.0, 3.0)
    model.covar_module.base_kernel.register_prior("lengthscale_prior", prior, "lengthscale")
    mll = gpytorch.mlls.VariationalELBO(GaussianLikelihood(), model, num_data=len(rows.x))
    assert len(list(mll.named_priors())) == 1


def test_starts_at_the_prior(sparse_model: Callable, rows: object) -> None:
    model = sparse_model()
    model.mean_module.constant = 1.5
    assert model.variational_strategy.kl_divergence().item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(model(rows.x).mean, torch.full((40,), 1.5).double())


# ---------------------------------------------------------------------- calls


@pytest.mark.parametrize("kind", ["sparse", "exact"])
def test_diag_and_modes(kind: str, sparse_model: Callable, make_model: type, rows: object) -> None:
    model = sparse_model() if kind == "sparse" else exact_model(make_model, rows.x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, rows).backward()
        optimizer.step()
    x = rows.x[:12]
    fast, full = model(x), model(x, diag=False)
    assert isinstance(fast.lazy_covariance_matrix, DiagLinearOperator)
    with torch.no_grad():
        evaluated = model.eval()(x)
    for one in (fast, full):
        torch.testing.assert_close(one.mean, evaluated.mean)
        diagonal = one.lazy_covariance_matrix.diagonal(dim1=-1, dim2=-2)
        torch.testing.assert_close(diagonal, evaluated.covariance_matrix.diagonal())
    torch.testing.assert_close(full.covariance_matrix, evaluated.covariance_matrix)
    assert (evaluated.covariance_matrix - torch.diag(evaluated.variance)).abs().max() > 1e-3


def test_prior_comes_from_the_model(sparse_model: Callable, rows: object) -> None:
    model = sparse_model()
    prior = model(rows.x, prior=True)
    torch.testing.assert_close(prior.covariance_matrix, model.covar_module(rows.x).to_dense())


def test_covariances_in_eval_mode_are_lazy(
    sparse_model: Callable, rows: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means and variances of many rows never build their covariance matrix."""
    model = sparse_model().eval()
    with torch.no_grad():
        kept = model.variational_strategy._today()
        sizes: list[int] = []
        original = type(kept).predict

        def spy(self: Posterior, x: Tensor, joint: bool = False, **more: object) -> object:
            sizes.append(x.shape[-2] if joint else 0)
            return original(self, x, joint=joint, **more)

        monkeypatch.setattr(type(kept), "predict", spy)
        q_f = model(torch.linspace(0, 1, 1000, dtype=torch.float64).unsqueeze(-1))
        q_y = GaussianLikelihood(noise=0.1)(q_f)
        assert q_f.variance.shape == q_y.variance.shape == (1000,)
        torch.testing.assert_close(q_y.variance, q_f.variance + 0.1)
        assert sizes == [0]
        block = q_f.lazy_covariance_matrix[..., :3, 5:7].to_dense()
        assert max(sizes) == 5
        monkeypatch.undo()
        few = model(q_f.lazy_covariance_matrix.x1[:7]).covariance_matrix
    torch.testing.assert_close(block, few[:3, 5:7])


def test_samples_follow_the_covariance(sparse_model: Callable, rows: object) -> None:
    model = sparse_model().eval()
    with torch.no_grad():
        q_f = model(torch.tensor([[0.2], [0.5], [0.9]], dtype=torch.float64))
        root = torch.linalg.cholesky(q_f.covariance_matrix)
        noise = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        draw = q_f.rsample(torch.Size([3]), base_samples=noise)
    torch.testing.assert_close(draw, q_f.mean + noise @ root.mT)


def test_gradients_reach_inputs_in_eval_mode(sparse_model: Callable, rows: object) -> None:
    model = sparse_model()
    torch.nn.init.ones_(model.variational_strategy._variational_distribution.variational_mean)
    model.eval().requires_grad_(False)
    for _ in range(2):  # twice: the posterior is kept, and its graph must not be needed again
        x = torch.tensor([[0.3], [0.7]], dtype=torch.float64, requires_grad=True)
        q_f = model(x)
        (q_f.mean.sum() + q_f.covariance_matrix.sum()).backward()
        assert bool((x.grad != 0).all())


def test_batches_of_inputs(sparse_model: Callable, rows: object) -> None:
    model = sparse_model()
    x = torch.stack([rows.x[:5], rows.x[5:10], rows.x[10:15]])
    assert model(x).batch_shape == (3,)
    with torch.no_grad():
        q_f = model.eval()(x)
        torch.testing.assert_close(q_f.mean[1], model(x[1]).mean)
        torch.testing.assert_close(q_f[1].covariance_matrix, model(x[1]).covariance_matrix)
    assert model.variational_strategy.kl_divergence().shape == ()


@pytest.mark.parametrize("kernel_batch", [[], [3]])
@pytest.mark.parametrize("shared_points", [True, False])
def test_batch_shape(
    kernel_batch: list[int], shared_points: bool, make_model: type, rows: object
) -> None:
    shape = torch.Size(kernel_batch)
    kernel = gpytorch.kernels.RBFKernel(batch_shape=shape)
    kernel.lengthscale = torch.tensor([0.2, 0.3, 0.4]).reshape(3, 1, 1) if kernel_batch else 0.3
    z = rows.z if shared_points else torch.stack([rows.z, rows.z + 0.01, rows.z + 0.02])

    def strategy(model: object) -> SiteStrategy:
        options = {"batch_shape": torch.Size([3])} if shared_points else {}
        return SiteStrategy(
            model, InducingPoints(inducing_points=z), site_parameters="natural", **options
        )

    model = make_model(strategy, kernel=kernel, mean=gpytorch.means.ConstantMean(batch_shape=shape))
    targets = torch.stack([rows.y, -rows.y, 2.0 * rows.y])
    likelihood = GaussianLikelihood(noise=0.1)
    model.variational_strategy.natural_step(likelihood, rows.x, targets, step_size=1.0)
    output = model(rows.x)
    assert output.batch_shape == model.variational_strategy.kl_divergence().shape == (3,)
    mll = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(rows.x))
    assert mll(output, targets).shape == (3,)
    with torch.no_grad():
        q_f = model.eval()(rows.x[:4])
        assert q_f.covariance_matrix.shape == (3, 4, 4)
        single = make_model(
            lambda m: SiteStrategy(
                m,
                InducingPoints(inducing_points=z if shared_points else z[2]),
                site_parameters="natural",
            ),
            kernel=gpytorch.kernels.RBFKernel(),
        )
        single.covar_module.lengthscale = 0.4 if kernel_batch else 0.3
        single.variational_strategy.natural_step(likelihood, rows.x, targets[2], step_size=1.0)
        alone = single.eval()(rows.x[:4])
    torch.testing.assert_close(q_f.mean[2], alone.mean)
    torch.testing.assert_close(q_f.covariance_matrix[2], alone.covariance_matrix)


# ---------------------------------------------------------------------- never stale


def test_eval_mode_keeps_the_posterior_until_something_changes(
    sparse_model: Callable, rows: object
) -> None:
    model, other = sparse_model(site_parameters="natural"), sparse_model(site_parameters="natural")
    likelihood = GaussianLikelihood(noise=0.1)
    for each, step in ((model, 1.0), (other, 0.7)):
        each.variational_strategy.natural_step(likelihood, rows.x, rows.y, step_size=step)
    other.covar_module.outputscale = 2.0
    model.eval(), other.eval()

    def set_lengthscale() -> None:
        model.covar_module.base_kernel.lengthscale = 0.15  # through .data: no version changes

    def optimizer_step() -> None:
        with torch.enable_grad():
            model(rows.x).mean.sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()

    def load() -> None:
        model.load_state_dict(other.state_dict())

    def step() -> None:
        model.variational_strategy.natural_step(likelihood, rows.x, -rows.y, step_size=0.5)

    strategy = model.variational_strategy
    with torch.no_grad():
        for change in (set_lengthscale, optimizer_step, load, step):
            before = model(rows.x).mean
            assert strategy._today() is strategy._today()
            kept = strategy._today()
            change()
            assert strategy._today() is not kept
            fresh = copy.deepcopy(model)
            torch.testing.assert_close(model(rows.x).mean, fresh(rows.x).mean, rtol=0, atol=0)
            assert (model(rows.x).mean - before).abs().max() > 1e-4
        torch.testing.assert_close(model.covar_module.outputscale, torch.tensor(2.0).double())


def test_kl_in_training_belongs_to_the_last_call(sparse_model: Callable, rows: object) -> None:
    model = sparse_model()
    strategy = model.variational_strategy
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, rows).backward()
        optimizer.step()
    after = strategy.kl_divergence()
    torch.testing.assert_close(after, strategy.posterior(rows.x).kl())
    after.backward()  # on a graph of its own


def test_predictions_with_and_without_gradients_do_not_mix(
    sparse_model: Callable, rows: object
) -> None:
    model = sparse_model().eval()
    with torch.no_grad():
        model(rows.x)
    with torch.inference_mode():
        model(rows.x)
    for _ in range(2):
        model(rows.x).mean.sum().backward()
    assert model.mean_module.raw_constant.grad.item() == pytest.approx(2.0 * len(rows.x))


# ---------------------------------------------------------------------- copies


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("kind", ["sparse", "exact", "natural"])
def test_copies_after_a_forward_pass_with_gradients(
    kind: str, copier: Callable, sparse_model: Callable, make_model: type, rows: object
) -> None:
    if kind == "exact":
        model = exact_model(make_model, rows.x)
    else:
        model = sparse_model(site_parameters="natural" if kind == "natural" else "gradient")
    if kind == "natural":
        likelihood = GaussianLikelihood(noise=0.1)
        model.variational_strategy.natural_step(likelihood, rows.x, rows.y, step_size=1.0)
    loss(model, rows).backward()
    twin = copier(model)
    assert twin.variational_strategy.model is twin
    torch.testing.assert_close(loss(twin, rows), loss(model, rows))
    before = model(rows.x).mean
    loss(twin, rows).backward()
    torch.optim.SGD(twin.parameters(), lr=1.0).step()
    assert bool((twin(rows.x).mean - before).abs().max() > 1e-4)
    assert torch.equal(model(rows.x).mean, before)


@pytest.mark.parametrize("site_parameters", ["gradient", "natural"])
def test_state_dict_round_trip(
    site_parameters: str, sparse_model: Callable, make_model: type, rows: object
) -> None:
    pairs = [
        [sparse_model(site_parameters=site_parameters) for _ in range(2)],
        [exact_model(make_model, x, site_parameters=site_parameters) for x in (rows.x, 0 * rows.x)],
    ]
    for source, target in pairs:
        if site_parameters == "natural":
            likelihood = GaussianLikelihood(noise=0.1)
            source.variational_strategy.natural_step(likelihood, rows.x, rows.y, step_size=1.0)
        else:
            torch.nn.init.ones_(next(source.variational_parameters()))
        target.load_state_dict(source.state_dict())
        with torch.no_grad():
            one, other = source.eval()(rows.x[:5]), target.eval()(rows.x[:5])
        torch.testing.assert_close(one.mean, other.mean)
        assert one.mean.abs().max() > 0.1


# ---------------------------------------------------------------------- errors


def test_refusals(make_model: type, sparse_model: Callable, rows: object) -> None:
    def build(approximation: object, **options: object) -> object:
        return make_model(lambda m: SiteStrategy(m, approximation, **options))

    with pytest.raises(InputError, match="have not been chosen"):
        build(InducingPoints(5))
    with pytest.raises(InputError, match="pass train_inputs"):
        build(Exact())
    with pytest.raises(InputError, match="site_parameters is 'adam'"):
        build(Exact(), train_inputs=rows.x, site_parameters="adam")
    with pytest.raises(InputError, match="floating-point inputs"):
        build(Exact(), train_inputs=torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(InputError, match=r"pass batch_shape=torch.Size\(\[2\]\)"):
        points = InducingPoints(inducing_points=rows.z.expand(2, -1, -1))
        build(points, batch_shape=torch.Size([]))
    batched = make_model(
        lambda m: SiteStrategy(m, InducingPoints(inducing_points=rows.z)),
        kernel=gpytorch.kernels.RBFKernel(batch_shape=torch.Size([3])),
    )
    with pytest.raises(InputError, match=r"pass batch_shape=torch.Size\(\[3\]\)"):
        batched(rows.x)
    model = sparse_model()
    with pytest.raises(UnsupportedError, match="no fantasy models"):
        model.get_fantasy_model(rows.x, rows.y)
    with pytest.raises(UnsupportedError, match="ask the strategy"):
        model.variational_strategy._variational_distribution()
    with pytest.raises(UnsupportedError, match="is a strategy itself"):
        SiteStrategy(model.variational_strategy, InducingPoints(inducing_points=rows.z))
    with pytest.raises(InputError, match="NoneType"):
        model(None)
    with pytest.raises(InputError, match="pass x"):
        model.variational_strategy.posterior()
    with pytest.raises(TypeError, match="unknown"):
        model(rows.x, unknown=1)


def test_sites_can_be_reset(sparse_model: Callable, make_model: type, rows: object) -> None:
    standard = gpytorch.distributions.MultivariateNormal(
        torch.zeros(7).double(), torch.eye(7).double()
    )
    natural, gradient = sparse_model(site_parameters="natural"), sparse_model()
    likelihood = GaussianLikelihood(noise=0.1)
    natural.variational_strategy.natural_step(likelihood, rows.x, rows.y, step_size=1.0)
    torch.nn.init.ones_(gradient.variational_strategy._variational_distribution.variational_mean)
    for model in (natural, gradient):
        strategy = model.variational_strategy
        assert strategy.kl_divergence() > 0.1
        strategy._variational_distribution.initialize_variational_distribution(standard)
        assert strategy.kl_divergence().item() == pytest.approx(0.0, abs=1e-10)
    exact = exact_model(make_model, rows.x)
    store = exact.variational_strategy._variational_distribution
    torch.nn.init.ones_(store.pseudo_target)
    store.initialize_variational_distribution(exact(rows.x, prior=True))
    assert not bool(store.pseudo_target.any())

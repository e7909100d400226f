"""GPyTorch's multi-output wrappers and deep layers around SiteStrategy."""

import copy
import pickle
from collections.abc import Callable

import gpytorch
import pytest
import torch
from gpytorch.variational import (
    IndependentMultitaskVariationalStrategy,
    LMCVariationalStrategy,
    VariationalStrategy,
)

from gpvi.approximations import Exact, InducingPoints
from gpvi.strategies import SiteStrategy

NUM_LATENTS, NUM_TASKS = 2, 3


def wrap(kind: str, base: object) -> object:
    if kind == "lmc":
        # Its coefficients are drawn from the global generator.
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return LMCVariationalStrategy(base, num_tasks=NUM_TASKS, num_latents=NUM_LATENTS)
    return IndependentMultitaskVariationalStrategy(base, num_tasks=NUM_TASKS)


@pytest.fixture
def multitask(make_model: type, rows: object) -> Callable[..., object]:
    def make(kind: str, base: Callable) -> object:
        shape = torch.Size([NUM_LATENTS if kind == "lmc" else NUM_TASKS])
        kernel = gpytorch.kernels.ScaleKernel(
            gpytorch.kernels.RBFKernel(batch_shape=shape), batch_shape=shape
        )
        kernel.base_kernel.lengthscale = 0.3
        mean = gpytorch.means.ConstantMean(batch_shape=shape)
        return make_model(lambda m: wrap(kind, base(m, shape)), kernel=kernel, mean=mean)

    return make


def sparse(z: torch.Tensor, **options: object) -> Callable:
    def base(model: object, shape: torch.Size) -> SiteStrategy:
        points = InducingPoints(inducing_points=z, jitter=1e-12)
        return SiteStrategy(model, points, batch_shape=shape, **options)

    return base


def exact(x: torch.Tensor) -> Callable:
    return lambda model, shape: SiteStrategy(model, Exact(), train_inputs=x, batch_shape=shape)


def gpytorch_base(z: torch.Tensor) -> Callable:
    def base(model: object, shape: torch.Size) -> VariationalStrategy:
        q = gpytorch.variational.CholeskyVariationalDistribution(
            len(z), batch_shape=shape, mean_init_std=0.0
        )
        return VariationalStrategy(model, z, q, jitter_val=1e-12)

    return base


def targets(rows: object) -> torch.Tensor:
    return torch.stack([rows.y, -rows.y, rows.y.square()], dim=-1)


def train(model: object, rows: object, steps: int) -> list[float]:
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=NUM_TASKS).double()
    mll = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(rows.x))
    optimizer = torch.optim.Adam([*model.parameters(), *likelihood.parameters()], lr=0.05)
    trace = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -mll(model(rows.x), targets(rows))
        loss.backward()
        optimizer.step()
        trace.append(loss.item())
    return trace


@pytest.mark.parametrize("kind", ["lmc", "independent"])
@pytest.mark.parametrize("basis", ["inducing", "exact"])
def test_trains_and_predicts(kind: str, basis: str, multitask: Callable, rows: object) -> None:
    base = sparse(rows.z) if basis == "inducing" else exact(rows.x)
    model = multitask(kind, base)
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()})
    trace = train(model, rows, steps=12)
    assert trace[-1] < trace[0] - 0.1
    wrapper = model.variational_strategy
    own = wrapper.base_variational_strategy.kl_divergence()
    torch.testing.assert_close(wrapper.kl_divergence(), own.sum(), rtol=0, atol=0)
    with torch.no_grad():
        q_f = model.eval()(rows.x[:5])
        assert q_f.mean.shape == q_f.variance.shape == (5, NUM_TASKS)
        assert q_f.covariance_matrix.shape == (5 * NUM_TASKS, 5 * NUM_TASKS)
        one = model(rows.x[:5], task_indices=torch.full((5,), 1))
    torch.testing.assert_close(one.mean, q_f.mean[:, 1])
    torch.testing.assert_close(one.variance, q_f.variance[:, 1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["lmc", "independent"])
def test_trace_equals_that_of_gpytorch(kind: str, multitask: Callable, make_rows: type) -> None:
    rows = make_rows(num_inducing=4)
    ours = train(multitask(kind, sparse(rows.z)), rows, steps=10)
    theirs = train(multitask(kind, gpytorch_base(rows.z)), rows, steps=10)
    assert ours == pytest.approx(theirs, abs=1e-8)


def test_natural_steps_under_a_wrapper(multitask: Callable, rows: object) -> None:
    """Independent tasks need one Gaussian step; mixed ones converge with the mixing matrix."""
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=NUM_TASKS).double()
    likelihood.noise, likelihood.task_noises = 1e-2, 1e-2 * torch.ones(NUM_TASKS)
    for kind, steps, size in (("independent", 1, 1.0), ("lmc", 60, 0.5)):
        model = multitask(kind, sparse(rows.z, site_parameters="natural"))
        base = model.variational_strategy.base_variational_strategy
        mixing = model.variational_strategy.lmc_coefficients if kind == "lmc" else None
        y = targets(rows)
        if kind == "lmc":
            y = y[:, :NUM_LATENTS] @ mixing.detach()
        mll = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(rows.x))
        values = []
        for _ in range(steps + 1):
            base.natural_step(likelihood, rows.x, y, step_size=size, mixing=mixing)
            with torch.no_grad():
                values.append(mll(model(rows.x), y).item())
        assert values[-1] == pytest.approx(values[-2], abs=1e-6)
        with torch.no_grad():
            assert (model.eval()(rows.x).mean - y).abs().mean() < 0.15


@pytest.mark.parametrize("kind", ["lmc", "independent"])
def test_copies(kind: str, multitask: Callable, rows: object) -> None:
    model = multitask(kind, sparse(rows.z))
    train(model, rows, steps=2)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            torch.testing.assert_close(twin(rows.x).mean, model(rows.x).mean)
    other = multitask(kind, sparse(rows.z))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(other(rows.x).mean, model(rows.x).mean)


class Layer(gpytorch.models.deep_gps.DeepGPLayer):
    def __init__(self, z: torch.Tensor, output_dims: int | None) -> None:
        shape = torch.Size([]) if output_dims is None else torch.Size([output_dims])
        strategy = SiteStrategy(self, InducingPoints(inducing_points=z), batch_shape=shape)
        super().__init__(strategy, z.shape[-1], output_dims)
        self.mean_module = gpytorch.means.ConstantMean(batch_shape=shape)
        self.covar_module = gpytorch.kernels.RBFKernel(batch_shape=shape)

    def forward(self, x: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class TwoLayers(gpytorch.models.deep_gps.DeepGP):
    def __init__(self, z: torch.Tensor) -> None:
        super().__init__()
        self.hidden = Layer(z, output_dims=2)
        self.last = Layer(torch.cat([z - 0.5, 0.5 - z], -1), output_dims=None)
        self.double()

    def forward(self, x: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        return self.last(self.hidden(x))


def test_deep_gaussian_process(rows: object) -> None:
    model, likelihood = TwoLayers(rows.z), gpytorch.likelihoods.GaussianLikelihood().double()
    mll = gpytorch.mlls.DeepApproximateMLL(
        gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(rows.x))
    )
    optimizer = torch.optim.Adam([*model.parameters(), *likelihood.parameters()], lr=0.05)
    trace = []
    with torch.random.fork_rng(), gpytorch.settings.num_likelihood_samples(4):
        torch.manual_seed(0)
        for _ in range(25):
            optimizer.zero_grad()
            loss = -mll(model(rows.x), rows.y)
            loss.backward()
            optimizer.step()
            trace.append(loss.item())
    assert trace[-1] < trace[0] - 0.1

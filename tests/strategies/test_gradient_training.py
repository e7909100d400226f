"""Sites as parameters: GPyTorch's training trace, and user loops for every approximation."""

from collections.abc import Callable

import gpytorch
import pytest
import torch
from torch import Tensor

import gpvi.approximations
from gpvi.approximations import (
    Approximation,
    Coreset,
    Exact,
    FullScale,
    InducingPoints,
    InterDomain,
    NeighborInducing,
    Orthogonal,
    SparseInverseCholesky,
    StateSpace,
    White,
)
from gpvi.inference import elbo
from gpvi.inference.cvi import cvi
from gpvi.kernels import WhiteKernel
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from gpvi.strategies import SiteStrategy

LIKELIHOODS = {
    "gaussian": lambda: GaussianLikelihood(noise=0.1),
    "bernoulli": BernoulliLikelihood,
    "poisson": PoissonLikelihood,
    "student-t": StudentTLikelihood,
    "gpytorch gaussian": lambda: gpytorch.likelihoods.GaussianLikelihood().double(),
    "gpytorch bernoulli": lambda: gpytorch.likelihoods.BernoulliLikelihood().double(),
    "gpytorch student-t": lambda: gpytorch.likelihoods.StudentTLikelihood().double(),
}
STRATEGIES: dict[str, type[Approximation]] = {
    "inducing points": InducingPoints,
    "inducing points, data sites": InducingPoints,
    "exact": Exact,
    "white": White,
    "state space": StateSpace,
    "sparse inverse": SparseInverseCholesky,
    "coreset": Coreset,
    "neighbor inducing": NeighborInducing,
    "inter-domain": InterDomain,
    "orthogonal": Orthogonal,
    "full scale": FullScale,
}
TIED = ("inducing points", "coreset", "neighbor inducing", "inter-domain", "orthogonal")
KERNELS: dict[str, Callable[[], gpytorch.kernels.Kernel]] = {
    "white": WhiteKernel,
    "state space": lambda: gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)),
    "full scale": lambda: gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)),
    "sparse inverse": lambda: gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)),
    "neighbor inducing": lambda: gpytorch.kernels.ScaleKernel(
        gpytorch.kernels.MaternKernel(nu=1.5)
    ),
}


def approximation_of(name: str, z: torch.Tensor) -> Approximation:
    """The approximation of one entry of STRATEGIES, at given inducing inputs where it has any."""
    kind = STRATEGIES[name]
    if kind is Coreset:
        return Coreset(points=z)
    if kind in (InducingPoints, NeighborInducing):
        return kind(inducing_points=z)
    if kind is InterDomain:
        return InterDomain(InducingPoints(inducing_points=z))
    if kind is FullScale:
        return FullScale(InducingPoints(inducing_points=z), SparseInverseCholesky(10))
    if kind is Orthogonal:
        blocks = [InducingPoints(inducing_points=part) for part in (z[::2], z[1::2])]
        return Orthogonal(*blocks, q="block")
    return kind()


def build(name: str, make_model: type, rows: object, site_parameters: str) -> object:
    """A model for one entry of STRATEGIES."""

    def strategy(model: gpytorch.models.ApproximateGP) -> SiteStrategy:
        approximation = approximation_of(name, rows.z)
        inputs = None if name in TIED else rows.x
        return SiteStrategy(
            model, approximation, site_parameters=site_parameters, train_inputs=inputs
        )

    return make_model(strategy, kernel=KERNELS.get(name, lambda: None)())


def train(model: object, likelihood: object, rows: object, steps: int, lr: float) -> list[float]:
    """The loop of GPyTorch's tutorials."""
    y = rows.targets(likelihood)
    mll = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(y))
    optimizer = torch.optim.Adam(
        [{"params": model.parameters()}, {"params": likelihood.parameters()}], lr=lr
    )
    model.train(), likelihood.train()
    trace = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -mll(model(rows.x), y)
        loss.backward()
        optimizer.step()
        trace.append(-loss.item())
    return trace


def test_every_approximation_is_in_the_suite() -> None:
    known = {
        value
        for value in vars(gpvi.approximations).values()
        if isinstance(value, type)
        and issubclass(value, Approximation)
        and value is not Approximation
    }
    assert known == set(STRATEGIES.values())


@pytest.mark.parametrize("likelihood_name", LIKELIHOODS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_user_loop_raises_the_bound_and_predicts(
    name: str, likelihood_name: str, make_model: type, rows: object
) -> None:
    likelihood = LIKELIHOODS[likelihood_name]()
    model = build(name, make_model, rows, "gradient")
    state = torch.random.get_rng_state()
    trace = train(model, likelihood, rows, steps=15, lr=0.05)
    assert trace[-1] > trace[0]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval(), likelihood.eval()
    x_new = torch.linspace(0.0, 1.0, 6, dtype=torch.float64).unsqueeze(-1)
    with torch.no_grad():
        q_f = model(x_new)
        assert q_f.covariance_matrix.shape == (6, 6)
        assert bool((q_f.variance > 0).all())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("likelihood_name", LIKELIHOODS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_natural_steps_reach_the_fixed_point(
    name: str, likelihood_name: str, make_model: type, rows: object
) -> None:
    likelihood = LIKELIHOODS[likelihood_name]()
    model = build(name, make_model, rows, "natural")
    strategy, y = model.variational_strategy, rows.targets(likelihood)
    for _ in range(40):
        strategy.natural_step(likelihood, rows.x, y, step_size=0.5)
    with torch.no_grad():
        prior = strategy.posterior(rows.x).prior
        best = cvi(prior, likelihood, y, tolerance=1e-10).objective
        value = elbo(strategy.posterior(rows.x), likelihood, y)
    assert abs(value - best) < 1e-5


@pytest.mark.parametrize("name", ["inducing points, data sites", "exact", "white", "state space"])
def test_pseudo_targets_reach_the_fixed_point(name: str, make_model: type, rows: object) -> None:
    model, likelihood = build(name, make_model, rows, "gradient"), BernoulliLikelihood()
    for parameter in [*model.hyperparameters(), *likelihood.parameters()]:
        parameter.requires_grad_(False)
    trace = train(model, likelihood, rows, steps=150, lr=0.2)
    with torch.no_grad():
        prior = model.variational_strategy.posterior().prior
        best = cvi(prior, likelihood, rows.labels, tolerance=1e-10).objective
    assert abs(trace[-1] - best / len(rows.x)) < 1e-3


def theirs(make_model: type, z: Tensor, jitter: float) -> object:
    def strategy(model: gpytorch.models.ApproximateGP) -> object:
        q = gpytorch.variational.CholeskyVariationalDistribution(len(z), mean_init_std=0.0)
        return gpytorch.variational.VariationalStrategy(model, z, q, jitter_val=jitter)

    return make_model(strategy)


def ours(make_model: type, z: Tensor, jitter: float) -> object:
    return make_model(lambda m: SiteStrategy(m, InducingPoints(inducing_points=z, jitter=jitter)))


@pytest.mark.parametrize("likelihood_name", ["gaussian", "bernoulli", "poisson"])
def test_trace_equals_that_of_gpytorch(
    likelihood_name: str, make_model: type, make_rows: type
) -> None:
    """Kernel, mean, noise, inducing points and q all move; 20 steps of Adam."""
    rows = make_rows(num_inducing=4)
    traces, models = [], []
    for make in (ours, theirs):
        model, likelihood = make(make_model, rows.z, 1e-13), LIKELIHOODS[likelihood_name]()
        traces.append(train(model, likelihood, rows, steps=20, lr=0.05))
        models.append(model)
    ours_trace, theirs_trace = (torch.tensor(t, dtype=torch.float64) for t in traces)
    torch.testing.assert_close(ours_trace, theirs_trace, rtol=0, atol=1e-8)
    x_new = torch.linspace(0.0, 1.0, 6, dtype=torch.float64).unsqueeze(-1)
    with torch.no_grad():
        one, other = (model.eval()(x_new) for model in models)
    torch.testing.assert_close(one.mean, other.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(one.covariance_matrix, other.covariance_matrix, rtol=0, atol=1e-6)


def test_moments_of_a_trained_gpytorch_model_carry_over(make_model: type, rows: object) -> None:
    source, target = theirs(make_model, rows.z, 1e-12), ours(make_model, rows.z, 1e-12)
    train(source, BernoulliLikelihood(), rows, steps=10, lr=0.05)
    names = {
        "variational_strategy.inducing_points": "variational_strategy.approximation.inducing_points"
    }
    state = {names.get(k, k): v for k, v in source.state_dict().items()}
    result = target.load_state_dict(state, strict=False)
    assert not result.missing_keys
    with torch.no_grad():
        torch.testing.assert_close(target.eval()(rows.x).mean, source.eval()(rows.x).mean)


def test_minibatches_of_data_sites_average_to_the_whole(make_model: type, rows: object) -> None:
    model, likelihood = build("exact", make_model, rows, "gradient"), BernoulliLikelihood()
    train(model, likelihood, rows, steps=3, lr=0.1)
    mll = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(rows.x))
    with torch.no_grad():
        whole = mll(model(rows.x), rows.labels)
        parts = [
            mll(model(x), y) for x, y in zip(rows.x.split(10), rows.labels.split(10), strict=True)
        ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_weights_and_row_arguments_reach_the_likelihood(
    sparse_model: Callable, rows: object
) -> None:
    model, likelihood = sparse_model(), GaussianLikelihood(noise=0.1)
    mll = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(rows.x))
    weights = torch.rand(len(rows.x), dtype=torch.float64, generator=torch.Generator())
    with torch.no_grad():
        value = mll(model(rows.x), rows.y, weights=weights, noise=weights)
        expected = elbo(
            model.variational_strategy.posterior(rows.x),
            likelihood,
            rows.y,
            weights=weights,
            noise=weights,
        )
    torch.testing.assert_close(value, expected / len(rows.x))


def test_float32(make_model: type, rows: object) -> None:
    rows.x, rows.z, rows.labels = rows.x.float(), rows.z.float(), rows.labels.float()
    for name in STRATEGIES:
        model = build(name, make_model, rows, "gradient").float()
        trace = train(model, BernoulliLikelihood().float(), rows, steps=15, lr=0.05)
        assert trace[-1] > trace[0]
        natural = build(name, make_model, rows, "natural").float()
        natural.variational_strategy.natural_step(
            BernoulliLikelihood(), rows.x, rows.labels, step_size=0.5
        )
        for each in (model, natural):
            assert {v.dtype for v in each.state_dict().values() if v.is_floating_point()} == {
                torch.float32
            }
            with torch.no_grad():
                assert each.eval()(rows.x).mean.dtype == torch.float32

"""Orthogonal blocks and inter-domain features in a user's loop, against GPyTorch and dense algebra."""

import copy
import pickle
from collections.abc import Callable

import gpytorch
import pytest
import torch
from gpytorch.variational import (
    CholeskyVariationalDistribution,
    DeltaVariationalDistribution,
    OrthogonallyDecoupledVariationalStrategy,
    VariationalStrategy,
)
from torch import Tensor

from gpvi.approximations import InducingPoints, InterDomain, Orthogonal
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood
from gpvi.strategies import SiteStrategy

V = torch.tensor([[0.1], [0.33], [0.62], [0.9]], dtype=torch.float64)
NEW = torch.linspace(-0.1, 1.1, 9, dtype=torch.float64).unsqueeze(-1)
JITTER = 1e-10


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def points(z: Tensor) -> InducingPoints:
    return InducingPoints(inducing_points=z)


@pytest.fixture
def z(rows: object) -> Tensor:
    return rows.z[::2]


@pytest.fixture
def make(make_model: type, z: Tensor) -> Callable:
    """A model with two blocks; keyword arguments go to the strategy."""

    def build(q: str, **options: object) -> object:
        return make_model(
            lambda m: SiteStrategy(
                m, Orthogonal(points(z), points(V), q=q, jitter=JITTER), **options
            )
        ).double()

    return build


def move(model: object, seed: int = 0) -> None:
    """Leave the prior: random means, and random factors near the identity."""
    with torch.no_grad():
        for number, value in enumerate(model.variational_parameters()):
            step = 0.3 * normal(*value.shape, seed=seed + number)
            value.add_(step.tril() if value.dim() == 2 else step)


class Dense:
    """Textbook moments of two blocks (Shi, Titsias & Mnih 2020)."""

    def __init__(self, model: object, z: Tensor) -> None:
        self.kernel, self.mean = model.covar_module, model.mean_module
        self.z = z
        eye = torch.eye(len(z), dtype=torch.float64)
        self.Kuu = self.K(z, z) + JITTER * self.K(z, z).diagonal().mean() * eye
        self.Cvv = self.C(V, V) + JITTER * torch.eye(len(V), dtype=torch.float64)

    def K(self, a: Tensor, b: Tensor) -> Tensor:
        return self.kernel(a, b).to_dense()

    def A(self, x: Tensor) -> Tensor:
        return torch.linalg.solve(self.Kuu, self.K(self.z, x))

    def C(self, a: Tensor, b: Tensor) -> Tensor:
        return self.K(a, b) - self.K(a, self.z) @ self.A(b)

    def blocks(self, store: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means and covariances of u less its mean, and of v_perp."""
        Lu, Lv = torch.linalg.cholesky(self.Kuu), torch.linalg.cholesky(self.Cvv)
        Ru = Lu @ store.chol_variational_covar.tril()
        second = store.chol_orthogonal_covar
        Rv = Lv if second is None else Lv @ second.tril()
        return Lu @ store.variational_mean, Ru @ Ru.mT, Lv @ store.orthogonal_mean, Rv @ Rv.mT

    def predict(self, store: object, x: Tensor) -> tuple[Tensor, Tensor]:
        m_u, S_u, m_v, S_v = self.blocks(store)
        A, B = self.A(x), torch.linalg.solve(self.Cvv, self.C(V, x))
        mean = self.mean(x) + A.mT @ m_u + B.mT @ m_v
        rest = self.C(x, x) - self.C(x, V) @ B
        return mean, rest + A.mT @ S_u @ A + B.mT @ S_v @ B

    def kl(self, store: object) -> Tensor:
        m_u, S_u, m_v, S_v = self.blocks(store)
        kind = torch.distributions.MultivariateNormal
        pairs = ((m_u, S_u, self.Kuu), (m_v, S_v, self.Cvv))
        return sum(
            torch.distributions.kl_divergence(kind(m, S), kind(torch.zeros_like(m), P))
            for m, S, P in pairs
        )


@pytest.mark.parametrize("q", ["block", "delta"])
def test_moments_are_those_of_the_formulas(q: str, make: Callable, z: Tensor) -> None:
    model = make(q)
    model.mean_module.constant = 0.4
    assert model.variational_strategy.kl_divergence().item() == pytest.approx(0.0, abs=1e-12)
    move(model)
    dense, store = Dense(model, z), model.variational_strategy._variational_distribution
    with torch.no_grad():
        mean, covariance = dense.predict(store, NEW)
        output = model.eval()(NEW)
        close(output.mean, mean)
        close(output.covariance_matrix, covariance)
        close(model.variational_strategy.kl_divergence(), dense.kl(store))


def test_parameters_are_two_means_and_their_factors(make: Callable) -> None:
    names = {"variational_mean", "chol_variational_covar", "orthogonal_mean"}
    for q, expected in (("block", names | {"chol_orthogonal_covar"}), ("delta", names)):
        found = dict(make(q).named_variational_parameters())
        assert {name.rpartition(".")[2] for name in found} == expected
        assert {value.shape[0] for value in found.values()} == {4}  # M = K = 4 here
    joint = dict(make("joint").named_variational_parameters())
    assert {value.shape[0] for value in joint.values()} == {8}


class Decoupled(gpytorch.models.ApproximateGP):
    """GPyTorch's own orthogonally decoupled model."""

    def __init__(self, twin: object, z: Tensor) -> None:
        own = {"jitter_val": JITTER, "learn_inducing_locations": True}
        first = VariationalStrategy(self, z, CholeskyVariationalDistribution(len(z)), **own)
        delta = DeltaVariationalDistribution(len(V))
        super().__init__(
            OrthogonallyDecoupledVariationalStrategy(first, V, delta, jitter_val=JITTER)
        )
        self.mean_module, self.covar_module = twin.mean_module, twin.covar_module
        self.double()

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def decoupled(model: object, z: Tensor, spread: float) -> tuple[Decoupled, Tensor, Tensor, Tensor]:
    """GPyTorch's model at random parameters: m, root of S and a; S = spread^2 I if it is not zero."""
    theirs = Decoupled(model, z)
    outer = theirs.variational_strategy
    inner = outer.base_variational_strategy
    for strategy in (outer, inner):
        strategy.variational_params_initialized.fill_(1)
    mean, a = normal(len(z), seed=1), 0.5 * normal(len(V), seed=2)
    root = torch.eye(len(z), dtype=torch.float64)
    root = spread * root if spread else root + 0.2 * normal(*root.shape, seed=3).tril()
    with torch.no_grad():
        inner._variational_distribution.variational_mean.copy_(mean if spread != 1.0 else 0 * mean)
        inner._variational_distribution.chol_variational_covar.copy_(root)
        outer._variational_distribution.variational_mean.copy_(a)
    return theirs, inner._variational_distribution.variational_mean.detach(), root, a


# What linear_operator makes PyTorch complain of.
@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.filterwarnings("ignore:torch.sparse.SparseTensor")
@pytest.mark.filterwarnings("ignore:Sparse invariant")
@pytest.mark.parametrize("spread", [0.0, 1.0, 1e-4], ids=["any", "prior", "certain"])
def test_delta_block_is_the_decoupled_strategy_of_gpytorch(
    spread: float, make: Callable, z: Tensor
) -> None:
    """GPyTorch adds ``cov_q(f, v) a`` to the mean, which moves both blocks of ours.

    The KL that it reports, KL(q(u) || p(u)) + a' cov_q(v) a / 2, is that of its own q at a base q that is
    the prior, or certain; elsewhere it differs by a term that the formula below names.
    """
    model = make("delta")
    theirs, mean, root, a = decoupled(model, z, spread)
    dense, store = Dense(model, z), model.variational_strategy._variational_distribution
    with torch.no_grad():
        whitened = torch.linalg.solve(torch.linalg.cholesky(dense.Kuu), dense.K(z, V))
        shift = root @ root.mT @ whitened @ a
        store.variational_mean.copy_(mean + shift)
        store.chol_variational_covar.copy_(root)
        store.orthogonal_mean.copy_(torch.linalg.cholesky(dense.Cvv).mT @ a)
        ours, other = model.eval()(NEW), theirs.eval()(NEW)
        close(ours.mean, other.mean)
        close(ours.covariance_matrix, other.covariance_matrix)
        gap = (
            model.variational_strategy.kl_divergence() - theirs.variational_strategy.kl_divergence()
        )
        expected = mean @ shift + 0.5 * (shift @ shift - (root.mT @ whitened @ a).square().sum())
        close(gap, expected)
        assert (abs(gap.item()) > 0.1) == (spread == 0.0)


@pytest.mark.parametrize("q", ["joint", "block", "delta"])
def test_natural_steps_reach_the_best_gradient_parameters(
    q: str, make: Callable, rows: object
) -> None:
    """One natural step is exact for Gaussian noise; no random parameters give a better bound."""
    likelihood = GaussianLikelihood(noise=0.05)
    natural, gradient = make(q, site_parameters="natural"), make(q)
    natural.variational_strategy.natural_step(likelihood, rows.x, rows.y, step_size=1.0)

    def bound(model: object) -> Tensor:
        mll = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(rows.x))
        return mll(model(rows.x), rows.y)

    best = bound(natural).item()
    optimizer = torch.optim.LBFGS(
        list(gradient.variational_parameters()), max_iter=400, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -bound(gradient)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert bound(gradient).item() == pytest.approx(best, abs=1e-4)
    assert bound(gradient).item() <= best + 1e-9


@pytest.mark.parametrize("site_parameters", ["gradient", "natural"])
@pytest.mark.parametrize("q", ["block", "delta"])
def test_loops_copies_and_state(q: str, site_parameters: str, make: Callable, rows: object) -> None:
    model, likelihood = make(q, site_parameters=site_parameters), BernoulliLikelihood()
    mll = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(rows.x))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    values = []
    for _ in range(15):
        if site_parameters == "natural":
            model.variational_strategy.natural_step(likelihood, rows.x, rows.labels, step_size=1.0)
        optimizer.zero_grad()
        loss = -mll(model(rows.x), rows.labels)
        loss.backward()
        optimizer.step()
        values.append(-loss.item())
    assert values[-1] > values[0] + 0.03
    model.eval()
    with torch.no_grad():
        expected = model(NEW).variance
        restored = make(q, site_parameters=site_parameters).eval()
        restored.load_state_dict(model.state_dict())
        for other in (restored, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            close(other(NEW).variance, expected, 1e-12)


def test_features_without_inputs_of_their_own(make_model: type, z: Tensor, rows: object) -> None:
    model = make_model(lambda m: SiteStrategy(m, InterDomain(points(z), jitter=JITTER)))
    twin = make_model(lambda m: SiteStrategy(m, InducingPoints(inducing_points=z, jitter=JITTER)))
    with pytest.raises(InputError, match="seen no inputs"):
        model.variational_strategy.kl_divergence()
    with pytest.raises(UnsupportedError, match="features, not inputs"):
        _ = model.variational_strategy.inducing_points
    for each in (model, twin):
        move(each)
        each.mean_module.constant = 0.4
    close(model(rows.x).mean, twin(rows.x).mean, 1e-10)
    close(model(rows.x).variance, twin(rows.x).variance, 1e-10)
    close(
        model.variational_strategy.kl_divergence(), twin.variational_strategy.kl_divergence(), 1e-10
    )


@pytest.mark.parametrize("wrap", [InterDomain, lambda first: Orthogonal(first, points(V))])
def test_features_must_be_there(wrap: Callable, make_model: type) -> None:
    with pytest.raises(InputError, match="have not been chosen"):
        make_model(lambda m: SiteStrategy(m, wrap(InducingPoints(3))))

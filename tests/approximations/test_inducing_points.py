"""Inducing points: limits, what sites are about, minibatches, and the mistakes that break the bound."""

import copy
import itertools
import math
import pickle
import warnings

import gpytorch
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from gpvi.approximations import Exact, GaussianProcess, InducingPoints, Sites
from gpvi.exceptions import InputError
from gpvi.inference import data_term, dual, elbo, tighter_elbo
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood

NUM_ROWS = 12
X = torch.linspace(0.0, 4.0, NUM_ROWS, dtype=torch.float64).unsqueeze(-1)
Z = torch.linspace(0.5, 3.5, 3, dtype=torch.float64).unsqueeze(-1)
EYE = torch.eye(NUM_ROWS, dtype=torch.float64)


def process(constant: float = 0.0, lengthscale: float = 1.0) -> GaussianProcess:
    kernel = gpytorch.kernels.MaternKernel(nu=1.5).double()
    kernel.lengthscale = lengthscale
    mean = gpytorch.means.ConstantMean().double()
    mean.constant.data.fill_(constant)
    return GaussianProcess(kernel, mean).requires_grad_(False)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def gaussian_sites(y: Tensor, noise: float) -> Sites:
    return Sites(y / noise, torch.full_like(y, 1.0 / noise))


def inducing(z: Tensor = Z, jitter: float | None = None) -> InducingPoints:
    return InducingPoints(inducing_points=z, jitter=jitter, learn=False)


def low_rank(gp: GaussianProcess) -> Tensor:
    """Covariance of the projections."""
    cross = gp.covariance(X, Z)
    return cross @ torch.linalg.solve(gp.covariance(Z), cross.mT)


def log_density(y: Tensor, covariance: Tensor) -> float:
    return MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y).item()


def sample(covariance: Tensor, seed: int) -> Tensor:
    return torch.linalg.cholesky(covariance) @ normal(NUM_ROWS, seed=seed)


def log_mean_exp(values: Tensor) -> float:
    return (torch.logsumexp(values, 0) - math.log(len(values))).item()


def test_inducing_points_at_the_data_are_exact():
    gp, lam2 = process(0.3), torch.linspace(0.0, 5.0, NUM_ROWS, dtype=torch.float64)
    sites = Sites(normal(NUM_ROWS, seed=0), lam2)
    exact = Exact().prior(gp, X).condition(sites)
    sparse = inducing(X, jitter=1e-10).prior(gp, X).condition(sites)
    new = torch.linspace(-0.5, 4.7, 9, dtype=torch.float64).unsqueeze(-1)
    for actual, expected in (
        (sparse.log_partition, exact.log_partition),
        (sparse.kl(), exact.kl()),
        (sparse.marginals().mean, exact.marginals().mean),
        (sparse.marginals().variance, exact.marginals().variance),
        (sparse.predict(new).mean, exact.predict(new).mean),
        (sparse.predict(new).variance, exact.predict(new).variance),
        (
            sparse.predict(new, joint=True).covariance_matrix,
            exact.predict(new, joint=True).covariance_matrix,
        ),
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert float(sparse.marginals().residual.max()) < 1e-6


def test_sites_are_about_the_projections_not_about_f():
    """Evaluated at f, the same sites give a "bound" far above the evidence."""
    gp, noise = process(), 0.2
    y = sample(low_rank(gp) + 0.02 * EYE, seed=0)
    likelihood = GaussianLikelihood(noise=noise).requires_grad_(False)
    posterior = inducing(jitter=1e-10).prior(gp, X).condition(gaussian_sites(y, noise))
    draw = posterior.rsample((4000,), generator=torch.Generator().manual_seed(1))
    expected = likelihood.log_prob(draw.values, y).sum(-1)
    bound = (expected + posterior.log_ratio(draw)).mean().item()
    naive = expected + posterior.log_partition - posterior.sites.log_value(draw.values)
    evidence = log_density(y, gp.covariance(X) + noise * EYE)
    exact_bound = elbo(posterior, likelihood, y).item()
    assert bound == pytest.approx(exact_bound, abs=0.15)
    assert exact_bound < evidence
    # Constant, and equal to the density of the low-rank model without its trace term.
    assert naive.std() < 1e-6
    assert naive.mean().item() > evidence + 2.0
    assert naive.mean().item() == pytest.approx(log_density(y, low_rank(gp) + noise * EYE))


def test_importance_weights_need_joint_residuals():
    """Independent residuals give the evidence of another model, which may exceed the exact one."""
    gp, noise = process(), 0.1
    Q, K = low_rank(gp), gp.covariance(X)
    independent_model = Q + torch.diag((K - Q).diagonal()) + noise * EYE
    y = sample(independent_model, seed=3)
    likelihood = GaussianLikelihood(noise=noise).requires_grad_(False)
    posterior = inducing(jitter=1e-10).prior(gp, X).condition(gaussian_sites(y, noise))
    evidence, other = log_density(y, K + noise * EYE), log_density(y, independent_model)
    assert other > evidence + 0.8
    estimates = {}
    for residual in ("joint", "independent"):
        draw = posterior.rsample(
            (40_000,), residual=residual, generator=torch.Generator().manual_seed(1)
        )
        log_weights = likelihood.log_prob(draw.values, y).sum(-1) + posterior.log_ratio(draw)
        estimates[residual] = log_mean_exp(log_weights)
    assert estimates["independent"] == pytest.approx(other, abs=0.3)
    assert estimates["independent"] > evidence + 0.5
    assert estimates["joint"] < evidence + 0.2
    assert estimates["joint"] > elbo(posterior, likelihood, y).item()


def batches(size: int) -> list[Tensor]:
    return [torch.tensor(rows) for rows in itertools.combinations(range(6), size)]


def test_minibatches_are_unbiased():
    """Over all batches, tied sites and the objective average to their full values."""
    gp, x = process(0.4), X[:6]
    y = (normal(6, seed=2) > 0).double()
    y[4] = float("nan")
    approximation, likelihood = inducing(), BernoulliLikelihood()
    prior = approximation.prior(gp, x)

    def fresh(rows: Tensor, tied: Sites) -> Sites:
        part = approximation.prior(gp, x[rows])
        marginals = part.condition(tied).marginals()
        sites = dual(lambda q: data_term(likelihood, y[rows], q), marginals)
        return (6 / len(rows)) * part.tie(sites)

    start = prior.tie(Sites(normal(6, seed=3), torch.full((6,), 0.7, dtype=torch.float64)))
    full = fresh(torch.arange(6), start)
    parts = [fresh(rows, start) for rows in batches(4)]
    for name in ("lam1", "lam2"):
        average = torch.stack([getattr(part, name) for part in parts]).mean(0)
        torch.testing.assert_close(average, getattr(full, name), rtol=1e-10, atol=1e-10)
    for objective in (
        elbo,
        lambda *args, **kw: tighter_elbo(*args, log_v=torch.tensor(-0.4).double(), **kw),
    ):
        whole = objective(prior.condition(full), likelihood, y)
        values = [
            objective(
                approximation.prior(gp, x[rows]).condition(full), likelihood, y[rows], num_data=6
            )
            for rows in batches(4)
        ]
        torch.testing.assert_close(torch.stack(values).mean(), whole, rtol=1e-12, atol=1e-12)


def test_scoring_a_minibatch_on_its_own_sites_is_biased():
    """(N / B) times a batch's own sites, scored on that batch, beats the evidence; we refuse it."""
    gp, noise, size = process(), 0.1, 4
    y = sample(gp.covariance(X) + noise * EYE, seed=5)
    likelihood = GaussianLikelihood(noise=noise).requires_grad_(False)
    approximation = inducing(torch.linspace(0.0, 4.0, 8, dtype=torch.float64).unsqueeze(-1))
    evidence = log_density(y, gp.covariance(X) + noise * EYE)
    naive, honest = [], []
    for rows in torch.arange(NUM_ROWS).reshape(size, -1).mT:
        prior = approximation.prior(gp, X[rows])
        own = (NUM_ROWS / size) * gaussian_sites(y[rows], noise)
        with pytest.raises(InputError, match="Tie the sites"):
            elbo(prior.condition(own), likelihood, y[rows], num_data=NUM_ROWS)
        tied = prior.tie(own)
        naive.append(elbo(prior.condition(tied), likelihood, y[rows], num_data=NUM_ROWS))
        honest.append(elbo(approximation.prior(gp, X).condition(tied), likelihood, y))
    assert torch.stack(naive).mean().item() > evidence + 1.0
    assert torch.stack(honest).max().item() < evidence - 10.0


def test_tied_sites_carry_the_mean_of_u():
    """They are about u itself: when the prior mean moves, the data stay where they were."""
    noise, y = 0.1, X[:, 0].sin()
    tied = inducing().prior(process(0.0), X).tie(gaussian_sites(y, noise))
    likelihood = GaussianLikelihood(noise=noise).requires_grad_(False)
    prior = inducing().prior(process(1.5), X)
    moved = prior.condition(tied)
    # The dense answer: prior N(m_z, Kzz) times exp(lam1'u - u'Lam u / 2).
    Kzz = prior.gp.covariance(Z) + 1e-8 * torch.eye(3, dtype=torch.float64)
    precision = torch.linalg.inv(Kzz)
    right = tied.lam1 + precision @ prior.z_mean
    mean = torch.linalg.solve(precision + tied.lam2, right)
    torch.testing.assert_close(moved.predict(Z).mean, mean, rtol=1e-6, atol=1e-6)
    # Sites about u - m_z would drag the data along with the mean.
    about_difference = Sites(tied.lam1 + tied.lam2 @ prior.z_mean, tied.lam2, on="basis")
    dragged = prior.condition(about_difference)
    honest = elbo(moved, likelihood, y).item()
    assert elbo(dragged, likelihood, y).item() < honest - 20.0


@pytest.mark.parametrize("full", [True, False])
def test_sites_on_the_whitened_basis(full):
    """They are those on u in other coordinates, and give q(e) = N(W^-1 lam1, W^-1)."""
    prior = inducing().prior(process(0.5), X)
    lam1 = normal(3, seed=0)
    root = normal(3, 3, seed=1)
    lam2 = root @ root.mT if full else root[0].square()
    white = prior.condition(Sites(lam1, lam2, on="whitened"))
    matrix = lam2 if full else torch.diag(lam2)
    inverse = torch.linalg.inv(prior.z_factor)
    basis_second = inverse.mT @ matrix @ inverse
    basis_first = inverse.mT @ lam1 + basis_second @ prior.z_mean
    same = prior.condition(Sites(basis_first, basis_second, on="basis"))
    torch.testing.assert_close(white.kl(), same.kl())
    torch.testing.assert_close(white.marginals().mean, same.marginals().mean)
    draw = white.rsample((5,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(white.log_ratio(draw), same.log_ratio(draw))
    precision = torch.eye(3, dtype=torch.float64) + matrix
    kl = torch.distributions.kl_divergence(
        MultivariateNormal(torch.linalg.solve(precision, lam1), precision_matrix=precision),
        MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double()),
    )
    torch.testing.assert_close(white.kl(), kl)


def test_diagonal_sites_on_the_basis_equal_full_ones():
    prior = inducing().prior(process(0.5), X)
    lam1, lam2 = normal(3, seed=0), normal(3, seed=1).square()
    diagonal = prior.condition(Sites(lam1, lam2, on="basis"))
    full = prior.condition(Sites(lam1, torch.diag(lam2), on="basis"))
    torch.testing.assert_close(diagonal.kl(), full.kl())
    torch.testing.assert_close(diagonal.log_partition, full.log_partition)


def test_one_function_for_a_batch_of_inputs():
    """Sites on u without the batch dim of the inputs: one q(u), one KL, one draw of u for all."""
    kernel = gpytorch.kernels.RBFKernel(batch_shape=torch.Size([2])).double()
    gp = GaussianProcess(kernel).requires_grad_(False)
    x = normal(3, 1, 5, 1, seed=0)
    sites = Sites(normal(2, 3, seed=1), torch.ones(2, 3, dtype=torch.float64), on="basis")
    posterior = inducing().prior(gp, x).condition(sites)
    assert posterior.kl().shape == (2,)
    assert posterior.marginals().mean.shape == (3, 2, 5)
    for number in (2, 3, 4):  # as many samples as latents, as blocks, and neither
        draw = posterior.rsample((number,), generator=torch.Generator().manual_seed(0))
        assert draw.values.shape == (number, 3, 2, 5) and draw.basis.shape == (number, 2, 3)
    whole = inducing().prior(gp, x[:, 0].reshape(-1, 1)).condition(sites).marginals().mean
    torch.testing.assert_close(posterior.marginals().mean.movedim(0, 1).reshape(2, -1), whole)
    # Its bound per block would count the KL three times.
    with pytest.raises(InputError, match="counted several times"):
        elbo(posterior, GaussianLikelihood(), x[:, 0, :, 0].unsqueeze(1).expand(3, 2, 5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("jitter", [None, 1e-5])
def test_joint_draws_where_nothing_is_left_over(dtype, jitter):
    """The residual covariance is pure rounding there; its jitter follows the prior's scale."""
    kernel = gpytorch.kernels.RBFKernel().to(dtype)
    x = torch.linspace(0.0, 3.0, 15, dtype=dtype).unsqueeze(-1)
    posterior = (
        InducingPoints(inducing_points=x, jitter=jitter, learn=False)
        .prior(GaussianProcess(kernel).requires_grad_(False), x)
        .condition(Sites.zeros((15,), dtype=dtype))
    )
    draw = posterior.rsample((50,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(draw.values, draw.basis, rtol=0, atol=0.03)


def test_compact_posteriors_forget_the_rows():
    x = torch.linspace(0.0, 4.0, 500, dtype=torch.float64).unsqueeze(-1)
    sites = gaussian_sites(x[:, 0].sin(), 0.1)
    posterior = inducing().prior(process(0.2), x).condition(sites).detach()
    compact = posterior.compact()
    torch.testing.assert_close(compact.kl(), posterior.kl())
    torch.testing.assert_close(compact.predict(X).variance, posterior.predict(X).variance)
    joint = compact.predict(X, joint=True).covariance_matrix
    torch.testing.assert_close(joint, posterior.predict(X, joint=True).covariance_matrix)
    assert len(pickle.dumps(compact)) < len(pickle.dumps(posterior)) / 2
    again = compact.prior.condition(compact.sites)
    torch.testing.assert_close(again.predict(X).mean, posterior.predict(X).mean)
    draw = compact.rsample((3,), X, generator=torch.Generator().manual_seed(0))
    same = posterior.rsample((3,), X, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(draw.values, same.values)
    assert compact.marginals().mean.shape == (0,)


def test_initialize_chooses_once():
    approximation = InducingPoints(4)
    with pytest.raises(InputError, match="call initialize"):
        approximation.prior(process(), X)
    approximation.initialize(process(), X, torch.Generator().manual_seed(0))
    chosen = approximation.inducing_points.detach().clone()
    assert chosen.shape == (4, 1) and bool((chosen == X.mT).any(-1).all())
    approximation.initialize(process(), X + 1.0)
    assert torch.equal(approximation.inducing_points, chosen)
    approximation.reset()
    approximation.initialize(process(), X + 1.0, torch.Generator().manual_seed(0))
    assert bool((approximation.inducing_points >= 1.0).all())


def test_initialize_flattens_batches_of_inputs():
    approximation = InducingPoints(3, selection="kmeans++")
    approximation.initialize(process(), X.reshape(2, 1, 6, 1), torch.Generator().manual_seed(0))
    assert approximation.inducing_points.shape == (3, 1)


def test_state_is_restored_before_and_after_initialisation():
    source = InducingPoints(4)
    source.initialize(process(), X, torch.Generator().manual_seed(0))
    for target in (InducingPoints(4), InducingPoints(inducing_points=Z)):
        target.load_state_dict(source.state_dict())
        assert torch.equal(target.inducing_points, source.inducing_points)
        assert isinstance(target.inducing_points, torch.nn.Parameter)
    empty = InducingPoints(4)
    empty.load_state_dict(InducingPoints(4).state_dict())
    assert empty.inducing_points is None
    twin = copy.deepcopy(source)
    with torch.no_grad():
        twin.inducing_points.add_(1.0)
    assert not torch.equal(twin.inducing_points, source.inducing_points)


def test_learn_decides_about_gradients():
    assert InducingPoints(inducing_points=Z).inducing_points.requires_grad
    assert not InducingPoints(inducing_points=Z, learn=False).inducing_points.requires_grad


def test_jitter_option_is_used():
    for jitter in (1e-10, 1e-3):
        prior = inducing(jitter=jitter).prior(process(), X)
        covariance = prior.z_factor @ prior.z_factor.mT - process().covariance(Z)
        expected = jitter * torch.eye(3, dtype=torch.float64)
        torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-14)
        assert float(prior.jitter) == jitter


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one .*not neither"),
        ({"num_inducing": 3, "inducing_points": Z}, r"exactly one .*both \(num_inducing=3\)"),
        ({"num_inducing": 0}, "num_inducing is 0"),
        ({"num_inducing": 2.5}, "num_inducing is 2.5; it must be an integer"),
        ({"inducing_points": [[0.0]]}, "inducing_points is a list"),
        ({"num_inducing": 3, "selection": "first"}, "greedy, kmeans"),
        ({"num_inducing": 3, "jitter": -1e-6}, "jitter is -1e-06"),
        ({"num_inducing": 3, "jitter": 1.0}, r"\[0, 1\)"),
        ({"inducing_points": Z[:, 0]}, r"shape \(3,\)"),
        ({"inducing_points": Z * float("nan")}, "3 values that are NaN"),
        ({"inducing_points": Z.long()}, "int64"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(InputError, match=message):
        InducingPoints(**options)


def test_inputs_that_do_not_fit():
    with pytest.raises(InputError, match="1 columns and x has 2"):
        inducing().prior(process(), torch.zeros(3, 2, dtype=torch.float64))
    with pytest.raises(InputError, match=r"float64 .*float32"):
        inducing().prior(process(), X.float())
    with pytest.raises(InputError, match="no way back"):
        inducing().reset()


def test_duplicate_rows_need_nothing():
    """Duplicates among data are no duplicates among inducing points."""
    gp, y = process(), X[:, 0].sin()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twice = inducing().prior(gp, X.repeat(2, 1)).condition(gaussian_sites(y.repeat(2), 0.2))
    once = inducing().prior(gp, X).condition(gaussian_sites(y, 0.1))
    torch.testing.assert_close(twice.kl(), once.kl())

"""The Markov prior: what the conformance suite does not ask of every approximation."""

import gpytorch
import pytest
import torch

from gpvi.approximations import (
    Exact,
    GaussianProcess,
    Sites,
    StateSpace,
    StateSpacePlan,
    sample_paths,
)
from gpvi.exceptions import InputError, NumericalError, UnsupportedError
from gpvi.kernels import SpaceTimeKernel, parse_kernel


def close(actual: torch.Tensor, expected: torch.Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, **({"rtol": 1e-9, "atol": 1e-9} | tolerance))


def stamps(rows: int = 40, seed: int = 0, high: float = 4.0) -> torch.Tensor:
    """Unsorted stamps, some of them repeated."""
    generator = torch.Generator().manual_seed(seed)
    t = high * torch.rand(rows, dtype=torch.float64, generator=generator)
    t[7] = t[3]
    t[-1] = t[0]
    return t.unsqueeze(-1)


def sites_at(x: torch.Tensor) -> Sites:
    precision = 1.0 + 5.0 * torch.sin(7.0 * x[:, 0]).square()
    precision[2] = 0.0
    return Sites(precision * torch.sin(2.0 * x[:, 0]), precision)


def seasonal() -> GaussianProcess:
    """Trend, season and noise-like roughness with a mean."""
    kernel = parse_kernel("matern52 + periodic + matern12 + linear", 1)
    mean = gpytorch.means.LinearMean(1).double()
    torch.nn.init.constant_(mean.weights, 0.3)
    torch.nn.init.constant_(mean.bias, -0.2)
    return GaussianProcess(kernel, mean)


EXPRESSIONS = (
    "matern12",
    "matern32",
    "matern52",
    "constant + linear",
    "periodic",
    "matern32 * periodic",
    "matern12 + matern52 * linear",
)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_equals_exact_conditioning(expression):
    """Unsorted and repeated stamps, a missing row; at the rows, between, before and after them."""
    x, gp = stamps(), GaussianProcess(parse_kernel(expression, 1))
    ours, exact = (a.prior(gp, x).condition(sites_at(x)) for a in (StateSpace(), Exact()))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if "periodic" in expression else {}
    close(ours.log_partition, exact.log_partition, **tolerance)
    close(ours.kl(), exact.kl(), **tolerance)
    close(ours.marginals().mean, exact.marginals().mean, **tolerance)
    close(ours.marginals().variance, exact.marginals().variance, **tolerance)
    new = torch.tensor([[-1.0], [0.5], [9.0], [2.0], [0.5]], dtype=torch.float64)
    new = torch.cat([new, x[3:4]])
    joint = exact.predict(new, joint=True)
    close(ours.predict(new).mean, joint.mean, **tolerance)
    close(ours.predict(new).variance, joint.variance, **tolerance)
    close(ours.predict(new, joint=True).covariance_matrix, joint.covariance_matrix, **tolerance)
    with torch.no_grad():
        close(ours.predict(new).mean, joint.mean, **tolerance)
        close(ours.predict(new).variance, joint.variance, **tolerance)
        close(ours.predict(new, joint=True).covariance_matrix, joint.covariance_matrix, **tolerance)


def test_predictions_on_and_off_the_graph_agree():
    x, gp = stamps(), seasonal()
    posterior = StateSpace().prior(gp, x).condition(sites_at(x))
    new = torch.linspace(-1, 6, 50, dtype=torch.float64).unsqueeze(-1)
    on_graph = posterior.predict(new)
    assert on_graph.mean.requires_grad
    off_graph = posterior.detach().predict(new)
    assert not off_graph.mean.requires_grad
    close(off_graph.mean, on_graph.mean.detach())
    close(off_graph.variance, on_graph.variance.detach())


def test_components_add_up_and_have_their_own_bands():
    x, gp = stamps(), seasonal()
    posterior = StateSpace().prior(gp, x).condition(sites_at(x))
    new = torch.linspace(-1, 6, 20, dtype=torch.float64).unsqueeze(-1)
    parts = posterior.components(new)
    assert list(parts) == ["matern52", "periodic", "matern12", "linear"]
    whole = sum(part.mean for part in parts.values()) + gp.mean(new)
    close(whole, posterior.predict(new).mean)
    # One additive term of a dense posterior: K_term(new, x) takes the place of K(new, x).
    sites, kernel = sites_at(x), gp.kernel.kernels[1]
    K = gp.covariance(x)
    system = torch.eye(len(x), dtype=x.dtype) + sites.lam2.unsqueeze(-1) * K
    cross = kernel(new, x).to_dense()
    centred = sites.lam1 - sites.lam2 * gp.mean(x)
    close(parts["periodic"].mean, cross @ torch.linalg.solve(system, centred), rtol=1e-5, atol=1e-5)
    lost = cross @ torch.linalg.solve(system, sites.lam2.unsqueeze(-1) * cross.T)
    variance = (kernel(new).to_dense() - lost).diagonal()
    close(parts["periodic"].variance, variance, rtol=1e-5, atol=1e-5)
    at_rows = posterior.components()
    close(sum(part.mean for part in at_rows.values()) + gp.mean(x), posterior.marginals().mean)


def test_components_of_flat_groups():
    x, gp = stamps(), seasonal()
    groups = torch.arange(40) % 3
    approximation = StateSpace()
    plan = approximation.plan(x, groups)
    posterior = approximation.prior(gp, x, plan=plan).condition(sites_at(x))
    total = sum(part.mean for part in posterior.components().values()) + gp.mean(x)
    close(total, posterior.marginals().mean)
    new, labels = x[:5] + 0.1, torch.tensor([2, 0, 0, 1, 2])
    total = sum(part.mean for part in posterior.components(new, labels).values()) + gp.mean(new)
    close(total, posterior.predict(new, groups=labels).mean)
    assert posterior.kl().shape == (3,)


def test_plan_sorts_by_group_and_time():
    x, groups = torch.tensor([[3.0], [1.0], [2.0], [1.0]]), torch.tensor([5, 5, 2, 2])
    plan = StateSpace().plan(x, groups)
    assert isinstance(plan, StateSpacePlan)
    assert plan.order.tolist() == [3, 2, 1, 0]
    assert plan.steps.starts.tolist() == [0, 2]
    assert plan.steps.time.tolist() == [1.0, 2.0, 1.0, 3.0]
    assert not plan.in_order
    assert StateSpace().plan(x.sort(0).values).in_order


def test_many_short_series_of_unequal_length():
    generator = torch.Generator().manual_seed(1)
    groups = torch.randint(0, 30, (200,), generator=generator)
    x = torch.rand(200, 1, dtype=torch.float64, generator=generator)
    gp, approximation = GaussianProcess(parse_kernel("matern32 + linear", 1)), StateSpace()
    prior = approximation.prior(gp, x, plan=approximation.plan(x, groups))
    posterior = prior.condition(sites_at(x))
    for g, label in enumerate(groups.unique()):
        rows = groups == label
        alone = Exact().prior(gp, x[rows]).condition(Sites(*(
            value[rows] for value in (sites_at(x).lam1, sites_at(x).lam2)
        )))  # fmt: skip
        close(posterior.log_partition[g], alone.log_partition)
        close(posterior.marginals().mean[rows], alone.marginals().mean)
        new = torch.linspace(-0.5, 1.5, 4, dtype=torch.float64).unsqueeze(-1)
        there = posterior.predict(new, groups=label.expand(4))
        close(there.variance, alone.predict(new).variance)
    with torch.no_grad():
        several = posterior.predict(x, groups=groups)
    close(several.mean, posterior.marginals().mean)


def test_paths_are_draws_of_the_posterior():
    x, gp = stamps(15), GaussianProcess(parse_kernel("matern52", 1))
    posterior = StateSpace().prior(gp, x).condition(sites_at(x))
    paths = sample_paths(posterior, 4000, generator=torch.Generator().manual_seed(0))
    new = torch.tensor([[0.3], [1.7], [3.0]], dtype=torch.float64)
    q, values = posterior.predict(new, joint=True), paths(new)
    assert values.shape == (4000, 3)
    close(values.mean(0), q.mean.detach(), atol=0.06, rtol=0.0)
    close(values.T.cov(), q.covariance_matrix.detach(), atol=0.06, rtol=0.0)


def test_densities_live_where_the_prior_does():
    """A cosine has no innovations after its start, and repeated stamps have none either."""
    x = stamps(12)
    gp = GaussianProcess(parse_kernel("matern32", 1) + gpytorch.kernels.CosineKernel().double())
    prior = StateSpace().prior(gp, x)
    basis = prior.condition(Sites.zeros((12,))).rsample((500,), generator=torch.Generator()).basis
    white = prior.whiten(basis)
    close(prior.unwhiten(white), basis, atol=1e-8)
    alive = white.abs().amax(0) > 0
    # Two innovations at each of the ten distinct stamps, and two for the phase of the cosine.
    assert int(alive.sum()) == 2 * 10 + 2
    assert bool(torch.isfinite(prior.log_prob(basis)).all())
    close(white[:, alive].var(0), torch.ones(22).double(), atol=0.35)


def test_log_ratio_is_prior_density_over_posterior_density():
    """By importance weights: E_q[exp(log p - log q + log t)] is the partition function."""
    x, gp = stamps(10), GaussianProcess(parse_kernel("matern32", 1))
    posterior = StateSpace().prior(gp, x).condition(sites_at(x))
    draw = posterior.rsample((3,), generator=torch.Generator().manual_seed(0))
    tempered = StateSpace().prior(gp, x).condition(0.5 * sites_at(x))
    # Between two posteriors on one basis the prior's density cancels.
    gap = posterior.log_ratio(draw) - tempered.log_ratio(draw)
    rest = posterior.log_partition - tempered.log_partition
    close(gap, rest - (0.5 * sites_at(x)).log_value(draw.values))


def test_rbf_is_approximated_at_the_chosen_order():
    x, gp = stamps(), GaussianProcess(parse_kernel("rbf", 1))
    exact = Exact().prior(gp, x).condition(sites_at(x)).log_partition
    errors = [
        abs(StateSpace(rbf_order=n).prior(gp, x).condition(sites_at(x)).log_partition - exact)
        for n in (4, 8)
    ]
    assert errors[1] < errors[0] and errors[1] < 0.05


def test_other_columns_may_feed_the_mean():
    t = stamps()
    x = torch.cat([torch.cos(t), t], -1)
    kernel = gpytorch.kernels.MaternKernel(nu=1.5, active_dims=(1,)).double()
    gp = GaussianProcess(kernel, gpytorch.means.LinearMean(2).double())
    ours = StateSpace(time_dim=1).prior(gp, x).condition(sites_at(t))
    close(ours.kl(), Exact().prior(gp, x).condition(sites_at(t)).kl())
    with pytest.raises(InputError, match="time_dim=1"):
        StateSpace().prior(gp, x)


def test_refusals():
    gp, x = GaussianProcess(parse_kernel("matern32", 1)), stamps()
    for bad in (torch.nan, torch.inf):
        poisoned = x.clone()
        poisoned[3] = bad
        with pytest.raises(InputError, match="1 stamps are NaN or infinite"):
            StateSpace().plan(poisoned)
    with pytest.raises(InputError, match="no column 2"):
        StateSpace(time_dim=2).plan(x)
    for option in ({"time_dim": -1}, {"rbf_order": 3}, {"rbf_order": 2.5}):
        with pytest.raises(InputError, match=next(iter(option))):
            StateSpace(**option)
    with pytest.raises(UnsupportedError, match="RQKernel"):
        StateSpace().prior(GaussianProcess(gpytorch.kernels.RQKernel().double()), x)
    posterior = StateSpace().prior(gp, x).condition(sites_at(x))
    with pytest.raises(UnsupportedError, match="without groups"):
        posterior.predict(x, groups=torch.zeros(40, dtype=torch.int64))
    plan = StateSpace().plan(x)
    with pytest.raises(InputError, match="other stamps"):
        StateSpace().prior(gp, x + 1.0, plan=plan)


def test_a_single_stamp():
    x, gp = stamps()[:1], GaussianProcess(parse_kernel("matern52 + linear", 1))
    site = Sites(torch.ones(1).double(), 2.0 * torch.ones(1).double())
    ours, exact = (a.prior(gp, x).condition(site) for a in (StateSpace(), Exact()))
    close(ours.log_partition, exact.log_partition)
    close(ours.kl(), exact.kl())
    new = torch.tensor([[-2.0], [3.0]], dtype=torch.float64)
    close(ours.predict(new).mean, exact.predict(new).mean)
    whole = [posterior.predict(new, joint=True) for posterior in (ours, exact)]
    close(whole[0].covariance_matrix, whole[1].covariance_matrix)


@pytest.mark.parametrize("expression", ["matern32", "rbf", "linear", "constant + matern12"])
def test_other_columns_are_not_dropped_in_silence(expression):
    x = torch.cat([stamps(), stamps(seed=1)], -1)
    gp = GaussianProcess(parse_kernel(expression, 2, ard=False))
    with pytest.raises(InputError, match=r"sees the columns \[0, 1\]"):
        StateSpace().prior(gp, x)


def test_space_time_takes_its_places_from_the_other_columns():
    places = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    time, space = gpytorch.kernels.MaternKernel(nu=1.5), gpytorch.kernels.RBFKernel()
    kernel = SpaceTimeKernel(time, space, places).double()
    x = torch.cat([stamps(), places[torch.arange(40) % 2]], -1)
    gp = GaussianProcess(kernel + gpytorch.kernels.ConstantKernel().double())
    ours, exact = (a.prior(gp, x).condition(sites_at(x)) for a in (StateSpace(), Exact()))
    close(ours.kl(), exact.kl())
    close(ours.predict(x[:5] + torch.tensor([0.3, 0.0])).mean, exact.predict(
        x[:5] + torch.tensor([0.3, 0.0])).mean)  # fmt: skip


def test_odd_predictions():
    x, gp = stamps(), GaussianProcess(parse_kernel("matern32", 1))
    posterior = StateSpace().prior(gp, x).condition(sites_at(x)).detach()
    assert posterior.predict(x[:0], joint=True).covariance_matrix.shape == (0, 0)
    assert posterior.predict(x[:0]).mean.shape == (0,)
    with pytest.raises(InputError, match="1 stamps of x are NaN"):
        posterior.predict(torch.tensor([[torch.nan]]).double())


def test_a_prior_that_is_too_wide_is_named():
    kernel = gpytorch.kernels.LinearKernel().double() + gpytorch.kernels.MaternKernel().double()
    x = 1e9 + torch.arange(25.0, dtype=torch.float64).unsqueeze(-1)
    prior = StateSpace().prior(GaussianProcess(kernel), x)
    with pytest.raises(NumericalError, match="prior variance at row"):
        posterior = prior.condition(Sites(0 * x[:, 0], 0 * x[:, 0] + 100.0))
        assert posterior.log_partition is not None

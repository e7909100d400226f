"""Sparse inverse Cholesky: against dense algebra of the same factor, and against the exact process."""

import copy
import math
import pickle
from typing import Any

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi.approximations import (
    Exact,
    GaussianProcess,
    Sites,
    SparseInverseCholesky,
    SparseInversePosterior,
    SparseInversePrior,
)
from gpvi.exceptions import AccuracyWarning, InputError, NumericalError, UnsupportedError
from gpvi.linalg import NeighborPattern

pytestmark = pytest.mark.filterwarnings("ignore::gpvi.exceptions.EngineWarning")


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, dtype=torch.float64, generator=generator).to(dtype)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def process(
    lengthscale: Any = 0.3,
    kernel: gpytorch.kernels.Kernel | None = None,
    dtype: torch.dtype = torch.float64,
) -> GaussianProcess:
    """Matern-3/2 with a constant mean of one half, unless a kernel is given."""
    if kernel is None:
        size = len(lengthscale) if isinstance(lengthscale, list) else None
        base = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=size).to(dtype)
        base.lengthscale = torch.as_tensor(lengthscale, dtype=dtype)
        kernel = gpytorch.kernels.ScaleKernel(base).to(dtype)
        kernel.outputscale = 1.3
    mean = gpytorch.means.ConstantMean().to(dtype)
    mean.constant.data.fill_(0.5)
    return GaussianProcess(kernel, mean).requires_grad_(False)


def site(size: int, noise: float = 0.1, seed: int = 3, dtype: torch.dtype = torch.float64) -> Sites:
    """Sites of noisy targets with precisions that differ."""
    precision = (0.5 + uniform(size, seed=seed)).div(noise).to(dtype)
    return Sites(precision * (0.5 + normal(size, seed=seed + 1).to(dtype)), precision)


def dense(pattern: NeighborPattern, columns: Tensor) -> Tensor:
    """The factor as an upper triangular matrix."""
    M = pattern.num_rows
    matrix = columns.new_zeros(M, M)
    for i in range(M):
        known = pattern.neighbors[i][pattern.neighbors[i] >= 0].long()
        matrix[known, i] = columns[i, : len(known)]
        matrix[i, i] = columns[i, -1]
    return matrix


class Dense:
    """The same model without any sparsity, by place in the order."""

    def __init__(self, posterior: SparseInversePosterior) -> None:
        prior, sites = posterior.prior, posterior.sites
        self.place = prior.geometry.place[0]
        M = prior.num_basis
        self.U = dense(prior.pattern(()), prior.columns)
        self.V = dense(prior.factor_pattern(()), posterior.factor)
        self.mu = prior.place_mean
        self.lam1, self.lam2 = (
            torch.zeros(M, dtype=torch.float64).index_add(0, self.place, s.double())
            for s in (sites.lam1, sites.lam2)
        )
        self.precision = self.U @ self.U.mT
        self.total = self.precision + self.lam2.diag()
        self.pull = self.precision @ self.mu + self.lam1
        self.mean = torch.linalg.solve(self.total, self.pull)

    def evidence(self) -> Tensor:
        return 0.5 * (
            self.precision.logdet()
            - self.total.logdet()
            + self.pull @ self.mean
            - self.mu @ self.precision @ self.mu
        )

    def kl(self) -> Tensor:
        return torch.distributions.kl_divergence(
            torch.distributions.MultivariateNormal(self.mean, precision_matrix=self.V @ self.V.mT),
            torch.distributions.MultivariateNormal(self.mu, precision_matrix=self.precision),
        )

    def variances(self) -> Tensor:
        return torch.linalg.inv(self.V @ self.V.mT).diagonal()[self.place]


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def conditioned(size: int = 150, m: int = 12, seed: int = 0, **options: Any) -> Any:
    x = uniform(size, 2, seed=seed)
    return SparseInverseCholesky(m, **options).prior(process(), x).condition(site(size))


class TestAgainstDenseAlgebra:
    @pytest.mark.parametrize("seed", [0, 1, 5])
    def test_moments_and_bound(self, seed: int) -> None:
        q = conditioned(seed=seed)
        wanted = Dense(q)
        moments = q.marginals()
        assert gap(moments.mean, wanted.mean[wanted.place]) < 1e-8
        assert gap(moments.explained / wanted.variances(), torch.ones(150)) < 1e-2
        assert q.kl().item() == pytest.approx(wanted.kl().item(), rel=1e-2)
        evidence = wanted.evidence().item()
        assert evidence - 0.5 < q.log_partition.item() <= evidence + 1e-6
        assert float(q.kl_places().sum()) == pytest.approx(q.kl().item())

    def test_full_pattern_is_exact(self) -> None:
        q = conditioned(40, 39, nugget=1e-14)
        wanted = Dense(q)
        exact = Exact().prior(process(), uniform(40, 2)).condition(site(40))
        assert q.log_partition.item() == pytest.approx(wanted.evidence().item(), abs=1e-8)
        assert q.log_partition.item() == pytest.approx(exact.log_partition.item(), abs=1e-7)
        assert q.kl().item() == pytest.approx(wanted.kl().item(), abs=1e-8)
        assert q.kl().item() == pytest.approx(exact.kl().item(), abs=1e-7)
        assert gap(q.marginals().explained, wanted.variances()) < 1e-9
        new = uniform(9, 2, seed=8)
        assert gap(q.predict(new).mean, exact.predict(new).mean) < 1e-7
        joint, other = q.predict(new, joint=True), exact.predict(new, joint=True)
        assert gap(joint.covariance_matrix, other.covariance_matrix) < 1e-7

    def test_joint_predictions_are_near_the_exact_ones(self) -> None:
        x, new = uniform(300, 2), uniform(25, 2, seed=9)
        q = SparseInverseCholesky(30).prior(process(), x).condition(site(300))
        exact = Exact().prior(process(), x).condition(site(300))
        joint, other = (p.predict(new, joint=True) for p in (q, exact))
        covariance = joint.covariance_matrix
        assert gap(joint.mean, other.mean) < 2e-2
        assert gap(covariance, other.covariance_matrix) < 5e-3
        # Near inputs go together.
        pair = torch.stack([new[0], new[0] + 0.01])
        both = q.predict(pair, joint=True).covariance_matrix
        assert float(both[0, 1] / both.diagonal().prod().sqrt()) > 0.8
        assert float(torch.linalg.eigvalsh(covariance).min()) > 0

    def test_predictions_at_data_rows_and_repeated_inputs(self) -> None:
        q = conditioned()
        x, moments = uniform(150, 2)[:20], q.marginals()
        assert gap(q.predict(x).mean, moments.mean[:20]) < 1e-5
        assert gap(q.predict(x).variance, moments.variance[:20]) < 1e-5
        assert gap(q.predict(x, joint=True).variance, moments.variance[:20]) < 1e-5
        twice = q.predict(uniform(1, 2, seed=9).repeat(3, 1), joint=True).covariance_matrix
        assert gap(twice, twice[0, 0].expand(3, 3)) < 1e-6

    def test_samples_have_the_joint_law(self) -> None:
        q, new = conditioned(60, 10), uniform(3, 2, seed=4)
        joint = q.predict(new, joint=True)
        draw = q.rsample((20_000,), new, generator=torch.Generator().manual_seed(0)).values
        assert gap(draw.mean(0), joint.mean) < 0.03
        assert gap(torch.cov(draw.mT), joint.covariance_matrix) < 0.03
        at_rows = q.rsample((20_000,), generator=torch.Generator().manual_seed(0)).values
        # Samples use the whole factor, variances three generations of ancestors.
        assert gap(at_rows.var(0) / Dense(q).variances(), torch.ones(60)) < 0.06

    def test_log_ratio_and_log_prob(self) -> None:
        q = conditioned(50, 6)
        wanted = Dense(q)
        draw = q.rsample((4,), generator=torch.Generator().manual_seed(1))
        at = q.prior.to_places(draw.basis)
        q_law = torch.distributions.MultivariateNormal(
            wanted.mean, precision_matrix=wanted.V @ wanted.V.mT
        )
        p_law = torch.distributions.MultivariateNormal(wanted.mu, precision_matrix=wanted.precision)
        torch.testing.assert_close(
            q.log_ratio(draw), p_law.log_prob(at) - q_law.log_prob(at), rtol=1e-8, atol=1e-8
        )
        torch.testing.assert_close(q.prior.log_prob(draw.basis), p_law.log_prob(at))

    def test_whitening_is_undone(self) -> None:
        prior = conditioned(50, 6).prior
        e = normal(3, 50)
        torch.testing.assert_close(prior.whiten(prior.unwhiten(e)), e, rtol=1e-9, atol=1e-9)
        basis = prior.unwhiten(torch.eye(50, dtype=torch.float64)) - 0.5
        U = dense(prior.pattern(()), prior.columns)
        covariance = prior.to_places((basis.mT @ basis).mT)
        covariance = prior.to_places(covariance.mT)
        assert gap(covariance @ (U @ U.mT), torch.eye(50)) < 1e-7


class TestDuplicates:
    def test_are_merged(self) -> None:
        distinct = uniform(30, 2)
        x = torch.cat([distinct, distinct[:12], distinct[:5]])
        q = SparseInverseCholesky(40, nugget=1e-14).prior(process(), x).condition(site(47))
        exact = Exact().prior(process(), x).condition(site(47))
        assert q.prior.num_basis == 30
        assert q.prior.geometry.copies.sum().item() == 47
        new = uniform(5, 2, seed=6)
        for actual, expected in (
            (q.log_partition, exact.log_partition),
            (q.kl(), exact.kl()),
            (q.marginals().mean, exact.marginals().mean),
            (q.marginals().variance, exact.marginals().variance),
            (q.predict(new).mean, exact.predict(new).mean),
            (q.predict(new).variance, exact.predict(new).variance),
            (q.leave_one_out().mean, exact.leave_one_out().mean),
        ):
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)

    def test_all_rows_at_one_location(self) -> None:
        x = torch.ones(6, 2, dtype=torch.float64)
        q = SparseInverseCholesky(5, nugget=1e-14).prior(process(), x).condition(site(6))
        exact = Exact().prior(process(), x).condition(site(6))
        assert q.prior.num_basis == 1
        assert q.log_partition.item() == pytest.approx(exact.log_partition.item(), abs=1e-8)
        torch.testing.assert_close(q.marginals().variance, exact.marginals().variance)
        new = uniform(4, 2)
        torch.testing.assert_close(
            q.predict(new, joint=True).covariance_matrix,
            exact.predict(new, joint=True).covariance_matrix,
            rtol=1e-6,
            atol=1e-8,
        )

    def test_rows_are_unbiased(self) -> None:
        distinct = uniform(20, 2)
        x = torch.cat([distinct, distinct[:7], distinct[:2]])
        q = SparseInverseCholesky(5).prior(process(), x).condition(site(29))
        parts = [q.rows(torch.tensor([n])) for n in range(29)]
        mean = torch.stack([part.kl() for part in parts]).mean()
        assert mean.item() == pytest.approx(q.kl().item(), rel=1e-9)
        log_partition = torch.stack([part.log_partition for part in parts]).mean()
        assert log_partition.item() == pytest.approx(q.log_partition.item(), rel=1e-9)
        pair = q.rows(torch.tensor([3, 22, 3]))
        whole = q.marginals()
        torch.testing.assert_close(pair.marginals().mean, whole.mean[[3, 22, 3]])
        torch.testing.assert_close(pair.marginals().explained, whole.explained[[3, 22, 3]])
        assert pair.kl_is_whole

    @pytest.mark.parametrize("family", ["diagonal", "first_points"])
    @pytest.mark.filterwarnings("ignore:The incomplete Cholesky")
    def test_rows_of_other_families(self, family: str) -> None:
        q = conditioned(25, 5, family=family)
        mean = torch.stack([q.rows(torch.tensor([n])).kl() for n in range(25)]).mean()
        assert mean.item() == pytest.approx(q.kl().item(), rel=1e-9)

    def test_bad_rows(self) -> None:
        q = conditioned(20, 5)
        for index in ([], [20], [-1]):
            with pytest.raises(InputError, match="index"):
                q.rows(torch.tensor(index, dtype=torch.int64))
        with pytest.raises(InputError, match="int32"):
            q.rows(torch.tensor([1], dtype=torch.int32))


class TestGradient:
    def test_tangent_is_the_gradient_of_the_bound(self) -> None:
        """With sites at their optimum the bound's gradient is that at a held q."""
        x, sites = uniform(120, 2), site(120)
        approximation = SparseInverseCholesky(12)
        gp = process([0.3, 0.4])
        plan = approximation.plan(x)

        def bound(log_scale: Tensor) -> Any:
            part = copy.deepcopy(gp).requires_grad_(False)
            part.kernel.base_kernel.lengthscale = log_scale.exp()
            return approximation.prior(part, x, plan=plan).condition(sites).log_partition

        gp.requires_grad_(True)
        prior = approximation.prior(gp, x, plan=plan)
        with torch.no_grad():
            q = prior.condition(sites)
        zero = torch.zeros(120, dtype=torch.float64)
        prior.tangent(q.detach(), zero, zero, None).backward()
        raw = gp.kernel.base_kernel.raw_lengthscale
        found = raw.grad[0] * gp.kernel.base_kernel.lengthscale.detach()[0]
        found = found / torch.sigmoid(raw.detach()[0])
        at = gp.kernel.base_kernel.lengthscale.detach()[0].log()
        for d in range(2):
            step = torch.zeros(2, dtype=torch.float64)
            step[d] = 1e-4
            slope = float(bound(at + step) - bound(at - step)) / 2e-4
            assert float(found[d]) == pytest.approx(slope, rel=1e-2)

    def test_bound_is_differentiable_on_the_graph(self) -> None:
        x, sites = uniform(60, 2), site(60)
        gp = process().requires_grad_(True)
        approximation = SparseInverseCholesky(8)
        plan = approximation.plan(x)
        approximation.prior(gp, x, plan=plan).condition(sites).log_partition.backward()
        raw = gp.kernel.raw_outputscale
        values = []
        for step in (1e-4, -1e-4):
            other = copy.deepcopy(gp)
            with torch.no_grad():
                other.kernel.raw_outputscale += step
                q = approximation.prior(other, x, plan=plan).condition(sites)
            values.append(q.log_partition.item())
        assert raw.grad.item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)


class TestFamilies:
    @pytest.mark.parametrize("family", ["diagonal", "first_points"])
    @pytest.mark.filterwarnings("ignore:The incomplete Cholesky")
    def test_lower_bounds(self, family: str) -> None:
        best, q = conditioned(120, 10), conditioned(120, 10, family=family)
        assert bool((q.factor[..., -1] > 0).all())
        assert q.factor.shape[-1] == (1 if family == "diagonal" else 11)
        assert gap(q.marginals().mean, best.marginals().mean) < 1e-7
        assert q.log_partition.item() < best.log_partition.item()
        assert bool((q.marginals().variance > 0).all())
        assert q.kl().item() == pytest.approx(Dense(q).kl().item(), rel=2e-2)
        assert (
            float(
                torch.linalg.eigvalsh(q.predict(uniform(6, 2), joint=True).covariance_matrix).min()
            )
            > 0
        )

    def test_free_form(self) -> None:
        q = conditioned(60, 8)
        free = q.prior.posterior(q.prior.place_mean + q.shift, q.factor)
        assert free.free
        assert free.kl().item() == pytest.approx(q.kl().item())
        assert free.log_partition.item() == pytest.approx(-q.kl().item())
        torch.testing.assert_close(
            free.predict(uniform(4, 2)).variance, q.predict(uniform(4, 2)).variance
        )
        with pytest.raises(UnsupportedError, match="free-form"):
            free.leave_one_out()
        with pytest.raises(InputError, match="positive"):
            q.prior.posterior(q.shift, -q.factor)
        with pytest.raises(InputError, match="shape"):
            q.prior.posterior(q.shift[:-1], q.factor)

    def test_prior_as_posterior(self) -> None:
        prior = conditioned(60, 8).prior
        same = prior.posterior(prior.place_mean, prior.columns)
        assert abs(same.kl().item()) < 1e-9


class TestBatches:
    def test_batch_of_inputs(self) -> None:
        x = torch.stack([uniform(40, 2), uniform(40, 2, seed=1)])
        x[1, :4] = x[1, 10:14]
        sites, approximation = site(40), SparseInverseCholesky(6)
        q = approximation.prior(process(), x).condition(sites)
        new = uniform(5, 2, seed=2)
        assert q.log_partition.shape == (2,)
        for i in range(2):
            one = approximation.prior(process(), x[i]).condition(sites)
            assert q.log_partition[i].item() == pytest.approx(one.log_partition.item(), abs=1e-9)
            assert gap(q.marginals().variance[i], one.marginals().variance) < 1e-9
            assert gap(q.predict(new).mean[i], one.predict(new).mean) < 1e-9
            assert (
                gap(
                    q.predict(new, joint=True).covariance_matrix[i],
                    one.predict(new, joint=True).covariance_matrix,
                )
                < 1e-9
            )

    def test_groups_with_different_numbers_of_duplicates(self) -> None:
        first, second, third = uniform(15, 2), uniform(9, 2, seed=1), uniform(1, 2, seed=2)
        parts = [torch.cat([first, first[:6]]), torch.cat([second, second[:1]]), third]
        x = torch.cat(parts)
        groups = torch.cat([torch.full((len(p),), i) for i, p in enumerate(parts)])
        sites, approximation = site(len(x)), SparseInverseCholesky(5)
        plan = approximation.plan(x, groups)
        q = approximation.prior(process(), x, plan=plan).condition(sites)
        new = uniform(6, 2, seed=3)
        moments, start = q.marginals(), 0
        for i, part in enumerate(parts):
            rows = slice(start, start + len(part))
            start += len(part)
            own = Sites(sites.lam1[rows], sites.lam2[rows])
            one = approximation.prior(process(), part).condition(own)
            assert q.log_partition[i].item() == pytest.approx(one.log_partition.item(), abs=1e-8)
            assert q.kl()[i].item() == pytest.approx(one.kl().item(), abs=1e-8)
            assert gap(moments.variance[rows], one.marginals().variance) < 1e-9
            at = q.predict(new, groups=torch.full((6,), i))
            assert gap(at.mean, one.predict(new).mean) < 1e-9
            assert gap(at.variance, one.predict(new).variance) < 1e-9

    def test_batch_of_kernels(self) -> None:
        kernel = gpytorch.kernels.MaternKernel(nu=2.5, batch_shape=torch.Size([2])).double()
        kernel.lengthscale = torch.tensor([0.2, 0.5]).double().reshape(2, 1, 1)
        gp = GaussianProcess(kernel).requires_grad_(False)
        x = uniform(30, 2)
        q = SparseInverseCholesky(29, nugget=1e-14).prior(gp, x).condition(site(30))
        exact = Exact().prior(gp, x).condition(site(30))
        torch.testing.assert_close(q.log_partition, exact.log_partition, rtol=1e-7, atol=1e-7)
        new = uniform(7, 2, seed=2)
        torch.testing.assert_close(
            q.predict(new).variance, exact.predict(new).variance, rtol=1e-5, atol=1e-7
        )

    def test_single_precision(self) -> None:
        x = uniform(150, 2, dtype=torch.float32)
        single = site(150, dtype=torch.float32)
        approximation = SparseInverseCholesky(12)
        q = approximation.prior(process(dtype=torch.float32), x).condition(single)
        wide = Sites(single.lam1.double(), single.lam2.double())
        other = approximation.prior(process(), x.double()).condition(wide)
        assert q.marginals().mean.dtype == q.log_partition.dtype == torch.float32
        assert q.log_partition.item() == pytest.approx(other.log_partition.item(), rel=1e-4)
        assert gap(q.marginals().mean, other.marginals().mean) < 1e-3
        new = q.predict(x[:4], joint=True)
        assert new.covariance_matrix.dtype == torch.float32


def dense_evidence(gp: GaussianProcess, x: Tensor, sites: Sites) -> Tensor:
    """Of the exact process, for comparison."""
    return Exact().prior(gp, x).condition(sites).log_partition


class TestNeighbors:
    @pytest.mark.filterwarnings("ignore:The incomplete Cholesky")
    def test_correlation_sees_periods(self) -> None:
        kernel = gpytorch.kernels.PeriodicKernel().double()
        kernel.period_length, kernel.lengthscale = 1.0, 1.5
        gp = GaussianProcess(kernel * gpytorch.kernels.ConstantKernel().double())
        gp.requires_grad_(False)
        # Two bursts a year: the nearest phase is years away.
        x = (torch.arange(40).repeat_interleave(3).double() + uniform(120)).unsqueeze(-1)
        y = (2 * torch.pi * x[:, 0]).sin()
        sites = Sites(y / 0.04, torch.full_like(y, 25.0))
        new = torch.linspace(45.0, 46.0, 15, dtype=torch.float64).unsqueeze(-1)
        wanted, errors = (2 * torch.pi * new[:, 0]).sin(), {}
        for neighbors in ("euclidean", "correlation"):
            approximation = SparseInverseCholesky(6, neighbors=neighbors, nugget=1e-6)
            q = approximation.prior(gp, x).condition(sites)
            errors[neighbors] = float((q.predict(new).mean - wanted).square().mean().sqrt())
        assert errors["correlation"] < 0.1
        assert errors["correlation"] < 0.5 * errors["euclidean"]

    def test_correlation_without_lengthscales(self) -> None:
        gp = GaussianProcess(gpytorch.kernels.LinearKernel().double()).requires_grad_(False)
        x, sites = uniform(40, 2), site(40)
        with pytest.raises(InputError, match="neighbors='correlation'"):
            SparseInverseCholesky(5).prior(gp, x)
        q = SparseInverseCholesky(39, neighbors="correlation", nugget=1e-6).prior(gp, x)
        value = q.condition(sites).log_partition.item()
        assert value == pytest.approx(dense_evidence(gp, x, sites).item(), abs=0.05)

    def test_columns_that_no_kernel_sees_are_ignored(self) -> None:
        kernel = gpytorch.kernels.MaternKernel(nu=1.5, active_dims=(0, 2)).double()
        gp, x = GaussianProcess(kernel).requires_grad_(False), uniform(50, 3)
        moved = x.clone()
        moved[:, 1] *= 1e6
        plans = [SparseInverseCholesky(5).plan(rows) for rows in (x, moved)]
        first, second = (plan.geometry(gp) for plan in plans)
        assert torch.equal(first.neighbors, second.neighbors)
        assert bool(torch.isinf(first.scale[1]))

    def test_seeds_and_orders_differ(self) -> None:
        x, gp = uniform(50, 2), process()
        orders = [
            SparseInverseCholesky(5, ordering, seed=seed).plan(x).geometry(gp).first[0]
            for ordering in ("maximin", "random")
            for seed in (0, 3, 3)
        ]
        assert all(torch.equal(order.sort().values, torch.arange(50)) for order in orders)
        assert torch.equal(orders[1], orders[2]) and torch.equal(orders[4], orders[5])
        assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[3], orders[4])

    @pytest.mark.parametrize("noise", [0.1, 0.01])
    @pytest.mark.parametrize(("lengthscale", "share"), [(0.1, 0.1), (0.3, 0.5)])
    @pytest.mark.filterwarnings("ignore:The incomplete Cholesky")
    def test_smooth_kernel_in_random_order(
        self, noise: float, lengthscale: float, share: float
    ) -> None:
        """Where incomplete factors break down the local one serves; it is cruder for smoother f."""
        kernel = gpytorch.kernels.RBFKernel().double()
        kernel.lengthscale = lengthscale
        gp, x = process(kernel=kernel), uniform(200, 2)
        y = (6 * x[:, 0]).sin() + noise**0.5 * normal(200)
        sites = Sites(y / noise, torch.full_like(y, 1 / noise))
        q = SparseInverseCholesky(30, "random", nugget=1e-8).prior(gp, x).condition(sites)
        evidence, variance = Dense(q).evidence(), q.marginals().variance
        assert bool((torch.isfinite(variance) & (variance > 0)).all())
        assert q.log_partition.item() <= evidence.item() + 1e-6
        constant = -0.5 * float((y.square() / noise).sum()) - 100 * math.log(2 * math.pi * noise)
        missing = evidence.item() - q.log_partition.item()
        assert missing < max(share * abs(evidence.item() + constant), 2.0)


class TestStructuredData:
    """Few distinct settings of five inputs, as experiments have them."""

    def problem(self) -> tuple[GaussianProcess, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        settings = torch.randint(6, (100, 4), generator=generator).double().repeat_interleave(5, 0)
        x = torch.cat([settings / 5, uniform(500, 1)], -1)[:400]
        gp = process([1.0, 1.5, 1.0, 2.0, 0.7])
        y = (3 * x[:, 0]).sin() + x[:, 1] * x[:, 4] + 0.1 * normal(400)
        return gp, x, y

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_bound_is_near_its_own_evidence(self, seed: int) -> None:
        gp, x, y = self.problem()
        sites = Sites(y / 0.01, torch.full_like(y, 100.0))
        q = SparseInverseCholesky(30, seed=seed).prior(gp, x).condition(sites)
        evidence = Dense(q).evidence().item()
        assert evidence - 1.0 < q.log_partition.item() <= evidence + 1e-6

    def test_independent_values_are_far_from_it(self) -> None:
        gp, x, y = self.problem()
        sites = Sites(y / 0.01, torch.full_like(y, 100.0))
        values = {
            family: SparseInverseCholesky(30, family=family, nugget=1e-6)
            .prior(gp, x)
            .condition(sites)
            .log_partition.item()
            for family in ("sic", "diagonal")
        }
        assert values["diagonal"] < values["sic"] - 50


class TestInput:
    def test_impossible_options(self) -> None:
        for options, value in (
            ({"num_neighbors": 0}, "num_neighbors is 0"),
            ({"num_neighbors": 2.5}, r"num_neighbors is 2\.5"),
            ({"num_neighbors": True}, "num_neighbors is True"),
            ({"num_neighbors": 100_000}, "num_neighbors is 100000"),
            ({"num_neighbors": "many"}, "num_neighbors is 'many'"),
            ({"num_neighbors": None}, "num_neighbors is None"),
            ({"num_prediction_neighbors": -1}, "num_prediction_neighbors is -1"),
            ({"ordering": "sorted"}, "ordering is 'sorted'"),
            ({"neighbors": "nearest"}, "neighbors is 'nearest'"),
            ({"evidence": "data"}, "evidence is 'data'"),
            ({"family": "full"}, "family is 'full'"),
            ({"refresh_every": 0}, "refresh_every is 0"),
            ({"refresh_every": 1.5}, r"refresh_every is 1\.5"),
            ({"nugget": -1e-3}, r"nugget is -0\.001"),
            ({"nugget": float("nan")}, "nugget is nan"),
            ({"nugget": "small"}, "nugget is 'small'"),
            ({"seed": -1}, "seed is -1"),
            ({"seed": 0.5}, r"seed is 0\.5"),
            ({"ordering": []}, r"ordering is \[\]"),
        ):
            with pytest.raises(InputError, match=value):
                SparseInverseCholesky(**options)

    def test_many_neighbors_of_few_locations(self) -> None:
        """Twice num_neighbors may be out of range, num_neighbors is not."""
        assert SparseInverseCholesky(600).options.num_neighbors == 600

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_coordinates_that_are_not_finite(self, bad: float) -> None:
        x = uniform(10, 2)
        x[3, 1] = bad
        approximation = SparseInverseCholesky(3)
        with pytest.raises(InputError, match="1 values that are NaN or infinite"):
            approximation.prior(process(), x)
        q = approximation.prior(process(), uniform(10, 2)).condition(site(10))
        before = q.predict(uniform(3, 2)).mean
        for joint in (False, True):
            with pytest.raises(InputError, match="1 values that are NaN or infinite"):
                q.predict(x, joint=joint)
        with pytest.raises(InputError, match="NaN or infinite"):
            q.rsample((), x)
        assert torch.equal(q.predict(uniform(3, 2)).mean, before)

    def test_integer_coordinates(self) -> None:
        with pytest.raises(InputError):
            SparseInverseCholesky(3).prior(process(), torch.arange(10).reshape(5, 2))

    def test_few_rows(self) -> None:
        for size in (1, 2, 5):
            x = uniform(size, 2)
            q = SparseInverseCholesky(30, nugget=1e-14).prior(process(), x).condition(site(size))
            wanted = dense_evidence(process(), x, site(size)).item()
            assert q.log_partition.item() == pytest.approx(wanted, abs=1e-8)
            assert q.predict(uniform(4, 2, seed=1), joint=True).covariance_matrix.shape == (4, 4)
            assert q.rsample((2,), uniform(3, 2, seed=1)).values.shape == (2, 3)

    def test_many_columns_are_warned_of(self) -> None:
        x = uniform(60, 50)
        with pytest.warns(AccuracyWarning, match="50 input columns"):
            plan = SparseInverseCholesky(10).plan(x)
        gp = process(3.0)
        q = SparseInverseCholesky(10).prior(gp, x, plan=plan).condition(site(60))
        assert abs(q.log_partition.item() - dense_evidence(gp, x, site(60)).item()) < 5

    def test_plans_of_others(self) -> None:
        x = uniform(10, 2)
        with pytest.raises(InputError, match="The plan is a Plan"):
            SparseInverseCholesky(3).prior(process(), x, plan=Exact().plan(x))
        plan = SparseInverseCholesky(3).plan(x)
        with pytest.raises(InputError):
            SparseInverseCholesky(3).prior(process(), uniform(11, 2), plan=plan)
        assert not plan._kept

    def test_negative_precision_that_is_improper(self) -> None:
        prior = SparseInverseCholesky(5).prior(process(), uniform(20, 2))
        sites = Sites(torch.zeros(20).double(), torch.full((20,), -50.0).double())
        with pytest.raises(NumericalError):
            prior.condition(sites)
        assert prior.condition(site(20)).log_partition.isfinite()


class TestCopies:
    def test_approximation(self) -> None:
        approximation = SparseInverseCholesky(7, "random", refresh_every=None, seed=4, nugget=1e-5)
        x = uniform(30, 2)
        value = approximation.prior(process(), x).condition(site(30)).log_partition
        for copied in (copy.deepcopy(approximation), pickle.loads(pickle.dumps(approximation))):
            assert copied.options == approximation.options
            copied.load_state_dict(approximation.state_dict())
            assert torch.equal(copied.prior(process(), x).condition(site(30)).log_partition, value)

    @pytest.mark.parametrize("used", [False, True])
    def test_plan(self, used: bool) -> None:
        approximation, x = SparseInverseCholesky(7), uniform(30, 2)
        plan = approximation.plan(x)
        if used:
            plan.geometry(process())
        for copied in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
            assert bool(copied._kept) is used
            assert torch.equal(
                copied.geometry(process()).neighbors, plan.geometry(process()).neighbors
            )
            prior = approximation.prior(process(), x, plan=copied)
            assert isinstance(prior, SparseInversePrior)
        assert not plan.anew()._kept

    def test_posterior(self) -> None:
        gp = process().requires_grad_(True)
        q = SparseInverseCholesky(7).prior(gp, uniform(30, 2)).condition(site(30)).detach()
        assert not q.shift.requires_grad and not q.prior.columns.requires_grad
        new = uniform(4, 2, seed=1)
        for copied in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
            assert torch.equal(copied.log_partition, q.log_partition)
            assert torch.equal(copied.predict(new).mean, q.predict(new).mean)
        wanted = q.predict(new).mean
        with torch.no_grad():
            gp.kernel.raw_outputscale += 1.0
        assert torch.equal(q.predict(new).mean, wanted)

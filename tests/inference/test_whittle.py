"""The debiased Whittle likelihood, and hyperparameters started from it."""

import copy
import math

import gpytorch
import pytest
import torch
from gpytorch.kernels import (
    CosineKernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    ScaleKernel,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess, Sites
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import cvi
from gpvi.inference.whittle import debiased_whittle, whittle_initialize
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood, PoissonLikelihood


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(size: int, step: float = 1.0, start: float = 0.0) -> Tensor:
    return start + step * torch.arange(size, dtype=torch.float64)


def process(lengthscale: float = 10.0, name: str = "matern32") -> GaussianProcess:
    gp = GaussianProcess(parse_kernel(name, 1))
    gp.kernel.base_kernel.lengthscale = lengthscale
    return gp


def draw(gp: GaussianProcess, t: Tensor, generator: torch.Generator) -> Tensor:
    K = gp.covariance(t.unsqueeze(-1)).detach()
    root = torch.linalg.cholesky(K + 1e-9 * torch.eye(len(t)))
    return root @ torch.randn(len(t), generator=generator, dtype=torch.float64)


def exact_log_likelihood(gp: GaussianProcess, t: Tensor, y: Tensor, noise: float) -> Tensor:
    x = t.unsqueeze(-1)
    covariance = gp.covariance(x) + noise * torch.eye(len(t), dtype=t.dtype)
    return torch.distributions.MultivariateNormal(gp.mean(x), covariance).log_prob(y)


def by_definition(gp: GaussianProcess, t: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """The same from the covariance matrix of what was observed, as E I = f' Cov(g y) f."""
    observed = (~torch.isnan(y)).double()
    mean = gp.mean(t.unsqueeze(-1))
    residual = observed * torch.where(observed > 0, y - mean, 0.0)
    C = gp.covariance(t.unsqueeze(-1)) + torch.diag(noise)
    C = observed.unsqueeze(-1) * C * observed
    count, N = observed.sum(), len(t)
    number = torch.arange(N, dtype=torch.float64)
    fourier = torch.exp(-2j * math.pi * number.unsqueeze(-1) * number / N)
    expected = ((fourier @ C.to(fourier)) * fourier.conj()).sum(-1).real / count
    found = (fourier @ residual.to(fourier)).abs().square() / count
    return -0.5 * count / N * (torch.log(2 * math.pi * expected) + found / expected).sum()


class TestDebiasedWhittle:
    @pytest.mark.parametrize("size", [2, 3, 20, 31])
    @pytest.mark.parametrize("gaps", [False, True])
    def test_expectation_of_the_periodogram(self, size: int, gaps: bool):
        t = grid(size, 0.3, 5.0)
        mean = gpytorch.means.ConstantMean().double()
        mean.initialize(constant=0.4)
        gp = GaussianProcess(process(1.0).kernel, mean)
        y = torch.randn(size, generator=seeded(), dtype=torch.float64)
        noise = 0.1 + torch.rand(size, generator=seeded(1), dtype=torch.float64)
        if gaps:
            y[size // 2 :: 3] = torch.nan
        value = debiased_whittle(gp, t, y, noise)
        torch.testing.assert_close(value, by_definition(gp, t, y, noise), rtol=1e-11, atol=1e-11)

    @settings(max_examples=15)
    @given(
        seed=st.integers(0, 1000),
        size=st.integers(2, 40),
        variance=st.floats(0.1, 10.0),
        missing=st.floats(0.0, 0.5),
    )
    def test_white_noise_is_exact(self, seed: int, size: int, variance: float, missing: float):
        generator = seeded(seed)
        y = torch.randn(size, generator=generator, dtype=torch.float64)
        y[1:][torch.rand(size - 1, generator=generator) < missing] = torch.nan
        kernel = ScaleKernel(MaternKernel()).double()
        kernel.raw_outputscale.data.fill_(-100.0)
        value = debiased_whittle(kernel, grid(size), y, variance)
        seen = y[~torch.isnan(y)]
        deviation = torch.tensor(variance, dtype=torch.float64).sqrt()
        normal = torch.distributions.Normal(torch.zeros_like(deviation), deviation)
        assert value.item() == pytest.approx(normal.log_prob(seen).sum().item(), abs=1e-9)

    def test_white_kernel_counts_as_noise(self):
        y = torch.randn(30, generator=seeded(), dtype=torch.float64)
        gp = GaussianProcess(parse_kernel("matern32 + white", 1))
        noise = gp.kernel.kernels[1].variance.item()
        smooth = GaussianProcess(gp.kernel.kernels[0])
        together = debiased_whittle(gp, grid(30), y)
        torch.testing.assert_close(together, debiased_whittle(smooth, grid(30), y, noise))

    @pytest.mark.parametrize("name", ["matern12", "matern52", "rbf"])
    def test_close_to_the_log_likelihood(self, name: str):
        gp, t = process(10.0, name), grid(500)
        y = draw(gp, t, seeded(3)) + torch.randn(500, generator=seeded(4), dtype=torch.float64)
        value = debiased_whittle(gp, t, y, 1.0).item()
        assert value == pytest.approx(exact_log_likelihood(gp, t, y, 1.0).item(), abs=4.0)

    def test_left_out_places_are_missing_values_and_order_does_not_matter(self):
        gp, t = process(), grid(60)
        y = torch.sin(0.2 * t)
        keep = torch.ones(60, dtype=torch.bool)
        keep[[7, 8, 9, 30, 41]] = False
        whole = debiased_whittle(gp, t, torch.where(keep, y, torch.nan), 0.1)
        order = torch.randperm(int(keep.sum()), generator=seeded())
        part = debiased_whittle(gp, t[keep][order], y[keep][order], 0.1)
        torch.testing.assert_close(part, whole)
        column = debiased_whittle(gp, t[keep].unsqueeze(-1), y[keep], 0.1)
        torch.testing.assert_close(column, whole)

    def test_batches_of_kernels_and_values(self):
        kernel = MaternKernel(nu=1.5, batch_shape=torch.Size([2])).double()
        kernel.lengthscale = torch.tensor([[[2.0]], [[5.0]]])
        t = grid(40)
        y = torch.randn(3, 1, 40, generator=seeded(), dtype=torch.float64)
        y[0, 0, 5:9] = torch.nan
        together = debiased_whittle(kernel, t, y, 0.2)
        assert together.shape == (3, 2)
        for latent, lengthscale in enumerate((2.0, 5.0)):
            one = MaternKernel(nu=1.5).double()
            one.lengthscale = lengthscale
            for row in range(3):
                alone = debiased_whittle(one, t, y[row, 0], 0.2)
                torch.testing.assert_close(together[row, latent], alone)

    def test_gradients(self):
        t = grid(17)
        y = torch.randn(17, generator=seeded(), dtype=torch.float64)
        y[4] = torch.nan

        def value(lengthscale: Tensor, outputscale: Tensor, noise: Tensor) -> Tensor:
            kernel = ScaleKernel(MaternKernel(nu=2.5)).double()
            raw = {
                "raw_outputscale": kernel.raw_outputscale_constraint.inverse_transform(outputscale),
                "base_kernel.raw_lengthscale": lengthscale.log().exp().expm1().log().reshape(1, 1),
            }
            wrapped = _Whittle(kernel, t, y)
            names = {f"kernel.{name}": tensor for name, tensor in raw.items()}
            return torch.func.functional_call(wrapped, names, (noise,))

        inputs = [torch.tensor(v, dtype=torch.float64).requires_grad_() for v in (2.0, 1.5, 0.3)]
        assert torch.autograd.gradcheck(value, inputs)

    def test_missing_rows_do_not_poison_gradients(self):
        gp = GaussianProcess(process().kernel, gpytorch.means.ConstantMean().double())
        y = torch.sin(grid(20))
        y[3] = torch.nan
        noise = torch.full((20,), 0.1, dtype=torch.float64)
        noise[3] = torch.nan
        noise.requires_grad_()
        debiased_whittle(gp, grid(20), y, noise).backward()
        assert noise.grad is not None and noise.grad[3] == 0.0
        for parameter in gp.parameters():
            assert bool(torch.isfinite(parameter.grad).all())

    def test_float32_far_from_the_origin(self):
        t = grid(300, 1 / 128, 64.0)
        y = torch.sin(5.0 * t) + 0.1 * torch.randn(300, generator=seeded(), dtype=torch.float64)
        kernel = process(0.1).kernel
        double = debiased_whittle(kernel, t, y, 0.01).item()
        single = debiased_whittle(copy.deepcopy(kernel).float(), t.float(), y.float(), 0.01)
        assert single.dtype == torch.float32
        assert single.item() == pytest.approx(double, rel=1e-3)

    @pytest.mark.parametrize("kernel", [CosineKernel(), PeriodicKernel(), RBFKernel()])
    def test_any_stationary_kernel(self, kernel: gpytorch.kernels.Kernel):
        y = torch.sin(grid(30))
        assert bool(torch.isfinite(debiased_whittle(kernel.double(), grid(30), y, 0.1)))

    def test_processes_that_are_not_stationary(self):
        kernel = RBFKernel() + ScaleKernel(LinearKernel())
        with pytest.raises(UnsupportedError, match=r"AdditiveKernel is not stationary"):
            debiased_whittle(kernel.double(), grid(30), torch.sin(grid(30)), 0.1)

    @pytest.mark.parametrize(
        ("t", "y", "message"),
        [
            (torch.tensor([0.0, 1.0, 2.4, 3.0]), torch.zeros(4), "do not lie on a regular grid"),
            (torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.zeros(4), "do not lie on a regular grid"),
            (torch.tensor([0.0, 1e-3, 1.0, 2.0]), torch.zeros(4), "do not lie on a regular grid"),
            (torch.zeros(1), torch.zeros(1), "do not lie on a regular grid"),
            (torch.tensor([0.0, torch.inf]), torch.zeros(2), "1 of 2 stamps are NaN or infinite"),
            (torch.zeros(4, 2), torch.zeros(4), r"shape \(4, 2\)"),
            (torch.arange(4), torch.zeros(4), "dtype torch.int64"),
            (torch.arange(4.0), torch.zeros(3), r"y has shape \(3,\) for 4 stamps"),
            (torch.arange(4.0), torch.full((4,), torch.nan), "No value was observed"),
        ],
    )
    def test_bad_input(self, t: Tensor, y: Tensor, message: str):
        with pytest.raises(InputError, match=message):
            debiased_whittle(RBFKernel(), t, y, 0.1)


class _Whittle(torch.nn.Module):
    """The likelihood as a module, for functional calls."""

    def __init__(self, kernel: gpytorch.kernels.Kernel, t: Tensor, y: Tensor) -> None:
        super().__init__()
        self.kernel, self.t, self.y = kernel, t, y

    def forward(self, noise: Tensor) -> Tensor:
        return debiased_whittle(self.kernel, self.t, self.y, noise)


class TestInitialize:
    @pytest.mark.parametrize("name", ["matern12", "matern32", "matern52", "rbf"])
    @pytest.mark.parametrize(("seed", "size"), [(0, 600), (1, 800)])
    def test_close_to_maximum_likelihood(self, name: str, seed: int, size: int):
        """From a start 20 times too long; a tenth of a nat from the optimum is all but there."""
        t, generator = grid(size), seeded(seed)
        y = draw(process(10.0, name), t, generator)
        y = y + torch.randn(size, generator=generator, dtype=torch.float64)
        gp, likelihood = process(200.0, name), GaussianLikelihood()
        assert whittle_initialize(gp, likelihood, t.unsqueeze(-1), y)
        assert 4.0 < gp.kernel.base_kernel.lengthscale.item() < 20.0
        value = exact_log_likelihood(gp, t, y, likelihood.noise.item())
        parameters = [*gp.parameters(), *likelihood.parameters()]
        # Newton's decrement: the distance to the maximum in nats, to second order.
        noise = likelihood.noise.squeeze()
        value = exact_log_likelihood(gp, t, y, noise)
        slope = torch.autograd.grad(value, parameters, create_graph=True)
        slope = torch.cat([part.reshape(-1) for part in slope])
        rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in slope]
        hessian = torch.stack([torch.cat([r.reshape(-1) for r in row]) for row in rows])
        decrement = -0.5 * slope @ torch.linalg.solve(hessian, slope)
        assert 0.0 <= decrement.item() < 0.1

    def test_gaps_weights_and_jittered_stamps(self):
        t, generator = grid(600), seeded(5)
        y = draw(process(), t, generator)
        y = y + torch.randn(600, generator=generator, dtype=torch.float64)
        y[200:260] = torch.nan
        weights = torch.ones(600, dtype=torch.float64)
        weights[100:140] = 0.0
        y[100:140] = 1e6  # without weight, hence never looked at
        t = t + 0.1 * torch.rand(600, generator=generator, dtype=torch.float64)
        keep = torch.rand(600, generator=generator) < 0.9
        gp, likelihood = process(1.0), GaussianLikelihood()
        x = t[keep].unsqueeze(-1)
        assert whittle_initialize(gp, likelihood, x, y[keep], weights=weights[keep])
        assert 5.0 < gp.kernel.base_kernel.lengthscale.item() < 20.0
        assert likelihood.noise.item() == pytest.approx(1.0, abs=0.2)

    @pytest.mark.parametrize("kind", ["poisson", "bernoulli"])
    def test_pseudo_observations(self, kind: str):
        """Better than the start by far, and with the lengthscale of the simulation."""
        t, generator = grid(500), seeded(1)
        f = draw(process(10.0), t, generator)
        if kind == "poisson":
            likelihood, y = PoissonLikelihood(), torch.poisson(f.exp(), generator=generator)
        else:
            likelihood = BernoulliLikelihood()
            y = (torch.rand(500, generator=generator) < torch.special.ndtr(f)).double()
        x, gp = t.unsqueeze(-1), process(150.0)
        before = cvi(Exact().prior(gp, x), likelihood, y)
        sites = before.sites if kind == "poisson" else None
        assert whittle_initialize(gp, likelihood, x, y, sites=sites)
        assert 4.0 < gp.kernel.base_kernel.lengthscale.item() < 25.0
        assert cvi(Exact().prior(gp, x), likelihood, y).objective > before.objective + 20.0

    def test_every_latent_of_a_batch_gets_its_own(self):
        """Sites of two latents at once, as a likelihood of several latents makes them."""
        t, generator = grid(400), seeded(6)
        f = torch.stack([draw(process(length), t, generator) for length in (4.0, 30.0)])
        noise = torch.tensor([[0.5], [0.2]], dtype=torch.float64)
        values = f + noise.sqrt() * torch.randn(2, 400, generator=generator, dtype=torch.float64)
        sites = Sites(values / noise, noise.reciprocal().expand(2, 400))
        kernel = MaternKernel(nu=1.5, batch_shape=torch.Size([2]))
        gp = GaussianProcess(ScaleKernel(kernel, batch_shape=torch.Size([2])).double())
        likelihood = gpytorch.likelihoods.SoftmaxLikelihood(num_classes=2, mixing_weights=False)
        labels = torch.zeros(400, dtype=torch.float64)
        assert whittle_initialize(gp, likelihood, t.unsqueeze(-1), labels, sites=sites)
        first, second = gp.kernel.base_kernel.lengthscale.flatten().tolist()
        assert 2.0 < first < 8.0 and 12.0 < second < 75.0
        for latent, length in enumerate((first, second)):
            alone = process(100.0)
            one = Sites(sites.lam1[latent], sites.lam2[latent])
            assert whittle_initialize(
                alone, PoissonLikelihood(), t.unsqueeze(-1), labels, sites=one
            )
            assert alone.kernel.base_kernel.lengthscale.item() == pytest.approx(length, rel=0.02)

    def test_sites_that_say_nothing_are_left_out(self):
        t, generator = grid(400), seeded(2)
        y = draw(process(), t, generator)
        y = y + 0.5 * torch.randn(400, generator=generator, dtype=torch.float64)
        lam2 = torch.full((400,), 4.0, dtype=torch.float64)
        lam1 = lam2 * y
        lam2[::5], lam1[::5] = 1e-12, 1.0
        gp = process(100.0)
        sites = Sites(lam1, lam2)
        assert whittle_initialize(gp, PoissonLikelihood(), t.unsqueeze(-1), y * 0, sites=sites)
        assert 4.0 < gp.kernel.base_kernel.lengthscale.item() < 25.0

    def test_registered_priors_count(self):
        t, generator = grid(200), seeded(3)
        y = draw(process(), t, generator)
        found = []
        for strict in (False, True):
            gp = process()
            if strict:
                prior = gpytorch.priors.NormalPrior(torch.tensor(3.0), torch.tensor(1e-3))
                gp.kernel.base_kernel.register_prior(
                    "lengthscale_prior", prior.double(), "lengthscale"
                )
            assert whittle_initialize(gp, GaussianLikelihood(), t.unsqueeze(-1), y)
            found.append(gp.kernel.base_kernel.lengthscale.item())
        assert found[1] == pytest.approx(3.0, abs=0.05) and abs(found[0] - 3.0) > 1.0

    def test_fixed_parameters_stay(self):
        gp, likelihood = process(7.0), GaussianLikelihood()
        gp.kernel.base_kernel.raw_lengthscale.requires_grad_(False)
        y = 3.0 * torch.sin(0.3 * grid(100))
        assert whittle_initialize(gp, likelihood, grid(100).unsqueeze(-1), y)
        assert gp.kernel.base_kernel.lengthscale.item() == pytest.approx(7.0)
        assert gp.kernel.outputscale.item() > 1.5

    @pytest.mark.parametrize("case", ["irregular", "repeated", "trend", "short"])
    def test_says_no_and_changes_nothing(self, case: str):
        t = grid(50)
        if case == "irregular":
            t = torch.rand(50, generator=seeded(), dtype=torch.float64)
        elif case == "repeated":
            t[3] = t[4]
        elif case == "short":
            t = t[:7]
        gp, likelihood = process(), GaussianLikelihood()
        if case == "trend":
            gp = GaussianProcess(parse_kernel("matern32 + linear", 1))
        before = copy.deepcopy([gp.state_dict(), likelihood.state_dict()])
        assert not whittle_initialize(gp, likelihood, t.unsqueeze(-1), torch.sin(t))
        for module, saved in zip((gp, likelihood), before, strict=True):
            for name, value in module.state_dict().items():
                assert torch.equal(value, saved[name])

    def test_refusals(self):
        x = grid(3000).unsqueeze(-1)
        y = torch.ones(3000, dtype=torch.float64)
        with pytest.raises(InputError, match=r"PoissonLikelihood needs sites"):
            whittle_initialize(process(), PoissonLikelihood(), x, y)
        with pytest.raises(InputError, match=r"max_iter is 0"):
            whittle_initialize(process(), GaussianLikelihood(), x, y, max_iter=0)
        with pytest.raises(InputError, match=r"pass floating-point numbers"):
            whittle_initialize(process(), GaussianLikelihood(), torch.cat([x, x], -1), y)
        basis = Sites(y, y, on="basis")
        with pytest.raises(InputError, match=r"sites are on 'basis'"):
            whittle_initialize(process(), PoissonLikelihood(), x, y, sites=basis)
        with pytest.raises(InputError, match=r"non-negative integers|counts"):
            whittle_initialize(process(), PoissonLikelihood(), x, -y)

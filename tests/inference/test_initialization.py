"""Starting values from the data."""

import gpytorch
import pytest
import torch
from gpytorch.kernels import MaternKernel, ScaleKernel

from gpvi.approximations import GaussianProcess
from gpvi.exceptions import InputError
from gpvi.inference import initialize_hyperparameters, median_lengthscales
from gpvi.likelihoods import GaussianLikelihood, PoissonLikelihood, as_likelihood


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestMedianLengthscales:
    def test_formula(self):
        x = torch.randn(60, 3, generator=seeded(1), dtype=torch.float64) * torch.tensor(
            [1, 10, 0.1]
        )
        distances = (x.unsqueeze(0) - x.unsqueeze(1)).abs()[~torch.eye(60, dtype=torch.bool)]
        expected = distances.median(0).values * 3**0.5
        assert torch.allclose(median_lengthscales(x, seeded()), expected, rtol=0.05)

    def test_ties_do_not_count(self):
        x = torch.tensor([[0.0], [0.0], [0.0], [0.0], [0.0], [0.0], [3.0]]).double()
        assert median_lengthscales(x, seeded()).tolist() == [3.0]

    def test_constant_columns_and_one_row(self):
        x = torch.tensor([[1.0, 7.0], [2.0, 7.0]]).double()
        assert median_lengthscales(x, seeded())[1] == 1.0
        assert median_lengthscales(x[:1], seeded()).tolist() == [1.0, 1.0]

    def test_other_shapes_are_refused(self):
        for x in (torch.zeros(5), torch.zeros(0, 2), torch.zeros(2, 5, 1)):
            with pytest.raises(InputError, match=r"x has shape"):
                median_lengthscales(x)

    def test_repeatable_and_leaves_the_global_generator(self):
        x = torch.randn(5000, 2, generator=seeded(1))
        state = torch.get_rng_state()
        first = median_lengthscales(x, seeded())
        assert torch.equal(first, median_lengthscales(x, seeded()))
        assert first.dtype == torch.float32
        median_lengthscales(x)
        assert torch.equal(torch.get_rng_state(), state)

    def test_weights_are_repeated_rows(self):
        x = torch.randn(40, 3, generator=seeded(1), dtype=torch.float64)
        times = torch.arange(40) % 4
        repeated = median_lengthscales(x.repeat_interleave(times, 0), seeded())
        assert torch.equal(median_lengthscales(x, seeded(), times.double()), repeated)
        # The order of rows does not matter, and nothing random is left with so few rows.
        assert torch.equal(median_lengthscales(x.flip(0), seeded(7), times.flip(0)), repeated)

    def test_weights_are_repeated_rows_with_random_pairs(self):
        x = torch.randn(400, 2, generator=seeded(1), dtype=torch.float64)
        times = torch.arange(400) % 3
        weighted = median_lengthscales(x, seeded(), times.double())
        assert torch.equal(weighted, median_lengthscales(x.repeat_interleave(times, 0), seeded()))
        assert not torch.equal(weighted, median_lengthscales(x, seeded()))

    def test_many_rows_are_drawn_by_weight(self):
        x = torch.randn(6000, 1, generator=seeded(1), dtype=torch.float64)
        weights = (x[:, 0].abs() < 0.1).double()
        assert median_lengthscales(x, seeded(), weights).item() < 0.2
        assert median_lengthscales(x, seeded()).item() > 0.5

    def test_impossible_weights_are_refused(self):
        x = torch.zeros(3, 1).double()
        for weights in (torch.ones(2), torch.tensor([1.0, -1.0, 1.0]), torch.zeros(3)):
            with pytest.raises(InputError, match=r"pass one non-negative weight per row"):
                median_lengthscales(x, seeded(), weights)


class TestInitialize:
    X = torch.linspace(0, 1, 30).double().unsqueeze(-1)

    def test_sets_lengthscale_and_mean(self):
        gp = GaussianProcess(ScaleKernel(MaternKernel()).double(), gpytorch.means.ConstantMean())
        y = torch.arange(30.0).double()
        y[0] = torch.nan
        initialize_hyperparameters(gp, GaussianLikelihood(), self.X, y, seeded())
        assert gp.kernel.base_kernel.lengthscale.item() == pytest.approx(
            median_lengthscales(self.X, seeded()).item()
        )
        assert gp.mean_module.constant.item() == pytest.approx(15.0)

    def test_rows_of_the_likelihood(self):
        gp = GaussianProcess(MaternKernel().double(), gpytorch.means.ConstantMean().double())
        counts, exposure = torch.full((30,), 40.0).double(), torch.full((30,), 4.0).double()
        initialize_hyperparameters(
            gp, PoissonLikelihood(), self.X, counts, seeded(), exposure=exposure
        )
        assert gp.mean_module.constant.exp().item() == pytest.approx(10.0, rel=0.05)

    def test_leaves_what_is_held_or_unknown(self):
        gp = GaussianProcess(MaternKernel().double(), gpytorch.means.ConstantMean().double())
        gp.mean_module.raw_constant.requires_grad_(False)
        gp.kernel.raw_lengthscale.requires_grad_(False)
        before = gp.kernel.lengthscale.item()
        initialize_hyperparameters(gp, GaussianLikelihood(), self.X, self.X[:, 0] + 3, seeded())
        assert gp.mean_module.constant.item() == 0.0 and gp.kernel.lengthscale.item() == before
        linear = GaussianProcess(MaternKernel().double(), gpytorch.means.LinearMean(1).double())
        state = {k: v.clone() for k, v in linear.mean_module.state_dict().items()}
        initialize_hyperparameters(linear, GaussianLikelihood(), self.X, self.X[:, 0], seeded())
        after = linear.mean_module.state_dict()
        assert all(torch.equal(after[name], state[name]) for name in state)

    def test_no_guess_leaves_the_mean(self):
        gp = GaussianProcess(MaternKernel().double(), gpytorch.means.ConstantMean().double())
        likelihood = as_likelihood(gpytorch.likelihoods.LaplaceLikelihood())
        assert likelihood.initial_latent(self.X[:, 0]) is None
        initialize_hyperparameters(gp, likelihood, self.X, self.X[:, 0], seeded())
        assert gp.mean_module.constant.item() == 0.0

    @pytest.mark.parametrize("likelihood", [GaussianLikelihood(), PoissonLikelihood()])
    def test_weights_are_repeated_rows(self, likelihood):
        y = torch.arange(30.0).double()
        y[0] = torch.nan
        times = torch.arange(30) % 3
        results = []
        for repeat in (False, True):
            gp = GaussianProcess(MaternKernel().double(), gpytorch.means.ConstantMean().double())
            if repeat:
                x, z = self.X.repeat_interleave(times, 0), y.repeat_interleave(times)
                initialize_hyperparameters(gp, likelihood, x, z, seeded())
            else:
                initialize_hyperparameters(gp, likelihood, self.X, y, seeded(), times.double())
            results.append((gp.kernel.lengthscale.item(), gp.mean_module.constant.item()))
        assert results[0] == pytest.approx(results[1], abs=1e-12)

    def test_batched_process(self):
        shape = torch.Size([2])
        gp = GaussianProcess(
            MaternKernel(batch_shape=shape).double(),
            gpytorch.means.ConstantMean(batch_shape=shape).double(),
        )
        y = torch.stack([self.X[:, 0], self.X[:, 0] + 2])
        initialize_hyperparameters(gp, GaussianLikelihood(), self.X, y, seeded())
        assert gp.mean_module.constant.tolist() == pytest.approx([1.5, 1.5])
        assert gp.kernel.lengthscale.shape == (2, 1, 1)

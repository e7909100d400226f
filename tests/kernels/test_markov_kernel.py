"""GPyTorch's exact GP with a Markov kernel: the dense answers, in linear time and memory."""

import copy
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.kernels import (
    CosineKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    ScaleKernel,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels.markov_kernel import MarkovKernel
from gpvi.linalg.markov.cross_operator import CrossCovarianceLinearOperator
from gpvi.linalg.markov.operators import SemiseparableLinearOperator
from gpvi.linalg.markov.plus_diagonal_operator import SemiseparablePlusDiagonalLinearOperator


class Model(gpytorch.models.ExactGP):
    """As in GPyTorch's own tutorials."""

    def __init__(self, x: Tensor, y: Tensor, likelihood: Any, kernel: Kernel) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = kernel

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        """Prior."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def base(kind: str) -> Kernel:
    matern = MaternKernel(nu=1.5)
    matern.lengthscale = 0.7
    if kind == "matern":
        return ScaleKernel(matern)
    if kind == "sum":
        return ScaleKernel(matern) + ScaleKernel(MaternKernel(nu=2.5) * CosineKernel())
    return LinearKernel() + matern


def data(rows: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unsorted times, some of them twice."""
    generator = torch.Generator().manual_seed(seed)
    x = 10.0 * torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    x[1:3] = x[3:5]
    noise = torch.randn(rows, generator=generator, dtype=torch.float64)
    return x, torch.sin(2.0 * x[:, 0]) + 0.1 * noise


def build(kernel: Kernel, x: Tensor, y: Tensor, likelihood: Any = None) -> Model:
    likelihood = likelihood or gpytorch.likelihoods.GaussianLikelihood()
    model = Model(x, y, likelihood, kernel).double()
    if hasattr(likelihood.noise_covar, "raw_noise"):
        likelihood.noise = 0.05
    return model


def loss_and_gradients(model: Model, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
    model.train()
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    loss = -marginal(model(x), y)
    return loss.detach(), list(torch.autograd.grad(loss.sum(), list(model.parameters())))


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


@contextmanager
def largest_tensor() -> Iterator[list[int]]:
    """How many entries the largest tensor has that any operation makes."""
    found = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            for part in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(part, Tensor):
                    found[0] = max(found[0], part.untyped_storage().nbytes() // 8)
            return result

    with Watch():
        yield found


@pytest.mark.parametrize("kind", ["matern", "sum", "linear"])
def test_training_is_the_dense_one(kind: str) -> None:
    x, y = data()
    dense = loss_and_gradients(build(base(kind), x, y), x, y)
    linear = loss_and_gradients(build(MarkovKernel(base(kind)), x, y), x, y)
    close(linear[0], dense[0])
    for value, expected in zip(linear[1], dense[1], strict=True):
        close(value, expected)


@pytest.mark.parametrize("kind", ["matern", "sum", "linear"])
def test_predictions_are_the_dense_ones(kind: str) -> None:
    x, y = data()
    new = torch.cat([torch.linspace(-1.0, 12.0, 30, dtype=torch.float64).flip(0)[:, None], x[:2]])
    found = []
    for kernel in (base(kind), MarkovKernel(base(kind))):
        model = build(kernel, x, y).eval()
        with torch.no_grad():
            latent = model(new)
            found.append((latent, model.likelihood(latent)))
    for value, expected in zip(*found[::-1], strict=True):
        close(value.mean, expected.mean)
        close(value.variance, expected.variance)
        close(value.covariance_matrix, expected.covariance_matrix)
    latent, noisy = found[1]
    assert isinstance(latent.lazy_covariance_matrix, SemiseparableLinearOperator)
    kind_of = type(noisy.lazy_covariance_matrix.evaluate_kernel())
    assert kind_of is SemiseparablePlusDiagonalLinearOperator


def test_a_scale_may_be_outside() -> None:
    x, y = data()
    inside = build(MarkovKernel(ScaleKernel(MaternKernel(nu=1.5))), x, y)
    outside = build(ScaleKernel(MarkovKernel(MaternKernel(nu=1.5))), x, y)
    one, two = loss_and_gradients(inside, x, y), loss_and_gradients(outside, x, y)
    close(one[0], two[0])
    assert sorted(float(g.sum()) for g in one[1]) == pytest.approx(
        sorted(float(g.sum()) for g in two[1]), rel=1e-9
    )
    new = torch.linspace(0.0, 11.0, 7, dtype=torch.float64)[:, None]
    with torch.no_grad():
        one, two = inside.eval()(new), outside.eval()(new)
    close(one.mean, two.mean)
    close(one.covariance_matrix, two.covariance_matrix)
    assert isinstance(two.lazy_covariance_matrix, SemiseparableLinearOperator)


def test_noise_that_differs_between_rows() -> None:
    x, y = data()
    noise = torch.linspace(0.01, 0.3, len(y), dtype=torch.float64)
    models = [
        build(kernel, x, y, gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise))
        for kernel in (base("matern"), MarkovKernel(base("matern")))
    ]
    losses = [loss_and_gradients(model, x, y)[0] for model in models]
    close(losses[1], losses[0])
    with torch.no_grad():
        one, two = (model.eval()(x[:5] + 0.1) for model in models)
    close(two.mean, one.mean)
    close(two.covariance_matrix, one.covariance_matrix)


@pytest.mark.filterwarnings("ignore:The input matches the stored training data")
def test_predictions_at_the_training_rows() -> None:
    x, y = data()
    with torch.no_grad():
        one, two = (build(k, x, y).eval()(x) for k in (base("sum"), MarkovKernel(base("sum"))))
    close(two.mean, one.mean)
    close(two.covariance_matrix, one.covariance_matrix)
    assert isinstance(two.lazy_covariance_matrix, SemiseparableLinearOperator)


def test_missing_targets_when_predicting() -> None:
    x, y = data()
    gaps = y.clone()
    gaps[::3] = torch.nan
    seen = torch.isfinite(gaps)
    expected = build(base("matern"), x[seen], y[seen]).eval()
    model = build(MarkovKernel(base("matern")), x, gaps).eval()
    with torch.no_grad(), gpytorch.settings.observation_nan_policy("mask"):
        one, two = model(x[:5] + 0.1), expected(x[:5] + 0.1)
    close(one.mean, two.mean)
    close(one.covariance_matrix, two.covariance_matrix)


def test_batches_of_kernels_and_of_rows() -> None:
    x, y = data(20)
    rows, targets = torch.stack([x, 2.0 * x.flip(0)]), torch.stack([y, y.cos()])
    new = torch.linspace(0.0, 11.0, 7, dtype=torch.float64)[:, None]

    def kernel(batch: tuple[int, ...], lengthscale: Tensor) -> Kernel:
        shape = torch.Size(batch)
        one = MaternKernel(nu=1.5, batch_shape=shape)
        one.lengthscale = lengthscale.view(*batch, 1, 1)
        return MarkovKernel(ScaleKernel(one, batch_shape=shape))

    lengthscale = torch.tensor([0.5, 1.5])
    likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=torch.Size([2]))
    both = build(kernel((2,), lengthscale), rows, targets, likelihood)
    losses = loss_and_gradients(both, rows, targets)[0]
    with torch.no_grad():
        predicted = both.eval()(new.expand(2, 7, 1))
    for b in range(2):
        alone = build(kernel((), lengthscale[b]), rows[b], targets[b])
        close(losses[b], loss_and_gradients(alone, rows[b], targets[b])[0])
        with torch.no_grad():
            expected = alone.eval()(new)
        close(predicted.mean[b], expected.mean)
        close(predicted.covariance_matrix[b], expected.covariance_matrix)


def test_twenty_thousand_rows_without_a_matrix() -> None:
    """The matrix would have 4e8 entries, 3.2 GB."""
    N = 20_000
    generator = torch.Generator().manual_seed(0)
    x = 500.0 * torch.rand(N, 1, generator=generator, dtype=torch.float64)
    y = torch.sin(x[:, 0]) + 0.1 * torch.randn(N, generator=generator, dtype=torch.float64)
    model = build(MarkovKernel(base("matern")), x, y)
    with largest_tensor() as largest, warnings.catch_warnings():
        warnings.simplefilter("error")
        value, gradients = loss_and_gradients(model, x, y)
        with torch.no_grad():
            predicted = model.likelihood(model.eval()(x + 0.01))
            mean, variance = predicted.mean, predicted.variance
            torch.manual_seed(0)
            draws = predicted.rsample(torch.Size([3]))
    assert largest[0] < 200 * N
    assert torch.isfinite(value) and all(torch.isfinite(g).all() for g in gradients)
    assert draws.shape == (3, N)
    assert (mean - torch.sin(x[:, 0] + 0.01)).abs().mean() < 0.1
    assert ((variance > 0.05) & (variance < 0.2)).all()


def test_an_optimiser_trains_it() -> None:
    x, y = data(60)
    model = build(MarkovKernel(base("matern")), x, y)
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = -marginal(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_entries_are_the_base_kernels() -> None:
    x, _ = data(12)
    kernel, plain = MarkovKernel(base("sum")).double(), base("sum").double()
    kernel.base_kernel.load_state_dict(plain.state_dict())
    close(kernel(x, x[:5]).to_dense(), plain(x, x[:5]).to_dense())
    close(kernel(x, diag=True), plain(x, diag=True))
    close(kernel(x).to_dense(), plain(x).to_dense())
    cross = kernel(x, x[:5]).evaluate_kernel()
    assert isinstance(cross, CrossCovarianceLinearOperator)
    close(kernel(x)[2:5, :3].to_dense(), plain(x).to_dense()[2:5, :3])
    assert kernel.is_stationary == plain.is_stationary
    assert kernel.batch_shape == torch.Size([])


def test_approximate_forms_are_taken_where_asked() -> None:
    x, _ = data(12)
    errors = []
    for order in (4, 8):
        kernel = MarkovKernel(RBFKernel(), rbf_order=order).double()
        difference = kernel(x).to_dense() - RBFKernel().double()(x).to_dense()
        errors.append(difference.abs().max().item())
    assert errors[1] < errors[0] < 0.05
    kernel = MarkovKernel(PeriodicKernel(), periodic_tolerance=1e-9).double()
    close(kernel(x).to_dense(), PeriodicKernel().double()(x).to_dense(), 1e-8)


def test_float32() -> None:
    x, y = data(30)
    kernel = MarkovKernel(base("matern"))
    covariance = kernel(x.float()).evaluate_kernel()
    assert covariance.dtype == torch.float32
    noisy = covariance.add_diagonal(torch.tensor(0.1))
    solution = noisy.solve(y.float())
    assert solution.dtype == torch.float32
    assert (noisy @ solution - y.float()).abs().max() < 1e-4


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="RQKernel"):
        MarkovKernel(gpytorch.kernels.RQKernel())
    with pytest.raises(InputError, match="3 columns"):
        MarkovKernel(MaternKernel(nu=1.5))(torch.zeros(4, 3)).evaluate_kernel()


def test_pickle_deepcopy_and_state_dict() -> None:
    x, _ = data(8)
    kernel = MarkovKernel(base("matern")).double()
    expected = kernel(x).to_dense()
    for other in (pickle.loads(pickle.dumps(kernel)), copy.deepcopy(kernel)):
        close(other(x).to_dense(), expected, 1e-15)
    other = MarkovKernel(ScaleKernel(MaternKernel(nu=1.5))).double()
    other.load_state_dict(kernel.state_dict())
    close(other(x).to_dense(), expected, 1e-15)

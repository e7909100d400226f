"""The zero-mean periodic kernel, against GPyTorch's, its own states, and its average."""

import pickle
from copy import deepcopy

import pytest
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import PeriodicKernel
from gpytorch.priors import GammaPrior

from gpvi.approximations import Exact, GaussianProcess, Sites, StateSpace
from gpvi.exceptions import InputError
from gpvi.kernels import SeasonalKernel, as_state_space

TIMES = torch.linspace(0.0, 9.7, 23, dtype=torch.float64).unsqueeze(-1)


def kernel(drift_order: int | None = None, scale: float = 0.8, **options) -> SeasonalKernel:
    made = SeasonalKernel(drift_order, **options).double()
    made.period_length, made.periodic_lengthscale = 2.3, scale
    if drift_order is not None:
        made.lengthscale = 4.0
    return made


@pytest.mark.parametrize("scale", [0.06, 0.8, 30.0])
def test_a_periodic_kernel_less_its_mean(scale):
    plain = PeriodicKernel().double()
    # A plain number would be rounded to single precision.
    plain.period_length, plain.lengthscale = torch.tensor([2.3, scale], dtype=torch.float64)
    period = torch.linspace(0, 2.3, 1001, dtype=torch.float64)[:-1].unsqueeze(-1)
    mean = plain(period[:1], period).to_dense().mean()
    expected = (plain(TIMES).to_dense() - mean) / (1 - mean)
    assert torch.allclose(kernel(scale=scale)(TIMES).to_dense(), expected, atol=1e-7)


def test_draws_are_zero_on_average():
    period = torch.linspace(0, 2.3, 51, dtype=torch.float64)[:-1].unsqueeze(-1)
    covariance = kernel()(period).to_dense()
    assert covariance.sum().abs() < 1e-9 * covariance.diagonal().sum()


@pytest.mark.parametrize("drift_order", [None, 0, 1])
@pytest.mark.parametrize("scale", [0.06, 0.8, 1e4])
def test_state_space_equals_dense(drift_order, scale):
    gp = GaussianProcess(kernel(drift_order, scale))
    sites = Sites(torch.sin(3 * TIMES[:, 0]), torch.full((len(TIMES),), 4.0).double())
    states, dense = (a.prior(gp, TIMES).condition(sites) for a in (StateSpace(), Exact()))
    assert torch.allclose(states.log_partition, dense.log_partition, atol=1e-4)
    new = TIMES + 0.21
    for name in ("mean", "variance"):
        found, wanted = (getattr(p.predict(new), name) for p in (states, dense))
        assert torch.allclose(found, wanted, atol=1e-5)


def test_drift_multiplies_by_a_matern():
    decay = (3**0.5 * (TIMES - TIMES.mT).abs() / 4.0).double()
    expected = kernel()(TIMES).to_dense() * (1 + decay) * torch.exp(-decay)
    assert torch.allclose(kernel(1)(TIMES).to_dense(), expected)


def test_labels_and_states():
    assert as_state_space(kernel()).labels == ("season",)
    assert as_state_space(kernel(1)).labels == ("quasi_season",)
    assert as_state_space(kernel(1)).dimension == 2 * as_state_space(kernel()).dimension


def test_patterns_have_a_least_width():
    assert not hasattr(kernel(), "lengthscale") or kernel().lengthscale is None
    lower = kernel().raw_periodic_lengthscale_constraint.lower_bound
    assert lower.item() == pytest.approx(0.05)
    free = SeasonalKernel(periodic_lengthscale_constraint=GreaterThan(0.2))
    assert free.raw_periodic_lengthscale_constraint.lower_bound.item() == pytest.approx(0.2)


def test_gradients():
    made = kernel(1)
    weights = torch.linspace(-1, 2, 23 * 23, dtype=torch.float64).view(23, 23)
    (weights * made(TIMES).to_dense()).sum().backward()
    dense = {name: p.grad.clone() for name, p in made.named_parameters()}
    assert all(bool(grad.abs().sum() > 0) for grad in dense.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_batch_and_copies(dtype):
    made = SeasonalKernel(1, batch_shape=torch.Size([2])).to(dtype)
    made.period_length = torch.tensor([1.0, 2.3], dtype=dtype)
    value = made(TIMES.to(dtype)).to_dense()
    assert value.shape == (2, 23, 23) and value.dtype == dtype
    for copy in (pickle.loads(pickle.dumps(made)), deepcopy(made)):
        assert torch.equal(copy(TIMES.to(dtype)).to_dense(), value)
    fresh = SeasonalKernel(1, batch_shape=torch.Size([2])).to(dtype)
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(fresh(TIMES.to(dtype)).to_dense(), value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must lie in"),
        ({"drift_order": 9}, "order"),
        ({"lengthscale_prior": GammaPrior(2.0, 1.0)}, "has no lengthscale"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        SeasonalKernel(**options)

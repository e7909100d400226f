"""Our own kernels with a state-space form: dense and Markov agree, and each is a good GPyTorch kernel."""

import pickle
from copy import deepcopy
from unittest import TestCase

import gpytorch
import pytest
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import CosineKernel, Kernel, MaternKernel, PeriodicKernel, ScaleKernel
from gpytorch.priors import GammaPrior
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import (
    FractionalBrownianKernel,
    FractionalOUKernel,
    HalfIntegerMaternKernel,
    HidaMaternKernel,
    HidaMaternMixture,
    IntegratedWienerKernel,
    MarkovFractionalBrownianKernel,
    QuasiPeriodicKernel,
    SpaceTimeKernel,
    StateSpaceKernel,
    as_state_space,
)


class TestHalfIntegerMaternConformance(BaseKernelTestCase, TestCase):
    """GPyTorch's own test case for kernels."""

    def create_kernel_no_ard(self, **kwargs) -> HalfIntegerMaternKernel:
        return HalfIntegerMaternKernel(order=3, **kwargs)

    def create_kernel_ard(self, num_dims, **kwargs) -> HalfIntegerMaternKernel:
        return HalfIntegerMaternKernel(order=1, ard_num_dims=num_dims, **kwargs)


def stamps() -> torch.Tensor:
    """Irregular, with one pair of equal stamps, none before zero."""
    generator = torch.Generator().manual_seed(0)
    time = torch.rand(8, generator=generator, dtype=torch.float64).cumsum(0)
    time[3] = time[2]
    return time.unsqueeze(-1)


def randomised(kernel: Kernel) -> Kernel:
    kernel = kernel.double()
    generator = torch.Generator().manual_seed(1)
    for parameter in kernel.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
    return kernel


BATCH = torch.Size([2])
# What makes one, and the largest relative difference between both forms.
KERNELS = {
    **{
        f"matern order {p}": (lambda p=p, **o: HalfIntegerMaternKernel(p, **o), 1e-12)
        for p in (0, 3, 8)
    },
    **{f"hida order {p}": (lambda p=p, **o: HidaMaternKernel(p, **o), 1e-12) for p in (0, 1, 2)},
    "hida mixture": (lambda **o: HidaMaternMixture(3, order=2, **o), 1e-12),
    "quasi-periodic": (lambda **o: QuasiPeriodicKernel(2, 1e-15, **o), 1e-12),
    "wiener": (lambda **o: IntegratedWienerKernel(0, **o), 1e-12),
    "integrated wiener": (lambda **o: IntegratedWienerKernel(2, -1.0, (0.5, 0.0, 2.0), **o), 1e-12),
    "fractional I": (lambda **o: MarkovFractionalBrownianKernel(10, "I", 5.0, **o), 1e-10),
    "fractional II": (lambda **o: MarkovFractionalBrownianKernel(10, "II", 5.0, **o), 1e-12),
    "fractional one": (lambda **o: MarkovFractionalBrownianKernel(1, "II", 5.0, **o), 1e-12),
    "fractional OU I": (lambda **o: FractionalOUKernel(6, "I", 5.0, **o), 1e-12),
    "fractional OU II": (lambda **o: FractionalOUKernel(6, "II", 5.0, -1.0, **o), 1e-12),
}


@pytest.mark.parametrize("batch_shape", [(), (2,), (3, 1)])
@pytest.mark.parametrize("name", KERNELS)
def test_dense_and_state_space_agree(name, batch_shape, state_space_covariance):
    make, limit = KERNELS[name]
    kernel, x = randomised(make(batch_shape=torch.Size(batch_shape))), stamps()
    assert isinstance(kernel, StateSpaceKernel)
    dense = kernel(x).to_dense()
    assert dense.shape == (*batch_shape, 8, 8)
    found = state_space_covariance(kernel.state_space(), x)
    assert (found - dense).abs().max() < limit * dense.abs().max()
    assert torch.allclose(kernel(x, diag=True), dense.diagonal(dim1=-2, dim2=-1), rtol=1e-13)
    assert torch.linalg.eigvalsh(dense).min() > -1e-12 * dense.abs().max()


@pytest.mark.parametrize("name", KERNELS)
def test_gradients_reach_every_parameter(name, state_space_covariance):
    make, limit = KERNELS[name]
    kernel, x = randomised(make(batch_shape=BATCH)), stamps()[[0, 2, 4, 7]]
    weights = torch.linspace(-1, 2, 16, dtype=torch.float64).reshape(4, 4)
    parameters = list(kernel.parameters())
    ours = (weights * state_space_covariance(kernel.state_space(), x)).sum()
    dense = (weights * kernel(x).to_dense()).sum()
    pairs = zip(*(torch.autograd.grad(value, parameters) for value in (ours, dense)), strict=True)
    for one, other in pairs:
        assert one.abs().min() > 0
        assert torch.allclose(one, other, rtol=1e4 * limit, atol=1e4 * limit)


@pytest.mark.parametrize("name", KERNELS)
def test_gradients_of_the_dense_kernel(name):
    kernel, x = randomised(KERNELS[name][0]()), stamps()[[0, 2, 3, 7]]
    names = [key for key, _ in kernel.named_parameters()]

    def values(*parameters):
        call = torch.func.functional_call
        found = call(kernel, dict(zip(names, parameters, strict=True)), (x, x), {"diag": False})
        return found.to_dense()

    with gpytorch.settings.lazily_evaluate_kernels(False):
        assert torch.autograd.gradcheck(values, tuple(kernel.parameters()), rtol=2e-3)


@pytest.mark.parametrize("name", KERNELS)
def test_single_precision(name):
    kernel, x = KERNELS[name][0](), stamps().float()
    model = kernel.state_space().model()
    dt = torch.diff(x[:, 0])
    for value in (model.transition(dt), model.process_noise(dt), model.initial(x[:1, 0])):
        assert value.dtype == torch.float32 and value.isfinite().all()
    exact = deepcopy(kernel).double()
    dense = exact(x.double()).to_dense()
    assert torch.allclose(
        kernel(x).to_dense().double(), dense, atol=2e-2 * dense.abs().max().item()
    )
    assert kernel(x).to_dense().dtype == torch.float32


@pytest.mark.parametrize("name", KERNELS)
def test_copies_keep_the_values(name):
    make, _ = KERNELS[name]
    kernel, x = randomised(make(batch_shape=BATCH)), stamps()
    loaded = make(batch_shape=BATCH).double()
    loaded.load_state_dict(kernel.state_dict())
    for copy in (pickle.loads(pickle.dumps(kernel)), deepcopy(kernel), loaded):
        assert torch.equal(copy(x).to_dense(), kernel(x).to_dense())
        assert copy.state_space().labels == kernel.state_space().labels


@pytest.mark.parametrize("name", KERNELS)
def test_batches_are_indexed_and_expanded(name):
    make, _ = KERNELS[name]
    kernel = randomised(make(batch_shape=torch.Size([3]), active_dims=(1,)))
    x = torch.cat([torch.zeros(8, 1).double(), stamps()], -1)
    dense = kernel(x).to_dense()
    for index in (1, slice(1, 3), torch.tensor([2, 0])):
        part = kernel[index]
        assert part.batch_shape == torch.zeros(3)[index].shape
        assert torch.allclose(part(x).to_dense(), dense[index], rtol=1e-13)
    expanded = kernel.expand_batch(2, 3)
    assert expanded.batch_shape == (2, 3) and kernel.expand_batch(torch.Size([3])) is kernel
    assert torch.allclose(expanded(x).to_dense(), dense.expand(2, 3, 8, 8), rtol=1e-13)
    expanded(x).to_dense().sum().backward()
    torch.optim.SGD(expanded.parameters(), lr=0.1).step()
    with pytest.raises(InputError, match=r"\(3,\) cannot be expanded to \(2,\)"):
        kernel.expand_batch(2)
    assert kernel.state_space().time_dim == as_state_space(kernel).time_dim == 1
    unbatched = make().double()
    assert unbatched[0] is unbatched


@pytest.mark.parametrize("name", KERNELS)
def test_inputs_with_batches(name):
    kernel = randomised(KERNELS[name][0](batch_shape=BATCH))
    x1 = stamps().expand(3, 1, 8, 1) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    x2 = stamps()[:5]
    dense = kernel(x1, x2).to_dense()
    assert dense.shape == (3, 2, 8, 5)
    assert torch.allclose(dense[2, 1], kernel[1](x1[2, 0], x2).to_dense(), rtol=1e-12)


@pytest.mark.filterwarnings("ignore:The last_dim_is_batch argument:DeprecationWarning")
def test_one_matrix_for_each_column():
    kernel = randomised(HidaMaternKernel(1, batch_shape=BATCH))
    x = torch.cat([stamps(), 2.0 * stamps()], -1)
    matrices = kernel(x, last_dim_is_batch=True).to_dense()
    diagonals = kernel(x, diag=True, last_dim_is_batch=True)
    assert matrices.shape == (2, 2, 8, 8) and diagonals.shape == (2, 2, 8)
    for column in range(2):
        assert torch.allclose(matrices[:, column], kernel(x[:, [column]]).to_dense())


@pytest.mark.parametrize("name", KERNELS)
def test_priors_and_constraints(name):
    kernel = KERNELS[name][0]()
    parameter = next(iter(dict(kernel.named_parameters()))).removeprefix("raw_")
    argument = {"variances": "variance", "lengthscales": "lengthscale"}.get(parameter, parameter)
    options = {
        f"{argument}_prior": GammaPrior(2.0, 1.0),
        f"{argument}_constraint": GreaterThan(0.1),
    }
    kernel = KERNELS[name][0](**options).double()
    (_, module, prior, closure, setter) = next(iter(kernel.named_priors()))
    assert torch.equal(closure(module), getattr(kernel, parameter))
    setter(module, 0.7)
    expected = torch.full_like(getattr(kernel, parameter), 0.7)
    assert torch.allclose(getattr(kernel, parameter), expected, rtol=1e-6)
    assert torch.isfinite(prior.log_prob(closure(module))).all()
    assert torch.equal(
        getattr(pickle.loads(pickle.dumps(kernel)), parameter), getattr(kernel, parameter)
    )
    if parameter != "lengthscale":  # which GPyTorch's base class checks in its own words
        with pytest.raises(InputError, match=f"{parameter}_prior must be a gpytorch"):
            KERNELS[name][0](**{f"{argument}_prior": 3.0})


class OneKernelGP(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood, kernel):
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), kernel

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@pytest.mark.parametrize("name", KERNELS)
def test_exact_gp(name):
    x = torch.linspace(0.1, 4, 12, dtype=torch.float64).unsqueeze(-1)
    y, likelihood = torch.sin(3 * x[:, 0]), gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = 0.1
    model = OneKernelGP(x, y, likelihood, ScaleKernel(KERNELS[name][0]())).double()
    model.train(), likelihood.train()
    loss = -gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)(model(x), y)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    model.eval(), likelihood.eval()
    K = model.covar_module(x).to_dense()
    new = x[:5] + 0.07
    across = model.covar_module(new, x).to_dense()
    mean = across @ torch.linalg.solve(K + likelihood.noise * torch.eye(12).double(), y)
    assert torch.allclose(model(new).mean, mean, atol=1e-6)


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
def test_half_integer_matern_extends_gpytorch(nu):
    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs, ours = MaternKernel(nu=nu, ard_num_dims=3), HalfIntegerMaternKernel(int(nu - 0.5), 3)
    lengthscale = torch.tensor([0.5, 1.0, 2.0])
    theirs, ours = (k.double().initialize(lengthscale=lengthscale) for k in (theirs, ours))
    assert torch.allclose(ours(x).to_dense(), theirs(x).to_dense(), atol=1e-7)
    with pytest.raises(UnsupportedError, match="ard_num_dims=3"):
        ours.state_space()


def test_hida_and_quasi_periodic_are_products_of_gpytorch_kernels():
    x = stamps()
    hida, matern = HidaMaternKernel(1).double(), MaternKernel(nu=1.5).double()
    cosine = (
        CosineKernel()
        .double()
        .initialize(period_length=torch.tensor(torch.pi / 2.0, dtype=torch.float64))
    )
    hida.frequency, hida.lengthscale, matern.lengthscale = 2.0, 0.8, 0.8
    assert torch.allclose(hida(x).to_dense(), (cosine * matern)(x).to_dense(), atol=1e-12)
    seasonal, periodic = QuasiPeriodicKernel(1).double(), PeriodicKernel().double()
    period, smoothness = torch.tensor([1.3, 0.6]).double()
    seasonal.period_length, seasonal.periodic_lengthscale = period, smoothness
    seasonal.lengthscale, periodic.period_length, periodic.lengthscale = 0.8, period, smoothness
    assert torch.allclose(seasonal(x).to_dense(), (periodic * matern)(x).to_dense(), atol=1e-12)


def test_quasi_periodic_is_cut_off_at_its_tolerance(state_space_covariance):
    kernel, x = randomised(QuasiPeriodicKernel(1, tolerance=1e-3)), stamps()
    form = kernel.state_space()
    error = (state_space_covariance(form, x) - kernel(x).to_dense()).abs().max()
    assert 1e-8 < error < 2e-3
    assert form.dimension < randomised(QuasiPeriodicKernel(1)).state_space().dimension


def test_integrated_wiener_is_an_integral():
    kernel = IntegratedWienerKernel(1, initial_variances=(0.0, 0.0)).double()
    kernel.variance = 2.0
    u = torch.linspace(0, 3, 40001, dtype=torch.float64)
    integrand = (1.0 - u).clamp_min(0.0) * (3.0 - u)
    value = kernel(torch.tensor([[1.0]]).double(), torch.tensor([[3.0]]).double()).to_dense()
    assert torch.allclose(value[0, 0], 2.0 * torch.trapezoid(integrand, u), rtol=1e-7)
    assert not kernel.is_stationary and not torch.allclose(value[0, 0], torch.zeros(()).double())


def test_own_kernels_in_sums_and_products(state_space_covariance):
    kernel = (
        HidaMaternKernel(1) * ScaleKernel(HidaMaternMixture(2, order=0))
        + IntegratedWienerKernel(1) * CosineKernel()
        + HalfIntegerMaternKernel(3) * QuasiPeriodicKernel(0, 1e-14)
    )
    kernel, x = randomised(kernel), stamps()
    form = as_state_space(kernel)
    assert form.labels == (
        "hida_matern32 * hida_matern12_mixture",
        "integrated_wiener1 * cosine",
        "matern72 * quasi_periodic",
    )
    dense = kernel(x).to_dense()
    assert (state_space_covariance(form, x) - dense).abs().max() < 1e-12 * dense.abs().max()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: HalfIntegerMaternKernel(9), "order must be an integer from 0 to 8, got 9"),
        (lambda: HalfIntegerMaternKernel(1.5), "order must be an integer"),
        (lambda: HidaMaternMixture(0), "num_components must be at least 1"),
        (lambda: HidaMaternMixture(2.0), "num_components must be an integer"),
        (lambda: QuasiPeriodicKernel(tolerance=0.0), "tolerance must lie"),
        (lambda: IntegratedWienerKernel(1, initial_variances=(1.0,)), "must be 2 numbers"),
        (lambda: IntegratedWienerKernel(0, initial_variances=(-1.0,)), "not negative"),
        (lambda: IntegratedWienerKernel(0, origin=float("nan")), "origin must be finite"),
        (lambda: FractionalBrownianKernel("III"), 'kind must be "I" or "II"'),
        (lambda: MarkovFractionalBrownianKernel(0), "num_processes must be"),
        (lambda: MarkovFractionalBrownianKernel(horizon=0.0), "horizon must be positive"),
        (lambda: FractionalOUKernel(largest_rate=0.5), "largest_rate must be"),
        (lambda: HidaMaternKernel(1)(torch.zeros(3, 2)).to_dense(), "kernel of one column, got 2"),
        (lambda: IntegratedWienerKernel(1)(-torch.ones(3, 1)).to_dense(), "a time -1 before"),
        (lambda: FractionalOUKernel()(-torch.ones(3, 1)).to_dense(), "a time -1 before"),
    ],
)
def test_errors(make, message):
    with pytest.raises(InputError, match=message):
        make()


# Places in space


PLACES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)


def in_space(batch_shape=(), **options) -> SpaceTimeKernel:
    time = ScaleKernel(MaternKernel(nu=1.5, batch_shape=torch.Size(batch_shape)))
    return randomised(
        SpaceTimeKernel(time + HidaMaternKernel(1), gpytorch.kernels.RBFKernel(), PLACES, **options)
    )


def rows_in_space() -> torch.Tensor:
    return torch.cat([stamps(), PLACES[torch.tensor([0, 1, 2, 1, 0, 0, 2, 1])]], -1)


@pytest.mark.parametrize("batch_shape", [(), (2,)])
def test_space_time_agrees_with_its_dense_form(batch_shape, state_space_covariance):
    kernel, x = in_space(batch_shape), rows_in_space()
    form, dense = kernel.state_space(), kernel(x).to_dense()
    assert form.needs_rows and form.dimension == 3 * 6 and form.time_dim == 0
    assert (state_space_covariance(form, x) - dense).abs().max() < 1e-12
    assert torch.allclose(kernel(x, diag=True), dense.diagonal(dim1=-2, dim2=-1))
    product = kernel * ScaleKernel(PeriodicKernel(active_dims=(0,))).double()
    product = product + MaternKernel(nu=0.5, active_dims=(0,)).double()
    form = as_state_space(product, periodic_tolerance=1e-14)
    assert form.labels[1] == "matern12"
    assert torch.allclose(state_space_covariance(form, x), product(x).to_dense(), atol=1e-12)


def test_space_time_with_other_columns(state_space_covariance):
    kernel, x = in_space(active_dims=(2, 3, 0)), rows_in_space()
    x = torch.cat([x[:, 2:], torch.zeros(8, 1).double(), x[:, :2]], -1)
    for whole in (kernel, ScaleKernel(kernel).double()):
        form = as_state_space(whole)
        assert form.time_dim == 2
        assert torch.allclose(state_space_covariance(form, x), whole(x).to_dense(), atol=1e-12)


def test_space_time_gradients_copies_and_batches(state_space_covariance):
    kernel, x = in_space((2,)), rows_in_space()
    parameters = list(kernel.parameters())
    dense = torch.autograd.grad(kernel(x).to_dense().square().sum(), parameters)
    ours = state_space_covariance(kernel.state_space(), x).square().sum()
    for one, other in zip(torch.autograd.grad(ours, parameters), dense, strict=True):
        assert torch.allclose(one, other, rtol=1e-9)
    for copy in (deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert torch.equal(copy(x).to_dense(), kernel(x).to_dense())
    assert torch.equal(kernel.state_dict()["places"], PLACES)
    assert torch.allclose(kernel[1](x).to_dense(), kernel(x).to_dense()[1])
    assert kernel.expand_batch(torch.Size([3, 2])).batch_shape == (3, 2)


def test_space_time_errors():
    kernel, x = in_space(), rows_in_space()
    form = kernel.state_space()
    with pytest.raises(InputError, match="pass the rows x"):
        form.model()
    unknown = x.clone()
    unknown[4, 2] = 0.5
    with pytest.raises(InputError, match=r"Row 4 is at the place \[0.0, 0.5\].* 3 places"):
        form.model(unknown)
    with pytest.raises(InputError, match="takes 3 columns"):
        kernel(x[:, :2]).to_dense()
    with pytest.raises(InputError, match="every place once"):
        SpaceTimeKernel(MaternKernel(), MaternKernel(), PLACES[[0, 0]])
    with pytest.raises(InputError, match="shape"):
        SpaceTimeKernel(MaternKernel(), MaternKernel(), PLACES[0])
    with pytest.raises(InputError, match="finite"):
        SpaceTimeKernel(MaternKernel(), MaternKernel(), PLACES * torch.nan)
    with pytest.raises(UnsupportedError, match="RQKernel"):
        SpaceTimeKernel(gpytorch.kernels.RQKernel(), MaternKernel(), PLACES)
    with pytest.raises(UnsupportedError, match="depends on the row"):
        linear = gpytorch.kernels.LinearKernel()
        SpaceTimeKernel(linear * MaternKernel(), MaternKernel(), PLACES)
    with pytest.raises(UnsupportedError, match="different columns"):
        as_state_space(kernel + MaternKernel())

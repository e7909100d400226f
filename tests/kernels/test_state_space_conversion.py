"""Forms of GPyTorch's kernels: equal to the dense kernels, complete, and refused where there is none."""

import math

import gpytorch
import pytest
import torch
from gpytorch.kernels import (
    ConstantKernel,
    CosineKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    PolynomialKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
    SpectralMixtureKernel,
)
from scipy.special import ive

import gpvi.kernels
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import (
    HammingKernel,
    IntegratedWienerKernel,
    PowerKernel,
    StateSpaceForm,
    WhiteKernel,
    as_state_space,
    has_state_space,
)
from gpvi.kernels._harmonics import harmonic_variances
from gpvi.linalg.markov.blocks import CascadeBlock
from gpvi.linalg.markov.dense_blocks import KroneckerBlock


def stamps(rows: int = 8) -> torch.Tensor:
    """Irregular, with one pair of equal stamps."""
    generator = torch.Generator().manual_seed(0)
    time = torch.rand(rows, generator=generator, dtype=torch.float64).cumsum(0) - 1.5
    time[3] = time[2]
    return time.unsqueeze(-1)


def randomised(kernel: Kernel) -> Kernel:
    """With parameters that are all different."""
    kernel = kernel.double()
    generator = torch.Generator().manual_seed(1)
    for parameter in kernel.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
    return kernel


BATCH = torch.Size([2])
EXACT = {
    "matern12": lambda: MaternKernel(nu=0.5),
    "matern32": lambda: ScaleKernel(MaternKernel(nu=1.5)),
    "matern52": lambda: MaternKernel(nu=2.5, batch_shape=BATCH),
    "scaled batch": lambda: ScaleKernel(MaternKernel(batch_shape=BATCH), batch_shape=BATCH),
    "batched scale": lambda: ScaleKernel(MaternKernel(), batch_shape=BATCH),
    "cosine": CosineKernel,
    "constant": lambda: ConstantKernel(batch_shape=BATCH),
    "linear": LinearKernel,
    "own linear": lambda: gpvi.kernels.LinearKernel(batch_shape=BATCH),
    "periodic": lambda: PeriodicKernel(batch_shape=BATCH),
    "polynomial": lambda: PolynomialKernel(power=3),
    "sum": lambda: (
        MaternKernel(nu=1.5) + CosineKernel() + gpvi.kernels.LinearKernel() + ConstantKernel()
    ),
    "scaled sum": lambda: ScaleKernel(MaternKernel(nu=1.5) + CosineKernel()),
    "constant x matern": lambda: ConstantKernel() * MaternKernel(nu=1.5),
    "cosine x cosine": lambda: CosineKernel() * CosineKernel(),
    "cosine x cosine x matern": lambda: CosineKernel() * MaternKernel(nu=1.5) * CosineKernel(),
    "matern x matern": lambda: MaternKernel(nu=1.5, batch_shape=BATCH) * MaternKernel(nu=0.5),
    "matern^3": lambda: PowerKernel(MaternKernel(nu=1.5), power=3),
    "linear^3": lambda: PowerKernel(LinearKernel(), power=3),
    "linear x linear": lambda: LinearKernel() * gpvi.kernels.LinearKernel(),
    "linear x periodic": lambda: LinearKernel() * PeriodicKernel(),
    "linear x matern": lambda: LinearKernel() * MaternKernel(nu=2.5, batch_shape=BATCH),
    "linear x cosine x matern": lambda: LinearKernel() * CosineKernel() * MaternKernel(nu=0.5),
    "polynomial x matern x matern": lambda: (
        PolynomialKernel(power=2) * MaternKernel(nu=0.5) * MaternKernel(nu=1.5)
    ),
    "periodic x matern": lambda: ScaleKernel(PeriodicKernel() * MaternKernel(nu=1.5)),
    "(sum) x matern": lambda: (ConstantKernel() + CosineKernel()) * MaternKernel(nu=0.5),
}


@pytest.mark.parametrize("name", EXACT)
def test_equals_the_dense_kernel(name, state_space_covariance):
    kernel, x = randomised(EXACT[name]()), stamps()
    form = as_state_space(kernel, periodic_tolerance=1e-14)
    dense = kernel(x).to_dense()
    error = (state_space_covariance(form, x) - dense).abs().max() / dense.abs().max()
    assert error < 2e-13
    assert torch.broadcast_shapes(form.model(x).batch_shape, kernel.batch_shape) == (
        kernel.batch_shape
    )


@pytest.mark.parametrize(
    "order, limit", [(2, 5.6e-2), (4, 1.2e-2), (6, 2.6e-3), (8, 6.1e-4), (10, 1.5e-4)]
)
def test_rbf_error_is_the_documented_one(order, limit):
    form = as_state_space(RBFKernel().double().initialize(lengthscale=0.7), rbf_order=order)
    tau = torch.linspace(0, 6, 2001, dtype=torch.float64)
    (block,) = form.blocks
    values = (block.transition(tau) @ block.initial(tau[:1]))[:, 0, 0]
    error = (values - torch.exp(-0.5 * (tau / 0.7) ** 2)).abs().max()
    assert 0.9 * limit < error < limit
    assert block.dimension == order


@pytest.mark.parametrize(
    "make",
    [
        lambda: ScaleKernel(RBFKernel(batch_shape=BATCH)),
        lambda: RBFKernel() * CosineKernel(),
        lambda: RBFKernel() * MaternKernel(nu=1.5),
        lambda: SpectralMixtureKernel(num_mixtures=2, batch_shape=BATCH),
    ],
)
def test_what_holds_an_rbf_comes_close(make, state_space_covariance):
    kernel, x = randomised(make()), stamps()
    dense = kernel(x).to_dense()
    found = state_space_covariance(as_state_space(kernel, rbf_order=10), x)
    assert (found - dense).abs().max() < 2e-4 * dense.abs().max()


@pytest.mark.parametrize("lengthscale", [5.0, 1.0, 0.3, 0.05, 0.01])
def test_harmonics_are_bessel_functions(lengthscale):
    variances = harmonic_variances(torch.tensor(lengthscale, dtype=torch.float64), 1e-10)
    count = variances.shape[-1]
    bessel = 2.0 * torch.as_tensor(ive(range(count), 1.0 / lengthscale))
    bessel[0] /= 2.0
    assert torch.allclose(variances, bessel, rtol=1e-9, atol=1e-13)
    assert 1.0 - bessel.sum() < 1e-10 <= 1.0 - bessel[:-1].sum()


def test_harmonics_are_differentiable_and_work_in_single_precision():
    lengthscale = torch.tensor([0.4, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(harmonic_variances, (lengthscale, 1e-8))
    single = harmonic_variances(torch.tensor(0.4), 1e-6)
    assert single.dtype == torch.float32
    double = harmonic_variances(torch.tensor(0.4, dtype=torch.float64), 1e-6)
    assert torch.allclose(single.double(), double, atol=1e-6)


def test_a_pattern_that_is_too_sharp_is_refused():
    kernel = PeriodicKernel().initialize(lengthscale=1e-4)
    with pytest.raises(UnsupportedError, match="128 harmonics"):
        as_state_space(kernel)


def test_cascades_stay_cascades():
    kernel = ScaleKernel(PeriodicKernel()) * MaternKernel(nu=1.5) + LinearKernel() * CosineKernel()
    assert all(isinstance(block, CascadeBlock) for block in as_state_space(kernel).blocks)
    (product,) = as_state_space(MaternKernel(nu=1.5) * MaternKernel(nu=2.5)).blocks
    assert isinstance(product, KroneckerBlock) and product.dimension == 6


def test_labels_and_terms():
    kernel = (
        MaternKernel(nu=1.5)
        + ScaleKernel(PeriodicKernel() * MaternKernel(nu=0.5))
        + ScaleKernel(MaternKernel(nu=1.5))
        + PowerKernel(LinearKernel(), power=2)
        + ScaleKernel(ConstantKernel() + CosineKernel())
    )
    form = as_state_space(kernel)
    assert form.labels == (
        "matern32",
        "periodic * matern12",
        "matern32 (2)",
        "linear^2",
        "constant + cosine",
    )
    masks = torch.stack([form.component(term) for term in range(5)])
    assert torch.equal(masks.sum(0), torch.ones(form.dimension))
    assert masks.sum(1).tolist()[2:] == [2, 3, 3]


def test_a_component_has_the_covariance_of_its_term(state_space_covariance):
    kernel, x = randomised(MaternKernel(nu=1.5) + LinearKernel() * MaternKernel(nu=0.5)), stamps()
    form = as_state_space(kernel)
    for term, part in enumerate(kernel.kernels):
        chosen = [i for i, number in enumerate(form.terms) if number == term]
        alone = StateSpaceForm(
            tuple(form.blocks[i] for i in chosen),
            (0,) * len(chosen),
            (form.labels[term],),
            weights=tuple(form.weights[i] for i in chosen),
        )
        assert torch.allclose(state_space_covariance(alone, x), part(x).to_dense(), atol=1e-12)


def test_gradients_reach_every_parameter():
    kernel = (
        ScaleKernel(PeriodicKernel()) * MaternKernel(nu=1.5)
        + ScaleKernel(RBFKernel() * CosineKernel())
        + LinearKernel() * MaternKernel(nu=0.5)
        + ConstantKernel()
        + PolynomialKernel(power=2)
        + SpectralMixtureKernel(num_mixtures=2)
    )
    kernel, x = randomised(kernel), stamps()
    model = as_state_space(kernel).model(x)
    dt = torch.diff(x[:, 0])
    total = model.transition(dt).sum() + model.process_noise(dt).square().sum()
    total = total + model.initial(x[:1, 0]).square().sum() + model.rows.sum()
    gradients = torch.autograd.grad(total, list(kernel.parameters()))
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)


def test_gradients_are_those_of_the_dense_kernel(state_space_covariance):
    kernel = randomised(
        ScaleKernel(PeriodicKernel()) * MaternKernel(nu=1.5) + LinearKernel() * CosineKernel()
    )
    x, parameters = stamps(), list(kernel.parameters())
    weights = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(8, 8)
    form = as_state_space(kernel, periodic_tolerance=1e-14)
    ours = torch.autograd.grad((weights * state_space_covariance(form, x)).sum(), parameters)
    dense = torch.autograd.grad((weights * kernel(x).to_dense()).sum(), parameters)
    assert all(
        torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(ours, dense, strict=True)
    )


def test_single_precision():
    kernel = ScaleKernel(MaternKernel(nu=2.5) * PeriodicKernel()) + LinearKernel() + RBFKernel()
    model = as_state_space(kernel).model()
    dt = torch.tensor([0.0, 1e-3, 0.5])
    for value in (model.transition(dt), model.process_noise(dt), model.initial(dt[:1])):
        assert value.dtype == torch.float32 and value.isfinite().all()
    assert torch.equal(model.process_noise(dt)[0], torch.zeros_like(model.process_noise(dt)[0]))


def test_the_time_column():
    assert as_state_space(MaternKernel(active_dims=(2,)) + ConstantKernel()).time_dim == 2
    kernel = ScaleKernel(MaternKernel(active_dims=(1,))) * PeriodicKernel(active_dims=(1,))
    assert as_state_space(kernel).time_dim == 1
    assert as_state_space(MaternKernel()).time_dim == 0


REFUSED = [
    (RQKernel(), "RQKernel .* sum of Materns .* RBF"),
    (MaternKernel() + WhiteKernel(), "WhiteKernel .* likelihood"),
    (ScaleKernel(MaternKernel() * HammingKernel()), r"HammingKernel .*groups"),
    (MaternKernel(ard_num_dims=2), "MaternKernel with ard_num_dims=2 .* one column"),
    (PeriodicKernel(active_dims=(0, 1)), r"active_dims=\(0, 1\) .* one column"),
    (MaternKernel(active_dims=(0,)) + MaternKernel(active_dims=(1,)), "different columns"),
    (MaternKernel() * CosineKernel(active_dims=(1,)), "different columns"),
    (IntegratedWienerKernel() * MaternKernel(), "starts at an origin"),
    (gpytorch.kernels.PiecewisePolynomialKernel(), "PiecewisePolynomialKernel .* Matern"),
]


@pytest.mark.parametrize("kernel, message", REFUSED)
def test_refusals_name_the_part(kernel, message):
    with pytest.raises(UnsupportedError, match=message):
        as_state_space(kernel)
    assert not has_state_space(kernel)


def test_a_subclass_is_unknown():
    class Sharper(MaternKernel):
        def forward(self, x1, x2, **params):
            return super().forward(x1, x2, **params) ** 2

    with pytest.raises(UnsupportedError, match=r"Sharper .* differ from MaternKernel"):
        as_state_space(Sharper())


# Every kernel that GPyTorch exports, with what makes one; None for the base class and the module.
GPYTORCH = {
    "keops": None,
    "Kernel": None,
    "ArcKernel": lambda: gpytorch.kernels.ArcKernel(RBFKernel()),
    "AdditiveKernel": lambda: MaternKernel() + MaternKernel(),
    "AdditiveStructureKernel": lambda: gpytorch.kernels.AdditiveStructureKernel(RBFKernel(), 2),
    "ConstantKernel": ConstantKernel,
    "CylindricalKernel": lambda: gpytorch.kernels.CylindricalKernel(2, RBFKernel()),
    "MultiDeviceKernel": lambda: gpytorch.kernels.MultiDeviceKernel(
        RBFKernel(), [torch.device("cpu")]
    ),
    "CosineKernel": CosineKernel,
    "DistributionalInputKernel": lambda: gpytorch.kernels.DistributionalInputKernel(torch.sub),
    "GaussianSymmetrizedKLKernel": gpytorch.kernels.GaussianSymmetrizedKLKernel,
    "GridKernel": lambda: gpytorch.kernels.GridKernel(RBFKernel(), [torch.arange(3.0)]),
    "GridInterpolationKernel": lambda: gpytorch.kernels.GridInterpolationKernel(
        RBFKernel(), 8, num_dims=1, grid_bounds=[(0.0, 1.0)]
    ),
    "HammingIMQKernel": lambda: gpytorch.kernels.HammingIMQKernel(3),
    "IndexKernel": lambda: gpytorch.kernels.IndexKernel(2),
    "InducingPointKernel": lambda: gpytorch.kernels.InducingPointKernel(
        RBFKernel(), torch.zeros(2, 1), gpytorch.likelihoods.GaussianLikelihood()
    ),
    "LCMKernel": lambda: gpytorch.kernels.LCMKernel([RBFKernel()], 2),
    "LinearKernel": LinearKernel,
    "MaternKernel": MaternKernel,
    "MultitaskKernel": lambda: gpytorch.kernels.MultitaskKernel(RBFKernel(), 2),
    "NewtonGirardAdditiveKernel": lambda: gpytorch.kernels.NewtonGirardAdditiveKernel(
        RBFKernel(), 2
    ),
    "PeriodicKernel": PeriodicKernel,
    "PiecewisePolynomialKernel": gpytorch.kernels.PiecewisePolynomialKernel,
    "PolynomialKernel": lambda: PolynomialKernel(power=2),
    "PolynomialKernelGrad": lambda: gpytorch.kernels.PolynomialKernelGrad(power=2),
    "ProductKernel": lambda: MaternKernel() * MaternKernel(),
    "ProductStructureKernel": lambda: gpytorch.kernels.ProductStructureKernel(RBFKernel(), 2),
    "RBFKernel": RBFKernel,
    "RFFKernel": lambda: gpytorch.kernels.RFFKernel(2, num_dims=1),
    "RBFKernelGrad": gpytorch.kernels.RBFKernelGrad,
    "RBFKernelGradGrad": gpytorch.kernels.RBFKernelGradGrad,
    "RQKernel": RQKernel,
    "ScaleKernel": lambda: ScaleKernel(MaternKernel()),
    "SpectralDeltaKernel": lambda: gpytorch.kernels.SpectralDeltaKernel(1),
    "SpectralMixtureKernel": lambda: SpectralMixtureKernel(num_mixtures=2),
    "Matern52KernelGrad": gpytorch.kernels.Matern52KernelGrad,
}
CONVERTIBLE = {
    "AdditiveKernel",
    "ConstantKernel",
    "CosineKernel",
    "LinearKernel",
    "MaternKernel",
    "PeriodicKernel",
    "PolynomialKernel",
    "ProductKernel",
    "RBFKernel",
    "ScaleKernel",
    "SpectralMixtureKernel",
}


def test_the_list_of_kernels_is_complete():
    assert set(gpytorch.kernels.__all__) == set(GPYTORCH)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", [name for name, make in GPYTORCH.items() if make is not None])
def test_every_kernel_is_converted_or_refused_by_name(name):
    kernel = GPYTORCH[name]()
    if name in CONVERTIBLE:
        assert has_state_space(kernel)
        return
    with pytest.raises(UnsupportedError, match=f"{name} "):
        as_state_space(kernel)


@pytest.mark.parametrize(
    "options", [{"rbf_order": 5}, {"rbf_order": 12}, {"periodic_tolerance": 0.0}]
)
def test_options_are_checked(options):
    with pytest.raises(InputError, match=next(iter(options))):
        as_state_space(MaternKernel(), **options)
    with pytest.raises(InputError, match="gpytorch Kernel, got str"):
        as_state_space("matern32")


def test_default_periodic_form_is_small():
    kernel = PeriodicKernel().double().initialize(lengthscale=1.0)
    form = as_state_space(kernel)
    assert len(form.blocks) == 8
    total = sum(block.initial(torch.zeros(1).double())[0, 0, 0] for block in form.blocks)
    assert math.isclose(total.item(), 1.0, rel_tol=1e-12)

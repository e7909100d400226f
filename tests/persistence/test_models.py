"""Kernels, means, likelihoods, constraints, priors and posteriors keep computing the same."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpytorch import constraints, kernels, likelihoods, means, priors
from torch import Tensor

import gpvi.likelihoods
from gpvi.approximations import (
    Exact,
    GaussianProcess,
    InducingPoints,
    Marginals,
    Posterior,
    Sites,
    White,
)
from gpvi.exceptions import ModelFileError
from gpvi.inference import FitRecord
from gpvi.kernels import KERNELS, PowerKernel, WhiteKernel, parse_kernel
from gpvi.likelihoods import as_likelihood
from gpvi.likelihoods.censored import PositiveLikelihood
from gpvi.persistence import load_object, save_object
from gpvi.persistence.registry import CLASSES

RoundTrip = Callable[..., Any]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Repeatable normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def scatter(module: torch.nn.Module) -> torch.nn.Module:
    """Move every parameter away from its default."""
    for index, parameter in enumerate(module.parameters()):
        parameter.data += 0.1 * numbers(*parameter.shape, seed=index).to(parameter)
    return module


def assert_same_modules(loaded: torch.nn.Module, saved: torch.nn.Module) -> None:
    """The same tree with the same tensors under the same names, and nothing shared between them."""
    assert [(n, type(m)) for n, m in loaded.named_modules()] == [
        (n, type(m)) for n, m in saved.named_modules()
    ]
    for new, old in zip(loaded.modules(), saved.modules(), strict=True):
        assert set(vars(new)) == {k for k in vars(old) if not k.startswith("_cached")}
        assert new.training == old.training
        assert len(new._load_state_dict_pre_hooks) == len(old._load_state_dict_pre_hooks)
        assert new._non_persistent_buffers_set == old._non_persistent_buffers_set
    here, there = dict(loaded.named_parameters()), dict(saved.named_parameters())
    assert list(here) == list(there)
    for name, parameter in here.items():
        assert parameter.dtype == there[name].dtype
        assert torch.equal(parameter, there[name])
        assert parameter.requires_grad == there[name].requires_grad
        assert parameter.data_ptr() != there[name].data_ptr() or not parameter.numel()
    state, other = loaded.state_dict(), saved.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(state[name], other[name]) for name in state)
    loaded.load_state_dict(other)


RBF, MATERN = kernels.RBFKernel, kernels.MaternKernel
GPYTORCH_KERNELS: dict[str, Callable[[], kernels.Kernel]] = {
    "AdditiveKernel": lambda: RBF(active_dims=[0]) + MATERN(nu=0.5),
    "AdditiveStructureKernel": lambda: kernels.AdditiveStructureKernel(RBF(), num_dims=2),
    "ArcKernel": lambda: kernels.ArcKernel(MATERN(), angle_prior=priors.GammaPrior(0.5, 1.0)),
    "ConstantKernel": kernels.ConstantKernel,
    "CosineKernel": kernels.CosineKernel,
    "CylindricalKernel": lambda: kernels.CylindricalKernel(3, MATERN()),
    "GaussianSymmetrizedKLKernel": kernels.GaussianSymmetrizedKLKernel,
    "GridInterpolationKernel": lambda: kernels.GridInterpolationKernel(
        RBF(), grid_size=10, num_dims=2, grid_bounds=[(-4.0, 4.0)] * 2
    ),
    "GridKernel": lambda: kernels.GridKernel(RBF(), grid=[torch.linspace(0, 1, 5)]),
    "HammingIMQKernel": lambda: kernels.HammingIMQKernel(vocab_size=2),
    "IndexKernel": lambda: kernels.IndexKernel(num_tasks=3, prior=priors.LKJPrior(3, 1.0)),
    "InducingPointKernel": lambda: kernels.InducingPointKernel(
        RBF(), numbers(3, 2).float(), likelihoods.GaussianLikelihood()
    ),
    "LCMKernel": lambda: kernels.LCMKernel([RBF(), MATERN()], num_tasks=2, rank=1),
    "LinearKernel": lambda: kernels.LinearKernel(variance_prior=priors.GammaPrior(2.0, 1.0)),
    "Matern52KernelGrad": kernels.Matern52KernelGrad,
    "MaternKernel": lambda: MATERN(nu=1.5, ard_num_dims=2, batch_shape=torch.Size([2])),
    "MultitaskKernel": lambda: kernels.MultitaskKernel(RBF(), num_tasks=2),
    "NewtonGirardAdditiveKernel": lambda: kernels.NewtonGirardAdditiveKernel(RBF(), num_dims=2),
    "PeriodicKernel": lambda: kernels.PeriodicKernel(period_length_prior=priors.GammaPrior(2, 1)),
    "PiecewisePolynomialKernel": lambda: kernels.PiecewisePolynomialKernel(q=1),
    "PolynomialKernel": lambda: kernels.PolynomialKernel(power=2),
    "PolynomialKernelGrad": lambda: kernels.PolynomialKernelGrad(power=2),
    "ProductKernel": lambda: RBF() * MATERN(),
    "ProductStructureKernel": lambda: kernels.ProductStructureKernel(RBF(), num_dims=2),
    "RBFKernel": lambda: RBF(lengthscale_prior=priors.LogNormalPrior(0.0, 1.0)),
    "RBFKernelGrad": kernels.RBFKernelGrad,
    "RBFKernelGradGrad": kernels.RBFKernelGradGrad,
    "RFFKernel": lambda: kernels.RFFKernel(5, num_dims=2),
    "RQKernel": lambda: kernels.RQKernel(alpha_constraint=constraints.Interval(0.1, 5.0)),
    "ScaleKernel": lambda: kernels.ScaleKernel(RBF(), outputscale_prior=priors.NormalPrior(0, 1)),
    "SpectralDeltaKernel": lambda: kernels.SpectralDeltaKernel(num_dims=2),
    "SpectralMixtureKernel": lambda: kernels.SpectralMixtureKernel(num_mixtures=2, ard_num_dims=2),
}
# These hold a function of the user's or devices.
NOT_BUILT = {"Kernel", "DistributionalInputKernel", "MultiDeviceKernel", "keops"}
# Evaluated at inputs of their own kind only.
NOT_AT_X = {"GridKernel", "HammingIMQKernel", "IndexKernel", "InducingPointKernel"}


def test_kernel_table_is_complete() -> None:
    assert set(GPYTORCH_KERNELS) | NOT_BUILT == set(kernels.__all__)


@pytest.mark.filterwarnings("ignore:.*is deprecated, and will be removed:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", GPYTORCH_KERNELS)
def test_gpytorch_kernels(name: str, round_trip: RoundTrip) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kernel: Any = scatter(GPYTORCH_KERNELS[name]())
    loaded = round_trip(kernel)
    assert_same_modules(loaded, kernel)
    if name not in NOT_AT_X:
        x = 0.2 * numbers(4, 2).float()
        assert torch.equal(loaded(x).to_dense(), kernel(x).to_dense())
    for (*_, closure, setting), (*_, old, _) in zip(
        loaded.named_priors(), kernel.named_priors(), strict=True
    ):
        assert torch.equal(torch.as_tensor(closure(loaded)), torch.as_tensor(old(kernel)))
        if setting is not None:
            setting(loaded, 0.7)
            assert torch.allclose(closure(loaded), torch.tensor(0.7))
            assert not torch.allclose(old(kernel), torch.tensor(0.7))


TIMED = ["trend", "season(3)", "quasi_season(3, learn=True)", "cosine(3)", "hida(1, 3)"]
EXPRESSIONS = [
    *(name for name, entry in KERNELS.items() if not entry.one_column),
    *TIMED,
    "matern52 + linear",
    "rbf * periodic + white",
    "(rbf + matern12) * (linear + constant)",
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spec", EXPRESSIONS)
def test_kernel_expressions(spec: str, dtype: torch.dtype, round_trip: RoundTrip) -> None:
    columns = 1 if spec in TIMED else 2
    kernel: Any = scatter(parse_kernel(spec, columns, dtype=dtype))
    loaded = round_trip(kernel)
    assert_same_modules(loaded, kernel)
    x = numbers(5, columns).abs().to(dtype)
    value = loaded(x).to_dense()
    assert value.dtype == dtype and torch.equal(value, kernel(x).to_dense())
    value.sum().backward()
    assert all(
        parameter.grad is not None for parameter in loaded.parameters() if parameter.requires_grad
    )


def test_own_kernels_with_batches_and_priors(round_trip: RoundTrip) -> None:
    batch = torch.Size([2])
    white = WhiteKernel(batch_shape=batch, variance_prior=priors.GammaPrior(2.0, 1.0))
    kernel: Any = scatter(PowerKernel(RBF(batch_shape=batch), 2) + white)
    loaded = round_trip(kernel)
    assert_same_modules(loaded, kernel)
    x = numbers(4, 1).float()
    assert torch.equal(loaded(x).to_dense(), kernel(x).to_dense())
    (name, module, prior, closure, _) = next(iter(loaded.named_priors()))
    assert torch.equal(closure(module), white.variance) and module is loaded.kernels[1]
    assert prior is module._modules[name.rpartition(".")[2]]


def test_constraint_and_parameter_sharing_survive(round_trip: RoundTrip) -> None:
    base = RBF()
    kernel = kernels.ScaleKernel(base) + kernels.ScaleKernel(base)
    loaded = round_trip(kernel)
    assert loaded.kernels[0].base_kernel is loaded.kernels[1].base_kernel
    inner = loaded.kernels[0].base_kernel
    assert inner._constraints["raw_lengthscale_constraint"] is inner.raw_lengthscale_constraint
    assert len(list(loaded.parameters())) == len(list(kernel.parameters())) == 3


def test_loaded_kernels_can_be_copied_pickled_trained_and_changed(round_trip: RoundTrip) -> None:
    kernel = GPYTORCH_KERNELS["PeriodicKernel"]()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(kernel)  # GPyTorch registers the prior with a lambda
    loaded = round_trip(kernel)
    for twin in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert_same_modules(twin, loaded)
    loaded.lengthscale = 2.0
    assert loaded.lengthscale.item() == pytest.approx(2.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loaded.sample_from_prior("period_length_prior")
    assert not torch.equal(loaded.period_length, kernel.period_length)
    assert loaded.double().lengthscale.dtype == torch.float64


def test_evaluation_caches_are_left_out(round_trip: RoundTrip) -> None:
    kernel: Any = GPYTORCH_KERNELS["InducingPointKernel"]().eval()
    x = numbers(4, 2).float()
    expected = kernel(x).to_dense()
    assert "_cached_kernel_inv_root" in vars(kernel)
    loaded = round_trip(kernel)
    assert "_cached_kernel_inv_root" not in vars(loaded)
    assert torch.equal(loaded(x).to_dense(), expected)


MEANS: dict[str, Callable[[], means.Mean]] = {
    "ConstantMean": lambda: means.ConstantMean(
        constant_prior=priors.NormalPrior(0.0, 1.0), constant_constraint=constraints.Positive()
    ),
    "ConstantMeanGrad": lambda: means.ConstantMeanGrad(prior=priors.NormalPrior(0.0, 1.0)),
    "ConstantMeanGradGrad": means.ConstantMeanGradGrad,
    "LinearMean": lambda: means.LinearMean(2, batch_shape=torch.Size([3])),
    "LinearMeanGrad": lambda: means.LinearMeanGrad(2),
    "LinearMeanGradGrad": lambda: means.LinearMeanGradGrad(2),
    "MultitaskMean": lambda: means.MultitaskMean([means.ConstantMean(), means.ZeroMean()], 2),
    "ZeroMean": means.ZeroMean,
}


def test_mean_table_is_complete() -> None:
    assert set(MEANS) | {"Mean"} == set(means.__all__)


@pytest.mark.parametrize("name", MEANS)
def test_means(name: str, round_trip: RoundTrip) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mean = scatter(MEANS[name]())
    loaded = round_trip(mean)
    assert_same_modules(loaded, mean)
    x = numbers(4, 2).float()
    assert torch.equal(loaded(x), mean(x))


def test_neural_mean_of_known_layers(round_trip: RoundTrip) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    net.register_buffer("scratch", torch.ones(1), persistent=False)
    loaded = round_trip(net)
    assert_same_modules(loaded, net)
    assert torch.equal(loaded(torch.ones(4, 2)), net(torch.ones(4, 2)))


LABELS = torch.tensor([0.0, 1.0, 1.0, 0.0])
LIKELIHOODS: dict[str, Callable[[], likelihoods.Likelihood]] = {
    "BernoulliLikelihood": likelihoods.BernoulliLikelihood,
    "BetaLikelihood": lambda: likelihoods.BetaLikelihood(scale_prior=priors.GammaPrior(2, 1)),
    "DirichletClassificationLikelihood": lambda: likelihoods.DirichletClassificationLikelihood(
        LABELS.long()
    ),
    "FixedNoiseGaussianLikelihood": lambda: likelihoods.FixedNoiseGaussianLikelihood(
        torch.ones(4), learn_additional_noise=True
    ),
    "GaussianLikelihood": lambda: likelihoods.GaussianLikelihood(
        noise_prior=priors.HalfCauchyPrior(1.0), noise_constraint=constraints.LessThan(3.0)
    ),
    "GaussianLikelihoodWithMissingObs": likelihoods.GaussianLikelihoodWithMissingObs,
    "HadamardGaussianLikelihood": lambda: likelihoods.HadamardGaussianLikelihood(2),
    "HeteroskedasticNoise": lambda: likelihoods.HeteroskedasticNoise(RBF()),
    "LaplaceLikelihood": likelihoods.LaplaceLikelihood,
    "LikelihoodList": lambda: likelihoods.LikelihoodList(likelihoods.GaussianLikelihood()),
    "MultitaskGaussianLikelihood": lambda: likelihoods.MultitaskGaussianLikelihood(2, rank=1),
    "NegativeBinomialLikelihood": likelihoods.NegativeBinomialLikelihood,
    "PoissonLikelihood": likelihoods.PoissonLikelihood,
    "SoftmaxLikelihood": lambda: likelihoods.SoftmaxLikelihood(2, 3),
    "StudentTLikelihood": lambda: likelihoods.StudentTLikelihood(
        deg_free_prior=priors.GammaPrior(2, 1)
    ),
}


def test_likelihood_table_is_complete() -> None:
    public = {name for name in likelihoods.__all__ if not name.startswith("_")}
    assert set(LIKELIHOODS) | {"Likelihood"} == public


@pytest.mark.filterwarnings("ignore:GaussianLikelihoodWithMissingObs is replaced")
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gpytorch_likelihoods_bare_and_wrapped(name: str, round_trip: RoundTrip) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        likelihood: Any = scatter(LIKELIHOODS[name]())
    assert_same_modules(round_trip(likelihood), likelihood)
    if name in ("HadamardGaussianLikelihood", "HeteroskedasticNoise", "LikelihoodList"):
        return
    wrapped = as_likelihood(likelihood.double())
    loaded = round_trip(wrapped)
    assert_same_modules(loaded, wrapped)
    assert_same_expectations(loaded, wrapped)


def assert_same_expectations(loaded: Any, saved: Any) -> None:
    """Both interfaces of a likelihood give the same bits."""
    latents = (saved.num_latents,) if saved.num_latents > 1 else ()
    mean = numbers(*latents, 4)
    y = LABELS.double()
    if saved.target_dims:
        y = y[:, None].expand(4, 2)
    beta = likelihoods.BetaLikelihood, gpvi.likelihoods.BetaLikelihood
    positive = isinstance(saved, PositiveLikelihood)
    if positive or isinstance(getattr(saved, "wrapped", saved), beta):
        y = 0.2 + 0.5 * y
    for method in ("variational_expectations", "predict_log_density"):
        values = [getattr(part, method)(y, mean, mean.exp()) for part in (loaded, saved)]
        assert torch.equal(*values)


OWN_LIKELIHOODS = [
    cls
    for name in gpvi.likelihoods.__all__
    if isinstance(cls := getattr(gpvi.likelihoods, name), type)
    and cls in set(CLASSES)
    # Those with a base are checked in the tests of the classes themselves.
    and cls
    not in (gpvi.likelihoods.LinearReadoutLikelihood, gpvi.likelihoods.ZeroInflatedLikelihood)
]


@pytest.mark.parametrize("cls", OWN_LIKELIHOODS, ids=lambda cls: cls.__name__)
def test_own_likelihoods(cls: Any, round_trip: RoundTrip) -> None:
    needed = {
        name: 3
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty
    }
    likelihood = scatter(cls(**needed).double())
    loaded = round_trip(likelihood)
    assert_same_modules(loaded, likelihood)
    assert_same_expectations(loaded, likelihood)


CONSTRAINTS = {
    "Interval": lambda: constraints.Interval(0.1, torch.tensor([1.0, 2.0])),
    "GreaterThan": lambda: constraints.GreaterThan(1e-4, initial_value=2.0),
    "LessThan": lambda: constraints.LessThan(2.0),
    "Positive": constraints.Positive,
    "exponential": lambda: constraints.Positive(transform=torch.exp, inv_transform=torch.log),
    "softplus": lambda: constraints.Positive(transform=torch.nn.functional.softplus),
    "free": lambda: constraints.GreaterThan(0.5, transform=None),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints(name: str, round_trip: RoundTrip) -> None:
    assert {*constraints.__all__} <= {*CONSTRAINTS}
    constraint = CONSTRAINTS[name]()
    loaded = round_trip(constraint)
    assert_same_modules(loaded, constraint)
    raw = torch.linspace(-3.0, 3.0, 6).reshape(3, 2)
    value = constraint.transform(raw)
    assert torch.equal(loaded.transform(raw), value)
    assert torch.equal(loaded.inverse_transform(value), constraint.inverse_transform(value))
    assert (loaded.initial_value is None) == (constraint.initial_value is None)


PRIORS: dict[str, tuple[Callable[[], Any], Tensor]] = {
    "GammaPrior": (lambda: priors.GammaPrior(2.0, 1.0), torch.tensor(0.7)),
    "HalfCauchyPrior": (lambda: priors.HalfCauchyPrior(1.5), torch.tensor(0.7)),
    "HalfNormalPrior": (lambda: priors.HalfNormalPrior(1.5), torch.tensor(0.7)),
    "HorseshoePrior": (lambda: priors.HorseshoePrior(0.3), torch.tensor(0.7)),
    "LKJCholeskyFactorPrior": (lambda: priors.LKJCholeskyFactorPrior(2, 1.5), torch.eye(2)),
    "LKJCovariancePrior": (
        lambda: priors.LKJCovariancePrior(2, 1.5, priors.SmoothedBoxPrior(0.1, 3.0)),
        torch.eye(2),
    ),
    "LKJPrior": (lambda: priors.LKJPrior(2, 1.5), torch.eye(2)),
    "LogNormalPrior": (lambda: priors.LogNormalPrior(0.1, 1.0), torch.tensor(0.7)),
    "MultivariateNormalPrior": (
        lambda: priors.MultivariateNormalPrior(torch.zeros(2), torch.eye(2)),
        torch.ones(2),
    ),
    "NormalPrior": (lambda: priors.NormalPrior(0.0, 2.0, transform=torch.log), torch.tensor(0.7)),
    "SmoothedBoxPrior": (lambda: priors.SmoothedBoxPrior(0.1, 3.0), torch.tensor([0.05])),
    "UniformPrior": (lambda: priors.UniformPrior(0.0, 1.0), torch.tensor(0.7)),
    "WishartPrior": (
        lambda: priors.wishart_prior.WishartPrior(3.0, torch.eye(2)),
        torch.eye(2),
    ),
    "InverseWishartPrior": (
        lambda: priors.wishart_prior.InverseWishartPrior(3.0, torch.eye(2)),
        torch.eye(2),
    ),
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors(name: str, round_trip: RoundTrip) -> None:
    assert {*priors.__all__} - {"Prior"} <= {*PRIORS}
    build, value = PRIORS[name]
    prior = build()
    expected = prior.log_prob(value)  # fills what the distribution keeps
    loaded = round_trip(prior)
    assert_same_modules(loaded, prior)
    assert torch.equal(loaded.log_prob(value), expected)


def posterior(name: str, dtype: torch.dtype = torch.float64) -> Posterior:
    """A posterior of 60 rows in three dimensions."""
    x = numbers(60, 3, seed=1).to(dtype)
    lam2 = numbers(60, seed=2).square().to(dtype)
    sites = Sites(lam2 * x.sin().sum(-1), lam2)
    mean = scatter(means.LinearMean(3).to(dtype))
    kernel: Any = scatter(parse_kernel("matern52 + linear", 3, dtype=dtype))
    if name == "white":
        kernel = WhiteKernel().to(dtype)
    groups = torch.arange(60) % 3 if name == "groups" else None
    if name == "wide":
        lam2[3] = -0.01
    approximation: Any = White() if name == "white" else Exact()
    if name in ("inducing", "whitened"):
        approximation = InducingPoints(inducing_points=x[:10])
    if name == "whitened":
        sites = Sites(lam2[:10], lam2[:10].diag_embed(), on="whitened")
    plan = approximation.plan(x, groups)
    prior = approximation.prior(GaussianProcess(kernel, mean), x, plan=plan)
    return prior.condition(sites).detach()


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["exact", "wide", "white", "groups", "inducing", "whitened"])
def test_posteriors_predict_the_same_bits(
    name: str, dtype: torch.dtype, compact: bool, round_trip: RoundTrip
) -> None:
    saved = posterior(name, dtype).compact() if compact else posterior(name, dtype)
    loaded = round_trip(saved)
    x = numbers(7, 3, seed=3).to(dtype)
    groups = {"groups": torch.arange(7) % 3} if name == "groups" else {}
    for joint in (False,) if groups else (False, True):
        new, old = (part.predict(x, joint=joint, **groups) for part in (loaded, saved))
        assert torch.equal(new.mean, old.mean) and torch.equal(new.variance, old.variance)
    assert new.mean.dtype == dtype
    if not compact:
        assert torch.equal(loaded.kl(), saved.kl())
        assert torch.equal(loaded.log_partition, saved.log_partition)
        assert torch.equal(loaded.marginals().variance, saved.marginals().variance)
    assert loaded.sites is not saved.sites and torch.equal(loaded.sites.lam1, saved.sites.lam1)


def test_posterior_on_the_graph_is_refused(tmp_path: Any) -> None:
    gp = GaussianProcess(RBF().double())
    prior = Exact().prior(gp, numbers(4, 1))
    with pytest.raises(ModelFileError, match=r"posterior\.\w+ is a tensor on the auto"):
        save_object(tmp_path / "p", prior.condition(Sites.zeros((4,))), kind="posterior")


def test_sites_moments_and_records(round_trip: RoundTrip) -> None:
    sites = round_trip(Sites(numbers(3), numbers(3).exp(), on="basis"))
    assert sites.on == "basis" and torch.equal(sites.lam1, numbers(3))
    moments = round_trip(Marginals(numbers(3), numbers(3).exp(), None))
    assert torch.equal(moments.variance, numbers(3).exp()) and moments.residual is None
    record = FitRecord("minibatch", 3, float("nan"), -1.5, 0.1, 2.0, failed=True)
    assert repr(round_trip([record, record])) == repr([record, record])


def test_approximations_and_processes(round_trip: RoundTrip) -> None:
    for approximation in (
        Exact(),
        White(),
        InducingPoints(7),
        InducingPoints(inducing_points=numbers(4, 2)),
    ):
        assert_same_modules(round_trip(approximation), approximation)
    gp = GaussianProcess(parse_kernel("rbf", 2), means.ConstantMean().double())
    loaded = round_trip(gp)
    assert_same_modules(loaded, gp)
    assert torch.equal(loaded.covariance(numbers(3, 2)), gp.covariance(numbers(3, 2)))


def test_modules_with_hooks_are_refused(tmp_path: Any) -> None:
    hooked = torch.nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, inputs, output: output)
    loading = RBF()
    loading._register_load_state_dict_pre_hook(lambda *args: None)
    bound = RBF()
    bound._register_load_state_dict_pre_hook(lambda *args: None, with_module=True)
    parametrized = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2))
    cases = [
        (hooked, r"thing\.0 is a module with hooks \(_forward_hooks\)"),
        (loading, r"thing\.0\._load_state_dict_pre_hooks is the function"),
        (bound, "hooks for loading states"),
        (parametrized, r"thing\.0 is a module with parametrizations"),
    ]
    for module, message in cases:
        with pytest.raises(ModelFileError, match=message):
            save_object(tmp_path / "m", torch.nn.Sequential(module), kind="thing")
    with pytest.raises(ModelFileError, match=r"thing\.distance_function is the function"):
        kernel = kernels.DistributionalInputKernel(lambda a, b: (a - b).abs())
        save_object(tmp_path / "m", kernel, kind="thing")


def test_device_moves_every_tensor(tmp_path: Any) -> None:
    save_object(tmp_path / "p", posterior("exact"), kind="posterior")
    loaded: Any = load_object(tmp_path / "p", kind="posterior", device="meta")
    tensors = [loaded.factor, loaded.sites.lam1, loaded.prior.x, *loaded.prior.gp.parameters()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}

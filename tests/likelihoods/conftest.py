"""The likelihoods that the conformance suite runs over, as fixtures.

One entry per likelihood: how to build it, targets it accepts, and its row extras.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi.likelihoods import (
    BernoulliLikelihood,
    BetaLikelihood,
    BinomialLikelihood,
    CensoredGaussianLikelihood,
    ExponentialLikelihood,
    GammaLikelihood,
    GaussianLikelihood,
    HeteroscedasticGaussianLikelihood,
    HeteroscedasticStudentTLikelihood,
    LaplaceLikelihood,
    Likelihood,
    LinearReadoutLikelihood,
    LogNormalLikelihood,
    NegativeBinomialLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    QuantileLikelihood,
    RobustMaxLikelihood,
    StudentTLikelihood,
    WeibullLikelihood,
    ZeroInflatedLikelihood,
    as_likelihood,
)

NUM_ROWS = 5
NUM_LATENTS = 3


@dataclass(frozen=True)
class Case:
    """A likelihood in the conformance suite."""

    build: Callable[[], Likelihood]
    y: Tensor
    rows: dict[str, Tensor] = field(default_factory=dict)
    # Largest error of one quadrature with 20 nodes against dense integration, where it has one.
    tolerance: float = 1e-9
    # The same for the predictive log density, whose rule is recentred.
    density_tolerance: float = 1e-4
    impossible: float | None = None
    # False where expectations are kinked or sampled, so that no rule is exact.
    is_smooth: bool = True

    def moments(self, *batch: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of f in the shape that the likelihood asks for, repeatable."""
        generator = torch.Generator().manual_seed(3)
        num_latents = self.build().num_latents
        latents = () if num_latents == 1 else (num_latents,)
        shape = (*batch, *latents, NUM_ROWS)
        mean = torch.randn(shape, generator=generator, dtype=torch.float64)
        variance = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.2
        return mean, variance


class ScaledPoisson(gpytorch.likelihoods.likelihood._OneDimensionalLikelihood):
    """A user's own GPyTorch likelihood with a keyword argument per row."""

    def forward(self, function_samples: Tensor, exposure: Tensor | float = 1.0):
        return torch.distributions.Poisson(function_samples.exp() * exposure)


class UsersStudentT(gpytorch.likelihoods.StudentTLikelihood):
    """A user's variation of a GPyTorch likelihood, which only its own `forward` describes."""

    def forward(self, function_samples: Tensor, *args, **kwargs):
        return torch.distributions.StudentT(5.0, 2 * function_samples, self.noise)


class SampledNormal(gpytorch.likelihoods.Likelihood):
    """A user's own GPyTorch likelihood that has nothing but `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.raw_scale = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, function_samples: Tensor, *args, **kwargs):
        return torch.distributions.Normal(function_samples, self.raw_scale.exp())


def wrapped(likelihood: gpytorch.likelihoods.Likelihood) -> Likelihood:
    return as_likelihood(likelihood.double())


def softmax() -> Likelihood:
    theirs = gpytorch.likelihoods.SoftmaxLikelihood(num_features=NUM_LATENTS, num_classes=4)
    weights = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3).sin()
    theirs.mixing_weights.data = weights
    return wrapped(theirs)


def readout(base: Likelihood) -> Likelihood:
    loadings = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, NUM_LATENTS).cos()
    return LinearReadoutLikelihood(base, loadings, torch.tensor([0.2, -0.3]).double())


REAL = torch.tensor([0.3, -1.2, 0.0, 2.5, 0.7], dtype=torch.float64)
LABELS = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
COUNTS = torch.tensor([0.0, 3.0, 1.0, 7.0, 2.0], dtype=torch.float64)
UNIT = torch.tensor([0.1, 0.5, 0.9, 0.3, 0.7], dtype=torch.float64)
EXPOSURE = torch.tensor([0.5, 1.0, 2.0, 4.0, 1.5], dtype=torch.float64)
TRIALS = torch.tensor([3.0, 1.0, 7.0, 20.0, 2.0], dtype=torch.float64)
TIMES = torch.tensor([0.3, 1.2, 0.05, 4.0, 2.5], dtype=torch.float64)
CENSORED = torch.tensor([0.0, 1.0, 0.0, -1.0, 1.0], dtype=torch.float64)
NOISE = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.05], dtype=torch.float64)
TASKS = torch.stack([REAL, LABELS, UNIT], dim=-1)
PAIRS = torch.stack([COUNTS, COUNTS.flip(0)], dim=-1)

CASES: dict[str, Case] = {
    "gaussian": Case(lambda: GaussianLikelihood(noise=0.2), REAL, {"noise": NOISE}),
    "gaussian_fixed": Case(lambda: GaussianLikelihood(noise=0.3, learn_noise=False), REAL),
    "bernoulli_probit": Case(BernoulliLikelihood, LABELS, tolerance=1e-7, impossible=0.5),
    "bernoulli_logit": Case(
        lambda: BernoulliLikelihood(link="logit"), LABELS, tolerance=1e-6, impossible=2.0
    ),
    "poisson": Case(PoissonLikelihood, COUNTS, {"exposure": EXPOSURE}, impossible=-1.0),
    "poisson_softplus": Case(
        lambda: PoissonLikelihood(link="softplus"),
        COUNTS,
        {"exposure": EXPOSURE},
        tolerance=1e-6,
        impossible=-1.0,
    ),
    "negative_binomial": Case(
        NegativeBinomialLikelihood,
        COUNTS,
        {"exposure": EXPOSURE},
        tolerance=1e-6,
        impossible=-1.0,
    ),
    "negative_binomial_softplus": Case(
        lambda: NegativeBinomialLikelihood(dispersion=0.01, link="softplus"),
        COUNTS,
        {"exposure": EXPOSURE},
        tolerance=1e-6,
        impossible=-1.0,
    ),
    "binomial_logit": Case(
        BinomialLikelihood, LABELS, {"trials": TRIALS}, tolerance=1e-5, impossible=-1.0
    ),
    "binomial_probit": Case(
        lambda: BinomialLikelihood(link="probit"),
        LABELS,
        {"trials": TRIALS},
        tolerance=1e-5,
        impossible=2.0,
    ),
    "zero_inflated_poisson": Case(
        lambda: ZeroInflatedLikelihood(PoissonLikelihood(), 0.3),
        COUNTS,
        {"exposure": EXPOSURE},
        tolerance=1e-7,
        impossible=-1.0,
    ),
    "zero_inflated_negative_binomial": Case(
        lambda: ZeroInflatedLikelihood(NegativeBinomialLikelihood()),
        COUNTS,
        {"exposure": EXPOSURE},
        tolerance=1e-6,
        impossible=-1.0,
    ),
    "student_t": Case(lambda: StudentTLikelihood(scale=0.4), REAL),
    "gamma": Case(
        lambda: GammaLikelihood(1.7), TIMES, {"censored": CENSORED}, tolerance=1e-8, impossible=0.0
    ),
    "exponential": Case(
        ExponentialLikelihood, TIMES, {"censored": CENSORED}, tolerance=1e-8, impossible=-2.0
    ),
    "weibull": Case(
        lambda: WeibullLikelihood(1.5),
        TIMES,
        {"censored": CENSORED},
        tolerance=1e-8,
        impossible=0.0,
    ),
    "log_normal": Case(
        LogNormalLikelihood, TIMES, {"censored": CENSORED}, tolerance=1e-8, impossible=-1.0
    ),
    "censored_gaussian": Case(
        lambda: CensoredGaussianLikelihood(0.2), REAL, {"censored": CENSORED}, tolerance=1e-8
    ),
    "laplace": Case(lambda: LaplaceLikelihood(0.5), REAL, tolerance=1e-4),
    "quantile": Case(lambda: QuantileLikelihood(0.8, 0.2), REAL, tolerance=1e-4),
    "beta": Case(BetaLikelihood, UNIT, tolerance=1e-5, impossible=1.0),
    "ordinal": Case(
        lambda: OrdinalLikelihood(4), COUNTS.clamp(max=3), tolerance=1e-6, impossible=4.0
    ),
    "heteroscedastic_gaussian": Case(HeteroscedasticGaussianLikelihood, REAL),
    "heteroscedastic_student_t": Case(HeteroscedasticStudentTLikelihood, REAL),
    "robust_max": Case(
        lambda: RobustMaxLikelihood(NUM_LATENTS, 0.1),
        COUNTS.clamp(max=2),
        impossible=3.0,
        is_smooth=False,
    ),
    "wrapped_gaussian": Case(
        lambda: wrapped(gpytorch.likelihoods.GaussianLikelihood()), REAL, {"noise": NOISE + 0.1}
    ),
    "wrapped_fixed_noise": Case(
        lambda: wrapped(
            gpytorch.likelihoods.FixedNoiseGaussianLikelihood(
                NOISE + 0.1, learn_additional_noise=True
            )
        ),
        REAL,
        {"noise": NOISE + 0.2},
    ),
    "wrapped_bernoulli": Case(
        lambda: wrapped(gpytorch.likelihoods.BernoulliLikelihood()), LABELS, tolerance=1e-7
    ),
    "wrapped_laplace": Case(
        lambda: wrapped(gpytorch.likelihoods.LaplaceLikelihood()),
        REAL,
        tolerance=0.1,
        density_tolerance=0.02,
        is_smooth=False,
    ),
    "wrapped_student_t": Case(lambda: wrapped(gpytorch.likelihoods.StudentTLikelihood()), REAL),
    "wrapped_beta": Case(
        lambda: wrapped(gpytorch.likelihoods.BetaLikelihood()), UNIT, tolerance=1e-6, impossible=1.5
    ),
    "wrapped_poisson": Case(
        lambda: wrapped(gpytorch.likelihoods.PoissonLikelihood()),
        COUNTS,
        tolerance=1e-6,
        impossible=0.5,
    ),
    "wrapped_negative_binomial": Case(
        lambda: wrapped(gpytorch.likelihoods.NegativeBinomialLikelihood()),
        COUNTS,
        tolerance=1e-5,
        impossible=-2.0,
    ),
    "wrapped_users_own": Case(
        lambda: wrapped(ScaledPoisson()), COUNTS, {"exposure": EXPOSURE}, impossible=0.5
    ),
    "wrapped_variation": Case(lambda: wrapped(UsersStudentT()), REAL, tolerance=2e-3),
    "wrapped_generic": Case(lambda: wrapped(SampledNormal()), REAL, tolerance=1.0, is_smooth=False),
    "wrapped_softmax": Case(softmax, COUNTS.clamp(max=3), impossible=4.0),
    "wrapped_multitask": Case(
        lambda: wrapped(gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=NUM_LATENTS)),
        TASKS,
    ),
    "readout_poisson": Case(
        lambda: readout(PoissonLikelihood()), PAIRS, {"exposure": EXPOSURE}, impossible=-1.0
    ),
    "readout_gaussian": Case(
        lambda: readout(GaussianLikelihood(noise=0.2, batch_shape=torch.Size([2]))),
        TASKS[:, :2],
        {"noise": NOISE},
    ),
    "readout_bernoulli": Case(
        lambda: readout(BernoulliLikelihood(link="logit")), LABELS.unsqueeze(-1).expand(-1, 2)
    ),
}

ONE_LATENT = [name for name, case in CASES.items() if case.build().num_latents == 1]
SEVERAL_LATENTS = [name for name in CASES if name not in ONE_LATENT]
SMOOTH = [name for name, case in CASES.items() if case.is_smooth]


@pytest.fixture
def all_cases() -> dict[str, Case]:
    """Every likelihood of the suite by name."""
    return CASES


@pytest.fixture(params=CASES)
def case(request) -> Case:
    """Each likelihood."""
    return CASES[request.param]


@pytest.fixture(params=ONE_LATENT)
def single(request) -> Case:
    """Each likelihood with one latent."""
    return CASES[request.param]


@pytest.fixture(params=SEVERAL_LATENTS)
def several(request) -> Case:
    """Each likelihood with several latents."""
    return CASES[request.param]


@pytest.fixture(params=SMOOTH)
def smooth(request) -> Case:
    """Each likelihood whose expectations a rule gets right."""
    return CASES[request.param]

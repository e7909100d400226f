"""A whole fit with integer row weights is the fit to repeated rows; weight zero leaves a row out."""

import gpytorch
import pytest
import torch
from gpytorch.kernels import MaternKernel, ScaleKernel
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess, InducingPoints
from gpvi.exceptions import InputError
from gpvi.inference import fit, initialize_hyperparameters
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)

GENERATOR = torch.Generator().manual_seed(3)
# Every input has two targets: repeated rows alone would let the noise run to zero.
X = torch.rand(18, 2, generator=GENERATOR, dtype=torch.float64).repeat(2, 1) * 4
WAVE = (2 * X[:, 0]).sin() + 0.5 * torch.randn(36, generator=GENERATOR, dtype=torch.float64)
TIMES = (torch.arange(36) + 1) % 3
NEW = torch.rand(9, 2, generator=GENERATOR, dtype=torch.float64) * 4

CASES = {
    "gaussian": (lambda: GaussianLikelihood(noise=0.2), WAVE),
    "poisson": (PoissonLikelihood, (1 + WAVE).exp().round()),
    "bernoulli": (BernoulliLikelihood, (WAVE > 0).double()),
    "student": (StudentTLikelihood, WAVE),
}
APPROXIMATIONS = {"exact": Exact, "inducing": lambda: InducingPoints(8)}


def fitted(name: str, kind: str, x: Tensor, y: Tensor, weights: Tensor | None = None, **options):
    make, _ = CASES[name]
    gp = GaussianProcess(
        ScaleKernel(MaternKernel(ard_num_dims=2)).double(), gpytorch.means.ConstantMean().double()
    )
    likelihood, approximation = make(), APPROXIMATIONS[kind]()
    generator = torch.Generator().manual_seed(1)
    initialize_hyperparameters(gp, likelihood, x, y, generator, weights)
    settings = {"max_iter": 5, "tolerance": 1e-12, **options}
    result = fit(
        gp, approximation, likelihood, x, y, weights=weights, generator=generator, **settings
    )
    moments = result.posterior.predict(NEW)
    parameters = [p.detach().reshape(-1) for m in (gp, likelihood) for p in m.parameters()]
    return result, torch.cat(parameters), torch.stack([moments.mean, moments.variance])


@pytest.mark.filterwarnings("ignore:The fit is not converged")
@pytest.mark.parametrize("objective", ["tighter_elbo", "elbo"])
@pytest.mark.parametrize("kind", APPROXIMATIONS)
@pytest.mark.parametrize("name", CASES)
def test_weights_are_repeated_rows(name, kind, objective):
    y = CASES[name][1]
    weighted = fitted(name, kind, X, y, TIMES.double(), objective=objective)
    rows = X.repeat_interleave(TIMES, 0), y.repeat_interleave(TIMES)
    repeated = fitted(name, kind, *rows, objective=objective)
    assert len(weighted[0].history) == len(repeated[0].history)
    assert weighted[0].objective == pytest.approx(repeated[0].objective, abs=1e-6)
    torch.testing.assert_close(weighted[1], repeated[1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(weighted[2], repeated[2], atol=1e-6, rtol=1e-6)


def test_the_stopping_rule_counts_weights():
    options = {"max_iter": 60, "tolerance": 3e-3}
    weighted = fitted("gaussian", "exact", X, WAVE, 3 * TIMES.double(), **options)[0]
    rows = X.repeat_interleave(3 * TIMES, 0), WAVE.repeat_interleave(3 * TIMES)
    repeated = fitted("gaussian", "exact", *rows, **options)[0]
    assert weighted.converged and weighted.num_iterations == repeated.num_iterations < 40
    norms = [[r.gradient_norm for r in fit.history] for fit in (weighted, repeated)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_weights_that_leave_nothing_are_refused():
    with pytest.raises(InputError, match="No target counts: each of the 36 rows"):
        fit(
            GaussianProcess(ScaleKernel(MaternKernel()).double()),
            Exact(),
            GaussianLikelihood(),
            X,
            WAVE,
            weights=torch.zeros(36).double(),
        )

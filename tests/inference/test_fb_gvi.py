"""Forward-backward Gaussian variational inference: exact cases, identities, monotone courses, refusals."""

import itertools

import pytest
import torch
from scipy import optimize
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError
from gpvi.inference import fb_gvi
from gpvi.inference.fb_gvi import _forward_backward, _State

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.7, 0.5, 0.0], [-0.3, 0.2, 2.0]], dtype=torch.float64)
PRECISION = torch.linalg.inv(FACTOR @ FACTOR.mT)


def gaussian(x: Tensor) -> Tensor:
    return -0.5 * ((x - MEAN) @ PRECISION * (x - MEAN)).sum(-1)


def regression() -> tuple[Tensor, Tensor]:
    """Ten standardised columns of a real set, and signs of its labels."""
    X, y = load_breast_cancer(return_X_y=True)
    x = torch.tensor(X[:, :10])
    return (x - x.mean(0)) / x.std(0), torch.tensor(2.0 * y - 1.0)


COLUMNS, SIGNS = regression()


def logistic(w: Tensor) -> Tensor:
    fit = torch.nn.functional.logsigmoid(SIGNS * (w @ COLUMNS.mT)).sum(-1)
    return fit - 0.05 * w.square().sum(-1)


def test_gaussian_targets_are_fitted_exactly() -> None:
    fit = fb_gvi(gaussian, 3, tolerance=1e-16)
    assert fit.converged
    torch.testing.assert_close(fit.mean, MEAN, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fit.covariance, FACTOR @ FACTOR.mT, rtol=1e-6, atol=1e-6)
    normaliser = 0.5 * (FACTOR @ FACTOR.mT).logdet() + 1.5 * torch.tensor(2 * torch.pi).log()
    assert fit.elbo == pytest.approx(float(normaliser), abs=1e-6)


def test_the_second_half_of_a_step_is_proximal() -> None:
    """Undoing it by its own optimality condition gives the first half back."""
    covariance = FACTOR @ FACTOR.mT
    state = _State(MEAN, covariance, MEAN, PRECISION + torch.eye(3), 0.0, 0.0, 0.0)
    step = 0.1
    mean, after = _forward_backward(state, step)
    eye = torch.eye(3, dtype=torch.float64)
    undo = eye - step * torch.linalg.inv(after)
    shrink = eye - step * (PRECISION + eye)
    torch.testing.assert_close(undo @ after @ undo, shrink @ covariance @ shrink)
    torch.testing.assert_close(mean, MEAN - step * MEAN)


def test_steps_of_one_over_the_smoothness_never_lose() -> None:
    smoothness = float(torch.linalg.eigvalsh(0.25 * COLUMNS.mT @ COLUMNS)[-1]) + 0.1
    fit = fb_gvi(logistic, 10, step_size=1.0 / smoothness, max_steps=60)
    gains = [later - earlier for earlier, later in itertools.pairwise(fit.history)]
    assert len(gains) == 60 and min(gains) > -1e-9


def test_logistic_regression_is_closer_than_laplace() -> None:
    def negative(w: Tensor) -> Tensor:
        return -logistic(w)

    best = optimize.minimize(lambda w: float(negative(torch.tensor(w))), [0.0] * 10, tol=1e-10)
    mode = torch.tensor(best.x)
    covariance = torch.linalg.inv(torch.autograd.functional.hessian(negative, mode))
    covariance = 0.5 * (covariance + covariance.mT)
    laplace = fb_gvi(logistic, 10, mean=mode, covariance=covariance, max_steps=1, step_size=1e-9)
    fit = fb_gvi(logistic, 10, mean=mode, covariance=covariance)
    assert fit.converged
    assert fit.elbo > laplace.history[0]
    # In worse coordinates a thousand steps do not quite lead there.
    again = fb_gvi(logistic, 10)
    assert fit.elbo - 0.5 < again.elbo < fit.elbo + 1e-6


def test_two_modes_leave_a_proper_gaussian() -> None:
    """Far from log-concave: curvature is negative between the modes, of which q takes the nearer."""

    def mixture(x: Tensor) -> Tensor:
        parts = [-0.5 * (x - centre).square().sum(-1) for centre in (3.0, -3.0)]
        return torch.stack(parts).logsumexp(0)

    fit = fb_gvi(mixture, 2, mean=torch.tensor([2.0, 1.0]).double(), tolerance=1e-10)
    assert fit.converged
    assert bool((torch.linalg.eigvalsh(fit.covariance) > 0).all())
    assert fit.history == sorted(fit.history)
    # What one component holds.
    assert fit.elbo == pytest.approx(float(torch.tensor(2.0 * torch.pi).log()), abs=0.02)


def test_results_repeat_and_keep_their_dtype() -> None:
    first, second = (fb_gvi(logistic, 10, max_steps=5) for _ in range(2))
    assert torch.equal(first.covariance, second.covariance)
    single = fb_gvi(lambda x: -0.5 * x.square().sum(-1), 2, mean=torch.ones(2))
    assert single.mean.dtype == single.covariance.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"step_size": -1.0}, "step_size is -1.0"),
        ({"num_points": 5}, "num_points is 5"),
        ({"mean": torch.zeros(2)}, r"mean has shape \(2,\)"),
        ({"mean": torch.zeros(3, dtype=torch.int64)}, "mean is torch.int64"),
        ({"covariance": -torch.eye(3)}, "not symmetric and positive definite"),
        ({"log_prob": lambda x: x}, r"log_prob returned shape \(128, 3\)"),
    ],
)
def test_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fb_gvi(**{"log_prob": gaussian, "dim": 3, **options})


def test_densities_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NumericalError, match="around the start of q"):
        fb_gvi(lambda x: x.log().sum(-1), 1)
    with pytest.raises(NumericalError, match="step_size=1000"):
        fb_gvi(lambda x: -x.exp().sum(-1).exp(), 1, step_size=1_000.0)

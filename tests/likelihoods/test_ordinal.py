"""Ordered classes: probabilities, cut points, tails, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpvi.exceptions import InputError
from gpvi.likelihoods import BernoulliLikelihood, OrdinalLikelihood, sample_observations
from gpvi.likelihoods.ordinal import _log_between

CUTS = [-1.0, 0.3, 2.0]


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(f=st.floats(-6, 6))
def test_probabilities_are_differences_and_sum_to_one(f):
    likelihood = OrdinalLikelihood(4, CUTS)
    probabilities = likelihood.log_prob(row(f, f, f, f), row(0, 1, 2, 3)).exp()
    ends = torch.special.ndtr(row(-math.inf, *CUTS, math.inf) - f)
    torch.testing.assert_close(probabilities, ends.diff(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(likelihood(row(f)).probs[0], ends.diff(), rtol=1e-9, atol=1e-12)


@given(middle=st.floats(-30, 30), gap=st.floats(1e-4, 5))
@settings(deadline=None)
def test_differences_keep_their_digits(middle, gap):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(500):
        lower, upper = mpmath.mpf(middle), mpmath.mpf(middle) + mpmath.mpf(gap)
        difference = mpmath.ncdf(upper) - mpmath.ncdf(lower)
        expected = float(mpmath.log(difference))
    ours = _log_between(row(middle), row(middle) + gap).item()
    # The gap itself is known to no more digits than the points.
    assert ours == pytest.approx(expected, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("f", [-1e4, -50.0, 50.0, 1e4])
def test_far_tails_have_slopes(f):
    likelihood = OrdinalLikelihood(4, CUTS)
    at = row(f, f, f, f).requires_grad_()
    value = likelihood.log_prob(at, row(0, 1, 2, 3))
    slopes = torch.autograd.grad(value.sum(), [at, *likelihood.parameters()])
    assert bool(value.isfinite().all()) and all(bool(s.isfinite().all()) for s in slopes)


def test_gradients_of_the_cut_points():
    likelihood = OrdinalLikelihood(4, CUTS)
    parameters = list(likelihood.parameters())
    y, mean, variance = row(0, 1, 2, 3), row(0.3, -0.2, 1.0, 0.1), row(0.5, 1, 0.1, 2)

    def expected(*_):
        return likelihood.variational_expectations(y, mean, variance)

    assert torch.autograd.gradcheck(expected, parameters)


def test_merging_classes_gives_a_probit_model():
    likelihood, coin = OrdinalLikelihood(4, CUTS), BernoulliLikelihood()
    mean, variance = row(0.4), row(0.8)
    logs = [likelihood.predict_log_density(row(k), mean, variance) for k in range(4)]
    for k, cut in enumerate(CUTS):
        above = torch.stack(logs[k + 1 :]).logsumexp(0)
        theirs = coin.predict_log_density(row(1), mean - cut, variance)
        torch.testing.assert_close(above, theirs, rtol=1e-5, atol=1e-5)


def test_cut_points_are_set_checked_and_fixed():
    likelihood = OrdinalLikelihood(4)
    assert bool((likelihood.cut_points.diff() > 0).all())
    likelihood.cut_points = CUTS
    assert likelihood.cut_points.tolist() == pytest.approx(CUTS)
    likelihood.first_cut = -2.0
    assert likelihood.cut_points.tolist() == pytest.approx([-2.0, -0.7, 1.0])
    likelihood.gaps = 0.5
    assert likelihood.cut_points.tolist() == pytest.approx([-2.0, -1.5, -1.0])
    for bad in ([0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 2.0], [0.0, 1.0, math.inf]):
        with pytest.raises(InputError, match="cut_points must be 3 finite numbers"):
            likelihood.cut_points = bad
    fixed = OrdinalLikelihood(3, learn_cut_points=False)
    assert not any(parameter.requires_grad for parameter in fixed.parameters())
    for size in (2, 1, 3.5):
        with pytest.raises(InputError, match="num_classes"):
            OrdinalLikelihood(size)


def test_labels_are_checked():
    likelihood = OrdinalLikelihood(4)
    likelihood.check_targets(row(0, 3, math.nan))
    for bad in (-1.0, 4.0, 1.5):
        with pytest.raises(InputError, match=f"0, 1, ..., 3, got {bad}"):
            likelihood.check_targets(row(0, bad))


def test_moments_and_quantiles_are_those_of_class_numbers():
    likelihood = OrdinalLikelihood(4, CUTS)
    f = torch.full((100_000,), 0.5, dtype=torch.float64)
    y = sample_observations(likelihood, f, torch.Generator().manual_seed(0))
    mean, variance = likelihood.predict_mean_var(f[:1], 0 * f[:1])
    assert mean.item() == pytest.approx(y.mean().item(), abs=0.02)
    assert variance.item() == pytest.approx(y.var().item(), abs=0.02)
    quantiles = likelihood.predict_quantiles([0.05, 0.5, 0.95], f[:1], 0 * f[:1])[:, 0]
    assert quantiles.tolist() == [torch.quantile(y, q).item() for q in (0.05, 0.5, 0.95)]

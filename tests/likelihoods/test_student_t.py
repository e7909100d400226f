"""Student-t noise: exact expectations at every ratio of widths, quantiles, robustness."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from gpvi.exceptions import InputError
from gpvi.likelihoods import StudentTLikelihood


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(
    y=st.floats(-20, 20),
    variance=st.floats(1e-4, 100),
    scale=st.floats(0.02, 5),
    nu=st.floats(2.1, 50),
)
def test_expectation_is_exact_however_narrow_the_noise(y, variance, scale, nu):
    likelihood = StudentTLikelihood(degrees_of_freedom=nu, scale=scale)
    ours = likelihood.variational_expectations(row(y), row(0.0), row(variance)).item()
    # Fine around the residual, wide enough for the Gaussian.
    deviation = math.sqrt(variance)
    near = y + scale * np.sinh(np.linspace(-12, 12, 4001))
    f = np.union1d(near, np.linspace(-11 * deviation, 11 * deviation, 4001))
    values = stats.t.logpdf(y, nu, f, scale) * stats.norm.pdf(f, 0, deviation)
    dense = integrate.trapezoid(values, x=f)
    assert ours == pytest.approx(dense, rel=2e-5, abs=2e-5)


def test_expectation_has_second_derivatives_at_zero_variance():
    likelihood = StudentTLikelihood(scale=0.2)
    variance = row(0.0).requires_grad_()
    value = likelihood.variational_expectations(row(0.7), row(0.1), variance)
    first = torch.autograd.grad(value.sum(), variance, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), variance)[0]
    f = row(0.1).requires_grad_()
    derivative = likelihood.log_prob(f, row(0.7)).sum()
    derivatives = []
    for _ in range(4):
        derivative = torch.autograd.grad(derivative, f, create_graph=True)[0].sum()
        derivatives.append(derivative.item())
    assert first.item() == pytest.approx(derivatives[1] / 2, rel=1e-8)
    assert second.item() == pytest.approx(derivatives[3] / 4, rel=1e-6)


def test_parameter_gradients():
    likelihood = StudentTLikelihood()
    raw = [p.detach().clone().requires_grad_() for p in likelihood.parameters()]
    names = [name for name, _ in likelihood.named_parameters()]

    def total(*values):
        parameters = dict(zip(names, values, strict=True))
        arguments = (row(0.3, 4.0), row(0.0, 1.0), row(0.5, 0.1))
        return torch.func.functional_call(_Expectation(likelihood), parameters, arguments)

    assert torch.autograd.gradcheck(total, raw)


class _Expectation(torch.nn.Module):
    """Call the expectation through `forward`, as functional_call needs it."""

    def __init__(self, likelihood: StudentTLikelihood) -> None:
        super().__init__()
        self.likelihood = likelihood
        for name, parameter in likelihood.named_parameters():
            self.register_parameter(name, parameter)

    def forward(self, *arguments):
        for name, _ in list(self.likelihood.named_parameters()):
            self.likelihood._parameters[name] = self._parameters[name]
        return self.likelihood.variational_expectations(*arguments)


@pytest.mark.parametrize("nu", [2.2, 4.0, 30.0, 3000.0])
def test_quantiles_without_latent_variance_are_those_of_scipy(nu):
    likelihood = StudentTLikelihood(degrees_of_freedom=nu, scale=0.7)
    levels = [0.001, 0.1, 0.5, 0.9, 0.999]
    ours = likelihood.predict_quantiles(levels, row(-1.0, 100.0), row(0.0, 0.0))
    exact = stats.t.ppf(np.array(levels)[:, None], nu, [-1.0, 100.0], 0.7)
    assert ours.numpy() == pytest.approx(exact, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("scale", [0.01, 0.5])
def test_quantiles_with_latent_variance_match_brute_force(scale):
    likelihood = StudentTLikelihood(scale=scale)
    level = 0.9
    quantile = likelihood.predict_quantiles([level], row(1.0), row(2.0)).item()
    inside = np.linspace(-9, 9, 20001)
    f = 1.0 + math.sqrt(2.0) * inside
    cdf = stats.t.cdf(quantile, 4.0, f, scale) * stats.norm.pdf(inside)
    assert integrate.trapezoid(cdf, inside) == pytest.approx(level, abs=1e-6)


@pytest.mark.parametrize("distance, tolerance", [(1e3, 1e-9), (1e4, 1e-8), (1e7, 0.02)])
def test_monstrous_outliers_stay_bounded(distance, tolerance):
    likelihood = StudentTLikelihood(scale=1.0)
    ours = likelihood.variational_expectations(row(distance), row(0.0), row(0.0)).item()
    assert ours == pytest.approx(stats.t.logpdf(distance, 4.0), rel=tolerance)


def test_outliers_pull_little():
    likelihood = StudentTLikelihood(scale=0.1)
    mean = row(0.0).requires_grad_()
    slopes = [
        torch.autograd.grad(
            likelihood.variational_expectations(row(y), mean, row(0.01)).sum(), mean
        )[0].item()
        for y in (0.3, 3.0, 30.0)
    ]
    assert slopes[0] > 5 * slopes[1] > 25 * slopes[2] > 0


def test_initial_latent_clips_outliers():
    y = row(0.1, -0.2, 0.3, 0.0, 1000.0)
    latent = StudentTLikelihood().initial_latent(y)
    assert latent[:4].tolist() == y[:4].tolist() and latent[4].item() < 3


def test_parameters_can_be_assigned_fixed_and_are_bounded():
    likelihood = StudentTLikelihood(learn_degrees_of_freedom=False)
    likelihood.degrees_of_freedom, likelihood.scale = 7.0, 0.2
    assert likelihood.degrees_of_freedom.item() == pytest.approx(7.0)
    assert likelihood.scale.item() == pytest.approx(0.2)
    assert not likelihood.raw_degrees_of_freedom.requires_grad
    assert likelihood.raw_scale.requires_grad
    with pytest.raises(InputError, match="degrees_of_freedom"):
        likelihood.degrees_of_freedom = 2.0
    with pytest.raises(InputError, match="scale"):
        StudentTLikelihood(scale=-1.0)


def test_batched_parameters():
    likelihood = StudentTLikelihood(scale=torch.tensor([[0.1], [0.5]]), batch_shape=(2,))
    y, mean, variance = row(0.0, 1.0, 2.0), row(0.1, 0.2, 0.3), row(1.0, 0.5, 0.1)
    for method in (likelihood.variational_expectations, likelihood.predict_log_density):
        values = method(y, mean, variance)
        assert values.shape == (2, 3)
        for scale, value in zip((0.1, 0.5), values, strict=True):
            alone = getattr(StudentTLikelihood(scale=scale), method.__name__)(y, mean, variance)
            torch.testing.assert_close(value, alone, rtol=1e-6, atol=1e-6)
    assert likelihood.predict_quantiles([0.1, 0.9], mean, variance).shape == (2, 2, 3)

"""Joint covariances of new observations: closed forms, simulations, limits, invariants."""

import math

import gpytorch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gpvi.exceptions import InputError, NumericalError, UnsupportedError
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    as_likelihood,
    observation_covariance,
    sample_observations,
)
from gpvi.likelihoods.joint import _series
from gpvi.linalg.quadrature import gauss_hermite

NUM_ROWS = 5


def latent(*batch: int, num_rows: int = NUM_ROWS, seed: int = 0, scale: float = 1.0):
    """Mean and a full covariance of f, repeatable."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch, num_rows)
    mean = torch.randn(shape, generator=generator, dtype=torch.float64)
    factor = torch.randn(*shape, num_rows, generator=generator, dtype=torch.float64)
    return mean, scale * factor @ factor.mT / num_rows


def off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    return matrix[..., ~torch.eye(matrix.shape[-1], dtype=torch.bool)]


def test_structure_for_every_likelihood(single):
    likelihood = single.build()
    mean, covariance = latent()
    centre, joint = observation_covariance(likelihood, mean, covariance, **single.rows)
    variance = covariance.diagonal()
    expected = likelihood.predict_mean_var(mean, variance, **single.rows)
    assert torch.equal(centre, expected[0]) and torch.equal(joint.diagonal(), expected[1])
    assert torch.equal(joint, joint.mT)
    assert torch.linalg.eigvalsh(joint).min() > -1e-12 * joint.diagonal().max()


def test_matches_simulations_for_every_likelihood(single, all_cases):
    likelihood = single.build()
    mean, covariance = latent(scale=0.5)
    generator = torch.Generator().manual_seed(8)
    noise = torch.randn(200_000, NUM_ROWS, generator=generator, dtype=torch.float64)
    f = mean + noise @ torch.linalg.cholesky(covariance).mT
    y = sample_observations(likelihood, f, generator, **single.rows)
    centre, joint = observation_covariance(likelihood, mean, covariance, **single.rows)
    deviation = joint.diagonal().sqrt()
    torch.testing.assert_close(y.mean(0), centre, rtol=0.02, atol=0.02)
    correlation = joint / deviation[:, None] / deviation
    assert (off_diagonal(y.mT.corrcoef()) - off_diagonal(correlation)).abs().max() < 0.03


def test_gaussian_adds_its_noise_to_the_diagonal():
    mean, covariance = latent(3)
    noise = torch.rand(NUM_ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = observation_covariance(GaussianLikelihood(noise=0.3), mean, covariance, noise=noise)
    torch.testing.assert_close(ours[1], covariance + torch.diag(0.3 + noise))
    theirs = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise.clamp_min(0.01))
    joint = observation_covariance(as_likelihood(theirs), mean, covariance)[1]
    torch.testing.assert_close(joint, covariance + torch.diag(noise.clamp_min(0.01)))


def test_student_t_adds_the_variance_of_its_noise():
    mean, covariance = latent()
    likelihood = StudentTLikelihood(degrees_of_freedom=5.0, scale=0.6)
    joint = observation_covariance(likelihood, mean, covariance)[1]
    noise = 0.36 * 5 / 3 * torch.eye(NUM_ROWS, dtype=torch.float64)
    torch.testing.assert_close(joint, covariance + noise)


def test_poisson_closed_form_agrees_with_the_series():
    mean, covariance = latent(2)
    exposure = torch.tensor([0.5, 1.0, 2.0, 4.0, 1.5], dtype=torch.float64)
    likelihood = PoissonLikelihood()
    joint = observation_covariance(likelihood, mean, covariance, exposure=exposure)[1]
    rate = exposure * (mean + 0.5 * covariance.diagonal(dim1=-1, dim2=-2)).exp()
    expected = rate[..., None] * rate[..., None, :] * covariance.expm1()
    torch.testing.assert_close(off_diagonal(joint), off_diagonal(expected), rtol=1e-12, atol=0)
    series = _series(likelihood, mean, covariance, {"exposure": exposure})
    torch.testing.assert_close(series, expected, rtol=1e-10, atol=1e-10)


@given(
    a=st.floats(-3, 3),
    b=st.floats(-3, 3),
    first=st.floats(1e-3, 20),
    second=st.floats(1e-3, 20),
    correlation=st.floats(-1, 1),
)
@settings(max_examples=40, deadline=None)
def test_probit_is_a_bivariate_normal_probability(a, b, first, second, correlation):
    shared = correlation * math.sqrt(first * second)
    covariance = torch.tensor([[first, shared], [shared, second]], dtype=torch.float64)
    mean = torch.tensor([a, b], dtype=torch.float64)
    centre, joint = observation_covariance(BernoulliLikelihood(), mean, covariance)
    widths = math.sqrt(1 + first), math.sqrt(1 + second)
    r = shared / (widths[0] * widths[1])
    both = stats.multivariate_normal.cdf([a / widths[0], b / widths[1]], cov=[[1, r], [r, 1]])
    assert joint[0, 1].item() == pytest.approx(both - centre.prod().item(), abs=1e-6)


@pytest.mark.parametrize("correlation", [-1.0, 1.0])
@pytest.mark.parametrize(
    "likelihood", [BernoulliLikelihood(link="logit"), PoissonLikelihood(link="softplus")]
)
def test_fully_correlated_inputs_share_one_latent(likelihood, correlation):
    covariance = 2.0 * torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    mean = torch.tensor([0.3, -0.4], dtype=torch.float64)
    centre, joint = observation_covariance(likelihood, mean, covariance)
    nodes, log_weights = gauss_hermite(200)
    step = math.sqrt(2.0) * nodes[:, None] * torch.tensor([1.0, correlation], dtype=torch.float64)
    first, second = likelihood(mean + step).mean.unbind(-1)
    product = (log_weights.exp() * (first - centre[0]) * (second - centre[1])).sum()
    assert joint[0, 1].item() == pytest.approx(product.item(), rel=1e-8)


def test_known_and_independent_latents_give_independent_observations():
    likelihood = BernoulliLikelihood(link="logit")
    mean = latent()[0]
    for covariance in (torch.zeros(NUM_ROWS, NUM_ROWS, dtype=torch.float64), torch.eye(5).double()):
        joint = observation_covariance(likelihood, mean, covariance)[1]
        assert off_diagonal(joint).abs().max() == 0
    tiny = 1e-20 * (torch.eye(NUM_ROWS, dtype=torch.float64) + 1)
    joint = observation_covariance(likelihood, mean, tiny)[1]
    slope = torch.sigmoid(mean) * torch.sigmoid(-mean)
    expected = 1e-20 * slope[:, None] * slope
    torch.testing.assert_close(off_diagonal(joint), off_diagonal(expected), rtol=1e-6, atol=0)


def test_batches_of_latents_and_of_parameters():
    mean, covariance = latent(3, 2)
    rows = {"exposure": torch.rand(2, NUM_ROWS, dtype=torch.float64) + 0.5}
    likelihood = PoissonLikelihood(link="softplus")
    centre, joint = observation_covariance(likelihood, mean, covariance, **rows)
    assert joint.shape == (3, 2, NUM_ROWS, NUM_ROWS)
    for i in range(3):
        for j in range(2):
            one = observation_covariance(
                likelihood, mean[i, j], covariance[i, j], exposure=rows["exposure"][j]
            )
            torch.testing.assert_close((centre[i, j], joint[i, j]), one, rtol=1e-9, atol=1e-12)
    theirs = gpytorch.likelihoods.LaplaceLikelihood(batch_shape=torch.Size([4, 1])).double()
    joint = observation_covariance(as_likelihood(theirs), mean[0, 0], covariance[0, 0])[1]
    assert joint.shape == (4, 1, NUM_ROWS, NUM_ROWS)
    shared = off_diagonal(covariance[0, 0]).expand(4, 1, -1)
    torch.testing.assert_close(off_diagonal(joint), shared, rtol=1e-9, atol=1e-9)


def test_more_rows_than_one_block_holds():
    x = torch.linspace(0, 10, 600, dtype=torch.float64)
    covariance = 2 * torch.exp(-0.5 * (x[:, None] - x).square())
    likelihood = BernoulliLikelihood()
    joint = observation_covariance(likelihood, x.sin(), covariance)[1]
    some = torch.tensor([0, 3, 299, 416, 417, 599])
    part = observation_covariance(likelihood, x.sin()[some], covariance[some][:, some])[1]
    torch.testing.assert_close(joint[some][:, some], part, rtol=1e-9, atol=1e-12)
    assert torch.equal(joint, joint.mT) and torch.linalg.eigvalsh(joint).min() > 0


def test_float32_in_and_out(single):
    likelihood = single.build()
    mean, covariance = latent()
    exact = observation_covariance(likelihood, mean, covariance, **single.rows)
    rows = {name: value.float() for name, value in single.rows.items()}
    ours = observation_covariance(single.build().float(), mean.float(), covariance.float(), **rows)
    assert ours[0].dtype == ours[1].dtype == torch.float32
    torch.testing.assert_close(ours[1].double(), exact[1], rtol=1e-4, atol=1e-5)


def test_closed_forms_have_gradients():
    mean, covariance = (t.requires_grad_() for t in latent())
    for likelihood in (GaussianLikelihood(), PoissonLikelihood()):
        joint = observation_covariance(likelihood, mean, covariance)[1]
        gradient = torch.autograd.grad(joint.sum(), covariance)[0]
        assert bool((gradient != 0).all())


def test_several_latents_and_wrong_arguments_are_refused(several):
    mean, covariance = latent()
    with pytest.raises(UnsupportedError, match="latents"):
        observation_covariance(several.build(), mean, covariance)
    likelihood = PoissonLikelihood()
    with pytest.raises(InputError, match=r"\(4, 5\)"):
        observation_covariance(likelihood, mean, covariance[:4])
    with pytest.raises(InputError, match="exposures"):
        observation_covariance(likelihood, mean, covariance, exposures=mean)
    with pytest.raises(InputError, match="as_likelihood"):
        observation_covariance(gpytorch.likelihoods.GaussianLikelihood(), mean, covariance)


def test_overflowing_means_are_an_error():
    class Theirs(gpytorch.likelihoods.likelihood._OneDimensionalLikelihood):
        def forward(self, function_samples, *args, **kwargs):
            return torch.distributions.Poisson(function_samples.exp())

    theirs = Theirs()
    mean, covariance = latent(scale=1e4)
    with pytest.raises(NumericalError, match="standard deviations"):
        observation_covariance(as_likelihood(theirs), mean, covariance)

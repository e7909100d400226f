"""What every likelihood must do, run over every likelihood class there is."""

import copy
import importlib
import inspect
import math
import pickle
import pkgutil
from collections.abc import Iterator

import gpytorch
import numpy as np
import pytest
import torch
from scipy import integrate, stats

import gpvi.likelihoods
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.likelihoods import Likelihood

NUM_ROWS = 5
COUNTS = torch.tensor([0.0, 3.0, 1.0, 7.0, 2.0], dtype=torch.float64)


def with_missing(y: torch.Tensor, *rows: int) -> torch.Tensor:
    """A copy of the targets with whole rows set to NaN."""
    y = y.clone()
    y[list(rows)] = float("nan")
    return y


def subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_likelihood_class_is_in_the_suite(all_cases):
    for info in pkgutil.iter_modules(gpvi.likelihoods.__path__, "gpvi.likelihoods."):
        importlib.import_module(info.name)
    concrete = {
        cls
        for cls in subclasses(Likelihood)
        if cls.__module__.startswith("gpvi.") and not inspect.isabstract(cls)
    }
    tested = {type(case.build()) for case in all_cases.values()}
    assert concrete == tested


def test_shapes_with_and_without_batches(case):
    likelihood = case.build()
    for batch in ((), (2,), (4, 2)):
        mean, variance = case.moments(*batch)
        expected = (*batch, NUM_ROWS)
        assert likelihood.variational_expectations(case.y, mean, variance).shape == expected
        assert likelihood.predict_log_density(case.y, mean, variance).shape == expected
        for moment in likelihood.predict_mean_var(mean, variance):
            assert moment.shape[: len(expected)] == expected
            assert bool(moment.isfinite().all())


def test_targets_may_have_more_batch_dimensions_than_the_moments(case, all_cases):
    likelihood = case.build()
    mean, variance = case.moments()
    if case is all_cases["wrapped_generic"]:
        pytest.skip("other random numbers")
    y = torch.stack([case.y, case.y.flip(0)])
    for method in (likelihood.variational_expectations, likelihood.predict_log_density):
        both = method(y, mean, variance)
        assert both.shape == (2, NUM_ROWS)
        torch.testing.assert_close(both[0], method(y[0], mean, variance))
        torch.testing.assert_close(both[1], method(y[1], mean, variance))


def test_zero_variance_gives_the_conditional(smooth):
    likelihood = smooth.build()
    mean, variance = smooth.moments()
    f = mean if likelihood.num_latents == 1 else mean.mT
    exact = likelihood.log_prob(f, smooth.y, **smooth.rows)
    expected = likelihood.variational_expectations(smooth.y, mean, 0 * variance, **smooth.rows)
    density = likelihood.predict_log_density(smooth.y, mean, 0 * variance, **smooth.rows)
    torch.testing.assert_close(expected, exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(density, exact, rtol=1e-9, atol=1e-9)


def test_log_prob_is_that_of_forward(case):
    likelihood = case.build()
    f = case.moments()[0]
    f = f if likelihood.num_latents == 1 else f.mT
    # What is censored is the record, not the observation that forward describes.
    rows = {name: extra for name, extra in case.rows.items() if name != "censored"}
    ours = likelihood.log_prob(f, case.y, **rows)
    theirs = likelihood(f, **case.rows).log_prob(case.y)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_expectation_and_density_match_dense_integration(single):
    likelihood = single.build()
    mean, variance = single.moments()
    if single.tolerance < 1:
        expected = likelihood.variational_expectations(single.y, mean, variance, **single.rows)
        dense = dense_expectation(likelihood, single, mean, variance, log=False)
        torch.testing.assert_close(expected, dense, rtol=0, atol=single.tolerance)
    density = likelihood.predict_log_density(single.y, mean, variance, **single.rows)
    dense = dense_expectation(likelihood, single, mean, variance, log=True)
    torch.testing.assert_close(density, dense, rtol=0, atol=single.density_tolerance)


def dense_expectation(likelihood, case, mean, variance, log):
    grid = np.linspace(-9, 9, 2001)
    f = mean + variance.sqrt() * torch.as_tensor(grid)[:, None]
    values = likelihood.log_prob(f, case.y, **case.rows).detach().numpy()
    values = np.exp(values) if log else values
    integral = integrate.trapezoid(values * stats.norm.pdf(grid)[:, None], grid, axis=0)
    return torch.as_tensor(np.log(integral) if log else integral)


def test_gradients_match_finite_differences(smooth):
    likelihood = smooth.build()
    mean, variance = (t.requires_grad_() for t in smooth.moments())

    def expected(mean, variance):
        return likelihood.variational_expectations(smooth.y, mean, variance, **smooth.rows)

    assert torch.autograd.gradcheck(expected, (mean, variance), atol=1e-6)

    def density(mean, variance):
        return likelihood.predict_log_density(smooth.y, mean, variance, **smooth.rows)

    # The recentred rule enters as a constant, so the two agree as far as the quadrature is exact.
    assert torch.autograd.gradcheck(density, (mean, variance), atol=2e-3, rtol=2e-3)


def test_gradient_at_zero_variance_is_finite_and_right(case, all_cases):
    likelihood = case.build()
    mean, variance = case.moments()
    variance = torch.zeros_like(variance).requires_grad_()
    mean = mean.requires_grad_()
    total = likelihood.variational_expectations(case.y, mean, variance, **case.rows).sum()
    d_mean, d_variance = torch.autograd.grad(total, [mean, variance])
    assert bool(d_mean.isfinite().all()) and bool(d_variance.isfinite().all())
    if likelihood.num_latents > 1 or case is all_cases["wrapped_generic"]:
        return
    f = mean.detach().requires_grad_()
    slope = torch.autograd.grad(
        likelihood.log_prob(f, case.y, **case.rows).sum(), f, create_graph=True
    )[0]
    curvature = 0 * f
    if slope.requires_grad:
        (curvature,) = torch.autograd.grad(
            slope.sum(), f, allow_unused=True, materialize_grads=True
        )
    torch.testing.assert_close(d_variance, 0.5 * curvature, rtol=1e-4, atol=1e-5)


def test_missing_rows_contribute_nothing(case):
    likelihood = case.build()
    mean, variance = (t.requires_grad_() for t in case.moments())
    y = with_missing(case.y, 1, 4)
    rows = {name: with_missing(value, 1, 4) for name, value in case.rows.items()}
    weights = with_missing(torch.full((NUM_ROWS,), 2.0, dtype=torch.float64), 4)
    terms = likelihood.variational_expectations(y, mean, variance, weights=weights, **rows)
    complete = likelihood.variational_expectations(case.y, mean, variance, **case.rows)
    observed = torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(terms[observed], 2 * complete[observed])
    assert terms[~observed].tolist() == [0.0, 0.0]
    inputs = [mean, variance, *likelihood.parameters()]
    inputs = [tensor for tensor in inputs if tensor.requires_grad]
    for gradient in torch.autograd.grad(terms.sum(), inputs, allow_unused=True):
        assert gradient is None or bool(gradient.isfinite().all())
    gradient = torch.autograd.grad(
        likelihood.variational_expectations(y, mean, variance).sum(), mean
    )[0]
    assert not bool(gradient[..., ~observed].any())
    f = mean if likelihood.num_latents == 1 else mean.mT
    assert likelihood.log_prob(f, y)[~observed].tolist() == [0.0, 0.0]


def test_all_rows_missing(case):
    likelihood = case.build()
    mean, variance = case.moments()
    y = with_missing(case.y, *range(NUM_ROWS))
    terms = likelihood.variational_expectations(y, mean, variance)
    assert terms.tolist() == [0.0] * NUM_ROWS
    likelihood.check_targets(y)


def test_scores_of_missing_rows_are_nan_and_objectives_zero(case):
    likelihood = case.build()
    mean, variance = case.moments()
    y = with_missing(case.y, 2)
    assert likelihood.predict_log_density(y, mean, variance).isnan().tolist() == [
        False, False, True, False, False,
    ]  # fmt: skip
    terms = likelihood.log_marginal(y, distribution(mean, variance))
    assert terms[2].item() == 0.0 and bool(terms.isfinite().all())


def distribution(mean, variance):
    """A distribution of f with the given moments and some correlation."""
    root = variance.sqrt()
    size = mean.shape[-1]
    correlation = 0.5 + 0.5 * torch.eye(size, dtype=mean.dtype)
    covariance = root.unsqueeze(-1) * correlation * root.unsqueeze(-2)
    normal = gpytorch.distributions.MultivariateNormal(mean, covariance)
    if mean.dim() == 1:
        return normal
    return gpytorch.distributions.MultitaskMultivariateNormal.from_batch_mvn(normal)


def test_weights_count_like_repeated_rows(case, all_cases):
    likelihood = case.build()
    if case is all_cases["wrapped_fixed_noise"]:
        pytest.skip("its noise is tied to the number of rows")
    mean, variance = case.moments()
    count = torch.tensor([1, 2, 0, 3, 1])
    weighted = likelihood.variational_expectations(
        case.y, mean, variance, weights=count, **case.rows
    )
    repeated = likelihood.variational_expectations(
        case.y.repeat_interleave(count, 0),
        mean.repeat_interleave(count, -1),
        variance.repeat_interleave(count, -1),
        **{name: value.repeat_interleave(count) for name, value in case.rows.items()},
    )
    if case is all_cases["wrapped_generic"]:
        return
    torch.testing.assert_close(weighted.sum(), repeated.sum())
    density = likelihood.predict_log_density(case.y, mean, variance, weights=count)
    torch.testing.assert_close(
        density, count * likelihood.predict_log_density(case.y, mean, variance)
    )


def test_expected_log_prob_reads_moments_unclamped(case):
    likelihood = case.build()
    mean, variance = case.moments()
    for scale in (1.0, 1e-9):
        small = variance * scale
        ours = likelihood.expected_log_prob(case.y, distribution(mean, small), **case.rows)
        theirs = likelihood.variational_expectations(case.y, mean, small, **case.rows)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_unknown_rows_and_wrong_shapes_are_refused(case):
    likelihood = case.build()
    mean, variance = case.moments()
    with pytest.raises(InputError, match="weights"):
        likelihood.variational_expectations(case.y, mean, variance, wieghts=torch.ones(5))
    with pytest.raises(InputError, match="wieghts"):
        likelihood.predict_mean_var(mean, variance, wieghts=torch.ones(5))
    with pytest.raises(InputError, match="rows"):
        likelihood.variational_expectations(case.y, mean, variance, weights=torch.ones(3))
    with pytest.raises(InputError, match="targets of shape"):
        likelihood.variational_expectations(case.y[:4], mean, variance)
    with pytest.raises(InputError, match="MultivariateNormal"):
        likelihood.expected_log_prob(case.y, torch.distributions.Normal(mean, 1.0))


def test_column_targets_are_refused(single):
    likelihood = single.build()
    with pytest.raises(InputError, match="flattened"):
        likelihood.variational_expectations(single.y[:, None], *single.moments())


def test_check_targets(case):
    likelihood = case.build()
    likelihood.check_targets(with_missing(case.y, 0), **case.rows)
    likelihood.check_targets(case.y, weights=torch.zeros(NUM_ROWS))
    with pytest.raises(InputError, match="weights"):
        likelihood.check_targets(case.y, weights=-torch.ones(NUM_ROWS))
    for name, value in case.rows.items():
        with pytest.raises(InputError, match=name):
            likelihood.check_targets(case.y, **{name: -value - 1})
        with pytest.raises(InputError, match=name):
            likelihood.check_targets(case.y, **{name: with_missing(value, 3)})
    infinite = case.y.clone()
    infinite[2] = math.inf
    with pytest.raises(InputError, match="infinite"):
        likelihood.check_targets(infinite)
    if case.impossible is not None:
        impossible = case.y.clone()
        impossible[2] = case.impossible
        with pytest.raises(InputError, match=str(case.impossible)):
            likelihood.check_targets(impossible)


def test_float32_stays_float32_and_agrees(case, all_cases):
    if case is all_cases["wrapped_generic"]:
        pytest.skip("other random numbers")
    likelihood = case.build()
    mean, variance = case.moments()
    exact = likelihood.variational_expectations(case.y, mean, variance, **case.rows)
    density = likelihood.predict_log_density(case.y, mean, variance)
    single = copy.deepcopy(likelihood).float()
    rough = single.variational_expectations(
        case.y.float(), mean.float(), variance.float(), **case.rows
    )
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), exact, rtol=1e-4, atol=1e-4)
    rough = single.predict_log_density(case.y.float(), mean.float(), variance.float())
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), density, rtol=1e-4, atol=1e-4)
    # No rounding stays behind after a detour through float32 (parameters aside).
    if not list(likelihood.parameters()) and case is not all_cases["wrapped_fixed_noise"]:
        again = single.double().variational_expectations(case.y, mean, variance, **case.rows)
        assert torch.equal(again, exact)


def test_pickle_deepcopy_and_state_dict(case):
    likelihood = case.build()
    mean, variance = case.moments()
    exact = likelihood.variational_expectations(case.y, mean, variance, **case.rows)
    for clone in (pickle.loads(pickle.dumps(likelihood)), copy.deepcopy(likelihood)):
        assert torch.equal(
            clone.variational_expectations(case.y, mean, variance, **case.rows), exact
        )
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.add_(0.3)
    fresh = case.build()
    fresh.load_state_dict(likelihood.state_dict())
    torch.testing.assert_close(
        fresh.variational_expectations(case.y, mean, variance),
        likelihood.variational_expectations(case.y, mean, variance),
        rtol=0,
        atol=0,
    )


def test_global_random_state_is_untouched(case):
    likelihood, another = case.build(), case.build()
    mean, variance = case.moments()
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = likelihood.variational_expectations(case.y, mean, variance, **case.rows)
    likelihood.predict_log_density(case.y, mean, variance)
    likelihood.predict_mean_var(mean, variance)
    likelihood.initial_latent(case.y, **case.rows)
    as_new = another.variational_expectations(case.y, mean, variance, **case.rows)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, as_new)


def test_initial_latent_is_usable(case):
    likelihood = case.build()
    latent = likelihood.initial_latent(with_missing(case.y, 1), **case.rows)
    if latent is None:
        assert likelihood.num_latents > 1 or "Wrapped" in type(likelihood).__name__
        return
    others = torch.tensor([True, False, True, True, True])
    assert latent.shape == case.y.shape and bool(latent.isfinite().all())
    torch.testing.assert_close(latent[1], latent[others].mean())
    observed = {name: value[others] for name, value in case.rows.items()}
    complete = likelihood.initial_latent(case.y[others], **observed)
    torch.testing.assert_close(latent[others], complete)
    # Better than starting at zero, for the data as a whole.
    zero = torch.zeros_like(latent)
    start = likelihood.log_prob(latent, case.y, **case.rows)[others].sum()
    assert start > likelihood.log_prob(zero, case.y, **case.rows)[others].sum()
    nothing = likelihood.initial_latent(with_missing(case.y, *range(NUM_ROWS)), **case.rows)
    assert nothing.tolist() == [0.0] * NUM_ROWS


def test_gaussian_noise_says_whether_y_is_gaussian(case, all_cases):
    likelihood = case.build()
    noise = likelihood.gaussian_noise(case.y, weights=torch.ones(NUM_ROWS), **case.rows)
    mean = case.moments()[0]
    conditional = likelihood(mean if mean.dim() == 1 else mean.mT, **case.rows)
    is_gaussian = isinstance(conditional, torch.distributions.Normal)
    is_gaussian = is_gaussian and "censored" not in likelihood.row_arguments
    is_gaussian = is_gaussian and likelihood.num_latents == 1
    if case is all_cases["wrapped_generic"]:
        assert noise is None  # of unknown kind, though it happens to be normal
    else:
        assert (noise is not None) == is_gaussian
    if noise is not None:
        torch.testing.assert_close(noise.expand(NUM_ROWS), conditional.variance)


def test_log_concavity_is_declared_truly(case):
    likelihood = case.build()
    if likelihood.num_latents > 1:
        return
    grid = torch.linspace(-6, 6, 401, dtype=torch.float64)[:, None].expand(-1, NUM_ROWS)
    values = likelihood.log_prob(grid, case.y)
    bends_up = bool((values.diff(dim=0).diff(dim=0) > 1e-9).any())
    assert likelihood.is_log_concave <= (not bends_up)
    if type(likelihood).__name__ == "StudentTLikelihood":
        assert bends_up and not likelihood.is_log_concave


def test_quantiles_are_ordered_and_invert_simulations(single, all_cases):
    likelihood = single.build()
    mean, variance = single.moments()
    levels = [0.05, 0.5, 0.95]
    quantiles = likelihood.predict_quantiles(levels, mean, variance)
    assert quantiles.shape == (3, NUM_ROWS)
    assert bool((quantiles.diff(dim=0) >= 0).all())
    if single is all_cases["wrapped_fixed_noise"]:
        pytest.skip("its noise is tied to the number of rows")
    # Smallest value with P(Y <= value) >= level, up to Monte Carlo error.
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        f = mean + variance.sqrt() * torch.randn(200_000, 1, dtype=torch.float64)
        y = likelihood(f).sample()
    for level, quantile in zip(levels, quantiles, strict=True):
        at_most = (y <= quantile + 1e-9).double().mean(0)
        below = (y < quantile - 1e-9).double().mean(0)
        assert bool((at_most > level - 0.006).all()) and bool((below < level + 0.006).all())


def test_predictive_moments_match_simulations(single):
    likelihood = single.build()
    mean, variance = single.moments()
    centre, spread = likelihood.predict_mean_var(mean, variance)
    with torch.random.fork_rng([]):
        torch.manual_seed(6)
        f = mean + variance.sqrt() * torch.randn(400_000, 1, dtype=torch.float64)
        y = likelihood(f).sample().double()
    torch.testing.assert_close(y.mean(0), centre, rtol=0.02, atol=0.02)
    torch.testing.assert_close(y.var(0), spread, rtol=0.15, atol=0.02)


def test_quantiles_of_several_latents_are_refused(several):
    likelihood = several.build()
    if "Heteroscedastic" in type(likelihood).__name__:
        return  # one number about one location
    with pytest.raises(UnsupportedError, match="predict_mean_var"):
        likelihood.predict_quantiles([0.5], *several.moments())


@pytest.mark.parametrize("levels", [[0.0], [1.0, 0.5], [-0.1], 0.5, [float("nan")]])
def test_impossible_levels_are_refused(levels, all_cases):
    likelihood = all_cases["poisson"].build()
    mean, variance = all_cases["poisson"].moments()
    with pytest.raises(InputError, match="between 0 and 1"):
        likelihood.predict_quantiles(levels, mean, variance)


def test_integer_targets_are_accepted(all_cases):
    likelihood = all_cases["poisson"].build()
    mean, variance = all_cases["poisson"].moments()
    whole = likelihood.variational_expectations(COUNTS.long(), mean, variance)
    assert torch.equal(whole, likelihood.variational_expectations(COUNTS, mean, variance))
    assert likelihood.initial_latent(COUNTS.long()).dtype == torch.float64


def test_expectation_slopes_are_derivatives(case):
    """The short cuts agree with automatic differentiation, with gaps and weights."""
    likelihood, y = case.build(), with_missing(case.y, 1)
    weights = torch.linspace(0.0, 2.0, NUM_ROWS, dtype=torch.float64)
    if "weights" in case.rows:
        weights = case.rows["weights"]
    rows = {**case.rows, "weights": weights}
    mean, variance = (t.clone().requires_grad_() for t in case.moments())
    value = likelihood.variational_expectations(y, mean, variance, **rows)
    expected = torch.autograd.grad(value.sum(), (mean, variance))
    actual = gpvi.likelihoods.expectation_slopes(likelihood, y, mean, variance, **rows)
    assert not any(term.requires_grad for term in actual)
    torch.testing.assert_close(actual, (value.detach(), *expected), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "parent", [gpvi.likelihoods.PoissonLikelihood, gpvi.likelihoods.BernoulliLikelihood]
)
def test_short_cuts_are_not_inherited_past_an_override(parent):
    class Doubled(parent):
        def _variational_expectations(self, y, mean, variance, **rows):
            return 2.0 * super()._variational_expectations(y, mean, variance, **rows)

    y, zero, one = torch.ones(1).double(), torch.zeros(1).double(), torch.ones(1).double()
    single = gpvi.likelihoods.expectation_slopes(parent(), y, zero, one)
    twice = gpvi.likelihoods.expectation_slopes(Doubled(), y, zero, one)
    torch.testing.assert_close(twice, tuple(2.0 * term for term in single), atol=1e-9, rtol=1e-9)

"""What every approximation must do, run over every approximation and variant of batch dims."""

import copy
import importlib
import inspect
import io
import math
import pickle
import pkgutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import gpvi.approximations
from gpvi.approximations import Approximation, Draw, Posterior, Sites
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import elbo
from gpvi.likelihoods import GaussianLikelihood

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def close(actual: Tensor, expected: Tensor, **tolerance: float) -> None:
    """Equal in shape, dtype and, up to rounding, value."""
    torch.testing.assert_close(actual, expected, **{**EXACT, **tolerance})


def subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def predictions(problem, posterior: Posterior) -> list[Tensor]:
    """Everything a posterior says, as a list of tensors."""
    x, groups = problem.new_inputs()
    here, there = posterior.marginals(), posterior.predict(x, groups=groups)
    draw = posterior.rsample((2,), generator=seeded())
    return [
        posterior.log_partition,
        posterior.kl(),
        here.mean,
        here.variance,
        there.mean,
        there.variance,
        draw.values,
        draw.basis,
        posterior.log_ratio(draw),
    ]


def test_every_approximation_is_in_the_suite(suite):
    for info in pkgutil.iter_modules(gpvi.approximations.__path__, "gpvi.approximations."):
        importlib.import_module(info.name)
    concrete = {
        cls
        for cls in subclasses(Approximation)
        if cls.__module__.startswith("gpvi.") and not inspect.isabstract(cls)
    }
    assert concrete == {type(entry.build(torch.float64)) for entry in suite.ENTRIES.values()}
    for entry in suite.ENTRIES.values():
        assert set(entry.variants) <= set(suite.VARIANTS)


def test_posterior_equals_dense_formulas(problem, suite):
    posterior = problem.posterior()
    close(posterior.log_partition, suite.totals(problem, lambda dense: dense.log_partition()))
    close(posterior.kl(), suite.totals(problem, lambda dense: dense.kl()))
    marginals = posterior.marginals()
    close(marginals.mean, suite.rows(problem, lambda dense: dense.moments()[0]))
    explained = suite.rows(problem, lambda dense: dense.moments()[1].diagonal(dim1=-2, dim2=-1))
    close(marginals.explained, explained)
    assert (marginals.residual is not None) == problem.entry.has_residual
    if marginals.residual is not None:
        close(marginals.residual, suite.rows(problem, lambda dense: dense.residual))
        close(posterior.prior.residual, marginals.residual)
        close(marginals.variance, marginals.explained + marginals.residual)


def test_sites_wider_than_the_prior(problem, suite):
    """A negative precision is fine as long as the posterior stays proper."""
    if problem.entry.lowest_precision == 0.0:
        pytest.skip("takes non-negative precisions only")
    lam2 = problem.sites.lam2.clone()
    lam2[..., 0] = problem.entry.lowest_precision
    problem = problem.with_sites(problem.sites.lam1, lam2)
    tolerance = {"rtol": 1e-7, "atol": 1e-7}  # the prior's own factor carries a jitter of 1e-10
    posterior = problem.posterior()
    close(
        posterior.log_partition,
        suite.totals(problem, lambda dense: dense.log_partition()),
        **tolerance,
    )
    close(posterior.kl(), suite.totals(problem, lambda dense: dense.kl()), **tolerance)
    mean = suite.rows(problem, lambda dense: dense.moments()[0])
    variance = suite.rows(problem, lambda dense: dense.moments()[1].diagonal(dim1=-2, dim2=-1))
    close(posterior.marginals().mean, mean, **tolerance)
    close(posterior.marginals().explained, variance, **tolerance)
    x, groups = problem.new_inputs()
    if groups is None:
        moments = posterior.predict(x)
        mean, covariance = suite.Reference(problem).predict(x)
        close(moments.mean, mean, **tolerance)
        close(moments.variance, covariance.diagonal(dim1=-2, dim2=-1), **tolerance)
        close(posterior.predict(x, joint=True).covariance_matrix, covariance, **tolerance)
    kl = -posterior.log_ratio(posterior.rsample((4000,), generator=seeded(1)))
    assert_mean_is(kl, posterior.kl())


def test_one_conditioning_is_exact_for_gaussian_noise(problem, suite):
    """The ELBO is the collapsed bound, and the evidence itself where nothing is left over."""
    noise = 0.3
    shape = torch.broadcast_shapes(problem.sites.lam1.shape, problem.prior().mean.shape)
    y = suite.uniform(*shape, seed=11, low=-2.0, high=2.0)
    problem = problem.with_sites(y / noise, torch.full(shape, 1 / noise, dtype=torch.float64))

    def bound(dense) -> Tensor:
        sites = dense.problem.sites
        covariance = dense.prior_covariance + noise * torch.eye(
            sites.lam1.shape[-1], dtype=torch.float64
        )
        evidence = torch.distributions.MultivariateNormal(dense.prior_mean, covariance)
        return evidence.log_prob(sites.lam1 * noise) - 0.5 * dense.residual.sum(-1) / noise

    actual = elbo(problem.posterior(), GaussianLikelihood(noise=noise), y)
    close(actual, suite.totals(problem, bound), rtol=1e-8, atol=1e-8)


def test_kl_is_expected_log_site_less_log_partition(problem):
    posterior = problem.posterior()
    q, sites = posterior.marginals(), problem.sites
    expected = sites.lam1 * q.mean - 0.5 * sites.lam2 * (q.mean.square() + q.explained)
    close(posterior.kl(), posterior.sum_rows(expected) - posterior.log_partition)


def assert_mean_is(samples: Tensor, expected: Tensor, errors: float = 5.0) -> None:
    """The mean over the first axis lies within some standard errors."""
    bound = errors * samples.std(0) / math.sqrt(len(samples)) + 1e-9
    assert bool(((samples.mean(0) - expected).abs() <= bound).all())


def test_log_ratio_averages_to_minus_the_kl(problem):
    posterior = problem.posterior()
    draw = posterior.rsample((4000,), generator=seeded(1))
    assert posterior.log_ratio(draw).shape[1:] == posterior.kl().shape
    assert_mean_is(-posterior.log_ratio(draw), posterior.kl())


def test_log_ratio_is_prior_density_over_posterior_density(ungrouped_problem):
    """Against the density of a dense Gaussian at the inputs of the basis."""
    if not ungrouped_problem.entry.basis_is_function:
        pytest.skip("the basis has a test of its own")
    posterior = ungrouped_problem.posterior()
    z = ungrouped_problem.entry.basis_inputs(ungrouped_problem.approximation, ungrouped_problem.x)
    if ungrouped_problem.variant == "batch" and z is not ungrouped_problem.x:
        z = z.expand(3, *([1] * (3 - z.dim())), *z.shape)
    q = posterior.predict(z, joint=True)
    p = ungrouped_problem.approximation.prior(ungrouped_problem.gp, z)
    draw = posterior.rsample((3,), generator=seeded())
    log_q = torch.distributions.MultivariateNormal(q.mean, q.covariance_matrix).log_prob(draw.basis)
    zero = Sites.zeros(ungrouped_problem.sites.lam1.shape)
    prior_there = ungrouped_problem.prior().condition(zero).predict(z, joint=True)
    log_p = torch.distributions.MultivariateNormal(p.mean, prior_there.covariance_matrix).log_prob(
        draw.basis
    )
    close(posterior.log_ratio(draw), log_p - log_q, rtol=1e-5, atol=1e-5)
    close(posterior.prior.log_prob(draw.basis), log_p, rtol=1e-5, atol=1e-5)


def test_predictions_at_the_data_rows_are_the_marginals(problem):
    posterior = problem.posterior()
    here, there = posterior.marginals(), posterior.predict(problem.x, groups=problem.groups)
    close(there.mean, here.mean)
    close(there.variance, here.variance)


def test_predictions_elsewhere_equal_dense_formulas(problem, suite):
    x, groups = problem.new_inputs()
    posterior = problem.posterior()
    moments = posterior.predict(x, groups=groups)
    if groups is None:
        mean, covariance = suite.Reference(problem).predict(x)
        close(moments.mean, mean)
        close(moments.variance, covariance.diagonal(dim1=-2, dim2=-1))
        return
    for rows, block in problem.blocks():
        chosen = groups == problem.groups[rows[0]]
        mean, covariance = suite.Reference(block).predict(x[chosen])
        close(moments.mean[..., chosen], mean)
        close(moments.variance[..., chosen], covariance.diagonal(dim1=-2, dim2=-1))


def test_joint_predictions(problem, suite):
    x, groups = problem.new_inputs()
    posterior = problem.posterior()
    if groups is not None:
        with pytest.raises(UnsupportedError, match="jointly"):
            posterior.predict(x, joint=True, groups=groups)
        return
    joint, moments = posterior.predict(x, joint=True), posterior.predict(x)
    close(joint.mean, moments.mean)
    close(joint.variance, moments.variance)
    close(joint.covariance_matrix, suite.Reference(problem).predict(x)[1])
    assert bool((torch.linalg.eigvalsh(joint.covariance_matrix) > -1e-10).all())
    # Rows so close, or equal, that the covariance is singular in floating point.
    again = torch.cat([x, x, x + 1e-9], -2)
    joint, moments = posterior.predict(again, joint=True), posterior.predict(again)
    close(joint.variance, moments.variance)
    assert joint.mean.shape == moments.mean.shape == joint.variance.shape


def assert_moments(samples: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Sample mean and covariance within six standard errors."""
    number = len(samples)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    bound = 6 * (variance / number).sqrt() + 1e-9
    assert bool(((samples.mean(0) - mean).abs() < bound).all())
    centred = (samples - samples.mean(0)).movedim(0, -1)
    estimate = centred @ centred.mT / number
    spread = variance.unsqueeze(-1) * variance.unsqueeze(-2) + covariance.square()
    assert bool(((estimate - covariance).abs() < 6 * (spread / number).sqrt() + 1e-6).all())


def test_samples_have_the_joint_moments(problem):
    posterior = problem.posterior()
    draw = posterior.rsample((4000,), generator=seeded(2))
    if problem.groups is None:
        q = posterior.predict(problem.x, joint=True)
        assert_moments(draw.values, q.mean, q.covariance_matrix)
        return
    for rows, block in problem.blocks():
        q = block.posterior().predict(block.x, joint=True)
        assert_moments(draw.values[..., rows], q.mean, q.covariance_matrix)
    # Rows of different groups are independent.
    first, second = (rows for rows, _ in problem.blocks()[:2])
    centred = draw.values - draw.values.mean(0)
    scaled = centred / centred.std(0)
    correlation = torch.einsum("s...i,s...j->...ij", scaled[..., first], scaled[..., second]) / 4000
    assert bool((correlation.abs() < 6 / math.sqrt(4000)).all())


def test_samples_at_new_inputs_have_the_joint_moments(problem):
    posterior = problem.posterior()
    x, groups = problem.new_inputs()
    if groups is not None or not problem.entry.samples_anywhere:
        with pytest.raises(UnsupportedError):
            posterior.rsample((2,), x)
        return
    draw = posterior.rsample((4000,), x, generator=seeded(3))
    q = posterior.predict(x, joint=True)
    assert_moments(draw.values, q.mean, q.covariance_matrix)
    assert draw.basis.shape[-1] == posterior.prior.num_basis
    assert_mean_is(-posterior.log_ratio(draw), posterior.kl())


def test_residual_options_of_samples(problem):
    """Without residual a draw is the projection; an unknown option is refused."""
    posterior = problem.posterior()
    with pytest.raises(InputError, match="residual"):
        posterior.rsample(residual="diagonal")
    marginals = posterior.marginals()
    for option, variance in (
        ("none", marginals.explained),
        ("independent", marginals.variance),
        ("joint", marginals.variance),
    ):
        values = posterior.rsample((4000,), residual=option, generator=seeded(4)).values
        error = (values.var(0) - variance).abs() / variance
        assert bool((error < 6 * math.sqrt(2 / 4000)).all())


def test_whitening_is_inverted_and_standardises_the_prior(problem, suite):
    prior = problem.prior()
    zeros = prior.condition(Sites.zeros(problem.sites.lam1.shape))
    basis = zeros.rsample((4000,), generator=seeded(5)).basis
    white = prior.whiten(basis)
    close(prior.unwhiten(white), basis, rtol=1e-8, atol=1e-8)
    identity = torch.eye(white.shape[-1], dtype=white.dtype).expand(*white.shape[1:], -1)
    assert_moments(white, torch.zeros_like(white[0]), identity)
    # log N(f | m, K) - log N(e | 0, I) is a constant, minus half the log-determinant.
    if problem.groups is None:
        standard = torch.distributions.Normal(0.0, 1.0).log_prob(white).sum(-1)
        difference = prior.log_prob(basis) - standard
        close(difference, difference[:1].expand_as(difference), rtol=1e-8, atol=1e-8)


def test_zero_sites_give_the_prior(problem):
    prior = problem.prior()
    posterior = prior.condition(Sites.zeros(problem.sites.lam1.shape))
    assert bool((posterior.kl().abs() < 1e-12).all())
    assert bool((posterior.log_partition.abs() < 1e-12).all())
    x, groups = problem.new_inputs()
    for inputs, moments in (
        (problem.x, posterior.marginals()),
        (x, posterior.predict(x, groups=groups)),
    ):
        shape = moments.mean.shape
        close(moments.mean, problem.gp.mean(inputs).expand(shape), rtol=1e-7, atol=1e-7)
        close(moments.variance, problem.gp.variance(inputs).expand(shape), rtol=1e-7, atol=1e-7)


def test_sites_add_up(problem, suite):
    """The product of two sets of sites is the sum of their parameters."""
    first, second = 0.3 * problem.sites, 0.7 * problem.sites
    posterior = problem.prior().condition(first + second)
    close(posterior.log_partition, problem.posterior().log_partition)
    close(posterior.marginals().variance, problem.posterior().marginals().variance)
    # E_prior[t1 t2] / E_prior[t1] = E_q1[t2], estimated from draws of q1.
    start = problem.prior().condition(first)
    draw = start.rsample((6000,), residual="none", generator=seeded(6))
    rows = second.lam1 * draw.values - 0.5 * second.lam2 * draw.values.square()
    weights = torch.stack([start.sum_rows(row) for row in rows]).exp()
    assert_mean_is(weights, (posterior.log_partition - start.log_partition).exp())


def test_a_missing_row_is_a_dropped_row(problem):
    """The second row has a zero site; in the groups variant it is half of its group."""
    rows = torch.arange(problem.x.shape[-2])
    dropped = problem.take(rows[rows != 1])
    whole, part = problem.posterior(), dropped.posterior()
    close(whole.log_partition, part.log_partition)
    close(whole.kl(), part.kl())
    x, groups = problem.new_inputs()
    close(whole.predict(x, groups=groups).mean, part.predict(x, groups=groups).mean)
    close(whole.predict(x, groups=groups).variance, part.predict(x, groups=groups).variance)
    poisoned = problem.sites.lam1.clone()
    poisoned[..., 1] = torch.nan
    masked = Sites(poisoned, problem.sites.lam2).mask(rows != 1)
    close(problem.prior().condition(masked).log_partition, whole.log_partition)


def test_order_of_rows_does_not_matter(problem):
    order = torch.randperm(problem.x.shape[-2], generator=seeded(7))
    whole, shuffled = problem.posterior(), problem.take(order).posterior()
    close(shuffled.log_partition, whole.log_partition)
    close(shuffled.kl(), whole.kl())
    close(shuffled.marginals().variance, whole.marginals().variance[..., order])
    x, groups = problem.new_inputs()
    close(shuffled.predict(x, groups=groups).mean, whole.predict(x, groups=groups).mean)


def test_flat_groups_equal_separate_fits(grouped_problem):
    posterior = grouped_problem.posterior()
    draw = posterior.rsample((3,), generator=seeded())
    assert draw.values.shape == (3, *grouped_problem.sites.lam1.shape)
    density, ratio = posterior.prior.log_prob(draw.basis), posterior.log_ratio(draw)
    for g, (rows, block) in enumerate(grouped_problem.blocks()):
        alone = block.posterior()
        close(posterior.log_partition[g], alone.log_partition)
        close(posterior.kl()[g], alone.kl())
        close(posterior.marginals().mean[..., rows], alone.marginals().mean)
        close(posterior.prior.mean[..., rows], alone.prior.mean)
        assert density.shape == ratio.shape == (3, *posterior.kl().shape)
        if not grouped_problem.entry.basis_is_function:
            continue  # paths of states have tests of their own
        # The padded part of a basis of rows is no part of the group's density.
        basis = draw.basis[:, g]
        if not grouped_problem.entry.finite_basis:
            basis = basis[..., : len(rows)]
            close(basis, draw.values[..., rows])
        close(density[:, g], alone.prior.log_prob(basis), atol=1e-7)
        close(ratio[:, g], alone.log_ratio(Draw(basis, basis)))
        white = posterior.prior.whiten(draw.basis)[:, g][..., : basis.shape[-1]]
        close(white, alone.prior.whiten(basis), atol=1e-7, rtol=1e-7)


def test_flat_groups_equal_a_padded_batch(grouped_problem):
    index = grouped_problem.plan.groups
    padded = replace(
        grouped_problem,
        groups=None,
        x=index.pad_inputs(grouped_problem.x, len(grouped_problem.gp.batch_shape)),
        sites=Sites(
            index.pad_rows(grouped_problem.sites.lam1), index.pad_rows(grouped_problem.sites.lam2)
        ),
    )
    flat, batch = grouped_problem.posterior(), padded.posterior()
    close(flat.log_partition, batch.log_partition)
    close(flat.kl(), batch.kl())
    close(flat.marginals().variance, index.flatten(batch.marginals().variance))
    close(flat.sum_rows(grouped_problem.sites.lam1), padded.sites.lam1.sum(-1))


def test_batch_of_kernels_equals_separate_kernels(latent_problem, suite):
    whole = latent_problem.posterior()
    for latent in range(suite.NUM_LATENTS):
        gp = suite.make_process(latent_problem.entry, torch.Size())
        gp.load_state_dict(
            {
                name: value[latent].reshape(gp.state_dict()[name].shape)
                for name, value in latent_problem.gp.state_dict().items()
                if name in gp.state_dict() and value.dim() and not name.endswith("active_dims")
            },
            strict=False,
        )
        approximation = latent_problem.entry.build(torch.float64)
        z = getattr(approximation, "inducing_points", None)
        if z is not None and z.dim() == 3:
            approximation = type(approximation)(inducing_points=z[latent])
        alone = replace(
            latent_problem,
            gp=gp,
            approximation=approximation,
            x=latent_problem.x.squeeze(-3)
            if latent_problem.variant == "batch"
            else latent_problem.x,
            sites=Sites(
                latent_problem.sites.lam1.select(-2, latent),
                latent_problem.sites.lam2.select(-2, latent),
            ),
        ).posterior()
        close(whole.log_partition[..., latent], alone.log_partition)
        close(whole.kl()[..., latent], alone.kl())
        close(whole.marginals().variance.select(-2, latent), alone.marginals().variance)


def test_sites_broadcast_to_the_batch_of_the_prior(problem):
    """One set of sites for all latents is that set repeated."""
    single = Sites(
        *(
            value.reshape(-1, value.shape[-1])[0]
            for value in (problem.sites.lam1, problem.sites.lam2)
        )
    )
    shape = problem.prior().mean.shape
    repeated = Sites(single.lam1.expand(shape), single.lam2.expand(shape))
    one, many = problem.prior().condition(single), problem.prior().condition(repeated)
    close(one.log_partition, many.log_partition)
    close(one.kl(), many.kl())
    close(one.marginals().mean, many.marginals().mean)


def test_spaces_of_sites(problem):
    prior = problem.prior()
    if not problem.entry.finite_basis:
        assert prior.site_spaces == ("data",)
        for space in ("basis", "whitened"):
            with pytest.raises(UnsupportedError, match=f"not on '{space}'"):
                prior.condition(Sites.zeros((prior.num_basis,), on=space))
        with pytest.raises(UnsupportedError, match="cannot be tied"):
            prior.tie(problem.sites)
        return
    tied = prior.tie(problem.sites)
    whole, basis = prior.condition(problem.sites), prior.condition(tied)
    close(basis.kl(), whole.kl())
    close(basis.marginals().variance, whole.marginals().variance)
    draw = whole.rsample((3,), generator=seeded())
    close(basis.log_ratio(draw), whole.log_ratio(draw), rtol=1e-7, atol=1e-7)
    with pytest.raises(InputError, match="data rows"):
        prior.tie(tied)


def everything(problem, sampled: bool) -> Tensor:
    """All outputs of the three stages, flat."""
    posterior = problem.posterior()
    new, groups = problem.new_inputs(2)
    moments, there = posterior.marginals(), posterior.predict(new, groups=groups)
    parts = [
        posterior.log_partition,
        posterior.kl(),
        moments.mean,
        moments.variance,
        there.mean,
        there.variance,
    ]
    if sampled:
        draw = posterior.rsample((1,), generator=seeded())
        parts += [
            draw.values,
            posterior.log_ratio(draw),
            posterior.prior.log_prob(draw.basis),
            posterior.prior.whiten(draw.basis),
        ]
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("sampled", [True, False])
def test_gradients_of_everything(problem, sampled):
    """In sites, a zero one included, inputs, structure parameters, kernel and mean parameters."""
    if not problem.entry.smooth_at_zero_sites:
        pytest.skip("has derivatives elsewhere, which are checked in tests of its own")
    # A plan is not differentiated: moved inputs keep their places and neighbours.
    problem = replace(problem, held_plan=problem.plan)
    problem.prior()
    modules = torch.nn.ModuleDict({"gp": problem.gp, "approximation": problem.approximation})

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = modules

        def forward(self, x: Tensor, lam1: Tensor, lam2: Tensor) -> Tensor:
            parts, sites = dict(self.parts), Sites(lam1, lam2)
            return everything(replace(problem, **parts, x=x, sites=sites), sampled)

    outputs = Outputs()
    names = [name for name, _ in outputs.named_parameters()]

    def function(x: Tensor, lam1: Tensor, lam2: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(outputs, state, (x, lam1, lam2))

    inputs = [problem.x, problem.sites.lam1, problem.sites.lam2, *outputs.parameters()]
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True, atol=1e-4, rtol=1e-3)


def test_no_gradient_is_nan_at_a_zero_site(problem):
    sites = Sites(
        problem.sites.lam1.clone().requires_grad_(), problem.sites.lam2.clone().requires_grad_()
    )
    posterior = problem.prior().condition(sites)
    total = sum(value.sum() for value in predictions(problem, posterior))
    total.backward()
    assert bool(sites.lam1.grad.isfinite().all()) and bool(sites.lam2.grad.isfinite().all())
    for parameter in problem.gp.parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())
        parameter.grad = None
    for parameter in problem.approximation.parameters():
        assert bool(parameter.grad.isfinite().all())
        parameter.grad = None


def test_log_partition_generates_the_moments(problem):
    """It is a partition function: d/dlam1 = mean, d/dlam2 = -(mean^2 + explained) / 2."""
    lam1 = problem.sites.lam1.clone().requires_grad_()
    lam2 = problem.sites.lam2.clone().requires_grad_()
    posterior = problem.with_sites(lam1, lam2).posterior()
    first, second = torch.autograd.grad(posterior.log_partition.sum(), (lam1, lam2))
    moments = posterior.marginals()
    close(first, moments.mean.detach(), rtol=1e-7, atol=1e-7)
    expected = -0.5 * (moments.mean.square() + moments.explained).detach()
    close(second, expected, rtol=1e-7, atol=1e-7)


def test_single_precision(problem):
    small = problem.to(torch.float32)
    for actual, expected in zip(
        predictions(small, small.posterior())[:6],
        predictions(problem, problem.posterior())[:6],
        strict=True,
    ):
        assert actual.dtype == torch.float32
        close(actual.double(), expected, rtol=2e-3, atol=2e-3)
    assert all(bool(value.isfinite().all()) for value in predictions(small, small.posterior())[6:])


def test_new_tensors_follow_the_device_of_the_data(problem):
    """With another default device, whatever is created without naming one meets tensors of data."""
    expected = predictions(problem, problem.posterior())
    x, groups = problem.new_inputs()
    with torch.device("meta"):
        posterior = problem.posterior()
        actual = [posterior.log_partition, posterior.kl(), *vars(posterior.marginals()).values()]
        moments = posterior.predict(x, groups=groups)
        draw = posterior.rsample((2,), generator=seeded())
        actual += [moments.mean, draw.values, posterior.log_ratio(draw)]
        actual += [posterior.prior.whiten(draw.basis), posterior.prior.log_prob(draw.basis)]
        if groups is None:
            actual.append(posterior.predict(x, joint=True).covariance_matrix)
        if problem.entry.finite_basis:
            actual.append(posterior.prior.tie(problem.sites).lam2)
        if problem.entry.samples_anywhere and groups is None:
            actual.append(posterior.rsample((2,), x).values)
    assert all(value.device.type == "cpu" for value in actual if value is not None)
    close(actual[0], expected[0])
    close(draw.values, expected[6])


def test_detached_posteriors_are_copied_and_pickled(problem):
    posterior = problem.posterior()
    expected = [value.detach() for value in predictions(problem, posterior)]
    detached = posterior.detach()
    for copied in (detached, copy.deepcopy(detached), pickle.loads(pickle.dumps(detached))):
        for actual, value in zip(predictions(problem, copied), expected, strict=True):
            assert not actual.requires_grad
            close(actual, value)
    assert not problem.prior().detach().mean.requires_grad
    compact = posterior.compact().detach()
    x, groups = problem.new_inputs()
    close(compact.predict(x, groups=groups).variance, expected[5])
    close(compact.kl(), expected[1])


def test_finished_posteriors_do_not_move(problem):
    """Not with optimiser steps, nor with changes to inputs, structure parameters or sites."""
    gp = copy.deepcopy(problem.gp)
    approximation = copy.deepcopy(problem.approximation)
    x = problem.x.clone()
    sites = Sites(problem.sites.lam1.clone(), problem.sites.lam2.clone())
    mine = replace(problem, gp=gp, approximation=approximation, x=x, sites=sites)
    posterior, prior = mine.posterior(), mine.prior()
    parameters = [*gp.parameters(), *approximation.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.3)
    posterior.kl().sum().backward(retain_graph=True)
    optimizer.step()
    with torch.no_grad():
        x.add_(1.0)
        sites.lam1.mul_(2.0)
        sites.lam2.add_(1.0)
        for parameter in parameters:
            parameter.add_(0.5)
    expected = predictions(problem, problem.posterior())
    for actual, value in zip(predictions(problem, posterior), expected, strict=True):
        close(actual, value)
    for actual, value in zip(
        predictions(problem, prior.condition(problem.sites)), expected, strict=True
    ):
        close(actual, value)
    optimizer.zero_grad()
    posterior.kl().sum().backward()  # the graph is whole, too
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in gp.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_who_asks_first_does_not_matter(problem, mode):
    """Lazy values that were first read without gradients still carry them later."""
    gp = copy.deepcopy(problem.gp)
    posterior = replace(problem, gp=gp).posterior()
    with mode():
        predictions(problem, posterior)
    sum(value.sum() for value in predictions(problem, posterior)).backward()
    late = [parameter.grad.clone() for parameter in gp.parameters()]
    gp.zero_grad()
    fresh = replace(problem, gp=gp).posterior()
    sum(value.sum() for value in predictions(problem, fresh)).backward()
    for actual, parameter in zip(late, gp.parameters(), strict=True):
        close(actual, parameter.grad, rtol=1e-7, atol=1e-7)
    problem.approximation.zero_grad()


def test_approximations_are_saved_and_restored(problem, suite):
    saved = io.BytesIO()
    torch.save(problem.approximation.state_dict(), saved)
    saved.seek(0)
    restored = problem.entry.build(torch.float64)
    with torch.no_grad():
        for parameter in restored.parameters():
            parameter.zero_()
    restored.load_state_dict(torch.load(saved, weights_only=True))
    again = replace(problem, approximation=restored).posterior()
    close(again.kl(), problem.posterior().kl())
    for copied in (
        copy.deepcopy(problem.approximation),
        pickle.loads(pickle.dumps(problem.approximation)),
    ):
        close(replace(problem, approximation=copied).posterior().kl(), again.kl())


def test_samples_repeat_and_leave_the_global_generator_alone(problem):
    posterior = problem.posterior()
    state = torch.get_rng_state()
    first = posterior.rsample((2, 3), generator=seeded())
    second = posterior.rsample((2, 3), generator=seeded())
    other = posterior.rsample((2, 3))
    assert torch.equal(first.values, second.values) and torch.equal(first.basis, second.basis)
    assert not torch.equal(first.values, other.values)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.values.shape[:2] == (2, 3) and first.basis.shape[:2] == (2, 3)
    assert posterior.rsample().values.shape == posterior.marginals().mean.shape


def test_impossible_requests_are_refused(problem):
    posterior, prior = problem.posterior(), problem.prior()
    size = problem.x.shape[-2]
    with pytest.raises(InputError, match=f"{size + 1} sites for {size} data rows"):
        prior.condition(Sites.zeros((size + 1,)))
    with pytest.raises(InputError, match=r"float32 .*float64"):
        prior.condition(Sites.zeros((size,), dtype=torch.float32))
    if problem.gp.batch_shape:
        with pytest.raises(InputError, match="batch shape"):
            prior.condition(Sites.zeros((7, size)))
    with pytest.raises(InputError, match="call plan"):
        problem.approximation.prior(problem.gp, problem.x[..., :-1, :], plan=problem.plan)
    with pytest.raises(InputError, match="floating-point"):
        problem.approximation.plan(torch.zeros(4))
    with pytest.raises(InputError, match="floating-point"):
        problem.approximation.plan(torch.zeros(4, 2, dtype=torch.int64))
    if problem.groups is not None:
        return
    with pytest.raises(UnsupportedError, match="conditioned without groups"):
        posterior.predict(problem.x, groups=torch.zeros(size, dtype=torch.int64))
    for wrong in (problem.x[..., :1], problem.x.float(), torch.zeros(3, dtype=torch.float64)):
        with pytest.raises(InputError):
            posterior.predict(wrong)
        if problem.entry.samples_anywhere:
            with pytest.raises(InputError):
                posterior.rsample(x=wrong)

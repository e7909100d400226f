"""Gaussian-process factor analysis: exact where it can be, sensible where not, and strict about input."""

import copy
import pickle
from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from sklearn.base import clone
from sklearn.linear_model import LinearRegression

from gpvi.datasets import SpikeTrains, make_spike_trains
from gpvi.exceptions import ConvergenceWarning, InputError, UnsupportedError
from gpvi.kernels import HidaMaternKernel, IntegratedWienerKernel
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood
from gpvi.models import GPFactorAnalysis
from gpvi.models._latent_start import initial_scores
from gpvi.models._recordings import read_recordings


def explained(truth: np.ndarray, found: np.ndarray) -> float:
    """R^2 of the true latents regressed on those found."""
    truth, found = truth.reshape(-1, truth.shape[-1]), found.reshape(-1, found.shape[-1])
    return float(LinearRegression().fit(found, truth).score(found, truth))


@pytest.fixture(scope="module")
def spikes() -> SpikeTrains:
    return make_spike_trains(3, 120, 20, mean_rate=40.0)


@pytest.fixture(scope="module")
def model(spikes: SpikeTrains) -> GPFactorAnalysis:
    return GPFactorAnalysis(2, tolerance=1e-3).fit(spikes.counts, spikes.time)


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """Two smooth latents behind five real outputs."""
    t = np.arange(30.0)
    z = np.stack([np.sin(0.3 * t), np.cos(0.5 * t)], 1)
    rng = np.random.default_rng(1)
    return z @ rng.standard_normal((2, 5)) + 2.0 + 0.3 * rng.standard_normal((30, 5))


def dense_evidence(model: GPFactorAnalysis, y: np.ndarray) -> float:
    """Log evidence of one recording under the learned Gaussian model, by a dense normal."""
    t = torch.arange(len(y), dtype=torch.float64).unsqueeze(-1)
    noise = model.likelihood_.base.noise.detach().squeeze(-1)
    covariance = torch.kron(torch.eye(len(y)).double(), noise.diag())
    for kernel, c in zip(model.kernel_, torch.as_tensor(model.loadings_).T, strict=True):
        gram = kernel(t).to_dense().detach()
        covariance = covariance + torch.kron(gram / gram[0, 0], torch.outer(c, c))
    mean = torch.as_tensor(model.offset_).repeat(len(y))
    values = torch.as_tensor(y).flatten()
    seen = ~values.isnan()
    normal = torch.distributions.MultivariateNormal(mean[seen], covariance[seen][:, seen])
    return float(normal.log_prob(values[seen]))


def test_recovers_the_trajectories(model: GPFactorAnalysis, spikes: SpikeTrains) -> None:
    assert model.converged_ and len(model.history_) == model.n_iter_
    assert model.elbo_ == model.history_[-1]
    assert bool((np.diff(model.history_) > -1e-6).all())
    assert explained(spikes.latents, model.transform(spikes.counts, spikes.time)) > 0.95
    error = model.predict_rates() - spikes.rates
    assert np.square(error).mean() < 0.1 * np.square(spikes.rates - spikes.rates.mean()).mean()


@pytest.mark.slow
@pytest.mark.parametrize("mean_field", [False, True])
@pytest.mark.parametrize("kernel", ["matern52", HidaMaternKernel(order=1)], ids=["matern", "hida"])
def test_van_der_pol_at_full_size(kernel: Any, mean_field: bool) -> None:
    """Ten trials of 500 bins, fifty neurons, readout and kernels learned."""
    spikes = make_spike_trains()
    model = GPFactorAnalysis(2, kernel=kernel, mean_field=mean_field, tolerance=1e-3)
    found = model.fit_transform(spikes.counts, spikes.time)
    assert explained(spikes.latents, found) >= 0.97


def test_gaussian_bound_is_the_evidence(real: np.ndarray) -> None:
    y = real.copy()
    y[3, 1], y[7] = np.nan, np.nan
    model = GPFactorAnalysis(2, likelihood="gaussian", tolerance=1e-3).fit(y)
    assert model.elbo_ == pytest.approx(dense_evidence(model, y), abs=1e-7)
    assert model.score(real) == pytest.approx(dense_evidence(model, real) / 30, abs=1e-7)
    assert bool((np.diff(model.history_) > -1e-9).all())
    assert 0.2 < float(model.likelihood_.base.noise.detach().mean().sqrt()) < 0.4


def test_fit_is_a_maximum_of_the_evidence(real: np.ndarray) -> None:
    model = GPFactorAnalysis(2, likelihood="gaussian", tolerance=1e-7, max_iter=500).fit(real)
    best = dense_evidence(model, real)
    rng = np.random.default_rng(0)
    for name in ("loadings_", "offset_"):
        value = getattr(model, name)
        for _ in range(4):
            other = copy.copy(model)
            setattr(other, name, value + 0.03 * rng.standard_normal(value.shape))
            assert dense_evidence(other, real) < best + 1e-3
    for factor in (0.8, 1.25):
        other = copy.deepcopy(model)
        for kernel in other.kernel_:
            kernel.base_kernel.lengthscale = kernel.base_kernel.lengthscale.detach() * factor
        assert dense_evidence(other, real) < best


def test_mean_field_is_the_looser_bound(model: GPFactorAnalysis, spikes: SpikeTrains) -> None:
    apart = copy.deepcopy(model).set_params(mean_field=True)
    joint = model.score(spikes.counts, spikes.time)
    assert joint - 0.2 < apart.score(spikes.counts, spikes.time) < joint
    mean, deviation = model.transform(spikes.counts, spikes.time, return_std=True)
    other, narrower = apart.transform(spikes.counts, spikes.time, return_std=True)
    assert narrower.mean() < deviation.mean()
    np.testing.assert_allclose(other, mean, atol=0.1)


def test_mean_field_fit(spikes: SpikeTrains) -> None:
    model = GPFactorAnalysis(2, mean_field=True, tolerance=3e-3).fit(spikes.counts, spikes.time)
    assert bool((np.diff(model.history_) > -1e-6).all())
    assert explained(spikes.latents, model.transform(spikes.counts, spikes.time)) > 0.95


def test_score_orders_models(model: GPFactorAnalysis, spikes: SpikeTrains) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.likelihood_.loadings.zero_()
    flat = broken.score(spikes.counts, spikes.time)
    assert model.score(spikes.counts, spikes.time) > flat + 1.0
    assert model.score(spikes.counts, spikes.time) * 360 == pytest.approx(model.elbo_, rel=1e-4)


def test_held_out_neurons_follow_the_others(model: GPFactorAnalysis, spikes: SpikeTrains) -> None:
    columns = [0, 5, -1]
    rates = model.predict_held_out(spikes.counts, columns, spikes.time)
    truth = spikes.rates[..., columns]
    assert rates.shape == truth.shape
    assert np.square(rates - truth).mean() < 0.3 * np.square(truth - truth.mean((0, 1))).mean()
    # What is predicted is not looked at.
    changed = spikes.counts.copy()
    changed[..., columns] = 9.0
    np.testing.assert_array_equal(rates, model.predict_held_out(changed, columns, spikes.time))


def test_forms_of_the_data_agree(model: GPFactorAnalysis, spikes: SpikeTrains) -> None:
    stack = model.transform(spikes.counts, spikes.time)
    as_list = model.transform(list(spikes.counts), [spikes.time] * 3)
    single = model.transform(torch.as_tensor(spikes.counts[1]), spikes.time)
    assert stack.shape == (3, 120, 2) and single.shape == (120, 2)
    np.testing.assert_allclose(np.stack(as_list), stack, atol=1e-3)
    np.testing.assert_allclose(single, stack[1], atol=1e-3)
    rates = model.predict_rates([spikes.counts[0], spikes.counts[1][:50]])
    assert [part.shape for part in rates] == [(120, 20), (50, 20)]
    np.testing.assert_allclose(
        model.inverse_transform(stack)[0], model.inverse_transform(as_list)[0], rtol=0.01
    )


def test_unequal_trials_and_gaps(spikes: SpikeTrains) -> None:
    parts = [spikes.counts[0], spikes.counts[1][:60].copy(), spikes.counts[2][:1]]
    parts[1][10:20], parts[1][30, 4] = np.nan, np.nan
    found = GPFactorAnalysis(2, tolerance=1e-2).fit_transform(parts)
    assert [part.shape for part in found] == [(120, 2), (60, 2), (1, 2)]
    assert all(np.isfinite(part).all() for part in found)


def test_missing_bins_equal_absent_bins(model: GPFactorAnalysis, spikes: SpikeTrains) -> None:
    keep = np.r_[0:40, 55:120]
    gap = spikes.counts[0].copy()
    gap[40:55] = np.nan
    full = model.transform(gap, spikes.time)
    fewer = model.transform(spikes.counts[0][keep], spikes.time[keep])
    np.testing.assert_allclose(full[keep], fewer, atol=1e-4)
    silent = model.transform(np.full((4, 20), np.nan))
    np.testing.assert_array_equal(silent, 0.0)


def test_one_latent_and_other_likelihoods(spikes: SpikeTrains) -> None:
    labels = (spikes.counts > 0).astype(float)
    model = GPFactorAnalysis(1, likelihood=BernoulliLikelihood(link="logit"), tolerance=1e-2)
    found = model.fit(labels).transform(labels)
    assert found.shape == (3, 120, 1) and bool((np.diff(model.history_) > -1e-6).all())
    rates = model.predict_rates()
    assert bool(((rates > 0) & (rates < 1)).all())


def test_kernels(spikes: SpikeTrains) -> None:
    turning = gpytorch.kernels.MaternKernel(nu=1.5) * gpytorch.kernels.CosineKernel()
    batch = gpytorch.kernels.MaternKernel(nu=1.5, batch_shape=torch.Size([2]))
    batch.lengthscale = torch.tensor([5.0, 9.0]).reshape(2, 1, 1)
    for kernel in (["matern32", turning], batch):
        before = copy.deepcopy(kernel)
        model = GPFactorAnalysis(2, kernel=kernel, tolerance=1e-2).fit(spikes.counts)
        assert len(model.kernel_) == 2 and np.isfinite(model.elbo_)
        assert str(kernel) == str(before)
    assert batch.lengthscale.flatten().tolist() == pytest.approx([5.0, 9.0])
    scaled = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)).double()
    scaled.outputscale = 50.0
    plain = copy.deepcopy(scaled.base_kernel)
    fits = [
        GPFactorAnalysis(2, kernel=kernel, tolerance=1e-2).fit(spikes.counts)
        for kernel in (scaled, plain)
    ]
    assert fits[0].elbo_ == pytest.approx(fits[1].elbo_, rel=1e-6)


def test_same_seed_same_fit_and_round_trips(model: GPFactorAnalysis, spikes: SpikeTrains) -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    again = clone(model).fit(spikes.counts, spikes.time)
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(again.loadings_, model.loadings_)
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        loaded.transform(spikes.counts, spikes.time), model.transform(spikes.counts, spikes.time)
    )


def test_silent_and_constant_outputs(spikes: SpikeTrains, real: np.ndarray) -> None:
    counts = spikes.counts.copy()
    counts[..., 3] = 0.0
    model = GPFactorAnalysis(2, tolerance=1e-2).fit(counts)
    assert np.isfinite(model.offset_).all() and model.predict_rates()[..., 3].max() < 0.05
    flat = np.c_[real, np.ones(30)]
    rates = GPFactorAnalysis(2, likelihood="gaussian", tolerance=1e-2).fit(flat).predict_rates()
    np.testing.assert_allclose(rates[:, -1], 1.0, atol=0.05)


def several(num_outputs: int, likelihood: str, seed: int, mixed: bool) -> np.ndarray:
    """As many smooth latents as outputs, [200, P], each output its own or a mixture."""
    rng = np.random.default_rng(seed)
    z = gaussian_filter1d(rng.standard_normal((200, num_outputs)), 6.0, axis=0)
    z = z / z.std(0)
    if mixed:
        z = z @ rng.standard_normal((num_outputs, num_outputs)).T
    if likelihood == "poisson":
        return rng.poisson(np.exp(0.5 * z + 0.7)).astype(float)
    return z + 0.2 * rng.standard_normal(z.shape)


@pytest.mark.parametrize("likelihood", ["gaussian", "poisson"])
@pytest.mark.parametrize(
    ("num_outputs", "seed", "mixed"),
    [(1, 0, False), (2, 0, False), (2, 1, True), (3, 0, True), (3, 1, False)],
)
def test_as_many_latents_as_outputs(
    num_outputs: int, seed: int, mixed: bool, likelihood: str
) -> None:
    y = several(num_outputs, likelihood, seed, mixed)
    bounds = []
    for K in range(1, num_outputs + 1):
        model = GPFactorAnalysis(K, likelihood=likelihood, tolerance=1e-3).fit(y)
        bounds.append(model.elbo_)
        assert np.linalg.norm(model.loadings_, axis=0).min() > 0.02
    # Rounds end at a gain of a thousandth of a nat for each of 200 bins.
    assert bool((np.diff(bounds) > -0.2).all())
    if not mixed:
        # Independent outputs: every latent that they have is worth nats.
        assert bool((np.diff(bounds) > 3.0).all())


@pytest.mark.parametrize("likelihood", ["gaussian", "poisson"])
def test_a_single_output_is_smoothed(likelihood: str) -> None:
    y = several(1, likelihood, 0, False)
    model = GPFactorAnalysis(1, likelihood=likelihood, tolerance=1e-3).fit(y)
    rates = model.predict_rates()
    truth = several(1, "gaussian", 0, False)
    assert np.corrcoef(rates[:, 0], truth[:, 0])[0, 1] > 0.8
    assert model.n_iter_ > 1


def test_mean_field_with_as_many_latents_as_outputs() -> None:
    y = several(3, "gaussian", 1, False)
    joint, apart = (
        GPFactorAnalysis(3, likelihood="gaussian", mean_field=each, tolerance=1e-3).fit(y)
        for each in (False, True)
    )
    assert apart.elbo_ < joint.elbo_ + 0.2 and np.linalg.norm(apart.loadings_, axis=0).min() > 0.5


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("num_latents", [1, 2, 3])
def test_initial_scores_are_standardised(num_latents: int, mixed: bool) -> None:
    y = several(3, "gaussian", 2, mixed) * [1.0, 1e-3, 1e3]
    scores = initial_scores(GaussianLikelihood(), read_recordings(y, None), num_latents, 0).numpy()
    np.testing.assert_allclose(scores.mean(0), 0.0, atol=1e-10)
    np.testing.assert_allclose(scores.std(0), 1.0)
    assert np.linalg.cond(scores) < 10.0


def test_null_latents_are_announced() -> None:
    y = several(1, "gaussian", 0, False)
    copies = np.c_[y, 2.0 * y, np.ones(200)]
    with pytest.warns(ConvergenceWarning, match=r"Latents \[1\] ended with loadings of zero"):
        model = GPFactorAnalysis(2, likelihood="gaussian", tolerance=1e-2).fit(copies)
    assert np.isfinite(model.elbo_) and np.linalg.norm(model.loadings_[:, 0]) > 0.5
    with pytest.warns(ConvergenceWarning, match=r"Latents \[0, 1\] ended"):
        GPFactorAnalysis(2).fit(np.zeros((20, 3)))


def test_stopping_early_is_announced(spikes: SpikeTrains) -> None:
    with pytest.warns(ConvergenceWarning, match="max_iter=1"):
        model = GPFactorAnalysis(2, max_iter=1).fit(spikes.counts)
    assert not model.converged_ and model.n_iter_ == 1 and model.history_ == [model.elbo_]


ONES = np.ones((3, 10, 4))


@pytest.mark.parametrize(
    ("options", "Y", "message"),
    [
        ({}, -ONES, r"-1\.0"),
        ({}, 0.5 * ONES, "whole numbers, got 0.5"),
        ({}, np.inf * ONES, "infinite"),
        ({}, ONES * [1.0, 1.0, np.nan, 1.0], r"\[2\] were never observed"),
        ({}, ONES[:, :1], "single bin"),
        ({}, ONES[0, 0], r"shape \(4,\)"),
        ({}, ONES[None], r"shape \(1, 3, 10, 4\)"),
        ({}, [ONES[0], ONES[1, :, :2]], r"\[2, 4\] outputs"),
        ({}, [ONES[0], ONES[1, :0]], "no bins"),
        ({}, [["a", "b"]], "no array of numbers"),
        ({}, [[[1.0, 2.0], [3.0]]], "no array of numbers"),
        ({"num_latents": 5}, ONES, "num_latents is 5, but there are 4 outputs"),
        ({"num_latents": 4}, ONES[0, :2], "only 2 bins"),
        ({}, np.nan * ONES, "only 0 bins"),
        ({"num_latents": 0}, ONES, "num_latents is 0"),
        ({"max_iter": 2.5}, ONES, "max_iter is 2.5"),
        ({"tolerance": 0.0}, ONES, "tolerance is 0.0"),
        ({"mean_field": "yes"}, ONES, "mean_field is 'yes'"),
        ({"likelihood": "binomial"}, ONES, "likelihood is 'binomial'"),
        ({"kernel": ["matern32"]}, ONES, "1 entries for 2 latents"),
        ({"kernel": 3}, ONES, "kernel is 3"),
        ({"kernel": [3, 4]}, ONES, "kernel holds 3"),
        ({"kernel": gpytorch.kernels.RBFKernel(batch_shape=[3])}, ONES, r"batch shape \(3,\)"),
    ],
)
def test_bad_input(options: dict[str, Any], Y: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GPFactorAnalysis(**options).fit(Y)


@pytest.mark.parametrize(
    "t", [np.arange(9.0), np.arange(10.0)[::-1], np.full(10, np.nan), [np.arange(10.0)]]
)
def test_bad_stamps(t: Any) -> None:
    with pytest.raises(InputError, match=r"^t "):
        GPFactorAnalysis().fit(ONES, t)


def test_unsupported_kernels() -> None:
    for kernel in ("rational_quadratic", "linear * matern32"):
        with pytest.raises(UnsupportedError):
            GPFactorAnalysis(2, kernel=kernel).fit(ONES)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("trend", "'trend' is not stationary"),
        ("matern32 + linear", r"'matern32 \+ linear' is not stationary \(its term linear\)"),
        (
            ["matern32", IntegratedWienerKernel(0)],
            "Kernel IntegratedWienerKernel is not stationary",
        ),
    ],
)
def test_latents_are_stationary(kernel: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        GPFactorAnalysis(2, kernel=kernel).fit(ONES)


def test_bad_input_after_the_fit(model: GPFactorAnalysis, spikes: SpikeTrains) -> None:
    with pytest.raises(InputError, match="The fit had 20 outputs"):
        model.transform(spikes.counts[..., :5])
    with pytest.raises(InputError, match="whole numbers"):
        model.transform(spikes.counts + 0.5)
    with pytest.raises(InputError, match="outputs is"):
        model.predict_held_out(spikes.counts, [20])
    with pytest.raises(InputError, match="last dim"):
        model.inverse_transform(np.ones((4, 3)))
    with pytest.raises(InputError, match="nothing to score"):
        model.score(np.nan * spikes.counts)
    with pytest.raises(InputError, match="without Y"):
        model.predict_rates(t=spikes.time)

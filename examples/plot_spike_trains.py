"""
Latent trajectories behind spike trains
=======================================

Fifty neurons fire irregularly; behind them moves a state of two numbers. Gaussian-process factor analysis
finds it,

.. math:: y_{np} \\sim \\mathrm{Poisson}\\big(e^{c_p^\\top z(t_n) + d_p}\\big), \\qquad
          z_k \\sim \\mathrm{GP}(0, k_k), \\quad k = 1, 2,

with a Matern kernel for every latent, so that inference is a Kalman filter and smoother and costs time
linear in the number of bins. The state here is a van der Pol oscillator, which is no Gaussian process: a
smooth prior and many neurons are enough. The data are simulated, since only then is the truth known:
``make_spike_trains`` starts every trial somewhere on the cycle, with 25 spikes a second in each neuron.

What to look at: the true trajectory comes back up to a rotation (an :math:`R^2` of 0.98); neurons that were
left out are predicted about as well as by their true rates; and latents that are independent under the
approximate posterior, which is cheaper, lose little - but only because the loadings turn to suit them.
"""

import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import poisson
from sklearn.linear_model import LinearRegression

from gpvi.datasets import make_spike_trains
from gpvi.models import GPFactorAnalysis

# %%
# Six trials to learn from, four to test
# --------------------------------------
# Five seconds each, in 250 bins of 20 milliseconds with half a spike on average.

spikes = make_spike_trains(num_trials=10, num_bins=250, num_neurons=50, random_state=0)
train, test = spikes.counts[:6], spikes.counts[6:]
truth = spikes.latents[6:].reshape(-1, 2)
print(f"counts {train.shape} to learn from, {train.mean():.2f} spikes in a bin\n")

# %%
# Learning
# --------
# Rounds of variational inference for the latents and of maximisation over loadings, offsets and kernels.
# ``transform`` then infers the latents of new trials. Latents are determined up to a linear map (the
# loadings undo it), so :math:`R^2` is that of the truth regressed on what was found, and the share inside
# the 90 % band is that of the truth mapped the other way.
#
# With ``mean_field=True`` the two latents are independent under q. What that costs depends on how neurons
# read them. In the second half of the table are sixteen neurons of similar directions: they see one
# combination of the latents well and the other one badly.

angle = np.degrees(np.arctan2(spikes.loadings[:, 1], spikes.loadings[:, 0])) % 180
groups = {"all 50": np.arange(50), "16 alike": np.flatnonzero(np.abs(angle - 45) < 35)[:16]}

print(
    f"{'neurons':<10}{'q':<12}{'seconds':>8}{'rounds':>8}{'ELBO':>11}{'held-out':>10}{'R2':>8}"
    f"{'in band':>9}{'cosine':>8}"
)
models = {}
for neurons, columns in groups.items():
    for q in ("full", "mean field"):
        started = time.perf_counter()
        model = GPFactorAnalysis(2, mean_field=q == "mean field", tolerance=1e-3)
        model.fit(train[..., columns], spikes.time)
        seconds = time.perf_counter() - started
        found, std = model.transform(test[..., columns], spikes.time, return_std=True)
        found, std = found.reshape(-1, 2), std.reshape(-1, 2)
        r2 = LinearRegression().fit(found, truth).score(found, truth)
        mapped = LinearRegression().fit(truth, found).predict(truth)
        inside = (np.abs(mapped - found) < 1.645 * std).mean()
        first, second = model.loadings_.T / np.linalg.norm(model.loadings_, axis=0)[:, None]
        models[neurons, q] = model
        print(
            f"{neurons:<10}{q:<12}{seconds:>8.2f}{model.n_iter_:>8}{model.elbo_:>11.1f}"
            f"{model.score(test[..., columns], spikes.time):>10.3f}{r2:>8.3f}{inside:>9.0%}"
            f"{first @ second:>8.2f}"
        )

# %%
# ELBO is in nats of the training trials; "held-out" is the bound of the test trials, in nats a bin; "cosine"
# is that between the two columns of loadings; the first line of seconds includes compilation. With all
# neurons the two kinds of q hardly differ. With sixteen alike, the full q has the better bound and knows
# more about the trajectory. The mean field loses little, since it learned loadings that are nearly
# orthogonal: in these coordinates the latents are nearly independent given the spikes.
#
# Neurons that nobody recorded
# ----------------------------
# Co-smoothing: ten neurons of the test trials are hidden, and their rates predicted from the other forty.
# Scores are log probabilities of the hidden counts. "mean rate" knows each neuron's average, "true rate"
# is what no method can beat by more than luck.

hidden = np.arange(40, 50)
model = models["all 50", "full"]
rates = model.predict_held_out(test, hidden, spikes.time)
counts = test[..., hidden]
predictions = {
    "mean rate": np.broadcast_to(train[..., hidden].mean((0, 1)), counts.shape),
    "forty other neurons": rates,
    "true rate": spikes.rates[6:][..., hidden],
}
print(f"\n{'hidden neurons, by':<22}{'log probability':>16}{'gain, bits a spike':>20}")
base = poisson.logpmf(counts, predictions["mean rate"]).sum()
for name, prediction in predictions.items():
    total = poisson.logpmf(counts, prediction).sum()
    gain = (total - base) / counts.sum() / np.log(2)
    print(f"{name:<22}{total / counts.size:>16.4f}{gain:>20.3f}")

# %%
# One test trial: its spikes; the first latent with a band of 90 %, and the true trajectory mapped onto it;
# the orbit; and the rate of one hidden neuron.

found, std = model.transform(test[0], spikes.time, return_std=True)
every = model.transform(test, spikes.time).reshape(-1, 2)
to_truth = LinearRegression().fit(every, truth)
mapped = LinearRegression().fit(truth, every).predict(spikes.latents[6])

figure, axes = plt.subplots(2, 2, figsize=(11, 6), layout="constrained", width_ratios=(1.6, 1))
order = np.argsort(model.loadings_[:, 0])
axes[0, 0].imshow(
    test[0].T[order],
    aspect="auto",
    cmap="Greys",
    extent=(0, 5, 50, 0),
    interpolation="nearest",
    vmax=3,
)
axes[0, 0].set(ylabel="neurons, by first loading", title="spikes of one test trial")
axes[1, 0].fill_between(
    spikes.time,
    found[:, 0] - 1.645 * std[:, 0],
    found[:, 0] + 1.645 * std[:, 0],
    alpha=0.3,
    linewidth=0,
)
axes[1, 0].plot(spikes.time, found[:, 0], label="found")
axes[1, 0].plot(spikes.time, mapped[:, 0], "k--", linewidth=1, label="truth")
axes[1, 0].set(xlabel="seconds", ylabel="first latent", xlim=(0, 5), ylim=(-2, 2.6))
axes[1, 0].legend(loc="upper right")
axes[0, 1].plot(*to_truth.predict(found).T, label="found")
axes[0, 1].plot(*spikes.latents[6].T, "k--", linewidth=1, label="truth")
axes[0, 1].set(xlabel="$x_1$", ylabel="$x_2$", title="orbit")
axes[0, 1].legend(loc="lower right")
strongest = np.linalg.norm(model.loadings_[hidden], axis=1).argmax()
axes[1, 1].plot(spikes.time, rates[0, :, strongest] / 0.02, label="from forty others")
axes[1, 1].plot(
    spikes.time, spikes.rates[6, :, hidden[strongest]] / 0.02, "k--", linewidth=1, label="truth"
)
axes[1, 1].set(xlabel="seconds", ylabel="spikes a second", title="a hidden neuron")
axes[1, 1].set(xlim=(0, 5), ylim=(0, 200))
axes[1, 1].legend(loc="upper right")

path = Path("output") / "spike_trains.png"
path.parent.mkdir(exist_ok=True)
figure.savefig(path, dpi=120)
print(f"\nfigure: {path.resolve()}")

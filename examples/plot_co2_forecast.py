"""
Forecasts and components: carbon dioxide
========================================

Carbon dioxide in the air at Mauna Loa, every week from 1958 to 2001 (carried by statsmodels): a trend, a
yearly cycle, something slow in between, and 59 weeks without a measurement. ``TimeSeriesGP`` takes the
pandas series as it is and a kernel that says what it is made of,

.. math:: y(t) = \\mathrm{trend}(t) + \\mathrm{season}(t) + \\mathrm{rest}(t) + \\epsilon,

each a Gaussian process with a state of a few numbers, so that a fit is linear in the number of weeks and a
new week costs one step of a Kalman filter. Everything until 1985 is for learning, the rest for forecasts.

What to look at: components come with bands of their own, which widen in the gaps of the record; two models
that explain the past about equally well promise different things about the future, and only one of them
keeps its promise.
"""

import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import statsmodels.api as sm
from matplotlib.dates import YearLocator
from scipy.stats import norm

from gpvi import TimeSeriesGP

# %%
# Two models of the rest
# ----------------------
# ``trend`` is a local linear trend (an integrated random walk), ``season(365.25)`` a pattern of this many
# days that repeats; the rest is a Matern process. The second model has a random walk, ``trend(0)``, in its
# place.

co2 = sm.datasets.co2.load_pandas().data["co2"]
past, future = co2[:"1985"], co2["1986":]
print(f"{len(past)} weeks until 1985, {past.isna().sum()} of them missing; {len(future)} to come\n")

models = {}
print(f"{'model':<43}{'states':>7}{'ELBO':>9}{'fit, s':>8}")
for kernel in ("trend + season(365.25) + matern32", "trend + trend(0) + season(365.25)"):
    started = time.perf_counter()
    models[kernel] = TimeSeriesGP(kernel, random_state=0).fit(past)
    seconds = time.perf_counter() - started
    states = models[kernel].posterior_.prior.form.dimension
    print(f"{kernel:<43}{states:>7}{models[kernel].elbo_:>9.1f}{seconds:>8.2f}")

# %%
# Components
# ----------
# ``decompose`` gives mean and band of every term, in ppm. With the prior mean, the means add up to the fit;
# the variances do not: what one term does not explain another one must, so that the sum is known better
# than its parts would suggest.

smooth, walk = models.values()
parts = smooth.decompose(past.index)
print(f"\n{'':<18}{'range, ppm':>18}{'std, median':>13}{'std, in gap of 1964':>21}")
gap = (parts.times >= pd.Timestamp("1964-01-25")) & (parts.times <= pd.Timestamp("1964-04-25"))
for name, part in parts.components.items():
    print(
        f"{name:<18}{part.mean.min():>9.1f}{part.mean.max():>9.1f}{np.median(part.std):>13.3f}"
        f"{part.std[gap].max():>21.3f}"
    )
latent = smooth.predict(parts.times, return_std=True, latent=True)[1]
print(f"{'their sum':<36}{np.median(latent):>13.3f}{latent[gap].max():>21.3f}")

# %%
# Many forecasts, by streaming
# ----------------------------
# One long forecast says little about calibration: its errors all lean to one side. So we forecast one year
# ahead from every quarter of 1986 to 2000, and let the model go on in between: ``update`` takes the weeks of
# the next quarter and keeps the hyperparameters. "last year" is the same week of last year plus the rise of
# the year before.

horizons = {"quarter 1": (0, 13), "quarter 2": (13, 26), "half-year 2": (26, 52)}
long_term = {kernel: model.forecast(future.index) for kernel, model in models.items()}

print(f"\n{'forecasts of one year':<43}{'':<12}{'RMSE':>7}{'NLPD':>7}{'in 50 %':>9}{'in 95 %':>9}")
for kernel, model in models.items():
    rows, seconds, starts = [], 0.0, range(0, len(future) - 52, 13)
    for start in starts:
        ahead = model.forecast(52)
        truth = future.iloc[start : start + 52].to_numpy()
        rows.append(np.column_stack([np.arange(52), truth, ahead.mean, ahead.std]))
        started = time.perf_counter()
        model.update(future.iloc[start : start + 13])
        seconds += time.perf_counter() - started
    week, truth, mean, std = np.concatenate([row[~np.isnan(row[:, 1])] for row in rows]).T
    z = (truth - mean) / std
    for name, (first, last) in horizons.items():
        rows = (week >= first) & (week < last)
        inside = [(np.abs(z[rows]) < norm.ppf(0.5 + 0.5 * p)).mean() for p in (0.5, 0.95)]
        print(
            f"{kernel if first == 0 else '':<43}{name:<12}"
            f"{np.sqrt(np.mean((truth - mean)[rows] ** 2)):>7.2f}"
            f"{-norm.logpdf(truth, mean, std)[rows].mean():>7.2f}{inside[0]:>9.0%}{inside[1]:>9.0%}"
        )
    print(f"{'':<43}{1e3 * seconds / (13 * len(starts)):.1f} ms for an update by one week")
one_year, two_years = (co2.shift(52 * years) for years in (1, 2))
naive = (2 * one_year - two_years - co2)["1986":]
print(f"{'last year':<43}{'whole year':<12}{np.sqrt(np.nanmean(naive**2)):>7.2f}")

# %%
# The bounds above hardly tell the models apart, and if anything prefer the first. Forecasts do tell. The
# rest of the first model forgets within weeks, so that all slow change has to come from the slope of its
# trend: within a year its bands are too narrow, after five years very wide. With a random walk, uncertainty
# grows as it should. The forecasts overlap and the years are fifteen, so that shares are known to some points
# only. Such a check costs seconds, because nothing is fitted again.
#
# On the left: the components of the first model (of the season three years only). On the right: what both
# models said at the end of 1985 about the years to come.

figure = plt.figure(figsize=(12, 6.5), layout="constrained")
left, right = figure.subfigures(1, 2)
axes = left.subplots(3, 1)
shown = {"season(365.25)": slice(900, 1_060)}
for axis, (name, part) in zip(axes, parts.components.items(), strict=True):
    rows = shown.get(name, slice(None))
    level = parts.prior_mean if name == "trend" else np.zeros(len(parts.times))
    mean, half = (part.mean + level)[rows], 1.96 * part.std[rows]
    axis.fill_between(parts.times[rows], mean - half, mean + half, alpha=0.3, linewidth=0)
    axis.plot(parts.times[rows], mean, linewidth=1)
    axis.set(ylabel=f"{name}, ppm")
axes[1].xaxis.set_major_locator(YearLocator())
axes = right.subplots(2, 1, sharex=True, sharey=True)
for axis, (kernel, ahead) in zip(axes, long_term.items(), strict=True):
    near = ahead.times < pd.Timestamp("1992")
    lower, upper = ahead.lower[near], ahead.upper[near]
    axis.plot(co2["1984":"1991"], ".", color="0.5", markersize=3, label="measured")
    axis.plot(ahead.times[near], ahead.mean[near], label="forecast from 1985")
    axis.fill_between(ahead.times[near], lower, upper, alpha=0.3, linewidth=0, label="95 %")
    axis.set(ylabel="ppm", title=kernel)
axes[0].legend(loc="upper left")

path = Path("output") / "co2_forecast.png"
path.parent.mkdir(exist_ok=True)
figure.savefig(path, dpi=120)
print(f"\nfigure: {path.resolve()}")

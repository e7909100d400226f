"""
Counts over time: a century of coal mining
==========================================

Between 1851 and 1962 there were 191 explosions in British coal mines that killed ten men or more. How did
their rate change? Nobody knows the right width of a bin for such data: wide bins blur, and narrow ones are
too many for exact Gaussian processes, whose cost grows with their number cubed. On the line, a process with
a Matern kernel has a *state* of a few numbers - its value and derivatives - that separates past from
future,

.. math:: z(t + \\Delta) = A(\\Delta)\\, z(t) + \\epsilon, \\qquad \\log \\mathrm{rate}(t) = h^\\top z(t),

so that one pass forward and one back give the same posterior in linear time. Here the bins are years, then
months, then single days.

What to look at: the two rows of the first table agree in every digit of the NLPD, the rate hardly depends
on the bins, and 40,907 days take about as long as 448 bins do by dense matrices.
"""

import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from gpvi import GPCountRegressor
from gpvi.datasets import coal_mining_dates, load_coal_mining

# %%
# The same answer
# ---------------
# Five folds of 333 bins of four months: each fifth is predicted from the other four. Held-out bins
# are no trouble for a state: it just passes them by. Both approximations stand for the same model and the
# same variational inference, so hyperparameters, predictive densities and bounds agree; time does not.

coal = load_coal_mining(333)
folds = np.array_split(np.random.default_rng(0).permutation(len(coal.target)), 5)
options = {"kernel": "matern52", "random_state": 0}
GPCountRegressor(approximation="state_space", **options).fit(coal.data, coal.target)  # compiles

print(f"{'5 folds of 333 bins':<22}{'NLPD':>12}{'std of folds':>14}{'seconds':>9}")
for approximation in ("exact", "state_space"):
    scores = []
    started = time.perf_counter()
    for held in folds:
        kept = np.setdiff1d(np.arange(len(coal.target)), held)
        model = GPCountRegressor(approximation=approximation, **options)
        model.fit(coal.data[kept], coal.target[kept], exposure=coal.exposure[kept])
        scores.append(
            -model.log_predictive_density(
                coal.data[held], coal.target[held], exposure=coal.exposure[held]
            ).mean()
        )
    seconds = time.perf_counter() - started
    print(f"{approximation:<22}{np.mean(scores):>12.8f}{np.std(scores):>14.3f}{seconds:>9.2f}")

# %%
# Finer and finer bins
# --------------------
# The same record in bins of a year down to a day, from 1 January 1851 to the end of 1962. ``exposure`` is
# the width of a bin in years, so that all rates are per year. Days have one disaster or none (once two),
# and no detail of the record is lost. Exact conditioning stops being sensible long before: for days its
# covariance matrix alone would take 13 gigabytes.

days = (coal_mining_dates() - np.datetime64("1851-01-01")).astype(float) + 0.5
num_days = (np.datetime64("1963-01-01") - np.datetime64("1851-01-01")).astype(int)


def bins(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middles as decimal years, counts, and widths in years."""
    counts, edges = np.histogram(days, bins=number, range=(0, num_days))
    edges = 1851.0 + edges * 112.0 / num_days
    return 0.5 * (edges[1:] + edges[:-1])[:, None], counts, np.diff(edges)


sizes = {"exact": (112, 224, 448), "state_space": (112, 448, 1_344, 5_000, 15_000, num_days)}
places = np.array([[1860.0], [1880.0], [1900.0], [1920.0], [1940.0]])
models, seconds = {}, {}
print(f"\n{'':<14}{'bins':>7}{'seconds':>9}  {'lengthscale':>11}   rate per year in 1860 ... 1940")
for approximation, numbers in sizes.items():
    for number in numbers:
        X, y, width = bins(number)
        started = time.perf_counter()
        model = GPCountRegressor(approximation=approximation, **options).fit(X, y, exposure=width)
        seconds[approximation, number] = time.perf_counter() - started
        models[approximation, number] = model
        values = {row.name.split(".")[-1]: row.value for row in model.summary().hyperparameters}
        rates = " ".join(f"{rate:6.3f}" for rate in model.predict(places))
        print(
            f"{approximation:<14}{number:>7}{seconds[approximation, number]:>9.2f}"
            f"  {values['lengthscale']:>11.2f}   {rates}"
        )

# %%
# When did it become safer?
# -------------------------
# Functions drawn from the posterior answer questions that a band at single times cannot: when, after
# 1870, did the rate first fall below two a year, and how much safer did mines become?

monthly = models["state_space", 1_344]
grid = np.linspace(1851.0, 1963.0, 449)[:, None]
rates = np.exp(monthly.sample_functions(500, random_state=0)(grid))
below = (rates < 2.0) & (grid > 1870.0)
crossing = grid[below.argmax(0), 0]
low, middle, high = np.quantile(crossing, (0.05, 0.5, 0.95))
print(f"\nfirst below two a year: {middle:.0f}, 90 % of the draws between {low:.0f} and {high:.0f}")
early, late = (rates[part].mean(0) for part in (grid[:, 0] < 1880, grid[:, 0] > 1900))
low, middle, high = np.quantile(early / late, (0.05, 0.5, 0.95))
print(f"rate before 1880 over rate after 1900: {middle:.1f}, 90 % between {low:.1f} and {high:.1f}")

# %%
# Left: yearly counts, and the rate from single days with a band of 90 %. The rate from years lies on top of
# it. Right: seconds of a fit. On the left half of the lower line they are the overhead of a fit; from there
# on it grows like the number of bins.

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(1.6, 1))
X, y, width = bins(112)
axes[0].bar(X[:, 0], y, width=0.9, color="0.8", label="disasters of a year")
for number, name, color, style in ((num_days, "days", "C0", "-"), (112, "years", "C1", "--")):
    model = models["state_space", number]
    axes[0].plot(
        grid, model.predict(grid), color=color, linestyle=style, label=f"rate, from {name}"
    )
mean, std = models["state_space", num_days].predict(grid, return_std=True, latent=True)
lower, upper = np.exp(mean - 1.645 * std), np.exp(mean + 1.645 * std)
axes[0].fill_between(grid[:, 0], lower, upper, color="C0", alpha=0.25, linewidth=0)
axes[0].set(xlabel="year", ylabel="disasters per year", ylim=(0, 7))
axes[0].legend()
for approximation, numbers in sizes.items():
    timed = [seconds[approximation, number] for number in numbers]
    axes[1].loglog(numbers, timed, "o-", label=approximation)
axes[1].set(xlabel="bins", ylabel="seconds of a fit")
axes[1].legend()

path = Path("output") / "coal_mining.png"
path.parent.mkdir(exist_ok=True)
figure.savefig(path, dpi=120)
print(f"figure: {path.resolve()}")

"""
Every approximation on the same rows
====================================

Every approximation of the package, in several sizes, fitted to the same training rows and judged on the same
held-out rows: processor time of the whole fit against NLPD (negative log predictive density) and RMSE, both
lower is better. State space needs a single input and stands in a panel of its own.

This is one split of one data set in each column and a small number of iterations: a picture of what each size
costs, not a ranking (the leaderboard is one). Before anything is timed each approximation is fitted once to
a few rows, so that compilation is not counted; the first run on a computer compiles, and takes longer for it.
"""

import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split
from sklego.datasets import load_abalone
from statsmodels.datasets import co2

from gpvi import Free, GPRegressor
from gpvi.approximations import SparseInverseCholesky
from gpvi.exceptions import AccuracyWarning, ConvergenceWarning

# %%
# Two data sets
# -------------
# Seven measurements of abalone against the rings of the shell (carried by scikit-lego), and the weekly carbon
# dioxide of Mauna Loa against time (carried by statsmodels), where random weeks are to be filled in.

ROWS = 600
table = load_abalone(return_X_y=True)[0]
table = table[table[:, 2] < 0.4]  # two heights are errors of measurement
weekly = co2.load_pandas().data["co2"].dropna()
years = (weekly.index - weekly.index[0]).days.to_numpy()[:, None] / 365.25
data = {
    "abalone": train_test_split(
        table[:, :7].astype(float), table[:, 7].astype(float), train_size=ROWS, random_state=0
    ),
    "carbon dioxide": train_test_split(years, weekly.to_numpy(), train_size=ROWS, random_state=0),
}
for name, (X_train, X_test, _, _) in data.items():
    print(f"{name}: {len(X_train)} rows to fit, {len(X_test)} held out, {X_train.shape[1]} columns")

# %%
# Sizes
# -----
# The number of inducing points, pseudo-points or units, or of neighbours for "sic"; "exact" and "state_space"
# have none. Kernels are Matern-5/2, but "spherical" features exist for kernels on a sphere only: it has an
# arc-cosine kernel, and differs from the others in its model too. The lengthscale of time starts at a season.
# That start was set after seeing that from the default one every fit found the trend alone.

SIZES: dict[str, tuple[int | None, ...]] = {
    "exact": (None,),
    "inducing": (25, 50, 100),
    "sic": (5, 10, 20),
    "coreset": (25, 50, 100),
    "neighbor_inducing": (50, 100, 200),
    "full_scale": (10, 20, 40),
    "orthogonal": (25, 50, 100),
    "spherical": (16, 32, 64),
    "state_space": (None,),
}
IN_TIME = ("exact", "inducing", "sic", "state_space")
methods = {
    "abalone": [name for name in SIZES if name != "state_space"],
    "carbon dioxide": list(IN_TIME),
}
ITERATIONS = 12
START = {"abalone": None, "carbon dioxide": {"lengthscale": Free(initial=0.25)}}


def estimator(name: str, approximation: str, size: int | None) -> GPRegressor:
    """A regressor of one size for one data set."""
    return GPRegressor(
        kernel="arc_cosine" if approximation == "spherical" else "matern52",
        approximation=SparseInverseCholesky(size) if approximation == "sic" else approximation,
        num_inducing=None if approximation == "sic" else size,
        hyperparameters=START[name],
        max_iter=ITERATIONS,
        random_state=0,
    )


# %%
# Fits
# ----
# Processor time covers scaling, the choice of points, the warm start and the iterations, which are too few
# for some fits to converge: their warnings, and those of crude variances, are expected here and silenced.
# A hundred inducing points cannot follow forty seasons; neighbours and states can.

warnings.simplefilter("ignore", ConvergenceWarning)
warnings.simplefilter("ignore", AccuracyWarning)
rows = []
for name, (X_train, X_test, y_train, y_test) in data.items():
    for method in methods[name]:
        estimator(name, method, SIZES[method][0]).fit(X_train[:150], y_train[:150])  # compiles
        for size in SIZES[method]:
            start = time.process_time()
            model = estimator(name, method, size).fit(X_train, y_train)
            seconds = time.process_time() - start
            mean, std = model.predict(X_test, return_std=True)
            z = (y_test - mean) / std
            nlpd = np.mean(0.5 * z**2 + np.log(std) + 0.5 * np.log(2 * np.pi))
            rmse = np.sqrt(np.mean((y_test - mean) ** 2))
            rows.append((name, method, size, seconds, nlpd, rmse))

# %%
# The table
# ---------

print(f"{'data':<16}{'approximation':<19}{'size':>5}{'CPU s':>8}{'NLPD':>8}{'RMSE':>8}")
for name, method, size, seconds, nlpd, rmse in rows:
    print(f"{name:<16}{method:<19}{size or '-':>5}{seconds:>8.2f}{nlpd:>8.3f}{rmse:>8.3f}")

# %%
# The figure
# ----------
# Each line is one approximation, from its smallest size to its largest; the dashed line is the exact process.
# Each fit has hyperparameters of its own, so that a point below the dashed line is no better posterior of the
# same model.

figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained", sharex="col")
for column, name in enumerate(data):
    for line, (label, position) in enumerate((("test NLPD", 4), ("test RMSE", 5))):
        axis = axes[line, column]
        for number, method in enumerate(SIZES):
            found = [row for row in rows if row[:2] == (name, method)]
            if found:
                heights = [row[position] for row in found]
                axis.plot(
                    [row[3] for row in found], heights, "o-", color=f"C{number}", label=method
                )
                if method == "exact":
                    axis.axhline(heights[0], color=f"C{number}", linestyle="--", linewidth=1)
        axis.set(xscale="log", ylabel=label)
    axes[0, column].set_title(name)
    axes[0, column].legend(fontsize="small")
    axes[1, column].set_xlabel("processor time of the fit, s")

path = Path("output") / "approximations.png"
path.parent.mkdir(exist_ok=True)
figure.savefig(path, dpi=120)
print(f"figure: {path.resolve()}")

"""
Regression: exact, inducing points, minibatches
===============================================

The same model - a Gaussian process with a Matern-5/2 kernel and one lengthscale per column - fitted to two
real data sets in three ways:

* **exact**: condition on all rows, :math:`O(N^3)`;
* **SGPR**: inducing points, all rows at once, the collapsed bound by L-BFGS, :math:`O(NM^2)` a step;
* **minibatch CVI**: inducing points, natural-gradient steps for q and Adam for the rest on 256 rows at a
  time, :math:`O(M^3)` a step whatever N.

RMSE and NLPD (negative log predictive density, lower is better) are on held-out rows in the units of the
target; the ELBO is in total nats and comparable within a data set: it is a lower bound on the log evidence
that "exact" maximises. Only the number of inducing points and of steps is set.
"""

import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklego.datasets import load_abalone

from gpvi import GPRegressor
from gpvi.exceptions import ConvergenceWarning

# %%
# Two data sets
# -------------
# Disease progression of 442 diabetes patients (10 columns, carried by scikit-learn), and the age of 4,177
# abalone in rings of the shell (7 measurements and the sex, carried by scikit-lego).


def abalone() -> tuple[np.ndarray, np.ndarray]:
    """Measurements and one-hot sex against the number of rings."""
    table, sex = load_abalone(return_X_y=True)
    one_hot = (sex[:, None] == np.array(["F", "I", "M"])).astype(float)
    return np.hstack([table[:, :7], one_hot]), table[:, 7]


data = {"diabetes": load_diabetes(return_X_y=True), "abalone": abalone()}

# %%
# Three fits each
# ---------------
# For abalone the exact fit takes its hyperparameters from the warm start on 1,500 rows and then conditions on
# all 3,341: a Cholesky factorisation of that size at every step is what the other two exist to avoid. The
# minibatch fits stop early too; the warnings that they are not converged are expected here.

fits = {
    "diabetes": {
        "exact": GPRegressor(approximation="exact", random_state=0),
        "SGPR": GPRegressor(approximation="inducing", num_inducing=50, random_state=0),
        "minibatch CVI": GPRegressor(
            approximation="inducing", num_inducing=50, batch_size=128, max_iter=150, random_state=0
        ),
    },
    "abalone": {
        "exact": GPRegressor(approximation="exact", max_iter=0, random_state=0),
        "SGPR": GPRegressor(
            approximation="inducing", num_inducing=128, max_iter=20, random_state=0
        ),
        "minibatch CVI": GPRegressor(
            approximation="inducing",
            num_inducing=128,
            batch_size=256,
            max_iter=100,
            random_state=0,
        ),
    },
}

rows = []
calibration = {}
warnings.simplefilter("ignore", ConvergenceWarning)
for name, (X, y) in data.items():
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=0)
    for method, model in fits[name].items():
        start = time.perf_counter()
        model.fit(X_train, y_train)
        fitted = time.perf_counter()
        mean, std = model.predict(X_test, return_std=True)
        done = time.perf_counter()
        rmse = np.sqrt(np.mean((y_test - mean) ** 2))
        z = (y_test - mean) / std
        nlpd = np.mean(0.5 * z**2 + np.log(std) + 0.5 * np.log(2 * np.pi))
        rows.append((name, method, rmse, nlpd, model.elbo_, fitted - start, done - fitted))
        calibration[name, method] = z

# %%
# The table
# ---------

print(f"{'data':<10}{'method':<15}{'RMSE':>8}{'NLPD':>8}{'ELBO':>11}{'fit s':>8}{'predict s':>11}")
for name, method, rmse, nlpd, elbo, fit_seconds, predict_seconds in rows:
    print(
        f"{name:<10}{method:<15}{rmse:>8.3f}{nlpd:>8.3f}{elbo:>11.1f}"
        f"{fit_seconds:>8.2f}{predict_seconds:>11.4f}"
    )

# %%
# Are the error bars right?
# -------------------------
# If they are, a share p of the test rows falls into the central interval of probability p. Abalone's noise
# grows with age, which a Gaussian likelihood cannot express: the curves lie above the diagonal.

probability = np.linspace(0.01, 0.99, 99)
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
for axis, name in zip(axes, data, strict=True):
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for method in fits[name]:
        # |z| below its own quantile: the interval of a normal distribution, without tables.
        normal = np.abs(np.random.default_rng(0).standard_normal(100_000))
        width = np.quantile(normal, probability)
        covered = (np.abs(calibration[name, method])[:, None] < width).mean(0)
        axis.plot(probability, covered, label=method)
    axis.set(title=name, xlabel="nominal coverage", xlim=(0, 1), ylim=(0, 1))
axes[0].set_ylabel("share of test rows covered")
axes[0].legend()

path = Path("output") / "regression.png"
path.parent.mkdir(exist_ok=True)
figure.savefig(path, dpi=120)
print(f"figure: {path.resolve()}")

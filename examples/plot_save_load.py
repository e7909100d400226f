"""
Save, load, and what may be in a file
=====================================

``save`` writes a fitted estimator to one file, ``load`` reads it back, and predictions are the same to
the last bit. The file holds numbers (safetensors) and a JSON description, no pickle: nothing in it is
executed when it is read, and a file that was damaged says so.
"""

import tempfile
from pathlib import Path

import gpytorch
import matplotlib.pyplot as plt
import numpy as np
import torch

from gpvi import GPRegressor
from gpvi.datasets import load_dataset
from gpvi.exceptions import ModelFileError
from gpvi.persistence import register_class
from gpvi.plotting import PosteriorDisplay

folder = Path(tempfile.mkdtemp())

# %%
# Save and load
# -------------
# The yearly number of sunspots since 1700 (statsmodels), exact and with 40 inducing points. The file of
# an exact fit grows with the square of the number of rows; that of inducing points with the square of
# their number, plus a few numbers per row.

sunspots = load_dataset("sunspots")
X, y = sunspots.data, sunspots.target
models = {
    "exact": GPRegressor("matern32 * periodic", random_state=0),
    "inducing": GPRegressor(
        "matern32 * periodic",
        approximation="inducing",
        num_inducing=40,
        random_state=0,
    ),
}
for name, model in models.items():
    path = folder / f"{name}.gpvi"
    model.fit(X, y).save(path)
    loaded = GPRegressor.load(path)
    same = np.array_equal(model.predict(X, return_std=True), loaded.predict(X, return_std=True))
    print(f"{name:<10}{path.stat().st_size / 1e3:>8.0f} kB, same predictions: {same}")

# %%
# Everything that a fitted estimator offers is there: the summary, the history of the fit, leave-one-out
# predictions. A callback would not be saved, nor a ``random_state`` that is not a number.

loaded = GPRegressor.load(folder / "exact.gpvi")
print(f"{len(loaded.history_)} records of the fit, ELBO {loaded.elbo_:.2f}")
print(f"leave-one-out log density: {loaded.leave_one_out().total_log_density:.2f}")

# %%
# Damaged files and other files
# -----------------------------
# The file carries a digest of its contents. One changed byte anywhere, a missing end, or another kind
# of file ends in a :class:`~gpvi.exceptions.ModelFileError`.

intact = (folder / "inducing.gpvi").read_bytes()
changed = bytearray(intact)
changed[-1000] ^= 1
attempts = {"changed": bytes(changed), "truncated": intact[:-5000], "text": b"hello"}
for name, content in attempts.items():
    path = folder / f"{name}.gpvi"
    path.write_bytes(content)
    try:
        GPRegressor.load(path)
    except ModelFileError as error:
        print(str(error).replace(str(folder) + "/", ""))

# %%
# A kernel of your own
# --------------------
# A file names classes, and only classes that are known beforehand are built: those of GPyTorch and
# gpvi, and the ones that you register. Here is a kernel on the circle, for angles or times of day in
# units of one turn.


class CircularKernel(gpytorch.kernels.Kernel):
    """exp(-sin(pi d)^2 / l), a function of period one."""

    has_lengthscale = True

    def forward(
        self, x1: torch.Tensor, x2: torch.Tensor, diag: bool = False, **params: object
    ) -> torch.Tensor:
        """Covariance of the one column, or its diagonal."""
        gap = x1 - x2 if diag else x1 - x2.mT
        covariance = torch.exp(-torch.sin(torch.pi * gap).square() / self.lengthscale)
        return covariance.squeeze(-1) if diag else covariance


rng = np.random.default_rng(0)
turn = rng.uniform(size=(60, 1))
height = np.cos(2 * np.pi * turn[:, 0]) ** 3 + 0.1 * rng.standard_normal(60)
circular = GPRegressor(
    gpytorch.kernels.ScaleKernel(CircularKernel()), standardize=False, random_state=0
)
circular.fit(turn, height)
try:
    circular.save(folder / "circular.gpvi")
except ModelFileError as error:
    print(error)

# %%
# Registered, it can be saved. The process that loads the file registers the class too, before it loads.

register_class(CircularKernel, name="example.CircularKernel")
circular.save(folder / "circular.gpvi")
loaded = GPRegressor.load(folder / "circular.gpvi")
same = np.array_equal(circular.predict(turn), loaded.predict(turn))
print(f"own kernel, same predictions: {same}")

# %%
# Both loaded models, drawn.

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(2, 1))
PosteriorDisplay.from_estimator(
    GPRegressor.load(folder / "exact.gpvi"), X, y, num_points=600, coverage=0.95, ax=axes[0]
)
axes[0].set(xlabel="year", ylabel="sunspots")
PosteriorDisplay.from_estimator(loaded, turn, height, limits=(0.0, 1.5), ax=axes[1])
axes[1].set(xlabel="turn", ylabel="height")

path = Path("output") / "save_load.png"
path.parent.mkdir(exist_ok=True)
figure.savefig(path, dpi=120)
print(f"figure: {path.resolve()}")

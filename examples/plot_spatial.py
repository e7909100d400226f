"""
A surface with holes: neighbours against inducing points
========================================================

Elevation around Jacksboro in Tennessee (carried by matplotlib), 30 by 32 kilometres of ridges and valleys,
with a stripe and three squares cut out, as clouds and failed scan lines do to satellite images. How high is
the ground below the holes, and how well is that known?

Terrain is rough: a Matern-3/2 process, which forgets within a kilometre. Inducing points that are fewer than
its hills must smooth these away, wherever they are. A *sparse inverse Cholesky* factor goes the other way:
it keeps all points and writes the prior as a chain of conditionals, each given the nearest of the points
before,

.. math:: \\hat p(f) = \\prod_i p(f_i \\mid f_{s_i}), \\qquad |s_i| \\le 30,

so that a fit is linear in the number of points, and short range is what it is good at.

What to look at: in the narrow holes its error is smaller, along the stripe by more than half. In the middle
of the largest square it knows nothing and says so, and inducing points, which believe in a smoother surface,
guess better there. Its covariances join the points of a hole, which averages over a hole need.
"""

import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cbook import get_sample_data
from scipy.stats import norm

from gpvi import GPRegressor
from gpvi.exceptions import ConvergenceWarning

# %%
# The surface and its holes
# -------------------------
# Every second point of the grid in both directions, in kilometres east and south of the corner.

with np.load(get_sample_data("jacksboro_fault_dem.npz", asfileobj=False)) as stored:
    surface = stored["elevation"][::2, ::2].astype(float)
    degrees = 2 * float(stored["dx"])
    latitude = float(stored["ymin"])
south, east = np.indices(surface.shape) * degrees * 111.2
east *= np.cos(np.radians(latitude))
X, y = np.column_stack([east.ravel(), south.ravel()]), surface.ravel()

holes = {  # first column and row, width and height, all in km
    "stripe, 0.5 km": (12.0, 0.0, 0.5, 40.0),
    "square, 1 km": (5.0, 22.0, 1.0, 1.0),
    "square, 2 km": (20.0, 8.0, 2.0, 2.0),
    "square, 4 km": (22.0, 22.0, 4.0, 4.0),
}
inside = {}
for name, (left, top, width, height) in holes.items():
    corner = np.array([left, top])
    inside[name] = ((X >= corner) & (X < corner + [width, height])).all(1)
missing = np.any(list(inside.values()), axis=0)
print(f"{(~missing).sum()} points to learn from, {missing.sum()} in the holes\n")

# %%
# Two fits in the same time
# -------------------------
# The first fit takes the time that it needs, and the second one stops at the first evaluation after as
# much is over (of the processor's time, which a busy machine does not change). Both learn lengthscales,
# variance and noise by the evidence of their own model. Fits to a few rows come first, so that compilation
# is not counted.

warnings.simplefilter("ignore", ConvergenceWarning)
for approximation in ("sic", "inducing"):
    GPRegressor("matern32", approximation=approximation, max_iter=1).fit(X[:500], y[:500])

models, spent = {}, np.inf
for approximation in ("sic", "inducing"):
    started = time.process_time()
    deadline = started + spent
    model = GPRegressor(
        "matern32",
        approximation=approximation,
        callbacks=[lambda record, deadline=deadline: time.process_time() > deadline],
        random_state=0,
    )
    models[approximation] = model.fit(X[~missing], y[~missing])
    spent = time.process_time() - started
    print(f"{model.summary().approximation}: {spent:.1f} s")
    learned = {row.name.split(".")[-1]: row.value for row in model.summary().hyperparameters}
    print(f"    lengthscale {learned['lengthscale']:.2f} km, noise {learned['noise'] ** 0.5:.1f} m")

# %%
# In the holes
# ------------
# Errors in metres; NLPD is the negative log predictive density of single points (lower is better), the
# last column the share of points in their 95 % intervals.

print(f"\n{'':<17}{'':<10}{'RMSE':>7}{'mean std':>10}{'NLPD':>7}{'in 95 %':>9}")
for name, rows in {**inside, "all": missing}.items():
    for approximation, model in models.items():
        mean, std = model.predict(X[rows], return_std=True)
        error = y[rows] - mean
        print(
            f"{name if approximation == 'sic' else '':<17}{approximation:<10}"
            f"{np.sqrt(np.mean(error**2)):>7.1f}{std.mean():>10.1f}"
            f"{-norm.logpdf(error, scale=std).mean():>7.2f}{(np.abs(error) < 1.96 * std).mean():>9.0%}"
        )

# %%
# More time brings inducing points nearer. In a longer run, 1,024 of them took more than fifteen times as
# much and reached an RMSE of 48 and an NLPD of 5.39 over all holes: a smaller error, nearly all of which is
# that of the largest square, and a worse density.
#
# Averages over a hole
# --------------------
# How high is a square on average? Its points lean the same way, so that their joint covariance counts;
# single standard deviations, taken as independent, promise far too much.

print(
    f"\n{'average over':<17}{'truth':>7}{'predicted':>11}{'std, joint':>12}{'if independent':>16}"
)
for name in list(holes)[1:]:
    rows = inside[name]
    mean, covariance = models["sic"].predict(X[rows], return_cov=True, latent=True)
    joint, alone = covariance.mean() ** 0.5, np.trace(covariance) ** 0.5 / rows.sum()
    print(f"{name:<17}{y[rows].mean():>7.1f}{mean.mean():>11.1f}{joint:>12.1f}{alone:>16.1f}")

# %%
# Maps, with the surface on the left: what the fits saw, and all of it. The standard deviation of neighbours
# is nearly zero where there are data; that of inducing points is their noise everywhere, because what they
# smooth away has to be noise to them.

maps = {"data": np.where(missing, np.nan, y), "truth": y}
figure, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained", sharex=True, sharey=True)
extent = (0.0, east.max(), south.max(), 0.0)
metres = {"cmap": "terrain", "vmin": y.min(), "vmax": y.max(), "extent": extent}
for axis, (name, values) in zip(axes[:, 0], maps.items(), strict=True):
    image = axis.imshow(values.reshape(surface.shape), **metres)
    axis.set(title=name, ylabel="km south")
for column, (approximation, model) in zip(axes[:, 1:].T, models.items(), strict=True):
    mean, std = model.predict(X, return_std=True)
    column[0].imshow(mean.reshape(surface.shape), **metres)
    column[0].set(title=f"{approximation}: mean")
    spread = column[1].imshow(std.reshape(surface.shape), extent=extent, vmin=0, vmax=130)
    column[1].set(title=f"{approximation}: standard deviation", xlabel="km east")
figure.colorbar(image, ax=axes[0], label="m")
figure.colorbar(spread, ax=axes[1], label="m")
plt.show()

"""
Hyperparameters: fix, start, bound, add a prior
===============================================

By default every hyperparameter is learned from the data. Sometimes one knows better: the noise of a
device, a season of exactly one year, a lengthscale that cannot be shorter than the spacing of the data.
The argument ``hyperparameters`` takes such knowledge by name and in the units of the data, and
``summary()`` shows what came of it.

The data are the 442 diabetes patients of scikit-learn (10 columns; target: progression of the disease),
and weekly carbon dioxide at Mauna Loa (statsmodels).
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from gpytorch.priors import GammaPrior
from sklearn.model_selection import train_test_split

from gpvi import Fixed, Free, GPRegressor
from gpvi.datasets import load_dataset
from gpvi.plotting import PosteriorDisplay, RelevanceDisplay

# %%
# What there is
# -------------
# Every line of the summary is a hyperparameter: where it is, its value in the units of X and y, and
# whether it was learned. A name in ``hyperparameters`` is such a path, its last part ("lengthscale"),
# or the owner's class and the last part ("matern.lengthscale").

diabetes = load_dataset("diabetes")
patients = pd.DataFrame(diabetes.data, columns=diabetes.feature_names)
X_train, X_test, y_train, y_test = train_test_split(
    patients, diabetes.target, test_size=0.5, random_state=0
)
default = GPRegressor(random_state=0).fit(X_train, y_train)
print(default.summary())

# %%
# Some lengthscales are huge: automatic relevance determination (ARD) has switched these columns off.
#
# Four ways to say more
# ---------------------
# ``Fixed(value)`` holds a value. ``Free(initial=, bounds=, prior=)`` learns it, from a starting value,
# inside bounds, with a prior; a prior alone may be passed as it is. Values may be sequences with one
# entry per column. ``"dimension_scaled"`` is a prior on lengthscales that expects smoother functions
# the more columns there are (Hvarfner et al., 2024).

choices = {
    "learned (default)": {},
    "noise fixed": {"noise": Fixed(55.0**2)},
    "noise bounded from below": {"noise": Free(bounds=(52.0**2, None))},
    "gamma prior on noise": {"noise": GammaPrior(2.0, 2.0 / 55.0**2)},
    "dimension-scaled prior": {"lengthscale": "dimension_scaled"},
}
fitted = {}
print(f"\n{'hyperparameters':<26}{'noise std':>10}{'ELBO':>10}{'R2':>8}{'NLPD':>8}")
for name, hyperparameters in choices.items():
    model = GPRegressor(hyperparameters=hyperparameters, random_state=0).fit(X_train, y_train)
    noise = next(row.value for row in model.summary().hyperparameters if "noise" in row.name)
    nlpd = -model.log_predictive_density(X_test, y_test).mean()
    print(
        f"{name:<26}{noise**0.5:>10.1f}{model.elbo_:>10.1f}"
        f"{model.score(X_test, y_test):>8.3f}{nlpd:>8.3f}"
    )
    fitted[name] = model

# %%
# The ELBO is highest without any restriction, as it must be; the differences between the held-out
# scores are too small to choose by, on these data. ``summary()`` marks what was fixed and what had a
# prior.

rows = fitted["dimension-scaled prior"].summary().hyperparameters
for row in [*rows[:3], *rows[-2:]]:
    print(f"{row.name:<32}{row.column:<5}{row.value:>10.4g} {row.unit:<4}{row.status}")

# %%
# Bars of inverse lengthscales show what ARD made of the columns. A long bar means that the prediction
# changes quickly along the column, after standardisation, and not that the column is a good predictor.

figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", width_ratios=(1, 1, 1.6))
for axis, name in zip(axes, ("learned (default)", "dimension-scaled prior"), strict=False):
    RelevanceDisplay.from_estimator(fitted[name], ax=axis)
    axis.set_title(name)

# %%
# A period that is known
# ----------------------
# Carbon dioxide rises, and falls and rises with the seasons. The years 1980 to 1984 are left out and
# predicted from one row in ten of the others. As a function of the period, the objective has a narrow
# peak at one year, lower ones at two and three, and is flat elsewhere. The starting value that the data
# suggest (85 years) lies on the flat part, and the fit stays there. Starting at one year is not enough
# for L-BFGS, whose first steps are long and leave the peak: the period ends at the edge of the range that
# the optimiser allows, a factor of a million below its start, which is a sign of a failed fit. Adam takes
# small steps and stays. Bounds help, but leave room for two years in place of one. Nothing has to be
# learned here: fix it.

co2 = load_dataset("co2")
year = co2.data[:, 0]
gap = (year > 1980) & (year < 1984)
X, y = co2.data[~gap][::10], co2.target[~gap][::10]
periods = {
    "learned (default)": {},
    "starts at 1 year": {"period_length": Free(initial=1.0)},
    "starts at 1 year, Adam": {"period_length": Free(initial=1.0)},
    "between 0.5 and 2 years": {"period_length": Free(bounds=(0.5, 2.0))},
    "fixed to 1 year": {"period_length": Fixed(1.0)},
}
print(f"\n{'period':<26}{'learned':>10}{'noise std':>10}{'ELBO':>10}{'R2':>8}{'NLPD':>8}")
for name, hyperparameters in periods.items():
    model = GPRegressor(
        "rbf + periodic",
        hyperparameters=hyperparameters,
        optimizer="adam" if "Adam" in name else "auto",
        max_iter=300,
        random_state=0,
    ).fit(X, y)
    values = {row.name.split(".")[-1]: row.value for row in model.summary().hyperparameters}
    nlpd = -model.log_predictive_density(co2.data[gap], co2.target[gap]).mean()
    print(
        f"{name:<26}{values['period_length']:>10.3g}{values['noise'] ** 0.5:>10.2f}{model.elbo_:>10.1f}"
        f"{model.score(co2.data[gap], co2.target[gap]):>8.3f}{nlpd:>8.3f}"
    )

# %%
# The table says which fit to trust without a look at the gap: the ELBO, which is comparable between
# fits to the same data. Restarts (``num_restarts``) use this, too. Predictions of the last model in the
# gap:

near = (year > 1977) & (year < 1987)
PosteriorDisplay.from_estimator(
    model, co2.data[near], co2.target[near], num_points=400, coverage=0.95, ax=axes[2]
)
axes[2].axvspan(1980, 1984, color="0.9", zorder=0)
axes[2].set(xlabel="year", ylabel="CO2 [ppm]")

path = Path("output") / "hyperparameters.png"
path.parent.mkdir(exist_ok=True)
figure.savefig(path, dpi=120)
print(f"figure: {path.resolve()}")

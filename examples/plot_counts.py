"""
Counts with exposure: doctor visits
===================================

Rates of events - claims per policy year, cases per inhabitant, visits per patient - come as counts with
an exposure: for how long, or among how many, was counted. ``GPCountRegressor`` models

.. math:: y_n \\sim \\mathrm{Poisson}(e_n \\exp f(x_n)), \\qquad f \\sim \\mathrm{GP},

so that a rate from three people weighs less than one from three hundred.

The data are from the RAND health insurance experiment (20,190 person-years, carried by statsmodels):
visits to a doctor, by chronic diseases, state of health and terms of the insurance. People who agree in
all of them are pooled into one cell; the number of person-years in the cell is its exposure.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.stats import nbinom, poisson
from sklearn.model_selection import train_test_split

from gpvi import GPCountRegressor
from gpvi.datasets import load_dataset
from gpvi.metrics import interval_coverage, interval_width
from gpvi.plotting import PosteriorDisplay

# %%
# From people to cells
# --------------------
# ``disea`` is an index of chronic diseases, ``lncoins`` the log of the share of costs that the patient
# pays, ``idp`` marks plans with a deductible. Health is rated from excellent (0) to poor (3).

randhie = load_dataset("randhie")
people = pd.DataFrame(randhie.data, columns=randhie.feature_names).assign(visits=randhie.target)
people["health"] = people["hlthg"] + 2 * people["hlthf"] + 3 * people["hlthp"]
people["disea"] = people["disea"].round()
columns = ["disea", "health", "lncoins", "idp"]
cells = people.groupby(columns, as_index=False).agg(
    visits=("visits", "sum"), years=("visits", "size")
)
train, test = train_test_split(cells, test_size=0.3, random_state=0)
print(f"{len(cells)} cells of 1 to {cells['years'].max()} person-years, {len(test)} held out\n")

# %%
# Four models
# -----------
# Two generalised linear models as baselines: Poisson, and negative binomial, whose extra parameter
# (found by maximum likelihood) lets cells with the same columns differ. Then two Gaussian processes.
# The second adds a ``white`` term: a value of its own for every cell, which does for the Gaussian
# process what the negative binomial does for the linear model.

design = sm.add_constant(train[columns])
new_design = sm.add_constant(test[columns])
offset, new_offset = np.log(train["years"]), np.log(test["years"])
linear = sm.GLM(train["visits"], design, family=sm.families.Poisson(), offset=offset).fit()
negative = sm.NegativeBinomial(train["visits"], design, offset=offset).fit(disp=False, maxiter=200)

rates = {}
results = {}
rates["Poisson GLM"] = linear.predict(new_design, offset=new_offset)
results["Poisson GLM"] = poisson(rates["Poisson GLM"])
rates["negative binomial GLM"] = negative.predict(new_design, offset=new_offset)
size = 1.0 / negative.params["alpha"]
results["negative binomial GLM"] = nbinom(size, size / (size + rates["negative binomial GLM"]))

print(f"{'model':<24}{'NLPD':>8}{'coverage of 90 %':>18}{'mean width':>12}")
truth, years = test["visits"], test["years"]


def report(name: str, nlpd: float, lower: np.ndarray, upper: np.ndarray) -> None:
    """One line of the table."""
    coverage = interval_coverage(truth, lower, upper)
    print(f"{name:<24}{nlpd:>8.2f}{coverage:>18.0%}{interval_width(lower, upper):>12.1f}")


for name, distribution in results.items():
    report(name, -distribution.logpmf(truth).mean(), *distribution.interval(0.9))

processes = {"GP, matern52": "matern52", "GP, matern52 + white": "matern52 + white"}
for name, kernel in processes.items():
    model = GPCountRegressor(kernel, random_state=0)
    model.fit(train[columns], train["visits"], exposure=train["years"])
    nlpd = -model.log_predictive_density(test[columns], truth, exposure=years).mean()
    report(name, nlpd, *model.predict_interval(test[columns], 0.9, exposure=years))
    processes[name] = model

# %%
# The Poisson GLM promises far too narrow intervals: it does not know that cells differ by more than
# their columns say. The negative binomial repairs that with one parameter, the Gaussian process by
# bending the rate from cell to cell, and better with a ``white`` term that leaves the smooth part
# smooth. The last three scores are close (with 102 cells, a coverage is known to about three points):
# what matters on these data is the spread between cells, and much less whether the log rate is a
# straight line.
#
# What was learned
# ----------------
# ``white`` is the variance of the log rate between cells that agree in all columns, ``scale`` that of
# the smooth part, and the lengthscales say how far one has to go in a column for the rate to change.

best = processes["GP, matern52 + white"]
print(f"\n{best.summary()}")

# %%
# Visits per person-year against chronic diseases, all other columns held at their medians; the points
# are the rates of all training cells. The band is for the visits of one person in one year.

figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
PosteriorDisplay.from_estimator(
    best,
    train[columns],
    train["visits"] / train["years"],
    feature="disea",
    coverage=0.5,
    target_name="visits per person-year",
    ax=axis,
)
axis.set_ylim(0, 20)
axis.legend()

path = Path("output") / "counts.png"
path.parent.mkdir(exist_ok=True)
figure.savefig(path, dpi=120)
print(f"\nfigure: {path.resolve()}")

"""
Grid search, pipelines, data frames
===================================

The estimators follow scikit-learn's rules, so that its tools work on them: ``GridSearchCV`` over kernel
expressions and hyperparameters, ``Pipeline``, cloning, worker processes, pandas frames.

A Gaussian process rarely *needs* a grid search: lengthscales and noise are learned by maximising the
ELBO. What is left to choose is the kind of kernel. The ELBO can choose that too, at the price of one
fit instead of one per fold; below both are put side by side.
"""

import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, KFold, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklego.datasets import load_abalone

from gpvi import Fixed, GPRegressor
from gpvi.metrics import nlpd_scorer

# Stopping early changes little here and keeps the example short; 40 fits would say so forty times.
warnings.simplefilter("ignore", ConvergenceWarning)

# %%
# A data frame with a category
# ----------------------------
# The age of abalone in rings of the shell (scikit-lego): seven measurements and the sex, which is F, I
# (infant) or M. As a pandas category, the column needs no encoding: the kernel over the numbers is
# multiplied by one that knows only "equal" and "different".

table = load_abalone(as_frame=True).astype({"sex": "category"})
X, y = table.drop(columns="rings"), table["rings"].astype(float)
X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=200, random_state=0)
X_test, y_test = X_test[:1_000], y_test[:1_000]
model = GPRegressor(random_state=0, max_iter=10).fit(X_train, y_train)
print(model.summary())

# %%
# Search over kernels and over a hyperparameter
# ---------------------------------------------
# ``nlpd_scorer`` scores the whole predictive distribution; scikit-learn's default for regressors, R2,
# would look at the mean only. ``n_jobs=2`` would fit in two worker processes; for fits of a second
# each, starting them takes longer.

grid = [
    {"kernel": ["matern32", "matern52", "linear"]},
    {"kernel": ["matern52"], "hyperparameters": [{"lengthscale": "dimension_scaled"}]},
    {"kernel": ["matern52"], "likelihood": ["student_t"]},
]
search = GridSearchCV(
    GPRegressor(random_state=0, max_iter=10),
    grid,
    scoring=nlpd_scorer,
    cv=KFold(3, shuffle=True, random_state=0),
)
start = time.perf_counter()
search.fit(X_train, y_train)
seconds = time.perf_counter() - start

labels, elbos, held_out = [], [], []
for parameters in search.cv_results_["params"]:
    fitted = GPRegressor(random_state=0, max_iter=10, **parameters).fit(X_train, y_train)
    rest = [str(value) for key, value in parameters.items() if key != "kernel"]
    labels.append(", ".join([parameters["kernel"], *rest]))
    elbos.append(fitted.elbo_)
    held_out.append(-nlpd_scorer(fitted, X_test, y_test))
nlpd = -search.cv_results_["mean_test_score"]
results = pd.DataFrame({"NLPD by 3 folds": nlpd, "ELBO": elbos, "NLPD held out": held_out}, labels)
print(results.round(3).to_string())
print(f"chosen: {search.best_params_}, in {seconds:.1f} s")

# %%
# Student-t noise wins by all three scores: some animals are much older than their size says, and a
# Gaussian has to become wide everywhere to allow for them. Between the kernels the differences are
# small, and the order by folds (which see 133 rows each), by the ELBO and on held-out rows is not the
# same.
#
# A pipeline
# ----------
# Steps in front of the regressor work as always, and parameters of all steps can be searched by their
# prefix. Do logarithms of the measurements help? A pipeline has no log predictive density of its own,
# so the scorer takes it apart. Ridge regression on the same columns is the baseline.


def pipeline_nlpd(fitted: Pipeline, inputs: pd.DataFrame, targets: pd.Series) -> float:
    """The scorer for the last step, behind the steps in front of it."""
    return nlpd_scorer(fitted[-1], fitted[:-1].transform(inputs), targets)


numbers = [column for column in X if column != "sex"]
columns = make_column_transformer((OneHotEncoder(), ["sex"]), ("passthrough", numbers))
columns.set_params(verbose_feature_names_out=False)
pipeline = Pipeline(
    [("columns", columns), ("gp", GPRegressor("linear + matern52", random_state=0, max_iter=10))]
)
choices = {
    "columns__passthrough": ["passthrough", FunctionTransformer(np.log1p)],
    "gp__hyperparameters": [None, {"noise": Fixed(4.0)}],
}
tuned = GridSearchCV(pipeline, choices, scoring=pipeline_nlpd, cv=3).fit(X_train, y_train)
for parameters, score in zip(
    tuned.cv_results_["params"], tuned.cv_results_["mean_test_score"], strict=True
):
    logarithm = parameters["columns__passthrough"] != "passthrough"
    print(f"log: {logarithm!s:<6} {parameters['gp__hyperparameters']}  NLPD {-score:.3f}")
ridge = make_pipeline(columns, StandardScaler(), RidgeCV()).fit(X_train, y_train)
print(f"R2 held out: pipeline {tuned.best_estimator_.score(X_test, y_test):.3f}", end=", ")
print(f"search {search.best_estimator_.score(X_test, y_test):.3f}", end=", ")
print(f"ridge {ridge.score(X_test, y_test):.3f}")

# %%
# All scores of the first search.

figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
axis.plot(results["NLPD by 3 folds"], results.index, "o", label="3 folds")
axis.plot(results["NLPD held out"], results.index, "s", label="held-out rows")
axis.plot(
    -results["ELBO"] / len(y_train), results.index, "|", markersize=12, label="- ELBO per row"
)
axis.set_xlabel("nats per row (lower is better)")
axis.legend()

path = Path("output") / "grid_search.png"
path.parent.mkdir(exist_ok=True)
figure.savefig(path, dpi=120)
print(f"figure: {path.resolve()}")

"""
Classification: how sure may a label be?
========================================

A classifier that is asked for decisions only has to be on the right side of a boundary. One that is
asked for probabilities also has to know how sure it may be: close to the boundary, and where there were
no data. This example looks at both, first in two dimensions where everything can be drawn, then on real
data with 13 and 30 columns, against logistic regression and scikit-learn's Gaussian process classifier.

NLPD is the mean negative log predictive density of held-out labels (the log loss); lower is better.
"""

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import ConstantKernel, Matern
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpvi import GPClassifier
from gpvi.datasets import load_dataset, make_banana
from gpvi.exceptions import ExtrapolationWarning
from gpvi.plotting import PosteriorMapDisplay, ReliabilityDisplay

# Fits stop early to keep the example short, and the map is meant to reach beyond the data.
warnings.simplefilter("ignore", ConvergenceWarning)
warnings.simplefilter("ignore", ExtrapolationWarning)

# %%
# Two crescents
# -------------
# 300 rows of two interlocking classes, 2,000 more to score on. Logistic regression can only draw a
# straight line.

train = make_banana(300, random_state=0)
new = make_banana(2_000, random_state=1)
crescents = {
    "GPClassifier": GPClassifier(random_state=0),
    "logistic regression": LogisticRegression(),
}
print(f"{'crescents':<24}{'accuracy':>9}{'NLPD':>8}")
for name, model in crescents.items():
    model.fit(train.data, train.target)
    nlpd = log_loss(new.target, model.predict_proba(new.data))
    print(f"{name:<24}{model.score(new.data, new.target):>9.3f}{nlpd:>8.3f}")

# %%
# A label has no error bar, but the function f behind it has. Close to the boundary f is near 0 and well
# known, so that the probability near one half is a fact about the data. Far away from all rows f is
# simply not known, and the probability returns to one half for that reason.

classifier = crescents["GPClassifier"]
points = np.array([[0.0, 0.0], [0.0, -1.0], [4.0, 4.0]])
mean, std = classifier.predict(points, return_std=True, latent=True)
probability = classifier.predict_proba(points)[:, 1]
for point, centre, width, p in zip(points, mean, std, probability, strict=True):
    print(f"at {point}: f = {centre:5.1f} +- {width:4.1f}, probability {p:.2f}")

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
PosteriorMapDisplay.from_estimator(
    classifier, train.data, train.target, limits=((-4, 4), (-4, 4)), num_points=50, ax=axes[0]
)

# %%
# Real data
# ---------
# Wines of three cultivars (178 rows, 13 columns) and tumours, benign or malignant (569 rows, 30
# columns), both carried by scikit-learn; 40 % of the rows are held out. The rivals are tuned too:
# logistic regression chooses its penalty by cross-validation, scikit-learn's classifier its kernel by
# the marginal likelihood. The prior "dimension_scaled" on the lengthscales expects smoother functions
# the more columns there are.

prior = {"lengthscale": "dimension_scaled"}
penalties = {"C": [0.01, 0.1, 1.0, 10.0, 100.0]}
logistic = GridSearchCV(LogisticRegression(max_iter=1_000), penalties, scoring="neg_log_loss")
laplace = GaussianProcessClassifier(ConstantKernel() * Matern(nu=2.5))
methods = {
    "GP, matern52": GPClassifier(hyperparameters=prior, max_iter=10, random_state=0),
    "GP, linear": GPClassifier("linear", max_iter=10, random_state=0),
    "logistic regression": make_pipeline(StandardScaler(), logistic),
    "scikit-learn's GP": make_pipeline(StandardScaler(), laplace),
}
held_out = {}
print(f"\n{'data':<15}{'method':<24}{'accuracy':>9}{'NLPD':>8}")
for name in ("wine", "breast_cancer"):
    data = load_dataset(name)
    X_train, X_test, y_train, y_test = train_test_split(
        data.data, data.target, test_size=0.4, random_state=0, stratify=data.target
    )
    for method, model in methods.items():
        model.fit(X_train, y_train)
        table = model.predict_proba(X_test)
        accuracy = np.mean(model.classes_[table.argmax(1)] == y_test)
        print(f"{name:<15}{method:<24}{accuracy:>9.3f}{log_loss(y_test, table):>8.3f}")
        held_out[name, method] = y_test == model.classes_[1], table[:, 1]

# %%
# The cultivars of wine can be told apart by linear functions of the columns, so a linear kernel does
# better than a Matern kernel, which has to learn first that nothing bends, and logistic regression is best.
# On the tumours the first three are close: 228 held-out rows hardly tell them apart. scikit-learn's
# classifier fits one class against the rest and shares one lengthscale among all columns; its labels are as
# good, its probabilities less so.
#
# Are the probabilities right?
# ----------------------------
# Of all rows that get a probability of about 0.8, four in five should be of the class. The bars show
# how many rows there are in each bin: with good classifiers most are near 0 and 1, and the points
# between them rest on few rows.

for method in ("GP, matern52", "logistic regression"):
    event, probability = held_out["breast_cancer", method]
    display = ReliabilityDisplay.from_probabilities(event, probability, num_bins=5)
    display.plot(axes[1], label=method)
axes[1].set_title("breast cancer, held out")

path = Path("output") / "classification.png"
path.parent.mkdir(exist_ok=True)
figure.savefig(path, dpi=120)
print(f"figure: {path.resolve()}")

"""Random data, faults and options: a fit, or a refusal in our words; no crash, NaN or negative variance.

Forty cases by default. ``GPVI_FUZZ=2000 pytest tests/estimators/test_fuzz.py`` runs the long mode, and
``GPVI_FUZZ_SEED=1`` another selection of cases. Data that nothing is wrong with must fit in 98 % of them.
"""

import os
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

from gpvi.estimators import Fixed, GPClassifier, GPCountRegressor, GPRegressor
from gpvi.exceptions import GPVIError, GPVIWarning, UnsupportedError

CASES = int(os.environ.get("GPVI_FUZZ", "40"))
SEED = int(os.environ.get("GPVI_FUZZ_SEED", "0"))

ESTIMATORS = {"regressor": GPRegressor, "classifier": GPClassifier, "counts": GPCountRegressor}
COLUMNS = ["normal", "normal", "constant", "copy", "huge", "tiny", "integer", "offset", "heavy"]
TARGETS = {
    "regressor": ["smooth", "noise", "constant", "huge", "tiny", "integer", "outlier"],
    "classifier": ["two", "three", "text", "separable", "rare"],
    "counts": ["poisson", "zeros", "large", "fractions"],
}
LIKELIHOODS = {
    "regressor": ["auto", "auto", "gaussian", "student_t", "laplace", "censored_gaussian"],
    "classifier": ["auto", "auto", "logit", "softmax"],
    "counts": ["auto", "poisson", "negative_binomial", "zero_inflated_poisson"],
}
KERNELS = [
    "matern52", "matern52", "matern12", "rbf", "linear", "rational_quadratic", "periodic",
    "rbf + linear", "matern32 * linear", "rbf + white", "constant + matern32",
]  # fmt: skip
WEIGHTS = [None, None, None, "ones", "zeros and twos", "fractions"]
FAULTS = [
    "NaN in X", "inf in X", "NaN in y", "inf in y", "flat X", "deep X", "short y", "no rows",
    "one row", "text", "complex", "sparse", "one class", "negative", "zero weights",
    "negative weights", "NaN weights", "short weights", "foreign extra", "bad extra", "option",
]  # fmt: skip
BAD_OPTIONS = [
    {"kernel": "matern"}, {"kernel": 3}, {"mean": "none"}, {"likelihood": "cauchy"},
    {"approximation": "sparse"}, {"num_inducing": 0}, {"objective": "evidence"}, {"max_iter": -1},
    {"optimizer": "sgd"}, {"batch_size": 0}, {"learning_rate": -1.0}, {"num_restarts": 1.5},
    {"dtype": "int8"}, {"device": "abacus"}, {"random_state": "x"}, {"callbacks": [1]},
    {"hyperparameters": {"length": Fixed(1.0)}}, {"batch_size": 3, "approximation": "exact"},
    {"checkpoint": 7}, {"categorical_features": [9]}, {"standardize": "no"},
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One fit, reproducible from what hypothesis prints."""

    kind: str
    seed: int
    size: int
    columns: tuple[str, ...]
    target: str
    repeated: bool
    weights: str | None
    extra: bool
    fault: str | None
    options: dict[str, Any]


@st.composite
def cases(draw: Any) -> Case:
    kind = draw(st.sampled_from(list(ESTIMATORS)))
    batch_size = draw(st.sampled_from([None, None, None, 1, 5, 100]))
    options = {
        "kernel": draw(st.sampled_from(KERNELS)),
        "ard": draw(st.booleans()),
        "mean": draw(st.sampled_from(["constant", "zero"])),
        "likelihood": draw(st.sampled_from(LIKELIHOODS[kind])),
        "approximation": "inducing"
        if batch_size
        else draw(st.sampled_from(["auto", "exact", "inducing"])),
        "num_inducing": draw(st.sampled_from([None, 1, 4, 12, 50])),
        "standardize": draw(st.sampled_from([True, True, True, False])),
        "objective": draw(st.sampled_from(["tighter_elbo", "elbo"])),
        "optimizer": "auto"
        if batch_size
        else draw(st.sampled_from(["auto", "auto", "adam", None])),
        "batch_size": batch_size,
        "max_iter": draw(st.integers(0, 4)),
        "num_restarts": draw(st.sampled_from([0, 0, 0, 1])),
        "dtype": draw(st.sampled_from(["float64", "float64", "float64", "float32"])),
        "random_state": draw(st.integers(0, 9)),
    }
    fault = draw(st.sampled_from([None] * 3 * len(FAULTS) + FAULTS))
    if fault == "option":
        options |= draw(st.sampled_from(BAD_OPTIONS))
    return Case(
        kind=kind,
        seed=draw(st.integers(0, 10_000)),
        size=draw(st.integers(2, 40)),
        columns=tuple(draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=5))),
        target=draw(st.sampled_from(TARGETS[kind])),
        repeated=draw(st.sampled_from([False, False, True])),
        weights=draw(st.sampled_from(WEIGHTS)),
        extra=draw(st.sampled_from([False, False, True])),
        fault=fault,
        options=options,
    )


def column(kind: str, base: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    values = generator.normal(size=len(base))
    return {
        "normal": values,
        "constant": np.full(len(base), values[0]),
        "copy": base,
        "huge": 1e12 * values,
        "tiny": 1e-12 * values,
        "integer": np.round(3 * values),
        "offset": 1e6 + values,
        "heavy": values / np.maximum(generator.uniform(size=len(base)), 1e-3),
    }[kind]


def targets(kind: str, base: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    f = np.sin(2 * base) + 0.1 * generator.normal(size=len(base))
    noise = generator.normal(size=len(base))
    outlier = f.copy()
    outlier[0] += 1e6
    labels = np.digitize(f, [-0.4, 0.4])
    return {
        "smooth": f,
        "noise": noise,
        "constant": np.full(len(base), 2.5),
        "huge": 1e12 * f,
        "tiny": 1e-12 * f,
        "integer": np.round(5 * f),
        "outlier": outlier,
        "two": (f + noise > 0).astype(int),
        "three": labels,
        "text": np.array(["low", "mid", "top"])[labels],
        "separable": base > np.median(base),
        "rare": np.arange(len(base)) == 0,
        "poisson": generator.poisson(np.exp(1 + f)),
        "zeros": np.zeros(len(base)),
        "large": generator.poisson(1e6 * np.exp(f)),
        "fractions": np.exp(f),
    }[kind]


def build(case: Case) -> tuple[Any, Any, dict[str, Any]]:
    """Inputs, targets and extras, with the fault if there is one."""
    generator = np.random.default_rng(case.seed)
    base = generator.normal(size=case.size)
    X = np.column_stack([column(kind, base, generator) for kind in ("normal", *case.columns[1:])])
    X[:, 0] = base if case.columns[0] == "normal" else column(case.columns[0], base, generator)
    y: Any = targets(case.target, base, generator)
    if case.repeated:
        rows = generator.integers(0, case.size, size=case.size)
        rows[:2] = 0, case.size - 1
        X, y = X[rows], y[rows]
    extras: dict[str, Any] = {}
    if case.weights:
        extras["sample_weight"] = {
            "ones": np.ones(case.size),
            "zeros and twos": 2.0 * generator.integers(0, 2, size=case.size),
            "fractions": generator.uniform(0.01, 3, size=case.size),
        }[case.weights]
    if case.extra and case.kind == "counts":
        extras["exposure"] = generator.uniform(0.1, 10, size=case.size)
    gaussian = case.kind == "regressor" and case.options["likelihood"] in ("auto", "gaussian")
    if case.extra and gaussian:
        extras["noise_variance"] = generator.uniform(0, 1, size=case.size) * np.var(y)
    return (*broken(case, X, y, extras, generator),)


def broken(
    case: Case, X: Any, y: Any, extras: dict[str, Any], generator: np.random.Generator
) -> tuple[Any, Any, dict[str, Any]]:
    row, fault = int(generator.integers(case.size)), case.fault
    if fault in ("NaN in X", "inf in X"):
        X[row, -1] = np.nan if fault == "NaN in X" else -np.inf
    elif fault in ("NaN in y", "inf in y"):
        y = y.astype(object) if y.dtype.kind == "U" else y.astype(float)
        y[row] = np.nan if fault == "NaN in y" else np.inf
    elif fault in ("flat X", "deep X"):
        X = X[:, 0] if fault == "flat X" else X[None]
    elif fault == "short y":
        y = y[:-1]
    elif fault in ("no rows", "one row"):
        keep = slice(0, int(fault == "one row"))
        X, y, extras = X[keep], y[keep], {name: v[keep] for name, v in extras.items()}
    elif fault == "text":
        X = X.astype(object)
        X[row, 0] = "many"
    elif fault == "complex":
        X = X + 1j
    elif fault == "sparse":
        X = scipy.sparse.csr_array(X)
    elif fault == "one class":
        y = np.zeros(case.size) if case.kind == "classifier" else ["a"] * case.size
    elif fault == "negative":
        y = -1.0 - np.arange(case.size) if case.kind == "counts" else "minus one"
    elif fault and fault.endswith("weights"):
        weights = np.ones(case.size)
        weights[row] = {"negative weights": -1.0, "NaN weights": np.nan}.get(fault, 1.0)
        extras["sample_weight"] = {"zero weights": 0 * weights, "short weights": weights[1:]}.get(
            fault, weights
        )
    elif fault == "foreign extra":
        foreign = {"regressor": "exposure", "counts": "noise_variance"}
        extras[foreign.get(case.kind, "exposure")] = np.ones(case.size)
    elif fault == "bad extra":
        extras["noise_variance" if case.kind == "regressor" else "exposure"] = -np.ones(case.size)
    return X, y, extras


def is_valid(case: Case, y: Any, extras: dict[str, Any]) -> bool:
    """Whether nothing is wrong with the data and the options."""
    if case.fault:
        return False
    if case.options["optimizer"] is None and case.options["num_restarts"]:
        return False
    weights = extras.get("sample_weight", np.ones(case.size))
    if (weights > 0).sum() < 2:
        return False
    extreme = {"huge", "tiny", "heavy", "offset"} & {*case.columns, case.target}
    if extreme and (case.options["dtype"] == "float32" or not case.options["standardize"]):
        return False  # may be more than the number type, or a common unit, can hold
    if case.kind != "classifier":
        return True
    classes = len(set(y[weights > 0].tolist()))
    return classes == 2 or (classes > 2 and case.options["likelihood"] != "logit")


def check(case: Case, model: Any, X: np.ndarray, y: np.ndarray, extras: dict[str, Any]) -> None:
    """What must hold after every fit."""
    assert np.isfinite(model.elbo_) and len(str(model.summary())) > 100
    low, high = X.min(0), X.max(0)
    inside = low + (high - low) * np.random.default_rng(1).uniform(size=(5, X.shape[1]))
    for rows in (X, inside):
        mean, std = model.predict(rows, latent=True, return_std=True)
        assert np.isfinite(mean).all() and np.isfinite(std).all() and (std >= 0).all()
        _, covariance = model.predict(rows[:4], latent=True, return_cov=True)
        assert np.isfinite(covariance).all()
        assert (np.diagonal(covariance, axis1=-2, axis2=-1) >= 0).all()
        if case.kind == "classifier":
            probabilities = model.predict_proba(rows)
            assert np.isfinite(probabilities).all() and (probabilities >= 0).all()
            assert np.allclose(probabilities.sum(1), 1.0)
            assert not np.isnan(model.decision_function(rows)).any()
            assert set(model.predict(rows).tolist()) <= set(model.classes_.tolist())
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mean, std = model.predict(rows, return_std=True)
        assert (std > 0).all() and not np.isnan(mean).any()
        # A rate is the exponential of f and may overflow where nothing is known; never in silence.
        overflow = any("infinite mean or variance" in str(w.message) for w in caught)
        finite = np.isfinite(mean) & np.isfinite(std)
        assert finite.all() or (case.kind == "counts" and overflow)
        lower, upper = model.predict_interval(rows, 0.8)
        assert (lower <= upper).all()
        assert np.isfinite(model.sample_y(rows, 2, random_state=0)).all()
        if case.kind == "counts":
            assert (mean >= 0).all() and (lower >= 0).all()
    new = {name: values for name, values in extras.items() if name != "sample_weight"}
    assert not np.isnan(model.log_predictive_density(X, known_labels(model, y), **new)).any()
    try:
        left_out = model.leave_one_out().log_density
    except UnsupportedError:
        assert model.batch_size is not None
    else:
        used = extras.get("sample_weight", np.ones(case.size)) > 0
        assert (np.isnan(left_out) == ~used).all()


def known_labels(model: Any, y: np.ndarray) -> np.ndarray:
    """The targets, with labels that had no weight replaced by one that had."""
    if not isinstance(model, GPClassifier):
        return y
    return np.where(np.isin(y, model.classes_), y, model.classes_[0])


def attempt(case: Case, tally: Counter) -> None:
    X, y, extras = build(case)
    valid = is_valid(case, y, extras)
    tally["valid"] += valid
    model = ESTIMATORS[case.kind](**case.options)
    before = dict(vars(model))
    try:
        model.fit(X, y, **extras)
    except GPVIError as error:
        text = str(error)
        assert text.strip() and "\n" not in text and vars(model) == before
        tally["valid refused" if valid else "refused"] += 1
        if valid:
            tally[f"valid refused: {type(error).__name__}: {text[:150]}"] += 1
            note(f"refused although valid: {text}")
        return
    tally["valid fitted" if valid else "fitted all the same"] += 1
    assert case.fault in (None, "one class", "negative", "NaN in y", "option", "foreign extra") or (
        case.fault.endswith("weights") and case.size == 1
    ), f"a fit in spite of {case.fault}"
    try:
        check(case, model, np.asarray(X), np.asarray(y), extras)
    except GPVIError as error:
        what = "valid fitted, then refused" if valid else "fitted, then refused"
        tally[what] += 1
        tally[f"{what}: {type(error).__name__}: {str(error)[:150]}"] += 1


@pytest.mark.slow
def test_fuzz(capsys: pytest.CaptureFixture) -> None:
    tally: Counter = Counter()

    @seed(SEED)
    @settings(
        max_examples=CASES,
        derandomize=False,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def run(case: Case) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", GPVIWarning)
            attempt(case, tally)

    run()
    with capsys.disabled():
        if CASES > 60:
            print("\n" + "\n".join(f"{count:6d}  {what}" for what, count in tally.most_common()))
    assert tally["valid"] > 0.2 * CASES
    good = tally["valid fitted"] - tally["valid fitted, then refused"]
    assert good >= 0.98 * tally["valid"], dict(tally)

"""Small runs behind the items of docs/advice.md; opt-in, not part of the test-suite.

    OMP_NUM_THREADS=1 python tests/benchmarks/advice.py ITEM [ITEM ...] [--data DIR]

prints one table per item. Seconds are CPU seconds of this process, imports left out. Items marked
"elevators" need a folder with `elevators.npz` (`X`, `y`, and `test_mask` as for the benchmarks); all
others use data that pip packages carry.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from gpvi import Fixed, Free, GPClassifier, GPRegressor
from gpvi.approximations import GaussianProcess, InducingPoints
from gpvi.datasets import load_dataset, make_banana, make_gap_regression
from gpvi.inference import WarmStart, fit, initialize_hyperparameters
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import GaussianLikelihood
from gpvi.metrics import root_mean_squared_error

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def abalone(num_rows: int, seed: int = 0) -> Data:
    """Some training rows, and 836 test rows that are the same for every number of them."""
    data = load_dataset("abalone")
    X, X_test, y, y_test = train_test_split(
        data.data, data.target, test_size=0.2, random_state=seed
    )
    return X[:num_rows], X_test, y[:num_rows], y_test


def diabetes(num_rows: int, seed: int) -> Data:
    """Some training rows of the 442 patients; 200 others to test on."""
    data = load_dataset("diabetes")
    X, X_test, y, y_test = train_test_split(
        data.data, data.target, test_size=200, random_state=seed
    )
    return X[:num_rows], X_test, y[:num_rows], y_test


def elevators(folder: Path | None) -> Data:
    """First published split: 14,524 rows to train on, 2,075 to test on, 18 columns."""
    if folder is None:
        raise SystemExit("this item needs --data DIR with elevators.npz")
    table = np.load(folder / "elevators.npz")
    X, y = table["X"].astype(np.float64), table["y"].astype(np.float64)
    test = np.unpackbits(table["test_mask"], axis=0)[: len(y), 0].astype(bool)
    return X[~test], X[test], y[~test], y[test]


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Result and CPU seconds."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def show(first: str, columns: Iterable[str], rows: Mapping[str, Iterable[float]]) -> None:
    """A table with one line for each entry of rows."""
    names = list(columns)
    width = max(len(first), *(len(name) for name in rows)) + 2
    print(first.ljust(width) + "".join(f"{name:>14}" for name in names))
    for name, values in rows.items():
        cells = "".join(f"{value:>14.4g}" for value in values)
        print(name.ljust(width) + cells)


def compare(first: str, data: Data, models: Mapping[str, BaseEstimator]) -> None:
    """ELBO, RMSE, NLPD and seconds of some regressors on the same rows."""
    X, X_test, y, y_test = data
    rows = {}
    for name, model in models.items():
        _, seconds = timed(lambda model=model: model.fit(X, y))
        rmse = root_mean_squared_error(y_test, model.predict(X_test))
        nlpd = -model.log_predictive_density(X_test, y_test).mean()
        rows[name] = (model.elbo_, rmse, nlpd, model.summary().evaluations, seconds)
    show(first, ("ELBO", "RMSE", "NLPD", "evaluations", "CPU s"), rows)


def standardise(folder: Path | None) -> None:
    """Raw columns of different scale, with and without the internal standardisation."""
    X, X_test, y, y_test = abalone(500)
    scales = np.logspace(-3, 3, X.shape[1])
    models = {
        "standardize=True": GPRegressor(random_state=0),
        "standardize=False": GPRegressor(standardize=False, random_state=0),
    }
    print("columns as they come")
    compare("500 abalone", (X, X_test, y, y_test), models)
    print("columns times 1e-3 ... 1e3, y + 1e4")
    compare("500 abalone", (X * scales, X_test * scales, y + 1e4, y_test + 1e4), models)


def common_scale(folder: Path | None) -> None:
    """ard=False keeps the shape of X: columns in different units swamp each other."""
    data = load_dataset("wine")
    X, X_test, y, y_test = train_test_split(
        data.data, data.target, test_size=0.4, random_state=0, stratify=data.target
    )
    mean, std = X.mean(0), X.std(0)
    rows = {}
    for name, ard, scaled in (
        ("ard=True", True, False),
        ("ard=False", False, False),
        ("ard=False, X / std before", False, True),
    ):
        inputs = [(part - mean) / std if scaled else part for part in (X, X_test)]
        model, seconds = timed(
            lambda ard=ard, x=inputs[0]: GPClassifier(ard=ard, random_state=0).fit(x, y)
        )
        table = model.predict_proba(inputs[1])
        rows[name] = (model.score(inputs[1], y_test), log_loss(y_test, table), seconds)
    show("wine", ("accuracy", "NLPD", "CPU s"), rows)


def precision(folder: Path | None) -> None:
    """float64 against float32, on noisy data and on data that a smooth kernel fits almost exactly."""
    grid = np.linspace(0.0, 10.0, 400)[:, None]
    new = grid[:-1] + 0.01
    smooth = (grid, new, np.sin(grid[:, 0]), np.sin(new[:, 0]))
    for title, kernel, data in (
        ("1,500 abalone, exact", "matern52", abalone(1_500)),
        ("400 rows of sin(x), rbf", "rbf", smooth),
    ):
        models = {
            dtype: GPRegressor(kernel, approximation="exact", dtype=dtype, random_state=0)
            for dtype in ("float64", "float32")
        }
        compare(title, data, models)
        for dtype, model in models.items():
            for text in model.summary().warnings:
                print(f"  {dtype}: {text}")


def points(folder: Path | None) -> None:
    """Number of inducing points (elevators)."""
    data = elevators(folder)
    models = {
        f"M = {size}": GPRegressor(
            approximation="inducing", num_inducing=size, max_iter=15, random_state=0
        )
        for size in (32, 64, 128, 256, 512)
    }
    compare("elevators, 15 iterations", data, models)


def selection(folder: Path | None) -> None:
    """How inducing points are chosen (elevators)."""
    data = elevators(folder)
    models = {
        f"{how}, {'learned' if learn else 'held'}": GPRegressor(
            approximation=InducingPoints(128, selection=how, learn=learn),
            max_iter=15,
            random_state=0,
        )
        for learn in (False, True)
        for how in ("greedy", "kmeans++", "random")
    }
    compare("elevators, M = 128", data, models)


def warm_start(folder: Path | None) -> None:
    """Hyperparameters from a subset of the rows first, or all rows from the beginning (elevators)."""
    X, _, y, _ = elevators(folder)
    x = torch.tensor((X - X.mean(0)) / X.std(0))
    targets = torch.tensor((y - y.mean()) / y.std())
    rows = {}
    for name, warm in (("warm start", WarmStart()), ("from scratch", None)):
        for steps in (0, 5, 10, 20):
            if not steps and warm is None:
                continue
            gp = GaussianProcess(parse_kernel("matern52", x.shape[1]))
            likelihood = GaussianLikelihood(noise=0.1)
            generator = torch.Generator().manual_seed(0)
            initialize_hyperparameters(gp, likelihood, x, targets, generator)
            result, seconds = timed(
                lambda gp=gp, likelihood=likelihood, generator=generator, warm=warm, steps=steps: (
                    fit(
                        gp,
                        InducingPoints(256),
                        likelihood,
                        x,
                        targets,
                        max_iter=steps,
                        warm_start=warm,
                        generator=generator,
                    )
                )
            )
            rows[f"{name}, {steps} iterations"] = (result.objective, seconds)
    show("elevators, M = 256", ("ELBO", "CPU s"), rows)


def bound(folder: Path | None) -> None:
    """The tightened bound against the ELBO where inducing points are scarce."""
    train, test = (make_gap_regression(1_000, random_state=seed) for seed in (0, 1))
    curve = (train.data, test.data, train.target, test.target)
    for title, data, sizes in (
        ("1,000 rows of a curve", curve, (6, 8, 12, 20)),
        ("2,000 abalone", abalone(2_000), (10, 30, 100)),
    ):
        models: dict[str, BaseEstimator] = {
            f"M = {size}, {objective}": GPRegressor(
                approximation="inducing", num_inducing=size, objective=objective, random_state=0
            )
            for size in sizes
            for objective in ("elbo", "tighter_elbo")
        }
        models["exact"] = GPRegressor(approximation="exact", random_state=0, max_iter=30)
        compare(title, data, models)
        for name, model in models.items():
            values = {r.name: r.value for r in model.summary().hyperparameters}
            print(f"  {name}: noise std {values['likelihood.noise'] ** 0.5:.4f}")


def restarts(folder: Path | None) -> None:
    """Further starting values, where the objective has many optima and where it has few."""
    co2 = load_dataset("co2")
    year = co2.data[:, 0]
    gap = (year > 1980) & (year < 1984)
    wave = (co2.data[~gap][::10], co2.data[gap], co2.target[~gap][::10], co2.target[gap])
    for title, kernel, data in (
        ("CO2, rbf + periodic", "rbf + periodic", wave),
        ("242 diabetes, matern52", "matern52", diabetes(242, 0)),
    ):
        models: dict[str, BaseEstimator] = {
            f"num_restarts={number}": GPRegressor(kernel, num_restarts=number, random_state=0)
            for number in (0, 3, 10)
        }
        if "periodic" in kernel:
            fixed = {"period_length": Fixed(1.0)}
            models["period fixed"] = GPRegressor(kernel, hyperparameters=fixed, random_state=0)
        compare(title, data, models)


def priors(folder: Path | None) -> None:
    """A prior on lengthscales, with few rows and columns that say nothing; medians of ten splits."""
    kinds: dict[str, dict[str, Any]] = {
        "no prior": {},
        "dimension_scaled": {"hyperparameters": {"lengthscale": "dimension_scaled"}},
        "ard=False, X / std before": {"ard": False},
    }
    for num_rows, extra in ((30, 0), (30, 40), (240, 0), (240, 40)):
        scores: dict[str, list] = {name: [] for name in kinds}
        for seed in range(10):
            X, X_test, y, y_test = diabetes(num_rows, seed)
            rng = np.random.default_rng(seed)
            X, X_test = (
                np.hstack([(part - X.mean(0)) / X.std(0), rng.standard_normal((len(part), extra))])
                for part in (X, X_test)
            )
            for name, options in kinds.items():
                model = GPRegressor(random_state=0, **options)
                _, seconds = timed(lambda model=model, X=X, y=y: model.fit(X, y))
                rmse = root_mean_squared_error(y_test, model.predict(X_test))
                nlpd = -model.log_predictive_density(X_test, y_test).mean()
                scores[name].append((rmse, nlpd, seconds))
        title = f"{num_rows} diabetes, {10 + extra} columns"
        show(
            title,
            ("RMSE", "NLPD", "worst NLPD", "CPU s"),
            {
                name: (
                    *np.median(np.array(values)[:, :2], axis=0),
                    np.array(values)[:, 1].max(),
                    np.median(np.array(values)[:, 2]),
                )
                for name, values in scores.items()
            },
        )


def minibatches(folder: Path | None) -> None:
    """All rows at once against minibatches (elevators)."""
    data = elevators(folder)
    models: dict[str, BaseEstimator] = {
        f"all rows, {steps} iterations": GPRegressor(
            approximation="inducing", num_inducing=256, max_iter=steps, random_state=0
        )
        for steps in (0, 5, 15)
    }
    models |= {
        f"batches of {size}, {steps} steps": GPRegressor(
            num_inducing=256, batch_size=size, max_iter=steps, random_state=0
        )
        for size, steps in ((256, 300), (1_024, 100), (1_024, 300))
    }
    compare("elevators, M = 256", data, models)


def weights(folder: Path | None) -> None:
    """Repeated rows as weights; and means of repeated measurements, whose noise differs."""
    X, X_test, y, y_test = abalone(300)
    counts = np.random.default_rng(0).integers(1, 8, len(y))
    # Exact copies look free of noise, which would be learned without the bound.
    bounded = {"noise": Free(bounds=(1.0, None))}
    rows = {}
    for name, inputs, targets, weight in (
        ("rows repeated", np.repeat(X, counts, axis=0), np.repeat(y, counts), None),
        ("sample_weight", X, y, counts),
    ):
        model = GPRegressor(random_state=0, approximation="exact", hyperparameters=bounded)
        _, seconds = timed(
            lambda model=model, x=inputs, t=targets, w=weight: model.fit(x, t, sample_weight=w)
        )
        nlpd = -model.log_predictive_density(X_test, y_test).mean()
        rows[name] = (len(targets), model.elbo_, nlpd, seconds)
    show("abalone, weights 1 to 7", ("rows", "ELBO", "NLPD", "CPU s"), rows)
    scores: dict[str, list] = {"nothing": [], "sample_weight": [], "noise_variance": []}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        problem = make_gap_regression(60, noise=0.0, gap=(3.0, 3.0), random_state=seed)
        size = rng.choice([1, 2, 50], 60)
        y = problem.latent + 0.8 / np.sqrt(size) * rng.standard_normal(60)
        known: dict[str, dict[str, Any]] = {
            "nothing": {},
            "sample_weight": {"sample_weight": size},
            "noise_variance": {"noise_variance": 0.8**2 / size},
        }
        for name, extra in known.items():
            model = GPRegressor("rbf", random_state=0).fit(problem.data, y, **extra)
            mean, std = model.predict(problem.data, return_std=True, latent=True)
            inside = np.abs(problem.latent - mean) < 1.96 * std
            scores[name].append((root_mean_squared_error(problem.latent, mean), inside.mean()))
    show(
        "means of 1, 2 or 50",
        ("RMSE of f", "95 % holds"),
        {name: np.mean(np.array(values), axis=0) for name, values in scores.items()},
    )


def outliers(folder: Path | None) -> None:
    """Gaussian against Student-t noise: error of the function behind y, medians of ten data sets."""
    for share in (0.0, 0.05):
        scores: dict[str, list] = {"gaussian": [], "student_t": []}
        for seed in range(10):
            problem = make_gap_regression(100, gap=(3.0, 3.0), random_state=seed)
            rng = np.random.default_rng(seed)
            y = problem.target.copy()
            wrong = rng.random(len(y)) < share
            y[wrong] += rng.choice([-4.0, 4.0], wrong.sum())
            for name in scores:
                model = GPRegressor("rbf", likelihood=name, random_state=0)
                _, seconds = timed(lambda model=model, X=problem.data, y=y: model.fit(X, y))
                mean = model.predict(problem.data, latent=True)
                scores[name].append((root_mean_squared_error(problem.latent, mean), seconds))
        title = f"{share:.0%} outliers"
        show(
            title,
            ("RMSE of f", "CPU s"),
            {name: np.median(np.array(values), axis=0) for name, values in scores.items()},
        )


def exact(folder: Path | None) -> None:
    """Exact conditioning against inducing points as the number of rows grows."""
    for num_rows in (500, 1_000, 2_000, 3_300):
        models = {
            "exact": GPRegressor(approximation="exact", random_state=0, max_iter=15),
            "inducing, M = 50": GPRegressor(
                approximation="inducing", num_inducing=50, random_state=0, max_iter=15
            ),
            "inducing, M = 200": GPRegressor(
                approximation="inducing", num_inducing=200, random_state=0, max_iter=15
            ),
        }
        compare(f"{num_rows} abalone", abalone(num_rows), models)


def labels(folder: Path | None) -> None:
    """Two classes: exact conditioning against inducing points."""
    rows = {}
    test = make_banana(2_000, random_state=1)
    for num_rows in (300, 1_000):
        train = make_banana(num_rows, random_state=0)
        for name, options in {
            "exact": {"approximation": "exact"},
            "inducing, M = 20": {"approximation": "inducing", "num_inducing": 20},
            "inducing, M = 50": {"approximation": "inducing", "num_inducing": 50},
        }.items():
            model = GPClassifier(random_state=0, **options)
            _, seconds = timed(lambda model=model, d=train: model.fit(d.data, d.target))
            nlpd = log_loss(test.target, model.predict_proba(test.data))
            rows[f"{num_rows} rows, {name}"] = (model.elbo_, nlpd, seconds)
    show("crescents", ("ELBO", "NLPD", "CPU s"), rows)


ITEMS: dict[str, Callable[[Path | None], None]] = {
    item.__name__: item
    for item in (
        standardise,
        common_scale,
        precision,
        points,
        selection,
        warm_start,
        bound,
        restarts,
        priors,
        minibatches,
        weights,
        outliers,
        exact,
        labels,
    )
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("items", nargs="+", choices=ITEMS, metavar="ITEM", help=", ".join(ITEMS))
    parser.add_argument("--data", type=Path, help="folder with elevators.npz")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    # Compiled loops are loaded, and where needed compiled, outside the timings.
    small = load_dataset("diabetes")
    for approximation in ("exact", "inducing"):
        GPRegressor(approximation=approximation, num_inducing=10, max_iter=1, random_state=0).fit(
            small.data[:60], small.target[:60]
        )
    for name in options.items:
        print(f"== {name}: {(ITEMS[name].__doc__ or '').strip()}")
        ITEMS[name](options.data)
        print()


if __name__ == "__main__":
    main()

"""GPBoost's Vecchia approximation, a worker of ``bench_sparse_inverse.py``.

Matern-3/2 with its own random ordering and its defaults, but for the number of neighbours. Labels
(probit) and counts are handled by its Laplace approximation. It has no function that returns a gradient.
"""

from __future__ import annotations

from typing import Any

import gpboost
import numpy as np
from spatial_cases import (
    EVIDENCE_PARAMETERS,
    ISOTROPIC,
    Array,
    Job,
    Split,
    Stopwatch,
    cpu_seconds,
    load_case,
    parse_job,
    poisson_log_density,
    print_row,
    scores,
    timed,
)

__all__ = ["MEASURES"]

LIKELIHOODS = {"regression": "gaussian", "binary": "bernoulli_probit", "counts": "poisson"}


def vecchia(job: Job, split: Split, ordering: str = "random") -> gpboost.GPModel:
    """A model with its order and neighbours; other options are the defaults."""
    return gpboost.GPModel(
        gp_coords=split.train_inputs,
        cov_function="matern" if job.case in ISOTROPIC else "matern_ard",
        cov_fct_shape=1.5,
        likelihood=LIKELIHOODS[split.kind],
        gp_approx="vecchia",
        num_neighbors=job.neighbors,
        vecchia_ordering=ordering,
        seed=job.seed,
        num_parallel_threads=1,
    )


def evidence(job: Job, split: Split) -> dict[str, Any]:
    """Log likelihood at fixed parameters: set-up apart, then with parameters that change."""
    models: list[gpboost.GPModel] = []
    set_up = cpu_seconds(lambda: models.append(vecchia(job, split)))
    parameters = np.array([EVIDENCE_PARAMETERS[name] for name in ("noise", "outputscale")])
    # One range, or one for each column.
    columns = 1 if job.case in ISOTROPIC else split.train_inputs.shape[1]
    parameters = np.r_[parameters, np.full(columns, EVIDENCE_PARAMETERS["lengthscale"])]
    factors = iter(1 + 0.001 * np.arange(job.repeats + 1))

    def value(model: gpboost.GPModel, factor: float) -> float:
        return -float(model.neg_log_likelihood(cov_pars=factor * parameters, y=split.train_targets))

    log_evidence = value(models[0], 1.0)
    watch = Stopwatch(lambda: value(models[0], next(factors)), job.repeats)
    return {
        "set_up_cpu_s": set_up,
        **timed("value", watch),
        "log_evidence": log_evidence,
        # Without a reordering of the rows all libraries should have the same value.
        "log_evidence_rows_as_given": value(vecchia(job, split, "none"), 1.0),
    }


def order(job: Job, split: Split) -> dict[str, Any]:
    """Ordering and neighbours, which are all that making a model consists of."""
    return {"order_and_neighbors_cpu_s": cpu_seconds(lambda: vecchia(job, split))}


def fit(job: Job, split: Split) -> dict[str, Any]:
    """A whole fit with an intercept, and the scores of its predictions."""
    models: list[gpboost.GPModel] = []

    def train() -> None:
        model = vecchia(job, split)
        model.fit(
            y=split.train_targets,
            X=np.ones((len(split.train_targets), 1)),
            params={"maxit": job.max_iter or 1000},
        )
        models.append(model)

    seconds = cpu_seconds(train)
    found: list[tuple[Array, ...]] = []
    predict = cpu_seconds(lambda: found.append(predicted(models[0], split)))
    return {
        "fit_cpu_s": seconds,
        "predict_cpu_s": predict,
        "iterations": int(models[0]._get_num_optim_iter()),
        "log_evidence": -float(models[0].get_current_neg_log_likelihood()),
        **scores(split, *found[0]),
    }


def predicted(model: gpboost.GPModel, split: Split) -> tuple[Array, ...]:
    """What the scores of each kind of targets are computed from."""

    def moments(response: bool, variance: bool) -> tuple[Array, Array]:
        result = model.predict(
            gp_coords_pred=split.test_inputs,
            X_pred=np.ones((len(split.test_targets), 1)),
            predict_var=variance,
            predict_response=response,
        )
        return np.asarray(result["mu"]), np.asarray(result["var"])

    if split.kind == "regression":
        return moments(response=True, variance=True)
    if split.kind == "binary":
        return (moments(response=True, variance=False)[0],)
    # It predicts no probabilities of counts, but the moments of the log rate that they follow from.
    mean, variance = moments(response=False, variance=True)
    return np.exp(mean + variance / 2), poisson_log_density(mean, variance, split.test_targets)


MEASURES = {"evidence": evidence, "order": order, "fit": fit}


def main() -> None:
    """Measure and print."""
    job = parse_job(__doc__)
    if job.measure not in MEASURES:
        raise SystemExit(f"GPBoost has no measure {job.measure!r}; it has {', '.join(MEASURES)}")
    split = load_case(job)
    found = MEASURES[job.measure](job, split)
    print_row("gpboost", job, len(split.train_targets), found)


if __name__ == "__main__":
    main()

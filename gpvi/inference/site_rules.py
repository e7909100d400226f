"""Rules for the sites of a likelihood that is not Gaussian, and the objectives that go with them.

Conjugate-computation variational inference goes with the bounds. Moment matching goes with the energy of
expectation propagation, and curvatures at the mode with Laplace's evidence: each is the objective whose
gradient at these sites is the total one. The energy can be had at the sites of the first rule, too, by turns
(:mod:`gpvi.inference.alternation`).
"""

from typing import Any

from torch import Tensor

from gpvi.approximations import Approximation, Prior, Sites
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference.cvi import CVIResult
from gpvi.inference.ep_energy import ep_energy
from gpvi.inference.expectation_propagation import expectation_propagation
from gpvi.inference.laplace import laplace, laplace_evidence
from gpvi.likelihoods import Likelihood

__all__ = [
    "INFERENCES",
    "OBJECTIVES",
    "check_rule",
    "find_sites",
    "open_basis",
    "resolve_objective",
    "value_at_sites",
]

#: Names of the objectives that a fit can maximise.
OBJECTIVES = ("auto", "tighter_elbo", "elbo", "ep", "laplace")

#: Names of the rules for sites.
INFERENCES = ("cvi", "ep", "laplace")

# What every rule maximises where nothing else is said, and what it can.
_OWN = {"cvi": "tighter_elbo", "ep": "ep", "laplace": "laplace"}
_POSSIBLE = {"cvi": ("tighter_elbo", "elbo", "ep"), "ep": ("ep",), "laplace": ("laplace",)}

# Nats that a fit asks of a mode and moments: its line search compares values.
_MODE_TOLERANCE, _MOMENT_TOLERANCE = 1e-9, 1e-7


def resolve_objective(objective: str, inference: str) -> str:
    """What is maximised, with "auto" put in words.

    Parameters
    ----------
    objective : str
        One of :data:`OBJECTIVES`.
    inference : str
        One of :data:`INFERENCES`.

    Returns
    -------
    str
        Not "auto".

    Raises
    ------
    InputError
        For unknown names, and objectives that do not go with the rule.
    """
    for name, value, allowed in (
        ("objective", objective, OBJECTIVES),
        ("inference", inference, INFERENCES),
    ):
        if value not in allowed:
            raise InputError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")
    if objective == "auto":
        return _OWN[inference]
    if objective not in _POSSIBLE[inference]:
        rules = [rule for rule in INFERENCES if objective in _POSSIBLE[rule]]
        raise InputError(
            f"objective={objective!r} and inference={inference!r} do not go together: sites of this rule "
            f"maximise {' or '.join(map(repr, _POSSIBLE[inference]))} ('auto' chooses), and this objective "
            f"needs inference {' or '.join(map(repr, rules))}."
        )
    return objective


def find_sites(
    rule: str,
    prior: Prior,
    likelihood: Likelihood,
    y: Tensor,
    sites: Sites | None,
    weights: Tensor | None,
    rows: dict[str, Any],
) -> CVIResult:
    """Sites by moments or at the mode, for a fit.

    Parameters
    ----------
    rule : {"ep", "laplace"}
        Which.
    prior : Prior
        At the rows.
    likelihood : Likelihood
        Not Gaussian.
    y : Tensor, shape [N] or [*b, N]
        Targets.
    sites : Sites or None
        Where to start.
    weights : Tensor, shape [N], or None
        Row weights.
    rows : dict of str to Tensor
        Per-row extras.

    Returns
    -------
    CVIResult
        Off the graph.
    """
    if rule == "laplace":
        return laplace(
            prior, likelihood, y, sites=sites, tolerance=_MODE_TOLERANCE, weights=weights, **rows
        )
    return expectation_propagation(
        prior, likelihood, y, sites=sites, tolerance=_MOMENT_TOLERANCE, weights=weights, **rows
    )


def value_at_sites(
    rule: str,
    prior: Prior,
    likelihood: Likelihood,
    y: Tensor,
    sites: Sites | None,
    weights: Tensor | None,
    rows: dict[str, Any],
) -> Tensor:
    """The rule's own objective at its sites, on the graph, with the total derivative.

    Parameters
    ----------
    rule : {"ep", "laplace"}
        Which.
    prior : Prior
        On the graph of the hyperparameters.
    likelihood : Likelihood
        Not Gaussian.
    y : Tensor, shape [N] or [*b, N]
        Targets.
    sites : Sites
        From :func:`find_sites` at the same hyperparameters.
    weights : Tensor, shape [N], or None
        Row weights.
    rows : dict of str to Tensor
        Per-row extras.

    Returns
    -------
    Tensor, shape [*b]
        Total nats.

    Raises
    ------
    InputError
        Without sites.
    """
    if sites is None:
        raise InputError("There are no sites yet; call find_sites first.")
    if rule == "laplace":
        return laplace_evidence(prior, likelihood, y, sites, weights=weights, **rows)
    return ep_energy(prior.condition(sites), likelihood, y, weights=weights, **rows)


def check_rule(
    approximation: Approximation,
    likelihood: Likelihood,
    objective: str,
    inference: str,
    batch_size: int | None,
) -> None:
    """Refuse an energy or a mode where it cannot be had, before anything is fitted.

    Parameters
    ----------
    approximation : Approximation
        Of the process.
    likelihood : Likelihood
        Not Gaussian.
    objective : {"ep", "laplace"}
        Resolved.
    inference : str
        The rule.
    batch_size : int or None
        Rows of a minibatch.

    Raises
    ------
    UnsupportedError
        For minibatches, several latent functions, and bases that leave part of f open, except to moment
        matching.
    """
    if approximation.finite_basis and inference != "ep":
        raise open_basis(approximation, objective)
    if batch_size is not None:
        raise UnsupportedError(
            f"objective={objective!r} and batch_size={batch_size}: it needs the sites of all rows; leave "
            "batch_size out, or use objective='elbo' with inference='cvi'."
        )
    if likelihood.num_latents > 1:
        raise UnsupportedError(
            f"objective={objective!r} and {type(likelihood).__name__}, which couples "
            f"{likelihood.num_latents} latent functions: it is for one function at a time; use "
            "objective='elbo' with inference='cvi'."
        )


def open_basis(approximation: Approximation, objective: str) -> UnsupportedError:
    """Why an objective is refused to approximations whose basis leaves part of f open.

    Parameters
    ----------
    approximation : Approximation
        With such a basis.
    objective : {"ep", "laplace"}
        What was asked for.

    Returns
    -------
    UnsupportedError
        To be raised.
    """
    why, instead = {
        "ep": (
            "at sites that do not match moments the energy grows beyond the evidence where the basis "
            "explains less",
            "inference='ep', which matches them, objective='tighter_elbo'",
        ),
        "laplace": ("a mode says nothing about that part", "inference='cvi'"),
    }[objective]
    return UnsupportedError(
        f"objective={objective!r} and {type(approximation).__name__}, whose basis leaves part of f open: "
        f"{why}. Use {instead}, or Exact, SparseInverseCholesky, FullScale or StateSpace."
    )

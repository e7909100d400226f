"""A fitted model that follows its series: new rows one step of a filter each, everything else later.

The filter predicts the future. What is needed of the past (moments there, joint samples, leave-one-out
predictions) comes from conditioning again on the sites of all rows, once, when it is asked for.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpvi.approximations import Marginals, Sites, StateSpace, StateSpacePosterior
from gpvi.estimators.model import FittedModel
from gpvi.exceptions import GPVIError, InputError
from gpvi.inference import OnlineFilter

__all__ = ["Follower", "none_observed"]


@dataclass(frozen=True, eq=False)
class _Ahead:
    """The part of a posterior that the filter knows: moments at the last stamp and later."""

    online: OnlineFilter

    def predict(
        self, x: Tensor, joint: bool = False
    ) -> Marginals | gpytorch.distributions.MultivariateNormal:
        assert not joint
        return self.online.predict(x)


@dataclass(frozen=True, eq=False)
class _Rows:
    """New rows in the units of the fit."""

    x: Tensor
    y: Tensor
    sites: Sites
    rows: dict[str, Tensor]


class Follower:
    """Rows that came after a fit.

    Parameters
    ----------
    model : FittedModel
        With a posterior in state space.
    """

    def __init__(self, model: FittedModel) -> None:
        assert isinstance(model.posterior, StateSpacePosterior)
        self._model = model
        self._online = OnlineFilter.start(model.posterior, model.likelihood)
        self._new: list[_Rows] = []

    @property
    def ahead(self) -> FittedModel:
        """A model that predicts moments at the last stamp and later."""
        return replace(self._model, posterior=_Ahead(self._online))  # type: ignore[arg-type]

    @property
    def has_rows(self) -> bool:
        """Whether there are rows that the model does not know."""
        return bool(self._new)

    def reaches(self, array: np.ndarray) -> bool:
        """Whether :attr:`ahead` predicts at inputs.

        Parameters
        ----------
        array : ndarray, shape [N, 1]
            In the units of the data.

        Returns
        -------
        bool
            False if one of them is in the past.
        """
        return bool((self._model.inputs(array)[:, 0] >= self._online.time).all())

    def update(self, array: np.ndarray, y: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        """Observe rows, in order of time; nothing changes if they are refused.

        Parameters
        ----------
        array : ndarray, shape [n, 1]
            Inputs.
        y : ndarray, shape [n]
            Targets; NaN means not observed.
        rows : dict of str to ndarray, shape [n]
            Extras of the likelihood.

        Raises
        ------
        InputError
            For extras that the fit did not have, or exposures that are missing.
        """
        model = self._model
        _check_extras(set(rows), set(model.row_names))
        x = model.inputs(array)
        targets = torch.as_tensor(model.y_map(y)).to(model.targets)
        extras = model.extras(rows, len(y))
        online = self._online.update(x, targets, **extras)
        assert online.sites is not None
        self._online = online
        self._new.append(_Rows(x, targets, online.sites, extras))

    def whole(self) -> FittedModel:
        """The model conditioned on the sites of all rows with a target.

        Returns
        -------
        FittedModel
            Its cost is linear in all rows.
        """
        model, new = self._model, self._new
        posterior = model.posterior
        assert isinstance(posterior, StateSpacePosterior)
        prior, sites = posterior.prior, posterior.sites
        y = torch.cat([rows.y for rows in new])
        used = ~torch.isnan(y)
        x = torch.cat([prior.x, torch.cat([rows.x for rows in new])[used]])
        shape = (*sites.lam1.shape[:-1], -1)
        lam1, lam2 = (
            torch.cat([old, torch.cat(added, -1)[..., used].expand(shape)], -1)
            for old, added in (
                (sites.lam1, [rows.sites.lam1 for rows in new]),
                (sites.lam2, [rows.sites.lam2 for rows in new]),
            )
        )
        with torch.no_grad():
            approximation = StateSpace(prior.time_dim, prior.rbf_order)
            found = approximation.prior(prior.gp, x).condition(Sites(lam1, lam2)).detach()
            try:
                cavity = found.leave_one_out()
            except GPVIError:
                cavity = None
        return replace(
            model,
            posterior=found,
            cavity=cavity,
            targets=torch.cat([model.targets, y[used]]),
            target_rows={
                name: torch.cat([values, torch.cat([rows.rows[name] for rows in new])[used]])
                for name, values in model.target_rows.items()
            },
            used=np.concatenate([model.used, used.cpu().numpy()]),
        )

    def going_on(self, model: FittedModel) -> Self:
        """The same filter behind a model that knows all rows.

        Parameters
        ----------
        model : FittedModel
            From :meth:`whole`.

        Returns
        -------
        Follower
            Without new rows.
        """
        other = object.__new__(type(self))
        other._model, other._online, other._new = model, self._online, []
        return other


def none_observed(y: Any, num_rows: int) -> bool:
    """Whether new rows only say that time went on.

    Parameters
    ----------
    y : array-like, shape [n] or [n, 1]
        Targets.
    num_rows : int
        n.

    Returns
    -------
    bool
        True if every target is NaN, None or pandas' NA; False for targets of another shape.
    """
    try:
        values = np.asarray(y)
    except (TypeError, ValueError, RuntimeError):
        # Not an array: the check of targets says why.
        return False
    return values.shape in ((num_rows,), (num_rows, 1)) and all(
        value is None
        or type(value).__name__ == "NAType"
        or (isinstance(value, float | np.floating) and math.isnan(value))
        for value in values.ravel().tolist()
    )


def _check_extras(given: set[str], fitted: set[str]) -> None:
    # Without known noise a new measurement has none, as in a prediction.
    named = {"noise": "noise_variance"}
    for name in sorted((given - fitted) | (fitted - given - {"noise"})):
        did, does = ("had no", "has some") if name in given else ("had an", "has none")
        raise InputError(
            f"The fit {did} {named.get(name, name)} and this update {does}; pass the same to both."
        )

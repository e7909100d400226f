"""What likelihoods of counts with a rate and an exposure have in common."""

from typing import Literal

import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.links import inverse_softplus, log_softplus

__all__ = ["CountLikelihood", "refuse_negative"]


class CountLikelihood(Likelihood):
    r"""Base class of counts with mean :math:`e_n \lambda(f_n)`, given an exposure :math:`e_n`.

    Parameters
    ----------
    link : {"log", "softplus"}
        Inverse link: :math:`\lambda(f) = e^f` or :math:`\log(1 + e^f)`.
    num_nodes : int
        Number of Gauss-Hermite nodes.

    Raises
    ------
    InputError
        For another link.
    """

    row_arguments = frozenset({"weights", "exposure"})

    def __init__(self, link: Literal["log", "softplus"] = "log", num_nodes: int = 20) -> None:
        super().__init__(num_nodes)
        if link not in ("log", "softplus"):
            raise InputError(f'link must be "log" or "softplus", got {link!r}.')
        self.link = link
        self.has_exponential_mean = link == "log"

    def _log_rate(self, latent: Tensor, exposure: Tensor | None) -> Tensor:
        log_rate = latent if self.link == "log" else log_softplus(latent)
        return log_rate if exposure is None else log_rate + exposure.log()

    def _initial_latent(self, y: Tensor, observed: Tensor, **rows: Tensor) -> Tensor:
        exposure = rows.get("exposure", torch.ones_like(y)).expand(y.shape)
        weights = observed * rows.get("weights", torch.ones_like(y))
        counts = (weights * y).sum(-1, keepdim=True)
        total_exposure = (weights * exposure).sum(-1, keepdim=True)
        # Half a count more keeps the overall rate positive where every count is zero.
        overall = (counts + 0.5) / total_exposure.clamp_min(torch.finfo(y.dtype).tiny)
        rate = 0.5 * (y / exposure + overall)
        return rate.log() if self.link == "log" else inverse_softplus(rate)

    def _check_targets(self, y: Tensor, observed: Tensor) -> None:
        refuse_negative(y, observed, type(self).__name__)


def refuse_negative(y: Tensor, observed: Tensor, owner: str) -> None:
    """Raise for negative counts.

    Parameters
    ----------
    y : Tensor
        Targets `[*b, N]`.
    observed : Tensor
        Boolean, same shape.
    owner : str
        Class name of the likelihood, for the message.

    Raises
    ------
    InputError
        Names the first of them.
    """
    negative = y[observed & (y < 0)]
    if len(negative):
        raise InputError(
            f"{owner} needs counts of at least 0, got {negative[0].item()}. Remove these rows or use "
            "a likelihood for real numbers."
        )

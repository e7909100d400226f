r"""Gaussian sites: the one kind of factor that every approximation conditions on.

A site is a Gaussian factor in natural parameters,

.. math:: \log t(v) = \lambda_1^\top v - \tfrac12 v^\top \Lambda_2 v,

constants dropped. Sites come from a Gaussian likelihood, from conjugate-computation variational
inference, from a coreset, from a stream of earlier batches or from an encoder network; a missing
observation is a zero site.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg import mat_vec

__all__ = ["SiteSpace", "Sites"]

#: What sites are about: the projections of the data rows, the basis, or the whitened basis.
SiteSpace = Literal["data", "basis", "whitened"]
_SPACES = ("data", "basis", "whitened")


@dataclass(frozen=True, eq=False)
class Sites:
    """Gaussian sites in natural parameters.

    Parameters
    ----------
    lam1 : Tensor, shape [*b, N] or [*b, M]
        First natural parameter (precision times mean).
    lam2 : Tensor, shape as ``lam1``, or [*b, M, M]
        Second natural parameter (precision): a diagonal, or a full matrix where ``on`` is not
        "data". May be negative where the posterior stays proper.
    on : {"data", "basis", "whitened"}
        What the sites are about: ``r_n = E[f_n | basis]`` of every data row (``f_n`` itself where
        the prior has no residual), the basis with its mean, or the whitened basis.

    Raises
    ------
    InputError
        If shapes, dtypes or ``on`` do not fit together.

    Examples
    --------
    >>> import torch
    >>> site = Sites(torch.ones(3), 2.0 * torch.ones(3))
    >>> (0.5 * site + site).lam1
    tensor([1.5000, 1.5000, 1.5000])
    """

    lam1: Tensor
    lam2: Tensor
    on: SiteSpace = "data"

    def __post_init__(self) -> None:
        if self.on not in _SPACES:
            raise InputError(f"on is {self.on!r}; it must be one of {', '.join(_SPACES)}.")
        if self.lam1.dtype != self.lam2.dtype:
            raise InputError(
                f"lam1 is {self.lam1.dtype} and lam2 is {self.lam2.dtype}; use one dtype."
            )
        size = self.lam1.shape[-1] if self.lam1.dim() else 0
        expected = (size, size) if self.full else (size,)
        if self.lam1.dim() < 1 or tuple(self.lam2.shape[-len(expected) :]) != expected:
            raise InputError(
                f"lam1 has shape {tuple(self.lam1.shape)} and lam2 {tuple(self.lam2.shape)}; lam2 "
                "must have the shape of lam1 (diagonal) or one more dim of the same size (full)."
            )
        if self.full and self.on == "data":
            raise InputError(
                f"Sites on data rows are diagonal, and lam2 has shape {tuple(self.lam2.shape)}; pass "
                "its diagonals, or on='basis' for matrices about the basis."
            )

    @property
    def full(self) -> bool:
        """Whether ``lam2`` holds matrices rather than diagonals."""
        return self.lam2.dim() == self.lam1.dim() + 1

    @classmethod
    def zeros(
        cls,
        shape: torch.Size | tuple[int, ...],
        *,
        on: SiteSpace = "data",
        full: bool = False,
        dtype: torch.dtype = torch.float64,
        device: torch.device | None = None,
    ) -> Self:
        """Sites that say nothing: conditioning on them gives the prior back.

        Parameters
        ----------
        shape : sequence of int, [*b, N]
            Shape of ``lam1``.
        on : {"data", "basis", "whitened"}
            What the sites are about.
        full : bool
            Whether ``lam2`` holds matrices.
        dtype, device
            Of the tensors.

        Returns
        -------
        Sites
            All zero.
        """
        second = (*shape, shape[-1]) if full else tuple(shape)
        return cls(
            torch.zeros(tuple(shape), dtype=dtype, device=device),
            torch.zeros(second, dtype=dtype, device=device),
            on,
        )

    @classmethod
    def from_moments(
        cls,
        mean: Tensor,
        variance: Tensor,
        prior_variance: Tensor,
        prior_mean: Tensor | float = 0.0,
    ) -> Self:
        """Data sites that turn independent priors into the given posterior moments.

        ``lam2 = 1/variance - 1/prior_variance`` and
        ``lam1 = mean/variance - prior_mean/prior_variance``.

        Parameters
        ----------
        mean, variance : Tensor, shape [*b, N]
            Moments of q.
        prior_variance : Tensor, shape [*b, N]
            Variances of the prior.
        prior_mean : Tensor or float, shape [*b, N]
            Means of the prior.

        Returns
        -------
        Sites
            On data rows; negative precision where q is wider than the prior.
        """
        return cls(
            mean / variance - prior_mean / prior_variance,
            variance.reciprocal() - 1 / prior_variance,
        )

    def __add__(self, other: "Sites") -> "Sites":
        if not isinstance(other, Sites):
            return NotImplemented
        self._check_compatible(other)
        return Sites(
            self.lam1 + other.lam1, self._second(other.full) + other._second(self.full), self.on
        )

    def __mul__(self, factor: float | Tensor) -> "Sites":
        if isinstance(factor, Tensor) and factor.dim() and self.full:
            raise InputError(
                f"Sites with a full lam2 are scaled by one number, not by shape {tuple(factor.shape)}."
            )
        return Sites(self.lam1 * factor, self.lam2 * factor, self.on)

    __rmul__ = __mul__

    def lerp(self, other: "Sites", weight: float) -> "Sites":
        """``(1 - weight) * self + weight * other``: one damped natural-gradient step.

        Parameters
        ----------
        other : Sites
            Sites about the same thing.
        weight : float
            Step size in [0, 1].

        Returns
        -------
        Sites
            The convex combination.
        """
        return (1.0 - weight) * self + weight * other

    def mask(self, observed: Tensor) -> "Sites":
        """Set the sites of unobserved rows to zero.

        Parameters
        ----------
        observed : Tensor of bool, shape broadcastable to [*b, N]
            True where the row was observed.

        Returns
        -------
        Sites
            With zeros in unobserved rows, also where they held NaN.
        """
        if self.full:
            raise InputError(
                f"Sites with a full lam2 {tuple(self.lam2.shape)} have no rows to mask; mask the data "
                "sites before they are tied."
            )
        zero = torch.zeros((), dtype=self.lam1.dtype, device=self.lam1.device)
        return Sites(
            torch.where(observed, self.lam1, zero), torch.where(observed, self.lam2, zero), self.on
        )

    def detach(self) -> "Sites":
        """The same sites off the graph."""
        return Sites(self.lam1.detach(), self.lam2.detach(), self.on)

    def log_value(self, values: Tensor) -> Tensor:
        """``sum log t(v)`` at given values.

        Parameters
        ----------
        values : Tensor, shape [*s, *b, N]
            Where to evaluate, in the space named by ``on``.

        Returns
        -------
        Tensor, shape [*s, *b]
            Summed over the last axis.
        """
        if self.full:
            quadratic = (mat_vec(self.lam2, values) * values).sum(-1)
        else:
            quadratic = (self.lam2 * values.square()).sum(-1)
        return (self.lam1 * values).sum(-1) - 0.5 * quadratic

    def _second(self, full: bool) -> Tensor:
        return torch.diag_embed(self.lam2) if full and not self.full else self.lam2

    def _check_compatible(self, other: "Sites") -> None:
        if self.on != other.on:
            raise InputError(
                f"Sites on {self.on!r} and on {other.on!r} cannot be combined; bring both to one "
                "space (prior.tie moves data sites onto the basis)."
            )
        if self.lam1.shape[-1] != other.lam1.shape[-1]:
            raise InputError(
                f"Sites of {self.lam1.shape[-1]} and {other.lam1.shape[-1]} entries cannot be "
                "combined."
            )

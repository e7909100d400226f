r"""Orthogonal pairs: a second block of inducing points for what the first block leaves open.

The base block u are inter-domain features (or inducing points), the second block are function values
:math:`v = f(Z_v)`. What u says about v is taken out of the second block,

.. math:: v_\perp = v - K_{vu} K_{uu}^{-1} u, \qquad
          C_{vv} = K_{vv} - K_{vu} K_{uu}^{-1} K_{uv}, \qquad
          C_{vf} = K_{vf} - K_{vu} K_{uu}^{-1} K_{uf},

so that a priori the blocks are independent, and the whitened features are those of both,
:math:`(L_u^{-1} K_{uf}, L_v^{-1} C_{vf})`. How much q couples them is an option:

* ``"joint"``: not restricted; the same as all variables in one block;
* ``"block"``: q(u) q(v_perp), each with a full covariance. Sweeps of inference cost
  :math:`O(N (M^2 + K^2) + M^3 + K^3)` instead of :math:`O(N (M + K)^2 + (M + K)^3)`;
* ``"delta"``: the second block moves its mean only and keeps the covariance of its prior.

References
----------
Shi, J., Titsias, M. & Mnih, A. (2020). Sparse orthogonal variational inference for Gaussian processes.
AISTATS.
Salimbeni, H., Cheng, C.-A., Boots, B. & Deisenroth, M. (2018). Orthogonally decoupled variational Gaussian
processes. NeurIPS.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gpvi.approximations._orthogonal_basis import RememberingProcess, StackedBasis
from gpvi.approximations._orthogonal_prior import BlockPrior, expand_points
from gpvi.approximations.base import Approximation
from gpvi.approximations.collapsed import collapsed_objective
from gpvi.approximations.feature_prior import FeaturePrior
from gpvi.approximations.features import Basis, FunctionalBasis, PointBasis, check_jitter
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.inducing import InducingPoints
from gpvi.approximations.inter_domain import basis_of, check_features
from gpvi.approximations.inter_domain_features import InterDomainFeatures
from gpvi.approximations.plan import Plan
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.linalg import default_jitter

__all__ = ["Orthogonal"]

#: How far q couples the blocks.
FAMILIES = ("joint", "block", "delta")


class Orthogonal(Approximation):
    """Approximate a Gaussian process through features and, orthogonal to them, inducing points.

    Parameters
    ----------
    base : InterDomainFeatures
        First block: inducing points or any other features.
    orthogonal : InducingPoints
        Second block.
    q : {"joint", "block", "delta"}
        Coupled blocks; independent blocks; independent blocks of which the second keeps its prior covariance.
    jitter : float, optional
        Relative to the mean diagonal of the covariance; default 1e-8 in float64, 1e-6 in float32.

    Raises
    ------
    InputError
        For an impossible option, or blocks that are no features.
    UnsupportedError
        For a second block other than inducing points.

    References
    ----------
    Shi, J., Titsias, M. & Mnih, A. (2020). Sparse orthogonal variational inference for Gaussian processes.
    AISTATS.

    Examples
    --------
    >>> import torch
    >>> from gpvi.approximations import InducingPoints
    >>> few, more = torch.linspace(0, 1, 3).unsqueeze(-1), torch.linspace(0.1, 0.9, 5).unsqueeze(-1)
    >>> base, rest = InducingPoints(inducing_points=few), InducingPoints(inducing_points=more)
    >>> Orthogonal(base, rest, q="block").basis_shape
    torch.Size([8])
    """

    whole_data = False
    finite_basis = True

    def __init__(
        self,
        base: InterDomainFeatures,
        orthogonal: InducingPoints,
        *,
        q: str = "joint",
        jitter: float | None = None,
    ) -> None:
        super().__init__()
        check_features(base, "base")
        if not isinstance(orthogonal, InducingPoints):
            raise UnsupportedError(
                f"orthogonal is a {type(orthogonal).__name__}; the second block can only be InducingPoints: "
                "its covariances with the base are the base's own with function values."
            )
        check_features(orthogonal, "orthogonal")
        if orthogonal is base:
            raise InputError(
                "base and orthogonal are the same object; pass two sets of inducing points."
            )
        if q not in FAMILIES:
            raise InputError(f"q is {q!r}; it must be one of {', '.join(FAMILIES)}.")
        check_jitter(jitter)
        self.base = base
        self.orthogonal = orthogonal
        self.q = q
        self.jitter = jitter

    @property
    def block_shapes(self) -> tuple[torch.Size, torch.Size] | None:
        """Shapes [*b, M] and [*b, K] of the blocks; None if one has not been chosen."""
        first, second = self.base.basis_shape, self.orthogonal.basis_shape
        return None if first is None or second is None else (first, second)

    @property
    def basis_shape(self) -> torch.Size | None:
        """Shape [*b, M + K] of the basis; None if a block has not been chosen."""
        if self.block_shapes is None:
            return None
        first, second = self.block_shapes
        batch = torch.broadcast_shapes(first[:-1], second[:-1])
        return torch.Size([*batch, first[-1] + second[-1]])

    @property
    def inducing_points(self) -> Tensor | None:
        """All inducing inputs, shape [*b, M + K, D]: of the second block alone where the base has none.

        None if they have not been chosen.
        """
        second = self.orthogonal.inducing_points
        if not isinstance(self.base, InducingPoints):
            return second
        first = self.base.inducing_points
        return None if first is None or second is None else expand_points(first, second)

    def initialize(
        self, gp: GaussianProcessLike, x: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Choose the base, then points for what it leaves open; blocks that are there stay.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process with its initial hyperparameters.
        x : Tensor, shape [N, D]
            Data inputs (leading dims are flattened into rows).
        generator : torch.Generator, optional
            Source of randomness.
        """
        self.base.initialize(gp, x, generator)
        if self.orthogonal.inducing_points is not None:
            return
        rows = x.detach().reshape(-1, x.shape[-1])
        if isinstance(self.base, InducingPoints):
            rows = _without(rows, self.base.inducing_points)
        with torch.no_grad():
            basis = basis_of(self.base, rows)
            factor = basis.factorise(gp, self._jitter(rows)).factor
            rest = RememberingProcess(gp, basis, factor)
            self.orthogonal.initialize(rest, rows, generator)

    def map_inputs(self, transform: Callable[[Tensor], Tensor]) -> None:
        """Move what lives among the inputs to other units.

        Parameters
        ----------
        transform : callable
            Maps inputs, shape [*b, M, D], to the same shape.
        """
        self.base.map_inputs(transform)
        self.orthogonal.map_inputs(transform)

    def collapsed_objective(
        self,
        gp: GaussianProcessLike,
        x: Tensor,
        y: Tensor,
        noise: Tensor,
        *,
        tighter: bool,
        copies: Tensor | None = None,
        plan: Plan | None = None,
        terms: Tensor | None = None,
    ) -> Tensor | None:
        """Gaussian-likelihood bound in one operation, where all variables are function values in one q.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process.
        x : Tensor, shape [N, D]
            Data inputs.
        y : Tensor, shape [N]
            Targets, all observed.
        noise : Tensor, scalar or shape [N]
            Noise variances.
        tighter : bool
            Whether to use the tightened bound of Titsias (2025).
        copies : Tensor, shape [N], optional
            How many rows with independent residuals each row stands for in the tightened bound.
        plan : Plan, optional
            No difference here.
        terms : None
            There are none.

        Returns
        -------
        Tensor, shape [*b], or None
            Total nats; None for other features and other families.
        """
        if self.q != "joint" or not isinstance(self.base, InducingPoints):
            return None
        z = expand_points(self.base.checked_points(x), self.orthogonal.checked_points(x))
        return collapsed_objective(
            gp, x, z, y, noise, jitter=self._jitter(x), tighter=tighter, copies=copies
        )

    def _prior(self, gp: GaussianProcessLike, x: Tensor, plan: Plan) -> FeaturePrior:
        basis, jitter = self._basis(x), self._jitter(x)
        if self.q == "joint":
            return FeaturePrior.on_basis(gp, x, basis, jitter)
        prior = BlockPrior.on_basis(gp, x, basis, jitter)
        split = prior.num_basis - self.orthogonal.checked_points(x).shape[-2]
        return prior.in_blocks(split, moved=self.q == "delta")

    def _basis(self, x: Tensor) -> Basis:
        second = self.orthogonal.checked_points(x).clone()
        first = basis_of(self.base, x)
        if isinstance(first, FunctionalBasis):
            return StackedBasis(first, second)
        return PointBasis(expand_points(first.points, second))

    def _jitter(self, x: Tensor) -> float:
        return default_jitter(x.dtype) if self.jitter is None else self.jitter


def _without(rows: Tensor, taken: Tensor | None) -> Tensor:
    """Rows that no inducing input of the base is at; all of them if nothing would be left."""
    if taken is None:
        return rows
    known = {tuple(point) for point in taken.detach().reshape(-1, taken.shape[-1]).tolist()}
    free = torch.tensor([tuple(row) not in known for row in rows.tolist()], device=rows.device)
    return rows[free] if bool(free.any()) else rows

"""Flat groups over any approximation: pad by index, condition a batch, and map back.

Rows of different groups share hyperparameters and nothing else. Inside, group g is one entry of a
leading batch dim; outside, rows stay flat ``[*b, N]`` and totals are ``[G, *b]``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations._residual import ResidualDraw
from gpvi.approximations.base import Prior
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.moments import Draw, Marginals
from gpvi.approximations.plan import GroupIndex
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.exceptions import InputError, UnsupportedError

__all__ = ["GroupedPosterior", "GroupedPrior"]


@dataclass(frozen=True, eq=False)
class GroupedPrior(Prior):
    """A prior over flat groups.

    Parameters
    ----------
    inner : Prior
        Prior at the padded inputs, batch shape [G, *b].
    x : Tensor, shape [N, D]
        Flat inputs.
    index : GroupIndex
        Where rows go.
    """

    inner: Prior
    x: Tensor
    index: GroupIndex

    @property
    def gp(self) -> GaussianProcessLike:  # type: ignore[override]
        """Snapshot of the process."""
        return self.inner.gp

    @property
    def site_spaces(self) -> tuple:  # type: ignore[override]
        """Spaces in which the inner prior accepts sites."""
        return self.inner.site_spaces

    @property
    def exact_conditioning(self) -> bool:  # type: ignore[override]
        """Whether q is exactly prior times sites."""
        return self.inner.exact_conditioning

    @property
    def mean(self) -> Tensor:
        """Prior mean at the flat rows, shape [*b, N]."""
        return self.index.flatten(self.inner.mean)

    @property
    def residual(self) -> Tensor | None:
        """Conditional variance at the flat rows, shape [*b, N]."""
        return None if self.inner.residual is None else self.index.flatten(self.inner.residual)

    @property
    def num_basis(self) -> int:
        """Basis size of one group."""
        return self.inner.num_basis

    def whiten(self, basis: Tensor) -> Tensor:
        """Whiten a basis of shape [*S, G, *b, M] by the inner prior."""
        return self.inner.whiten(basis)

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """Inverse of :meth:`whiten`."""
        return self.inner.unwhiten(whitened)

    def log_prob(self, basis: Tensor) -> Tensor:
        """Prior log density of a basis, total [*S, G, *b]."""
        return self.inner.log_prob(basis)

    def tie(self, sites: Sites) -> Sites:
        """Tie flat data sites to every group's own basis."""
        self._check_sites(sites)
        return self.inner.tie(self._pad(sites))

    def _check_sites(self, sites: Sites) -> None:
        if sites.on != "data":
            self.inner._check_sites(sites)
            return
        super()._check_sites(sites)
        batch, own = sites.lam1.shape[:-1], self.mean.shape[:-1]
        # Inside, the group dim leads: batch dims that only the sites have would be taken for it.
        if torch.broadcast_shapes(batch, own) != own:
            raise InputError(
                f"Sites of batch shape {tuple(batch)} for a process of batch shape {tuple(own)} "
                "over groups; give the kernel (or the mean) the batch shape of the sites."
            )

    def _pad(self, sites: Sites) -> Sites:
        if sites.on != "data":
            return sites
        shape = self.mean.shape
        rows = self.index.pad_rows
        return Sites(rows(sites.lam1.expand(shape)), rows(sites.lam2.expand(shape)))

    def _condition(self, sites: Sites) -> "GroupedPosterior":
        return GroupedPosterior(self, sites, self.inner.condition(self._pad(sites)))


@dataclass(frozen=True, eq=False)
class GroupedPosterior(Posterior):
    """A posterior over flat groups.

    Parameters
    ----------
    prior : GroupedPrior
        What was conditioned.
    sites : Sites
        Flat data sites, or basis sites with a group dim.
    inner : Posterior
        Posterior of the padded batch.
    """

    prior: GroupedPrior
    sites: Sites
    inner: Posterior

    @property
    def log_partition(self) -> Tensor:
        """Total, shape [G, *b]."""
        return self.inner.log_partition

    def kl(self) -> Tensor:
        """``KL(q || prior)`` of every group, shape [G, *b]."""
        return self.inner.kl()

    def accuracy_remarks(self) -> tuple[str, ...]:
        """What is crude in some group; see :meth:`Posterior.accuracy_remarks`."""
        return self.inner.accuracy_remarks()

    def _marginals(self) -> Marginals:
        return self._flatten(self.inner.marginals())

    def predict(
        self, x: Tensor, joint: bool = False, groups: Tensor | None = None
    ) -> Marginals | gpytorch.distributions.MultivariateNormal:
        """Moments at new rows of known groups; see :meth:`Posterior.predict`.

        Parameters
        ----------
        x : Tensor, shape [N_new, D]
            Inputs.
        joint : bool
            Refused here: rows of different groups are independent.
        groups : Tensor of int, shape [N_new]
            The group of every row.

        Returns
        -------
        Marginals
            In the order of ``x``.
        """
        if groups is None:
            raise InputError("This posterior is over groups: pass groups, one label per row of x.")
        if joint:
            raise UnsupportedError(
                "joint=True and groups: predict each group's posterior (posterior.inner) jointly."
            )
        if groups.shape != x.shape[:1] or x.dim() != 2:
            raise InputError(
                f"x has shape {tuple(x.shape)} and groups {tuple(groups.shape)}; "
                "pass x [N, D] and one label per row, groups [N]."
            )
        position = self.prior.index.locate(groups)
        rows = GroupIndex.build(position)
        batch_dims = self.prior.inner.mean.dim() - 2
        # One padded block per group of the posterior; groups without new rows get a row they
        # ignore.
        blocks = x[rows.rows]
        width = blocks.shape[1]
        padded = x[:1].expand(len(self.prior.index.labels), width, -1).clone()
        padded[rows.labels] = blocks
        padded = padded.reshape(len(padded), *[1] * batch_dims, *padded.shape[1:])
        moments = self.inner.predict(padded)
        assert isinstance(moments, Marginals)
        return _pick(moments, position, rows.slot)

    def rsample(
        self,
        shape: torch.Size | tuple[int, ...] = (),
        x: Tensor | None = None,
        residual: ResidualDraw = "joint",
        generator: torch.Generator | None = None,
    ) -> Draw:
        """Reparametrised samples at the flat rows; see :meth:`Posterior.rsample`.

        Parameters
        ----------
        shape : sequence of int
            Sample shape S.
        x : None
            New inputs are refused; sample ``posterior.inner`` there.
        residual : {"joint", "independent", "none"}
            As for the inner posterior.
        generator : torch.Generator, optional
            Source of randomness.

        Returns
        -------
        Draw
            Values [*S, *b, N] and basis [*S, G, *b, M].
        """
        if x is not None:
            raise UnsupportedError(
                f"GroupedPosterior samples at its data rows only, not at x of shape {tuple(x.shape)}; "
                "sample posterior.inner, whose leading dim is the group."
            )
        draw = self.inner.rsample(shape, None, residual, generator)
        # Sample dims lead: bring the group dim to the front before mapping rows back.
        values = draw.values.movedim(len(shape), 0)
        return Draw(self.prior.index.flatten(values), draw.basis)

    def leave_one_out(self) -> Marginals:
        """Moments of every row given the others of its group; see :meth:`Posterior.leave_one_out`.

        Returns
        -------
        Marginals
            Shape [*b, N], in the order of the flat rows.
        """
        return self._flatten(self.inner.leave_one_out())

    def path_weights(
        self, prior_path: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Refused: flat groups share no function.

        Parameters
        ----------
        prior_path : callable
            Not used.
        generator : torch.Generator
            Not used.

        Returns
        -------
        tuple of Tensor
            Never.

        Raises
        ------
        UnsupportedError
            Always.
        """
        raise UnsupportedError(
            "Every group of a GroupedPosterior has functions of its own; sample those of "
            "posterior.inner, whose leading dim is the group."
        )

    def log_ratio(self, draw: Draw) -> Tensor:
        """``log p(basis) - log q(basis)``, shape [*S, G, *b]."""
        return self.inner.log_ratio(draw)

    def sum_rows(self, values: Tensor) -> Tensor:
        """Sum flat per-row values within groups: [*b, N] to [G, *b]."""
        return self.prior.index.sum_rows(values)

    def _flatten(self, moments: Marginals) -> Marginals:
        flatten = self.prior.index.flatten
        residual = None if moments.residual is None else flatten(moments.residual)
        return Marginals(flatten(moments.mean), flatten(moments.explained), residual)

    def _site_values(self, basis: Tensor) -> Tensor:
        return self.inner._site_values(basis)


def _pick(moments: Marginals, group: Tensor, slot: Tensor) -> Marginals:
    def pick(values: Tensor) -> Tensor:
        return values.movedim(0, -2)[..., group, slot]

    residual = None if moments.residual is None else pick(moments.residual)
    return Marginals(pick(moments.mean), pick(moments.explained), residual)

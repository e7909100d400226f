"""What every posterior offers: moments, samples, divergences, and what was learned from one row.

Shapes: ``b`` are batch dims (latents last among them), rows N, basis size M, samples S in front.
"Total" means summed over rows, shape ``[*b]``, or ``[G, *b]`` for G flat groups.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Self

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations._detach import detached
from gpvi.approximations._lazy import on_graph
from gpvi.approximations._residual import ResidualDraw
from gpvi.approximations.cavity import cavity, check_rows_have_sites, gap_from_moments
from gpvi.approximations.moments import Draw, Marginals
from gpvi.approximations.sites import Sites
from gpvi.exceptions import UnsupportedError

if TYPE_CHECKING:
    from gpvi.approximations.base import Prior

__all__ = ["Posterior"]


class Posterior(ABC):
    """A structured Gaussian posterior, immutable; nothing else is needed by an objective.

    Attributes
    ----------
    prior : Prior
        What was conditioned.
    sites : Sites
        What it was conditioned on.
    """

    prior: "Prior"
    sites: Sites

    @property
    def kl_is_whole(self) -> bool:
        """Whether :meth:`kl` stands for all data, also where the rows at hand are a minibatch."""
        return self.sites.on != "data"

    @property
    @abstractmethod
    def log_partition(self) -> Tensor:
        """``log E_prior[exp(sum log t)]``, total."""

    @abstractmethod
    def kl(self) -> Tensor:
        """``KL(q || prior)``, total."""

    def marginals(self) -> Marginals:
        """Moments at the data rows, computed once.

        Returns
        -------
        Marginals
            Shape [*b, N].
        """
        return self._kept_marginals

    @cached_property
    def _kept_marginals(self) -> Marginals:
        with on_graph():
            return self._marginals()

    @abstractmethod
    def _marginals(self) -> Marginals: ...

    @abstractmethod
    def predict(
        self, x: Tensor, joint: bool = False, groups: Tensor | None = None
    ) -> Marginals | gpytorch.distributions.MultivariateNormal:
        """Moments anywhere.

        Parameters
        ----------
        x : Tensor, shape [*g, N_new, D]
            Inputs.
        joint : bool
            Whether to return the full covariance.
        groups : Tensor of int, shape [N_new], optional
            The group of every new row, for a posterior over flat groups.

        Returns
        -------
        Marginals or MultivariateNormal
            The latter if ``joint``.
        """

    @abstractmethod
    def rsample(
        self,
        shape: torch.Size | tuple[int, ...] = (),
        x: Tensor | None = None,
        residual: ResidualDraw = "joint",
        generator: torch.Generator | None = None,
    ) -> Draw:
        """Reparametrised joint samples.

        Parameters
        ----------
        shape : sequence of int
            Sample shape S.
        x : Tensor, shape [*g, N_new, D], optional
            Where; the data rows if left out.
        residual : {"joint", "independent", "none"}
            How the part of f that the basis leaves open is drawn. Only "joint" samples q;
            independent residuals turn importance-weighted bounds into those of another model.
        generator : torch.Generator, optional
            Source of randomness; a fresh one seeded by torch if left out.

        Returns
        -------
        Draw
            Values and basis.
        """

    def log_ratio(self, draw: Draw) -> Tensor:
        """``log p(basis) - log q(basis)`` of a draw from this posterior, total.

        Parameters
        ----------
        draw : Draw
            With ``basis`` of shape [*S, *b, M].

        Returns
        -------
        Tensor, shape [*S, *total]
            Log weights of the prior against q.
        """
        return self.log_partition - self.sites.log_value(self._site_values(draw.basis))

    def leave_one_out(self) -> Marginals:
        r"""Moments of f at every data row, given the sites of all other rows.

        Without its own site, row n has the cavity moments of ``r_n = E[f_n | basis]``,

        .. math:: v_{-n} = \frac{v_n}{1 - \lambda_{2n} v_n}, \qquad
                  m_{-n} = m_n - v_{-n} (\lambda_{1n} - \lambda_{2n} m_n),

        and the residual of the row. For Gaussian likelihoods, where sites do not depend on each
        other, this is what refitting without the row gives at the same hyperparameters; for others
        it is the usual approximation, in which the other sites stay.

        Returns
        -------
        Marginals
            Shape [*b, N]; a row without a site has its ordinary marginals.

        Raises
        ------
        UnsupportedError
            If the sites are on the basis, where they belong to no single row.
        NumericalError
            If a row's site is all that keeps the posterior proper.

        References
        ----------
        Rasmussen, C. E. & Williams, C. K. I. (2006). Gaussian Processes for Machine Learning,
        section 5.4.2.
        Vehtari, A., Mononen, T., Tolvanen, V., Sivula, T. & Winther, O. (2016). Bayesian
        leave-one-out cross-validation approximations for Gaussian latent variable models.
        """
        check_rows_have_sites(type(self).__name__, self.sites)
        moments, sites = self.marginals(), self.sites
        gap = gap_from_moments(sites.lam2, moments.explained)
        return cavity(moments, sites, gap, sites.lam1 - sites.lam2 * moments.mean)

    def path_weights(
        self, prior_path: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        r"""Turn draws of the prior, as functions, into draws of q (Wilson et al. 2020).

        With inputs Z and weights w from here, :math:`m(x) + g(x) + k(x, Z) w` is a draw of q if g
        is one of the prior without its mean.

        Parameters
        ----------
        prior_path : callable
            Values [S, *b, M] at inputs [*b, M, D] of the S functions g.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        inputs : Tensor, shape [*g, M, D]
            Where the basis lies.
        weights : Tensor, shape [S, *b, M]
            How much of its covariance with every basis value is added.

        Raises
        ------
        UnsupportedError
            If draws of this posterior are not functions of the inputs.
        """
        raise UnsupportedError(
            f"{type(self).__name__} has no samples that are functions of the inputs; draw values at "
            "fixed inputs with posterior.rsample(x=x)."
        )

    def sum_rows(self, values: Tensor) -> Tensor:
        """Sum values given per data row into a total.

        Parameters
        ----------
        values : Tensor, shape [*b, N]
            One value per row.

        Returns
        -------
        Tensor
            Total, shape [*b], or [G, *b] for flat groups.
        """
        return values.sum(-1)

    def accuracy_remarks(self) -> tuple[str, ...]:
        """What a fit should warn of because moments are crude; nothing by default.

        Asked for once, at the end of a fit: it may cost as much as another conditioning.

        Returns
        -------
        tuple of str
            Whole sentences.
        """
        return ()

    def compact(self) -> "Posterior":
        """The same q for prediction, without what only the data rows needed (itself by default).

        Returns
        -------
        Posterior
            Predicts the same.
        """
        return self

    def detach(self) -> Self:
        """The same posterior off the graph; it can be pickled and copied.

        Returns
        -------
        Posterior
            With every tensor detached.
        """
        return detached(self)

    @abstractmethod
    def _site_values(self, basis: Tensor) -> Tensor:
        """The values, in the space of the sites, that basis values imply."""

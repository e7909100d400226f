r"""Full-scale approximation: inducing points for what is smooth, neighbours for what they leave open.

Inducing points carry what is shared by distant values, and blur what is local; a sparse inverse Cholesky
(Vecchia) factor carries what is local, and needs many neighbours for what is smooth. Here the factor is that
of the covariance which the inducing points leave,

.. math:: f = \mu + F^\top e + r, \qquad \operatorname{cov}(r) = K - F^\top F \approx (UU^\top)^{-1},

so that each value is given all inducing variables and its nearest residuals. Responses y = f + noise have an
evidence of their own, in which noise goes into the factor: with :math:`B = F U_y`,

.. math:: \log p(y) = \log N(y \mid \mu, F^\top F + (U_y U_y^\top)^{-1}), \qquad
          \log |\cdot| = \log |I + B B^\top| - 2 \log |U_y|.

References
----------
Sang, H. & Huang, J. Z. (2012). A full scale approximation of covariance functions for large spatial data
sets. JRSS B.
Gyger, T., Furrer, R. & Sigrist, F. (2025). Vecchia-inducing-points full-scale approximations for Gaussian
processes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gpvi.approximations._gather import take_rows
from gpvi.approximations._left_over import LeftOverProcess
from gpvi.approximations._plans import prior_of_plan
from gpvi.approximations.base import Approximation, Prior
from gpvi.approximations.feature_prior import FeaturePrior
from gpvi.approximations.features import check_jitter
from gpvi.approximations.full_scale_prior import FullScalePrior
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.inducing import InducingPoints
from gpvi.approximations.inter_domain import basis_of, check_features
from gpvi.approximations.inter_domain_features import InterDomainFeatures
from gpvi.approximations.plan import Plan
from gpvi.approximations.response_evidence import merged_responses
from gpvi.approximations.sparse_inverse import SparseInverseCholesky, SparseInversePlan
from gpvi.approximations.sparse_inverse_prior import SparseInversePrior
from gpvi.exceptions import InputError
from gpvi.linalg import (
    default_jitter,
    factor_transpose_product,
    identity_plus_low_rank,
    log_det_from_cholesky,
    mat_vec,
    solve_lower_vec,
)

__all__ = ["FullScale"]

_LOG_2PI = math.log(2.0 * math.pi)


class FullScale(Approximation):
    """Give every value all variables of a basis, and its nearest neighbours for the rest.

    Parameters
    ----------
    base : InterDomainFeatures
        Inducing points or any other features.
    residual : SparseInverseCholesky
        Order, neighbours, and which evidence a fit with a Gaussian likelihood maximises. With
        ``neighbors="correlation"`` the correlations are those of the residual.
    jitter : float, optional
        Of the base; relative to the mean diagonal of its covariance, by default 1e-8 in double precision.

    Raises
    ------
    InputError
        For parts that are not what they should be.

    References
    ----------
    Gyger, T., Furrer, R. & Sigrist, F. (2025). Vecchia-inducing-points full-scale approximations for
    Gaussian processes.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.approximations import GaussianProcess, InducingPoints, Sites, SparseInverseCholesky
    >>> x = torch.rand(300, 2, dtype=torch.float64)
    >>> gp = GaussianProcess(gpytorch.kernels.MaternKernel(nu=1.5).double())
    >>> both = FullScale(InducingPoints(inducing_points=x[:20]), SparseInverseCholesky(8))
    >>> both.prior(gp, x).condition(Sites.zeros((300,))).marginals().mean.shape
    torch.Size([300])
    """

    whole_data = True
    subset_warm_start = True
    exact_conditioning = False

    def __init__(
        self,
        base: InterDomainFeatures,
        residual: SparseInverseCholesky,
        *,
        jitter: float | None = None,
    ) -> None:
        super().__init__()
        check_features(base, "base")
        if not isinstance(residual, SparseInverseCholesky):
            raise InputError(
                f"residual is a {type(residual).__name__}; pass a SparseInverseCholesky, or use Orthogonal "
                "for a second set of inducing points."
            )
        check_jitter(jitter)
        self.base, self.residual, self.jitter = base, residual, jitter

    @property
    def inducing_points(self) -> Tensor | None:
        """Inducing inputs of the base, shape [*b, M, D]; None if it has none, or none yet."""
        return self.base.inducing_points if isinstance(self.base, InducingPoints) else None

    def initialize(
        self, gp: GaussianProcessLike, x: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Choose the base for data.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process with its initial hyperparameters.
        x : Tensor, shape [N, D]
            Data inputs.
        generator : torch.Generator, optional
            Source of randomness.
        """
        self.base.initialize(gp, x, generator)

    def map_inputs(self, transform: Callable[[Tensor], Tensor]) -> None:
        """Move the base to other units.

        Parameters
        ----------
        transform : callable
            Maps inputs, shape [*b, M, D], to the same shape.
        """
        self.base.map_inputs(transform)

    def plan(self, x: Tensor, groups: Tensor | None = None) -> SparseInversePlan:
        """Prepare the search for neighbours; see :meth:`SparseInverseCholesky.plan`.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Data inputs.
        groups : Tensor of int, shape [N], optional
            Flat independent groups.

        Returns
        -------
        SparseInversePlan
            For every hyperparameter value.
        """
        return self.residual.plan(x, groups)

    def refresh_period(self, gp: GaussianProcessLike, x: Tensor) -> int | None:
        """Iterations between looks at the neighbours.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process.
        x : Tensor, shape [*g, N, D]
            Data inputs.

        Returns
        -------
        int or None
            None where neighbours cannot change.
        """
        return self.residual.refresh_period(gp, x)

    def refresh(self, gp: GaussianProcessLike, plan: Plan) -> Plan:
        """The plan to go on with at today's hyperparameters; see :meth:`SparseInverseCholesky.refresh`.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process.
        plan : Plan
            In use.

        Returns
        -------
        Plan
            The same one while its neighbours are those that would be found today.
        """
        if not isinstance(plan, SparseInversePlan):
            return plan
        with torch.no_grad():
            return self.residual.refresh(self._left_over(gp, plan.inputs), plan)

    def prior(self, gp: GaussianProcessLike, x: Tensor, *, plan: Plan | None = None) -> Prior:
        """Full-scale prior at data inputs, for today's hyperparameters.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process.
        x : Tensor, shape [*g, N, D]
            Data inputs.
        plan : Plan, optional
            From :meth:`plan` for these inputs; without one, neighbours are found anew.

        Returns
        -------
        Prior
            Differentiable in hyperparameters, inputs and the base, with the neighbours held.
        """
        return prior_of_plan(self, SparseInversePlan, gp, x, plan)

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
        """Evidence of the responses: low rank plus a sparse precision.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process, live.
        x : Tensor, shape [N, D]
            Data inputs.
        y : Tensor, shape [*b, N]
            Targets, all observed.
        noise : Tensor, scalar or shape [*b, N]
            Noise variances.
        tighter : bool
            No difference here: nothing is left open.
        copies : Tensor, shape [N], optional
            No difference here either.
        plan : Plan, optional
            From :meth:`plan` for these inputs.
        terms : None
            There are none.

        Returns
        -------
        Tensor, shape [*b], or None
            Nats; None if the evidence of the function was asked for.
        """
        if self.residual.evidence == "function" or x.dim() > 2:
            return None
        plan = self.plan(x) if plan is None else plan
        assert isinstance(plan, SparseInversePlan)
        rest = self._left_over(gp, x)
        geometry = plan.geometry(rest)
        pattern, first, place = geometry.patterns[0], geometry.first[0], geometry.place[0]
        P = len(first)
        values, variances, constant = merged_responses(
            y - gp.mean(x), noise, first, place, P, x.shape[-2]
        )
        points = take_rows(x, first)
        own = torch.arange(P, dtype=torch.int32, device=x.device)
        spread = variances.double().expand(*variances.shape[:-1], P)
        F = rest.features(points)
        U = rest.columns(points, pattern.neighbors, own, 0.0, pattern.schedule, spread, features=F)
        white = factor_transpose_product(pattern, U, values.double())
        batch = torch.broadcast_shapes(F.shape[:-2], U.shape[:-2])
        wide = F.double().expand(*batch, *F.shape[-2:]).movedim(-2, 0)
        B = factor_transpose_product(pattern, U, wide).movedim(0, -2)
        root = torch.linalg.cholesky(identity_plus_low_rank(B, torch.ones_like(white)))
        caught = solve_lower_vec(root, mat_vec(B, white))
        quadratic = white.square().sum(-1) - caught.square().sum(-1)
        log_det = log_det_from_cholesky(root) - 2.0 * U[..., -1].log().sum(-1)
        total = -0.5 * (quadratic + log_det + P * _LOG_2PI)
        return total.to(y) + constant

    def _prior(self, gp: GaussianProcessLike, x: Tensor, plan: Plan) -> FullScalePrior:
        assert isinstance(plan, SparseInversePlan)
        basis = basis_of(self.base, x)
        features = FeaturePrior.on_basis(gp, x, basis, self._jitter(x))
        rest = LeftOverProcess(gp, basis, features.basis_factor)
        inner = self.residual._prior(rest, x, plan)
        assert isinstance(inner, SparseInversePrior)
        return FullScalePrior(features, inner)

    def _left_over(self, gp: GaussianProcessLike, x: Tensor) -> LeftOverProcess:
        basis = basis_of(self.base, x)
        return LeftOverProcess(gp, basis, basis.factorise(gp, self._jitter(x)).factor)

    def _jitter(self, x: Tensor) -> float:
        return default_jitter(x.dtype) if self.jitter is None else self.jitter

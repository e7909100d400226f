r"""Where a strategy keeps its sites, so that GPyTorch counts them as variational parameters.

GPyTorch splits a model's parameters by where they live: what lies inside a
``_VariationalDistribution`` is variational, the rest are hyperparameters. The classes here are such
containers for sites. They do not know the prior, so q itself is the strategy's business.

===========================  =============================================  ======================
container                    what it stores                                 who moves it
===========================  =============================================  ======================
:class:`NaturalSites`        natural parameters, as buffers                 ``natural_step``
:class:`WhitenedMoments`     mean and Cholesky factor of q(e), as GPyTorch  an optimiser
:class:`BlockMoments`        the same of two independent blocks of e        an optimiser
:class:`PseudoTargets`       a target and a log precision per site          an optimiser
===========================  =============================================  ======================

Why not the natural parameters under Adam: after 400 steps with a Gaussian likelihood of small noise on
100 rows, pseudo-targets and log precisions were within 1 nat of the optimum, ``lam1`` and a softplus of
``lam2`` 220 nats below it.
"""

from abc import abstractmethod

import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.variational._variational_distribution import _VariationalDistribution
from torch import Tensor

from gpvi.approximations import Sites, SiteSpace
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.strategies.tied_form import FREE, TiedForm

__all__ = [
    "NaturalSites",
    "PseudoTargets",
    "SiteParameters",
    "WhitenedMoments",
    "as_rows",
    "check_batch_shape",
    "new_site_parameters",
]


class SiteParameters(_VariationalDistribution):
    """Container of sites of one form.

    Parameters
    ----------
    shape : torch.Size, [*b, size]
        Batch shape and number of sites.
    """

    def __init__(self, shape: torch.Size) -> None:
        super().__init__(shape[-1], torch.Size(shape[:-1]), mean_init_std=0.0)

    @abstractmethod
    def sites(self) -> Sites:
        """Today's sites; gradients reach the parameters.

        Returns
        -------
        Sites
            Batch shape [*b].
        """

    @abstractmethod
    def _stored(self) -> Tensor:
        """One of the stored tensors, shape [*b, size]."""

    @property
    def device(self) -> torch.device:
        """Device of the stored tensors."""
        return self._stored().device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored tensors."""
        return self._stored().dtype

    def forward(self) -> MultivariateNormal:
        """Refused: sites alone are no distribution.

        Raises
        ------
        UnsupportedError
            Always.
        """
        raise UnsupportedError(
            "Sites become a distribution only together with the prior; ask the strategy for "
            "variational_distribution or posterior(x)."
        )


class NaturalSites(SiteParameters):
    """Natural parameters as buffers; a new one holds zero sites, that is the prior.

    Parameters
    ----------
    shape : torch.Size, [*b, size]
        Batch shape and number of sites.
    like : Tensor
        Gives dtype and device.
    on : {"data", "basis"}
        What the sites are about; those on a basis have a full ``lam2``.
    """

    lam1: Tensor
    lam2: Tensor

    def __init__(self, shape: torch.Size, like: Tensor, on: SiteSpace) -> None:
        super().__init__(shape)
        full = on == "basis"
        zeros = Sites.zeros(shape, on=on, full=full, dtype=like.dtype, device=like.device)
        self._on = on
        self.register_buffer("lam1", zeros.lam1)
        self.register_buffer("lam2", zeros.lam2)

    def sites(self) -> Sites:
        """Copies of the stored sites, which later steps and loads do not reach."""
        return Sites(self.lam1.clone(), self.lam2.clone(), self._on)

    def store(self, sites: Sites) -> None:
        """Replace the stored sites.

        Parameters
        ----------
        sites : Sites
            Of the same shape and space.

        Raises
        ------
        InputError
            If the shape differs.
        """
        if sites.lam1.shape != self.lam1.shape or sites.lam2.shape != self.lam2.shape:
            raise InputError(
                f"The new sites have shape {tuple(sites.lam1.shape)} and the strategy's "
                f"{tuple(self.lam1.shape)}. Pass rows without further batch dims, or build the "
                "strategy with that batch_shape."
            )
        # New tensors, because a graph may still need the old ones for its backward pass.
        self.lam1 = sites.lam1.detach().to(self.lam1)
        self.lam2 = sites.lam2.detach().to(self.lam2)

    @property
    def is_prior(self) -> bool:
        """Whether the sites say nothing, so that q is the prior."""
        return not bool(self.lam1.any()) and not bool(self.lam2.any())

    def initialize_variational_distribution(self, prior_dist: MultivariateNormal) -> None:
        """Go back to q = prior.

        Parameters
        ----------
        prior_dist : MultivariateNormal
            Part of GPyTorch's interface; zero sites are the prior whatever it is.
        """
        self.store(0.0 * self.sites())

    def _stored(self) -> Tensor:
        return self.lam1


class WhitenedMoments(SiteParameters):
    r"""Mean and Cholesky factor of the whitened q(e), under the names that GPyTorch uses.

    As sites: :math:`\Lambda_2 = S^{-1} - I` and :math:`\lambda_1 = S^{-1} m`. Starts at the prior. The
    trace of a training run is that of GPyTorch's ``VariationalStrategy`` with a
    ``CholeskyVariationalDistribution``.

    Parameters
    ----------
    shape : torch.Size, [*b, M]
        Batch shape and number of inducing points.
    like : Tensor
        Gives dtype and device.
    """

    variational_mean: torch.nn.Parameter
    chol_variational_covar: torch.nn.Parameter

    def __init__(self, shape: torch.Size, like: Tensor) -> None:
        super().__init__(shape)
        mean = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.variational_mean = torch.nn.Parameter(mean)
        self.chol_variational_covar = torch.nn.Parameter(torch.diag_embed(torch.ones_like(mean)))

    def sites(self) -> Sites:
        """Sites on the whitened basis."""
        return _moment_sites(self.variational_mean, self.chol_variational_covar)

    def initialize_variational_distribution(self, prior_dist: MultivariateNormal) -> None:
        """Set q(e) to given moments.

        Parameters
        ----------
        prior_dist : MultivariateNormal
            Over the whitened basis, [*b, M]; N(0, I) is the prior.
        """
        with torch.no_grad():
            factor = torch.linalg.cholesky(prior_dist.covariance_matrix)
            self.variational_mean.copy_(prior_dist.mean)
            self.chol_variational_covar.copy_(factor)

    def _stored(self) -> Tensor:
        return self.variational_mean


class BlockMoments(SiteParameters):
    r"""Means and Cholesky factors of two independent blocks of the whitened q(e).

    Starts at the prior.

    Parameters
    ----------
    shape : torch.Size, [*b, M + K]
        Batch shape and number of basis variables.
    like : Tensor
        Gives dtype and device.
    size : int
        Variables M of the first block.
    moved : bool
        Whether the second block keeps the covariance of its prior, and has a mean only.
    """

    variational_mean: torch.nn.Parameter
    chol_variational_covar: torch.nn.Parameter
    orthogonal_mean: torch.nn.Parameter
    chol_orthogonal_covar: torch.nn.Parameter | None

    def __init__(self, shape: torch.Size, like: Tensor, size: int, *, moved: bool) -> None:
        super().__init__(shape)
        mean = torch.zeros(shape, dtype=like.dtype, device=like.device)
        first, second = mean[..., :size].clone(), mean[..., size:].clone()
        factors = [torch.diag_embed(torch.ones_like(part)) for part in (first, second)]
        self.variational_mean = torch.nn.Parameter(first)
        self.chol_variational_covar = torch.nn.Parameter(factors[0])
        self.orthogonal_mean = torch.nn.Parameter(second)
        factor = None if moved else torch.nn.Parameter(factors[1])
        self.register_parameter("chol_orthogonal_covar", factor)

    def sites(self) -> Sites:
        """Sites on the whitened basis, without entries between the blocks."""
        first = _moment_sites(self.variational_mean, self.chol_variational_covar)
        mean, factor = self.orthogonal_mean, self.chol_orthogonal_covar
        M, K = first.lam1.shape[-1], mean.shape[-1]
        pad = torch.nn.functional.pad
        if factor is None:
            return Sites(torch.cat([first.lam1, mean], -1), pad(first.lam2, (0, K, 0, K)), first.on)
        second = _moment_sites(mean, factor)
        lam2 = torch.cat([pad(first.lam2, (0, K)), pad(second.lam2, (M, 0))], -2)
        return Sites(torch.cat([first.lam1, second.lam1], -1), lam2, first.on)

    def initialize_variational_distribution(self, prior_dist: MultivariateNormal) -> None:
        """Set q(e) to given moments, without covariances between the blocks.

        Parameters
        ----------
        prior_dist : MultivariateNormal
            Over the whitened basis, [*b, M + K]; N(0, I) is the prior.
        """
        size = self.variational_mean.shape[-1]
        mean, covariance = prior_dist.mean, prior_dist.covariance_matrix
        with torch.no_grad():
            self.variational_mean.copy_(mean[..., :size])
            self.orthogonal_mean.copy_(mean[..., size:])
            self.chol_variational_covar.copy_(torch.linalg.cholesky(covariance[..., :size, :size]))
            if self.chol_orthogonal_covar is not None:
                factor = torch.linalg.cholesky(covariance[..., size:, size:])
                self.chol_orthogonal_covar.copy_(factor)

    def _stored(self) -> Tensor:
        return self.variational_mean


class PseudoTargets(SiteParameters):
    r"""A target and a log precision per data row or basis value; starts at targets 0 with precision 1.

    .. math:: \lambda_{2,n} = \exp(\rho_n), \qquad \lambda_{1,n} = \lambda_{2,n} \tilde y_n

    Parameters
    ----------
    shape : torch.Size, [*b, N]
        Batch shape and number of rows.
    like : Tensor
        Gives dtype and device.
    on : {"data", "basis"}
        What the sites are about.
    """

    pseudo_target: torch.nn.Parameter
    log_precision: torch.nn.Parameter

    def __init__(self, shape: torch.Size, like: Tensor, on: SiteSpace = "data") -> None:
        super().__init__(shape)
        self._on = on
        zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.pseudo_target = torch.nn.Parameter(zeros)
        self.log_precision = torch.nn.Parameter(zeros.clone())

    def sites(self) -> Sites:
        """Diagonal sites."""
        precision = self.log_precision.exp()
        return Sites(precision * self.pseudo_target, precision, self._on)

    def initialize_variational_distribution(self, prior_dist: MultivariateNormal) -> None:
        """Go back to targets equal to the prior mean, with precision 1.

        Parameters
        ----------
        prior_dist : MultivariateNormal
            Prior at the data rows, [*b, N].
        """
        with torch.no_grad():
            self.pseudo_target.copy_(prior_dist.mean)
            self.log_precision.zero_()

    def _stored(self) -> Tensor:
        return self.pseudo_target


def _moment_sites(mean: Tensor, factor: Tensor) -> Sites:
    """Whitened sites of ``N(mean, S)`` with the lower triangle of ``factor`` as root of S."""
    factor = factor.tril()
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    half = inverse @ mean.unsqueeze(-1)
    return Sites((inverse.mT @ half).squeeze(-1), inverse.mT @ inverse - eye, "whitened")


def as_rows(inputs: Tensor | None) -> Tensor | None:
    """Own copy of training inputs, with a column dim.

    Parameters
    ----------
    inputs : Tensor, shape [*g, N, D] or [N], or None
        What the user passed.

    Returns
    -------
    Tensor, shape [*g, N, D], or None
        None if None was passed.

    Raises
    ------
    InputError
        If they are not floating-point numbers.
    """
    if inputs is None:
        return None
    if not inputs.is_floating_point() or inputs.dim() < 1:
        raise InputError(
            f"train_inputs has shape {tuple(inputs.shape)} and dtype {inputs.dtype}; pass "
            "floating-point inputs of shape [N, D]."
        )
    rows = inputs.detach().clone()
    return rows.unsqueeze(-1) if rows.dim() == 1 else rows


def new_site_parameters(
    site_parameters: str,
    basis: Tensor,
    batch_shape: torch.Size | None,
    *,
    tied: bool,
    form: TiedForm = FREE,
) -> SiteParameters:
    """Sites in their starting state.

    Parameters
    ----------
    site_parameters : {"gradient", "natural"}
        Who moves them.
    basis : Tensor, shape [*b, M]
        Anything of the shape, dtype and device of the basis.
    batch_shape : torch.Size, optional
        Batch shape of the sites; that of the basis if left out.
    tied : bool
        Whether the sites are on the basis rather than on data rows.
    form : TiedForm
        What q on a basis looks like.

    Returns
    -------
    SiteParameters
        q is the prior; pseudo-targets start at 0 with precision 1.
    """
    own = basis.shape[:-1]
    batch = own if batch_shape is None else torch.Size(batch_shape)
    check_batch_shape(own, batch, "The basis")
    shape = torch.Size([*batch, basis.shape[-1]])
    if site_parameters == "natural":
        return NaturalSites(shape, basis, "basis" if tied else "data")
    if site_parameters == "gradient":
        if not tied or form.diagonal:
            return PseudoTargets(shape, basis, "basis" if tied else "data")
        if form.first_block is not None:
            return BlockMoments(shape, basis, form.first_block, moved=form.moved)
        return WhitenedMoments(shape, basis)
    raise InputError(f"site_parameters is {site_parameters!r}; it must be 'gradient' or 'natural'.")


def check_batch_shape(found: torch.Size, expected: torch.Size, name: str) -> None:
    """Refuse sites whose batch shape does not cover that of what they act on.

    Parameters
    ----------
    found : torch.Size
        Batch shape of the prior or of the basis inputs.
    expected : torch.Size
        Batch shape of the sites.
    name : str
        What has the shape ``found``.

    Raises
    ------
    InputError
        If ``found`` does not broadcast to ``expected``.
    """
    try:
        fits = torch.broadcast_shapes(found, expected) == expected
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError(
            f"{name} has batch shape {tuple(found)} and the sites {tuple(expected)}; pass "
            f"batch_shape=torch.Size({list(found)}) to SiteStrategy."
        )

r"""Many outputs that read few latent functions through a matrix of loadings.

Expectations under a Gaussian over the K latents need the outputs' own latent values
:math:`c_p^\top z + d_p` only, which are Gaussian numbers: every expectation is one of the base
likelihood, in closed form wherever it has one. Only the joint predictive density of all outputs is
an integral over K dimensions; it is computed by a cubature rule about the mode, scaled by the
curvature there, which is exact where the base is Gaussian.

References
----------
Macke, J. H., Buesing, L., Cunningham, J. P., Yu, B. M., Shenoy, K. V. & Sahani, M. (2011). Empirical
models of spiking in neural populations. NeurIPS.
Liu, Q. & Pierce, D. A. (1994). A note on Gauss-Hermite quadrature. Biometrika.
"""

import math

import gpytorch
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.conversion import as_likelihood
from gpvi.likelihoods.slopes import expectation_slopes
from gpvi.linalg.quadrature import QuadratureRule, floored_variance, gauss_hermite

__all__ = ["LinearReadoutLikelihood"]

# Newton's method for the mode: most steps, and the step size below which a row has arrived.
_MAX_NEWTON, _SMALLEST_STEP, _STILL = 50, 1e-3, 1e-10
# The cubature: most nodes in all and along one dimension, and how many numbers are held at once.
_MAX_NODES, _MAX_SIDE, _BLOCK = 1024, 20, 2_000_000


class LinearReadoutLikelihood(Likelihood):
    r"""P outputs that share K latents, each through its own loadings and offset.

    .. math:: p(y_n \mid z_n) = \prod_{p=1}^P p_{\text{base}}(y_{np} \mid c_p^\top z_n + d_p)

    Targets have shape `[*b, N, P]` and moments `[*b, K, N]` (`[*b, N]` with one latent). A NaN entry
    is an output that was not observed; a row is missing when all of its outputs are. Row extras of
    the base, such as `exposure`, hold for all outputs of a row.

    Parameters
    ----------
    base : gpytorch or gpvi likelihood
        Of one output given one latent value; its parameters may have batch shape `[P]`, such as
        `GaussianLikelihood(batch_shape=torch.Size([P]))` for a noise of its own in every output.
    loadings : Tensor
        Starting values of C, `[P, K]`.
    offset : Tensor, optional
        Starting values of d, `[P]`; zero if left out.

    Attributes
    ----------
    loadings, offset : torch.nn.Parameter
        C and d, trained unless `requires_grad` is taken from them.
    base : Likelihood
        The likelihood of one output.

    Raises
    ------
    InputError
        If the shapes do not fit each other, or the base has several latents.

    References
    ----------
    Macke, J. H., Buesing, L., Cunningham, J. P., Yu, B. M., Shenoy, K. V. & Sahani, M. (2011).
    Empirical models of spiking in neural populations. NeurIPS.

    Examples
    --------
    >>> from gpvi.likelihoods import PoissonLikelihood
    >>> loadings = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 2.0]])
    >>> likelihood = LinearReadoutLikelihood(PoissonLikelihood(), loadings)
    >>> y, zero = torch.tensor([[0.0, 1.0, float("nan")]]), torch.zeros(2, 1)
    >>> likelihood.variational_expectations(y, zero, zero).detach()
    tensor([-2.])
    """

    target_dims = 1

    def __init__(
        self, base: gpytorch.likelihoods.Likelihood, loadings: Tensor, offset: Tensor | None = None
    ) -> None:
        super().__init__()
        self.base = as_likelihood(base)
        if self.base.num_latents != 1 or self.base.target_dims:
            raise InputError(
                f"The base of a linear readout explains one number by one latent value, but "
                f"{type(self.base).__name__} has {self.base.num_latents} latents and "
                f"{self.base.target_dims} target dims. Use a likelihood of one output."
            )
        loadings = _floating(loadings, "loadings")
        if loadings.dim() != 2 or 0 in loadings.shape:
            raise InputError(
                f"loadings has shape {tuple(loadings.shape)}; pass one row for each output and one "
                "column for each latent, [P, K]."
            )
        offset = loadings.new_zeros(len(loadings)) if offset is None else offset
        offset = _floating(offset, "offset").to(loadings)
        if offset.shape != loadings.shape[:1]:
            raise InputError(
                f"offset has shape {tuple(offset.shape)} for {len(loadings)} outputs; pass one "
                "number for each, [P]."
            )
        self.num_latents = loadings.shape[1]
        self.is_log_concave = self.base.is_log_concave
        self.row_arguments = self.base.row_arguments | {"weights"}
        # Not a buffer: `.float().double()` would leave float32 rounding in the nodes.
        self._cubature = _product_rule(self.num_latents)
        self.register_parameter("loadings", torch.nn.Parameter(loadings.detach().clone()))
        self.register_parameter("offset", torch.nn.Parameter(offset.detach().clone()))

    @property
    def num_outputs(self) -> int:
        """Number P of outputs."""
        return self.loadings.shape[0]

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Distribution:
        """Return the distribution of all outputs given the latents.

        Parameters
        ----------
        function_samples : Tensor
            Latent values z, `[..., N, K]` (`[..., N]` with one latent).
        **rows : Tensor
            Row extras of the base.

        Returns
        -------
        torch.distributions.Independent
            Batch shape `[..., N]`, event shape `[P]`.
        """
        z = self._latents_last(function_samples)
        extras = self._unweighted(rows, z, z.shape[-2])
        conditional = self.base.forward(self._project(z).mT, **extras)
        return Independent(_transposed(conditional), 1)

    def project(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the outputs' own latent values, for questions about single outputs.

        Parameters
        ----------
        mean, variance : Tensor
            Moments of z, `[*b, K, N]` (`[*b, N]` with one latent).

        Returns
        -------
        mean, variance : Tensor
            `[*b, P, N]`, as the base takes them.

        Raises
        ------
        InputError
            If the moments are not those of K latents.
        """
        if self.num_latents == 1:
            mean, variance = mean.unsqueeze(-2), variance.unsqueeze(-2)
        if mean.dim() < 2 or mean.shape[-2] != self.num_latents:
            raise InputError(
                f"The readout has {self.num_latents} latents, but the mean has shape "
                f"{tuple(mean.shape)}. Pass moments of shape [*b, K, N]."
            )
        C = self.loadings.to(mean)
        return C @ mean + self.offset.to(mean).unsqueeze(-1), C.square() @ variance

    @torch.no_grad()
    def matrix_duals(
        self, y: Tensor, mean: Tensor, covariance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Expected log likelihoods and the Gaussian sites dual to them, for correlated latents.

        .. math:: J_n = C^\top \mathrm{diag}(w_n) C, \qquad j_n = C^\top g_n + J_n m_n

        with :math:`g_{np}` and :math:`-w_{np}/2` the derivatives of the expectation of output p by
        the mean and variance of :math:`c_p^\top z_n + d_p`. Curvatures w that a likelihood which is
        not log-concave makes negative count as zero.

        Parameters
        ----------
        y : Tensor
            Targets `[*b, N, P]`; NaN entries contribute nothing.
        mean : Tensor
            `[*b, N, K]`, latents last, also for one latent.
        covariance : Tensor
            `[*b, N, K, K]`.
        **rows : Tensor
            Row extras of the base, and weights.

        Returns
        -------
        value : Tensor
            Expected log likelihood of every row, `[*b, N]`.
        lam1, lam2 : Tensor
            Sites :math:`\exp(j^\top z - \tfrac12 z^\top J z)`, `[*b, N, K]` and `[*b, N, K, K]`.

        Raises
        ------
        InputError
            For targets of other shapes.
        """
        y = self._outputs(y).to(mean)
        if y.shape[-2] != mean.shape[-2] or mean.shape[-1] != self.num_latents:
            raise InputError(
                f"Targets have shape {tuple(y.shape)} and the mean has {tuple(mean.shape)}; they "
                f"must be [*b, N, P] and [*b, N, {self.num_latents}]."
            )
        C = self.loadings.to(mean)
        centre, spread = self._project(mean).mT, ((covariance @ C.mT).mT * C).sum(-1).mT
        value, slope, curvature = expectation_slopes(self.base, y.mT, centre, spread, **rows)
        slope, w = slope.mT, (-2.0 * curvature.mT).clamp_min(0.0)
        squares = (C.unsqueeze(-1) * C.unsqueeze(-2)).flatten(-2)
        J = (w @ squares).unflatten(-1, (self.num_latents, self.num_latents))
        j = slope @ C + (J @ mean.unsqueeze(-1)).squeeze(-1)
        return value.sum(-2), j, J

    def missing(self, y: Tensor) -> Tensor:
        """Which rows have no output at all.

        Parameters
        ----------
        y : Tensor
            Targets `[*b, N, P]`.

        Returns
        -------
        Tensor of bool
            `[*b, N]`; True where every output is NaN.
        """
        return y.isnan().all(-1)

    def _fill(self, y: Tensor, missing: Tensor) -> Tensor:
        # The base leaves out single entries that are NaN, and so whole rows of them.
        return y

    def _outputs(self, y: Tensor) -> Tensor:
        if y.shape[-1] != self.num_outputs:
            raise InputError(
                f"The readout has {self.num_outputs} outputs, but the targets have shape "
                f"{tuple(y.shape)}. Pass [*b, N, {self.num_outputs}]; NaN marks what was not "
                "observed."
            )
        return y

    def _latents_last(self, function_samples: Tensor) -> Tensor:
        return function_samples.unsqueeze(-1) if self.num_latents == 1 else function_samples

    def _project(self, z: Tensor) -> Tensor:
        """``C z + d``, `[..., N, P]`, from latents `[..., N, K]`."""
        return z @ self.loadings.to(z).mT + self.offset.to(z)

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        values = self._project(self._latents_last(function_samples)).mT
        return self.base.log_prob(values, self._outputs(y).mT, **rows).sum(-2)

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        moments = self.project(mean, variance)
        return self.base.variational_expectations(self._outputs(y).mT, *moments, **rows).sum(-2)

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        centre, spread = self.base.predict_mean_var(*self.project(mean, variance), **rows)
        return centre.mT, spread.mT

    def _predict_quantiles(
        self, levels: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        raise UnsupportedError(
            "A linear readout has several outputs and no quantiles of them together. Use "
            "predict_mean_var, or base.predict_quantiles on the moments from project."
        )

    def _predict_log_density(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        if self.num_latents == 1:
            mean, variance = mean.unsqueeze(-2), variance.unsqueeze(-2)
        y = self._outputs(y)
        deviation = floored_variance(mean, variance).sqrt().mT
        mean = mean.mT
        centre, factor = self._mode(y, mean.detach(), deviation.detach(), rows)
        log_determinant = factor.diagonal(dim1=-1, dim2=-2).log().sum(-1)
        nodes, log_weights = self._cubature.like(mean)
        lead = [1] * (centre.dim() - 1)
        size = max(1, _BLOCK // max(1, centre[..., 0].numel() * self.num_outputs))
        terms = []
        for x, log_weight in zip(nodes.split(size), log_weights.split(size), strict=True):
            x = x.reshape(-1, *lead, self.num_latents)
            e = centre + (factor @ x.unsqueeze(-1)).squeeze(-1)
            balance = 0.5 * (x.square().sum(-1) - e.square().sum(-1)) + log_determinant
            values = self.base.log_prob(self._project(mean + deviation * e).mT, y.mT, **rows)
            terms.append(values.sum(-2) + balance + log_weight.reshape(-1, *lead))
        return torch.cat(terms).logsumexp(0)

    @torch.no_grad()
    def _mode(
        self, y: Tensor, mean: Tensor, deviation: Tensor, rows: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Mode of ``p(y | mean + deviation e) N(e | 0, I)`` in e and a root of the covariance there.

        Newton's method; rows that a step does not improve take half of it.
        """
        C = self.loadings.to(mean)
        shape = torch.broadcast_shapes(y.shape[:-1], mean.shape[:-1])
        e = mean.new_zeros(*shape, self.num_latents)
        values, slope, precision = self._local(y, mean, deviation, e, C, rows)
        length = mean.new_ones(shape)
        for _ in range(_MAX_NEWTON):
            step = torch.linalg.solve(precision, slope)
            trial = e + length.unsqueeze(-1) * step
            new_values, new_slope, new_precision = self._local(y, mean, deviation, trial, C, rows)
            better = new_values >= values
            e = torch.where(better.unsqueeze(-1), trial, e)
            slope = torch.where(better.unsqueeze(-1), new_slope, slope)
            precision = torch.where(better[..., None, None], new_precision, precision)
            gained = torch.where(better, new_values - values, 0.0)
            values = torch.where(better, new_values, values)
            still = (better & (gained <= _STILL * (1 + values.abs()))) | (length < _SMALLEST_STEP)
            length = torch.where(better, (2.0 * length).clamp_max(1.0), 0.5 * length)
            if bool(still.all()):
                break
        # cholesky(precision) = R gives the root R^-T of the covariance.
        root = torch.linalg.cholesky(precision)
        eye = torch.eye(self.num_latents, dtype=mean.dtype, device=mean.device)
        return e, torch.linalg.solve_triangular(root.mT, eye.expand_as(root), upper=True)

    def _local(
        self,
        y: Tensor,
        mean: Tensor,
        deviation: Tensor,
        e: Tensor,
        C: Tensor,
        rows: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log joint density at e `[*b, N, K]`, its gradient and negative Hessian."""
        z = self._project(mean + deviation * e).mT
        value, slope, curvature = expectation_slopes(
            self.base, y.mT, z, torch.zeros_like(z), **rows
        )
        w = (-2.0 * curvature.mT).clamp_min(0.0)
        S = deviation.unsqueeze(-1) * C.mT  # [*b, N, K, P]
        eye = torch.eye(self.num_latents, dtype=e.dtype, device=e.device)
        gradient = (S @ slope.mT.unsqueeze(-1)).squeeze(-1) - e
        return (
            value.sum(-2) - 0.5 * e.square().sum(-1),
            gradient,
            (S * w.unsqueeze(-2)) @ S.mT + eye,
        )

    def _check_targets(self, y: Tensor, observed: Tensor) -> None:
        y = self._outputs(y).mT
        self.base._check_targets(y, ~y.isnan())


def _floating(value: Tensor, name: str) -> Tensor:
    tensor = torch.as_tensor(value)
    tensor = tensor if tensor.is_floating_point() else tensor.double()
    if not bool(tensor.isfinite().all()):
        raise InputError(f"{name} must be finite; got {tensor.detach().tolist()}.")
    return tensor


def _product_rule(num_latents: int) -> QuadratureRule:
    """Nodes `[S, K]` for N(0, I): a product of Gauss-Hermite rules, in many dimensions the rule of
    third degree with two nodes an axis."""
    side = min(_MAX_SIDE, int(_MAX_NODES ** (1.0 / num_latents) + 1e-9))
    if side >= 3:
        rule = gauss_hermite(side)
        axes = [rule.nodes] * num_latents, [rule.log_weights] * num_latents
        nodes, logs = (torch.cartesian_prod(*axis).reshape(-1, num_latents) for axis in axes)
        return QuadratureRule(nodes, logs.sum(-1))
    nodes = math.sqrt(num_latents) * torch.eye(num_latents, dtype=torch.float64)
    log_weights = torch.full((2 * num_latents,), -math.log(2 * num_latents), dtype=torch.float64)
    return QuadratureRule(torch.cat([nodes, -nodes]), log_weights)


def _transposed(distribution: Distribution) -> Distribution:
    """The same family with its last two batch dims exchanged."""
    known = vars(distribution)
    # Families with two parametrisations (probs, logits) keep the one they were built by.
    names = [n for n in distribution.arg_constraints if n in known] or distribution.arg_constraints
    shape = distribution.batch_shape
    try:
        parameters = {name: getattr(distribution, name).expand(shape).mT for name in names}
        return type(distribution)(**parameters, validate_args=False)
    except (AttributeError, TypeError, RuntimeError) as error:
        raise UnsupportedError(
            f"A linear readout cannot rearrange {type(distribution).__name__}; use a base "
            "likelihood whose distribution is described by one parameter per entry."
        ) from error

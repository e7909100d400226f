"""The likelihood interface that every approximation in gpvi talks to.

It answers questions about f_n ~ N(mean, variance): expected log likelihoods, starting values,
predictions of a new y. Missing targets (NaN) and weights are handled here, once for all.
"""

from abc import abstractmethod
from collections.abc import Sequence

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Distribution

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.likelihoods.moments import aligned, drop_leading_ones, is_discrete, latent_moments
from gpvi.likelihoods.predictive import invert_cdf, mixture_cdf, mixture_moments
from gpvi.likelihoods.rows import (
    check_row_values,
    check_target_shape,
    checked_levels,
    checked_rows,
    fill_by_mean,
    where_missing,
)
from gpvi.linalg.quadrature import QuadratureRule, expectation, gauss_hermite, log_expectation_exp

__all__ = ["Likelihood"]

# Recentrings: enough for a likelihood a thousand times narrower than the latent Gaussian.
_NUM_RECENTRINGS = 12


class Likelihood(gpytorch.likelihoods.Likelihood):
    r"""Base class of likelihoods: p(y | f) and its expectations under a Gaussian f.

    The public methods check shapes and names, leave out rows whose target is NaN ("not observed")
    and apply `weights`; the private methods of the same name compute. A new likelihood implements
    `_log_prob` and `forward`, and overrides a private method where it knows a closed form. The
    others are computed by Gauss-Hermite quadrature with nodes kept in float64.

    Row extras are keyword arguments with one entry per row. Every likelihood accepts `weights`
    (non-negative, `[N]`), which multiply a row's log likelihood in `variational_expectations`,
    `expected_log_prob`, `predict_log_density` and `log_marginal`. All other methods describe a
    single observation; they take the same extras, and a weight changes nothing there.

    Parameters
    ----------
    num_nodes : int
        Number of quadrature nodes for expectations without closed form.

    Attributes
    ----------
    num_latents : int
        Number of latent functions L behind one observation. With L > 1, `mean` and `variance` have
        shape `[*b, L, N]`, samples of f `[..., N, L]`.
    row_arguments : frozenset of str
        Names of the row extras that this likelihood accepts.
    is_log_concave : bool
        Whether log p(y | f) is concave in f for every y.
    target_dims : int
        Dimensions of one target: 0 for a number, 1 for a vector of outputs.
    has_exponential_mean : bool
        Whether E[y | f] is proportional to exp(f).

    References
    ----------
    Hensman, J., Matthews, A. and Ghahramani, Z. (2015). Scalable variational Gaussian process
    classification. AISTATS.
    """

    num_latents: int = 1
    row_arguments: frozenset[str] = frozenset({"weights"})
    is_log_concave: bool = False
    target_dims: int = 0
    has_exponential_mean: bool = False

    def __init__(self, num_nodes: int = 20) -> None:
        super().__init__()
        # Not a buffer: `.float().double()` would leave float32 rounding in the nodes.
        self._rule: QuadratureRule = gauss_hermite(num_nodes)

    @abstractmethod
    def forward(self, function_samples: Tensor, **rows: Tensor) -> Distribution:
        """Return the conditional distribution p(y | f), GPyTorch's contract.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]` (`[..., N, L]` with several latents).
        **rows : Tensor
            Row extras.

        Returns
        -------
        torch.distributions.Distribution
            Batch shape `[..., N]`.
        """

    @abstractmethod
    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        """log p(y | f) for observed y and checked rows, by broadcasting."""

    def log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        """Log likelihood of given latent values, element by element, weights not applied.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]` (`[..., N, L]` with several latents).
        y : Tensor
            Targets `[*b, N]`; NaN gives exactly 0.
        **rows : Tensor
            Row extras.

        Returns
        -------
        Tensor
            `[..., N]`.
        """
        num_rows = function_samples.shape[-1 if self.num_latents == 1 else -2]
        y, missing, extras = self.prepare(y, function_samples, num_rows, rows)
        extras.pop("weights", None)
        return where_missing(missing, 0.0, self._log_prob(function_samples, y, **extras))

    def variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        r"""Expected log likelihood of each row, the data term of the ELBO.

        .. math:: w_n\, \mathrm{E}_{N(f_n \mid m_n, v_n)}[\log p(y_n \mid f_n)]

        Parameters
        ----------
        y : Tensor
            Targets `[*b, N]`; a NaN row contributes exactly 0 with gradient 0.
        mean, variance : Tensor
            Moments of f, `[*b, N]` (`[*b, L, N]` with several latents).
        **rows : Tensor
            Row extras.

        Returns
        -------
        Tensor
            `[*b, N]`.
        """
        y, missing, extras = self.prepare(y, mean, mean.shape[-1], rows)
        weights = extras.pop("weights", None)
        value = self._variational_expectations(y, mean, variance, **extras)
        return where_missing(missing, 0.0, value if weights is None else weights * value)

    def expected_log_prob(self, y: Tensor, q_f: MultivariateNormal, **rows: Tensor) -> Tensor:
        """`variational_expectations` under GPyTorch's name, for its `VariationalELBO`.

        Parameters
        ----------
        y : Tensor
            Targets `[*b, N]`.
        q_f : MultivariateNormal
            Distribution of f; the diagonal of its covariance is used as it is, not clamped.
        **rows : Tensor
            Row extras, which GPyTorch's objectives hand on: `mll(output, y, weights=weights)`.

        Returns
        -------
        Tensor
            `[*b, N]`.
        """
        mean, variance = latent_moments(q_f, self.num_latents)
        return self.variational_expectations(y, mean, variance, **rows)

    def log_marginal(self, y: Tensor, q_f: MultivariateNormal, **rows: Tensor) -> Tensor:
        """`predict_log_density` for GPyTorch's `PredictiveLogLikelihood`; a NaN target gives 0.

        Parameters
        ----------
        y : Tensor
            Targets `[*b, N]`.
        q_f : MultivariateNormal
            Distribution of f.
        **rows : Tensor
            Row extras.

        Returns
        -------
        Tensor
            `[*b, N]`.
        """
        mean, variance = latent_moments(q_f, self.num_latents)
        return self._weighted_log_density(0.0, y, mean, variance, rows)

    def initial_latent(self, y: Tensor, **rows: Tensor) -> Tensor | None:
        """Rough latent values from which iterations start well.

        Parameters
        ----------
        y : Tensor
            Targets `[*b, N]`; rows with NaN get the mean of the others.
        **rows : Tensor
            Row extras. Weights count wherever rows are pooled.

        Returns
        -------
        Tensor or None
            `[*b, N]`; None where the likelihood has no good guess.
        """
        y = y if y.is_floating_point() else y.double()
        y, missing, extras = self.prepare(y, y, y.shape[-1 - self.target_dims], rows)
        latent = self._initial_latent(y, ~missing, **extras)
        return None if latent is None else fill_by_mean(latent, ~missing, extras.get("weights"))

    def gaussian_noise(self, y: Tensor, **rows: Tensor) -> Tensor | None:
        """Noise variance, if y given f is Gaussian about f.

        Parameters
        ----------
        y : Tensor
            Targets `[*b, N]`, for shape and dtype.
        **rows : Tensor
            Row extras; weights are not applied (a weight w acts like the variance divided by w).

        Returns
        -------
        Tensor or None
            Broadcasts to the shape of y, differentiable in parameters; None if not Gaussian.
        """
        y = y if y.is_floating_point() else y.double()
        return self._gaussian_noise(y, **self._unweighted(rows, y, y.shape[-1 - self.target_dims]))

    def check_targets(self, y: Tensor, **rows: Tensor) -> None:
        """Raise for impossible targets and row extras; fits call this once, before they start.

        Parameters
        ----------
        y : Tensor
            Targets `[*b, N]`; NaN is allowed.
        **rows : Tensor
            Row extras.

        Raises
        ------
        InputError
            Names the first offending value.
        """
        like, name = y.to(torch.float64), type(self).__name__
        missing = self.missing(like)
        extras = self._extras(rows, like, like.shape[-1 - self.target_dims])
        check_row_values(extras, ~missing, name)
        if bool(like.isinf().any()):
            raise InputError(f"{name} got an infinite target. Use NaN for rows without a target.")
        self._check_targets(like, ~missing)

    def predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of a new observation y.

        Parameters
        ----------
        mean, variance : Tensor
            Moments of f, `[*b, N]` (`[*b, L, N]` with several latents).
        **rows : Tensor
            Row extras of the new rows.

        Returns
        -------
        mean, variance : Tensor
            `[*b, N]`.
        """
        extras = self._unweighted(rows, mean, mean.shape[-1])
        return self._predict_mean_var(mean, variance, **extras)

    def predict_quantiles(
        self, levels: Sequence[float] | Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        """Quantiles of a new observation y; for counts the smallest integer that reaches the level.

        Parameters
        ----------
        levels : sequence of float or Tensor
            Q probabilities strictly between 0 and 1.
        mean, variance : Tensor
            Moments of f, `[*b, N]`.
        **rows : Tensor
            Row extras of the new rows.

        Returns
        -------
        Tensor
            `[Q, *b, N]`, without gradient unless the likelihood has a closed form.

        Raises
        ------
        InputError
            For levels outside (0, 1).
        UnsupportedError
            If the distribution function is not known, or is one of several outputs.
        """
        if self.num_latents > 1 and type(self)._predict_quantiles is Likelihood._predict_quantiles:
            name = type(self).__name__
            raise UnsupportedError(f"{name} has several latents: use predict_mean_var instead.")
        extras = self._unweighted(rows, mean, mean.shape[-1])
        return self._predict_quantiles(checked_levels(levels, mean), mean, variance, **extras)

    def predict_log_density(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        r"""Log predictive density, :math:`w_n \log \mathrm{E}[p(y_n \mid f_n)]`, in log space.

        Parameters
        ----------
        y : Tensor
            Targets `[*b, N]`. NaN gives NaN: a silent 0 would look like a good score.
        mean, variance : Tensor
            Moments of f, `[*b, N]` (`[*b, L, N]` with several latents).
        **rows : Tensor
            Row extras.

        Returns
        -------
        Tensor
            `[*b, N]`.
        """
        return self._weighted_log_density(float("nan"), y, mean, variance, rows)

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        mean, variance, dims = aligned(mean, variance, [y, *rows.values()], self.parameters())
        value = expectation(lambda f: self._log_prob(f, y, **rows), mean, variance, self._rule)
        return drop_leading_ones(value, dims)

    def _expectation_slopes(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """`_variational_expectations` of each row and its derivatives, where there is a short cut."""
        return None

    def _predict_log_density(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        mean, variance, dims = aligned(mean, variance, [y, *rows.values()], self.parameters())
        value = log_expectation_exp(
            lambda f: self._log_prob(f, y, **rows), mean, variance, self._rule, _NUM_RECENTRINGS
        )
        return drop_leading_ones(value, dims)

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        mean, variance, dims = aligned(mean, variance, [mean, *rows.values()], self.parameters())
        total = mixture_moments(lambda f: self.forward(f, **rows), mean, variance, self._rule)
        return drop_leading_ones(total[0], dims), drop_leading_ones(total[1], dims)

    @torch.no_grad()
    def _predict_quantiles(
        self, levels: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        # Bisection compares probabilities that differ by little: float64 whatever the data are in.
        rows = {name: value.double() for name, value in rows.items()}
        conditional = self.forward(mean.double(), **rows)
        shape = torch.broadcast_shapes(conditional.batch_shape, variance.shape)
        moments = mean.double().expand(shape), variance.double().expand(shape)
        quantiles = invert_cdf(
            lambda value: self._predictive_cdf(value, *moments, **rows),
            levels.double().reshape(-1, *[1] * len(shape)),
            *self._predict_mean_var(*moments, **rows),
            discrete=is_discrete(conditional),
        )
        return quantiles.to(mean.dtype)

    def _predictive_cdf(
        self, value: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        """P(Y <= value) of a new y, all `[Q, *b, N]`, in float64."""
        return mixture_cdf(lambda f: self.forward(f, **rows), value, mean, variance)

    def _initial_latent(self, y: Tensor, observed: Tensor, **rows: Tensor) -> Tensor | None:
        return None

    def _gaussian_noise(self, y: Tensor, **rows: Tensor) -> Tensor | None:
        return None

    def _check_targets(self, y: Tensor, observed: Tensor) -> None:
        """Raise InputError for impossible observed targets; here every number is possible."""

    def _fill(self, y: Tensor, missing: Tensor) -> Tensor:
        """Replace missing targets by possible ones, whose terms are computed and thrown away."""
        return torch.where(missing, torch.ones_like(y), y)

    def missing(self, y: Tensor) -> Tensor:
        """Which rows have no target.

        Parameters
        ----------
        y : Tensor
            Targets `[*b, N]`.

        Returns
        -------
        Tensor of bool
            `[*b, N]`; True where y is NaN (in any output).
        """
        return y.isnan().any(-1) if self.target_dims else y.isnan()

    def _extras(self, rows: dict[str, Tensor], like: Tensor, num_rows: int) -> dict[str, Tensor]:
        return checked_rows(rows, self.row_arguments, type(self).__name__, like, num_rows)

    def _unweighted(self, rows: dict[str, Tensor], y: Tensor, num_rows: int) -> dict[str, Tensor]:
        extras = self._extras(rows, y, num_rows)
        return {name: value for name, value in extras.items() if name != "weights"}

    def prepare(
        self, y: Tensor, like: Tensor, num_rows: int, rows: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Check shapes and names, and replace what missing rows hold.

        Parameters
        ----------
        y : Tensor
            Targets `[*b, N]`.
        like : Tensor
            Of the dtype and device to use.
        num_rows : int
            N.
        rows : dict of str to Tensor
            Row extras; a None is left out.

        Returns
        -------
        y, missing : Tensor
            Targets without NaN, and where they were missing.
        rows : dict of str to Tensor
            Checked extras, 1 in missing rows.
        """
        check_target_shape(y, num_rows, self.target_dims, type(self).__name__)
        y, missing = y.to(like), self.missing(y)
        extras = self._extras(rows, like, num_rows)
        # Extras of missing rows may be NaN too, which would poison gradients even where masked.
        extras = {name: torch.where(missing, 1.0, extra) for name, extra in extras.items()}
        return self._fill(y, missing), missing, extras

    def _weighted_log_density(
        self, fill: float, y: Tensor, mean: Tensor, variance: Tensor, rows: dict[str, Tensor]
    ) -> Tensor:
        y, missing, extras = self.prepare(y, mean, mean.shape[-1], rows)
        weights = extras.pop("weights", None)
        value = self._predict_log_density(y, mean, variance, **extras)
        return where_missing(missing, fill, value if weights is None else weights * value)

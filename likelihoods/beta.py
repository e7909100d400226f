"""Proportions strictly between 0 and 1."""

import torch
from torch import Tensor
from torch.distributions import Beta

from gpvi.exceptions import InputError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.parameters import BoundedParameter

__all__ = ["BetaLikelihood"]


class BetaLikelihood(Likelihood):
    r"""Proportions with mean and precision: beta distributed given f.

    .. math:: y_n \mid f_n \sim \mathrm{Beta}(\mu_n \phi, (1 - \mu_n) \phi), \qquad
              \mu = \frac{1}{1 + e^{-f}}, \quad
              \mathrm{Var}[y \mid f] = \frac{\mu (1 - \mu)}{1 + \phi}

    The precision :math:`\phi > 0` is learnt. (GPyTorch's likelihood of this name adds one to both
    parameters of the beta distribution, so that its mean is not the link of f.) Not log-concave.
    Expectations are Gauss-Hermite quadrature. Zeros and ones are refused: they have no density.

    Parameters
    ----------
    precision : float
        Starting value of :math:`\phi`.
    learn_precision : bool
        Whether it is a trained parameter.
    batch_shape : torch.Size
        Shape of a batch of independent precisions, `[*batch_shape, 1]`.
    num_nodes : int
        Number of Gauss-Hermite nodes.

    Attributes
    ----------
    precision : Tensor
        `[*batch_shape, 1]`, above 1e-3. Assign a number to set it.

    References
    ----------
    Ferrari, S. and Cribari-Neto, F. (2004). Beta regression for modelling rates and proportions. Journal
    of Applied Statistics.

    Examples
    --------
    >>> likelihood = BetaLikelihood(precision=3.0)
    >>> mean, variance = likelihood.predict_mean_var(torch.zeros(1), torch.zeros(1))
    >>> mean.detach(), variance.detach()
    (tensor([0.5000]), tensor([0.0625]))
    """

    precision = BoundedParameter(1e-3)

    def __init__(
        self,
        precision: float | Tensor = 10.0,
        learn_precision: bool = True,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        num_nodes: int = 20,
    ) -> None:
        super().__init__(num_nodes)
        type(self).precision.register(self, precision, learn_precision, batch_shape)

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Beta:
        """Return the beta distribution of the proportion given f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        torch.distributions.Beta
            Batch shape `[..., N]`.
        """
        self._extras(rows, function_samples, function_samples.shape[-1])
        phi = self.precision.to(function_samples)
        smallest = torch.finfo(phi.dtype).tiny
        first, second = (phi * torch.sigmoid(sign * function_samples) for sign in (1, -1))
        return Beta(first.clamp_min(smallest), second.clamp_min(smallest))

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        phi = self.precision.to(function_samples)
        value = torch.lgamma(phi)
        for latent, log_y in ((function_samples, y.log()), (-function_samples, torch.log1p(-y))):
            log_shape = phi.log() + torch.nn.functional.logsigmoid(latent)
            shape = log_shape.exp()
            # -log Gamma(a) = log a - log Gamma(1 + a), which holds where a underflows.
            value = value + log_shape - torch.lgamma(1 + shape) + (shape - 1) * log_y
        return value

    def _initial_latent(self, y: Tensor, observed: Tensor, **rows: Tensor) -> Tensor:
        # Drawn towards one half, so that values next to 0 and 1 do not lead.
        return (0.025 + 0.95 * y).logit()

    def _check_targets(self, y: Tensor, observed: Tensor) -> None:
        bad = y[observed & ~((y > 0) & (y < 1))]
        if len(bad):
            raise InputError(
                f"{type(self).__name__} needs targets strictly between 0 and 1, got {bad[0].item()}. "
                "Shrink them towards 1/2 (such as (y (N - 1) + 1/2) / N), or model counts by a "
                "BinomialLikelihood."
            )

    def _fill(self, y: Tensor, missing: Tensor) -> Tensor:
        return torch.where(missing, torch.full_like(y, 0.5), y)

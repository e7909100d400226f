"""Classes by the largest latent function, with labels that may be wrong."""

import torch
from torch import Tensor
from torch.distributions import Categorical

from gpvi.exceptions import InputError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.parameters import BoundedParameter
from gpvi.likelihoods.rows import refuse_other_classes
from gpvi.linalg.quadrature import floored_variance, uniform_rule

__all__ = ["RobustMaxLikelihood"]


class RobustMaxLikelihood(Likelihood):
    r"""The class is that of the largest latent function, unless the label is wrong.

    .. math:: P(y = c \mid f) = \begin{cases} 1 - \epsilon & \text{if } f_c = \max_j f_j \\
              \epsilon / (C - 1) & \text{otherwise} \end{cases}

    A label far on the wrong side costs :math:`\log \epsilon` and no more, so that wrong labels do not pull
    the functions. Not log-concave: negative precisions are held at zero in natural-gradient steps. All
    expectations follow from the probability that a latent is the largest, a one-dimensional integral,

    .. math:: \int N(x \mid m_c, v_c) \prod_{j \ne c} \Phi\left(\frac{x - m_j}{\sqrt{v_j}}\right) dx,

    which a uniform rule computes in log space.

    Parameters
    ----------
    num_classes : int
        C, at least 2, also the number of latents.
    label_noise : float
        Starting value of :math:`\epsilon`, strictly between 0 and 1/2.
    learn_label_noise : bool
        Whether it is a trained parameter.

    Attributes
    ----------
    label_noise : Tensor
        `[1]`. Assign a number to set it.

    Raises
    ------
    InputError
        For fewer than two classes.

    References
    ----------
    Hernández-Lobato, D., Hernández-Lobato, J. M. and Dupont, P. (2011). Robust multi-class Gaussian
    process classification. NeurIPS.

    Examples
    --------
    >>> likelihood = RobustMaxLikelihood(3, label_noise=0.1)
    >>> f = torch.tensor([[2.0, 0.0, 1.0]])
    >>> likelihood(f).probs.detach()
    tensor([[0.9000, 0.0500, 0.0500]])
    """

    label_noise = BoundedParameter(0.0, 0.5)

    def __init__(
        self,
        num_classes: int,
        label_noise: float | Tensor = 0.01,
        learn_label_noise: bool = True,
    ) -> None:
        super().__init__()
        if num_classes != int(num_classes) or num_classes < 2:
            raise InputError(
                f"num_classes must be a whole number of at least 2, got {num_classes!r}. Count the "
                "classes."
            )
        self.num_latents = int(num_classes)
        self._largest_rule = uniform_rule()
        type(self).label_noise.register(self, label_noise, learn_label_noise)

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Categorical:
        """Return the distribution of the label given all latents.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N, C]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        torch.distributions.Categorical
            Batch shape `[..., N]`, over C classes.
        """
        self._extras(rows, function_samples, function_samples.shape[-2])
        right, wrong = self._log_shares(function_samples)
        largest = self._is(function_samples.argmax(-1))
        return Categorical(logits=torch.where(largest, right, wrong))

    def _is(self, label: Tensor) -> Tensor:
        """One-hot coded labels, `[..., N, C]`."""
        return label.unsqueeze(-1) == torch.arange(self.num_latents, device=label.device)

    def _log_shares(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities of the label of the largest latent and of another."""
        noise = self.label_noise.to(like)
        return torch.log1p(-noise), (noise / (self.num_latents - 1)).log()

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        right, wrong = self._log_shares(function_samples)
        return torch.where(function_samples.argmax(-1) == y, right, wrong)

    def _log_largest(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Log probability that the latent of the label is the largest, `[*b, N]`."""
        if mean.dim() < 2 or mean.shape[-2] != self.num_latents:
            raise InputError(
                f"{type(self).__name__} has {self.num_latents} latents, but the mean has shape "
                f"{tuple(mean.shape)}. Pass moments of shape [*b, C, N]."
            )
        deviation = floored_variance(mean, variance).sqrt().mT
        mean, own = mean.mT, self._is(y)
        centre, width = (torch.where(own, part, 0.0).sum(-1) for part in (mean, deviation))
        nodes, log_weights = self._largest_rule.like(mean)
        lead = (-1, *[1] * centre.dim())
        x = centre + width * nodes.reshape(lead)
        # The own latent is not compared with itself.
        z = torch.where(own, torch.zeros_like(mean), (x.unsqueeze(-1) - mean) / deviation)
        below = torch.where(own, torch.zeros_like(z), torch.special.log_ndtr(z)).sum(-1)
        return (log_weights.reshape(lead) + below).logsumexp(0).clamp_max(0.0)

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        right, wrong = self._log_shares(mean)
        return wrong + self._log_largest(y, mean, variance).exp() * (right - wrong)

    def _predict_log_density(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        right, wrong = self._log_shares(mean)
        largest = self._log_largest(y, mean, variance)
        return (wrong.exp() + largest.exp() * (right.exp() - wrong.exp())).log()

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(mean[..., 0, :])
        logs = [
            self._predict_log_density(c * ones, mean, variance) for c in range(self.num_latents)
        ]
        probabilities = torch.stack(logs, -1).softmax(-1)
        return probabilities, probabilities * (1 - probabilities)

    def _check_targets(self, y: Tensor, observed: Tensor) -> None:
        refuse_other_classes(y[observed], self.num_latents, type(self).__name__)

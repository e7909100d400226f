"""Ordered classes: grades, ratings, stages."""

import math
from collections.abc import Sequence

import torch
from gpytorch.constraints import GreaterThan
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.distributions import OrderedCategorical
from gpvi.likelihoods.rows import refuse_other_classes

__all__ = ["OrdinalLikelihood"]

_SMALLEST_GAP = 1e-4


class OrdinalLikelihood(Likelihood):
    r"""Ordered classes 0, ..., C - 1 with learnt cut points (cumulative probit).

    .. math:: P(y = k \mid f) = \Phi(b_{k+1} - f) - \Phi(b_k - f), \qquad
              -\infty = b_0 < b_1 < \dots < b_{C-1} < b_C = \infty

    Labels say between which cut points :math:`f + \epsilon` fell, :math:`\epsilon \sim N(0, 1)`; the
    amplitude of f sets how sharp they are. The first cut point and the gaps between them (at least 1e-4)
    are trained. A shift of all cut points and of the prior mean says nothing: with a constant mean one of
    them may be held. Log-concave. Differences of distribution functions are formed in log space, in
    whichever tail keeps their digits; expectations are Gauss-Hermite quadrature. Mean, variance and
    quantiles of y are those of the number of the class.

    Parameters
    ----------
    num_classes : int
        C, at least 3; two classes have a `BernoulliLikelihood`.
    cut_points : sequence of float, optional
        Starting values, C - 1 ascending numbers; those of equally frequent classes under a prior of unit
        variance if left out.
    learn_cut_points : bool
        Whether they are trained.
    num_nodes : int
        Number of Gauss-Hermite nodes.

    Attributes
    ----------
    cut_points : Tensor
        `[C - 1]`, ascending. Assign numbers to set them.
    first_cut, gaps : Tensor
        Of which they are made, `[1]` and `[C - 2]`.

    Raises
    ------
    InputError
        For fewer than three classes, and cut points that do not ascend.

    References
    ----------
    Chu, W. and Ghahramani, Z. (2005). Gaussian processes for ordinal regression. JMLR.

    Examples
    --------
    >>> likelihood = OrdinalLikelihood(3, cut_points=[-1.0, 1.0])
    >>> likelihood(torch.zeros(1)).probs.detach()
    tensor([[0.1587, 0.6827, 0.1587]])
    """

    is_log_concave = True

    def __init__(
        self,
        num_classes: int,
        cut_points: Sequence[float] | Tensor | None = None,
        learn_cut_points: bool = True,
        num_nodes: int = 20,
    ) -> None:
        super().__init__(num_nodes)
        if num_classes != int(num_classes) or num_classes < 3:
            raise InputError(
                f"num_classes must be a whole number of at least 3, got {num_classes!r}. Use a "
                "BernoulliLikelihood for two classes."
            )
        self.num_classes = int(num_classes)
        if cut_points is None:
            shares = torch.arange(1, self.num_classes, dtype=torch.float64) / self.num_classes
            cut_points = math.sqrt(2.0) * torch.special.ndtri(shares)
        for name, size in (("first_cut", 1), ("gaps", self.num_classes - 2)):
            raw = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64), learn_cut_points)
            self.register_parameter(f"raw_{name}", raw)
        self.register_constraint("raw_gaps", GreaterThan(_SMALLEST_GAP).double())
        self.cut_points = cut_points

    @property
    def first_cut(self) -> Tensor:
        """The lowest cut point, `[1]`."""
        return self.raw_first_cut

    @first_cut.setter
    def first_cut(self, value: float | Tensor) -> None:
        self.cut_points = self._like_cut(value).expand(1) + self._steps(self.gaps.detach())

    @property
    def gaps(self) -> Tensor:
        """Distances between neighbouring cut points, `[C - 2]`."""
        return self.raw_gaps_constraint.transform(self.raw_gaps)

    @gaps.setter
    def gaps(self, value: float | Tensor) -> None:
        gaps = self._like_cut(value).expand(self.num_classes - 2)
        self.cut_points = self.first_cut.detach() + self._steps(gaps)

    @property
    def cut_points(self) -> Tensor:
        """Ascending cut points, `[C - 1]`."""
        return self.first_cut + self._steps(self.gaps)

    @cut_points.setter
    def cut_points(self, value: Sequence[float] | Tensor) -> None:
        points = self._like_cut(value)
        gaps = points.diff() if points.dim() == 1 else points
        right_size = points.shape == (self.num_classes - 1,)
        if not (right_size and bool(points.isfinite().all() and (gaps > _SMALLEST_GAP).all())):
            raise InputError(
                f"cut_points must be {self.num_classes - 1} finite numbers that ascend by more than "
                f"{_SMALLEST_GAP}, got {points.tolist()}. Pass one between every two classes."
            )
        raw_gaps = self.raw_gaps_constraint.inverse_transform(gaps)
        self.initialize(raw_first_cut=points[:1], raw_gaps=raw_gaps)

    def _like_cut(self, value: float | Sequence[float] | Tensor) -> Tensor:
        raw = self.raw_first_cut
        return torch.as_tensor(value, dtype=raw.dtype, device=raw.device).detach()

    @staticmethod
    def _steps(gaps: Tensor) -> Tensor:
        return torch.cat([gaps.new_zeros(1), gaps.cumsum(-1)])

    def forward(self, function_samples: Tensor, **rows: Tensor) -> OrderedCategorical:
        """Return the distribution of the class given f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        OrderedCategorical
            Batch shape `[..., N]`, over C classes.
        """
        self._extras(rows, function_samples, function_samples.shape[-1])
        classes = torch.arange(self.num_classes, device=function_samples.device)
        return OrderedCategorical(logits=self._log_prob(function_samples.unsqueeze(-1), classes))

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        cuts = self.cut_points.to(function_samples)
        label = y.long()
        lower = cuts[(label - 1).clamp_min(0)] - function_samples
        upper = cuts[label.clamp_max(self.num_classes - 2)] - function_samples
        first, last = label == 0, label == self.num_classes - 1
        # An end class has one bound: the other, which is its neighbour's, would be equal to it.
        safe_upper = torch.where(first | last, lower + 1, upper)
        inside = _log_between(lower, safe_upper)
        value = torch.where(last, torch.special.log_ndtr(-lower), inside)
        return torch.where(first, torch.special.log_ndtr(upper), value)

    def _initial_latent(self, y: Tensor, observed: Tensor, **rows: Tensor) -> Tensor:
        cuts = self.cut_points.detach().to(y)
        ends = cuts[:1] - 0.5, cuts[-1:] + 0.5
        return torch.cat([ends[0], 0.5 * (cuts[1:] + cuts[:-1]), ends[1]])[y.long()]

    def _check_targets(self, y: Tensor, observed: Tensor) -> None:
        refuse_other_classes(y[observed], self.num_classes, type(self).__name__)


def _log_between(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)) for lower < upper, without cancellation in either tail."""
    # Beyond the middle, the same difference between the reflected points.
    flip = lower + upper > 0
    low, high = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_high = torch.special.log_ndtr(high)
    ratio = torch.special.log_ndtr(low) - log_high
    return log_high + (-torch.expm1(ratio)).log()

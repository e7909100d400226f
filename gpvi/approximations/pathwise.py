r"""Samples of a posterior that are functions.

By Matheron's rule a draw of the prior becomes one of the posterior by an update that is a kernel
expansion over the basis,

.. math:: f(x) = m(x) + g(x) + k(x, Z) w, \qquad g(x) = \psi(x)^\top \theta, \quad
          \theta \sim N(0, I),

with random features :math:`\psi` of the kernel for the draw of the prior. The draw is then a
function: once made, it can be evaluated anywhere, any number of times, at a cost linear in the
number of inputs, and differentiated. Far from the data its law is that of the features, which
agrees with the prior up to an error of order :math:`F^{-1/2}`; near the data the update corrects
most of it.

References
----------
Wilson, J. T., Borovitskiy, V., Terenin, A., Mostowsky, P. & Deisenroth, M. P. (2020). Efficiently
sampling functions from Gaussian process posteriors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpvi.approximations._random import align_samples, standard_normal
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.posterior import Posterior
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import RandomFeatures, draw_features
from gpvi.linalg import mat_vec

__all__ = ["Paths", "sample_paths"]

# Numbers in the features of one chunk of rows: they, and not the values, fill the memory.
_CHUNK = 2**23


@dataclass(frozen=True, eq=False)
class Paths:
    """Sampled functions; made by :func:`sample_paths`.

    Parameters
    ----------
    gp : GaussianProcessLike
        Snapshot of the process, off the graph.
    features : RandomFeatures
        Features of the prior.
    feature_weights : Tensor, shape [S, *b, 2F]
        Their weights in every function.
    inputs : Tensor, shape [*g, M, D]
        Inputs of the basis.
    weights : Tensor, shape [S, *b, M]
        Weights of the update.
    """

    gp: GaussianProcessLike
    features: RandomFeatures
    feature_weights: Tensor
    inputs: Tensor
    weights: Tensor

    @property
    def num_paths(self) -> int:
        """Number S of functions."""
        return self.weights.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate every function.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Inputs; the same values give the same results, whatever other rows there are (up to
            rounding).

        Returns
        -------
        Tensor, shape [S, *b, N]
            Values, differentiable in ``x``.

        Raises
        ------
        InputError
            If ``x`` does not fit the inputs of the posterior.
        """
        self._check(x)
        size = 2 * self.features.num_features + self.inputs.shape[-2]
        batch = torch.broadcast_shapes(x.shape[:-2], self.weights.shape[1:-1]).numel()
        rows = max(_CHUNK // (size * max(batch, 1)), 1)
        return torch.cat([self._values(chunk) for chunk in x.split(rows, dim=-2)], -1)

    def _values(self, x: Tensor) -> Tensor:
        return (
            self.gp.mean(x)
            + _expand(self.features(x), self.feature_weights)
            + _expand(self.gp.covariance(x, self.inputs), self.weights)
        )

    def _check(self, x: Tensor) -> None:
        if x.dim() < 2 or x.shape[-1] != self.inputs.shape[-1]:
            raise InputError(
                f"x has shape {tuple(x.shape)}; pass inputs of shape [N, {self.inputs.shape[-1]}] "
                "(x.unsqueeze(-1) for one input column)."
            )
        if x.dtype != self.inputs.dtype or x.device != self.inputs.device:
            raise InputError(
                f"x is {x.dtype} on {x.device} and the paths are {self.inputs.dtype} on "
                f"{self.inputs.device}; convert x first."
            )
        batch = self.weights.shape[1:-1]
        try:
            torch.broadcast_shapes(x.shape[:-2], batch)
        except RuntimeError:
            raise InputError(
                f"x has batch shape {tuple(x.shape[:-2])}, which does not broadcast with that of "
                f"the paths, {tuple(batch)}."
            ) from None


def sample_paths(
    posterior: Posterior,
    num_paths: int,
    *,
    num_features: int = 2000,
    generator: torch.Generator | None = None,
) -> Paths:
    r"""Draw functions from a posterior, for use at any inputs.

    .. math:: f(x) = m(x) + \psi(x)^\top \theta + k(x, Z) w

    Unlike ``posterior.rsample(x=x)``, which draws values at fixed inputs exactly at a cost of
    :math:`O(N^3)`, evaluating paths at N inputs costs :math:`O(N (F + M))` each: the way to plot,
    to optimise (Thompson sampling) or to integrate sampled functions. Functions of one call share
    their features.

    Parameters
    ----------
    posterior : Posterior
        Of :class:`Exact` or :class:`InducingPoints`, also compacted.
    num_paths : int
        Number S of functions.
    num_features : int
        Number F of random features of the prior, for every random term of the kernel.
    generator : torch.Generator, optional
        Source of randomness; a fresh one seeded by torch if left out.

    Returns
    -------
    Paths
        A function of inputs [*g, N, D] with values [S, *b, N]; off the graph of hyperparameters.

    Raises
    ------
    InputError
        For impossible numbers of paths or features.
    UnsupportedError
        For kernels without random features and posteriors without functions.

    References
    ----------
    Wilson, J. T., Borovitskiy, V., Terenin, A., Mostowsky, P. & Deisenroth, M. P. (2020).
    Efficiently sampling functions from Gaussian process posteriors.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.approximations import Exact, GaussianProcess, Sites
    >>> x = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
    >>> prior = Exact().prior(GaussianProcess(gpytorch.kernels.RBFKernel().double()), x)
    >>> posterior = prior.condition(Sites(100 * x[:, 0], torch.full((5,), 100.0).double()))
    >>> paths = sample_paths(posterior, 3, generator=torch.Generator().manual_seed(0))
    >>> paths(torch.rand(7, 1, dtype=torch.float64)).shape
    torch.Size([3, 7])
    """
    if isinstance(num_paths, bool) or not isinstance(num_paths, int) or num_paths < 1:
        raise InputError(f"num_paths is {num_paths!r}; it must be an integer of at least 1.")
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    with torch.no_grad():
        posterior = posterior.detach()
        prior = posterior.prior
        kernel = getattr(prior.gp, "kernel", None)
        if kernel is None:
            raise UnsupportedError(
                f"{type(prior.gp).__name__} has no kernel attribute whose features could be drawn; "
                "draw values at fixed inputs with posterior.rsample(x=x)."
            )
        features = draw_features(kernel, prior.x.shape[-1], num_features, generator)
        batch = torch.broadcast_shapes(prior.mean.shape[:-1], posterior.sites.lam1.shape[:-1])
        shape = (num_paths, *batch, 2 * features.num_features)
        feature_weights = standard_normal(shape, prior.mean, generator)
        inputs, weights = posterior.path_weights(
            lambda z: _expand(features(z), feature_weights), generator
        )
    return Paths(prior.gp, features, feature_weights, inputs, weights)


def _expand(basis: Tensor, weights: Tensor) -> Tensor:
    """Sums [S, *b, N] of basis functions [*b, N, K] with weights [S, *b, K]."""
    return mat_vec(basis, align_samples(weights, 1, basis.shape[:-2]))

r"""Coresets: the data as M weighted pseudo-observations, all of them learned.

.. math:: q(f) \propto p(f) \prod_c N(y_c \mid f(z_c), 1/w_c)

The posterior is that of an exact Gaussian process on the coreset, so that it can be read (which points,
what targets, how many observations each stands for), handed on as a data set, and predicted from without
factorising Kzz. It has O(M) parameters; the mean is as free as that of inducing points. With the same inputs
and hyperparameters the bound is never above theirs. What the diagonal costs is below 5 nats where both are
learned (20 to 300 points on airfoil and on 3,000 rows of elevators), more where given hyperparameters fit
badly: 7 to 8 nats on elevators with 100 points. Weights move by natural gradients. Any likelihood is taken
through Gaussian sites. Cost :math:`O(NM^2)`.

References
----------
Titsias, M. (2009). Variational learning of inducing variables in sparse Gaussian processes.
Huggins, J., Campbell, T. & Broderick, T. (2016). Coresets for scalable Bayesian logistic regression.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gpvi.approximations._checks import check_count
from gpvi.approximations.base import Approximation
from gpvi.approximations.coreset_prior import CoresetPrior
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.inducing import InducingPoints
from gpvi.approximations.plan import Plan
from gpvi.approximations.sites import Sites
from gpvi.exceptions import InputError
from gpvi.linalg import default_jitter

__all__ = ["Coreset"]


class Coreset(Approximation):
    """Approximate a Gaussian process by its posterior on weighted pseudo-observations.

    Parameters
    ----------
    num_points : int, optional
        How many inputs :meth:`initialize` chooses (fewer if the data hold fewer distinct rows). Not
        needed with ``points``.
    points : Tensor, shape [*b, M, D], optional
        Inputs to start from; batch dims give every latent its own.
    selection : {"kmeans++", "greedy", "random"}
        How :meth:`initialize` chooses: k-means++ seeding, greedy conditional variance, random rows.
    learn : bool
        Whether the inputs are trained.
    jitter : float, optional
        Relative to the mean diagonal of Kzz, for what needs its factor; default 1e-8 in float64, 1e-6 in
        float32. Predictions, and divergences of pseudo-observations that are given, have none.

    Raises
    ------
    InputError
        For impossible options.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.approximations import GaussianProcess, Sites
    >>> x = torch.linspace(0, 6, 60, dtype=torch.float64).unsqueeze(-1)
    >>> gp = GaussianProcess(gpytorch.kernels.RBFKernel().double())
    >>> sites = Sites(10 * x[:, 0].sin(), torch.full((60,), 10.0).double())
    >>> posterior = Coreset(points=x[::12]).prior(gp, x).condition(sites)
    >>> (posterior.coreset.observations(noise=0.1) > 5).all().item()
    True
    """

    whole_data = False
    finite_basis = True

    def __init__(
        self,
        num_points: int | None = None,
        points: Tensor | None = None,
        *,
        selection: str = "kmeans++",
        learn: bool = True,
        jitter: float | None = None,
    ) -> None:
        super().__init__()
        if (num_points is None) == (points is None):
            given = "neither" if num_points is None else f"both (num_points={num_points!r})"
            raise InputError(f"Pass exactly one of num_points and points, not {given}.")
        if num_points is not None:
            check_count("num_points", num_points)
        self.inducing = InducingPoints(
            num_points, points, selection=selection, learn=learn, jitter=jitter
        )
        self.num_points = num_points
        self.jitter = jitter

    @property
    def points(self) -> torch.nn.Parameter | None:
        """The inputs, shape [*b, M, D]; None if they have not been chosen."""
        return self.inducing.inducing_points

    @property
    def inducing_points(self) -> torch.nn.Parameter | None:
        """The inputs, under the name that GPyTorch uses."""
        return self.points

    def initialize(
        self, gp: GaussianProcessLike, x: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Choose inputs among the rows of ``x``; does nothing if they are there already.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process with its initial hyperparameters (used by "greedy").
        x : Tensor, shape [N, D]
            Data inputs (leading dims are flattened into rows).
        generator : torch.Generator, optional
            Source of randomness.
        """
        self.inducing.initialize(gp, x, generator)

    def map_inputs(self, transform: Callable[[Tensor], Tensor]) -> None:
        """Move the inputs to other units.

        Parameters
        ----------
        transform : callable
            Maps inputs, shape [*b, M, D], to the same shape.
        """
        self.inducing.map_inputs(transform)

    def reset(self) -> None:
        """Forget the inputs that :meth:`initialize` chose."""
        self.inducing.reset()

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
    ) -> Tensor:
        """Gaussian-likelihood bound at the best pseudo-observations, which its gradient holds.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process.
        x : Tensor, shape [N, D]
            Data inputs.
        y : Tensor, shape [N]
            Targets, all observed.
        noise : Tensor, scalar or shape [N]
            Noise variances.
        tighter : bool
            Whether to use the tightened bound of Titsias (2025).
        copies : Tensor, shape [N], optional
            How many rows with independent residuals each row stands for in the tightened bound.
        plan : Plan, optional
            No difference here.
        terms : None
            There are none.

        Returns
        -------
        Tensor, shape [*b]
            Total nats.
        """
        prior = self.prior(gp, x)
        assert isinstance(prior, CoresetPrior)
        noise = noise.expand_as(y)
        precision = noise.reciprocal()
        sites = Sites(precision * y, precision)
        with torch.no_grad():
            pseudo = prior._condition(sites.detach()).pseudo
        ratio = precision * prior.residual
        if tighter:
            many = torch.ones_like(y) if copies is None else copies
            ratio = many * (ratio / many).log1p()
        rows = (2.0 * math.pi * noise).log() + precision * y.square() + ratio
        return prior.hold(sites, pseudo).log_partition - 0.5 * rows.sum(-1)

    def _prior(self, gp: GaussianProcessLike, x: Tensor, plan: Plan) -> CoresetPrior:
        # The snapshot keeps the prior as it is when the optimiser moves the inputs in place.
        jitter = default_jitter(x.dtype) if self.jitter is None else self.jitter
        return CoresetPrior.build(gp, x, self.inducing.checked_points(x).clone(), jitter)

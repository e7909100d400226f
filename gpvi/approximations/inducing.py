r"""Inducing points: the prior through M function values (Titsias 2009; Hensman et al. 2013).

The equations are in :mod:`gpvi.approximations.inducing_prior`; here are the options, the inducing
inputs and how they are chosen. With a Gaussian likelihood one conditioning gives the collapsed
bound of SGPR. Cost :math:`O(NM^2)`.

References
----------
Titsias, M. (2009). Variational learning of inducing variables in sparse Gaussian processes.
Hensman, J., Fusi, N. & Lawrence, N. D. (2013). Gaussian processes for big data.
"""

from collections.abc import Callable

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpvi.approximations._checks import check_count
from gpvi.approximations.base import Approximation
from gpvi.approximations.collapsed import collapsed_objective
from gpvi.approximations.features import check_jitter
from gpvi.approximations.gaussian_process import GaussianProcess, GaussianProcessLike
from gpvi.approximations.inducing_prior import InducingPrior
from gpvi.approximations.plan import Plan
from gpvi.approximations.selection import SELECTION_METHODS, select_inducing_points
from gpvi.exceptions import InputError
from gpvi.linalg import default_jitter

__all__ = ["InducingPoints"]


class InducingPoints(Approximation):
    """Approximate a Gaussian process through its values at inducing inputs.

    Parameters
    ----------
    num_inducing : int, optional
        How many inducing inputs :meth:`initialize` chooses (fewer if the data hold fewer distinct
        rows). Not needed with ``inducing_points``.
    inducing_points : Tensor, shape [*b, M, D], optional
        Inducing inputs to start from; batch dims give every latent its own.
    selection : {"greedy", "kmeans++", "random"}
        How :meth:`initialize` chooses: greedy conditional variance, k-means++ seeding, random rows.
    learn : bool
        Whether the inducing inputs are trained.
    jitter : float, optional
        Relative to the mean diagonal of Kzz; default 1e-8 in float64, 1e-6 in float32.

    Raises
    ------
    InputError
        For impossible options.

    Examples
    --------
    >>> import torch
    >>> approximation = InducingPoints(inducing_points=torch.linspace(0, 1, 5).unsqueeze(-1))
    >>> approximation.inducing_points.shape
    torch.Size([5, 1])
    """

    whole_data = False
    finite_basis = True
    inducing_points: torch.nn.Parameter | None

    def __init__(
        self,
        num_inducing: int | None = None,
        inducing_points: Tensor | None = None,
        *,
        selection: str = "greedy",
        learn: bool = True,
        jitter: float | None = None,
    ) -> None:
        super().__init__()
        if (num_inducing is None) == (inducing_points is None):
            given = "neither" if num_inducing is None else f"both (num_inducing={num_inducing!r})"
            raise InputError(f"Pass exactly one of num_inducing and inducing_points, not {given}.")
        if num_inducing is not None:
            check_count("num_inducing", num_inducing)
        if selection not in SELECTION_METHODS:
            raise InputError(
                f"selection is {selection!r}; it must be one of {', '.join(SELECTION_METHODS)}."
            )
        check_jitter(jitter)
        self.num_inducing = num_inducing
        self.selection = selection
        self.learn = learn
        self.jitter = jitter
        self.register_parameter("inducing_points", None)
        if inducing_points is not None:
            self._set(inducing_points)

    @property
    def basis_shape(self) -> torch.Size | None:
        """Shape [*b, M] of the inducing values; None if the inputs have not been chosen."""
        return None if self.inducing_points is None else self.inducing_points.shape[:-1]

    def Kuu(self, kernel: Kernel) -> Tensor:
        """Covariance of the inducing values.

        Parameters
        ----------
        kernel : gpytorch.kernels.Kernel
            Of the process.

        Returns
        -------
        Tensor, shape [*b, M, M]
            Without jitter.
        """
        return GaussianProcess(kernel).covariance(self._chosen())

    def Kuf(self, kernel: Kernel, x: Tensor) -> Tensor:
        """Covariance of the inducing values with values of the function.

        Parameters
        ----------
        kernel : gpytorch.kernels.Kernel
            Of the process.
        x : Tensor, shape [*g, N, D]
            Inputs.

        Returns
        -------
        Tensor, shape [*b, M, N]
            On the graph.
        """
        return GaussianProcess(kernel).covariance(self.checked_points(x), x)

    def initialize(
        self, gp: GaussianProcessLike, x: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Choose inducing inputs among the rows of ``x``; does nothing if they are there already.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process with its initial hyperparameters (used by "greedy").
        x : Tensor, shape [N, D]
            Data inputs (leading dims are flattened into rows).
        generator : torch.Generator, optional
            Source of randomness.
        """
        if self.inducing_points is not None or self.num_inducing is None:
            return
        rows = x.detach().reshape(-1, x.shape[-1])
        self._set(select_inducing_points(gp, rows, self.num_inducing, self.selection, generator))

    def map_inputs(self, transform: Callable[[Tensor], Tensor]) -> None:
        """Move the inducing inputs to other units.

        Parameters
        ----------
        transform : callable
            Maps inducing inputs, shape [*b, M, D], to the same shape.
        """
        if self.inducing_points is not None:
            self._set(transform(self.inducing_points.detach()))

    def reset(self) -> None:
        """Forget the inducing inputs that :meth:`initialize` chose."""
        if self.num_inducing is None:
            raise InputError("These inducing points were given, not chosen; there is no way back.")
        self.inducing_points = None

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
        """Gaussian-likelihood bound in one operation with an analytic adjoint.

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
        z, jitter = self.checked_points(x), self._jitter(x)
        return collapsed_objective(
            gp, x, z, y, noise, jitter=jitter, tighter=tighter, copies=copies
        )

    def _prior(self, gp: GaussianProcessLike, x: Tensor, plan: Plan) -> "InducingPrior":
        # The snapshot keeps the prior as it is when the optimiser moves the inducing inputs in
        # place.
        return InducingPrior.build(gp, x, self.checked_points(x).clone(), self._jitter(x))

    def _chosen(self) -> Tensor:
        if self.inducing_points is None:
            raise InputError(
                "The inducing points have not been chosen; call initialize(gp, x) first."
            )
        return self.inducing_points

    def checked_points(self, x: Tensor) -> Tensor:
        """The inducing inputs, if they go with some inputs.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Inputs.

        Returns
        -------
        Tensor, shape [*b, M, D]
            On the graph.

        Raises
        ------
        InputError
            If they have not been chosen, or have other columns, dtype or device.
        """
        z = self._chosen()
        if z.shape[-1] != x.shape[-1]:
            raise InputError(f"Inducing points have {z.shape[-1]} columns and x has {x.shape[-1]}.")
        if z.dtype != x.dtype or z.device != x.device:
            raise InputError(
                f"Inducing points are {z.dtype} on {z.device} and x is {x.dtype} on {x.device}; "
                "convert one of them (approximation.to(x))."
            )
        return z

    def _jitter(self, x: Tensor) -> float:
        return default_jitter(x.dtype) if self.jitter is None else self.jitter

    def _set(self, points: Tensor) -> None:
        if not isinstance(points, Tensor):
            raise InputError(
                f"inducing_points is a {type(points).__name__}; pass a tensor of shape [M, D]."
            )
        if points.dim() < 2 or not points.shape[-2] or not points.dtype.is_floating_point:
            raise InputError(
                f"inducing_points has shape {tuple(points.shape)} and dtype {points.dtype}; "
                "pass floating-point values, shape [M, D]."
            )
        bad = int((~torch.isfinite(points)).sum())
        if bad:
            raise InputError(
                f"inducing_points holds {bad} values that are NaN or infinite; pass finite ones."
            )
        self.inducing_points = torch.nn.Parameter(points.detach().clone(), requires_grad=self.learn)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        saved = state_dict.get(prefix + "inducing_points")
        if saved is not None and (
            self.inducing_points is None or self.inducing_points.shape != saved.shape
        ):
            self._set(saved)
        super()._load_from_state_dict(state_dict, prefix, *args)

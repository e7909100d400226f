r"""Units of a neural network as inducing variables of a process on the sphere.

For a kernel :math:`s^2 (r r')^p \kappa(\xi^\top \xi')` with eigenvalues :math:`\lambda_\ell` on the sphere
and a unit :math:`g_m(x) = r^p \sigma(w_m^\top \xi)` whose activation has the coefficients
:math:`\sigma_\ell`, the variables :math:`u_m = \langle f, g_m \rangle / s^2` in the space of the
unscaled kernel have the covariances

.. math:: \operatorname{cov}(u_m, f(x)) = r^p \sum_\ell N_\ell \sigma_\ell G_\ell(w_m^\top \xi)
          = g_m(x), \qquad
          \operatorname{cov}(u_m, u_n) = \frac{1}{s^2} \sum_\ell
          \frac{N_\ell \sigma_\ell^2}{\lambda_\ell} G_\ell(w_m^\top w_n).

Both sums run over the same levels. The truncated unit is then a function of the space like any other, so
that :math:`K_{fu} K_{uu}^{-1} K_{uf}` never exceeds the covariance of the process, which stays exact; with
the whole activation on the left and a sum on the right it would.

References
----------
Dutordoir, V., Hensman, J., van der Wilk, M., Ek, C. H., Ghahramani, Z. & Durrande, N. (2021). Deep neural
networks as point estimates for deep Gaussian processes. NeurIPS.
"""

import math
from collections.abc import Callable

import torch
from gpytorch.kernels import Kernel
from sklearn.cluster import kmeans_plusplus
from torch import Tensor
from torch.nn.functional import relu, softplus

from gpvi._warnings import warn
from gpvi.approximations._checks import check_count
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.exceptions import AccuracyWarning, InputError
from gpvi.kernels._gegenbauer import angle_rule, funk_hecke, gegenbauer_series, multiplicities
from gpvi.kernels.zonal import ZonalForm, require_zonal_form
from gpvi.linalg import default_jitter, safe_cholesky, solve_lower

__all__ = ["SphericalActivationFeatures"]

# Names of activations.
_ACTIVATIONS = ("softplus", "shifted_softplus", "relu", "exponential", "learnable")

_SHIFT, _RATE = 0.3, 2.0
# How many levels `initialize` tries, and on how many rows.
_CANDIDATES = (3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
_TRIAL_ROWS = 400
_SEED_ROWS = 20_000
# Eigenvalues come out of a quadrature in double precision; the weight of levels fades out, smoothly in
# the parameters of the kernel, where rounding errors take over.
_ROUNDING = 1e5 * torch.finfo(torch.float64).eps
_FADING = 4
# Units below this fraction of what an inducing point explains are as good as useless.
_WEAK = 0.1


class SphericalActivationFeatures(torch.nn.Module):
    r"""Inducing variables whose covariances with the function are units of a neural network.

    .. math:: \operatorname{cov}(u_m, f(x)) = r^p \, \sigma(w_m^\top \xi), \qquad
              x \to (x / \ell, b) = r \xi

    They are for an `ArcCosineKernel` or a `ZonalKernel`, bare or inside a `ScaleKernel`.

    Parameters
    ----------
    num_features : int, optional
        How many units M :meth:`initialize` makes (fewer if the data have fewer distinct
        directions). Not needed with ``directions``.
    activation : {"softplus", "shifted_softplus", "relu", "exponential", "learnable"}
        :math:`\sigma(t)`: ``log(1 + exp(t))``, the same of t - 0.3, ``max(t, 0)``, ``exp(2 t)``, or a
        softplus whose shift and sharpness are learned for every unit, which starts as the shifted
        one. "relu" and "softplus" have no odd levels above one, and so cannot explain the odd part
        of the process; the others can.
    directions : Tensor, shape [*b, M, D], optional
        Directions :math:`w_m` to start from, of any length, the bias last: D is one more than the
        number of columns.
    num_levels : int, optional
        At how many levels activations are cut off. Left out, :meth:`initialize` takes the number
        that explains most of the prior variance of the data.
    learn : bool, default True
        Whether the directions (and shifts and sharpnesses) are trained.

    Attributes
    ----------
    directions : torch.nn.Parameter, shape [*b, M, D], or None
        Their lengths make no difference.
    shift, log_sharpness : torch.nn.Parameter, shape [*b, M], or None
        Of the learnable activation :math:`\log(1 + e^{\beta (t - \tau)})`.
    levels : Tensor of int64, shape [L], or None
        The levels in use.

    Raises
    ------
    InputError
        For impossible options.

    Warns
    -----
    AccuracyWarning
        From :meth:`initialize`, if the units hardly explain anything. Activations that are rougher
        than functions of the process get longer and longer in its space with every further level:
        "relu" under an `ArcCosineKernel`, anything but few levels under ``ZonalKernel("rbf")``.

    References
    ----------
    Dutordoir, V., Hensman, J., van der Wilk, M., Ek, C. H., Ghahramani, Z. & Durrande, N. (2021). Deep
    neural networks as point estimates for deep Gaussian processes. NeurIPS.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels.zonal import ZonalKernel
    >>> directions = torch.eye(3, dtype=torch.float64)
    >>> features = SphericalActivationFeatures(directions=directions, num_levels=8)
    >>> kernel = ZonalKernel("matern52", ard_num_dims=2).double()
    >>> features.Kuf(kernel, torch.zeros(5, 2, dtype=torch.float64)).shape
    torch.Size([3, 5])
    """

    directions: torch.nn.Parameter | None
    shift: torch.nn.Parameter | None
    log_sharpness: torch.nn.Parameter | None
    levels: Tensor | None

    def __init__(
        self,
        num_features: int | None = None,
        activation: str = "softplus",
        *,
        directions: Tensor | None = None,
        num_levels: int | None = None,
        learn: bool = True,
    ) -> None:
        super().__init__()
        if (num_features is None) == (directions is None):
            given = "neither" if num_features is None else f"both (num_features={num_features!r})"
            raise InputError(f"Pass exactly one of num_features and directions, not {given}.")
        for name, value in (("num_features", num_features), ("num_levels", num_levels)):
            if value is not None:
                check_count(name, value)
        if activation not in _ACTIVATIONS:
            raise InputError(
                f"activation is {activation!r}; it must be one of {', '.join(_ACTIVATIONS)}."
            )
        self.num_features = num_features
        self.activation = activation
        self.num_levels = num_levels
        self.learn = learn
        for name in ("directions", "shift", "log_sharpness"):
            self.register_parameter(name, None)
        self.register_buffer("levels", None if num_levels is None else torch.arange(num_levels))
        if directions is not None:
            self._set(directions)

    @property
    def basis_shape(self) -> torch.Size | None:
        """Shape [*b, M] of the variables; None as long as they have not been chosen."""
        return None if self.directions is None else self.directions.shape[:-1]

    def initialize(
        self, gp: GaussianProcessLike, x: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Point the units at the data, and choose the number of levels; what is there already stays.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process with its initial hyperparameters.
        x : Tensor, shape [N, C]
            Data inputs (leading dims are flattened into rows).
        generator : torch.Generator, optional
            Source of randomness.

        Raises
        ------
        InputError
            If the kernel of the process is not one of the sphere.
        """
        form = require_zonal_form(getattr(gp, "kernel", None))
        if self.directions is not None and self.levels is not None:
            return
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        with torch.no_grad():
            rows = _some_rows(x.detach().reshape(-1, x.shape[-1]), _SEED_ROWS, generator)
            if self.directions is None:
                assert self.num_features is not None
                directions, _ = form.project(rows)
                mean = directions.flatten(0, -3).mean(0) if directions.dim() > 2 else directions
                self._set(_seeds(mean, self.num_features, generator))
            if self.levels is None:
                self._choose_levels(gp, _some_rows(rows, _TRIAL_ROWS, generator))
            self._warn_if_weak(form)

    def map_inputs(self, transform: Callable[[Tensor], Tensor]) -> None:
        """Nothing moves: directions live on the sphere, which has no units.

        Parameters
        ----------
        transform : callable
            Maps inputs, shape [*b, M, C], to the same shape.
        """

    def Kuu(self, kernel: Kernel) -> Tensor:
        """Covariance of the variables.

        Parameters
        ----------
        kernel : gpytorch.kernels.Kernel
            Of the process, on the sphere.

        Returns
        -------
        Tensor, shape [*b, M, M]
            Without jitter.

        Raises
        ------
        InputError
            If the kernel is not one of the sphere.
        """
        form = require_zonal_form(kernel)
        units = self._units()
        activation, (_, weights) = self._activation(), self._spectra(form)
        products = activation.unsqueeze(-2) * activation.unsqueeze(-3)
        coefficients = weights[..., None, None, :] * products
        K = gegenbauer_series(coefficients, units @ units.mT, units.shape[-1])
        return K if form.outputscale is None else K / form.outputscale[..., None, None]

    def Kuf(self, kernel: Kernel, x: Tensor) -> Tensor:
        """Covariance of the variables with values of the function: the outputs of the units.

        Parameters
        ----------
        kernel : gpytorch.kernels.Kernel
            Of the process, on the sphere.
        x : Tensor, shape [*g, N, C]
            Inputs.

        Returns
        -------
        Tensor, shape [*b, M, N]
            On the graph.

        Raises
        ------
        InputError
            If the kernel is not one of the sphere, or the inputs do not fit the directions.
        """
        form = require_zonal_form(kernel)
        units = self._units()
        sphere, amplitude = form.project(x)
        check_sphere(units, sphere)
        weights, _ = self._spectra(form)
        coefficients = weights.unsqueeze(-2) * self._activation()
        cosines = units @ sphere.mT
        outputs = gegenbauer_series(coefficients.unsqueeze(-2), cosines, units.shape[-1])
        return amplitude.unsqueeze(-2) * outputs

    def _units(self) -> Tensor:
        """Directions of length one."""
        if self.directions is None:
            raise InputError(
                "The directions of the units have not been chosen; call initialize(gp, x) first."
            )
        return self.directions / torch.linalg.vector_norm(self.directions, dim=-1, keepdim=True)

    def _size(self) -> tuple[int, int]:
        """Number of levels, and dimension of the space around the sphere."""
        if self.levels is None or self.directions is None:
            raise InputError("The levels have not been chosen; call initialize(gp, x) first.")
        return len(self.levels), self.directions.shape[-1]

    def _spectra(self, form: ZonalForm) -> tuple[Tensor, Tensor]:
        """What multiplies coefficients in units, and their squares in norms; shape [*b, L]."""
        L, D = self._size()
        eigenvalues = form.kernel.eigenvalues(L, D)
        counts = multiplicities(L, D, eigenvalues)
        total = eigenvalues + _ROUNDING / counts.sqrt()
        share = eigenvalues / total
        return counts * share**_FADING, counts * share ** (2 * _FADING - 1) / total

    def _activation(self) -> Tensor:
        """Coefficients of the activation, shape [1, L], or [*b, M, L] where every unit has its own."""
        L, D = self._size()
        like = self._units()
        rule = angle_rule(D, like, kink=0.5 * math.pi if self.activation == "relu" else None)
        t = rule[0].cos()
        if self.shift is not None and self.log_sharpness is not None:
            sharpness = self.log_sharpness.double().exp().unsqueeze(-1)
            values = softplus(sharpness * (t - self.shift.double().unsqueeze(-1)))
        elif self.activation == "relu":
            values = relu(t).unsqueeze(0)
        elif self.activation == "exponential":
            values = (_RATE * t).exp().unsqueeze(0)
        else:
            shift = 0.0 if self.activation == "softplus" else _SHIFT
            values = softplus(t - shift).unsqueeze(0)
        return funk_hecke(values, rule, L, D)

    def _choose_levels(self, gp: GaussianProcessLike, x: Tensor) -> None:
        """The number of levels with the smallest mean residual variance of some rows."""
        variance = float(gp.variance(x).mean())
        left = []
        for candidate in _CANDIDATES:
            self.levels = torch.arange(candidate, device=x.device)
            features = self._whitened(gp, x)
            left.append(variance - float(features.square().sum(-2).mean()))
        best = _CANDIDATES[left.index(min(left))]
        self.levels = torch.arange(best, device=x.device)

    def _whitened(self, gp: GaussianProcessLike, x: Tensor) -> Tensor:
        kernel = gp.kernel  # type: ignore[attr-defined]
        Kuu = self.Kuu(kernel)
        factor = safe_cholesky(Kuu, jitter=default_jitter(x.dtype), name="Kuu").factor
        return solve_lower(factor, self.Kuf(kernel, x))

    def _warn_if_weak(self, form: ZonalForm) -> None:
        """One unit explains as much as an inducing point where its efficiency is one."""
        L, D = self._size()
        eigenvalues = form.kernel.eigenvalues(L, D)
        counts = multiplicities(L, D, eigenvalues)
        weights, norms = self._spectra(form)
        square = self._activation().square()
        mean_square = (square * (weights.square() / counts).unsqueeze(-2)).sum(-1)
        per_norm = mean_square / (square * norms.unsqueeze(-2)).sum(-1)
        efficiency = per_norm / (counts * eigenvalues.square()).sum(-1, keepdim=True)
        if float(efficiency.mean()) < _WEAK:
            warn(
                f"A {self.activation!r} unit of {L} levels explains {float(efficiency.mean()):.1e} "
                f"times as much variance under {type(form.kernel).__name__} as an inducing point "
                "does: it is rougher than functions of the process. Use fewer levels (num_levels "
                "left out chooses them), a smoother activation such as 'softplus', or a ZonalKernel "
                "of the Matern family.",
                AccuracyWarning,
            )

    def _set(self, directions: Tensor) -> None:
        if not isinstance(directions, Tensor) or directions.dim() < 2:
            raise InputError("directions must be a tensor of shape [M, D] with the bias last.")
        lengths = torch.linalg.vector_norm(directions.detach(), dim=-1)
        if not directions.dtype.is_floating_point or not bool(
            (torch.isfinite(lengths) & (lengths > 0)).all()
        ):
            raise InputError(
                f"directions of type {directions.dtype} must be finite floating-point numbers, and "
                "none of them the origin."
            )
        self.directions = self._parameter(directions)
        if self.activation == "learnable":
            self.shift = self._parameter(torch.full_like(lengths, _SHIFT))
            self.log_sharpness = self._parameter(torch.zeros_like(lengths))

    def _parameter(self, values: Tensor) -> torch.nn.Parameter:
        return torch.nn.Parameter(values.detach().clone(), requires_grad=self.learn)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        saved = state_dict.get(prefix + "directions")
        if saved is not None and (self.directions is None or self.directions.shape != saved.shape):
            self._set(saved)
        levels = state_dict.get(prefix + "levels")
        if levels is not None:
            self.levels = levels.clone()
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_sphere(units: Tensor, sphere: Tensor) -> None:
    """Refuse inputs that do not fit directions.

    Parameters
    ----------
    units : Tensor, shape [*b, M, D]
        Of the features.
    sphere : Tensor, shape [*b, N, D]
        Of the inputs.

    Raises
    ------
    InputError
        If number of columns, type or device differ.
    """
    if units.shape[-1] != sphere.shape[-1]:
        raise InputError(
            f"Directions have {units.shape[-1]} coordinates, the bias included, and the kernel sees "
            f"{sphere.shape[-1] - 1} columns of x; there must be one coordinate more than columns."
        )
    if units.dtype != sphere.dtype or units.device != sphere.device:
        raise InputError(
            f"Directions are {units.dtype} on {units.device} and projected inputs {sphere.dtype} on "
            f"{sphere.device}; convert one of them (features.to(x))."
        )


def _some_rows(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if len(x) <= count:
        return x
    chosen = torch.randperm(len(x), generator=generator, device=generator.device)[:count]
    return x[chosen.to(x.device)]


def _seeds(directions: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Distinct directions that lie far apart, by the seeding of k-means++."""
    distinct = torch.unique(directions, dim=0)
    if len(distinct) <= count:
        return distinct
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    _, index = kmeans_plusplus(distinct.cpu().numpy(), count, random_state=seed)
    # Rows so close that rounding hides their distance may be drawn twice; others take their place.
    order = dict.fromkeys([*index.tolist(), *range(len(distinct))])
    return distinct[torch.tensor(list(order)[:count], device=distinct.device)]

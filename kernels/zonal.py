r"""Stationary kernels wrapped around a sphere, and which kernels have a spectrum there.

A Matérn or RBF kernel of the chord between two directions is positive definite on the sphere, as it is in
the space around it. Unlike the arc-cosine kernel it has power at every level.

References
----------
Dutordoir, V., Durrande, N. & Hensman, J. (2020). Sparse Gaussian processes with spherical harmonic
features. ICML.
"""

import math
from dataclasses import dataclass

import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.priors import Prior
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.kernels._batched import Constrained
from gpvi.kernels._sphere import SphereKernel
from gpvi.kernels.matern import matern_correlation

__all__ = ["ZonalForm", "ZonalKernel", "require_zonal_form", "zonal_form"]

_MATERN_ORDERS = (("matern12", 0), ("matern32", 1), ("matern52", 2))
_SHAPES = (*(name for name, _ in _MATERN_ORDERS), "rbf")


class ZonalKernel(SphereKernel):
    r"""Matérn or RBF kernel of the chord between directions.

    .. math:: k(x, x') = \kappa\Big(\frac{|\xi - \xi'|}{\rho}\Big)

    with the direction :math:`\xi` of :math:`(x / \ell, b)`. The lengths of the inputs do not matter:
    far from the origin the kernel is constant along every ray.

    Parameters
    ----------
    shape : {"matern52", "matern32", "matern12", "rbf"}
        The kernel of the chord.
    ard_num_dims : int, optional
        Number of columns, for one lengthscale each; one lengthscale for all if left out.
    batch_shape : torch.Size, default torch.Size([])
        One set of parameters for each element of this batch.
    active_dims : tuple of int, optional
        The columns that the kernel sees.
    lengthscale_prior, bias_prior, sphere_lengthscale_prior : gpytorch.priors.Prior, optional
        Priors over the parameters.
    lengthscale_constraint, bias_constraint, sphere_lengthscale_constraint : Interval, optional
        Ranges of the parameters; positive unless given.

    Attributes
    ----------
    lengthscale : Tensor, shape (*batch_shape, 1, D or 1)
        Divides the inputs.
    bias : Tensor, shape batch_shape
        The last coordinate; starts at one. Only its products with lengthscales matter.
    sphere_lengthscale : Tensor, shape batch_shape
        :math:`\rho`, in units of the radius; starts at one.

    Raises
    ------
    InputError
        If the shape is not one of the four.

    References
    ----------
    Dutordoir, V., Durrande, N. & Hensman, J. (2020). Sparse Gaussian processes with spherical
    harmonic features. ICML.

    Examples
    --------
    >>> import torch
    >>> kernel = ZonalKernel("matern32", ard_num_dims=2)
    >>> kernel(torch.tensor([[0.0, 0.0], [1.0, 0.0]])).to_dense().detach()
    tensor([[1.0000, 0.5227],
            [0.5227, 1.0000]])
    >>> bool((kernel.eigenvalues(20) > 0).all())
    True
    """

    sphere_lengthscale = Constrained()

    def __init__(
        self,
        shape: str = "matern52",
        ard_num_dims: int | None = None,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        lengthscale_prior: Prior | None = None,
        lengthscale_constraint: Interval | None = None,
        bias_prior: Prior | None = None,
        bias_constraint: Interval | None = None,
        sphere_lengthscale_prior: Prior | None = None,
        sphere_lengthscale_constraint: Interval | None = None,
    ) -> None:
        super().__init__(
            ard_num_dims=ard_num_dims,
            batch_shape=batch_shape,
            active_dims=active_dims,
            lengthscale_prior=lengthscale_prior,
            lengthscale_constraint=lengthscale_constraint,
            bias_prior=bias_prior,
            bias_constraint=bias_constraint,
        )
        if shape not in _SHAPES:
            raise InputError(f"shape is {shape!r}; it must be one of {', '.join(_SHAPES)}.")
        self.shape = shape
        self.add_parameter(
            "sphere_lengthscale", sphere_lengthscale_prior, sphere_lengthscale_constraint, 1.0
        )

    def profile(self, angles: Tensor) -> Tensor:
        r"""Correlation :math:`\kappa` at angles between directions.

        Parameters
        ----------
        angles : Tensor, shape [Q]
            From zero to pi.

        Returns
        -------
        Tensor, shape [*b, Q]
            One at zero.
        """
        scale = self.sphere_lengthscale.double().unsqueeze(-1)
        return self._of_chord(2.0 * (0.5 * angles).sin() / scale)

    def correlation(self, left: Tensor, right: Tensor, diag: bool) -> Tensor:
        r"""Correlation :math:`\kappa` of directions.

        Parameters
        ----------
        left : Tensor, shape [*b, N, D]
            Unit vectors.
        right : Tensor, shape [*b, M, D]
            Unit vectors.
        diag : bool
            Pair row n with row n only.

        Returns
        -------
        Tensor, shape [*b, N, M], or [*b, N] with diag=True
            Correlations.
        """
        scale = self.sphere_lengthscale[..., None, None]
        left, right = left / scale, right / scale
        if self.shape == "rbf":
            return (-0.5 * self.covar_dist(left, right, diag=diag, square_dist=True)).exp()
        return self._of_chord(self.covar_dist(left, right, diag=diag))

    def _of_chord(self, chord: Tensor) -> Tensor:
        for name, order in _MATERN_ORDERS:
            if name == self.shape:
                return matern_correlation(order, math.sqrt(2 * order + 1) * chord)
        return (-0.5 * chord.square()).exp()


@dataclass(frozen=True, eq=False)
class ZonalForm:
    r"""A scaled kernel on the sphere, :math:`s^2 (r r')^p \kappa(\xi^\top \xi')`.

    Attributes
    ----------
    kernel : SphereKernel
        The kernel without its scale: an `ArcCosineKernel` or a `ZonalKernel`.
    outputscale : Tensor, shape [*b], or None
        :math:`s^2`, on the graph of the kernel's parameter; None for one.
    columns : Tensor or None
        The columns that the kernel sees; None for all.
    """

    kernel: SphereKernel
    outputscale: Tensor | None
    columns: Tensor | None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Directions of inputs, and how much the kernel grows with their lengths.

        Parameters
        ----------
        x : Tensor, shape [*g, N, C]
            Inputs with all columns.

        Returns
        -------
        directions : Tensor, shape [*b, N, D]
            Unit vectors.
        amplitudes : Tensor, shape [*b, N]
            :math:`r^p`.
        """
        if self.columns is not None:
            x = x.index_select(-1, self.columns)
        directions, lengths = self.kernel.project(x)
        return directions, lengths**self.kernel.degree


def zonal_form(kernel: Kernel) -> ZonalForm | None:
    """A kernel on the sphere, bare or inside `ScaleKernel`.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        The kernel to examine.

    Returns
    -------
    ZonalForm or None
        None for anything else.

    Examples
    --------
    >>> from gpytorch.kernels import RBFKernel, ScaleKernel
    >>> zonal_form(ScaleKernel(ZonalKernel("rbf"))).outputscale.shape
    torch.Size([])
    >>> zonal_form(RBFKernel()) is None
    True
    """
    # A ScaleKernel takes over the columns of what it scales and bypasses their selection there.
    columns, scale = kernel.active_dims, None
    while type(kernel) is ScaleKernel:
        scale = kernel.outputscale if scale is None else scale * kernel.outputscale
        kernel = kernel.base_kernel
    if not isinstance(kernel, SphereKernel):
        return None
    return ZonalForm(kernel, scale, columns)


def require_zonal_form(kernel: object) -> ZonalForm:
    """A kernel on the sphere, bare or inside `ScaleKernel`, or an error that says what to use.

    Parameters
    ----------
    kernel : object
        The kernel to examine.

    Returns
    -------
    ZonalForm
        See :func:`zonal_form`.

    Raises
    ------
    InputError
        For any other kernel.

    Examples
    --------
    >>> from gpytorch.kernels import RBFKernel
    >>> require_zonal_form(RBFKernel())
    Traceback (most recent call last):
    ...
    gpvi.exceptions.InputError: Spherical features need a kernel on the sphere, not RBFKernel: ...
    """
    form = zonal_form(kernel) if isinstance(kernel, Kernel) else None
    if form is None:
        raise InputError(
            f"Spherical features need a kernel on the sphere, not {type(kernel).__name__}: use "
            "ArcCosineKernel or ZonalKernel, bare or inside a ScaleKernel (in expressions "
            "'arc_cosine', 'zonal_matern12', 'zonal_matern32', 'zonal_matern52' or 'zonal_rbf')."
        )
    return form

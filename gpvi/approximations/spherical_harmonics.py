r"""Components of a process on the sphere as inducing variables.

Under a kernel :math:`s^2 (r r')^p \kappa(\xi^\top \xi')` the process is a sum of independent ones, one for
every level :math:`\ell` of spherical harmonics, with the covariances :math:`s^2 (r r')^p N_\ell
\lambda_\ell G_\ell(\xi^\top \xi')`. Its functions have :math:`N_\ell` dimensions, so that the values at as
many directions, if these are in general position, say all about them. Divided by their standard
deviation these values are the variables, which makes them independent between levels:

.. math:: \operatorname{cov}(u_m, u_n) = G_\ell(v_m^\top v_n) \, 1[\ell_m = \ell_n], \qquad
          \operatorname{cov}(u_m, f(x)) = s \sqrt{N_\ell \lambda_\ell} \, r^p \, G_\ell(v_m^\top \xi).

References
----------
Dutordoir, V., Durrande, N. & Hensman, J. (2020). Sparse Gaussian processes with spherical harmonic
features. ICML.
"""

from collections.abc import Callable

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpvi.approximations._checks import check_count
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.spherical_features import check_sphere
from gpvi.exceptions import InputError
from gpvi.kernels._gegenbauer import gegenbauer_series, multiplicities
from gpvi.kernels.zonal import require_zonal_form
from gpvi.linalg import greedy_conditional_variance

__all__ = ["SphericalHarmonicFeatures"]

# Levels that are looked at, and the most harmonics that make sense as a dense matrix.
_MAX_LEVELS, _MAX_FEATURES = 64, 4_096
# Levels with less than this share of the prior variance are left out: some kernels lack them.
_NEGLIGIBLE = 1e-10
# Directions of a level are picked among this many times as many random ones.
_CANDIDATES = 6


class SphericalHarmonicFeatures(torch.nn.Module):
    r"""Inducing variables that are the lowest levels of spherical harmonics of the process.

    They are the best possible ones on average over the sphere: the eigenfunctions of the kernel. There is
    nothing to learn. Their numbers grow quickly with the number of columns: a sphere in D dimensions has
    D harmonics at level one and D(D + 1)/2 - 1 at level two, so that they are for few columns. They are
    for an `ArcCosineKernel` or a `ZonalKernel`, bare or inside a `ScaleKernel`.

    Parameters
    ----------
    num_levels : int, optional
        All harmonics below this level.
    num_features : int, optional
        As many complete levels as have no more harmonics than this, the most important ones first.

    Attributes
    ----------
    directions : Tensor, shape [M, D], or None
        Where the components are evaluated.
    levels : Tensor of int64, shape [M], or None
        Level of every variable, ascending.

    Raises
    ------
    InputError
        For impossible options.

    References
    ----------
    Dutordoir, V., Durrande, N. & Hensman, J. (2020). Sparse Gaussian processes with spherical
    harmonic features. ICML.

    Examples
    --------
    >>> import torch
    >>> from gpvi.approximations import GaussianProcess
    >>> from gpvi.kernels.zonal import ZonalKernel
    >>> gp = GaussianProcess(ZonalKernel("matern52", ard_num_dims=2).double())
    >>> features = SphericalHarmonicFeatures(num_levels=4)
    >>> features.initialize(gp, torch.zeros(1, 2, dtype=torch.float64))
    >>> features.levels.bincount()
    tensor([1, 3, 5, 7])
    """

    directions: Tensor | None
    levels: Tensor | None

    def __init__(self, num_levels: int | None = None, num_features: int | None = None) -> None:
        super().__init__()
        if (num_levels is None) == (num_features is None):
            given = "neither" if num_levels is None else "both"
            raise InputError(f"Pass exactly one of num_levels and num_features, not {given}.")
        for name, value in (("num_levels", num_levels), ("num_features", num_features)):
            if value is not None:
                check_count(name, value)
        if num_levels is not None and num_levels > _MAX_LEVELS:
            raise InputError(f"num_levels is {num_levels}; it must be at most {_MAX_LEVELS}.")
        self.num_levels, self.num_features = num_levels, num_features
        self.register_buffer("directions", None)
        self.register_buffer("levels", None)

    @property
    def basis_shape(self) -> torch.Size | None:
        """Shape [*b, M] of the variables; None as long as they have not been chosen."""
        return None if self.directions is None else self.directions.shape[:-1]

    def initialize(
        self, gp: GaussianProcessLike, x: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Choose levels that the kernel has, and directions in general position for each.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process; its kernel says which levels there are.
        x : Tensor, shape [N, C]
            Data inputs; only their number of columns matters.
        generator : torch.Generator, optional
            Source of randomness.

        Raises
        ------
        InputError
            If the kernel of the process is not one of the sphere, or has too many harmonics.
        """
        form = require_zonal_form(getattr(gp, "kernel", None))
        if self.directions is not None:
            return
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        with torch.no_grad():
            D = form.project(x[..., :1, :])[0].shape[-1]
            eigenvalues = form.kernel.eigenvalues(self.num_levels or _MAX_LEVELS, D)
            kept = self._kept(eigenvalues.reshape(-1, eigenvalues.shape[-1]).amax(0), D)
            directions = [_fundamental(level, D, generator) for level in kept]
            levels = [
                torch.full((len(v),), level) for level, v in zip(kept, directions, strict=True)
            ]
        self.directions = torch.cat(directions).to(x)
        self.levels = torch.cat(levels).to(x.device)

    def map_inputs(self, transform: Callable[[Tensor], Tensor]) -> None:
        """Nothing moves: directions live on the sphere, which has no units.

        Parameters
        ----------
        transform : callable
            Maps inputs, shape [*b, M, C], to the same shape.
        """

    def Kuu(self, kernel: Kernel) -> Tensor:
        """Covariance of the variables: a Gram matrix of Gegenbauer polynomials for every level.

        Parameters
        ----------
        kernel : gpytorch.kernels.Kernel
            Of the process, on the sphere; the covariance does not depend on it.

        Returns
        -------
        Tensor, shape [M, M]
            Without jitter.

        Raises
        ------
        InputError
            If the kernel is not one of the sphere.
        """
        require_zonal_form(kernel)
        directions, _ = self._chosen()
        D = directions.shape[-1]
        blocks = [_polynomial(v @ v.mT, level, D) for level, v in self._by_level()]
        return torch.block_diag(*blocks)

    def Kuf(self, kernel: Kernel, x: Tensor) -> Tensor:
        """Covariance of the variables with values of the function.

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
        directions, levels = self._chosen()
        sphere, amplitude = form.project(x)
        check_sphere(directions, sphere)
        D, highest = directions.shape[-1], self._by_level()[-1][0]
        variances = form.kernel.eigenvalues(highest + 1, D)
        variances = variances * multiplicities(highest + 1, D, variances)
        # The floor keeps the slope of the root finite at levels that fade out.
        scales = variances.clamp_min(torch.finfo(torch.float32).tiny).sqrt().to(sphere)
        values = [_polynomial(v @ sphere.mT, level, D) for level, v in self._by_level()]
        K = torch.cat(values, -2) * scales.index_select(-1, levels).unsqueeze(-1)
        if form.outputscale is not None:
            K = K * form.outputscale.sqrt()[..., None, None]
        return K * amplitude.unsqueeze(-2)

    def _kept(self, eigenvalues: Tensor, dimension: int) -> list[int]:
        """Levels that are there and wanted, ascending."""
        counts = multiplicities(len(eigenvalues), dimension)
        shares = (eigenvalues.cpu() * counts).tolist()
        present = [level for level, share in enumerate(shares) if share > _NEGLIGIBLE]
        if self.num_features is None:
            total = sum(counts[level].item() for level in present)
            if total > _MAX_FEATURES:
                raise InputError(
                    f"num_levels={self.num_levels} on a sphere in {dimension} dimensions has "
                    f"{total:.0f} harmonics, more than {_MAX_FEATURES}; pass fewer levels, "
                    "num_features, or use SphericalActivationFeatures."
                )
            return present
        kept, left = [], float(min(self.num_features, _MAX_FEATURES))
        for level in present:
            left -= counts[level].item()
            if left < 0:
                break
            kept.append(level)
        return kept

    def _chosen(self) -> tuple[Tensor, Tensor]:
        if self.directions is None or self.levels is None:
            raise InputError("The harmonics have not been chosen; call initialize(gp, x) first.")
        return self.directions, self.levels

    def _by_level(self) -> list[tuple[int, Tensor]]:
        directions, levels = self._chosen()
        found, counts = torch.unique_consecutive(levels, return_counts=True)
        pieces = directions.split(counts.tolist(), dim=-2)
        return list(zip(found.tolist(), pieces, strict=True))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        for name in ("directions", "levels"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, saved.clone())
        super()._load_from_state_dict(state_dict, prefix, *args)


def _polynomial(t: Tensor, level: int, dimension: int) -> Tensor:
    return gegenbauer_series(
        torch.eye(level + 1, dtype=t.dtype, device=t.device)[level], t, dimension
    )


def _fundamental(level: int, dimension: int, generator: torch.Generator) -> Tensor:
    """As many directions as a level has harmonics, on which these are well determined."""
    count = int(multiplicities(level + 1, dimension)[level])
    shape = (_CANDIDATES * count, dimension)
    draws = torch.randn(
        shape, dtype=torch.float64, generator=generator, device=generator.device
    ).cpu()
    units = draws / torch.linalg.vector_norm(draws, dim=-1, keepdim=True)
    pivots, _ = greedy_conditional_variance(
        torch.ones(len(units), dtype=torch.float64),
        lambda i: _polynomial(units @ units[i], level, dimension),
        count,
    )
    return units[pivots]

r"""Random features: a kernel as an average of products of features.

Each of F features has an amplitude and a phase that are functions of the inputs,

.. math:: k(x, x') \approx \sum_f a_f(x) a_f(x') \cos(\phi_f(x) - \phi_f(x')),

with equality in expectation over the random features. In this form sums of kernels join their
features, products add phases and multiply amplitudes, scales multiply amplitudes. Stationary
kernels have linear phases with random frequencies, linear kernels amplitudes that are columns, and a
kernel of categorical columns a random phase for every level.

References
----------
Rahimi, A. & Recht, B. (2007). Random features for large-scale kernel machines.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.kernels._levels import level_uniforms

__all__ = ["RandomFeatures"]


@dataclass(frozen=True, eq=False)
class RandomFeatures:
    r"""Features with :math:`k(x, x') \approx \psi(x)^\top \psi(x')`; call it for :math:`\psi`.

    Parameters
    ----------
    scale : Tensor, shape (*batch, F)
        Constant part of the amplitudes.
    frequencies : Tensor, shape (*batch, D, F)
        Linear part of the phases.
    columns : Tensor of int64, shape (J, F)
        Input columns that multiply the amplitudes; D stands for a column of ones.
    level_columns : tuple of int, length H
        Categorical columns.
    level_seeds : Tensor of int64, shape (H, F)
        Seeds of the phases of their levels.
    level_active : Tensor, shape (*batch, H, F)
        One where a feature has such phases, else zero.
    """

    scale: Tensor
    frequencies: Tensor
    columns: Tensor
    level_columns: tuple[int, ...]
    level_seeds: Tensor
    level_active: Tensor

    @classmethod
    def amplitudes(cls, scale: Tensor, num_inputs: int) -> "RandomFeatures":
        """Features of constant amplitude and zero phase, to start from.

        Parameters
        ----------
        scale : Tensor, shape (*batch, F)
            The amplitudes.
        num_inputs : int
            Number D of input columns.

        Returns
        -------
        RandomFeatures
            Without frequencies, columns or levels.
        """
        size, device = scale.shape[-1], scale.device
        return cls(
            scale,
            scale.new_zeros(*scale.shape[:-1], num_inputs, size),
            torch.empty(0, size, dtype=torch.int64, device=device),
            (),
            torch.empty(0, size, dtype=torch.int64, device=device),
            scale.new_zeros(*scale.shape[:-1], 0, size),
        )

    @property
    def num_features(self) -> int:
        """Number F of features; each has a cosine and a sine."""
        return self.scale.shape[-1]

    @property
    def num_inputs(self) -> int:
        """Number D of input columns."""
        return self.frequencies.shape[-2]

    def __call__(self, x: Tensor) -> Tensor:
        """Cosine and sine of every feature.

        Parameters
        ----------
        x : Tensor, shape (*batch, N, D)
            Inputs.

        Returns
        -------
        Tensor, shape (*batch, N, 2F)
            Differentiable in the inputs that phases are linear in.

        Raises
        ------
        InputError
            If the number of columns is another.
        """
        if x.dim() < 2 or x.shape[-1] != self.num_inputs:
            raise InputError(
                f"x has shape {tuple(x.shape)}; these features need (..., N, {self.num_inputs})."
            )
        phase = x @ self.frequencies
        for h, column in enumerate(self.level_columns):
            turns = level_uniforms(x[..., column], self.level_seeds[h]).to(x.dtype)
            phase = phase + 2 * math.pi * self.level_active[..., h, None, :] * turns
        amplitude = self.scale.unsqueeze(-2)
        if len(self.columns):
            ones = torch.cat([x, torch.ones_like(x[..., :1])], -1)
            for chosen in self.columns:
                amplitude = amplitude * ones[..., chosen]
        return torch.cat([amplitude * phase.cos(), amplitude * phase.sin()], -1)

    def scaled(self, factor: Tensor) -> "RandomFeatures":
        """Features of the kernel times a variance.

        Parameters
        ----------
        factor : Tensor, shape (*batch,)
            The variance.

        Returns
        -------
        RandomFeatures
            With amplitudes times its root.
        """
        return replace(self, scale=self.scale * factor.sqrt().unsqueeze(-1))

    def take(self, index: Tensor) -> "RandomFeatures":
        """Some of the features, in another order or repeatedly.

        Parameters
        ----------
        index : Tensor of int64, shape (K,)
            Which.

        Returns
        -------
        RandomFeatures
            K features.
        """
        return RandomFeatures(
            self.scale[..., index],
            self.frequencies[..., index],
            self.columns[:, index],
            self.level_columns,
            self.level_seeds[:, index],
            self.level_active[..., index],
        )

    def __add__(self, other: "RandomFeatures") -> "RandomFeatures":
        """Features of the sum of the kernels: those of both."""
        first, second = self._padded(other, after=True), other._padded(self, after=False)
        return RandomFeatures(
            _join(first.scale, second.scale, 1, -1),
            _join(first.frequencies, second.frequencies, 2, -1),
            torch.cat([first.columns, second.columns], -1),
            first.level_columns,
            torch.cat([first.level_seeds, second.level_seeds], -1),
            _join(first.level_active, second.level_active, 2, -1),
        )

    def __mul__(self, other: "RandomFeatures") -> "RandomFeatures":
        """Feature f of one times feature f of the other: phases add, amplitudes multiply."""
        return RandomFeatures(
            self.scale * other.scale,
            self.frequencies + other.frequencies,
            torch.cat([self.columns, other.columns]),
            self.level_columns + other.level_columns,
            torch.cat([self.level_seeds, other.level_seeds]),
            _join(self.level_active, other.level_active, 2, -2),
        )

    def outer(self, other: "RandomFeatures") -> "RandomFeatures":
        """Features of the product of the kernels: every feature of one times each of the other.

        Parameters
        ----------
        other : RandomFeatures
            Features of the same inputs.

        Returns
        -------
        RandomFeatures
            As many as the product of both numbers.
        """
        device = self.scale.device
        left = torch.arange(self.num_features, device=device)
        right = torch.arange(other.num_features, device=device)
        return self.take(left.repeat_interleave(len(right))) * other.take(right.repeat(len(left)))

    def _padded(self, other: "RandomFeatures", after: bool) -> "RandomFeatures":
        """The same features with as many rows as both have: further columns of ones, no phases."""
        missing = max(len(other.columns) - len(self.columns), 0)
        ones = self.columns.new_full((missing, self.num_features), self.num_inputs)
        num_levels = len(other.level_columns)
        seeds = self.level_seeds.new_zeros(num_levels, self.num_features)
        shape = (*self.level_active.shape[:-2], num_levels, self.num_features)
        idle = self.level_active.new_zeros(shape)
        both = [(self.level_seeds, seeds, 0), (self.level_active, idle, -2)]
        padded = [torch.cat([a, b] if after else [b, a], dim) for a, b, dim in both]
        names = (self.level_columns, other.level_columns)
        return replace(
            self,
            columns=torch.cat([self.columns, ones]),
            level_columns=names[0] + names[1] if after else names[1] + names[0],
            level_seeds=padded[0],
            level_active=padded[1],
        )


def _join(first: Tensor, second: Tensor, num_dims: int, dim: int) -> Tensor:
    """Concatenate after broadcasting all but the last `num_dims` dims."""
    batch = torch.broadcast_shapes(first.shape[:-num_dims], second.shape[:-num_dims])
    return torch.cat([t.expand(*batch, *t.shape[-num_dims:]) for t in (first, second)], dim)

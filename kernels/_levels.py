"""Random numbers that depend on a value: one uniform number for every level of a column.

A random function of a categorical column needs a random number for every level, including levels
that appear only later, and always the same one. The numbers are therefore not drawn and stored but
computed: the bits of the value and a random seed go through the mixing function of SplitMix64.

References
----------
Steele, G. L., Lea, D. & Flood, C. H. (2014). Fast splittable pseudorandom number generators.
"""

import torch
from torch import Tensor

__all__ = ["level_uniforms"]

# The increment and multipliers of SplitMix64, as signed 64-bit numbers.
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def level_uniforms(codes: Tensor, seeds: Tensor) -> Tensor:
    """Numbers in [0, 1) that are functions of value and seed, independent over both.

    Parameters
    ----------
    codes : Tensor, shape (*batch, N)
        Values of a column; equal values are one level.
    seeds : Tensor of int64, shape (F,)
        Random seeds.

    Returns
    -------
    Tensor of float64, shape (*batch, N, F)
        The numbers.

    Examples
    --------
    >>> import torch
    >>> numbers = level_uniforms(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([5]))
    >>> bool(numbers[0] == numbers[2]), bool(numbers[0] == numbers[1])
    (True, False)
    """
    levels, position = torch.unique(codes.detach(), return_inverse=True)
    # Zero is added so that 0 and -0, which are equal, have equal bits.
    bits = (levels.double() + 0.0).view(torch.int64)
    mixed = _mix((bits.unsqueeze(-1) ^ seeds) + _INCREMENT)
    return (_shift_right(mixed, 11).double() * 2.0**-53)[position]


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _FIRST
    bits = (bits ^ _shift_right(bits, 27)) * _SECOND
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Shift in zeros, where the operator of signed numbers copies the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)

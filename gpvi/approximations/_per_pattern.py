"""Operations on one neighbour pattern, over batches of data sets that have one pattern each."""

from collections.abc import Callable

import torch
from torch import Tensor

#: Position among the leading dims of the data sets.
Position = tuple[int, ...]


def per_pattern(
    lead: torch.Size,
    function: Callable[..., Tensor],
    *arguments: tuple[Tensor, int],
    trailing: int = 1,
) -> Tensor:
    """Call a function for every data set and put the results together.

    Parameters
    ----------
    lead : torch.Size
        Leading dims of the data sets; they broadcast with the batch dims of the arguments from the right.
    function : callable
        Called as ``function(position, *slices)``.
    *arguments : tuple of Tensor and int
        Tensors [*s, *b, ...] with the number of dims behind the batch dims.
    trailing : int
        Dims behind the batch dims in the result.

    Returns
    -------
    Tensor
        Shape [*s, *b, ...].
    """
    if lead.numel() == 1:
        return function((0,) * len(lead), *(tensor for tensor, _ in arguments))

    def collect(position: Position) -> Tensor:
        depth = len(position)
        if depth == len(lead):
            slices = (_entry(tensor, behind, lead, position) for tensor, behind in arguments)
            return _entry(function(position, *slices), trailing, lead, position, pad=True)
        parts = [collect((*position, i)) for i in range(lead[depth])]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, -(trailing + len(lead) - depth))

    return collect(())


def position_in(shape: torch.Size, position: Position) -> Position:
    """A position in a wider shape, in a shape that broadcasts to it."""
    own = position[len(position) - len(shape) :]
    return tuple(0 if size == 1 else i for size, i in zip(shape, own, strict=True))


def flat(shape: torch.Size, position: Position) -> int:
    """Number of a position in row-major order, after broadcasting."""
    number = 0
    for size, i in zip(shape, position_in(shape, position), strict=True):
        number = number * size + i
    return number


def _entry(
    tensor: Tensor, behind: int, lead: torch.Size, position: Position, pad: bool = False
) -> Tensor:
    """The part of a tensor that belongs to one data set; dims keep their places, of size one."""
    if pad and tensor.dim() < behind + len(lead):
        tensor = tensor.reshape(*[1] * (behind + len(lead) - tensor.dim()), *tensor.shape)
    for depth, (size, i) in enumerate(zip(lead, position, strict=True)):
        dim = tensor.dim() - behind - len(lead) + depth
        if size > 1 and dim >= 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, i, 1)
    return tensor

"""Results that a strategy keeps for as long as every tensor behind them has the same value.

Values are compared, not version counters: ``kernel.lengthscale = 0.3`` writes through ``.data``, which
leaves the counters alone. A comparison costs microseconds, a stale posterior wrong predictions.
"""

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Kept"]

ValueT = TypeVar("ValueT")


class Kept(Generic[ValueT]):
    """At most one result, with the values it was computed from.

    A result on a graph is found only where gradients are enabled, one off the graph only where they are
    not needed. Copies and pickles are empty: what is on a graph can be neither copied nor pickled.

    Examples
    --------
    >>> import torch
    >>> kept, value = Kept(), torch.zeros(1)
    >>> kept.put([value], "result")
    >>> kept.find([value])
    'result'
    >>> value.data += 1.0
    >>> kept.find([value]) is None
    True
    """

    def __init__(self) -> None:
        self._result: ValueT | None = None
        self._values: list[Tensor] = []
        self._mode = (False, False)

    def find(self, tensors: Sequence[Tensor]) -> ValueT | None:
        """Return the result, if it still holds; otherwise forget it.

        Parameters
        ----------
        tensors : sequence of Tensor
            Everything the result depends on.

        Returns
        -------
        object or None
            What was put.
        """
        if self._mode != _mode(tensors) or not _same(self._values, tensors):
            self.drop()
        return self._result

    def put(self, tensors: Sequence[Tensor], result: ValueT) -> None:
        """Keep a result that was just computed.

        Parameters
        ----------
        tensors : sequence of Tensor
            Everything it depends on.
        result : object
            What to keep.
        """
        self._result = result
        self._values = [value.detach().clone() for value in tensors]
        self._mode = _mode(tensors)

    def drop(self) -> None:
        """Forget the result."""
        self._result = None
        self._values = []

    def __reduce__(self) -> tuple[type["Kept"], tuple[()]]:
        return type(self), ()


def _mode(tensors: Sequence[Tensor]) -> tuple[bool, bool]:
    on_graph = torch.is_grad_enabled() and any(value.requires_grad for value in tensors)
    return on_graph, torch.is_inference_mode_enabled()


def _same(kept: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    return len(kept) == len(found) and all(map(_equal, kept, found))


def _equal(kept: Tensor, found: Tensor) -> bool:
    if kept.shape != found.shape or kept.dtype != found.dtype or kept.device != found.device:
        return False
    return torch.equal(kept, found)

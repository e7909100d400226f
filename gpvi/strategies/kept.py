"""The last posterior of a strategy, kept for as long as every tensor behind it has the same value.

Values are compared, not version counters: ``kernel.lengthscale = 0.3`` writes through ``.data``, which
leaves the counters alone. A comparison costs microseconds, a stale posterior wrong predictions.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from gpvi.approximations import Posterior

__all__ = ["KeptPosterior"]


class KeptPosterior:
    """At most one posterior, with the values it was computed from.

    Copies and pickles are empty: a posterior on a graph can be neither copied nor pickled.

    Examples
    --------
    >>> import torch
    >>> kept, value = KeptPosterior(), torch.zeros(1)
    >>> kept.get([value], lambda: "first"), kept.get([value], lambda: "second")
    ('first', 'first')
    >>> value.data += 1.0
    >>> kept.get([value], lambda: "third")
    'third'
    """

    def __init__(self) -> None:
        self._posterior: Posterior | None = None
        self._values: list[Tensor] = []
        self._mode = (False, False)

    def get(self, tensors: Iterable[Tensor], build: Callable[[], Posterior]) -> Posterior:
        """Return the kept posterior, or build and keep a new one.

        Parameters
        ----------
        tensors : iterable of Tensor
            Everything the posterior depends on.
        build : callable
            Makes a posterior from today's values.

        Returns
        -------
        Posterior
            On a graph if gradients are enabled and some tensor requires them.
        """
        found = list(tensors)
        on_graph = torch.is_grad_enabled() and any(value.requires_grad for value in found)
        mode = (on_graph, torch.is_inference_mode_enabled())
        if self._posterior is None or mode != self._mode or not _same(self._values, found):
            self.drop()
            self._posterior = build()
            self._values = [value.detach().clone() for value in found]
            self._mode = mode
        return self._posterior

    def drop(self) -> None:
        """Forget the posterior."""
        self._posterior = None
        self._values = []

    def __reduce__(self) -> tuple[type["KeptPosterior"], tuple[()]]:
        return type(self), ()


def _same(kept: list[Tensor], found: list[Tensor]) -> bool:
    return len(kept) == len(found) and all(map(_equal, kept, found))


def _equal(kept: Tensor, found: Tensor) -> bool:
    if kept.shape != found.shape or kept.dtype != found.dtype or kept.device != found.device:
        return False
    return torch.equal(kept, found)

"""Taking priors and posteriors off the graph."""

import dataclasses
from typing import Any, TypeVar

from torch import Tensor

from gpvi.approximations.plan import IndexStructure
from gpvi.approximations.sites import Sites

DataclassT = TypeVar("DataclassT")


def detached(value: DataclassT, memo: dict[int, Any] | None = None) -> DataclassT:
    """Copy a tree of dataclasses, detaching tensors and snapshots and dropping lazy attributes.

    Lazy tensors that a class names in ``carried`` go along. Parts that are shared in the tree stay shared in
    the copy.
    """
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{type(value).__name__} is not a dataclass.")
    memo = {} if memo is None else memo
    if id(value) not in memo:
        changes = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if isinstance(item, IndexStructure):
                continue  # numbers only, with lazy attributes worth keeping
            if isinstance(item, Tensor | Sites) or hasattr(item, "snapshot"):
                if id(item) not in memo:
                    memo[id(item)] = item.detach()
                changes[field.name] = memo[id(item)]
            elif dataclasses.is_dataclass(item):
                changes[field.name] = detached(item, memo)
        copy: Any = dataclasses.replace(value, **changes)  # type: ignore[type-var]
        for name in getattr(value, "carried", ()):
            if name in vars(value):
                vars(copy)[name] = vars(value)[name].detach()
        memo[id(value)] = copy
    return memo[id(value)]

"""An object and everything it holds, as a flat table of nodes that JSON can spell.

Every container, tensor and instance is a node with a number; values inside nodes are JSON values or
``{"ref": number}``. Two references to one object therefore stay two references to one object, cycles
need no special care, and neither writing nor reading recurses. Numbers are given in the order of
discovery, so equal objects give equal files.
"""

import functools
import json
import types
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any, NoReturn

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpvi.exceptions import ModelFileError
from gpvi.persistence._functions import Accessor, as_accessor, find_method, function_name
from gpvi.persistence._tensors import DTYPES, NUMPY_TYPES, array_to_tensor, encode_scalar, pack
from gpvi.persistence.registry import CLASSES

_PLAIN = (type(None), bool, int, str)
_FUNCTION_TYPES = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, Accessor)
# Python refuses to print longer integers.
_MAX_INTEGER_BITS = 10_000
#: What every module holds of PyTorch's own; the containers of hooks among it must be empty.
MODULE_KEYS = frozenset(vars(torch.nn.Module()))
_MODULE_PARTS = frozenset(
    (
        "training",
        "_parameters",
        "_buffers",
        "_modules",
        "_non_persistent_buffers_set",
        "_load_state_dict_pre_hooks",
    )
)


class Encoder:
    """Builds the node table of one object.

    Parameters
    ----------
    name : str
        How error messages call the object.
    """

    def __init__(self, name: str) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._nodes: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}
        # Also keeps what has a number alive, so that no id is used twice.
        self._pending: deque[tuple[Any, str]] = deque()
        self._seen: list[Any] = []
        self._name = name

    def encode(self, root: Any) -> dict[str, Any]:
        """Node table of an object.

        Parameters
        ----------
        root : object
            What to describe.

        Returns
        -------
        dict
            JSON-serialisable; tensors are in :attr:`tensors`.

        Raises
        ------
        ModelFileError
            For anything that files cannot hold.
        """
        start = self._value(root, self._name)
        while self._pending:
            item, path = self._pending.popleft()
            self._nodes.append(self._node(item, path))
        return {"root": start, "nodes": self._nodes}

    def _value(self, item: Any, path: str) -> Any:
        kind = type(item)
        if kind in _PLAIN:
            if kind is int and item.bit_length() > _MAX_INTEGER_BITS:
                _refuse(path, f"an integer of {item.bit_length()} bits", "round it")
            return item
        if kind is float:
            return item if np.isfinite(item) else {"float": repr(item)}
        if kind is torch.dtype:
            return {"dtype": str(item).removeprefix("torch.")}
        if kind is torch.device:
            return {"device": str(item)}
        if isinstance(item, np.generic):
            scalar = encode_scalar(item)
            if scalar is None:
                _refuse(path, f"a NumPy {kind.__name__}", "convert it to a number or a string")
            return {"scalar": scalar}
        return {"ref": self._number(item, path)}

    def _number(self, item: Any, path: str) -> int:
        if id(item) not in self._numbers:
            self._numbers[id(item)] = len(self._seen)
            self._seen.append(item)
            self._pending.append((item, path))
        return self._numbers[id(item)]

    def _node(self, item: Any, path: str) -> dict[str, Any]:
        kind = type(item)
        if kind in (list, tuple, torch.Size):
            items = [self._value(value, f"{path}[{i}]") for i, value in enumerate(item)]
            return {"type": "size" if kind is torch.Size else kind.__name__, "items": items}
        if kind in (dict, OrderedDict):
            name = "dict" if kind is dict else "ordered_dict"
            return {"type": name, "items": self._mapping(item, path)}
        if kind in (set, frozenset):
            return {"type": kind.__name__, "items": self._members(item, path)}
        if isinstance(item, Tensor):
            return self._tensor(item, path)
        if kind is np.ndarray:
            return self._array(item, path)
        if isinstance(item, _FUNCTION_TYPES):
            return self._function(item, path)
        return self._instance(item, path)

    def _mapping(self, items: dict[Any, Any], path: str) -> dict[str, Any]:
        for key in items:
            if type(key) is not str:
                _refuse(path, f"a dictionary with the key {key!r}", "use strings as keys")
        return {key: self._value(value, f"{path}.{key}") for key, value in items.items()}

    def _members(self, items: Iterable[Any], path: str) -> list[Any]:
        for member in items:
            if type(member) not in (*_PLAIN, float):
                _refuse(path, f"a set that holds a {type(member).__name__}", "use a list")
        encoded = (self._value(member, path) for member in items)
        return sorted(encoded, key=lambda value: (type(value).__name__, json.dumps(value)))

    def _tensor(self, item: Tensor, path: str) -> dict[str, Any]:
        kind = type(item)
        if kind not in (Tensor, torch.nn.Parameter):
            _refuse(path, f"a tensor of the class {kind.__name__}", "use plain tensors")
        if item.grad_fn is not None:
            _refuse(path, "a tensor on the autograd graph", "save a detached object")
        name = str(item.dtype).removeprefix("torch.")
        if item.layout != torch.strided or item.is_quantized or item.is_meta or name not in DTYPES:
            layout = f"{item.layout}, on {item.device}"
            _refuse(path, f"a tensor of type {name} ({layout})", "use a dense tensor of numbers")
        data, order = pack(item)
        node = {
            "type": "parameter" if kind is torch.nn.Parameter else "tensor",
            "data": self._store(data),
            "requires_grad": item.requires_grad,
        }
        return node if order is None else node | {"order": order}

    def _store(self, data: Tensor) -> str:
        name = str(len(self._nodes))
        self.tensors[name] = data
        return name

    def _array(self, item: np.ndarray, path: str) -> dict[str, Any]:
        dtype = item.dtype
        if dtype.kind == "O":
            for member in item.flat:
                if type(member) not in (*_PLAIN, float):
                    what = f"an array that holds a {type(member).__name__}"
                    _refuse(path, what, "convert it to an array of numbers or strings")
            values = [self._value(member, path) for member in item.flat]
            return {"type": "object_array", "shape": list(item.shape), "items": values}
        is_text = dtype.kind in "US" and dtype.itemsize > 0
        if not is_text and (dtype.type not in NUMPY_TYPES or dtype == np.complex128):
            _refuse(path, f"an array of type {dtype}", "convert it to numbers or strings")
        tensor, text = array_to_tensor(item)
        data, order = pack(tensor)
        node: dict[str, Any] = {"type": "array", "data": self._store(data)}
        node |= {} if text is None else {"text": text}
        return node if order is None else node | {"order": order}

    def _function(self, item: Any, path: str) -> dict[str, Any]:
        if isinstance(item, types.MethodType):
            owner, name = item.__self__, item.__name__
            known = CLASSES.name_of(type(owner)) is not None
            if known and find_method(type(owner), name) is item.__func__:
                return {"type": "method", "owner": self._value(owner, path), "name": name}
        else:
            accessor = as_accessor(item)
            if accessor is not None:
                return {"type": "accessor", "form": accessor.form, "name": accessor.name}
            known_name = function_name(item)
            if known_name is not None:
                return {"type": "function", "name": known_name}
        what = f"the function {item.__module__}.{item.__qualname__}"
        _refuse(path, what, "make it a method of a class that is registered, or leave it out")

    def _instance(self, item: Any, path: str) -> dict[str, Any]:
        kind = type(item)
        if isinstance(item, torch.nn.Module) and "parametrizations" in item._modules:
            _refuse(
                path,
                "a module with parametrizations",
                "remove them (remove_parametrizations) first",
            )
        name = CLASSES.name_of(kind)
        if name is None:
            full = f"{kind.__module__}.{kind.__qualname__}"
            raise ModelFileError(
                f"{path} is of the class {full}, which is not registered; call "
                f"gpvi.persistence.register_class({kind.__name__}) before saving and before loading, or "
                "leave it out."
            )
        if isinstance(item, tuple):
            items = [self._value(value, f"{path}[{i}]") for i, value in enumerate(item)]
            return {"type": "named_tuple", "class": name, "items": items}
        state = {k: v for k, v in vars(item).items() if k not in _recomputed(kind)}
        if isinstance(item, torch.nn.Module):
            return self._module(item, name, state, path)
        if isinstance(item, torch.distributions.Transform):
            state["_inv"] = None  # a weak reference to the inverse, which is made anew
        return {"type": "object", "class": name, "state": self._mapping(state, path)}

    def _module(
        self, item: torch.nn.Module, name: str, state: dict[str, Any], path: str
    ) -> dict[str, Any]:
        for key in MODULE_KEYS - _MODULE_PARTS:
            if state.get(key):
                _refuse(path, f"a module with hooks ({key})", "remove the hooks first")
        hooks = []
        for hook in list[Any](item._load_state_dict_pre_hooks.values()):
            if hook.with_module:
                _refuse(path, "a module with hooks for loading states", "remove the hooks first")
            hooks.append(self._value(hook.hook, f"{path}._load_state_dict_pre_hooks"))
        own = {k: v for k, v in state.items() if k not in MODULE_KEYS and not _is_cache(item, k)}
        if isinstance(item, gpytorch.kernels.Kernel) and "distance_module" in own:
            own["distance_module"] = None  # made anew when needed, as when a kernel is pickled
        return {
            "type": "module",
            "class": name,
            "training": item.training,
            "parameters": self._mapping(item._parameters, path),
            "buffers": self._mapping(item._buffers, path),
            "modules": self._mapping(item._modules, path),
            "transient_buffers": sorted(item._non_persistent_buffers_set),
            "load_hooks": hooks,
            "state": self._mapping(own, path),
        }


def _is_cache(module: torch.nn.Module, key: str) -> bool:
    """GPyTorch's name for what its kernels compute once in evaluation mode."""
    return isinstance(module, gpytorch.Module) and key.startswith("_cached_")


def _recomputed(cls: type) -> set[str]:
    """Attributes that are computed from the others when first asked for."""
    return {
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if isinstance(value, functools.cached_property)
    }


def _refuse(path: str, what: str, remedy: str) -> NoReturn:
    raise ModelFileError(f"{path} is {what}, which a file cannot hold; {remedy}.")

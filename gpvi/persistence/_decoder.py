"""From a table of nodes back to objects, without running anything that the table names.

Classes and functions are looked up in fixed tables, instances are made by ``object.__new__`` and filled
through their attribute dictionaries: no constructor, property or hook runs. First come the objects that
others may refer to before they are filled, then those that need their contents at birth (tuples), then
the contents of the first.
"""

import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gpvi.exceptions import ModelFileError
from gpvi.persistence._encoder import MODULE_KEYS
from gpvi.persistence._functions import FUNCTIONS, Accessor, find_method
from gpvi.persistence._tensors import TYPE_NAMES, decode_scalar, tensor_to_array, unpack
from gpvi.persistence.registry import CLASSES

_FLOATS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Decoder:
    """Rebuilds the object of one node table.

    Parameters
    ----------
    tensors : dict of str to Tensor
        What the nodes refer to, on the CPU.
    device : torch.device
        Where tensors go; arrays stay where they are.
    """

    def __init__(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self._tensors, self._device = tensors, device
        self._nodes: list[dict[str, Any]] = []
        self._built: dict[int, Any] = {}

    def decode(self, graph: dict[str, Any]) -> Any:
        """Object of a node table.

        Parameters
        ----------
        graph : dict
            From :meth:`Encoder.encode`.

        Returns
        -------
        object
            Equal to what was encoded.

        Raises
        ------
        ModelFileError
            For a class that is not registered and for anything malformed.
        """
        try:
            self._nodes = graph["nodes"]
            for number, node in enumerate(self._nodes):
                if node["type"] in self._BORN_EMPTY:
                    self._built[number] = self._BORN_EMPTY[node["type"]](self, node)
            for number in range(len(self._nodes)):
                self._build(number)
            for number, node in enumerate(self._nodes):
                if node["type"] in self._FILLED:
                    self._FILLED[node["type"]](self, self._built[number], node)
            return self._value(graph["root"])
        except _ERRORS as error:
            if isinstance(error, ModelFileError):
                raise
            raise ModelFileError(f"its contents are malformed ({error})") from error

    def _value(self, encoded: Any) -> Any:
        if not isinstance(encoded, dict):
            if isinstance(encoded, list):
                raise ValueError("a list where a value should be")
            return encoded
        ((form, content),) = encoded.items()
        if form == "ref":
            return self._built[content]
        if form == "float":
            return _FLOATS[content]
        if form == "dtype":
            return TYPE_NAMES[content]
        if form == "device":
            return torch.device(content)
        if form == "scalar":
            return decode_scalar(content)
        raise ValueError(f"unknown value {form!r}")

    def _build(self, start: int) -> None:
        """Make a node that needs its contents, after those; a stack, since tuples nest freely."""
        stack, visited = [start], set()
        while stack:
            number = stack[-1]
            if number in self._built:
                stack.pop()
                continue
            node = self._nodes[number]
            parts = [node["owner"]] if node["type"] == "method" else node["items"]
            references = [part["ref"] for part in parts if isinstance(part, dict) and "ref" in part]
            missing = [reference for reference in references if reference not in self._built]
            if not missing:
                self._built[number] = self._BORN_FULL[node["type"]](self, node)
            elif number in visited:
                raise ValueError("a tuple that contains itself")
            else:
                visited.add(number)
                stack.extend(missing)

    # What is born without its contents, or has none.

    def _tensor(self, node: dict[str, Any]) -> Tensor:
        value = unpack(self._tensors[node["data"]], node.get("order")).to(self._device)
        if node["type"] == "parameter":
            return torch.nn.Parameter(value, requires_grad=bool(node["requires_grad"]))
        return value.requires_grad_(bool(node["requires_grad"]))

    def _array(self, node: dict[str, Any]) -> np.ndarray:
        return tensor_to_array(
            unpack(self._tensors[node["data"]], node.get("order")), node.get("text")
        )

    def _object_array(self, node: dict[str, Any]) -> np.ndarray:
        values = [self._plain(item) for item in node["items"]]
        flat = np.empty(len(values), dtype=object)
        flat[:] = values
        if any(size < 0 for size in node["shape"]):
            raise ValueError("a negative size")
        return flat.reshape(node["shape"])

    def _plain(self, encoded: Any) -> Any:
        if isinstance(encoded, dict) and set(encoded) != {"float"}:
            raise ValueError("an array of objects")
        return self._value(encoded)

    def _set(self, node: dict[str, Any]) -> set[Any] | frozenset[Any]:
        members = (self._plain(item) for item in node["items"])
        return set(members) if node["type"] == "set" else frozenset(members)

    def _function(self, node: dict[str, Any]) -> Callable:
        if node["name"] not in FUNCTIONS:
            raise ModelFileError(
                f"the file needs the function {node['name']!r}, which this version does not know"
            )
        return FUNCTIONS[node["name"]]

    def _accessor(self, node: dict[str, Any]) -> Accessor:
        return Accessor(node["form"], node["name"])

    def _shell(self, node: dict[str, Any]) -> Any:
        cls = _find_class(node["class"])
        is_module = issubclass(cls, torch.nn.Module)
        if is_module != (node["type"] == "module") or issubclass(cls, tuple):
            raise ValueError(f"{node['class']} is no {node['type']}")
        return object.__new__(cls)

    # What needs its contents.

    def _sequence(self, node: dict[str, Any]) -> Any:
        items = [self._value(item) for item in node["items"]]
        if node["type"] != "named_tuple":
            return tuple(items) if node["type"] == "tuple" else torch.Size(items)
        cls = _find_class(node["class"])
        if not issubclass(cls, tuple) or len(items) != len(cls._fields):  # type: ignore[attr-defined]
            raise ValueError(f"{node['class']} does not have {len(items)} items")
        return tuple.__new__(cls, items)

    def _method(self, node: dict[str, Any]) -> types.MethodType:
        owner = self._value(node["owner"])
        function = find_method(type(owner), node["name"])
        if function is None or CLASSES.name_of(type(owner)) is None:
            raise ValueError(f"{type(owner).__name__} has no method {node['name']!r}")
        return types.MethodType(function, owner)

    # The contents of what was born empty.

    def _fill_list(self, target: list[Any], node: dict[str, Any]) -> None:
        target.extend(self._value(item) for item in node["items"])

    def _fill_dict(self, target: dict[str, Any], node: dict[str, Any]) -> None:
        target.update(self._mapping(node["items"]))

    def _fill_object(self, target: Any, node: dict[str, Any]) -> None:
        vars(target).update(self._mapping(node["state"]))

    def _fill_module(self, target: torch.nn.Module, node: dict[str, Any]) -> None:
        state = self._mapping(node["state"])
        if not MODULE_KEYS.isdisjoint(state):
            raise ValueError("module internals among the attributes")
        # Fresh containers for hooks, as every module has them.
        content = vars(torch.nn.Module()) | state
        content["training"] = bool(node["training"])
        parts = (
            ("parameters", torch.nn.Parameter | Tensor),
            ("buffers", Tensor),
            ("modules", torch.nn.Module),
        )
        for part, kind in parts:
            members = self._mapping(node[part])
            if not all(value is None or isinstance(value, kind) for value in members.values()):
                raise ValueError(f"{part} of a wrong type")
            content[f"_{part}"] = members
        content["_non_persistent_buffers_set"] = {str(n) for n in node["transient_buffers"]}
        vars(target).update(content)
        for hook in node["load_hooks"]:
            target._register_load_state_dict_pre_hook(self._value(hook))

    def _mapping(self, items: dict[str, Any]) -> dict[str, Any]:
        return {key: self._value(value) for key, value in items.items()}

    _BORN_EMPTY: ClassVar[dict[str, Callable]] = {
        "list": lambda self, node: [],
        "dict": lambda self, node: {},
        "ordered_dict": lambda self, node: OrderedDict(),
        "set": _set,
        "frozenset": _set,
        "tensor": _tensor,
        "parameter": _tensor,
        "array": _array,
        "object_array": _object_array,
        "function": _function,
        "accessor": _accessor,
        "object": _shell,
        "module": _shell,
    }
    _BORN_FULL: ClassVar[dict[str, Callable]] = {
        "tuple": _sequence,
        "size": _sequence,
        "named_tuple": _sequence,
        "method": _method,
    }
    _FILLED: ClassVar[dict[str, Callable]] = {
        "list": _fill_list,
        "dict": _fill_dict,
        "ordered_dict": _fill_dict,
        "object": _fill_object,
        "module": _fill_module,
    }


def _find_class(name: Any) -> type:
    if not isinstance(name, str):
        raise ValueError("a class without a name")
    cls = CLASSES.get(name)
    if cls is None:
        raise ModelFileError(
            f"the file needs the class {name!r}, which is not registered; import the module that defines "
            f"it and call gpvi.persistence.register_class({name.rpartition('.')[2]})"
        )
    return cls

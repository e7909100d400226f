"""Numbers, containers, arrays, tensors and plain objects come back as they were."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpvi.exceptions import InputError, ModelFileError
from gpvi.persistence import load_object, register_class, save_object

RoundTrip = Callable[..., Any]


@register_class
@dataclass(frozen=True, eq=False)
class Record:
    """A frozen dataclass with something computed on demand."""

    name: str
    values: torch.Tensor
    others: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert isinstance(self.values, torch.Tensor)

    @cached_property
    def total(self) -> torch.Tensor:
        return self.values.sum()


@register_class
class Node:
    """An object that can point at itself."""

    def __init__(self) -> None:
        self.next = self


@register_class
class Pair(NamedTuple):
    """A named tuple."""

    first: Any
    second: Any


PLAIN = [
    None,
    True,
    False,
    0,
    -(2**70),
    0.1,
    math.inf,
    -math.inf,
    "",
    "µ \ud800 \0 \" {'ref': 0}",
    [],
    [1, [2.5, "x"], None],
    (),
    (1, (2,)),
    {},
    {"b": 1, "a": {"ref": 3}, "float": "nan"},
    OrderedDict(z=1, a=2),
    {"x"},
    frozenset(),
    torch.Size([2, 0, 3]),
    torch.float64,
    torch.complex128,
    torch.device("cpu"),
    torch.device("cuda", 1),
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values(value: Any, round_trip: RoundTrip) -> None:
    loaded = round_trip(value)
    assert loaded == value
    assert repr(loaded) == repr(value)


def test_sets(round_trip: RoundTrip) -> None:
    members = {"x", "y", 1, 2, None, 2.5}
    assert round_trip(members) == members
    assert round_trip(frozenset(members)) == members


def test_special_numbers(round_trip: RoundTrip) -> None:
    nan, negative_zero, tiny = round_trip([math.nan, -0.0, 5e-324])
    assert math.isnan(nan)
    assert math.copysign(1.0, negative_zero) == -1.0
    assert tiny == 5e-324


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner, inner)
        | st.builds(np.float64, st.floats(allow_nan=False))
    ),
    max_leaves=15,
)


@settings(max_examples=25)
@given(value=VALUES)
def test_any_mixture(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "mixture.gpvi"
    save_object(path, value, kind="mixture")
    loaded = load_object(path, kind="mixture")
    assert repr(loaded) == repr(value)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.int8,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_tensors(dtype: torch.dtype, shape: tuple[int, ...], round_trip: RoundTrip) -> None:
    value = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    loaded = round_trip(value)
    assert loaded.dtype == dtype and loaded.shape == value.shape
    assert torch.equal(loaded, value)


def test_tensor_bits_and_flags(round_trip: RoundTrip) -> None:
    values = torch.tensor([math.nan, -0.0, math.inf, 5e-324], dtype=torch.float64)
    parameter = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    leaf = torch.ones(2, requires_grad=True)
    bits, frozen, free = round_trip([values, parameter, leaf])
    assert torch.equal(bits.view(torch.int64), values.view(torch.int64))
    assert type(frozen) is torch.nn.Parameter and not frozen.requires_grad
    assert type(free) is torch.Tensor and free.requires_grad and free.is_leaf


def test_memory_layout_is_kept(round_trip: RoundTrip) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    for value in (base.mT, base.permute(2, 0, 1), torch.arange(6.0).reshape(2, 3).mT):
        loaded = round_trip(value)
        assert torch.equal(loaded, value) and loaded.stride() == value.stride()
    for value in (base[:, ::2], base[..., 1], torch.ones(1, 3).expand(5, 3), base.flip(0)):
        loaded = round_trip(value)
        assert torch.equal(loaded, value) and loaded.is_contiguous()


def test_conjugates_are_resolved(round_trip: RoundTrip) -> None:
    value = torch.tensor([1 + 2j, -3j], dtype=torch.complex64)
    assert torch.equal(round_trip(value.conj()), value.conj().resolve_conj())


ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::-1],
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array(3.5, dtype=np.float32),
    np.array([], dtype=np.int64),
    np.array([True, False]),
    np.arange(4, dtype=">f8"),
    np.array(["no", "yes", "µ-law"]),
    np.array([["a", "b"], ["", "d"]], dtype="<U7")[:, ::-1],
    np.array([], dtype="<U3"),
    np.array("one"),
    np.array([b"no", b"yes"]),
    np.array(["no", 1, 2.5, None, True, math.inf], dtype=object),
    np.empty((2, 0), dtype=object),
]


@pytest.mark.parametrize("value", ARRAYS, ids=repr)
def test_arrays(value: np.ndarray, round_trip: RoundTrip) -> None:
    loaded = round_trip(value)
    assert type(loaded) is np.ndarray
    assert loaded.shape == value.shape
    assert loaded.dtype == value.dtype.newbyteorder("=")
    assert loaded.tolist() == value.tolist()
    assert loaded.flags.writeable
    assert loaded.flags.f_contiguous == value.flags.f_contiguous or not value.flags.forc


def test_arrays_that_must_not_be_written(round_trip: RoundTrip) -> None:
    value = np.arange(3.0)
    value.flags.writeable = False
    assert np.array_equal(round_trip(value), value)


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.1),
        np.float32(0.1),
        np.int8(-3),
        np.bool_(True),
        np.str_("a"),
        np.complex128(1j),
    ],
    ids=repr,
)
def test_numpy_scalars(value: np.generic, round_trip: RoundTrip) -> None:
    loaded = round_trip(value)
    assert loaded == value and loaded.dtype == value.dtype


def test_shared_references_stay_shared(round_trip: RoundTrip) -> None:
    tensor, array, items = torch.ones(2), np.ones(2), [1]
    value = {"a": [tensor, array, items], "b": (tensor, array, items)}
    value["self"] = value  # type: ignore[assignment]
    loaded = round_trip(value)
    assert loaded["self"] is loaded
    assert all(x is y for x, y in zip(loaded["a"], loaded["b"], strict=True))
    # Equal is not the same.
    first, second = round_trip([torch.ones(1), torch.ones(1)])
    assert first is not second


def test_objects_and_cycles(round_trip: RoundTrip) -> None:
    node = Node()
    assert round_trip(node).next is not node
    loaded = round_trip(node)
    assert loaded.next is loaded
    items: list[Any] = []
    items.append((1, Pair(items, 2)))
    again = round_trip(items)
    assert again[0][1].first is again and isinstance(again[0][1], Pair)


def test_dataclasses_lose_what_is_computed_on_demand(round_trip: RoundTrip) -> None:
    record = Record("r", torch.arange(3.0))
    record.others.append(record)
    assert record.total == 3.0
    loaded = round_trip(record)
    assert "total" not in vars(loaded)
    assert loaded.total == 3.0 and loaded.others[0] is loaded
    with pytest.raises(FrozenInstanceError):
        loaded.name = "other"


def test_deep_nesting_needs_no_recursion(round_trip: RoundTrip) -> None:
    value: Any = 1.0
    for level in range(6_000):
        value = [value] if level % 2 else (value,)
    loaded = round_trip(value)
    depth = 0
    while isinstance(loaded, list | tuple):
        (loaded,) = loaded
        depth += 1
    assert depth == 6_000 and loaded == 1.0


def test_loading_in_inference_mode_gives_ordinary_tensors(tmp_path: Path) -> None:
    save_object(tmp_path / "t", torch.ones(2), kind="tensor")
    with torch.inference_mode():
        loaded = load_object(tmp_path / "t", kind="tensor")
    assert isinstance(loaded, torch.Tensor) and not loaded.is_inference()


def test_device(tmp_path: Path) -> None:
    path = tmp_path / "t"
    save_object(path, {"tensor": torch.ones(2), "array": np.ones(2)}, kind="things")
    loaded: Any = load_object(path, kind="things", device=torch.device("meta"))
    assert loaded["tensor"].device.type == "meta"
    assert np.array_equal(loaded["array"], np.ones(2))
    with pytest.raises(InputError, match="device is 'nowhere'"):
        load_object(path, kind="things", device="nowhere")


class Unknown:
    """Nobody registered this."""


class Tagged(torch.Tensor):
    """A tensor class of its own."""


REFUSED = {
    "class": (Unknown(), r"thing\.a\[0\] is of the class .*Unknown, which is not registered"),
    "type": (Unknown, "is of the class builtins.type"),
    "lambda": (lambda x: 2 * x, r"thing\.a\[0\] is the function .*lambda"),
    "builtin": (eval, "is the function builtins.eval"),
    "key": ({1: 2}, "a dictionary with the key 1"),
    "set": ({(1, 2)}, "a set that holds a tuple"),
    "bytes": (b"x", "builtins.bytes"),
    "graph": (torch.ones(1, requires_grad=True) * 2, "on the autograd graph"),
    "sparse": (torch.eye(2).to_sparse(), "sparse_coo"),
    "meta": (torch.ones(2, device="meta"), "meta"),
    "complex": (torch.ones(2, dtype=torch.complex128), "complex128"),
    "tensor class": (torch.ones(2).as_subclass(Tagged), "a tensor of the class Tagged"),
    "objects": (np.array([Unknown()], dtype=object), "an array that holds a Unknown"),
    "dates": (np.array(["2020-01-01"], dtype="datetime64[D]"), "datetime64"),
    "date": (np.datetime64("2020-01-01"), "a NumPy datetime64"),
    "fields": (np.zeros(2, dtype=[("a", "f8")]), "an array of type"),
    "masked": (np.ma.masked_array([1.0]), "MaskedArray"),
    "integer": (1 << 20_000, "an integer of 20001 bits"),
    "generator": (torch.Generator(), "Generator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_saving(name: str, tmp_path: Path) -> None:
    value, message = REFUSED[name]
    with pytest.raises(ModelFileError, match=message):
        save_object(tmp_path / "x", {"a": [value]}, kind="thing")
    assert list(tmp_path.iterdir()) == []

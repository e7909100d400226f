"""Tensors and arrays as the plain, contiguous tensors that a file holds, and back.

The order of the dimensions in memory is kept, because products of the same numbers in another layout
round differently, and a loaded model shall predict what the saved one did, bit for bit.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Every tensor type, by name: a value of its own in some objects.
TYPE_NAMES: dict[str, torch.dtype] = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}
#: Types of tensors that safetensors files hold exactly, by name.
DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
    )
}
#: Types of NumPy numbers that files hold, by name.
NUMPY_TYPES = {
    np.dtype(name).type: name for name in [n for n in DTYPES if n != "bfloat16"] + ["complex128"]
}
_MAX_CODE_POINT = 0x10FFFF


def pack(tensor: Tensor) -> tuple[Tensor, list[int] | None]:
    """Contiguous copy, and the order of dimensions in memory if it is not the usual one."""
    value = tensor.detach().resolve_conj().resolve_neg().cpu()
    strides = value.stride()
    order = sorted(range(value.dim()), key=lambda d: (-strides[d], d))
    usual = order == list(range(value.dim())) or not value.permute(order).is_contiguous()
    if not usual:
        value = value.permute(order)
    return value.clone(memory_format=torch.contiguous_format), None if usual else order


def unpack(data: Tensor, order: list[int] | None) -> Tensor:
    """What :func:`pack` took, off any graph."""
    if order is None:
        return data
    if sorted(order) != list(range(data.dim())):
        raise ValueError("malformed order of dimensions")
    return data.permute([order.index(d) for d in range(data.dim())])


def array_to_tensor(array: np.ndarray) -> tuple[Tensor, str | None]:
    """Tensor with the contents of a numeric, boolean, text or bytes array; the kind of text, if any.

    Text becomes a tensor of code points, one more dimension long.
    """
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind in "US":
        unit = np.dtype(np.uint32 if array.dtype.kind == "U" else np.uint8)
        width = array.dtype.itemsize // unit.itemsize
        flat = np.ascontiguousarray(native).reshape(-1).view(unit).reshape(*array.shape, width)
        return torch.from_numpy(flat.copy()), array.dtype.kind
    # A copy in the same layout: PyTorch takes neither read-only arrays nor backward strides.
    copied = native.copy(order="K")
    plain = min(copied.strides, default=0) >= 0
    return torch.from_numpy(copied if plain else np.ascontiguousarray(copied)), None


def tensor_to_array(tensor: Tensor, text: str | None) -> np.ndarray:
    """What :func:`array_to_tensor` took."""
    values = tensor.numpy()
    if text is None:
        return values
    if text not in ("U", "S") or values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError("malformed text array")
    if text == "U" and values.size and int(values.max()) > _MAX_CODE_POINT:
        raise ValueError("malformed characters")
    unit = np.dtype(np.uint32 if text == "U" else np.uint8)
    if values.dtype != unit:
        raise ValueError("malformed text array")
    shape, width = values.shape[:-1], values.shape[-1]
    return np.ndarray(shape, dtype=f"{text}{width}", buffer=np.ascontiguousarray(values)).copy()


def encode_scalar(value: np.generic) -> Any:
    """JSON form of a NumPy scalar, exact; None if it is of another type."""
    if isinstance(value, np.str_):
        return ["str", str(value)]
    name = NUMPY_TYPES.get(type(value))
    return None if name is None else [name, value.tobytes().hex()]


def decode_scalar(encoded: Any) -> np.generic:
    """What :func:`encode_scalar` took."""
    name, text = encoded
    if name == "str":
        return np.str_(text)
    dtype, content = np.dtype({n: t for t, n in NUMPY_TYPES.items()}[name]), bytes.fromhex(text)
    if len(content) != dtype.itemsize:
        raise ValueError("malformed number")
    return np.frombuffer(content, dtype=dtype)[0]

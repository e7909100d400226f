"""The file around a saved object: safetensors with one JSON document in its header.

The document names the format and its version, the software, the kind of object and a SHA-256 digest of
everything else, so that a damaged file is recognised before anything is built from it. The digest is
against accidents; against malice stands the reader, which builds known classes only.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gpytorch
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpvi.exceptions import InputError, ModelFileError
from gpvi.persistence._decoder import Decoder
from gpvi.persistence._encoder import Encoder

__all__ = ["load_object", "save_object"]

#: Version of the files that are written; older ones can be read, newer ones are refused.
FORMAT_VERSION = 1
_FORMAT = "gpvi object"
_KEY = "gpvi"
# safetensors refuses headers above 100 MB; the rest of the header needs room too.
_MAX_DOCUMENT = 90_000_000


def save_object(path: str | os.PathLike, obj: object, *, kind: str) -> None:
    """Write an object with everything it holds to one file.

    The file appears whole or not at all: it is written beside the target and renamed. Equal objects
    give equal files. Values computed on demand and gradients are left out.

    Parameters
    ----------
    path : path-like
        Target; an existing file is replaced.
    obj : object
        Modules, dataclasses and plain objects of registered classes, containers, tensors, arrays,
        numbers and strings, in any mixture. Shared and circular references are kept.
    kind : str
        What the object is, for instance "GPRegressor"; asked for again when loading.

    Raises
    ------
    ModelFileError
        If a part cannot be saved; the message holds its path inside the object.
    InputError
        If ``kind`` is not a string or empty.
    FileNotFoundError
        If the folder does not exist.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from gpytorch.kernels import RBFKernel
    >>> from gpvi.persistence import load_object, save_object
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_object(Path(folder, "kernel.gpvi"), RBFKernel(), kind="kernel")
    ...     load_object(Path(folder, "kernel.gpvi"), kind="kernel").lengthscale.item()
    0.6931471824645996
    """
    _check_kind(kind)
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; make it first.")
    encoder = Encoder(kind)
    document = {
        "software": {
            "gpvi": version("gpvi"),
            "gpytorch": gpytorch.__version__,
            "torch": torch.__version__,
        },
        "kind": kind,
        "graph": encoder.encode(obj),
    }
    digest = _digest(document, encoder.tensors)
    whole = {"format": _FORMAT, "version": FORMAT_VERSION, "digest": digest, "document": document}
    text = _json(whole)
    if len(text) > _MAX_DOCUMENT:
        raise ModelFileError(
            f"{kind} needs {len(text) / 1e6:.0f} MB besides its tensors, more than a file's header may "
            "hold; turn long lists into arrays."
        )
    _write(target, encoder.tensors, {_KEY: text})


def load_object(
    path: str | os.PathLike, *, kind: str, device: str | torch.device = "cpu"
) -> object:
    """Read what :func:`save_object` wrote.

    Nothing in the file is executed or imported: classes are looked up among GPyTorch's, gpvi's and those
    given to :func:`register_class`, and instances are filled without calling their constructors.

    Parameters
    ----------
    path : path-like
        The file.
    kind : str
        What the object must be, as given when saving.
    device : str or torch.device
        Where its tensors go.

    Returns
    -------
    object
        Equal to what was saved.

    Raises
    ------
    ModelFileError
        If the file is something else, damaged, of a newer version or another kind, or if it needs a
        class that is not registered.
    InputError
        If ``kind`` or ``device`` is no valid one.
    FileNotFoundError
        If there is no such file.
    """
    _check_kind(kind)
    place = _device(device)
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}.")
    # Whatever the caller's mode: on an inference tensor nothing could ever be trained.
    with torch.inference_mode(False):
        header, tensors = _read(source)
        document = _checked_document(source, header, tensors)
        if document.get("kind") != kind:
            raise ModelFileError(
                f"{source} holds a {document.get('kind')}, not a {kind}; load it as what it is."
            )
        try:
            return Decoder(tensors, place).decode(document["graph"])
        except ModelFileError as error:
            raise ModelFileError(f"{source} cannot be loaded: {error}.") from error.__cause__


def _check_kind(kind: str) -> None:
    if not isinstance(kind, str) or not kind:
        raise InputError(f"kind must be a string that is not empty, got {kind!r}.")


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device is {device!r}; pass for instance 'cpu' or 'cuda:0'.") from error


def _write(target: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    # A name of its own, so that two savers never write into one file; the folder is the same, since
    # files are only renamed atomically within a file system.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    try:
        temporary.touch(exist_ok=False)
        permissions = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{target} cannot be written ({error}).") from error
        # The library makes files that their owner alone can read.
        temporary.chmod(permissions)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _read(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parsed document and tensors of a file that claims to be ours."""
    try:
        with safe_open(str(source), framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(_KEY)
            # Copies: what the library hands out is the file itself, mapped into memory.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        header = json.loads(text) if text is not None else None
    # Damaged files raise errors of many kinds inside the library.
    except Exception as error:
        if isinstance(error, PermissionError):
            raise
        if _begins_like_ours(source):
            raise ModelFileError(
                f"{source} is damaged or cut short; restore or save it again."
            ) from error
        raise _not_ours(source) from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise _not_ours(source)
    return header, tensors


def _checked_document(
    source: Path, header: dict[str, Any], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    number = header.get("version")
    if isinstance(number, int) and number > FORMAT_VERSION:
        raise ModelFileError(
            f"{source} is in format version {number} and this gpvi reads up to {FORMAT_VERSION}; "
            "install the gpvi that wrote it, or a newer one."
        )
    document = header.get("document")
    try:
        intact = isinstance(document, dict) and header.get("digest") == _digest(document, tensors)
    except (ValueError, RecursionError):  # a hand-made document that JSON cannot spell
        intact = False
    if number != FORMAT_VERSION or not intact:
        raise ModelFileError(
            f"{source} is damaged: its contents do not have the digest that was saved with them; restore "
            "or save it again."
        )
    assert isinstance(document, dict)
    return document


def _not_ours(source: Path) -> ModelFileError:
    return ModelFileError(f"{source} is not a model saved by gpvi; pass a file that was.")


def _begins_like_ours(source: Path) -> bool:
    if not source.is_file():
        return False
    with source.open("rb") as file:
        return f'"{_KEY}":"{{'.encode() in file.read(64)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _digest(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the document and the name, type, shape and bytes of every tensor."""
    digest = hashlib.sha256(_json(document).encode())
    for name, tensor in sorted(tensors.items()):
        head = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(b"\n" + _json(head).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

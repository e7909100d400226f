"""Checkpoints from which a fit that was killed at any moment resumes to the same result.

A full-batch fit is a deterministic function of its objective evaluations, so its checkpoint is the list
of them: :class:`EvaluationLog` appends every value and gradient to a file and, on resume, plays them back
to the optimiser, which then stands exactly where it stood. A record that was cut short by the kill is
dropped. A minibatch fit writes its whole state instead, atomically (:func:`save_state`).
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = ["EvaluationLog", "fingerprint", "load_state", "module_settings", "save_state"]

_VERSION = 1
_MAGIC = b"gpvi-evaluations\n"
_HEAD = struct.Struct("<QI")  # payload length in bytes, checksum


def fingerprint(tensors: Iterable[Tensor | None], settings: dict[str, object]) -> str:
    """Digest of data and settings, so that a checkpoint is not resumed with others.

    Parameters
    ----------
    tensors : iterable of Tensor or None
        Data and starting parameters.
    settings : dict
        JSON-serialisable settings.

    Returns
    -------
    str
        Hexadecimal digest.

    Examples
    --------
    >>> len(fingerprint([None], {"max_iter": 3}))
    64
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
        else:
            array = tensor.detach().cpu().contiguous().numpy()
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def module_settings(module: torch.nn.Module) -> list[list[object]]:
    """Classes and plain options in a module tree: what its tensors do not tell.

    Parameters
    ----------
    module : torch.nn.Module
        Kernel, approximation, likelihood.

    Returns
    -------
    list
        Path, class name and options (numbers, strings, flags) of every submodule, JSON-serialisable.

    Examples
    --------
    >>> import gpytorch
    >>> smooth, rough = (gpytorch.kernels.MaternKernel(nu=nu) for nu in (2.5, 0.5))
    >>> module_settings(smooth) == module_settings(rough)
    False
    """
    plain = (bool, int, float, str, type(None))
    return [
        [
            path,
            f"{type(part).__module__}.{type(part).__qualname__}",
            {k: v for k, v in vars(part).items() if isinstance(v, plain) and k != "training"},
        ]
        for path, part in module.named_modules()
    ]


class EvaluationLog:
    """Append-only file of objective evaluations that can be played back.

    Parameters
    ----------
    path : path-like
        File to append to; created if missing.
    digest : str
        From :func:`fingerprint`; a file with another digest is refused.

    Raises
    ------
    InputError
        If the file is something else, or belongs to another fit.
    """

    def __init__(self, path: str | os.PathLike, digest: str) -> None:
        self.path = Path(path)
        self._header = _MAGIC + json.dumps({"version": _VERSION, "fit": digest}).encode() + b"\n"
        self._pending: list[np.ndarray] = []
        if self.path.exists() and self.path.stat().st_size:
            self._pending = self._read()
        else:
            self.path.write_bytes(self._header)

    def replay(self) -> np.ndarray | None:
        """Next stored record, or None once all have been played back.

        Returns
        -------
        ndarray of float64 or None
            As given to :meth:`append`.
        """
        return self._pending.pop(0) if self._pending else None

    def append(self, record: np.ndarray) -> None:
        """Store one record durably.

        Parameters
        ----------
        record : ndarray of float64, one-dimensional
            For instance objective and gradient.
        """
        payload = np.ascontiguousarray(record, dtype="<f8").tobytes()
        with self.path.open("ab") as file:
            file.write(_HEAD.pack(len(payload), zlib.crc32(payload)) + payload)
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> list[np.ndarray]:
        content = self.path.read_bytes()
        if self._header.startswith(content):  # killed before anything was evaluated
            self.path.write_bytes(self._header)
            return []
        if not content.startswith(_MAGIC):
            raise InputError(
                f"{self.path} is not a gpvi checkpoint; delete it or name another file."
            )
        if not content.startswith(self._header):
            raise InputError(
                f"{self.path} belongs to a fit with other data, settings or starting values; delete it "
                "or name another file."
            )
        records, position = [], len(self._header)
        while position + _HEAD.size <= len(content):
            length, checksum = _HEAD.unpack_from(content, position)
            payload = content[position + _HEAD.size : position + _HEAD.size + length]
            if len(payload) < length or zlib.crc32(payload) != checksum:
                break
            records.append(np.frombuffer(payload, dtype="<f8").copy())
            position += _HEAD.size + length
        # Cut a torn record off, so that what is appended next can be read.
        with self.path.open("r+b") as file:
            file.truncate(position)
        return records


def save_state(
    path: str | os.PathLike, digest: str, tensors: dict[str, Tensor], state: dict[str, object]
) -> None:
    """Write the state of a fit atomically: the file is the old one or the new one, never half.

    Parameters
    ----------
    path : path-like
        Target file (safetensors format).
    digest : str
        From :func:`fingerprint`.
    tensors : dict of str to Tensor
        Tensors by name.
    state : dict
        JSON-serialisable rest.
    """
    metadata = {"gpvi": json.dumps({"version": _VERSION, "fit": digest, "state": state})}
    target = Path(path)
    temporary = target.with_name(target.name + ".partial")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)


def load_state(
    path: str | os.PathLike, digest: str
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read what :func:`save_state` wrote; None if the file does not exist.

    Parameters
    ----------
    path : path-like
        The file.
    digest : str
        From :func:`fingerprint`.

    Returns
    -------
    (tensors, state) or None
        As saved, on the CPU.

    Raises
    ------
    InputError
        If the file is something else, damaged, or belongs to another fit.
    """
    if not Path(path).exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["gpvi"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} is not a gpvi checkpoint or is damaged ({error}); delete it or name another file."
        ) from error
    if header.get("version") != _VERSION or header.get("fit") != digest:
        raise InputError(
            f"{path} belongs to a fit with other data, settings or starting values; delete it or name "
            "another file."
        )
    return tensors, header["state"]

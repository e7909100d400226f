"""Where the straight-line passes come from: the package, or a folder of this user's."""

import importlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from gpvi.exceptions import InputError
from gpvi.linalg.markov._generated_lines import Signature
from gpvi.linalg.markov._generator import passes_source, signature_tag

__all__ = ["checked_in", "generated"]


def checked_in(signature: Signature) -> ModuleType:
    """Module of a list of blocks that comes with the package."""
    return importlib.import_module(f"gpvi.linalg.markov._passes_{signature_tag(signature)}")


def generated(signature: Signature) -> ModuleType:
    """Module of a list of blocks, written on first use to a file that Numba can cache beside."""
    source = passes_source(signature)
    name = f"gpvi_passes_{signature_tag(signature)}"
    if name in sys.modules:
        return sys.modules[name]
    path = _cache_folder() / f"{name}.py"
    # Numba's cache goes by the file's time: leave a file alone that is right already.
    if not path.exists() or path.read_text() != source:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            file.write(source)
        os.replace(file.name, path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"Generated code cannot be imported from {path}; set GPVI_CACHE_DIR.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def _cache_folder() -> Path:
    """A folder of this user's where files can be written."""
    home = os.environ.get("GPVI_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "gpvi"
    )
    for folder in (Path(home), Path(tempfile.gettempdir()) / f"gpvi-{os.getuid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return folder
    raise InputError(
        "No folder for generated code can be written; set GPVI_CACHE_DIR to one that is yours."
    )

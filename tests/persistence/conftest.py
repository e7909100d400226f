"""Saving and loading in one step, with what must hold for every object."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpvi.persistence import load_object, save_object


@pytest.fixture
def round_trip(tmp_path: Path) -> Callable[[Any], Any]:
    """Save, load, and save again: the second file must equal the first, byte by byte."""

    def run(value: Any, **options: Any) -> Any:
        first, second = tmp_path / "first.gpvi", tmp_path / "second.gpvi"
        save_object(first, value, kind="object")
        loaded = load_object(first, kind="object", **options)
        assert type(loaded) is type(value)
        save_object(second, loaded, kind="object")
        assert second.read_bytes() == first.read_bytes()
        return loaded

    return run

"""Which compiled passes serve a model, generated modules, and small helpers."""

import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from gpvi.exceptions import InputError
from gpvi.linalg.markov import _compiled as compiled
from gpvi.linalg.markov import _generated_code as generated_code
from gpvi.linalg.markov._compiled import (
    CascadePasses,
    PackedPasses,
    choose_passes,
    element,
    to_double,
    unpack,
)
from gpvi.linalg.markov.dense_blocks import ScaledBlock
from gpvi.linalg.markov.model import MarkovModel, Steps
from gpvi.linalg.markov.smoothing import markov_smooth

OTHER = ((0, True, False), (0, False, True))
NAME = "gpvi_passes_m0_v0"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no module left over from another one."""
    monkeypatch.setenv("GPVI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield tmp_path / "cache"
    sys.modules.pop(NAME, None)


def test_common_models_have_straight_line_code(dense: ModuleType) -> None:
    steps = dense.stamps(4)
    for name in ("matern12", "matern32", "matern52", "matern72", "hida32", "batch"):
        assert isinstance(choose_passes(dense.MODELS[name], steps), CascadePasses)
    for name in ("hida52", "cosine", "wiener", "sum"):
        assert isinstance(choose_passes(dense.MODELS[name], steps), PackedPasses)


def test_other_readouts_and_blocks_take_loops(dense: ModuleType) -> None:
    steps, block = dense.stamps(4), dense.matern(1)
    rows = MarkovModel((block,), rows=torch.ones(4, 2).double())
    scaled = MarkovModel((ScaledBlock(block, torch.tensor(2.0).double()),))
    for model in (rows, scaled):
        assert isinstance(choose_passes(model, steps), PackedPasses)


def test_long_series_get_code_of_their_own(
    dense: ModuleType, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps = MarkovModel((dense.matern(0), dense.cosine())), dense.stamps(4)
    monkeypatch.setattr(compiled, "_MIN_ROWS", 5)
    assert isinstance(choose_passes(model, steps), PackedPasses)
    monkeypatch.setattr(compiled, "_MIN_ROWS", 4)
    assert isinstance(choose_passes(model, steps), CascadePasses)
    assert (cache / f"{NAME}.py").exists()
    monkeypatch.setattr(compiled, "_MAX_DIMENSION", 2)
    assert isinstance(choose_passes(model, steps), PackedPasses)


def test_a_right_file_is_left_alone_and_a_wrong_one_replaced(cache: Path) -> None:
    path = Path(generated_code.generated(OTHER).__file__)
    assert path.parent == cache and path.stat().st_uid == os.getuid()
    source = path.read_text()
    os.utime(path, (1.0, 1.0))
    assert generated_code.generated(OTHER) is sys.modules[NAME]
    sys.modules.pop(NAME)
    generated_code.generated(OTHER)
    assert path.stat().st_mtime == 1.0
    path.write_text("broken = ")
    sys.modules.pop(NAME)
    generated_code.generated(OTHER)
    assert path.read_text() == source
    assert [p.name for p in cache.iterdir() if p.is_file()] == [path.name]


def test_a_folder_that_cannot_be_used_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    monkeypatch.setenv("GPVI_CACHE_DIR", str(occupied))
    monkeypatch.setattr(generated_code.tempfile, "gettempdir", lambda: str(tmp_path))
    assert generated_code._cache_folder() == tmp_path / f"gpvi-{os.getuid()}"
    monkeypatch.setattr(generated_code.tempfile, "gettempdir", lambda: str(occupied))
    with pytest.raises(InputError, match="GPVI_CACHE_DIR"):
        generated_code._cache_folder()


@pytest.mark.slow
def test_generated_code_compiled(
    dense: ModuleType, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps = MarkovModel((dense.matern(0), dense.cosine())), dense.stamps(20, series=2)
    monkeypatch.setattr(compiled, "_MIN_ROWS", 1)
    lam1, lam2 = (site.requires_grad_() for site in dense.sites(20))
    expected = dense.posterior(model, steps, lam1, lam2)
    smoothed = markov_smooth(model, steps, lam1, lam2)
    variance = expected.covariance.diagonal()
    torch.testing.assert_close(smoothed.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(smoothed.variance, variance, rtol=1e-12, atol=1e-12)
    slopes = torch.autograd.grad((smoothed.mean * smoothed.variance).sum(), (lam1, lam2))
    others = torch.autograd.grad((expected.mean * variance).sum(), (lam1, lam2))
    torch.testing.assert_close(slopes, others, rtol=1e-11, atol=1e-11)
    assert (cache / f"{NAME}.py").exists()


def test_to_double_keeps_the_graph_and_what_is_double_already(dense: ModuleType) -> None:
    rate = torch.tensor(1.5, requires_grad=True)
    model = MarkovModel((dense.matern(1, rate, dtype=torch.float32),))
    wide = to_double(model)
    assert wide.blocks[0].rate.dtype == wide.blocks[0].start.dtype == torch.float64
    assert type(wide.blocks[0]) is type(model.blocks[0]) and wide.blocks[0].damped
    wide.blocks[0].rate.backward()
    assert rate.grad == 1.0
    assert to_double(wide) is wide
    steps = Steps.single(torch.arange(3.0))
    assert to_double(steps).time.dtype == torch.float64
    assert to_double(steps).starts.dtype == torch.int64


def test_unpack_rebuilds_symmetric_matrices() -> None:
    rows = np.arange(10.0).reshape(2, 5)
    vector, matrix = unpack(rows, 2)
    assert vector.tolist() == [[0.0, 1.0], [5.0, 6.0]]
    assert matrix.tolist() == [[[2.0, 3.0], [3.0, 4.0]], [[7.0, 8.0], [8.0, 9.0]]]


def test_elements_of_shared_and_batched_tensors() -> None:
    shared, batched = torch.zeros(1, 2), torch.arange(6.0).view(3, 2)
    one, two = element((shared, batched), 2)
    assert one.tolist() == [0.0, 0.0] and two.tolist() == [4.0, 5.0]

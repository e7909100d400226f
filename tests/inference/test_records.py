"""Records of a fit and the progress bar."""

import io
import sys

from gpvi.inference import FitRecord, ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(evaluation: int) -> FitRecord:
    return FitRecord("full batch", evaluation, -3.25, -3.0, 0.1, 0.5)


def test_record_defaults():
    assert record(1).failed is False


def test_bar_is_silent_without_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = ProgressBar(total=3)
    for evaluation in range(1, 4):
        assert bar(record(evaluation)) is None  # never asks to stop
    bar.close()
    bar.close()
    assert stream.getvalue() == ""


def test_bar_shows_stage_and_objective(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = ProgressBar()
    bar(record(1))
    bar.close()
    assert "full batch" in stream.getvalue() and "objective -3" in stream.getvalue()

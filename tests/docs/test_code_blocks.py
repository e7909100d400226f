"""The Python blocks of README and quickstart run as they are printed, one page in one namespace."""

import re
from pathlib import Path

import pytest


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """Line number and text of every fenced Python block of a Markdown page."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in found]


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_blocks_run(
    page: str, source_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = python_blocks(source_root / page)
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for first_line, code in blocks:
        # Blank lines in front make the line numbers of a traceback those of the page.
        exec(compile("\n" * first_line + code, page, "exec"), namespace)


def test_readme_example_is_short(source_root: Path) -> None:
    (_, code), *more = python_blocks(source_root / "README.md")
    assert not more
    assert len([line for line in code.splitlines() if line.strip()]) <= 10

"""The Python blocks of README and the docs run as they are printed, one page in one namespace."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """Line number and text of every fenced Python block of a Markdown page."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in found]


PAGES = (
    "README.md",
    "docs/quickstart.md",
    "docs/choosing.md",
    "docs/likelihoods.md",
    "docs/state_space.md",
    "docs/sparse_inverse.md",
    "docs/sparse_family.md",
    "docs/coreset.md",
    "docs/neighbor_inducing.md",
    "docs/orthogonal.md",
    "docs/full_scale.md",
    "docs/troubleshooting.md",
)

# These register kernels, classes and likelihoods, which must not reach other tests.
PAGES_APART = ("docs/extending.md", "docs/coming_from.md")


def test_no_page_is_left_out(source_root: Path) -> None:
    pages = [source_root / "README.md", *sorted((source_root / "docs").glob("*.md"))]
    with_code = {str(page.relative_to(source_root)) for page in pages if python_blocks(page)}
    assert with_code == {*PAGES, *PAGES_APART}


@pytest.mark.parametrize("page", PAGES)
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


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES_APART)
def test_blocks_run_in_a_process_of_their_own(page: str, source_root: Path, tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text("\n".join(code for _, code in python_blocks(source_root / page)))
    command = [sys.executable, "-W", "error", "-W", "ignore:`torch.jit", str(script)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_readme_example_is_short(source_root: Path) -> None:
    (_, code), *more = python_blocks(source_root / "README.md")
    assert not more
    assert len([line for line in code.splitlines() if line.strip()]) <= 10

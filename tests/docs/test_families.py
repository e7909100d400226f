"""The list of families is complete: each system once, rows filled in, legal status values."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
HEADER = ["Number", "Name", "Class", "Slot", "Status"]
STATUS = re.compile(r"not yet|done|partly: \S.*")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _tables() -> list[list[list[str]]]:
    """Every pipe table of the page as a list of rows, header first, rule line dropped."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE)
    tables = [[_cells(line) for line in block.splitlines()] for block in blocks]
    return [[table[0], *table[2:]] for table in tables]


ROWS = [row for table in _tables() if table[0] == HEADER for row in table[1:]]
PLACES = {row[0] for table in _tables() if table[0][0] == "Place" for row in table[1:]}


def test_every_system_is_listed_exactly_once() -> None:
    assert sorted(row[0] for row in ROWS) == [f"{number:03d}" for number in range(1, 120)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_row_is_complete(row: list[str]) -> None:
    assert len(row) == len(HEADER)
    assert all(row)
    assert STATUS.fullmatch(row[4]), f"{row[0]}: status {row[4]!r} is not one of the allowed forms"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_slot_uses_places_that_the_page_explains(row: list[str]) -> None:
    places = {part.split(":")[0].strip() for part in row[3].split(";")}
    assert places <= PLACES, (
        f"{row[0]}: {sorted(places - PLACES)} missing from the tables of places"
    )

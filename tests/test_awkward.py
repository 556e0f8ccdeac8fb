"""docs/data.md's tables, row by row: what each names is made, and must be read, told or refused as it says."""

import re
from pathlib import Path

import numpy as np
import pytest
from awkward import MAKERS

import patchcore_kit as pk

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
WORDS = ("read", "told", "refused", "not looked at")


def rows(table):
    """First cell -> second cell, of the first table below a heading."""
    section = re.search(rf"^## {table}\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)[1]
    lines = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)[1:]  # without the head
    found = dict(line.split(" | ") for line in lines)
    assert len(found) == len(lines), "a row is there twice"
    return found


ROWS = [(table, *row) for table in MAKERS for row in rows(table).items()]


def quoted(outcome):
    """What the message says word for word: it stands in quotation marks, with ... for what depends on the file."""
    return [re.escape(text).replace(r"\.\.\.", ".*") for text in re.findall(r'"([^"]+)"', outcome)]


@pytest.mark.parametrize("table", MAKERS)
def test_each_row_has_a_maker_and_each_maker_a_row(table):
    assert set(MAKERS[table]) == set(rows(table))


def test_there_are_many_rows():
    assert len(ROWS) >= 60
    assert {row for _, row, outcome in ROWS if not outcome.startswith(WORDS)} == set()
    assert [row for _, row, outcome in ROWS if outcome.startswith(("told", "refused")) and not quoted(outcome)] == []


@pytest.mark.parametrize(("table", "row", "outcome"), ROWS, ids=[f"{table}: {row}" for table, row, _ in ROWS])
def test_what_becomes_of(tmp_path, monkeypatch, caplog, table, row, outcome):
    monkeypatch.setenv("HOME", str(tmp_path))
    case = MAKERS[table][row](tmp_path)
    caplog.clear()
    if outcome.startswith("refused"):
        with pytest.raises(pk.DataError) as error:
            case.read()
        message = str(error.value)
        assert table != "Images" or len(message) <= 300
    else:
        found = case.read()
        message = "\n".join(caplog.messages)
        assert bool(message) == outcome.startswith("told"), message
        for one, wanted in zip(found, case.wanted, strict=True):
            if isinstance(wanted, np.ndarray):
                assert one.shape == wanted.shape
                assert np.abs(one.astype(float) - wanted).mean() <= case.off
            else:
                assert one == wanted
    for text in quoted(outcome):
        assert re.search(text, message), message

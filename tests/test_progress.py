"""One line that says how far something is: text in a notebook, a bar on a terminal, nothing in a pipe."""

import re

import IPython.display
import pytest

from patchcore_kit import progress
from patchcore_kit.progress import Line, images_of, line_of


class Cell(list):
    """What a notebook's display has been told to show, in turn."""

    def __call__(self, content, *, raw, display_id=False):
        assert raw and display_id
        return self.update(content, raw=True)

    def update(self, content, *, raw):
        assert raw and list(content) == ["text/plain"]  # no widget, which would be gone when it is opened again
        self.append(content["text/plain"])
        return self


@pytest.fixture
def cell(monkeypatch):
    shown = Cell()
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", shown)
    return shown


def test_a_notebook_keeps_the_last_words(cell):
    with line_of(True, "2 of 2 categories") as line:
        for number, name in enumerate(("board", "pill"), 1):
            line.at(f"{number} of 2: {name}")
            with line_of(line, "never said") as same, same.bar("coreset", 400) as bar:  # a part of it
                bar.update(400)
    assert cell[0] == "1 of 2: board, coreset: 0 of 400"
    assert "2 of 2: pill, coreset: 0 of 400" in cell
    assert re.fullmatch(r"2 of 2 categories in \d+\.\d s", cell[-1])


def test_who_is_quiet_says_nothing(cell, capfd):
    with line_of(False, "done") as line, line.bar("task", 3) as bar:
        bar.update(3)
    assert cell == [] and capfd.readouterr() == ("", "")


def test_a_pipe_hears_nothing(capfd):
    with line_of(True, "done") as line, line.bar("task", 3) as bar:
        bar.update(3)
    assert capfd.readouterr() == ("", "")


def test_numbers_of_images():
    assert [images_of([0] * n) for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert Line(False).shown is False

"""How far something is, in one line: tqdm's on a terminal, in a notebook plain text whose last words stay."""

import io
import sys
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class Line:
    """What is being done, and how far it is: "3 of 8: board, coreset: 120 of 400".

    On a terminal a bar, which goes when it is done. In a notebook a line of text, for a bar is a widget, which is not
    there any more when the notebook is opened again; it ends with what was done, and in how many seconds.
    """

    def __init__(self, shown: bool = True):
        self.shown, self._where, self._cell, self._started = shown, "", None, time.perf_counter()

    def at(self, where: str) -> None:
        """What all of the following is a part of, as "3 of 8: board"."""
        self._where = f"{where}, "

    def bar(self, task: str, total: int | None) -> tqdm:
        """A context, whose `update(n)` says that n more of the total are done. In a pipe it says nothing.

        total: None where it is not known.
        """
        if self.shown and in_notebook():
            return _Text(self._say, desc=self._where + task, total=total)
        return tqdm(desc=self._where + task, total=total, leave=False, disable=None if self.shown else True)

    def end(self, done: str) -> None:
        """The last words: what was done; in a notebook they stay."""
        if self._cell:
            self._say(f"{done} in {time.perf_counter() - self._started:.1f} s")

    def _say(self, text: str) -> None:
        content = {"text/plain": text}
        if self._cell:
            self._cell.update(content, raw=True)
        else:
            from IPython.display import display  # a notebook has it

            self._cell = display(content, raw=True, display_id=True)


class _Text(tqdm):
    """A tqdm that says its line to a function."""

    def __init__(self, say: Callable[[str], None], desc: str, total: int | None):
        self._say = say
        form = "{desc}: {n_fmt}" + " of {total_fmt}" * (total is not None)
        super().__init__(
            desc=desc, total=total, leave=False, file=io.StringIO(), mininterval=0.25, disable=False, bar_format=form
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:  # else it is to be wiped away
            self._say(str(self))


@contextmanager
def line_of(progress: bool | Line, done: str) -> Iterator[Line]:
    """A new line, which ends with what was done, or the one that this is a part of, which goes on."""
    if isinstance(progress, Line):
        yield progress
    else:
        line = Line(progress)
        yield line
        line.end(done)


def images_of(samples: Sized) -> str:
    """How many there are, in words."""
    return f"{len(samples)} image{'' if len(samples) == 1 else 's'}"


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    shell: Any = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")

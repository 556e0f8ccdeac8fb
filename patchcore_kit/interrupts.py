"""Ctrl-C while a command is still importing what it needs: the end of the process, without a traceback."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def nothing_begun() -> Iterator[None]:
    """Within the block, Ctrl-C ends the process as the system does, for there is nothing to tidy up yet.

    An exception in the middle of an import would be a traceback, or be taken for a package that is broken. Where
    Ctrl-C has another meaning already, as in a notebook or behind `nohup`, it keeps it.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)

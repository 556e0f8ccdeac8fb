"""Ctrl-C, whenever it comes, is no traceback."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patchcore_kit.interrupts import nothing_begun

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("script", ["run_patchcore", "load_and_evaluate_patchcore"])
@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5])
def test_while_importing(script, seconds):
    process = subprocess.Popen(
        [sys.executable, ROOT / "bin" / f"{script}.py", "--help"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert process.returncode in (0, -signal.SIGINT)


def test_a_meaning_that_it_has_already_stays():
    def other(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGINT, other)
    try:
        with nothing_begun():
            assert signal.getsignal(signal.SIGINT) is other
        assert signal.getsignal(signal.SIGINT) is other
    finally:
        signal.signal(signal.SIGINT, before)
    with nothing_begun():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

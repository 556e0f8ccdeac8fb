"""The short form of `make test-faults`: see `faults.py`."""

import re
import subprocess
import sys
from pathlib import Path

FAULTS = Path(__file__).with_name("faults.py")
CASES = {"train", "resume", "evaluate", "save", "save in two steps", "extend"}


def test_some_operations_of_each_case():
    run = subprocess.run([sys.executable, FAULTS, "--every", "37"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stdout.splitlines() if "operations" in line]
    assert {line.partition(":")[0] for line in lines} == CASES and len(lines) == 4 * len(CASES)
    for line in lines:
        operations, tried, struck, whole, resumed = map(int, re.findall(r" (\d+) ", line))
        assert operations > 10 and tried == struck == whole == resumed >= 1, line
    assert "8 processes save a model 32 times: whole, nothing left" in run.stdout

"""Rewrite Pipfile.lock from the Pipfile, for any package index and any operating system.

`pipenv lock`, and then two corrections: the index that happened to be used is no property of the project, so the
lock names none; and the CUDA libraries that torch needs exist for Linux only, which the index does not say.
"""

import json
import re
import subprocess
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "Pipfile.lock"
LINUX_ONLY = re.compile(r"^(nvidia-|cuda-|triton$)")


def portable(lock: dict) -> dict:
    """The same lock without package sources, its CUDA packages marked as Linux-only."""
    lock["_meta"]["sources"] = []
    for section in ("default", "develop"):
        for name, package in lock[section].items():
            if LINUX_ONLY.match(name):
                package["markers"] = "sys_platform == 'linux'"
            package.pop("index", None)
    return lock


if __name__ == "__main__":
    subprocess.run(["pipenv", "lock"], check=True, cwd=LOCK.parent)
    LOCK.write_text(json.dumps(portable(json.loads(LOCK.read_text())), indent=4, sort_keys=True) + "\n")

"""Make this computer ready for a class, and say how far it is: `make prepare`. What is done already is not done again.

Written for any Python 3, or it could not say that there is no Python 3.11.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent
READY = FOLDER / ".venv/ready"
PORT = 8888  # JupyterLab's, if nothing else is said
STEPS = (("environment", ".venv/ready"), ("sample data", "sample-data"), ("a model of each category", "workshop"))


def say(there, what, otherwise=""):
    print("[OK] " + what if there else "[--] " + what + otherwise, flush=True)


def can_be_set_up():
    """Say what this computer has, and what to do where that is too little -> whether it is enough to go on."""
    python = sys.version_info[:2] == (3, 11) and importlib.util.find_spec("ensurepip")
    say(python, "Python {}.{}".format(*sys.version_info), ": install python3.11 and python3.11-venv, or say PYTHON=...")
    free, needed = shutil.disk_usage(FOLDER).free / 1e9, 1 if READY.is_file() else 8
    say(free >= needed, f"disk: {free:.0f} GB free", f", {needed} needed: make room here first")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    say(memory > 3.5, f"memory: {memory:.0f} GB", ", a notebook takes 1 and its browser as much: close other programs")
    say(os.cpu_count() > 1, f"cores: {os.cpu_count()}", ", everything takes about twice as long as with two")
    with socket.socket() as probe:
        free_port = probe.connect_ex(("127.0.0.1", PORT))
    say(free_port, f"port {PORT}", f" is taken: end what is there, or say make lab JUPYTER_PORT={PORT + 1}")
    return python and free >= needed


def main():
    if not can_be_set_up():
        sys.exit("not prepared: mend what the first two lines say, then `make prepare` again")
    done = []
    for what, target in STEPS:
        start = time.monotonic()
        if subprocess.run(["make", "--no-print-directory", target], cwd=FOLDER).returncode:
            sys.exit(f"[--] {what}: stopped, see above; `make prepare` again goes on")
        done.append(f"{what}: {time.monotonic() - start:.0f} s")
    print("\nready:")
    for line in done:
        say(True, line)
    look = [".venv/bin/python", "-c", "import utils; utils.start()"]  # as at the top of every notebook
    sys.exit(subprocess.run(look, cwd=FOLDER).returncode)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped: `make prepare` again goes on")

"""Make .venv what Pipfile.lock and pyproject.toml say, unless it is: `make` calls this before it uses .venv.

What these files hold is compared, not their times: a fresh checkout or `touch` installs nothing again. .venv/ready has
their hash and the folder that .venv is for. One of another folder (behind a link, moved or copied with its folder, or
with the kit of another folder installed into it) is refused: its programs and imports lead there.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent
SOURCES = ("Pipfile.lock", "pyproject.toml")


def made_from(folder: Path) -> str:
    """What .venv/ready holds once .venv is complete."""
    return f"{hashlib.sha256(b''.join((folder / name).read_bytes() for name in SOURCES)).hexdigest()} {folder}\n"


def requirements(lock: dict) -> str:
    """A lock as pip's requirements, all of them with their hashes."""
    lines = []
    for name, package in (lock["default"] | lock["develop"]).items():
        markers = f" ; {package['markers']}" if "markers" in package else ""
        hashes = " ".join(f"--hash={value}" for value in package["hashes"])
        lines.append(f"{name}{package['version']}{markers} {hashes}\n")
    return "".join(lines)


def other_owner(folder: Path) -> Path | None:
    """The folder that .venv belongs to, as far as it says, if it is not this one."""
    venv = folder / ".venv"
    said = (venv / "ready").read_text() if (venv / "ready").is_file() else ""
    named = said.partition(" ")[2].strip()
    if venv.is_symlink() and named != str(folder):
        return venv.resolve().parent
    installed = [path.read_text().strip() for path in venv.glob("lib/*/site-packages/__editable__.patchcore_kit-*.pth")]
    places = [Path(place) for place in (named, *installed) if place]
    return next((place for place in places if place.resolve() != folder), None)


def set_up(folder: Path, wheels: Path | None = None) -> None:
    """Install what the lock names, from wheels alone or from the package index, and the kit itself as it lies here."""
    venv = folder / ".venv"
    ready, python, wanted = venv / "ready", venv / "bin/python", venv / "requirements.txt"
    if not (ready.is_file() and python.exists()):
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    ready.write_text(f"unfinished {folder}\n")
    wanted.write_text(requirements(json.loads((folder / "Pipfile.lock").read_text())))
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    alone = ["--quiet", "--isolated", "--no-index", "--find-links", wheels] if wheels else []
    subprocess.run([*pip, *alone, "--require-hashes", "-r", wanted], check=True)
    subprocess.run([*pip, "--quiet", "--no-build-isolation", "--editable", folder], check=True)
    ready.write_text(made_from(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install from; nothing else is asked")
    wheels = parser.parse_args().wheels
    if other := other_owner(FOLDER):
        sys.exit(f".venv belongs to {other}, not to {FOLDER}: `make clean` takes it away here, then say this again")
    ready = FOLDER / ".venv/ready"
    if ready.is_file() and ready.read_text() == made_from(FOLDER):
        return
    print("setting up .venv: about 3 minutes, 6.5 GB", flush=True)
    try:
        set_up(FOLDER, wheels)
    except (subprocess.CalledProcessError, KeyboardInterrupt):
        sys.exit("setting up .venv has stopped: mend what is said above, then say this again, and it goes on")


if __name__ == "__main__":
    main()

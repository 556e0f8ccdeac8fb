"""Whether `make` sets .venv up: the Makefile and tools/environment.py as they are, with a Python that takes notes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tools"))

from environment import made_from, requirements  # noqa: E402

NOTES = """#!/bin/sh
echo "$@" >> "{notes}"
[ ! -e "{notes}.fail" ]
"""


class Checkout:
    """A folder with an environment that is ready, and notes of what was run in it."""

    def __init__(self, folder: Path):
        self.folder, self.notes = folder, folder.with_name(f"{folder.name}.notes")
        (folder / "tools").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "tools/environment.py"):
            shutil.copy(REPOSITORY / name, folder / name)
        (folder / "Pipfile.lock").write_text('{"default": {}, "develop": {}}')
        python = folder / ".venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(NOTES.format(notes=self.notes))
        python.chmod(0o755)
        (folder / ".venv/ready").write_text(made_from(folder))

    def make(self, *arguments: str, code: int = 0) -> tuple[list[str], str]:
        """What was run in the environment: "pip", "sample-data"; and what was said."""
        self.notes.unlink(missing_ok=True)
        command = ["make", f"PYTHON={sys.executable}", *arguments]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTHON"))}
        done = subprocess.run(command, cwd=self.folder, env=clean, capture_output=True, text=True, check=False)
        assert bool(done.returncode) == bool(code), done.stdout + done.stderr
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return ["pip" if "-m pip" in line else "sample-data" for line in lines], done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path / "kit")


def test_a_fresh_checkout_or_touch_installs_nothing(checkout):
    for name in ("Pipfile.lock", "pyproject.toml", ".venv/ready"):
        for time in (1, 4_000_000_000):
            os.utime(checkout.folder / name, (time, time))
            assert checkout.make("sample-data")[0] == ["sample-data"]


@pytest.mark.parametrize("name", ["Pipfile.lock", "pyproject.toml"])
def test_what_has_changed_is_installed_once(checkout, name):
    path = checkout.folder / name
    before = path.stat()
    path.write_text(path.read_text() + "\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert checkout.make("sample-data")[0] == ["pip", "pip", "sample-data"]
    assert checkout.make("sample-data")[0] == ["sample-data"]


def test_what_was_interrupted_goes_on(checkout):
    (checkout.folder / "Pipfile.lock").write_text('{"default": {}, "develop": {}, "new": 1}')
    failing = Path(f"{checkout.notes}.fail")
    failing.touch()
    for _ in range(2):
        ran, said = checkout.make("sample-data", code=2)
        assert ran == ["pip"] and "setting up .venv has stopped" in said and "Traceback" not in said
    failing.unlink()
    assert checkout.make("sample-data")[0] == ["pip", "pip", "sample-data"]
    assert checkout.make("sample-data")[0] == ["sample-data"]


def test_an_environment_of_an_earlier_version_is_looked_over_once(checkout):
    (checkout.folder / ".venv/ready").write_text("")
    assert checkout.make("sample-data")[0] == ["pip", "pip", "sample-data"]
    assert checkout.make("sample-data")[0] == ["sample-data"]


def linked(checkout: Checkout, here: Path) -> Path:
    other = Checkout(here.with_name("other"))
    shutil.rmtree(here / ".venv")
    (here / ".venv").symlink_to(other.folder / ".venv")
    return other.folder


def linked_to_nothing(checkout: Checkout, here: Path) -> Path:
    shutil.rmtree(linked(checkout, here))
    return here.with_name("other")


def linked_to_one_without_the_kit(checkout: Checkout, here: Path) -> Path:
    (linked(checkout, here) / ".venv/ready").unlink()
    return here.with_name("other")


def moved(checkout: Checkout, here: Path) -> Path:
    checkout.folder = here.rename(here.with_name("moved"))
    return here


def copied_half_made(checkout: Checkout, here: Path) -> Path:
    (here / ".venv/ready").write_text(f"unfinished {here}\n")
    checkout.folder = Path(shutil.copytree(here, here.with_name("copied")))
    return here


def with_the_kit_of_another_folder(checkout: Checkout, here: Path) -> Path:
    packages = here / ".venv/lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    (packages / "__editable__.patchcore_kit-0.1.0.pth").write_text("/somewhere/else\n")
    return Path("/somewhere/else")


@pytest.mark.parametrize(
    "happens",
    [linked, linked_to_nothing, linked_to_one_without_the_kit, moved, copied_half_made, with_the_kit_of_another_folder],
)
def test_one_of_another_folder_is_refused_until_it_is_gone(checkout, happens):
    owner = happens(checkout, checkout.folder)
    for name in ("Pipfile.lock", "pyproject.toml"):
        ran, said = checkout.make("sample-data", code=2)
        sentence, *_ = said.splitlines()
        assert ran == [] and f".venv belongs to {owner}, not to {checkout.folder}: `make clean`" in sentence
        (checkout.folder / name).write_text((checkout.folder / name).read_text() + "\n")  # nor is it made like this one
    kept = [path.read_bytes() for path in owner.rglob("ready")]
    checkout.make("clean")
    assert not (checkout.folder / ".venv").is_symlink() and not (checkout.folder / ".venv").exists()
    assert [path.read_bytes() for path in owner.rglob("ready")] == kept  # the other's is whole


def test_a_link_to_an_environment_of_its_own_is_fine(checkout):
    (checkout.folder / ".venv").rename(checkout.folder.with_name("large disk"))
    (checkout.folder / ".venv").symlink_to(checkout.folder.with_name("large disk"))
    assert checkout.make("sample-data")[0] == ["sample-data"]


def test_what_others_rely_on(checkout):
    """--dry-run runs nothing, --old-file trusts the environment, and what needs none does not ask for one."""
    (checkout.folder / "Pipfile.lock").write_text("{}")
    for target in ("lab", "workshop", "test"):
        assert "tools/environment.py" in checkout.make("--dry-run", target)[1]
    assert not checkout.notes.exists()
    assert checkout.make("--old-file=.venv/ready", "sample-data")[0] == ["sample-data"]
    assert "make prepare" in checkout.make("help")[1]


def test_requirements_are_the_whole_lock():
    lock = json.loads((REPOSITORY / "Pipfile.lock").read_text())
    lines = requirements(lock).splitlines()
    assert len(lines) == len(lock["default"] | lock["develop"])
    assert all("==" in line and " --hash=sha256:" in line for line in lines)
    (triton,) = (line for line in lines if line.startswith("triton=="))
    assert " ; sys_platform == 'linux' --hash=" in triton


def test_the_dev_container_sets_up_what_vs_code_is_told_to_use():
    settings = json.loads((REPOSITORY / ".devcontainer/devcontainer.json").read_text())
    assert settings["image"].endswith("3.11-bookworm") and settings["forwardPorts"] == [8888]
    command = settings["postCreateCommand"].split()
    assert subprocess.run([*command, "--dry-run"], cwd=REPOSITORY, capture_output=True, check=False).returncode == 0
    interpreter = settings["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert interpreter == "${containerWorkspaceFolder}/.venv/bin/python"

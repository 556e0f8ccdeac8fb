import json
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tools"))

from lock import portable  # noqa: E402


def test_the_lock_names_no_index_and_knows_what_is_for_linux_only():
    text = (REPOSITORY / "Pipfile.lock").read_text()
    lock = json.loads(text)
    assert "://" not in text
    assert lock["_meta"]["sources"] == []
    assert portable(json.loads(text)) == lock  # nothing was left to do
    for name in ("triton", "nvidia-cublas", "cuda-bindings"):
        assert lock["default"][name]["markers"] == "sys_platform == 'linux'"
    assert (lock["default"]["torch"]["version"], lock["default"]["torchvision"]["version"]) == ("==2.14.1", "==0.29.1")


def test_pipfile_and_lock_hold_what_the_package_asks_for():
    """pyproject.toml says what is needed, the Pipfile makes the workshop's environment of it, the lock pins that."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pipfile = tomllib.loads((REPOSITORY / "Pipfile").read_text())
    lock = json.loads((REPOSITORY / "Pipfile.lock").read_text())

    extras = project["optional-dependencies"]
    asked = [Requirement(line) for line in project["dependencies"] + extras["workshop"] + extras["cluster"]]
    names = [canonicalize_name(requirement.name) for requirement in asked]
    assert sorted(names) == sorted(map(canonicalize_name, pipfile["packages"]))
    assert set(extras) == {"workshop", "cluster"}
    every = [*names, *map(canonicalize_name, pipfile["dev-packages"])]
    assert len(every) == len(set(every))

    for requirement, name in zip(asked, names, strict=True):
        version = lock["default"][name]["version"].removeprefix("==")
        assert requirement.specifier.contains(version), f"{name} {version}"
        assert any(part.operator == ">=" for part in requirement.specifier), f"{name} has no lower bound"
    assert project["requires-python"] == f">={pipfile['requires']['python_version']}"

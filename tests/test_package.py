"""The library as others get it: a wheel, installed outside the repository, used from an empty folder.

torch alone takes minutes and gigabytes to install, so here the dependencies are those of the environment at hand, and
only the kit is installed. `make test-install` installs everything.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]
USE = """
import patchcore_kit as pk
print(pk.__file__)
data = pk.draw_sample_data("data", ("pill",), train=4, good=2, defective=2, size=96, progress=False)
category = pk.load_category(data, "pill")
detector = pk.PatchCore(pk.load_backbone("starter"), cache=pk.ImageCache()).fit(category.train)
predictions = detector.predict(category.test)
assert len(predictions.scores) == 4 and predictions.maps.any()
detector.save("models/pill")
print(pk.find_models(), pk.work_folder(), len(pk.published_results()))

import importlib.util, sys, patchcore_kit.cli
assert not {"ipywidgets", "IPython", "jupyterlab"} & set(sys.modules)  # what only notebooks need
assert not any(map(importlib.util.find_spec, ("bin", "utils", "tests", "tools")))  # names for others to use
"""


class Installed(NamedTuple):
    """An environment outside the repository that has the kit."""

    python: Path
    script: Path  # patchcore-kit
    package: Path  # the folder of the installed kit

    def run(self, *command, cwd, code=0, **environment) -> str:
        """What a command prints. It does not see the repository, nor settings of whoever runs the tests."""
        ours = ("PYTHON", "PATCHCORE_", "MVTEC_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return run(*command, cwd=cwd, code=code, env=clean | {"PYTHONDONTWRITEBYTECODE": "1"} | environment)


def run(*command, code=0, **options) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def make_venv(folder: Path, *options) -> Installed:
    run(sys.executable, "-m", "venv", *options, folder)
    purelib = sysconfig.get_path("purelib", vars={"base": str(folder)})
    return Installed(folder / "bin/python", folder / "bin/patchcore-kit", Path(purelib) / "patchcore_kit")


def install(wheel: Path, folder: Path) -> Installed:
    """A wheel in a fresh environment that borrows the dependencies from the one at hand."""
    venv = make_venv(folder, "--without-pip")
    run(sys.executable, "-m", "pip", "--python", venv.python, "install", "--no-deps", "--no-index", wheel)
    # a plain line in a .pth: its folder's own .pth files, such as the checkout's editable install, are not followed
    (venv.package.parent / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return venv


@pytest.fixture(scope="session")
def copy(tmp_path_factory) -> Path:
    """The checkout, to build in: that leaves folders behind, and takes up what earlier builds have left."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "utils.py"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("patchcore_kit", "bin", "tests", "tools"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="session")
def wheel(copy, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, copy)
    (built,) = out.glob("*")
    return built


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Installed:
    return install(wheel, tmp_path_factory.mktemp("installed") / "venv")


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    (info,) = {name.split("/")[0] for name in names} - {"patchcore_kit"}
    assert info.startswith("patchcore_kit-") and info.endswith(".dist-info")
    package = files(REPOSITORY / "patchcore_kit")
    assert {"starter.safetensors", "published.csv", "__init__.py"} <= package
    assert {name for name in names if not name.startswith(info)} == {f"patchcore_kit/{name}" for name in package}
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= names


def test_its_metadata(installed):
    (info,) = installed.package.parent.glob("patchcore_kit-*.dist-info")
    package = metadata.Distribution.at(info)
    assert [(e.group, e.name, e.value) for e in package.entry_points] == [
        ("console_scripts", "patchcore-kit", "patchcore_kit.app:main")
    ]
    assert package.metadata["License-Expression"] == "Apache-2.0"
    assert package.metadata["Requires-Python"] == ">=3.11"
    assert package.metadata["Description-Content-Type"] == "text/markdown"

    requirements = [Requirement(line) for line in package.requires]
    plain = [requirement for requirement in requirements if requirement.marker is None]
    assert "torch" in {requirement.name for requirement in plain}
    assert not {"jupyterlab", "ipywidgets", "pytest"} & {requirement.name for requirement in plain}
    for requirement in requirements:
        assert requirement.specifier.contains(metadata.version(requirement.name)), requirement


def test_it_works_from_an_empty_folder_and_writes_there_only(installed, tmp_path):
    before = files(installed.package.parent)
    file, rest = installed.run(installed.python, "-c", USE, cwd=tmp_path).splitlines()
    assert Path(file) == installed.package / "__init__.py"
    assert rest == f"[{tmp_path / 'models/pill'!r}] {tmp_path} 16"
    assert files(installed.package.parent) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"data", "models", ".cache"}


DRAW = "import patchcore_kit as pk; pk.draw_sample_data('parts', ('pill',), train=24, good=4, defective=6, size=128)"


def test_the_five_verbs_on_drawn_data(installed, tmp_path):
    def verb(*arguments, code=0):
        return installed.run(installed.script, *arguments, cwd=tmp_path, code=code)

    installed.run(installed.python, "-c", DRAW, cwd=tmp_path)
    assert "24 good images to learn from, 10 to test" in verb("check", "parts/pill")
    assert "learnt from: 24 photographs" in verb("fit", "parts/pill", "models/pill", "--size", "128")
    good = verb("predict", "models/pill", "parts/pill/train/good").splitlines()
    assert len(good) == 24 and {line.split("\t")[0] for line in good} == {"good"}
    judged = verb("predict", "models/pill", "parts/pill/test", "--out", "verdicts", code=1).splitlines()
    assert len(judged) == 10
    assert (tmp_path / "verdicts/predictions.csv").is_file() and any((tmp_path / "verdicts/pictures").rglob("*.jpg"))
    assert "page: page.html" in verb("report", "models/pill", "parts/pill/test", "page.html", code=1)
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<h2") >= 2
    shutil.copytree(tmp_path / "parts/pill/test/good", tmp_path / "camera")
    watched = verb("watch", "models/pill", "camera", "--once", "--settle", "0", code=0).splitlines()
    assert len(watched) == len((tmp_path / "camera/verdicts.csv").read_text(encoding="utf-8").splitlines()) - 1 == 4


def test_bottle_without_labels(installed, bottles, tmp_path):
    """Good photographs alone go in, and come out good; nearly all that is wrong with others is found."""

    def verb(*arguments, code):
        return installed.run(installed.script, *arguments, cwd=tmp_path, code=code).splitlines()

    good = bottles / "bottle/train/good"
    count = len(list(good.iterdir()))
    assert any(f"{count} photographs" in line for line in verb("fit", good, "bottle", code=0))
    lines = [line.split("\t") for line in verb("predict", "bottle", bottles / "bottle/test", code=1)]
    alarms = {True: [], False: []}  # of good ones, of others
    for verdict, _, _, name, *_ in lines:
        alarms["/good/" in name].append(verdict in ("look", "defective"))
    assert len(alarms[True]) == 20 and sum(alarms[True]) <= 2
    assert len(alarms[False]) == 63 and sum(alarms[False]) >= 60


def test_an_editable_install_finds_the_workshop_from_anywhere(copy, tmp_path):
    (tmp_path / "wheel").mkdir()
    build = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path / "wheel", cwd=copy)
    venv = install(*(tmp_path / "wheel").glob("*"), tmp_path / "venv")
    names = {"patchcore_kit": "patchcore_kit/__init__.py", "bin.run_patchcore": "bin/run_patchcore.py"}
    names["utils"] = "utils.py"
    code = "import sys; from importlib.util import find_spec; print(*(find_spec(name).origin for name in sys.argv[1:]))"
    printed = venv.run(venv.python, "-c", code, *names, cwd=tmp_path)
    assert printed.split() == [str(copy / name) for name in names.values()]


@pytest.mark.full
def test_it_installs_with_all_it_needs(wheel, tmp_path):
    venv = make_venv(tmp_path / "venv")
    pip = (venv.python, "-m", "pip", "--disable-pip-version-check")
    (tmp_path / "empty").mkdir()
    asked = [*pip, "download", "--no-deps", "--retries=0", "--timeout=10", "--dest", tmp_path / "download", "tqdm"]
    if subprocess.run(list(map(str, asked)), capture_output=True, check=False).returncode:
        pytest.skip("needs a package index that answers")
    run(*pip, "install", "--no-cache-dir", wheel)
    assert "No broken requirements" in run(*pip, "check")
    printed = venv.run(venv.python, "-c", USE, cwd=tmp_path / "empty")
    assert Path(printed.splitlines()[0]) == venv.package / "__init__.py"

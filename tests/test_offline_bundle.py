"""A bundle of a small kit, made and installed as the real one is; `make test-offline` takes that, without a network."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tools"))

import offline_bundle  # noqa: E402

METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
BACKEND = """
import pathlib, zipfile

def build_editable(folder, *_):
    name = "patchcore_kit-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as file:
        file.writestr("__editable__.patchcore_kit-1.0.pth", str(pathlib.Path.cwd()))
        file.writestr("patchcore_kit-1.0.dist-info/METADATA", {metadata!r})
        file.writestr("patchcore_kit-1.0.dist-info/WHEEL", {wheel!r})
        file.writestr("patchcore_kit-1.0.dist-info/RECORD", "")
    return name
"""


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    return subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True).stdout


def commit(folder: Path) -> None:
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Path:
    """A repository with this one's tools, a package of one line, weights, and a lock of one wheel."""
    folder, index = tmp_path_factory.mktemp("kit"), tmp_path_factory.mktemp("index")
    wheel = index / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny.py", "import patchcore_kit")
        file.writestr("tiny-1.0.dist-info/METADATA", METADATA.format("tiny"))
        file.writestr("tiny-1.0.dist-info/WHEEL", WHEEL)
        file.writestr("tiny-1.0.dist-info/RECORD", "")
    package = {"version": "==1.0", "hashes": [f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"]}
    for name in ("tools/environment.py", "tools/install.sh", "Makefile"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    texts = {
        "Pipfile.lock": json.dumps({"default": {"tiny": package}, "develop": {"tiny": package}}),
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": BACKEND.format(metadata=METADATA.format("patchcore_kit"), wheel=WHEEL),
        "patchcore_kit.py": "",
        ".gitignore": "/.venv/\n/weights/\n/data/\n__pycache__/\n",
        "weights/net.pth": "weights",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    commit(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(index), "CONFIG_FILE": os.devnull}.items():
            patch.setenv(f"PIP_{name}", value)
        yield folder


@pytest.fixture(scope="module")
def made(kit, tmp_path_factory) -> Path:
    data, bundle = tmp_path_factory.mktemp("mvtec"), tmp_path_factory.mktemp("stick") / "a bundle"
    (data / "bottle").mkdir()
    (data / "bottle/0.png").write_text("an image")
    offline_bundle.make(kit, bundle, data)
    return bundle


@pytest.fixture
def bundle(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "a bundle"))


def install(bundle: Path, *arguments: str, cwd: Path, code: int = 0) -> str:
    return run(["sh", bundle / "install.sh", *arguments], cwd, code)


def run(command: list, cwd: Path, code: int = 0) -> str:
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment = alone | {"PYTHON": sys.executable, "PIP_FIND_LINKS": "", "PIP_NO_INDEX": ""}  # not as in `make test`
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == bool(code), done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_goes_on_is_installed_whole_and_once(bundle, kit, tmp_path):
    there, half = tmp_path / "patchcore-kit", tmp_path / "patchcore-kit.part/half"
    half.parent.mkdir()
    half.touch()  # killed while it unpacked
    (wheel,) = (bundle / "wheels").iterdir()
    wheel.rename(tmp_path / wheel.name)
    offline_bundle.seal(bundle)
    assert "setting up .venv has stopped" in install(bundle, cwd=tmp_path, code=1)
    (tmp_path / wheel.name).rename(wheel)
    offline_bundle.seal(bundle)
    page = (REPOSITORY / "docs/instructor.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"^```sh\n(sh .*?)^```$", page, re.MULTILINE | re.DOTALL)
    commands = commands.replace("/media/stick/offline", shlex.quote(str(bundle))).replace(
        "make lab", "make .venv/ready"
    )
    said = run(["bash", "-ec", commands], tmp_path)
    assert said.splitlines()[-1] == "installed: cd patchcore-kit && make lab"  # so make had nothing to install

    python = there / ".venv/bin/python"
    subprocess.run([python, "-c", "import tiny"], check=True, cwd=tmp_path)
    assert (there / "weights/net.pth").read_text() == "weights"
    assert (there / "data/mvtec_anomaly_detection/bottle/0.png").read_text() == "an image"
    assert not (there / "half").exists() and not half.parent.exists()
    assert git(there, "status", "--porcelain") == "" and git(there, "rev-parse", "HEAD") == git(
        kit, "rev-parse", "HEAD"
    )
    assert not any(str(kit).encode() in path.read_bytes() for path in (there / ".git").rglob("*") if path.is_file())

    before = (there / ".venv/ready").stat().st_mtime_ns
    assert "setting up" not in install(bundle, "patchcore-kit", cwd=tmp_path)
    assert (there / ".venv/ready").stat().st_mtime_ns == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")], ids=["bit", "gone", "empty"]
)
@pytest.mark.parametrize("name", ["kit.tar", "wheels/tiny-1.0-py3-none-any.whl", "weights/net.pth"])
def test_what_is_not_as_it_was_made_is_refused_by_name(bundle, tmp_path, name, damage):
    damage(bundle / name)
    said = install(bundle, "kit", cwd=tmp_path, code=1)
    assert f"{name}: FAILED" in said and said.endswith("what is named above is not as it was made: copy it again\n")
    assert not list(tmp_path.glob("kit*"))


def test_one_that_is_not_complete_is_refused(bundle, tmp_path):
    sums = bundle / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    for end in range(len(lines)):
        sums.write_text("".join(lines[:end]))
        assert "is not complete" in install(bundle, "kit", cwd=tmp_path, code=1)
    sums.unlink()
    assert "is not complete" in install(bundle, "kit", cwd=tmp_path, code=1)
    assert not (tmp_path / "kit").exists()


def test_where_it_cannot_go(bundle, tmp_path):
    (tmp_path / "taken").mkdir()
    assert "taken is there and holds no workshop" in install(bundle, "taken", cwd=tmp_path, code=1)
    assert "one folder to install to, not 2" in install(bundle, "a", "b", cwd=tmp_path, code=1)


def test_making_it_goes_on_and_replaces_nothing(kit, tmp_path, monkeypatch, capsys):
    bundle = tmp_path / "offline"
    monkeypatch.setattr(offline_bundle, "FOLDER", kit)
    monkeypatch.setattr(sys, "argv", ["offline_bundle.py", str(bundle)])
    with monkeypatch.context() as patch:
        patch.setattr(offline_bundle, "seal", lambda bundle: subprocess.run("false", check=True))
        with pytest.raises(SystemExit, match="is not complete"):
            offline_bundle.main()
    assert "is not complete" in install(bundle, cwd=tmp_path, code=1)
    (wheel,) = (bundle / "wheels").iterdir()
    before = wheel.stat().st_mtime_ns
    offline_bundle.main()
    assert wheel.stat().st_mtime_ns == before
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{bundle}: 0.0 GB; without a network, `sh {bundle}/")
    with pytest.raises(SystemExit, match="is a complete bundle"):
        offline_bundle.main()
    monkeypatch.setattr(sys, "argv", ["offline_bundle.py", str(tmp_path / "new"), "--data", "nowhere"])
    with pytest.raises(SystemExit, match="nowhere is no folder"):
        offline_bundle.main()


WITHOUT_A_NETWORK = """
set -e
ip link set lo up
if "$PYTHON" -c "import socket; socket.create_connection(('192.0.2.1', 80), 5)" 2> /dev/null; then exit 9; fi
sh "$1/install.sh" kit
cd kit
timeout 100 make lab > lab.log &
until grep -q token= lab.log; do kill -0 $!; sleep 1; done
kill $!
.venv/bin/python -c "import patchcore_kit as pk; pk.draw_sample_data('data/sample', ('pill',), progress=False)"
.venv/bin/python bin/run_patchcore.py --log_project p --log_group g results \
    patch_core -b starter sampler approx_greedy_coreset dataset -d pill mvtec data/sample
test -s results/p/g/results.csv
.venv/bin/python -m nbconvert --to notebook --execute --output-dir executed notebooks/workshop.ipynb
"""


@pytest.mark.full
def test_the_real_one_without_a_network():
    """A copy of this folder, committed; a bundle of it; installed and used in a network namespace without a route."""
    cut_off = ["unshare", "--net"] if os.getuid() == 0 else ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*cut_off, "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode:
        pytest.skip("needs `unshare --net` and `ip`")
    with tempfile.TemporaryDirectory() as scratch:
        folder, bundle, laptop = (Path(scratch, name) for name in ("folder", "bundle", "laptop"))
        listing = git(REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for name in filter(None, listing.split("\0")):
            if (REPOSITORY / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / name, folder / name)
        commit(folder)
        laptop.mkdir()
        offline_bundle.make(folder, bundle)
        command = [*cut_off, "bash", "-c", WITHOUT_A_NETWORK, "bash", bundle]
        environment = os.environ | {"PYTHON": sys.executable}
        done = subprocess.run(command, cwd=laptop, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (laptop / "kit/executed/workshop.ipynb").is_file()

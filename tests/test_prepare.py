"""`make prepare` with a `make` that takes notes, `make reset` in small git repositories, and docs/instructor.md."""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from traitlets.config import Config

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs/instructor.md").read_text(encoding="utf-8")
sys.path.append(str(REPOSITORY / "tools"))

import prepare  # noqa: E402
import reset  # noqa: E402

NOTES = '#!/bin/sh\necho "$@" >> notes\n[ "$2" != "${FAILS:-none}" ]\n'


@pytest.fixture
def laptop(tmp_path, monkeypatch):
    """A folder where `make` and the environment's Python take notes; FAILS names a target that ends badly."""
    for name in ("make", ".venv/bin/python"):
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(NOTES)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(prepare, "FOLDER", tmp_path)
    monkeypatch.setattr(prepare, "READY", tmp_path / ".venv/ready")
    monkeypatch.setattr(prepare.sys, "version_info", (3, 11, 7))
    return tmp_path


def ends_with(capsys) -> tuple[object, list[str]]:
    with pytest.raises(SystemExit) as end:
        prepare.main()
    return end.value.code, capsys.readouterr().out.splitlines()


def test_it_checks_sets_up_trains_and_says_what_is_ready(laptop, capsys):
    code, lines = ends_with(capsys)
    assert code == 0
    assert [line.split()[-1] for line in (laptop / "notes").read_text().splitlines()[:3]] == [
        ".venv/ready",
        "sample-data",
        "workshop",
    ]
    assert [line[:4] for line in lines[:2]] == ["[OK]", "[OK]"] and lines[0] == "[OK] Python 3.11"
    assert {line.split(":")[0] for line in lines[-3:]} == {f"[OK] {what}" for what, _ in prepare.STEPS}
    assert all(line.endswith(" s") for line in lines[-3:])


def test_what_is_missing_is_said_before_anything_is_done(laptop, capsys, monkeypatch):
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, int(3e9)))
    monkeypatch.setattr(prepare.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(prepare.os, "sysconf", lambda name: 2_000_000_000 if "PAGES" in name else 1)
    monkeypatch.setattr(prepare.sys, "version_info", (3, 9, 2))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(prepare, "PORT", port)
        code, lines = ends_with(capsys)
    assert "not prepared" in code and not (laptop / "notes").exists()
    assert [line[:4] for line in lines] == ["[--]"] * 5
    said = (
        "PYTHON=...",
        "3 GB free, 8 needed",
        "2 GB, a notebook takes 1",
        "1, everything",
        f"JUPYTER_PORT={port + 1}",
    )
    for line, part in zip(lines, said, strict=True):
        assert part in line


def test_a_few_cores_and_gigabytes_stop_nobody(laptop, capsys, monkeypatch):
    monkeypatch.setattr(prepare.os, "cpu_count", lambda: 1)
    code, lines = ends_with(capsys)
    assert code == 0 and "[--] cores: 1, everything takes about twice as long as with two" in lines


@pytest.mark.parametrize(("target", "what"), [(target, what) for what, target in prepare.STEPS])
def test_a_step_that_fails_is_the_last(laptop, capsys, monkeypatch, target, what):
    monkeypatch.setenv("FAILS", target)
    code, lines = ends_with(capsys)
    assert code.startswith(f"[--] {what}: stopped") and "ready:" not in lines


def test_any_python_3_can_say_that_it_is_the_wrong_one():
    ast.parse((REPOSITORY / "tools/prepare.py").read_text(), feature_version=(3, 7))


# --- reset -------------------------------------------------------------------------------------------------------


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    return subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def room(tmp_path, monkeypatch) -> Path:
    """A committed folder after a class: notebooks changed, deleted and added, results, data."""
    folder = tmp_path / "kit"
    for name in ("notebooks/one.ipynb", "notebooks/two.ipynb", "notebooks/three.ipynb", "utils.py"):
        write(folder / name, "as shipped")
    write(folder / ".gitignore", "/kept/\n/data/\n/experiments/\n/models/\n.ipynb_checkpoints\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "shipped")
    monkeypatch.setattr(reset, "FOLDER", folder)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    use(folder)
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


MADE = (
    "notebooks/one.ipynb",
    "notebooks/.ipynb_checkpoints/one-checkpoint.ipynb",
    "experiments/step1/0000/results.csv",
    "models/own/model.json",
)
STAYS = ("notebooks/mine.ipynb", "data/own/good/1.png", "models/reference/a", "weights/resnet18.pth", "utils.py")


def use(folder: Path) -> None:
    for name in (*MADE, *STAYS):
        write(folder / name, "a participant's")
    (folder / "notebooks/two.ipynb").unlink(missing_ok=True)


def files(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_notebooks_and_results_are_as_shipped_and_all_that_was_made_is_kept(room, capsys):
    reset.main()
    (kept,) = (room / "kept").iterdir()
    assert files(kept) == dict.fromkeys(MADE, "a participant's")
    there = files(room)
    assert {name: there[name] for name in STAYS} == dict.fromkeys(STAYS, "a participant's")
    for name in ("one", "two", "three"):
        assert there[f"notebooks/{name}.ipynb"] == "as shipped"
    assert not (room / "experiments").exists()
    assert git(room, "status", "--porcelain", "notebooks") == "?? notebooks/mine.ipynb\n"
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"moved to kept/{kept.name}: notebooks/one.ipynb, experiments, models/own")
    assert last.startswith("notebooks and results are as shipped")


def test_again_and_again_within_a_second(room):
    for _ in range(3):
        use(room)
        reset.main()
    reset.main()  # nothing to keep
    assert [files(kept) for kept in (room / "kept").iterdir()] == [dict.fromkeys(MADE, "a participant's")] * 3


def test_what_was_staged_or_committed_for_git_is_kept_too(room):
    git(room, "add", "notebooks")  # with `mine`, which is then one that differs from the commit
    reset.main()
    (kept,) = (room / "kept").iterdir()
    assert files(kept)["notebooks/mine.ipynb"] == files(kept)["notebooks/one.ipynb"] == "a participant's"
    assert git(room, "status", "--porcelain", "notebooks") == ""


def refused(room, because: str) -> None:
    before = files(room)
    with pytest.raises(SystemExit) as end:
        reset.main()
    assert because in end.value.code and "\n" not in end.value.code
    assert files(room) == before


def test_while_jupyterlab_is_open_nothing_is_moved(room, tmp_path):
    server = {"pid": os.getpid(), "root_dir": str(room)}
    write(tmp_path / "runtime/jpserver-1.json", json.dumps(server))
    refused(room, "JupyterLab is open here")
    write(tmp_path / "runtime/jpserver-1.json", json.dumps(server | {"root_dir": str(tmp_path)}))
    write(tmp_path / "runtime/jpserver-2.json", json.dumps(server | {"pid": 2**30}))  # left by one that was killed
    reset.main()


def test_links_and_folders_without_git_are_refused(room, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (room / "report").symlink_to(tmp_path / "elsewhere")
    refused(room, "report is a link")
    (room / "report").unlink()
    (room / ".git/HEAD").write_text("nonsense")
    refused(room, "git says")
    (room / ".git").rename(tmp_path / "gone")
    refused(room, "no git repository")


# --- one machine for all -----------------------------------------------------------------------------------------


def test_jupyterhub_gives_everybody_a_work_folder(tmp_path):
    (config,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    config = config.replace("/srv/patchcore-kit", str(REPOSITORY)).replace("/srv/people", str(tmp_path / "people"))
    names = {"get_config": Config}
    exec(config, names)
    hub = names["c"]
    assert hub.JupyterHub.bind_url.startswith("http://127.0.0.1:")
    assert Path(hub.Spawner.args[0].partition("=")[2], "overrides.json").is_file()
    assert (REPOSITORY / hub.Spawner.default_url.removeprefix("/lab/tree/")).is_file()
    for name in ("ada", "emmy", "ada"):
        assert re.match(hub.Authenticator.username_pattern, name)
        spawner = SimpleNamespace(user=SimpleNamespace(name=name), environment={})
        hub.Spawner.pre_spawn_hook(spawner)
        mine = Path(spawner.environment["PATCHCORE_WORK"], "notebooks/task1_train.ipynb")
        assert mine.is_file() and Path(spawner.notebook_dir) == mine.parents[1] == tmp_path / "people" / name
        with mine.open("a") as file:
            file.write(name)
    for name, text in (("ada", "adaada"), ("emmy", "emmy")):  # the second time ada finds it as she left it
        mine = tmp_path / "people" / name / "notebooks/task1_train.ipynb"
        assert mine.read_text() == (REPOSITORY / "notebooks/task1_train.ipynb").read_text() + text
    assert not any(re.match(hub.Authenticator.username_pattern, name) for name in ("..", "a/b", ""))

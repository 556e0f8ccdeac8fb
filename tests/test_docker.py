"""JupyterLab as a student starts it: `make lab`, and with `make test-docker` the container, on a real Docker engine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
COMPOSE = yaml.safe_load((REPOSITORY / "docker-compose.yaml").read_text(encoding="utf-8"))
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
OWNER = (os.getuid(), os.getgid()) if os.getuid() else (1000, 1000)  # the student, who is not root


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def links(text: str) -> list[str]:
    return re.findall(r"https?://\S+", text)


def status(url: str) -> int:
    try:
        with urlopen(url, timeout=10) as answer:
            return answer.status
    except HTTPError as refusal:
        return refusal.code


def check_link(link: str, port: int) -> str:
    """The link opens the first notebook, and its token is needed; return the token."""
    page, token = link.split("?token=")
    assert page == f"http://127.0.0.1:{port}/lab/tree/notebooks/workshop.ipynb"
    assert status(link) == 200
    api = f"http://127.0.0.1:{port}/api/status"
    assert (status(api), status(f"{api}?token="), status(f"{api}?token={token}")) == (403, 403, 200)
    return token


# --- without an engine -------------------------------------------------------------------------------------------


def test_the_image_is_built_with_the_makefiles_pipenv():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    version = re.search(r"^PIPENV_VERSION := (\S+)$", makefile, re.MULTILINE).group(1)
    assert re.findall(r"pipenv==(\S+)", DOCKERFILE) == [version]


def test_any_docker_builds_it():
    assert not re.search(r"^# *syntax|<<|@sha256", DOCKERFILE, re.MULTILINE)
    assert set(COMPOSE) == {"services"}


def test_no_other_computer_reaches_the_port():
    assert [port.split(":")[0] for port in COMPOSE["services"]["jupyter"]["ports"]] == ["127.0.0.1"]


@pytest.fixture
def lab(tmp_path):
    """Start `make lab` with the environment at hand; at the end every one is stopped."""
    started = []
    keyboard, terminal = os.openpty()  # only at a terminal does Jupyter handle Ctrl-C, elsewhere Python may lose it

    def start(**settings) -> tuple[subprocess.Popen, str]:
        """What it printed until it answered or gave up, within half a minute."""
        log = tmp_path / f"lab{len(started)}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")}
        port = f"JUPYTER_PORT={settings.pop('JUPYTER_PORT')}"  # as the README says
        command = ["make", "--old-file=.venv/ready", "lab", f"RUN={sys.executable}", port]
        with log.open("w") as output:
            started.append(
                subprocess.Popen(
                    command,
                    cwd=REPOSITORY,
                    env=environment | settings | {"HOME": str(tmp_path)},
                    stdin=terminal,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and started[-1].poll() is None and not links(log.read_text()):
            time.sleep(0.2)
        return started[-1], log.read_text()

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    os.close(keyboard)
    os.close(terminal)


def test_make_lab(lab):
    port = free_port()
    process, output = lab(JUPYTER_PORT=str(port), JUPYTER_TOKEN=" ")
    (link,) = links(output)
    assert len(check_link(link, port)) == 48

    other, complaint = lab(JUPYTER_PORT=str(port))
    assert other.wait(10) != 0
    assert f"port {port} is not available" in complaint
    assert not links(complaint)

    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
    process.wait(20)


# --- with an engine ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def engine():
    for command in (["docker", "version"], ["docker", "compose", "version"]):
        if not shutil.which("docker") or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs a Docker engine with compose: `docker version` and `docker compose version` must work")


class Student:
    """A clone of this repository that belongs to a user, with a Compose project and a port of its own."""

    def __init__(self, folder: Path, uid: int, gid: int, **settings):
        self.folder, self.uid, self.port = folder, uid, free_port()
        listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            if (REPOSITORY / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / name, folder / name)
        if os.getuid() == 0:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, uid, gid)
        ours = {"HOST_UID": uid, "HOST_GID": gid, "JUPYTER_PORT": self.port, "JUPYTER_TOKEN": ""}
        ours["COMPOSE_PROJECT_NAME"] = f"patchcore-kit-test-{self.port}"
        self.environment = os.environ | {name: str(value) for name, value in (ours | settings).items()}

    def compose(self, *args, check=True, timeout=300) -> str:
        command = ["docker", "compose", *map(str, args)]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def up(self):
        self.compose("up", "--detach", "--build", "--wait", timeout=3600)

    def clear(self):
        self.compose("down", "--remove-orphans", "--rmi", "local", check=False)

    def inside(self, *command, **environment) -> str:
        settings = [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
        return self.compose("exec", "-T", *settings, "jupyter", *command, timeout=600)

    def link(self) -> str:
        (link,) = links(self.compose("logs", "jupyter"))
        return link

    def owners(self) -> set[int]:
        return {path.lstat().st_uid for path in self.folder.rglob("*")}


@pytest.fixture(scope="module")
def student(engine, tmp_path_factory):
    someone = Student(tmp_path_factory.mktemp("student"), *OWNER)
    try:
        someone.up()
        yield someone
    finally:
        someone.clear()


@pytest.mark.docker
def test_the_readmes_commands(student):
    """As they stand there, but for `up`: in the background, and with a GPU only as far as it is checked without one."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^```sh\n((?:docker|printf) .*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert len(commands) == 4
    script = "".join(commands).replace("gpu.yaml up", "gpu.yaml config")
    script = script.replace("compose up\n", "compose up --detach --wait\n")
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=student.folder,
        env=student.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "capabilities" in done.stdout
    settings = student.folder / ".env"
    without = {name: value for name, value in student.environment.items() if not name.startswith("HOST_")}
    understood = ["docker", "compose", "config", "--format", "json"]
    done = subprocess.run(understood, cwd=student.folder, env=without, capture_output=True, text=True, check=True)
    settings.unlink()  # from here on they come from the environment
    assert json.loads(done.stdout)["services"]["jupyter"]["user"] == f"{os.getuid()}:{os.getgid()}"
    (newest,) = re.findall(r"`(INSTALL_FROM=\S+) docker compose build`", readme)
    without |= dict([newest.split("=")])
    done = subprocess.run(understood, cwd=student.folder, env=without, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["services"]["jupyter"]["build"]["args"] == {"INSTALL_FROM": "Pipfile"}


@pytest.mark.docker
def test_one_link_with_a_token(student):
    assert len(check_link(student.link(), student.port)) == 48
    container = student.compose("ps", "--quiet", "jupyter").strip()
    ports = subprocess.run(
        ["docker", "inspect", "--format", "{{json .NetworkSettings.Ports}}", container],
        capture_output=True,
        check=True,
    )
    assert json.loads(ports.stdout) == {f"{student.port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(student.port)}]}


@pytest.mark.docker
def test_everything_imports_for_somebody_who_is_not_root(student):
    assert student.inside("id", "-u").strip() == str(student.uid)
    code = """
import torch, torchvision, timm, faiss, ipywidgets, matplotlib.pyplot
import bin.run_patchcore, patchcore_kit, utils
print(patchcore_kit.work_folder())
"""
    assert student.inside("python", "-W", "error::UserWarning", "-c", code) == "/work\n"
    student.inside("pip", "check")


@pytest.mark.docker
def test_a_task_runs_and_its_results_belong_to_the_student_and_outlive_the_container(student):
    execute = ["jupyter", "nbconvert", "--to", "notebook", "--execute", "--output-dir", "/work/executed"]
    student.inside(*execute, "notebooks/task1_train.ipynb", PATCHCORE_SMALL="1")
    results = {path: path.read_bytes() for path in student.folder.rglob("results.csv")}
    assert results
    assert student.owners() == {student.uid}

    before = student.link()
    student.compose("down")
    student.up()
    assert student.link() != before  # a new token
    assert status(student.link()) == 200
    for path in results:
        read = f"print(open('/work/{path.relative_to(student.folder)}').read(), end='')"
        assert student.inside("python", "-c", read).encode() == results[path]


@pytest.mark.docker
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_any_user_and_a_token_of_choice(engine, tmp_path):
    someone = Student(tmp_path, 12345, 23456, JUPYTER_TOKEN="word")
    try:
        someone.up()
        assert check_link(someone.link(), someone.port) == "word"
        someone.inside("python", "-c", "import getpass, pathlib; pathlib.Path('mine').write_text(getpass.getuser())")
        assert someone.owners() == {12345}
        someone.compose("down")

        someone.environment["HOST_UID"] = "54321"
        complaint = someone.compose("run", "--rm", "jupyter", check=False, timeout=60)
        assert "belongs to uid 12345: start with HOST_UID=12345 HOST_GID=23456" in complaint
        assert not links(complaint)
    finally:
        someone.clear()


@pytest.mark.docker
def test_requirements_from_the_lock_or_from_the_pipfile(engine, tmp_path):
    for name in ("Dockerfile", "Pipfile", "Pipfile.lock"):
        shutil.copy(REPOSITORY / name, tmp_path)

    def build(install_from: str) -> subprocess.CompletedProcess:
        command = ["docker", "build", "--progress=plain", "--target", "requirements", "--tag", "patchcore-kit-test"]
        command += ["--build-arg", f"INSTALL_FROM={install_from}", str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)

    def requirements(install_from: str) -> list[str]:
        built = build(install_from)
        assert built.returncode == 0, built.stderr
        command = ["docker", "run", "--rm", "patchcore-kit-test", "cat", "requirements.txt"]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
        subprocess.run(["docker", "image", "rm", "patchcore-kit-test"], capture_output=True, check=True)
        return lines

    locked, newest = requirements("Pipfile.lock"), requirements("Pipfile")
    assert locked[0] == "--require-hashes"
    assert all("==" in line and "--hash=sha256:" in line for line in locked[1:])
    assert "jupyterlab" in newest
    for pin in ("torch==2.14.1", "torchvision==0.29.1"):  # the pair must match
        assert pin in newest
        assert any(line.startswith(pin) for line in locked)
    assert not any(line.startswith(("pytest", "ruff")) for line in locked + newest)
    assert "it can be Pipfile.lock or Pipfile" in build("pipfile").stderr

    pipfile = (tmp_path / "Pipfile").read_text()
    (tmp_path / "Pipfile").write_text(pipfile.replace('tqdm = "*"', 'tqdm = ">=4"'))
    assert "Pipfile.lock is out-of-date" in build("Pipfile.lock").stderr

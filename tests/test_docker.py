"""JupyterLab as a student starts it: `make lab`, and with `make test-docker` the container, on a real Docker engine."""

import http.client
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
from urllib.request import Request, urlopen

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
COMPOSE = yaml.safe_load((REPOSITORY / "docker-compose.yaml").read_text(encoding="utf-8"))
CLUSTER = yaml.safe_load((REPOSITORY / "docker-compose.cluster.yaml").read_text(encoding="utf-8"))
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
BASE = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE).group(1)
STAND_IN = "python:3.11-slim-bookworm"  # for an engine that has it and cannot get BASE
LAB = COMPOSE["services"]["jupyter"]
FOLDERS = {name.split(":")[0].removeprefix("./") for name in LAB["volumes"] if isinstance(name, str)}
TOKEN = "sixteen_letters~"  # the shortest
PORTS = ("0", "99999", "65536", "abc", "-1", "80a", "08888", "8888.0", "\u0668")
TOKENS = ("x", "fifteen_letters", "no spaces in a link, please", "no/slashes?nor&such=things")
OWNER = (os.getuid(), os.getgid()) if os.getuid() else (1000, 1000)  # the student, who is not root


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def links(text: str) -> list[str]:
    return re.findall(r"https?://\S+", text)


def status(url: str, method: str = "GET", **headers: str) -> int:
    try:
        with urlopen(Request(url, method=method, headers=headers), timeout=10) as answer:
            return answer.status
    except HTTPError as refusal:
        return refusal.code


def check_names(link: str, port: int) -> None:
    """It answers to this computer's own names only, whatever a site on the internet calls it, and to its own pages."""
    page, token = link.split("?token=")
    api = f"http://127.0.0.1:{port}/api/status?token={token}"
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert {status(url, Host=f"{host}:{port}") for url in (link, api)} == {200}
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "192.0.2.1"):
        assert {status(url, Host=f"{host}:{port}") for url in (link, api, page)} == {403}

    with urlopen(Request(f"http://127.0.0.1:{port}/api/kernels?token={token}", b"{}"), timeout=30) as answer:
        kernel = json.load(answer)["id"]
    with urlopen(link, timeout=10) as answer:
        cookie = "; ".join(set_cookie.split(";")[0] for set_cookie in answer.headers.get_all("Set-Cookie"))

    def websocket(host: str, origin: str) -> int:
        """What a page of this origin gets to see in the browser of somebody who has opened the link."""
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        upgrade |= {"Sec-WebSocket-Key": "c2l4dGVlbl9sZXR0ZXJzfg==", "Cookie": cookie, "Host": host, "Origin": origin}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", f"/api/kernels/{kernel}/channels", headers=upgrade)
        try:
            return connection.getresponse().status
        finally:
            connection.close()

    ours, theirs = f"127.0.0.1:{port}", f"evil.example:{port}"
    assert websocket(ours, f"http://{ours}") == 101
    assert websocket(theirs, f"http://{theirs}") == 403  # a name of theirs that leads to this computer
    assert websocket(ours, f"http://{theirs}") == 403  # a page of theirs


def check_nobody_else(port: int) -> None:
    """Nothing listens on the port at the address that other computers know."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, but chooses the address it would send from
        except OSError:
            return  # no network, no other computers
        address = probe.getsockname()[0]
    if not address.startswith("127."):
        with pytest.raises(OSError):
            socket.create_connection((address, port), timeout=5).close()


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


def test_the_image_is_the_same_next_month():
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", BASE)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    for install in re.findall(r"pip install ((?:.*\\\n)*.*)", DOCKERFILE):
        named = re.findall(r"(?<=\s)[a-z][\w.=-]*", install.split("&&")[0].split("-r /tmp")[0])
        assert all("==" in name for name in named), named
        assert not named or "--no-deps" in install
    assert "apt-get" not in DOCKERFILE


def test_any_docker_builds_it():
    assert not re.search(r"^# *syntax|<<|@sha256", DOCKERFILE, re.MULTILINE)
    assert {name for name in COMPOSE if not name.startswith("x-")} == {"services"}


def test_the_build_sees_what_it_installs_only():
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["*", "!Pipfile", "!Pipfile.lock"]
    assert re.findall(r"^(?:COPY|ADD) (?!--from=requirements)(.*)", DOCKERFILE, re.MULTILINE) == [
        "Pipfile Pipfile.lock ./"
    ]


def test_no_other_computer_reaches_the_port():
    assert [port.split(":")[0] for port in LAB["ports"]] == ["127.0.0.1"]
    assert "network_mode" not in LAB


def test_the_header_names_every_setting_and_its_default():
    text = (REPOSITORY / "docker-compose.yaml").read_text(encoding="utf-8")
    header = text.partition("\nx-")[0]
    settings = set(re.findall(r"\$\{(\w+):-(.*?)\}", text))
    assert {name for name, _ in settings} >= {"HOST_UID", "JUPYTER_TOKEN", "MEMORY_LIMIT", "PATCHCORE_READ_ONLY"}
    for name, default in settings:
        assert f" {name}={default} " in header
    assert f"PYTHON_IMAGE={BASE} " in header


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_the_container_is_given_no_more_than_it_needs(service):
    given = COMPOSE["services"][service]
    assert given["cap_drop"] == ["ALL"] and "cap_add" not in given and "privileged" not in given
    assert given["security_opt"] == ["no-new-privileges:true"]
    assert given["read_only"] is True
    assert given["pids_limit"] > 0 and given["mem_limit"] == "${MEMORY_LIMIT:-0}"
    assert all("mode=1777" in place for place in given["tmpfs"])  # whoever HOST_UID is


def test_notebooks_write_to_their_folders_only():
    work, *others = LAB["volumes"]
    assert work == {"type": "bind", "source": ".", "target": "/work", "read_only": "${PATCHCORE_READ_ONLY:-true}"}
    assert others == [f"./{name}:/work/{name}" for name in sorted(FOLDERS)]
    # what git ignores as the user's, but for MVTec AD, which is only read, and the settings
    ignored = (REPOSITORY / ".gitignore").read_text(encoding="utf-8").partition("# yours")[2]
    yours = set(re.findall(r"^/(.*)/$", ignored, re.MULTILINE)) - {"mvtec_anomaly_detection"}
    assert {"notebooks", ".cache", *yours} == FOLDERS
    made = re.search(r"for folder in /work (.*);", COMPOSE["services"]["folders"]["command"][-1]).group(1)
    assert made.split() == sorted(FOLDERS)


@pytest.mark.parametrize("service", ["scheduler", "worker"])
def test_a_cluster_is_given_no_more_than_the_notebooks(service):
    given = CLUSTER["services"][service]
    for name in ("build", "user", "read_only", "cap_drop", "security_opt", "pids_limit", "mem_limit", "init"):
        assert given[name] == LAB[name], name
    for name in ("volumes", "tmpfs", "stop_grace_period"):
        assert given[name] == LAB[name], name
    assert not {"cap_add", "privileged", "network_mode"} & set(given)
    known = {*COMPOSE["services"]["jupyter"], "command"}
    assert set(given) <= known


def test_no_other_computer_reaches_the_cluster():
    """Of all its ports the dashboard alone is published, and to this computer only."""
    services = CLUSTER["services"]
    assert services["scheduler"]["ports"] == ["127.0.0.1:${DASHBOARD_PORT:-8787}:8787"]
    assert "ports" not in services["worker"]
    assert services["jupyter"]["environment"] == {"DASK_SCHEDULER_ADDRESS": "tcp://scheduler:8786"}
    assert services["worker"]["command"][2] == "tcp://scheduler:8786"
    text = (REPOSITORY / "docker-compose.cluster.yaml").read_text(encoding="utf-8")
    header, body = text.split("\nx-", 1)
    known = (REPOSITORY / "docker-compose.yaml").read_text(encoding="utf-8").partition("\nx-")[0]
    for name, default in set(re.findall(r"\$\{(\w+):-(.*?)\}", body)):
        assert f" {name}={default} " in header + known, name


def refusal(monkeypatch, **settings: str) -> str:
    """What the server's settings file says before it ends; nothing else of the server runs."""
    for name in ("JUPYTER_PORT", "JUPYTER_TOKEN", "JUPYTER_IP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    path = REPOSITORY / "jupyter/jupyter_server_config.py"
    with pytest.raises(SystemExit) as end:
        exec(compile(path.read_text(encoding="utf-8"), path, "exec"), {"__file__": str(path)})
    assert "\n" not in end.value.code
    return end.value.code


@pytest.mark.parametrize("port", PORTS)
def test_a_port_that_is_none_is_refused(monkeypatch, port):
    said = refusal(monkeypatch, JUPYTER_PORT=port)
    assert f"JUPYTER_PORT is {port!r}" in said and "1 to 65535" in said


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_that_can_be_guessed_or_breaks_the_link_is_refused(monkeypatch, token):
    said = refusal(monkeypatch, JUPYTER_TOKEN=token)
    assert "leave it empty" in said and "16 characters" in said
    assert token == "x" or token not in said


@pytest.fixture
def lab(tmp_path):
    """Start `make lab` with the environment at hand; at the end every one is stopped."""
    started = []
    keyboard, terminal = os.openpty()  # only at a terminal does Jupyter handle Ctrl-C, elsewhere Python may lose it

    def start(**settings) -> tuple[subprocess.Popen, str]:
        """What it printed until it answered or gave up, within half a minute."""
        log = tmp_path / f"lab{len(started)}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")}
        port = f"JUPYTER_PORT={settings.pop('JUPYTER_PORT')}"  # as docs/setup.md says
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
    check_names(link, port)
    check_nobody_else(port)

    other, complaint = lab(JUPYTER_PORT=str(port))
    assert other.wait(10) != 0
    assert f"port {port} is not available" in complaint
    assert not links(complaint)

    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
    process.wait(20)


def test_make_lab_refuses_with_a_sentence(lab):
    for settings in ({"JUPYTER_PORT": "80a"}, {"JUPYTER_PORT": str(free_port()), "JUPYTER_TOKEN": "x"}):
        refused, complaint = lab(**settings)
        assert refused.wait(10) != 0
        (sentence,) = (line for line in complaint.splitlines() if not line.startswith("make"))  # which has its own say
        assert sentence.startswith(list(settings)[-1])


# --- with an engine ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def engine():
    for command in (["docker", "version"], ["docker", "compose", "version"]):
        if not shutil.which("docker") or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs a Docker engine with compose: `docker version` and `docker compose version` must work")

    def has(*command: str) -> bool:
        return not subprocess.run(["docker", *command], capture_output=True, check=False).returncode

    with pytest.MonkeyPatch.context() as patch:
        pinned = has("image", "inspect", BASE) or "PYTHON_IMAGE" in os.environ or has("pull", BASE)
        if not pinned and has("image", "inspect", STAND_IN):
            patch.setenv("PYTHON_IMAGE", STAND_IN)
        yield


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
    pages = ("README.md", "docs/setup.md")
    readme = "".join((REPOSITORY / page).read_text(encoding="utf-8") for page in pages)
    commands = re.findall(r"^```sh\n((?:docker|printf) .*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert len(commands) == 5
    script = "".join(commands).replace("gpu.yaml up", "gpu.yaml config")
    script = script.replace("cluster.yaml up --scale worker=2", "cluster.yaml config")  # it has a test of its own
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
    assert json.loads(done.stdout)["services"]["jupyter"]["build"]["args"]["INSTALL_FROM"] == "Pipfile"


@pytest.mark.docker
def test_one_link_with_a_token(student):
    assert len(check_link(student.link(), student.port)) == 48
    check_names(student.link(), student.port)
    check_nobody_else(student.port)
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
def test_a_notebook_changes_its_folders_and_nothing_that_is_run_outside(student):
    """Here in a fresh clone, of which Docker would have made the folders that are missing as root's."""
    code = """
import os, pathlib
work = pathlib.Path("/work")
print(*(p.relative_to(work) for p in [work, *work.rglob("*")] if os.access(p, os.W_OK)), sep="\\n")
"""
    writable = student.inside("python", "-c", code).splitlines()
    assert {path.split("/")[0] for path in writable} == FOLDERS
    for place in (
        "bin/run_patchcore.py",
        "GNUmakefile",
        "jupyter_config.py",
        "compose.yaml",
        "usr.py",
        "/usr/bin/make",
    ):
        assert "Read-only file system" in student.inside("sh", "-c", f"echo 1 >> {place} || true")
    made = [f"{folder}/a/b" for folder in sorted(FOLDERS)]
    student.inside("sh", "-ec", f"mkdir -p {' '.join(made)}; rm -r {' '.join(folder[:-2] for folder in made)}")
    status_of_1 = student.inside("cat", "/proc/1/status")
    assert set(re.findall(r"^Cap(?:Prm|Eff|Bnd):\s*(\S+)$", status_of_1, re.MULTILINE)) == {"0" * 16}
    assert re.search(r"^NoNewPrivs:\s*1$", status_of_1, re.MULTILINE)
    assert student.owners() == {student.uid}

    contents = f"http://127.0.0.1:{student.port}/api/contents/notebooks/{{}}?{student.link().split('?')[1]}"
    student.inside("sh", "-ec", "mkdir notebooks/mine && echo 1 | tee notebooks/one notebooks/mine/two")
    assert status(contents.format("mine"), "DELETE") == 400  # it holds something, and there is no trash
    assert (student.folder / "notebooks/mine/two").is_file()
    assert status(contents.format("mine/two"), "DELETE") == status(contents.format("one"), "DELETE") == 204
    assert status(contents.format("mine"), "DELETE") == 204


@pytest.mark.docker
def test_what_may_be_changed_can_be_chosen_and_what_is_used_can_be_limited(student, monkeypatch):
    for name, value in {"PATCHCORE_READ_ONLY": "false", "MEMORY_LIMIT": "3g"}.items():
        monkeypatch.setitem(student.environment, name, value)
    code = """
import pathlib
pathlib.Path("bin/mine.py").write_text("mine")
for name in ("memory.max", "pids.max", "memory/memory.limit_in_bytes", "pids/pids.max"):  # cgroups 2 and 1
    if pathlib.Path("/sys/fs/cgroup", name).is_file():
        print(pathlib.Path("/sys/fs/cgroup", name).read_text(), end="")
"""
    limits = student.compose("run", "--rm", "-T", "jupyter", "python", "-c", code).splitlines()[-2:]
    assert limits == [str(3 << 30), str(LAB["pids_limit"])]
    mine = student.folder / "bin/mine.py"
    assert mine.read_text() == "mine"
    mine.unlink()


@pytest.mark.docker
@pytest.mark.parametrize("port", [port for port in PORTS if port != "08888"])  # to Docker that is 8888
def test_a_port_that_is_none_is_refused_before_anything_starts(student, monkeypatch, port):
    monkeypatch.setitem(student.environment, "JUPYTER_PORT", port)
    complaint = student.compose("up", "--detach", check=False)
    assert len(complaint.splitlines()) == 1, complaint
    assert "ort" in complaint


@pytest.mark.docker
def test_a_task_runs_and_its_results_belong_to_the_student_and_outlive_the_container(student):
    execute = ["jupyter", "nbconvert", "--to", "notebook", "--execute", "--output-dir", "experiments/executed"]
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
def test_a_cluster_does_task_7(student):
    """Two workers and a scheduler beside the notebooks, whose environment leads task 7 to them."""
    files = ("-f", "docker-compose.yaml", "-f", "docker-compose.cluster.yaml")
    student.environment["DASHBOARD_PORT"] = str(free_port())
    try:
        student.compose(*files, "up", "--detach", "--build", "--wait", "--scale", "worker=2", timeout=3600)
        count = """
from distributed import Client
with Client("tcp://scheduler:8786", timeout=30) as client:
    client.wait_for_workers(2, timeout=60)
    print(*client.run(__import__("os").uname).values())
"""
        assert student.inside("python", "-c", count).count("posix.uname_result") == 2
        dashboard = f"http://127.0.0.1:{student.environment['DASHBOARD_PORT']}"
        assert status(f"{dashboard}/status") == 200
        check_nobody_else(int(student.environment["DASHBOARD_PORT"]))
        execute = ["jupyter", "nbconvert", "--to", "notebook", "--execute", "--output-dir", "experiments/executed"]
        student.inside(*execute, "notebooks/task7_image_size.ipynb", PATCHCORE_SMALL="1")
        tables = list((student.folder / "experiments/step7").glob("*/results.csv"))
        assert len(tables) == 4
        assert all(table.read_text(encoding="utf-8").count("\nmvtec_") == 3 for table in tables)
        assert student.owners() == {student.uid}
        count = """
from distributed import Client
with Client("tcp://scheduler:8786", timeout=30) as client:
    print(client.run_on_scheduler(lambda dask_scheduler: sum(t[2] == "memory" for t in dask_scheduler.transition_log)))
"""
        assert student.inside("python", "-c", count) == "12\n"  # three categories at four sizes
    finally:
        student.compose(*files, "down", check=False)
        student.environment.pop("DASHBOARD_PORT")
        student.up()


@pytest.mark.docker
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize(("uid", "gid"), [(12345, 23456), (0, 0)], ids=["any", "root, as with rootless Docker"])
def test_any_user_and_a_token_of_choice(engine, tmp_path, uid, gid):
    someone = Student(tmp_path, uid, gid)
    del someone.environment["JUPYTER_TOKEN"]
    (tmp_path / ".env").write_text(f"JUPYTER_TOKEN={TOKEN}\n")
    os.chown(tmp_path / ".env", uid, gid)
    try:
        someone.up()
        assert check_link(someone.link(), someone.port) == TOKEN
        code = "import getpass, pathlib; pathlib.Path('experiments/mine').write_text(getpass.getuser())"
        someone.inside("python", "-c", code)
        assert someone.owners() == {uid}
        for image in someone.compose("images", "--quiet").split():
            for command in (["history", "--no-trunc"], ["inspect"]):
                done = subprocess.run(["docker", *command, image], capture_output=True, text=True, check=True)
                assert "pip install" in done.stdout or "PYTHONPATH" in done.stdout
                assert TOKEN not in done.stdout and "JUPYTER_TOKEN" not in done.stdout
                assert not re.search(r"://[^/\s]+@", done.stdout)  # an index's user and password
            inside = ["docker", "run", "--rm", "--network=none", image, "ls", "-A", "/work", "/requirements"]
            done = subprocess.run(inside, capture_output=True, text=True, check=False)
            assert done.stdout == "/work:\n" and "No such file" in done.stderr
        someone.compose("down")

        someone.environment["HOST_UID"] = "54321"
        complaint = someone.compose("up", check=False, timeout=60)
        assert f"to /work, which belongs to uid {uid}: start with HOST_UID={uid} HOST_GID={gid}" in complaint
        assert not links(complaint)
        someone.environment |= {"HOST_UID": str(uid), "JUPYTER_TOKEN": "x"}
        someone.compose("up", "--detach", "--wait", check=False, timeout=60)
        complaint = someone.compose("logs", "jupyter")
        assert "JUPYTER_TOKEN is too easy to guess" in complaint and "Traceback" not in complaint
        assert not links(complaint)
    finally:
        someone.clear()


@pytest.mark.docker
def test_requirements_from_the_lock_or_from_the_pipfile(engine, tmp_path):
    for name in ("Dockerfile", "Pipfile", "Pipfile.lock"):
        shutil.copy(REPOSITORY / name, tmp_path)

    def build(install_from: str) -> subprocess.CompletedProcess:
        command = ["docker", "build", "--progress=plain", "--target", "requirements", "--tag", "patchcore-kit-test"]
        command += ["--build-arg", "PYTHON_IMAGE", "--build-arg", f"INSTALL_FROM={install_from}", str(tmp_path)]
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

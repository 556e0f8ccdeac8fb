"""Many jobs: in processes of their own, and on a real Dask scheduler with two real workers, all on loopback."""

import json
import logging
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import faiss
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from small_jobs import work

import patchcore_kit as pk
from patchcore_kit import executors
from patchcore_kit.cli import load_and_evaluate_patchcore, run_patchcore
from patchcore_kit.executors import Cluster, Here, JobsError, Processes
from patchcore_kit.experiments import Network, NewDetector, Outputs, Training, train_all
from patchcore_kit.results import Results

REPOSITORY = Path(__file__).resolve().parents[1]
PASSING = ["fit_seconds", "predict_seconds", "peak_mb", "checksum"]  # of a row, which are others every time

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed", "ignore::ResourceWarning")


# --- processes ---------------------------------------------------------------------------------------------------


def test_what_becomes_of_jobs_in_processes(tmp_path, caplog):
    jobs = [("do", 0), ("refuse", 1), ("break", 2), ("die once", tmp_path / "3"), ("threads", 4), ("do", 5)]
    with caplog.at_level(logging.INFO, "patchcore_kit"):
        found = dict(Processes(2, threads=1).run(work, jobs))
    assert sorted(found) == list(range(6))
    assert found[0].told == (("patchcore_kit.test", logging.INFO, "doing 0"),)
    assert isinstance(found[1].error, pk.DataError) and str(found[1].error) == "no 1: give another"
    assert isinstance(found[2].error, JobsError) and str(found[2].error) == "IndexError: list index out of range"
    assert found[4].value == (1, 1, 1, {1})
    assert not any(found[number].error for number in (0, 3, 4, 5))
    assert os.getpid() not in {found[number].value for number in (0, 3, 5)}
    assert caplog.text.count("a worker was ended by SIGKILL: its job is tried again") == 1
    assert multiprocessing.active_children() == []


def test_processes_end_with_their_caller(tmp_path):
    with closing(Processes(1).run(work, [("do", 0), ("wait", tmp_path)])) as outcomes:
        next(outcomes)
        assert multiprocessing.active_children() != []
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "given up").exists()


def test_threads_are_divided():
    assert Processes(1).threads == executors.cores()
    assert Processes(2).threads == max(1, executors.cores() // 2)
    assert Processes(1000).threads == 1
    assert Processes(2, threads=3).threads == 3
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    ((_, outcome),) = Here(threads=1).run(work, [("threads", 0)])
    assert outcome.value == (1, 1, 1, {1})
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == before
    for wrong in (0, 1.5, "2", True):
        for make in (Processes, lambda n: Processes(1, n), Here, lambda n: Cluster("tcp://127.0.0.1:1", n)):
            with pytest.raises(pk.SettingsError, match="must be a whole number from 1 on"):
                make(wrong)


def test_jobs_that_cannot_be_sent():
    with pytest.raises(pk.SettingsError, match=r"a job cannot be sent to another process .*lambda"):
        list(Processes(1).run(work, [lambda: None]))
    assert multiprocessing.active_children() == []


def test_a_script_without_its_guard_is_told(tmp_path):
    """Its processes would begin with the same work, and fail."""
    script = "from small_jobs import work\nfrom patchcore_kit.executors import Processes\n"
    script += "print(*[outcome.error for _, outcome in Processes(1).run(work, [('do', 0)])])\n"
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests")}
    command = [sys.executable, str(tmp_path / "script.py")]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100).stdout
    assert said.endswith(
        "before it: see what it has printed; a script must do its work below if __name__ == '__main__'\n"
    )


def test_this_process_reports_alike():
    found = dict(Here().run(work, [("do", 0), ("refuse", 1), ("break", 2)]))
    assert found[0].value == os.getpid()
    assert executors.reason(found[1].error) == "no 1: give another"
    assert executors.reason(found[2].error) == "IndexError: list index out of range"
    refused = executors.reason(PermissionError(13, "Permission denied", "/a"))
    assert refused == "cannot use /a (Permission denied): check that it is there and that you may use it"


def test_other_versions_are_refused():
    here = executors._versions()
    executors._check_same(here)
    for name, version in (("torch", "2.0.0"), ("faiss", "1.0"), ("patchcore_kit", "0" * 8), ("Python", "3.99")):
        with pytest.raises(JobsError, match=rf"has {name} {re.escape(here[name])}, not {version}, so its values"):
            executors._check_same(here | {name: version})


def test_other_weights_are_refused():
    layers = ("layer2",)
    backbone = pk.load_backbone("starter", layers)
    network = Network("starter", layers, None, "cpu", 0, "float32", backbone.fingerprint)
    settings = {"resize": 36, "imagesize": 32}
    made = pickle.loads(pickle.dumps(NewDetector([network], settings, backbones=[backbone], cached=False)))
    assert made().backbone.fingerprint == backbone.fingerprint and made().imagesize == 32
    with pytest.raises(pk.WeightsError, match=r"has other weights of starter \(starter, \w+ instead of 00000000\)"):
        NewDetector([replace(network, fingerprint="0" * 8)], settings)


# --- a cluster ---------------------------------------------------------------------------------------------------


class Dask:
    """A scheduler, and workers that can be added; all of them real processes on loopback, which end with the block."""

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, []
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(folder / "scheduler"))
        deadline = time.monotonic() + 60
        while not (folder / "scheduler").is_file() or not (folder / "scheduler").stat().st_size:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        self.address = json.loads((folder / "scheduler").read_text())["address"]

    def add(self, workers: int = 1) -> None:
        """Workers of one thread, which are started anew if they die."""
        for _ in range(workers):
            place = ["--host", "127.0.0.1", "--local-directory", str(self.folder)]
            self._start("worker", self.address, *place, "--nthreads", "1", "--memory-limit", "0")

    def _start(self, what: str, *args: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard", *args]
        path = os.pathsep.join([str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])
        with (self.folder / "log").open("a") as log:
            environment = os.environ | {"PYTHONPATH": path}
            self.processes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            )

    def workers(self) -> list[int]:
        """Their processes' ids, once they are there."""
        import distributed

        with distributed.Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(len(self.processes) - 1, timeout=60)
            return sorted(client.run(os.getpid).values())


@contextmanager
def started(folder: Path):
    pytest.importorskip("distributed")
    dask = Dask(folder)
    try:
        yield dask
    finally:
        for process in dask.processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    with started(tmp_path_factory.mktemp("dask")) as dask:
        dask.add(2)
        yield dask


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, few = tmp_path_factory.mktemp("jobs") / "data", {"train": 6, "good": 3, "defective": 3, "size": 64}
    return pk.draw_sample_data(folder, ("pill", "screw", "weave"), **few, progress=False)


SIZES = {18: 16, 27: 24, 37: 32, 46: 40}


def run_at_sizes(results: Path, data: Path, *options, sizes=SIZES, code=0):
    """Train on all categories at all sizes; what was printed."""
    size = [part for resize, side in sizes.items() for part in ("--resize", resize, "--imagesize", side)]
    args = ["--save_patchcore_model", "--save_predictions", *options, results, "patch_core", "-b", "starter", "sampler"]
    args += ["approx_greedy_coreset", "dataset", *size, "--no_image_cache", "mvtec", data]
    result = CliRunner().invoke(run_patchcore, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output


def values(results: Path) -> pd.DataFrame:
    """The rows of all runs, by run and category, as they are written."""
    tables = {path.parent.name: pd.read_csv(path, dtype=str) for path in sorted(results.rglob("results.csv"))}
    table = pd.concat(tables).drop(columns=PASSING).drop(columns=["alarm_seconds"], errors="ignore")
    return table.set_index("Row Names", append=True)


@pytest.fixture(scope="module")
def serial(data, tmp_path_factory):
    """The 12 rows as one process with one thread makes them."""
    results = tmp_path_factory.mktemp("serial")
    run_at_sizes(results, data, "--threads", 1)
    return values(results)


def test_what_becomes_of_jobs_on_a_cluster(dask, caplog, monkeypatch):
    jobs = [("do", 0), ("refuse", 1), ("break", 2), ("do", 3), ("threads", 4)]
    with caplog.at_level(logging.INFO, "patchcore_kit"):
        found = dict(Cluster(dask.address).run(work, jobs))
    assert found[0].told == (("patchcore_kit.test", logging.INFO, "doing 0"),)
    assert isinstance(found[1].error, pk.DataError)
    assert str(found[2].error) == "IndexError: list index out of range"
    assert found[4].value == (1, 1, 1, {1})
    assert {found[0].value, found[3].value} <= set(dask.workers())
    ((_, outcome),) = Cluster(dask.address, threads=2).run(work, [("threads", 0)])
    assert outcome.value[:3] == (2, 2, 2)

    other = executors._versions() | {"torch": "2.0.0"}
    monkeypatch.setattr(executors, "_versions", lambda: other)
    refused = f"has torch {torch.__version__.partition('+')[0]}, not 2.0.0"
    with pytest.raises(JobsError, match=re.escape(refused)):
        list(Cluster(dask.address).run(work, [("do", 0), ("do", 1), ("do", 2)]))
    assert caplog.text.count("gets no more jobs: the worker on ") == 1  # where the other is tried as well
    assert refused in caplog.text


def test_what_a_caller_has_given_up_is_not_wanted(dask, tmp_path):
    outcomes = Cluster(dask.address).run(work, [("wait", tmp_path), ("do", 1)])
    assert next(outcomes)[0] == 1
    wait_for(tmp_path / "begun")
    outcomes.close()
    wait_for(tmp_path / "given up")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


def test_twelve_jobs_on_two_workers_of_which_one_is_killed(dask, data, serial, tmp_path, caplog):
    """Nothing is lost, and all values are those of one process, to the last digit, in the same order."""
    victim = dask.workers()[0]

    def kill():
        while not any((tmp_path / "project").glob("*/results.csv")):
            time.sleep(0.01)
        os.kill(victim, signal.SIGSTOP)  # so that it keeps the job that it has, or is given
        time.sleep(1)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    output = run_at_sizes(tmp_path, data, "--scheduler", dask.address)
    killer.join()
    assert "is gone: its job is tried again" in caplog.text
    found = values(tmp_path)
    assert len(found.drop(index="Mean", level="Row Names")) == 12
    pd.testing.assert_frame_equal(found, serial)
    assert output.count("table: ") == 4
    assert {path.name for path in (tmp_path / "project").iterdir()} == {"group-16", "group-24", "group-32", "group-40"}
    for run in (tmp_path / "project").iterdir():
        assert len(list((run / "models").iterdir())) == 3 and len(list((run / "predictions").iterdir())) == 6
        assert not list(run.rglob(".patchcore_kit-*"))
    before = (run / "results.csv").read_bytes()
    run_at_sizes(tmp_path, data, "--scheduler", dask.address, "--resume")
    assert (run / "results.csv").read_bytes() == before
    assert f"mvtec_pill ({run.name}): done before" in caplog.text


@pytest.mark.parametrize("where", ["here", "processes", "cluster"])
def test_a_job_that_fails_stops_no_other(where, data, tmp_path, caplog, request):
    data = shutil.copytree(data, tmp_path / "data")
    broken = [data / name / "train/good/001.png" for name in ("pill", "weave")]
    for image in broken:
        image.write_bytes(image.read_bytes()[:300])
    options = {"here": ["--threads", 1], "processes": ["--jobs", 2]}.get(where)
    options = options or ["--scheduler", request.getfixturevalue("dask").address]
    output = run_at_sizes(tmp_path / "results", data, *options, sizes={18: 16}, code=1)
    reasons = "for the reasons above: pill, weave; with --resume they are tried again"
    assert f"Error: 2 of 3 categories are not done, {reasons}" in output
    assert "mvtec_screw" in output  # its table
    for image in broken:
        assert f"mvtec_{image.parents[2].name}: cannot read image {image} (" in caplog.text
    table = tmp_path / "results/project/group/results.csv"
    assert pk.read_results(table).index.tolist() == ["mvtec_screw", "Mean"]
    for image in broken:
        shutil.copy(image.with_name("002.png"), image)
    run_at_sizes(tmp_path / "results", data, "--threads", 1, "--resume", sizes={18: 16})
    assert sorted(pk.read_results(table).index) == ["Mean", "mvtec_pill", "mvtec_screw", "mvtec_weave"]


def test_models_are_evaluated_elsewhere_as_here(dask, data, tmp_path):
    run_at_sizes(tmp_path, data, "--threads", 1, sizes={18: 16})
    models = [
        part for name in pk.list_categories(data) for part in ("-p", tmp_path / f"project/group/models/mvtec_{name}")
    ]
    steps = ["patch_core_loader", *models, "dataset", "mvtec", data]
    for where in (["--threads", 1], ["--scheduler", dask.address]):
        args = ["--save_predictions", *where, tmp_path / where[0], *steps]
        result = CliRunner().invoke(load_and_evaluate_patchcore, [str(arg) for arg in args])
        assert result.exit_code == 0, result.output
    pd.testing.assert_frame_equal(*(values(tmp_path / where).droplevel(0) for where in ("--threads", "--scheduler")))


def test_no_scheduler_is_a_sentence_soon(data, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "SOON", 1)
    started = time.monotonic()
    for address in ("tcp://127.0.0.1:1", "nothing://x"):
        output = run_at_sizes(tmp_path / "results", data, "--scheduler", address, code=1)
        assert f"Error: no scheduler answers at {address} (" in output
    assert time.monotonic() - started < 20
    assert not (tmp_path / "results").exists()


def test_a_scheduler_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(pk.SettingsError, match="pip install distributed"):
        list(Cluster("tcp://127.0.0.1:1").run(work, [("do", 0)]))


# --- the command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        (["--jobs", 2, "--scheduler", "tcp://a:1"], SIZES, "--jobs 2 is for this computer, --scheduler tcp://a:1 for"),
        (["--jobs", 2, "--log_group", "a", "--log_group", "b"], SIZES, "--log_group is a, b for 4 image sizes"),
        (["--log_group", "a", "--log_group", "a"], {18: 16, 27: 24}, "--log_group is a, a for 2 image sizes"),
        (["--log_group", "a", "--log_group", "b"], {18: 16}, "--log_group is a, b for 1 image size: give a name"),
    ],
)
def test_contradictions(options, sizes, message, data, tmp_path):
    assert f"Error: {message}" in run_at_sizes(tmp_path / "results", data, *options, sizes=sizes, code=1)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (["--resize", 18, "--imagesize", 16, "--imagesize", 18], "--resize is given 1 times and --imagesize 2 times"),
        (["--resize", 18, "--resize", 27, "--imagesize", 16], "--resize is given 2 times and --imagesize 1 times"),
        (["--resize", "18x27", "--resize", "18x27"], "the size 18x27 is given twice"),
        (["--imagesize", 16, "--imagesize", 16], "the size 16of256 is given twice"),
    ],
)
def test_sizes_that_do_not_belong_together(size, message, data, tmp_path):
    args = [tmp_path / "results", "patch_core", "-b", "starter", "sampler", "identity", "dataset", *size, "mvtec", data]
    result = CliRunner().invoke(run_patchcore, [str(arg) for arg in args])
    assert result.exit_code == 2 and f"Error: {message}" in result.output


def test_a_gpu_is_for_one_job_at_a_time(data, tmp_path):
    output = run_at_sizes(tmp_path / "results", data, "--gpu", 0, "--jobs", 2, code=1)
    assert "Error: --jobs 2 would put 2 networks on one GPU" in output


def test_the_environments_scheduler_counts_unless_jobs_are_named(data, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "SOON", 1)
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:1")
    assert "no scheduler answers" in run_at_sizes(tmp_path, data, sizes={18: 16}, code=1)
    run_at_sizes(tmp_path, data, "--jobs", 1, sizes={18: 16})


def test_each_size_has_its_run_and_a_name_that_says_it(data, tmp_path):
    size = ["--resize", "18", "--imagesize", "16", "--resize", "20", "--imagesize", "16", "--resize", "16x24"]
    rest = ["-b", "starter", "sampler", "random", "dataset", *size, "-d", "pill", "mvtec", data]
    result = CliRunner().invoke(run_patchcore, [str(arg) for arg in [tmp_path, "patch_core", *rest]])
    assert result.exit_code == 0, result.output
    runs = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("settings.json")}
    seen = {name: (settings["resize"], settings["imagesize"]) for name, settings in runs.items()}
    assert seen == {"group-16": (18, 16), "group-16of20": (20, 16), "group-16x24": ([16, 24], 224)}


# --- longer ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_scheduler_without_workers_is_waited_for(tmp_path, caplog):
    with started(tmp_path) as dask:
        threading.Timer(3, dask.add).start()
        ((_, outcome),) = Cluster(dask.address).run(work, [("do", 0)])
        assert outcome.value in dask.workers()
        assert caplog.text.count("has no workers yet: waiting for one") == 1

        outcomes = Cluster(dask.address).run(work, [("do", 0), ("wait", tmp_path)])
        next(outcomes)
        wait_for(tmp_path / "begun")
        os.killpg(dask.processes[0].pid, signal.SIGKILL)
        with pytest.raises(JobsError, match=r"the scheduler at .* is gone"):
            next(outcomes)


@pytest.mark.long
@pytest.mark.parametrize("where", ["processes", "cluster"])
def test_a_job_whose_workers_die_is_given_up(where, dask):
    executor = Processes(2) if where == "processes" else Cluster(dask.address)
    found = dict(executor.run(work, [("die", 0), ("do", 1), ("do", 2)]))
    assert ", as did 2 before it: it may take more memory than there is" in str(found[0].error)
    assert found[1].error is None and found[2].error is None


@pytest.mark.long
@pytest.mark.parametrize("where", ["processes", "cluster"])
def test_ctrl_c(where, dask, data, tmp_path):
    options = ["--jobs", "2"] if where == "processes" else ["--scheduler", dask.address]
    size = ["--resize", "512", "--imagesize", "448"]
    command = [sys.executable, "bin/run_patchcore.py", *options, "--save_patchcore_model", tmp_path, "patch_core"]
    command += ["-b", "starter", "sampler", "-p", "1", "approx_greedy_coreset", "dataset", *size, "mvtec", data]
    process = subprocess.Popen(
        [str(part) for part in command], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    time.sleep(15)
    os.killpg(process.pid, signal.SIGINT)  # to all of its processes, as a terminal does
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "Error: stopped: finished categories are kept" in said and "Traceback" not in said and "leaked" not in said
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # Python's own helper ends a moment later
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.long
@pytest.mark.parametrize("where", ["processes", "cluster"])
def test_two_workers_are_nearly_twice_as_fast(where, dask, tmp_path, capsys):
    """12 jobs of one thread each, without the time that two processes take to start and to load the libraries.

    Alone they have one core: images are read ahead, which would otherwise take some of another.
    """
    if executors.cores() < 2:
        pytest.skip("needs two cores")
    few = {"train": 60, "good": 10, "defective": 10, "size": 256}
    data = pk.draw_sample_data(tmp_path / "data", ("pill", "screw", "weave"), **few, progress=False)
    backbone = pk.load_backbone("starter")
    network = Network("starter", backbone.layers, None, "cpu", 0, "float32", backbone.fingerprint)
    categories = [pk.load_category(data, name) for name in pk.list_categories(data)]

    def seconds(executor, name, sizes=(160, 144, 128, 112), some=3):
        runs = []
        for size in sizes:
            make = NewDetector([network], {"resize": size, "imagesize": size}, backbones=[backbone], cached=False)
            results = Results(tmp_path / name / str(size), {"size": size})
            runs.append(Training(categories[:some], make, results, Outputs()))
        begun = time.monotonic()
        train_all(runs, executor=executor, progress=False)
        return time.monotonic() - begun

    make = {"processes": lambda: Processes(2, threads=1), "cluster": lambda: Cluster(dask.address, threads=1)}[where]
    start = seconds(make(), "start", sizes=(16,), some=2)
    start = start if where == "processes" else 0  # a cluster's workers have started now
    there, ratios = os.sched_getaffinity(0), []
    for turn in "123":
        together = seconds(make(), f"together {turn}") - start
        os.sched_setaffinity(0, {min(there)})
        try:
            alone = seconds(Here(threads=1), f"alone {turn}")
        finally:
            os.sched_setaffinity(0, there)
        ratios.append(alone / together)
        with capsys.disabled():
            print(f"\n12 jobs of one thread, {where}: {alone:.1f} s alone, {together:.1f} s by two, {ratios[-1]:.2f}")
        pd.testing.assert_frame_equal(values(tmp_path / f"alone {turn}"), values(tmp_path / f"together {turn}"))
    assert sorted(ratios)[1] >= 1.6

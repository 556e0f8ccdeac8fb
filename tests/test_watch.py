import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from patchcore_kit import watch as watching
from patchcore_kit.errors import DataError, ResultsError
from patchcore_kit.files import printable
from patchcore_kit.watch import COLUMNS, HEADER, Judgement, watch

WHOLE = b"whole"


def judge(path, name):
    content = path.read_bytes()
    if not content.endswith(WHOLE):
        raise DataError(f"cannot read image {path} (image file is truncated): replace it or remove it")
    return Judgement(name, "look", 1.5, (1, 2, 3, 4), 0.25, "darker, than all")


def run(folder, out=None, judge=judge, **options):
    """Judge what is there, and end: what was told."""
    told = []
    watch(folder, judge, out or folder / "verdicts.csv", told.append, settle=0.01, interval=0.01, once=True, **options)
    return told


def lines(path):
    content = path.read_text(encoding="utf-8")
    assert content.endswith("\n")
    return list(csv.DictReader(content.splitlines()))


class Running:
    """A watch in a thread."""

    def __init__(self, folder, judge=judge, **options):
        self.told, self.stop = [], threading.Event()
        options = {"settle": 0.05, "interval": 0.01, "patience": 0.3} | options
        out = folder / "verdicts.csv"
        self.thread = threading.Thread(
            target=watch, args=(folder, judge, out, self.told.append), kwargs=options | {"stop": self.stop}
        )

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def wait(self, n, seconds=10):
        end = time.monotonic() + seconds
        while len(self.told) < n and time.monotonic() < end:
            time.sleep(0.01)
        assert len(self.told) == n
        return self.told[-1]


def test_each_photograph_gets_one_line(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("b.png", "a.JPG", "below/c.tif", ".hidden.png", "d.png.part", "e.part.png", "f.tmp", "notes.txt"):
        (tmp_path / name).write_bytes(WHOLE)
    told = run(tmp_path)
    assert {said.name for said in told} == {"a.JPG", "b.png", "below/c.tif"}
    found = lines(tmp_path / "verdicts.csv")
    assert len(found) == 3 and tuple(found[0]) == COLUMNS
    one = next(line for line in found if line["name"] == "below/c.tif")
    stat = (tmp_path / "below/c.tif").stat()
    assert (int(one["size"]), int(one["mtime_ns"])) == (5, stat.st_mtime_ns)
    assert (one["verdict"], one["index"], one["where"], one["remark"]) == ("look", "1.5", "1,2-3,4", "darker, than all")
    before = (tmp_path / "verdicts.csv").read_bytes()
    assert run(tmp_path) == [] and (tmp_path / "verdicts.csv").read_bytes() == before


def test_a_new_photograph_of_the_same_name_is_judged_again(tmp_path):
    (tmp_path / "a.png").write_bytes(WHOLE)
    assert len(run(tmp_path)) == 1
    (tmp_path / "a.png").write_bytes(b"another " + WHOLE)
    assert len(run(tmp_path)) == 1
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert len(run(tmp_path)) == 1
    assert [line["name"] for line in lines(tmp_path / "verdicts.csv")] == ["a.png"] * 3
    assert run(tmp_path) == []


def test_a_growing_file_is_judged_once_it_is_whole(tmp_path):
    with Running(tmp_path) as running, (tmp_path / "a.png").open("wb") as file:
        for _ in range(10):
            file.write(b"part")
            file.flush()
            time.sleep(0.03)
        assert running.told == []
        file.write(WHOLE)
        file.flush()
        assert running.wait(1).verdict == "look"
        time.sleep(0.4)
        running.wait(1)
    assert len(lines(tmp_path / "verdicts.csv")) == 1


def test_a_truncated_file_is_told_once_and_judged_when_it_changes(tmp_path):
    tried = []

    def counted(path, name):
        tried.append(name)
        return judge(path, name)

    with Running(tmp_path, counted) as running:
        (tmp_path / "a.png").write_bytes(b"part")
        time.sleep(0.2)
        assert running.told == [] and tried == ["a.png"]
        said = running.wait(1)
        assert said.verdict == "unreadable" and "truncated" in said.remark and said.where == "-"
        time.sleep(0.4)
        running.wait(1)
        (tmp_path / "a.png").write_bytes(b"part " + WHOLE)
        assert running.wait(2).verdict == "look"
    assert [line["verdict"] for line in lines(tmp_path / "verdicts.csv")] == ["unreadable", "look"]


def test_a_file_that_changes_while_it_is_judged_is_judged_again(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(WHOLE)
    seen = []

    def slow(at, name):
        seen.append(at.read_bytes())
        if len(seen) == 1:
            path.write_bytes(b"another " + WHOLE)
        return judge(at, name)

    assert len(run(tmp_path, judge=slow)) == 1
    assert seen == [WHOLE, b"another " + WHOLE]
    assert [line["size"] for line in lines(tmp_path / "verdicts.csv")] == ["13"]


def test_a_file_that_goes_while_it_is_judged_is_nothing(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(WHOLE)

    def gone(at, name):
        path.unlink()
        raise DataError("no file")

    assert run(tmp_path, judge=gone) == [] and lines(tmp_path / "verdicts.csv") == []


def test_only_new(tmp_path):
    (tmp_path / "old.png").write_bytes(WHOLE)
    with Running(tmp_path, only_new=True) as running:
        time.sleep(0.2)
        (tmp_path / "new.png").write_bytes(WHOLE)
        assert running.wait(1).name == "new.png"
    (tmp_path / "missed.png").write_bytes(WHOLE)  # while nobody watched
    assert [said.name for said in run(tmp_path, only_new=True)] == ["missed.png"]


@pytest.mark.parametrize("torn", [1, 5, 40])
def test_a_torn_line_is_dropped_and_judged_again(tmp_path, torn):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(WHOLE)
    run(tmp_path)
    csv_file = tmp_path / "verdicts.csv"
    whole = csv_file.read_bytes()
    csv_file.write_bytes(whole[:-torn])
    (said,) = run(tmp_path)
    assert [line["name"] for line in lines(csv_file)] == ["a.png", "b.png"] and said.name == "b.png"
    csv_file.write_bytes(HEADER[:7])  # killed at the very start
    assert len(run(tmp_path)) == 2 and len(lines(csv_file)) == 2


def test_a_csv_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "other.csv").write_text("mine")
    with pytest.raises(ResultsError, match="something else"):
        run(tmp_path, tmp_path / "other.csv")
    assert (tmp_path / "other.csv").read_text() == "mine"
    with pytest.raises(ResultsError, match="cannot write"):
        run(tmp_path, tmp_path / "other.csv/x.csv")
    with pytest.raises(DataError, match="no folder"):
        run(tmp_path / "missing")


def test_one_watch_at_a_time(tmp_path):
    with watching.Verdicts(tmp_path / "v.csv"), pytest.raises(ResultsError, match="another watch"):
        run(tmp_path, tmp_path / "v.csv")
    run(tmp_path, tmp_path / "v.csv")


def test_names_of_any_kind(tmp_path):
    names = ['quo"te, comma.png', "line\nend.png", "tab\t.png", "Grüße.png", "a\u2028b.png", "back\\slash.png"]
    for name in names:
        (tmp_path / name).write_bytes(WHOLE)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe4.png")).write_bytes(WHOLE)
    told = run(tmp_path)
    assert len(told) == len(names) + 1 and run(tmp_path) == []
    found = {line["name"] for line in lines(tmp_path / "verdicts.csv")}
    assert found == {printable(name) for name in names} | {r"\udce4.png"}
    assert (tmp_path / "verdicts.csv").read_bytes().count(b"\n") == len(names) + 2


def test_a_folder_out_of_reach_is_waited_for(tmp_path, caplog):
    folder, away = tmp_path / "camera", tmp_path / "away"
    folder.mkdir()
    told, stop = [], threading.Event()
    options = {"settle": 0.02, "interval": 0.01, "stop": stop}
    thread = threading.Thread(
        target=watch, args=(folder, judge, tmp_path / "v.csv", told.append), kwargs=options, daemon=True
    )
    thread.start()
    time.sleep(0.2)
    folder.rename(away)
    time.sleep(0.2)
    (away / "a.png").write_bytes(WHOLE)
    away.rename(folder)
    end = time.monotonic() + 10
    while not told and time.monotonic() < end:
        time.sleep(0.01)
    stop.set()
    thread.join(10)
    assert [said.name for said in told] == ["a.png"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from patchcore_kit.errors import DataError
from patchcore_kit.watch import Judgement, watch

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
random.seed(0)

def judge(path, name):
    time.sleep(random.random() * 0.004)
    return Judgement(name, "good", 0.5, None, 0.1)

def told(said):
    time.sleep(random.random() * 0.001)

def child():
    watch(folder, judge, folder / "verdicts.csv", told, settle=0.001, interval=0.001)

number = 0
for _ in range(rounds):
    pid = os.fork()
    if not pid:
        random.seed(os.getpid())
        child()
        os._exit(1)
    end = time.monotonic() + 0.01 + random.random() * 0.08
    while time.monotonic() < end:
        (folder / f"{number % 60}.png").write_bytes(b"x" * (number + 1))  # overwritten again and again
        number += 1
        time.sleep(random.random() * 0.003)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if random.random() < 0.3:  # as a power failure leaves it
        path = folder / "verdicts.csv"
        content = path.read_bytes() if path.exists() else b""
        last = len(content) - content[:-1].rfind(b"\\n") - 1
        if last > 1 and content:
            path.write_bytes(content[: -random.randrange(1, last)])
watch(folder, judge, folder / "verdicts.csv", told, settle=0.001, interval=0.001, once=True)
"""


def test_killed_at_any_moment_it_judges_none_twice_and_misses_none(tmp_path):
    folder = tmp_path / "camera"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), "60"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [(line["name"], int(line["size"]), int(line["mtime_ns"])) for line in lines(folder / "verdicts.csv")]
    assert len(set(found)) == len(found) > 60
    there = {(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.glob("*.png")}
    assert len(there) == 60 and there <= set(found)


def test_signals_end_it(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from threading import Event\n"
        "from patchcore_kit.app import _until_signal; from patchcore_kit.watch import Judgement, watch\n"
        "folder, stop = Path(sys.argv[1]), Event()\n"
        "def judge(path, name): print('judging', flush=True); time.sleep(0.5); return Judgement(name, 'good')\n"
        "with _until_signal(stop): watch(folder, judge, folder / 'v.csv', print, settle=0.01, stop=stop)\n"
    )
    (tmp_path / "a.png").write_bytes(WHOLE)
    (tmp_path / "b.png").write_bytes(WHOLE)
    for number in (signal.SIGTERM, signal.SIGINT):
        (tmp_path / "v.csv").unlink(missing_ok=True)
        with subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        ) as running:
            assert running.stdout.readline() == "judging\n"
            running.send_signal(number)
            running.communicate(timeout=20)
        assert running.returncode == 0 and len(lines(tmp_path / "v.csv")) == 1  # the photograph at hand is finished

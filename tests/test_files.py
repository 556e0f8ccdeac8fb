import multiprocessing
import os
import signal
from pathlib import Path

import pytest

import patchcore_kit as pk
from patchcore_kit import files
from patchcore_kit.files import DRAFT, checksum, claimed, printable, run_name, tidy, writing


def names(folder):
    return sorted(p.name for p in folder.rglob("*"))


def test_files_and_folders_take_their_place_when_whole(tmp_path):
    for text in ("one", "two"):
        with writing(tmp_path / "new" / "file.txt") as temporary:
            temporary.write_text(text)
        with writing(tmp_path / "new" / "folder") as temporary:
            temporary.mkdir()
            (temporary / text).touch()
    assert (tmp_path / "new/file.txt").read_text() == "two"
    assert names(tmp_path / "new") == ["file.txt", "folder", "two"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, pk.DataError, OSError(28, "No space left on device")])
def test_what_was_there_stays_if_it_fails(tmp_path, error):
    (tmp_path / "file.txt").write_text("before")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "before").touch()
    expected = pk.ResultsError if isinstance(error, OSError) else error
    with pytest.raises(expected), writing(tmp_path / "file.txt") as temporary:
        temporary.write_text("half")
        raise error
    with pytest.raises(expected), writing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "half").touch()
        raise error
    assert (tmp_path / "file.txt").read_text() == "before"
    assert names(tmp_path) == ["before", "file.txt", "folder"]


def test_what_was_there_stays_if_it_cannot_be_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "before").touch()
    with pytest.raises(pk.ResultsError, match=r"cannot write .*folder"), writing(tmp_path / "folder"):
        pass  # nothing was made to take its place
    assert names(tmp_path) == ["before", "folder"]


@pytest.fixture(params=["in one step", "in two steps"])
def steps(request, monkeypatch):
    """As on file systems that can exchange two folders, and on others."""
    if request.param == "in two steps":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)


def put(folder, name):
    with writing(folder) as temporary:
        temporary.mkdir()
        (temporary / name).touch()


def test_folders_are_replaced(tmp_path, steps):
    put(tmp_path / "model", "one")
    put(tmp_path / "model", "two")
    assert names(tmp_path) == ["model", "two"]


def test_folders_that_may_not_be_replaced_stay(tmp_path, steps):
    def never(folder):
        raise pk.ResultsError(f"not {folder.name}")

    put(tmp_path / "model", "one")
    with pytest.raises(pk.ResultsError, match="not model"), writing(tmp_path / "model", never) as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["model", "one"]


def test_what_systems_leave_in_a_folder_stays(tmp_path, steps):
    put(tmp_path / "model", "one")
    (tmp_path / "model" / ".DS_Store").write_text("view")
    put(tmp_path / "model", "two")
    assert names(tmp_path) == [".DS_Store", "model", "two"]
    assert (tmp_path / "model" / ".DS_Store").read_text() == "view"


def test_links_stay_and_lead_to_what_is_new(tmp_path, steps):
    (tmp_path / "elsewhere").mkdir()
    put(tmp_path / "elsewhere" / "model", "one")
    (tmp_path / "model").symlink_to("elsewhere/model")
    put(tmp_path / "model", "two")
    (tmp_path / "table").symlink_to("elsewhere/table")  # which is not there yet
    for text in ("one", "two"):
        with writing(tmp_path / "table") as temporary:
            temporary.write_text(text)
    assert (tmp_path / "model").is_symlink() and names(tmp_path / "elsewhere" / "model") == ["two"]
    assert (tmp_path / "table").is_symlink() and (tmp_path / "elsewhere" / "table").read_text() == "two"


def die(folder, at):
    """Replace a folder in two steps, and be killed before, between or after them."""
    files._exchange = lambda one, other: False
    rename, steps = Path.rename, []

    def dying(path, target):
        steps.append(path)
        if len(steps) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    Path.rename = dying
    files._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL) if at == 3 and steps else None
    put(folder, "two")


@pytest.mark.parametrize(("at", "there"), [(1, "one"), (2, "one"), (3, "two")])
def test_who_comes_next_tidies_up_after_the_dead(tmp_path, at, there):
    put(tmp_path / "model", "one")
    process = multiprocessing.get_context("fork").Process(target=die, args=(tmp_path / "model", at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "model").exists() == (at != 2) and any(tmp_path.glob(f"{DRAFT}*"))
    tidy(tmp_path)
    assert names(tmp_path) == sorted(["model", there])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(5, "Input/output error")])
def test_what_was_moved_away_comes_back(tmp_path, monkeypatch, error):
    """Also if Ctrl-C comes between the two steps."""
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    put(tmp_path / "model", "one")
    rename, moved = Path.rename, []

    def failing(path, target):
        moved.append(path)
        if len(moved) == 2:
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else pk.ResultsError):
        put(tmp_path / "model", "two")
    assert names(tmp_path) == ["model", "one"]


def test_what_can_not_come_back_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    put(tmp_path / "model", "one")
    rename, moved = Path.rename, []

    def failing(path, target):
        moved.append(path)
        if len(moved) > 1:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", failing)
        with pytest.raises(pk.ResultsError, match="Input/output error"):
            put(tmp_path / "model", "two")
    assert not (tmp_path / "model").exists()
    tidy(tmp_path)
    assert names(tmp_path) == ["model", "one"]


def test_a_draft_that_somebody_has_made_moves_nothing(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    (tmp_path / "models" / f"{files._of_this_machine()}x").mkdir(parents=True)
    (tmp_path / "models" / f"{files._of_this_machine()}x" / "old").symlink_to(tmp_path / "mine")
    tidy(tmp_path / "models")
    assert names(tmp_path) == ["mine", "models", "thesis.txt"]


def test_drafts_of_other_machines_and_of_who_only_reads(tmp_path):
    other = tmp_path / f"{DRAFT}elsewhere-x"
    other.mkdir()
    tidy(tmp_path)
    assert other.exists()  # its lock may be known over there only
    os.utime(other, (0, 0))
    tidy(tmp_path, remove=False)
    assert other.exists()
    tidy(tmp_path)
    assert not other.exists()


def test_the_living_are_left_alone(tmp_path):
    """Also where the process has a number that a dead one had, as in a container."""
    (tmp_path / f".{os.getpid()}-new-model").mkdir()
    (tmp_path / f".{os.getpid()}-new-model" / "of a dead one").touch()
    with writing(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "half").touch()
        tidy(tmp_path)
        put(tmp_path / "other", "one")
        assert (temporary / "half").exists()
    assert names(tmp_path / "model") == ["half"]


def test_only_one_at_a_time_is_in_a_folder(tmp_path):
    with claimed(tmp_path), pytest.raises(pk.ResultsError, match="another run is writing into"), claimed(tmp_path):
        pass
    with claimed(tmp_path):
        pass


def test_a_checksum_changes_with_names_sizes_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    first = checksum([("a", tmp_path / "a"), ("b", tmp_path / "b")])
    assert first == checksum([("a", tmp_path / "a"), ("b", tmp_path / "b")])
    assert first != checksum([("a", tmp_path / "b"), ("b", tmp_path / "a")])
    assert first != checksum([("a", tmp_path / "a")])
    (tmp_path / "b").write_text("20")
    assert first != checksum([("a", tmp_path / "a"), ("b", tmp_path / "b")])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no file"):
        checksum([("pipe", tmp_path / "pipe")])


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../b", "/b", ".hidden", "a\0b", "x" * 201, "ä" * 101])
def test_names_that_lead_elsewhere(name):
    with pytest.raises(pk.SettingsError, match="log_group is") as refusal:
        run_name("log_group", name)
    assert len(str(refusal.value)) < 300


def test_long_names_are_cut_and_stay_different():
    one, other = (files.file_name("ä" * 120 + end) for end in "xy")
    assert one != other and len(one.encode()) <= 200 and one.startswith("ääää")
    assert files.file_name("a b") == "a b"


def test_names_become_printable():
    assert [printable(name) for name in ("Teil ä 1", "a\nb", "\udce4")] == ["Teil ä 1", r"a\nb", r"\udce4"]


def test_the_work_folder_is_the_checkout_and_never_where_packages_are_installed(tmp_path, monkeypatch):
    monkeypatch.delenv("PATCHCORE_WORK", raising=False)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert pk.work_folder() == Path(__file__).resolve().parents[1]

    monkeypatch.setattr(files, "__file__", str(tmp_path / "site-packages" / "patchcore_kit" / "files.py"))
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "utils.py").touch()  # somebody else's
    assert pk.work_folder() == here
    assert pk.ImageCache().folder == here / ".cache" / "images"

    monkeypatch.setenv("PATCHCORE_WORK", str(tmp_path / "named"))
    assert pk.work_folder() == tmp_path / "named"

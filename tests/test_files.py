from pathlib import Path

import pytest

import patchcore_kit as pk
from patchcore_kit import files
from patchcore_kit.files import writing


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

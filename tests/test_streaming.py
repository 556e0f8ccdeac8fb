"""Fits that stream: the same bank where there is room, a near one where there is not, and none lost when killed."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

import patchcore_kit as pk
from patchcore_kit import coreset, streaming
from patchcore_kit.cover import FEWEST, Cover, Room
from patchcore_kit.progress import Line

SILENT = Line(False)


def frames(count: int, seed: int = 0, side: int = 64) -> Iterator[np.ndarray]:
    """Checked frames, no two alike, made as they are asked for."""
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        y, x = np.mgrid[:side, :side] + rng.uniform(0, 8, 2)[:, None, None]
        grey = 120 + 50 * np.sign(np.sin(y / rng.uniform(2, 4)) * np.sin(x / 3)) + rng.normal(0, 8, (side, side))
        yield np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def small(**settings: object) -> pk.PatchCore:
    """64 patches of 128 values an image: 1000 of them take little more than a megabyte."""
    return pk.PatchCore(
        pk.load_backbone("starter"), resize=(64, 64), target_embed_dimension=128, progress=False, **settings
    )


def digest(detector: pk.PatchCore) -> str:
    bank = detector.bank_
    return hashlib.sha256(b"".join(x.tobytes() for x in (bank.rows, bank.images, bank.cells))).hexdigest()


@pytest.mark.parametrize("scoring", ["distance", "density"])
def test_a_stream_with_room_is_the_fit(scoring):
    images = list(frames(20))
    plain, streamed = small(scoring=scoring).fit(images), small(scoring=scoring).fit(iter(images), memory="1GB")
    assert digest(streamed) == digest(plain)
    assert streamed.train_names_ == plain.train_names_
    assert streamed.photographs_ == tuple(
        file if i in set(plain.bank_.images) | set(plain.reserve_.images) else b""
        for i, file in enumerate(plain.photographs_)
    )
    assert np.array_equal(streamed.reserve_.rows, plain.reserve_.rows)
    test = list(frames(4, seed=1))
    one, other = plain.predict(test), streamed.predict(test)
    assert other.scores == pytest.approx(one.scores, rel=0.05 if scoring == "density" else 1e-5)
    if scoring == "distance":
        assert np.array_equal(streamed.calibration_.scores, plain.calibration_.scores)
        assert streamed.calibration_.look.value == plain.calibration_.look.value


def rows(count: int, seed: int = 0) -> torch.Tensor:
    """Clusters of uneven size and width."""
    rng = np.random.default_rng(seed)
    centres, widths = rng.normal(0, 3, (40, 16)), rng.uniform(0.05, 0.6, 40)
    which = rng.choice(40, count, p=rng.dirichlet(np.ones(40)))
    return torch.from_numpy((centres[which] + rng.normal(0, 1, (count, 16)) * widths[which, None]).astype(np.float32))


def radius(bank: torch.Tensor, patches: torch.Tensor) -> float:
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank.contiguous().numpy())
    return float(np.sqrt(index.search(patches.numpy(), 1)[0].max()))


def test_a_cover_of_covers_is_nearly_as_good_as_one(tmp_path):
    patches = rows(40_000)
    room = Room(FEWEST, FEWEST * 3 // 2, 4 * 32)
    cover = Cover(tmp_path / "rows", room, 16, torch.float32, "approx_greedy_coreset", 0)
    for start in range(0, len(patches), 640):
        part = patches[start : start + 640]
        numbers = np.arange(start, start + len(part))
        cover.add(part, lambda some, part=part: part[torch.from_numpy(some)], numbers // 64, numbers % 64, SILENT)
        cover.written()
        assert FEWEST <= cover.held <= room.room or start < FEWEST
    cover.reduce(FEWEST, SILENT)
    numbers = torch.from_numpy(cover.images[:FEWEST] * 64 + cover.cells[:FEWEST])
    assert torch.equal(cover.rows(cover.slots[:FEWEST]), patches[numbers]), "rows on disk are those that came"
    assert torch.allclose(cover.projected[:FEWEST] + cover.origin, patches[numbers], atol=1e-5)
    exact = coreset.greedy_coreset(patches, FEWEST, progress=False)
    ours, best = radius(patches[numbers], patches), radius(patches[exact], patches)
    assert ours <= 1.2 * best
    assert 0 < cover.least <= best, "what cannot be beaten"
    assert ours <= cover.bound * (1 + 1e-3), "what is promised"
    assert cover.seen == len(patches) and cover.bound < 10 * best
    assert (tmp_path / "rows").stat().st_size <= 3 * room.room * room.record, "places are used again"
    cover.close()


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_streaming as t

def dying(images):
    for number, image in enumerate(images):
        if number == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield image

t.streaming.AHEAD = 16
t.small(percentage=0.2).fit(dying(t.frames(96)), memory="1.4MB", checkpoint=sys.argv[2])
"""


@pytest.fixture(scope="module")
def whole() -> pk.PatchCore:
    """Of a stream that nothing stops."""
    return small(percentage=0.2).fit(frames(96), memory="1.4MB")


@pytest.mark.parametrize("at", [12, 90])
def test_killed_it_goes_on_and_ends_with_the_same_bank(at, whole, tmp_path, monkeypatch, caplog):
    """Before anything was written, and after several reductions."""
    caplog.set_level("INFO")
    monkeypatch.setattr(streaming, "AHEAD", 16)
    child = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "state"), str(at)]
    assert subprocess.run(child, capture_output=True).returncode == -signal.SIGKILL
    again = small(percentage=0.2).fit(frames(96), memory="1.4MB", checkpoint=tmp_path / "state")
    there = int(caplog.text.split(" images are there already")[0].split()[-1])
    assert there <= at and (there > 40) == (at == 90)
    assert FEWEST < len(whole.bank_) < 96 * 64 * 0.2 and digest(again) == digest(whole)
    assert again.photographs_ == whole.photographs_ and again.train_names_ == whole.train_names_
    assert np.array_equal(again.calibration_.scores, whole.calibration_.scores)
    assert again.near_ is None and np.array_equal(again.reserve_.rows, whole.reserve_.rows)
    caplog.clear()
    done = small(percentage=0.2).fit(frames(96), memory="1.4MB", checkpoint=tmp_path / "state")
    assert digest(done) == digest(whole) and "96 images are there already" in caplog.text


@pytest.mark.parametrize("kept", [True, False])
def test_a_full_disk_is_said_and_with_room_it_goes_on(kept, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "AHEAD", 16)
    monkeypatch.setattr(streaming, "EVERY", 0)
    left, write = [1_500_000], os.pwrite

    def full(file, values, place):
        """As a disk that takes a part of what is written last."""
        left[0] -= values.nbytes
        return write(file, values, place) if left[0] > 0 else write(file, values[:1], place)

    checkpoint = tmp_path / "state" if kept else None
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        words = "make some, the same call then goes on" if kept else "or set PATCHCORE_WORK"
        with pytest.raises(pk.ResultsError, match=f"there is no room for the stream in .*{words}"):
            small(percentage=0.2).fit(frames(96), memory="1.4MB", checkpoint=checkpoint)
    again = small(percentage=0.2).fit(frames(96), memory="1.4MB", checkpoint=checkpoint)
    assert np.array_equal(again.bank_.rows, whole.bank_.rows)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk here that is always full")
def test_a_full_disk_is_said_when_files_are_closed_too(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "EVERY", 0)
    (tmp_path / streaming.PHOTOGRAPHS).symlink_to("/dev/full")
    with pytest.raises(pk.ResultsError, match="there is no room for the stream in"):
        small(percentage=0.2).fit(frames(96), memory="1.4MB", checkpoint=tmp_path)


def test_frames_are_not_all_held(monkeypatch):
    monkeypatch.setattr(streaming, "AHEAD", 8)
    alive, most = set(), []

    class Counted(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def counted() -> Iterator[np.ndarray]:
        for frame in frames(64):
            frame = frame.view(Counted)
            alive.add(id(frame))
            most.append(len(alive))
            yield frame
            del frame

    small().fit(counted(), memory="1GB")
    assert max(most) <= 3 * 8


def test_it_is_saved_and_extended(tmp_path):
    streamed = small(scoring="density").fit(frames(60), memory="1.4MB")
    assert len(streamed.bank_) == 384  # a tenth
    less = small(percentage=0.5).fit(frames(60), memory="1.4MB")
    assert FEWEST <= len(less.bank_) < 60 * 64 // 2, "as many as have room"
    share = len(less.bank_) / (60 * 64)
    less.save(tmp_path / "model")
    again = pk.PatchCore.load(tmp_path / "model", progress=False)
    test = list(frames(3, seed=5))
    assert np.array_equal(again.predict(test).maps, less.predict(test).maps)
    again.extend(frames(20, seed=2))
    assert len(again.bank_) == int(80 * 64 * share), "it keeps its share"
    streamed.extend(frames(20, seed=2))
    assert len(streamed.bank_) == 80 * 64 // 10 and streamed.calibration_ is not None


def test_a_stream_of_which_all_is_kept():
    images = list(frames(8))
    plain, streamed = (small(percentage=1.0).fit(images, memory=memory) for memory in (None, "1GB"))
    assert len(streamed.bank_) == 8 * 64 and not len(streamed.reserve_.rows)
    assert sorted(map(bytes, streamed.bank_.rows)) == sorted(map(bytes, plain.bank_.rows))


def test_tiles_stream_too():
    images = [np.concatenate([one, other], axis=1) for one, other in zip(frames(8), frames(8, 1), strict=True)]
    settings = {"tiles": (1, 2), "overlap": 16, "target_embed_dimension": 128, "progress": False}
    plain, streamed = (pk.PatchCore(pk.load_backbone("starter"), **settings) for _ in range(2))
    assert digest(plain.fit(images)) == digest(streamed.fit(images, memory="500MB"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"seed": 1}, "was begun with seed 0, not 1"),
        ({"projection": None}, "was begun with projection 128, not None"),
        ({"patchsize": 1}, "was begun with patchsize 3, not 1"),
    ],
)
def test_a_checkpoint_of_another_fit(change, words, tmp_path):
    small().fit(frames(4), memory="500MB", checkpoint=tmp_path / "state")
    with pytest.raises(pk.ResultsError, match=words):
        small(**change).fit(frames(4), memory="500MB", checkpoint=tmp_path / "state")


def test_checkpoints_that_are_not_what_they_should_be(tmp_path):
    state, images = tmp_path / "state", list(frames(12))
    fit = lambda images, memory="500MB": small().fit(images, memory=memory, checkpoint=state)  # noqa: E731
    fit(images)
    with pytest.raises(pk.ResultsError, match="was begun with memory 500000000, not 400000000"):
        fit(images, "400MB")
    with pytest.raises(pk.DataError, match="has learnt 12 images, these are 5: give all"):
        fit(images[:5])
    samples = [pk.Sample(f"other {number}", None, frame=frame) for number, frame in enumerate(images)]
    with pytest.raises(pk.DataError, match="was begun with other images than these, from other 0 on"):
        fit(samples)
    (state / "state.npz").write_bytes(b"PK" + bytes(100))
    with pytest.raises(pk.ResultsError, match=r"is damaged .*: remove it, and start anew"):
        fit(images)
    (state / "settings.json").write_text("[]")
    with pytest.raises(pk.ResultsError, match=r"cannot be read .*: remove it, and start anew"):
        fit(images)
    (state / "notes.txt").write_text("mine")
    with pytest.raises(pk.ResultsError, match=r"holds notes\.txt, which is of no fit: give a folder of its own"):
        fit(images)


@pytest.mark.parametrize(
    "settings, given, words",
    [
        ({}, {"memory": "2 apples"}, "memory is '2 apples': give a number of bytes, or one with a unit"),
        ({}, {"memory": 0}, "memory is 0"),
        ({}, {"memory": "100kB"}, r"memory of 0 MB has room for \d+ patches: give \d MB or more"),
        ({}, {"checkpoint": "here"}, "checkpoint is of a fit that streams: give memory as well"),
        (
            {"sampler": "random"},
            {"memory": "1GB"},
            "memory is for the samplers greedy_coreset and approx_greedy_coreset",
        ),
        ({"contamination": 0.1}, {"memory": "1GB"}, "without contamination"),
        ({"percentage": 1e-5}, {"memory": "1GB"}, "percentage 1e-05 keeps none of 128 patches"),
    ],
)
def test_what_cannot_stream_is_said(settings, given, words):
    with pytest.raises(pk.SettingsError, match=words):
        small(**settings).fit(frames(2), **given)
    with pytest.raises(pk.DataError, match="no images to embed"):
        small().fit(iter([]), memory="1GB")


@pytest.mark.parametrize(
    "said, count",
    [
        ("2GB", 2 * 10**9),
        ("1.5 gb", 1_500_000_000),
        ("500MiB", 500_000_000),
        (12345, 12345),
        ("10k", 10_000),
        (1e9, 10**9),
    ],
)
def test_bytes(said, count):
    assert streaming.in_bytes(said) == count


def test_what_a_fit_takes_is_said_before(monkeypatch, caplog):
    caplog.set_level("INFO")
    images = list(frames(6))
    small().fit(images)
    assert "6 images take about 0.0 GB of memory" in caplog.text
    monkeypatch.setattr("patchcore_kit.detector.available", lambda: 10_000)
    with pytest.raises(pk.SettingsError, match=r"0\.0 GB are free: give `fit` memory='1GB', and they stream by"):
        small().fit(images)
    monkeypatch.setattr("patchcore_kit.detector.available", lambda: 10**12)
    monkeypatch.setattr("patchcore_kit.detector.MANY", 6)
    small().fit(images)
    assert "of memory and 0 minutes" in caplog.text


def test_the_same_images_have_no_threshold(caplog):
    """As in a fit that does not stream."""
    one = next(frames(1))
    assert small().fit([one] * 6, memory="1GB").calibration_ is None
    assert "they are all the same, so there is no threshold" in caplog.text


def test_a_reservoir_is_fair():
    """Each of 400 things has the same chance to be among 40, whatever the batches; the last ones, too."""
    counts = np.zeros(400)
    for seed in range(300):
        reservoir, places = streaming.Reservoir(40, seed), np.zeros(40, dtype=int)
        for start in range(0, 400, 50):
            taken, at = reservoir.draw(50)
            places[at] = start + taken
        assert len(set(places)) == 40
        counts[places] += 1
    assert counts.sum() == 300 * 40 and abs(counts.reshape(8, 50).sum(1) - 1500).max() < 5 * 1500**0.5

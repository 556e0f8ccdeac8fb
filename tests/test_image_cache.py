import os
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

import patchcore_kit as pk
from patchcore_kit import image_cache

TRANSFORM = pk.Transform(36, 32)


@pytest.fixture
def sample(tmp_path):
    """A photograph of 200x150 pixels, much larger than what the network takes."""
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "part.png")
    return pk.Sample("part.png", tmp_path / "part.png")


@pytest.fixture
def decoded(monkeypatch):
    """Counts what is decoded."""
    counts = []
    image = pk.Transform.image

    def counted(self, sample, content=None, notes=None):
        counts.append(sample.name)
        return image(self, sample, content, notes)

    monkeypatch.setattr(pk.Transform, "image", counted)
    return counts


def test_decoded_once(sample, decoded, tmp_path):
    first, second = pk.ImageCache(tmp_path / "cache"), pk.ImageCache(tmp_path / "cache")
    images = [cache.image(sample, TRANSFORM) for cache in (first, first, second)]
    assert len(decoded) == 1
    for image in images:
        assert (image == TRANSFORM.image(sample)).all()
        assert image.dtype == np.uint8


def test_a_changed_file_is_decoded_again(sample, decoded, tmp_path):
    cache = pk.ImageCache(tmp_path / "cache")
    cache.image(sample, TRANSFORM)
    before = sample.path.stat()
    pixels = np.array(Image.open(sample.path))
    pixels[75, 100] ^= 255  # one pixel in the middle; random pixels do not compress, so the size stays
    Image.fromarray(pixels).save(sample.path)
    os.utime(sample.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (cache.image(sample, TRANSFORM) == TRANSFORM.image(sample)).all()
    assert len(decoded) == 3  # twice by the cache, once by the line above


@pytest.mark.parametrize("other", [pk.Transform(40, 32), pk.Transform(36, 30), pk.Transform((32, 32))])
def test_each_size_is_an_entry_of_its_own(sample, tmp_path, other):
    cache = pk.ImageCache(tmp_path / "cache")
    cache.image(sample, TRANSFORM)
    assert (cache.image(sample, other) == other.image(sample)).all()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_other_versions_of_the_libraries_decode_again(sample, decoded, tmp_path, monkeypatch):
    cache = pk.ImageCache(tmp_path / "cache")
    cache.image(sample, TRANSFORM)
    monkeypatch.setattr(image_cache.PIL, "__version__", "0")
    cache.image(sample, TRANSFORM)
    assert len(decoded) == 2


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"damaged" * 100])
def test_a_damaged_entry_is_made_anew(sample, tmp_path, content):
    cache = pk.ImageCache(tmp_path / "cache")
    image = cache.image(sample, TRANSFORM)
    (entry,) = (tmp_path / "cache").iterdir()
    whole = entry.read_bytes()
    for left in (content, whole[:-1]):
        entry.write_bytes(left)
        assert (cache.image(sample, TRANSFORM) == image).all()
        assert entry.read_bytes() == whole


def test_what_was_not_used_for_longest_goes(sample, decoded, tmp_path):
    cache = pk.ImageCache(tmp_path / "cache")
    transforms = [pk.Transform(36, side) for side in (30, 31, 32)]
    for transform in transforms:
        cache.image(sample, transform)
    entries = list((tmp_path / "cache").iterdir())
    for entry in entries:
        os.utime(entry, (1, 1))  # long ago
    cache.image(sample, transforms[0])  # used again
    total = sum(entry.stat().st_size for entry in entries)
    cache = pk.ImageCache(tmp_path / "cache", limit=total - 1)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    before = len(decoded)
    cache.image(sample, transforms[0])
    assert len(decoded) == before


def test_small_files_are_not_kept(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "flat.png")
    cache = pk.ImageCache(tmp_path / "cache")
    assert cache.image(pk.Sample("flat.png", tmp_path / "flat.png"), TRANSFORM).shape == (32, 32, 3)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written(sample, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = pk.ImageCache(tmp_path / "cache")
    assert (cache.image(sample, TRANSFORM) == TRANSFORM.image(sample)).all()


def test_files_that_cannot_be_read(sample, tmp_path):
    cache = pk.ImageCache(tmp_path / "cache")
    with pytest.raises(pk.DataError, match=r"no file .*gone\.png"):
        cache.image(pk.Sample("gone.png", tmp_path / "gone.png"), TRANSFORM)
    sample.path.write_bytes(sample.path.read_bytes()[:5000])
    with pytest.raises(pk.DataError, match=r"cannot read image .*part\.png"):
        cache.image(sample, TRANSFORM)


def test_a_detector_sees_the_same(sample, decoded, tmp_path, random_resnet18):
    shutil.copy(sample.path, tmp_path / "copy.png")  # the same bytes: the same entry, by whichever thread
    images = [sample.path, tmp_path / "copy.png"]
    settings = {"percentage": 0.5, "resize": 72, "imagesize": 64, "progress": False}
    with_cache = pk.PatchCore(random_resnet18, **settings, cache=pk.ImageCache(tmp_path / "cache")).fit(images)
    without = pk.PatchCore(random_resnet18, **settings).fit(images)
    assert (with_cache.bank_.rows == without.bank_.rows).all()
    before = len(decoded)
    predictions = with_cache.predict(images)
    assert len(decoded) == before
    assert (predictions.maps == without.predict(images).maps).all()


def test_the_depth_is_part_of_an_entry_and_what_is_told_is_told_again(tmp_path, decoded, caplog):
    values = np.random.default_rng(0).integers(0, 4096, (150, 200), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    sample, cache = pk.Sample("deep.png", tmp_path / "deep.png"), pk.ImageCache(tmp_path / "cache")
    for _ in range(2):
        for bits in (None, 10, 12, 14):
            transform = pk.Transform(36, 32, bits=bits)
            assert (cache.image(sample, transform) == transform.image(sample)).all()
    assert len(list((tmp_path / "cache").iterdir())) == 2  # of 12 and 14 bits; 10 are cut, and 16 leave 16 levels
    assert [message.partition(":")[0] for message in caplog.messages] == [str(sample.path)] * 8


def test_frames_are_not_kept(tmp_path):
    frame = pk.datasets.as_samples(np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8))[0]
    cache = pk.ImageCache(tmp_path / "cache")
    assert (cache.image(frame, TRANSFORM) == TRANSFORM.image(frame)).all()
    assert not (tmp_path / "cache").exists()


def damaged(whole, size, rng):
    """An entry's bytes as others, as files go wrong; the last ones are entries of other shapes and of black pixels."""
    start = image_cache.HEADER.size
    yield whole[:start] + bytes(len(whole) - start)
    yield whole[:start] + whole[start:][::-1]
    yield bytes(len(whole))
    yield whole + b"more"
    yield b""
    for _ in range(40):
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        yield bytes(flipped)
        yield whole[: rng.integers(len(whole))]
    for height, width in ((size[1], size[0]), (2**31, 2**31), (0, 0)):
        yield image_cache.HEADER.pack(image_cache.MARK, height, width, 0) + whole[start:]


def test_an_entry_that_is_not_what_was_written_is_none(sample, tmp_path):
    transform = pk.Transform((24, 32))
    cache = pk.ImageCache(tmp_path / "cache")
    image = cache.image(sample, transform)
    (entry,) = (tmp_path / "cache").iterdir()
    whole = entry.read_bytes()
    for content in damaged(whole, (24, 32), np.random.default_rng(0)):
        entry.write_bytes(content)
        assert (cache.image(sample, transform) == image).all()
        assert entry.read_bytes() == whole


def test_an_entry_of_another_image_or_size_is_none(sample, tmp_path):
    """Renamed, as by a tool that takes entries apart and puts them together again."""
    cache = pk.ImageCache(tmp_path / "cache")
    for side in (30, 31):
        cache.image(sample, pk.Transform(36, side))
    small, large = sorted((tmp_path / "cache").iterdir(), key=lambda file: file.stat().st_size)
    for one, other in ((small, large), (large, small)):
        shutil.copy(one, tmp_path / "kept")
        one.write_bytes(other.read_bytes())
        side = 30 if one is small else 31
        assert (cache.image(sample, pk.Transform(36, side)) == pk.Transform(36, side).image(sample)).all()
        assert one.read_bytes() == (tmp_path / "kept").read_bytes()
    other = pk.Sample("other.png", tmp_path / "other.png")
    Image.fromarray(np.array(Image.open(sample.path))[::-1]).save(other.path)
    before = set((tmp_path / "cache").iterdir())
    wanted = cache.image(other, pk.Transform(36, 30))
    (entry,) = set((tmp_path / "cache").iterdir()) - before
    entry.write_bytes(small.read_bytes())
    assert (cache.image(other, pk.Transform(36, 30)) == wanted).all()


def test_an_entry_that_claims_more_than_it_holds_takes_no_memory(sample, tmp_path):
    cache = pk.ImageCache(tmp_path / "cache")
    image = cache.image(sample, TRANSFORM)
    (entry,) = (tmp_path / "cache").iterdir()
    with entry.open("r+b") as file:
        file.truncate(10**12)  # a hole, which takes no place on the disk
    started = time.perf_counter()
    assert (cache.image(sample, TRANSFORM) == image).all()
    assert time.perf_counter() - started < 1
    entry.unlink()
    os.mkfifo(entry)  # nor would it be waited for
    assert (cache.image(sample, TRANSFORM) == image).all()
    assert entry.is_file()


def test_a_cache_that_is_read_only_is_used(sample, decoded, tmp_path, monkeypatch):
    """Root may write everywhere, so the refusal is played."""
    cache = pk.ImageCache(tmp_path / "cache")
    image = cache.image(sample, TRANSFORM)

    def refuse(*_, **__):
        raise PermissionError(30, "Read-only file system")

    for name in ("utime", "unlink", "replace", "mkdir"):
        monkeypatch.setattr(os, name, refuse)
    cache = pk.ImageCache(tmp_path / "cache")
    assert (cache.image(sample, TRANSFORM) == image).all()
    assert len(decoded) == 1
    other = pk.Transform(40, 32)
    assert (cache.image(sample, other) == other.image(sample)).all()
    (entry,) = (tmp_path / "cache").glob("*.image")
    entry.write_bytes(b"damaged")
    assert (cache.image(sample, TRANSFORM) == image).all()


def test_the_limit_holds_during_a_run(sample, decoded, tmp_path):
    size = image_cache.HEADER.size + 32 * 32 * 3
    cache = pk.ImageCache(tmp_path / "cache", limit=10 * size)
    transforms = [pk.Transform(resize, 32) for resize in range(32, 62)]
    for number, transform in enumerate(transforms):
        cache.image(sample, transform)
        cache.image(sample, transforms[0])  # used all the time, so it stays
        entries = list((tmp_path / "cache").iterdir())
        for entry in entries:  # as if each took a minute, for file systems whose clocks are coarse
            os.utime(entry, (entry.stat().st_atime, entry.stat().st_mtime - 60))
        assert sum(entry.stat().st_size for entry in entries) <= 10 * size, number
    assert len(entries) >= 8
    before = len(decoded)
    cache.image(sample, transforms[0])
    cache.image(sample, transforms[-1])
    assert len(decoded) == before
    cache.image(sample, transforms[1])
    assert len(decoded) == before + 1


def test_the_limit_holds_for_threads_and_for_several_caches_of_one_folder(sample, tmp_path):
    size = image_cache.HEADER.size + 32 * 32 * 3
    caches = [pk.ImageCache(tmp_path / "cache", limit=20 * size) for _ in range(2)]

    def use(which):
        for resize in range(32 + which, 112, 4):
            caches[which % 2].image(sample, pk.Transform(resize, 32))

    threads = [threading.Thread(target=use, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = list((tmp_path / "cache").iterdir())
    assert all(entry.suffix == ".image" for entry in entries)
    assert 10 <= len(entries) <= 24  # each cache may be a tenth ahead of what it has seen of the other


def test_what_earlier_versions_and_killed_processes_left(sample, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    digits = "0123456789abcdef" * 4
    old, foreign = cache / f"{digits}.npy", cache / "features.npy"
    left, fresh = cache / f".{digits[:32]}.new", cache / f".{digits[:31]}0.new"
    for file in (old, foreign, left, fresh):
        file.write_bytes(b"x" * 100)
    os.utime(left, (1, time.time() - 2 * image_cache.LEFT))
    pk.ImageCache(cache, limit=50)
    assert set(cache.iterdir()) == {foreign, fresh}  # somebody's own, and one that is being written


def test_entries_may_be_read_by_whom_other_files_may(sample, tmp_path):
    (tmp_path / "usual").touch()
    pk.ImageCache(tmp_path / "cache").image(sample, TRANSFORM)
    (entry,) = (tmp_path / "cache").iterdir()
    assert entry.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(pk.DataError, match=r"pipe\.png \(it is a named pipe, not a file\): remove it"):
        pk.ImageCache(tmp_path / "cache").image(pk.Sample("pipe.png", tmp_path / "pipe.png"), TRANSFORM)

"""Images larger than the network's view: where tiles lie, that maps have no seams, and models of aligned parts."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patchcore_kit as pk
from patchcore_kit.tiles import Cut, Tiling


@pytest.fixture(scope="module")
def backbone() -> pk.Backbone:
    return pk.load_backbone("resnet18", weights="random")


def parts(count: int, size: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Striped frames, all a little different; the left half is darker."""
    rng, frames = np.random.default_rng(seed), []
    for _ in range(count):
        grey = 120 + 40 * np.sin(np.arange(size[1]) / 5 + rng.uniform(0, 6)) + rng.normal(0, 6, size)
        grey[:, : size[1] // 2] -= 50
        frames.append(np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, 2))
    return frames


@pytest.mark.parametrize(
    "cut, size",
    [
        (Cut(448), (2000, 2000)),
        (Cut(448), (2000, 8000)),
        (Cut(64, overlap=0), (128, 192)),
        (Cut(64, overlap=16), (64, 400)),
        (Cut(448), (320, 640)),  # lower than a tile
        (Cut(tiles=(2, 3)), (448, 640)),
        (Cut(tiles=(1, 1)), (96, 128)),
        (Cut(tiles=(3, 1), overlap=0), (144, 64)),
    ],
)
def test_every_patch_is_answered_for_once(cut, size, backbone):
    tiling = Tiling.of(cut, size, backbone)
    assert tiling.grid == (size[0] // 8, size[1] // 8)
    assert np.array_equal(np.sort(tiling.order), np.arange(tiling.cells))
    assert all(top % 16 == left % 16 == 0 for top, left in tiling.corners)
    for number, (top, left) in enumerate(tiling.corners):
        assert top + tiling.size[0] <= size[0] and left + tiling.size[1] <= size[1]
        cells = tiling.cells_of(number)
        assert (tiling.tile_of(cells) == number).all()
        rows, columns = np.divmod(cells, tiling.grid[1])
        assert rows.min() * 8 >= top and rows.max() * 8 < top + tiling.size[0]  # what it answers for it sees
        assert np.array_equal(tiling.cores[number], (rows - top // 8) * (tiling.size[1] // 8) + columns - left // 8)
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in tiling.corners})
        common = [one + tiling.size[axis] - other for one, other in pairwise(starts)]
        least = cut.overlap if cut.overlap is not None else min(128, (cut.tile or size[axis] // cut.tiles[axis]) // 3)
        assert min(common, default=least) >= least
        assert starts[0] == 0 and starts[-1] + tiling.size[axis] == size[axis]


@pytest.mark.parametrize(
    "cut, size, words",
    [
        ({"tile": 100}, (400, 400), "tile is 100: it must be a multiple of 16"),
        ({"tile": 64}, (400, 402), "as 400x416"),
        ({"tile": 64, "overlap": 60}, (400, 400), "do not get on: give larger ones, or a smaller overlap"),
        ({"tiles": (30, 1)}, (160, 160), "160 pixels are too few for 30 of them"),
        ({"tile": 64, "tiles": (2, 2)}, (160, 160), "give one of them"),
        ({"tiles": 4}, (160, 160), r"tiles is 4: give how many down and how many across, as in \(2, 3\)"),
        ({"tile": 0}, (160, 160), "tile is 0"),
        ({"tile": 64, "overlap": -1}, (160, 160), "overlap is -1"),
        ({"aligned": True}, (160, 160), "there are no tiles to compare by"),
    ],
)
def test_what_cannot_be_cut_is_said(cut, size, words, backbone):
    with pytest.raises(pk.SettingsError, match=words):
        Tiling.of(Cut(**cut), size, backbone)


def test_even_patches_lie_between_tiles(backbone):
    with pytest.raises(pk.SettingsError, match=r"patchsize is 2, .* with tiles give an odd one"):
        pk.PatchCore(backbone, tile=64, patchsize=2, resize=(128, 128)).fit(parts(2, (128, 128)))


@pytest.mark.parametrize("search", ["flat", "fast"])
def test_tiles_change_nothing(backbone, search):
    """With overlaps as wide as a tile allows the map is that of one pass, and so are scores and regions."""
    size, train, test = (256, 384), parts(4, (256, 384)), parts(2, (256, 384), seed=9)
    test[1][100:130, 200:240] = 255
    settings = {"resize": size, "percentage": 0.05, "search": search, "progress": False}
    whole, tiled = (pk.PatchCore(backbone, **settings, **cut).fit(train) for cut in ({}, {"tile": 192, "overlap": 128}))
    assert len(tiled.tiling_) == 8 and tiled.grid_ == whole.grid_
    assert {*tiled.tiling_.tile_of(tiled.bank_.cells)} == {*range(8)}, "rows from everywhere"
    tiled.bank_ = whole.bank_  # rows of one pass are a little different, and others are chosen
    one, other = whole.predict(test), tiled.predict(test)
    assert np.abs(one.maps - other.maps).max() < 0.02 * one.maps.max()
    assert other.scores == pytest.approx(one.scores, rel=0.02)
    cells = one.evidence.boxes[one.evidence.images == 1][0, 5:], other.evidence.boxes[other.evidence.images == 1][0, 5:]
    assert np.array_equal(*cells), "the same strangest patch"
    assert other.evidence.distances[0] == pytest.approx(one.evidence.distances[0], rel=0.02)


def test_rows_of_a_region_are_those_of_its_cells(backbone):
    detector = pk.PatchCore(backbone, resize=(128, 256), tile=96, overlap=32, sampler="identity", progress=False)
    frames = parts(3, (128, 256))
    detector.fit(frames)
    for cell in (0, 17, 300, detector.tiling_.cells - 1):
        row = detector._rows_of(frames[1], None, [cell])[0]
        at = np.flatnonzero((detector.bank_.images == 1) & (detector.bank_.cells == cell))
        assert np.allclose(detector.bank_.rows_at(at)[0], row.cpu().numpy(), atol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("scoring", ["distance", "density"])
def test_saved_and_opened(backbone, aligned, scoring, tmp_path):
    cut = {"tiles": (1, 2), "overlap": 32, "aligned": aligned}
    detector = pk.PatchCore(backbone, scoring=scoring, percentage=0.1, progress=False, **cut)
    detector.fit(parts(6, (64, 128)))
    assert detector.transform.resize == (64, 128), "without a size images keep their own"
    detector.save(tmp_path / "model")
    again = pk.PatchCore.load(tmp_path / "model", progress=False)
    assert again.cut == detector.cut and again.tiling_.corners == detector.tiling_.corners
    test = parts(2, (64, 128), seed=5)
    assert np.array_equal(again.predict(test).maps, detector.predict(test).maps)
    if not aligned:
        assert len(again.extend(parts(2, (64, 128), seed=7)).train_names_) == 8
    else:
        with pytest.raises(pk.ModelError, match="aligned tiles cannot be extended"):
            again.extend(parts(2, (64, 128), seed=7))


def test_aligned_parts_are_compared_with_their_own_place(backbone):
    """A dark half where the other one is bright: each is good elsewhere."""
    train, good = parts(8, (96, 192)), parts(2, (96, 192), seed=3)
    turned = [frame[:, ::-1].copy() for frame in good]
    cut = {"tiles": (1, 2), "overlap": 0, "percentage": 0.2, "progress": False}
    shared, aligned = (pk.PatchCore(backbone, **cut, aligned=kind).fit(train) for kind in (False, True))
    tiles = aligned.tiling_.tile_of(aligned.bank_.cells)
    assert np.bincount(tiles).tolist() == [int(len(train) * n * 0.2) for n in map(len, aligned.tiling_.cores)]
    gaps = [
        detector.predict(turned).scores.min() / detector.predict(good).scores.max() for detector in (shared, aligned)
    ]
    assert gaps[1] > 2 * gaps[0]
    levels = aligned.levels_.reshape(aligned.grid_)
    assert levels.mean() == pytest.approx(1, abs=0.01) and len(np.unique(levels)) == 2


def test_images_are_read_one_at_a_time(backbone, monkeypatch):
    """However large a batch of tiles is, there is one image of them at a time, beside those being read."""
    seen = []
    detector = pk.PatchCore(backbone, tile=64, overlap=0, batch_size=16, progress=False)
    maps_of = detector._maps_of
    monkeypatch.setattr(detector, "_maps_of", lambda tiles: seen.append(len(tiles)) or maps_of(tiles))
    detector.fit(parts(3, (128, 320)))
    assert seen == [10] * 3, "ten tiles each, of one image at a time"


def test_sizes_that_are_no_multiple_are_rounded(backbone, caplog):
    frames = parts(3, (100, 203))
    detector = pk.PatchCore(backbone, tile=64, overlap=16, progress=False).fit(frames)
    assert detector.transform.size == (96, 208)
    found = detector.predict(frames[:1])
    assert found.maps.shape == (1, 96, 208) and found.placed(0).shape == (100, 203)


def test_a_folder_of_files(tmp_path: Path):
    """A folder of files works as frames do."""
    for number, frame in enumerate(parts(3, (64, 128))):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    detector = pk.PatchCore(pk.load_backbone("starter"), tiles=(1, 2), progress=False).fit(tmp_path)
    assert detector.transform.resize == (64, 128) and len(detector.predict(tmp_path).scores) == 3

"""Models that go on learning: more images, a new lamp, images that should not be there."""

import numpy as np
import pytest
import torch
from PIL import Image

import patchcore_kit as pk
from patchcore_kit import coreset, growth
from patchcore_kit.notes import Notes
from patchcore_kit.patches import PatchRows, products
from patchcore_kit.progress import Line

SMALL = {"resize": (112, 112), "progress": False}


@pytest.fixture(scope="module")
def backbone():
    return pk.load_backbone("starter")


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """24 good images and the category's test images, of 96 x 96 pixels."""
    root = pk.draw_sample_data(
        tmp_path_factory.mktemp("data") / "sample", ("pill",), train=24, good=6, defective=8, size=96, progress=False
    )
    return pk.load_category(root, "pill")


def projected_rows(detector, samples):
    rows = PatchRows(
        detector.embedding, detector._feature_maps(samples, "", Notes(), Line(False), lambda images: None), "float32"
    )
    return coreset.project(rows, detector.projection, detector.seed)


def covering_radius(detector, samples):
    """Largest distance of a training patch to the bank, in the projection that the coreset was chosen in."""
    with torch.inference_mode():
        patches = projected_rows(detector, samples)
    cells = detector.grid_[0] * detector.grid_[1]
    kept = patches[torch.from_numpy(detector.bank_.images * cells + detector.bank_.cells)]
    squares = products(patches, -2 * kept, kept.square().sum(1)).amin(1) + patches.square().sum(1)
    return float(squares.clamp(min=0).max().sqrt())


@pytest.mark.parametrize("scoring", ["distance", "density"])
@pytest.mark.parametrize("steps", [1, 4])
def test_extending_is_nearly_fitting_all(backbone, train, scoring, steps):
    whole = pk.PatchCore(backbone, scoring=scoring, **SMALL).fit(train.train)
    first, *others = np.array_split(np.arange(len(train.train)), steps + 1)
    grown = pk.PatchCore(backbone, scoring=scoring, **SMALL).fit([train.train[i] for i in first])
    for more in others:
        grown.extend([train.train[i] for i in more])
    assert len(grown.bank_) == len(whole.bank_)
    assert grown.train_names_ == whole.train_names_ and len(grown.photographs_) == len(whole.train_names_)
    assert set(grown.bank_.images) <= set(range(24)) and grown.bank_.images.max() > 18
    assert covering_radius(grown, train.train) < 1.05 * covering_radius(whole, train.train)
    ours, wanted = grown.predict(train.test), whole.predict(train.test)
    assert np.corrcoef(ours.scores, wanted.scores)[0, 1] > 0.95
    assert np.median(ours.index / wanted.index) == pytest.approx(1, rel=0.2)
    if scoring == "density":  # the same scale: a patch's neighbours are sought among old and new ones
        assert grown.bank_.spacing.mean() == pytest.approx(whole.bank_.spacing.mean(), rel=0.25)


def test_rows_are_what_they_say_after_extending(backbone, train):
    """Each row of the bank and of the reserve is the patch of the image and the cell that are recorded."""
    grown = pk.PatchCore(backbone, **SMALL).fit(train.train[:8]).extend(train.train[8:])
    images = pk.load_images(train.train, grown.transform)
    rows = pk.embed(grown.backbone, images).unflatten(0, (24, -1)).numpy()
    wanted = rows[grown.bank_.images, grown.bank_.cells]  # half a million values: pytest.approx takes a minute for them
    assert (np.abs(grown.bank_.rows - wanted) <= 1e-3 * np.abs(wanted).clip(1)).all()
    spare = grown.reserve_
    assert np.abs(spare.rows.astype(np.float32) - rows[spare.images, spare.cells]).max() <= 2e-2
    of = lambda x: set(zip(x.images.tolist(), x.cells.tolist(), strict=True))  # noqa: E731
    assert not of(grown.bank_) & of(spare) and len(of(grown.bank_)) == len(grown.bank_)


def test_held_out_images_follow_the_bank(backbone, train):
    """Their strangest patches are as far from the grown bank as a search without their own rows says."""
    grown = pk.PatchCore(backbone, num_nn=2, **SMALL).fit(train.train[:8])
    before = grown.held_out_
    grown.extend(train.train[8:])
    held = grown.held_out_
    assert len(held) == 24  # all of them, old and new
    images = pk.load_images(train.train[:8], grown.transform)
    rows = pk.embed(grown.backbone, images).unflatten(0, (8, -1))
    for image in range(8):
        cells = held.cells[image]
        wanted, nearest = grown.bank_.search(rows[image][cells], 2, left_out=grown.bank_.images == image)
        assert held.distances[image, cells] == pytest.approx(wanted, rel=1e-2, abs=1e-4)
        assert np.mean(held.nearest[image, cells] == nearest[:, 0]) > 0.9
        assert (held.distances[image] <= before.distances[image] + 1e-6).all()


@pytest.mark.parametrize("sampler", ["random", "identity", "greedy_coreset"])
def test_other_samplers_grow_as_well(backbone, train, sampler):
    grown = pk.PatchCore(backbone, sampler, **SMALL).fit(train.train[:6]).extend(train.train[6:12])
    whole = pk.PatchCore(backbone, sampler, **SMALL).fit(train.train[:12])
    assert len(grown.bank_) == len(whole.bank_)
    places = zip(grown.bank_.images.tolist(), grown.bank_.cells.tolist(), strict=True)
    assert len(set(places)) == len(grown.bank_)


def test_a_saved_model_goes_on_as_if_it_had_not_been(backbone, train, tmp_path):
    detector = pk.PatchCore(backbone, scoring="density", contamination=0.1, **SMALL).fit(train.train[:12])
    detector.save(tmp_path / "model")
    again = pk.PatchCore.load(tmp_path / "model", progress=False)
    ours, theirs = (one.extend(train.train[12:]).predict(train.test) for one in (again, detector))
    assert (ours.scores == theirs.scores).all() and (ours.index == theirs.index).all()
    assert ours.remarks == theirs.remarks and str(ours.explain(0)) == str(theirs.explain(0))


def test_what_cannot_be_extended_says_so(backbone, train, tmp_path):
    detector = pk.PatchCore(backbone, **SMALL)
    with pytest.raises(pk.ModelError, match="no memory bank yet"):
        detector.extend(train.train)
    with pytest.raises(pk.ModelError, match="no memory bank yet"):
        detector.recalibrate(train.train)
    detector.fit(train.train[:4])
    with pytest.raises(pk.DataError, match="no images to add"):
        detector.extend([])
    photographs, detector.photographs_ = detector.photographs_, ()  # as of a model of an earlier version
    with pytest.raises(pk.ModelError, match="fit it anew"):
        detector.extend(train.train[4:])
    detector.photographs_ = photographs
    detector.bank_.images = None  # as of a model of the reference
    with pytest.raises(pk.ModelError, match="fit it anew"):
        detector.extend(train.train[4:])


def darkened(samples, folder, factor=2 / 3):
    folder.mkdir()
    for sample in samples:
        Image.open(sample.path).point(lambda value: value * factor).save(folder / sample.path.name)
    return folder


def test_a_new_lamp(backbone, train, tmp_path, caplog):
    detector = pk.PatchCore(backbone, **SMALL).fit(train.train[:14])
    good = [sample for sample in train.test if sample.label == 0]
    dark, new = darkened(good, tmp_path / "dark"), darkened(train.train[14:], tmp_path / "new")
    rows, before = detector.bank_.rows, detector.predict(dark)
    assert all("darker than all training images" in remark for remark in before.remarks)
    assert before.table()["remark"].str.contains("brightness").all()
    assert "(and 5 more): darker than all training images" in caplog.text
    after = detector.recalibrate(new).predict(dark)
    assert (after.scores == before.scores).all() and (detector.bank_.rows == rows).all()
    assert detector.calibration_.scores == pytest.approx(detector.predict(new).scores, rel=1e-5)
    assert detector.calibration_.peaks == pytest.approx(detector.predict(new).maps.max(axis=(1, 2)), rel=1e-4)
    assert not any(after.remarks)
    detector.save(tmp_path / "model")
    again = pk.PatchCore.load(tmp_path / "model", progress=False).predict(dark)
    assert (again.index == after.index).all() and again.remarks == after.remarks


@pytest.mark.parametrize("sampler", ["identity", "approx_greedy_coreset"])
def test_images_that_gave_thresholds_may_join_the_bank(backbone, train, sampler):
    """Then they are compared with the others, not with themselves."""
    detector = pk.PatchCore(backbone, sampler, **SMALL).fit(train.train[:12]).recalibrate(train.train[12:])
    assert (detector.held_out_.images == -1).all()
    detector.extend(train.train[12:18])
    assert sorted(detector.held_out_.images.tolist()) == [-1] * 6 + [*range(12, 18)]
    if sampler == "identity":
        other = pk.PatchCore(backbone, sampler, **SMALL).fit(train.train[:18])
        assert detector.calibration_.scores[-6:] == pytest.approx(other.calibration_.scores[-6:], rel=1e-3)


def test_too_few_to_recalibrate(backbone, train):
    detector = pk.PatchCore(backbone, **SMALL).fit(train.train)
    before = detector.predict(train.test)
    with pytest.raises(pk.DataError, match=r"2 images give no threshold: .* at least 3 .* better 19 for a rate of 5%"):
        detector.recalibrate(train.test[:2])
    assert (detector.predict(train.test).index == before.index).all()


def test_suspects_are_left_out_and_named(backbone, train, tmp_path, caplog):
    bad = [tmp_path / f"bad {number}.png" for number in range(2)]
    for path, sample in zip(bad, train.train, strict=False):
        image = Image.open(sample.path)
        image.paste((200, 30, 30), (40, 40, 60, 60))
        image.save(path)
    detector = pk.PatchCore(backbone, contamination=0.2, **SMALL).fit([*train.train, *pk.load_folder(tmp_path)])
    assert set(detector.suspects_) == {path.name for path in bad}
    assert not set(detector.suspects_) & set(detector.train_names_)
    assert len(detector.train_names_) + len(detector.suspects_) == 26
    assert "stands out from the training images and is not learnt" in caplog.text
    assert detector.bank_.images.max() < len(detector.train_names_)


def test_suspects_among_images_that_join(backbone, train):
    bad = max((sample for sample in train.test if sample.label == 1), key=lambda sample: sample.name)
    detector = pk.PatchCore(backbone, contamination=0.3, **SMALL).fit(train.train[:16])
    learnt = len(detector.train_names_)
    detector.calibration_.__dict__["defective"] = detector.calibration_.look  # a stricter one has too few images here
    detector.extend([*train.train[16:20], bad])
    assert len(detector.train_names_) + len(detector.suspects_) == 21
    assert len(detector.train_names_) >= learnt + 3  # at most 0.3 of 5


@pytest.mark.parametrize("contamination", [-0.1, 0.5, True, "a"])
def test_contamination_that_cannot_be(backbone, contamination):
    with pytest.raises(pk.SettingsError, match="contamination is"):
        pk.PatchCore(backbone, contamination=contamination)


def test_ensembles_grow_and_recalibrate(backbone, train):
    members = [pk.PatchCore(backbone, seed=seed, **SMALL) for seed in (0, 1)]
    ensemble = pk.PatchCoreEnsemble(members).fit(train.train[:8]).extend(train.train[8:14])
    assert all(len(member.train_names_) == 14 for member in members)
    before = ensemble.predict(train.test)
    ensemble.recalibrate(train.train[14:])
    assert ensemble.predict(train.test).alarm_threshold != before.alarm_threshold
    with pytest.raises(pk.ResultsError, match="no ensemble"):
        before.explain(0)


def test_more_images_than_thresholds_are_taken_from(backbone, train):
    """The batches of those that are, have different lengths."""
    detector = pk.PatchCore(backbone, resize=(32, 32), progress=False).fit([*train.train, *train.test] * 6)
    assert len(detector.train_names_) == 228 and len(detector.calibration_.scores) <= 100


def test_the_reserve_is_what_the_bank_covers_worst():
    distances = torch.tensor([3.0, -torch.inf, 0.0, 7.0, 5.0])
    assert growth.Reserve.farthest(distances).tolist() == [0, 3, 4]
    assert len(growth.Reserve.farthest(None)) == 0


@pytest.mark.parametrize("sampler", ["approx_greedy_coreset", "random"])
def test_a_bank_of_all_patches_can_grow(backbone, train, sampler):
    """It has no reserve."""
    grown = pk.PatchCore(backbone, sampler, 1.0, **SMALL).fit(train.train[:4])
    assert not len(grown.reserve_)
    assert len(grown.extend(train.train[4:8]).bank_) == 8 * grown.grid_[0] * grown.grid_[1]


def test_more_neighbours_than_the_model_was_made_with(backbone, train, tmp_path):
    detector = pk.PatchCore(backbone, scoring="distance", **SMALL).fit(train.train[:8])
    detector.num_nn = 3
    detector.extend(train.train[8:12])
    assert detector.held_out_.distances.shape[2] == 3
    detector.save(tmp_path / "model")
    again = pk.PatchCore.load(tmp_path / "model", progress=False)
    assert (again.predict(train.test).scores == detector.predict(train.test).scores).all()

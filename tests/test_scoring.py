"""Density scores, thresholds from good images, and what models keep of both."""

import json

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

import patchcore_kit as pk
from patchcore_kit.scoring import TYPICAL

SMALL = {"resize": 72, "imagesize": 64, "progress": False}


@pytest.fixture(scope="module")
def category(sample_root):
    return pk.load_category(sample_root, "weave")


@pytest.fixture(scope="module")
def density(random_resnet18, category):
    return pk.PatchCore(random_resnet18, scoring="density", **SMALL).fit(category.train)


@pytest.fixture(scope="module")
def distance(random_resnet18, category):
    return pk.PatchCore(random_resnet18, **SMALL).fit(category.train)


def rows_of(detector, samples):
    images = pk.load_images(samples, detector.transform)
    with torch.inference_mode():
        return pk.embed(detector.backbone, images)


def test_the_score_is_what_the_module_says(density, distance, category):
    assert (density.bank_.rows == distance.bank_.rows).all()
    distances, nearest = density.bank_.search(rows_of(density, category.test))
    spacing = density.bank_.spacing
    relative = distances[:, 0] / (spacing[nearest[:, 0]] + TYPICAL * spacing.mean())
    patches = torch.from_numpy(relative.reshape(-1, 1, *density.grid_))
    scores = F.avg_pool2d(patches, 3, 1).amax((1, 2, 3)).numpy()
    predictions = density.predict(category.test)
    assert predictions.scores == pytest.approx(scores, rel=1e-4)
    assert predictions.scoring == "density" and predictions.scores.dtype == np.float32


def test_spacing_is_on_the_scale_of_the_distances(density, distance, category):
    """So a typical patch of a good image scores about as much as its distance over a few times its own spacing."""
    projected = density.bank_.spacing.mean()
    rows = rows_of(density, category.train)
    near = torch.cdist(torch.from_numpy(density.bank_.rows), rows).square().topk(10, largest=False).values[:, 1:]
    assert projected == pytest.approx(float(near.mean()), rel=0.3)


def test_distance_scores_are_the_references_whatever_the_thresholds(random_resnet18, category, distance):
    other = pk.PatchCore(random_resnet18, alarm_rate=0.2, **SMALL).fit(category.train)
    ours, theirs = distance.predict(category.test), other.predict(category.test)
    assert (ours.scores == theirs.scores).all() and (ours.maps == theirs.maps).all()
    distances, _ = distance.bank_.search(rows_of(distance, category.test))
    assert ours.scores == pytest.approx(distances.reshape(len(category.test), -1).max(axis=1), rel=1e-4)


@pytest.mark.parametrize("scoring", ["distance", "density"])
def test_good_images_are_scored_without_their_own_rows(scoring, request, category):
    detector = request.getfixturevalue(scoring)
    bank = detector.bank_
    for i in (0, 5):
        kept = bank.images != i
        alone = detector._bank(bank.rows[kept], {"spacing": None if bank.spacing is None else bank.spacing[kept]})
        if bank.spacing is not None:  # the mean is of all rows
            apart = bank.spacing.mean() - alone.spacing.mean()
            alone.spacing = alone.spacing + apart * TYPICAL / (1 + TYPICAL)
        detector.bank_ = alone
        try:
            predictions = detector.predict([category.train[i]])
        finally:
            detector.bank_ = bank
        assert detector.calibration_.scores[i] == pytest.approx(predictions.scores[0], rel=1e-4)
        assert detector.calibration_.peaks[i] == pytest.approx(predictions.maps.max(), rel=1e-4)
    assert len(detector.calibration_.scores) == len(category.train)


@pytest.mark.parametrize("scoring", ["distance", "density"])
def test_saved_and_loaded_and_alone_the_verdicts_are_the_same(scoring, request, category, tmp_path):
    detector = request.getfixturevalue(scoring)
    before = detector.predict(category.test)
    detector.save(tmp_path / "model")
    again = pk.load_detector(tmp_path / "model", progress=False)
    assert (again.scoring, again.alarm_rate) == (scoring, 0.05)
    after = again.predict(category.test)
    assert (after.scores == before.scores).all()
    assert after.alarm_threshold == before.alarm_threshold
    assert after.alarm_threshold_pixel == before.alarm_threshold_pixel
    assert after.verdicts.tolist() == before.verdicts.tolist()
    for i in (0, -1):
        alone = again.predict([category.test[i]])
        assert alone.scores[0] == pytest.approx(before.scores[i], rel=1e-4)
        assert alone.verdicts[0] == before.verdicts[i]
        assert alone.table()["verdict"].tolist() == [before.verdicts[i]]


def test_models_that_know_no_spacing(distance, random_resnet18, category, tmp_path, caplog):
    distance.save(tmp_path / "model")
    with pytest.raises(pk.ModelError, match="does not know how far apart good patches lie"):
        pk.PatchCore.load(tmp_path / "model", scoring="density")
    whole = pk.PatchCore(random_resnet18, "identity", 1, **SMALL).fit(category.train)
    whole.save(tmp_path / "whole")
    caplog.set_level("INFO")
    again = pk.PatchCore.load(tmp_path / "whole", scoring="density", progress=False)
    assert "whole has no threshold from good images for density scores: no verdicts" in caplog.text
    made = pk.PatchCore(random_resnet18, "identity", 1, scoring="density", **SMALL).fit(category.train)
    assert again.bank_.spacing == pytest.approx(made.bank_.spacing, rel=0.3)
    assert again.predict(category.test).verdicts.tolist() == [None] * len(category.test)


def test_models_of_earlier_versions(distance, category, tmp_path):
    """Those without thresholds give none, and the same scores."""
    distance.save(tmp_path / "model")
    settings = tmp_path / "model/patchcore_kit.json"
    extras = json.loads(settings.read_text())
    del extras["scoring"], extras["alarm_rate"], extras["checksums"]
    settings.write_text(json.dumps(extras))
    arrays = dict(np.load(tmp_path / "model/patchcore_kit.npz"))
    np.savez(tmp_path / "model/patchcore_kit.npz", images=arrays["images"], cells=arrays["cells"])
    again = pk.PatchCore.load(tmp_path / "model", progress=False).predict(category.test)
    assert (again.scores == distance.predict(category.test).scores).all()
    assert again.alarm_threshold is None and set(again.table()["verdict"]) == {None}


@pytest.mark.parametrize("settings", [{"scoring": "lof"}, {"scoring": "density", "reweight": 5}, {"alarm_rate": 5}])
def test_settings_that_cannot_work(random_resnet18, settings):
    with pytest.raises(pk.SettingsError):
        pk.PatchCore(random_resnet18, **settings, **SMALL)


# few images, and images that are all the same


@pytest.mark.parametrize("scoring", ["distance", "density"])
@pytest.mark.parametrize("sampler", ["approx_greedy_coreset", "identity", "random"])
@pytest.mark.parametrize("images", ["one", "two", "three", "the same"])
def test_what_few_images_cannot_give_is_none_with_one_sentence(
    random_resnet18, category, scoring, sampler, images, caplog
):
    train = {"one": 1, "two": 2, "three": 3}.get(images, 0)
    train = category.train[:train] if train else category.train[:1] * 25
    detector = pk.PatchCore(random_resnet18, sampler, 0.5, scoring=scoring, **SMALL).fit(train)
    sentences = [line for line in caplog.messages if "threshold" in line]
    predictions = detector.predict(category.test)
    metrics = pk.evaluate(predictions)
    values = [value for value in metrics.values() if isinstance(value, float)]
    assert np.isfinite(predictions.scores).all() and np.isfinite(predictions.maps).all() and np.isfinite(values).all()
    assert metrics["instance_auroc"] is not None
    (sentence,) = sentences
    if images == "three":
        assert "extrapolated" in sentence
        assert np.isfinite(predictions.index).all()
        assert predictions.alarm_threshold > detector.calibration_.scores.min()
    else:
        assert "so there is no threshold for 5% false alarms, and no verdict" in sentence
        assert sentence.startswith(f"{len(train)} training image")
        assert predictions.alarm_threshold is predictions.index is None
        assert set(predictions.table()["verdict"]) == {None}
    if images == "the same" and scoring == "density":
        assert "all other training images are the same, so scores are plain distances" in caplog.text


@pytest.mark.parametrize("scoring", ["distance", "density"])
@pytest.mark.parametrize("sampler", ["approx_greedy_coreset", "identity"])
def test_copies_of_two_images_make_no_threshold_of_rounding(random_resnet18, category, scoring, sampler, caplog):
    train = category.train[:2] * 20
    detector = pk.PatchCore(random_resnet18, sampler, 0.02, scoring=scoring, **SMALL).fit(train)
    predictions = detector.predict(category.test)
    if predictions.index is None:
        assert "most are copies of others" in caplog.text
    else:
        assert predictions.index.max() < 100
    assert (predictions.index is None) or sampler != "identity"


def test_an_image_of_one_patch(random_resnet18, category):
    """Windows of 3x3 are as small as the grid."""
    tiny = pk.PatchCore(random_resnet18, "identity", scoring="density", resize=16, imagesize=8, progress=False)
    predictions = tiny.fit(category.train).predict(category.test)
    assert tiny.grid_ == (1, 1) and np.isfinite(predictions.scores).all()


# ensembles


def test_ensembles_of_distances_average_as_ever_and_others_the_index(random_resnet18, category, distance, density):
    other = pk.PatchCore(random_resnet18, seed=1, **SMALL).fit(category.train)
    ensemble = pk.PatchCoreEnsemble([distance, other]).predict(category.test)
    scaled = [one.predict(category.test).scores / one.bank_.scale for one in (distance, other)]
    assert ensemble.scores == pytest.approx(np.mean(scaled, axis=0), rel=1e-5)
    assert ensemble.alarm_threshold > 0 and set(ensemble.verdicts) <= {"good", "look", "defective"}
    mixed = pk.PatchCoreEnsemble([distance, density]).predict(category.test)
    index = [one.predict(category.test).index for one in (distance, density)]
    assert mixed.scores == pytest.approx(np.mean(index, axis=0), rel=1e-5)
    assert mixed.scoring == "index" and 0.5 < mixed.alarm_threshold < 1.5
    reference = pk.PatchCoreEnsemble([distance, other], scaling="test-set").predict(category.test)
    assert reference.alarm_threshold is None


def test_members_that_cannot_be_compared_are_refused(random_resnet18, category):
    members = [pk.PatchCore(random_resnet18, scoring=s, **SMALL) for s in ("distance", "density")]
    ensemble = pk.PatchCoreEnsemble(members).fit(category.train[:2])
    with pytest.raises(pk.SettingsError, match="members of different scoring"):
        ensemble.predict(category.test)
    alike = pk.PatchCoreEnsemble([members[1], members[1]]).predict(category.test)
    assert np.isfinite(alike.scores).all() and alike.alarm_threshold is None


# real parts


def test_density_scores_are_sharper(real):
    before, after = (
        [real.found(name, scoring)[1].metrics for scoring in ("distance", "density")]
        for name in ("bottle", "magnetic_tile")
    )
    assert before[1]["instance_auroc"] >= 0.999 and before[1]["full_pixel_auroc"] >= 0.977
    assert before[1]["full_pro"] >= before[0]["full_pro"] - 0.006  # .004 in the mean of seeds
    assert after[1]["instance_auroc"] >= after[0]["instance_auroc"] + 0.02  # .034 in the mean of seeds
    assert after[1]["full_pro"] >= after[0]["full_pro"] - 0.004


@pytest.mark.parametrize("scoring", ["distance", "density"])
@pytest.mark.parametrize("name", ["bottle", "magnetic_tile"])
def test_false_alarms_on_new_good_images_are_as_promised(real, name, scoring):
    _, predictions = real.found(name, scoring)
    alarms = (predictions.verdicts != "good")[predictions.labels == 0]
    low, high = scipy.stats.binom.ppf([0.025, 0.975], len(alarms), 0.05)
    assert low <= alarms.sum() <= high
    assert not (predictions.verdicts[predictions.labels == 0] == "defective").any()


def test_the_threshold_is_nearly_as_good_as_one_that_knows_the_labels(real):
    metrics = real.found("bottle", "density")[1].metrics
    assert metrics["alarm_f1"] >= metrics["instance_f1"] - 0.05
    assert metrics["alarm_missed"] == 0

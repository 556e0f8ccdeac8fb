import json

import numpy as np
import pytest
import torch
from PIL import Image

import patchcore_kit as pk
from patchcore_kit import reference_format as rf
from patchcore_kit.transforms import normalise

SMALL = {"resize": 72, "imagesize": 64, "progress": False}


@pytest.fixture(scope="module")
def category(sample_root):
    return pk.load_category(sample_root, "pill")


@pytest.fixture(scope="module")
def detector(random_resnet18, category):
    return pk.PatchCore(random_resnet18, **SMALL).fit(category.train)


@pytest.fixture(scope="module")
def predictions(detector, category):
    return detector.predict(category.test)


def test_predictions_have_one_of_each_per_image(predictions, category):
    n = len(category.test)
    assert predictions.scores.shape == (n,)
    assert predictions.maps.shape == predictions.masks.shape == (n, 64, 64)
    assert predictions.maps.dtype == predictions.scores.dtype == np.float32
    assert predictions.names == tuple(sample.name for sample in category.test)
    assert predictions.labels.tolist() == [sample.label for sample in category.test]
    assert predictions.weights == "random"


def test_training_images_are_as_near_as_can_be(random_resnet18, category):
    detector = pk.PatchCore(random_resnet18, sampler="identity", **SMALL).fit(category.train)
    seen, unseen = (detector.predict(samples).scores for samples in (category.train, category.test))
    assert seen.max() < 1e-3 * unseen.min()


def test_the_bank_remembers_where_its_rows_came_from(detector, category, random_resnet18):
    h, w = detector.grid_
    image, cell = detector.bank_.images[5], detector.bank_.cells[5]
    batch = normalise(detector.transform.image(category.train[image])[None])
    rows = pk.embed(random_resnet18, batch).reshape(h * w, -1)
    assert torch.allclose(rows[cell], torch.from_numpy(detector.bank_.rows[5]), atol=1e-4)
    assert len(detector.bank_) == int(len(category.train) * h * w * 0.1)


def test_same_seed_same_model(random_resnet18, category, detector):
    again = pk.PatchCore(random_resnet18, **SMALL).fit(category.train)
    other = pk.PatchCore(random_resnet18, seed=1, **SMALL).fit(category.train)
    assert (again.bank_.rows == detector.bank_.rows).all()
    assert not np.array_equal(other.bank_.images, detector.bank_.images)


def test_the_batch_size_changes_nothing(detector, category, predictions):
    for batch_size in (1, 5):
        detector.batch_size = batch_size
        assert detector.predict(category.test).scores == pytest.approx(predictions.scores, rel=1e-4)
    detector.batch_size = 8


def test_saved_and_loaded(tmp_path, detector, category, predictions):
    detector.save(tmp_path / "model")
    again = pk.PatchCore.load(tmp_path / "model", progress=False)
    assert (again.resize, again.imagesize, again.percentage) == (72, 64, 0.1)
    assert again.train_names_ == detector.train_names_
    assert (again.bank_.cells == detector.bank_.cells).all()
    assert (again.predict(category.test).scores == predictions.scores).all()
    assert pk.load_transform(tmp_path / "model") == detector.transform
    again.save(tmp_path / "model")  # in its place
    assert rf.read_model(tmp_path / "model").params["input_shape"] == (3, 64, 64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    "settings", [{"search": "flat"}, {"storage": "float16"}, {"storage": "float16", "search": "flat"}]
)
def test_other_search_and_storage_give_the_same_within_rounding(
    tmp_path, category, predictions, random_resnet18, settings
):
    other = pk.PatchCore(random_resnet18, **settings, **SMALL).fit(category.train)
    assert other.predict(category.test).scores == pytest.approx(predictions.scores, rel=2e-3)
    other.save(tmp_path)
    again = pk.PatchCore.load(tmp_path, progress=False)
    assert {name: getattr(again, name) for name in settings} == settings
    assert (again.predict(category.test).scores == other.predict(category.test).scores).all()


def test_the_precision_is_stored(tmp_path, category, random_resnet18):
    backbone = pk.load_backbone("resnet18", weights="random", precision="bfloat16")
    detector, exact = (pk.PatchCore(b, "identity", **SMALL).fit(category.train) for b in (backbone, random_resnet18))
    scores = detector.predict(category.test).scores
    assert scores == pytest.approx(exact.predict(category.test).scores, rel=0.1)
    detector.save(tmp_path)
    again = pk.PatchCore.load(tmp_path, progress=False)
    assert again.backbone.precision == "bfloat16"
    assert (again.predict(category.test).scores == scores).all()


def test_saving_never_removes_other_files(tmp_path, detector):
    (tmp_path / ".DS_Store").touch()
    detector.save(tmp_path)  # nobody misses that
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(pk.ResultsError, match=r"holds other files \(thesis.txt\)"):
        detector.save(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_the_references_folder_gets_its_published_resize(tmp_path, detector):
    detector.save(tmp_path)
    (tmp_path / rf.EXTRAS_FILE).unlink()
    again = pk.PatchCore.load(tmp_path, weights="random", progress=False)
    assert again.resize == 73  # 8/7 of 64
    assert pk.load_transform(tmp_path) == pk.Transform(73, 64)
    assert again.grid_ == detector.grid_
    assert pk.PatchCore.load(tmp_path, weights="random", resize=72).resize == 72
    with pytest.raises(pk.ModelError, match=r"trained on images of 64x64 pixels, resize=\(50, 80\) makes them 50x80"):
        pk.PatchCore.load(tmp_path, weights="random", resize=(50, 80))


def test_models_made_for_something_else(tmp_path, detector):
    detector.save(tmp_path)
    for load in (pk.PatchCore.load, pk.load_transform):
        with pytest.raises(pk.ModelError, match="was trained with resize 72, not 80"):
            load(tmp_path, resize=80)
    extras = json.loads((tmp_path / rf.EXTRAS_FILE).read_text())
    (tmp_path / rf.EXTRAS_FILE).write_text(json.dumps(extras | {"weights_seed": 1}))
    with pytest.raises(pk.ModelError, match="was trained with other weights"):
        pk.PatchCore.load(tmp_path)


def test_number_of_neighbours_is_honoured_and_stored(tmp_path, random_resnet18, category, detector, predictions):
    detector.num_nn = 3
    detector.save(tmp_path)
    three = detector.predict(category.test)
    detector.num_nn = 1
    assert (three.maps.mean(axis=(1, 2)) > predictions.maps.mean(axis=(1, 2))).all()
    assert (pk.PatchCore.load(tmp_path, progress=False).predict(category.test).scores == three.scores).all()


def test_reweighting_equals_equation_7_for_any_batch_size(detector, category, predictions, random_resnet18):
    bank = detector.bank_.rows.astype(np.float64)
    wanted = []
    for sample, score in zip(category.test, predictions.scores, strict=True):
        rows = pk.embed(random_resnet18, normalise(detector.transform.image(sample)[None])).numpy().astype(np.float64)
        distances = np.linalg.norm(rows[:, None] - bank, axis=2)
        test = distances.min(axis=1).argmax()  # m_test,*
        nearest = distances[test].argmin()  # m*
        around = np.linalg.norm(bank - bank[nearest], axis=1).argsort()[:5]  # N_b(m*)
        weight = 1 - np.exp(distances[test, nearest]) / np.exp(distances[test, around]).sum()
        wanted.append(weight * score)
    detector.reweight = 5
    for batch_size in (1, 8):
        detector.batch_size = batch_size
        assert detector.predict(category.test).scores == pytest.approx(wanted, rel=1e-3)
    detector.reweight = 0
    assert (np.array(wanted) < predictions.scores).all()


def test_rectangular_grey_and_unlabelled(tmp_path, random_resnet18):
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (30, 150 + i), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    samples = pk.load_folder(tmp_path)
    detector = pk.PatchCore(random_resnet18, resize=(40, 160), progress=False).fit(samples)
    predictions = detector.predict(samples)
    assert detector.grid_ == (5, 20)
    assert predictions.maps.shape == (4, 40, 160)
    assert predictions.masks is None
    detector.save(tmp_path / "model")
    assert pk.PatchCore.load(tmp_path / "model", progress=False).transform.size == (40, 160)


@pytest.mark.parametrize(("rule", "advice"), [("inside", "'nearest' keeps"), ("nearest", "a larger size keeps")])
def test_why_masks_are_empty(tmp_path, detector, category, caplog, rule, advice):
    """One defect lies outside the central crop of 64 of 72 pixels, one is a line that neither rule keeps."""
    image = category.test[0].path
    samples = []
    for name, place in (("outside", np.s_[:3]), ("thin", np.s_[60:61])):
        mask = np.zeros((128, 128), dtype=np.uint8)
        mask[place] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
        samples.append(pk.Sample(f"test/{name}/0.png", image, tmp_path / f"{name}.png", name))
    assert not detector.predict(samples, mask_rule=rule).masks.any()
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message.partition(":")[0] for message in warned] == [
        "1 of 2 masks are empty within the central crop", "1 of 2 masks are empty at this size"
    ]  # fmt: skip
    assert f"too thin for the rule '{rule}'; {advice}" in warned[1]


def test_ensemble(tmp_path, category, detector, random_resnet18):
    other = pk.load_backbone("resnet18", ("layer1", "layer2"), weights="random", seed=5)
    members = [pk.PatchCore(random_resnet18, **SMALL), pk.PatchCore(other, seed=5, **SMALL)]
    ensemble = pk.PatchCoreEnsemble(members).fit(category.train)
    together = ensemble.predict(category.test)
    parts = [member.predict(category.test).scores / member.bank_.scale for member in members]
    assert together.scores == pytest.approx(np.mean(parts, axis=0), rel=1e-5)
    alone = ensemble.predict(category.test[:1])  # no other image has a say in it
    assert alone.scores[0] == pytest.approx(together.scores[0], rel=1e-4)
    ensemble.save(tmp_path)
    assert rf.read_model(tmp_path, "Ensemble-2-2_").params["layers_to_extract_from"] == ["layer1", "layer2"]
    again = pk.load_detector(tmp_path, weights="random", progress=False)
    assert again.predict(category.test).scores == pytest.approx(together.scores)
    with pytest.raises(pk.ModelError, match="holds an ensemble"):
        pk.PatchCore.load(tmp_path)


def test_ensemble_scaled_over_the_test_set(category, detector):
    scaled = pk.PatchCoreEnsemble([detector, detector], scaling="test-set").predict(category.test)
    assert (scaled.scores.min(), scaled.scores.max()) == (0, 1)
    assert (scaled.maps.min(), scaled.maps.max()) == (0, 1)
    alone = pk.PatchCoreEnsemble([detector], scaling="test-set").predict(category.test[:1])
    assert alone.scores.tolist() == [0]  # constant scores: no division by zero


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet18"}, "backbone is 'resnet18'"),
        ({"sampler": "nosuch"}, "unknown sampler"),
        ({"percentage": 2}, "percentage is 2"),
        ({"num_nn": 0}, "num_nn is 0"),
        ({"reweight": 1}, "reweight is 1"),
        ({"patchsize": 0}, "patchsize is 0"),
        ({"imagesize": 300}, "imagesize 300"),
        ({"projection": 0}, "projection is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"search": "quick"}, "unknown search 'quick'"),
        ({"storage": "int8"}, "unknown storage 'int8'"),
        ({"seed": -1}, "seed is -1"),
        ({"num_nn": 1.5}, "num_nn is 1.5"),
    ],
)
def test_settings_that_cannot_work(random_resnet18, settings, message):
    with pytest.raises(pk.SettingsError, match=message):
        pk.PatchCore(**{"backbone": random_resnet18} | settings)


def test_ensembles_that_cannot_work(random_resnet18, detector):
    with pytest.raises(pk.SettingsError, match="0 members"):
        pk.PatchCoreEnsemble([])
    with pytest.raises(pk.SettingsError, match="images of different sizes"):
        pk.PatchCoreEnsemble([detector, pk.PatchCore(random_resnet18, imagesize=96)])


def test_whole_numbers_of_any_kind_are_saved_as_such(tmp_path, random_resnet18, category):
    sizes = {"resize": np.int64(72), "imagesize": np.int32(64), "num_nn": np.int64(1), "seed": np.int64(0)}
    pk.PatchCore(random_resnet18, **sizes, progress=False).fit(category.train).save(tmp_path)
    assert pk.PatchCore.load(tmp_path, progress=False).num_nn == 1


def test_images_can_be_named_by_their_folder(detector, category, predictions, tmp_path):
    folder = category.path / "test" / "good"
    scores = [score for score, label in zip(predictions.scores, predictions.labels, strict=True) if label == 0]
    assert detector.predict(folder).scores == pytest.approx(scores, rel=1e-4)
    again = pk.PatchCore(detector.backbone, **SMALL).fit(category.path / "train" / "good")
    assert (again.bank_.rows == detector.bank_.rows).all()


def test_what_they_say_of_themselves(detector, category, predictions):
    assert repr(category) == "Category('pill', 8 training images, 10 test images)"
    assert "51 patches" in repr(detector)
    assert "10 images, maps of 64x64, random" in repr(predictions)


def test_steps_out_of_order(random_resnet18, category, detector, tmp_path):
    fresh = pk.PatchCore(random_resnet18, **SMALL)
    with pytest.raises(pk.ModelError, match="no memory bank"):
        fresh.predict(category.test)
    with pytest.raises(pk.ModelError, match="no memory bank"):
        fresh.save(tmp_path / "model")
    with pytest.raises(pk.DataError, match="no images to embed"):
        fresh.fit([])
    with pytest.raises(pk.DataError, match="no images to score"):
        detector.predict([])
    with pytest.raises(pk.SettingsError, match="unknown mask rule"):
        detector.predict(category.test, mask_rule="bad")
    with pytest.raises(pk.SettingsError, match="keeps none of"):
        pk.PatchCore(random_resnet18, percentage=1e-6, **SMALL).fit(category.train)


def test_no_hidden_state(random_resnet18, category):
    torch.manual_seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    pk.PatchCore(random_resnet18, **SMALL).fit(category.train)
    pk.load_backbone("resnet18", weights="random")
    assert (torch.get_rng_state() == before[0]).all()
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002

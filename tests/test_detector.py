import copy
import dataclasses
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


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_the_precision_is_stored(tmp_path, category, random_resnet18, precision):
    backbone = pk.load_backbone("resnet18", weights="random", precision=precision)
    detector, exact = (pk.PatchCore(b, "identity", **SMALL).fit(category.train) for b in (backbone, random_resnet18))
    scores = detector.predict(category.test).scores
    assert scores == pytest.approx(exact.predict(category.test).scores, rel=0.1)
    detector.save(tmp_path)
    again = pk.PatchCore.load(tmp_path, progress=False)
    assert again.backbone.precision == precision
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
    (tmp_path / rf.ARRAYS_FILE).unlink()
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
    del extras["checksums"]
    (tmp_path / rf.EXTRAS_FILE).write_text(json.dumps(extras | {"weights_seed": 1}))
    with pytest.raises(pk.ModelError, match="was trained with other weights"):
        pk.PatchCore.load(tmp_path)


def _without_checksums(folder, **changes):
    extras = json.loads((folder / rf.EXTRAS_FILE).read_text())
    del extras["checksums"]
    (folder / rf.EXTRAS_FILE).write_text(json.dumps(extras | changes))


def test_what_a_model_says_is_compared_with_what_the_network_says(tmp_path, detector):
    detector.save(tmp_path)
    _without_checksums(tmp_path, grid=[64, 1])
    with pytest.raises(pk.ModelError, match=r"its grid is \[64, 1\], but resnet18 makes \[8, 8\]"):
        pk.PatchCore.load(tmp_path)
    with pytest.raises(pk.SettingsError, match="there is no cuda:63"):
        pk.PatchCore.load(tmp_path, device="cuda:63")
    with pytest.raises(pk.SettingsError, match="unknown scoring 'lof'"):
        pk.PatchCore.load(tmp_path, scoring="lof")
    params, _ = rf.read_settings(tmp_path)
    (tmp_path / rf.PARAMS_FILE).write_bytes(rf.params_bytes(params | {"backbone.name": "resnet19"}))
    with pytest.raises(pk.ModelError, match=r"cannot be opened \(no backbone is called 'resnet19'"):
        pk.PatchCore.load(tmp_path)


def test_scores_that_are_not_finite(detector, category):
    broken = copy.copy(detector)
    broken.bank_ = pk.MemoryBank(np.full((20, 1024), 1e30, dtype=np.float32), search="flat")
    with pytest.raises(pk.ModelError, match="distances to the memory bank are not finite"):
        broken.predict(category.test)


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
    """One lies outside the central crop of 64 of 72 pixels, one is a line that neither rule keeps, one is not drawn."""
    image = category.test[0].path
    samples = []
    for name, place in (("outside", np.s_[:3]), ("thin", np.s_[60:61]), ("none", np.s_[:0])):
        mask = np.zeros((128, 128), dtype=np.uint8)
        mask[place] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
        samples.append(pk.Sample(f"test/{name}/0.png", image, tmp_path / f"{name}.png", name))
    assert not detector.predict(samples, mask_rule=rule).masks.any()
    assert caplog.messages == [
        f"{tmp_path / 'outside.png'}: the defect lies outside the central crop: a resize of height and width shows "
        "whole images",
        f"{tmp_path / 'thin.png'}: the defect is too thin for the rule '{rule}' at this size: {advice} more",
        f"{tmp_path / 'none.png'}: the mask of a defective image is empty",
    ]


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


def deep(folder, bits, count=4, level=1.0):
    """Grey images of that many bits in 16, whose largest value is a share of what these allow."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        values = (rng.random((72, 72)) * (2**bits - 1) * level).astype(np.uint16)
        values[0, 0] = (2**bits - 1) * level
        Image.fromarray(values).save(folder / f"{i}.png")
    return folder


def test_the_depth_is_learnt_stored_and_used(tmp_path, random_resnet18, caplog):
    folder, shallow = deep(tmp_path / "12", 12), tmp_path / "8"
    shallow.mkdir()
    for path in folder.iterdir():
        Image.fromarray((np.asarray(Image.open(path)) >> 4).astype(np.uint8)).save(shallow / path.name)
    wanted = pk.PatchCore(random_resnet18, **SMALL).fit(shallow)
    for cache in (None, pk.ImageCache(tmp_path / "cache"), pk.ImageCache(tmp_path / "cache")):
        detector = pk.PatchCore(random_resnet18, **SMALL, cache=cache).fit(folder)
        assert detector.transform.bits == 12 and wanted.transform.bits is None
        assert (detector.bank_.rows == wanted.bank_.rows).all()
    detector.save(tmp_path / "model")
    again = pk.PatchCore.load(tmp_path / "model", progress=False)
    assert again.transform.bits == pk.load_transform(tmp_path / "model").bits == 12
    dark = deep(tmp_path / "dark", 12, level=0.1)  # of itself it would be 10 bits: brightness counts
    assert (again.predict(folder).scores == wanted.predict(shallow).scores).all()
    assert (again.predict(dark).scores > again.predict(folder).scores).all()
    assert (pk.PatchCore(random_resnet18, bits=16, **SMALL).fit(folder).bank_.rows != wanted.bank_.rows).any()
    with pytest.raises(pk.ModelError, match="was trained with 12 bits, not 14"):
        pk.PatchCore.load(tmp_path / "model", bits=14)
    detector.fit(shallow)  # a new data set has a depth of its own
    assert detector.transform.bits is None
    caplog.clear()
    again.predict(deep(tmp_path / "14", 14))
    line, brighter = caplog.messages
    assert "brighter than all training images" in brighter
    assert line.startswith(str(tmp_path / "14")) and "(and 3 more): holds values up to 16383, which are cut" in line
    caplog.clear()
    wanted.predict(folder)
    assert "has more than 8 bits, but none were learnt from: 65535 is taken as white" in caplog.messages[0]


def test_models_of_other_programs_can_be_told_their_depth(tmp_path, detector):
    detector.save(tmp_path / "model")
    (tmp_path / "model" / rf.EXTRAS_FILE).unlink()
    (tmp_path / "model" / rf.ARRAYS_FILE).unlink()
    for bits in (None, 12):
        assert pk.PatchCore.load(tmp_path / "model", "random", resize=72, bits=bits).transform.bits == bits


NEWER = ("bits", "category", "checksums")


def test_models_of_earlier_versions(tmp_path, detector, category, predictions):
    detector.save(tmp_path / "mvtec_pill")
    path = tmp_path / "mvtec_pill" / rf.EXTRAS_FILE
    extras = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in extras.items() if key not in NEWER}))
    again = pk.PatchCore.load(tmp_path / "mvtec_pill", progress=False)
    assert (again.transform.bits, again.category_) == (None, "pill")
    assert (again.predict(category.test).scores == predictions.scores).all()


def test_frames_are_what_files_are(detector, category, predictions, tmp_path):
    paths = [sample.path for sample in category.test]
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    for frames in (arrays, np.stack(arrays), (Image.fromarray(array) for array in arrays), iter(arrays)):
        of_frames = detector.predict(frames)
        assert (of_frames.scores == predictions.scores).all() and (of_frames.maps == predictions.maps).all()
        assert of_frames.names == tuple(f"frame {i}" for i in range(len(paths)))
    assert detector.predict(arrays[3]).scores == pytest.approx(predictions.scores[3:4], rel=1e-4)
    again = pk.PatchCore(detector.backbone, **SMALL, cache=pk.ImageCache(tmp_path / "cache"))
    train = [np.asarray(Image.open(sample.path).convert("RGB")) for sample in category.train]
    assert (again.fit(train).bank_.rows == detector.bank_.rows).all()
    assert again.category_ == "" and not (tmp_path / "cache").exists()


def test_another_category_is_told(detector, category, sample_root, caplog):
    other = pk.load_category(sample_root, "weave").test
    detector.predict(other)
    assert caplog.messages[0] == (
        f"{other[0].path} (and {len(other) - 1} more): is of another category than the model's, pill"
    )
    caplog.clear()
    detector.predict([sample.path for sample in other])  # nobody says of which they are
    detector.predict(category.test)
    assert "another category" not in caplog.text


def test_missing_masks_are_told_by_name(detector, category, caplog):
    missing = dataclasses.replace(next(sample for sample in category.test if sample.label == 1), mask_path=None)
    samples = [missing if sample.name == missing.name else sample for sample in category.test]
    predictions = detector.predict(samples)
    assert caplog.messages == [f"{missing.path}: has no mask, so there will be no pixel metrics"]
    assert predictions.masks is None and predictions.unmasked == (missing.name,)
    caplog.clear()
    detector.predict([sample.path for sample in samples])  # of which nobody expects masks
    assert caplog.messages == []


def test_masks_of_more_than_half_are_told(tmp_path, detector, category, caplog):
    mask = np.full((128, 128), 255, dtype=np.uint8)
    mask[50:60, 50:60] = 0
    Image.fromarray(mask).save(tmp_path / "inverted.png")
    sample = pk.Sample("test/dent/0.png", category.test[0].path, tmp_path / "inverted.png", "dent")
    detector.predict([sample])
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / 'inverted.png'}: more than half of what is seen counts as defect")


def test_the_crop_is_told_once_for_all_members(tmp_path, detector, category, random_resnet18, caplog):
    Image.new("L", (400, 100)).save(tmp_path / "long.png")
    ensemble = pk.PatchCoreEnsemble([pk.PatchCore(random_resnet18, seed=seed, **SMALL) for seed in (0, 1)])
    for work in (ensemble.fit, ensemble.predict):
        caplog.clear()
        work([tmp_path / "long.png"] * 2)
        crop, *few = caplog.messages
        assert "long.png (and 1 more): of its 400x100 pixels the network sees 20%" in crop
        assert len(few) == (work == ensemble.fit)  # the first member says that two are too few for a threshold


def test_a_model_without_its_weights_says_which_it_needs(tmp_path, resnet18_file, category, monkeypatch):
    backbone = pk.load_backbone("resnet18", weights=resnet18_file)
    pk.PatchCore(backbone, **SMALL).fit(category.train).save(tmp_path / "model")
    for name in ("PATCHCORE_WEIGHTS", "TORCH_HOME", "HF_HOME", "PATCHCORE_WORK"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(pk.weights, "_answers", lambda *_: False)
    with pytest.raises(pk.WeightsError, match=r"the model in .*model needs the weights.*: put resnet18") as caught:
        pk.PatchCore.load(tmp_path / "model")
    assert "starter" not in str(caught.value)
    with pytest.raises(pk.WeightsError, match="or choose the backbone 'starter'"):
        pk.load_backbone("resnet18")


def test_a_mask_of_a_good_image_that_is_not_empty_is_told(tmp_path, detector, category, caplog):
    Image.fromarray(np.eye(128, dtype=np.uint8) * 0 + (np.arange(128) > 100) * np.uint8(255)).save(
        tmp_path / "mask.png"
    )
    good = next(sample for sample in category.test if sample.label == 0)
    detector.predict([dataclasses.replace(good, mask_path=tmp_path / "mask.png")])
    assert caplog.messages == [
        f"{tmp_path / 'mask.png'}: the mask of a good image is not empty, so pixels of it count as defect"
    ]


def test_a_loaded_model_that_is_fitted_again_looks_again(tmp_path, random_resnet18):
    pk.PatchCore(random_resnet18, **SMALL).fit(deep(tmp_path / "12", 12)).save(tmp_path / "model")
    again = pk.PatchCore.load(tmp_path / "model", progress=False)
    assert again.fit(deep(tmp_path / "14", 14)).transform.bits == 14

"""The reference implementation's own numbers. "Relative" = largest difference over largest value."""

import copy
import json

import numpy as np
import pytest
import torch

import patchcore_kit as pk
from patchcore_kit.coreset import _k_center, _matrix_row_norms
from patchcore_kit.datasets import Sample
from patchcore_kit.transforms import Transform, normalise


def relative(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize(
    ("layers", "pretrain", "target", "patchsize"),
    [("23", 1024, 1024, 3), ("2", 512, 256, 3), ("123", 1024, 384, 5), ("3", 1000, 700, 1)],
)
def test_features(golden, mvtec, resnet18_file, layers, pretrain, target, patchsize):
    numbers = np.load(golden / "features.npz")
    key = f"L{layers}_{pretrain}_{target}_ps{patchsize}"
    backbone = pk.load_backbone("resnet18", tuple(f"layer{n}" for n in layers), resnet18_file)
    samples = [Sample(name, mvtec / "bottle" / name) for name in numbers["images"]]
    images = normalise(np.stack([Transform().image(sample) for sample in samples]))
    rows = pk.embed(backbone, images, pretrain, target, patchsize).numpy()
    assert len(rows) == numbers[f"{key}_count"]
    assert relative(rows[numbers[f"{key}_rows"]], numbers[key]) < 1e-4


def assert_same_choices(ours, theirs, features):
    """The same set, in the same order but where the candidates lie within 1e-5 of each other."""
    assert set(ours) == set(theirs)
    distances = torch.cdist(features.double(), features.double()).numpy()
    for i in np.flatnonzero(ours != theirs):
        a, b = (distances[choices[i], choices[:i]].min() for choices in (ours, theirs))
        assert a == pytest.approx(b, rel=1e-5)


def test_approximate_greedy_coreset(golden):
    numbers = np.load(golden / "coreset.npz")
    features = torch.from_numpy(numbers["features"])
    chosen = pk.greedy_coreset(features, len(numbers["approximate_greedy"]), numbers["start_points"], progress=False)
    assert_same_choices(chosen, numbers["approximate_greedy"], features)


def test_greedy_coreset(golden):
    numbers = np.load(golden / "coreset.npz")
    features = torch.from_numpy(numbers["features"])
    chosen = _k_center(features, len(numbers["greedy"]), _matrix_row_norms(features), progress=False)[0]
    assert_same_choices(chosen, numbers["greedy"], features)


def test_identity_scores_and_maps(golden, mvtec, resnet18):
    numbers = np.load(golden / "scores_identity_10.npz")
    train = [Sample(name, mvtec / "bottle" / name) for name in numbers["train"]]
    test = [Sample(name, mvtec / "bottle" / name) for name in numbers["test"]]
    detector = pk.PatchCore(resnet18, sampler="identity", progress=False).fit(train)
    predictions = detector.predict(test)
    assert relative(predictions.scores, numbers["scores"]) < 1e-3
    assert relative(predictions.maps[:, ::8, ::8], numbers["maps"]) < 1e-3


def test_reference_model(golden, mvtec, resnet18_file):
    folder = golden / "reference_model"
    numbers, metrics = np.load(folder / "expected_scores.npz"), json.loads((folder / "expected.json").read_text())
    detector = pk.PatchCore.load(folder / "models" / "mvtec_bottle", weights=resnet18_file, progress=False)
    category = pk.load_category(mvtec, "bottle")
    predictions = detector.predict(category.test)
    assert len(predictions.scores) == 83
    order = [predictions.names.index(name) for name in numbers["names"]]
    assert relative(predictions.scores[order], numbers["scores"]) < 1e-3
    assert relative(predictions.maps[order][:, ::8, ::8], numbers["maps"]) < 1e-3
    ours = pk.evaluate(predictions)
    for name in ("instance_auroc", "full_pixel_auroc", "anomaly_pixel_auroc"):
        assert ours[name] == pytest.approx(metrics[name], abs=1e-4), name
    assert ours["pixel_threshold"] == pytest.approx(metrics["pixel_optimal_threshold"], rel=1e-4)


@pytest.mark.parametrize("name", ["bottle", "magnetic_tile"])
def test_the_fast_search_loses_no_accuracy(real, every, name):
    detector, _ = real.found(name)
    exact = copy.copy(detector)
    exact.bank_ = pk.MemoryBank(detector.bank_.rows, search="flat")
    fast, flat = (one.predict(real.categories[name].test[::every]) for one in (detector, exact))
    assert np.allclose(fast.scores, flat.scores, rtol=1e-3)
    ratios = fast.maps / flat.maps
    assert ratios.min() > 0.999 and np.quantile(ratios, 0.999) < 1.001 and ratios.max() < 1.03
    found, exact = pk.evaluate(fast), pk.evaluate(flat)
    for metric in ("instance_auroc", "full_pixel_auroc", "full_pro"):
        assert found[metric] == pytest.approx(exact[metric], abs=0.001)

import base64
import io

import numpy as np
import pytest
from PIL import Image

import patchcore_kit as pk
from patchcore_kit.widgets import ThresholdSlider


@pytest.fixture
def samples(sample_root):
    return pk.load_category(sample_root, "pill").test


@pytest.fixture
def predictions(samples):
    masks = np.zeros((len(samples), 56, 56), dtype=bool)
    masks[[sample.label == 1 for sample in samples], :28] = True
    maps = np.random.default_rng(0).random(masks.shape).astype(np.float32) + masks
    labels = np.array([sample.label for sample in samples])
    names = tuple(sample.name for sample in samples)
    return pk.Predictions(maps.max(axis=(1, 2)), maps, labels, masks, names, weights="random")


@pytest.fixture
def slider(samples, predictions):
    return ThresholdSlider(samples, pk.Transform(64, 56), predictions, 3)


def shown(slider):
    return np.asarray(Image.open(io.BytesIO(slider.picture.value)))


def test_starts_at_the_best_threshold(slider, predictions):
    assert slider.slider.value == predictions.pixel_threshold
    assert slider.image.value == 3


def test_moving_it_redraws_the_mask_and_tells_precision_and_recall(slider, predictions):
    before = shown(slider)
    for threshold in (0.3, 1.2, 1.7):
        slider.slider.value = threshold
        found = predictions.maps >= threshold
        right = (found & predictions.masks).sum()
        precision, recall = right / found.sum(), right / predictions.masks.sum()
        assert slider.text.value.startswith(f"precision {precision:.3f}, recall {recall:.3f}")
        assert (shown(slider) != before).any()
        before = shown(slider)
    slider.slider.value = slider.slider.max  # nothing but the highest pixel
    assert slider.text.value.startswith("precision 1.000, recall 0.000")


def test_another_image_another_picture(slider):
    before = shown(slider)
    slider.image.value = 0
    assert (shown(slider) != before).any()


def test_a_still_picture_where_widgets_do_not_run(slider):
    bundle = slider._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]) == slider.picture.value


def test_needs_masks(samples, predictions):
    without = pk.Predictions(predictions.scores, predictions.maps, predictions.labels, None, predictions.names)
    with pytest.raises(pk.DataError, match="no precision and recall: needs a mask of every defective image"):
        ThresholdSlider(samples, pk.Transform(64, 56), without, 0)

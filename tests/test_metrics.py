import numpy as np
import pytest
from sklearn import metrics as sk

from patchcore_kit.metrics import image_metrics, pixel_metrics, region_shares


@pytest.fixture
def truth():
    """Maps with many equal values, and masks with regions of different size, in some images."""
    rng = np.random.default_rng(0)
    masks = np.zeros((8, 60, 50), dtype=bool)
    for i in range(5):
        masks[i, 5:15, 5 : 10 + i] = True
        masks[i, 40:42, 20:22] = True
    maps = (rng.random(masks.shape) + 0.6 * masks).round(2).astype(np.float32)
    return maps, masks


def test_image_metrics_equal_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    scores = (rng.random(60) + labels).round(1).astype(np.float32)
    ours = image_metrics(scores, labels)
    precision, recall, thresholds = sk.precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / (precision + recall)
    assert ours["instance_auroc"] == pytest.approx(sk.roc_auc_score(labels, scores))
    assert ours["instance_ap"] == pytest.approx(sk.average_precision_score(labels, scores))
    assert ours["instance_f1"] == pytest.approx(f1.max())
    assert ours["image_threshold"] == pytest.approx(thresholds[f1.argmax()])


def test_pixel_metrics_equal_scikit_learns(truth):
    maps, masks = truth
    ours, flat = pixel_metrics(maps, masks), masks.ravel()
    assert ours["full_pixel_auroc"] == pytest.approx(sk.roc_auc_score(flat, maps.ravel()))
    assert ours["full_pixel_ap"] == pytest.approx(sk.average_precision_score(flat, maps.ravel()))
    assert ours["anomaly_pixel_auroc"] == pytest.approx(sk.roc_auc_score(masks[:5].ravel(), maps[:5].ravel()))


def pro_by_definition(maps, masks, regions):
    """Mean overlap of the regions against the false-positive rate, threshold by threshold, up to 30 %."""
    x, y = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        x.append(found[~masks].mean())
        y.append(np.mean([found[region].mean() for region in regions]))
    x, y = np.array(x), np.array(y)
    inside = x <= 0.3
    return np.trapezoid(np.append(y[inside], np.interp(0.3, x, y)), np.append(x[inside], 0.3)) / 0.3


def test_pro_equals_its_definition(truth):
    maps, masks = truth
    regions = []
    for i in range(5):
        for rows in (slice(5, 15), slice(40, 42)):
            region = np.zeros_like(masks)
            region[i, rows] = masks[i, rows]
            regions.append(region)
    ours = pixel_metrics(maps, masks)
    assert ours["full_pro"] == pytest.approx(pro_by_definition(maps, masks, regions), abs=1e-6)
    defective = [region[:5] for region in regions]
    assert ours["anomaly_pro"] == pytest.approx(pro_by_definition(maps[:5], masks[:5], defective), abs=1e-6)


def test_perfect_and_hopeless_maps(truth):
    _, masks = truth
    assert pixel_metrics(masks.astype(np.float32), masks)["full_pro"] == pytest.approx(1)
    hopeless = pixel_metrics(1 - masks.astype(np.float32), masks)
    assert hopeless["full_pixel_auroc"] == 0
    assert hopeless["full_pro"] == pytest.approx(0, abs=1e-6)


def test_regions_touch_at_corners_but_not_across_images():
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0, 0, 0] = masks[0, 1, 1] = True
    masks[1, 0, 0] = True
    shares = region_shares(masks)
    assert shares[0, 0, 0] == shares[0, 1, 1] == pytest.approx(1 / 4)  # one of two regions, half of it
    assert shares[1, 0, 0] == pytest.approx(1 / 2)
    assert shares.sum() == pytest.approx(1)


def test_a_perfect_pro_is_1_and_not_more():
    """Of 3 regions the shares, of 32 bits, sum up to a little more than 1."""
    for regions in range(1, 40):
        masks = np.zeros((regions, 9, 9), dtype=bool)
        masks[:, 2:5, 1:8] = True
        assert pixel_metrics(masks.astype(np.float32), masks)["full_pro"] == 1

"""Thresholds from good images alone, and what they promise."""

import numpy as np
import pytest
import scipy.stats

import patchcore_kit as pk
from patchcore_kit.calibration import Calibration, check, threshold


@pytest.mark.parametrize(("n", "rate", "place"), [(19, 0.05, 19), (100, 0.05, 96), (99, 0.01, 99), (9, 0.1, 9)])
def test_the_threshold_is_the_conformal_order_statistic(n, rate, place):
    scores = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    found = threshold(scores, rate)
    assert (found.value, found.n, found.extrapolated) == (place, n, False)
    exact = scipy.stats.binomtest(n - place, n).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert found.low <= (n - place) / n <= found.high


@pytest.mark.parametrize(("rate", "least", "needed"), [(0.05, 19, 59), (0.01, 99, 299)])
def test_how_many_good_images_it_takes(rate, least, needed):
    scores = np.arange(1.0, 500)
    assert threshold(scores[:least], rate).least == least
    assert not threshold(scores[:least], rate).extrapolated
    few = threshold(scores[: least - 1], rate)
    assert few.extrapolated and few.value > scores[least - 2] and few.low is None and few.high is None
    assert few.needed == needed
    # the promise: with that many, and the largest as the limit, a rate above has a chance below 5 %
    assert (1 - rate) ** needed <= 0.05 < (1 - rate) ** (needed - 1)


def test_it_says_what_it_promises():
    scores = np.arange(1.0, 101)
    known, few = str(threshold(scores, 0.05)), str(threshold(scores[:10], 0.05))
    assert known == "96 for 5% false alarms, from 100 good images: the true rate lies between 1.1% and 9.9%"
    assert "extrapolated from 10 good images, which promises nothing; 59 could promise at most 5%" in few


@pytest.mark.parametrize("draw", ["normal", "lognormal", "gamma"])
@pytest.mark.parametrize(
    ("n", "rate", "most"), [(100, 0.05, 0.055), (40, 0.05, 0.055), (40, 0.01, 0.02), (10, 0.05, 0.07)]
)
def test_new_good_images_are_above_as_seldom_as_it_says(draw, n, rate, most):
    """Extrapolated ones too, nearly, for scores that spread as those of real parts do."""
    generator = np.random.default_rng(0)
    many = {
        "normal": lambda size: generator.normal(10, 1.5, size),
        "lognormal": lambda size: generator.lognormal(2, 0.3, size),
        "gamma": lambda size: generator.gamma(12, 1, size),
    }[draw]
    rates = [(many(500) > threshold(many(n), rate).value).mean() for _ in range(400)]
    assert 0.2 * rate < np.mean(rates) < most


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, 2.0], [0.0] * 40, [0.0] * 39 + [5.0]])
def test_what_says_nothing_gives_none(scores):
    """Too few, and images that are the same as others: never the smallest score, never 0."""
    assert threshold(np.array(scores), 0.05) is None


def test_verdicts_know_three_answers():
    scores = np.arange(1.0, 201)
    known = Calibration(scores, scores / 2, 0.05)
    assert (known.look.value, known.defective.value, known.pixel.value) == (191, 199, 95.5)
    maps = np.zeros((4, 2, 2), dtype=np.float32)
    some = pk.Predictions(
        np.array([1, 191, 192, 200]), maps, np.array([-1] * 4), None, ("a.png",) * 4, calibration=known
    )
    assert some.verdicts.tolist() == ["good", "good", "look", "defective"]
    assert some.table()["verdict"].tolist() == some.verdicts.tolist()
    assert some.index == pytest.approx(np.array([1, 191, 192, 200]) / 191)
    assert (some.index_maps == 0).all()


def test_without_thresholds_there_is_no_verdict():
    some = pk.Predictions(np.ones(2), np.ones((2, 2, 2)), np.array([0, 1]), None, ("a.png", "b.png"))
    assert some.table()["verdict"].tolist() == [None, None]
    assert some.alarm_threshold is some.alarm_threshold_pixel is some.index is some.index_maps is None
    assert pk.evaluate(some)["alarm_f1"] is None


def test_saved_and_loaded(tmp_path):
    known = Calibration(np.arange(1.0, 31, dtype=np.float32), np.arange(2.0, 32, dtype=np.float32), 0.1)
    maps = np.random.default_rng(0).random((3, 4, 4)).astype(np.float32)
    some = pk.Predictions(
        maps.max(axis=(1, 2)) * 30,
        maps,
        np.array([0, 1, 1]),
        None,
        ("a", "b", "c"),
        calibration=known,
        scoring="density",
    )
    some.save(tmp_path / "some.npz")
    again = pk.Predictions.load(tmp_path / "some.npz")
    assert again.scoring == "density" and again.calibration.alarm_rate == 0.1
    assert again.verdicts.tolist() == some.verdicts.tolist()
    for name in ("alarm_threshold", "defective_threshold", "alarm_threshold_pixel"):
        assert getattr(again, name) == getattr(some, name) == np.load(tmp_path / "some.npz")[name]


def test_metrics_at_the_threshold_from_good_images():
    scores = np.arange(1.0, 101)
    maps = np.zeros((6, 4, 4), dtype=np.float32)
    masks = np.zeros(maps.shape, dtype=bool)
    masks[3:, :2], maps[3:, :1], maps[0, 3, 3] = True, 99, 99
    labels = np.array([0, 0, 0, 1, 1, 1])
    some = pk.Predictions(
        np.array([1, 97, 2, 97, 98, 3]),
        maps,
        labels,
        masks,
        ("a.png",) * 6,
        calibration=Calibration(scores, scores, 0.05),
    )
    metrics = pk.evaluate(some)
    assert metrics["alarm_false_alarms"] == pytest.approx(1 / 3)
    assert metrics["alarm_missed"] == pytest.approx(1 / 3)
    assert metrics["alarm_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert metrics["alarm_pixel_f1"] == pytest.approx(2 * 12 / (13 + 24))


@pytest.mark.parametrize("rate", [0, -0.1, 0.6, 1, True, "0.05", None, float("nan")])
def test_rates_that_cannot_work(rate):
    with pytest.raises(pk.SettingsError, match="alarm_rate is"):
        check(rate)

import numpy as np
import pandas as pd
import pytest

import patchcore_kit as pk
from patchcore_kit.calibration import Calibration
from patchcore_kit.reasons import Evidence, packed
from patchcore_kit.transforms import Transform


def predictions(labels, masks="by label", **other):
    labels = np.array(labels)
    rng = np.random.default_rng(0)
    maps = rng.random((len(labels), 8, 6)).astype(np.float32)
    if isinstance(masks, str):
        masks = np.zeros(maps.shape, dtype=bool)
        masks[labels == 1, 2:4, 2:5] = True
        maps += masks
    names = tuple(f"test/{'dent' if label == 1 else 'good'}/{i:03}.png" for i, label in enumerate(labels))
    return pk.Predictions(maps.max(axis=(1, 2)), maps, labels, masks, names, **other)


def test_saved_and_loaded(tmp_path):
    before = predictions([0, 1, 1, 0], mask_rule="nearest", weights="random")
    before.save(tmp_path / "new/part.npz")
    after = pk.Predictions.load(tmp_path / "new/part.npz")
    for name in ("scores", "maps", "labels", "masks"):
        assert (getattr(after, name) == getattr(before, name)).all()
    assert (after.names, after.mask_rule, after.weights) == (before.names, "nearest", "random")
    assert pk.evaluate(after) == pk.evaluate(before)
    with np.load(tmp_path / "new/part.npz") as file:  # what another program sees
        assert {"scores", "maps", "labels", "masks", "names", "image_threshold", "pixel_threshold"} <= set(file)
        assert file["image_threshold"] == before.image_threshold
        assert file["pixel_threshold"] == before.pixel_threshold


def test_saved_and_loaded_without_masks(tmp_path):
    predictions([0, 0], masks=None).save(tmp_path / "part.npz")
    after = pk.Predictions.load(tmp_path / "part.npz")
    assert after.masks is None
    assert after.pixel_threshold is None


def test_thresholds_split_what_can_be_split():
    some = predictions([0, 1, 1, 0, 0])
    assert ((some.scores >= some.image_threshold) == (some.labels == 1)).all()
    assert pk.evaluate(some)["instance_f1"] == 1


def test_table(tmp_path):
    some = predictions([0, 1, 1], weights="random")
    some.save_table(tmp_path / "part.csv")
    table = pd.read_csv(tmp_path / "part.csv")
    assert table["defect"].tolist() == ["good", "dent", "dent"]
    assert table["verdict_f1"].tolist() == ["good", "defective", "defective"]
    assert table["score"].to_numpy() == pytest.approx(some.scores)
    assert set(table["mask_rule"]) == {"inside"}
    assert set(table["weights"]) == {"random"}  # whoever opens the table must know
    assert table["mask_area"].tolist() == pytest.approx([0, 6 / 48, 6 / 48])
    found = some.maps >= some.pixel_threshold
    assert table["predicted_area"].tolist() == pytest.approx(found.mean(axis=(1, 2)).tolist())
    iou = [(found[i] & some.masks[i]).sum() / (found[i] | some.masks[i]).sum() for i in (1, 2)]
    assert table["iou"].tolist() == pytest.approx([np.nan, *iou], nan_ok=True)


def test_the_margin_is_negative_where_the_verdict_is_wrong():
    maps = np.array([1, 3, 2, 8], dtype=np.float32).reshape(4, 1, 1) * np.ones((4, 4, 4), dtype=np.float32)
    some = pk.Predictions(maps.max(axis=(1, 2)), maps, np.array([0, 0, 1, 1]), None, ("test/a/0.png",) * 4)
    assert some.image_threshold == 2  # finds all, with one false alarm
    assert some.table()["margin"].tolist() == [0.5, -0.5, 0, 3]
    assert some.table()["verdict_f1"].tolist() == ["good", "defective", "defective", "defective"]
    assert "iou" not in some.table()


@pytest.mark.parametrize("masks", ["by label", None])
@pytest.mark.parametrize("labels", [[0, 0], [1, 1], [-1, -1], [0]])
def test_one_class_gives_reasons_not_numbers(labels, masks):
    metrics = pk.evaluate(predictions(labels, masks))
    assert metrics["instance_auroc"] is metrics["image_threshold"] is None
    assert "image metrics: needs good and defective images" in metrics["undefined"]
    if masks is None:
        assert metrics["full_pro"] is None
        assert "pixel metrics: needs a mask of every defective image" in metrics["undefined"]
    elif 1 not in labels:
        assert metrics["full_pixel_auroc"] is None
        assert "pixel metrics: needs good and defective pixels" in metrics["undefined"]


def test_defects_that_fill_their_images():
    masks = np.zeros((2, 8, 6), dtype=bool)
    masks[1] = True
    metrics = pk.evaluate(predictions([0, 1], masks))
    assert metrics["full_pixel_auroc"] is not None
    assert metrics["anomaly_pixel_auroc"] is metrics["anomaly_pro"] is None
    assert "needs good pixels in defective images" in metrics["undefined"]


def test_masks_that_are_empty_at_this_size_are_counted():
    masks = np.zeros((4, 8, 6), dtype=bool)
    masks[1, 2:4, 2:4] = True
    metrics = pk.evaluate(predictions([0, 1, 1, 1], masks))
    assert (metrics["masks"], metrics["empty_masks"]) == (3, 2) and metrics["full_pixel_auroc"] is not None
    assert "pixel metrics: at this size 2 of 3 masks are empty, whose defects do not count" in metrics["undefined"]
    assert pk.evaluate(predictions([0, 1], None))["masks"] is None


def test_unknown_labels_are_left_out():
    some, more = predictions([0, 1, 0, 1], None), predictions([0, 1, 0, 1, -1], None)
    assert pk.evaluate(more)["instance_auroc"] == pk.evaluate(some)["instance_auroc"]


@pytest.mark.parametrize("content", [None, b"", b"text"])
def test_files_that_are_no_predictions(tmp_path, content):
    if content is not None:
        (tmp_path / "part.npz").write_bytes(content)
    with pytest.raises(pk.ResultsError, match=r"cannot read predictions from .*part.npz"):
        pk.Predictions.load(tmp_path / "part.npz")


def test_damaged_predictions(tmp_path):
    predictions([0, 1]).save(tmp_path / "part.npz")
    content = (tmp_path / "part.npz").read_bytes()
    for damaged in (content[:100], content[:-30], content[:500] + b"x" * 500 + content[1000:]):
        (tmp_path / "part.npz").write_bytes(damaged)
        with pytest.raises(pk.ResultsError, match="cannot read predictions"):
            pk.Predictions.load(tmp_path / "part.npz")
    np.save(tmp_path / "part.npy", np.zeros(3))
    with pytest.raises(pk.ResultsError, match="cannot read predictions"):
        pk.Predictions.load(tmp_path / "part.npy")


def test_saving_never_replaces_a_folder(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.txt").touch()
    for save in (predictions([0, 1]).save, predictions([0, 1]).save_table):
        with pytest.raises(pk.ResultsError, match=r"cannot write .*results \(Is a directory\)"):
            save(tmp_path / "results")
    assert [p.name for p in tmp_path.rglob("*")] == ["results", "thesis.txt"]


def test_pickles_in_predictions_are_refused(tmp_path):
    np.savez(tmp_path / "part.npz", names=np.array([object()]), mask_rule="inside", weights="")
    with pytest.raises(pk.ResultsError, match="cannot read predictions"):
        pk.Predictions.load(tmp_path / "part.npz")


def test_images_without_masks_are_named(tmp_path):
    some = predictions([0, 1, 1], None, unmasked=("test/dent/001.png", "test/dent/002.png"))
    reason = "pixel metrics: needs a mask of every defective image, and test/dent/001.png and 1 more have none"
    assert reason in pk.evaluate(some)["undefined"]
    some.save(tmp_path / "part.npz")
    assert pk.Predictions.load(tmp_path / "part.npz").unmasked == some.unmasked
    one = predictions([0, 1], None, unmasked=("test/dent/001.png",))
    assert "and test/dent/001.png has none" in pk.evaluate(one)["undefined"]


def test_files_of_earlier_versions(tmp_path):
    predictions([0, 1]).save(tmp_path / "part.npz")
    with np.load(tmp_path / "part.npz") as file:
        np.savez(tmp_path / "old.npz", **{key: file[key] for key in file if key != "unmasked"})
    assert pk.Predictions.load(tmp_path / "old.npz").unmasked == ()


def test_a_threshold_that_calls_all_defective_says_so():
    scores = np.r_[14.0, 20, 26, 32, np.linspace(12, 40, 37)].astype(np.float32)
    some = pk.Predictions(
        scores, np.zeros((41, 4, 4), "f4"), np.r_[[0] * 4, [1] * 37], None, tuple(map(str, range(41)))
    )
    assert some.image_threshold == 12
    assert pk.evaluate(some)["image_false_alarms"] == 1
    assert pk.evaluate(predictions([0, 1, 1, 0]))["image_false_alarms"] == 0
    assert pk.evaluate(predictions([1, 1]))["image_false_alarms"] is None


def saved_arrays(path):
    """Predictions of two images with all that they can hold, as arrays."""
    transform = Transform((8, 6), bits=None)
    evidence = Evidence(
        np.array([1]), np.ones((1, 9), int), np.ones(1, "f4"), np.zeros((1, 2, 2, 3), "u1"), np.array([[[0, 1]]]),
        np.ones((1, 1), "f4"), ("a.png",), np.array([[8, 6]]), tuple(packed(np.zeros((1, 8, 6, 3), "u1"))), (4, 3),
        transform,
    )  # fmt: skip
    known = {"transform": transform, "sizes": np.full((2, 2), 9), "remarks": ("", "blurred"), "evidence": evidence}
    calibration = Calibration(np.arange(1, 31, dtype="f4"), np.arange(1, 31, dtype="f4"), 0.05)
    predictions([0, 1], calibration=calibration, **known).save(path)
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region_boxes": np.ones((9, 1), int)}, "region_boxes is of"),
        ({"region_near": np.array([[[0, 12]]])}, "of cells 12 to 12 of"),
        ({"region_near": np.array([[[1, 0]]])}, "index out of range"),
        ({"region_near": np.array([[[-1, 0]]])}, "of cells"),
        ({"photograph_ends": np.array([0])}, "ends of its photographs"),
        ({"photographs": np.zeros(0, "u1"), "photograph_ends": np.array([0])}, "photograph .* is missing"),
        ({"good_sizes": np.zeros((1, 2), int)}, "good_sizes from 0 to 0"),
        ({"sizes": np.full((2, 2), 2**29)}, "larger than any that is read"),
        ({"remarks": np.array(["a"])}, "1 remarks and 2 sizes of 2 images"),
        ({"transform": np.array([5, 0, 9, 9])}, "made for"),
        ({"grid": np.array([0, 3])}, "of cells"),
        ({"alarm_rate": np.array(1e-40)}, "no threshold is finite"),
        ({"maps": np.zeros((2, 0, 6), "f4"), "masks": np.zeros((2, 0, 6), bool)}, "maps of 0x6"),
    ],
)
def test_arrays_that_do_not_belong_together(tmp_path, changes, message):
    arrays = saved_arrays(tmp_path / "part.npz")
    np.savez(tmp_path / "part.npz", **arrays)
    found = pk.Predictions.load(tmp_path / "part.npz")
    assert str(found.explain(1)).startswith("test/dent/001.png: ")
    np.savez(tmp_path / "part.npz", **arrays | changes)
    with pytest.raises(pk.ResultsError, match=rf"part\.npz \(.*{message}"):
        pk.Predictions.load(tmp_path / "part.npz")


def test_an_array_whose_name_is_damaged_is_not_left_out(tmp_path):
    predictions([0, 1]).save(tmp_path / "part.npz")
    content = (tmp_path / "part.npz").read_bytes()
    at = content.rindex(b"masks.npy")  # in the directory at the end
    (tmp_path / "part.npz").write_bytes(content[:at] + b"m" + b"\x01" + content[at + 2 :])
    with pytest.raises(pk.ResultsError, match="cannot read predictions"):
        pk.Predictions.load(tmp_path / "part.npz")


def test_good_scores_that_give_no_threshold(tmp_path):
    arrays = saved_arrays(tmp_path / "part.npz")
    np.savez(tmp_path / "part.npz", **arrays | {"good_scores": np.zeros(30, "f4")})
    assert pk.Predictions.load(tmp_path / "part.npz").calibration is None


def test_reasons_of_models_without_photographs(tmp_path):
    """Those of earlier versions, which have names of training images and nothing else of them."""
    arrays = saved_arrays(tmp_path / "part.npz")
    none = {"good_sizes": np.zeros((0, 2), int), "photographs": np.zeros(0, "u1"), "photograph_ends": np.zeros(0, int)}
    none |= {"region_near": np.zeros((1, 0, 2), int), "region_distances": np.zeros((1, 0), "f4")}
    np.savez(tmp_path / "part.npz", **arrays | none)
    assert pk.Predictions.load(tmp_path / "part.npz").explain(1).regions[0].nearest == ()

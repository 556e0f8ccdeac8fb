import numpy as np
import pandas as pd
import pytest

import patchcore_kit as pk


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

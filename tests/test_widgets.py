import base64
import datetime
import html
import io
import re

import ipywidgets
import numpy as np
import pytest
from PIL import Image

import patchcore_kit as pk
from patchcore_kit.plots import GAP, HEADER
from patchcore_kit.widgets import ThresholdSlider, Upload

NOW = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)


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
    return ThresholdSlider(samples, pk.Transform(64, 56), predictions, 0)


def shown(slider):
    (png,) = re.findall(r'src="data:image/png;base64,([^"]+)"', slider.picture.value)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def cells(slider):
    """The numbers below the slider: of all test images, and of this one."""
    rows = re.findall(r'<th scope="row">([^<]+)</th>((?:<td>[^<]+</td>)+)', slider.text.value)
    return {name: re.findall(r"<td>([^<]+)</td>", row) for name, row in rows}


def rates(found, masks):
    right = (found & masks).sum()
    precision, recall = right / found.sum(), right / masks.sum()
    return [f"{rate:.3f}" for rate in (precision, recall, 2 * right / (found.sum() + masks.sum()))]


def test_starts_at_the_best_threshold(slider, predictions):
    assert slider.slider.value == predictions.pixel_threshold
    assert slider.image.value == 0


@pytest.mark.parametrize("end", [-1, 0.7, 3.3])
def test_browsers_can_stop_at_the_best_threshold(samples, predictions, end):
    """They round to steps, counted from the lowest value, and tell what they have rounded."""
    predictions.maps[0, 0, 0] = end  # so that the range is another
    slider = ThresholdSlider(samples, pk.Transform(64, 56), predictions, 0).slider
    stop = slider.min + round((slider.value - slider.min) / slider.step) * slider.step
    assert np.float32(stop) == np.float32(predictions.pixel_threshold)
    assert slider.min <= predictions.maps.min() and slider.max == predictions.maps.max()
    assert slider.min > predictions.maps.min() - slider.step


def test_moving_it_redraws_the_mask_and_tells_precision_and_recall(slider, predictions):
    before = shown(slider)
    for threshold in (0.3, 1.2, 1.7):
        slider.slider.value = threshold
        found = predictions.maps >= np.float32(threshold)
        assert cells(slider)["all test images"] == rates(found, predictions.masks)
        assert cells(slider)["this image"] == rates(found[0], predictions.masks[0])
        assert (shown(slider) != before).any()
        before = shown(slider)
    slider.slider.value = slider.slider.max  # nothing but the highest pixel
    assert cells(slider)["all test images"][:2] == ["1.000", "0.000"]


def test_hits_misses_and_false_alarms_are_told_apart(slider, predictions):
    slider.slider.value = 1.2
    predictions.maps[0, -1] = 1.3  # where there is no defect
    slider._draw()
    found, masks = predictions.maps[0] >= np.float32(1.2), predictions.masks[0]
    left = GAP + 2 * (56 + GAP)
    panel = shown(slider)[HEADER : HEADER + 56, left : left + 56]
    for name, colour, where in (
        ("found", (255, 255, 255), found & masks),
        ("missed", (230, 159, 0), ~found & masks),
        ("false alarms", (0, 114, 178), found & ~masks),
    ):
        assert where.any() and ((panel == colour).all(axis=2) == where).all()
        assert f"rgb{colour}" in slider.text.value and f"{name}: {where.sum()} pixels" in slider.text.value
        assert f"{where.sum()} pixels {name}" in slider.picture.value  # its alternative text


def test_good_images_have_no_recall(slider, predictions):
    slider.image.value = next(i for i, label in enumerate(predictions.labels) if label == 0)
    slider.slider.value = slider.slider.max
    assert cells(slider)["this image"] == ["&ndash;"] * 3


def test_the_best_f1_is_marked_and_one_click_away(slider, predictions):
    best, low, high = predictions.pixel_threshold, slider.slider.min, slider.slider.max
    slider.slider.value = 1.7
    assert f"The best F1 of all test images is {predictions.metrics['full_pixel_f1']:.3f}, at {best:.3g}" in (
        slider.text.value
    )
    (share,) = re.findall(r"\.noUi-base::before { left: ([0-9.]+)%", "".join(part.value for part in html_of(slider)))
    assert float(share) == pytest.approx(100 * (best - low) / (high - low), abs=0.01)
    slider.best.click()
    assert slider.slider.value == best


def html_of(widget):
    return [part for part in widget.children if isinstance(part, ipywidgets.HTML)]


def test_words_take_the_colours_of_the_theme(slider, tmp_path):
    """No colour of their own, which would be dark on dark; all that has the focus is framed."""
    for widget in (slider, Upload(tmp_path)):
        look = next(part.value for part in html_of(widget) if "<style>" in part.value and "focus-visible" in part.value)
        colours = re.findall(r"[{; ]color: ([^;]+);", look)
        assert colours and all(colour.startswith("var(--jp-") for colour in colours)
        assert "patchcore" in widget._dom_classes and ".patchcore :focus-visible { outline: 3px solid" in look


def test_widgets_have_names_for_screen_readers(slider, tmp_path):
    assert (slider.image.description, slider.slider.description) == ("image", "threshold")
    assert slider.best.description.startswith("to the best F1")
    assert "Drop photographs for" in Upload(tmp_path).button.tooltip
    assert re.search(r'<img [^>]*alt="test/[^"]+"', slider.picture.value)
    assert all(part.tabbable is not False for part in (slider.image, slider.slider, slider.best))


def test_another_image_another_picture(slider):
    before = shown(slider)
    slider.image.value = 5
    assert (shown(slider) != before).any()


def test_a_still_picture_where_widgets_do_not_run(slider):
    bundle = slider._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert f"base64,{bundle['image/png']}" in slider.picture.value
    assert bundle["text/html"] == slider.picture.value


def test_needs_masks(samples, predictions):
    without = pk.Predictions(predictions.scores, predictions.maps, predictions.labels, None, predictions.names)
    with pytest.raises(pk.DataError, match="no precision and recall: needs a mask of every defective image"):
        ThresholdSlider(samples, pk.Transform(64, 56), without, 0)


# uploads


def picture(colour=0, kind="PNG"):
    with io.BytesIO() as file:
        Image.new("RGB", (8, 6), (colour, 0, 0)).save(file, kind)
        return file.getvalue()


def give(upload, **files):
    """What the browser gives after a choice: names and contents."""
    given = [{"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": NOW}
             for name, content in files.items()]  # fmt: skip
    upload.button.value = given
    return upload.text.value.split("<br>")


@pytest.fixture
def upload(tmp_path):
    return Upload(tmp_path / "own" / "good")


def names(upload):
    return sorted(path.name for path in upload.folder.iterdir())


def test_uploads_are_saved_and_counted(upload):
    assert upload.text.value == f"{upload.folder} holds no photographs yet" and upload.folder.is_dir()
    one, other = picture(1), picture(2, "JPEG")
    assert give(upload, **{"a.png": one, "b.JPG": other}) == [f"{upload.folder} holds 2 photographs", "2 of 2 saved"]
    assert (upload.folder / "a.png").read_bytes() == one and (upload.folder / "b.JPG").read_bytes() == other
    assert [len(file["content"]) for file in upload.button.value] == [0, 0]  # let go
    assert Upload(upload.folder).text.value == f"{upload.folder} holds 2 photographs"


def test_uploads_replace_nothing(upload):
    give(upload, **{"a.png": picture(1)})
    said = give(upload, **{"a.png": picture(2)})
    assert said == [f"{upload.folder} holds 2 photographs", "1 of 1 saved", "a.png is saved as a_2.png"]
    assert (upload.folder / "a.png").read_bytes() == picture(1)
    for content, name in ((picture(1), ""), (picture(2), ", as a_2.png")):
        assert give(upload, **{"a.png": content})[1:] == ["0 of 1 saved", f"a.png is there already{name}"]
    give(upload, **{"a.png": picture(3)})
    assert names(upload) == ["a.png", "a_2.png", "a_3.png"]


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("../../up.png", "up.png"),
        ("C:\\photographs\\up.png", "up.png"),
        ("/etc/up.png", "up.png"),
        ("...png", "png"),
        (".hidden.png", "hidden.png"),
        ('a"b\n?.png', "a_b__.png"),
        ("Spule ä 1.png", "Spule ä 1.png"),
        (f"{'long' * 60}.png", f"{'long' * 15}.png"),
    ],
)
def test_names_stay_in_the_folder(upload, name, saved):
    said = give(upload, **{name: picture()})
    if saved == "png":
        assert said[2] == "not saved: png is of a kind that is not read: save it as PNG or JPEG first"
    else:
        assert names(upload) == [saved]
        assert said[2:] == ([] if saved == name else [f"{html.escape(name)} is saved as {html.escape(saved)}"])
    assert sorted(path.name for path in upload.folder.parents[1].rglob("*.png")) == names(upload)


def test_what_is_no_image_is_refused(upload):
    files = {"text.png": b"words", "empty.png": b"", "page.jpg": b"<html>", "IMG.heic": picture()}
    with io.BytesIO() as file:
        Image.effect_noise((64, 64), 50).save(file, "PNG")
        files["half.png"] = file.getvalue()[:2000]
    said = give(upload, **files, **{"good.png": picture()})
    assert said[:2] == [f"{upload.folder} holds 1 photograph", "1 of 6 saved"] and names(upload) == ["good.png"]
    for name, line in zip(files, said[2:], strict=True):
        assert line.startswith("not saved: ") and name in line
    assert "it is empty" in said[3] and "web page" in said[4] and said[5].endswith("save it as PNG or JPEG first")


def test_of_many_refusals_the_first_are_told(upload):
    said = give(upload, **{f"<{n}>.txt": b"" for n in range(12)})
    assert len(said) == 11 and said[-1] == "and 4 more" and said[2].startswith("not saved: _0_.txt is of a kind")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    upload = Upload(tmp_path / "file" / "good")
    assert give(upload, **{"a.png": picture()})[1].startswith("0 of 1 saved")
    assert "not saved: cannot write" in upload.text.value

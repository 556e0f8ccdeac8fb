import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patchcore_kit as pk
from patchcore_kit.datasets import Sample, as_samples, read_mask, read_rgb
from patchcore_kit.transforms import Transform


def save(path: Path, values: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def part(tmp_path, noise):
    """A category of the MVTec layout with everything that may lie about in one."""
    category = tmp_path / "root" / "part"
    for name in ("train/good/000.png", "test/good/000.png", "test/dent/000.png", "test/dent/002.png"):
        save(category / name, noise)
    for name in ("000", "002"):
        save(category / f"ground_truth/dent/{name}_mask.png", np.zeros((40, 60), dtype=np.uint8))
    for litter in ("train/good/.DS_Store", "test/desktop.ini", "test/dent/Thumbs.db", "train/good/._000.png"):
        (category / litter).write_bytes(b"litter")
    (category / "test" / ".ipynb_checkpoints").mkdir()
    return category


def test_category(part):
    category = pk.load_category(part.parent, "part")
    assert [s.name for s in category.train] == ["train/good/000.png"]
    assert [s.name for s in category.test] == ["test/dent/000.png", "test/dent/002.png", "test/good/000.png"]
    assert [s.label for s in category.test] == [1, 1, 0]
    assert [s.mask_path and s.mask_path.name for s in category.test] == ["000_mask.png", "002_mask.png", None]


def test_masks_are_paired_by_name_not_by_position(part):
    (part / "ground_truth/dent/000_mask.png").unlink()
    masks = {s.name: s.mask_path for s in pk.load_category(part.parent, "part").test}
    assert masks["test/dent/000.png"] is None
    assert masks["test/dent/002.png"].name == "002_mask.png"


def test_images_without_sub_folders(tmp_path, noise):
    save(tmp_path / "part/train/a.jpg", noise)
    save(tmp_path / "part/test/b.bmp", noise)
    category = pk.load_category(tmp_path, "part")
    assert [s.label for s in category.train] == [0]
    assert [s.label for s in category.test] == [-1]


def test_folder_of_photographs(tmp_path, noise):
    save(tmp_path / "b.png", noise)
    save(tmp_path / "a.webp", noise)
    assert [(s.name, s.label) for s in pk.load_folder(tmp_path)] == [("a.webp", -1), ("b.png", -1)]


def test_samples_files_and_folders(tmp_path, noise):
    path = save(tmp_path / "a.png", noise)
    sample = Sample("a", path)
    for images in (tmp_path, str(tmp_path), path, [path], [str(path)], iter([path]), (path,), {path}):
        assert [(s.path, s.label) for s in as_samples(images)] == [(path, -1)]
    assert as_samples([sample]) == as_samples(sample) == as_samples(s for s in [sample]) == [sample]
    for wrong in (
        3,
        None,
        pk.Category("a", tmp_path, [], []),
        [3],
        [None],
        {"a": path},
        [[path]],
        torch.zeros(2, 3),
        np.array(3),
    ):
        with pytest.raises(pk.SettingsError, match="are no images: give samples"):
            as_samples(wrong)


def test_files_are_named_by_what_they_do_not_have_in_common(tmp_path, noise):
    paths = [save(tmp_path / name, noise) for name in ("a/x/000.png", "b/000.png", "a/x/001.png")]
    assert [s.name for s in as_samples(paths)] == ["a/x/000.png", "b/000.png", "a/x/001.png"]
    assert [s.name for s in as_samples(paths[::2])] == ["000.png", "001.png"]
    assert [s.name for s in as_samples([paths[0], paths[0]])] == ["000.png", "000.png"]


def test_frames_are_named_by_their_number(noise):
    grey = noise[..., 0]
    pillow = Image.fromarray(noise)
    for images, count in (
        (noise, 1), (grey, 1), (pillow, 1), ([noise, grey, pillow], 3), (np.stack([noise] * 4), 4),
        (np.stack([grey] * 5), 5), (noise.astype(">u2")[::-1], 1),
        ((frame for frame in [grey[..., None], noise.astype(np.uint16)]), 2),
    ):  # fmt: skip
        samples = as_samples(images)
        assert [(s.name, s.path, s.label) for s in samples] == [(f"frame {i}", None, -1) for i in range(count)]
        assert all(s.where == s.name and Transform((40, 60)).image(s).shape == (40, 60, 3) for s in samples)
    path_first = as_samples(["a.png", noise])
    assert [s.name for s in path_first] == ["a.png", "frame 1"]


@pytest.mark.parametrize("shape", [(3, 40, 60), (40, 60, 4), (40, 60, 2), (40,), (0, 60), (2, 2, 40, 60, 3)])
def test_arrays_that_are_no_frames(shape):
    with pytest.raises(pk.DataError, match=r"frame 0 is an array of uint8 .*: give uint8 or uint16 of \(H, W\)"):
        as_samples([np.zeros(shape, dtype=np.uint8)])
    with pytest.raises(pk.DataError, match=r"frame 0 is an array of float32"):
        as_samples(np.zeros((40, 60), dtype=np.float32))


def test_a_frame_is_what_its_file_gives(tmp_path, noise):
    exif = Image.Exif()
    exif[0x0112] = 6
    images = {
        "rgb.png": Image.fromarray(noise),
        "grey.png": Image.fromarray(noise[..., 0]),
        "deep.png": Image.fromarray(noise[..., 0].astype(np.uint16) * 257),
        "palette.png": Image.fromarray(noise).quantize(7),
        "alpha.png": Image.merge("LA", Image.fromarray(noise).split()[:2]),
        "turned.jpg": Image.fromarray(noise),
        "one.png": Image.fromarray(noise[..., 0] > 99),
    }
    for name, image in images.items():
        image.save(tmp_path / name, **({"exif": exif, "quality": 95} if "turned" in name else {}))
        with Image.open(tmp_path / name) as opened:
            wanted = read_rgb(tmp_path / name)
            assert as_samples([opened])[0].path == tmp_path / name
            opened.load()
            size, mode, before = opened.size, opened.mode, opened.tobytes()
            (sample,) = as_samples([opened])
            assert sample.frame is opened
            assert (np.asarray(read_rgb(opened)) == np.asarray(wanted)).all(), name
            assert (opened.size, opened.mode, opened.tobytes()) == (size, mode, before)  # it is somebody else's
    for array in (noise, noise[..., 0], noise[..., 0].astype(np.uint16) * 257, noise.astype(np.uint16) * 257):
        wanted = noise if array.ndim == 3 else np.repeat(noise[..., :1], 3, axis=2)
        assert (np.asarray(read_rgb(array)) == wanted).all()
        assert pk.load_images(array, Transform((40, 60))).shape == (1, 3, 40, 60)


def test_images_that_lie_too_deep(part, noise):
    save(part / "train/good/early shift/000.png", noise)
    fails(part, r"early shift holds images too deep to be read")
    for folder, hint in ((part / "test", "test/dent"), (part, "train/good"), (part.parent, "part/")):
        with pytest.raises(pk.DataError, match=f"name one of its folders, as .*{hint}"):
            pk.load_folder(folder)
    with pytest.raises(pk.DataError, match="no folder"):
        pk.load_folder(part / "nowhere")


def test_found_without_configuration(tmp_path, monkeypatch):
    monkeypatch.delenv("MVTEC_ROOT", raising=False)
    monkeypatch.setenv("PATCHCORE_WORK", str(tmp_path))
    assert pk.find_data() is None
    (tmp_path / "mvtec_anomaly_detection").mkdir()
    assert pk.find_data() is None  # empty, as a volume that is mounted for nothing
    for folder in ("mvtec_anomaly_detection", "data/mvtec_anomaly_detection", "elsewhere"):
        (tmp_path / folder / "bottle/train").mkdir(parents=True)
        if folder == "elsewhere":
            monkeypatch.setenv("MVTEC_ROOT", str(tmp_path / folder))
        assert pk.find_data() == tmp_path / folder


def fails(part, message):
    with pytest.raises(pk.DataError, match=message):
        pk.load_category(part.parent, "part")


def test_no_data_folder(tmp_path):
    with pytest.raises(pk.DataError, match=r"no data folder .*nowhere"):
        pk.load_category(tmp_path / "nowhere", "part")


def test_no_such_category(part):
    with pytest.raises(pk.DataError, match=r"no category 'prat' in .*: did you mean 'part'"):
        pk.load_category(part.parent, "prat")


def test_empty_category(tmp_path):
    (tmp_path / "part/train/good").mkdir(parents=True)
    with pytest.raises(pk.DataError, match=r"no images in .*good"):
        pk.load_category(tmp_path, "part")


def test_mask_without_image(part):
    save(part / "ground_truth/dent/007_mask.png", np.zeros((40, 60), dtype=np.uint8))
    fails(part, "mask .*007_mask.png has no image 007")


def test_masks_of_a_defect_without_images(part):
    save(part / "ground_truth/scratch/000_mask.png", np.zeros((40, 60), dtype=np.uint8))
    fails(part, "masks in .*scratch have no images")


def test_defective_images_are_never_learnt(part, noise):
    save(part / "train/dent/000.png", noise)
    fails(part, r"train/dent holds images, but only good ones are learnt")


def test_litter_among_the_masks(part):
    save(part / "ground_truth/.ipynb_checkpoints/000_mask.png", np.zeros((40, 60), dtype=np.uint8))
    assert len(pk.load_category(part.parent, "part").test) == 3


def test_folders_that_may_not_be_read(part, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    for call in (pk.list_categories, pk.load_folder):
        with pytest.raises(pk.DataError, match=r"cannot read .* \(Permission denied\)"):
            call(part.parent)


def test_mask_of_another_size(part):
    save(part / "ground_truth/dent/000_mask.png", np.zeros((40, 61), dtype=np.uint8))
    fails(part, "000_mask.png is 61x40 but its image .*000.png is 60x40")


@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.95])
def test_damaged_image(part, noise, keep):
    path = part / "train/good/000.png"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    sample = pk.load_category(part.parent, "part").train[0]
    with pytest.raises(pk.DataError, match=r"cannot read image .*000.png"):
        Transform(32, 24).image(sample)


def test_damaged_image_with_a_mask_is_found_at_once(part):
    (part / "test/dent/000.png").write_text("not an image")
    fails(part, "cannot read image .*dent/000.png")


def test_image_that_vanished(part):
    sample = pk.load_category(part.parent, "part").train[0]
    sample.path.unlink()
    with pytest.raises(pk.DataError, match=r"no file .*000.png"):
        Transform(32, 24).image(sample)


def test_turned_image_and_its_mask_agree_in_size(part, noise):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(part / "test/dent/000.png", noise, exif=exif)
    fails(part, "000_mask.png is 60x40 but its image .* is 40x60")


@pytest.mark.parametrize("name", ["OK", "Good", "normal", "good ", "PASS", "i.O.", "nominal"])
def test_good_images_under_another_name_are_no_defects(part, noise, name):
    save(part / "test" / name / "000.png", noise)
    fails(part, rf"test/{name} would count as a defect, but seems to hold good images: rename it to .*test/good")
    (part / "test" / name).rename(part / "test" / "not ok")
    assert "not ok" in {s.defect for s in pk.load_category(part.parent, "part").test}


@pytest.mark.parametrize("split", ["train/good", "test/dent"])
def test_images_at_any_depth_are_refused(part, noise, split):
    save(part / split / "monday" / "early" / "000.png", noise)
    fails(part, rf"{split}/monday/early holds images too deep to be read: move them up to .*{split}")


def test_folders_of_photographs_within_another(tmp_path, noise, caplog):
    save(tmp_path / "a.png", noise)
    save(tmp_path / "more/deeper/b.png", noise)
    (tmp_path / "empty").mkdir()
    assert len(pk.load_folder(tmp_path)) == 1
    assert caplog.messages == [
        f"{tmp_path / 'more'}: a folder of images within the one that is read, which is left out"
    ]


def test_links(part, noise):
    outside = save(part.parent.parent / "outside/007.png", noise)
    (part / "train/good/007.png").symlink_to(outside)
    (part / "test/scratch").symlink_to(outside.parent)
    category = pk.load_category(part.parent, "part")
    assert len(category.train) == 2 and category.test[-1].name == "test/scratch/007.png"
    outside.unlink()
    fails(part, r"train/good/007.png is a link to nothing: mend it or remove it")


def test_image_files_that_are_not_read_are_told(part, noise, caplog):
    for name in ("train/good/1.gif", "train/good/2.HEIC", "test/dent/3.pgm", "test/good/notes.txt"):
        (part / name).write_bytes(b"content")
    for name in ("4.jfif", "5.JPE", "6.JPG"):
        save(part / "train/good" / name, noise, format="JPEG")
    assert len(pk.load_category(part.parent, "part").train) == 4
    (line,) = caplog.messages
    assert "(and 2 more): left out: of images only .png" in line
    assert any(
        line.startswith(str(part / name)) for name in ("train/good/1.gif", "train/good/2.HEIC", "test/dent/3.pgm")
    )


@pytest.mark.parametrize(
    "mask", ["000_mask.png", "000_GT.PNG", "000-mask.bmp", "000 masks.png", "000.ground_truth.tif"]
)
@pytest.mark.parametrize("split", ["train/good", "test/dent"])
def test_masks_among_images_are_refused(part, noise, split, mask):
    save(part / split / mask, noise)
    message = rf"{split}/{mask} is among the images, but looks like the mask of 000.png: move masks to ground_truth"
    fails(part, message)
    with pytest.raises(pk.DataError, match=message):
        pk.load_folder(part / split)
    (part / split / "000.png").unlink()
    if split == "train/good":
        assert [s.path.name for s in pk.load_category(part.parent, "part").train] == [mask]  # then it is only a name


def test_photographs_that_are_named_like_masks_are_told(part, noise, caplog):
    """As of another side of the part: they may be what they say."""
    save(part / "train/good/000_label.png", noise)
    save(part / "test/dent/002_seg.png", noise)
    category = pk.load_category(part.parent, "part")
    assert len(category.train) == 2 and len(category.test) == 4
    (line,) = caplog.messages
    path = part / "test/dent/002_seg.png"
    assert line == f"{path} (and 1 more): is taken as an image of its own: if it is the mask of 002.png, move it away"


def test_two_images_of_one_name_are_told(part, noise, caplog):
    save(part / "train/good/000.jpg", noise)
    assert len(pk.load_category(part.parent, "part").train) == 2
    assert caplog.messages == [
        f"{part / 'train/good/000.png'}: has the name of 000.jpg: if one of them is no image, remove it"
    ]


@pytest.mark.parametrize("folder", ["masks", "Ground Truth", "GroundTruth", "gt", "mask", "Labels"])
def test_masks_in_other_folders_are_refused(part, folder):
    (part / "ground_truth").rename(part / folder)
    fails(
        part, rf"(masks in .*{folder} are not read: move them to .*ground_truth/<defect>/<image>_mask.png|rename it to)"
    )
    save(part / "ground_truth/dent/000_mask.png", np.zeros((40, 60), dtype=np.uint8))
    save(part / "ground_truth/dent/002_mask.png", np.zeros((40, 60), dtype=np.uint8))
    if folder.lower().startswith("ground"):
        fails(part, "is not read: rename it to ground_truth")
    else:
        assert len(pk.load_category(part.parent, "part").test) == 3  # all have theirs


@pytest.mark.parametrize("folder", ["Test", "TRAIN"])
def test_other_spellings_of_the_folders_are_refused(part, folder):
    (part / folder.lower()).rename(part / folder)
    assert pk.list_categories(part.parent) == ["part"]
    fails(part, rf"{folder} is not read: rename it to {folder.lower()}")


def test_masks_among_the_defects_are_refused(part, noise):
    save(part / "test/label/000.png", noise)  # which may be missing from a part: a defect
    assert pk.load_category(part.parent, "part").test[-1].defect == "label"
    save(part / "test/masks/000.png", noise)
    fails(part, "test/masks would count as a defect, but seems to hold masks")
    save(part / "ground_truth/masks/000_mask.png", np.zeros((40, 60), dtype=np.uint8))  # then it is one
    assert pk.load_category(part.parent, "part").test[-1].defect == "masks"


def test_folders_that_differ_in_case_only(part, noise):
    for folder, value in (("Scratch", 1), ("scratch", 2)):
        save(part / "test" / folder / "000.png", noise)
        save(part / "ground_truth" / folder / "000_mask.png", np.full((40, 60), value, dtype=np.uint8))
    masks = {s.defect: s.mask_path for s in pk.load_category(part.parent, "part").test}
    for folder in ("Scratch", "scratch"):
        assert masks[folder] == part / "ground_truth" / folder / "000_mask.png"
    (part / "ground_truth/scratch/000_mask.png").unlink()
    masks = {s.defect: s.mask_path for s in pk.load_category(part.parent, "part").test}
    assert masks["scratch"] is None and masks["Scratch"] == part / "ground_truth/Scratch/000_mask.png"
    save(part / "ground_truth/scratch/000_mask.png", np.zeros((40, 60), dtype=np.uint8))
    (part / "test/Scratch/000.png").unlink()
    (part / "test/Scratch").rmdir()
    fails(part, "masks in .*ground_truth/Scratch have no images")


def test_loose_masks_are_refused(part):
    (part / "ground_truth/dent/000_mask.png").rename(part / "ground_truth/000_mask.png")
    fails(part, r"the mask .*ground_truth/000_mask.png is not read: move it to .*ground_truth/<defect>")


@pytest.mark.parametrize(
    "place", ["test/dent/000.json", "annotations/instances.json", "ground_truth/_coco.json", "a.json"]
)
@pytest.mark.parametrize("content", ['{"version": "5.2", "shapes": []}', '{"annotations": [{"segmentation": []}]}'])
def test_outlines_are_refused_where_masks_are_missing(part, content, place):
    (part / place).parent.mkdir(exist_ok=True)
    (part / place).write_text(content)
    assert len(pk.load_category(part.parent, "part").test) == 3
    (part / "ground_truth/dent/000_mask.png").unlink()
    fails(part, rf"the outlines in .*{place} are not read: export them as images")
    (part / place).write_text('{"camera": 3}')
    assert len(pk.load_category(part.parent, "part").test) == 3


def test_what_lies_beside_is_told(part, noise, caplog):
    save(part / "validation/good/000.png", noise)
    save(part / "overview.jpg", noise)
    save(part / "ground_truth/legend.png", noise)
    (part / "notes").mkdir()
    (part / "readme.txt").touch()
    pk.load_category(part.parent, "part")
    assert caplog.messages == [
        f"{part / 'ground_truth/legend.png'} (and 2 more): left out: of a category, the folders in train, test and "
        "ground_truth are read"
    ]


def test_masks_of_loco(part, noise):
    """A folder of masks for each image, one for each defect; a validation folder beside."""
    folder = part / "ground_truth" / "dent"
    for name in ("000", "002"):
        (folder / f"{name}_mask.png").unlink()
        for number in range(2):
            save(folder / name / f"00{number}.png", np.eye(40, 60, number, dtype=np.uint8) * (255 - number))
    (part / "defects_config.json").write_text('[{"defect_name": "dent", "pixel_value": 255}]')
    first, *_ = samples = pk.load_category(part.parent, "part").test
    assert [s.mask_path and s.mask_path.name for s in samples] == ["000", "002", None]
    assert Transform((40, 60)).mask(first).sum() == 80
    assert pk.load_category(part.parent, "part").table()["masks"].tolist() == [2, 0, 0]
    save(folder / "000/002.png", np.zeros((40, 61), dtype=np.uint8))
    fails(part, "000/002.png is 61x40 but its image .*000.png is 60x40")
    (folder / "000/002.png").unlink()
    save(folder / "000_mask.png", np.zeros((40, 60), dtype=np.uint8))
    fails(part, "are both masks of .*000.png: remove one of them")
    (folder / "000_mask.png").unlink()
    (folder / "000").rename(folder / "007")
    fails(part, "mask .*007 has no image 007")


@pytest.mark.parametrize("mask", ["000_MASK.PNG", "000_gt.png", "000.png", "000_Ground_Truth.bmp", "000-label.tif"])
def test_how_masks_may_be_named(part, mask):
    (part / "ground_truth/dent/000_mask.png").unlink()
    path = save(part / "ground_truth/dent" / mask, np.zeros((40, 60), dtype=np.uint8))
    assert pk.load_category(part.parent, "part").test[0].mask_path == path


def test_names_in_other_cases_and_forms_of_unicode(part, noise):
    decomposed, composed = "a\u0308", "\u00e4"
    save(part / f"test/dent/K{decomposed}fer.PNG", noise)
    (part / "ground_truth/dent").rename(part / "ground_truth/Dent")
    mask = save(part / f"ground_truth/Dent/k{composed}fer_mask.png", np.zeros((40, 60), dtype=np.uint8))
    assert mask in [s.mask_path for s in pk.load_category(part.parent, "part").test]


def test_the_rule_is_in_the_sentence(part):
    save(part / "ground_truth/dent/000x.png", np.zeros((40, 60), dtype=np.uint8))
    fails(part, "has no image 000x in .*; a mask is named as its image, or with _mask, _gt, _label or _seg behind")


def test_two_images_that_could_share_a_mask(part, noise):
    save(part / "test/dent/000.jpg", noise)
    fails(part, "000_mask.png could be of 000.jpg or 000.png: give those images different names")
    (part / "test/dent/000.jpg").unlink()
    for name in ("test/dent/a.png", "test/dent/A.png", "ground_truth/dent/a_mask.png", "ground_truth/dent/A_mask.png"):
        save(part / name, noise[..., 0] * 0 if "mask" in name else noise)
    masks = {s.path.name: s.mask_path.name for s in pk.load_category(part.parent, "part").test if s.mask_path}
    assert masks["a.png"] == "a_mask.png" and masks["A.png"] == "A_mask.png"


def test_what_servers_leave_is_not_looked_at(part, noise):
    for name in ("@eaDir/x/000.png", "train/good/@eaDir/000.png", "test/__MACOSX/000.png", "ground_truth/@eaDir/a.png"):
        save(part / name, noise)
    save(part.parent / "@eaDir/train/good/000.png", noise)
    assert pk.list_categories(part.parent) == ["part"]
    assert len(pk.load_category(part.parent, "part").test) == 3


def test_a_category_in_the_place_of_the_data(part):
    with pytest.raises(
        pk.DataError, match=r"no category 'part' in .*: it is a category itself, give '.*root' and 'part'"
    ):
        pk.load_category(part, "part")


def test_the_home_folder(part, monkeypatch):
    monkeypatch.setenv("HOME", str(part.parent.parent))
    assert len(pk.load_category("~/root", "part").train) == len(pk.load_folder("~/root/part/train/good")) == 1
    assert as_samples("~/root/part/train/good/000.png")[0].path == part / "train/good/000.png"
    assert read_rgb("~/root/part/train/good/000.png").size == read_mask("~/root/part/test/good/000.png").size
    monkeypatch.setenv("MVTEC_ROOT", "~/root")
    assert pk.find_data() == part.parent


@pytest.mark.parametrize("layout", ["mvtec", "visa", "loco", "capitals"])
def test_what_is_right_needs_no_word(tmp_path, noise, layout, caplog):
    kinds = {"mvtec": ("bent", "cut"), "visa": ("bad",), "loco": ("logical_anomalies", "structural_anomalies")}
    suffix = ".JPG" if layout in ("visa", "capitals") else ".png"
    options = {"format": "JPEG"} if suffix == ".JPG" else {}
    for i in range(3):
        for kind in ("train/good", "test/good", *(f"test/{kind}" for kind in kinds.get(layout, ("bad",)))):
            save(tmp_path / f"part/{kind}/{i:03}{suffix}", noise, **options)
        for kind in kinds.get(layout, ("bad",)):
            name = {"loco": f"{i:03}/000.png", "visa": f"{i:03}.png"}.get(layout, f"{i:03}_mask.png")
            save(tmp_path / f"part/ground_truth/{kind}/{name}", np.eye(40, 60, dtype=np.uint8) * 255)
    (tmp_path / "part/license.txt").write_text("text")
    category = pk.load_category(tmp_path, "part")
    assert len(category.train) == 3 and len(category.test) == 3 + 3 * len(kinds.get(layout, ("bad",)))
    assert all((s.mask_path is not None) == (s.label == 1) for s in category.test)
    assert caplog.messages == []


def test_real_data_needs_no_word(mvtec, surface, caplog):
    for root in (mvtec, surface):
        for name in pk.list_categories(root):
            pk.load_category(root, name)
    assert caplog.messages == []


def test_pil_images_that_are_only_opened_are_read_from_their_bytes(tmp_path, noise):
    """Pillow itself keeps half of 16-bit colours, and of a TIFF's pixels not what they mean."""
    inverted = tmp_path / "inverted.tif"
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(inverted, tiffinfo={262: 0})
    wanted = np.asarray(read_rgb(inverted))
    assert (wanted == 255 - noise[..., :1]).all()
    stream = io.BytesIO(inverted.read_bytes())
    image = Image.open(stream)
    (sample,) = as_samples(image)
    assert (Transform((40, 60)).image(sample) == wanted).all()
    assert image.size == (60, 40) and np.asarray(image).shape == (40, 60)  # and it can still be used
    (sample,) = as_samples(image)  # now it is loaded
    assert (Transform((40, 60)).image(sample) == wanted).all()


def test_pil_images_that_cannot_be_read_any_more(tmp_path, noise):
    path = save(tmp_path / "a.png", noise)
    with path.open("rb") as file:
        closed = Image.open(file)
    with pytest.raises(pk.DataError, match="frame 0 was closed before it was read: load it first, or give its path"):
        as_samples([closed])
    loaded = Image.open(path)
    loaded.load()
    loaded.close()
    (sample,) = as_samples([loaded])
    with pytest.raises(pk.DataError, match="cannot read image frame 0"):
        Transform((40, 60)).image(sample)
    (sample,) = as_samples(Image.open(io.BytesIO(path.read_bytes()[:2000])))
    with pytest.raises(pk.DataError, match="cannot read image frame 0"):
        Transform((40, 60)).image(sample)

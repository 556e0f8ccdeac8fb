"""Folders -> a Category of Samples, or images of any kind -> Samples; what cannot be right is refused, with the reason.

The layout is MVTec AD's, and every folder like it:

    ROOT/CATEGORY/train/good/000.png              what normal looks like
    ROOT/CATEGORY/test/good/000.png
    ROOT/CATEGORY/test/<defect>/000.png           may be missing: then there is nothing to evaluate
    ROOT/CATEGORY/ground_truth/<defect>/000_mask.png   may be missing: then there are image metrics only

or ground_truth/<defect>/000/, a folder of masks for each image, as MVTec LOCO has them.
"""

import difflib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from patchcore_kit.errors import DataError, SettingsError
from patchcore_kit.files import printable, user_path, work_folder
from patchcore_kit.folders import (
    GOOD,
    MASK_ENDING,
    MASKS,
    NO_DEFECTS,
    PUT_IMAGES,
    first_image,
    folded,
    letters,
    listing,
    scan,
    scan_images,
    subfolders,
)
from patchcore_kit.images import Frame, check_frame, is_frame, read_header, read_rgb
from patchcore_kit.masks import mask_files, read_mask
from patchcore_kit.notes import Notes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_mask", "read_rgb"]  # callers find them here


def find_data() -> Path | None:
    """The MVTec AD folder, found without configuration and with categories in it, or None.

    Looked for in `$MVTEC_ROOT`, then in the work folder as `data/mvtec_anomaly_detection` and
    `mvtec_anomaly_detection`.
    """
    work = work_folder()
    places = [work / "data" / "mvtec_anomaly_detection", work / "mvtec_anomaly_detection"]
    if os.environ.get("MVTEC_ROOT"):
        places.insert(0, user_path(os.environ["MVTEC_ROOT"]))
    return next((place for place in places if place.is_dir() and list_categories(place)), None)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image: its name within the category, its file, its mask's file and what it shows.

    name: on one line and in UTF-8, also where the file's is not (see `files.printable`).
    mask_path: a file, or a folder of files that make up the mask. frame: the image itself, where it lies in no file;
    then `path` is None.
    """

    name: str
    path: Path | None
    mask_path: Path | None = None
    defect: str | None = "good"
    frame: Frame | None = field(default=None, repr=False, compare=False)

    @property
    def label(self) -> int:
        """1 = defective, 0 = good, -1 = unknown (`defect` is None)."""
        return -1 if self.defect is None else int(self.defect != "good")

    @property
    def source(self) -> Path | Frame:
        """Where the image is read from."""
        return self.path if self.frame is None else self.frame

    @property
    def where(self) -> str:
        """What to call the image in messages: its file, or its name."""
        return str(self.path if self.frame is None else self.name)


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of part: good images to learn from, and images to test."""

    name: str
    path: Path
    train: list[Sample]
    test: list[Sample]

    def __repr__(self) -> str:
        return f"Category({self.name!r}, {len(self.train)} training images, {len(self.test)} test images)"

    def table(self) -> "pd.DataFrame":
        """Numbers of images and masks of each kind, in training and test."""
        import pandas as pd  # half a second that a first verdict need not wait for

        rows = [
            (split, sample.defect or "unknown", 1, int(sample.mask_path is not None))
            for split, samples in (("train", self.train), ("test", self.test))
            for sample in samples
        ]
        return pd.DataFrame(rows, columns=["split", "defect", "images", "masks"]).groupby(["split", "defect"]).sum()


def list_categories(root: Path | str) -> list[str]:
    """Names of the categories in a data folder: every sub-folder that has `train` or `test`, in any case.

    Raises DataError if there is no such folder.
    """
    root = user_path(root)
    with listing(root):
        if not root.is_dir():
            raise DataError(f"no data folder {root}: copy the data set there, or name the folder that holds it")
        return [folder.name for folder in subfolders(root) if is_category(folder)]


def is_category(folder: Path) -> bool:
    """Whether a folder has `train` or `test`."""
    return any(folded(below.name) in ("train", "test") and below.is_dir() for below in folder.iterdir())


def load_category(root: Path | str, name: str) -> Category:
    """List the images of ROOT/NAME, pair masks with them by name and check that their sizes agree.

    Names are compared in any case and in one form of Unicode. A mask is named as its image, or with `_mask`, `_gt`,
    `_label` or `_seg` behind; or it is a folder of that name.

    Raises DataError for a missing or empty folder, images where none are read, masks among the images or where none
    are read, good images under another name than `good`, broken links, an image whose header cannot be read, a mask
    without an image, and a mask of another size than its image.
    """
    root, name = user_path(root), str(name)
    names = list_categories(root)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        if close:
            hint = f"did you mean {close[0]!r}?"
        elif is_category(root):
            hint = f"it is a category itself, give {str(root.absolute().parent)!r} and {root.absolute().name!r}"
        else:
            hint = f"categories found: {', '.join(names) or 'none'}"
        raise DataError(f"no category {name!r} in {root}: {hint}")
    path = root / name
    notes = Notes()
    with listing(path):
        category = Category(printable(name), path, train_samples(path, notes), test_samples(path, notes))
        check_beside(category, notes)
    if not category.train and not category.test:
        raise DataError(f"no images in {path / 'train' / 'good'} or {path / 'test'}: {PUT_IMAGES}")
    for sample in category.test:
        _check_sizes(sample)
    notes.tell()
    return category


def train_samples(category: Path, notes: Notes) -> list[Sample]:
    """Good images, in `train/good` or loose in `train`.

    Raises DataError for images in another folder there, which may be defective and would be learnt as good ones.
    """
    folder = category / "train"
    if not folder.is_dir():
        return []
    images, kinds = scan_images(folder, notes)
    samples = [Sample(printable(f"train/{path.name}"), path) for path in images]
    for kind in kinds:
        images = _kind(kind, notes)
        if images and kind.name != "good":
            raise DataError(
                f"{kind} holds images, but only good ones are learnt: move them to "
                f"{folder / 'good'}, or elsewhere if they are defective"
            )
        samples += [Sample(printable(f"train/good/{path.name}"), path) for path in images]
    return samples


def _kind(folder: Path, notes: Notes) -> list[Path]:
    """The images of one kind. Raises DataError for images in folders below, however deep, which would be left out."""
    images, folders = scan_images(folder, notes)
    deep = next(filter(None, map(first_image, folders)), None)
    if deep:
        raise DataError(f"{deep.parent} holds images too deep to be read: move them up to {folder}")
    return images


def test_samples(category: Path, notes: Notes) -> list[Sample]:
    """Images by defect and name, with their masks; those outside any sub-folder are of unknown label.

    Raises DataError for a folder that seems to hold good images or masks and would count as a defect.
    """
    folder = category / "test"
    if not folder.is_dir():
        return []
    images, kinds = scan_images(folder, notes)
    samples = [Sample(printable(f"test/{path.name}"), path, None, None) for path in images]
    masks = _mask_folders(category, kinds)
    for kind in kinds:
        images = _kind(kind, notes)
        if images and kind.name != "good" and letters(kind.name) in GOOD:
            raise DataError(
                f"{kind} would count as a defect, but seems to hold good images: rename it to {folder / 'good'}"
            )
        if images and letters(kind.name) in NO_DEFECTS and kind not in masks:
            raise DataError(
                f"{kind} would count as a defect, but seems to hold masks: move them to "
                f"{category / 'ground_truth'}/<defect>, or elsewhere"
            )
        of = _masks(kind, images, masks[kind], notes) if kind in masks else {}
        defect = printable(kind.name)
        samples += [Sample(printable(f"test/{kind.name}/{path.name}"), path, of.get(path), defect) for path in images]
    return samples


def _mask_folders(category: Path, kinds: list[Path]) -> dict[Path, Path]:
    """Folder of a kind of test image -> folder of its masks. Raises DataError for masks without images."""
    masked_kinds = subfolders(category / "ground_truth") if (category / "ground_truth").is_dir() else []
    exact = {kind.name: kind for kind in kinds}
    loose = {folded(kind.name): kind for kind in kinds if kind.name not in {masked.name for masked in masked_kinds}}
    folders: dict[Path, Path] = {}
    for masked in masked_kinds:
        kind = exact.get(masked.name) or loose.get(folded(masked.name))
        if kind and kind not in folders:
            folders[kind] = masked
        elif first_image(masked):
            raise DataError(f"masks in {masked} have no images: add {category / 'test' / masked.name} or remove them")
    return folders


def _masks(kind: Path, images: list[Path], folder: Path, notes: Notes) -> dict[Path, Path]:
    """Image -> its mask: a file, or a folder of files. Raises DataError where it is not certain which is whose."""
    by_key = defaultdict(list)
    for image in images:
        by_key[folded(image.stem)].append(image)
    files, folders = scan(folder, notes)
    masks: dict[Path, Path] = {}
    for mask in files + [below for below in folders if first_image(below)]:
        name = mask.name if mask in folders else mask.stem
        key = folded(name)
        of = by_key.get(key) or by_key.get(MASK_ENDING.sub("", key), [])
        if len(of) > 1:  # of names that differ in case only, the very same
            of = [image for image in of if name.startswith(image.stem)] if len({i.stem for i in of}) > 1 else of
        if not of:
            raise DataError(
                f"mask {mask} has no image {MASK_ENDING.sub('', key)} in {kind}: add it or remove the mask; a mask is "
                "named as its image, or with _mask, _gt, _label or _seg behind"
            )
        if len(of) > 1:
            raise DataError(f"mask {mask} could be of {of[0].name} or {of[1].name}: give those images different names")
        if of[0] in masks:
            raise DataError(f"{masks[of[0]]} and {mask} are both masks of {of[0]}: remove one of them")
        masks[of[0]] = mask
    return masks


def check_beside(category: Category, notes: Notes) -> None:
    """What lies beside train, test and ground_truth: refused if it is one of them misspelt, or masks, else noted.

    Masks are refused only where images lack theirs.
    """
    read = [category.path / name for name in ("train", "test", "ground_truth")]
    unmasked = next((sample for sample in category.test if sample.label == 1 and not sample.mask_path), None)
    layout = f"{read[2]}/<defect>/<image>_mask.png"
    left_out, folders = scan(category.path, notes)
    for folder in folders:
        same = next((place for place in read if letters(place.name) == letters(folder.name)), None)
        if folder in read or (same and same.exists() and same.samefile(folder)) or not first_image(folder):
            continue
        if same:
            raise DataError(f"{folder} is not read: rename it to {same.name}")
        if letters(folder.name) in MASKS and unmasked:
            raise DataError(f"the masks in {folder} are not read: move them to {layout}")
        left_out.append(folder)
    loose = scan(read[2], notes)[0] if read[2].is_dir() else []
    if loose and unmasked:
        raise DataError(f"the mask {loose[0]} is not read: move it to {layout}")
    for place in left_out + loose:
        notes.add(place, "left out: of a category, the folders in train, test and ground_truth are read")
    if not unmasked:
        return
    for file in (file for depth in ("", "*/", "*/*/") for file in sorted(category.path.glob(f"{depth}*.json"))):
        if file.is_file() and re.search(rb'"(shapes|segmentation)"', file.read_bytes()):  # LabelMe's, COCO's
            raise DataError(
                f"the outlines in {file} are not read: export them as images, {layout}, or move it elsewhere"
            )


def _check_sizes(sample: Sample) -> None:
    """Compare the headers of an image and its mask, so that a wrong pair is found before any work is done."""
    if sample.mask_path is None:
        return
    w, h = read_header(sample.path).size
    for file in mask_files(sample.mask_path):
        mask_w, mask_h = read_header(file).size
        if (mask_w, mask_h) != (w, h):
            raise DataError(
                f"mask {file} is {mask_w}x{mask_h} but its image {sample.path} is {w}x{h}: "
                "export the mask at the image's size"
            )


def category_of(sample: Sample) -> str:
    """The name of the category that `load_category` has found a sample in, "" of any other sample."""
    split, *below = sample.name.split("/")
    if sample.path is None or not below or split not in ("train", "test"):
        return ""
    return sample.path.parents[len(below)].name if sample.path.as_posix().endswith(f"/{sample.name}") else ""


def load_folder(folder: Path | str) -> list[Sample]:
    """The images of one folder, of unknown label: to predict on photographs that nobody has sorted.

    Raises DataError if the folder is missing or has no images, for broken links, and for masks among the images.
    """
    folder, notes = user_path(folder), Notes()
    with listing(folder):
        if not folder.is_dir():
            raise DataError(f"no folder {folder}: name the one that holds the images")
        images, folders = scan_images(folder, notes)
        inside = [below for below in folders if first_image(below)]
        if not images:
            best = min(inside, key=lambda below: (letters(below.name) in MASKS, below.name != "train"), default=None)
            hint = f"name one of its folders, as {first_image(best).parent}" if best else PUT_IMAGES
            raise DataError(f"no images in {folder}: {hint}")
        for below in inside:
            notes.add(below, "a folder of images within the one that is read, which is left out")
    notes.tell()
    return as_samples(images)


def as_samples(images: Path | str | Frame | Iterable[Sample | Path | str | Frame], first: int = 0) -> list[Sample]:
    """Samples as they are; image files, all those of a folder, or frames in memory as samples of unknown label.

    Files are named by their path below the folder that they have in common, frames by their number. A frame is an
    array (H, W) or (H, W, 3) of uint8 or uint16, in RGB order, or a PIL image; so an array (N, H, W, 3) is N frames.
    Whatever is iterable is read to its end. first: number of the first frame.

    Raises DataError for a folder without images and arrays of other kinds, SettingsError for anything else.
    """
    if isinstance(images, str | Path):
        path = user_path(images)
        return load_folder(path) if path.is_dir() else as_samples([path])
    if isinstance(images, Sample) or is_frame(images):
        images = [images]
    listed = isinstance(images, Iterable) and not isinstance(images, Mapping) and getattr(images, "ndim", 1) > 0
    things = [_on_disk(image) for image in images] if listed else [None]
    if not all(isinstance(thing, Sample | Path | np.ndarray | Image.Image) for thing in things):
        given = " ".join(repr(images).split())
        raise SettingsError(
            f"{given:.60} are no images: give samples (category.train), image files, a folder of them, or frames"
        )
    names = _names([thing for thing in things if isinstance(thing, Path)])
    samples = []
    for number, thing in enumerate(things):
        if isinstance(thing, Path):
            thing = Sample(names[thing], thing, defect=None)
        elif not isinstance(thing, Sample):
            name = f"frame {first + number}"
            thing = Sample(name, None, defect=None, frame=check_frame(thing, name))
        samples.append(thing)
    return samples


def in_blocks(images: Path | str | Frame | Iterable[Sample | Path | str | Frame], most: int) -> Iterator[list[Sample]]:
    """As `as_samples`, but of an iterator over frames at most so many at a time: they may not all fit into memory."""
    if not isinstance(images, Iterator):
        yield as_samples(images)
        return
    number = 0
    while block := list(islice(images, most)):
        if not is_frame(block[0]):
            yield as_samples(chain(block, images))
            return
        yield as_samples(block, number)
        number += len(block)


def _on_disk(image: object) -> object:
    """A path for a text, and for a PIL image that is only opened yet: files are best read in one way."""
    if isinstance(image, Image.Image) and getattr(image, "tile", None) and image.filename and image.tell() == 0:
        return Path(image.filename)
    return user_path(image) if isinstance(image, str | Path) else image


def _names(paths: list[Path]) -> dict[Path, str]:
    """Each path below the folder that all have in common; whole paths where there is none."""
    parents = {path.absolute().parent for path in paths}
    try:
        common = Path(os.path.commonpath(parents)) if parents else Path()
    except ValueError:  # on several drives
        return {path: printable(path.absolute().as_posix()) for path in paths}
    return {path: printable(path.absolute().relative_to(common).as_posix()) for path in paths}

"""Folders -> a Category of Samples -> images (B, 3, H, W) and masks (B, H, W).

The layout is MVTec AD's, and every folder like it:

    ROOT/CATEGORY/train/good/000.png              what normal looks like
    ROOT/CATEGORY/test/good/000.png
    ROOT/CATEGORY/test/<defect>/000.png           may be missing: then there is nothing to evaluate
    ROOT/CATEGORY/ground_truth/<defect>/000_mask.png   may be missing: then there are image metrics only
"""

import difflib
import io
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from patchcore_kit.errors import DataError, SettingsError, whole_number
from patchcore_kit.files import work_folder

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MASK_RULES = ("inside", "nearest")


def find_data() -> Path | None:
    """The MVTec AD folder, found without configuration and with categories in it, or None.

    Looked for in `$MVTEC_ROOT`, then in the work folder as `data/mvtec_anomaly_detection` and
    `mvtec_anomaly_detection`.
    """
    work = work_folder()
    places = [work / "data" / "mvtec_anomaly_detection", work / "mvtec_anomaly_detection"]
    if os.environ.get("MVTEC_ROOT"):
        places.insert(0, Path(os.environ["MVTEC_ROOT"]))
    return next((place for place in places if place.is_dir() and list_categories(place)), None)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image: its name within the category, its file, its mask's file and what it shows."""

    name: str
    path: Path
    mask_path: Path | None = None
    defect: str | None = "good"

    @property
    def label(self) -> int:
        """1 = defective, 0 = good, -1 = unknown (`defect` is None)."""
        return -1 if self.defect is None else int(self.defect != "good")


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of part: good images to learn from, and images to test."""

    name: str
    path: Path
    train: list[Sample]
    test: list[Sample]

    def __repr__(self) -> str:
        return f"Category({self.name!r}, {len(self.train)} training images, {len(self.test)} test images)"

    def table(self) -> pd.DataFrame:
        """Numbers of images and masks of each kind, in training and test."""
        rows = [
            (split, sample.defect or "unknown", 1, int(sample.mask_path is not None))
            for split, samples in (("train", self.train), ("test", self.test))
            for sample in samples
        ]
        return pd.DataFrame(rows, columns=["split", "defect", "images", "masks"]).groupby(["split", "defect"]).sum()


def list_categories(root: Path | str) -> list[str]:
    """Names of the categories in a data folder: every sub-folder that has `train` or `test`.

    Raises DataError if there is no such folder.
    """
    root = Path(root)
    with _listing(root):
        if not root.is_dir():
            raise DataError(f"no data folder {root}: copy the data set there, or name the folder that holds it")
        folders = (p for p in root.iterdir() if not p.name.startswith("."))
        return sorted(p.name for p in folders if (p / "train").is_dir() or (p / "test").is_dir())


def load_category(root: Path | str, name: str) -> Category:
    """List the images of ROOT/NAME, pair masks with them by name and check that their sizes agree.

    Raises DataError for a missing or empty folder, an image whose header cannot be read, a mask without an image,
    and a mask of another size than its image.
    """
    names = list_categories(root)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"categories found: {', '.join(names) or 'none'}"
        raise DataError(f"no category {name!r} in {root}: {hint}")
    path = Path(root) / name
    with _listing(path):
        category = Category(name, path, _split(path, "train"), _split(path, "test"))
    if not category.train and not category.test:
        raise DataError(f"no images in {path / 'train' / 'good'} or {path / 'test'}: {_kinds()}")
    for sample in category.test:
        _check_sizes(sample)
    return category


def load_folder(folder: Path | str) -> list[Sample]:
    """The images of one folder, of unknown label: to predict on photographs that nobody has sorted.

    Raises DataError if the folder is missing or has no images.
    """
    folder = Path(folder)
    with _listing(folder):
        if not folder.is_dir():
            raise DataError(f"no folder {folder}: name the one that holds the images")
        images = _images(folder)
        if not images:
            inside = [p.name for p in folder.iterdir() if p.is_dir() and _images(p)]
            raise DataError(
                f"no images in {folder}: " + (f"name one of its folders, as {inside[0]}" if inside else _kinds())
            )
    return as_samples(images)


def as_samples(images: Path | str | Sequence[Sample | Path | str]) -> list[Sample]:
    """Samples as they are; image files, or all those of a folder, as samples of unknown label.

    Raises DataError for a folder without images, SettingsError for anything else.
    """
    if isinstance(images, str | Path):
        return load_folder(images) if Path(images).is_dir() else as_samples([images])
    if not isinstance(images, Sequence) or not all(isinstance(image, Sample | Path | str) for image in images):
        raise SettingsError(
            f"{images!r:.60} are no images: give samples (category.train), image files, or a folder of them"
        )
    return [
        image if isinstance(image, Sample) else Sample(Path(image).name, Path(image), defect=None) for image in images
    ]


def _kinds() -> str:
    return f"put images there ({', '.join(IMAGE_SUFFIXES)})"


def _images(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def _split(category: Path, split: str) -> list[Sample]:
    """Samples of one split, by defect and name; images outside any sub-folder are good in train, unknown in test.

    Raises DataError for defective images in train, which would be learnt as good ones.
    """
    folder = category / split
    if not folder.is_dir():
        return []
    loose = "good" if split == "train" else None
    samples = [Sample(f"{split}/{path.name}", path, None, loose) for path in _images(folder)]
    kinds = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    for defect in kinds:
        images = _images(folder / defect)
        for below in sorted(p for p in (folder / defect).iterdir() if p.is_dir() and not p.name.startswith(".")):
            if _images(below):
                raise DataError(
                    f"{below} holds images one level too deep to be read: move them up to {folder / defect}"
                )
        masks = _masks(category, defect, images) if split == "test" else {}
        if split == "train" and defect != "good" and images:
            raise DataError(
                f"{folder / defect} holds images, but only good ones are learnt: move them to "
                f"{folder / 'good'}, or elsewhere if they are defective"
            )
        samples += [Sample(f"{split}/{defect}/{p.name}", p, masks.get(p.stem), defect) for p in images]
    if split == "test" and (category / "ground_truth").is_dir():
        for masked in sorted(p for p in (category / "ground_truth").iterdir() if p.is_dir()):
            if masked.name not in kinds and not masked.name.startswith(".") and _images(masked):
                raise DataError(f"masks in {masked} have no images: add {folder / masked.name} or remove the masks")
    return samples


def _masks(category: Path, defect: str, images: list[Path]) -> dict[str, Path]:
    """Image stem -> mask file, for `<stem>_mask.png` and `<stem>.png`."""
    folder = category / "ground_truth" / defect
    stems = {image.stem for image in images}
    masks = {}
    for mask in _images(folder) if folder.is_dir() else []:
        stem = mask.stem if mask.stem in stems else mask.stem.removesuffix("_mask")
        if stem not in stems:
            raise DataError(
                f"mask {mask} has no image {stem} in {category / 'test' / defect}: add it or remove the mask"
            )
        masks[stem] = mask
    return masks


def _check_sizes(sample: Sample) -> None:
    """Compare the headers of an image and its mask, so that a wrong pair is found before any work is done."""
    if sample.mask_path is None:
        return
    sizes = []
    for path in (sample.path, sample.mask_path):
        with _opened(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations that swap width and height
            sizes.append(image.size[::-1] if turned else image.size)
    if sizes[0] != sizes[1]:
        (w, h), (mask_w, mask_h) = sizes
        raise DataError(
            f"mask {sample.mask_path} is {mask_w}x{mask_h} but its image {sample.path} is {w}x{h}: "
            "export the mask at the image's size"
        )


@contextmanager
def _opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow raises, then or while it decodes, becomes a DataError naming the file."""
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"no file {path}: check its name, or list its folder again if it was removed") from None
    # Pillow's decoders raise all of these for files that are damaged, truncated, absurdly large or no images
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read image {path} ({error}): replace it or remove it") from None


@contextmanager
def _listing(folder: Path) -> Iterator[None]:
    """Folders that may not be read become a DataError."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        raise DataError(f"cannot read {place} ({error.strerror or error}): choose a folder that you may read") from None


def read_rgb(path: Path, content: bytes | None = None) -> Image.Image:
    """An image file of any kind -> RGB, upright. content: its bytes, if they have been read already.

    Grey is repeated, alpha is dropped (as the reference does), a palette is looked up, an EXIF rotation applied.
    16-bit grey is divided by 256, always: a stretch by image would hide differences of brightness.

    Raises DataError for a file that is no image, is damaged or truncated, or holds floating-point pixels.
    """
    with _opened(path, content) as image:
        if image.mode == "F":
            raise DataError(f"{path} holds floating-point pixels, whose range is unknown: save it with 8 or 16 bits")
        ImageOps.exif_transpose(image, in_place=True)  # a copy would cost a tenth of the decoding, and so below
        image.load()
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        return image if image.mode == "RGB" else image.convert("RGB")


def read_mask(path: Path) -> Image.Image:
    """A mask file of any kind -> 8-bit grey, 255 = defect.

    Foreground is any index but 0 of a palette, every value but 0 where none is above 127 (masks of 0 and 1), and
    values from 128 on otherwise (masks of 0 and 255, and JPEG's blur around them). A mask of one colour whose shape is
    in its alpha channel is read from there.

    Raises DataError as `read_rgb`.
    """
    with _opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("LA", "RGBA"):
            *colours, alpha = image.split()
            if alpha.getextrema() == (0, 255) and all(low == high for low, high in (c.getextrema() for c in colours)):
                image = alpha
        values = np.asarray(image if image.mode in ("P", "1", "I;16", "I") else image.convert("L"))
        values = values >= 128 if values.max() >= 128 and image.mode != "P" else values > 0
        return Image.fromarray(values.astype(np.uint8) * 255)


@dataclass(frozen=True, slots=True)
class Transform:
    """How an image file becomes network input; the same for its mask.

    resize: an int brings the shorter side to it (bilinear) and cuts the central `imagesize` x `imagesize` square,
        as the reference does; a pair (H, W) resizes to exactly that, without a crop, and `imagesize` is not used.
    mask_rule: "inside" is the reference's: masks are resized bilinearly and a pixel counts if it lies wholly inside;
        published figures use it. "nearest" takes the nearest pixel of the mask file, so thin defects keep their area.

    Raises SettingsError for sizes that cannot work and unknown rules.
    """

    resize: int | tuple[int, int] = 256
    imagesize: int = 224
    mask_rule: str = "inside"

    def __post_init__(self):
        if isinstance(self.resize, list | tuple):
            if len(self.resize) != 2:
                raise SettingsError(f"resize is {self.resize!r}: give a number of pixels or a pair (height, width)")
            object.__setattr__(self, "resize", tuple(whole_number("resize", side, 1) for side in self.resize))
        else:
            object.__setattr__(self, "resize", whole_number("resize", self.resize, 1))
            object.__setattr__(self, "imagesize", whole_number("imagesize", self.imagesize, 1))
            if self.imagesize > self.resize:
                raise SettingsError(
                    f"imagesize {self.imagesize} cannot be cut from images resized to {self.resize}: "
                    "it must be at most resize"
                )
        if self.mask_rule not in MASK_RULES:
            raise SettingsError(f"unknown mask rule {self.mask_rule!r}: there are {', '.join(MASK_RULES)}")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of what comes out."""
        return (self.imagesize, self.imagesize) if isinstance(self.resize, int) else self.resize

    def _fit(self, image: Image.Image, mode: InterpolationMode) -> np.ndarray:
        if isinstance(self.resize, int):
            image = F.center_crop(F.resize(image, self.resize, mode), self.imagesize)
        else:
            image = F.resize(image, self.resize, mode)
        return np.array(image)

    def image(self, sample: Sample, content: bytes | None = None) -> np.ndarray:
        """Read a sample's image, or take its file's bytes: (H, W, 3), uint8. Raises DataError as `read_rgb`."""
        return self._fit(read_rgb(sample.path, content), InterpolationMode.BILINEAR)

    def mask(self, sample: Sample) -> np.ndarray:
        """Read a sample's mask: (H, W), bool, True = defect; all False without a file. Raises DataError."""
        if sample.mask_path is None:
            return np.zeros(self.size, dtype=bool)
        nearest = self.mask_rule == "nearest"
        mode = InterpolationMode.NEAREST if nearest else InterpolationMode.BILINEAR
        return self._fit(read_mask(sample.mask_path), mode) == 255

    def sees_defect(self, sample: Sample) -> bool:
        """Whether any part of a sample's mask, however thin, lies in what the network sees. Raises DataError."""
        return sample.mask_path is not None and self._fit(read_mask(sample.mask_path), InterpolationMode.BILINEAR).any()


DEFAULT_TRANSFORM = Transform()


def normalise(images: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 with ImageNet's mean and deviation, the network's input.

    The memory keeps its order, channels last, which is also the faster one for convolutions.
    """
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    batch = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).to(torch.float32)
    return batch.div_(255).sub_(mean).div_(std)


def load_images(
    samples: Path | str | Sequence[Sample | Path | str], transform: Transform = DEFAULT_TRANSFORM
) -> torch.Tensor:
    """Samples, image files or a folder -> (B, 3, H, W), ready for a backbone or `embed`.

    Raises DataError without images or for one that cannot be read.
    """
    images = [transform.image(sample) for sample in as_samples(samples)]
    if not images:
        raise DataError("no images to load: the list of samples is empty")
    return normalise(np.stack(images))


def read_batches(
    samples: Sequence[Sample], read: Callable[[Sample], np.ndarray], batch_size: int, workers: int | None = None
) -> Iterator[np.ndarray]:
    """Apply `read` to every sample, in threads and two batches ahead, and stack: arrays (up to B, ...), in order.

    Pillow decodes and resizes outside Python's lock, so threads are enough, and they start at once everywhere.
    """
    workers = workers or os.cpu_count()
    with ThreadPoolExecutor(workers, initializer=_give_way) as pool:
        waiting = iter(samples)
        pending = deque(pool.submit(read, sample) for sample in islice(waiting, 2 * batch_size))
        batch = []
        while pending:
            batch.append(pending.popleft().result())
            pending.extend(pool.submit(read, sample) for sample in islice(waiting, 1))
            if len(batch) == batch_size or not pending:
                yield np.stack(batch)
                batch = []


def _give_way() -> None:
    """Let this thread run where the network's threads do not: these wait for each other when one is interrupted."""
    if sys.platform == "linux":  # where each thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)

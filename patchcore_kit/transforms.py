"""Samples -> network input (B, 3, H, W) and masks (B, H, W): read, resized, cut; and maps back onto photographs."""

import math
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch
from PIL import Image

from patchcore_kit.datasets import Sample, as_samples
from patchcore_kit.errors import DataError, SettingsError, check_choice, whole_number
from patchcore_kit.images import Frame, bits_for, largest_value, read_header, read_pixels
from patchcore_kit.masks import read_mask
from patchcore_kit.notes import Notes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MASK_RULES = ("inside", "nearest")
# Of an image resized as a whole, 130 MB, before its middle is cut out: at 256 pixels one of 512:1 has as many, at 1024
# one of 32:1, and one of 3:2 from 4700 pixels on. Of more only the middle is resized.
MOST_PIXELS = 2**25
SQUEEZED = 0.1  # by which sides may be out of proportion, as a share, without a word
AHEAD = 2  # batches that are read before they are needed
SHARE_SEEN = 0.7  # of an image; the usual crop of a square leaves 0.77


@dataclass(frozen=True, slots=True)
class Transform:
    """How an image file becomes network input; the same for its mask.

    resize: an int brings the shorter side to it (bilinear) and cuts the central `imagesize` x `imagesize` square,
        as the reference does; a pair (H, W) resizes to exactly that, without a crop, and `imagesize` is not used.
    bits: that images of more than 8 bits have, from 8 to 32; None: not known (see `read_rgb`).
    mask_rule: "inside" is the reference's: masks are resized bilinearly and a pixel counts if it lies wholly inside;
        published figures use it. "nearest" takes the nearest pixel of the mask file, so thin defects keep their area.

    Raises SettingsError for sizes that cannot work and unknown rules.
    """

    resize: int | tuple[int, int] = 256
    imagesize: int = 224
    mask_rule: str = "inside"
    bits: int | None = None

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
        if self.bits is not None:
            object.__setattr__(self, "bits", whole_number("bits", self.bits, 8, 32))
        check_choice("mask rule", self.mask_rule, MASK_RULES)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of what comes out."""
        return (self.imagesize, self.imagesize) if isinstance(self.resize, int) else self.resize

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of an image as it is shown -> (H, W) before the crop, as torchvision rounds it."""
        if not isinstance(self.resize, int):
            return self.resize
        short, long = min(size), int(self.resize * max(size) / min(size))
        return (self.resize, long) if size[0] == short else (long, self.resize)

    def seen(self, size: tuple[int, int]) -> float:
        """The share of an image of (H, W) that is left after the crop."""
        height, width = self.resized(size)
        return self.size[0] * self.size[1] / (height * width)

    def whole(self, size: tuple[int, int]) -> tuple[int, int]:
        """The `resize` that shows all of an image of (H, W), its shorter side as long as before, without a crop."""
        if not isinstance(self.resize, int):
            return self.resize
        return tuple(round(side * self.resize / min(size)) for side in size)

    def place(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Lay a map (h, w), or a mask, onto its photograph of (H, W) as shown: (H, W) float32, NaN outside the crop.

        Between the values of the map it is interpolated linearly. Raises SettingsError for a map that is not of this
        transform's size.
        """
        values, size = np.asarray(values), tuple(size) if isinstance(size, list | tuple) else (size,)
        if len(size) != 2:
            raise SettingsError(f"size is {size!r}: give the photograph's height and width as it is shown")
        size = tuple(whole_number("a side of the photograph", side, 1) for side in size)
        if values.shape != self.size:
            raise SettingsError(
                f"the map is of {values.shape}, not of {self.size}: give it one that was made with this"
            )
        places, offsets, scales = [], [], []
        resized = self.resized(size)
        for pixels, whole, start in zip(size, resized, _corner(resized, self.size), strict=True):
            scales.append(whole / pixels)
            offsets.append(0.5 * scales[-1] - 0.5 - start)
            places.append(np.arange(pixels) * scales[-1] + offsets[-1])
        down, across = ((at >= -0.5) & (at < cut - 0.5) for at, cut in zip(places, self.size, strict=True))
        laid = scipy.ndimage.affine_transform(
            values.astype(np.float32), scales, offsets, size, order=1, mode="nearest", output=np.float32
        )
        laid[~(down[:, None] & across)] = np.nan
        return laid

    def _fit(self, image: Image.Image, filter: Image.Resampling) -> Image.Image:
        """As torchvision's `Resize` and `CenterCrop`, which takes two seconds longer to import than Pillow."""
        whole = self.resized(image.size[::-1])
        if isinstance(self.resize, int) and math.prod(whole) > MOST_PIXELS:
            return _resized_middle(image, whole, self.size, filter)
        top, left = _corner(whole, self.size)
        return image.resize(whole[::-1], filter).crop((left, top, left + self.size[1], top + self.size[0]))

    def image(self, sample: Sample, content: bytes | None = None, notes: Notes | None = None) -> np.ndarray:
        """Read a sample's image, or take its file's bytes: (H, W, 3), uint8. Raises DataError as `read_rgb`."""
        frame = sample.source
        colours = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape[2:] == (3,)
        if colours and self.resized(frame.shape[:2]) == frame.shape[:2]:
            top, left = _corner(frame.shape[:2], self.size)
            return frame[top : top + self.size[0], left : left + self.size[1]].copy()  # as it needs no resize
        image = read_pixels(sample.source, content, bits=self.bits, notes=notes, name=sample.where)
        return np.array(self._fit(image, Image.Resampling.BILINEAR).convert("RGB"))

    def mask(self, sample: Sample) -> np.ndarray:
        """Read a sample's mask: (H, W), bool, True = defect; all False without a file. Raises DataError."""
        if sample.mask_path is None:
            return np.zeros(self.size, dtype=bool)
        filter = Image.Resampling.NEAREST if self.mask_rule == "nearest" else Image.Resampling.BILINEAR
        return np.asarray(self._fit(read_mask(sample.mask_path), filter)) == 255

    def sees_defect(self, sample: Sample) -> bool:
        """Whether any part of a sample's mask, however thin, lies in what the network sees. Raises DataError."""
        if sample.mask_path is None:
            return False
        return self._fit(read_mask(sample.mask_path), Image.Resampling.BILINEAR).getbbox() is not None


def _corner(whole: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Where, down and across, the middle of (H, W) `size` begins in an image of (H, W), as torchvision rounds it."""
    return tuple(round((pixels - side) / 2) for pixels, side in zip(whole, size, strict=True))


def _resized_middle(
    image: Image.Image, whole: tuple[int, int], size: tuple[int, int], filter: Image.Resampling
) -> Image.Image:
    """The middle, of (H, W) `size`, of what resizing all of an image to (H, W) `whole` would give, and no more.

    Cut out beforehand is what these pixels are made of and a margin, so that its edge has no part in them.
    """
    cuts, box = [], []
    for pixels, resized, side, start in zip(image.size[::-1], whole, size, _corner(whole, size), strict=True):
        scale = pixels / resized
        low, high = start * scale, (start + side) * scale
        margin = 2 + math.ceil(2 * scale)
        cut = max(0, math.floor(low) - margin), min(pixels, math.ceil(high) + margin)
        cuts.append(cut)
        box.append((low - cut[0], min(high, pixels) - cut[0]))
    (top, bottom), (left, right) = cuts
    return image.crop((left, top, right, bottom)).resize(
        size[::-1], filter, (box[1][0], box[0][0], box[1][1], box[0][1])
    )


DEFAULT_TRANSFORM = Transform()


def whole_resize(
    samples: Sequence[Sample], side: int | None = 256, *, multiple: int = 8, longest: int = 1024
) -> tuple[int, int]:
    """The `resize` (H, W) that shows whole photographs with their sides in proportion, by what most of them are like.

    side: of the shorter one, in pixels, less where the longer one would exceed `longest`; None: as large as they are.
    multiple: that both sides are rounded to, as networks of fixed patches need it. Photographs of other proportions are
    squeezed, which is told.
    Raises DataError without images or for one that cannot be read.
    """
    if not samples:
        raise DataError("no images to take the size of: the list of samples is empty")
    shapes = [tuple(read_header(sample.source, sample.where).size[::-1]) for sample in samples]
    height, width = Counter(shapes).most_common(1)[0][0]
    scale = 1.0 if side is None else min(side / min(height, width), longest / max(height, width))
    resize = tuple(max(multiple, round(pixels * scale / multiple) * multiple) for pixels in (height, width))
    notes = Notes()
    for sample, (h, w) in zip(samples, shapes, strict=True):
        if abs(math.log(h * width / (w * height))) > SQUEEZED:
            notes.add(
                sample.where, f"is {w}x{h}, most are {width}x{height}: squeezed into their proportions", "squeezed"
            )
    notes.tell()
    return resize


def look_over(
    samples: Sequence[Sample], transform: Transform, notes: Notes, *, learn: bool
) -> tuple[Transform, np.ndarray]:
    """Note, from the headers of all images and before any work, what of them will not be seen.

    learn: whether they are a data set to learn from; then the transform that is returned knows how many bits its
    images of more than 8 bits have, by the largest value in all of them, if it does not yet. Also returns the images'
    (N, 2) heights and widths as they are shown.
    Raises DataError for an image that cannot be read.
    """
    headers = [(sample, read_header(sample.source, sample.where)) for sample in samples]
    sizes = np.array([header.size[::-1] for _, header in headers], dtype=np.int64).reshape(-1, 2)
    for sample, header in headers:
        if header.pages > 1:
            notes.add(sample.where, f"of its {header.pages} pages the first is read", "pages")
        if header.alpha:
            notes.add(sample.where, "its alpha channel is left out, so the colours beneath what is transparent count")
        width, height = header.size
        share = transform.seen((height, width))
        if share < SHARE_SEEN:
            whole = transform.whole((height, width))
            shown = f"resize={whole}, on the command line {whole[0]}x{whole[1]}, shows it all"
            notes.add(
                sample.where,
                f"of its {width}x{height} pixels the network sees {share:.0%}, the central square: "
                f"{shown if whole[0] * whole[1] <= MOST_PIXELS else 'cut it into pieces to see more'}",
                "crop",
                share,
            )
    deep = [(sample, header.bits) for sample, header in headers if header.bits > 8]
    if not deep or transform.bits is not None:
        return transform, sizes
    if not learn:
        for sample, _ in deep:
            notes.add(sample.where, "has more than 8 bits, but none were learnt from: 65535 is taken as white")
        return transform, sizes
    largest = _largest_value(deep)
    transform = replace(transform, bits=bits_for(largest))
    if transform.bits != 16:
        notes.add(
            deep[0][0].where,
            f"of {len(deep)} images of more than 8 bits {largest} is the largest value, so {transform.bits} bits are "
            f"assumed and {2**transform.bits - 1} is white: bits=... says it outright",
        )
    return transform, sizes


def _largest_value(deep: Sequence[tuple[Sample, int]]) -> int:
    """The largest value of images of more than 8 bits; of the first ones, if these need all of 16 bits already."""
    largest, most = 0, max(bits for _, bits in deep)
    for values in read_batches(
        [sample for sample, _ in deep], lambda sample: largest_value(sample.source, sample.where), 8
    ):
        largest = max(largest, int(values.max()))
        if most == 16 and bits_for(largest) == 16:
            break
    return largest


def normalise(images: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 with ImageNet's mean and deviation, the network's input.

    The memory keeps its order, channels last, which is also the faster one for a CPU's convolutions.
    """
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    batch = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).to(torch.float32)
    return batch.div_(255).sub_(mean).div_(std)


def load_images(
    samples: Path | str | Frame | Iterable[Sample | Path | str | Frame], transform: Transform = DEFAULT_TRANSFORM
) -> torch.Tensor:
    """Samples, image files, a folder or frames -> (B, 3, H, W), ready for a backbone or `embed`.

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

    Pillow decodes and resizes outside Python's lock, so threads are enough, and they start at once everywhere. One more
    stacks: where many threads want that lock, a thread that lets go of it often, as copying does, waits for it long.
    """

    def stacked(images: Sequence[Future[np.ndarray]]) -> np.ndarray:
        return np.stack([image.result() for image in images])

    with (
        ThreadPoolExecutor(workers or os.cpu_count(), initializer=_give_way) as pool,
        ThreadPoolExecutor(1, initializer=_give_way) as stacker,
    ):
        pending = deque()
        for start in range(0, len(samples), batch_size):
            images = [pool.submit(read, sample) for sample in samples[start : start + batch_size]]
            pending.append(stacker.submit(stacked, images))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _give_way() -> None:
    """Let this thread run where the network's threads do not: these wait for each other when one is interrupted."""
    if sys.platform == "linux":  # where each thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)

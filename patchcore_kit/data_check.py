"""A folder of photographs -> what should be mended before a model is made. Every file is read, none is changed.

Loading a folder stops at the first fault; this goes on and lists them all, and what no file shows by itself: the same
picture twice, or in training and in test, and photographs that are unlike all others.
"""

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.ndimage
import scipy.spatial
from PIL import Image
from PIL.Image import Resampling
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from patchcore_kit import datasets
from patchcore_kit.calibration import FEWEST, SURE, Threshold
from patchcore_kit.datasets import Category, Sample
from patchcore_kit.errors import DataError
from patchcore_kit.files import user_path
from patchcore_kit.folders import (
    GOOD,
    MASK_ENDING,
    PUT_IMAGES,
    UNREAD_SUFFIXES,
    folded,
    is_litter,
    letters,
    listing,
    scan_images,
)
from patchcore_kit.images import IMAGE_SUFFIXES, Header, bits_for, check_file, largest_value, read_header, read_rgb
from patchcore_kit.masks import read_mask
from patchcore_kit.notes import Notes

KINDS = {  # in this order
    "unreadable": "cannot be read",
    "folders": "not where it is looked for",
    "train and test": "in training and in test, which makes test figures too good",
    "double": "the same picture again",
    "size": "of another size",
    "brightness": "of another brightness",
    "sharpness": "of another sharpness",
    "colour": "of another colour",
    "mask": "masks that do not fit",
    "left out": "left out, or taken for something else",
    "format": "read, but not all that the file holds",
    "few": "few good images",
    "unsorted": "not sorted into good and defective",
}
SHOWN = 5  # files of a kind
RATE = 0.05  # of false alarms, the kit's default
DEEPEST = 8  # folders in folders, where links may go round
SIDE = 256  # to which a picture's shorter side is reduced, about what the network sees
NEARLY_ALL = 0.9  # of an image, which a mask seldom covers

# Doubles, in grey levels of 255: see docs/data.md. 32x32 signatures choose the pairs. Then pictures are subtracted and
# smoothed: of copies up to 7 are left at the worst place, of two bottles 17 or more, and of a spot 6 pixels wide and 40
# levels deep 23. Their fine structure must go together too, as even surfaces differ in nothing else: 0.87 in copies.
SIGNATURE = 32
NEAR = 2.0  # root mean square between signatures: of copies up to 1.6, of two bottles from 1.8 on
RESIDUAL = 11.0
TOGETHER = 0.8  # correlation
SHAPE = 0.03  # of the logarithm of width / height, which is rounded

# Odd ones out: beyond WIDE deviations, and beyond these differences, in the order of `_Picture.looks`. Good bottles
# differ by up to 0.02, 0.21, 0.004, 0.004, 0.008; one darkened by 40 % by 0.48 in the first, one blurred over 3 pixels
# by 1.7 in the second, one without colour by 0.045 in the third.
FLOORS = np.array([0.2, 0.7, 0.02, 0.03, 0.03])
WIDE = 6.0
LOOKS = {"brightness": [0], "sharpness": [1], "colour": [2, 3, 4]}
ENOUGH = 5  # photographs, to say that one is odd
MANY = 0.1  # of the photographs: then these are not odd, but the set is of several kinds


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found in a file or folder, which `name` is below the one that was checked.

    kind: one of `KINDS`. fault: to be mended before fitting; else only worth knowing.
    """

    kind: str
    name: str
    sentence: str
    fault: bool


@dataclass(frozen=True, slots=True)
class Check:
    """What is in a folder: how many images can be read, and what was found, faults first.

    good: training images by category; of one category, or an unsorted folder, by "".
    """

    folder: Path
    good: dict[str, int]
    test: int
    findings: tuple[Finding, ...]

    @property
    def train(self) -> int:
        """Good images that would be learnt from."""
        return sum(self.good.values())

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What should be mended before fitting."""
        return tuple(finding for finding in self.findings if finding.fault)

    def table(self) -> pd.DataFrame:
        """The findings, a row each."""
        rows = [(finding.kind, finding.name, finding.sentence, finding.fault) for finding in self.findings]
        return pd.DataFrame(rows, columns=["kind", "name", "sentence", "fault"])

    def __str__(self) -> str:
        lines, grouped = [f"{_good(self.train)} to learn from, {self.test} to test"], defaultdict(list)
        for finding in self.findings:
            grouped[finding.fault, finding.kind].append(finding)
        for (fault, kind), findings in grouped.items():
            lines.append(f"{'To mend' if fault else 'Worth knowing'}: {KINDS[kind]} ({len(findings)})")
            names = [self.folder.name if finding.name == "." else finding.name for finding in findings[:SHOWN]]
            lines += [f"  {name}: {one.sentence}" for name, one in zip(names, findings, strict=False)]
            lines += [f"  and {len(findings) - SHOWN} more"] if len(findings) > SHOWN else []
        lines += [] if self.faults else ["Nothing to mend."]
        return "\n".join(lines + [f"{name}: {_promise(n)}" if name else _promise(n) for name, n in self.good.items()])


def _good(n: int) -> str:
    return f"{n} good image{'' if n == 1 else 's'}"


def _promise(n: int) -> str:
    """What a threshold from n good images can promise."""
    threshold = Threshold(math.nan, RATE, n, True, None, None)
    least, sure = f"{threshold.least} hold it on average", f"{threshold.needed} with {SURE:.0%} certainty"
    if n < FEWEST:
        return f"{_good(n)}: too few for a threshold, which needs {FEWEST}; {least}, {sure}"
    if n < threshold.least:
        return (
            f"{_good(n)}: a threshold for {RATE:.0%} false alarms is extrapolated, promising nothing; {least}, {sure}"
        )
    if n < threshold.needed:
        return f"{_good(n)}: a threshold for {RATE:.0%} false alarms holds on average; {sure}"
    return f"{_good(n)}: a threshold can hold {RATE:.0%} false alarms with {SURE:.0%} certainty"


def check_folder(folder: Path | str) -> Check:
    """Look at all photographs and masks of a category, of a folder of categories, or of a folder that is not sorted.

    Raises DataError if there is no such folder, if it may not be read, or if it is no category and holds no images.
    """
    folder = user_path(folder)
    found = _Found(folder)
    with listing(folder), ThreadPoolExecutor(os.cpu_count()) as pool:
        if not folder.is_dir():
            raise DataError(f"no folder {folder}: name the one that holds the images")
        below = [] if datasets.is_category(folder) else sorted(filter(_is_category, folder.iterdir()))
        numbers = [_check(place, found, pool) for place in below or [folder]]
    good = {place.name if below else "": train for place, (train, _) in zip(below or [folder], numbers, strict=True)}
    findings = sorted(found.findings, key=lambda finding: (not finding.fault, list(KINDS).index(finding.kind)))
    return Check(folder, good, sum(test for _, test in numbers), tuple(findings))


def _is_category(place: Path) -> bool:
    return not is_litter(place.name) and place.is_dir() and datasets.is_category(place)


@dataclass(frozen=True, slots=True)
class _Found:
    """Collects what is found below a folder."""

    folder: Path
    findings: list[Finding] = field(default_factory=list)

    def name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def add(self, kind: str, path: Path, sentence: str, fault: bool = True) -> None:
        """What is to be said of a path, of which the sentence may begin with the name."""
        sentence = sentence.replace(f"cannot read image {path} ", "cannot be read ").removeprefix("mask ")
        sentence = sentence.removeprefix(f"{path} ").replace(f"{self.folder}{os.sep}", "")
        self.findings.append(Finding(kind, self.name(path), sentence, fault))


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    """What is kept of an image that was read.

    content: the hash of its file. signature: (32, 32) uint8, grey. colour: (3,) means. looks: logarithms of brightness
    and of fine detail; and relative to brightness, how colourful it is, and its red and blue beyond green.
    """

    path: Path
    defect: str | None
    learnt: bool
    content: bytes
    header: Header
    signature: np.ndarray
    colour: np.ndarray
    looks: np.ndarray


def _check(place: Path, found: _Found, pool: Executor) -> tuple[int, int]:
    """How many images of one category or unsorted folder can be read: good ones to learn from, and to test."""
    category = (_category if datasets.is_category(place) else _unsorted)(place, found)
    samples = category.train + category.test
    largest = max(pool.map(_largest, samples), default=0)
    bits = bits_for(largest) if largest else None
    learnt = [True] * len(category.train) + [False] * len(category.test)
    pictures: dict[Path, _Picture] = {}
    for sample, seen in zip(samples, pool.map(partial(_look, bits=bits), samples, learnt), strict=True):
        if isinstance(seen, _Picture):
            pictures[sample.path] = seen
            _tell_format(seen.header, largest, sample.path, found)
        else:
            found.add("unreadable", sample.path, str(seen))
    good = [picture for picture in pictures.values() if picture.learnt and picture.defect == "good"]
    test = [picture for picture in pictures.values() if not picture.learnt]
    for group in _doubles(list(pictures.values()), bits, pool):
        _tell_doubles(group, found)
    if len(good) >= ENOUGH:
        _tell_odd(good, test, found)
    _tell_masks(category.test, pictures, found, pool)
    _tell_refused(category, found)
    if len(good) < Threshold(math.nan, RATE, 0, True, None, None).least:
        found.add("few", place, f"{_good(len(good))}: add more, for a threshold that promises something", False)
    return len(good), len(test)


def _category(place: Path, found: _Found) -> Category:
    """Images and their masks, as `load_category` reads them, and those that it would refuse."""
    train, test, masks, wrong = [], [], {}, {}
    for path, (split, *inside) in _files(place, found):
        split, kind = letters(split), inside[0] if len(inside) == 2 else ""
        good = letters(kind) in GOOD
        if split == "groundtruth" and len(inside) in (2, 3):
            masks[path if kind else path.parent] = folded(inside[0])
        elif split in ("train", "test") and len(inside) > 2:
            wrong[path.parent] = "holds images too deep to be read: move them up"
        elif split == "train" and inside:
            train.append(Sample(path.name, path, defect="good" if good or not kind else kind))
            if kind not in ("", "good"):
                wrong[path.parent] = (
                    "is not learnt, only train/good is: move its images there, or elsewhere if defective"
                )
        elif split == "test" and inside:
            test.append(Sample(path.name, path, defect="good" if good else kind or None))
            if good and kind != "good":
                wrong[path.parent] = "would count as a defect, but seems to hold good images: rename it to good"
    for folder, sentence in wrong.items():
        found.add("folders", folder, sentence)
    if not train and not test:
        found.add("folders", place, f"has no images in train/good or test: {PUT_IMAGES}")
    by_key = {(folded(s.path.parent.name), folded(s.path.stem)): s for s in test}
    mask_of: dict[Path, Path] = {}
    for mask, defect in masks.items():
        stem = folded(mask.name if mask.is_dir() else mask.stem)
        sample = by_key.get((defect, stem)) or by_key.get((defect, MASK_ENDING.sub("", stem)))
        if sample:
            mask_of[sample.path] = mask
        else:
            found.add("mask", mask, f"has no image in test/{mask.parent.name}: add it or remove the mask")
    return Category(place.name, place, train, [replace(s, mask_path=mask_of.get(s.path)) for s in test])


def _unsorted(place: Path, found: _Found) -> Category:
    """The images of one folder, as if all were good. Raises DataError if there are none."""
    files = list(_files(place, found))
    if all(len(parts) > 1 for _, parts in files):
        datasets.load_folder(place)  # says where there are some
    for name, count in Counter(parts[0] for _, parts in files if len(parts) > 1).items():
        found.add(
            "left out", place / name, f"is a folder of {count} images that is left out: check it by itself", False
        )
    found.add("unsorted", place, "learn from these images only if all of them are good", False)
    return Category(place.name, place, [Sample(path.name, path) for path, parts in files if len(parts) == 1], [])


def _files(place: Path, found: _Found) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Image files at any depth, and the parts of their paths below a folder. Other files and broken links are told."""

    def locked(error: OSError) -> None:
        found.add("unreadable", Path(error.filename), f"cannot be read ({error.strerror}): let yourself read it")

    for folder, folders, names in os.walk(place, onerror=locked, followlinks=True):
        inside = Path(folder).relative_to(place).parts
        folders[:] = sorted(n for n in folders if not is_litter(n)) if len(inside) < DEEPEST else []
        for path in (Path(folder, name) for name in sorted(names) if not is_litter(name)):
            suffix = path.suffix.lower()
            if path.is_symlink() and not path.exists():
                found.add("folders", path, "is a link to nothing: mend it or remove it")
            elif suffix in IMAGE_SUFFIXES:
                yield path, (*inside, path.name)
            elif suffix in UNREAD_SUFFIXES:
                found.add("left out", path, f"is left out: of images only {', '.join(IMAGE_SUFFIXES)} are read", False)


def _largest(sample: Sample) -> int:
    """The largest value of an image of more than 8 bits, else 0."""
    try:
        return largest_value(sample.path) if read_header(sample.path).bits > 8 else 0
    except DataError:  # told when all of it is read
        return 0


def _look(sample: Sample, learnt: bool, bits: int | None) -> _Picture | DataError | str:
    """Read an image, or say why it cannot be read."""
    try:
        check_file(sample.path)
        content = sample.path.read_bytes()
        header = read_header(content, sample.path)
        image = _reduced(content, bits, Resampling.HAMMING, sample.path)
    except DataError as error:
        return error
    except OSError as error:
        return f"cannot be read ({error.strerror or error}): replace it or remove it"
    tiny = image.resize((SIGNATURE, SIGNATURE), Resampling.BILINEAR)
    pixels = np.asarray(tiny, np.float32)
    colour, colourful = pixels.mean(axis=(0, 1)), np.ptp(pixels, axis=2).mean()
    detail = scipy.ndimage.laplace(np.asarray(image.convert("L"), np.float32)).std()
    white = colour.mean() + 1  # of black images as well
    looks = np.array([np.log(white), np.log(detail + 0.3), colourful / white, *(colour[[0, 2]] - colour[1]) / white])
    content, signature = hashlib.sha256(content).digest(), np.asarray(tiny.convert("L"))
    return _Picture(sample.path, sample.defect, learnt, content, header, signature, colour, looks)


def _reduced(source: Path | bytes, bits: int | None, filter: Resampling, name: Path | None = None) -> Image.Image:
    image = read_rgb(source, bits=bits, notes=Notes(), name=name)
    scale = SIDE / min(image.size)
    return image.resize([round(side * scale) for side in image.size], filter) if scale < 1 else image


def _tell_format(header: Header, largest: int, path: Path, found: _Found) -> None:
    if header.alpha:
        found.add("format", path, "its alpha channel is left out", False)
    if header.pages > 1:
        found.add("format", path, f"of its {header.pages} pages the first is read", False)
    if header.bits > 8:
        told = (
            f"has {header.bits} bits: of the largest value of all, {largest}, follows that {bits_for(largest)} are used"
        )
        found.add("format", path, told, False)


def _doubles(pictures: Sequence[_Picture], bits: int | None, pool: Executor) -> list[list[_Picture]]:
    """Pictures that are the same, in groups."""
    if not pictures:
        return []
    first: dict[bytes, int] = {}
    pairs = [(first.setdefault(picture.content, i), i) for i, picture in enumerate(pictures)]
    near = _near(pictures, list(first.values()))
    # pairs that share a picture follow each other
    read = lru_cache(64)(partial(_reduced, bits=bits, filter=Resampling.LANCZOS))
    same = pool.map(lambda pair: _same(pictures[pair[0]], pictures[pair[1]], read), near)
    pairs += [pair for pair, alike in zip(near, same, strict=True) if alike]
    links = coo_array((np.ones(len(pairs)), np.array(pairs).T), shape=(len(pictures),) * 2)
    groups = defaultdict(list)
    for picture, group in zip(pictures, connected_components(links, directed=False)[1], strict=True):
        groups[group].append(picture)
    return [group for group in groups.values() if len(group) > 1]


def _near(pictures: Sequence[_Picture], which: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs that may be one picture, of the two nearest signatures to each.

    Where all photographs are much alike, copies have to be more so: by a factor of 4.
    """
    points = np.stack([pictures[i].signature.ravel() for i in which]).astype(np.float32) / SIGNATURE
    points -= points.mean(axis=0)  # products of small numbers are more exact
    near, squares, pairs = NEAR, (points**2).sum(axis=1), set()
    if len(points) > ENOUGH:
        near = min(near, np.median(scipy.spatial.distance.pdist(points[:: len(points) // 500 + 1])) / 4)
    for start in range(0, len(points), 256):
        distances = squares[start : start + 256, None] + squares - 2 * points[start : start + 256] @ points.T
        for i, row in enumerate(distances, start):
            row[i] = np.inf
            nearest = np.argpartition(row, 1)[:2] if len(row) > 2 else np.arange(len(row))
            pairs |= {tuple(sorted((which[i], which[j]))) for j in nearest if row[j] < near**2}
    return sorted(pairs)


def _same(one: _Picture, other: _Picture, read: Callable[[Path], Image.Image]) -> bool:
    """Compare two files at the size of the smaller one."""
    (width, height), (other_width, other_height) = one.header.size, other.header.size
    shape = abs(math.log(width * other_height / (height * other_width)))
    if shape > SHAPE or np.abs(one.colour - other.colour).max() > 3 * NEAR:
        return False
    greys = [read(picture.path).convert("L") for picture in (one, other)]
    size = min(grey.size for grey in greys)
    a, b = (np.asarray(grey.resize(size, Resampling.LANCZOS), np.float32) for grey in greys)
    if np.abs(scipy.ndimage.gaussian_filter(a - b, 1.5)).max() > RESIDUAL:
        return False
    a, b = (scipy.ndimage.gaussian_filter(x, 0.7) - scipy.ndimage.gaussian_filter(x, 2.7) for x in (a, b))
    return bool((a * b).sum() >= TOGETHER * math.sqrt((a**2).sum() * (b**2).sum()))


def _tell_doubles(group: Sequence[_Picture], found: _Found) -> None:
    first, *others = group  # training images before those to test
    for copy in others:
        same = "has the very bytes of" if copy.content == first.content else "is the same picture as"
        same = f"{same} {found.name(first.path)}"
        if first.learnt and not copy.learnt:
            found.add("train and test", copy.path, f"{same}, which is learnt: remove one of them")
        elif copy.defect == first.defect:
            found.add("double", copy.path, f"{same}, and counts once more: remove one of them", first.learnt)
        else:
            found.add("double", copy.path, f"{same}, but is said to be {copy.defect}, not {first.defect}: remove one")


def _tell_odd(good: Sequence[_Picture], test: Sequence[_Picture], found: _Found) -> None:
    """Photographs unlike most good ones; test images may look odd for their defects, so of them only the oddest."""
    usual = Counter(picture.header.size for picture in good).most_common(1)[0][0]
    looks = np.array([picture.looks for picture in good])
    middle = np.median(looks, axis=0)
    limits = np.maximum(FLOORS, WIDE * 1.4826 * np.median(np.abs(looks - middle), axis=0))
    for group, learnt in ((good, True), (test, False)):
        todo = "leave it out or take it again" if learnt else "its score may come from that, and not from a defect"
        odd = defaultdict(list)
        for picture in group:
            beyond = np.abs(picture.looks - middle) > limits * (1 if learnt else 2)
            for kind in LOOKS:
                if beyond[LOOKS[kind]].any() and (learnt or kind != "sharpness"):
                    odd[kind].append((picture.path, _unlike(kind, picture.looks, middle)))
            if picture.header.size != usual:
                sizes = "is {}x{}, most good ones {}x{}".format(*picture.header.size, *usual)
                odd["size"].append((picture.path, sizes))
        for kind, those in odd.items():
            if len(those) > max(3, MANY * len(group)):
                told = (
                    f"{len(those)} of {len(group)} images differ in {kind} from most good ones: is it one kind of part?"
                )
                found.add(kind, those[0][0].parent if learnt else those[0][0].parent.parent, told, False)
                continue
            for path, text in those:
                found.add(kind, path, f"{text}: {todo}", learnt)


def _unlike(kind: str, looks: np.ndarray, middle: np.ndarray) -> str:
    brightness, detail = np.exp(looks - middle)[:2]
    if kind == "brightness":
        return f"is {brightness:.0%} as bright as most good ones"
    if kind == "sharpness":
        return f"has {detail:.0%} of the fine detail of most good ones"
    grey = looks[2] < middle[2] / 3
    return "has no colour, unlike most good ones" if grey else "has other colours than most good ones"


def _tell_masks(test: Sequence[Sample], pictures: Mapping[Path, _Picture], found: _Found, pool: Executor) -> None:
    masked = [sample for sample in test if sample.mask_path]
    wrong = pool.map(lambda sample: _wrong_mask(sample, pictures.get(sample.path)), masked)
    for sample, sentence in zip(masked, wrong, strict=True):
        if sentence:
            found.add("mask", sample.mask_path, sentence)
    for sample in test if masked else ():
        if sample.label == 1 and not sample.mask_path:
            found.add("mask", sample.path, "has no mask, as others have: draw one, or there are no pixel metrics")


def _wrong_mask(sample: Sample, picture: _Picture | None) -> str | None:
    try:
        mask = read_mask(sample.mask_path)
    except DataError as error:
        return str(error)
    share = np.asarray(mask).mean() / 255
    if picture and mask.size != picture.header.size:
        sizes = "is {}x{}, but its image {}x{}".format(*mask.size, *picture.header.size)
        return f"{sizes}: export it at the image's size"
    if sample.label == 1 and not share:
        return "is empty, but its image is among the defective ones: draw the defect, or move the image to test/good"
    if share > NEARLY_ALL:
        return f"says that {share:.0%} of the image are defective: invert it, if it is the wrong way round"
    return "says that a good image is defective: empty it, or move the image" if share and not sample.label else None


def _tell_refused(category: Category, found: _Found) -> None:
    """What loading the folder says, as far as it was not told."""
    notes, place = Notes(), category.path
    known = [finding.name for finding in found.findings if finding.kind in ("folders", "mask")]
    steps = [partial(scan_images, place, notes)]
    if datasets.is_category(place):
        steps = [partial(step, place, notes) for step in (datasets.train_samples, datasets.test_samples)]
        steps.append(partial(datasets.check_beside, category, notes))
    for step in steps:
        try:
            step()
        except DataError as error:
            told = str(error).replace(f"{found.folder}{os.sep}", "")
            if not any(name in told for name in known):
                found.add("folders", place, told)
    for kind, noticed in notes.noticed.items():
        for _, path, sentence in noticed if kind != "suffix" else ():
            found.add("left out", Path(path), sentence, False)

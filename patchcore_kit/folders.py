"""What lies in a folder, and what its name says: images, masks, and what servers and systems leave there."""

import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patchcore_kit.errors import DataError
from patchcore_kit.images import IMAGE_SUFFIXES
from patchcore_kit.notes import Notes

UNREAD_SUFFIXES = (
    ".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".jxr", ".pgm", ".ppm", ".pbm", ".pnm", ".tga", ".psd",
    ".svg", ".exr", ".hdr", ".pcx", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".raw", ".dcm",
    ".npy",
)  # fmt: skip
LITTER = ("@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found")
GOOD = ("good", "ok", "okay", "normal", "pass", "passed", "nominal", "io")  # what people call it, letters only
MASKS = ("mask", "masks", "gt", "groundtruth", "groundtruths", "label", "labels", "annotation", "annotations",
         "segmentation", "segmentations")  # fmt: skip
NO_DEFECTS = ("mask", "masks", "gt", "groundtruth", "groundtruths")  # but folders of masks, in test
PERHAPS = ("label", "labels", "seg", "segmentation")  # endings that photographs may have as well
MASK_ENDING = re.compile(r"[ _.-](mask|masks|gt|ground[ _-]?truth|label|labels|seg|segmentation)$")
PUT_IMAGES = f"put images there ({', '.join(IMAGE_SUFFIXES)})"  # of a folder that has none


@contextmanager
def listing(folder: Path) -> Iterator[None]:
    """Folders that may not be read become a DataError."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        raise DataError(f"cannot read {place} ({error.strerror or error}): choose a folder that you may read") from None


def scan(folder: Path, notes: Notes) -> tuple[list[Path], list[Path]]:
    """Image files and folders in a folder, sorted, without hidden ones and what servers and systems leave there.

    Image files that are not read are noted. Raises DataError for broken links.
    """
    images, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            suffix = name[name.rfind(".") :].lower()
            if is_litter(name):
                continue
            if entry.is_dir():
                folders.append(name)
            elif entry.is_symlink() and not Path(entry).exists():
                raise DataError(f"{entry.path} is a link to nothing: mend it or remove it")
            elif suffix in IMAGE_SUFFIXES:
                images.append(name)
            elif suffix in UNREAD_SUFFIXES:
                notes.add(entry.path, f"left out: of images only {', '.join(IMAGE_SUFFIXES)} are read", "suffix")
    return [folder / name for name in sorted(images)], [folder / name for name in sorted(folders)]


def subfolders(folder: Path) -> list[Path]:
    """The folders of `scan`, whatever the images are."""
    return scan(folder, Notes())[1]


def scan_images(folder: Path, notes: Notes) -> tuple[list[Path], list[Path]]:
    """`scan`, for images to learn from or to score. Raises DataError also for masks among them."""
    images, folders = scan(folder, notes)
    first: dict[str, Path] = {}
    for image in images:
        first.setdefault(folded(image.stem), image)
    for key, image in first.items():
        ending = MASK_ENDING.search(key)
        of = first.get(key[: ending.start()]) if ending else None
        if of and ending[1] in PERHAPS:
            notes.add(image, f"is taken as an image of its own: if it is the mask of {of.name}, move it away", "mask")
        elif of:
            raise DataError(
                f"{image} is among the images, but looks like the mask of {of.name}: move masks to "
                "ground_truth/<defect> of the category, or elsewhere"
            )
    for image in images:
        other = first[folded(image.stem)]
        if other.stem == image.stem and other is not image:
            notes.add(image, f"has the name of {other.name}: if one of them is no image, remove it", "twice")
    return images, folders


def first_image(folder: Path) -> Path | None:
    """An image at any depth of a folder, or None."""
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        for name in sorted(files):
            if name.lower().endswith(IMAGE_SUFFIXES) and not is_litter(name):
                return Path(place, name)
    return None


def _refuse(error: OSError) -> None:
    raise error


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or of a server or system."""
    return name.startswith(".") or name.lower() in LITTER


def folded(name: str) -> str:
    """A name as it is compared: in lower case and one form of Unicode, which file systems do not agree on."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def letters(name: str) -> str:
    """Letters and digits of a name, as it is compared."""
    return "".join(character for character in folded(name) if character.isalnum())

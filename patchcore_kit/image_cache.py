"""Images as the network takes them, kept in a folder: decoded and resized once, whatever reads them afterwards."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import PIL
import torchvision

from patchcore_kit.datasets import Sample
from patchcore_kit.errors import ResultsError
from patchcore_kit.files import UNREADABLE, user_path, work_folder, writing
from patchcore_kit.notes import Notes
from patchcore_kit.transforms import Transform

LIMIT = 2_000_000_000  # bytes: all of MVTec AD at two sizes
READING = 2  # raised when files are read otherwise than before: then old entries are not used any more


class ImageCache:
    """A folder of decoded and resized images.

    An entry goes by a checksum of the file's bytes, the transform's size and bits, and the versions of the libraries
    that decode and resize. So it cannot be stale: a file that changes is another one, whatever its name and date say.
    An image whose file is smaller than its entry would be is not kept, for it is decoded as fast.

    folder: `.cache/images` in the work folder if None; made with the first entry.
    limit: bytes that are left when a cache is opened; entries that were not used for longest go.
    """

    def __init__(self, folder: Path | str | None = None, *, limit: int = LIMIT) -> None:
        self.folder = work_folder() / ".cache" / "images" if folder is None else user_path(folder)
        with contextlib.suppress(OSError):  # another process trims it at the same time
            entries = sorted(((file.stat(), file) for file in self.folder.glob("*.npy")), key=lambda e: e[0].st_mtime)
            excess = sum(status.st_size for status, _ in entries) - limit
            for status, file in entries:
                if excess <= 0:
                    break
                file.unlink()
                excess -= status.st_size

    def image(self, sample: Sample, transform: Transform, notes: Notes | None = None) -> np.ndarray:
        """What `transform.image(sample)` gives: (H, W, 3), uint8. Raises DataError as it does.

        Frames in memory are not kept, nor images of which there is something to tell, so that it is told again. A
        cache that cannot be written leaves it at that.
        """
        if sample.path is None:
            return transform.image(sample, notes=notes)
        try:
            content = sample.path.read_bytes()
        except OSError:
            return transform.image(sample, notes=notes)  # which says what is wrong
        how = READING, transform.resize, transform.imagesize, transform.bits, PIL.__version__, torchvision.__version__
        entry = self.folder / f"{hashlib.sha256(repr(how).encode() + content).hexdigest()}.npy"
        with contextlib.suppress(*UNREADABLE):
            image = np.load(entry, allow_pickle=False)
            os.utime(entry)  # used now
            return image
        own = Notes()
        image = transform.image(sample, content, own)
        if own:
            own.tell(notes)
        elif image.nbytes < len(content):
            with contextlib.suppress(ResultsError), writing(entry) as temporary, temporary.open("wb") as file:
                np.save(file, image)
        return image

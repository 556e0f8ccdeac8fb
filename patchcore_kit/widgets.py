"""The notebooks' widgets: a slider for the threshold of pixels, and a place to drop photographs on."""

import html
import io
import re
import unicodedata
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import ipywidgets
import numpy as np

from patchcore_kit.datasets import Sample
from patchcore_kit.errors import DataError, KitError
from patchcore_kit.files import numbered, user_path, writing
from patchcore_kit.images import IMAGE_SUFFIXES, read_rgb
from patchcore_kit.notes import Notes
from patchcore_kit.plots import map_scale, need, panels, segmentation_image
from patchcore_kit.predictions import Predictions
from patchcore_kit.transforms import Transform

TOLD = 8  # files of an upload that something is said of
LONGEST = 60  # letters of a file's name, which file systems limit

# ipywidgets' button opens a file dialog and takes no drop. What is dropped is given to it as if it had been chosen: its
# input, which no page holds, is the one that it clicks. Folders are gone through; browsers list 100 entries at a time.
DROP = """
if (!window.patchcoreDrop) {
  window.patchcoreDrop = true;
  const inside = async entry => {
    if (entry.name.startsWith(".")) return [];
    if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
    const reader = entry.createReader(), all = [];
    for (let some = null; !some || some.length; all.push(...some))
      some = await new Promise((done, failed) => reader.readEntries(done, failed));
    return (await Promise.all(all.map(inside))).flat();
  };
  const give = (button, files) => {
    const all = new DataTransfer();
    files.forEach(file => all.items.add(file));
    HTMLInputElement.prototype.click = function () {
      this.files = all.files;
      this.dispatchEvent(new Event("change"));
    };
    try { button.click(); } finally { delete HTMLInputElement.prototype.click; }
  };
  const follow = event => {
    const place = event.target.closest && event.target.closest(".patchcore-upload");
    if (!place || !event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    event.stopPropagation();
    place.style.outline = event.type === "dragover" ? "3px solid #0072b2" : "";
    if (event.type !== "drop") return;
    const items = [...event.dataTransfer.items].filter(item => item.kind === "file").map(item => {
      const entry = item.webkitGetAsEntry();
      return entry ? inside(entry) : [item.getAsFile()];
    });
    Promise.all(items).then(files => give(place.querySelector("button"), files.flat()));
  };
  for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, follow, true);
}
"""


# The button's own words end in how many files it was given last, which reads as how many there are.
LOOK = """<style>
.patchcore-upload button { font-size: 0; }
.patchcore-upload button::after { content: attr(title); font-size: var(--jp-widgets-font-size, 13px); }
</style>"""


class Upload(ipywidgets.VBox):
    """A place to drop photographs on, and folders of them, or to choose them with a click: they are saved in a folder.

    Below it: how many there are in the folder now, and what was renamed or refused. No file there is ever replaced.
    """

    def __init__(self, folder: Path | str):
        self.folder = user_path(folder)
        with suppress(OSError):  # told when something is saved
            self.folder.mkdir(parents=True, exist_ok=True)
        self.button = ipywidgets.FileUpload(
            accept=",".join(("image/*", *IMAGE_SUFFIXES)),  # what browsers know as images is less
            multiple=True,
            tooltip=f"Drop photographs for {folder} here, or click",
            layout={"width": "90%", "height": "70px", "border": "2px dashed #0072b2"},
        )
        self.text = ipywidgets.HTML()
        script = {"output_type": "display_data", "data": {"application/javascript": DROP}, "metadata": {}}
        super().__init__([self.button, self.text, ipywidgets.HTML(LOOK), ipywidgets.Output(outputs=(script,))])
        self.add_class("patchcore-upload")
        self.button.observe(self._save, names="value")
        self._tell([])

    def _save(self, change: Mapping) -> None:
        files, said, new = change["new"], [], 0
        for number, file in enumerate(files, 1):
            self.text.value = f"saving {number} of {len(files)}"
            try:
                path, is_new = save_photograph(self.folder, file["name"], bytes(file["content"]))
            except KitError as error:
                said.append(f"not saved: {error}")
                continue
            new += is_new
            if not is_new:
                said.append(f"{file['name']} is there already{f', as {path.name}' * (path.name != file['name'])}")
            elif path.name != file["name"]:
                said.append(f"{file['name']} is saved as {path.name}")
        self.button.unobserve(self._save, names="value")
        self.button.value = [{**file, "content": b""} for file in files]  # or memory would go on holding them all
        self.button.observe(self._save, names="value")
        self._tell([f"{new} of {len(files)} saved", *said])

    def _tell(self, said: Sequence[str]) -> None:
        n = sum(path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." for path in self.folder.glob("*"))
        held = f"{n} photograph{'s' * (n > 1)}" if n else "no photographs yet"
        lines = [f"{self.folder} holds {held}", *said[: TOLD + 1]]
        lines += [f"and {len(said) - TOLD - 1} more"] if len(said) > TOLD + 1 else []
        self.text.value = "<br>".join(map(html.escape, lines))


def save_photograph(folder: Path, name: str, content: bytes) -> tuple[Path, bool]:
    """Save a file's bytes in a folder -> where, and whether it was not there yet. No other file is replaced.

    Of the name folders are left out, and letters that some system does not take; it gets a number if another photograph
    has it. Raises DataError for what is no image that is read, ResultsError if it cannot be written.
    """
    name = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    name = Path(re.sub(r'[\x00-\x1f\x7f<>:"|?*]', "_", name).lstrip(". ") or "photograph")
    if name.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{name} is of a kind that is not read: save it as PNG or JPEG first")
    read_rgb(content, notes=Notes(), name=name)
    stem = name.stem[:LONGEST]
    paths = (folder / f"{unique}{name.suffix}" for unique in numbered(stem))
    path = next(path for path in paths if not path.exists() or _holds(path, content))
    if path.exists():
        return path, False
    with writing(path) as temporary:
        temporary.write_bytes(content)
    return path, True


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


class ThresholdSlider(ipywidgets.VBox):
    """An image, its anomaly map, the map binarised at the slider's threshold, and its ground truth.

    Above them: precision and recall of the pixels of all test images at that threshold, and the model's own from good
    images where it has one. It starts at the F1-optimal threshold, with the i-th image. Where widgets do not run, that
    first picture is shown instead. Raises DataError if the predictions have no masks with defects.
    """

    def __init__(self, samples: Sequence[Sample], transform: Transform, predictions: Predictions, i: int):
        need(predictions, "no precision and recall", "pixel")
        self._samples, self._transform, self._predictions = samples, transform, predictions
        self._defective = np.count_nonzero(predictions.masks)
        self._low, self._high = float(predictions.maps.min()), float(predictions.maps.max())
        names = [(name, n) for n, name in enumerate(predictions.names)]
        self.image = ipywidgets.Dropdown(options=names, value=i, description="image", layout={"width": "60%"})
        self.slider = ipywidgets.FloatSlider(
            predictions.pixel_threshold, min=self._low, max=self._high, step=(self._high - self._low) / 200,
            description="threshold", readout_format=".3g", layout={"width": "90%"},
        )  # fmt: skip
        self.text = ipywidgets.Label()
        self.picture = ipywidgets.Image(format="png")
        super().__init__([self.image, self.slider, self.text, self.picture])
        self.image.observe(lambda _: self._read(), names="value")
        self.slider.observe(lambda _: self._draw(), names="value")
        self._read()

    def _read(self) -> None:
        self._pixels = self._transform.image(self._samples[self.image.value], notes=Notes())
        self._draw()

    def _draw(self) -> None:
        threshold, predictions = self.slider.value, self._predictions
        found = predictions.maps >= threshold
        right, all_found = np.count_nonzero(found & predictions.masks), np.count_nonzero(found)
        precision, recall = right / all_found if all_found else 1, right / self._defective
        own = predictions.alarm_threshold_pixel
        limit = "" if own is None else f"; from good images: {own:.3g}"
        self.text.value = f"precision {precision:.3f}, recall {recall:.3f} (pixels of all test images){limit}"
        shown = panels(self._pixels, predictions, self.image.value, threshold)
        file = io.BytesIO()
        segmentation_image(shown, *map_scale(predictions), f"weights: {predictions.weights}").save(file, "PNG")
        self.picture.value = file.getvalue()

    def _repr_mimebundle_(self, **options) -> dict:
        """The widget, and the picture for readers that run none."""
        return super()._repr_mimebundle_(**options) | {"image/png": b64encode(self.picture.value).decode()}

"""The notebooks' widgets: a slider for the threshold of pixels, and a place to drop photographs on.

All can be reached and used by keyboard, and what has the focus has a frame. Their words have the colours of
JupyterLab's theme, light or dark. ipywidgets gives sliders no name and says no changes aloud, so `SCRIPT` does.
"""

import html
import io
import math
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
STEPS = 200  # of the slider

# ground, false alarm, missed and found pixels of a mask: by found + 2 * defective, and so that all eyes tell them apart
MASK = np.array([(0, 0, 0), (0, 114, 178), (230, 159, 0), (255, 255, 255)], dtype=np.uint8)

# ipywidgets' button opens a file dialog and takes no drop. What is dropped is given to it as if it had been chosen: its
# input, which no page holds, is the one that it clicks. Folders are gone through; browsers list 100 entries at a time.
SCRIPT = """
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
    place.style.outline = event.type === "dragover" ? "3px solid #3594da" : "";
    if (event.type !== "drop") return;
    const items = [...event.dataTransfer.items].filter(item => item.kind === "file").map(item => {
      const entry = item.webkitGetAsEntry();
      return entry ? inside(entry) : [item.getAsFile()];
    });
    Promise.all(items).then(files => give(place.querySelector("button"), files.flat()));
  };
  for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, follow, true);
  const name = event => {
    const place = event.target.closest && event.target.closest(".patchcore");
    if (!place) return;
    place.querySelectorAll(".patchcore-said").forEach(said => said.setAttribute("aria-live", "polite"));
    place.querySelectorAll("[role=slider], .widget-readout").forEach(part => {
      part.setAttribute("aria-label", part.closest(".widget-slider").querySelector("label").textContent);
    });
  };
  for (const type of ["focusin", "pointerover"]) document.addEventListener(type, name, true);
}
"""
FRAME = "#3594da"  # seen on light and on dark ground

# The button's own words end in how many files it was given last, which reads as how many there are.
LOOK = f"""<style>
.patchcore-upload button {{ font-size: 0; color: var(--jp-ui-font-color1); }}
.patchcore-upload button::after {{ content: attr(title); font-size: var(--jp-widgets-font-size, 13px); }}
.patchcore :focus-visible {{ outline: 3px solid {FRAME} !important; outline-offset: 2px; }}
.patchcore-said, .patchcore-said td, .patchcore-said th {{ color: var(--jp-ui-font-color1, black); }}
.patchcore-said td, .patchcore-said th {{ padding: 0 12px 0 0; text-align: left; }}
.patchcore-said i {{ display: inline-block; width: 12px; height: 12px; border: 1px solid #767676; }}
.patchcore-picture img {{ max-width: 100%; }}
.patchcore-marked .noUi-base::before {{
  content: ""; position: absolute; top: -9px; height: 22px; border-left: 3px solid #e07900; z-index: 1;
}}
</style>"""


def _common(*parts: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    """The parts of a widget, and what all of them need: how they look, and the script."""
    script = {"output_type": "display_data", "data": {"application/javascript": SCRIPT}, "metadata": {}}
    return [*parts, ipywidgets.HTML(LOOK), ipywidgets.Output(outputs=(script,))]


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
            layout={"width": "90%", "height": "70px", "border": f"2px dashed {FRAME}"},
        )
        self.text = ipywidgets.HTML().add_class("patchcore-said")
        super().__init__(_common(self.button, self.text))
        self.add_class("patchcore").add_class("patchcore-upload")
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
    """An image, its anomaly map, the map cut at the slider's threshold, and its ground truth.

    In the map that is cut, defective pixels that are found are white, missed ones orange, false alarms blue. Above the
    pictures: precision, recall and F1 of the pixels of all test images and of this one at that threshold, where F1 of
    all is best, and the model's own threshold from good images, where it has one. It starts at the best F1, which is
    marked on the slider and to which a button leads back, with the i-th image. Where widgets do not run, that first
    picture is shown instead. Raises DataError if the predictions have no masks with defects.
    """

    def __init__(self, samples: Sequence[Sample], transform: Transform, predictions: Predictions, i: int):
        need(predictions, "no precision and recall", "pixel")
        self._samples, self._transform, self._predictions = samples, transform, predictions
        self._sorted = np.sort(predictions.maps, axis=None), np.sort(predictions.maps[predictions.masks])
        low, high, best = float(self._sorted[0][0]), float(self._sorted[0][-1]), predictions.pixel_threshold
        step = (high - low) / STEPS
        low = best - step * math.ceil((best - low) / step)  # browsers round to steps from here: the best is one
        names = [(name, n) for n, name in enumerate(predictions.names)]
        self.image = ipywidgets.Dropdown(options=names, value=i, description="image", layout={"width": "60%"})
        self.slider = ipywidgets.FloatSlider(
            best, min=low, max=high, step=step, description="threshold", readout_format=".3g",
            layout={"width": "90%"},
        )  # fmt: skip
        self.best = ipywidgets.Button(
            description=f"to the best F1, at {best:.3g}",
            layout={"width": "auto", "align_self": "flex-start"},
        )
        self.text = ipywidgets.HTML().add_class("patchcore-said")
        self.picture = ipywidgets.HTML().add_class("patchcore-picture")
        mark = f"mark-{self.slider.model_id}"
        share = (best - low) / (high - low)
        style = ipywidgets.HTML(f"<style>.{mark} .noUi-base::before {{ left: {share:.2%}; }}</style>")
        super().__init__(_common(self.image, self.slider, self.best, self.text, self.picture, style))
        self.slider.add_class("patchcore-marked").add_class(mark)
        self.add_class("patchcore")
        self.image.observe(lambda _: self._read(), names="value")
        self.slider.observe(lambda _: self._draw(), names="value")
        self.best.on_click(lambda _: self.slider.set_trait("value", best))
        self._read()

    def _read(self) -> None:
        self._pixels = self._transform.image(self._samples[self.image.value], notes=Notes())
        self._draw()

    def _draw(self) -> None:
        threshold, predictions, i = np.float32(self.slider.value), self._predictions, self.image.value
        found, defective = predictions.maps[i] >= threshold, predictions.masks[i]
        false, missed, hits = np.bincount((found + 2 * defective).ravel(), minlength=4)[1:].tolist()
        above, all_hits = (len(values) - int(np.searchsorted(values, threshold)) for values in self._sorted)
        rows = {
            "all test images": _rates(all_hits, above - all_hits, len(self._sorted[1]) - all_hits),
            "this image": _rates(hits, false, missed),
        }
        best, own = predictions.metrics["full_pixel_f1"], predictions.alarm_threshold_pixel
        said = f"The best F1 of all test images is {best:.3f}, at {predictions.pixel_threshold:.3g}"
        said += "." if own is None else f"; the threshold from good images is {own:.3g}."
        head = "".join(f'<th scope="col">{name}</th>' for name in ("pixels of", "precision", "recall", "F1"))
        body = "".join(
            f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
            for name, cells in rows.items()
        )
        counts = {"found": (3, hits), "missed": (2, missed), "false alarms": (1, false)}
        legend = " &emsp; ".join(
            f'<i style="background: rgb{tuple(MASK[colour].tolist())}"></i> {name}: {n} pixels'
            for name, (colour, n) in counts.items()
        )
        self.text.value = f"<table><tr>{head}</tr>{body}</table>{said}<br>{legend}"
        shown = panels(self._pixels, predictions, i, float(threshold))
        shown[next(title for title in shown if title.startswith("map"))] = MASK[found + 2 * defective]
        caption = f"white: found, orange: missed, blue: false alarms   weights: {predictions.weights}"
        with io.BytesIO() as file:
            segmentation_image(shown, *map_scale(predictions), caption).save(file, "PNG")
            self._png = b64encode(file.getvalue()).decode()
        words = ", ".join(f"{n} pixels {name}" for name, (_, n) in counts.items())
        words = html.escape(f"{predictions.names[i]}: {', '.join(shown)}. At this threshold {words}.")
        self.picture.value = f'<img src="data:image/png;base64,{self._png}" alt="{words}" decoding="sync">'

    def _repr_mimebundle_(self, **options) -> dict:
        """The widget, and for readers that run none the picture, with its words as HTML."""
        return super()._repr_mimebundle_(**options) | {"image/png": self._png, "text/html": self.picture.value}


def _rates(hits: int, false: int, missed: int) -> tuple[str, str, str]:
    """Precision, recall and F1 as they are read; a dash where there is nothing to divide by."""
    pairs = (hits, hits + false), (hits, hits + missed), (2 * hits, 2 * hits + false + missed)
    return tuple(f"{part / whole:.3f}" if whole else "&ndash;" for part, whole in pairs)

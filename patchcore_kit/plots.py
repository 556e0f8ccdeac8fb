"""Pictures of predictions. Heat maps that belong together share one colour scale, which is drawn beside them."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from patchcore_kit.datasets import Sample, Transform
from patchcore_kit.files import writing
from patchcore_kit.predictions import Predictions

COLOURS = "magma"  # even in lightness: readable in grey and by colour-blind eyes
GAP, HEADER, SCALE = 6, 18, 14  # pixels between panels, above them, and the width of the colour scale


def segmentation_image(
    panels: Sequence[tuple[str, np.ndarray]], low: float, high: float, caption: str = ""
) -> Image.Image:
    """Titled panels of one height, left to right, with the colour scale of the heat maps at the right.

    panels: (title, array): (H, W, 3) uint8 as it is, (H, W) bool in black and white, (H, W) float as a heat map in
    which `low` is dark and `high` bright. caption: a line below.
    """
    colours = mpl.colormaps[COLOURS]
    height, width = panels[0][1].shape[:2]
    font = ImageFont.truetype(
        Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 11
    )  # has letters of all kinds
    labels = f"{high:.3g}", f"{low:.3g}"
    room = SCALE + GAP + int(max(font.getlength(label) for label in labels))
    size = (len(panels) * (width + GAP) + room + GAP, HEADER + height + (HEADER if caption else GAP))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    x = GAP
    for title, values in panels:
        if values.dtype == bool:
            values = values.astype(np.uint8) * 255
        elif values.dtype != np.uint8:
            values = colours((values - low) / (high - low or 1), bytes=True)[..., :3]
        picture.paste(Image.fromarray(values), (x, HEADER))
        draw.text((x, 2), title, "black", font)
        x += width + GAP
    ramp = np.repeat(np.linspace(1, 0, height)[:, None], SCALE, axis=1)
    picture.paste(Image.fromarray(colours(ramp, bytes=True)[..., :3]), (x, HEADER))
    for label, y in zip(labels, (HEADER, HEADER + height - 14), strict=True):
        draw.text((x + SCALE + 3, y), label, "black", font)
    draw.text((GAP, HEADER + height + 2), caption, "black", font)
    return picture


def save_segmentation_images(
    folder: Path | str,
    samples: Sequence[Sample],
    transform: Transform,
    predictions: Predictions,
    *,
    progress: bool = True,
) -> None:
    """One PNG per image: original, ground truth, anomaly map, binarised map; the latter three as far as known.

    All maps share one scale, from the smallest to the largest value of these predictions. Files are named as the
    reference names them, by the last four parts of the image's path; `.png` is added to those of other kinds.

    Raises ResultsError if they cannot be written.
    """
    maps, threshold = predictions.maps, predictions.pixel_threshold
    low, high = float(maps.min(initial=np.inf)), float(maps.max(initial=-np.inf))  # of no maps: never drawn
    for i, sample in enumerate(tqdm(samples, desc="draw pictures", leave=False, disable=not progress)):
        panels = [("image", transform.image(sample))]
        if predictions.masks is not None:
            panels.append(("ground truth", predictions.masks[i]))
        panels.append(("anomaly map", maps[i]))
        if threshold is not None:
            panels.append((f"map >= {threshold:.3g}", maps[i] >= threshold))
        caption = f"{sample.name}   score {predictions.scores[i]:.3g}   weights: {predictions.weights}"
        picture = segmentation_image(panels, low, high, caption)
        name = "_".join(sample.path.parts[-4:])
        with writing(Path(folder) / (name if name.endswith(".png") else f"{name}.png")) as temporary:
            picture.save(temporary, "PNG", compress_level=3)

"""The notebooks' one widget: a slider for the threshold from which on a pixel counts as defective."""

import io
from base64 import b64encode
from collections.abc import Sequence

import ipywidgets
import numpy as np

from patchcore_kit.datasets import Sample
from patchcore_kit.notes import Notes
from patchcore_kit.plots import map_scale, need, panels, segmentation_image
from patchcore_kit.predictions import Predictions
from patchcore_kit.transforms import Transform


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

"""The notebooks' one widget: a slider for the threshold from which on a pixel counts as defective."""

import io
from base64 import b64encode
from collections.abc import Sequence

import ipywidgets
import numpy as np

from patchcore_kit.datasets import Sample, Transform
from patchcore_kit.errors import DataError
from patchcore_kit.metrics import Curves
from patchcore_kit.plots import panels, segmentation_image
from patchcore_kit.predictions import Predictions


class ThresholdSlider(ipywidgets.VBox):
    """An image, its anomaly map, the map binarised at the slider's threshold, and its ground truth.

    Below them: precision and recall of the pixels of all test images at that threshold. It starts at the F1-optimal
    threshold, with the i-th image. Where widgets do not run, the first picture is shown instead.
    Raises DataError if the predictions have no masks with defects.
    """

    def __init__(self, samples: Sequence[Sample], transform: Transform, predictions: Predictions, i: int):
        if predictions.pixel_threshold is None:
            raise DataError("these predictions have no masks with defects: precision and recall need them")
        self._samples, self._transform, self._predictions = samples, transform, predictions
        values = predictions.maps.ravel()
        order = np.argsort(values)[::-1]
        self._curves = Curves.of(values[order], predictions.masks.ravel()[order])
        self._range = float(predictions.maps.min()), float(predictions.maps.max())
        names = [(name, n) for n, name in enumerate(predictions.names)]
        self.image = ipywidgets.Dropdown(options=names, value=i, description="image", layout={"width": "60%"})
        self.slider = ipywidgets.FloatSlider(
            predictions.pixel_threshold, min=self._range[0], max=self._range[1],
            step=(self._range[1] - self._range[0]) / 200, description="threshold", layout={"width": "90%"},
        )  # fmt: skip
        self.text = ipywidgets.Label()
        self.picture = ipywidgets.Image(format="png")
        super().__init__([self.image, self.slider, self.text, self.picture])
        for control in (self.image, self.slider):
            control.observe(lambda _: self._draw(), names="value")
        self._draw()

    def _draw(self) -> None:
        i, threshold = self.image.value, self.slider.value
        precision, recall = self._curves.precision_recall(threshold)
        self.text.value = f"precision {precision:.3f}, recall {recall:.3f} (pixels of all test images)"
        shown = panels(self._samples[i], self._transform, self._predictions, i, threshold)
        caption = f"{self.text.value}   weights: {self._predictions.weights}"
        file = io.BytesIO()
        segmentation_image(shown, *self._range, caption).save(file, "PNG")
        self.picture.value = file.getvalue()

    def _repr_mimebundle_(self, **options) -> dict:
        """The widget, and the picture for readers that run none."""
        return super()._repr_mimebundle_(**options) | {"image/png": b64encode(self.picture.value).decode()}

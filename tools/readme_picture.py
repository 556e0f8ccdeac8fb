"""Draw the README's picture, a figure of task 4, with the starter: python tools/readme_picture.py."""

import matplotlib as mpl

import patchcore_kit as pk
from patchcore_kit import plots

CATEGORY = "biscuit"
PATH = pk.work_folder() / "docs" / "task4_masks.png"

category = pk.load_category(pk.draw_sample_data(pk.work_folder() / "data" / "sample"), CATEGORY)
detector = pk.PatchCore(pk.load_backbone("starter")).fit(category.train)
predictions = detector.predict(category.test)
one_of_each = predictions.table().drop_duplicates("defect").index
mpl.use("Agg")
mpl.rcParams.update(plots.STYLE)
axes = plots.examples(category.test, detector.transform, predictions, one_of_each)
PATH.parent.mkdir(exist_ok=True)
axes[0, 0].figure.savefig(PATH, dpi=85, bbox_inches="tight")

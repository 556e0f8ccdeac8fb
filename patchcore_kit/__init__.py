"""PatchCore for industrial anomaly detection, fast and plain.

    category = pk.load_category("data/mvtec_anomaly_detection", "bottle")
    detector = pk.PatchCore(pk.load_backbone("wideresnet50")).fit(category.train)
    pk.evaluate(detector.predict(category.test))

Read `datasets`, `transforms`, `backbones`, `patches`, `coreset`, `memory_bank`, `detector` in this order, and you
have read the method. All modules by group, each behind those of its line that it builds on (docs/architecture.md):

    files and safety  errors notes progress arrays files reference_format
    data              images sample_data masks folders datasets data_check transforms image_cache
    method            weights starter calibration backbones tiles scoring patches appearance coreset memory_bank
                      suspects cover growth model_folder streaming detector ensemble
    results           metrics drawing reasons predictions results executors charts plots experiments report
    front ends        interrupts judgements watch widgets app cli
"""

import importlib
import os
from typing import TYPE_CHECKING

# torch and FAISS bring an OpenMP library each and take turns; idle threads of the one that keep waiting for work, as
# they do by default, would hold the cores that the other's need. Read when a library is loaded: import the kit first.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:  # for editors; at run time each module is loaded when a name of it is first asked for
    from patchcore_kit.backbones import Backbone, load_backbone
    from patchcore_kit.coreset import greedy_coreset
    from patchcore_kit.datasets import Category, Sample, find_data, list_categories, load_category, load_folder
    from patchcore_kit.detector import PatchCore
    from patchcore_kit.ensemble import PatchCoreEnsemble, load_detector
    from patchcore_kit.errors import DataError, KitError, ModelError, ResultsError, SettingsError, WeightsError
    from patchcore_kit.files import work_folder
    from patchcore_kit.image_cache import ImageCache
    from patchcore_kit.memory_bank import MemoryBank
    from patchcore_kit.metrics import METRICS
    from patchcore_kit.model_folder import load_transform
    from patchcore_kit.patches import embed
    from patchcore_kit.plots import save_segmentation_images
    from patchcore_kit.predictions import Predictions, evaluate
    from patchcore_kit.reference_format import find_models
    from patchcore_kit.results import COSTS, published_results, read_results, tied
    from patchcore_kit.sample_data import draw_sample_data
    from patchcore_kit.transforms import Transform, load_images, whole_resize

_NAMES = {
    "backbones": ("Backbone", "load_backbone"),
    "coreset": ("greedy_coreset",),
    "datasets": ("Category", "Sample", "find_data", "list_categories", "load_category", "load_folder"),
    "detector": ("PatchCore",),
    "ensemble": ("PatchCoreEnsemble", "load_detector"),
    "errors": ("DataError", "KitError", "ModelError", "ResultsError", "SettingsError", "WeightsError"),
    "files": ("work_folder",),
    "image_cache": ("ImageCache",),
    "memory_bank": ("MemoryBank",),
    "metrics": ("METRICS",),
    "model_folder": ("load_transform",),
    "patches": ("embed",),
    "plots": ("save_segmentation_images",),
    "predictions": ("Predictions", "evaluate"),
    "reference_format": ("find_models",),
    "results": ("COSTS", "published_results", "read_results", "tied"),
    "sample_data": ("draw_sample_data",),
    "transforms": ("Transform", "load_images", "whole_resize"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "COSTS",
    "METRICS",
    "Backbone",
    "Category",
    "DataError",
    "ImageCache",
    "KitError",
    "MemoryBank",
    "ModelError",
    "PatchCore",
    "PatchCoreEnsemble",
    "Predictions",
    "ResultsError",
    "Sample",
    "SettingsError",
    "Transform",
    "WeightsError",
    "draw_sample_data",
    "embed",
    "evaluate",
    "find_data",
    "find_models",
    "greedy_coreset",
    "list_categories",
    "load_backbone",
    "load_category",
    "load_detector",
    "load_folder",
    "load_images",
    "load_transform",
    "published_results",
    "read_results",
    "save_segmentation_images",
    "tied",
    "whole_resize",
    "work_folder",
]


def __getattr__(name: str) -> object:
    """What is not loaded yet: one of `__all__`, or a module. So `--help` does not wait for torch, nor fit for plots."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise  # a package that a module needs
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return globals().setdefault(name, getattr(module, name) if name in _MODULES else module)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Real images, weights and reference numbers, used where they lie and never copied; small drawn data for the rest."""

import logging
from pathlib import Path

import pytest

import patchcore_kit as pk

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"needs {name} in a folder `shared` beside the repository")
    return SHARED / name


@pytest.fixture(autouse=True)
def log_level():
    """The command line turns the kit's log up, for good."""
    logging.getLogger("patchcore_kit").setLevel(logging.NOTSET)
    yield
    logging.getLogger("patchcore_kit").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def mvtec() -> Path:
    return _shared("data/mvtec")


@pytest.fixture(scope="session")
def surface() -> Path:
    return _shared("data/surface")


@pytest.fixture(scope="session")
def golden() -> Path:
    return _shared("golden")


@pytest.fixture(scope="session")
def resnet18_file() -> Path:
    return _shared("weights/resnet18.pth")


@pytest.fixture(scope="session")
def resnet18(resnet18_file):
    return pk.load_backbone("resnet18", weights=resnet18_file)


@pytest.fixture(scope="session", params=[3, pytest.param(1, marks=pytest.mark.long)], ids=["some", "all"])
def every(request) -> int:
    """One in so many of the real images is enough for a short form."""
    return request.param


@pytest.fixture(scope="session")
def bottles(every, mvtec, tmp_path_factory) -> Path:
    """MVTec AD's bottle with all test images, but fewer to learn from: the data folder."""
    root = tmp_path_factory.mktemp("bottles") / "mvtec"
    for folder in sorted(path for path in (mvtec / "bottle").glob("*/*") if path.is_dir()):
        place = root / folder.relative_to(mvtec)
        place.mkdir(parents=True)
        for file in sorted(folder.iterdir())[:: every if folder.parent.name == "train" else 1]:
            (place / file.name).symlink_to(file.resolve())
    return root


class Real:
    """Bottles and magnetic tiles, and detectors with ResNet-18, fitted once for all tests that ask for them."""

    def __init__(self, backbone: pk.Backbone, bottles: Path, surface: Path):
        roots = {"bottle": bottles, "magnetic_tile": surface}
        self.categories = {name: pk.load_category(root, name) for name, root in roots.items()}
        self.resize = {"bottle": 256, "magnetic_tile": (224, 224)}
        self.backbone = backbone
        self._found: dict[tuple[str, str], tuple[pk.PatchCore, pk.Predictions]] = {}

    def found(self, name: str, scoring: str = "distance") -> tuple[pk.PatchCore, pk.Predictions]:
        """The fitted detector, and its predictions for all test images."""
        if (name, scoring) not in self._found:
            detector = pk.PatchCore(self.backbone, resize=self.resize[name], scoring=scoring, progress=False)
            detector.fit(self.categories[name].train)
            self._found[name, scoring] = detector, detector.predict(self.categories[name].test)
        return self._found[name, scoring]


@pytest.fixture(scope="session")
def real(resnet18, bottles, surface) -> Real:
    return Real(resnet18, bottles, surface)


@pytest.fixture(scope="session")
def random_resnet18():
    return pk.load_backbone("resnet18", weights="random")


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory) -> Path:
    """Two categories of small drawn images."""
    folder = tmp_path_factory.mktemp("data") / "sample"
    return pk.draw_sample_data(folder, ("weave", "pill"), train=8, good=4, defective=6, size=128, progress=False)

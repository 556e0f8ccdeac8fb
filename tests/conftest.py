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


@pytest.fixture(scope="session")
def random_resnet18():
    return pk.load_backbone("resnet18", weights="random")


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory) -> Path:
    """Two categories of small drawn images."""
    folder = tmp_path_factory.mktemp("data") / "sample"
    return pk.draw_sample_data(folder, ("weave", "pill"), train=8, good=4, defective=6, size=128, progress=False)

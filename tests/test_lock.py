import json
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tools"))

from lock import portable  # noqa: E402


def test_the_lock_names_no_index_and_knows_what_is_for_linux_only():
    text = (REPOSITORY / "Pipfile.lock").read_text()
    lock = json.loads(text)
    assert "://" not in text
    assert lock["_meta"]["sources"] == []
    assert portable(json.loads(text)) == lock  # nothing was left to do
    for name in ("triton", "nvidia-cublas", "cuda-bindings"):
        assert lock["default"][name]["markers"] == "sys_platform == 'linux'"
    assert (lock["default"]["torch"]["version"], lock["default"]["torchvision"]["version"]) == ("==2.14.1", "==0.29.1")

"""Bring notebooks and results back as shipped, for the next class: `make reset`. It deletes nothing.

What participants have made moves to a new folder in kept/: notebooks that differ from the committed ones, results, and
the model of their own parts. Other files in notebooks/, data and weights stay where they are.
"""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent
RESULTS = (
    "experiments",
    "evaluation",
    "predictions",
    "pictures",
    "report",
    "models/own",
    "notebooks/.ipynb_checkpoints",
)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout


def is_open(folder: Path) -> bool:
    """Whether this user has a JupyterLab of this folder open, outside of Docker."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    runtime = Path(os.environ.get("JUPYTER_RUNTIME_DIR") or Path(data, "jupyter/runtime")).expanduser()
    servers = [json.loads(file.read_text()) for file in runtime.glob("jpserver-*.json")]
    return any(Path("/proc", str(server["pid"])).exists() and Path(server["root_dir"]) == folder for server in servers)


def reset(folder: Path) -> None:
    """Move what participants have made, bring the notebooks back, and print what was done."""
    changed = git(folder, "diff", "--name-only", "--no-renames", "-z", "HEAD", "--", "notebooks").split("\0")
    made = [name for name in (*changed, *RESULTS) if name and (folder / name).exists()]
    if made:
        kept = folder / f"kept/{datetime.now():%Y-%m-%d_%H%M%S.%f}"
        kept.mkdir(parents=True)
        print(f"moved to {kept.relative_to(folder)}: {', '.join(made)}", flush=True)
        for name in made:
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).rename(kept / name)
    git(folder, "restore", "--source=HEAD", "--staged", "--worktree", "notebooks")
    print("notebooks and results are as shipped; other files in notebooks/, data and weights have stayed")


def main() -> None:
    if is_open(FOLDER):
        sys.exit("JupyterLab is open here: save what is wanted, end it with Ctrl-C, then `make reset` again")
    links = [name for name in RESULTS if (FOLDER / name).is_symlink()]
    if links:
        sys.exit(f"{links[0]} is a link: put away what it leads to, and remove the link, then `make reset` again")
    if not (FOLDER / ".git").exists():
        sys.exit("this folder is no git repository, so the notebooks as shipped are not known: get it with git clone")
    try:
        reset(FOLDER)
    except subprocess.CalledProcessError as error:
        sys.exit(f"not reset: git says {error.stderr.strip()}")
    except OSError as error:
        sys.exit(f"not reset: {error}")


if __name__ == "__main__":
    main()

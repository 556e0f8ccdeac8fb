"""All that the workshop takes without a network, in one folder for a stick: python tools/offline_bundle.py FOLDER

kit.tar      the repository's last commit, as a small git repository
wheels/      what its Pipfile.lock names, for this kind of computer
weights/     what is in weights/ here
data/        MVTec AD, where `--data` names it
install.sh   checks SHA256SUMS, then puts all of it into a folder
SHA256SUMS   comes last: without it install.sh refuses the bundle, and the same command goes on with it
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from environment import FOLDER, requirements


def committed(folder: Path, kit: Path) -> None:
    """A checkout's last commit as a git repository of its own, which knows nothing of where it comes from."""
    git = ["git", "-c", "core.logAllRefUpdates=false"]
    subprocess.run([*git, "clone", "--quiet", "--template=", "--no-local", "--depth=1", folder, kit], check=True)
    subprocess.run([*git, "-C", kit, "remote", "remove", "origin"], check=True)


def download(lock: Path, wheels: Path) -> None:
    """The wheels that a lock names; those that are there are not loaded again."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write(requirements(json.loads(lock.read_text())))
        wanted.flush()
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--require-hashes"]
        subprocess.run([*pip, "--only-binary=:all:", "--dest", wheels, "-r", wanted.name], check=True)


def seal(bundle: Path) -> int:
    """Write SHA256SUMS of all other files, as a whole or not at all -> their number of bytes."""
    sums, unfinished = bundle / "SHA256SUMS", bundle / "SHA256SUMS.part"
    paths = (path for path in bundle.rglob("*") if path.is_file() and path not in (sums, unfinished))
    files = sorted(path.relative_to(bundle) for path in paths)
    with unfinished.open("w") as out:
        subprocess.run(["sha256sum", "--", *files], check=True, cwd=bundle, stdout=out)
        out.write("# complete\n")  # or a copy that was cut off between two lines would pass
    unfinished.replace(sums)
    return sum((bundle / path).stat().st_size for path in files)


def make(folder: Path, bundle: Path, data: Path | None = None) -> int:
    """Fill the bundle from a checkout -> its bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        kit = Path(scratch, "kit")
        committed(folder, kit)
        bundle.mkdir(parents=True, exist_ok=True)
        download(kit / "Pipfile.lock", bundle / "wheels")
        subprocess.run(["tar", "-c", "--owner=0", "--group=0", "-f", bundle / "kit.tar", "-C", kit, "."], check=True)
        shutil.copy(kit / "tools/install.sh", bundle)
    for source, place in ((folder / "weights", "weights"), (data, "data/mvtec_anomaly_detection")):
        if source and source.is_dir():
            print(f"copying {source}", flush=True)
            shutil.copytree(source, bundle / place, dirs_exist_ok=True)
    return seal(bundle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, help="MVTec AD, to be taken along")
    args = parser.parse_args()
    if (args.bundle / "SHA256SUMS").exists():
        sys.exit(f"{args.bundle} is a complete bundle: move it away, or name another folder with OUT=")
    if args.data and not args.data.is_dir():
        sys.exit(f"{args.data} is no folder: DATA names the one that has MVTec AD in it")
    if subprocess.run(["git", "-C", FOLDER, "diff", "--quiet", "HEAD"], check=False).returncode:
        print("changes that are not committed stay out of it", flush=True)
    try:
        size = make(FOLDER, args.bundle, args.data)
    except (subprocess.CalledProcessError, KeyboardInterrupt):
        sys.exit(f"{args.bundle} is not complete: mend what is said above, then say this again, and it goes on")
    except OSError as error:
        sys.exit(f"{args.bundle} is not complete ({error}): mend that, then say this again, and it goes on")
    print(f"{args.bundle}: {size / 1e9:.1f} GB; without a network, `sh {args.bundle}/install.sh` installs it")


if __name__ == "__main__":
    main()

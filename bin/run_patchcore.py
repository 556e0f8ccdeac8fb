"""Train and evaluate PatchCore: `python bin/run_patchcore.py --help`."""

from patchcore_kit.interrupts import nothing_begun

with nothing_begun():
    from patchcore_kit.cli import run_patchcore as main

if __name__ == "__main__":
    main()

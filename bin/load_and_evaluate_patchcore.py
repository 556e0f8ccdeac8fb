"""Evaluate saved models: `python bin/load_and_evaluate_patchcore.py --help`."""

from patchcore_kit.interrupts import nothing_begun

with nothing_begun():
    from patchcore_kit.cli import load_and_evaluate_patchcore as main

if __name__ == "__main__":
    main()

"""Finds and explains what killed runs left behind: `python -m stages.doctor`; `--fix` mends it."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ganops.doctor import (
    Finding,
    Look,
    look_at_experiments,
    look_at_git,
    look_at_locks,
    look_at_runs,
    look_for_orphans,
    look_for_temporaries,
)
from ganops.errors import GanopsError
from ganops.files import format_bytes

# Orphans first: when they have ended, what they held or wrote is nobody's any more.
LOOKS = (look_for_orphans, look_at_git, look_at_locks, look_at_runs, look_for_temporaries, look_at_experiments)


def examine(root: Path, fix: bool, looks: tuple[Callable[[Path], Look], ...] = LOOKS) -> int:
    """Prints what is found and what is mended; 0 if all is well, 1 if something is left."""
    if not (root / "dvc.yaml").exists():
        print(f"{root.resolve()} has no dvc.yaml: run this in the repository's top folder")
    found = left = freed = 0
    for look in looks:
        try:
            notes, findings = look(root)
        except OSError as error:
            notes, findings = [], [Finding(f"not all could be looked at: {error}")]
        print(*notes, sep="\n", end="\n" * bool(notes))
        for finding in findings:
            found, left = found + 1, left + 1
            print(f"FOUND: {finding.text}", flush=True)
            if fix and finding.mend is not None:
                try:
                    print(f"  mended: {finding.mend()}")
                    left, freed = left - 1, freed + finding.frees
                except (GanopsError, OSError) as error:
                    print(f"  left: {error}")
            elif fix:
                print("  left to you")
    if not found:
        print("All is well.")
    elif fix:
        print(f"{found - left} of {found} mended, {format_bytes(freed)} freed.")
    else:
        print("`python -m stages.doctor --fix` mends those of them that it can.")
    return 1 if left else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stages.doctor", description=__doc__, allow_abbrev=False)
    parser.add_argument("--fix", action="store_true", help="mend what can be mended safely")
    sys.exit(examine(Path(), parser.parse_args().fix))

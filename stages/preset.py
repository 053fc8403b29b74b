"""Puts a preset in place of params.yaml: `python -m stages.preset presets/cifar10.yaml`.

Refuses when params.yaml has edits that neither git nor a preset holds: they would be lost.
"""

import difflib
import subprocess
import sys
from pathlib import Path

from ganops.config import load_params
from ganops.errors import GanopsError, ParamsError
from ganops.files import copy_file

PARAMS = Path("params.yaml")
PRESETS = Path("presets")


def put_in_place(preset: Path) -> None:
    """Copies a checked preset over params.yaml.

    Raises:
        ParamsError: the preset is missing or wrong, or params.yaml has edits that git does not hold.
    """
    if not preset.is_file():
        raise ParamsError(f"{preset} is not a preset. {choice(preset)}")
    load_params(preset)
    if PARAMS.exists() and PARAMS.read_bytes() not in [path.read_bytes() for path in (preset, *PRESETS.glob("*.yaml"))]:
        committed = subprocess.run(["git", "show", f"HEAD:./{PARAMS}"], capture_output=True, check=False)
        if committed.returncode or committed.stdout != PARAMS.read_bytes():
            raise ParamsError(f"{PARAMS} has edits that are not committed. Commit them, or `git checkout {PARAMS}`.")
    copy_file(preset, PARAMS)
    print(f"params.yaml is now {preset}. Look at prepare.source, then run `dvc repro`.")


def choice(asked: Path) -> str:
    """What could have been meant, and all there is."""
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if not names:
        return f"There is no {PRESETS}/ in {Path.cwd()}: run this in the root of the repository."
    near = difflib.get_close_matches(asked.stem.lower(), names, n=1, cutoff=0.6)
    meant = f"Did you mean {PRESETS}/{near[0]}.yaml? " if near else ""
    return f"{meant}There are, in {PRESETS}/: {', '.join(names)}."


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m stages.preset presets/NAME.yaml")
    try:
        put_in_place(Path(sys.argv[1]))
    except (GanopsError, OSError) as error:  # OSError: no git, a folder that may not be written to
        sys.exit(f"preset: {error}")

"""Directions in w that change the styles most (SeFa): `python -m stages.directions SNAPSHOT FOLDER`.

Values: section directions of params.yaml.
"""

from ganops.explore.directions import draw_directions
from ganops.explore.tool import run_tool

if __name__ == "__main__":
    run_tool("directions", "SNAPSHOT FOLDER", lambda params, paths: draw_directions(params, *paths), resumable=True)

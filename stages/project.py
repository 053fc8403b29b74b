"""Finds the latent of an image: `python -m stages.project SNAPSHOT IMAGE FOLDER`. Values: section project of params.yaml.

Killed: the same command goes on where it was.
"""

from pathlib import Path

from ganops.config import Params
from ganops.explore.project import project_image
from ganops.explore.tool import run_tool


def main(params: Params, paths: list[Path]) -> None:
    """Weights of distances are kept in data/weights of the current folder."""
    snapshot, image, folder = paths
    project_image(params, snapshot, image, folder, Path())


if __name__ == "__main__":
    run_tool("project", "SNAPSHOT IMAGE FOLDER", main, resumable=True)

"""A film from latent to latent, or of truncation: `python -m stages.interpolate SNAPSHOT TARGET`.

TARGET ends in .mp4, .gif, or .png (a strip of some frames). Values: section interpolate of params.yaml.
"""

from ganops.explore.interpolate import draw_interpolation
from ganops.explore.tool import run_tool

if __name__ == "__main__":
    run_tool(
        "interpolate", "SNAPSHOT TARGET", lambda params, paths: draw_interpolation(params, *paths), resumable=False
    )

"""Images by seed, and contact sheets: `python -m stages.images SNAPSHOT FOLDER`. Values: section images of params.yaml.

Killed or given more seeds: the same command draws what is missing.
"""

from ganops.explore.images import draw_images
from ganops.explore.tool import run_tool

if __name__ == "__main__":
    run_tool("images", "SNAPSHOT FOLDER", lambda params, paths: draw_images(params, *paths), resumable=True)

"""A grid of mixed styles: `python -m stages.style_mixing SNAPSHOT PICTURE.png`.

Values: section style_mixing of params.yaml.
"""

from ganops.explore.style_mixing import draw_style_mixing
from ganops.explore.tool import run_tool

if __name__ == "__main__":
    run_tool(
        "style_mixing", "SNAPSHOT PICTURE.png", lambda params, paths: draw_style_mixing(params, *paths), resumable=False
    )

"""Vega without a network: its scripts as one piece of HTML, and the page of `dvc plots` made with them.

`plots.html_template` in .dvc/config names the page; DVC reads it relative to the folder .dvc, so it is the same file in
clones, in subfolders and in the copies of `dvc exp run --temp`. `python -m ganops.report.offline` writes it again.
"""

from pathlib import Path

from ganops.files import write_bytes

ROOM = Path(__file__).parent
SCRIPTS = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")  # each needs those before it
PLOTS_PAGE = Path(".dvc/plots.html")


def vega_scripts() -> str:
    """Vega, Vega-Lite and Vega-Embed as HTML: a comment with their licences and three inline scripts.

    Lines that name source maps are left out: they are the only thing in the files that a browser would fetch.
    """
    parts = [f"<!--\n{(ROOM / 'vega' / 'LICENSES.txt').read_text(encoding='utf8')}-->"]
    for name in SCRIPTS:
        lines = (ROOM / "vega" / name).read_text(encoding="utf8").split("\n")
        code = "\n".join(line for line in lines if not line.startswith("//# sourceMappingURL="))
        parts.append(f"<script>\n{code}\n</script>")
    return "\n".join(parts) + "\n"


def plots_page() -> str:
    """The template of `dvc plots`: DVC fills {refresh_tag} and {plot_divs}; it has no {scripts}, which would be remote."""
    return (ROOM / "plots.html").read_text(encoding="utf8").replace("{vega}", vega_scripts())


if __name__ == "__main__":
    write_bytes(PLOTS_PAGE, plots_page().encode())

"""`dvc plots` in a fresh clone: its page draws without a network."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.pipeline.clone import Clone, copy_project
from tests.unit.browser import needs_browser, open_page

HISTORY = """kimg,G_loss,D_loss,real_sign,fake_sign,G_grad_norm,D_grad_norm,distance
1,1.0,1.2,0.5,-0.5,1.9,0.5,
2,0.9,1.3,0.4,-0.4,1.8,0.4,90
3,0.8,1.3,0.3,-0.3,1.7,0.3,
4,0.7,1.4,0.2,-0.2,1.6,0.2,80
"""
CHARTS = ["Losses", "Signs_of_D", "Gradient_norms", "results_train_history_csv"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A project with a history and two grids; its page is in dvc_plots."""
    clone = copy_project(tmp_path_factory.mktemp("plots") / "repository")
    grids = clone.path / "results" / "train" / "grids"
    grids.mkdir(parents=True)
    (grids.parent / "history.csv").write_text(HISTORY)
    samples = clone.path / "results" / "samples"
    samples.mkdir()
    for path in (grids / "000000.png", grids / "000006.png", samples / "grid.png"):
        Image.new("L", (40, 20)).save(path)
    clone.commit()
    clone.dvc("plots", "show")
    return clone


def test_page_fetches_nothing(clone: Clone) -> None:
    page = (clone.path / "dvc_plots" / "index.html").read_text()
    assert "cdn.jsdelivr" not in page
    assert re.findall(r'<script[^>]*\bsrc="[^"]*"', page) == []
    assert re.findall(r"vegaEmbed\('#(\w+)', spec\)", page) == CHARTS


def test_template_is_found_from_a_subfolder(clone: Clone, tmp_path: Path) -> None:
    clone.run("sh", "-c", f"cd stages && dvc plots show -o {tmp_path / 'page'}")
    assert "cdn.jsdelivr" not in (tmp_path / "page" / "index.html").read_text()


@needs_browser
def test_browser_draws_every_plot(clone: Clone, tmp_path: Path) -> None:
    dom, errors = open_page(clone.path / "dvc_plots" / "index.html", tmp_path / "profile")
    assert errors == []
    body = dom.rsplit("<body>", 1)[1]
    assert len(re.findall(r"<canvas|<svg[^>]* class=\"marks\"", body)) == len(CHARTS)
    assert [title for title in re.findall(r"<p>(.*?)</p>", body) if "kimg" in title] == [
        "G_ema after 0 kimg", "G_ema after 6 kimg",
    ]  # fmt: skip

"""results/report.html: what it says, that nothing in it is fetched or run, and that it is the same every time."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ganops.config import Params, load_params
from ganops.config_tools import TOOLS
from ganops.errors import DataError
from ganops.report.charts import KIMG, training_charts
from ganops.report.inputs import Inputs, Paths, read_inputs
from ganops.report.metrics import flatten, read_metrics
from ganops.report.offline import PLOTS_PAGE, SCRIPTS, plots_page, vega_scripts
from ganops.report.page import MOST_GRIDS, make_page
from ganops.report.pictures import MOST_WIDTH, embed, spread
from tests.unit.browser import needs_browser, open_page

ROOT = Path(__file__).parents[2]
EVIL = "</script><img src=x onerror=alert(1)>\"'&amp;"
RESULT: dict[str, Any] = {
    "fd_efflite0": 55.64613,
    "fd_efflite0_ci95": 1.3123,
    "fd_efflite0_corrected": 41.25,
    "kd_efflite0": 0.0103,
    "kd_efflite0_std": 0.0011,
    "memorised_efflite0": 0.021,
    "classes": {"zero": {"class_recall_efflite0": 0.5, "num_fake": 7}, "one": {"num_fake": 1}},
    "protocol": {
        "name": "fd_efflite0",
        "num_fake": 1797,
        "num_real": 1700,
        "num_features": 1280,
        "num_fake_below_dimension": False,
        "extractor_sha256": "5" * 64,
        "versions": {"torch": "9.8.7"},
        "samples": {"snapshot_sha256": "8" * 64, "training": {"run": "48473a1774014283", "kimg": 42.0}},
    },
}
INDEX: dict[str, Any] = {
    "num_images": 12345, "height": 16, "width": 12, "channels": 1, "bits": 8, "multi_label": False,
    "class_names": ["zero", "one"], "class_counts": [12340, 5],
    "digest": "d" * 64, "source": {"crop": "none", "resize_filter": "box", "enlarged": 3, "skipped": [{}, {}]},
}  # fmt: skip
HEAD = (
    "kimg,G_loss,D_loss,real_sign,fake_sign,r1_penalty,pl_penalty,pl_mean,G_grad_norm,D_grad_norm,G_lr,D_lr,distance,"
)
HISTORY = (
    HEAD
    + """kid,metric,metric_digest
1,1.0,1.2,0.5,-0.5,0.1,,0,1.9,0.5,0.004,0.004,,,,aa
2,0.9,1.3,0.4,-0.4,0.2,,0,1.8,0.4,0.004,0.004,90,0.2,fd_efflite0,old
3,nan,1.3,0.3,-0.3,0.3,,0,inf,0.3,0.004,0.004,70.5,0.1,fd_efflite0,aa
4,0.7,1.4,0.2,-0.2,0.4,,0,1.6,0.2,0.004,0.004,80,0.15,fd_efflite0,aa
"""
)


def write_inputs(root: Path, history: str = HISTORY, grids: int = 3, **changes: Mapping[str, Any]) -> Paths:
    """A tiny finished run in the places of dvc.yaml; `changes`: index or result in place of the usual."""
    texts = {
        "results/fid.json": json.dumps(changes.get("result", RESULT)),
        "results/train/history.csv": history,
        "results/train/metrics.json": json.dumps({"kimg": 4.0, "sec_per_kimg": 5.5}),
        "data/shards/index.json": json.dumps(changes.get("index", INDEX)),
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "results/train/grids").mkdir()
    pictures = [f"results/train/grids/{6 * i:06d}.png" for i in range(grids)]
    pictures += ["results/train/reals.png", "results/neighbours.png"]
    pictures += ["results/samples/grid.png", "results/samples/truncation.png"]
    for level, name in enumerate(pictures):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("L", (40, 20), level).save(root / name)
    results = root / "results"
    return Paths(
        results / "fid.json", results / "train/history.csv", results / "train/metrics.json", results / "train/grids",
        results / "train/reals.png", results / "samples", results / "neighbours.png", root / "data/shards/index.json",
    )  # fmt: skip


@pytest.fixture
def params() -> Params:
    return load_params(ROOT / "params.yaml")


@pytest.fixture
def make(tmp_path: Path, params: Params) -> Callable[..., str]:
    """Makes the page of inputs like those of `write_inputs`."""

    def make(**changes: Any) -> str:
        return make_page(read(tmp_path, params, **changes))

    return make


def read(root: Path, params: Params, **changes: Any) -> Inputs:
    values = params.model_dump(exclude={"run"})
    values["prepare"]["source"] = changes.pop("source", "data/digits")
    return read_inputs(write_inputs(root, **changes), values)


def text_of(page: str) -> str:
    """What people read: no scripts, styles, comments, tags and pictures."""
    page = re.sub(r"(?s)<(script|style)\b.*?</\1>|<!--.*?-->", " ", page)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page)))


def charts_of(page: str) -> list[Any]:
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', page)
    assert found
    return list(json.loads(found[1]))


def test_says_everything(make: Callable[..., str], params: Params) -> None:
    page = make()
    text = text_of(page)
    assert "<title>data/digits: fd_efflite0 55.6 ± 1.3</title>" in page
    for expected in (
        "55.6 ± 1.3 fd_efflite0", "not comparable with published FIDs", "1,797 generated images against 1,700 real images",
        "12,345", "16 x 12 px (height x width), grey, 8 bits", "5 to 12,340 images", "41.25", "± 1.3 (95 %)",
        "parts of the samples: std. dev. 0.0011",
        "2.1% of the samples", "The best, 70.5 at 3 kimg, has a ring", "12 kimg", "Real images in the same layout",
        "psi = 0, 0.3, 0.5, 0.7, 0.9, 1", "class_recall_efflite0", "48473a1774014283", "8" * 64, "d" * 64, "9.8.7",
        "samples.training.run", "num_fake_below_dimension false", "sec_per_kimg 5.5", "null",
    ):  # fmt: skip
        assert expected in text, expected
    for name, value in params.model_dump().items():
        for key in value:
            assert (f" {key} " in text) or name == "run", key
    assert "rendezvous" not in text
    assert "biased upwards" not in text
    titles = [spec["description"].split(",")[0].split(":")[0] for spec in charts_of(page)]
    assert titles == [
        "Images per class", "Distance to the real images", "Losses", "Signs of D", "Gradient norms", "R1 penalty",
        "Kernel distance",
    ]  # fmt: skip
    assert page.count('class="chart"') == len(titles)
    # Three grids, the last also large; reals, samples, truncation, neighbours.
    assert page.count("data:image/png;base64,") == 3 + 1 + 4
    assert all(re.search(r'\balt="[^"]+"', image) for image in re.findall(r"<img[^>]*>", page.split("<script")[0]))


def test_warns_of_few_images(make: Callable[..., str]) -> None:
    protocol = {**RESULT["protocol"], "num_fake_below_dimension": True}
    assert "Fewer images than the 1280 features" in text_of(make(result={**RESULT, "protocol": protocol}))


def test_headline_without_distance(make: Callable[..., str]) -> None:
    page = make(result={"kid_clean": 0.25, "protocol": {**RESULT["protocol"], "name": "fid_clean"}})
    assert "<title>data/digits: kid_clean 0.25</title>" in page


def test_text_from_data_stays_text(make: Callable[..., str]) -> None:
    index = {**INDEX, "class_names": [EVIL, "</SCRIPT><!--"]}
    protocol = {**RESULT["protocol"], "extractor": EVIL}
    page = make(
        index=index, source=EVIL, result={**RESULT, EVIL: 1.5, "classes": {EVIL: {EVIL: 1}}, "protocol": protocol}
    )
    assert "<img src=x" not in page
    assert [row["class"] for row in charts_of(page)[0]["data"]["values"]] == [EVIL, "</SCRIPT><!--"]
    assert page.lower().count("<script") == page.lower().count("</script>") == 5
    assert text_of(page).count("alert(1)") >= 6
    assert page.count("<!--") == page.count("-->") == 1  # the licences


def test_nothing_is_fetched(make: Callable[..., str]) -> None:
    page = re.sub(r"(?s)<!--.*?-->", "", make())
    addresses = set(re.findall(r"https?://[^\s\"'`)\\]*", page))
    names = {  # of XML namespaces and schemas, the protocols that Vega's loader knows, and text that Vega may show
        "http://www.w3.org/2000/svg", "http://www.w3.org/2000/xmlns/", "http://www.w3.org/1999/xlink", "http://", "https://",
        "https://vega.github.io/schema/vega-lite/v5.json", "https://vega.github.io/schema/vega/v5.json",
        "https://vega.github.io/editor/", "https://github.com/vega/vega-lite/issues/2415",
        "https://github.com/Starcounter-Jack/JSON-Patch",
    }  # fmt: skip
    assert addresses <= names
    assert "default-src 'none'; img-src data:" in page
    assert "sourceMappingURL" not in page
    html = re.sub(r"(?s)<(script|style)\b.*?</\1>", "", page)
    assert all(target.startswith(("data:", "#")) for target in re.findall(r'(?:src|href)="([^"]*)"', html))
    assert "<link" not in html
    assert "cdn" not in text_of(page)
    assert not re.search(r"@import|url\(", (ROOT / "ganops/report/page.css").read_text())


def test_unlabelled(make: Callable[..., str]) -> None:
    page = make(index={**INDEX, "class_names": [], "class_counts": []})
    assert "none, unlabelled" in text_of(page)
    assert "Images per class" not in page
    assert charts_of(page)[0]["description"].startswith("Distance")


def test_empty_history(make: Callable[..., str]) -> None:
    page = make(history=HISTORY.splitlines()[0] + "\n", grids=0)
    assert "The history has no tick yet" in text_of(page)
    assert "No grid was drawn" in text_of(page)
    assert 'id="slider"' not in page
    assert len(charts_of(page)) == 1


def test_one_tick_and_nothing_measured(make: Callable[..., str]) -> None:
    page = make(history="\n".join(HISTORY.splitlines()[:2]) + "\n", grids=1)
    assert "No metric was measured during training (train.metric_kimg: 0)" in text_of(page)
    losses = charts_of(page)[1]
    assert [row["value"] for row in losses["data"]["values"]] == [1.0, 1.2]
    assert losses["layer"][1]["encoding"]["opacity"]["value"] > 0  # a line of one point would be invisible


def rows(text: str = HISTORY) -> list[dict[str, str]]:
    head, *lines = (line.split(",") for line in text.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_not_finite_leaves_a_gap_and_empty_does_not() -> None:
    charts = {chart.title: chart.spec for chart in training_charts(rows(), "distance")}
    G = [row["value"] for row in charts["Losses"]["data"]["values"] if row["series"] == "G"]
    assert G == [1.0, 0.9, None, 0.7]
    assert [row["value"] for row in charts["Distance to the real images"]["data"]["values"]] == [70.5, 80.0]
    assert charts["Losses"]["encoding"]["x"]["title"] == KIMG


def test_only_comparable_values_and_the_best() -> None:
    charts = {chart.title: chart for chart in training_charts(rows(), "kid")}
    assert "1 values that were measured with other code" in charts["Kernel distance"].reading
    assert "The best, 0.1 at 3 kimg" in charts["Kernel distance"].reading
    assert "ring" not in charts["Distance to the real images"].reading
    assert charts["Kernel distance"].spec["layer"][-1]["data"]["values"][0]["value"] == 0.1
    larger = [{"kimg": f"{i}", "recall": f"{value}", "metric_digest": "aa"} for i, value in enumerate((0.1, 0.3, 0.2))]
    assert "The best, 0.3 at 1 kimg" in training_charts(larger, "recall")[0].reading


def test_learning_rates_only_if_they_vary() -> None:
    constant, varying = rows(), rows(HISTORY.replace("0.004,0.004,80", "0.003,0.004,80"))
    assert "Learning rates" not in [chart.title for chart in training_charts(constant, "distance")]
    assert "Learning rates" in [chart.title for chart in training_charts(varying, "distance")]


def test_wide_ranges_are_logarithmic() -> None:
    wide = [{"kimg": "1", "G_loss": "0.1"}, {"kimg": "2", "G_loss": "10"}]
    scale = training_charts(wide, "distance")[0].spec["encoding"]["y"]["scale"]
    assert scale["type"] == "log"


@pytest.mark.parametrize(
    "name",
    ["results/fid.json", "results/train/history.csv", "results/train/metrics.json", "results/train/grids",
     "results/train/reals.png", "results/samples/grid.png", "results/samples/truncation.png", "results/neighbours.png",
     "data/shards/index.json"],
)  # fmt: skip
def test_missing_input(tmp_path: Path, params: Params, name: str) -> None:
    paths = write_inputs(tmp_path)
    shutil.rmtree(tmp_path / name) if (tmp_path / name).is_dir() else (tmp_path / name).unlink()
    with pytest.raises(
        DataError, match=rf"^{tmp_path / name} is missing. Run `dvc repro \w+`, the stage that writes it.$"
    ):
        read_inputs(paths, params.model_dump())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results/fid.json", "{", "is not JSON"),
        ("results/fid.json", "[1]", "holds a list"),
        ("results/fid.json", '{"protocol": {"name": "fid"}}', "has no number"),
        ("results/fid.json", '{"fid": 1.0}', "no protocol.name"),
        ("data/shards/index.json", "{}", "has no bits"),
        ("results/train/history.csv", "tick\n1\n", "no column kimg"),
        ("results/train/history.csv", "kimg,G_loss\n,1\n", "a row without kimg"),
        ("results/train/history.csv", "kimg,G_loss\n1,abc\n", "'abc' where a number should be"),
        ("results/train/reals.png", "no picture", "not a whole PNG"),
    ],
)
def test_broken_input(tmp_path: Path, params: Params, name: str, content: str, message: str) -> None:
    paths = write_inputs(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        make_page(read_inputs(paths, params.model_dump()))
    assert "\n" not in str(caught.value)


def test_large_pictures_become_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1800, 4), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    picture = embed(tmp_path / "a.png", 100_000)
    kind, content = picture.uri.split(";base64,")
    assert kind == "data:image/jpeg"
    assert len(base64.b64decode(content)) <= 100_000
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (picture.width, picture.height)
    assert picture.width <= MOST_WIDTH
    assert picture.width == pytest.approx(2 * picture.height, abs=2)
    Image.new("RGB", (1800, 900)).save(tmp_path / "b.png")
    wide = embed(tmp_path / "b.png", 100_000)
    assert (wide.width, wide.height) == (1200, 600)
    assert wide.uri.startswith("data:image/png")
    Image.new("RGB", (90, 90)).save(tmp_path / "c.png")
    kept = base64.b64decode(embed(tmp_path / "c.png", 100_000).uri.split(",")[1])
    assert kept == (tmp_path / "c.png").read_bytes()


def test_grids_are_evenly_chosen(make: Callable[..., str]) -> None:
    assert spread(range(101), 5) == [0, 25, 50, 75, 100]
    assert spread(range(3), 5) == [0, 1, 2]
    page = make(grids=60)
    assert page.count('<button type="button"') == MOST_GRIDS
    assert "after 0 kimg" in page
    assert "after 354 kimg" in page


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(55.64613, 1.3123, "55.6 ± 1.3"), (0.0103, 0.00112, "0.0103 ± 0.0011"), (1234.5, 250.0, "1,234 ± 250"),
     (5.0, None, "5"), (float("nan"), 1.0, "not finite"), (5.0, 0.0, "5")],
)  # fmt: skip
def test_digits_follow_the_interval(value: float, error: float | None, text: str) -> None:
    result = {"fid_clean": value} | ({} if error is None else {"fid_clean_ci95": error})
    (metric,) = read_metrics(result)
    assert metric.text() == text
    assert metric.meaning.startswith("Fréchet distance of features of Inception-2015")


def test_flatten() -> None:
    assert flatten({"a": {"b": None, "c": {}}, "d": True, "e": "", "f": 1e-8, "g": [1, "x"]}) == {
        "a.b": "null", "a.c": "{}", "d": "true", "e": '""', "f": "1e-08", "g": '[1, "x"]',
    }  # fmt: skip


def test_same_bytes_in_every_process(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    pages = []
    for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo")):
        settings = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "TZ": zone}
        command = [sys.executable, "-m", "stages.report"]
        done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"report: results/report.html \(\d.*B\); open it in a browser\n", done.stdout)
        pages.append((tmp_path / "results/report.html").read_bytes())
        (tmp_path / "results/report.html").unlink()
    assert pages[0] == pages[1]
    (tmp_path / "results/neighbours.png").unlink()
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "report: results/neighbours.png is missing. Run `dvc repro fid`, the stage that writes it.\n"


def test_depends_on_all_params_but_run_and_tools() -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["report"]
    assert stage["params"] == [name for name in Params.model_fields if name not in {"run", *TOOLS}]


def test_plots_page_is_made_of_these_scripts() -> None:
    page = (ROOT / PLOTS_PAGE).read_text(encoding="utf8")
    assert page == plots_page(), "run `python -m ganops.report.offline`"
    assert [page.count(name) for name in ("{plot_divs}", "{refresh_tag}", "{scripts}")] == [1, 1, 0]
    assert f"html_template = {PLOTS_PAGE.name}\n" in (ROOT / ".dvc/config").read_text()


def test_scripts_are_as_published() -> None:
    room = ROOT / "ganops/report/vega"
    table = dict(re.findall(r"\| ([\w.-]+\.js) \|.*\| ([0-9a-f]{64}) \|", (room / "README.md").read_text()))
    assert table == {name: hashlib.sha256((room / name).read_bytes()).hexdigest() for name in SCRIPTS}
    assert vega_scripts().count("</script") == len(SCRIPTS)
    assert vega_scripts().count("-->") == 1


@needs_browser
def test_browser_draws_every_chart(tmp_path: Path, params: Params) -> None:
    inputs = read(tmp_path, params, index={**INDEX, "class_names": [EVIL, "one"]}, source=EVIL)
    page = make_page(inputs)
    (tmp_path / "report.html").write_text(page, encoding="utf8")
    dom, errors = open_page(tmp_path / "report.html", tmp_path / "profile")
    assert errors == []
    assert "could not be drawn" not in re.sub(r"(?s)<script.*?</script>", "", dom)
    places = re.findall(r'(?s)<div class="chart[^>]* id="chart-\d+".*?(?=<figcaption>|</figure>)', dom)
    assert len(places) == len(charts_of(page))
    for place in places:
        assert "<svg" in place
        assert re.search(r'class="mark-(line|rect|symbol) role-mark[^>]*>.*?<path [^>]*d="M', place)
    assert re.search(r'<button type="button" aria-pressed="true"><img[^>]*>12 kimg', dom)
    assert '<img src="x"' not in dom


@needs_browser
def test_browser_draws_what_is_hardly_there(tmp_path: Path, params: Params) -> None:
    inputs = read(tmp_path, params, history="\n".join(HISTORY.splitlines()[:2]) + "\n", grids=0)
    page = make_page(replace(inputs, index={**INDEX, "class_names": [], "class_counts": []}))
    (tmp_path / "report.html").write_text(page, encoding="utf8")
    dom, errors = open_page(tmp_path / "report.html", tmp_path / "profile")
    assert errors == []
    assert len(re.findall(r'<svg[^>]* class="marks"', dom)) == len(charts_of(page)) == 4

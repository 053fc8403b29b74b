"""results/report.html: one file that needs no other and no network. Text from data is escaped; nothing says when or where.

The page's Content-Security-Policy lets a browser fetch nothing at all, and run no text as code.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ganops.report.charts import Chart, class_chart, comparable, training_charts
from ganops.report.elements import figure, json_for_script, rows_table, section, table
from ganops.report.inputs import Inputs
from ganops.report.metrics import Metric, flatten, read_metrics, show
from ganops.report.offline import vega_scripts
from ganops.report.pictures import embed, spread

ROOM = Path(__file__).parent
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
MOST_GRIDS = 24
MOST_GRID_BYTES = 300_000  # 24 of them, base64: 10 MB


def make_page(inputs: Inputs) -> str:
    """The whole report. The same inputs give the same text.

    Raises:
        DataError: a picture or a cell of the history cannot be read.
    """
    metrics = read_metrics(inputs.result)
    headline = next(metric for metric in metrics if metric.name == inputs.metric)
    charts: list[Chart] = []
    sections = {
        "Data": _data(inputs, charts),
        "Metrics": _metrics(inputs, metrics),
        "Training": _training(inputs, charts),
        "Images": _pictures(inputs),
        "Neighbours": _neighbours(inputs, metrics),
        "Parameters": _params(inputs),
        "Provenance": _provenance(inputs),
    }
    source = show(inputs.params["prepare"]["source"])
    title = f"{source}: {headline.name} {headline.text()}"
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "\n".join(section(name.lower(), name, content) for name, content in sections.items())
    specs = json_for_script([chart.spec for chart in charts])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{(ROOM / "page.css").read_text(encoding="utf8")}</style>
</head>
<body>
<header>
<h1>StyleGAN2 on {escape(source)}</h1>
{_headline(inputs, headline)}
<nav aria-label="Sections">{links}</nav>
<noscript><p class="warning">Charts need JavaScript; pictures and tables do not.</p></noscript>
</header>
<main>
{body}
</main>
<script type="application/json" id="specs">{specs}</script>
{vega_scripts()}<script>
{(ROOM / "page.js").read_text(encoding="utf8")}</script>
</body>
</html>
"""


def _headline(inputs: Inputs, metric: Metric) -> str:
    protocol = inputs.result["protocol"]
    counts = [("generated", protocol.get("num_fake")), ("real", protocol.get("num_real"))]
    known = " against ".join(f"{number:,} {kind} images" for kind, number in counts if isinstance(number, int))
    parts = [f"<p>{escape(metric.meaning)} {known and f'Measured on {known}.'}</p>"]
    if metric.ci95 is not None:
        parts.append(
            '<p class="note">± is a 95 % interval: another draw of as many samples of this generator would mostly fall '
            "into it. It holds the real images fixed and says nothing of another training run.</p>"
        )
    if protocol.get("num_real_below_dimension") or protocol.get("num_fake_below_dimension"):
        parts.append(
            f'<p class="warning">Fewer images than the {show(protocol.get("num_features"))} features: the number is '
            "biased upwards. Compare it only with numbers of equal counts.</p>"
        )
    return f'<p class="headline">{escape(metric.text())} <small>{escape(metric.name)}</small></p>' + "".join(parts)


def _data(inputs: Inputs, charts: list[Chart]) -> str:
    index = inputs.index
    source = index.get("source") or {}
    names, counts = index["class_names"], index["class_counts"]
    kinds = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGBA"}
    colours = kinds.get(index["channels"], f"{index['channels']} channels")
    group, groups = ("Attribute", "Attributes") if index["multi_label"] else ("Class", "Classes")
    rows = {
        "Images": index["num_images"],
        "Size": f"{index['height']} x {index['width']} px (height x width), {colours}, {index['bits']} bits",
        groups: len(names) or "none, unlabelled",
        "Crop": source.get("crop"),
        "Resize filter": source.get("resize_filter"),
        "Enlarged images": source.get("enlarged"),
        "Skipped images": len(source.get("skipped") or []),
    }
    facts = table(rows, "What training saw")
    if not names:
        return facts
    title = f"Images per {group.lower()}"
    classes = rows_table((group, "Images"), zip(names, counts, strict=True), title)
    details = f"<details><summary>{title} as a table</summary>{classes}</details>"
    return (
        f'<div class="columns"><div>{facts}</div><div>{_chart(class_chart(names, counts), charts)}</div></div>{details}'
    )


def _metrics(inputs: Inputs, metrics: Sequence[Metric]) -> str:
    cells = []
    for metric in sorted(metrics, key=lambda metric: metric.name != inputs.metric):  # the headline's first
        interval = f"± {metric.ci95:.2g} (95 %)" if metric.ci95 is not None else ""
        if metric.ci95 is None and metric.std is not None:
            interval = f"parts of the samples: std. dev. {metric.std:.2g}"
        corrected = show(metric.corrected) if metric.corrected is not None else ""
        cells.append((metric.name, show(metric.value), interval, corrected, metric.meaning))
    html = rows_table(("Number", "Value", "Interval", "Corrected", "How to read it"), cells, "results/fid.json")
    html += (
        '<p class="note">Corrected: less the bias of finitely many samples as the jackknife estimates it; it corrects too '
        "much where the samples are not several times as many as the features. Numbers with different names, or with "
        "another protocol (below), may not be compared.</p>"
    )
    for name, values in inputs.result.items():
        if name != "protocol" and isinstance(values, Mapping):  # numbers of each class
            columns = sorted({key for row in values.values() for key in row})
            lines = [(key, *(row.get(column, "") for column in columns)) for key, row in values.items()]
            numbers = rows_table(("Name", *columns), lines, f"results/fid.json: {name}")
            html += f"<details><summary>{escape(name.capitalize())}</summary>{numbers}</details>"
    return html


def _training(inputs: Inputs, charts: list[Chart]) -> str:
    drawn = training_charts(inputs.history, inputs.params["train"]["best_by"])
    html = ""
    if not inputs.history:
        html += "<p>The history has no tick yet.</p>"
    elif not comparable(inputs.history):
        html += "<p>No metric was measured during training (train.metric_kimg: 0).</p>"
    figures = "".join(_chart(chart, charts) for chart in drawn)
    facts = table(inputs.summary, "At the end of training (means over the last tick)")
    return (
        f'{html}<div class="columns">{figures}</div><details><summary>Last tick in numbers</summary>{facts}</details>'
    )


def _pictures(inputs: Inputs) -> str:
    sample = inputs.params["sample"]
    chosen = [(kimg, embed(path, MOST_GRID_BYTES)) for kimg, path in spread(inputs.grids, MOST_GRIDS)]
    reals = figure("Real images in the same layout", inputs.reals)
    if not chosen:
        html = f"<p>No grid was drawn during training (train.image_kimg: 0).</p>{reals}"
    else:
        last_kimg, last = chosen[-1]
        strip = "".join(
            f'<button type="button" aria-pressed="false"><img src="{picture.uri}" width="{picture.width}" '
            f'height="{picture.height}" alt="Generated images after {kimg:,} kimg">{kimg:,} kimg</button>'
            for kimg, picture in chosen
        )
        html = (
            '<h3>Over time, beside real images</h3><p class="note">The same latents at every time, averaged weights '
            "(G_ema), no truncation; a row per class where there are classes.</p>"
            f'<p><label>Time <input id="slider" type="range" min="0" max="{len(chosen) - 1}" value="{len(chosen) - 1}">'
            f'</label></p><div class="strip">{strip}</div><div class="columns"><figure><img id="large" src="{last.uri}" '
            f'alt="Generated images after {last_kimg:,} kimg"><figcaption id="large-label">Generated images after '
            f"{last_kimg:,} kimg</figcaption></figure>{reals}</div>"
        )
    psi, sweep = show(sample["grid_psi"]), show(sample["sweep_psi"])
    final = figure(f"Samples (sample.snapshot: {sample['snapshot']}), truncation psi = {psi}", inputs.samples)
    truncation = figure(
        f"Truncation: one row for each psi = {sweep}, from the mean image (0) to no truncation (1). "
        "Smaller psi: better single images, less variety",
        inputs.truncation,
    )
    return f'{html}<h3>Samples and truncation</h3><div class="columns">{final}{truncation}</div>'


def _neighbours(inputs: Inputs, metrics: Sequence[Metric]) -> str:
    html = (
        "<p>Each row is a generated image on the left and the real images nearest to it in feature space beside it, "
        "nearest first. The upper rows are the first samples; the lower ones are those samples that are nearest of all to "
        "a real image. Alike is good; a neighbour that is the very same picture is a copy from memory.</p>"
    )
    for metric in metrics:
        if metric.name.startswith("memorised"):
            html += (
                f"<p><strong>{metric.value:.1%}</strong> of the samples are nearer to a training image than 99 % of the "
                f"training images are to their nearest other ({escape(metric.name)}). 1 % is what a generator has that "
                "remembers nothing; more means copies, or samples that crowd, as under truncation.</p>"
            )
    return html + figure("Generated image (left) and its nearest real images", inputs.neighbours)


def _params(inputs: Inputs) -> str:
    html = '<p class="note">All values of params.yaml but run, which says how and not what.</p>'
    for name, values in inputs.params.items():
        html += f"<details><summary>{escape(name)}</summary>{table(flatten(values), f'params.yaml: {name}')}</details>"
    return html


def _provenance(inputs: Inputs) -> str:
    protocol = inputs.result["protocol"]
    samples = protocol.get("samples") or {}
    training = samples.get("training") or {}
    unknown = "not recorded"
    rows = {
        "Run": training.get("run", unknown),
        "Trained on, kimg": training.get("kimg", unknown),
        "Snapshot, sha256": samples.get("snapshot_sha256", unknown),
        "Training images, digest": training.get("data_digest", unknown),
        "Shards, digest": inputs.index["digest"],
        "Samples, digest": samples.get("data_digest", unknown),
        "Feature network, sha256": protocol.get("extractor_sha256", unknown),
        **{f"Version of {name}": version for name, version in sorted((protocol.get("versions") or {}).items())},
    }
    full = table(flatten(protocol), "How the numbers were measured, in full")
    return table(rows, "Where this comes from") + f"<details open><summary>Protocol</summary>{full}</details>"


def _chart(chart: Chart, charts: list[Chart]) -> str:
    """A place for a chart, which is put to the others: page.js draws the i-th into chart-i."""
    charts.append(chart)
    reading = f"<figcaption>{escape(chart.reading)}</figcaption>" if chart.reading else ""
    place = f'<div class="chart" id="chart-{len(charts) - 1}"></div>'
    return f"<figure><h3>{escape(chart.title)}</h3>{place}{reading}</figure>"

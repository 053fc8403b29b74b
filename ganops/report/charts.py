"""The charts of the report as Vega-Lite specifications. What is not finite is left out and leaves a gap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ganops.protocols import LARGER_IS_BETTER, TRAIN_METRICS
from ganops.report.inputs import Row, finite_number
from ganops.report.pictures import spread

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"  # a name; nothing is loaded from there
KIMG = "real images shown, thousands (kimg)"
Point = tuple[float, float | None]  # kimg, value
MOST_TICKS = 2000  # rows of the history in a chart: more than it has pixels
MOST_MARKED = 60  # points are drawn on the line up to so many, so that a run of one tick shows something
LOG_RATIO = 30  # largest / smallest value from which the vertical axis is logarithmic


@dataclass(frozen=True)
class Curves:
    """Columns of the history that are drawn together.

    Attributes:
        title: of the chart.
        unit: of the vertical axis.
        columns: column -> what the legend calls it.
        reading: a sentence on how to read it.
        only_varying: left out when every column keeps one value.
    """

    title: str
    unit: str
    columns: Mapping[str, str]
    reading: str
    only_varying: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart for the page.

    Attributes:
        title: heading.
        reading: a sentence below.
        spec: Vega-Lite, finite numbers only.
    """

    title: str
    reading: str
    spec: Mapping[str, Any]


CURVES = (
    Curves("Distance to the real images", "Fréchet distance", {"distance": "distance"},
           "On fewer samples than the number above, so for the shape of the curve only. Lower is better."),
    Curves("Losses", "mean over a tick", {"G_loss": "G", "D_loss": "D"},
           "Non-saturating losses without the regularisers. Where D cannot tell at all, D is at 2 ln 2 = 1.39 and G at "
           "ln 2 = 0.69; they say little about quality."),
    Curves("Signs of D", "mean sign of the logits", {"real_sign": "real images", "fake_sign": "generated images"},
           "0: D is undecided. Real images near 1: D knows them by heart, it overfits; 0.6 is where augmentation is "
           "usually steered to."),
    Curves("Gradient norms", "mean over a tick", {"G_grad_norm": "G", "D_grad_norm": "D"},
           "Growth without end announces divergence."),
    Curves("R1 penalty", "squared gradient norm", {"r1_penalty": "R1"},
           "Squared norm of D's gradient at real images, not yet times gamma / 2."),
    Curves("Path length penalty", "mean over a tick", {"pl_penalty": "penalty"},
           "Squared difference of path lengths to their running mean, not yet weighted."),
    Curves("Path length", "mean over all", {"pl_mean": "running mean"},
           "Change of the image per change of w, which the penalty holds to one length.", only_varying=True),
    Curves("Augmentation", "probability", {"augment_p": "p"}, "How often each augmentation is applied before D."),
    Curves("Kernel distance", "kernel distance", {"kid": "kernel distance"},
           "To the real images; lower is better. Unbiased, so that it can be below 0."),
    Curves("Precision and recall", "share",
           {"precision": "precision", "recall": "recall", "density": "density", "coverage": "coverage"},
           "Quality (precision, density) and variety (recall, coverage); higher is better."),
    Curves("Inception score", "score", {"inception_score": "inception score"}, "Higher is better."),
    Curves("Learning rates", "learning rate", {"G_lr": "G", "D_lr": "D"}, "", only_varying=True),
)  # fmt: skip


def column_values(rows: Sequence[Row], column: str) -> list[Point]:
    """(kimg, value) of the rows in which the column was measured; the value is None where it is not finite."""
    return [(float(row["kimg"]), finite_number(row[column])) for row in rows if row.get(column)]


def training_charts(rows: Sequence[Row], best_by: str) -> list[Chart]:
    """All of `CURVES` that have values; of metrics only those that can be compared. The best by `best_by` has a ring."""
    charts, measured = [], comparable(rows)
    others = sum(any(row.get(metric) for metric in TRAIN_METRICS) for row in rows) - len(measured)
    for curves in CURVES:
        chosen = measured if set(curves.columns) <= set(TRAIN_METRICS) else rows
        series = {column: column_values(chosen, column) for column in curves.columns}
        series = {column: points for column, points in series.items() if any(value is not None for _, value in points)}
        if curves.only_varying and all(len({value for _, value in points}) < 2 for points in series.values()):
            continue
        reading, ringed = curves.reading, None
        if others and chosen is measured:
            reading += f" {others} values that were measured with other code, features or counts are left out."
        if best_by in series:
            choose = max if best_by in LARGER_IS_BETTER else min
            value, kimg = choose((value, kimg) for kimg, value in series[best_by] if value is not None)
            reading += f" The best, {value:.4g} at {kimg:g} kimg, has a ring."
            ringed = {"kimg": kimg, "value": value, "series": curves.columns[best_by]}
        if series:
            named = {curves.columns[column]: points for column, points in series.items()}
            charts.append(Chart(curves.title, reading, _lines(curves.title, curves.unit, named, ringed)))
    return charts


def comparable(rows: Sequence[Row]) -> list[Row]:
    """The rows in which something was measured with the yardstick of the last one."""
    measured = [row for row in rows if any(row.get(metric) for metric in TRAIN_METRICS)]
    return [row for row in measured if row.get("metric_digest") == measured[-1].get("metric_digest")]


def _lines(
    title: str, unit: str, series: Mapping[str, list[Point]], ringed: Mapping[str, Any] | None
) -> dict[str, Any]:
    values = [
        {"kimg": kimg, "value": value, "series": label}
        for label, points in series.items()
        for kimg, value in spread(points, MOST_TICKS)
    ]
    finite = [row["value"] for row in values if isinstance(row["value"], float)] or [1.0]
    is_log = min(finite) > 0 and max(finite) / min(finite) >= LOG_RATIO
    scale = {"type": "log", "nice": True} if is_log else {"zero": False, "nice": True}
    y = {"field": "value", "type": "quantitative", "scale": scale, "title": unit + (" (log scale)" if is_log else "")}
    legend = {"title": None, "orient": "top"} if len(series) > 1 else None
    group = {"field": "series", "type": "nominal", "sort": None, "legend": legend}
    tooltip = [
        {"field": "series", "type": "nominal", "title": "curve"},
        {"field": "kimg", "type": "quantitative", "title": "kimg"},
        {"field": "value", "type": "quantitative", "title": unit, "format": ".4~g"},
    ]
    hover = {"type": "point", "on": "pointerover", "clear": "pointerout", "nearest": True}
    many = len(values) > MOST_MARKED * len(series)
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "line"}},
        {
            "params": [{"name": "hover", "select": hover}],
            "mark": {"type": "point", "filled": True, "size": 50},
            "encoding": {
                "opacity": {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0 if many else 0.8},
                "tooltip": tooltip,
            },
        },
    ]
    if ringed is not None:
        layers.append({"data": {"values": [ringed]}, "mark": {"type": "point", "size": 200, "strokeWidth": 2}})
    first, last = values[0]["kimg"], values[-1]["kimg"]
    ends = ", ".join(f"{label} {points[-1][1]:.4g}" for label, points in series.items() if points[-1][1] is not None)
    return {
        "$schema": SCHEMA,
        "description": f"{title}, from {first:g} to {last:g} kimg. At the end: {ends or 'not finite'}.",
        "width": "container",
        "height": 240,
        "data": {"values": values},
        "encoding": {
            "x": {
                "field": "kimg",
                "type": "quantitative",
                "title": KIMG,
                "scale": {"zero": True},
                "axis": {"tickCount": 8},
            },
            "y": y,
            "color": group,
            "strokeDash": group,
        },
        "layer": layers,
    }


def class_chart(names: Sequence[str], counts: Sequence[int]) -> Chart:
    """A bar per class, in the order of the labels."""
    values = [
        {"place": i, "class": f"{name}", "images": count}
        for i, (name, count) in enumerate(zip(names, counts, strict=True))
    ]
    axis: dict[str, Any] = {"labels": len(names) <= 60, "ticks": len(names) <= 60, "labelLimit": 120}
    if max(len(name) for name in names) * len(names) <= 60:  # characters that fit side by side
        axis["labelAngle"] = 0
    spec = {
        "$schema": SCHEMA,
        "description": f"Images per class: {len(names)} classes, {min(counts)} to {max(counts)} images.",
        "width": "container",
        "height": 200,
        "data": {"values": values},
        "mark": {"type": "bar"},
        "encoding": {
            "x": {"field": "class", "type": "nominal", "sort": {"field": "place"}, "title": "class", "axis": axis},
            "y": {"field": "images", "type": "quantitative", "title": "images"},
            "tooltip": [{"field": "class", "type": "nominal"}, {"field": "images", "type": "quantitative"}],
        },
    }
    reading = f"{len(names)} classes with {min(counts):,} to {max(counts):,} images."
    return Chart("Images per class", reading, spec)

"""Pieces of HTML. All text that they are given is escaped."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ganops.report.metrics import show
from ganops.report.pictures import embed

MOST_PICTURE_BYTES = 700_000


def section(name: str, title: str, content: str) -> str:
    """A part of the page under its heading, with `name` as anchor. `content` is HTML."""
    heading = f'<h2 id="{name}-title">{escape(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}{content}</section>'


def figure(caption: str, path: Path) -> str:
    """A picture with its caption, which is also its text for those who do not see it.

    Raises:
        DataError: the file is not a whole PNG.
    """
    picture, text = embed(path, MOST_PICTURE_BYTES), escape(caption)
    image = f'<img src="{picture.uri}" width="{picture.width}" height="{picture.height}" alt="{text}">'
    return f"<figure>{image}<figcaption>{text}.</figcaption></figure>"


def table(values: Mapping[str, Any], caption: str) -> str:
    """Names and their values."""
    lines = [f'<tr><th scope="row">{_cell(name)}</th><td>{_cell(value)}</td></tr>' for name, value in values.items()]
    return _table("", lines, caption)


def rows_table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str) -> str:
    """A table with a head; the first cell of each row names it."""
    columns = "".join(f'<th scope="col">{_cell(name)}</th>' for name in head)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{_cell(value)}</td>" for value in others)
        lines.append(f'<tr><th scope="row">{_cell(first)}</th>{cells}</tr>')
    return _table(f"<thead><tr>{columns}</tr></thead>", lines, caption)


def _cell(value: object) -> str:
    return escape(show(value))


def _table(head: str, lines: Sequence[str], caption: str) -> str:
    body = f"<tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table><caption>{escape(caption)}</caption>{head}{body}</table></div>'


def json_for_script(value: Any) -> str:
    """JSON for a <script> element that no text inside can end: neither </script> nor <!-- can occur.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

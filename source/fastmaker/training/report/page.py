"""report.html: pictures, tables and sentences in one file, which needs no network and no script."""

import base64
import html
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = 640  # pixels of a picture
LONG_TABLE = 50  # rows; a longer table is folded
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff; max-width: 60rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid #d5dde5; }
p { margin: .5rem 0; max-width: 45rem; }
figure { margin: 1rem 0; }
figure div { overflow-x: auto; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figure img.wide { max-width: max(100%, 36rem); }
figcaption { color: #526171; font-size: .9rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption, summary { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #e6ebf0;
  overflow-wrap: break-word; max-width: 24rem; }
th { font-weight: 600; }
td.number, th.number { text-align: right; white-space: nowrap; min-width: 3.2rem; }
.key { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 1rem 0; padding: 0; list-style: none; }
.key b { display: block; font-size: 1.5rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.key span { color: #526171; font-size: .9rem; }
@media print { body { max-width: none; font-size: 11pt; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Picture:
    """A plot: the name of its PNG file, the sentence that a reader without pictures gets, and what draws it."""

    file: str
    alt: str
    draw: Callable[[], "Figure"]


@dataclass(frozen=True)
class Table:
    """A table. A number that is None is undefined, and shown as a dash."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Section:
    """A part of the report: sentences, then pictures and tables in their order."""

    title: str
    text: str
    parts: Sequence[Picture | Table]


def write(
    path: Path,
    title: str,
    lead: str,
    key_figures: Iterable[tuple[str, float | None]],
    sections: Iterable[Section],
) -> None:
    """Write the page: a title, a sentence, figures, and sections, whose PNG files lie in the folder of `path`."""
    figures = "".join(f"<li><b>{_cell(value)}</b><span>{_text(name)}</span></li>" for name, value in key_figures)
    body = "".join(_section(section, path.parent) for section in sections)
    path.write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
        f'<h1>{_text(title)}</h1>\n<p>{_text(lead)}</p>\n<ul class="key">{figures}</ul>\n{body}</body>\n</html>\n',
        "utf-8",
        errors="backslashreplace",  # a file's name may hold bytes that are no text
    )


def _section(section: Section, folder: Path) -> str:
    text = f"<p>{_text(section.text)}</p>\n" if section.text else ""
    parts = (_picture(part, folder) if isinstance(part, Picture) else _table(part) for part in section.parts)
    return f"<section>\n<h2>{_text(section.title)}</h2>\n{text}{''.join(parts)}</section>\n"


def _picture(picture: Picture, folder: Path) -> str:
    """Return a figure; on a narrow screen a wide picture scrolls rather than becomes illegible."""
    data = (folder / picture.file).read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # a PNG begins so
    kind = ' class="wide"' if width > WIDE else ""
    return (
        f'<figure><div><img{kind} src="data:image/png;base64,{base64.b64encode(data).decode()}" width="{width}"'
        f' height="{height}" alt="{_text(picture.alt)}"></div>'
        f"<figcaption>{_text(picture.alt)}</figcaption></figure>\n"
    )


def _table(table: Table) -> str:
    rows = [[_cell(value) for value in row] for row in table.rows]
    numeric = [
        all(value is None or isinstance(value, (int, float)) for value in column)
        for column in zip(*table.rows, strict=True)
    ]
    columns = [' class="number"' if number else "" for number in numeric]
    head = "".join(f"<th{kind}>{_text(name)}</th>" for name, kind in zip(table.header, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, columns, strict=True)) + "</tr>\n"
        for row in rows
    )
    title = _text(table.title)
    folded = len(rows) > LONG_TABLE
    caption = f"<caption>{title}</caption>" if title and not folded else ""
    head = f"<thead><tr>{head}</tr></thead>\n" if any(table.header) else ""
    grid = f'<div class="scroll"><table>{caption}{head}<tbody>{body}</tbody></table></div>\n'
    return f"<details><summary>{title}</summary>{grid}</details>\n" if folded else grid


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else _text(str(value))


def _text(text: str) -> str:
    return html.escape("".join(letter if letter.isprintable() else " " for letter in text))

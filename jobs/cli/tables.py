"""Rows and answers as text."""

import json
from collections.abc import Sequence

SHOWN_CLASSES = 3  # of a mask
SHOWN_NUMBERS = 4  # of a regression; and points


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table with columns as wide as their content; numbers are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    numeric = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, cells)])


def by_name(answer: dict) -> dict[str | int, float]:
    """Return the numbers of an endpoint's JSON answer for one image, by their names or else counted from 1."""
    return answer.get("named_values") or dict(enumerate(answer.get("values", []), 1))


def summarize(answer: dict) -> tuple[str, float | None]:
    """Return the label and probability of an endpoint's JSON answer for one image.

    Of a mask these are the largest classes, of several labels each with its probability, else the first numbers or
    points; and None.
    """
    if "labels" in answer:
        given = [f"{label} {answer['probabilities'][label]:.3f}" for label in answer["labels"]]
        return ", ".join(given) or "no label", None
    if "named_values" in answer:
        named = [f"{name} {value:.4g}" for name, value in answer["named_values"].items()]
        return ", ".join(named[:SHOWN_NUMBERS] + ["..."] * (len(named) > SHOWN_NUMBERS)), None
    for name, shown in (("values", "{:.4g}".format), ("points", lambda point: "({:.1f}, {:.1f})".format(*point))):
        if name in answer:
            some = [shown(item) for item in answer[name][:SHOWN_NUMBERS]]
            return ", ".join(some + ["..."] * (len(answer[name]) > SHOWN_NUMBERS)), None
    if "classes" not in answer:
        return answer.get("label", "-"), answer.get("probability")
    most = sorted(answer["classes"], key=lambda found: -found["pixels"])[:SHOWN_CLASSES]
    pixels = sum(found["pixels"] for found in answer["classes"])
    return ", ".join(f"{found['label']} {found['pixels'] / pixels:.0%}" for found in most), None


def as_json(rows: Sequence[dict]) -> str:
    """Return the rows as JSON lines."""
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)

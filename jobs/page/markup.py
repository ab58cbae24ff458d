"""What the page says, as HTML. Every text of a model, a file or a person is escaped."""

import html
from collections.abc import Iterable, Mapping, Sequence

from fastmaker.jobs.cli import tables
from fastmaker.jobs.page import asking
from fastmaker.jobs.page.asking import Asked

SHOWN_BYTES = 20_000  # of a raw answer; the whole is a download
STYLE = """
.gradio-container { width: 100% !important; max-width: 72rem !important; margin: 0 auto !important; }
button[role=tab].selected { color: #1d4ed8 !important; }
.dark button[role=tab].selected { color: #93c5fd !important; }
.or { color: inherit !important; }
.said h2 { font-size: 1.4rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
.said p { margin: .25rem 0; overflow-wrap: anywhere; }
.said .fault { border-left: 4px solid #b3261e; padding-left: .6rem; }
.said table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.said table, .said tr { border: 0 !important; }
.said th, .said td { text-align: left; padding: .2rem .6rem .2rem 0 !important; vertical-align: middle;
  border: 0 !important; font-weight: normal; overflow-wrap: anywhere; }
.said td.number { text-align: right; white-space: nowrap; }
.said .track { display: block; min-width: 5rem; height: .9rem; background: var(--border-color-primary); }
.said .bar { display: block; height: 100%; background: #2563a8; }
.said .over th, .said .over td { font-weight: 700; }
.said .swatch { display: inline-block; width: 1rem; height: 1rem; border: 1px solid #777; vertical-align: middle; }
.said .scroll, .said pre { overflow: auto; max-height: 24rem; }
.said pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; padding: .5rem;
  border: 1px solid var(--border-color-primary); }
"""


def _text(text: object) -> str:
    return html.escape("".join(letter if letter.isprintable() else " " for letter in str(text)))


def _said(content: str) -> str:
    return f'<div class="said">{content}</div>'


def title(text: str) -> str:
    """Return what the page is of, with a capital letter."""
    return _text(text[:1].upper() + text[1:])


def fault(line: str) -> str:
    """Return an error as the page shows it."""
    return _said(f'<p class="fault" role="alert">{_text(line)}</p>') if line else ""


def note(line: str) -> str:
    """Return a sentence of the page."""
    return _said(f'<p role="status">{_text(line)}</p>') if line else ""


def answer(asked: Asked, threshold: float | None = None) -> str:
    """Return what a person wants of an answer; of several labels those over `threshold`, or by the model itself."""
    size = f"{len(asked.image):,} bytes sent, answered in {asked.seconds:.3f} s"
    if asked.error:
        return _said(f'<p class="fault" role="alert">{_text(asked.error)}</p><p>{_text(asked.name)}: {size}</p>')
    found = asked.answer
    headline, probability = tables.summarize(found)
    if asked.task == "multilabel" and threshold is not None:
        headline = ", ".join(_over(found, threshold)) or "no label"
    headline = headline if probability is None else f"{headline} {probability:.4f}"
    parts = [f'<div role="status"><h2>{_text(headline)}</h2></div><p>{_text(asked.name)}: {size}</p>']
    parts += [f"<p>{_text(asked.note)}</p>"] if asked.note else []
    return _said("".join([*parts, _details(asked, threshold)]))


def _over(found: Mapping, threshold: float) -> list[str]:
    return [label for label, probability in found["probabilities"].items() if probability > threshold]


def _details(asked: Asked, threshold: float | None) -> str:
    found, task = asked.answer, asked.task
    if task == "classification":
        return _bars([(one["label"], one["probability"]) for one in found["top"]], {found["label"]})
    if task == "multilabel":
        over = found["labels"] if threshold is None else _over(found, threshold)
        pairs = sorted(found["probabilities"].items(), key=lambda pair: -pair[1])
        own = f"<p>By the model's own threshold: {_text(', '.join(found['labels']) or 'no label')}.</p>"
        return _bars(pairs, set(over)) + own
    if task == "regression":
        return _table(["number", "value"], [[name, f"{value:.6g}"] for name, value in tables.by_name(found).items()])
    if task == "points":
        rows = [[i, f"{x:.1f}", f"{y:.1f}"] for i, (x, y) in enumerate(found["points"], 1)]
        return _table(["point", "x in pixels", "y in pixels"], rows)
    rows = [
        f'<tr><td><span class="swatch" style="background:rgb{colour}"></span> {_text(label)}</td>'
        f'<td class="number">{share:.1%}</td></tr>'
        for label, colour, share in asking.legend(asked)
    ]
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _bars(pairs: Iterable[tuple[str, float]], over: set[str]) -> str:
    """Return a bar for each label; those of `over` are set in bold."""
    rows = [
        f'<tr{" class=over" if label in over else ""}><th scope="row">{_text(label)}</th><td><span class="track">'
        f'<span class="bar" style="width:{probability:.1%}"></span></span></td>'
        f'<td class="number">{probability:.4f}</td></tr>'
        for label, probability in pairs
    ]
    return f'<div class="scroll" tabindex="0"><table><tbody>{"".join(rows)}</tbody></table></div>'


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def raw(asked: Asked) -> str:
    """Return the answer as it came, its first SHOWN_BYTES."""
    if not asked.raw:
        return note("There is no answer.")
    shown = asked.raw[:SHOWN_BYTES].decode("utf-8", "replace")
    more = "" if len(asked.raw) <= SHOWN_BYTES else f", of which the first {SHOWN_BYTES:,} stand here"
    return _said(f'<p>{len(asked.raw):,} bytes{more}.</p><pre tabindex="0" id="raw">{html.escape(shown)}</pre>')


def requests(by_program: Mapping[str, str]) -> str:
    """Return what asks the same without the page."""
    parts = (f'<p>{_text(name)}</p><pre tabindex="0">{html.escape(code)}</pre>' for name, code in by_program.items())
    return _said("".join(parts))


def batch(asked: Sequence[Asked], notes: Sequence[str]) -> str:
    """Return a table of answers, after what was left out."""
    rows = []
    for one in asked:
        label, probability = tables.summarize(one.answer)
        shown = "" if probability is None else f"{probability:.4f}"
        rows.append([one.name, "" if one.error else label, shown, one.error])
    failed = sum(bool(one.error) for one in asked)
    lead = f"{len(asked):,} images, {failed:,} without an answer."
    told = "".join(f"<p>{_text(line)}</p>" for line in [lead, *notes])
    return _said(told + _table(["image", "answer", "probability", "error"], rows))

"""Compare what an endpoint saw with what its model was trained on: ``fastmaker monitor CAPTURES --model MODEL``."""

import argparse
import json
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from fastmaker.jobs import backends
from fastmaker.jobs.cli import errors, tables
from fastmaker.jobs.cli.arguments import BACKENDS, at_least
from fastmaker.jobs.clients import images
from fastmaker.jobs.packaging import models

CAUSES = ("brightness", "contrast", "sharpness", "orientation", "size", "shape", "content", "confidence", "labels")
ANY = "any"
ALARM = 3  # the exit status of an alarm of --fail-on
MOST = 2000


def get_parser() -> argparse.ArgumentParser:
    """Return this command's parser."""
    parser = argparse.ArgumentParser(
        prog="fastmaker monitor",
        description="Compare what an endpoint saw with what its model was trained on, in a page with pictures.",
        epilog="example: fastmaker monitor captured/pets --model pets --fail-on any",
    )
    parser.add_argument("captures", metavar="CAPTURES", help="a folder or URI of captured data, here or in S3")
    parser.add_argument("--model", required=True, help="a training job, a model directory, a model.tar.gz or its URI")
    parser.add_argument(
        "--baseline",
        nargs="+",
        metavar="IMAGES",
        help="image files, or folders of them, to compare with in place of the training's validation images",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("monitor.html"), metavar="HTML", help="the page (default: %(default)s)"
    )
    parser.add_argument("--since", type=_moment, metavar="TIME", help="leave out what is earlier: ISO 8601, UTC")
    parser.add_argument("--until", type=_moment, metavar="TIME", help="leave out what is later")
    parser.add_argument(
        "--images", type=at_least(1), default=MOST, help="answer at most this many again (default: %(default)s)"
    )
    parser.add_argument(
        "--fail-on",
        nargs="+",
        choices=(ANY, *CAUSES),
        default=[],
        metavar="CAUSE",
        help=f"end with status {ALARM} on an alarm: {ANY}, {', '.join(CAUSES)}",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object in place of a table")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default=BACKENDS[0],
        help="where a training job is looked for: process or docker; aws (default: %(default)s)",
    )
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Return the arguments."""
    return get_parser().parse_args(argv)


def main(args) -> int:
    """Write the page and print the tests; return ALARM if --fail-on names the cause of an alarm. Raises ValueError."""
    from fastmaker import baseline
    from fastmaker.jobs.monitoring import captures, drift, page, window
    from fastmaker.serving import models as serving

    files = [file for name in args.baseline or () for file in images.image_files(name)]
    with models.model_directory(args.model, lambda: backends.connect(backend=args.backend).session) as folder:
        known = None if files else baseline.load(folder)
        model = serving.load(folder, precision="float32", engine="torch")
    known = known or window.baseline_of(files, model)
    reading = captures.Reading()
    found = window.measure(captures.read(args.captures, reading, args.since, args.until), model, known, args.images)
    if not found.times:
        raise ValueError(f"{args.captures}: no request that can be read was captured at that time")
    changes = drift.compare(known, found)
    page.write(args.output, found, known, changes, reading)
    _print(args, page.title(changes), changes, len(found.times), len(found.samples))
    alarms = {change.cause for change in changes if change.alarm}
    return ALARM if alarms & set(args.fail_on) or (alarms and ANY in args.fail_on) else 0


def _print(args, title: str, changes: list, requests: int, images: int) -> None:
    if args.json:
        rows = [{**asdict(change), "alarm": bool(change.alarm)} for change in changes]
        print(json.dumps({"title": title, "requests": requests, "images": images, "changes": rows}))
        return
    header = ("cause", "value", "before", "now", "effect", "p", "")
    rows = [
        (
            c.cause,
            c.value,
            f"{c.before:.3g}",
            f"{c.now:.3g}",
            f"{c.effect:.2f}",
            f"{c.corrected:.1e}",
            "alarm" * c.alarm,
        )
        for c in changes
    ]
    print(f"{requests} requests, {images} images compared")
    if rows:
        print(tables.table(header, rows))
    print(f"{title}\nwrote {args.output}")


def _moment(text: str) -> datetime:
    """An argument's type: return a time in ISO 8601, of UTC unless it has another zone."""
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


if __name__ == "__main__":
    errors.run(sys.modules[__name__])

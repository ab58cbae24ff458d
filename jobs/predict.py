"""Ask an endpoint or a Triton server about images; ``-`` is an image on stdin.

``fastmaker predict --endpoint NAME IMAGE_OR_FOLDER ...``
``fastmaker predict --triton HOST:PORT --model NAME IMAGE_OR_FOLDER ...``
"""

import argparse
import io
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from fastmaker.jobs.cli import errors, pictures, tables
from fastmaker.jobs.clients import explaining, sources
from fastmaker.jobs.clients.errors import InvalidRequest
from fastmaker.jobs.clients.images import image_files

CLIENTS = 4  # requests under way at once


def get_parser() -> argparse.ArgumentParser:
    """Return this command's parser."""
    parser = argparse.ArgumentParser(
        prog="fastmaker predict",
        description="Ask an endpoint or a Triton server about images.",
        epilog="example: fastmaker predict --endpoint pets cat.jpg photos/ --save answers/",
    )
    sources.add_arguments(parser)
    parser.add_argument("images", nargs="+", help="image files, folders of them, or - for an image on stdin")
    parser.add_argument("--json", action="store_true", help="print a JSON object an image in place of a table")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write each image with its answer on it as a PNG")
    parser.add_argument(
        "--explain", action="store_true", help="of a classifier, --save beside each image where the network looked"
    )
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the arguments and check those that exclude or need each other."""
    parser = get_parser()
    args = parser.parse_args(argv)
    sources.check_arguments(parser, args)
    if args.explain and not args.save:
        parser.error("--explain draws into the folder of --save, which is missing")
    return args


def main(args) -> int:
    """Print, and save, an answer for each image; return 1 if an image has none."""
    inputs = list(_inputs(args.images))
    with sources.connect(args) as source, ThreadPoolExecutor(CLIENTS) as pool:
        explainer = explaining.Explainer(source) if args.explain else None
        if explainer:
            explainer.check()
        answers = pool.map(partial(_answer, source), [data for _, data in inputs])
        shown = tqdm(answers, total=len(inputs), unit="image", leave=False, disable=None)  # on a terminal alone
        rows = [{"image": name, **answer} for (name, _), answer in zip(inputs, shown, strict=True)]
        print(tables.as_json(rows) if args.json else _table(rows))
        if args.save:
            _save(args.save, inputs, rows, source, explainer)
    return int(any("error" in row for row in rows))


def _answer(source: sources.Source, image: bytes) -> dict:
    """Return the JSON answer for an encoded image, or ``{"error": why}`` if it is refused."""
    try:
        return json.loads(source.ask(image))
    except InvalidRequest as error:
        return {"error": str(error)}


def _inputs(names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of each image that `names` mean."""
    for name in names:
        if name == "-":
            yield "stdin", sys.stdin.buffer.read()
        else:
            yield from ((str(file), file.read_bytes()) for file in image_files(name))


def _table(rows: list[dict]) -> str:
    cells = [[row["image"], *_cells(row), row.get("error", "")] for row in rows]
    without_labels = any("values" in row or "points" in row for row in rows)
    header = ["image", "answer" if without_labels else "label", "probability", "error"]
    columns = 4 if any("error" in row for row in rows) else 3
    return tables.table(header[:columns], [row[:columns] for row in cells])


def _cells(row: dict) -> list[str]:
    label, probability = tables.summarize(row)
    return [label, "-" if probability is None else f"{probability:.4f}"]


def _save(folder: Path, inputs: list[tuple[str, bytes]], rows: list[dict], source: sources.Source, explainer) -> None:
    """Write each image with its answer below; beside it, its mask, for which the source is asked again.

    With an `explaining.Explainer`, the map of where its network looked stands beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, ((name, data), row) in enumerate(zip(inputs, rows, strict=True)):
        if "error" in row:
            continue
        image = pictures.with_points(Image.open(io.BytesIO(data)), row.get("points", []))
        cards = [pictures.captioned(image, " ".join(_cells(row)).removesuffix(" -"), 320)]
        if "base64_prediction" in row:
            cards.append(pictures.captioned(Image.open(io.BytesIO(source.ask(data, sources.PNG))), "", 320))
        if explainer:
            label = explaining.label_of(row)
            cards.append(pictures.captioned(explainer.picture(data, label), f"for {label}", 320))
        pictures.contact_sheet(cards, len(cards)).save(folder / f"{number:04}-{Path(name).stem}.png")
    print(f"\nsaved: {folder}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(sys.modules[__name__])

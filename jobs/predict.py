"""Ask an endpoint or a Triton server about images; ``-`` is an image on stdin.

``fastmaker predict --endpoint NAME IMAGE_OR_FOLDER ...``
``fastmaker predict --triton HOST:PORT --model NAME IMAGE_OR_FOLDER ...``
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from fastmaker.jobs import backends
from fastmaker.jobs.cli import errors, pictures, tables
from fastmaker.jobs.clients import triton

CLIENTS = 4  # requests under way at once


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="fastmaker predict",
        description="Ask an endpoint or a Triton server about images.",
        epilog="example: fastmaker predict --endpoint pets cat.jpg photos/ --save answers/",
    )
    backends.add_arguments(parser, instances=False)
    parser.add_argument("--endpoint", help="its name (default: the only one that is in service)")
    parser.add_argument("--triton", metavar="URL", help="grpc://HOST:PORT, HOST:PORT or http://HOST:PORT in its place")
    parser.add_argument("--model", metavar="NAME", help="of --triton (default: the only one that is ready)")
    parser.add_argument("images", nargs="+", help="image files, folders of them, or - for an image on stdin")
    parser.add_argument("--json", action="store_true", help="print a JSON object an image in place of a table")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write each image with its answer on it as a PNG")
    args = parser.parse_args(argv)
    if args.triton and args.endpoint:
        parser.error("--endpoint and --triton: expected one of them")
    if args.model and not args.triton:
        parser.error("--model is a model of --triton, which is missing")
    return args


def main(args) -> int:
    """Predict; returns 1 if an image has no answer."""
    return int(any("error" in row for row in predict(args)))


def predict(args) -> list[dict]:
    """Predict; returns a row for each image: `image`, and the answer or `error`."""
    inputs = list(_inputs(args.images))
    with contextlib.nullcontext() if args.triton else backends.backend(args) as backend:
        return _answered(args, inputs, *(_endpoint(args, backend) if backend else _triton_model(args)))


def _answered(args, inputs: list[tuple[str, bytes]], answer, mask_of) -> list[dict]:
    """Ask about each input, show the answers, and return main's rows."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = pool.map(answer, [data for _, data in inputs])
        shown = tqdm(answers, total=len(inputs), unit="image", leave=False, disable=None)  # on a terminal alone
        rows = [{"image": name, **answer} for (name, _), answer in zip(inputs, shown, strict=True)]
    print(tables.as_json(rows) if args.json else _table(rows))
    if args.save:
        _save(args.save, inputs, rows, mask_of)
    return rows


def _endpoint(args, backend) -> tuple[Callable[[bytes], dict], Callable[[bytes], bytes]]:
    """What gives an endpoint's answer for an image, and what gives its mask as a PNG. Raises ValueError."""
    endpoint = args.endpoint or _only_endpoint(backend.session)
    runtime = backend.runtime(endpoint)
    return (
        lambda image: ask(runtime, endpoint, image),
        lambda image: _invoke(runtime, endpoint, image, "image/png"),
    )


def _triton_model(args) -> tuple[Callable[[bytes], dict], Callable[[bytes], bytes]]:
    """As `_endpoint`, of a Triton server's model. Raises ValueError or triton.TritonError."""
    model = triton.Model(args.triton, args.model)

    def answer(image: bytes) -> dict:
        try:
            return model.answer(image).as_object()
        except triton.InvalidRequest as error:
            return {"error": str(error)}

    return answer, lambda image: model.answer(image).as_png()


def ask(runtime, endpoint: str, image: bytes) -> dict:
    """The endpoint's answer for an encoded image, or ``{"error": why}`` if the model refuses it."""
    from botocore.exceptions import ClientError

    try:
        return json.loads(_invoke(runtime, endpoint, image, "application/json"))
    except ClientError as error:
        if error.response["Error"]["Code"] != "ModelError":
            raise
        return {"error": error.response["OriginalMessage"].splitlines()[0]}


def _invoke(runtime, endpoint: str, image: bytes, accept: str) -> bytes:
    answer = runtime.invoke_endpoint(
        EndpointName=endpoint, ContentType="application/x-image", Accept=accept, Body=image
    )
    return answer["Body"].read()


def _inputs(names: list[str]):
    """(name, bytes) of each image that `names` mean."""
    for name in names:
        if name == "-":
            yield "stdin", sys.stdin.buffer.read()
        else:
            yield from ((str(file), file.read_bytes()) for file in image_files(name))


def image_files(name: str) -> list[Path]:
    """The file itself, or the images below the folder but for hidden ones. Raises ValueError if that holds none.

    As training has it, in data.py, which needs torch.
    """
    path, extensions = Path(name), Image.registered_extensions()
    if not path.is_dir():
        return [path]
    files = (f for f in path.rglob("*") if f.suffix.lower() in extensions and f.is_file())
    files = sorted(f for f in files if not any(part.startswith(".") for part in f.relative_to(path).parts))
    if not files:
        raise ValueError(f"{name}: the folder holds no image")
    return files


def _only_endpoint(sagemaker_session) -> str:
    found = sagemaker_session.sagemaker_client.list_endpoints(StatusEquals="InService")["Endpoints"]
    if len(found) != 1:
        names = ", ".join(e["EndpointName"] for e in found) or "none; deploy one with fastmaker deploy"
        raise ValueError(f"--endpoint NAME is needed: in service are {names}")
    return found[0]["EndpointName"]


def _table(rows: list[dict]) -> str:
    cells = [[row["image"], *_cells(row), row.get("error", "")] for row in rows]
    header = ["image", "label", "probability", "error"]
    wide = 4 if any("error" in row for row in rows) else 3
    return tables.table(header[:wide], [row[:wide] for row in cells])


def _cells(row: dict) -> list[str]:
    label, probability = tables.summarize(row)
    return [label, "-" if probability is None else f"{probability:.4f}"]


def _save(folder: Path, inputs: list[tuple[str, bytes]], rows: list[dict], mask_of) -> None:
    """Each image with its answer below; beside it, its mask, which `mask_of` gets."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, ((name, data), row) in enumerate(zip(inputs, rows, strict=True)):
        if "error" in row:
            continue
        cards = [pictures.captioned(Image.open(io.BytesIO(data)), " ".join(_cells(row)).removesuffix(" -"), 320)]
        if "base64_prediction" in row:
            cards.append(pictures.captioned(Image.open(io.BytesIO(mask_of(data))), "", 320))
        pictures.contact_sheet(cards, len(cards)).save(folder / f"{number:04}-{Path(name).stem}.png")
    print(f"\nsaved: {folder}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(sys.modules[__name__])

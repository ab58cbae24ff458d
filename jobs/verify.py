"""Compare the predictions of every way to serve a model with fastai's: ``fastmaker verify MODEL IMAGES``.

    fastai       learn.predict of a Learner with the bundle's weights, or of --learner FILE: the reference
    torch        the bundle, in this process
    endpoint     an endpoint of local mode
    ray          the same on Ray Serve
    torchserve   a TorchServe archive
    onnxruntime  the exported ONNX file
    openvino     the same file in OpenVINO
    triton       a Triton server that has the model, at --triton
    bf16, int8   the bundle, and the file in OpenVINO, in bfloat16; the file quantised on these images; with a tolerance

A path fails if one of its numbers differs by more than the tolerance (of a number above 1: that share of it), or if it
gives another label (of a mask: a pixel another class) where fastai's two highest probabilities are further apart than
twice that; of several labels, where the probability is further from the threshold than the tolerance. Without fastai,
the first path is the reference; if that is a server of masks, which returns no probabilities, each pixel counts. A path
that this machine cannot run is listed as not run; the gate fails if fewer than two can. One image is sent at a time, to
servers with one worker.
"""

import argparse
import io
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from fastmaker.jobs import backends
from fastmaker.jobs.cli import errors, pictures, tables
from fastmaker.jobs.cli.arguments import positive
from fastmaker.jobs.clients import images
from fastmaker.jobs.packaging import exported, models
from fastmaker.jobs.verification import comparison, routes

PICTURED = 24  # images in --picture, at most


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of `fastmaker verify`."""
    parser = argparse.ArgumentParser(
        prog="fastmaker verify",
        description="Compare the predictions of every way to serve a model; exit 1 if one disagrees with fastai's.",
        epilog="example: fastmaker verify pets photos --picture differing.png",
    )
    parser.add_argument("model", metavar="MODEL", help="a training job, a model directory, a model.tar.gz or its URI")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files, or folders of them")
    parser.add_argument(
        "--paths", type=_paths, default=routes.NAMES, help=f"some of {','.join(routes.NAMES)} (default: all)"
    )
    parser.add_argument(
        "--tolerance", type=positive, default=1e-4, help="largest difference of a number (default: %(default)s)"
    )
    parser.add_argument("--bf16", type=positive, metavar="TOLERANCE", help="also compare bfloat16")
    parser.add_argument("--int8", type=positive, metavar="TOLERANCE", help="also compare the quantised ONNX file")
    parser.add_argument("--triton", metavar="URL", help="grpc://HOST:PORT or http://HOST:PORT of a Triton server")
    parser.add_argument("--triton-model", metavar="NAME", help="(default: the only one that is ready there)")
    parser.add_argument("--learner", type=Path, metavar="FILE", help="a file of learn.export(), as fastai's side")
    exported.add_arguments(parser)
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw the images that differ")
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Return the arguments."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.learner and "fastai" not in args.paths:
        parser.error("--learner is fastai's side: --paths leaves out fastai")
    if not args.learner and (args.trust or args.imports or args.ignored):
        parser.error("--trust, --import and --ignore go with --learner FILE")
    return args


def main(args) -> int:
    """Compare all paths, and print the table; return 1 if one that ran disagrees. Raises ValueError."""
    from fastmaker import bundle

    export = _export(args)
    files = [file for name in args.images for file in images.image_files(name)]
    with ExitStack() as stack:
        model_dir = stack.enter_context(models.model_directory(args.model, backends.session))
        info = bundle.load_info(model_dir)
        compared = routes.make_routes(
            model_dir,
            files,
            names=args.paths,
            tolerance=args.tolerance,
            bf16=args.bf16,
            int8=args.int8,
            triton_url=args.triton,
            triton_model=args.triton_model,
            export=export,
        )
        first = comparison.read_image(files[0])
        for route in compared:
            route.start(stack, first)
        differences = comparison.compare(compared, files, PICTURED)
    classes = "pixels equal" if info.task == "segmentation" else "labels equal"
    header = ["path", classes, "of", "largest difference", "images/s", "start, s", "result"]
    print(tables.table(header, [route.row() for route in compared]))
    if args.picture and differences:
        _draw(differences, info.labels, args.picture)
        print(f"\npicture: {args.picture}")
    failed = any(route.failure for route in compared)
    if not failed and sum(bool(route.images) for route in compared) < 2:
        raise errors.Failure("nothing is compared: fewer than two paths can run here")
    return int(failed)


def _export(args) -> routes.Export | None:
    """Return the exported Learner of the arguments, None without one. Raises ValueError."""
    if not args.learner:
        return None
    exported.check(args.learner, args.trust)
    return routes.Export(args.learner, args.imports, args.ignored)


def _draw(differences: list[comparison.Difference], labels: tuple[str, ...], file: Path) -> None:
    cards = [_card(difference, labels) for difference in differences]
    file.parent.mkdir(parents=True, exist_ok=True)
    pictures.contact_sheet(cards, columns=min(6, len(cards))).save(file)


def _card(difference: comparison.Difference, labels: tuple[str, ...]) -> Image.Image:
    """Return the image with both labels below, or with the pixels that differ in red."""
    picture = Image.open(io.BytesIO(difference.image)).convert("RGB")
    found, expected = difference.found.classes, difference.expected.classes
    if found.dtype == bool:
        given = [", ".join(np.asarray(labels)[of]) or "no label" for of in (found, expected)]
        return pictures.captioned(picture, f"{difference.route}: {given[0]}, not {given[1]}")
    if found.ndim == 0:
        return pictures.captioned(picture, f"{difference.route}: {labels[found]}, not {labels[expected]}")
    differs = found != expected
    pixels = np.asarray(picture.resize(differs.shape[::-1])).copy()
    pixels[differs] = (255, 0, 0)
    return pictures.captioned(Image.fromarray(pixels), f"{difference.route}: {differs.sum()} pixels differ")


def _paths(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in routes.NAMES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: expected some of {','.join(routes.NAMES)}")
    return [name for name in routes.NAMES if name in chosen]


if __name__ == "__main__":
    errors.run(sys.modules[__name__])

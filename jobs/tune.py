"""Find how this machine serves a model fastest: ``fastmaker tune MODEL IMAGES``.

It measures engines, precisions, workers, threads and batches with your images at real endpoints of local mode, takes
the fastest whose answers are torch's in float32, and writes a copy of the bundle that has them as its serving.json.
Endpoints, TorchServe archives and the images follow it; environment variables win. What is outside the tolerance is
shown, and not taken.
"""

import argparse
import dataclasses
import importlib.util
import os
import shlex
import sys
import tempfile
from pathlib import Path

from fastmaker.jobs import backends
from fastmaker.jobs.benchmarks import tuning
from fastmaker.jobs.cli import errors, tables
from fastmaker.jobs.cli.arguments import at_least, positive
from fastmaker.jobs.clients import images
from fastmaker.jobs.packaging import models


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of `fastmaker tune`."""
    parser = argparse.ArgumentParser(
        prog="fastmaker tune",
        description="Measure how this machine serves a model fastest, and write a bundle that is served so.",
        epilog="example: fastmaker tune pets photos --picture tuned.png",
    )
    parser.add_argument("model", metavar="MODEL", help="a training job, a model directory, a model.tar.gz or its URI")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files, or folders of them")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="the new bundle (default: MODEL-tuned)")
    parser.add_argument(
        "--tolerance", type=positive, default=1e-4, help="largest difference of a number (default: %(default)s)"
    )
    parser.add_argument("--clients", type=at_least(1), default=8, help="requests at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="length of each measurement (default: %(default)s)")
    parser.add_argument(
        "--batch-sizes", type=_sizes, default=(1, 8), metavar="N,N", help="requests given at once (default: 1,8)"
    )
    parser.add_argument("--exhaustive", action="store_true", help="measure an endpoint of every setting")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw images a second against p99")
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Return the arguments."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if not args.seconds > 0:
        parser.error(f"--seconds {args.seconds:g}: expected more than 0")
    args.output = args.output or Path(f"{os.path.basename(args.model.rstrip('/')).removesuffix('.tar.gz')}-tuned")
    return args


def main(args) -> int:
    """Measure, print the table and write the bundle. Raises ValueError or Failure."""
    if args.output.exists():
        raise ValueError(f"{args.output} exists; --output names a new folder")
    if args.picture and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--picture needs matplotlib, which is not installed: pip install matplotlib")
    photos = [file.read_bytes() for name in args.images for file in images.image_files(name)]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with (
        models.model_directory(args.model, lambda: backends.connect().session) as model_dir,
        tempfile.TemporaryDirectory(dir=args.output.parent, prefix=f".{args.output.name}.") as scratch,
    ):
        copy = _copy(model_dir, Path(scratch, "bundle"))
        found = tuning.search(
            copy,
            photos,
            tolerance=args.tolerance,
            clients=args.clients,
            seconds=args.seconds,
            batch_sizes=args.batch_sizes,
            exhaustive=args.exhaustive,
        )
        _finish(args, model_dir, copy, found)
    return 0


def _copy(model_dir: Path, copy: Path) -> Path:
    """Return a copy of the bundle without settings, with an ONNX file where one can be made."""
    from fastmaker import bundle
    from fastmaker.export import onnx_file

    bundle.load(model_dir)  # fails for a bundle that cannot be served
    models.copy_with_this_code(model_dir, copy)
    (copy / bundle.SERVING_FILE).unlink(missing_ok=True)
    if not (copy / bundle.ONNX_FILE).is_file():
        try:
            onnx_file.to_onnx(copy, copy / bundle.ONNX_FILE)
        except onnx_file.ExportError as error:
            print(f"not tried: onnxruntime and openvino: {error}")
    return copy


def _finish(args, model_dir: Path, copy: Path, found: list[tuning.Candidate]) -> None:
    """Print and draw what was found, and move the bundle in place."""
    from fastmaker import bundle
    from fastmaker.serving import settings

    best = found[0] if found and found[0].rates and found[0].computation.agrees(args.tolerance) else None
    rows = [it.row(args.tolerance, it is best) for it in found]
    print("\n" + tables.table(tuning.HEADER, rows))
    if args.picture:
        _draw(found, best, args)
        print(f"\npicture: {args.picture}")
    if best is None:
        raise errors.Failure("nothing agrees with torch in float32 and could be served: no bundle is written")
    if best.settings.engine == "torch" and not (model_dir / bundle.ONNX_FILE).is_file():
        (copy / bundle.ONNX_FILE).unlink(missing_ok=True)
    settings.save(copy, dataclasses.replace(best.settings, measured=tuning.measured(best, args.clients)))
    copy.rename(args.output)
    print(f"\nmade:    {args.output}")
    print(f"next:    fastmaker deploy --model {shlex.quote(str(args.output))}")


def _draw(found: list[tuning.Candidate], best: tuning.Candidate | None, args) -> None:
    import statistics

    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots()
    for number, it in enumerate((it for it in found if it.rates), 1):
        agrees = it.computation.agrees(args.tolerance)
        own, tail = it.settings, 1000 * statistics.median(it.tails)
        size = f"{own.workers}x{own.threads}, batches of {own.batch_size}"
        text = f"{number}  {own.engine} {own.precision} {size}, off by {it.computation.difference:.0e}"
        marker, colour = ("*", "C2") if it is best else ("o", "C0") if agrees else ("x", "C3")
        axes.scatter(it.rate, tail, s=150 if it is best else 40, marker=marker, c=colour, label=text)
        axes.annotate(str(number), (it.rate, tail), textcoords="offset points", xytext=(6, 4))
    axes.set_xlabel(f"images a second, {args.clients} clients")
    axes.set_ylabel("p99, ms")
    axes.set_title(f"star: chosen; crosses: outside the tolerance of {args.tolerance:g}")
    figure.legend(loc="outside right upper", fontsize=8)
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.picture, dpi=120)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted({at_least(1)(part) for part in text.split(",")}))


if __name__ == "__main__":
    errors.run(sys.modules[__name__])

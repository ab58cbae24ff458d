"""Make a bundle of a Learner that ``learn.export()`` wrote elsewhere: ``fastmaker convert export.pkl model --trust``.

What the pickle names and this machine lacks, such as a notebook's own `get_y` or metric, has a stand-in where the
answer does not depend on it. Where it does, the Learner is refused, and the missing object named.
"""

import argparse
import shlex
import sys
from pathlib import Path

from fastmaker.jobs.cli import arguments, errors
from fastmaker.jobs.packaging import exported


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of `fastmaker convert`."""
    parser = argparse.ArgumentParser(
        prog="fastmaker convert",
        description="Make a bundle of a Learner that learn.export() wrote, also on another machine.",
        epilog="example: fastmaker convert export.pkl model --trust",
    )
    parser.add_argument("pickle", type=Path, metavar="FILE", help="the file of learn.export(), usually export.pkl")
    parser.add_argument("model", type=Path, metavar="MODEL", help="the model directory to make")
    exported.add_arguments(parser)
    parser.add_argument(
        "--mask-size",
        choices=("model", "original"),
        default="model",
        help="size of a U-Net's served masks unless a request names one (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size",
        type=arguments.size,
        metavar="SIZE",
        help="of all images, if the Learner resizes none and its network takes one size; pixels, one number or"
        " HEIGHTxWIDTH (default: any size)",
    )
    parser.add_argument("--force", action="store_true", help="write into a MODEL that exists")
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Return the arguments."""
    return get_parser().parse_args(argv)


def main(args) -> int:
    """Make the bundle; return the exit status. Raises ValueError."""
    exported.check(args.pickle, args.trust)
    _check_target(args.model, args.force)
    print(f"loading {args.pickle}: {exported.WARNING}", flush=True)
    missing = exported.convert(
        args.pickle,
        args.model,
        imports=args.imports,
        ignored=args.ignored,
        mask_size=args.mask_size,
        image_size=args.image_size,
    )
    if missing:
        print(f"stand-ins for {', '.join(missing)}: the answer does not depend on them")
    print(f"made:    {args.model}, {_description(args.model)}")
    print(f"next:    fastmaker deploy --model {shlex.quote(str(args.model))}")
    return 0


def _check_target(model_dir: Path, force: bool) -> None:
    """Raise ValueError if the folder cannot be made, or has something in it without `force`."""
    if model_dir.exists() and not model_dir.is_dir():
        raise ValueError(f"{model_dir} is a file, where a folder is to be made")
    if model_dir.is_dir() and any(model_dir.iterdir()) and not force:
        raise ValueError(f"{model_dir} exists; --force writes into it")


def _description(model_dir: Path) -> str:
    from fastmaker import bundle

    info = bundle.load_info(model_dir)
    size = "x".join(map(str, info.image_size))
    return f"{info.architecture} for {info.task}, {len(info.labels)} labels, {size} pixels"


if __name__ == "__main__":
    errors.run(sys.modules[__name__])

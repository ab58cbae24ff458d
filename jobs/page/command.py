"""Try a model in a browser: ``fastmaker page MODEL``, ``fastmaker page --endpoint NAME``."""

import argparse
import os
import sys
from pathlib import Path

from fastmaker.jobs.cli import errors
from fastmaker.jobs.clients import sources
from fastmaker.jobs.clients.images import image_files
from fastmaker.jobs.page.corrections import Corrections

PASSWORD = "FASTMAKER_PAGE_PASSWORD"
USER = "fastmaker"
LEAST_PASSWORD = 8  # characters


def get_parser() -> argparse.ArgumentParser:
    """Return this command's parser."""
    parser = argparse.ArgumentParser(
        prog="fastmaker page",
        description="Try a bundle, an endpoint or a model of a Triton server in a browser.",
        epilog="example: fastmaker page --endpoint pets --examples photos --corrections corrections",
    )
    parser.add_argument(
        "bundle",
        nargs="?",
        metavar="MODEL",
        help="a training job, a model directory, a model.tar.gz or its URI, which this command serves itself",
    )
    sources.add_arguments(parser)
    parser.add_argument("--examples", metavar="FOLDER", help="images to pick from")
    parser.add_argument(
        "--corrections", type=Path, metavar="FOLDER", help="where images with their right labels go, for training"
    )
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860 on)")
    parser.add_argument(
        "--share-on", metavar="ADDRESS", help="answer at this address of the machine, too, with a password"
    )
    parser.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help=f"the password of --share-on, its first line (default: the variable {PASSWORD})",
    )
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the arguments and check those that exclude or need each other."""
    parser = get_parser()
    args = parser.parse_args(argv)
    sources.check_arguments(parser, args)
    if args.password_file and not args.share_on:
        parser.error("--password-file is the password of --share-on, which is missing")
    return args


def main(args) -> int:
    """Serve the page until Ctrl-C."""
    from fastmaker.jobs.page import server

    password = _password(args) if args.share_on else None
    examples = image_files(args.examples) if args.examples else []
    corrections = Corrections(args.corrections) if args.corrections else None
    server.check_packages()
    with sources.connect(args) as source:
        auth = (USER, password) if password else None
        server.serve(source, examples, corrections, address=args.share_on, port=args.port, auth=auth)
    return 0


def _password(args) -> str:
    """Return the password of --share-on. Raises ValueError."""
    if args.password_file:
        lines = args.password_file.read_text("utf-8").splitlines()
        password, where = lines[0].strip() if lines else "", f"--password-file {args.password_file}"
    else:
        password, where = os.environ.get(PASSWORD, ""), f"the variable {PASSWORD}"
    if not password:
        raise ValueError(f"--share-on needs a password: write one into a file for --password-file, or set {PASSWORD}")
    if len(password) < LEAST_PASSWORD:
        raise ValueError(f"{where}: expected a password of at least {LEAST_PASSWORD} characters")
    return password


if __name__ == "__main__":
    errors.run(sys.modules[__name__])

"""Arguments that several commands have, and what is made of them."""

import argparse
import re

from fastmaker.jobs import instance_types

BACKENDS = ("process", "docker", "aws")
SERVERS = ("ray", "torchserve")


def add_backend(parser, instances: bool = True, backends: tuple[str, ...] = BACKENDS) -> None:
    """Add the arguments that say where a job runs, one of `backends`; without `instances` only --backend."""
    if instances:
        parser.add_argument(
            "--instance-type",
            default=instance_types.LOCAL,
            help="local, local_gpu or, on AWS, ml.* (default: %(default)s)",
        )
        parser.add_argument("--role", help="IAM role (default: SAGEMAKER_ROLE, or the SDK's configuration file)")
        parser.add_argument("--image-uri", help="a Docker image of your own (default: AWS's; processes need none)")
        parser.add_argument("--dry-run", action="store_true", help="check, and print the requests without sending them")
    parser.add_argument(
        "--backend",
        choices=backends,
        default=BACKENDS[0],
        help="where local types run: process or docker; aws is implied by ml.* types"
        f"{'; ray is a cluster' if 'ray' in backends else ''} (default: %(default)s)",
    )


def backend_options(args: argparse.Namespace, needs_instances: bool = True) -> dict:
    """Return the keyword arguments of `backends.connect`.

    What needs no instances, such as a serverless endpoint, needs no instance type on AWS either.
    """
    names = ("instance_type", "backend", "role", "image_uri", "server", "address", "dry_run")
    options = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if not needs_instances and args.backend == "aws" and instance_types.is_local(args.instance_type):
        options["instance_type"] = None
    return options


def add_container(parser) -> None:
    """Add the arguments of what serves: the number of instances and the environment of each."""
    parser.add_argument("--instance-count", type=at_least(1), default=1, help="(default: %(default)s)")
    parser.add_argument(
        "--server", choices=SERVERS, help="what serves the model (default: torchserve here; on AWS, what is patched)"
    )
    parser.add_argument(
        "--env", type=name_and_value, action="append", default=[], metavar="NAME=VALUE", help="for the container"
    )


def at_least(least: int):
    """Return an argument's type: an integer that is `least` or more."""

    def integer(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value}: expected at least {least}")
        return value

    return integer


def positive(text: str) -> float:
    """An argument's type: return a number above 0."""
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text}: expected more than 0")
    return value


def name_and_value(text: str) -> tuple[str, str]:
    """An argument's type: return the two parts of NAME=VALUE."""
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE")
    return name, value


def size(text: str) -> tuple[int, int]:
    """An argument's type: return (height, width) of one number of pixels or HEIGHTxWIDTH."""
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    found = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor HEIGHTxWIDTH")
    return found

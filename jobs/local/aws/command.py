"""The command ``fastmaker aws``: AWS on this machine until Ctrl-C, or while a command runs.

fastmaker aws
fastmaker aws -- python train_on_sagemaker.py
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from fastmaker.local import aws

NOT_FOUND = 127  # a shell's status for a command that there is not


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="fastmaker aws",
        description="AWS on this machine: SageMaker, its runtime and logs are this machine's engine, S3 keeps what it "
        "holds in FASTMAKER_HOME, other services are mocks. Without a COMMAND it prints the variables to set and runs "
        "until Ctrl-C.",
    )
    parser.add_argument("--port", type=int, default=0, help="(default: that of the last start, at first a free one)")
    parser.add_argument(
        "--hold",
        type=float,
        default=aws.HOLD_SECONDS,
        help="seconds that a description of a job or an endpoint waits for its end; clients look every 30 s "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--proxy",
        action="store_true",
        help="also answer clients that name AWS's hosts in code: HTTPS_PROXY leads to these hosts here and to no other",
    )
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="-- COMMAND",
        help="what to run with the variables set; its status is returned",
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command's arguments."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.command and args.command[0] != "--":
        parser.error(f"unrecognized argument: {args.command[0]}; what is to be run comes after --")
    if args.hold < 0:
        parser.error(f"--hold is {args.hold:g}; expected 0 or more seconds")
    args.command = args.command[1:]
    return args


def main(args: argparse.Namespace) -> int:
    """Serve while a command runs, and return its status; without one until Ctrl-C, after printing the variables."""
    # A shell that starts a command in the background may have it ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with aws.running(port=args.port, hold=args.hold, proxy=args.proxy) as environment:
        if args.command:
            return _run(args.command, environment)
        others = sorted(set(os.environ) - aws.without_others(dict(os.environ)).keys())
        exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
        print("\n".join([*(f"unset {name}" for name in others), *exports]), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run a command and return its status; one that a signal has ended has a shell's status for that."""
    environ = {**aws.without_others(dict(os.environ)), **environment}
    try:
        process = subprocess.Popen(command, env=environ)
    except FileNotFoundError:
        print(f"error: there is no command {command[0]}", file=sys.stderr)
        return NOT_FOUND
    while True:
        try:
            status = process.wait()
            return status if status >= 0 else 128 - status
        except KeyboardInterrupt:  # the command has got it too, and decides
            continue

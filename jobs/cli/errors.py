"""How a command ends: failures in one line, Ctrl-C and SIGTERM, internal errors with their traceback."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from fastmaker.jobs.cli.redaction import RedactingStream

# Packages whose own exceptions say what AWS, or a job, has answered.
AWS = ("botocore", "boto3", "sagemaker")


class Failure(Exception):
    """What a job needs is missing or not allowed. The message is one line."""


@contextlib.contextmanager
def errors_as_one_line() -> Iterator[None]:
    """End the process with one line on stderr for bad usage and failed jobs; an internal error has its traceback.

    SIGTERM ends it as Ctrl-C does, which leaves nothing running. What is written to files and pipes comes without
    account numbers and signatures.
    """
    with (
        contextlib.redirect_stdout(RedactingStream(sys.stdout)),
        contextlib.redirect_stderr(RedactingStream(sys.stderr)),
        signals([signal.SIGTERM], signal.default_int_handler),
    ):
        yield from _ending_with_one_line()


def _ending_with_one_line() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except Exception as error:
        if isinstance(error, (Failure, NotImplementedError)) or type(error).__module__.partition(".")[0] in AWS:
            fail(error, 1)
        if isinstance(error, (ValueError, OSError)):
            fail(error, 2)
        traceback.print_exc()
        sys.exit(1)


@contextlib.contextmanager
def signals(numbers: Iterable[int], handler) -> Iterator[None]:
    """Let `handler` take these signals, and the handlers of before take them again afterwards."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def run(command, argv: Sequence[str] | None = None) -> NoReturn:
    """Parse the arguments of a command's module, run it, and end the process with the exit status that it returns."""
    arguments = command.parse_args(argv)
    with errors_as_one_line():
        sys.exit(command.main(arguments))


def fail(error: object, status: int) -> NoReturn:
    """Print the error as one line on stderr and end the process with this status."""
    line = " ".join(str(error).split("\nTraceback")[0].split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)

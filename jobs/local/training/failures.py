"""Why a training script failed, as short as a FailureReason has to be: it ends with the script's last lines."""

import re
import signal

LAST_LINES = 10  # of a script that has left no traceback
MAX_MESSAGE_LINES = 40  # of an exception; a traceback that more lines follow is no longer the reason
MAX_EXCEPTION = 240  # characters of the first exception of a chain, where not all of it fits
CUT = "\n...\n"
# The beginnings of lines of the toolkit, and of the engine.
LOGGED = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ sagemaker-training-toolkit |torch \S+ and Python \S+ of this machine "
)
# What the toolkit logs before it starts the script, and after the script has ended.
STARTED = "Invoking script with the following command:"
ENDED = ("Waiting for the process to finish", "Reporting training FAILURE")
# What the toolkit writes to output/failure of a program that it has run.
PROGRAM_FAILED = re.compile(r"(?P<error>\w+):\nExitCode (?P<status>-?\d+)\n")
# What the SDK's drivers write there of what they have run, and what they log before and after it.
DRIVER_FAILED = re.compile(
    r"Traceback .*CalledProcessError: .* status (?P<status>-?\d+)\.$|Training Execution failed", re.S
)
DRIVER_STARTED = "Executing command: "
DRIVER_ENDED = re.compile(r"Command failed with exit code |\++ handle_error$")
OF_TORCHRUN = re.compile(r"torch/distributed/elastic/\S+\.py:\d+\]")  # its report of a script that failed
RANK = re.compile(r"^\[rank\d+\]: ?")
TRACEBACK = "Traceback (most recent call last):"
EXCEPTION = re.compile(r"([A-Za-z_]\w*\.)*[A-Z]\w*(: |$)")
CHAINED = ("The above exception was the direct cause", "During handling of the above exception")


def explain(failure: str, log: str, status: int, length: int) -> str:
    """Return why a host failed, in at most `length` characters.

    `failure` is the text of output/failure, empty if there is none; `log` the container's; `status` the exit status of
    the toolkit's process.
    """
    if failed := PROGRAM_FAILED.match(failure):
        head = f"{failed['error']}: {_ended(int(failed['status']))}\n"
        return head + shorten(_lines_of_script(log), length - len(head))
    if failed := DRIVER_FAILED.match(failure):
        head = f"{_ended(int(failed['status'] or status))}\n"
        return head + shorten(_lines_of_script(log), length - len(head))
    if failure:  # of a script, of which AWS gives the beginning as well; or of the toolkit
        of_toolkit = failure.startswith("Framework Error")
        return shorten(failure.splitlines(), length) if of_toolkit else failure[:length]
    head = f"{_ended(status)}\n"
    return head + shorten(_lines_of_script(log), length - len(head))


def shorten(lines: list[str], length: int) -> str:
    """Return the last traceback and what follows it, or the last lines.

    Where that is longer than `length`, the first exception of the traceback's chain and the end are left.
    """
    text, exception = _last_traceback(lines) or ("\n".join(lines[-LAST_LINES:]), "")
    if len(text) <= length:
        return text
    head = exception[:MAX_EXCEPTION] + CUT
    return head + text[len(head) - length :]


def last_exception(reason: str) -> str:
    """Return the last exception of a reason and its message, all of it if there is no traceback."""
    _, found, last = reason.rpartition(TRACEBACK)
    lines = last.splitlines()
    return "\n".join(lines[_exception_in(lines) :]) if found else reason


def _lines_of_script(log: str) -> list[str]:
    """Return what a script has printed, by the log of its container."""
    lines = [RANK.sub("", line.rstrip()) for line in log.splitlines()]
    ends = (n for n, line in enumerate(lines) if LOGGED.match(line) and any(text in line for text in ENDED))
    lines = lines[: next(ends, None)]
    starts = [number for number, line in enumerate(lines) if line == STARTED]
    lines = lines[starts[-1] + 3 :] if starts else lines  # the command stands between blank lines
    lines = lines[next((n + 1 for n, line in enumerate(lines) if line.startswith(DRIVER_STARTED)), 0) :]
    reports = (n for n, line in enumerate(lines) if OF_TORCHRUN.search(line) or DRIVER_ENDED.match(line))
    report = next(reports, None)
    return [line for line in lines[:report] if line and not LOGGED.match(line)]


def _last_traceback(lines: list[str]) -> tuple[str, str] | None:
    """Return the text from the first traceback of the last chain on, and the exception of that first one."""
    starts = [number for number, line in enumerate(lines) if line.strip() == TRACEBACK]
    if not starts or len(lines) - starts[-1] - _exception_in(lines[starts[-1] :]) > MAX_MESSAGE_LINES:
        return None
    first = starts.pop()
    while starts and any(line.startswith(CHAINED) for line in lines[starts[-1] : first]):
        first = starts.pop()
    return "\n".join(lines[first:]), lines[first + _exception_in(lines[first:])]


def _exception_in(lines: list[str]) -> int:
    """Return the number of the line with the exception that a traceback ends with; lines of frames are indented."""
    return next((number for number, line in enumerate(lines) if EXCEPTION.match(line)), len(lines) - 1)


def _ended(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"killed by signal {-status}"

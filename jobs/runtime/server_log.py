"""Runs a server whose log is bounded: ``python server_log.py LOG COMMAND...``, where LOG is what the command prints to.

Who writes the log appends to it, and goes on in an empty file. When its lines came is noted beside it: container.times
holds how long the log was at which time.
"""

import contextlib
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

LOG_BYTES = 10 * 2**20  # of the log; what was before is kept once: container.log as container.1.log
LOG_SECONDS = 0.25  # between two looks at its size
ENTRY = struct.Struct("<QQ")  # of the times: bytes of the log, milliseconds of the era
# Of TorchServe, whose own also writes five files that nobody reads.
LOG_CONFIG = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration>
  <Appenders>
    <Console name="STDOUT" target="SYSTEM_OUT"><PatternLayout pattern="%d{ISO8601} [%-5p] %t %c - %m%n"/></Console>
  </Appenders>
  <Loggers>
    <Logger name="io.netty" level="error"/>
    <Logger name="org.apache" level="off"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="TELEMETRY_METRICS" level="off"/>
    <Root level="info"><AppenderRef ref="STDOUT"/></Root>
  </Loggers>
</Configuration>
"""


def bound(log: Path) -> None:
    """Set the log aside whenever it is full, in a thread that lasts as long as the process."""
    threading.Thread(target=_bound, args=(log,), daemon=True).start()


def _bound(log: Path) -> None:
    while True:
        note_time(log)
        if log.is_file() and log.stat().st_size > LOG_BYTES:
            with contextlib.suppress(OSError):  # on a full disk it is emptied all the same
                shutil.copyfile(log, aside(log))
                times_of(log).replace(times_of(aside(log)))
            os.truncate(log, 0)
        time.sleep(LOG_SECONDS)


def aside(log: Path) -> Path:
    """Return where a log is kept that was full, or of a server that was started anew."""
    return log.with_name(f"{log.stem}.1{log.suffix}")


def times_of(log: Path) -> Path:
    """Return the file that holds when a log's lines came."""
    return log.with_suffix(".times")


def note_time(log: Path) -> None:
    """Note that what a log has gained since the last note has come by now; what a full disk has no room for is not."""
    with contextlib.suppress(OSError):
        if not log.is_file() or not (size := log.stat().st_size):
            return
        with open(times_of(log), "a+b") as times:
            end = times.seek(0, os.SEEK_END) // ENTRY.size * ENTRY.size
            times.seek(max(0, end - ENTRY.size))
            before, moment = ENTRY.unpack(times.read(ENTRY.size)) if end else (0, 0)
            if size < before:  # another log, of a container that was started anew
                times.truncate(0)
                before = 0
            if size > before:
                times.write(ENTRY.pack(size, max(moment, time.time_ns() // 10**6)))


@contextlib.contextmanager
def noting_times(logs: list[Path]) -> Iterator[None]:
    """Note when the lines of logs come while the context lasts."""
    over = threading.Event()

    def note() -> None:
        while not over.wait(LOG_SECONDS):
            for log in logs:
                note_time(log)

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for log in logs:
            note_time(log)


if __name__ == "__main__":
    bound(Path(sys.argv[1]))
    sys.exit(subprocess.run(sys.argv[2:]).returncode)

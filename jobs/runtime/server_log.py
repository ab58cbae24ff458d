"""Runs a server whose log is bounded: ``python server_log.py LOG COMMAND...``, where LOG is what the command prints to.

Who writes the log appends to it, and goes on in an empty file.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

LOG_BYTES = 10 * 2**20  # of the log; what was before is kept once: container.log as container.1.log
LOG_SECONDS = 1.0  # between two looks at its size
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
        if log.is_file() and log.stat().st_size > LOG_BYTES:
            with contextlib.suppress(OSError):  # on a full disk it is emptied all the same
                shutil.copyfile(log, log.with_name(f"{log.stem}.1{log.suffix}"))
            os.truncate(log, 0)
        time.sleep(LOG_SECONDS)


if __name__ == "__main__":
    bound(Path(sys.argv[1]))
    sys.exit(subprocess.run(sys.argv[2:]).returncode)

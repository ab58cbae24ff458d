"""Which process is which: by pid, start time and boot, or by a token in its environment; never by a number alone.

A directory in which something runs holds process.json. It is written before the process is started, with a token that
the process and its children carry in their environment, and with the identity of whoever starts it. So what was
started is found though its starter was killed before it could write which process it is.
"""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from fastmaker import files

VARIABLE = "FASTMAKER_PROCESS"  # holds the token
# setproctitle, of which Ray has its own copy, writes a long title over the environment, and with it the token, unless:
KEEPING = {"SPT_NOENV": "1"}
TREE_VARIABLE = "FASTMAKER_CONTAINER"  # holds the directory of a container
PROCESS_FILE = "process.json"
MAX_FILE = 2**16  # bytes
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_children: list[subprocess.Popen[bytes]] = []  # kept, as they outlive what started them
OLD_TOLERANCE_SECONDS = 1  # between two readings of a start time that was kept as one of the day


def identity(pid: int | None = None) -> dict[str, Any]:
    """Return what tells a process, by default this one, from every other that has run or will. Raises psutil.Error."""
    pid = os.getpid() if pid is None else pid
    return {"pid": pid, "started": _started(pid), "boot": boot()}


def lives(known: Any) -> bool:
    """Return whether the process of this identity lives; False if `known` is no identity."""
    if not isinstance(known, dict) or type(pid := known.get("pid")) is not int or pid <= 0:
        return False
    with contextlib.suppress(psutil.Error, OSError, ValueError, OverflowError, TypeError, KeyError):
        if "boot" not in known:  # of an earlier version
            process = psutil.Process(pid)
            return abs(process.create_time() - known["created"]) < OLD_TOLERANCE_SECONDS and _lives(process)
        return known["boot"] == boot() and str(known["started"]) == str(_started(pid)) and not _is_zombie(pid)
    return False


def find(known: Any) -> psutil.Process | None:
    """Return the living process of this identity, None if it has ended or `known` is no identity."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(known["pid"]) if lives(known) else None
        return process if lives(known) else None  # and not of another that got the number in between
    return None


@contextlib.contextmanager
def alone(file: Path) -> Iterator[int | None]:
    """Lock a file, which is made, while the context lasts; yield its descriptor, None if another process has it."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield None
    else:
        yield lock
    finally:
        os.close(lock)


def label() -> str:
    """Return the identity of this process as a part of a file's name."""
    return "-".join(str(value) for value in identity().values())


def labelled_lives(text: str) -> bool:
    """Return whether the process lives whose `label` it is."""
    pid, _, rest = text.partition("-")
    started, _, of_boot = rest.partition("-")
    return pid.isdecimal() and lives({"pid": int(pid), "started": started, "boot": of_boot})


def reap() -> None:
    """Have the system forget the processes that `Started.run` has started here and that have ended."""
    for child in _children:
        child.poll()


class Started:
    """The process that was started for a directory, and those that it has started itself."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / PROCESS_FILE

    def begin(self) -> dict[str, str]:
        """Write that this process is about to start one here; return the variables to start it with."""
        token = secrets.token_hex(16)
        files.write_text(self.file, json.dumps({"token": token, "starter": identity()}))
        return {VARIABLE: token, **KEEPING}

    def record(self, pid: int) -> None:
        """Write which process it is."""
        known = {key: value for key, value in self._read().items() if key in ("token", "starter")}
        files.write_text(self.file, json.dumps(known | identity(pid)))

    def run(self, command: list[str], cwd: str | Path, env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start `command` in a session of its own, its output going to `log`, and write which process it is."""
        token = self.begin()
        try:
            with open(log, "ab") as output:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=env | token,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except BaseException:  # nothing was started, and nothing is to be waited for
            self.file.unlink(missing_ok=True)
            raise
        reap()
        _children.append(process)
        self.record(process.pid)
        return process

    def is_this(self) -> bool:
        """Return whether this process is the one that was started, and not one for an earlier directory of the name."""
        return os.environ.get(VARIABLE, "") == self._read().get("token")

    def alive(self) -> bool:
        """Return whether the process lives or is being started; its children may outlive it."""
        known = self._read()
        if "pid" in known:
            return lives(known)
        return lives(known.get("starter")) or bool(self._carriers(known))

    def processes(self) -> list[psutil.Process]:
        """Return the living processes, the one that was started first.

        A session's number is believed while its first process lives: it may be given again afterwards. Then a process
        counts if it has a file of the directory open as well.
        """
        known = self._read()
        found = {process.pid: process for process in self._carriers(known)}
        first = find(known)
        if first and not _lacks(first, known.get("token")):
            found |= {process.pid: process for process in _session(first.pid)} | {first.pid: first}
        elif not first:
            found |= {process.pid: process for process in self._left_behind(known)}
        found.pop(os.getpid(), None)
        return sorted(found.values(), key=lambda process: process != first)

    def _left_behind(self, known: dict[str, Any]) -> list[psutil.Process]:
        """Return the processes of the session of a first one that has died, which hold on to the directory.

        They may have been started without the token.
        """
        number = known.get("pid")
        if type(number) is not int or known.get("boot") != boot() or _is_alive(number):
            return []
        return [process for process in _session(number) if _has_open(process, self.file.parent.resolve())]

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(files.read_regular(self.file, MAX_FILE))
        except (OSError, ValueError):  # nothing was started, or nobody can tell what
            return {}
        return known if isinstance(known, dict) else {}

    def _carriers(self, known: dict[str, Any]) -> list[psutil.Process]:
        if isinstance(token := known.get("token"), str) and token:
            return carrying(VARIABLE, token)
        # The file is of an earlier version, or a script has removed it from its tree.
        return carrying("SAGEMAKER_BASE_DIR" if known else TREE_VARIABLE, str(self.file.parent))


def carrying(variable: str, value: str) -> list[psutil.Process]:
    """Return the living processes of this user that were started with `variable` as `value`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if _environment_holds(process, variable, value) and process.uids().real == os.getuid() and _lives(process):
                found.append(process)
    return found


def listens(processes: Iterable[psutil.Process], port: int) -> psutil.Process | None:
    """Return the process that accepts connections at `port`, None if it is none of `processes`."""
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    return process
    return None


def stop(find_processes: Callable[[], list[psutil.Process]], grace_seconds: float) -> None:
    """End the processes that are found until there is none: by SIGTERM, after `grace_seconds` by SIGKILL.

    One that was found once is ended even if it is not found again.
    """
    deadline = time.monotonic() + grace_seconds
    known: set[psutil.Process] = set()
    asked: set[psutil.Process] = set()
    while True:
        known |= set(find_processes())
        known = {process for process in known if _lives(process)}
        if not known:
            return
        over = time.monotonic() >= deadline
        for process in known if over else known - asked:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL if over else signal.SIGTERM)
        asked |= known
        time.sleep(0.02 if over else 0.05)


def _lacks(process: psutil.Process, token: Any) -> bool:
    """Return whether a process is sure not to have been started with a token.

    A script can write any process into the file in its tree, but not change the environment of that one.
    """
    with contextlib.suppress(psutil.Error, OSError):
        return isinstance(token, str) and not _environment_holds(process, VARIABLE, token)
    return False


def _session(number: int) -> list[psutil.Process]:
    """Return the living processes of a process session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == number and _lives(process):
                found.append(process)
    return found


def _has_open(process: psutil.Process, folder: Path) -> bool:
    """Return whether a process works in a folder or has a file of it open."""
    with contextlib.suppress(psutil.Error, OSError):
        paths = [process.cwd(), *(file.path for file in process.open_files())]
        return any(Path(path).is_relative_to(folder) for path in paths)
    return False


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.Error, ValueError, OverflowError):
        return _lives(psutil.Process(pid))
    return False


def _environment_holds(process: psutil.Process, variable: str, value: str) -> bool:
    if psutil.LINUX:  # a look at every process of the machine: without the rest of what psutil makes of it
        text = Path(f"/proc/{process.pid}/environ").read_bytes()
        return f"\0{variable}={value}\0".encode() in b"\0" + text + b"\0"
    return process.environ().get(variable) == value


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _started(pid: int) -> float:
    """Return when a process was started; on Linux in ticks since the boot, which no change of the clock moves."""
    return int(_stat(pid)[19]) if psutil.LINUX else float(psutil.Process(pid).create_time())


def _is_zombie(pid: int) -> bool:
    return _stat(pid)[0] in "ZX" if psutil.LINUX else psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def _stat(pid: int) -> list[str]:
    """Return what /proc/<pid>/stat says after the name of the program. Raises psutil.NoSuchProcess."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        raise psutil.NoSuchProcess(pid) from None


def boot() -> str:
    """Return what names this boot of the machine."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return str(round(psutil.boot_time()))

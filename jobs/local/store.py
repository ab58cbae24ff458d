"""Records of the resources that were created, on disk, so that another process finds them.

FASTMAKER_HOME (~/.fastmaker)/<kind>/<name>/record.json    beside what the resource owns: logs, models, trees

A record exists whole or not at all. It is made in a directory beside its own, `.new-*`, and deleted as one,
`.deleted-*`; what a killed process leaves of those is removed by the next one that creates or deletes. A link is no
record. Nothing is listed, read or deleted by a name that leads elsewhere.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastmaker import files
from fastmaker.local import names, processes

RECORD_FILE = "record.json"
LOCK_FILE = ".lock"
NEW, DELETED = ".new-", ".deleted-"  # and the process that makes or removes it
FOREIGN_SECONDS = 60  # after which what a process of another machine, or of another boot, left is removed
MAX_RECORD = 64 * 2**20  # bytes; the largest request has one
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_BYTES = 2**20  # with less a disk counts as full
RESERVE_FILE, RESERVE_BYTES = ".reserve", 2**18  # space for the last change of a record; a request has 250 KB at most


class DamagedRecord(Exception):
    """A record that cannot be used; the message names its file. It can be deleted."""


def default_home() -> Path:
    """Return FASTMAKER_HOME, by default ~/.fastmaker."""
    return Path(os.environ.get("FASTMAKER_HOME", "~/.fastmaker")).expanduser().absolute()


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(timezone.utc)


def no_space(folder: Path) -> str:
    """Return that the disk of a folder is full, empty if it is not."""
    free = shutil.disk_usage(folder).free
    return f"no space is left on the disk of {folder}" if free < FULL_BYTES else ""


class Store:
    """Keep the records of one kind of resource by name, each a dict of JSON values and datetimes.

    A record must have the keys of `shape`, with values of its types; a dict or a list of one in it says what they hold.
    `end` ends what runs in a directory that is removed. With `ignore_case` no two names differ by their case alone.
    """

    def __init__(
        self,
        home: Path,
        kind: str,
        shape: dict[str, Any] | None = None,
        end: Callable[[Path], None] = lambda directory: None,
        ignore_case: bool = False,
    ) -> None:
        self.kind = kind
        self.folder = home / kind
        self._shape = shape or {}
        self._end = end
        self._ignore_case = ignore_case

    def directory(self, name: str) -> Path:
        """Return the directory of `name`, whether or not it exists. Raises KeyError for what is no name."""
        if not names.is_file_name(name):
            raise KeyError(name)
        return self.folder / name

    def changed(self, name: str) -> datetime:
        """Return when the directory of `name` was last changed. Raises KeyError."""
        try:
            return datetime.fromtimestamp(os.lstat(self.directory(name)).st_mtime, timezone.utc)
        except OSError:
            raise KeyError(name) from None

    def create(self, name: str, record: dict[str, Any]) -> Path:
        """Write a new record and return its directory. Raises FileExistsError, and KeyError for what is no name."""
        directory = self.directory(name)
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sweep()
        if self._exists(name):
            raise FileExistsError(directory)
        new = self._aside(NEW)
        new.mkdir()
        try:
            (new / LOCK_FILE).touch()
            self._write(new, record)
            with self._spelled_once(name):
                self._move_in(new, name)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        with contextlib.suppress(OSError):  # a file system that cannot sync folders
            files.sync(self.folder)
        return directory

    def scratch(self) -> Path:
        """Return a new directory of this process, which is no record; once the process has ended it is swept away."""
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sweep()
        directory = self._aside(NEW)
        directory.mkdir()
        return directory

    def read(self, name: str) -> dict[str, Any]:
        """Return the record. Raises KeyError if there is none, DamagedRecord if it cannot be used."""
        if not self._exists(name):
            raise KeyError(name)
        file = self.directory(name) / RECORD_FILE
        try:
            record = json.loads(files.read_regular(file, MAX_RECORD), object_hook=_decode_time)
        except FileNotFoundError:
            raise KeyError(name) from None  # deleted meanwhile
        except OSError as error:
            raise DamagedRecord(f"{file} cannot be read: {error.strerror or error}") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise DamagedRecord(f"{file} is damaged: {type(error).__name__}: {error}") from None
        if reason := _misfit(record, self._shape):
            raise DamagedRecord(f"{file} is damaged: {reason}")
        found: dict[str, Any] = record
        return found

    @contextlib.contextmanager
    def changing(self, name: str, last: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the record, to be changed in place while no other process changes it.

        The `last` change has the space that `reserve` has kept. Raises KeyError and DamagedRecord, and OSError if it
        cannot be written: then it stays as it was.
        """
        with self._locked(name) as directory:
            record = self.read(name)
            before = json.dumps(record, default=_encode_time)
            yield record
            if last:
                (directory / RESERVE_FILE).unlink(missing_ok=True)
            if json.dumps(record, default=_encode_time) != before:
                self._write(directory, record)

    def reserve(self, name: str) -> None:
        """Keep space for the last change of a record, which is to be written on a full disk too. Raises OSError."""
        (self.directory(name) / RESERVE_FILE).write_bytes(bytes(RESERVE_BYTES))

    def delete(self, name: str) -> None:
        """Remove the record and all that its directory holds, which needs no space on the disk. Raises KeyError."""
        with self._locked(name) as directory:
            self._end(directory)
            self._remove(directory)
        self._sweep()

    def names(self) -> list[str]:
        """Return the names of all records, also of those that are damaged, sorted."""
        try:
            found = [entry.name for entry in os.scandir(self.folder) if names.is_file_name(entry.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in found if self._exists(name))

    def _exists(self, name: str) -> bool:
        directory = self.directory(name)
        with contextlib.suppress(OSError):
            return stat.S_ISDIR(os.lstat(directory).st_mode) and os.path.lexists(directory / RECORD_FILE)
        return False

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[Path]:
        """Hold the lock of a record while the context lasts. Raises KeyError if there is no record."""
        while True:
            if not self._exists(name):
                raise KeyError(name)
            directory = self.directory(name)
            try:
                lock = _open_lock(directory)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                # Another record may have the name now.
                if self._exists(name) and _same(lock, directory):
                    yield directory
                    return
            finally:
                _unlock(lock)

    @contextlib.contextmanager
    def _spelled_once(self, name: str) -> Iterator[None]:
        """Have no other name that differs by its case alone while the context lasts. Raises FileExistsError."""
        if not self._ignore_case:
            yield
            return
        lock = os.open(self.folder.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks of folders
                fcntl.flock(lock, fcntl.LOCK_EX)
            if any(other != name and other.lower() == name.lower() for other in self.names()):
                raise FileExistsError(self.directory(name))
            yield
        finally:
            _unlock(lock)

    def _move_in(self, new: Path, name: str) -> None:
        """Give a new directory its name. Raises FileExistsError if a record has it; what is none gives way."""
        directory = self.directory(name)
        lock = os.open(self.folder, os.O_RDONLY)
        try:
            while True:
                try:
                    os.rename(new, directory)  # takes the place of an empty directory alone
                    return
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                        raise
                with contextlib.suppress(OSError):  # a file system without locks of folders
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if self._exists(name):
                    raise FileExistsError(directory)
                if not directory.is_symlink():
                    self._end(directory)
                self._remove(directory)
        finally:
            _unlock(lock)

    def _remove(self, directory: Path) -> None:
        """Free the name of a directory, then remove what it holds; of a link or a file, itself alone."""
        aside = self._aside(DELETED)
        try:
            os.rename(directory, aside)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in FULL:
                raise
            (directory / RECORD_FILE).unlink(missing_ok=True)
            aside = directory
        _remove_tree(aside)

    def _aside(self, prefix: str) -> Path:
        """Return a path for what this process makes or removes."""
        return self.folder / f"{prefix}{processes.label()}.{secrets.token_hex(4)}"

    def _sweep(self) -> None:
        """Remove what killed processes have left while they created or deleted."""
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self.folder)):
                if entry.name.startswith((NEW, DELETED)) and _abandoned(Path(entry.path)):
                    if entry.is_dir(follow_symlinks=False):
                        self._end(Path(entry.path))
                    _remove_tree(Path(entry.path))

    def _write(self, directory: Path, record: dict[str, Any]) -> None:
        text = json.dumps(record, indent=2, default=_encode_time) + "\n"
        files.write_text(directory / RECORD_FILE, text)


def _abandoned(path: Path) -> bool:
    """Return whether the process that makes or removes `path` has ended."""
    label = path.name.removeprefix(NEW).removeprefix(DELETED).partition(".")[0]
    with contextlib.suppress(OSError):
        recent = time.time() - os.lstat(path).st_mtime < FOREIGN_SECONDS
        of_this_boot = label.endswith(processes.boot())
        return (of_this_boot or not recent) and not processes.labelled_lives(label)
    return False


def _remove_tree(path: Path) -> None:
    """Remove a directory and what it holds, or a link or file itself; folders that may not be read become readable."""
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(OSError):
            path.unlink()
        return
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):  # a script has taken itself the right to write a folder
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                os.chmod(folder, stat.S_IRWXU)
        shutil.rmtree(path, ignore_errors=True)


def _open_lock(directory: Path) -> int:
    """Return a descriptor to lock a record by: of a file in its directory, or of the directory on a full disk."""
    try:
        return os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise
    except OSError:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _unlock(lock: int) -> None:
    """Give up a lock, also where a process that was forked meanwhile has inherited the descriptor."""
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def _same(lock: int, directory: Path) -> bool:
    """Return whether a lock that was opened in a directory, or is the directory, is still the one found there."""
    held = os.fstat(lock)
    path = directory if stat.S_ISDIR(held.st_mode) else directory / LOCK_FILE
    with contextlib.suppress(OSError):
        return os.path.samestat(held, os.lstat(path))
    return False


def _misfit(value: Any, shape: Any, where: str = "it") -> str | None:
    """Return what keeps `value` from having a shape, or None."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{where} is no object"
        missing = [key for key in shape if key not in value]
        if missing:
            return f"{where} lacks {missing[0]}"
        return next(filter(None, (_misfit(value[key], inner, key) for key, inner in shape.items())), None)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        return next(filter(None, (_misfit(item, shape[0], f"an element of {where}") for item in value)), None)
    fits = isinstance(value, shape) and not (isinstance(value, bool) and shape is not bool)
    return None if fits else f"{where} is {type(value).__name__}"


def _encode_time(value: object) -> dict[str, str]:
    if isinstance(value, datetime):
        return {"$time": value.isoformat()}
    raise TypeError(f"{type(value).__name__} cannot be kept as JSON")


def _decode_time(value: dict[str, Any]) -> Any:
    if value.keys() != {"$time"}:
        return value
    moment = datetime.fromisoformat(value["$time"])
    if moment.tzinfo is None:
        raise ValueError(f"the time {value['$time']} has no zone")
    return moment

"""What a batch transform job reads: the objects of a prefix or of a manifest."""

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastmaker.jobs import storage
from fastmaker.jobs.storage import manifests


class InputError(ValueError):
    """Inputs that cannot be used; the message says which and why."""


class Inputs:
    """List the objects of a job in a file: memory does not grow with their number."""

    def __init__(self, file: Path) -> None:
        self.prefix = ""  # prefix + name is an object's URI
        self.count = 0
        self.hidden = 0  # objects that are not listed: those that systems leave in folders
        self._cut = 0  # characters of each key that belong to the prefix
        self._last = ""  # the key that was added, or could not be added
        self._file = file
        self._database = sqlite3.connect(file)
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE objects (number INTEGER PRIMARY KEY, key TEXT UNIQUE, size INTEGER)")

    def read(self, data_type: str, uri: str) -> None:
        """List the objects that an S3DataType and its S3Uri mean.

        Of a prefix, hidden ones are left out, though AWS sends them to the model, too; a manifest names what it names.
        Raises InputError, ManifestError and StorageError.
        """
        {"S3Prefix": self._read_prefix, "ManifestFile": self._read_manifest}[data_type](uri)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Yield (name, bytes) of each object, in the order of their keys; another thread may continue the iteration."""
        with contextlib.closing(sqlite3.connect(self._file, check_same_thread=False)) as database:
            for key, size in database.execute("SELECT key, size FROM objects ORDER BY key"):
                yield key[self._cut :], size

    def unanswered(self, output_path: str) -> Iterator[str]:
        """Yield the names of the objects that have no .out below `output_path`, in the order of their keys."""
        self._database.execute("DROP TABLE IF EXISTS answers")
        self._database.execute("CREATE TABLE answers (key TEXT PRIMARY KEY)")
        names = storage.names_below(output_path)
        with self._database:
            answers = ((name.removesuffix(".out"),) for name in names if name.endswith(".out"))
            self._database.executemany("INSERT INTO answers VALUES (?)", answers)
        query = "SELECT key FROM objects WHERE substr(key, ?) NOT IN (SELECT key FROM answers) ORDER BY key"
        for (key,) in self._database.execute(query, (self._cut + 1,)):
            yield key[self._cut :]

    def close(self) -> None:
        """Remove the list."""
        self._database.close()
        self._file.unlink(missing_ok=True)

    def _read_prefix(self, uri: str) -> None:
        root, listed = storage.list_objects(uri)
        all_below = True

        def rows() -> Iterator[tuple[str, int]]:
            nonlocal all_below
            for key, size in listed:
                if _is_hidden((root + key).removeprefix(uri)):
                    self.hidden += 1
                    continue
                all_below = all_below and (root + key).startswith(uri + "/")
                yield key, size

        self._add(rows())
        if not self.count:
            only = f", only {self.hidden} hidden ones" if self.hidden else ""
            raise InputError(f"{uri}: there is no object{only}")
        in_s3 = root.startswith("s3://") and uri.startswith(root)
        folder = storage.folder_of(uri.removeprefix(root), all_below) if in_s3 else ""
        self.prefix, self._cut = root + folder, len(folder)

    def _read_manifest(self, uri: str) -> None:
        self.prefix, keys = manifests.read(uri)
        try:
            self._add((key, None) for key in keys)
        except sqlite3.IntegrityError:
            raise InputError(f"manifest {uri}: element {self.count + 1}, {self._last!r}, stood there before") from None
        keys = (key for (key,) in self._database.execute("SELECT key FROM objects ORDER BY key"))
        sizes = ((size, key) for key, size in storage.sizes(self.prefix, keys))
        with self._database:
            self._database.executemany("UPDATE objects SET size = ? WHERE key = ?", sizes)
        missing = "FROM objects WHERE size IS NULL"
        (count,) = self._database.execute(f"SELECT count(*) {missing}").fetchone()
        if count:
            (first,) = self._database.execute(f"SELECT key {missing} ORDER BY number").fetchone()
            hint = "" if self.prefix.endswith("/") else f"; the prefix {self.prefix!r} does not end where keys begin"
            raise InputError(
                f"manifest {uri}: {count} of its {self.count} keys are not there, "
                f"the first is {self.prefix + first}{hint}"
            )

    def _add(self, rows: Iterator[tuple[str, int | None]]) -> None:
        def counted() -> Iterator[tuple[str, int | None]]:
            for key, size in rows:
                try:
                    key.encode()
                except UnicodeEncodeError:
                    raise InputError(f"{key!a}: its name is not UTF-8") from None
                self._last = key
                self.count += 1
                yield key, size

        with self._database:
            self._database.executemany("INSERT INTO objects (key, size) VALUES (?, ?)", counted())


def _is_hidden(name: str) -> bool:
    """Return whether a system left an object, as .DS_Store, ._a.jpg or __MACOSX/a.jpg: no model could answer it."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


@contextlib.contextmanager
def listed(data_type: str, uri: str) -> Iterator[Inputs]:
    """List the objects that an S3DataType and its S3Uri mean. Raises ValueError or OSError, saying what is wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Inputs(Path(scratch, "inputs.sqlite"))
        try:
            inputs.read(data_type, uri)
            yield inputs
        finally:
            inputs.close()

"""labels.csv and its like: a table of image files, their labels and, perhaps, which of them validate."""

import csv
import io
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from fastmaker.training.layouts.files import Contents, DataError, is_hidden, part_of, shown

DELIMITERS = ",;\t|"
# Names of columns, in small letters with _ between words.
FILE_NAMES = (
    *("image", "images", "img", "file", "filename", "file_name", "filenames", "filepath", "filepaths", "file_path"),
    *("path", "image_path", "image_name", "image_id", "imagename", "image_file", "fname", "name", "id", "uri"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "classes", "class_name", "category", "categories", "target", "targets", "tag"),
    *("tags", "breed", "species", "diagnosis", "y"),
)
FLAG_NAMES = ("is_valid", "isvalid", "is_val", "valid", "val", "validation", "is_validation", "is_test", "is_train")
SPLIT_NAMES = ("split", "subset", "partition", "data_set", "dataset_split")
FOLD_NAMES = ("fold", "folds", "kfold", "k_fold", "fold_id", "cv_fold")
FLAGS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    number: int  # of the line, from 1
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table with its header."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[Row, ...]

    def index(self, name: str) -> int:
        """Return the number of a column. Raises DataError if there is none of that name."""
        if name not in self.header:
            raise DataError(f"{self.path} has no column {name!r}; it has {shown(self.header, 'columns', 20)}")
        return self.header.index(name)

    def at(self, row: Row) -> str:
        """Return where a row is, for a message."""
        return f"{self.path}, line {row.number}"

    def column(self, name: str) -> list[str]:
        """Return the cells of a column."""
        return [row.cells[self.index(name)] for row in self.rows]


def choose(folder: Path, name: str | None) -> Path | None:
    """Return the table of a folder: that of --labels-csv, labels.csv, train.csv or the only one. Raises DataError."""
    if name == "none":
        return None
    found = tables_in(folder)
    if name is not None:
        if not (folder / name).is_file():
            raise DataError(f"--labels-csv {name}: {folder} holds {shown([f.name for f in found], 'tables') or 'none'}")
        return folder / name
    stems = [[file for file in found if file.stem.lower() == stem] for stem in ("labels", "train", "train_labels")]
    first: list[Path] = next(filter(None, stems), found)
    return first[0] if len(first) == 1 else None


def tables_in(folder: Path) -> list[Path]:
    """Return the files in `folder` that are tables by their names."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in (".csv", ".tsv"))
    return sorted(file for file in files if file.is_file() and not is_hidden(file.name))


def read(path: Path) -> Table:
    """Return the table of a file. Fields are separated by a comma, semicolon, tab or |. Raises DataError."""
    text = _text(path)
    head, _, rest = text.partition("\n")
    named = re.fullmatch(r"sep=(.)\s*", head, re.IGNORECASE)  # as Excel writes it
    skipped, text, delimiter = (1, rest, named[1]) if named else (0, text, _delimiter(text))
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, strict=True)
    lines: list[Row] = []
    try:
        for cells in reader:
            row = Row(reader.line_num + skipped, tuple(cell.strip() for cell in cells))
            if any(row.cells):
                lines.append(row)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num + skipped}: this is no CSV: {error}") from None
    if len(lines) < 2 or len(lines[0].cells) < 2:
        raise DataError(f"{path}: expected a header and two columns, file name and label, and a row for each image")
    header = lines[0].cells
    while not header[-1] and len(header) > 2 and all(not any(row.cells[len(header) - 1 :]) for row in lines):
        header = header[:-1]
    return Table(path, header, tuple(_fitted(path, row, header) for row in lines[1:]))


def _text(path: Path) -> str:
    data = path.read_bytes()
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a CSV file in UTF-8: {error}") from None
    if "\0" in text:
        raise DataError(f"{path} is not a CSV file in UTF-8: it holds zeros")
    return text


def _delimiter(text: str) -> str:
    head = next((line for line in text.splitlines() if line.strip()), "")
    plain = re.sub(r'"[^"]*"', "", head)
    return max(DELIMITERS, key=plain.count)


def _fitted(path: Path, row: Row, header: tuple[str, ...]) -> Row:
    n = len(header)
    if len(row.cells) < n or any(row.cells[n:]):
        raise DataError(
            f"{path}, line {row.number}: {len(row.cells)} columns, and the header has {n}: expected a header and two"
            " columns or more; a label that holds the delimiter stands in quotes"
        )
    return Row(row.number, row.cells[:n])


class FileIndex:
    """The files below a folder, by the names that tables have for them."""

    def __init__(self, folder: Path, found: Contents) -> None:
        self._folder = folder
        start = len(str(folder)) + 1
        self._by_path = {_path(str(file)[start:]): file for file in (*found.images, *found.others)}
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for file in (*found.images, *found.others):
            self._by_name.setdefault(_composed(file.name), []).append(file)
        for file in found.images:
            self._by_stem.setdefault(_composed(file.stem), []).append(file)

    def exact(self, name: str) -> list[Path]:
        """Return the files that a path names, its beginning left out or not."""
        path = _path(name)
        if path in self._by_path:
            return [self._by_path[path]]
        return self._matching(path, self._by_name, lambda file: file)

    def files(self, name: str) -> list[Path]:
        """Return the files that a path names, also without its suffix or with the root of another machine."""
        path = _path(name)
        absolute = re.match(r"/|[A-Za-z]:/", path)
        if absolute and Path(path).is_file():
            return [Path(path)]
        found = self._named(path)
        while absolute and not found and "/" in path:
            path = path.partition("/")[2]
            found = self._named(path)
        return found

    def _named(self, path: str) -> list[Path]:
        return self.exact(path) or self._matching(path, self._by_stem, lambda file: file.with_suffix(""))

    def _matching(self, path, index, named):  # type: ignore[no-untyped-def]
        name = path.rpartition("/")[2]
        found = [f for f in index.get(name, ()) if _composed(f"/{named(f).as_posix()}").endswith(f"/{path}")]
        places = (self._folder / path, self._folder / "images" / path)
        return next(filter(None, ([f for f in found if named(f) == place] for place in places)), found)


def _composed(name: str) -> str:
    """Return a name with its accents as most systems write them: macOS takes them apart."""
    return unicodedata.normalize("NFC", name)


def _path(name: str) -> str:
    path = _composed(name.replace("\\", "/"))
    while path.startswith("./"):
        path = path[2:]
    return path


def is_index(name: str) -> bool:
    """Return whether a column has the numbers of the rows, as pandas writes them, without a name."""
    return not name or bool(re.fullmatch(r"unnamed: \d+", name.lower()))


def plain(name: str) -> str:
    """Return the name of a column as those of this module are written."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def part_in(name: str, cell: str) -> str | None:
    """Return the part of the data that a cell of a column of flags or parts says, or None."""
    if plain(name) in FLAG_NAMES:
        if cell.lower() not in FLAGS:
            return None
        return "valid" if FLAGS[cell.lower()] != (plain(name) == "is_train") else "train"
    return part_of(cell)

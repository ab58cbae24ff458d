"""Which column of a table has the files, which the labels, and which says what validates."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmaker.training.layouts import labels, tables
from fastmaker.training.layouts.files import Contents, DataError, contents, is_below, is_image, shown
from fastmaker.training.layouts.labels import Reading
from fastmaker.training.layouts.tables import FileIndex, Row, Table

LOOKED_AT = 50  # rows by which the column of the files is found


@dataclass(frozen=True)
class Columns:
    """The columns of a table by what they are for."""

    file: str
    labels: tuple[str, ...]
    part: str | None = None
    unused: tuple[str, ...] = ()
    one_hot: bool = False  # the name of a column is the label, and its cells are 0 or 1


def read(table: Table, folder: Path, reading: Reading) -> tuple[list[tuple[Path, Any, str | None]], Columns, list[str]]:
    """Return (file, label, part or None) of each row, the columns and notes. Raises DataError."""
    found = contents(folder)
    index = FileIndex(folder, found)
    columns = _choose(table, index, reading)
    rows: dict[Path, tuple[Path, Any, str | None]] = {}
    for row in table.rows:
        file = _file(table, row, columns.file, index, folder)
        label = _label(table, row, columns, reading)
        if file in rows:
            name = row.cells[table.index(columns.file)]
            raise DataError(f"{table.at(row)}: {name!r} is listed twice; expected one row for each image")
        rows[file] = file, label, _part(table, row, columns)
    labels_listed = {label for _, label, _ in rows.values()}
    rows = {file: row for file, row in rows.items() if is_image(file)}
    unlisted = sum(file not in rows for file in found.images)
    notes = [f"{table.path} does not list {unlisted} images of {folder}, which are not used"] if unlisted else []
    left_out = Contents([], [file for file in found.others if file not in rows]).left_out()
    if left_out:
        notes.append(f"left out of {folder}, as no images that Pillow reads: {left_out}")
    lost = labels_listed - {label for _, label, _ in rows.values()} if reading.task == "classification" else set()
    if lost or not rows:
        what = f"of {shown(map(repr, sorted(lost)), 'labels')}" if rows else "that Pillow reads"
        raise DataError(f"{table.path} lists no image {what}; left out: {left_out}")
    if columns.unused:
        notes.append(f"the columns {', '.join(map(repr, columns.unused))} of {table.path} are not used")
    return list(rows.values()), columns, notes


def _choose(table: Table, index: FileIndex, reading: Reading) -> Columns:
    if not _has_file_name(table) and (files := [cell for cell in table.header if index.files(cell)]):
        raise DataError(f"{table.path}, line 1: {files[0]!r} is a file; expected a header, such as name,label")
    twice = [name for name, n in Counter(table.header).items() if n > 1 and name]
    if twice:
        raise DataError(f"{table.path} has two columns {twice[0]!r}; name them apart")
    file = _file_column(table, index)
    rest = [name for name in table.header if name != file and not tables.is_index(name)]
    if reading.columns:
        for name in reading.columns:
            table.index(name)
        part = _part_column(table, [name for name in rest if name not in reading.columns])
        pairs = labels.pairs_of_points(reading.columns) if reading.task == "points" else []
        chosen = tuple(pairs or reading.columns)
    else:
        part = _part_column(table, rest)
        chosen = _label_columns(table, [name for name in rest if name != part], reading)
    unused = tuple(name for name in rest if name != part and name not in chosen)
    one_hot = _is_one_hot(table, chosen, reading)
    if reading.task == "classification" and len(chosen) > 1 and not one_hot:
        raise DataError(
            f"--task classification takes one of the columns {', '.join(chosen)}: give one as --label-columns"
        )
    return Columns(file, chosen, part, unused, one_hot)


def _has_file_name(table: Table) -> bool:
    return any(tables.plain(name) in tables.FILE_NAMES for name in table.header)


def _file_column(table: Table, index: FileIndex) -> str:
    """Return the column whose cells name most files, by their whole names before those without a suffix."""
    names = [name for name in table.header if not tables.is_index(name)]

    def score(name: str) -> tuple[int, bool, int]:
        cells = table.column(name)[:LOOKED_AT]
        known = tables.plain(name) in tables.FILE_NAMES
        return sum(bool(index.exact(cell)) for cell in cells), known, sum(bool(index.files(cell)) for cell in cells)

    return max(names, key=score)


def _part_column(table: Table, names: list[str]) -> str | None:
    """Return the column that says which rows validate. Raises DataError for two, and for folds."""
    for name in names:
        if tables.plain(name) in tables.FOLD_NAMES:
            raise DataError(
                f"{table.path}: the column {name!r} splits the rows into folds, and one of them is to validate. Write a"
                " column is_valid, or take the column out"
            )
    said = [name for name in names if tables.plain(name) in (*tables.FLAG_NAMES, *tables.SPLIT_NAMES)]
    if not said and len(names) > 1:  # of any other name, if its cells can mean nothing else
        said = [name for name in names if _says_parts(table.column(name))]
    if len(said) > 1:
        raise DataError(f"{table.path}: the columns {' and '.join(map(repr, said))} both say what validates; keep one")
    return said[0] if said else None


def _says_parts(cells: list[str]) -> bool:
    said = {tables.part_of(cell) for cell in set(cells)}
    return None not in said and "train" in said and len(said) > 1


def _label_columns(table: Table, names: list[str], reading: Reading) -> tuple[str, ...]:
    if not names:
        raise DataError(f"{table.path} has no column of labels; it has {', '.join(map(repr, table.header))}")
    if reading.task == "points" and labels.pairs_of_points(names):
        return tuple(labels.pairs_of_points(names))
    named = [name for name in names if tables.plain(name) in tables.LABEL_NAMES]
    if len(names) == 1 or len(named) == 1:
        return tuple((named or names)[:1])
    if reading.task in ("classification", "multilabel") and _are_flags(table, names):
        return tuple(names)
    raise DataError(
        f"{table.path}: any of the columns {shown([repr(name) for name in names], 'columns', 20)} may be the label;"
        " name those that are, as in --label-columns " + names[0]
    )


def _is_one_hot(table: Table, names: tuple[str, ...], reading: Reading) -> bool:
    """Return whether the names of columns are labels: of several, or of one such as `Smiling`, which no label is."""
    single = reading.task == "multilabel" and tables.plain(names[0]) not in tables.LABEL_NAMES
    return reading.task in ("classification", "multilabel") and (len(names) > 1 or single) and _are_flags(table, names)


def _are_flags(table: Table, names: tuple[str, ...] | list[str]) -> bool:
    return all(cell.lower() in tables.FLAGS for name in names for cell in table.column(name))


def _file(table: Table, row: Row, column: str, index: FileIndex, folder: Path) -> Path:
    name = row.cells[table.index(column)]
    if not name:
        raise DataError(f"{table.at(row)}: the column {column!r} is empty; expected the name of a file")
    files = index.files(name)
    if not files:
        raise DataError(f"{table.at(row)}: there is no file {name!r} in {folder}")
    if len(files) > 1:
        raise DataError(f"{table.at(row)}: {name!r} may be {files[0]} or {files[1]}; write its path from {folder}")
    return files[0]


def _label(table: Table, row: Row, columns: Columns, reading: Reading) -> Any:
    cells = [row.cells[table.index(name)] for name in columns.labels]
    name = row.cells[table.index(columns.file)]
    where = f"{table.at(row)}: {name!r}"
    if columns.one_hot:
        cells = [label for label, cell in zip(columns.labels, cells, strict=True) if tables.FLAGS[cell.lower()]]
        if reading.task == "classification" and len(cells) != 1:
            raise DataError(
                f"{where} has {len(cells)} labels in the columns {shown(columns.labels, 'columns')}, and one is"
                " expected; --task multilabel takes any number"
            )
        return tuple(sorted(cells)) if reading.task == "multilabel" else cells[0]
    return reading.label(cells, where)


def _part(table: Table, row: Row, columns: Columns) -> str | None:
    if columns.part is None:
        return None
    cell = row.cells[table.index(columns.part)]
    part = tables.part_in(columns.part, cell)
    if part is None:
        expected = "true or false" if tables.plain(columns.part) in tables.FLAG_NAMES else "train, valid or test"
        raise DataError(f"{table.at(row)}: {cell!r} in the column {columns.part!r}; expected {expected}")
    return part


def split_by_folder(
    rows: list[tuple[Path, Any, str | None]], split: dict[str, Path]
) -> list[tuple[Path, Any, str | None]]:
    """Return the rows with the part of the folder of a split that each file lies in.

    Raises DataError if a row says another part, or if only some of the files lie in the folders.
    """
    placed = [next((part for part, path in split.items() if is_below(file, path)), None) for file, _, _ in rows]
    if len(set(placed) - {None}) < 2:
        return rows
    for (file, _, said), part in zip(rows, placed, strict=True):
        if part is None:
            raise DataError(f"{file} lies in none of the folders {shown([p.name for p in split.values()], 'folders')}")
        if said and said != part:
            raise DataError(f"{file} is said to be for {said}, and lies in a folder for {part}")
    return [(file, label, part) for (file, label, _), part in zip(rows, placed, strict=True)]

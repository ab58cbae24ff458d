"""What is written of an image -> its label, by task."""

import math
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastmaker import tasks
from fastmaker.training.layouts.files import DataError, shown

DELIMITER_NAMES = {"space": " ", "comma": ",", "semicolon": ";", "pipe": "|", "tab": "\t", "none": ""}
USUAL_DELIMITERS = ("|", ";", ",", "\t", "/", "+", "&", " ")
MISSING = ("nan", "none", "null", "na", "n/a", "<na>", "nat")  # what programs write where nothing is known


def delimiter(text: str) -> str:
    """Return the delimiter that an option names or is: "" for none."""
    return DELIMITER_NAMES.get(text.strip().lower(), text)


@dataclass(frozen=True)
class Reading:
    """How labels are read: the task, and the options that say where labels are."""

    task: str = "classification"
    pattern: re.Pattern[str] | None = None  # of --label-regex
    csv: str | None = None  # of --labels-csv
    columns: tuple[str, ...] = ()  # of --label-columns
    delimiter: str | None = None  # of --label-delimiter; "" if a label is the whole of what is written

    def label(self, cells: Sequence[str], where: str) -> Any:
        """Return the label of an image that `cells` say, as Samples.labels has it. Raises DataError."""
        if self.task in tasks.LABELLED and self.delimiter != "" and any(map(_is_list, cells)):
            raise DataError(
                f"{where} has {next(filter(_is_list, cells))!r}, a list as a program writes it; write labels with a"
                " sign between them, as in a|b"
            )
        if self.task == "multilabel":
            parts = [part for cell in cells for part in self._split(cell)]
            return tuple(sorted({part.strip() for part in parts if part.strip()}))
        if not all(cells):
            raise DataError(f"{where} has no label")
        if self.task == "classification":
            return cells[0]
        numbers = [number for cell in cells for number in self._numbers(cell, where)]
        if self.task == "regression":
            return tuple(numbers)
        if len(numbers) % 2 or not numbers:
            raise DataError(f"{where} has {len(numbers)} numbers; points are pairs of x and y")
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))

    def _split(self, cell: str) -> list[str]:
        return cell.split(self.delimiter) if self.delimiter else [cell]

    def _numbers(self, cell: str, where: str) -> list[float]:
        return [_number(part, where) for part in self._split(cell) if part.strip()]


def _is_list(cell: str) -> bool:
    return bool(re.fullmatch(r"\[.*['\",].*\]", cell))


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        hint = "; decimals have a point" if re.fullmatch(r"\s*[-+]?\d+,\d+\s*", text) else ""
        raise DataError(f"{where} has {text.strip()!r}, which is not a number{hint}")
    return value


def pairs_of_points(names: Iterable[str]) -> list[str]:
    """Return the columns of points as x, y, x, y, ...: those whose names differ by x and y; none if others remain."""
    left = list(names)
    lower = {name.lower(): name for name in left}
    pairs: list[str] = []
    for name in left:
        places = [i for i, letter in enumerate(name.lower()) if letter == "x"]
        options = (name.lower()[:i] + "y" + name.lower()[i + 1 :] for i in places)
        other = next((lower[option] for option in options if option in lower), None)
        if other:
            pairs += [name, other]
    return pairs if sorted(pairs) == sorted(left) else []


def check_classes(labels: Sequence[str], delimiter: str | None) -> None:
    """Raise DataError if the labels of a classifier are several labels each, as "car person" and "person car" are."""
    classes = sorted(set(labels))
    for sign in USUAL_DELIMITERS if delimiter is None else ():
        seen: dict[tuple[str, ...], str] = {}
        for label in classes:
            words = tuple(sorted(word.strip() for word in label.split(sign) if word.strip()))
            if len(words) > 1 and words in seen:
                raise _several(f"{seen[words]!r} and {label!r} are the same words", sign)
            if len(words) > 1 and set(words) <= set(classes):
                raise _several(f"{label!r} is {' and '.join(map(repr, words))}, which are labels too", sign)
            seen[words] = label


def _several(what: str, sign: str) -> DataError:
    return DataError(
        f"{what}; --task multilabel --label-delimiter {_name(sign)} reads them as several labels of an image, and"
        " --label-delimiter none as one"
    )


def _name(sign: str) -> str:
    return next((name for name, value in DELIMITER_NAMES.items() if value == sign), f"'{sign}'")


def check_delimiter(labels: Sequence[tuple[str, ...]], delimiter: str | None) -> None:
    """Raise DataError if labels of several hold what may be a delimiter and none was given."""
    for label in sorted({label for labels_ in labels for label in labels_}) if delimiter is None else ():
        sign = next((sign for sign in USUAL_DELIMITERS if sign in label), None)
        if sign:
            raise DataError(
                f"the label {label!r} may be several: give --label-delimiter {_name(sign)}, or --label-delimiter none"
                " if it is one"
            )


def doubts(names: Iterable[str]) -> list[str]:
    """Return lines about labels that may be one, and about those that may stand for none.

    Raises DataError for labels that look the same.
    """
    names = sorted(set(names))
    if broken := [name for name in names if any(unicodedata.category(sign) == "Cc" for sign in name)]:
        raise DataError(f"the label {broken[0]!a} holds a line break or another control character; take it out")
    for one, other in _alike(names, _look):
        raise DataError(f"the labels {one!a} and {other!a} look the same; write them alike")
    pairs = {"differ in case alone": _alike(names, str.casefold), "are the same number": _alike(names, _value)}
    told = {what: shown((f"{one!r} and {other!r}" for one, other in found), "pairs") for what, found in pairs.items()}
    lines = [f"labels that {what} are two each: {text}" for what, text in told.items() if text]
    if missing := [repr(name) for name in names if name.lower() in MISSING]:
        lines.append(f"labels like any other: {', '.join(missing)}; leave out the rows where they stand for none")
    return lines


def _look(name: str) -> str:
    """Return a label as it looks: without characters that take no room, its accents and blanks written in one way."""
    seen = (sign for sign in unicodedata.normalize("NFC", name) if unicodedata.category(sign) != "Cf")
    return " ".join("".join(seen).split())


def numbers_as_classes(names: Iterable[str]) -> list[str]:
    """Return a line if the classes are measured numbers, such as 1.5."""
    values = [_value(name) for name in names]
    measured = all(isinstance(value, float) for value in values) and any(value % 1 for value in values)  # type: ignore
    return ["the labels are numbers, learnt as classes; --task regression learns them as numbers"] if measured else []


def _alike(names: Iterable[str], key: Callable[[str], Hashable]) -> list[tuple[str, str]]:
    """Return each name that has the key of an earlier one, with that one."""
    first: dict[Hashable, str] = {}
    pairs = [(first.setdefault(key(name), name), name) for name in names]
    return [(one, other) for one, other in pairs if one != other]


def _value(name: str) -> Hashable:
    return float(name) if re.fullmatch(r"[-+]?\d+(\.\d*)?", name, re.ASCII) else name

"""Options of the images, their labels and which of them are for validation."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastmaker.training import layouts
from fastmaker.training.arguments import kinds


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Add these options to `parser`."""
    group = parser.add_argument_group("data")
    _add_data(group.add_argument)
    _add_labels(group.add_argument)


def defaults(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults that depend on the container."""
    channels = _channels()
    found = {part: [path for name, path in channels.items() if layouts.part_of(name) == part] for part in layouts.PARTS}
    train = args.train or next(iter(found["train"]), None)
    valid = next(iter(found["valid"] or found["test"]), None)
    return {"train": train, "valid": None if valid == train else valid}


def channel_notes(args: argparse.Namespace) -> list[str]:
    """Return a line for each channel that no argument of a run names, and for a test set that validates."""
    values = [str(Path(value)) for value in vars(args).values() if isinstance(value, str)]
    notes = []
    for name, path in _channels().items():
        if not any(value == path or Path(path) in Path(value).parents for value in values):
            notes.append(f"the channel {name} is not used")
        elif layouts.part_of(name) == "test" and args.valid == path:
            notes.append(f"the channel {name} validates, as there is no channel valid")
    return notes


def _channels() -> dict[str, str]:
    """Return the directories of the container's channels of data by name, in small letters."""
    prefix = "SM_CHANNEL_"
    found = sorted((name.removeprefix(prefix), path) for name, path in os.environ.items() if name.startswith(prefix))
    channels = {name.lower(): str(Path(path)) for name, path in found if path}
    # The SDK's version 3 brings its drivers in a channel, and the code in another.
    hidden = ("code", "sm_drivers") if "sm_drivers" in channels else ()
    return {name: path for name, path in channels.items() if name not in hidden}


def _check_channels(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line if two channels are for one part and no argument says which is meant."""
    for part, given in (("train", args.train), ("valid", args.valid)):
        names = [name for name in _channels() if layouts.part_of(name) == part]
        if given is None and len(names) > 1:
            parser.error(
                f"the channels {' and '.join(names)} are both for {part}; give one of them, or --{part} DIRECTORY"
            )


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line if these options are wrong or do not go together. Called before `defaults`."""
    if args.train is None and defaults(args)["train"] is None:
        parser.error("--train DIRECTORY is missing, and so is SM_CHANNEL_TRAIN")
    _check_channels(parser, args)
    try:
        layouts.compile_regex(args.label_regex)
    except layouts.DataError as error:
        parser.error(str(error))


def _add_data(add: Callable[..., Any]) -> None:
    add("--train", metavar="DIRECTORY", help="training data (default: the channel train or training)")
    add(
        "--valid",
        metavar="DIRECTORY",
        help="validation data (default: the channel valid, validation, val or eval; else test; or none)",
    )
    add(
        "--mask-scale",
        type=kinds.positive(int),
        help="segmentation: the numbers in mask files are divided by it (default: 255 for two classes in masks of 0 and"
        " 255, else 1)",
    )
    add(
        "--valid-pct",
        type=kinds.fraction,
        default=0.2,
        help="fraction of each class (of all images with masks) to validate on, if the data has no validation images"
        " (default: %(default)s)",
    )
    add(
        "--check-only",
        type=_depth,
        metavar="{true,false,layout}",
        default=False,
        help="check the arguments and the data, then stop; layout opens no image (default: false)",
    )


def _depth(text: str) -> bool | str:
    return text if text == "layout" else kinds.flag(text)


def _add_labels(add: Callable[..., Any]) -> None:
    add(
        "--label-regex",
        help=r"the first group is the label in each file name, or in its path, as in '^(.+)_\d+.jpg$'",
    )
    add(
        "--labels-csv",
        metavar="NAME",
        help="the table of labels in the folder, or none (default: labels.csv, train.csv or the only one)",
    )
    add(
        "--label-columns",
        type=kinds.names,
        metavar="NAME,...",
        help="its columns of labels, numbers or points (default: found by their names)",
    )
    add(
        "--label-delimiter",
        type=layouts.labels.delimiter,
        metavar="SIGN",
        help="what stands between the labels, or numbers, of one cell: space, comma, semicolon, pipe, tab, any other"
        " sign, or none",
    )

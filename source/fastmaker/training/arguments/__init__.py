"""The command line of the entry point; every default stands here.

Each module of this package has the options of one part of a run: `add_groups`, `check`, `defaults`.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from fastmaker.training.arguments import (
    augmentation,
    balance,
    data,
    environment,
    kinds,
    model,
    optimisation,
    report,
)

PARTS = (model, data, augmentation, balance, optimisation, environment, report)
# What does not change the weights that a run computes, or what the fingerprint of its images says better. Any other
# option is one that a run shares with the checkpoint that it resumes from.
NOT_OF_THE_RUN = (
    *("train", "valid", "label_regex", "labels_csv", "label_columns", "label_delimiter", "valid_pct", "check_only"),
    *("model_dir", "output_data_dir", "checkpoint_dir", "checkpoint_minutes"),
    *("workers", "processes", "dist_backend", "timeout"),
    *("void_code", "mask_size", "tta"),
)


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of a training run. Hyperparameters of a job arrive as ``--name value``."""
    parser = argparse.ArgumentParser(
        prog="entry_point.py",
        description="Train a network of one task, and write a bundle that serves without fastai.",
        epilog="example: python source/entry_point.py --train digits --model-dir model --arch convnet --epochs 5",
    )
    for part in PARTS:
        part.add_groups(parser)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked arguments of a run, with the defaults for its task, architecture and container.

    A name may have _ for each -, as SageMaker's examples write hyperparameters. What is None, or empty, is not given.
    Exits with status 2 and one line for arguments that are wrong or do not go together.
    """
    parser = get_parser()
    args = parser.parse_args(list(_hyphenated(parser, sys.argv[1:] if argv is None else argv)))
    for part in PARTS:
        part.check(parser, args)
    for part in PARTS:  # those of the optimisation depend on those of the model
        _fill(args, part.defaults(args))
    return args


def of_the_run(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a run shares with the checkpoint that it resumes from, as JSON has them."""
    options = {name: value for name, value in vars(args).items() if name not in NOT_OF_THE_RUN}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def summary(args: argparse.Namespace) -> str | None:
    """Return one line of the options of augmentation, loss and balance that were chosen, None without any."""
    chosen = {**augmentation.given(args), **balance.given(args)}
    texts = {name: "x".join(map(str, value)) if name == "item_size" else value for name, value in chosen.items()}
    words = (f"--{name.replace('_', '-')} {kinds.text(value)}" for name, value in texts.items())
    return f"options: {' '.join(words)}" if chosen else None


def _hyphenated(parser: argparse.ArgumentParser, words: Iterable[str]) -> Iterable[str]:
    """Yield the words of options that are given, their names with hyphens.

    A hyperparameter that is None comes as an empty value or as None: it is not given. One that is a list of one value
    is that value.
    """
    spelled: dict[str, tuple[str, str]] = {}
    for name, value in _pairs(words):
        if value in ("", "None", "null") and name.startswith("--"):
            continue
        value = kinds.single(value) if value else value
        hyphenated = name.replace("_", "-") if name.startswith("--") else name
        other = spelled.setdefault(hyphenated, (name, value or ""))
        if other[0] != name and other[1] != value:
            parser.error(f"{other[0]} {other[1]} and {name} {value}: expected one of them")
        if value is None:
            yield hyphenated
        else:
            yield from [f"{hyphenated}={value}"] if value.startswith("-") else [hyphenated, value]


def _pairs(words: Iterable[str]) -> Iterable[tuple[str, str | None]]:
    """Yield each name and its value, or None where none follows.

    argparse takes a value that begins with - for an option, unless it is a number or stands in the same word.
    """
    name = None
    for word in words:
        if name is not None:
            if not word.startswith("--"):
                yield name, word
                name = None
                continue
            yield name, None
        name = None
        if word.startswith("--") and "=" in word:
            first, _, value = word.partition("=")
            yield first, value
        elif word.startswith("--"):
            name = word
        else:
            yield word, None
    if name is not None:
        yield name, None


def _fill(args: argparse.Namespace, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if getattr(args, name) is None:
            setattr(args, name, value)

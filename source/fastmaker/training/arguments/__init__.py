"""The command line of the entry point; every default stands here.

Each module of this package has the options of one part of a run: `add_groups`, `check`, `defaults`.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from fastmaker.training.arguments import augmentation, data, environment, model, optimisation

PARTS = (model, data, augmentation, optimisation, environment)
# What does not change the weights that a run computes, or what the fingerprint of its images says better. Any other
# option is one that a run shares with the checkpoint that it resumes from.
NOT_OF_THE_RUN = (
    *("train", "valid", "label_regex", "labels_csv", "label_columns", "label_delimiter", "valid_pct", "check_only"),
    *("model_dir", "output_data_dir", "checkpoint_dir", "checkpoint_minutes"),
    *("workers", "processes", "dist_backend", "timeout"),
    *("void_code", "mask_size"),
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

    A name may have _ for each -, as SageMaker's examples write hyperparameters. Exits with status 2 and one line for
    arguments that are wrong or do not go together.
    """
    parser = get_parser()
    args = parser.parse_args(list(_hyphenated(sys.argv[1:] if argv is None else argv)))
    for part in PARTS:
        part.check(parser, args)
    for part in PARTS:  # those of the optimisation depend on those of the model
        _fill(args, part.defaults(args))
    return args


def of_the_run(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a run shares with the checkpoint that it resumes from, as JSON has them."""
    options = {name: value for name, value in vars(args).items() if name not in NOT_OF_THE_RUN}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def _hyphenated(words: Iterable[str]) -> Iterable[str]:
    for word in _with_negative_values(words):
        name, sign, value = word.partition("=")
        yield name.replace("_", "-") + sign + value if name.startswith("--") else word


def _with_negative_values(words: Iterable[str]) -> Iterable[str]:
    """Yield ``--name -1,1`` as one word: argparse takes a value that begins with - for an option, unless a number."""
    name = ""
    for word in words:
        if name and re.match(r"-[\d.]", word):
            yield f"{name}={word}"
            name = ""
            continue
        if name:
            yield name
        name = word if word.startswith("--") and "=" not in word else ""
        if not name:
            yield word
    if name:
        yield name


def _fill(args: argparse.Namespace, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if getattr(args, name) is None:
            setattr(args, name, value)

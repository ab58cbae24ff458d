"""Write docs/reference/commands.md, the reference of commands, from their parsers: ``python docs/make_reference.py``.

The page depends on the parsers alone: not on the terminal, the environment or the Python version.
"""

import argparse
import contextlib
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fastmaker.jobs.__main__ import COMMANDS

PAGE = Path(__file__).with_name("reference") / "commands.md"
HEAD = """# Commands

```sh
fastmaker --help
```

prints the commands. `fastmaker COMMAND --help` prints what stands here.

`docs/make_reference.py` writes this page from the parsers.
"""
HYPERPARAMETERS = """## Hyperparameters

`fastmaker train` passes these on to the entry point, and `python source/entry_point.py` takes them.

Directories come from the platform: `fastmaker train` sets them.
"""
# In a help text: "(default: 5)", or "(5)" where the template has %(default)s alone.
DEFAULT = re.compile(r"\s*\(default: ((?:[^()]|\([^()]*\))*)\)")
BARE_DEFAULT = re.compile(r"\(%\(default\)s([^)]*)\)")


def page() -> str:
    """Return the text of the page."""
    with _bare_environment():
        from fastmaker.training import arguments

        parts = [HEAD]
        for name, (module, summary) in COMMANDS.items():
            parts += _command(f"fastmaker {name}", summary, importlib.import_module(module).get_parser(), 2)
        parts += [HYPERPARAMETERS, *_tables(arguments.get_parser())]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


@contextlib.contextmanager
def _bare_environment() -> Iterator[None]:
    """Hide the variables that parsers take defaults from."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("SM_", "SAGEMAKER_", "FASTMAKER_"))]:
        del os.environ[name]
    os.environ["SAGEMAKER_BASE_DIR"] = os.devnull  # in which there is no folder of checkpoints
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _command(name: str, summary: str, parser: argparse.ArgumentParser, level: int) -> list[str]:
    """Return a heading, a sentence, an example and the tables of a command, and the same of its subcommands."""
    parts = [f"{'#' * level} {name}", _escaped(parser.description or f"{_capital(summary)}."), *_epilog(parser)]
    parts += _tables(parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for word, subparser in action.choices.items():
                parts += _command(f"{name} {word}", helps.get(word) or "", subparser, level + 1)
    return [part for part in parts if part]


def _epilog(parser: argparse.ArgumentParser) -> list[str]:
    text, _, examples = " ".join((parser.epilog or "").split()).partition("example: ")
    lines = re.sub(r"; (?=\w)", "\n", examples).splitlines()
    return [_escaped(text.strip()), "```sh\n" + "\n".join(lines) + "\n```" if lines else ""]


def _tables(parser: argparse.ArgumentParser) -> list[str]:
    """Return a table for each group of arguments that has some."""
    parts = []
    for group in parser._action_groups:
        rows = [_row(action) for action in group._group_actions if _is_shown(action)]
        if rows:
            usual = group.title in ("positional arguments", "options", "optional arguments")
            parts += ["" if usual else f"{_capital(group.title)}:", _table(rows)]
    return [part for part in parts if part]


def _is_shown(action: argparse.Action) -> bool:
    hidden = (argparse._HelpAction, argparse._VersionAction, argparse._SubParsersAction)
    return not isinstance(action, hidden) and action.help is not argparse.SUPPRESS


def _table(rows: list[tuple[str, str, str]]) -> str:
    rows = [("argument", "default", "meaning"), ("---",) * 3, *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def _row(action: argparse.Action) -> tuple[str, str, str]:
    """Return the argument, its default and its meaning, as Markdown."""
    template = BARE_DEFAULT.sub(r"(default: %(default)s\1)", action.help or "")
    text = template % {**vars(action), "type": getattr(action.type, "__name__", None)}
    default = DEFAULT.search(text)
    meaning = _escaped(" ".join(DEFAULT.sub("", text).split()))
    if action.choices:
        one_of = "one of " + ", ".join(f"`{choice}`" for choice in action.choices)
        meaning = f"{meaning}; {one_of}" if meaning else one_of
    if action.required and action.option_strings:
        meaning += "; required" if meaning else "required"
    return f"`{_spelled(action)}`", _escaped(default[1]) if default else _plain_default(action), meaning


def _spelled(action: argparse.Action) -> str:
    if not action.option_strings:
        return action.metavar or action.dest
    names = ", ".join(action.option_strings)
    if action.nargs == 0 or action.choices:
        return names
    return f"{names} {action.metavar}" if action.metavar else names


def _plain_default(action: argparse.Action) -> str:
    """Return the default that the help text does not mention, where it says something."""
    value = action.default
    if value is None or value is argparse.SUPPRESS or isinstance(value, (bool, list, tuple, dict)):
        return ""
    return _escaped(str(value))


def _escaped(text: str) -> str:
    """Return the text so that Markdown shows it as it is, but for what stands in backticks."""
    pieces = re.split(r"(`+[^`]*`+)", text or "")
    return "".join(piece if piece.startswith("`") else re.sub(r"([*<])", r"\\\1", piece) for piece in pieces)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(f"wrote {PAGE}")

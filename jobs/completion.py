"""Print a shell's completion script for all commands: ``fastmaker completion bash|zsh``.

fastmaker completion bash > ~/.local/share/bash-completion/completions/fastmaker
fastmaker completion zsh > "${fpath[1]}/_fastmaker"
"""

import argparse
import sys

from fastmaker.jobs.cli import errors

SHELLS = ("bash", "zsh")


def get_parser() -> argparse.ArgumentParser:
    """Return this command's parser."""
    parser = argparse.ArgumentParser(
        prog="fastmaker completion",
        description="Print a shell's completion script for all commands.",
        epilog="example: fastmaker completion bash > ~/.local/share/bash-completion/completions/fastmaker",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that the script is for")
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the arguments."""
    return get_parser().parse_args(argv)


def main(args) -> int:
    """Print the script."""
    import shtab

    from fastmaker.jobs.__main__ import get_full_parser

    print(shtab.complete(get_full_parser(), args.shell))
    return 0


if __name__ == "__main__":
    errors.run(sys.modules[__name__])

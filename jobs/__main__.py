"""The command ``fastmaker``: its first word names one of the commands, each a module of its own.

fastmaker train --data digits --arch convnet
python -m jobs train --data digits --arch convnet   # the same, from a checkout
"""

import argparse
import importlib
import sys

import fastmaker
from fastmaker.jobs.cli import errors

# Each command's module has get_parser(), parse_args(argv) and main(args), which returns the exit status. It is imported
# only when the command is run.
COMMANDS = {
    "train": ("fastmaker.jobs.train", "train a model, as a SageMaker training job"),
    "deploy": ("fastmaker.jobs.deploy", "deploy a model to an endpoint"),
    "predict": ("fastmaker.jobs.predict", "ask an endpoint or a Triton server about images"),
    "page": ("fastmaker.jobs.page.command", "try a model in a browser"),
    "transform": ("fastmaker.jobs.transform", "run a batch transform job over a folder, an S3 prefix or a manifest"),
    "manifest": ("fastmaker.jobs.manifest", "build and check manifests of batch transform"),
    "convert": ("fastmaker.jobs.convert", "make a bundle of a Learner that learn.export() wrote"),
    "package": ("fastmaker.jobs.package", "make a TorchServe archive, an ONNX file or a Triton repository of a model"),
    "verify": ("fastmaker.jobs.verify", "compare the answers of every path with fastai's"),
    "tune": ("fastmaker.jobs.tune", "measure how this machine serves a model fastest, and keep that in its bundle"),
    "monitor": ("fastmaker.jobs.monitor", "compare what an endpoint saw with what its model was trained on"),
    "image": ("fastmaker.jobs.image", "build images, and push them to Amazon ECR"),
    "cleanup": ("fastmaker.jobs.cleanup", "list what the jobs made, and delete it"),
    "s3": ("fastmaker.local.s3", "run an S3 on this machine, in memory"),
    "aws": ("fastmaker.local.aws.command", "AWS on this machine, for programs that are written for it"),
    "benchmark": ("fastmaker.jobs.benchmark", "measure against the bare loop"),
    "quickstart": ("fastmaker.jobs.quickstart", "train, deploy, predict and transform, on real digits"),
    "completion": ("fastmaker.jobs.completion", "print a completion script for bash or zsh"),
}


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the first word, which needs no command's module."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items())
    parser = _top_parser(
        epilog="\n".join(["commands:", *lines, "", "`fastmaker COMMAND --help` says more of each."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    return parser


def get_parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of all commands by name, for the reference page and shell completion."""
    return {name: importlib.import_module(module).get_parser() for name, (module, _) in COMMANDS.items()}


def get_full_parser() -> argparse.ArgumentParser:
    """Return a parser that has those of all commands as subparsers."""
    parser = _top_parser()
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in get_parsers().items():
        commands.add_parser(
            name, help=COMMANDS[name][1], description=command.description, parents=[command], add_help=False
        )
    return parser


def _top_parser(**arguments) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastmaker",
        description="Train fastai vision models, serve them, and rehearse every SageMaker job on this machine.",
        **arguments,
    )
    parser.add_argument("--version", action="version", version=f"fastmaker {fastmaker.__version__}")
    return parser


def main() -> None:
    """Run the command that the first word names; ends the process with its exit status."""
    arguments = get_parser().parse_args(sys.argv[1:2])
    with errors.errors_as_one_line():
        command = importlib.import_module(COMMANDS[arguments.command][0])
    errors.run(command, sys.argv[2:])


if __name__ == "__main__":
    main()

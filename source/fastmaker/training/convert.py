"""The process in which a pickle is loaded, which runs the code that it holds: of ``fastmaker convert`` and ``verify``.

    python -m fastmaker.training.convert export.pkl --reply 5 --model-dir model

Without --model-dir it answers: each line on stdin is an image file, whose answer by ``learn.predict`` goes to the file
of NumPy arrays that --answers names. Each reply is a line of JSON at the file descriptor --reply, where nothing comes
that the pickle's code prints. A reply with "error" is the last one.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fastai.vision.all import L

from fastmaker import bundle
from fastmaker.training import exported, parity


def get_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pickle", type=Path)
    parser.add_argument("--reply", type=int, required=True)
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--mask-size", default="model")
    parser.add_argument("--image-size", type=int, nargs=2)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--import", dest="imports", action="append", default=[])
    parser.add_argument("--ignore", dest="ignored", action="append", default=[])
    return parser


def main(args: argparse.Namespace) -> int:
    """Load the pickle, and convert it or answer; return the exit status."""
    with os.fdopen(args.reply, "w", buffering=1) as stream:

        def reply(**values: Any) -> None:
            stream.write(json.dumps(values) + "\n")

        try:
            loaded = exported.load(args.pickle, args.imports, args.ignored)
            if args.model_dir:
                loaded.save_bundle(args.model_dir, args.mask_size, args.image_size)
                reply(stand_ins=loaded.stand_ins.names())
            else:
                reply(stand_ins=loaded.stand_ins.names())
                _answer_all(loaded, args.answers, reply)
        except (bundle.BundleError, OSError) as error:
            reply(error=" ".join(str(error).split()))
            return 2
    return 0


def _answer_all(loaded: exported.Exported, output: Path, reply: Callable[..., None]) -> None:
    with parity.predicting(loaded.learn):
        for line in sys.stdin:
            with loaded.answering():
                answered: dict[str, Any] = dict(answer(loaded, Path(line.rstrip("\n"))))
                np.savez(output, **answered)
            reply()


def answer(loaded: exported.Exported, file: Path) -> dict[str, np.ndarray]:
    """Return what ``learn.predict`` gives for an image file: `decoded`, text or numbers, `classes` and `array`."""
    item = parity.accepted_item(loaded.learn, file)
    decoded, classes, array = loaded.learn.predict(item)
    if isinstance(decoded, L):  # several labels
        decoded = np.array(list(map(str, decoded)), dtype=np.str_)
    elif not hasattr(decoded, "shape"):
        decoded = np.array(str(decoded))
    return {"decoded": np.asarray(decoded), "classes": np.asarray(classes), "array": np.asarray(array)}


if __name__ == "__main__":
    sys.exit(main(get_parser().parse_args()))

"""The entry point's loop beside fastai's own on a machine that does other work, too: their computing, in turns.

python -m fastmaker.jobs.benchmarks.turns --train FOLDER --workers 0 ...   # the arguments of source/entry_point.py

Both run in this process, one after the other, TURNS times. The seconds are those of the processor in the training of
epochs, without what else a run does. The images are loaded by this process, too: give --workers 0.
"""

import contextlib
import gc
import io
import statistics
import sys
import tempfile
import time

from fastai.vision.all import Callback, defaults

from fastmaker.jobs.benchmarks import bare_loop
from fastmaker.jobs.cli import tables
from fastmaker.training import arguments, run

HEADER = ["measured", "s of computing", "ratio"]
TURNS = 10


class Start(Callback):
    """Note when the training of an epoch begins, before any other callback does anything."""

    order = -1000

    def before_train(self):
        """Note the time."""
        self.learn.training_started = time.process_time()


class End(Callback):
    """Add the seconds of the training of an epoch to `seconds`, after all other callbacks."""

    order = 1000
    seconds = 0.0

    def after_train(self):
        """Add the seconds since the start."""
        End.seconds += time.process_time() - self.learn.training_started


def measure(args) -> list[list]:
    """Return rows of HEADER about runs with the arguments of the entry point: medians of the turns."""
    defaults.callbacks = [*defaults.callbacks, Start, End]  # of each Learner from here on
    pairs = []
    for turn in range(TURNS + 1):
        args.seed += 1  # the loops augment otherwise with a seed, and some of what is drawn takes longer
        modules = (run, bare_loop) if turn % 2 else (bare_loop, run)
        seconds = {module: _seconds(module, args) for module in modules}
        pairs.append((seconds[run], seconds[bare_loop]))
    pairs = pairs[1:]  # the first warms up
    own, bare = (round(statistics.median(column), 2) for column in zip(*pairs, strict=True))
    ratio = statistics.median(bare / own for own, bare in pairs)
    return [["entry point", own, f"{ratio:.3f} of the bare loop's speed"], ["bare loop", bare, ""]]


def _seconds(module, args) -> float:
    """Train with the `main` of a module; return the seconds of computing in the training of its epochs."""
    gc.collect()  # a Learner holds itself: the other one's is not to be freed meanwhile
    before = End.seconds
    with contextlib.redirect_stdout(io.StringIO()):
        module.main(args)
    return End.seconds - before


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        directories = ["--model-dir", folder, "--output-data-dir", folder]
        print("\n" + tables.table(HEADER, measure(arguments.parse_args([*sys.argv[1:], *directories]))))

"""The bare loop of training: the entry point's samples, DataLoaders and network in fastai's own loop.

python -m fastmaker.jobs.benchmarks.bare_loop --train FOLDER ...   # the arguments of source/entry_point.py
"""

import sys
import time

from fastai.vision.all import Callback, set_seed

from fastmaker.training import arguments, data, learner, loaders


class Throughput(Callback):
    """Print the images a second of each epoch's training, validation excluded."""

    def before_train(self):
        """Start the clock."""
        self.started, self.images = time.perf_counter(), 0

    def after_batch(self):
        """Count the images of a training batch."""
        self.images += len(self.yb[0]) if self.training else 0

    def after_train(self):
        """Print the rate."""
        print(f"images_per_second={self.images / (time.perf_counter() - self.started)}")


def main(args) -> None:
    """Train as the entry point does, without its callbacks, bundle and report."""
    samples = data.read(args.train, None, args.label_regex, args.valid_pct, args.seed)
    set_seed(args.seed, reproducible=True)
    learn = learner.create(loaders.create(args, samples), samples, args, args.pretrained)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(args.epochs, args.lr, cbs=Throughput())


if __name__ == "__main__":
    main(arguments.parse_args(sys.argv[1:]))

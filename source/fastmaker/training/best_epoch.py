"""The best epoch of a run: its weights are kept, and a run that no longer improves ends early.

Only the last phase counts: earlier ones train the head alone, or smaller images.
"""

import argparse
import math
from typing import Any

from fastai.vision.all import Callback, CancelFitException, Learner

from fastmaker.training.arguments.optimisation import is_better


def callbacks(learn: Learner, args: argparse.Namespace, first: int) -> list[Callback]:
    """Return the callbacks for --keep-best and --early-stopping, where `first` epochs come before the last phase."""
    if not args.keep_best:
        return []
    none = {"epoch": 0, "value": math.nan, "since": 0, "state": {}, "first": first, "monitor": args.monitor}
    learn.kept.setdefault("best", none)
    return [KeepBest(), EarlyStopping(args.early_stopping)] if args.early_stopping else [KeepBest()]


def is_over(state: dict[str, Any], patience: int | None) -> bool:
    """Return whether the run of a checkpoint has not improved for `patience` epochs."""
    best = state.get("kept", {}).get("best")
    return bool(best and patience and best["since"] >= patience)


def restore(learn: Learner, is_first: bool) -> None:
    """Give `learn` the weights of its best epoch, if that is kept; the first rank says which it is."""
    best = learn.kept.get("best")
    if not best or not best["epoch"]:
        return
    learn.model.load_state_dict(best["state"])
    if is_first:
        print(f"kept the weights of epoch {best['epoch']}, with {best['monitor']} {best['value']:.6f}", flush=True)


def index(learn: Learner) -> int:
    """Return which entry of the Recorder's values is of the weights that `learn` has."""
    best = learn.kept.get("best")
    return best["epoch"] - 1 - best["first"] if best and best["epoch"] else -1


class KeepBest(Callback):
    """Keep the weights of the epoch of the last phase that is best by a metric.

    All ranks come to the same: metrics are those of all hosts, and so are weights. What is kept goes into checkpoints,
    as ``learn.kept["best"]``.
    """

    order = 65  # after the Recorder and DataParallel, before the checkpoint of this epoch

    def after_epoch(self) -> None:
        best, done, values = self.learn.kept["best"], self.learn.position.done, self.recorder.values
        if done < best["first"] or not values[-1]:  # an earlier phase, or an epoch before start_epoch
            return
        value = float(dict(zip(self.recorder.metric_names[1:-1], values[-1], strict=False))[best["monitor"]])
        if not best["epoch"] or is_better(best["monitor"], value, best["value"]):
            state = {name: tensor.detach().cpu().clone() for name, tensor in self.learn.model.state_dict().items()}
            best.update(epoch=done + 1, value=value, since=0, state=state)
        else:
            best["since"] += 1


class EarlyStopping(Callback):
    """End the run when the best epoch is `patience` epochs ago: after its checkpoint, or at once when it resumes."""

    order = 85  # after SaveCheckpoints

    def __init__(self, patience: int):
        self.patience = patience

    def before_epoch(self) -> None:
        self._end()

    def after_epoch(self) -> None:
        if self.recorder.values[-1]:  # fastai comes here for the epochs before start_epoch as well
            self._end()

    def _end(self) -> None:
        if self.learn.kept["best"]["since"] >= self.patience:
            raise CancelFitException

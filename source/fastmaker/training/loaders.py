"""The arguments of a run and its samples -> fastai DataLoaders."""

import argparse
import os

from fastai.vision.all import DataLoaders

from fastmaker.training import architectures, augmentation, data


def create(args: argparse.Namespace, samples: data.Samples, world_size: int = 1) -> DataLoaders:
    """Return fastai DataLoaders for one of `world_size` ranks."""
    workers = args.workers
    if workers is None:  # few small images load faster without worker processes
        workers = _cores() if len(samples.labels) >= 5000 or min(args.image_size) >= 64 else 0
    # fastai drops an incomplete last batch: with fewer images than a batch, it would train on none.
    batch_size = min(args.batch_size, samples.n_train // world_size)
    dls = data.dataloaders(
        samples,
        args.image_mode,
        args.image_size,
        args.resize_method,
        batch_size,
        args.augment,
        workers,
        architectures.statistics(args.arch, args.image_mode),
        (augmentation.of_items(args), augmentation.of_batches(args)),
    )
    if args.weighted_sampling:
        augmentation.balance(dls, samples)
    return dls


def _cores() -> int:
    """Return how many cores this process may use."""
    cores = os.cpu_count() or 1
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun starts several processes, with OMP_NUM_THREADS=1
        return max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"]))
    return min(cores, int(os.environ.get("OMP_NUM_THREADS", cores)))

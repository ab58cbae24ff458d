"""How fast a network is as a graph, beside the module that it was made of, in one run.

    python -m fastmaker.jobs.benchmarks.graph --arch resnet18 --batch-sizes 1 8

The two are computed in turn, and the medians of their times compared: other work on the machine meets both alike.
"""

import argparse
import statistics
import time

import torch
from torch import nn


def main() -> None:
    """Measure, and print a line for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18", help="a network of torchvision.models (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="images at once (default: 1 8)")
    parser.add_argument("--rounds", type=int, default=40, help="how often each is computed (default: %(default)s)")
    args = parser.parse_args()
    import torchvision

    from fastmaker.training import capture

    module = torchvision.models.get_model(args.arch, weights=None).eval()
    network = capture.capture(module, torch.rand(2, 3, args.size, args.size))
    for batch_size in args.batch_sizes:
        images = torch.rand(batch_size, 3, args.size, args.size)
        of_module, of_graph = compare(module, network, images, args.rounds)
        print(
            f"{args.arch}, {batch_size} images: module {1000 * of_module:.2f} ms, graph {1000 * of_graph:.2f} ms,"
            f" {of_graph / of_module:.3f} of the module"
        )


def compare(module: nn.Module, network: nn.Module, images: torch.Tensor, rounds: int) -> tuple[float, float]:
    """Return the median seconds of `module` and of `network` on `images`."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for turn in range(rounds + 2):
            for one, kept in ((module, times[0]), (network, times[1])):
                began = time.perf_counter()
                one(images)
                if turn >= 2:  # the first ones also allocate
                    kept.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()

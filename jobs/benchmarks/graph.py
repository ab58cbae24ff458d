"""How fast a network is as a graph, beside the module that it was made of, in one run.

    python -m fastmaker.jobs.benchmarks.graph --arch resnet18 --batch-sizes 1 8

The two are computed in turn, and the medians of their times compared: other work on the machine meets both alike.
So are the times from the loading of a bundle to its first answer, in new processes: of a network that this package
rebuilds, and of the same one as a graph.
"""

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from fastmaker import bundle, networks

# Prints the seconds from the loading of a bundle to its first answer.
FIRST_ANSWER = """
import sys, time
import torch, torchvision
from PIL import Image
from fastmaker import load_bundle
torch.set_num_threads(1)
image = Image.effect_noise((300, 200), 90).convert("RGB")
began = time.perf_counter()
load_bundle(sys.argv[1]).predict([image])
print(time.perf_counter() - began)
"""


def main() -> None:
    """Measure, and print a line for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18", help="a network of torchvision.models (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="images at once (default: 1 8)")
    parser.add_argument("--rounds", type=int, default=40, help="how often each is computed (default: %(default)s)")
    parser.add_argument("--starts", type=int, default=5, help="processes that answer first (default: %(default)s)")
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
    if args.starts and args.arch in networks.ARCHITECTURES:
        rebuilt, of_graph = first_answers(args.arch, args.size, args.starts)
        print(
            f"{args.arch}, first answer: rebuilt {1000 * rebuilt:.0f} ms, graph {1000 * of_graph:.0f} ms,"
            f" {1000 * (of_graph - rebuilt):+.0f} ms"
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


def first_answers(arch: str, size: int, starts: int) -> tuple[float, float]:
    """Return the median seconds from the loading of a rebuilt bundle, and of one with a graph, to its first answer."""
    from fastmaker.training import capture

    info = bundle.ModelInfo(
        task="classification",
        architecture=arch,
        labels=("a", "b", "c"),
        image_mode="RGB",
        image_size=(size, size),
        resize_method="squish",
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    network = networks.classifier(arch, len(info.labels)).eval()
    kept = capture.capture(network, torch.rand(2, 3, size, size))
    times: dict[str, list[float]] = {"rebuilt": [], "graph": []}
    with tempfile.TemporaryDirectory() as folder:
        bundle.save(Path(folder) / "rebuilt", network, info)
        bundle.save(Path(folder) / "graph", kept, dataclasses.replace(info, architecture=bundle.GRAPH))
        for _ in range(starts):
            for name, found in times.items():
                command = [sys.executable, "-c", FIRST_ANSWER, f"{folder}/{name}"]
                found.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return statistics.median(times["rebuilt"]), statistics.median(times["graph"])


if __name__ == "__main__":
    main()

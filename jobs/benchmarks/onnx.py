"""ONNX Runtime beside torch: the same bundle, images and threads, without a server."""

import io
import tempfile
from pathlib import Path

from PIL import Image

from fastmaker.jobs.benchmarks import common

HEADER = ["float32, images/s", "batch", "torch", "ONNX Runtime", "ratio", "largest difference"]
BATCHES = (1, 8)


def measure(*, threads: int, seconds: float) -> list[list]:
    """Return rows of HEADER for a classifier and a U-Net, measured for `seconds` with `threads` of each engine."""
    with tempfile.TemporaryDirectory() as scratch:
        bundles = {
            "resnet34 at 224": common.untrained_classifier("resnet34", Path(scratch, "resnet34")),
            "U-Net on resnet18 at 96x128": common.untrained_unet("resnet18", Path(scratch, "unet")),
        }
        return [
            [name, n, *_beside_torch(model_dir, n, threads, seconds)]
            for name, model_dir in bundles.items()
            for n in BATCHES
        ]


def _beside_torch(model_dir: Path, n: int, threads: int, seconds: float) -> tuple[float, float, float, str]:
    """Return the images a second of torch and of ONNX Runtime, their ratio, and the largest difference.

    A batch of `n` goes through normalisation, network and softmax.
    """
    import torch

    from fastmaker import bundle
    from fastmaker.export import onnx_file
    from fastmaker.serving import models

    torch.set_num_threads(threads)
    if not (model_dir / bundle.ONNX_FILE).exists():
        onnx_file.to_onnx(model_dir, model_dir / bundle.ONNX_FILE)
    in_torch, in_onnx = (
        models.load(model_dir, precision="float32", engine=engine) for engine in ("torch", "onnxruntime")
    )
    batch = torch.stack([in_torch.to_tensor(Image.open(io.BytesIO(photo))) for photo in common.generated_photos(n)])
    difference = (in_torch.numbers(batch) - in_onnx.numbers(batch)).abs().max().item()
    latencies = common.alternate(
        lambda: common.median_latency(in_torch.numbers, [batch], seconds),
        lambda: common.median_latency(in_onnx.numbers, [batch], seconds),
    )
    rates = [round(n / latency, 1) for latency in latencies]
    return *rates, round(latencies[0] / latencies[1], 2), f"{difference:.0e}"

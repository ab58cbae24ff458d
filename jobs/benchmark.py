"""Measure against the bare loop, side by side in one run: ``fastmaker benchmark endpoint|train|transform|...``.

    endpoint    an endpoint beside the same network and preprocessing in bare processes, without a server
    train       the training job beside a bare fastai loop over the same DataLoaders
    transform   a batch job beside the bare processes, beside one object at a time, and a large job beside a small one;
                with --backend ray on a Ray cluster of this machine beside the local job
    torchserve  a TorchServe archive that batches requests beside one that does not
    ray         Ray Serve beside TorchServe, with batches and without, and beside bare processes
    capture     an endpoint whose requests are captured beside one whose are not
    aws         requests and jobs through `fastmaker aws` beside the same by ProcessSession
    onnx        ONNX Runtime beside torch, the same bundle and threads
    engines     every engine and precision: one image alone, and endpoints

Every figure that matters is a ratio of two measurements that alternate within one run: the machine may be shared.
"""

import argparse
import sys
from pathlib import Path

from fastmaker.jobs.cli import errors, tables

DEFAULT = "(default: %(default)s)"


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of `fastmaker benchmark`."""
    parser = argparse.ArgumentParser(prog="fastmaker benchmark", description="Measure against the bare loop.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_endpoint(commands.add_parser("endpoint", help="throughput, latency, memory and start-up of an endpoint"))
    _add_train(commands.add_parser("train", help="images/s and start-up of a training job"))
    _add_transform(commands.add_parser("transform", help="throughput of batch jobs, and how it scales"))
    _add_torchserve(commands.add_parser("torchserve", help="throughput of a TorchServe archive with batches"))
    _add_ray(commands.add_parser("ray", help="throughput of Ray Serve beside TorchServe and bare processes"))
    _add_capture(commands.add_parser("capture", help="what data capture costs an endpoint of this machine"))
    _add_aws(commands.add_parser("aws", help="what `fastmaker aws` adds to a request and to a job"))
    _add_onnx(commands.add_parser("onnx", help="ONNX Runtime beside torch, without a server"))
    _add_endpoint(commands.add_parser("engines", help="every engine and precision, alone and at endpoints"))
    return parser


def _add_endpoint(parser) -> None:
    parser.add_argument(
        "--model",
        type=Path,
        help="a model directory (default: an untrained network of --arch at 224 pixels, a U-Net at 96x128)",
    )
    parser.add_argument("--task", choices=("classification", "segmentation"), default="classification")
    parser.add_argument("--arch", default="resnet34", help=DEFAULT)
    parser.add_argument("--images", help="a folder of photos (default: generated JPEGs of 500x375)")
    parser.add_argument("--seconds", type=float, default=10, help=f"length of each measurement {DEFAULT}")


def _add_train(parser) -> None:
    parser.add_argument("--data", help="a training data directory (default: generated JPEGs)")
    parser.add_argument("--arch", default="resnet18", help=DEFAULT)
    parser.add_argument("--image-size", default="64", help=DEFAULT)
    parser.add_argument("--label-regex", help="how a file's name gives its label, as of fastmaker train")
    parser.add_argument("--epochs", default="5", help=DEFAULT)
    beside = parser.add_mutually_exclusive_group()
    beside.add_argument("--hosts", type=int, help="compare so many hosts with one host and batches as large as theirs")
    beside.add_argument("--precision", choices=("bf16", "fp16"), help="compare it with float32")
    beside.add_argument(
        "--start", type=int, metavar="IMAGES", help="time from fastmaker train to the first batch of so many images"
    )


def _add_transform(parser) -> None:
    parser.add_argument("--backend", choices=("process", "ray"), default="process", help=DEFAULT)
    parser.add_argument("--arch", default="resnet18", help=f"network {DEFAULT}")
    parser.add_argument("--image-size", type=int, default=224, help=f"of --backend ray {DEFAULT}")
    parser.add_argument("--batch-size", type=int, default=16, help=f"of --backend ray {DEFAULT}")
    parser.add_argument("--images", help="a folder of photos (default: generated JPEGs of 500x375)")
    parser.add_argument("--photos", type=int, default=600, help=f"objects of a job {DEFAULT}")
    parser.add_argument("--digits", type=int, default=20000, help=f"objects of the large job {DEFAULT}")


def _add_torchserve(parser) -> None:
    parser.add_argument("--task", choices=("classification", "segmentation"), default="classification")
    parser.add_argument("--arch", default="resnet34", help=DEFAULT)
    parser.add_argument("--image-size", type=int, default=224, help=f"image size of a classifier {DEFAULT}")
    parser.add_argument("--batch-size", type=int, default=8, help=DEFAULT)
    parser.add_argument("--max-batch-delay", type=int, default=20, help=f"ms to wait for a full batch {DEFAULT}")
    parser.add_argument("--clients", type=int, default=16, help=f"concurrent requests {DEFAULT}")
    parser.add_argument("--seconds", type=float, default=10, help=f"length of each measurement {DEFAULT}")


def _add_ray(parser) -> None:
    parser.add_argument("--task", choices=("classification", "segmentation"), default="classification")
    parser.add_argument("--arch", default="resnet34", help=DEFAULT)
    parser.add_argument("--instance-type", choices=("local", "local_gpu"), default="local", help=DEFAULT)
    parser.add_argument("--batch-size", type=int, default=4, help=DEFAULT)
    parser.add_argument("--max-batch-delay", type=int, default=20, help=f"ms to wait for a full batch {DEFAULT}")
    parser.add_argument("--clients", type=int, default=8, help=f"concurrent requests {DEFAULT}")
    parser.add_argument("--seconds", type=float, default=6, help=f"length of each measurement {DEFAULT}")
    parser.add_argument("--rounds", type=int, default=5, help=f"measurements of each {DEFAULT}")


def _add_capture(parser) -> None:
    parser.add_argument("--arch", default="resnet34", help=DEFAULT)
    parser.add_argument("--image-size", type=int, default=224, help=DEFAULT)
    parser.add_argument("--images", help="a folder of photos (default: generated JPEGs of 500x375)")
    parser.add_argument("--turns", type=int, default=9, help=f"turns of 2 s, of each measurement {DEFAULT}")


def _add_aws(parser) -> None:
    _add_capture(parser)
    parser.add_argument("--fits", type=int, default=3, help=f"training jobs of each {DEFAULT}")


def _add_onnx(parser) -> None:
    parser.add_argument("--threads", type=int, default=1, help=f"threads of each engine {DEFAULT}")
    parser.add_argument("--seconds", type=float, default=10, help=f"length of each measurement {DEFAULT}")


def parse_args(argv=None) -> argparse.Namespace:
    """Return the arguments."""
    return get_parser().parse_args(argv)


def main(args) -> int:
    """Measure, and print the table; return the exit status."""
    measure = {
        "endpoint": _endpoint,
        "train": _train,
        "transform": _transform,
        "torchserve": _torchserve,
        "ray": _ray,
        "capture": _capture,
        "aws": _aws,
        "onnx": _onnx,
        "engines": _engines,
    }[args.command]
    header, rows = measure(args)
    print("\n" + tables.table(header, rows))
    return 0


def _endpoint(args) -> tuple[list[str], list[list]]:
    from fastmaker.jobs.benchmarks import endpoint

    return endpoint.HEADER, endpoint.measure(
        model_dir=args.model, task=args.task, arch=args.arch, images=args.images, seconds=args.seconds
    )


def _train(args) -> tuple[list[str], list[list]]:
    from fastmaker.jobs.benchmarks import start, training

    hyperparameters = {"arch": args.arch, "epochs": args.epochs, "image-size": args.image_size}
    if args.label_regex:
        hyperparameters["label-regex"] = args.label_regex
    if args.start:
        return start.HEADER, start.measure(
            images=args.start, hyperparameters={**hyperparameters, "pretrained": "false"}
        )
    return training.HEADER, training.measure(
        data=args.data, hyperparameters=hyperparameters, hosts=args.hosts, precision=args.precision
    )


def _transform(args) -> tuple[list[str], list[list]]:
    if args.backend == "ray":
        from fastmaker.jobs.benchmarks import ray_transform

        return ray_transform.HEADER, ray_transform.measure(
            arch=args.arch,
            size=args.image_size,
            images=args.images,
            photos=args.photos,
            batch_size=args.batch_size,
        )
    from fastmaker.jobs.benchmarks import transform

    return transform.HEADER, transform.measure(
        arch=args.arch, images=args.images, photos=args.photos, digits=args.digits
    )


def _torchserve(args) -> tuple[list[str], list[list]]:
    from fastmaker.jobs.benchmarks import torchserve

    return torchserve.measure(
        task=args.task,
        arch=args.arch,
        image_size=args.image_size,
        batch_size=args.batch_size,
        max_batch_delay=args.max_batch_delay,
        clients=args.clients,
        seconds=args.seconds,
    )


def _ray(args) -> tuple[list[str], list[list]]:
    from fastmaker.jobs.benchmarks import rayserve

    return rayserve.HEADER, rayserve.measure(
        task=args.task,
        arch=args.arch,
        instance_type=args.instance_type,
        batch_size=args.batch_size,
        max_batch_delay=args.max_batch_delay,
        clients=args.clients,
        seconds=args.seconds,
        rounds=args.rounds,
    )


def _capture(args) -> tuple[list[str], list[list]]:
    from fastmaker.jobs.benchmarks import capture

    return capture.HEADER, capture.measure(
        arch=args.arch, image_size=args.image_size, images=args.images, turns=args.turns
    )


def _aws(args) -> tuple[list[str], list[list]]:
    from fastmaker.jobs.benchmarks import aws

    return aws.HEADER, aws.measure(
        arch=args.arch, image_size=args.image_size, images=args.images, turns=args.turns, fits=args.fits
    )


def _onnx(args) -> tuple[list[str], list[list]]:
    from fastmaker.jobs.benchmarks import onnx

    print(f"\n{args.threads} thread(s)", end="")
    return onnx.HEADER, onnx.measure(threads=args.threads, seconds=args.seconds)


def _engines(args) -> tuple[list[str], list[list]]:
    from fastmaker.jobs.benchmarks import engines

    return engines.HEADER, engines.measure(
        model_dir=args.model, task=args.task, arch=args.arch, images=args.images, seconds=args.seconds
    )


if __name__ == "__main__":
    errors.run(sys.modules[__name__])

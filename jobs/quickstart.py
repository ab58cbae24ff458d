"""Train, deploy, predict, transform, clean up, on real digits, on this machine: ``make quickstart``.

The digits are those that scikit-learn ships (1,797 gray images of 8x8 pixels, UCI ML hand-written digits). Everything
goes the way it goes on AWS: the SageMaker Python SDK, AWS's training and serving toolkits, TorchServe and S3 over HTTP.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from fastmaker.jobs import backends
from fastmaker.jobs.backends.resources import delete_transform_job
from fastmaker.jobs.cli import arguments, errors, pictures, tables
from fastmaker.jobs.clients.answers import collect
from fastmaker.jobs.clients.endpoint import Endpoint
from fastmaker.jobs.digits import write_digits
from fastmaker.jobs.storage import manifests
from fastmaker.jobs.storage.listings import listed
from fastmaker.local import s3

SHOWN = 20  # digits in the picture


def get_parser() -> argparse.ArgumentParser:
    """Return this command's parser."""
    parser = argparse.ArgumentParser(prog="fastmaker quickstart", description="Train, deploy, predict and transform.")
    parser.add_argument("--picture", type=Path, default=Path("quickstart.png"), help="(default: %(default)s)")
    parser.add_argument("--epochs", type=arguments.at_least(1), default=6, metavar="N", help="(default: %(default)s)")
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the arguments."""
    return get_parser().parse_args(argv)


def main(args) -> int:
    """Run all steps, print what each took and save the picture. Endpoint, models and jobs are deleted at the end."""
    steps = []
    backend = backends.Local()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_digits(folder)
        files = sorted((folder / "held-out").rglob("*.png"))
        with _timed(steps, "train", "convnet, fastai, a SageMaker training job"):
            job = _train(backend, folder, args.epochs)
        try:
            model_data = job["ModelArtifacts"]["S3ModelArtifacts"]
            answers = _ask_endpoint(steps, backend, model_data, files)
            _transform(steps, model_data, folder, answers)
        finally:
            backend.session.sagemaker_client.delete_training_job(TrainingJobName=job["TrainingJobName"])
        _save_picture(args.picture, files, list(answers.values()))

    right = sum(answer.get("label") == Path(name).parent.name for name, answer in answers.items())
    rows = [*steps, ["accuracy", "", f"{right / len(answers):.4f}"], ["picture", "", str(args.picture)]]
    print("\n" + tables.table(["step", "seconds", "result"], rows))
    return 0


def _train(backend: backends.Backend, folder: Path, epochs: int) -> dict:
    """Return the description of a training job."""
    request = backends.TrainingRequest(
        name=_new_name(),
        channels={"train": f"file://{folder}/train"},
        hyperparameters={"arch": "convnet", "epochs": str(epochs), "batch-size": "32"},
    )
    return backend.train(request)


def _ask_endpoint(steps: list, backend: backends.Backend, model_data: str, files: list[Path]) -> dict[str, dict]:
    """Deploy the model, and return an endpoint's answers by ``<digit>/<file>``."""
    name = _new_name()
    with _timed(steps, "deploy", "TorchServe behind a SageMaker endpoint"):
        backend.deploy(backends.EndpointRequest(name, model_data))
    try:
        with _timed(steps, "predict", f"{len(files)} digits it has not seen"):
            endpoint = Endpoint(backend.runtime(name), name)
            answers = {f"{file.parent.name}/{file.name}": endpoint.ask(file.read_bytes()) for file in files}
            return {name: json.loads(answer) for name, answer in answers.items()}
    finally:
        backend.delete_endpoint(name)


def _transform(steps: list, model_data: str, folder: Path, answers: dict[str, dict]) -> None:
    """Batch transform of the same digits in S3, by prefix and by a manifest of a third of them."""
    with s3.serve():
        backend = backends.Local()  # one that finds this S3
        bucket = backend.session.default_bucket()
        prefix = f"s3://{bucket}/held-out/"
        backend.session.upload_data(str(folder / "held-out"), key_prefix="held-out")
        manifest = f"file://{folder}/third.json"
        manifests.write(manifest, prefix, sorted(answers)[::3])
        for data_type, source, name in (("S3Prefix", prefix, "prefix"), ("ManifestFile", manifest, "manifest")):
            request = backends.TransformRequest(
                _new_name(), model_data, source, data_type=data_type, output=f"s3://{bucket}/by-{name}"
            )
            collected = folder / f"{name}.jsonl"
            with _timed(steps, f"transform, {name}", ""), listed(data_type, source) as inputs:
                backend.transform(request)
                collect(inputs, request.output, collected)
            delete_transform_job(backend.session.sagemaker_client, request.name)
            rows = [json.loads(line) for line in collected.read_text().splitlines()]
            same = sum(row["probability"] == answers[row["key"]]["probability"] for row in rows)
            steps[-1][-1] = f"{len(rows)} objects in S3, {same} answers as the endpoint's"


def _new_name() -> str:
    from sagemaker.utils import name_from_base

    return name_from_base("fastmaker")


@contextlib.contextmanager
def _timed(steps: list, name: str, result: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    steps.append([name, round(time.perf_counter() - started, 1), result])


def _save_picture(path: Path, files: list[Path], answers: list[dict]) -> None:
    step = max(1, len(files) // SHOWN)
    cards = [
        pictures.captioned(Image.open(file), f"{answer['label']}  ({answer['probability']:.3f})", 112)
        for file, answer in list(zip(files, answers, strict=True))[::step][:SHOWN]
    ]
    pictures.contact_sheet(cards, columns=5).save(path)


if __name__ == "__main__":
    errors.run(sys.modules[__name__])

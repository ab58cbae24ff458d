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
from functools import partial
from pathlib import Path

from PIL import Image

from fastmaker.jobs import backends, cleanup, deploy, manifest, predict, train, transform
from fastmaker.jobs.cli import errors, pictures, tables
from fastmaker.local import s3

# A tenth of the digits are kept away from training: the endpoint has never seen them.
HELD_OUT = 10
SHOWN = 20


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="fastmaker quickstart", description="Train, deploy, predict and transform.")
    parser.add_argument("--picture", type=Path, default=Path("quickstart.png"), help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="(default: %(default)s)")
    return parser.parse_args(argv)


def main(args) -> None:
    steps = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_digits(folder)
        files = sorted((folder / "held-out").rglob("*.png"))
        with _timed(steps, "train", "convnet, fastai, a SageMaker training job"):
            job = _train(folder, args.epochs)
        try:
            answers = _endpoint(steps, job, files)
            _transform(steps, job, folder, answers)
        finally:
            backends.session().sagemaker_client.delete_training_job(job)
        _save_picture(args.picture, files, list(answers.values()))

    right = sum(answer.get("label") == Path(name).parent.name for name, answer in answers.items())
    rows = [*steps, ["accuracy", "", f"{right / len(answers):.4f}"], ["picture", "", str(args.picture)]]
    print("\n" + tables.table(["step", "seconds", "result"], rows))


def _train(folder: Path, epochs: int) -> str:
    places = ["--data", str(folder / "train"), "--report", str(folder / "reports")]
    hyperparameters = ["--arch", "convnet", "--epochs", str(epochs), "--batch-size", "32"]
    return train.main(train.parse_args([*places, *hyperparameters]))


def _endpoint(steps: list, job: str, files: list[Path]) -> dict[str, dict]:
    """Answers of an endpoint, by ``<digit>/<file>``."""
    with _timed(steps, "deploy", "TorchServe behind a SageMaker endpoint"):
        endpoint = deploy.main(deploy.parse_args(["--model", job]))
    backend = backends.Local()
    try:
        with _timed(steps, "predict", f"{len(files)} digits it has not seen"):
            ask = partial(predict.ask, backend.runtime(endpoint), endpoint)
            return {f"{file.parent.name}/{file.name}": ask(file.read_bytes()) for file in files}
    finally:
        cleanup.delete_endpoint(backend, endpoint)


def _transform(steps: list, job: str, folder: Path, answers: dict[str, dict]) -> None:
    """Batch transform of the same digits in S3, by prefix and by a manifest of a third of them."""
    with s3.serve():
        sagemaker_session = backends.session()
        bucket = sagemaker_session.default_bucket()
        prefix = f"s3://{bucket}/held-out/"
        sagemaker_session.upload_data(str(folder / "held-out"), key_prefix="held-out")
        listed = folder / "third.json"
        manifest.write(f"file://{listed}", prefix, sorted(answers)[::3])
        for source, name, place in (("--data", "prefix", prefix), ("--manifest", "manifest", str(listed))):
            collected = folder / f"{name}.jsonl"
            words = ["--model", job, source, place, "--output", f"s3://{bucket}/by-{name}", "--collect", str(collected)]
            with _timed(steps, f"transform, {name}", ""):
                batch_job = transform.main(transform.parse_args(words))
            cleanup.delete_transform_job(sagemaker_session.sagemaker_client, batch_job)
            rows = [json.loads(line) for line in collected.read_text().splitlines()]
            same = sum(row["probability"] == answers[row["key"]]["probability"] for row in rows)
            steps[-1][-1] = f"{len(rows)} objects in S3, {same} answers as the endpoint's"


@contextlib.contextmanager
def _timed(steps: list, name: str, result: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    steps.append([name, round(time.perf_counter() - started, 1), result])


def write_digits(folder: Path) -> None:
    """scikit-learn's digits as PNGs: train/<digit>/*.png, and every tenth in held-out/<digit>/*.png."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = folder / ("held-out" if number % HELD_OUT == 0 else "train") / str(label)
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).save(part / f"{number:04}.png")


def _save_picture(path: Path, files: list[Path], answers: list[dict]) -> None:
    step = max(1, len(files) // SHOWN)
    cards = [
        pictures.captioned(Image.open(file), f"{answer['label']}  ({answer['probability']:.3f})", 112)
        for file, answer in list(zip(files, answers, strict=True))[::step][:SHOWN]
    ]
    pictures.contact_sheet(cards, columns=5).save(path)


if __name__ == "__main__":
    errors.run(sys.modules[__name__])

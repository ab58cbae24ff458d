"""Train, deploy, predict, clean up, on real digits, on this machine: ``make quickstart``.

The digits are those that scikit-learn ships (1,797 gray images of 8x8 pixels, UCI ML hand-written digits). Everything
goes the way it goes on AWS: the SageMaker Python SDK, AWS's training and serving toolkits, TorchServe over HTTP.
"""

import argparse
import tempfile
import time
from pathlib import Path

from PIL import Image

from jobs import cleanup, console, deploy, predict, session, train

# A tenth of the digits are kept away from training: the endpoint has never seen them.
HELD_OUT = 10
SHOWN = 20


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="python -m jobs.quickstart", description="Train, deploy and predict locally.")
    parser.add_argument("--picture", type=Path, default=Path("quickstart.png"), help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="(default: %(default)s)")
    return parser.parse_args(argv)


def main(args) -> None:
    seconds = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_digits(folder)

        started = time.perf_counter()
        places = ["--data", str(folder / "train"), "--report", str(folder / "reports")]
        hyperparameters = ["--arch", "convnet", "--epochs", str(args.epochs), "--batch-size", "32"]
        job = train.main(train.parse_args([*places, *hyperparameters]))
        seconds["train"] = time.perf_counter() - started

        started = time.perf_counter()
        endpoint = deploy.main(deploy.parse_args(["--model", job]))
        seconds["deploy"] = time.perf_counter() - started
        try:
            files = sorted((folder / "held-out").rglob("*.png"))
            started = time.perf_counter()
            answers = _ask_about(files, endpoint)
            seconds["predict"] = time.perf_counter() - started
        finally:
            client = session.session().sagemaker_client
            cleanup.delete_endpoint(client, endpoint)
            client.delete_training_job(job)
        _save_picture(args.picture, files, answers)

    right = sum(answer.get("label") == file.parent.name for file, answer in zip(files, answers, strict=True))
    print()
    print(
        console.table(
            ["step", "seconds", "result"],
            [
                ["train", round(seconds["train"], 1), "convnet, fastai, a SageMaker training job"],
                ["deploy", round(seconds["deploy"], 1), "TorchServe behind a SageMaker endpoint"],
                ["predict", round(seconds["predict"], 1), f"{len(files)} digits it has not seen"],
                ["accuracy", "", f"{right / len(files):.4f}"],
                ["picture", "", str(args.picture)],
            ],
        )
    )


def write_digits(folder: Path) -> None:
    """scikit-learn's digits as PNGs: train/<digit>/*.png, and every tenth in held-out/<digit>/*.png."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = folder / ("held-out" if number % HELD_OUT == 0 else "train") / str(label)
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).save(part / f"{number:04}.png")


def _ask_about(files: list[Path], endpoint: str) -> list[dict]:
    sagemaker_session = session.session()
    return [predict.ask(sagemaker_session, endpoint, file.read_bytes()) for file in files]


def _save_picture(path: Path, files: list[Path], answers: list[dict]) -> None:
    step = max(1, len(files) // SHOWN)
    cards = [
        console.captioned(Image.open(file), f"{answer['label']}  ({answer['probability']:.3f})", 112)
        for file, answer in list(zip(files, answers, strict=True))[::step][:SHOWN]
    ]
    console.contact_sheet(cards, columns=5).save(path)


if __name__ == "__main__":
    arguments = parse_args()
    with console.errors_as_one_line():
        main(arguments)

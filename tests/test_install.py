"""The wheel and the sdist, installed by pip in environments of their own, away from the checkout.

make test-slow
python -m pytest -m slow tests/test_install.py
"""

import json
import subprocess
from pathlib import Path

import pytest
from helpers import REPOSITORY, environments

pytestmark = pytest.mark.slow

LEARNER = """
from fastai.vision.all import ImageDataLoaders, Resize, resnet18, vision_learner
from fastmaker import load_bundle, save_bundle

dls = ImageDataLoaders.from_folder("digits/train", valid_pct=0.5, item_tfms=Resize(32), bs=8, num_workers=0)
save_bundle(vision_learner(dls, resnet18, pretrained=False), "of-a-learner")
print(load_bundle("of-a-learner").info.architecture)
"""
# A bundle, and an image to ask about, where neither fastai nor SageMaker is installed.
SERVED_BY_THE_BASE = """
import importlib.util, sys
from PIL import Image
from fastmaker import load_bundle

assert not any(importlib.util.find_spec(name) for name in ("fastai", "sagemaker", "boto3", "jobs"))
print(load_bundle(sys.argv[1]).predict([Image.open(sys.argv[2])])[0].label)
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> dict[str, Path]:
    """The wheel, and the sdist, of the files that git has."""
    folder = tmp_path_factory.mktemp("distributions")
    python = environments.create(folder / "environment")
    environments.install(python, "build")
    copy = folder / "fastmaker"
    copy.mkdir()
    files = subprocess.run(["git", "archive", "HEAD"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract", "--directory", copy], input=files, check=True)
    subprocess.run([python, "-m", "build", "--outdir", folder / "built", copy], check=True, capture_output=True)
    (wheel,), (sdist,) = (folder / "built").glob("*.whl"), (folder / "built").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """Return a function that runs a program of an environment with fastmaker[all], and returns what it prints."""
    folder = tmp_path_factory.mktemp("all")
    python = environments.create(folder / "environment")
    environments.install(python, "--constraint", REPOSITORY / "constraints.txt", f"{distributions['wheel']}[all]")
    (work := folder / "work").mkdir()

    def run(program: str, *words: str) -> str:
        env = environments.variables() | {"FASTMAKER_HOME": str(folder / "home")}
        done = subprocess.run([python.with_name(program), *words], cwd=work, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(
        "python",
        "-c",
        "from pathlib import Path; from fastmaker.jobs.quickstart import write_digits as w; w(Path('digits'))",
    )
    run("fastmaker", *["train", "--data", "digits/train", "--arch", "convnet", "--epochs", "2", "--job-name", "digits"])
    return run


def test_the_quickstart_runs(installed):
    assert "accuracy" in installed("fastmaker", "quickstart", "--epochs", "1")


def test_a_model_is_deployed_asked_and_deleted(installed):
    installed("fastmaker", *["deploy", "--model", "digits", "--endpoint-name", "digits"])
    answer = installed("fastmaker", *["predict", "--endpoint", "digits", "--json", "digits/held-out/7/0240.png"])
    assert json.loads(answer)["label"] in set("0123456789")
    installed("fastmaker", *["cleanup", "--endpoint", "digits"])


def test_a_batch_job_answers_for_each_object(installed):
    words = ["--model", "digits", "--data", "digits/held-out/3", "--collect", "a.csv"]
    printed = installed("fastmaker", "transform", *words)
    assert "failures                 0" in printed


def test_every_path_agrees(installed):
    assert "FAILED" not in installed("fastmaker", "verify", "digits", "digits/held-out/3")


@pytest.mark.parametrize(
    ("words", "made"),
    [
        ("torchserve digits", "digits.mar"),
        ("onnx digits", "model.onnx"),
        ("triton digits --preprocessing --output models", "--model digits"),
    ],
)
def test_a_model_is_packaged(installed, words, made):
    assert made in installed("fastmaker", "package", *words.split())


def test_the_context_of_an_image_is_in_the_wheel(installed):
    context = Path(installed("fastmaker", "image", "build", "--dry-run").split()[-1])
    read = (".dockerignore", "constraints.txt", "docker/run.py", "docker/ray.Dockerfile", "jobs/runtime/ray_adapter.py")
    for name in ("Dockerfile", *read):
        assert (context / name).read_bytes() == (REPOSITORY / name).read_bytes()


def test_a_learner_of_a_notebook_becomes_a_bundle(installed):
    assert installed("python", "-c", LEARNER) == "resnet18\n"


def test_no_name_but_the_packages_own_can_be_imported(installed):
    found = installed("python", "-c", "import importlib.util; print(importlib.util.find_spec('jobs'))")
    assert found == "None\n"
    files = installed("python", "-m", "pip", "show", "--files", "fastmaker").split("Files:")[1].split()
    assert {Path(file).parts[0] for file in files} <= {"..", "fastmaker", f"fastmaker-{version(installed)}.dist-info"}


def version(run) -> str:
    return run("fastmaker", "--version").split()[1]


def test_the_base_alone_loads_a_bundle_and_answers(distributions, digits_bundle, digits, tmp_path):
    python = environments.create(tmp_path / "environment")
    environments.install(python, "--constraint", REPOSITORY / "constraints.txt", distributions["sdist"])
    image = sorted((digits / "3").iterdir())[0]
    command = [python, "-c", SERVED_BY_THE_BASE, digits_bundle, image]
    done = subprocess.run(command, cwd=tmp_path, env=environments.variables(), capture_output=True, text=True)
    assert done.stdout.strip() in set("0123456789"), done.stderr
    told = subprocess.run([python.with_name("fastmaker"), "train", "--data", "x"], capture_output=True, text=True)
    assert (told.returncode, len(told.stderr.splitlines())) == (1, 1), told.stderr
    assert "pip install 'fastmaker[" in told.stderr


def test_the_sdist_holds_what_the_wheel_is_made_of(distributions):
    listed = subprocess.run(["tar", "--list", "--file", distributions["sdist"]], capture_output=True, text=True)
    names = {line.partition("/")[2] for line in listed.stdout.splitlines()}
    assert {"setup.py", "Dockerfile", "source/entry_point.py", "jobs/train.py", "tests/conftest.py"} <= names

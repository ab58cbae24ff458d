"""The README's commands, run or at least parsed as they stand there."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(prefix):
    lines = [line.split(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith(prefix)]


@pytest.mark.parametrize("command", commands("python -m jobs."))
def test_a_script_takes_the_arguments_that_the_readme_gives_it(command):
    _, _, module, *words = shlex.split(command)
    importlib.import_module(module).parse_args(words)


@pytest.mark.parametrize("command", commands("make "))
def test_make_has_the_targets_that_the_readme_names(command):
    subprocess.run([*command.split(), "--dry-run"], cwd=REPOSITORY, check=True, capture_output=True)


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (REPOSITORY / link).is_file()] == []


def test_the_sdk_example_runs_as_it_stands(few, tmp_path):
    (example,) = [block for block in blocks("python") if "estimator" in block]
    (tmp_path / "digits").symlink_to(few)
    (tmp_path / "source").symlink_to(REPOSITORY / "source")
    example = example.replace("0007.png", next((few / "7").iterdir()).name)
    env = {**os.environ, "FASTMAKER_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"predictions"') == 2
    assert len(list((tmp_path / "answers").iterdir())) == len(list((few / "7").iterdir()))
    for kind in ("endpoints", "models"):
        assert not list((tmp_path / "home" / kind).iterdir())


def test_the_learner_example_makes_a_bundle_of_a_notebooks_learner(photos, tmp_path, monkeypatch):
    from fastai.vision.all import ImageDataLoaders, Resize, resnet18, vision_learner

    from fastmaker import bundle

    (example,) = [block for block in blocks("python") if "save_bundle" in block]
    monkeypatch.chdir(tmp_path)
    dls = ImageDataLoaders.from_folder(photos, valid_pct=0.5, item_tfms=Resize(32), bs=2, num_workers=0)
    exec(example, {"learn": vision_learner(dls, resnet18, pretrained=False)})
    assert bundle.load("model")[1].architecture == "resnet18"

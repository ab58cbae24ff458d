"""The README's commands, run or at least parsed as they stand there."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from fastmaker.jobs import cleanup, deploy
from fastmaker.jobs.__main__ import COMMANDS
from fastmaker.jobs.digits import write_digits
from fastmaker.jobs.packaging import torchserve
from fastmaker.local.containers import free_ports
from fastmaker.serving import models

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(prefix):
    lines = [line.split(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith(prefix)]


@pytest.mark.parametrize("command", commands("fastmaker "))
def test_a_script_takes_the_arguments_that_the_readme_gives_it(command):
    _, name, *words = shlex.split(command)
    importlib.import_module(COMMANDS[name][0]).parse_args(words)


@pytest.mark.parametrize("command", commands("make "))
def test_make_has_the_targets_that_the_readme_names(command):
    subprocess.run([*command.split(), "--dry-run"], cwd=REPOSITORY, check=True, capture_output=True)


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (REPOSITORY / link).is_file()] == []


def lay_out(few, folder):
    """The folder `digits` as `make digits` writes it, with few images in it."""
    shutil.copytree(few, folder / "digits" / "train")
    (folder / "digits" / "held-out" / "7").mkdir(parents=True)
    for number, file in enumerate(sorted((few / "7").iterdir())):
        shutil.copy(file, folder / "digits" / "held-out" / "7" / f"{240 + number:04}.png")


def test_make_digits_writes_the_digits_that_the_readme_names(tmp_path):
    write_digits(tmp_path / "digits")
    code = "\n".join(blocks("sh") + blocks("python"))
    named = set(re.findall(r"(?:[ @\"]|file://)(digits/[\w./-]*\w)", code))
    assert {"digits/held-out", "digits/held-out/7", "digits/held-out/7/0240.png"} <= named
    assert [name for name in sorted(named) if not (tmp_path / name).exists()] == []


def test_the_sdk_example_runs_as_it_stands(few, tmp_path):
    (example,) = [block for block in blocks("python") if "estimator" in block]
    lay_out(few, tmp_path)
    (tmp_path / "source").symlink_to(REPOSITORY / "source")
    env = {**os.environ, "FASTMAKER_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"predictions"') == 2
    assert len(list((tmp_path / "answers").iterdir())) == len(list((few / "7").iterdir()))
    for kind in ("endpoints", "models"):
        assert not list((tmp_path / "home" / kind).iterdir())


def test_the_client_example_gets_the_mask_of_the_bundle(scenes, scenes_bundle, tmp_path, monkeypatch):
    (example,) = [block for block in blocks("python") if "base64_prediction" in block]
    monkeypatch.setenv("FASTMAKER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    pyplot.switch_backend("agg")  # shows nothing
    shutil.copytree(scenes_bundle, "camvid")
    shutil.copy(scenes / "images" / "00.png", "scene.png")
    deploy.main(deploy.parse_args(["--model", "camvid", "--endpoint-name", "camvid"]))
    try:
        exec(example, names := {})
        shown = pyplot.gca().images[0].get_array()
    finally:
        pyplot.close("all")
        cleanup.main(cleanup.parse_args(["--endpoint", "camvid"]))
    [expected] = models.load("camvid").predict([Image.open("scene.png")])
    assert names["mask"].dtype == np.uint8
    assert np.array_equal(names["mask"], expected.array)
    assert np.array_equal(shown, expected.array)


def test_the_curl_command_gets_an_answer_from_torchserve(few, digits_bundle, tmp_path):
    (command,) = commands("curl ")
    lay_out(few, tmp_path)
    archive = tmp_path / "digits.mar"
    torchserve.make_archive(digits_bundle, archive, model_name="digits")
    (port,) = free_ports(1)
    with torchserve.running(archive, "digits", port):
        words = shlex.split(command.replace(":8080/", f":{port}/"))
        done = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    assert json.loads(done.stdout)["label"] in set("0123456789")


def test_the_learner_example_makes_a_bundle_of_a_notebooks_learner(photos, tmp_path, monkeypatch):
    from fastai.vision.all import ImageDataLoaders, Resize, resnet18, vision_learner

    from fastmaker import bundle

    (example,) = [block for block in blocks("python") if "save_bundle" in block]
    monkeypatch.chdir(tmp_path)
    dls = ImageDataLoaders.from_folder(photos, valid_pct=0.5, item_tfms=Resize(32), bs=2, num_workers=0)
    exec(example, {"learn": vision_learner(dls, resnet18, pretrained=False)})
    assert bundle.load("model")[1].architecture == "resnet18"

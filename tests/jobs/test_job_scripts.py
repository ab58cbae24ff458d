"""The job scripts as a user runs them: by their command lines, in processes of their own."""

import csv
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from helpers import PATIENCE, REPOSITORY
from helpers.commands import exit_status, next_command, on_a_terminal, one_line
from helpers.local_mode import nothing_runs_below
from PIL import Image

from fastmaker.answers import Mask, Prediction
from fastmaker.jobs import cleanup, storage, train
from fastmaker.jobs.__main__ import COMMANDS
from fastmaker.jobs.backends.pytorch import fetch_report
from fastmaker.jobs.clients import answers
from fastmaker.jobs.clients.images import image_files
from fastmaker.jobs.packaging import models
from fastmaker.jobs.storage.listings import listed
from fastmaker.serving import models as serving_models
from fastmaker.serving import wire


@pytest.mark.slow
def test_from_a_folder_to_an_answer_by_the_commands_that_each_step_names(run, few, tmp_path):
    (tmp_path / "digits").symlink_to(few)  # the job may be called as the folder that it trains on
    trained = run("train", "--data", "digits", "--arch", "convnet", "--epochs", "2", "--job-name", "digits")
    assert trained.returncode == 0, trained.stderr.decode()
    assert "valid:accuracy" in trained.stdout.decode()
    for name in ("curves.png", "confusion_matrix.png", "top_losses.png"):
        Image.open(tmp_path / "reports" / "digits" / name).verify()

    deployed = run(*next_command(trained))
    assert deployed.returncode == 0, deployed.stderr.decode()

    command = next_command(deployed)[:-2]  # less IMAGE ...
    files = sorted((few / "7").glob("*.png"))[:3]
    asked = run(*command, *map(str, files), "--json", "--save", str(tmp_path / "answers"))
    assert asked.returncode == 0, asked.stderr.decode()
    assert [json.loads(line)["image"] for line in asked.stdout.splitlines()] == [str(file) for file in files]
    assert len([Image.open(file) for file in (tmp_path / "answers").glob("*.png")]) == 3

    piped = run("predict", "-", "--json", stdin=files[0].read_bytes())
    assert json.loads(piped.stdout)["label"] == json.loads(asked.stdout.splitlines()[0])["label"]

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    table = run("predict", str(files[0]), str(broken))
    assert table.returncode == 1
    assert "not an image that Pillow can read" in table.stdout.decode()

    listed = run("cleanup")
    assert {"endpoint", "endpoint-config", "model", "training-job"} <= set(listed.stdout.decode().split())
    cleaned = run("cleanup", "--all", "--yes")
    assert cleaned.returncode == 0, cleaned.stderr.decode()
    assert run("cleanup").stdout.decode().strip() == "nothing is left"


@pytest.mark.slow
def test_predict_waits_for_the_answers_of_an_asynchronous_endpoint(run, few, digits_bundle, tmp_path):
    words = ["--endpoint-name", "later", "--async-output", "file://answers"]
    deployed = run("deploy", "--model", str(digits_bundle), *words)
    assert deployed.returncode == 0, deployed.stderr.decode()
    assert "without effect" not in deployed.stdout.decode()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    file = sorted((few / "7").glob("*.png"))[0]
    asked = run("predict", "--endpoint", "later", "--json", str(file), str(broken))
    good, bad = map(json.loads, asked.stdout.splitlines())
    [expected] = serving_models.load(digits_bundle).predict([Image.open(file)])
    assert (asked.returncode, good) == (1, {"image": str(file), **expected.as_object()})
    assert "not an image that Pillow can read" in bad["error"]
    kept = sorted(path.relative_to(tmp_path / "answers").parts[0] for path in (tmp_path / "answers").rglob("*.out"))
    assert [name == "failures" for name in kept].count(True) == 1
    assert len(kept) == 2
    assert run("cleanup", "--all", "--yes").returncode == 0


@pytest.mark.training
def test_a_job_script_that_is_terminated_ends_its_job(few, tmp_path):
    env = {**os.environ, "FASTMAKER_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY)}
    words = ["--data", str(few), "--arch", "convnet", "--epochs", "1000"]
    command = [sys.executable, "-m", "fastmaker.jobs", "train", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=env, **pipes) as process:
        assert any("epoch=1 " in line for line in process.stdout)
        process.terminate()
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "error: interrupted"
    assert nothing_runs_below(tmp_path / "home")


def test_hidden_files_are_asked_about_only_if_they_are_named(tmp_path):
    """As training leaves them out: a Mac puts ._1.png beside 1.png, which is no image."""
    for name in ("1.png", "._1.png", ".thumbnails/1.png", "sub/2.jpg", "sub/._2.jpg"):
        (tmp_path / ".photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".photos" / name).touch()
    folder = tmp_path / ".photos"
    assert image_files(str(folder)) == [folder / "1.png", folder / "sub" / "2.jpg"]
    assert image_files(str(folder / "._1.png")) == [folder / "._1.png"]
    assert image_files(str(folder / ".thumbnails")) == [folder / ".thumbnails" / "1.png"]
    (folder / "1.png").unlink()
    shutil.rmtree(folder / "sub")
    with pytest.raises(ValueError, match="the folder holds no image"):
        image_files(str(folder))


@pytest.mark.slow
def test_masks_are_told_by_their_classes_and_saved_beside_their_images(run, scenes, scenes_bundle, tmp_path):
    deployed = run("deploy", "--model", str(scenes_bundle), "--endpoint-name", "scenes")
    assert deployed.returncode == 0, deployed.stderr.decode()
    asked = run("predict", str(scenes / "images" / "00.png"), "--save", str(tmp_path / "answers"))
    assert asked.returncode == 0, asked.stderr.decode()
    assert re.search(r"00\.png  (\w+ \d+%(, )?)+ +-\n", asked.stdout.decode())
    assert Image.open(tmp_path / "answers" / "0000-00.png").size == (640, 348)
    assert run("cleanup", "--endpoint", "scenes").returncode == 0


def test_masks_are_collected_as_the_pixels_of_each_class(run, scenes, scenes_bundle, tmp_path):
    (tmp_path / "in").mkdir()
    for file in sorted((scenes / "images").iterdir())[:3]:
        shutil.copy(file, tmp_path / "in")
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    words = ["--model", str(scenes_bundle), "--data", "in", "--output", "out", "--collect", "answers.csv"]
    done = run("transform", *words)
    assert done.returncode == 1, done.stderr.decode()
    *rows, broken = csv.DictReader((tmp_path / "answers.csv").read_text().splitlines())
    model = serving_models.load(scenes_bundle)
    for row in rows:
        [mask] = model.predict([Image.open(tmp_path / "in" / row["key"])])
        found = {f"pixels_{label}": str(pixels) for label, pixels in mask.counts().items() if pixels}
        assert {name: value for name, value in row.items() if value not in ("", "0")} == {"key": row["key"], **found}
    assert [row["key"] for row in rows] == ["00.png", "01.png", "02.png"]
    assert {name: value for name, value in broken.items() if value} == {"key": "broken.png", "error": "no answer"}


def test_a_class_of_the_last_mask_alone_is_collected_and_json_lines_hold_whole_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "CHUNK", 2)
    arrays = {"a": np.zeros((4, 6)), "b": np.zeros((4, 6)), "c": np.full((4, 6), 2)}
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    written = {}
    for name, array in arrays.items():
        (tmp_path / "in" / name).touch()
        written[name] = Mask(array.astype("uint8"), ["road", "sky", "error"]).as_object()
        (tmp_path / "out" / f"{name}.out").write_text(json.dumps(written[name]))
    with listed("S3Prefix", f"file://{tmp_path}/in/") as inputs:
        for kind in ("csv", "jsonl"):
            answers.collect(inputs, f"file://{tmp_path}/out", tmp_path / f"answers.{kind}")
    lines = ["key,pixels_road,pixels_error,error", "a,24,0,", "b,24,0,", "c,0,24,"]
    assert (tmp_path / "answers.csv").read_text().splitlines() == lines
    rows = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    assert list(rows) == [{"key": name, **answer} for name, answer in written.items()]


def test_several_images_of_one_object_are_collected_as_a_row_each(tmp_path):
    two = wire.Answer([Prediction(np.float32(p), ("cat", "dog")) for p in ([0.75, 0.25], [0.5, 0.5])], False)
    road = Mask(np.zeros((4, 6), np.uint8), ["road", "sky"])
    written = {"a": two, "b": wire.Answer([road, road], False), "c": None}
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    for name, answer in written.items():
        (tmp_path / "in" / name).touch()
        if answer:
            (tmp_path / "out" / f"{name}.out").write_bytes(wire.encode(answer, "application/json")[0])
    with listed("S3Prefix", f"file://{tmp_path}/in/") as inputs:
        for kind in ("csv", "jsonl"):
            answers.collect(inputs, f"file://{tmp_path}/out", tmp_path / f"answers.{kind}")
    rows = list(csv.DictReader((tmp_path / "answers.csv").read_text().splitlines()))
    assert [row["key"] for row in rows] == ["a", "a", "b", "b", "c"]
    assert [(row["label"], row["probability"]) for row in rows[:2]] == [("cat", "0.75"), ("cat", "0.5")]
    assert [row["pixels_road"] for row in rows[2:4]] == ["24", "24"]
    assert [row["error"] for row in rows] == ["", "", "", "", "no answer"]
    lines = list(map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines()))
    whole = [{"key": name, "answer": [p.as_object() for p in written[name].predictions]} for name in "ab"]
    assert lines == [*whole, {"key": "c", "error": "no answer"}]


@pytest.mark.slow
def test_several_hosts_train_and_each_line_says_whose_it_is(run, few, tmp_path):
    words = "--arch convnet --epochs 2 --instance-count 2 --distribution torch_distributed --spot --job-name pair"
    done = run("train", "--data", str(few), *words.split(), "--checkpoints", str(tmp_path / "checkpoints"))
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert [line[:16] for line in lines if "epoch=" in line] == ["algo-1 | epoch=1", "algo-1 | epoch=2"]
    others = [line[:18] for line in lines if line.startswith("algo-2 | epoch")]  # torch itself may warn as well
    assert others == ["algo-2 | epoch 1/2", "algo-2 | epoch 2/2"]
    assert any(line.startswith("algo-1 | the parameters of all 2 processes are equal") for line in lines)
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == ["epoch-0001.pt", "epoch-0002.pt"]


@pytest.mark.parametrize(
    ("command", "status", "reason"),
    [
        ("train --data nowhere", 2, "expected a directory"),
        (
            "train --data {digits} --arch resnet99",
            2,
            "neither torchvision nor timm has such a network; near it:",
        ),
        ("train --data {digits} --epochs many", 2, "invalid int value"),
        (
            "train --data {digits} --instance-type p3.2xlarge",
            2,
            "expected local, local_gpu or one that begins with ml.",
        ),
        ("train --data {digits} --backend aws", 2, "expected an --instance-type that begins with ml."),
        ("train --data {digits} --instance-count 0", 2, "expected at least 1"),
        ("train --data {digits} --distribution mpi", 2, "invalid choice: 'mpi'"),
        ("train --data {digits} --max-wait 60", 2, "give --spot as well"),
        ("train --data {digits} --spot --max-wait 60", 2, "expected at least --max-run 86400"),
        ("train --data {digits} --timeout never", 2, "argument --timeout: invalid float value"),
        ("train --data {digits}/7", 2, "has an unknown layout"),
        ("deploy --model nothing", 2, "no such training job"),
        ("deploy --model {digits}", 2, "is no bundle: it lacks model.json"),
        ("predict --endpoint nobody nowhere.png", 2, "nowhere.png"),
        ("predict {digits}/7", 2, "--endpoint NAME is needed"),
        ("cleanup --endpoint nobody", 1, "Could not find endpoint"),
        ("transform --data {digits}", 2, "--model is needed"),
        ("transform --model nothing --data {digits}", 2, "no such training job"),
        ("transform --model nothing --data nowhere", 2, "nowhere: no such file or directory"),
        ("transform --model nothing --manifest {digits}", 2, "Is a directory"),
        ("transform --model nothing --data {digits} --env X", 2, "expected NAME=VALUE"),
        ("transform --model nothing --data {digits} --collect x.txt", 2, "ends with .jsonl or .csv"),
        (
            "transform --model nothing --data {digits} --collect x.csv --accept image/png",
            2,
            "--collect goes with --accept application/json, application/jsonlines or text/csv, not image/png",
        ),
        (
            "transform --model m --data {digits} --collect x.jsonl --accept application/X-npy",
            2,
            "goes with",
        ),
        (
            "transform --model nothing --data {digits} --split-type TFRecord",
            2,
            "invalid choice: 'TFRecord'",
        ),
        ("transform --retry-failed nobody", 1, "Could not find transform job"),
    ],
)
def test_bad_usage_gets_one_line_before_anything_starts(digits, tmp_path, monkeypatch, capsys, command, status, reason):
    """In this process, as the last lines of each script do it: most of the time of a process is the SDK's import."""
    monkeypatch.setenv("FASTMAKER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    module, *words = command.format(digits=digits).split()
    script = importlib.import_module(f"fastmaker.jobs.{module}")
    assert exit_status(script, *words) == status
    assert reason in one_line(capsys.readouterr().err)
    assert not list((tmp_path / "home").glob("*/*"))


@pytest.mark.parametrize("name", ["cam#vid", "what?", "100%", "two%20words", "two words"])
def test_folders_and_archives_of_any_name_are_found(digits, digits_bundle, digits_archive, tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "data").symlink_to(digits)
    (tmp_path / name / "model").symlink_to(digits_bundle)
    (tmp_path / name / "model.tar.gz").symlink_to(digits_archive)
    with tarfile.open(tmp_path / name / "output.tar.gz", "w:gz") as tar:
        tar.add(digits_bundle / "model.json", "metrics.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTMAKER_HOME", str(tmp_path / "home"))
    assert train.main(train.parse_args(["--data", f"{name}/data", "--arch", "convnet", "--dry-run"])) == 0
    for place in ("", "file://", f"file://{tmp_path}/"):
        assert models.locate(f"{place}{name}/model", None) == digits_bundle
        assert models.locate(f"{place}{name}/model.tar.gz", None) == digits_archive
    report = fetch_report(f"file://{tmp_path}/{name}/model.tar.gz", tmp_path / "report", None)
    assert (report / "metrics.json").is_file()


def test_a_model_directory_is_packed_where_nothing_of_others_lies(digits_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTMAKER_HOME", str(tmp_path / "home"))
    for folder in ("a", "b"):
        shutil.copytree(digits_bundle, tmp_path / folder / "model")
        (tmp_path / folder / "model.tar.gz").write_bytes(b"of somebody else")
    (tmp_path / "b" / "model" / "model.onnx").touch()
    packed = [models.model_archive(tmp_path / folder / "model") for folder in "aba"]
    assert packed[0] == packed[2] != packed[1]
    for archive, more in zip(packed, ((), ("model.onnx",)), strict=False):
        with tarfile.open(storage.local_path(archive)) as tar:
            assert {name for name in tar.getnames() if "/" not in name} == {*os.listdir(digits_bundle), *more}
    for folder in ("a", "b"):
        assert sorted(os.listdir(tmp_path / folder)) == ["model", "model.tar.gz"]
        assert (tmp_path / folder / "model.tar.gz").read_bytes() == b"of somebody else"
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0
    for words in ([], ["--all", "--yes"]):
        assert cleanup.main(cleanup.parse_args(words)) == 0
        assert len(re.findall(r"packed-model +model-[0-9a-f]{8} +- +20", capsys.readouterr().out)) == 2
    assert not list((tmp_path / "home").rglob("*.tar.gz"))


@pytest.mark.server
def test_a_batch_job_shows_its_progress_on_a_terminal(digits, digits_archive, tmp_path):
    """With rate and time left; what it looks like is read from a pseudo-terminal."""
    words = ["--model", str(digits_archive), "--data", str(digits), "--picture", "sheet.png"]
    env = {**os.environ, "FASTMAKER_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY)}
    done, shown = on_a_terminal([sys.executable, "-m", "fastmaker.jobs", "transform", *words], cwd=tmp_path, env=env)
    table = done.stdout.decode()
    assert done.returncode == 0, shown
    bars = re.findall(r"(\d+)%\|.*?\| (\d+)/(\d+) \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ objects/s, failed=0", shown)
    assert bars, shown
    assert {total for _, _, total in bars} == {"1797"}
    assert bars[-1][:2] == ("100", "1797")
    assert re.search(r"answers +1797\nfailures +0\n", table)
    Image.open(tmp_path / "sheet.png").verify()
    job = next(line.split()[1] for line in table.splitlines() if line.startswith("job "))
    assert len(list((tmp_path / "answers" / job).rglob("*.out"))) == 1797


@pytest.mark.parametrize("script", COMMANDS)
def test_every_script_explains_itself(capsys, script):
    assert exit_status(importlib.import_module(COMMANDS[script][0]), "--help") == 0
    assert f"fastmaker {script}" in capsys.readouterr().out

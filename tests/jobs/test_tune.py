"""``fastmaker tune``: how it searches, what it writes, and who follows that."""

import dataclasses
import functools
import json
import runpy
import shutil
import statistics
import zipfile

import pytest
from helpers import REPOSITORY, task_bundles

from fastmaker import bundle
from fastmaker.jobs import tune
from fastmaker.jobs.benchmarks import tuning
from fastmaker.jobs.packaging import models, torchserve
from fastmaker.local.containers import pack
from fastmaker.serving import settings

OWN = settings.Settings("torch", "float32", workers=3, threads=2, batch_size=4, measured={"cores": 2})


WANTED = {
    "SAGEMAKER_MODEL_SERVER_WORKERS": "3",
    "SAGEMAKER_TS_BATCH_SIZE": "4",
    "SAGEMAKER_TS_MIN_WORKERS": "3",
    "SAGEMAKER_TS_MAX_WORKERS": "3",
}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = task_bundles.save(tmp_path_factory.mktemp("tuned") / "model", "points")
    settings.save(folder, OWN)
    return folder


def computation(engine, precision="float32", difference=0.0, *, milliseconds):
    seconds = {threads: milliseconds / 1000 / threads**0.5 for threads in tuning.thread_counts()}
    return tuning.Computation(engine, precision, same=9, total=9, difference=difference, seconds=seconds)


def test_endpoints_of_the_most_promising_settings_and_of_each_computation_are_measured(monkeypatch):
    monkeypatch.setattr(tuning, "cores", lambda: 4)
    slow, fast, outside = (
        computation("torch", milliseconds=90),
        computation("openvino", milliseconds=30),
        computation("openvino", "bf16", 0.01, milliseconds=15),
    )
    waiting = tuning._candidates([slow, fast, outside], (1, 8))
    assert {it.settings.threads for it in waiting} == {1, 2, 4}
    assert max(it.settings.workers * it.settings.threads for it in waiting) == 8
    found = tuning._promising(waiting, 1e-4)
    assert found[0].settings == settings.Settings("openvino", "float32", workers=4, threads=1)
    assert all(it.computation is fast for it in found[: tuning.EXPLORED])
    assert {it.settings.batch_size for it in found} == {1}
    assert [it.computation for it in found[tuning.EXPLORED :]] == [slow, outside]
    [other] = tuning._other_batches(found[:1], waiting)
    assert other.settings == settings.Settings("openvino", "float32", workers=4, threads=1, batch_size=8)


@pytest.mark.parametrize(
    ("changes", "tolerance", "agrees"),
    [
        ({}, 1e-4, True),
        ({"difference": 2e-4}, 1e-4, False),
        ({"difference": 2e-4}, 1e-3, True),
        ({"same": 8}, 1.0, False),
        ({"difference": float("inf")}, 1e9, False),
        ({"failure": "no such precision"}, 1.0, False),
    ],
)
def test_what_gives_another_label_or_is_further_off_does_not_agree(changes, tolerance, agrees):
    it = tuning.Computation(**{"engine": "torch", "precision": "bf16", "same": 9, "total": 9, **changes})
    assert it.agrees(tolerance) is agrees


def test_a_copy_has_the_code_of_this_version_and_what_each_server_looks_for(tuned, tmp_path):
    (old := shutil.copytree(tuned, tmp_path / "old")).joinpath(bundle.RAY_FILE).unlink()  # as earlier versions wrote it
    (old / "code" / "entry_point.py").write_text("of an earlier version")
    models.copy_with_this_code(old, copy := tmp_path / "copy")
    names = {str(path.relative_to(tuned)) for path in tuned.rglob("*")}
    assert {str(path.relative_to(copy)) for path in copy.rglob("*")} == names
    for name in (bundle.RAY_FILE, "code/entry_point.py", bundle.STATE_FILE):
        assert (copy / name).read_bytes() == (tuned / name).read_bytes()


@pytest.mark.parametrize("packed", [False, True])
def test_an_endpoint_is_told_the_settings_of_a_folder_and_of_an_archive(tuned, tmp_path, capsys, packed):
    model = tuned
    if packed:
        pack(tuned, model := tmp_path / "model.tar.gz")
    assert models.serving_environment(model, "job") == WANTED
    line = "serving.json: torch float32, 3 x 2 threads, batches of 4, measured on 2 cores\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({settings.WORKERS: "1"}, {name: "1" for name in WANTED if name.endswith("WORKERS")}),
        ({settings.MIN_WORKERS: "2"}, {settings.MIN_WORKERS: "2"}),
        ({"OTHER": "x"}, {"OTHER": "x"}),
    ],
)
def test_variables_of_an_endpoint_win_over_the_settings(tuned, given, changed):
    assert models.serving_environment(tuned, "job", given) == {**WANTED, **changed}


def test_a_setting_is_measured_with_the_workers_that_it_will_run_with():
    for size, more in ((4, WANTED), (1, {settings.WORKERS: "3"})):
        found = tuning.environment(dataclasses.replace(OWN, batch_size=size))
        assert found == {"FASTMAKER_ENGINE": "torch", "FASTMAKER_PRECISION": "float32", settings.THREADS: "2", **more}


def test_a_bundle_without_settings_and_the_archive_of_a_job_on_aws_ask_for_nothing(tmp_path, capsys):
    for found, model in ((tmp_path, str(tmp_path)), ("s3://bucket/model.tar.gz", "job")):
        assert models.serving_environment(found, model) == {}
    assert capsys.readouterr().out == ""


SAID = {
    "tuned": "serving.json: torch float32, 3 x 2 threads, batches of 4, measured on 2 cores\n",
    "plain": "",
    "damaged": "serving.json is not read, so that no setting of it counts: ",
    "missing": "serving.json is not read, so that no setting of it counts: ",
}


@pytest.mark.parametrize("kind", SAID)
def test_the_settings_of_an_archive_in_s3_are_read_or_a_line_says_why_not(tuned, s3, bucket, tmp_path, capsys, kind):
    folder = shutil.copytree(tuned, tmp_path / "model")
    if kind == "plain":
        (folder / "serving.json").unlink()
    pack(folder, archive := tmp_path / "model.tar.gz")
    content = archive.read_bytes()
    if kind != "missing":
        s3.put_object(Bucket=bucket, Key="m", Body=content[: len(content) // 2] if kind == "damaged" else content)
    uri = f"s3://{bucket}/m"
    found = models.serving_environment(uri, uri)
    assert found == (WANTED if kind == "tuned" else {})
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first == f"reading {uri} for its serving.json"
    assert rest.startswith(SAID[kind])
    assert bool(rest) == bool(SAID[kind])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "batchSize: 4\nmaxBatchDelay: 20\nminWorkers: 3\nmaxWorkers: 3\n"),
        ({"batch_size": 1, "workers": 1}, "batchSize: 1\nmaxBatchDelay: 20\nminWorkers: 1\nmaxWorkers: 1\n"),
    ],
)
def test_an_archive_follows_the_settings_and_options_win(tuned, tmp_path, options, expected):
    torchserve.make_archive(tuned, tmp_path / "points.mar", model_name="points", **options)
    with zipfile.ZipFile(tmp_path / "points.mar") as archive:
        assert archive.read("model-config.yaml").decode() == expected
        assert json.loads(archive.read("serving.json"))["threads"] == 2


@pytest.mark.parametrize(
    ("content", "variables", "expected"),
    [
        (None, {}, {}),
        ({"workers": 3, "batch_size": 4}, {}, {"workers": "3", "batch_size": "4"}),
        ({"workers": 1, "batch_size": 1}, {}, {"workers": "1"}),
        ({"workers": 3}, {"workers": "2"}, {"workers": "2"}),
        ({"workers": "3", "batch_size": True}, {}, {}),
        ("{", {}, {}),
        ([1], {}, {}),
    ],
)
def test_the_image_follows_the_settings_and_variables_win(tmp_path, monkeypatch, content, variables, expected):
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    run = runpy.run_path(str(REPOSITORY / "docker" / "run.py"), run_name="run")
    names = run["SETTINGS"]
    for name in names.values():
        monkeypatch.delenv(name, raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(names[key], value)
    (tmp_path / "model").mkdir()
    if content is not None:
        (tmp_path / "model" / "serving.json").write_text(content if isinstance(content, str) else json.dumps(content))
    run["follow_settings"]()
    environ = run["os"].environ
    assert {key: environ[name] for key, name in names.items() if name in environ} == expected
    for name in names.values():
        environ.pop(name, None)


@pytest.mark.parametrize(
    ("variables", "started"),
    [
        ({settings.WORKERS: "2", settings.BATCH_SIZE: "4"}, "2"),
        ({settings.WORKERS: "2"}, None),
        ({settings.BATCH_SIZE: "4"}, None),
        ({settings.WORKERS: "0", settings.BATCH_SIZE: "4"}, None),
        ({settings.WORKERS: "2", settings.MIN_WORKERS: "3"}, "3"),
    ],
)
def test_the_image_starts_all_workers_with_batches_as_well(monkeypatch, variables, started):
    run = runpy.run_path(str(REPOSITORY / "docker" / "run.py"), run_name="run")
    monkeypatch.setattr(run["os"], "environ", dict(variables))
    run["start_all_workers"]()
    assert run["os"].environ.get(settings.MIN_WORKERS) == started


def test_ctrl_c_ends_the_search_rather_than_one_setting():
    from fastmaker.local.sdk import Interrupted

    def ask(photo):
        raise Interrupted

    it = tuning.Candidate(computation("torch", milliseconds=1), settings.Settings())
    with pytest.raises(KeyboardInterrupt):
        tuning.measure([it], [ask], photos=[b""], clients=1, seconds=0.1)


def test_a_setting_that_fails_is_that_settings_result():
    def ask(photo):
        raise OSError("no answer")

    it = tuning.Candidate(computation("torch", milliseconds=1), settings.Settings())
    tuning.measure([it], [ask], photos=[b""], clients=1, seconds=0.1)
    assert it.failure == "FAILED: OSError: no answer"
    assert tuning._best([it], 1.0) == []


def test_an_output_that_exists_is_refused_first(tmp_path):
    with pytest.raises(ValueError, match="exists; --output names a new folder"):
        tune.main(tune.parse_args(["model", "photos", "--output", str(tmp_path)]))


@pytest.mark.slow
def test_the_fastest_that_agrees_is_written_into_a_copy(home, digits_bundle, digits, tmp_path, capsys):
    files = [str(file) for file in sorted(digits.rglob("*.png"))[::100]]
    words = [str(digits_bundle), *files, "--output", str(tmp_path / "tuned"), "--seconds", "1"]
    words += ["--picture", str(tmp_path / "tuned.png")]
    assert tune.main(tune.parse_args(words)) == 0
    printed = capsys.readouterr().out
    own = settings.load(tmp_path / "tuned")
    assert own.precision == "float32"
    assert own.measured["largest_difference"] <= 1e-4
    [row] = [line for line in printed.splitlines() if line.endswith("chosen")]
    assert row.split()[:5] == [own.engine, own.precision, *map(str, (own.workers, own.threads, own.batch_size))]
    assert any("torch" in line and "outside the tolerance" in line for line in printed.splitlines())
    assert (tmp_path / "tuned.png").stat().st_size > 10_000
    assert not (digits_bundle / "serving.json").exists()


@pytest.mark.slow
def test_three_searches_of_three_find_a_setting_within_a_tenth_of_the_best(home, digits_bundle, digits, tmp_path):
    """The settings found are measured side by side: the machine may be shared."""
    tune._copy(digits_bundle, tmp_path / "model")
    photos = [file.read_bytes() for file in sorted(digits.rglob("*.png"))[::100]]
    load = {"clients": 8, "seconds": 2}
    search = functools.partial(tuning.search, tmp_path / "model", photos, tolerance=1e-4, batch_sizes=(1,), **load)
    found = [search(exhaustive=True)[0], *(search()[0] for _ in range(3))]
    pack(tmp_path / "model", archive := tmp_path / "model.tar.gz")
    again = [tuning.Candidate(it.computation, it.settings) for it in found]
    tuning._take(again, 5, archive=archive, photos=photos, **load)
    print([(it.settings, it.rates) for it in again])
    best, *others = again
    for it in others:
        assert statistics.median(a / b for a, b in zip(it.rates, best.rates, strict=True)) >= 0.9

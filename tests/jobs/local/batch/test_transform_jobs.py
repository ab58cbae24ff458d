import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from helpers import PATIENCE, REPOSITORY
from helpers.local_mode import bundle_model, estimator, nothing_runs_below, running_below, script_mode, wait_until
from helpers.shapes import assert_answers_as
from sagemaker.amazon.common import _write_recordio
from sagemaker.exceptions import UnexpectedStatusException
from sagemaker.transformer import Transformer

from fastmaker import preprocess
from fastmaker.jobs import manifest as manifest_script
from fastmaker.local import ProcessSession
from fastmaker.local.batch import transform_jobs
from fastmaker.local.containers import pack
from fastmaker.serving import models

# Answers with the body between brackets; Accept says which ones.
ECHO = """
def model_fn(model_dir): return None
def input_fn(body, content_type): return bytes(body)
def predict_fn(body, model): return body
def output_fn(body, accept): return b"[" + body + b"]", accept
"""
# Answers a line of JSON for each line; an empty object is refused.
JSON_LINES = """
import json, os, time
from sagemaker_inference.errors import BaseInferenceToolkitError
def model_fn(model_dir): return os.getpid()
def input_fn(body, content_type):
    text = body if isinstance(body, str) else bytes(body).decode()
    if not text: raise BaseInferenceToolkitError(400, "empty", "the body is empty")
    return [json.loads(line) for line in text.split("\\n") if line]
def predict_fn(records, model): return [{"n": record["n"] * 10} for record in records]
def output_fn(answers, accept): return "".join(json.dumps(a) + "\\n" for a in answers), accept
"""
# Takes a while, and says when it began and ended.
SLOW = """
import json, os, time
def model_fn(model_dir): return None
def input_fn(body, content_type): return bytes(body)
def predict_fn(body, model):
    start = time.time()
    time.sleep(float(os.environ.get("SECONDS_FOR_ONE", "0.3")))
    return {"start": start, "end": time.time(), "body": body.decode()}
def output_fn(answer, accept): return json.dumps(answer), "application/json"
"""


@pytest.fixture
def echo(session, model_archive):
    return script_mode(session, model_archive(ECHO))


def write(folder: Path, **files) -> str:
    """Write files into `folder`; returns its URI."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return f"file://{folder}"


def outputs(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def objects(s3, uri: str) -> dict[str, bytes]:
    """What stands below an s3:// URI, by name."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/") + "/"
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    return {key.removeprefix(prefix): s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def upload(s3, bucket: str, prefix: str, files: dict[str, bytes]) -> str:
    for name, body in files.items():
        s3.put_object(Bucket=bucket, Key=prefix + name, Body=body)
    return f"s3://{bucket}/{prefix}"


def description_of(transformer) -> dict:
    name = transformer.latest_transform_job.name
    return transformer.sagemaker_session.sagemaker_client.describe_transform_job(TransformJobName=name)


def directory_of(transformer) -> Path:
    jobs = transformer.sagemaker_session.sagemaker_client.transform_jobs
    return jobs.directory(transformer.latest_transform_job.name)


def failure(transformer, *arguments, **keywords) -> str:
    """Run a job that must fail; returns its FailureReason."""
    with pytest.raises(UnexpectedStatusException) as caught:
        transformer.transform(*arguments, logs=False, **keywords)
    description = description_of(transformer)
    assert_answers_as("DescribeTransformJob", description)
    assert description["TransformJobStatus"] == "Failed"
    assert description["FailureReason"] in str(caught.value)
    return description["FailureReason"]


def digits_of(folder: Path, count: int) -> dict[str, bytes]:
    """Digits from all classes, by the path below `folder`."""
    files = sorted(folder.rglob("*.png"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files[:: len(files) // count][:count]}


@pytest.mark.slow  # the notebook of batch transform shows the same on fewer images
def test_prefix_manifest_and_two_instances_give_the_bundles_answers(
    s3, bucket, home, digits, digits_bundle, digits_archive
):
    images = digits_of(digits, 100)
    data = upload(s3, bucket, "digits/", images)
    chosen = sorted(images)[::3]
    manifest = json.dumps([{"prefix": data}, *chosen]).encode()
    upload(s3, bucket, "", {"some.manifest": manifest})
    session = ProcessSession(home=home)
    model = bundle_model(session, digits_archive)

    def run(source, data_type="S3Prefix", instances=1):
        transformer = model.transformer(instances, "local", accept="application/json", max_concurrent_transforms=2)
        transformer.transform(source, data_type, content_type="application/x-image", logs=False)
        assert description_of(transformer)["TransformJobStatus"] == "Completed"
        return transformer, objects(s3, transformer.output_path)

    _, by_prefix = run(data)
    _, by_manifest = run(f"s3://{bucket}/some.manifest", "ManifestFile")
    two, by_two = run(f"s3://{bucket}/digits", instances=2)
    assert by_prefix.keys() == {name + ".out" for name in images}
    assert by_manifest == {name + ".out": by_prefix[name + ".out"] for name in chosen}
    assert by_two == by_prefix

    logs = [container.log.read_text() for container in transform_jobs.containers(two_jobs(two), two_name(two))]
    requests = [log.count('"POST /invocations HTTP/1.1" 200') for log in logs]
    assert requests == [150, 150]

    bundle = models.load(digits_bundle)
    for name in chosen[::10]:
        expected = bundle.predict([preprocess.decode(images[name])])[0]
        answer = json.loads(by_prefix[name + ".out"])
        assert (answer["predictions"], answer["probability"]) == (expected.index, expected.probabilities.max())


def two_jobs(transformer):
    return transformer.sagemaker_session.sagemaker_client.transform_jobs


def two_name(transformer) -> str:
    return transformer.latest_transform_job.name


def test_every_key_becomes_the_same_path_below_the_output(s3, bucket, home, model_archive):
    names = ["a.txt", "deep/er/b.txt", "with space.txt", "ünï/çödé 漢.txt", "a+b%20c;d?e#f.txt", "a", "a/b", "empty"]
    data = upload(s3, bucket, "in/", {name: name.encode() for name in names[:-1]} | {"empty": b"", "folder/": b""})
    transformer = script_mode(ProcessSession(home=home), model_archive(ECHO)).transformer(1, "local")
    transformer.transform(data, content_type="text/plain", logs=False)
    expected = {name + ".out": b"[" + name.encode() + b"]" for name in names[:-1]} | {"empty.out": b"[]"}
    assert objects(s3, transformer.output_path) == expected


@pytest.mark.containers
def test_the_default_call_of_the_sdk_shows_the_logs_and_the_answers_lie_beside_no_partial_file(echo, tmp_path, capfd):
    data = write(tmp_path / "in", **{"x.txt": "x", "below/y.txt": "y", "._x.txt": "", ".below/z.txt": ""})
    transformer = echo.transformer(1, "local", output_path=f"file://{tmp_path}/out")
    transformer.transform(data, content_type="text/plain")
    assert outputs(tmp_path / "out") == {"x.txt.out": b"[x]", "below/y.txt.out": b"[y]"}
    log = capfd.readouterr().out
    assert "POST /invocations" in log
    assert f"left out 2 hidden objects of file://{tmp_path}/in" in log
    description = description_of(transformer)
    assert_answers_as("DescribeTransformJob", description)
    client = transformer.sagemaker_session.sagemaker_client
    listed = client.list_transform_jobs(StatusEquals="Completed", NameContains=description["TransformJobName"])
    assert_answers_as("ListTransformJobs", listed)
    assert [job["TransformJobName"] for job in listed["TransformJobSummaries"]] == [description["TransformJobName"]]
    assert nothing_runs_below(directory_of(transformer))


@pytest.mark.slow
def test_an_estimator_gives_a_transformer(session, digits, tmp_path):
    hyperparameters = {"arch": "convnet", "epochs": 1}
    job = estimator(  # 2.6.0, because the SDK knows of no newer image for inference
        session,
        REPOSITORY / "source",
        entry_point="entry_point.py",
        framework_version="2.6.0",
        hyperparameters=hyperparameters,
    )
    job.fit({"train": f"file://{digits}"}, logs=False)
    transformer = job.transformer(1, "local", accept="application/json", output_path=f"file://{tmp_path}/out")
    file = sorted((digits / "7").iterdir())[0]
    transformer.transform(f"file://{file}", content_type="image/png", logs=False)
    assert json.loads(outputs(tmp_path / "out")[f"{file.name}.out"])["label"] in set("0123456789")


def test_a_job_is_awaited_and_described_by_another_session(home, model_archive, tmp_path):
    model = script_mode(ProcessSession(home=home), model_archive(ECHO))
    transformer = model.transformer(1, "local", output_path=f"file://{tmp_path}/out")
    transformer.transform(write(tmp_path / "in", x="x"), content_type="text/plain", wait=False)
    assert description_of(transformer)["TransformJobStatus"] == "InProgress"
    attached = Transformer.attach(transformer.latest_transform_job.name, ProcessSession(home=home))
    attached.wait(logs=False)
    assert description_of(attached)["TransformJobStatus"] == "Completed"
    assert outputs(tmp_path / "out") == {"x.out": b"[x]"}


MANY_LINES = [f"line {n} " + "x" * 10_000 for n in range(500)]


@pytest.mark.parametrize("strategy", ["SingleRecord", "MultiRecord"])
def test_lines_go_out_as_the_strategy_says_and_come_back_in_order(echo, tmp_path, strategy):
    data = write(
        tmp_path / "in",
        many="\n".join(MANY_LINES),
        few="a\nb\r\nc\n",
        none="",
    )
    transformer = echo.transformer(
        1, "local", strategy, "Line", f"file://{tmp_path}/out", max_concurrent_transforms=3, max_payload=1
    )
    transformer.transform(data, content_type="text/plain", split_type="Line", logs=False)
    found = outputs(tmp_path / "out")
    assert found["none.out"] == b""
    answers = found["many.out"].decode()
    if strategy == "SingleRecord":
        assert answers == "".join(f"[{line}]\n" for line in MANY_LINES)
        assert found["few.out"] == b"[a]\n[b]\n[c]\n"
    else:
        payloads = re.findall(r"\[(.*?)\]\n", answers, re.DOTALL)
        assert "\n".join(payloads).split("\n") == MANY_LINES
        assert 5 <= len(payloads) <= 7  # 5 MB in payloads of up to one
        assert found["few.out"] == b"[a\nb\nc]\n"


def test_record_io_and_gzip_are_taken_apart(echo, tmp_path):
    stream = io.BytesIO()
    for record in (b"one", b"three", b"fourteen"):
        _write_recordio(stream, record)
    folder = tmp_path / "in"
    write(folder, **{"records.gz": gzip.compress(stream.getvalue()), "broken.gz": b"no gzip", "cut.gz": b""})
    (folder / "cut.gz").write_bytes(gzip.compress(stream.getvalue()[:-3]))
    transformer = echo.transformer(1, "local", "SingleRecord", "Line", f"file://{tmp_path}/out")
    arguments = {"content_type": "application/x-recordio", "split_type": "RecordIO", "compression_type": "Gzip"}
    reason = failure(transformer, f"file://{folder}", **arguments)
    assert "2 of 3 objects failed" in reason
    assert "broken.gz: it is no whole gzip file" in reason
    assert outputs(tmp_path / "out") == {"records.gz.out": b"[one]\n[three]\n[fourteen]\n"}


def test_an_object_that_fails_loses_the_answer_of_an_earlier_job(place, home, model_archive, tmp_path):
    data = write(tmp_path / "in", **{"good.gz": gzip.compress(b"new"), "fails.gz": b"no gzip"})
    for name in ("good.gz.out", "fails.gz.out", "of another.out"):
        place.put(name, b"old")
    transformer = script_mode(ProcessSession(home=home), model_archive(ECHO)).transformer(
        1, "local", output_path=place.uri
    )
    assert "1 of 2 objects failed" in failure(transformer, data, content_type="text/plain", compression_type="Gzip")
    assert place.names() == {"good.gz.out", "of another.out"}
    with manifest_script.listed("S3Prefix", data) as inputs:
        assert list(inputs.unanswered(place.uri)) == ["fails.gz"]  # what --retry-failed asks about


@pytest.mark.containers
def test_json_lines_are_filtered_joined_and_filtered_again(session, model_archive, tmp_path):
    lines = [json.dumps({"id": f"r{n}", "features": {"n": n}}) for n in range(250)]
    data = write(tmp_path / "in", **{"all.jsonl": "\n".join(lines)})
    model = script_mode(session, model_archive(JSON_LINES))
    accept = "application/jsonlines"
    transformer = model.transformer(
        1, "local", "MultiRecord", "Line", f"file://{tmp_path}/out", accept=accept, max_concurrent_transforms=4
    )
    transformer.transform(
        data,
        content_type=accept,
        split_type="Line",
        input_filter="$.features",
        join_source="Input",
        output_filter="$['id','SageMakerOutput']",
        logs=False,
    )
    found = [json.loads(line) for line in outputs(tmp_path / "out")["all.jsonl.out"].splitlines()]
    assert found == [{"id": f"r{n}", "SageMakerOutput": {"n": 10 * n}} for n in range(250)]


def test_csv_is_joined_row_by_row_and_a_join_of_unequal_counts_fails_its_object(session, model_archive, tmp_path):
    model = """
    def model_fn(model_dir): return None
    def input_fn(body, content_type): return body if isinstance(body, str) else bytes(body).decode()
    def predict_fn(text, model): return [str(sum(map(float, line.split(",")))) for line in text.split("\\n") if line]
    def output_fn(sums, accept): return "\\n".join(s for s in sums if s != "13.0"), "text/csv"
    """
    data = write(tmp_path / "in", **{"good.csv": 'a,1,2\n"b, quoted",3,4\n', "unlucky.csv": "c,1,2\nd,6,7\n"})
    transformer = script_mode(session, model_archive(model)).transformer(
        1, "local", "MultiRecord", "Line", f"file://{tmp_path}/out", accept="text/csv"
    )
    arguments = {"input_filter": "$[1:]", "join_source": "Input", "output_filter": "$[0,-1]"}
    reason = failure(transformer, data, content_type="text/csv", split_type="Line", **arguments)
    assert "unlucky.csv: JoinSource: 2 records went to the model and 1 answers came back" in reason
    assert outputs(tmp_path / "out") == {"good.csv.out": b'a,3.0\n"b, quoted",7.0\n'}


def overlaps(answers: list[dict]) -> int:
    """The largest number of answers that were being worked on at once."""
    events = sorted([(a["start"], 1) for a in answers] + [(a["end"], -1) for a in answers])
    at_once = [0]
    for _, change in events:
        at_once.append(at_once[-1] + change)
    return max(at_once)


@pytest.mark.parametrize(("concurrency", "seconds"), [(None, "0.1"), (3, "1.5")])  # long enough to meet
def test_as_many_requests_are_under_way_as_the_job_allows(session, model_archive, tmp_path, concurrency, seconds):
    model = script_mode(session, model_archive(SLOW), SAGEMAKER_MODEL_SERVER_WORKERS="3", SECONDS_FOR_ONE=seconds)
    data = write(tmp_path / "in", **{f"{n}": str(n) for n in range(6)}, lines="a\nb\nc\nd\ne\nf")
    arguments = {"max_concurrent_transforms": concurrency} if concurrency else {}
    transformer = model.transformer(1, "local", "SingleRecord", "Line", f"file://{tmp_path}/out", **arguments)
    transformer.transform(data, content_type="text/plain", split_type="Line", logs=False)
    answers = [json.loads(line) for text in outputs(tmp_path / "out").values() for line in text.splitlines()]
    assert len(answers) == 12
    assert overlaps(answers) == (concurrency or 1)
    lines = [json.loads(line) for line in outputs(tmp_path / "out")["lines.out"].splitlines()]
    assert [answer["body"] for answer in lines] == list("abcdef")
    if concurrency:
        assert overlaps(lines) > 1


@pytest.mark.containers
def test_a_container_knows_that_it_serves_a_batch_job(session, model_archive, tmp_path):
    model = """
    import json, os
    def model_fn(model_dir): return None
    def input_fn(body, content_type): return content_type
    def predict_fn(content_type, model): return {"type": content_type, **os.environ}
    def output_fn(answer, accept): return json.dumps({"accept": accept, **answer}), accept
    """
    model = script_mode(session, model_archive(model), OF_THE_MODEL="kept", OF_BOTH="model")
    transformer = model.transformer(
        1, "local", "SingleRecord", None, f"file://{tmp_path}/out", accept="application/json", max_payload=7,
        max_concurrent_transforms=2, env={"OF_BOTH": "job"},
    )  # fmt: skip
    transformer.transform(write(tmp_path / "in", x="x"), content_type="text/x-test", logs=False)
    seen = json.loads(outputs(tmp_path / "out")["x.out"])
    expected = {
        "type": "text/x-test",
        "accept": "application/json",
        "OF_THE_MODEL": "kept",
        "OF_BOTH": "job",
        "SAGEMAKER_BATCH": "true",
        "SAGEMAKER_BATCH_STRATEGY": "SINGLE_RECORD",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "7",
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "2",
    }
    assert expected.items() <= seen.items()


FLAKY = """
import os, pathlib, time
from sagemaker_inference.errors import BaseInferenceToolkitError
def model_fn(model_dir): return pathlib.Path(model_dir)
def input_fn(body, content_type): return bytes(body).decode()
def predict_fn(name, counts):
    tries = counts / name
    tries.write_text((tries.read_text() if tries.exists() else "") + "x")
    if name == "slow": time.sleep(8)
    if name == "wrong": raise BaseInferenceToolkitError(400, "that is wrong", "no")
    if name == "always" or len(tries.read_text()) < 3: raise RuntimeError("a passing weakness")
    return tries.read_text()
def output_fn(tries, accept): return tries, "text/plain"
"""


def test_what_may_pass_is_tried_again_as_often_as_the_job_says(session, model_archive, tmp_path):
    data = write(tmp_path / "in", **{name: name for name in ("good", "slow", "wrong", "always")})
    output = f"file://{tmp_path}/out"
    model = script_mode(session, model_archive(FLAKY), SAGEMAKER_MODEL_SERVER_WORKERS="4")
    transformer = model.transformer(1, "local", output_path=output, max_concurrent_transforms=4)
    config = {"InvocationsMaxRetries": 2, "InvocationsTimeoutInSeconds": 3}
    reason = failure(transformer, data, content_type="text/plain", model_client_config=config)
    assert outputs(tmp_path / "out") == {"good.out": b"xxx"}
    assert "3 of 4 objects failed" in reason
    with open(directory_of(transformer) / "failures.jsonl") as file:
        errors = {row["key"]: row["error"] for row in map(json.loads, file)}
    assert errors["wrong"].startswith("400: that is wrong")
    assert errors["slow"] == "no answer within 3 s (tried 3 times)"
    assert errors["always"].startswith("500:")
    assert errors["always"].endswith("(tried 3 times)")


@pytest.fixture
def images_on_s3(s3, bucket, digits):
    """100 digits, of which 11 are cut off; the names of those and their whole images."""
    images = digits_of(digits, 100)
    broken = sorted(images)[4::9]
    upload(s3, bucket, "in/", images | {name: images[name][:60] for name in broken})
    return {name: images[name] for name in broken}


@pytest.mark.server
def test_broken_objects_fail_the_job_and_a_retry_leaves_the_others_untouched(
    s3, bucket, images_on_s3, digits_archive, tmp_path
):
    def run(*words):
        env = {**os.environ, "FASTMAKER_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "fastmaker.jobs", "transform", *words]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    def etags():
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="out/")
        return {item["Key"]: (item["ETag"], item["LastModified"]) for page in pages for item in page["Contents"]}

    places = ["--data", f"s3://{bucket}/in/", "--output", f"s3://{bucket}/out", "--job-name", "nightly"]
    first = run("--model", str(digits_archive), *places, "--collect", "answers.jsonl")
    assert first.returncode == 1, first.stderr
    assert f"11 of 100 objects failed, the first is s3://{bucket}/in/{min(images_on_s3)}: 400:" in first.stderr
    assert re.search(r"answers +89\nfailures +11\n", first.stdout)
    before = etags()
    assert len(before) == 89
    with open(tmp_path / "answers.jsonl") as file:
        collected = {row["key"]: row for row in map(json.loads, file)}
    assert len(collected) == 100
    assert {key for key, row in collected.items() if "error" in row} == images_on_s3.keys()

    upload(s3, bucket, "in/", images_on_s3)
    again = run("--retry-failed", "nightly", "--collect", "answers.csv", "--picture", "answers.png")
    assert again.returncode == 0, again.stderr
    assert "transforming 11 of 100 objects" in again.stdout
    after = etags()
    assert len(after) == 100
    assert {key: after[key] for key in before} == before
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 101
    assert "all 100 objects of nightly have answers" in run("--retry-failed", "nightly").stdout


@pytest.mark.parametrize(
    "victim", ["org.pytorch.serve.ModelServer", pytest.param("model_service_worker", marks=pytest.mark.slow)]
)
def test_a_server_or_worker_that_is_killed_loses_nothing_and_nothing_is_written_twice(
    s3, bucket, home, write_script, tmp_path, victim
):
    """Nor does it need its model any more, which goes with the archive that was packed for it."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    names = [f"{n:03}" for n in range(120)]
    data = upload(s3, bucket, "in/", {name: name.encode() for name in names})
    pack(write_script(""), tmp_path / "model.tar.gz")
    code = {"entry_point": "inference.py", "source_dir": str(write_script("", **{"inference.py": SLOW}))}
    session = ProcessSession(home=home)
    model = bundle_model(session, tmp_path / "model.tar.gz", env={"SECONDS_FOR_ONE": "0.1"}, **code)
    transformer = model.transformer(1, "local", output_path=f"s3://{bucket}/out", max_concurrent_transforms=2)
    arguments = {"model_client_config": {"InvocationsMaxRetries": 0 if "Server" in victim else 3}}
    transformer.transform(data, content_type="text/plain", wait=False, **arguments)
    session.sagemaker_client.delete_model(ModelName=model.name)
    assert not Path(model.repacked_model_data.removeprefix("file://")).exists()
    wait_until(lambda: s3.list_objects_v2(Bucket=bucket, Prefix="out/")["KeyCount"] > 10)
    found = running_below(directory_of(transformer), victim)
    found[0].send_signal(signal.SIGKILL)
    transformer.wait(logs=False)
    assert description_of(transformer)["TransformJobStatus"] == "Completed"
    versions = s3.list_object_versions(Bucket=bucket, Prefix="out/")["Versions"]
    assert sorted(version["Key"] for version in versions) == [f"out/{name}.out" for name in names]
    assert {json.loads(body)["body"] for body in objects(s3, f"s3://{bucket}/out").values()} == set(names)


@pytest.mark.containers
@pytest.mark.parametrize("moment", ["starting", "at work"])
def test_a_job_that_is_stopped_keeps_what_is_whole_and_leaves_nothing_running(session, model_archive, tmp_path, moment):
    data = write(tmp_path / "in", **{f"{n}": "x" * 1000 for n in range(500)})
    model = script_mode(session, model_archive(SLOW), SECONDS_FOR_ONE="1")
    transformer = model.transformer(2, "local", output_path=f"file://{tmp_path}/out", max_concurrent_transforms=2)
    transformer.transform(data, content_type="text/plain", wait=False)
    if moment == "at work":
        wait_until(lambda: len(outputs(tmp_path / "out")) > 3)
    transformer.stop_transform_job()
    assert description_of(transformer)["TransformJobStatus"] == "Stopped"
    assert nothing_runs_below(directory_of(transformer))
    found = outputs(tmp_path / "out")
    assert all(name.endswith(".out") and json.loads(body)["body"] == "x" * 1000 for name, body in found.items())
    assert len(found) < 500


def test_ctrl_c_stops_the_job(home, model_archive, tmp_path):
    data = write(tmp_path / "in", **{f"{n}": "x" for n in range(500)})
    archive = model_archive(SLOW)
    program = f"""
    import signal, sys
    sys.path.insert(0, "tests")
    from helpers.local_mode import nothing_runs_below, script_mode
    from fastmaker.local import ProcessSession
    signal.signal(signal.SIGINT, signal.default_int_handler)
    model = script_mode(ProcessSession(home={str(home)!r}), {str(archive)!r})
    transformer = model.transformer(1, "local", output_path="file://{tmp_path}/out")
    transformer.transform({data!r}, job_name="to-be-interrupted", content_type="text/plain")
    """
    script = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=REPOSITORY)
    wait_until(lambda: outputs(tmp_path / "out"))
    script.send_signal(signal.SIGINT)
    assert script.wait(PATIENCE) != 0
    client = ProcessSession(home=home).sagemaker_client
    description = client.describe_transform_job(TransformJobName="to-be-interrupted")
    assert description["TransformJobStatus"] == "Stopped"
    assert nothing_runs_below(client.transform_jobs.directory("to-be-interrupted"))


def test_a_job_whose_own_process_is_killed_is_failed_and_leaves_nothing_running(session, model_archive, tmp_path):
    data = write(tmp_path / "in", **{f"{n}": "x" for n in range(500)})
    transformer = script_mode(session, model_archive(SLOW)).transformer(
        1, "local", output_path=f"file://{tmp_path}/out"
    )
    transformer.transform(data, content_type="text/plain", wait=False)
    wait_until(lambda: outputs(tmp_path / "out"))
    record = session.sagemaker_client.transform_jobs.read(transformer.latest_transform_job.name)
    os.kill(record["supervisor"]["pid"], signal.SIGKILL)
    wait_until(lambda: description_of(transformer)["TransformJobStatus"] == "Failed")
    assert "the process that ran the job has died" in description_of(transformer)["FailureReason"]
    assert nothing_runs_below(directory_of(transformer))


def test_no_half_written_output_is_ever_seen(session, model_archive, tmp_path):
    size = 4_000_000
    big = f"""
    def model_fn(model_dir): return None
    def input_fn(body, content_type): return b""
    def predict_fn(body, model): return b"x" * {size}
    def output_fn(body, accept): return body, "text/plain"
    """
    data = write(tmp_path / "in", **{f"{n}": "x" for n in range(40)})
    model = script_mode(session, model_archive(big), TS_MAX_RESPONSE_SIZE="10000000")
    transformer = model.transformer(1, "local", output_path=f"file://{tmp_path}/out", max_concurrent_transforms=4)
    seen, done = set(), threading.Event()

    def watch():
        while not done.is_set():
            seen.update(file.stat().st_size for file in (tmp_path / "out").glob("*.out"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        transformer.transform(data, content_type="text/plain", logs=False)
    finally:
        done.set()
        watcher.join()
    assert seen == {size}
    assert len(outputs(tmp_path / "out")) == 40


def test_a_content_type_that_the_model_refuses_ends_the_job_at_the_first_object(
    session, digits_archive, digits, tmp_path
):
    transformer = bundle_model(session, digits_archive).transformer(1, "local", output_path=f"file://{tmp_path}/out")
    reason = failure(transformer, f"file://{digits}", content_type="text/plain")
    assert reason.startswith("ClientError: no object was transformed: the model answers 415:")
    assert "\n" not in reason
    (container,) = transform_jobs.containers(
        session.sagemaker_client.transform_jobs, transformer.latest_transform_job.name
    )
    assert container.log.read_text().count("POST /invocations") < 10
    assert outputs(tmp_path / "out") == {}


@pytest.mark.containers
def test_a_model_that_cannot_be_loaded_fails_the_job_with_its_reason(session, model_archive, tmp_path):
    broken = ECHO.replace("return None", "raise RuntimeError('no weights')")
    transformer = script_mode(session, model_archive(broken)).transformer(2, "local", output_path=f"file://{tmp_path}")
    reason = failure(transformer, write(tmp_path / "in", x="x"), content_type="text/plain")
    assert reason.startswith("AlgorithmError: the model could not be loaded: RuntimeError: no weights")
    assert nothing_runs_below(directory_of(transformer))


def test_an_object_larger_than_the_payload_fails_and_says_so(echo, tmp_path):
    data = write(tmp_path / "in", large="x" * (2**20 + 1), small="x")
    transformer = echo.transformer(1, "local", output_path=f"file://{tmp_path}/out", max_payload=1)
    reason = failure(transformer, data, content_type="text/plain")
    assert "large: the object is larger than MaxPayloadInMB, which is 1 MB" in reason
    assert outputs(tmp_path / "out") == {"small.out": b"[x]"}


def test_torchserves_own_limit_is_explained(echo, tmp_path):
    data = write(tmp_path / "in", large="x" * 7_000_000)
    transformer = echo.transformer(1, "local", output_path=f"file://{tmp_path}/out", max_payload=10)
    assert "413 (TorchServe takes TS_MAX_REQUEST_SIZE bytes" in failure(transformer, data, content_type="text/plain")
    transformer.env = {"TS_MAX_REQUEST_SIZE": "11000000", "TS_MAX_RESPONSE_SIZE": "11000000"}
    transformer.transform(data, content_type="text/plain", logs=False)
    assert len(outputs(tmp_path / "out")["large.out"]) == 7_000_002


def manifest(*items) -> str:
    return json.dumps(list(items))


# The manifest's text, in which IN is the URI of a folder with x, and what is said about it.
BAD_MANIFESTS = [
    ("{", "it is b'{'; expected one JSON array"),
    ('[{"prefix": "IN/"}, "x"', "not JSON: "),
    ('{"prefix": "IN/"}\n"x"\n', "it is JSON lines, in place of one array"),
    (manifest("x", "y"), "its first element is 'x'; expected one JSON array"),
    (manifest({"prefix": "IN"}, "x"), "the prefix 'IN' does not end where keys begin"),
    (manifest({"prefix": "IN/"}, "x", "z", "y"), "2 of its 3 keys are not there, the first is IN/z"),
    (manifest({"prefix": "IN/"}, "x", "x"), "element 3, 'x', stood there before"),
    (manifest({"prefix": "IN/"}), "it names no key after its prefix"),
]


@pytest.mark.containers
@pytest.mark.parametrize(("text", "reason"), BAD_MANIFESTS, ids=[reason for _, reason in BAD_MANIFESTS])
def test_a_bad_manifest_is_refused_in_one_line_before_a_server_starts(echo, tmp_path, text, reason):
    data = write(tmp_path / "in", x="x")
    write(tmp_path, **{"a.manifest": text.replace("IN", data)})
    transformer = echo.transformer(1, "local", output_path=f"file://{tmp_path}/out")
    said = failure(transformer, f"file://{tmp_path}/a.manifest", "ManifestFile", content_type="text/plain")
    assert reason.replace("IN", data) in said
    assert "\n" not in said
    assert not list(directory_of(transformer).glob("instance-*"))


BAD_REQUESTS = [
    ({"data_type": "AugmentedManifestFile"}, {}, "S3DataType is 'AugmentedManifestFile'; expected one of S3Prefix"),
    ({"split_type": "TFRecord"}, {}, "SplitType is 'TFRecord'; expected one of None, Line, RecordIO"),
    ({}, {"max_concurrent_transforms": 11, "max_payload": 10}, "is 110 MB; expected at most 100"),
    ({}, {"max_payload": 101}, "MaxPayloadInMB is 101; expected at most 100"),
    ({}, {"instance_count": 101}, "InstanceCount is 101; expected at most 100"),
    ({}, {"instance_type": "ml.g4dn.xlarge"}, "a ProcessSession runs local and local_gpu"),
    ({}, {"strategy": "Both"}, "Member must satisfy enum value set: [MultiRecord"),
    ({}, {"output_path": "ftp://out"}, "expected a URI that begins with s3:// or file://"),
    ({}, {"output_path": None}, "is no place outside of AWS; expected output_path='file:///...'"),
    ({"data": "file:///nowhere/at/all"}, {}, "no such file or directory"),
    ({"join_source": "Input"}, {}, "DataProcessing needs a ContentType of text/csv, application/json"),
    ({"input_filter": "$..n", "content_type": "text/csv"}, {}, "recursive descent"),
    ({"output_filter": "n[", "content_type": "text/csv"}, {}, "OutputFilter 'n[': no JSONPath"),
    (
        {"join_source": "Input", "content_type": "text/csv"},
        {"accept": "application/json"},
        "DataProcessing cannot join text/csv with application/json",
    ),
    ({"model_client_config": {"InvocationsMaxRetries": 4}}, {}, "Member must have value less than or equal to 3"),
]


@pytest.mark.parametrize(("call", "job", "reason"), BAD_REQUESTS, ids=[reason for _, _, reason in BAD_REQUESTS])
def test_a_request_that_cannot_be_met_is_refused_and_no_job_is_made(home, model_archive, tmp_path, call, job, reason):
    session = ProcessSession(home=home / "refused")
    job = {"instance_count": 1, "instance_type": "local", "output_path": f"file://{tmp_path}/out", **job}
    transformer = script_mode(session, model_archive(ECHO)).transformer(**job)
    call = {"data": write(tmp_path / "in", x="x"), "content_type": "text/plain", **call}
    with pytest.raises(ClientError, match=re.escape(reason)) as caught:
        transformer.transform(**call)
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    assert "\n" not in str(caught.value)
    assert session.sagemaker_client.list_transform_jobs()["TransformJobSummaries"] == []


def test_an_output_that_cannot_be_written_is_refused_before_a_server_starts(s3, home, model_archive, tmp_path):
    data = write(tmp_path / "in", x="x")
    session = ProcessSession(home=home)
    for output, why in (("s3://no-such-bucket/out", "NoSuchBucket"), (f"{data}/x/out", "no directory")):
        transformer = script_mode(session, model_archive(ECHO, name=why)).transformer(1, "local", output_path=output)
        said = failure(transformer, data, content_type="text/plain")
        assert output in said
        assert why in said
        assert not list(directory_of(transformer).glob("instance-*"))


def test_a_prefix_without_objects_is_refused(s3, bucket, home, model_archive):
    transformer = script_mode(ProcessSession(home=home), model_archive(ECHO)).transformer(1, "local")
    with pytest.raises(ClientError, match=f'No S3 objects found under S3 URL "s3://{bucket}/nothing"'):
        transformer.transform(f"s3://{bucket}/nothing", content_type="text/plain")


def test_a_name_is_given_once(echo, tmp_path):
    transformer = echo.transformer(1, "local", output_path=f"file://{tmp_path}/out")
    data = write(tmp_path / "in", x="x")
    transformer.transform(data, content_type="text/plain", job_name="given-once", logs=False)
    with pytest.raises(ClientError, match="given-once exists"):
        transformer.transform(data, content_type="text/plain", job_name="given-once")
    client = transformer.sagemaker_session.sagemaker_client
    client.delete_transform_job(TransformJobName="given-once")
    assert outputs(tmp_path / "out") == {"x.out": b"[x]"}
    with pytest.raises(ClientError, match="Could not find transform job"):
        client.describe_transform_job(TransformJobName="given-once")


def test_inputs_change_while_a_job_runs_and_what_is_gone_fails_alone(session, model_archive, tmp_path):
    data = write(tmp_path / "in", **{f"{n}": str(n) for n in range(20)})
    transformer = script_mode(session, model_archive(SLOW)).transformer(
        1, "local", output_path=f"file://{tmp_path}/out"
    )
    transformer.transform(data, content_type="text/plain", wait=False)
    wait_until(lambda: outputs(tmp_path / "out"))
    (tmp_path / "in" / "9").unlink()
    with pytest.raises(UnexpectedStatusException, match=r"1 of 20 objects failed, the first is .*/9: No such file"):
        transformer.wait(logs=False)
    assert len(outputs(tmp_path / "out")) == 19

"""Run a batch transform job: ``fastmaker transform --model JOB_OR_MODEL --data FOLDER_OR_URI|--manifest FILE``.

Each object becomes ``<its name>.out`` at --output. ``--collect`` joins all answers to their keys in one file, and
``--retry-failed JOB`` runs a job again for the objects that have no answer.
"""

import argparse
import csv
import io
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonlines
from PIL import Image, UnidentifiedImageError

from fastmaker.jobs import backends, deploy, manifest, storage
from fastmaker.jobs.cli import errors, pictures, tables
from fastmaker.jobs.storage.listings import Inputs

SHOWN = 20  # answers in the contact sheet
READERS = 16  # answers that are read at once
CHUNK = 1000  # answers that are held at once
BINARY = ("image/png", "application/x-npy")  # answers that are no text, which alone can be collected
PIXELS = "pixels_"  # begins the CSV's columns of the classes of masks


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="fastmaker transform",
        description="Run a batch transform job over a folder, an S3 prefix or a manifest.",
        epilog="example: fastmaker transform --model digits --data s3://bucket/digits/ --collect answers.csv",
    )
    backends.add_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", help="a folder, or a file:// or s3:// prefix: every object in it is used")
    what.add_argument("--manifest", help="a manifest's file or URI; see fastmaker manifest")
    what.add_argument("--retry-failed", metavar="JOB", help="run this job again for what has no answer")
    parser.add_argument("--model", help="a training job, a model directory, a model.tar.gz or its URI")
    parser.add_argument("--output", help="folder or URI for the answers (default: answers/JOB, or S3 for S3 inputs)")
    parser.add_argument("--job-name", help="(default: made from the time)")
    parser.add_argument("--instance-count", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--max-concurrent-transforms", type=int, default=4, help="requests at once (%(default)s)")
    parser.add_argument("--max-payload", type=int, default=6, help="MB of one request (default: %(default)s)")
    parser.add_argument("--content-type", default="application/x-image", help="of the objects (default: %(default)s)")
    parser.add_argument("--accept", default="application/json", help="of the answers (default: %(default)s)")
    parser.add_argument("--compression-type", choices=("None", "Gzip"), help="of the objects")
    parser.add_argument("--split-type", choices=("None", "Line", "RecordIO"), help="how objects hold records")
    parser.add_argument("--strategy", choices=("MultiRecord", "SingleRecord"), help="records of one request")
    parser.add_argument("--assemble-with", choices=("None", "Line"), help="what ends each answer of an object")
    parser.add_argument("--input-filter", help="JSONPath: what of a record the model gets")
    parser.add_argument("--output-filter", help="JSONPath: what of an answer is stored")
    parser.add_argument("--join-source", choices=("None", "Input"), help="join the answers to their records")
    parser.add_argument("--max-retries", type=int, help="of a request that fails (default: 3)")
    parser.add_argument("--timeout", type=int, help="seconds for an answer (default: 600)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the container")
    parser.add_argument("--collect", type=Path, metavar="FILE", help="all answers with their keys: .jsonl or .csv")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a contact sheet of images with their answers")
    args = parser.parse_args(argv)
    deploy.check_container_arguments(parser, args)
    if not args.retry_failed and not args.model:
        parser.error("--model is needed: a training job, a model directory or a model.tar.gz")
    if args.collect and args.collect.suffix not in (".jsonl", ".csv"):
        parser.error(f"--collect {args.collect}: expected a name that ends with .jsonl or .csv")
    if args.collect and not args.retry_failed and (reason := _not_collectable(args.accept)):
        parser.error(reason)
    return args


def main(args) -> str | None:
    """Run the job; returns its name, None if there was nothing to do. Raises UnexpectedStatusException if it fails."""
    with backends.backend(args) as backend:
        if args.retry_failed:
            return _retry(args, backend)
        kind, source = ("S3Prefix", args.data) if args.data else ("ManifestFile", args.manifest)
        source = storage.uri_of(source)
        with manifest.listed(kind, source) as inputs:
            return _run(args, backend, kind, source, inputs)


def _run(args, backend, kind: str, source: str, inputs: Inputs) -> str | None:
    from sagemaker.utils import name_from_base

    found = deploy.locate(args.model, lambda: backend.session)
    job = args.job_name or name_from_base("fastmaker")
    if not backend.check("transform", job, args.instance_count, [storage.uri_of(str(found))], [args.output]):
        return None
    archive = backend.upload(deploy.model_archive(found), "transform-job", job, "model")
    model = deploy.model_for(archive, args, backend)
    source = backend.upload(source, "transform-job", job, "inputs")
    output = storage.uri_of(args.output) if args.output else backend.answers(job, source)
    transformer = _transformer(args, model, output, backend.tags(job))
    print(f"transforming {inputs.count} objects of {source} on {args.instance_count} x {args.instance_type}")
    backend.print_cost_notice("transform-job", job)
    arguments = {"job_name": job, "wait": not backend.dry_run, "logs": False, **_transform_arguments(args)}
    try:
        transformer.transform(source, kind, **arguments)
    finally:
        if not backend.dry_run:
            _report(args, backend, job, inputs, inputs.count)
    return job


def _retry(args, backend) -> str | None:
    from sagemaker.transformer import Transformer
    from sagemaker.utils import name_from_base

    description = backend.session.sagemaker_client.describe_transform_job(TransformJobName=args.retry_failed)
    if (status := description["TransformJobStatus"]) in ("InProgress", "Stopping"):
        raise ValueError(f"transform job {args.retry_failed} is {status}; only one that has ended can be retried")
    if args.collect and (reason := _not_collectable(description["TransformOutput"].get("Accept", ""))):
        raise ValueError(reason)
    source = description["TransformInput"]["DataSource"]["S3DataSource"]
    output = description["TransformOutput"]["S3OutputPath"].rstrip("/")
    with manifest.listed(source["S3DataType"], source["S3Uri"]) as inputs:
        if backend.dry_run:
            missing = sum(1 for _ in inputs.unanswered(output))
            print(f"would transform {missing} of {inputs.count} objects, those without an answer")
            return None
        failed = f"{output}-retry.json"
        count = manifest.write(failed, inputs.prefix, inputs.unanswered(output))
        if not count:
            print(f"all {inputs.count} objects of {args.retry_failed} have answers")
            return None
        print(f"transforming {count} of {inputs.count} objects, those without an answer: {failed}")
        transformer = Transformer.attach(args.retry_failed, backend.session)
        transformer.env = description.get("Environment")
        job = args.job_name or name_from_base(args.retry_failed)
        transformer.tags = backend.tags(job)
        backend.print_cost_notice("transform-job", job)
        arguments = _described_arguments(description)
        try:
            transformer.transform(failed, "ManifestFile", job_name=job, logs=False, **arguments)
        finally:
            _report(args, backend, job, inputs, count)
    return job


def _not_collectable(accept: str) -> str | None:
    """Why --collect cannot hold answers of this type, None if it can."""
    if accept.strip().lower() not in BINARY:
        return None
    return f"--collect goes with --accept application/json, application/jsonlines or text/csv, not {accept}"


def _transformer(args, model, output: str | None, tags: list[dict] | None):
    """The SDK's Transformer."""
    env = dict(pair.split("=", 1) for pair in args.env)
    if args.max_payload > 6:  # TorchServe's own limit is 6553500 bytes
        env.setdefault("TS_MAX_REQUEST_SIZE", str((args.max_payload + 1) * 2**20))
    return model.transformer(
        args.instance_count,
        args.instance_type,
        strategy=args.strategy,
        assemble_with=args.assemble_with,
        output_path=output,
        accept=args.accept,
        env=env,
        max_concurrent_transforms=args.max_concurrent_transforms,
        max_payload=args.max_payload,
        tags=tags,
    )


def _transform_arguments(args) -> dict:
    client = {"InvocationsMaxRetries": args.max_retries, "InvocationsTimeoutInSeconds": args.timeout}
    return {
        "content_type": args.content_type,
        "compression_type": args.compression_type,
        "split_type": args.split_type,
        "input_filter": args.input_filter,
        "output_filter": args.output_filter,
        "join_source": args.join_source,
        "model_client_config": {name: value for name, value in client.items() if value is not None} or None,
    }


def _described_arguments(description: dict) -> dict:
    """The arguments of `transform` that made a job of this description."""
    source, processing = description["TransformInput"], description.get("DataProcessing", {})
    return {
        "content_type": source.get("ContentType"),
        "compression_type": source.get("CompressionType"),
        "split_type": source.get("SplitType"),
        "input_filter": processing.get("InputFilter"),
        "output_filter": processing.get("OutputFilter"),
        "join_source": processing.get("JoinSource"),
        "model_client_config": description.get("ModelClientConfig"),
    }


def _report(args, backend, job: str, inputs: Inputs, asked: int) -> None:
    """What there is to show of a job that has ended, well or not, and was asked about so many of the inputs.

    Nothing if it was never made.
    """
    from botocore.exceptions import ClientError

    try:
        description = backend.session.sagemaker_client.describe_transform_job(TransformJobName=job)
    except ClientError:
        return
    if "TransformEndTime" not in description or "TransformStartTime" not in description:
        return
    output = description["TransformOutput"]["S3OutputPath"]
    seconds = (description["TransformEndTime"] - description["TransformStartTime"]).total_seconds()
    missing = sum(1 for _ in inputs.unanswered(output))
    answers = inputs.count - missing
    rows = [
        ["objects", inputs.count],
        ["answers", answers],
        ["failures", missing],
        ["seconds, start included", round(seconds, 1)],
        ["objects/s", round((asked - missing) / seconds, 1) if seconds else "-"],
    ]
    print("\n" + tables.table(["job", job], [[name, str(value)] for name, value in rows]))
    print(f"\nanswers: {output}")
    if args.collect:
        collect(inputs, output, args.collect)
        print(f"collected: {args.collect}")
    if args.picture and answers:
        save_picture(inputs, output, args.picture)
        print(f"picture: {args.picture}")
    if missing:
        print(f"next:    fastmaker transform{backend.cli_flags} --retry-failed {args.retry_failed or job}")


def collect(inputs: Inputs, output: str, file: Path) -> None:
    """Write every object's key with its answer, or with an `error` where it has none, as JSON lines or CSV.

    JSON lines hold the answers as they are. CSV has a row for each image, of several in one object with the same key,
    and holds a mask as the pixels of each class, ``pixels_<class>``.
    """
    rows = _rows(inputs, output)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        with jsonlines.open(file, "w") as writer:
            writer.write_all(rows)
        return
    columns = {"key": None}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:  # the last row may bring a column
        for cells in map(_cells, itertools.chain.from_iterable(map(_by_image, rows))):
            columns |= dict.fromkeys(cells)
            spool.write(json.dumps(cells) + "\n")
        spool.seek(0)
        columns = [name for name in columns if name != "error"] + ["error"]
        with open(file, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(_with_zeros(json.loads(line), columns) for line in spool)


def _by_image(row: dict) -> list[dict]:
    """A row of `_rows` for each image that its object holds."""
    if not isinstance(answers := row.get("answer"), list) or not answers:
        return [row]
    return [_keyed(row["key"], answer) for answer in answers]


def _cells(row: dict) -> dict:
    """What a table shows of an image's row: of a mask the pixels of each class, of all else what is no list."""
    if {"base64_prediction", "classes"} <= row.keys():
        return {"key": row["key"]} | {PIXELS + found["label"]: found["pixels"] for found in row["classes"]}
    return {name: value for name, value in row.items() if not isinstance(value, list | dict)}


def _with_zeros(cells: dict, columns: list[str]) -> dict:
    """The cells with 0 for the classes that a mask has no pixel of; an object without an answer has no mask."""
    return cells if "error" in cells else {name: 0 for name in columns if name.startswith(PIXELS)} | cells


def save_picture(inputs: Inputs, output: str, file: Path) -> None:
    """Write a contact sheet of images from all over the job, each with its answer."""
    step = max(1, inputs.count // SHOWN)
    names = itertools.islice((name for name, _ in inputs), 0, None, step)
    cards = []
    for name in itertools.islice(names, SHOWN):
        row = _row(output, name)
        label, probability = tables.summarize(row)
        caption = row.get("error") or (label if probability is None else f"{label}  ({probability:.3f})")
        with storage.open_object(inputs.prefix + name) as stream:
            try:
                image = Image.open(io.BytesIO(stream.read()))
                cards.append(pictures.captioned(image, caption, 112))
            except (UnidentifiedImageError, OSError):
                continue
    if cards:
        file.parent.mkdir(parents=True, exist_ok=True)
        pictures.contact_sheet(cards, columns=min(5, len(cards))).save(file)


def _rows(inputs: Inputs, output: str) -> Iterator[dict]:
    names = (name for name, _ in inputs)
    with ThreadPoolExecutor(READERS) as pool:
        while chunk := list(itertools.islice(names, CHUNK)):
            yield from pool.map(lambda name: _row(output, name), chunk)


def _row(output: str, name: str) -> dict:
    try:
        with storage.open_object(storage.join(output, name + ".out")) as stream:
            answer = stream.read().decode("utf-8", "replace")
    except storage.StorageError:
        return {"key": name, "error": "no answer"}
    try:
        answer = json.loads(answer)
    except ValueError:
        answer = answer.strip()
    return _keyed(name, answer)


def _keyed(name: str, answer) -> dict:
    return {"key": name, **answer} if isinstance(answer, dict) else {"key": name, "answer": answer}


if __name__ == "__main__":
    errors.run(sys.modules[__name__])

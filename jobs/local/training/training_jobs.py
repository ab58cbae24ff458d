"""Training jobs: ``python -m fastmaker.local.training.training_jobs JOB_DIRECTORY`` runs one, in a process of its own.

That process outlives the one that called ``fit``, so that any process can describe, await and stop the job. The order
of events and the places of files are those of a training job on AWS
(https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html).
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import time
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from fastmaker.jobs import instance_types, storage
from fastmaker.jobs.runtime import mounts, server_log
from fastmaker.local import supervisor
from fastmaker.local.containers import Container, ContainerError, end_below, free_ports, pack, stop_processes
from fastmaker.local.store import Store, now
from fastmaker.local.supervisor import FINAL, MAX_REASON
from fastmaker.local.training import failures, logs, rendezvous
from fastmaker.local.training.checkpoints import Checkpoints
from fastmaker.local.training.host import PEER_GONE, Host
from fastmaker.local.training.validation import DEFAULT_RUNTIME_SECONDS, channel_uri, hyperparameter

MODULE = "fastmaker.local.training.training_jobs"
KIND = "training-jobs"
SHAPE = {
    "description": {
        "TrainingJobName": str,
        "TrainingJobStatus": str,
        "SecondaryStatusTransitions": [dict],
        "CreationTime": datetime,
    }
}
ARCHIVE = "model.tar.gz"
STOP_GRACE_SECONDS = 120  # https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_StopTrainingJob.html
FAILED_GRACE_SECONDS = 20  # for processes that still run when a host has failed, or the script has ended
REPORT_SECONDS = 5  # for other hosts to report why they ended too, when one has failed
REASON_LENGTH = MAX_REASON - len("AlgorithmError: host algo-20: ")
SOURCE = "sourcedir.tar.gz"  # in a job's directory, its own copy of the code
EMPTY_MODEL = "warning: the model is empty, no file was written to SM_MODEL_DIR"


def start(store: Store, request: dict[str, Any], arn: str, env: dict[str, str], image: str | None = None) -> None:
    """Record the job and start the process that runs it, with its hosts as Docker containers of `image` if it is given.

    Raises FileExistsError if the name is taken.
    """
    name = request["TrainingJobName"]
    created = now()
    channels, checkpoints = request.get("InputDataConfig"), request.get("CheckpointConfig")
    output = storage.absolute(request["OutputDataConfig"].get("S3OutputPath") or f"file://{store.folder}")
    given = str(hyperparameter(request, "sagemaker_submit_directory"))
    source = storage.absolute(given)
    own, archive = store.directory(name) / SOURCE, storage.local_path(source)
    copies = source.startswith("file://") and archive.is_file()
    code = f"file://{own}" if copies else source
    moved = {"sagemaker_submit_directory": json.dumps(code)} if code != given else {}
    description = {
        **{key: value for key, value in request.items() if key != "Tags"},
        **({"HyperParameters": request["HyperParameters"] | moved} if moved else {}),
        **({"InputDataConfig": [_with_s3_source(channel) for channel in channels]} if channels else {}),
        # AWS describes a job without a key with an empty one, which the SDK's attach relies on.
        "OutputDataConfig": {"KmsKeyId": "", **request["OutputDataConfig"], "S3OutputPath": output},
        "TrainingJobArn": arn,
        "ModelArtifacts": {
            "S3ModelArtifacts": storage.join(output, name, "output", "model" if _is_uncompressed(request) else ARCHIVE)
        },
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Starting",
        "SecondaryStatusTransitions": [_transition("Starting", "Starting the training job", created)],
        **({"CheckpointConfig": _with_absolute_uri(checkpoints)} if checkpoints else {}),
        "StoppingCondition": {"MaxRuntimeInSeconds": DEFAULT_RUNTIME_SECONDS, **request.get("StoppingCondition", {})},
        "CreationTime": created,
        "LastModifiedTime": created,
    }
    record = {"description": description, "tags": request.get("Tags", []), "image": image}
    supervisor.start(store, name, record, MODULE, env, lambda _: copies and shutil.copyfile(archive, own))


def describe(store: Store, name: str) -> dict[str, Any]:
    """Return the job as DescribeTrainingJob does; a job whose processes have died is Failed. Raises KeyError."""
    record = supervisor.settle(store, name, _settle)
    description: dict[str, Any] = record["description"]
    return description


def stop(store: Store, name: str) -> None:
    """Ask the job to stop: its processes get SIGTERM, and SIGKILL after STOP_GRACE_SECONDS. Raises KeyError."""

    def enter(record: dict[str, Any]) -> None:
        _enter(record["description"], "Stopping", "Stopping the training job", status="Stopping")

    supervisor.stop(store, name, enter)


def containers(store: Store, name: str) -> list[Container]:
    """Return the containers of the job's hosts, in their order."""
    return [Container(path) for path in sorted(store.directory(name).glob("algo-*"), key=_number_of_host)]


def _number_of_host(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def store_below(home: Path) -> Store:
    """Return the records of training jobs in FASTMAKER_HOME."""
    return Store(home, KIND, SHAPE, end_below)


class Stopped(Exception):
    """The job was asked to stop, or ran too long; the argument is the SecondaryStatus."""


class Job:
    """Run a training job, from its record to its artifacts."""

    def __init__(self, directory: Path) -> None:
        self.name = directory.name
        self.store = store_below(directory.parent.parent)
        record = self.store.read(self.name)
        self.request = record["description"]
        count = self.request["ResourceConfig"].get("InstanceCount", 1)
        image = record["image"]
        self.unmounted = None if image else mounts.unavailable(directory)  # why there is no /opt/ml
        # The toolkit resolves the names of hosts. Loopback addresses need no set-up, where names cannot be had.
        addresses = [f"127.0.0.{number}" for number in range(1, count + 1)]
        names = addresses if self.unmounted else [f"algo-{number}" for number in range(1, count + 1)]
        hosts = dict(zip(names, addresses, strict=True))
        mounted = not image and not self.unmounted
        self.hosts = [Host(directory, number, hosts, self.request, image, mounted) for number in range(1, count + 1)]
        self.checkpoints = Checkpoints(self.request.get("CheckpointConfig"), [host.container for host in self.hosts])
        self.stop_requested = False

    def run(self) -> None:
        """Run the job from Downloading to a final status; an error becomes the FailureReason."""
        with server_log.noting_times([host.container.log for host in self.hosts]):
            try:
                outcome = self._run()
            finally:
                for host in self.hosts:
                    host.container.close()
        self.finish(*outcome)

    def _run(self) -> tuple[str, str | None, str | None]:
        """Return the final status, the FailureReason and the SecondaryStatus."""
        try:
            for host in self.hosts:  # first: a job that is stopped later uploads what its trees hold
                host.create()
            self._say_what_stands_in()
            self._say_what_is_missing()
            self._enter("Downloading", "Downloading input data")
            self._stage()
            with self._turn():
                self._enter("Training", "Training in progress", TrainingStartTime=now())
                self._train()
            self._check_model()
            self._enter("Uploading", "Uploading the model")
            self._upload({"model.tar.gz": "model", "output.tar.gz": "output/data"})
        except Stopped as stopped:
            self._upload({"model.tar.gz": "model", "output.tar.gz": "output/data"})
            return "Stopped", None, str(stopped)
        except (ContainerError, storage.StorageError) as error:
            return "Failed", f"ClientError: {error}", None
        except AlgorithmError as error:
            with contextlib.suppress(OSError):  # the script's error is the reason
                self._upload({"output.tar.gz": "output/data"})
            return "Failed", f"AlgorithmError: {error}", None
        return "Completed", None, None

    def _say_what_stands_in(self) -> None:
        if instance_types.is_aws(self.request["ResourceConfig"]["InstanceType"]):
            for host in (host for host in self.hosts if host.image is None):
                host.container.note_stand_in(self.request["AlgorithmSpecification"]["TrainingImage"])

    def _say_what_is_missing(self) -> None:
        """Write into the logs what the script is to read where there is no /opt/ml."""
        if self.unmounted:
            channels = [channel["ChannelName"] for channel in self.request.get("InputDataConfig", ())]
            names = ["SM_MODEL_DIR", "SM_OUTPUT_DATA_DIR", *(f"SM_CHANNEL_{name.upper()}" for name in channels)]
            for host in self.hosts:
                why = f"/opt/ml cannot be had on this machine ({self.unmounted})"
                host.container.note(f"{why}: the script finds its folders in {', '.join(names)}")

    def _stage(self) -> None:
        """Prepare the trees of all hosts. Raises Stopped, ContainerError and StorageError."""
        storage.check_writable(self.request["OutputDataConfig"]["S3OutputPath"])  # hours before it is written to
        for host in self.hosts:
            host.stage(self.hosts[0])
            self._raise_if_stopped()
        self.checkpoints.restore()
        self._raise_if_stopped()

    def _turn(self) -> contextlib.AbstractContextManager[None]:
        """Wait for what only one job at a time can have."""
        first = self.hosts[0]
        if len(self.hosts) > 1 and first.entrypoint:
            return rendezvous.turn(self._raise_if_stopped, first.container.note)
        return contextlib.nullcontext()

    def _train(self) -> None:
        """Run the script on every host until all have ended; one that fails ends the job.

        Raises Stopped and AlgorithmError.
        """
        (master_port,) = free_ports(1)
        for host in self.hosts:
            host.start(master_port)
        deadline = time.monotonic() + self.request["StoppingCondition"]["MaxRuntimeInSeconds"]
        try:
            while any(host.status() is None for host in self.hosts):
                if any(host.status() for host in self.hosts):
                    self._wait_for_reports()
                    break
                if self.stop_requested or time.monotonic() > deadline:
                    self._stop_hosts(STOP_GRACE_SECONDS)
                    raise Stopped("Stopped" if self.stop_requested else "MaxRuntimeExceeded")
                self.checkpoints.save()
                time.sleep(0.1)
            failed = [host for host in self.hosts if host.status()]
        finally:
            self._stop_hosts(
                FAILED_GRACE_SECONDS
            )  # the other hosts of one that failed, and processes that scripts left running
            self.checkpoints.save(last=True)
        if failed:
            raise AlgorithmError(self._failure(failed))

    def _wait_for_reports(self) -> None:
        deadline = time.monotonic() + REPORT_SECONDS
        while time.monotonic() < deadline and any(host.status() is None for host in self.hosts):
            time.sleep(0.1)

    def _stop_hosts(self, grace_seconds: float) -> None:
        stop_processes(lambda: [p for host in self.hosts for p in host.container.processes()], grace_seconds)

    def _failure(self, failed: list[Host]) -> str:
        """Return the reason of the host that is the cause: one that reports more than the end of another."""
        reasons = {host: host.failure(REASON_LENGTH) for host in failed}
        cause = min(failed, key=lambda host: bool(PEER_GONE.search(failures.last_exception(reasons[host]))))
        if len(self.hosts) == 1:
            return reasons[cause]
        # The script may have given hosts by their addresses.
        labels = {f"127.0.0.{host.number}": host.label for host in self.hosts}
        reason = re.sub(r"127\.0\.0\.\d+", lambda match: labels.get(match[0], match[0]), reasons[cause])
        return f"host {cause.label}: {reason}"

    def _check_model(self) -> None:
        """Say that the model is empty. Raises AlgorithmError if it can be so because there is no /opt/ml."""
        if any(not path.is_dir() for host in self.hosts for path in (host.container.root / "model").rglob("*")):
            return
        if self.unmounted and any(host.names_opt_ml() for host in self.hosts):
            why = f"/opt/ml, which the script names, cannot be had on this machine ({self.unmounted})"
            raise AlgorithmError(f"the model is empty: {why}; use SM_MODEL_DIR in its place")
        self.hosts[0].container.note(EMPTY_MODEL)
        with self.store.changing(self.name) as record:
            record["warning"] = EMPTY_MODEL

    def _upload(self, folders: dict[str, str]) -> None:
        """Write an archive of each folder below output/, but no empty output.tar.gz, and output/intermediate as it is.

        With the CompressionType NONE the model's files go below output/model instead.
        The hosts' folders are put together; of a file that several have, the first host's is taken. A host's failure
        file goes into output.tar.gz.
        """
        artifacts = self.request["ModelArtifacts"]["S3ModelArtifacts"].rpartition("/")[0]
        kms_key, first = self.request["OutputDataConfig"].get("KmsKeyId"), self.hosts[0].container
        roots = [host.container.root for host in self.hosts]
        for archive, folder in folders.items():
            sources = [root / folder for root in roots]
            if archive == "output.tar.gz":
                sources.append(_failure_alone(roots, Path(os.path.realpath(first.tmp), "failure")))
                if not any(source.is_dir() and any(source.iterdir()) for source in sources):
                    continue
            if archive == ARCHIVE and _is_uncompressed(self.request):
                for source in reversed(sources):  # of a file that several have, the first host's is the last
                    storage.put_folder(source, storage.join(artifacts, "model"), kms_key)
                continue
            packed = first.tmp / archive
            pack(sources, packed)
            storage.put(packed, storage.join(artifacts, archive), kms_key)
            packed.unlink()
            self._link(archive)
        for below in (root / "output" / "intermediate" for root in reversed(roots)):
            for file in sorted(path for path in below.rglob("*") if path.is_file()):
                name = str(file.relative_to(below))
                storage.put(file, storage.join(artifacts, "intermediate", name), kms_key)

    def _link(self, archive: str) -> None:
        """Have a link lead to an archive from the folder of output_path, where the SDK's local mode puts it."""
        output = self.request["OutputDataConfig"]["S3OutputPath"]
        link = storage.local_path(output) / archive
        if not output.startswith("file://") or link.parent == self.store.folder:
            return
        if link.is_symlink() or not os.path.lexists(link):  # a file of the user's stays
            partial = link.with_name(f".fastmaker-{secrets.token_hex(8)}.partial")
            partial.symlink_to(Path(self.name, "output", archive))
            partial.replace(link)

    def _metrics(self) -> list[dict[str, Any]]:
        """Return the last value of each metric definition in the log (FinalMetricDataList)."""
        definitions = self.request["AlgorithmSpecification"].get("MetricDefinitions", ())
        last: dict[str, float] = {}
        for host in self.hosts:
            last |= {name: value for name, _, value in logs.values(definitions, host.container.log)}
        names = [definition["Name"] for definition in definitions if definition["Name"] in last]
        return [{"MetricName": name, "Value": last[name], "Timestamp": now()} for name in names]

    def _enter(self, secondary: str, message: str, **values: Any) -> None:
        """Record the next SecondaryStatus. Raises Stopped if the job was asked to stop."""
        self._raise_if_stopped()
        with self.store.changing(self.name) as record:
            _enter(record["description"], secondary, message, **values)

    def finish(self, status: str, reason: str | None = None, secondary: str | None = None) -> None:
        """Record the final status and, if the job failed, why."""
        metrics = self._metrics()
        reason = reason and supervisor.reason(self.store, reason)
        with self.store.changing(self.name, last=True) as record:
            if record["description"]["TrainingJobStatus"] in FINAL:
                return
            record["description"]["FinalMetricDataList"] = metrics
            _finish(record["description"], status, reason, secondary)

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Take SIGTERM: the job stops."""
        self.stop_requested = True

    def _raise_if_stopped(self) -> None:
        if self.stop_requested:
            raise Stopped("Stopped")


def _is_uncompressed(request: dict[str, Any]) -> bool:
    return bool(request["OutputDataConfig"].get("CompressionType") == "NONE")


class AlgorithmError(Exception):
    """The training script failed."""


def _enter(description: dict[str, Any], secondary: str, message: str, status: str | None = None, **values: Any) -> None:
    moment = now()
    transitions = description["SecondaryStatusTransitions"]
    transitions[-1]["EndTime"] = moment
    transitions.append(_transition(secondary, message, moment))
    description.update(values, SecondaryStatus=secondary, LastModifiedTime=moment)
    if status:
        description["TrainingJobStatus"] = status


def _finish(description: dict[str, Any], status: str, reason: str | None = None, secondary: str | None = None) -> None:
    if reason:
        description["FailureReason"] = reason[:MAX_REASON]
    _enter(description, secondary or status, reason or f"Training job {status.lower()}", status=status)
    ended = description["LastModifiedTime"]
    started = description.get("TrainingStartTime", ended)
    seconds = max(1, round((ended - started).total_seconds()))
    description.update(TrainingEndTime=ended, TrainingTimeInSeconds=seconds, BillableTimeInSeconds=seconds)


def _settle(record: dict[str, Any], status: str, reason: str | None) -> None:
    _finish(record["description"], status, reason)


def _transition(status: str, message: str, moment: datetime) -> dict[str, Any]:
    return {"Status": status, "StartTime": moment, "StatusMessage": message}


def _with_s3_source(channel: dict[str, Any]) -> dict[str, Any]:
    """Return the channel as AWS describes one: a FileDataSource becomes an S3DataSource with a file:// URI."""
    source = {"S3DataType": "S3Prefix", "S3DataDistributionType": "FullyReplicated"}
    source |= channel["DataSource"].get("S3DataSource", {})
    return {
        **channel,
        "DataSource": {"S3DataSource": {**source, "S3Uri": storage.absolute(channel_uri(channel) or "")}},
    }


def _with_absolute_uri(checkpoints: dict[str, Any]) -> dict[str, Any]:
    return {**checkpoints, "S3Uri": storage.absolute(checkpoints["S3Uri"])}


def _failure_alone(roots: list[Path], folder: Path) -> Path:
    """Return `folder`, which is made, with the failure file of the first host that has one."""
    folder.mkdir(exist_ok=True)
    if found := next((root / "output" / "failure" for root in roots if (root / "output" / "failure").is_file()), None):
        shutil.copyfile(found, folder / "failure")
    return folder


if __name__ == "__main__":
    supervisor.main(MODULE, Job, lambda directory: describe(store_below(directory.parent.parent), directory.name))

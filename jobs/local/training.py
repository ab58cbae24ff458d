"""Training jobs: ``python -m jobs.local.training JOB_DIRECTORY`` runs one, in a process of its own.

That process outlives the one that called ``fit``, so that the job can be described, waited for and stopped from
anywhere. The order of events and the places of files are those of a training job on AWS
(https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html).
"""

import json
import re
import signal
import sys
import tarfile
import time
from datetime import datetime
from pathlib import Path

from jobs.local import storage, supervisor
from jobs.local.container import Container, ContainerError, copy_tree, pack, unpack
from jobs.local.store import Store, now
from jobs.local.supervisor import FINAL, MAX_REASON

KIND = "training-jobs"
STOP_GRACE_SECONDS = 120  # https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_StopTrainingJob.html
HOST = "127.0.0.1"  # the toolkit resolves host names; loopback addresses need no set-up


def refusal(request: dict) -> str | None:
    """Why the CreateTrainingJob `request` cannot be run here, or None."""
    resources = request["ResourceConfig"]
    if resources.get("InstanceType") not in ("local", "local_gpu"):
        return f"the instance type is {resources.get('InstanceType')!r}; a ProcessSession runs local and local_gpu"
    if resources.get("InstanceCount", 1) != 1:
        return f"InstanceCount is {resources['InstanceCount']}; a ProcessSession trains on 1 host"
    if "TrainingImage" not in request["AlgorithmSpecification"]:
        return "AlgorithmSpecification names no TrainingImage; algorithms from the marketplace do not run locally"
    if "sagemaker_program" not in request.get("HyperParameters", {}):
        return "the request names no entry_point; a ProcessSession runs PyTorch's script mode, not the image itself"
    for definition in request["AlgorithmSpecification"].get("MetricDefinitions", ()):
        try:
            re.compile(definition["Regex"])
        except re.error as error:
            return f"metric {definition['Name']!r}: {definition['Regex']!r} is no regular expression: {error}"
    mode = request["AlgorithmSpecification"].get("TrainingInputMode", "File")
    for channel in request.get("InputDataConfig", ()):
        name, source = channel["ChannelName"], channel["DataSource"]
        if channel.get("InputMode", mode) == "Pipe":
            return f"channel {name!r}: input mode Pipe cannot be had locally; use File or FastFile"
        if channel.get("CompressionType", "None") != "None":
            return f"channel {name!r}: CompressionType {channel['CompressionType']} cannot be had locally"
        if source.get("S3DataSource", {}).get("S3DataType", "S3Prefix") != "S3Prefix":
            return f"channel {name!r}: S3DataType {source['S3DataSource']['S3DataType']} cannot be had locally"
        uri = _uri(channel)
        if uri is None:
            return f"channel {name!r}: expected an S3DataSource, or a FileDataSource of local mode"
        try:
            storage.check(uri)
        except storage.StorageError as error:
            return f"channel {name!r}: {error}"
    return None


def start(store: Store, request: dict, arn: str, env: dict[str, str]) -> None:
    """Record the job and start the process that runs it. Raises FileExistsError if the name is taken."""
    name = request["TrainingJobName"]
    created = now()
    channels = request.get("InputDataConfig")
    output = storage.absolute(request["OutputDataConfig"].get("S3OutputPath") or f"file://{store.folder}")
    description = {
        **{key: value for key, value in request.items() if key != "Tags"},
        "HyperParameters": _with_absolute_source(request["HyperParameters"]),
        **({"InputDataConfig": [_with_s3_source(channel) for channel in channels]} if channels else {}),
        "OutputDataConfig": {**request["OutputDataConfig"], "S3OutputPath": output},
        "TrainingJobArn": arn,
        "ModelArtifacts": {"S3ModelArtifacts": storage.join(output, name, "output", "model.tar.gz")},
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Starting",
        "SecondaryStatusTransitions": [_transition("Starting", "Starting the training job", created)],
        "StoppingCondition": request.get("StoppingCondition", {"MaxRuntimeInSeconds": 86400}),
        "CreationTime": created,
        "LastModifiedTime": created,
    }
    record = {"description": description, "tags": request.get("Tags", [])}
    supervisor.start(store, name, record, "jobs.local.training", env)


def describe(store: Store, name: str) -> dict:
    """The job as DescribeTrainingJob answers it; a job whose processes have died is Failed. Raises KeyError."""
    record = store.read(name)
    if record["description"]["TrainingJobStatus"] not in FINAL and not supervisor.running(record):
        record = store.read(name)  # it may have ended while we looked
        if record["description"]["TrainingJobStatus"] not in FINAL:
            container(store, name).close()
            with store.changing(name) as record:
                if record["description"]["TrainingJobStatus"] == "Stopping":  # before it could take the signal
                    _finish(record["description"], "Stopped")
                else:
                    reason = "InternalServerError: the process that ran the job has died"
                    _finish(record["description"], "Failed", reason)
    return record["description"]


def stop(store: Store, name: str) -> None:
    """Ask the job to stop: its processes get SIGTERM, and SIGKILL after STOP_GRACE_SECONDS. Raises KeyError."""
    with store.changing(name) as record:
        if record["description"]["TrainingJobStatus"] in FINAL:
            return
        _enter(record["description"], "Stopping", "Stopping the training job", status="Stopping")
    supervisor.ask_to_stop(record)


def container(store: Store, name: str) -> Container:
    return Container(store.directory(name) / "algo-1")


class Stopped(Exception):
    """The job was asked to stop, or ran too long; the argument is the SecondaryStatus."""


class Job:
    """One run of a training job, from its record to its artefacts."""

    def __init__(self, directory: Path):
        self.name = directory.name
        self.store = Store(directory.parent.parent, KIND)
        self.request = self.store.read(self.name)["description"]
        self.container = container(self.store, self.name)
        self.stop_requested = False

    def run(self) -> None:
        """Everything from Downloading to a final status; whatever goes wrong becomes the FailureReason."""
        signal.signal(signal.SIGTERM, self._request_stop)
        try:
            self.container.create()  # first: a job that is stopped at any moment after uploads what its tree holds
            self._enter("Downloading", "Downloading input data")
            self._stage()
            self._enter("Training", "Training in progress", TrainingStartTime=now())
            self._train()
            self._enter("Uploading", "Uploading the model")
            self._upload()
            self.finish("Completed")
        except Stopped as stopped:
            self._upload()
            self.finish("Stopped", secondary=str(stopped))
        except (ContainerError, storage.StorageError) as error:
            self.finish("Failed", f"ClientError: {error}")
        except AlgorithmError as error:
            self.finish("Failed", f"AlgorithmError: {error}")
        finally:
            self.container.close()

    def _stage(self) -> None:
        config = self.container.root / "input" / "config"
        channels = {}
        for channel in self.request.get("InputDataConfig", ()):
            name, source = channel["ChannelName"], channel["DataSource"]["S3DataSource"]
            storage.link_or_download(source["S3Uri"], self.container.root / "input" / "data" / name)
            channels[name] = {
                "TrainingInputMode": "File",
                "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
                "RecordWrapperType": channel.get("RecordWrapperType", "None"),
            }
            self._raise_if_stopped()
        hyperparameters = dict(self.request.get("HyperParameters", {}))
        code = self._stage_code(json.loads(hyperparameters.get("sagemaker_submit_directory", '""')))
        hyperparameters["sagemaker_submit_directory"] = json.dumps(str(code))
        group = {"instance_group_name": "homogeneousCluster", "instance_type": "local", "hosts": [HOST]}
        files = {
            "hyperparameters.json": hyperparameters,
            "inputdataconfig.json": channels,
            "resourceconfig.json": {
                "current_host": HOST,
                "hosts": [HOST],
                "network_interface_name": "lo",
                "current_instance_type": "local",
                "current_group_name": group["instance_group_name"],
                "instance_groups": [group],
            },
        }
        for name, content in files.items():
            (config / name).write_text(json.dumps(content))

    def _stage_code(self, uri: str) -> Path:
        code = self.container.root / "code"
        if not uri:
            raise ContainerError("the request names no source directory (sagemaker_submit_directory)")
        source = storage.fetch(uri, self.container.tmp / "sourcedir.tar.gz")
        if source.is_dir():
            copy_tree(source, code)
        elif tarfile.is_tarfile(source):
            code.mkdir()
            unpack(source, code)
        else:
            raise ContainerError(f"{uri} is neither a directory nor an archive of source code")
        return code

    def _environment(self) -> dict[str, str]:
        extra = {
            "SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main",
            "TRAINING_JOB_NAME": self.name,
            "TRAINING_JOB_ARN": self.request["TrainingJobArn"],
            "AWS_REGION": supervisor.passed_on_region(),
            "CURRENT_HOST": HOST,
        }
        if self.request["ResourceConfig"]["InstanceType"] == "local":
            extra["CUDA_VISIBLE_DEVICES"] = ""
        return self.container.environment(extra | self.request.get("Environment", {}))

    def _train(self) -> None:
        self.container.install_requirements(self.container.root / "code", self._environment())
        self._raise_if_stopped()
        process = self.container.start([sys.executable, "-m", "sagemaker_training.cli.train"], self._environment())
        deadline = time.monotonic() + self.request["StoppingCondition"]["MaxRuntimeInSeconds"]
        while process.poll() is None:
            if self.stop_requested or time.monotonic() > deadline:
                self.container.stop(STOP_GRACE_SECONDS)
                raise Stopped("Stopped" if self.stop_requested else "MaxRuntimeExceeded")
            time.sleep(0.1)
        self.container.stop(STOP_GRACE_SECONDS)  # what the script left running
        if process.returncode:
            raise AlgorithmError(self._failure(process.returncode))

    def _failure(self, status: int) -> str:
        """What the toolkit wrote to output/failure, else how the process ended."""
        try:
            text = (self.container.root / "output" / "failure").read_text("utf-8", "replace").strip()
        except FileNotFoundError:
            text = ""
        if 'ErrorMessage ""' in text:  # the toolkit knows Python's own exceptions, and none that a script defines
            raised = re.findall(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*", self.container.log_tail(200), re.MULTILINE)
            text = text.replace('ErrorMessage ""', f"ErrorMessage {json.dumps(raised[-1])}") if raised else text
        ended = f"killed by signal {-status}" if status < 0 else f"exit code {status}"
        return f"{text or self.container.last_line()}, {ended}"

    def _upload(self) -> None:
        """What the job leaves: output/model.tar.gz of /opt/ml/model, output/output.tar.gz of /opt/ml/output/data."""
        artifacts = self.request["ModelArtifacts"]["S3ModelArtifacts"].rpartition("/")[0]
        folders = {"model.tar.gz": "model", "output.tar.gz": "output/data"}
        for archive, folder in folders.items():
            if archive == "output.tar.gz" and not any((self.container.root / folder).iterdir()):
                continue
            packed = self.container.tmp / archive
            pack(self.container.root / folder, packed)
            storage.put(packed, storage.join(artifacts, archive), self.request["OutputDataConfig"].get("KmsKeyId"))
            packed.unlink()

    def _metrics(self) -> list[dict]:
        """The last value of each metric definition in the log (FinalMetricDataList)."""
        log = self.container.log.read_text("utf-8", "replace") if self.container.log.exists() else ""
        metrics = []
        for definition in self.request["AlgorithmSpecification"].get("MetricDefinitions", ()):
            found = [number for m in re.finditer(definition["Regex"], log) if (number := _number(m)) is not None]
            if found:
                metrics.append({"MetricName": definition["Name"], "Value": found[-1], "Timestamp": now()})
        return metrics

    def _enter(self, secondary: str, message: str, **values) -> None:
        self._raise_if_stopped()
        with self.store.changing(self.name) as record:
            _enter(record["description"], secondary, message, **values)

    def finish(self, status: str, reason: str | None = None, secondary: str | None = None) -> None:
        metrics = self._metrics()
        with self.store.changing(self.name) as record:
            record["description"]["FinalMetricDataList"] = metrics
            _finish(record["description"], status, reason, secondary)

    def _request_stop(self, number, frame) -> None:
        self.stop_requested = True

    def _raise_if_stopped(self) -> None:
        if self.stop_requested:
            raise Stopped("Stopped")


class AlgorithmError(Exception):
    """The training script failed."""


def _number(match: re.Match) -> float | None:
    """What the first group matched, if it is a number."""
    try:
        return float(match[1])
    except (IndexError, TypeError, ValueError):
        return None


def _enter(description: dict, secondary: str, message: str, status: str | None = None, **values) -> None:
    moment = now()
    transitions = description["SecondaryStatusTransitions"]
    transitions[-1]["EndTime"] = moment
    transitions.append(_transition(secondary, message, moment))
    description.update(values, SecondaryStatus=secondary, LastModifiedTime=moment)
    if status:
        description["TrainingJobStatus"] = status


def _finish(description: dict, status: str, reason: str | None = None, secondary: str | None = None) -> None:
    if reason:
        description["FailureReason"] = reason[:MAX_REASON]
    _enter(description, secondary or status, reason or f"Training job {status.lower()}", status=status)
    ended = description["LastModifiedTime"]
    started = description.get("TrainingStartTime", ended)
    seconds = max(1, round((ended - started).total_seconds()))
    description.update(TrainingEndTime=ended, TrainingTimeInSeconds=seconds, BillableTimeInSeconds=seconds)


def _transition(status: str, message: str, moment: datetime) -> dict:
    return {"Status": status, "StartTime": moment, "StatusMessage": message}


def _uri(channel: dict) -> str | None:
    source = channel["DataSource"]
    return source.get("S3DataSource", {}).get("S3Uri") or source.get("FileDataSource", {}).get("FileUri")


def _with_s3_source(channel: dict) -> dict:
    """The channel as AWS describes one: local mode's FileDataSource becomes an S3DataSource with a file:// URI."""
    source = {"S3DataType": "S3Prefix", "S3DataDistributionType": "FullyReplicated"}
    source |= channel["DataSource"].get("S3DataSource", {})
    return {**channel, "DataSource": {"S3DataSource": {**source, "S3Uri": storage.absolute(_uri(channel))}}}


def _with_absolute_source(hyperparameters: dict) -> dict:
    """The job runs in another directory than the caller, who may have named the source relative to his own."""
    source = json.loads(hyperparameters.get("sagemaker_submit_directory", '""'))
    return {**hyperparameters, "sagemaker_submit_directory": json.dumps(storage.absolute(source))}


if __name__ == "__main__":
    supervisor.run(Job(Path(sys.argv[1])))

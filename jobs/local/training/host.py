"""One host of a training job: its /opt/ml tree, its share of the data, the toolkit's process and its failure."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from fastmaker.jobs import instance_types, runtime, storage
from fastmaker.local import docker, supervisor
from fastmaker.local.containers import Container, ContainerError, copy_tree, unpack

LAUNCHER = Path(runtime.__file__).with_name("training_launcher.py")
NETWORK_INTERFACE = "lo"
# What a host reports whose peer has ended: the other host is the cause.
PEER_GONE = re.compile(r"Connection (closed|reset)|gloo|NCCL|Broken pipe|recvValue|timed? ?out", re.I)


class Host:
    """Prepare and run host `number` (from 1) of the hosts `names` of a job, which the `request` describes.

    With an `image`, Docker runs it, else processes of this environment do.
    """

    def __init__(
        self, directory: Path, number: int, names: list[str], request: dict[str, Any], image: str | None = None
    ) -> None:
        self.number, self.names, self.request, self.image = number, names, request, image
        self.label = f"algo-{number}"
        self.name = names[number - 1]
        self.container = Container(directory / self.label)
        self.process: subprocess.Popen[bytes] | None = None

    def stage(self, first: "Host") -> None:
        """Bring data, code and configuration into the tree; what is the same on all hosts is taken from `first`.

        Raises ContainerError and StorageError.
        """
        root = self.container.root
        for channel in self.request.get("InputDataConfig", ()):
            source, name = channel["DataSource"]["S3DataSource"], channel["ChannelName"]
            target = root / "input" / "data" / name
            if source.get("S3DataDistributionType") == "ShardedByS3Key":
                storage.link_or_download(source["S3Uri"], target, self.number - 1, len(self.names))
            elif self is first:
                storage.link_or_download(source["S3Uri"], target)
            else:
                target.symlink_to(first.container.root / "input" / "data" / name)
        for name, content in self._configuration().items():
            (root / "input" / "config" / name).write_text(json.dumps(content))
        if self is first:
            self._stage_code()
        else:
            copy_tree(first.container.root / "code", root / "code")
            if (overlay := first.container.root / "overlay").exists():
                (root / "overlay").symlink_to(overlay)

    def start(self, master_port: int) -> None:
        """Start the toolkit; the script's processes on all hosts meet at `master_port` of the first host."""
        env = self._variables() | {"FASTMAKER_MASTER_PORT": str(master_port)}
        if self.image is None:
            self.process = self.container.start([sys.executable, str(LAUNCHER)], self.container.environment(env))
            return
        uris = [channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in self.request.get("InputDataConfig", ())]
        folders = [storage.local_path(uri) for uri in uris if uri.startswith("file://")]
        root, instance_type = self.container.root, self.request["ResourceConfig"]["InstanceType"]
        command = docker.training_command(
            root, self.image, instance_type, len(self.names), [root.parent, *folders], env
        )
        self.process = self.container.start(command, docker.environment(env))
        docker.await_start(root, self.process)

    def status(self) -> int | None:
        """Return the exit status of the toolkit's process, None while it runs or before it was started."""
        return self.process.poll() if self.process else None

    def failure(self) -> str:
        """Return what the toolkit wrote to output/failure, or the log's last line, and how the process ended."""
        status = self.process.returncode if self.process else 0
        try:
            text = (self.container.root / "output" / "failure").read_text("utf-8", "replace").strip()
        except FileNotFoundError:
            text = ""
        if 'ErrorMessage ""' in text:  # the toolkit names Python's own exceptions, not those that a script defines
            raised = re.findall(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*", self.container.log_tail(200), re.MULTILINE)
            text = text.replace('ErrorMessage ""', f"ErrorMessage {json.dumps(raised[-1])}") if raised else text
        ended = f"killed by signal {-status}" if status < 0 else f"exit code {status}"
        return f"{text or self.container.last_line()}, {ended}"

    def _configuration(self) -> dict[str, dict[str, Any]]:
        """Return the files of input/config and their content."""
        channels = {
            channel["ChannelName"]: {
                "TrainingInputMode": "File",
                "S3DistributionType": channel["DataSource"]["S3DataSource"].get(
                    "S3DataDistributionType", "FullyReplicated"
                ),
                "RecordWrapperType": channel.get("RecordWrapperType", "None"),
            }
            for channel in self.request.get("InputDataConfig", ())
        }
        submitted = json.dumps("/opt/ml/code" if self.image else str(self.container.root / "code"))
        group = {
            "instance_group_name": "homogeneousCluster",
            "instance_type": instance_types.LOCAL,
            "hosts": self.names,
        }
        return {
            "hyperparameters.json": {**self.request["HyperParameters"], "sagemaker_submit_directory": submitted},
            "inputdataconfig.json": channels,
            "resourceconfig.json": {
                "current_host": self.name,
                "hosts": self.names,
                "network_interface_name": NETWORK_INTERFACE,
                "current_instance_type": instance_types.LOCAL,
                "current_group_name": group["instance_group_name"],
                "instance_groups": [group],
            },
        }

    def _stage_code(self) -> None:
        uri = json.loads(self.request["HyperParameters"].get("sagemaker_submit_directory", '""'))
        if not uri:
            raise ContainerError("the request names no source directory (sagemaker_submit_directory)")
        code = self.container.root / "code"
        source = storage.fetch(uri, self.container.tmp / "sourcedir.tar.gz")
        if source.is_dir():
            copy_tree(source, code)
        elif tarfile.is_tarfile(source):
            code.mkdir()
            unpack(source, code)
        else:
            raise ContainerError(f"{uri} is neither a directory nor an archive of source code")
        if self.image is None:
            self.container.install_requirements(code, self.container.environment(self._variables()))

    def _variables(self) -> dict[str, str]:
        """Return the environment that the platform gives a host, and the job's own."""
        extra: dict[str, str] = {
            "SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main",
            "TRAINING_JOB_NAME": self.request["TrainingJobName"],
            "TRAINING_JOB_ARN": self.request["TrainingJobArn"],
            "AWS_REGION": supervisor.caller_region(),
            "CURRENT_HOST": self.name,
        }
        if self.request["ResourceConfig"]["InstanceType"] == instance_types.LOCAL:
            extra["CUDA_VISIBLE_DEVICES"] = ""
        if len(self.names) > 1:  # hosts share the machine: if each used all cores, they would slow each other down
            extra["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // len(self.names)))
            extra["GLOO_SOCKET_IFNAME"] = NETWORK_INTERFACE
        return {**extra, **self.request.get("Environment", {})}

"""One host of a training job: its /opt/ml tree, its share of the data, the toolkit's process and its failure."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastmaker.jobs import instance_types, runtime, storage
from fastmaker.local import archives, docker, supervisor
from fastmaker.local.containers import Container, ContainerError, copy_tree, unpack
from fastmaker.local.training import failures
from fastmaker.local.training.checkpoints import OPT_ML
from fastmaker.local.training.validation import entrypoint, hyperparameter

LAUNCHER = Path(runtime.__file__).with_name("training_launcher.py")
ENTRYPOINT_LAUNCHER = Path(runtime.__file__).with_name("entrypoint_launcher.py")
# Channels of the SDK's version 3, to which its scripts write: each host has its own copy.
CODE, DRIVERS = "code", "sm_drivers"
# What a container's command may call beside python; this environment's own would change this environment.
PROGRAMS = {"pip": "pip", "pip3": "pip", "torchrun": "torch.distributed.run"}
NETWORK_INTERFACE = "lo"
MAX_FAILURE = 2**20  # characters that are read of what a script may have written
# What a host reports whose peer has ended: the other host is the cause.
PEER_GONE = re.compile(r"Connection (closed|reset)|gloo|NCCL|Broken pipe|recvValue|timed? ?out", re.I)


class Host:
    """Prepare and run host `number` (from 1) of a job, which the `request` describes.

    `addresses` are those of all hosts by their names, as the script sees them. With an `image`, Docker runs the host,
    else processes of this environment do; these see its tree as /opt/ml if it is `mounted`.
    """

    def __init__(
        self,
        directory: Path,
        number: int,
        addresses: dict[str, str],
        request: dict[str, Any],
        image: str | None = None,
        mounted: bool = False,
    ) -> None:
        self.number, self.addresses, self.request, self.image, self.mounted = number, addresses, request, image, mounted
        self.label = f"algo-{number}"
        self.names = sorted(addresses)  # as AWS sorts them: algo-10 before algo-2
        self.name = list(addresses)[number - 1]
        self.entrypoint = entrypoint(request)
        self.container = Container(directory / self.label)
        self.process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make the tree that the platform makes before it starts a host."""
        self.container.create()
        for folder in ("shared", "output/intermediate"):
            (self.container.root / folder).mkdir(parents=True, exist_ok=True)

    def stage(self, first: "Host") -> None:
        """Bring data, code and configuration into the tree; what is the same on all hosts is taken from `first`.

        Raises ContainerError and StorageError.
        """
        root = self.container.root
        for channel in self.request.get("InputDataConfig", ()):
            self._stage_channel(channel["DataSource"]["S3DataSource"], channel["ChannelName"], first)
        for name, content in self._configuration().items():
            (root / "input" / "config" / name).write_text(json.dumps(content))
        if self.entrypoint:
            self._check_drivers()
            self.container.make_overlay(PROGRAMS)
            return
        self._stage_code()
        if self is first and self.image is None:
            self._install_requirements()
        elif (overlay := first.container.root / "overlay").exists():
            (root / "overlay").symlink_to(overlay)

    def start(self, master_port: int) -> None:
        """Start the toolkit, or the request's own command.

        The script's processes on all hosts meet at `master_port` of the first host.
        """
        env = self._variables() | {"FASTMAKER_MASTER_PORT": str(master_port)}
        if self.image is None:
            env |= {"FASTMAKER_HOSTS": json.dumps(self.addresses)} if self.mounted else {}
            command = [str(LAUNCHER)]
            if self.entrypoint:
                command = [str(ENTRYPOINT_LAUNCHER), *self.entrypoint]
                programs = self.container.root / "overlay" / "bin"
                path = os.pathsep.join([str(programs), self.container.environment({})["PATH"]])
                env = {"PATH": path, "PET_MASTER_PORT": str(master_port), **env}  # torchrun's, on one host
            self.process = self.container.start([sys.executable, *command], self.container.environment(env))
            return
        uris = [channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in self.request.get("InputDataConfig", ())]
        folders = [storage.local_path(uri) for uri in uris if uri.startswith("file://")]
        root, instance_type = self.container.root, self.request["ResourceConfig"]["InstanceType"]
        command = docker.training_command(root, self.image, instance_type, self.addresses, [root.parent, *folders], env)
        self.process = self.container.start(command, docker.environment(env))
        docker.await_start(root, self.process)

    def status(self) -> int | None:
        """Return the exit status of the toolkit's process, None while it runs or before it was started."""
        return self.process.poll() if self.process else None

    def failure(self, length: int) -> str:
        """Return why the host failed, in at most `length` characters."""
        file, text = self.container.root / "output" / "failure", ""
        if file.is_file():  # else a script has put a pipe there
            with contextlib.suppress(OSError), open(file, encoding="utf-8", errors="replace") as stream:
                text = stream.read(MAX_FAILURE).strip()
        status = self.process.returncode if self.process else 0
        return failures.explain(text, self.container.log_tail(None), status, length)

    def names_opt_ml(self) -> bool:
        """Return whether the code or the hyperparameters name /opt/ml in full."""
        name = OPT_ML.rstrip("/").encode()
        texts = (path.read_bytes() for path in (self.container.root / "code").rglob("*") if path.is_file())
        hyperparameters = json.dumps(self.request.get("HyperParameters", {})).encode()
        return name in hyperparameters or any(name in text for text in texts)

    def _stage_channel(self, source: dict[str, Any], name: str, first: "Host") -> None:
        target = self.container.root / "input" / "data" / name
        own = self is first or (self.entrypoint and name in (CODE, DRIVERS))
        if source.get("S3DataDistributionType") == "ShardedByS3Key":
            storage.link_or_download(source["S3Uri"], target, self.number - 1, len(self.names))
        elif own:
            storage.link_or_download(source["S3Uri"], target)
        else:
            target.symlink_to(first.container.root / "input" / "data" / name)
        if self.entrypoint and name in (CODE, DRIVERS) and target.is_symlink():
            folder = target.resolve()
            target.unlink()
            copy_tree(folder, target)

    def _check_drivers(self) -> None:
        """Check that this machine has what the SDK's driver starts. Raises ContainerError."""
        script = self.container.root / "input" / "data" / DRIVERS / "sm_train.sh"
        if script.is_file() and "/mpi_driver.py" in script.read_text("utf-8", "replace"):
            raise ContainerError("distributed=MPI() needs AWS; use distributed=Torchrun()")

    def _configuration(self) -> dict[str, dict[str, Any]]:
        """Return the files of input/config and their content."""
        mode = self.request["AlgorithmSpecification"].get("TrainingInputMode", "File")
        channels = {
            channel["ChannelName"]: {
                "TrainingInputMode": channel.get("InputMode", mode),
                "S3DistributionType": channel["DataSource"]["S3DataSource"].get(
                    "S3DataDistributionType", "FullyReplicated"
                ),
                "RecordWrapperType": channel.get("RecordWrapperType", "None"),
                **({"ContentType": channel["ContentType"]} if channel.get("ContentType") else {}),
            }
            for channel in self.request.get("InputDataConfig", ())
        }
        asked = self.request["ResourceConfig"]["InstanceType"]
        instance_type = asked if instance_types.is_aws(asked) else instance_types.LOCAL
        group = {
            "instance_group_name": "homogeneousCluster",
            "instance_type": instance_type,
            "hosts": self.names,
        }
        return {
            "hyperparameters.json": self.request.get("HyperParameters", {}),
            "inputdataconfig.json": channels,
            "resourceconfig.json": {
                "current_host": self.name,
                "hosts": self.names,
                "network_interface_name": NETWORK_INTERFACE,
                "current_instance_type": instance_type,
                "current_group_name": group["instance_group_name"],
                "instance_groups": [group],
            },
        }

    def _stage_code(self) -> None:
        """Unpack the code; the toolkit leaves a directory of code that is not empty as it is."""
        uri = hyperparameter(self.request, "sagemaker_submit_directory")
        if not uri:
            raise ContainerError("the request names no source directory (sagemaker_submit_directory)")
        root = self.container.root
        if uri.startswith(OPT_ML):  # of a job in network isolation, whose code comes in a channel
            uri = f"file://{root / uri.removeprefix(OPT_ML)}"
        source = storage.fetch(uri, self.container.tmp / "sourcedir.tar.gz")
        if source.is_dir():
            copy_tree(source, root / "code")
        elif archives.is_archive(source):
            unpack(source, root / "code")
        else:
            (root / "code").mkdir()
            shutil.copy(source, root / "code")

    def _install_requirements(self) -> None:
        code, program = self.container.root / "code", hyperparameter(self.request, "sagemaker_program")
        package = (code / "setup.py").exists() and not program.endswith(".sh")  # as the toolkit decides
        self.container.install_requirements(code, self.container.environment(self._variables()), package)

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

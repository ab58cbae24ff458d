"""Starts the training toolkit on one host: ``python training_launcher.py`` with SAGEMAKER_* and FASTMAKER_*.

The toolkit lets the hosts of a job meet at port 7777. Here they share a machine with those of other jobs, and each
job has a port of its own, FASTMAKER_MASTER_PORT. With FASTMAKER_HOSTS, the addresses of the hosts by their names,
FASTMAKER_CONTAINER is shown as /opt/ml; without, the toolkit takes SAGEMAKER_BASE_DIR in its place.
"""

import asyncio
import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path

sys.path.pop(0)  # this folder, whose module names are ours alone

from fastmaker.jobs.runtime import mounts, without_serving

if hosts := os.environ.pop("FASTMAKER_HOSTS", None):  # before the toolkit is imported, which has threads
    mounts.enter(Path(os.environ["FASTMAKER_CONTAINER"]), json.loads(hosts), Path(os.environ["TMPDIR"], "hosts"))
    del os.environ["SAGEMAKER_BASE_DIR"]

from sagemaker_pytorch_container import training
from sagemaker_training import modules, process, torch_distributed
from sagemaker_training.cli.train import main

REST_OF_A_LINE_SECONDS = 0.05


class WholeLines:
    """A stream that is read up to the end of a line, if that comes soon. The toolkit prints each piece as a line."""

    def __init__(self, stream):
        self._stream = stream

    async def read(self, size):
        """Return the bytes that have come, none at the end."""
        data = more = await self._stream.read(size)
        while more and not data.endswith(b"\n"):
            try:
                more = await asyncio.wait_for(self._stream.read(size), REST_OF_A_LINE_SECONDS)
            except asyncio.TimeoutError:
                break
            data += more
        return data


def name_torch_version() -> None:
    """Set what the toolkit imports torch for, which takes longer than the rest of a job's start."""
    if found := importlib.util.find_spec("torch"):
        version = runpy.run_path(str(Path(found.origin).with_name("version.py")))["__version__"]
        os.environ["SM_DLC_TORCH_VERSION"] = version


if __name__ == "__main__":
    training._set_torch_version_environment = name_torch_version
    training.MASTER_PORT = torch_distributed.MASTER_PORT = os.environ["FASTMAKER_MASTER_PORT"]
    # What the code requires is installed already, for the job alone; the toolkit would change this environment.
    modules.install = modules.install_requirements = lambda path, capture_error=False: None
    watch, run_async = process.watch, process.run_async
    process.watch = lambda stream, *arguments, **options: watch(stream and WholeLines(stream), *arguments, **options)
    # By one pipe lines come in the order in which the script has printed them.
    process.run_async = lambda *arguments, stderr, **options: run_async(
        *arguments, stderr=stderr and asyncio.subprocess.STDOUT, **options
    )
    # The script's Python, which gets this path, does without what a training image lacks.
    sys.path.insert(0, without_serving.put_below(Path(os.environ["TMPDIR"])))
    main()

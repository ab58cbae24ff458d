"""Starts the PyTorch serving toolkit in a container's directory: ``python torchserve_launcher.py`` with SAGEMAKER_*.

The toolkit was written for one server a machine, of root. Here its configuration file goes into TMPDIR rather than
/etc, and its own server is found by the pid file that TorchServe leaves in TMPDIR rather than by a search of the whole
machine, which gives up when there are two. FASTMAKER_CONTAINER is shown as /opt/ml, where the machine allows it.
"""

import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose module names are ours alone

from fastmaker.jobs.runtime import mounts, server_log

if root := os.environ.get("FASTMAKER_CONTAINER"):  # before the toolkit is imported, which asks where its folder is
    try:
        mounts.enter(Path(root), {}, Path(os.devnull))
        del os.environ["SAGEMAKER_BASE_DIR"]
    except OSError as error:
        print(f"/opt/ml cannot be had on this machine ({error}): model_fn finds the model in its argument, model_dir")

import psutil
from sagemaker_pytorch_serving_container import torchserve

START_SECONDS = 30.0


def server_process() -> psutil.Process:
    """Return TorchServe's Java process, once it has started. Raises RuntimeError if it does not start."""
    pid_file = Path(tempfile.gettempdir(), ".model_server.pid")
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if pid_file.is_file() and (text := pid_file.read_text().strip()):
            return psutil.Process(int(text))
        time.sleep(0.05)
    raise RuntimeError(f"TorchServe did not start within {START_SECONDS:.0f} s")


def main() -> None:
    server_log.bound(Path(os.environ.get("SAGEMAKER_BASE_DIR", mounts.OPT_ML), "container.log"))
    torchserve.DEFAULT_TS_LOG_FILE = os.path.join(tempfile.gettempdir(), "log4j2.xml")
    Path(torchserve.DEFAULT_TS_LOG_FILE).write_text(server_log.LOG_CONFIG)
    torchserve.TS_CONFIG_FILE = os.path.join(tempfile.gettempdir(), "ts.properties")
    torchserve._retrieve_ts_server_process = server_process
    # The toolkit's template joins two lines of its properties, and so loses the timeout.
    if timeout := os.environ.get("SAGEMAKER_MODEL_SERVER_TIMEOUT"):
        os.environ.setdefault("TS_DEFAULT_RESPONSE_TIMEOUT", timeout)
    # What the toolkit's serving.main() does, without the seconds and the quarter of a gigabyte that torch takes here.
    handler = importlib.util.find_spec("sagemaker_pytorch_serving_container.handler_service")
    torchserve.start_torchserve(handler_service=handler.origin)


if __name__ == "__main__":
    main()

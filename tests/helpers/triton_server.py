"""A real Triton server without Docker: NVIDIA's wheel nvidia-pytriton holds it and its Python backend."""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fastmaker.local.containers import free_ports
from helpers import PATIENCE, REPOSITORY, environments

# The server is Triton 2.51. Its Python backend reads NumPy's arrays by the layout of NumPy 1: with NumPy 2 it answers
# nonsense. The rest is what the models of jobs/triton.py say that they need. Nothing else of the wheel's is used.
SERVER = "nvidia-pytriton==0.7.0"
PACKAGES = ("numpy<2", "onnxruntime", "pillow")


def install(folder: Path) -> Path:
    """Make an environment with the server; returns the folder of the server's files."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("the wheel that holds the Triton server is for Linux on x86-64")
    python = environments.create(folder)
    environments.install(python, "--no-deps", SERVER)
    environments.install(python, "--constraint", REPOSITORY / "constraints.txt", *PACKAGES)
    (files,) = folder.glob("lib/python*/site-packages/pytriton/tritonserver")
    # The Python backend looks beside itself for its stub: the program that a model's process is, for one Python.
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = files / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        pytest.skip(f"the wheel that holds the Triton server has no stub for Python {version}")
    shutil.copy2(stub, files / "backends" / "python")
    return files


@contextlib.contextmanager
def running(files: Path, log: Path, ready_url: str, *options: object, **env: str) -> Iterator[None]:
    """A server that was started with `options` and answers at `ready_url`; afterwards none of its processes runs."""
    command = [
        files / "bin" / "tritonserver",
        "--backend-directory",
        files / "backends",
        "--allow-metrics=false",
        *options,
    ]
    with open(log, "w") as output:
        server = subprocess.Popen([*map(str, command)], env=_environment(files) | env, stdout=output, stderr=output)
    processes = []
    try:
        _await_ready(server, ready_url, log)
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        yield
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(PATIENCE)
        left = psutil.wait_procs(processes, PATIENCE)[1]
        for process in left:
            process.kill()
        server.kill()
        server.wait()
    assert not left, log.read_text()[-2000:]


def addresses() -> tuple[list[str], str, str]:
    """Options that let a server listen on loopback alone, and its URLs for HTTP and gRPC."""
    http, grpc = free_ports(2)
    options = ["--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}"]
    return options, f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{grpc}"


def _environment(files: Path) -> dict[str, str]:
    """With the server's environment first on PATH: by that the stubs find their packages, and libpython beside it."""
    binaries = files.parents[4] / "bin"
    env = environments.variables()
    libraries = [sysconfig.get_config_var("LIBDIR"), env.get("LD_LIBRARY_PATH", "")]
    return env | {
        "PATH": os.pathsep.join([str(binaries), env["PATH"]]),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
    }


def _await_ready(server: subprocess.Popen, url: str, log: Path, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=30):
            return
        time.sleep(0.2)
    raise AssertionError(f"the Triton server is not ready:\n{log.read_text()[-4000:]}")

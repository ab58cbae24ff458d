"""The log of a server is bounded, whoever runs it: the toolkit, plain TorchServe or Docker."""

import subprocess
import sys

import pytest

from fastmaker.jobs.runtime import server_log
from fastmaker.local import docker
from fastmaker.local.containers import Container
from fastmaker.local.serving import torchserve

# Writes 2,000 numbered lines to a log of which 1,000 bytes are kept.
PROGRAM = """
import pathlib, sys, time
from fastmaker.jobs.runtime import server_log
server_log.LOG_BYTES, server_log.LOG_SECONDS = 1000, 0.01
log = pathlib.Path(sys.argv[1])
with open(log, "ab", buffering=0) as file:
    server_log.bound(log)
    for number in range(2000):
        file.write(b"%06d\\n" % number)
        time.sleep(0.0005)
    time.sleep(0.5)
    file.write(b"last\\n")
"""
LOUD = "import sys, time; sys.stdout.write('x' * 80 * 150_000); time.sleep(3); print('last'); sys.exit(3)"


def test_a_servers_log_does_not_grow_without_end(tmp_path):
    log, before = (tmp_path / name for name in ("container.log", "container.1.log"))
    subprocess.run([sys.executable, "-c", PROGRAM, str(log)], check=True)
    assert log.read_text().endswith("last\n")
    assert "\0" not in log.read_text()
    assert log.stat().st_size + before.stat().st_size < 2000 * 7
    assert before.stat().st_size >= 1000


def test_what_runs_without_the_toolkit_has_a_bounded_log_and_its_own_exit_status(tmp_path):
    container = Container(tmp_path)
    process = container.start_server([sys.executable, "-c", LOUD], {})
    assert process.wait() == 3
    assert container.log.read_text() == "last\n"
    assert (tmp_path / "container.1.log").stat().st_size > server_log.LOG_BYTES


@pytest.fixture
def commands(tmp_path):
    """What is started by each way to run a server, without starting it."""
    found = {}

    class Watched(Container):
        def start(self, command, env):
            found["command"] = command

    container = Watched(tmp_path / "server")
    yield container, found
    container.close()


STARTS = {
    "Docker": lambda container: torchserve.start(container, {"DockerImage": "image"}, "local", 1),
    "an archive": lambda container: torchserve.start_archive(container, container.root / "x.mar", "x", 1, {}),
    "the toolkit": lambda container: torchserve.start(container, {}, "local", 1),
}


@pytest.mark.parametrize("how", STARTS)
def test_each_way_to_run_a_server_bounds_its_log(commands, how):
    container, found = commands
    container.create()
    STARTS[how](container)
    bounded = found["command"][1] in (server_log.__file__, str(torchserve.LAUNCHER))
    assert bounded, found["command"]


def test_docker_keeps_no_second_copy_of_what_a_container_prints(tmp_path):
    training = docker.training_command(tmp_path, "image", "local", {"algo-1": "127.0.0.1"}, [], {})
    for command in (training, docker.serving_command(tmp_path, "image", "local", 1, {})):
        assert command[command.index("--log-driver") + 1] == "none"


def test_a_long_log_is_read_from_its_end_alone(tmp_path):
    container = Container(tmp_path)
    with open(container.log, "wb") as log:
        log.truncate(2**36)  # a sparse file of 64 GB
        log.seek(0, 2)
        log.write(b"first\nlast\n")
    assert container.last_line() == "last"
    assert container.log_tail(1) == "last"
    assert len(container.log_tail(None)) < 2**25

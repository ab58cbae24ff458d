"""What the engine ends and believes is its own: by identity or token, never by a number, a port or a link alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager

import psutil
import pytest
import urllib3
from helpers.kills import every_kill
from helpers.waiting import wait_until

from fastmaker.local import processes
from fastmaker.local.containers import TOKEN_FILE, Container, end_below, free_ports
from fastmaker.local.serving import connections

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
# Starts another process and ends; the other keeps the session's number.
LEAVES_A_CHILD = [sys.executable, "-c", f"import subprocess; print(subprocess.Popen({SLEEP}).pid, flush=True)"]
LISTEN = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200); self.end_headers(); self.wfile.write({answer!r})
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def container(tmp_path):
    container = Container(tmp_path / "container")
    container.create()
    yield container
    container.close()


@contextmanager
def strangers(command, **arguments):
    """A process of somebody else, in a session of its own."""
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, **arguments)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def listening(answer: bytes, port: int) -> list[str]:
    return [sys.executable, "-c", LISTEN.format(answer=answer), str(port)]


def await_port(port: int) -> None:
    wait_until(lambda: any(c.laddr.port == port and c.status == "LISTEN" for c in psutil.net_connections("tcp")))


def test_a_process_is_not_ended_because_its_session_has_the_number_of_ours(container):
    with strangers(LEAVES_A_CHILD) as leader:
        child = psutil.Process(int(leader.stdout.readline()))
        leader.wait()
        try:
            for known in ({"pid": leader.pid, "created": child.create_time()}, {"pid": leader.pid}, {"token": ""}):
                (container.root / processes.PROCESS_FILE).write_text(json.dumps({"starter": None, **known}))
                assert container.processes() == []
                container.stop(0)
                assert child.is_running()
        finally:
            child.kill()


@pytest.mark.parametrize("changed", [{"boot": "another"}, {"started": 1}, {"pid": 1}])
def test_a_process_is_not_ended_because_it_has_the_number_of_ours(container, changed):
    with strangers(SLEEP) as process:
        known = {"token": "t", **processes.identity(process.pid), **changed}
        (container.root / processes.PROCESS_FILE).write_text(json.dumps(known))
        assert not container.alive()
        container.stop(0)
        assert process.poll() is None


def test_a_process_is_not_ended_because_a_script_has_written_its_identity_into_the_file(container):
    container.start(SLEEP, dict(os.environ))
    file = container.root / processes.PROCESS_FILE
    with strangers(SLEEP) as stranger:
        file.write_text(json.dumps({**json.loads(file.read_text()), **processes.identity(stranger.pid)}))
        assert stranger.pid not in [process.pid for process in container.processes()]
        assert len(container.processes()) == 1
        container.stop(0)
        assert stranger.poll() is None


def test_a_temporary_folder_is_found_though_its_maker_was_killed_at_any_line(tmp_path, monkeypatch):
    short = tempfile.mkdtemp(prefix="t-")
    monkeypatch.setattr(tempfile, "tempdir", short)
    for _ in every_kill(lambda: Container(tmp_path / "container").create()):
        end_below(tmp_path)
        assert os.listdir(short) == []
    Container(tmp_path / "container").close()
    os.rmdir(short)


IN_ITS_PLACE = {
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "a terabyte": lambda path: path.touch() or os.truncate(path, 2**40),
    "folder": lambda path: path.mkdir(),
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("kind", IN_ITS_PLACE)
@pytest.mark.parametrize("name", [processes.PROCESS_FILE, TOKEN_FILE, "container.log"])
def test_what_a_script_puts_in_the_place_of_a_file_of_the_engine_holds_nothing_up(tmp_path, name, kind):
    container = Container(tmp_path / "container")
    container.create()
    process, temporary = container.start(SLEEP, container.environment({})), os.path.realpath(container.tmp)
    (container.root / name).unlink()
    IN_ITS_PLACE[kind](container.root / name)
    start = time.monotonic()
    container.note("a line")
    assert container.last_line()
    assert container.alive()
    end_below(tmp_path)
    assert process.poll() == -signal.SIGKILL
    assert not container.alive()
    assert time.monotonic() - start < 10
    if os.path.isdir(temporary):  # whose it is could not be told
        shutil.rmtree(temporary)


def test_what_a_killed_starter_began_is_found_by_its_token(container):
    """The starter ends between the start of the process and the line that says which process it is."""
    program = f"""
        import subprocess, sys
        from pathlib import Path
        from fastmaker.local.processes import Started
        token = Started(Path({str(container.root)!r})).begin()
        import os
        subprocess.Popen({SLEEP!r}, env=os.environ | token, start_new_session=True)
        os._exit(0)
    """
    lines = [line.strip() for line in program.strip().splitlines()]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
    (found,) = container.processes()
    assert container.alive()
    end_below(container.root.parent)
    assert not found.is_running() or found.status() == psutil.STATUS_ZOMBIE
    assert not container.alive()


def test_a_child_that_left_the_session_is_ended_with_its_container(container):
    program = f"import subprocess, time; subprocess.Popen({SLEEP!r}, start_new_session=True); time.sleep(600)"
    container.start([sys.executable, "-c", program], container.environment({}))
    wait_until(lambda: len(container.processes()) == 2)
    container.stop(0)
    assert container.processes() == []


def test_a_child_without_the_token_is_ended_with_the_first_process_of_its_session(container):
    program = f"import subprocess, time; subprocess.Popen({SLEEP!r}, env={{}}); time.sleep(600)"
    container.start([sys.executable, "-c", program], container.environment({}))
    wait_until(lambda: len(container.processes()) == 2)
    (child,) = container.processes()[1:]
    container.stop(0)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_child_without_the_token_is_ended_though_the_first_process_of_its_session_was_killed(container):
    program = f"import subprocess, time; subprocess.Popen({SLEEP!r}, env={{}}); time.sleep(600)"
    container.start([sys.executable, "-c", program], container.environment({}))
    wait_until(lambda: len(container.processes()) == 2)
    first, child = container.processes()
    first.kill()
    wait_until(lambda: not container.alive())
    assert container.processes() == [child]
    container.stop(0)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("named", ["precious", "fastmaker-precious"])
def test_a_folder_that_the_containers_link_was_changed_to_stays(container, tmp_path, named):
    folder = tmp_path / named
    folder.mkdir()
    (folder / "file").write_text("mine")
    temporary = container.tmp.resolve()
    container.tmp.unlink()
    container.tmp.symlink_to(folder)
    container.close()
    assert (folder / "file").exists()
    container.tmp.unlink()
    container.tmp.symlink_to(temporary)
    container.close()
    assert not temporary.exists()


def test_files_of_users_that_are_called_as_ours_end_nothing(tmp_path):
    with strangers(SLEEP) as process:
        deep = tmp_path / "job" / "algo-1" / "model"
        deep.mkdir(parents=True)
        (deep / processes.PROCESS_FILE).write_text(json.dumps(processes.identity(process.pid)))
        (tmp_path / "job" / "link").symlink_to(deep)
        end_below(tmp_path / "job")
        assert process.poll() is None


def test_a_connection_leads_to_the_containers_own_process_or_is_refused(container):
    own, other = free_ports(2)
    container.start(listening(b"ours", own), container.environment({}))
    await_port(own)
    pool = connections.pool_of(container, own)
    assert pool.request("POST", "/").data == b"ours"
    with strangers(listening(b"another's", other)):
        await_port(other)
        with pytest.raises(urllib3.exceptions.NewConnectionError, match="no server of this model"):
            connections.pool_of(container, other).request("POST", "/", body=b"private")
    container.stop(0)
    with strangers(listening(b"another's", own)):  # the port is given to somebody else
        await_port(own)
        for _ in range(3):
            with pytest.raises(urllib3.exceptions.HTTPError):
                pool.request("POST", "/", body=b"private")


def test_stop_gives_processes_time_to_end_by_themselves(container, tmp_path):
    program = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / 'ended')!r}).touch(), sys.exit()))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(600)"
    )
    container.start([sys.executable, "-c", program], container.environment({}))
    wait_until((tmp_path / "ready").exists)
    start = time.monotonic()
    container.stop(60)
    assert (tmp_path / "ended").exists()
    assert time.monotonic() - start < 50


def test_this_process_is_never_among_those_to_end(container, monkeypatch):
    """Whoever ends a container may have been started in it."""
    environment = processes.Started(container.root).begin()
    program = (
        "import os, sys; from pathlib import Path; from fastmaker.local.containers import Container;"
        f"Container(Path({str(container.root)!r})).stop(0); print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True)
    assert done.stdout.strip() == "alive", done.stderr


def test_ports_are_not_those_of_another_process_with_the_same_seed():
    found = []
    for _ in range(2):
        random.seed(1)
        found.append(free_ports(3))
    assert found[0] != found[1]
    assert random.random() == random.Random(1).random()

"""Files that exist whole or not at all."""

import os
import subprocess
import sys
import threading

import pytest

from fastmaker import files


def test_a_file_appears_at_the_end_of_the_block_alone(tmp_path):
    target = tmp_path / "model.json"
    with files.atomic(target) as partial:
        partial.write_text("{}")
        assert partial.parent == tmp_path
        assert not target.exists()
    assert target.read_text() == "{}"
    assert os.listdir(tmp_path) == ["model.json"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_file_of_before_and_no_partial_one(tmp_path, error):
    target = tmp_path / "model.json"
    target.write_text("before")

    def fail():
        with files.atomic(target) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["model.json"]


def test_a_block_that_writes_nothing_raises(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic(tmp_path / "model.json"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_file_has_the_mode_that_the_umask_gives(tmp_path):
    (tmp_path / "plain").touch()
    with files.atomic(tmp_path / "atomic") as partial:
        partial.touch()
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    target = tmp_path / "model.json"

    def write(letter):
        for _ in range(20):
            with files.atomic(target) as partial:
                partial.write_text(letter * 10_000)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert target.read_text() in {letter * 10_000 for letter in "abcd"}
    assert os.listdir(tmp_path) == ["model.json"]


def test_a_killed_writer_leaves_the_file_of_before(tmp_path):
    target = tmp_path / "model.json"
    target.write_text("before")
    program = (
        "import os, sys\nfrom fastmaker import files\nwith files.atomic(sys.argv[1]) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(target)]).returncode == -9
    assert target.read_text() == "before"
    assert [name.endswith(".partial") for name in sorted(os.listdir(tmp_path))] == [True, False]


def test_a_target_that_cannot_be_replaced_leaves_no_partial_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_text(tmp_path / "folder", "text")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks /proc what is synced")
def test_the_file_and_then_its_folder_are_on_the_disk_before_the_writer_goes_on(tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def record(descriptor):
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "file").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    files.write_text(tmp_path / "file", "text")
    (partial, before), (folder, after) = synced
    assert os.path.dirname(partial) == folder == str(tmp_path)
    assert (before, after) == (False, True)

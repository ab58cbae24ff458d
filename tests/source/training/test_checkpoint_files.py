"""Checkpoint files: complete or skipped, the newest two."""

import os
import signal
from pathlib import Path

import pytest
import torch
from helpers import PATIENCE

from fastmaker.training import checkpoint
from fastmaker.training.arguments import parse_args

OUTSIDE = ("SM_", "SAGEMAKER_")
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(OUTSIDE)}


@pytest.fixture(autouse=True)
def no_container(monkeypatch):
    """None of the training container's variables are set."""
    for name in os.environ:
        if name.startswith(OUTSIDE):
            monkeypatch.delenv(name)


def state(epoch, **more):
    return {"epoch": epoch, "batch": 0, "run": {"arch": "convnet"}, "weights": torch.full((100,), float(epoch)), **more}


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_the_newest_two_are_kept(tmp_path):
    for epoch in range(1, 6):
        checkpoint.write(tmp_path, state(epoch))
    assert names(tmp_path) == ["epoch-0004.pt", "epoch-0005.pt"]
    path, found, damaged = checkpoint.newest(tmp_path)
    assert (path, found["epoch"], damaged) == (tmp_path / "epoch-0005.pt", 5, [])
    assert torch.equal(found["weights"], torch.full((100,), 5.0))


def test_the_newest_is_the_one_with_the_highest_number(tmp_path):
    for epoch in (9999, 10000):
        checkpoint.write(tmp_path, state(epoch))
    assert checkpoint.newest(tmp_path)[1]["epoch"] == 10000


def test_batches_after_an_epoch_are_newer_than_it_and_older_than_the_next(tmp_path):
    for epoch, batch in ((3, 0), (3, 99), (3, 100)):
        checkpoint.write(tmp_path, state(epoch) | {"batch": batch})
        assert checkpoint.newest(tmp_path)[1]["batch"] == batch
    assert names(tmp_path) == ["epoch-0003-batch-000099.pt", "epoch-0003-batch-000100.pt"]
    checkpoint.write(tmp_path, state(4))
    assert checkpoint.newest(tmp_path)[1]["epoch"] == 4


def test_an_empty_directory_holds_none(tmp_path):
    assert checkpoint.newest(tmp_path) == (None, None, [])


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def become_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [cut, flip, empty, become_a_folder])
def test_a_damaged_one_is_passed_over_for_the_one_before(tmp_path, damage):
    for epoch in (1, 2):
        checkpoint.write(tmp_path, state(epoch))
    damage(tmp_path / "epoch-0002.pt")
    _, found, [line] = checkpoint.newest(tmp_path)
    assert found["epoch"] == 1
    assert line.startswith(f"checkpoint {tmp_path / 'epoch-0002.pt'} is skipped: ")
    assert "\n" not in line


def test_when_all_are_damaged_there_is_none(tmp_path):
    for epoch in (1, 2):
        flip(checkpoint.write(tmp_path, state(epoch)))
    path, found, damaged = checkpoint.newest(tmp_path)
    assert (path, found, len(damaged)) == (None, None, 2)


def test_damaged_ones_do_not_count_as_kept_when_the_run_began_anew(tmp_path):
    for epoch in (7, 8):
        flip(checkpoint.write(tmp_path, state(epoch)))
    checkpoint.write(tmp_path, state(1))
    assert names(tmp_path) == ["epoch-0001.pt"]


def test_what_a_killed_process_left_half_written_is_not_read_and_goes_away(tmp_path):
    checkpoint.write(tmp_path, state(1))
    (tmp_path / "epoch-0002.pt.partial").write_bytes(b"half")
    assert checkpoint.newest(tmp_path)[1]["epoch"] == 1
    checkpoint.write(tmp_path, state(2))
    assert names(tmp_path) == ["epoch-0001.pt", "epoch-0002.pt"]


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    checkpoint.write(tmp_path, state(1, trap=Trap()))
    path, _, [line] = checkpoint.newest(tmp_path)
    assert path is None
    assert "weights_only" in line
    assert not (tmp_path / "sprung").exists()


def test_a_newer_format_is_refused(tmp_path):
    path = checkpoint.write(tmp_path, state(1))
    _, found, _ = checkpoint.newest(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="has the format 2; this version reads 1"):
        checkpoint.check(path, found | {"format": 2}, {"arch": "convnet"})


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint can be written into"):
        checkpoint.prepare(tmp_path / "file")


def test_the_directory_is_the_platforms_if_the_job_has_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    assert parse_args(["--train", "images"]).checkpoint_dir is None
    (tmp_path / "checkpoints").mkdir()
    assert parse_args(["--train", "images"]).checkpoint_dir == str(tmp_path / "checkpoints")


def test_sigterm_ends_the_process_again_after_the_training():
    before = signal.getsignal(signal.SIGTERM)
    with checkpoint.sigterm_event() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(PATIENCE)
    assert signal.getsignal(signal.SIGTERM) is before

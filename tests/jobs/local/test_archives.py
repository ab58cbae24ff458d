"""Archives that are not what they seem: each is refused in one line, and nothing is written outside of the folder."""

import gzip
import io
import os
import shutil
import tarfile
import time

import pytest
from helpers.local_mode import bundle_model

from fastmaker.local import archives
from fastmaker.local.containers import ContainerError, unpack

MB = archives.MB


class Zeros(io.RawIOBase):
    def read(self, size=-1):
        return bytes(size)


def member(name, size=0, **values):
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in values.items():
        setattr(info, key, value)
    return info


def archive_of(path, *members, mode="w:gz", **options):
    with tarfile.open(path, mode, **options) as tar:
        for info in members:
            tar.addfile(info, Zeros() if info.isreg() else None)
    return path


def with_header_of(path, size):
    """An archive whose extended header, which is read as a whole, has `size` bytes."""
    with gzip.open(path, "wb", 1) as file:
        file.write(member("x", size, type=tarfile.XHDTYPE).tobuf())
        for _ in range(size // MB):
            file.write(bytes(MB))
    return path


def sparse(path):
    """A file of a terabyte that has no bytes."""
    headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "x",
        "GNU.sparse.realsize": str(2**40),
    }
    info = member("x", 512, pax_headers=headers)
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"0\n".ljust(512, b"\0")))
    return path


LIMIT = "it holds more than 256 MB, and more than 100 times its own size; FASTMAKER_MAX_UNPACKED_MB sets another limit"
LINK, HARD, PIPE, DEVICE = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.BLKTYPE
BAD = {
    "a size": (lambda path: path.write_bytes(member("model.pth", 2000 * MB).tobuf()), LIMIT),
    "zeros of bzip2": (lambda path: archive_of(path, member("x", 300 * MB), mode="w:bz2", compresslevel=1), LIMIT),
    "a header": (lambda path: with_header_of(path, 400 * MB), LIMIT),
    "a sparse file": (sparse, LIMIT),
    "a name that leads out": (lambda path: archive_of(path, member("../x")), "outside the destination"),
    "a link that leads out": (lambda path: archive_of(path, member("x", type=LINK, linkname="/etc")), "absolute path"),
    "a link that leads up": (lambda path: archive_of(path, member("x", type=LINK, linkname="../..")), "outside"),
    "a hard link that leads out": (lambda path: archive_of(path, member("x", type=HARD, linkname="../x")), "outside"),
    "a pipe": (lambda path: archive_of(path, member("x", type=PIPE)), "is a special file"),
    "a device": (lambda path: archive_of(path, member("x", type=DEVICE)), "is a special file"),
    "text": (lambda path: path.write_text("text"), "cannot be unpacked"),
    "nothing": (lambda path: path.touch(), "cannot be unpacked"),
    "half of one": (
        lambda path: path.write_bytes(archive_of(path, member("x", MB)).read_bytes()[:-300]),
        "cannot be unpacked",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_archive_is_refused_in_one_line(name, tmp_path):
    make, reason = BAD[name]
    path = tmp_path / "model.tar.gz"
    make(path)
    start = time.monotonic()
    with pytest.raises(ContainerError) as error:
        unpack(path, tmp_path / "model")
    assert time.monotonic() - start < 20
    line = str(error.value)
    assert line.startswith(f"{path} cannot be unpacked: ")
    assert reason in line
    assert len(line.splitlines()) == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.tar.gz", "model"}
    assert not any(os.path.islink(entry) for entry in (tmp_path / "model").iterdir())


@pytest.mark.parametrize("name", ["a header", "a sparse file", "text", "half of one"])
def test_the_names_in_an_archive_are_read_within_the_same_limits(name, tmp_path):
    make, reason = BAD[name]
    make(tmp_path / "x")
    with pytest.raises(archives.ArchiveError, match="cannot be unpacked") as error:
        archives.names(tmp_path / "x")
    assert reason in str(error.value)


SLOW_OR_NONE = ("zeros of bzip2", "text", "nothing", "half of one")
FIRST_TOUCHED = {
    **{name: (make, True) for name, (make, _) in BAD.items() if name not in SLOW_OR_NONE},
    "text": (BAD["text"][0], False),
    "nothing": (BAD["nothing"][0], False),
    "a text of gzip": (lambda path: path.write_bytes(gzip.compress(b"text" * 1000)), False),
    "zeros": (lambda path: path.write_bytes(bytes(2000)), True),  # an archive without files
    "the beginning of gzip": (lambda path: path.write_bytes(b"\x1f\x8b"), False),
    "the beginning of bzip2": (lambda path: path.write_bytes(b"BZ"), False),
    "the beginning of xz": (lambda path: path.write_bytes(b"\xfd7"), False),
}


@pytest.mark.parametrize("name", FIRST_TOUCHED)
def test_a_look_whether_it_is_an_archive_reads_no_more_than_its_beginning(name, tmp_path, monkeypatch):
    make, expected = FIRST_TOUCHED[name]
    make(tmp_path / "x")
    sizes = []

    class Watched(io.BufferedReader):
        def read(self, size=-1):
            sizes.append(size)
            return super().read(size)

    stream = archives._stream
    monkeypatch.setattr(archives, "_stream", lambda path: Watched(stream(path)))
    assert archives.is_archive(tmp_path / "x") is expected
    assert sizes == [tarfile.BLOCKSIZE]


def test_a_model_that_is_packed_anew_with_its_code_is_read_within_the_same_limits(session, write_script, tmp_path):
    with_header_of(tmp_path / "model.tar.gz", 400 * MB)
    model = bundle_model(session, tmp_path / "model.tar.gz", entry_point="train.py", source_dir=str(write_script("")))
    with pytest.raises(archives.ArchiveError, match=LIMIT):
        model.create("local")
    assert session.sagemaker_client.repacked_models.names() == []


def test_another_limit_can_be_set(tmp_path, monkeypatch):
    path = archive_of(tmp_path / "x", member("zeros", 260 * MB), compresslevel=1)
    monkeypatch.setenv("FASTMAKER_MAX_UNPACKED_MB", "400")
    unpack(path, tmp_path / "model")
    assert (tmp_path / "model" / "zeros").stat().st_size == 260 * MB
    monkeypatch.setenv("FASTMAKER_MAX_UNPACKED_MB", "1")
    with pytest.raises(ContainerError, match="holds more than 1 MB; FASTMAKER_MAX_UNPACKED_MB sets another limit"):
        unpack(path, tmp_path / "again")
    archive_of(path, *[member(f"{number}") for number in range(300)])  # each takes space on the disk
    with pytest.raises(ContainerError, match="holds more than 1 MB"):
        unpack(path, tmp_path / "again")


def test_what_the_disk_has_no_space_for_is_refused_before_it_is_written(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=10 * MB)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: free)
    path = archive_of(tmp_path / "x", member("small", MB), member("large", 20 * MB))
    with pytest.raises(ContainerError, match="it needs more than the 10 MB that are free in"):
        unpack(path, tmp_path / "model")
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["small"]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
def test_a_usual_archive_is_unpacked_however_it_was_packed(tmp_path, mode):
    (tmp_path / "in" / "code").mkdir(parents=True)
    (tmp_path / "in" / "code" / "inference.py").write_text("text")
    (tmp_path / "in" / "link").symlink_to("code/inference.py")
    with tarfile.open(tmp_path / "x", mode) as tar:
        tar.add(tmp_path / "in", ".")
    unpack(tmp_path / "x", tmp_path / "out")
    assert (tmp_path / "out" / "link").read_text() == "text"
    assert (tmp_path / "out" / "link").is_symlink()
    assert archives.names(tmp_path / "x") == {".", "code", "code/inference.py", "link"}

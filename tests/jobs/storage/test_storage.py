"""Objects in folders and in S3: listed, looked up, read and written."""

import contextlib
import io
import math
import os
import random
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers.front import client_of
from helpers.objects import NAMES, data_of

from fastmaker.jobs import storage
from fastmaker.jobs.storage import StorageError
from fastmaker.jobs.storage.s3 import client as s3_client

PAGE = 1000  # keys that S3 lists in one answer
MANY = PAGE + 200


def listed(uri):
    root, found = storage.list_objects(uri)
    return {root + name: size for name, size in found}


def read(uri):
    with contextlib.closing(storage.open_object(uri)) as stream:
        return stream.read()


@pytest.fixture
def requests(s3):
    """Counts of the requests that the storage makes of S3, by their names."""
    counts = Counter()
    s3_client().meta.events.register("before-call.s3", lambda model, **_: counts.update([model.name]))
    return counts


@pytest.fixture(scope="module")
def crowded(front):
    """A bucket of more keys than a page holds, and the size of each by a request of its own."""
    s3 = client_of({**front, "AWS_DEFAULT_REGION": "us-east-1"}, "s3")
    s3.create_bucket(Bucket="crowded")
    names = [*(f"{number:04}" for number in range(MANY)), "z", "zz/a", "ä", "😀"]

    def put_and_look_up(name):
        s3.put_object(Bucket="crowded", Key=f"many/{name}", Body=b"x" * (len(name) + int("7" in name)))
        return name, s3.head_object(Bucket="crowded", Key=f"many/{name}")["ContentLength"]

    with ThreadPoolExecutor(8) as pool:
        return dict(pool.map(put_and_look_up, names))


def test_objects_of_any_name_are_listed_with_their_sizes_and_found_again(place):
    for name in NAMES:
        place.put(name, data_of(name))
    assert listed(place.uri) == {f"{place.uri}/{name}": len(data_of(name)) for name in NAMES}
    assert dict(storage.sizes(f"{place.uri}/", sorted(NAMES))) == {name: len(data_of(name)) for name in NAMES}
    assert {name: read(f"{place.uri}/{name}") for name in NAMES} == {name: data_of(name) for name in NAMES}


def test_objects_of_any_name_are_written_and_replaced(place):
    for data in (b"before", b""):
        for name in NAMES:
            storage.put_stream(io.BytesIO(data + name.encode()), f"{place.uri}/{name}")
        assert place.names() == set(NAMES)
        assert all(read(f"{place.uri}/{name}") == data + name.encode() for name in NAMES)


def test_a_name_as_it_stands_goes_before_the_one_it_quotes(tmp_path):
    (tmp_path / "two words").mkdir()
    (tmp_path / "two words" / "file").write_bytes(b"quoted")
    assert listed(f"file://{tmp_path}/two%20words") == {f"file://{tmp_path}/two words/file": len(b"quoted")}
    (tmp_path / "two%20words").mkdir()
    (tmp_path / "two%20words" / "other").write_bytes(b"literal")
    assert listed(f"file://{tmp_path}/two%20words") == {f"file://{tmp_path}/two%20words/other": len(b"literal")}


def test_a_folder_may_be_named_from_where_one_is(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    assert listed("file://folder") == listed(f"file://{tmp_path}/folder") == {f"file://{tmp_path}/folder/file": 1}


def test_a_folder_named_from_where_one_is_may_have_brackets(tmp_path, monkeypatch):
    (tmp_path / "run[1").mkdir()
    (tmp_path / "run[1" / "file").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    assert listed("file://run[1") == {f"file://{tmp_path}/run[1/file": 1}


def test_empty_objects_are_listed_and_folders_are_not(place, request):
    place.put("empty", b"")
    place.put("sub/empty", b"")
    if place.uri.startswith("s3://"):
        place.put("", b"")
        place.put("folder/", b"")
    else:
        (request.getfixturevalue("tmp_path") / "a place" / "folder").mkdir()
    assert listed(place.uri) == {f"{place.uri}/empty": 0, f"{place.uri}/sub/empty": 0}


def test_an_object_with_data_is_listed_also_if_its_key_ends_with_a_slash(s3, bucket):
    s3.put_object(Bucket=bucket, Key="data/", Body=b"12345")
    assert listed(f"s3://{bucket}/data") == {f"s3://{bucket}/data/": 5}


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", {"img/a", "img2/b", "im", "other"}),
        ("im", {"img/a", "img2/b", "im"}),
        ("img", {"img/a", "img2/b"}),
        ("img/", {"img/a"}),
        ("img2/b", {"img2/b"}),
        ("no", set()),
    ],
)
def test_a_prefix_in_s3_means_every_key_that_begins_with_it(s3, bucket, prefix, expected):
    for key in ("img/a", "img2/b", "im", "other"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    assert listed(f"s3://{bucket}/{prefix}").keys() == {f"s3://{bucket}/{key}" for key in expected}


def test_a_bucket_is_listed_with_and_without_a_slash(s3, bucket):
    s3.put_object(Bucket=bucket, Key="key", Body=b"x")
    assert listed(f"s3://{bucket}") == listed(f"s3://{bucket}/") == {f"s3://{bucket}/key": 1}


def test_a_folder_is_listed_with_and_without_a_slash_and_without_its_siblings(tmp_path):
    for name in ("img/a", "img2/b"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    assert listed(f"file://{tmp_path}/img") == listed(f"file://{tmp_path}/img/") == {f"file://{tmp_path}/img/a": 1}


def test_one_file_is_a_list_of_one(place):
    place.put("sub/one; file", b"abc")
    place.put("sub/other", b"")
    assert listed(f"{place.uri}/sub/one; file") == {f"{place.uri}/sub/one; file": 3}


def test_files_behind_links_are_listed_as_what_they_lead_to(tmp_path):
    (tmp_path / "elsewhere" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere" / "sub" / "file").write_bytes(b"abc")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "linked file").symlink_to(tmp_path / "elsewhere" / "sub" / "file")
    (folder / "linked folder").symlink_to(tmp_path / "elsewhere")
    expected = {f"file://{folder}/linked file": 3, f"file://{folder}/linked folder/sub/file": 3}
    assert listed(f"file://{folder}") == expected


def test_a_link_back_to_its_own_folder_is_an_error_or_listed_once(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "loop").symlink_to(tmp_path)
    with contextlib.suppress(StorageError):
        assert listed(f"file://{tmp_path}") == {f"file://{tmp_path}/file": 3}


def test_a_link_that_leads_nowhere_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match="broken"):
        listed(f"file://{tmp_path}")


def test_every_page_of_a_prefix_is_listed(crowded, s3):
    assert listed("s3://crowded/many") == {f"s3://crowded/many/{name}": size for name, size in crowded.items()}


@pytest.mark.parametrize(
    "names",
    [
        [f"{number:04}" for number in range(MANY)],
        [f"{number:04}" for number in range(0, MANY, 17)],
        ["0000", "1100"],
        ["0099", "1150", "1199", "z"],
        ["0999", "1000", "1001"],
        ["1100", "z", "zz/a", "ä", "😀"],
        ["z"],
        ["zz/a"],
        ["😀"],
        ["", "0", "00000", "0999x", "1", "1050", "1199", "1200", "2", "9", "y", "z", "zy", "zz", "ö"],
        ["y"],
        ["~"],
    ],
    ids=lambda names: f"{len(names)} from {names[0]!r}",
)
def test_sizes_in_s3_are_those_of_each_object_and_none_where_there_is_none(crowded, s3, names):
    assert list(storage.sizes("s3://crowded/many/", names)) == [(name, crowded.get(name)) for name in names]


def test_sizes_in_s3_are_right_for_any_names(crowded, s3):
    rng = random.Random(5)
    every = sorted(crowded) + [f"{name}{end}" for name in crowded for end in ("x", "/", "0")]
    for _ in range(10):
        names = sorted(rng.sample(every, int(2 ** rng.uniform(0, 11))))
        assert dict(storage.sizes("s3://crowded/many/", names)) == {name: crowded.get(name) for name in names}


def test_sizes_in_s3_take_one_request_for_a_page_of_names(crowded, s3, requests):
    names = [f"{number:04}" for number in range(MANY)]
    assert dict(storage.sizes("s3://crowded/many/", names)) == {name: crowded[name] for name in names}
    assert requests == {"ListObjectsV2": math.ceil(len(names) / PAGE)}


@pytest.mark.parametrize("prefix", ["many", "many/0", ""])
def test_sizes_in_s3_are_looked_up_by_prefix_and_name_put_together(crowded, s3, prefix):
    key = "many/0007"
    names = [key.removeprefix(prefix), "~"]
    assert list(storage.sizes(f"s3://crowded/{prefix}", names)) == [(names[0], crowded["0007"]), ("~", None)]


def test_names_of_nothing_and_of_folders_have_no_size(place):
    place.put("sub/file", b"abc")
    names = ["", "file", "sub", "sub/", "sub/fil", "sub/file", "sub/file/below", "sub/file2", "ü", "\0"]
    expected = [(name, 3 if name == "sub/file" else None) for name in names]
    assert list(storage.sizes(f"{place.uri}/", names)) == expected


def test_a_file_is_not_found_by_its_name_and_a_slash(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert list(storage.sizes(f"file://{tmp_path}/", ["file/"])) == [("file/", None)]


def test_a_file_name_longer_than_any_can_be_has_no_size(tmp_path):
    name = "x" * 300
    assert list(storage.sizes(f"file://{tmp_path}/", [name])) == [(name, None)]


@pytest.mark.parametrize("use", [storage.check_writable, listed])
def test_a_folder_name_longer_than_any_can_be_is_an_error_that_names_it(tmp_path, use):
    uri = f"file://{tmp_path}/{'x' * 300}"
    with pytest.raises(StorageError, match=uri):
        use(uri)


def test_what_is_missing_is_an_error_that_names_it(s3, bucket, tmp_path):
    missing = [f"file://{tmp_path}/missing", f"s3://{bucket}/missing", "s3://no-such-bucket/key"]
    for uri in missing:
        with pytest.raises(StorageError) as failed:
            storage.open_object(uri)
        assert uri in str(failed.value)
    for uri in (missing[0], missing[2]):
        with pytest.raises(StorageError) as failed:
            listed(uri)
        assert uri in str(failed.value)
    with pytest.raises(StorageError, match="no-such-bucket"):
        list(storage.sizes("s3://no-such-bucket/", ["a"]))
    with pytest.raises(StorageError, match=str(tmp_path)):
        storage.open_object(f"file://{tmp_path}")


@pytest.mark.parametrize("uri", ["https://host/path", "gs://bucket/key", "/a/path", "data", ""])
def test_what_is_neither_a_file_nor_s3_is_refused(uri):
    for use in (storage.check_writable, listed):
        with pytest.raises(StorageError, match="s3://"):
            use(uri)


def test_an_error_of_s3_is_one_line(s3):
    with pytest.raises(StorageError) as failed:
        listed("s3://no bucket name/key")
    assert "\n" not in str(failed.value)


class Cut(BaseHTTPRequestHandler):
    """A server that hangs up within each answer."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 10)
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_):
        pass


def test_a_connection_that_breaks_while_an_object_is_read_is_an_error_that_names_it(s3, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Cut) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
            with pytest.raises(StorageError, match="s3://bucket/key"):
                read("s3://bucket/key")
        finally:
            server.shutdown()


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_what_is_larger_than_one_request_arrives_whole(place, extra):
    data = random.Random(extra).randbytes(storage.ONE_PUT + extra)
    storage.put_stream(io.BytesIO(data), f"{place.uri}/large")
    assert read(f"{place.uri}/large") == data
    assert place.names() == {"large"}


class Broken(io.RawIOBase):
    """A stream that fails after some bytes."""

    def __init__(self, size):
        self.left = size

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self.left:
            raise OSError(5, "Input/output error")
        count = min(self.left, len(buffer))
        self.left -= count
        buffer[:count] = b"x" * count
        return count


@pytest.mark.parametrize("before", [None, b"before"])
@pytest.mark.parametrize("size", [0, 100_000])
def test_a_stream_that_fails_leaves_what_was_there(place, before, size):
    if before:
        place.put("target", before)
    with pytest.raises(OSError, match="Input/output error"):
        storage.put_stream(io.BufferedReader(Broken(size)), f"{place.uri}/target")
    assert place.names() == ({"target"} if before else set())
    assert not before or read(f"{place.uri}/target") == before


@pytest.mark.parametrize("name", ["folder", "file/below", "x" * 300])
def test_what_cannot_be_written_is_an_error_that_names_it_and_leaves_nothing(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"before")
    with pytest.raises(StorageError, match=f"file://{tmp_path}/{name}: "):
        storage.put_stream(io.BytesIO(b"data"), f"file://{tmp_path}/{name}")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"before"


@pytest.mark.parametrize("size", [4, storage.ONE_PUT + 1])
def test_writing_to_a_bucket_that_is_missing_is_an_error_that_names_it(s3, size):
    with pytest.raises(StorageError, match="s3://no-such-bucket/key"):
        storage.put_stream(io.BytesIO(bytes(size)), "s3://no-such-bucket/key")


def test_many_objects_are_written_at_once(place):
    names = [f"{number % 3}/{number}" for number in range(60)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.put_stream(io.BytesIO(data_of(name)), f"{place.uri}/{name}"), names))
    assert place.names() == set(names)
    assert all(read(f"{place.uri}/{name}") == data_of(name) for name in names)


@pytest.mark.parametrize("name", ["", "/", "/new", "/new/and deeper/"])
def test_a_place_that_can_be_written_to_passes_and_nothing_is_left_there(place, name, tmp_path, request):
    storage.check_writable(f"{place.uri}{name}")
    assert place.names() == set()
    assert os.listdir(tmp_path / "a place" if place.uri.startswith("file") else tmp_path) == []
    if place.uri.startswith("s3"):
        uploads = request.getfixturevalue("s3").list_multipart_uploads(Bucket=request.getfixturevalue("bucket"))
        assert "Uploads" not in uploads


def test_a_place_that_cannot_be_written_to_is_an_error_that_names_it(s3, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "file").chmod(0o777)
    for uri in ("s3://no-such-bucket/out", f"file://{tmp_path}/file", f"file://{tmp_path}/file/below/it"):
        with pytest.raises(StorageError) as failed:
            storage.check_writable(uri)
        assert uri in str(failed.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_to_write_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="written"):
        storage.check_writable(f"file://{tmp_path}/out")


@pytest.mark.parametrize(
    ("prefix", "all_below", "expected"),
    [
        ("", True, ""),
        ("img", True, "img/"),
        ("img", False, ""),
        ("img/", True, "img/"),
        ("img/", False, "img/"),
        ("some/img", True, "some/img/"),
        ("some/img", False, "some/"),
        ("some/img/a.jpg", False, "some/img/"),
    ],
)
def test_names_are_cut_at_the_folder_of_a_prefix(prefix, all_below, expected):
    assert storage.folder_of(prefix, all_below) == expected


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for uri in (f"file://{tmp_path}/pipe", "file:///dev/zero"):
        with pytest.raises(StorageError, match="neither a file nor a directory"):
            storage.check(uri)
    with pytest.raises(StorageError, match="/pipe: a pipe"):
        listed(f"file://{tmp_path}")

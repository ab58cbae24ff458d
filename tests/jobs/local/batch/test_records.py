"""Objects into request payloads: SplitType, BatchStrategy, MaxPayloadInMB and gzip."""

import gzip
import io
import itertools
import random
import struct
import tracemalloc

import numpy as np
import pytest
from sagemaker.amazon.common import _write_recordio, read_recordio, read_records, write_numpy_to_dense_tensor

from fastmaker.jobs import storage
from fastmaker.local.batch import records
from fastmaker.local.batch.records import MB, RecordError, payloads

STRATEGIES = ("SingleRecord", "MultiRecord")
SPLIT_TYPES = ("None", "Line", "RecordIO")
RECORDS = [b"", b"a", b"ab", b"abc", b"abcd", b"abcde", bytes(range(256)), "ünïcode\r\n".encode()]
LINES = {
    b"a\nb\n": [b"a", b"b"],
    b"a\nb": [b"a", b"b"],
    b"a": [b"a"],
    b"a\r\nb\r\n": [b"a", b"b"],
    b"a\r\nb": [b"a", b"b"],
    b"a\r\r\nb": [b"a\r", b"b"],
    b"a\rb\n": [b"a\rb"],
    b"a\n\nb\n": [b"a", b"", b"b"],
    b"\n": [b""],
    b"\r\n\n": [b"", b""],
    b" a \n\tb\x00\xff\n": [b" a ", b"\tb\x00\xff"],
    "ä\u2028ö\x85\x0cü\n".encode(): ["ä\u2028ö\x85\x0cü".encode()],
}


def split(data, split_type="Line", strategy="MultiRecord", limit=1, gzipped=False):
    return list(payloads(io.BytesIO(data), split_type, strategy, limit, gzipped))


def record_io(records):
    stream = io.BytesIO()
    for record in records:
        _write_recordio(stream, record)
    return stream.getvalue()


def lines(records):
    return b"".join(record + b"\n" for record in records)


def sizes_up_to(limit, random):
    """Sizes of many orders of magnitude, some of them at the limit, of about 20 limits together."""
    sizes = [0, 1, limit, limit - 1, limit // 2, limit // 2]
    while sum(sizes) < 20 * limit:
        sizes.append(min(limit, int(2 ** random.uniform(8, 20.5))))
    random.shuffle(sizes)
    return sizes


@pytest.fixture
def rng():
    return random.Random(11)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("data", [b"", b"a\r\nb\n\n", bytes(range(256)), record_io(RECORDS)])
def test_an_object_that_is_not_split_goes_as_it_is(data, strategy):
    assert split(data, "None", strategy) == [data]


@pytest.mark.parametrize(("data", "records"), LINES.items())
def test_lines_go_alone_and_without_their_ends_or_together_with_a_newline_between(data, records):
    assert split(data, "Line", "SingleRecord") == records
    assert split(data, "Line", "MultiRecord") == [b"\n".join(records)]


def test_recordio_goes_alone_and_without_padding_or_together_as_it_stands():
    data = record_io(RECORDS)
    assert split(data, "RecordIO", "SingleRecord") == RECORDS == list(read_recordio(io.BytesIO(data)))
    assert split(data, "RecordIO", "MultiRecord") == [data]


def test_recordio_of_tensors_is_split_into_the_records_that_the_sdk_reads():
    written = io.BytesIO()
    write_numpy_to_dense_tensor(written, np.arange(35.0).reshape(7, 5), np.arange(7))
    written.seek(0)
    expected = read_records(written)
    found = split(written.getvalue(), "RecordIO", "SingleRecord")
    assert [record.SerializeToString() for record in expected] == found


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("split_type", ["Line", "RecordIO"])
@pytest.mark.parametrize(("data", "gzipped"), [(b"", False), (gzip.compress(b"", mtime=0), True)])
def test_an_empty_object_has_no_record(data, gzipped, split_type, strategy):
    assert split(data, split_type, strategy, gzipped=gzipped) == []


@pytest.mark.parametrize(
    ("split_type", "strategy", "wrap"),
    [
        ("None", "MultiRecord", bytes),
        ("None", "SingleRecord", bytes),
        ("Line", "SingleRecord", bytes),
        ("Line", "SingleRecord", lambda line: line + b"\n"),
        ("Line", "SingleRecord", lambda line: line + b"\r\n"),
        ("Line", "MultiRecord", bytes),
        ("Line", "MultiRecord", lambda line: line + b"\r\n"),
        ("RecordIO", "SingleRecord", lambda record: record_io([record])),
        ("RecordIO", "MultiRecord", lambda record: record_io([record])),
    ],
)
@pytest.mark.parametrize("limit", [1, 3])
def test_a_record_may_be_as_large_as_the_limit_and_one_byte_more_fails_the_object(split_type, strategy, wrap, limit):
    largest = b"x" * limit * MB
    (payload,) = split(wrap(largest), split_type, strategy, limit)
    assert payload in (largest, record_io([largest]))
    with pytest.raises(RecordError, match=f"larger than MaxPayloadInMB, which is {limit} MB"):
        split(wrap(largest + b"x"), split_type, strategy, limit)


@pytest.mark.parametrize("wrap", [lines, record_io])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_record_that_is_too_large_fails_the_object_wherever_it_stands(wrap, strategy):
    split_type = "Line" if wrap is lines else "RecordIO"
    for position in range(3):
        records = [b"small", b"small"]
        records.insert(position, b"x" * (MB + 1))
        with pytest.raises(RecordError, match="larger than MaxPayloadInMB"):
            split(wrap(records), split_type, strategy)


@pytest.mark.parametrize("split_type", SPLIT_TYPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_limit_of_zero_takes_any_size(split_type, strategy):
    records = [b"x" * (7 * MB), b"y" * (2 * MB)]
    data = record_io(records) if split_type == "RecordIO" else b"\n".join(records)
    whole = split_type == "None" or strategy == "MultiRecord"
    assert split(data, split_type, strategy, limit=0) == ([data] if whole else records)


def test_batches_of_lines_hold_each_line_in_its_place_as_many_as_fit(rng):
    records = [rng.randbytes(size).replace(b"\n", b" ").replace(b"\r", b" ") for size in sizes_up_to(MB, rng)]
    batches = split(lines(records), "Line")
    assert b"\n".join(batches).split(b"\n") == records
    assert max(map(len, batches)) <= MB
    for batch, after in itertools.pairwise(batches):
        assert len(batch) + len(b"\n") + len(after.split(b"\n")[0]) > MB


def test_batches_of_recordio_hold_each_record_in_its_place_and_whole(rng):
    records = [rng.randbytes(size) for size in sizes_up_to(MB - 8, rng)]
    batches = split(record_io(records), "RecordIO")
    assert [record for batch in batches for record in read_recordio(io.BytesIO(batch))] == records
    assert max(map(len, batches)) <= MB


@pytest.mark.parametrize("wrap", [b"\n".join, record_io])
def test_a_batch_of_one_byte_over_the_limit_is_two(wrap):
    half = b"x" * (MB // 2 - len(wrap([b"", b""])) // 2)
    over = wrap([half, half + b"x"])
    assert MB < len(over) <= MB + 4
    split_type = "RecordIO" if wrap is record_io else "Line"
    assert split(over, split_type) == [wrap([half]), wrap([half + b"x"])]


def test_newlines_count_in_batches_of_short_lines():
    data = b"\n".join([b"", b"x"] * MB)
    batches = split(data, "Line")
    assert b"\n".join(batches) == data
    assert max(map(len, batches)) <= MB


@pytest.mark.parametrize(
    "data",
    [
        b"a" * (MB // 2) + b"\n" + b"b" * (MB // 2 - 1),
        record_io([b"r" * (MB // 4 - 8)] * 4),
        record_io([b"a"] * (MB // len(record_io([b"a"])))),
    ],
    ids=["Line", "RecordIO", "RecordIO of small records"],
)
def test_records_that_fill_the_limit_to_the_byte_go_in_one_request(data):
    split_type = "Line" if data.startswith(b"a") else "RecordIO"
    assert list(map(len, split(data, split_type))) == [len(data)]


@pytest.mark.parametrize("split_type", SPLIT_TYPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_gzipped_object_gives_what_the_plain_one_gives(split_type, strategy, rng):
    records = [rng.randbytes(size).replace(b"\n", b"") for size in range(0, 4000, 7)]
    half = len(records) // 2
    parts = [record_io(part) if split_type == "RecordIO" else lines(part) for part in (records[:half], records[half:])]
    plain = split(b"".join(parts), split_type, strategy, limit=10)
    assert len(plain) == (len(records) if split_type != "None" and strategy == "SingleRecord" else 1)
    assert split(gzip.compress(b"".join(parts)), split_type, strategy, limit=10, gzipped=True) == plain
    assert split(b"".join(map(gzip.compress, parts)), split_type, strategy, limit=10, gzipped=True) == plain


@pytest.mark.parametrize("split_type", ["None", "Line"])
def test_a_gzip_file_does_not_fill_the_memory_of_a_job_that_sets_no_limit(monkeypatch, split_type):
    monkeypatch.setattr(records, "UNPACKED", 2 * MB)
    with pytest.raises(RecordError, match="is larger than what gzip may hold, which is 2 MB"):
        split(gzip.compress(bytes(3 * MB)), split_type, limit=0, gzipped=True)
    assert split(gzip.compress(bytes(2 * MB)), split_type, limit=0, gzipped=True) == [bytes(2 * MB)]
    assert split(bytes(3 * MB), split_type, limit=0) == [bytes(3 * MB)]


@pytest.mark.parametrize("split_type", ["None", "Line"])
def test_a_gzip_file_that_is_cut_off_anywhere_fails_the_object(split_type):
    data = gzip.compress(b"some lines\n" * 20)
    for length in range(1, len(data)):
        with pytest.raises(RecordError, match="no whole gzip file"):
            split(data[:length], split_type, gzipped=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"plain text\n",
        lambda data: data + b"garbage",
        lambda data: data[:-8] + bytes(4) + data[-4:],
        lambda data: data[:-4] + bytes(4),
        lambda data: data[:30] + b"\xff\xff\xff\xff" + data[34:],
    ],
    ids=["no gzip", "garbage after it", "checksum", "length", "damaged within"],
)
@pytest.mark.parametrize("split_type", ["None", "Line"])
def test_a_damaged_gzip_file_fails_the_object(damage, split_type):
    data = gzip.compress(bytes(random.Random(3).choices(b"abc\n", k=2000)))
    with pytest.raises(RecordError, match="no whole gzip file"):
        split(damage(data), split_type, gzipped=True)


@pytest.mark.parametrize("split_type", ["None", "Line"])
def test_a_small_gzip_file_of_one_enormous_record_fails_without_being_unpacked(split_type):
    packed = gzip.compress(bytes(100 * MB), compresslevel=1)
    tracemalloc.start()
    try:
        with pytest.raises(RecordError, match="larger than MaxPayloadInMB"):
            split(packed, split_type, gzipped=True)
        assert tracemalloc.get_traced_memory()[1] < 10 * MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_memory_holds_a_batch_and_not_the_object(strategy, tmp_path):
    (tmp_path / "object").write_bytes((b"x" * 20_000 + b"\n") * 2000)
    tracemalloc.start()
    try:
        with open(tmp_path / "object", "rb") as stream:
            count = sum(payload.count(b"x") for payload in payloads(stream, "Line", strategy, 1, False))
        assert count == 20_000 * 2000
        assert tracemalloc.get_traced_memory()[1] < 5 * MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_recordio_that_is_cut_off_within_a_record_fails_the_object(strategy):
    first = record_io([b"first"])
    whole = first + record_io([b"12345678"])
    for length in range(len(first) + 1, len(whole)):
        with pytest.raises(RecordError, match="cut off"):
            split(whole[:length], "RecordIO", strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"some text, 20 letters", "not RecordIO: a record begins with 736f6d65"),
        (record_io([b"abcd"]) + b"garbage!", "not RecordIO: a record begins with 67617262"),
        (record_io([b""])[:4] + struct.pack("<I", 1 << 29 | 4) + b"abcd", "several parts is not supported"),
        (record_io([b""])[:4] + struct.pack("<I", 2**29 - 1) + b"abcd", "larger than MaxPayloadInMB"),
    ],
)
def test_what_is_no_recordio_fails_the_object_with_the_reason(data, message, strategy):
    with pytest.raises(RecordError, match=message):
        split(data, "RecordIO", strategy)


SPLIT_AND_GZIPPED = list(itertools.product(SPLIT_TYPES, [False, True]))


def assert_split_as_in_memory(put, uri, split_type, gzipped):
    records = [b"x" * size for size in range(0, 300_000, 10_001)]
    data = record_io(records) if split_type == "RecordIO" else lines(records)
    put(gzip.compress(data) if gzipped else data)
    for strategy in STRATEGIES:
        with storage.open_object(uri) as stream:
            assert list(payloads(stream, split_type, strategy, 6, gzipped)) == split(data, split_type, strategy, 6)


@pytest.mark.parametrize(("split_type", "gzipped"), SPLIT_AND_GZIPPED)
def test_a_file_is_split_as_it_is_in_memory(split_type, gzipped, tmp_path):
    file = tmp_path / "object"
    assert_split_as_in_memory(file.write_bytes, f"file://{file}", split_type, gzipped)


@pytest.mark.parametrize(("split_type", "gzipped"), SPLIT_AND_GZIPPED[1:])
def test_an_object_in_s3_is_split_as_it_is_in_memory(split_type, gzipped, s3, bucket):
    def put(data):
        s3.put_object(Bucket=bucket, Key="object", Body=data)

    assert_split_as_in_memory(put, f"s3://{bucket}/object", split_type, gzipped)

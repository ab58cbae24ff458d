"""What a transform job reads: manifests, and the list of its objects."""

import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from helpers import REPOSITORY
from helpers.objects import NAMES, data_of

from fastmaker.jobs.storage import StorageError, manifests
from fastmaker.jobs.storage.listings import InputError, Inputs
from fastmaker.jobs.storage.manifests import ManifestError

HIDDEN = (".DS_Store", "._a.jpg", "deep/.b.jpg", ".git/config", "__MACOSX/a.jpg")
PREFIX = '{"prefix": "s3://bucket/some/"}'


@pytest.fixture
def read_keys(tmp_path):
    """Reads the text of a manifest; returns its prefix and a list of its keys."""

    def read(text):
        file = tmp_path / "a manifests.json"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        prefix, keys = manifests.read(f"file://{file}")
        return prefix, list(keys)

    return read


@pytest.fixture
def listed(tmp_path_factory):
    """Lists the objects of a job; returns their prefix, and their names with their sizes in the list's order."""
    database = tmp_path_factory.mktemp("list") / "inputs.sqlite"

    def listed(data_type, uri):
        inputs = Inputs(database)
        try:
            inputs.read(data_type, uri)
            objects = list(inputs)
            assert len(objects) == inputs.count == len(dict(objects))
            return inputs.prefix, dict(objects)
        finally:
            inputs.close()
            assert not database.exists()

    return listed


@pytest.fixture
def manifest_of(place):
    """Writes a manifest, by default of the place's objects, next to them; returns its URI."""

    def write(*keys, prefix=None):
        text = json.dumps([{"prefix": prefix or f"{place.uri}/"}, *keys], ensure_ascii=False)
        place.put("the manifests.json", text.encode())
        return f"{place.uri}/the manifests.json"

    return write


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (f'[{PREFIX}, "a"]', ["a"]),
        (f'[{PREFIX}, "a", "b/c", "b/c/d"]', ["a", "b/c", "b/c/d"]),
        (f'[{PREFIX},\n"z",\r\n\t"a"\n]\n', ["z", "a"]),
        (f'\n  [{PREFIX}, "a"]\n\n', ["a"]),
        (f'\ufeff[{PREFIX}, "a"]', ["a"]),
        (f'[{PREFIX}, "日本/😀 ü.png"]', ["日本/😀 ü.png"]),
        (f'[{PREFIX}, "\\u65e5\\ud83d\\ude00\\"\\\\\\/\\t"]', ['日😀"\\/\t']),
        (f'[{PREFIX}, "per%20cent", "a b", "#", "?"]', ["per%20cent", "a b", "#", "?"]),
        (f'[{PREFIX}, "..a", "b..", "..."]', ["..a", "b..", "..."]),
        (f'[{PREFIX}, "{"x" * 5000}", "after"]', ["x" * 5000, "after"]),
        (f'[{PREFIX}, "again", "again"]', ["again", "again"]),
    ],
)
def test_a_manifest_gives_its_prefix_and_its_keys_as_they_stand_there(read_keys, text, keys):
    assert read_keys(text) == ("s3://bucket/some/", keys)


def test_a_manifest_is_read_alike_wherever_its_text_is_divided(read_keys):
    for padding in range(990, 1030):
        keys = ["x" * (padding - len(PREFIX)), "ünïcode 日本", "last"]
        assert read_keys(json.dumps([json.loads(PREFIX), *keys], ensure_ascii=False))[1] == keys


@pytest.mark.parametrize("prefix", ["s3://bucket/", "s3://bucket/some/part", "file:///", "file:///data/sets/"])
def test_a_prefix_is_s3_or_a_whole_path(read_keys, prefix):
    assert read_keys(json.dumps([{"prefix": prefix}, "key"])) == (prefix, ["key"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        (" \n\n", ["empty"]),
        ("hello", ["hello"]),
        ("s3://bucket/a\ns3://bucket/b\n", ["s3://bucket/a"]),
        (f'{PREFIX}\n"a"\n"b"\n', ["JSON lines"]),
        ('{"source-ref": "s3://bucket/a"}\n{"source-ref": "s3://bucket/b"}\n', ["JSON lines"]),
        ('"a"\n"b"\n', ["JSON lines"]),
        ('{"prefix": "s3://bucket/", "keys": ["a"]}', ['{"prefix"']),
        ("\x1f\x8b\x08", ["x1f"]),
        (f'[{PREFIX}, "a"]'.encode("utf-16"), ["xff"]),
        (f'[{PREFIX}, "a", "b', ["not JSON", "EOF"]),
        (f'[{PREFIX}, "a", ', ["not JSON", "EOF"]),
        (f'[{PREFIX}, "a"', ["not JSON", "EOF"]),
        ("[", ["not JSON", "EOF"]),
        ('[{"prefix": "s3://', ["not JSON", "EOF"]),
        (f'[{PREFIX}, "a",]', ["not JSON"]),
        (f'[{PREFIX} "a"]', ["not JSON"]),
        (f"[{PREFIX}, 'a']", ["not JSON"]),
        (f'[{PREFIX}, "a"] "b"', ["not JSON"]),
        (f'[{PREFIX}, "a"]\n[{PREFIX}, "b"]', ["not JSON"]),
        (f'[{PREFIX}, "'.encode() + b'\xff"]', ["not JSON", "UTF"]),
        ('["a", "b"]', ["first element", "'a'"]),
        (f'["a", {PREFIX}]', ["first element", "'a'"]),
        ("[]", ["first element"]),
        ("[null]", ["first element"]),
        ('[["s3://bucket/"], "a"]', ["first element"]),
        ('[{"prefix": 3}, "a"]', ["first element", "3"]),
        ('[{"prefix": null}, "a"]', ["first element"]),
        ('[{"prefix": ["s3://bucket/"]}, "a"]', ["first element"]),
        ('[{"Prefix": "s3://bucket/"}, "a"]', ["first element", "Prefix"]),
        ('[{"prefix": "s3://bucket/", "suffix": ".png"}, "a"]', ["first element", "suffix"]),
    ],
)
def test_what_is_no_manifest_fails_and_says_what_was_expected(read_keys, text, words):
    with pytest.raises(ManifestError) as failed:
        read_keys(text)
    words = [*words, "a manifests.json", 'expected one JSON array, [{"prefix": "s3://bucket/some/"}, "key1", "key2"']
    assert [word for word in words if word not in str(failed.value)] == []
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    "prefix",
    ["", "bucket/", "/data/", "s3://", "s3://bucket", "file://data/", "https://host/", "s3:/bucket/", "S3://b/"],
)
def test_a_prefix_of_another_form_fails_and_says_what_was_expected(read_keys, prefix):
    with pytest.raises(ManifestError, match="expected s3://bucket/ or file:///") as failed:
        read_keys(json.dumps([{"prefix": prefix}, "a"]))
    assert repr(prefix) in str(failed.value)


def test_a_prefix_without_a_bucket_fails_and_says_what_was_expected(read_keys):
    with pytest.raises(ManifestError, match="expected s3://bucket/"):
        read_keys('[{"prefix": "s3:///some/"}, "a"]')


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        ("file:///etc/", "'file:///etc/'; expected s3://bucket/ and what follows it"),
        ("file:///", "expected s3://bucket/"),
        ("FILE:///etc/", "expected s3://bucket/"),
        ("/etc/", "expected s3://bucket/"),
        ("s3://../other/", "which leads out of its folder"),
        ("s3://bucket/some/../../other/", "which leads out of its folder"),
        ("s3://no bucket/", "Invalid bucket name"),
        ("s3://b*/", "Invalid bucket name"),
    ],
)
def test_a_manifest_in_s3_names_objects_of_s3_alone(listed, s3, bucket, prefix, reason):
    body = json.dumps([{"prefix": prefix}, "passwd"])
    s3.put_object(Bucket=bucket, Key="manifest.json", Body=body)
    with pytest.raises((ManifestError, StorageError)) as failed:
        listed("ManifestFile", f"s3://{bucket}/manifest.json")
    assert reason in str(failed.value)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("prefix", ["file:///data/../etc/", "file:///..", "s3://bucket/../"])
def test_a_prefix_that_leads_out_is_refused(read_keys, prefix):
    with pytest.raises(ManifestError, match="which leads out of its folder"):
        read_keys(json.dumps([{"prefix": prefix}, "a"]))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("3", ["3", "a string"]),
        ("1.5", ["1.5", "a string"]),
        ("null", ["a string"]),
        ("true", ["a string"]),
        ('["b"]', ["['b']", "a string"]),
        (PREFIX, ["prefix", "a string"]),
        ('""', ["''", "a string"]),
        ('".."', ["'..'", "leads out of the prefix"]),
        ('"../b"', ["'../b'", "leads out of the prefix"]),
        ('"b/../../c"', ["'b/../../c'", "leads out of the prefix"]),
        ('"b/.."', ["'b/..'", "leads out of the prefix"]),
    ],
)
@pytest.mark.parametrize("before", [[], ['"fine"'] * 3])
def test_a_key_that_cannot_be_one_fails_and_its_place_is_named(read_keys, key, words, before):
    with pytest.raises(ManifestError) as failed:
        read_keys(f"[{', '.join([PREFIX, *before, key])}]")
    words = [*words, f"element {len(before) + 2} "]
    assert [word for word in words if word not in str(failed.value)] == []


def test_a_manifest_that_names_no_key_fails(read_keys):
    with pytest.raises(ManifestError, match="names no key"):
        read_keys(f"[{PREFIX}]")


def test_a_manifest_that_is_missing_is_an_error_that_names_it(tmp_path, s3, bucket):
    for uri in (f"file://{tmp_path}/none.json", f"s3://{bucket}/none.json"):
        with pytest.raises(StorageError, match=uri):
            manifests.read(uri)


def test_memory_does_not_grow_with_a_manifest(tmp_path):
    file = tmp_path / "manifest.json"
    count = 300_000
    with open(file, "w") as stream:
        stream.write(f"[{PREFIX}")
        stream.writelines(f',\n"some/folder/{number}.jpg"' for number in range(count))
        stream.write("]")
    tracemalloc.start()
    try:
        _, keys = manifests.read(f"file://{file}")
        assert sum(key == f"some/folder/{number}.jpg" for number, key in enumerate(keys)) == count
        assert tracemalloc.get_traced_memory()[1] < file.stat().st_size / 8
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_objects(tmp_path):
    program = """
import resource, sys
from pathlib import Path
from fastmaker.jobs.storage.listings import InputError, Inputs
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Inputs(Path(sys.argv[1] + ".sqlite")).read("ManifestFile", "file://" + sys.argv[1])
except InputError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    file = tmp_path / "manifest.json"
    count = 200_000
    with open(file, "w") as stream:
        stream.write('[{"prefix": "file:///no such folder/"}')
        stream.writelines(f',\n"{number} {"x" * 80}"' for number in range(count))
        stream.write("]")
    done = subprocess.run(
        [sys.executable, "-c", program, file], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    error, kilobytes = done.stdout.splitlines()
    assert f"{count} of its {count} keys are not there" in error
    assert int(kilobytes) * 1024 < file.stat().st_size / 2


def test_hidden_objects_are_counted_and_not_listed(place, tmp_path):
    for name in ("a.jpg", *HIDDEN):
        place.put(f"in/{name}", b"data")
    inputs = Inputs(tmp_path / "inputs.sqlite")
    inputs.read("S3Prefix", f"{place.uri}/in")
    assert (list(inputs), inputs.hidden) == ([("a.jpg", 4)], len(HIDDEN))
    inputs.close()


def test_a_prefix_of_hidden_objects_alone_fails_and_says_so(listed, place):
    place.put("in/.DS_Store", b"")
    with pytest.raises(InputError, match="there is no object, only 1 hidden ones"):
        listed("S3Prefix", f"{place.uri}/in")


def test_a_hidden_object_that_is_named_is_listed(listed, place, manifest_of):
    place.put("in/.a.jpg", b"data")
    assert listed("ManifestFile", manifest_of("in/.a.jpg"))[1] == {"in/.a.jpg": 4}
    assert listed("S3Prefix", f"{place.uri}/in/.a.jpg")[1] == {".a.jpg": 4}


@pytest.mark.parametrize("slash", ["", "/"])
def test_objects_of_a_prefix_are_named_by_what_follows_it(listed, place, slash):
    for name in (*NAMES, *HIDDEN):
        place.put(f"in/{name}", data_of(name))
    place.put("in/empty", b"")
    prefix, objects = listed("S3Prefix", f"{place.uri}/in{slash}")
    assert prefix == f"{place.uri}/in/"
    assert objects == {"empty": 0, **{name: len(data_of(name)) for name in NAMES if not name.startswith(".")}}


def test_objects_come_in_the_order_of_their_keys_as_s3_lists_them(listed, place, manifest_of):
    names = ["B", "a/b", "a-b", "a.b", "aB", "ab", "A1", "A10", "A2", "ä", "\uff5a", "😀", "~", "_", "0"]
    for name in names:
        place.put(f"in/{name}", b"x")
    _, by_prefix = listed("S3Prefix", f"{place.uri}/in")
    assert list(by_prefix) == sorted(names, key=str.encode)
    random.Random(1).shuffle(names)
    _, by_manifest = listed("ManifestFile", manifest_of(*names, prefix=f"{place.uri}/in/"))
    assert list(by_manifest.items()) == list(by_prefix.items())


@pytest.mark.parametrize(
    ("uri", "prefix", "names"),
    [
        ("/img", "", {"img/a", "img/b/c", "img2/d"}),
        ("/img/", "img/", {"a", "b/c"}),
        ("/im", "", {"img/a", "img/b/c", "img2/d"}),
        ("/img2", "img2/", {"d"}),
        ("/img/b", "img/b/", {"c"}),
        ("/img/a", "img/", {"a"}),
        ("/other", "", {"other"}),
        ("/", "", {"img/a", "img/b/c", "img2/d", "other"}),
        ("", "", {"img/a", "img/b/c", "img2/d", "other"}),
    ],
)
def test_a_prefix_in_s3_need_not_end_where_a_folder_does(listed, s3, bucket, uri, prefix, names):
    for key in ("img/a", "img/b/c", "img2/d", "other", "img/", "img/b/"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"" if key.endswith("/") else b"x")
    assert listed("S3Prefix", f"s3://{bucket}{uri}") == (f"s3://{bucket}/{prefix}", dict.fromkeys(names, 1))


def test_an_object_and_a_folder_of_the_same_name_are_both_listed(listed, s3, bucket):
    for key in ("in/img", "in/img/a"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    assert listed("S3Prefix", f"s3://{bucket}/in/img") == (f"s3://{bucket}/in/", {"img": 1, "img/a": 1})


@pytest.mark.parametrize("name", ["a b;c.csv", "per%20cent", "ü#?.csv"])
def test_one_object_as_prefix_is_named_by_its_last_part(listed, place, name):
    place.put(f"sub/{name}", b"12")
    place.put("sub/another", b"1")
    assert listed("S3Prefix", f"{place.uri}/sub/{name}") == (f"{place.uri}/sub/", {name: 2})


def test_a_quoted_folder_and_one_named_from_where_one_is_are_listed(listed, tmp_path, monkeypatch):
    (tmp_path / "two words" / "sub").mkdir(parents=True)
    (tmp_path / "two words" / "sub" / "file").write_bytes(b"1")
    expected = (f"file://{tmp_path}/two words/", {"sub/file": 1})
    assert listed("S3Prefix", f"file://{tmp_path}/two%20words") == expected
    monkeypatch.chdir(tmp_path)
    assert listed("S3Prefix", "file://two words") == expected


@pytest.mark.parametrize("uri", ["{folder}//", "{folder}/sub//", "{folder}/sub//file"])
def test_a_slash_too_many_changes_no_name(listed, tmp_path, uri):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"1")
    prefix, objects = listed("S3Prefix", "file://" + uri.format(folder=tmp_path))
    assert {Path(prefix.removeprefix("file://"), name): size for name, size in objects.items()} == {
        tmp_path / "sub" / "file": 1
    }


def test_a_prefix_without_objects_fails_and_is_named(listed, place):
    place.put("other", b"1")
    if place.uri.startswith("s3"):
        place.put("in/", b"")
    else:
        os.makedirs(place.uri.removeprefix("file://") + "/in/empty")
    with pytest.raises(InputError, match=f"{place.uri}/in: there is no object"):
        listed("S3Prefix", f"{place.uri}/in")


def test_a_folder_or_bucket_that_is_missing_fails_and_is_named(listed, s3, tmp_path):
    for uri in (f"file://{tmp_path}/none", "s3://no-such-bucket/in"):
        with pytest.raises(StorageError, match=uri):
            listed("S3Prefix", uri)


def test_a_file_whose_name_is_not_utf8_fails_and_is_named(listed, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")).write_bytes(b"1")
    with pytest.raises((InputError, StorageError), match="caf"):
        listed("S3Prefix", f"file://{folder}")


def test_a_manifest_lists_the_objects_it_names_and_no_other(listed, place, manifest_of):
    for name in NAMES:
        place.put(name, data_of(name))
    place.put("empty", b"")
    named = random.Random(2).sample(NAMES, len(NAMES) - 3)
    prefix, objects = listed("ManifestFile", manifest_of(*named, "empty"))
    assert prefix == f"{place.uri}/"
    assert objects == {"empty": 0, **{name: len(data_of(name)) for name in named}}


def test_a_prefix_and_a_key_are_put_together_as_they_are(listed, place, manifest_of):
    for name in ("img/a", "img2/b"):
        place.put(name, b"x")
    assert listed("ManifestFile", manifest_of("g/a", "g2/b", prefix=f"{place.uri}/im")) == (
        f"{place.uri}/im",
        {"g/a": 1, "g2/b": 1},
    )


def test_a_manifest_that_is_a_file_may_name_objects_of_s3(listed, s3, bucket, tmp_path):
    s3.put_object(Bucket=bucket, Key="in/a", Body=b"12")
    (tmp_path / "manifest.json").write_text(json.dumps([{"prefix": f"s3://{bucket}/in/"}, "a"]))
    assert listed("ManifestFile", f"file://{tmp_path}/manifest.json") == (f"s3://{bucket}/in/", {"a": 2})


@pytest.mark.parametrize("keys", [["twice", "twice"], ["twice", "once", "twice"], ["once", "twice", "twice", "twice"]])
def test_a_key_that_stands_twice_fails_and_is_named(listed, place, manifest_of, keys):
    for key in set(keys):
        place.put(key, b"x")
    with pytest.raises(InputError, match="'twice'") as failed:
        listed("ManifestFile", manifest_of(*keys))
    assert "the manifests.json" in str(failed.value)


def test_missing_keys_are_counted_and_the_first_of_the_manifest_is_named(listed, place, manifest_of):
    place.put("here", b"")
    place.put("sub/below", b"x")
    missing = ["zebra", "apple", "sub", "her", "here2", "sub/belo", "per%20cent", "missing ü.png"]
    with pytest.raises(InputError) as failed:
        listed("ManifestFile", manifest_of("here", *missing, "sub/below"))
    assert f"{len(missing)} of its {len(missing) + 2} keys are not there" in str(failed.value)
    assert f"the first is {place.uri}/zebra" in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_prefix_that_lacks_its_slash_is_pointed_out_where_keys_are_missing(listed, place, manifest_of):
    place.put("a", b"x")
    with pytest.raises(InputError) as failed:
        listed("ManifestFile", manifest_of("a", prefix=place.uri))
    assert f"the first is {place.uri}a" in str(failed.value)
    assert f"{place.uri!r} does not end" in str(failed.value)


def test_a_key_longer_than_a_file_name_can_be_is_a_missing_key(listed, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps([{"prefix": f"file://{tmp_path}/"}, "x" * 300]))
    with pytest.raises(InputError, match="1 of its 1 keys are not there"):
        listed("ManifestFile", f"file://{tmp_path}/manifest.json")


def test_a_manifest_that_is_damaged_at_its_end_fails_whatever_stands_before(listed, place):
    place.put("a", b"x")
    place.put("m", f'[{{"prefix": "{place.uri}/"}}, "a", 3]'.encode())
    with pytest.raises(ManifestError, match="element 3 is 3"):
        listed("ManifestFile", f"{place.uri}/m")
    place.put("m", f'[{{"prefix": "{place.uri}/"}}, "a"'.encode())
    with pytest.raises(ManifestError, match="not JSON"):
        listed("ManifestFile", f"{place.uri}/m")


def test_objects_without_an_answer_are_those_whose_out_is_missing(place, manifest_of, tmp_path):
    for name in NAMES:
        place.put(f"in/{name}", b"x")
    inputs = Inputs(tmp_path / "inputs.sqlite")
    inputs.read("S3Prefix", f"{place.uri}/in")
    assert list(inputs.unanswered(f"{place.uri}/out")) == [name for name, _ in inputs]
    answered = random.Random(4).sample(NAMES, len(NAMES) // 2)
    for name in answered:
        place.put(f"out/{name}.out", b"")
    for name in set(NAMES) - set(answered):
        place.put(f"out/{name}", b"")
        place.put(f"out/another/{name}.out", b"")
    for output in (f"{place.uri}/out", f"{place.uri}/out/"):
        expected = {name for name in set(NAMES) - set(answered) if not name.startswith(".")}
        assert list(inputs.unanswered(output)) == sorted(expected, key=str.encode)
    inputs.close()

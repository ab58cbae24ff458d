"""``fastmaker manifest`` and the samples in manifests/."""

import io
import json
import subprocess
import sys

import pytest
from helpers import REPOSITORY
from helpers.commands import exit_status

from fastmaker.jobs import manifest
from fastmaker.jobs.digits import write_digits

SAMPLES = REPOSITORY / "manifests"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(*words) -> the finished command, as one of a process of its own, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words, stdin: str = ""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8"))
        status = exit_status(manifest, *words)
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(words, status, printed.out.encode(), printed.err.encode())

    return run


def built(words: str, source: str) -> list:
    """What `build` prints, for a source that may have blanks in it."""
    stdout, sys.stdout = sys.stdout, io.StringIO()
    try:
        manifest.main(manifest.parse_args(["build", source, *words.split()]))
        return json.loads(sys.stdout.getvalue())
    finally:
        sys.stdout = stdout


NAMES = {"b.png", "a/deep/ü.png", "a/1.txt", "with space.png"}


@pytest.fixture
def filled(place):
    for name in NAMES:
        place.put(name, name.encode())
    return place


def test_a_folder_and_a_prefix_become_a_manifest_of_their_keys_in_order(filled):
    assert built("", filled.uri) == [{"prefix": filled.uri + "/"}, *sorted(NAMES)]
    chosen = sorted(name for name in NAMES if name.endswith(".png"))[:2]
    expected = [{"prefix": "s3://elsewhere/"}, *chosen]
    assert built("--suffix .png --limit 2 --prefix s3://elsewhere/", filled.uri) == expected


def test_what_is_built_passes_the_check_and_the_check_counts(filled, capsys):
    filled.put("empty", b"")
    filled.put("large", b"x" * (2**20 + 1))
    target = filled.uri + "-manifest.json"
    manifest.main(manifest.parse_args(["build", filled.uri, "--output", target]))
    manifest.main(manifest.parse_args(["check", target, "--max-payload", "1"]))
    table = {line.split("  ")[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()}
    assert table["keys"] == str(len(NAMES) + 2)
    assert table["empty objects"] == "1"
    assert table["larger than 1 MB"] == "1"


LISTS = [
    "s3://bucket/in/a.png\ns3://bucket/in/b c.png\n",
    '"s3://bucket/in/a.png"\n\n"s3://bucket/in/b c.png"\n',
    '{"source-ref": "s3://bucket/in/a.png", "label": 3}\n{"key": "b c.png"}\n',
    "a.png\r\nb c.png",
]


@pytest.mark.parametrize("text", LISTS)
def test_a_list_on_stdin_is_text_or_json_lines_of_keys_or_uris(run, text):
    done = run("build", "-", "--prefix", "s3://bucket/in/", stdin=text)
    assert json.loads(done.stdout) == [{"prefix": "s3://bucket/in/"}, "a.png", "b c.png"], done.stderr


def test_without_a_prefix_the_bucket_of_the_first_uri_is_taken(run):
    done = run("build", "-", stdin=LISTS[0])
    assert json.loads(done.stdout) == [{"prefix": "s3://bucket/"}, "in/a.png", "in/b c.png"]


@pytest.mark.parametrize(
    ("words", "stdin", "reason"),
    [
        ("build -", "", "stdin: expected keys or URIs, one a line"),
        ("build -", "a.png\n", "'a.png' is no s3:// or file:// URI; with keys alone, --prefix says where they lie"),
        ("build -", "s3://one/a\ns3://two/b\n", "line 2: 's3://two/b' does not begin with the prefix 's3://one/'"),
        ("build -", 's3://one/a\n\n{"key": 3}\n', "line 3: expected a string, or an object with key or source-ref"),
        ("build -", 's3://one/a\n{"key"\n', "line 2: not JSON"),
        ("build - --prefix s3://one/a", "b\n", "the prefix 's3://one/a' does not end with /"),
        ("build . --suffix .png", "", "there is no key to put into the manifest"),
        ("build nowhere", "", "no such file or directory"),
        ("check nowhere.json", "", "nowhere.json: No such file or directory"),
        ("check lines.json", "", "it is JSON lines, in place of one array"),
    ],
)
def test_what_is_wrong_and_where_is_said_in_one_line(run, tmp_path, words, stdin, reason):
    (tmp_path / "lines.json").write_text('{"prefix": "s3://bucket/"}\n"a"\n')
    done = run(*words.split(), stdin=stdin)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert reason in line
    assert done.stdout == b""


def test_a_manifest_that_cannot_be_written_whole_leaves_none_behind(run, tmp_path):
    done = run("build", "-", "--output", "out.json", stdin="s3://one/a\ns3://two/b\n")
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sample", sorted(SAMPLES.iterdir()), ids=lambda path: path.name)
def test_a_sample_passes_the_check_where_its_objects_are(sample, s3, capsys):
    prefix, *keys = json.loads(sample.read_text("utf-8"))
    bucket, _, below = prefix["prefix"].removeprefix("s3://").partition("/")
    if bucket not in {found["Name"] for found in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=bucket)
    for key in keys:
        s3.put_object(Bucket=bucket, Key=below + key, Body=b"x")
    manifest.main(manifest.parse_args(["check", str(sample)]))
    assert f"{len(keys)}" in capsys.readouterr().out


def test_the_sample_of_digits_is_what_the_readmes_command_builds(run, tmp_path):
    write_digits(tmp_path / "digits")
    words = ["--suffix", "0.png", "--limit", "10", "--prefix", "s3://amzn-s3-demo-bucket/digits/"]
    done = run("build", "digits/held-out", *words)
    assert done.stdout == (SAMPLES / "digits.json").read_bytes(), done.stderr

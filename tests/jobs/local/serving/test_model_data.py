"""Model data that is no archive: a prefix comes whole, an object under the last part of its name, as on AWS."""

import io
import tarfile

import pytest

from fastmaker.jobs import storage
from fastmaker.local.containers import Container
from fastmaker.local.serving import torchserve

FILES = {"model.pt": b"weights", "code/inference.py": b"pass", "deep/er/.hidden": b"", ".git/config": b"x"}
WHOLE = {name: data for name, data in FILES.items() if data}
SOURCES = {
    "prefix": ("model/", "S3Prefix", "None", WHOLE),
    "no-slash": ("model", "S3Prefix", "None", WHOLE),
    "object": ("model/model.pt", "S3Object", "None", {"model.pt": b"weights"}),
    "archive": ("model.tar.gz", "S3Object", "Gzip", {"model.pt": b"weights"}),
}


@pytest.fixture
def container(tmp_path):
    container = Container(tmp_path / "container")
    yield container
    container.close()


@pytest.mark.parametrize("case", SOURCES)
def test_model_data_come_as_the_source_says(place, container, case):
    for name, data in FILES.items():
        place.put(f"model/{name}", data)
    place.put("model-2/other", b"not of the prefix")
    place.put("model.tar.gz", archive())
    name, kind, compression, expected = SOURCES[case]
    source = {"S3Uri": f"{place.uri}/{name}", "S3DataType": kind, "CompressionType": compression}
    torchserve.prepare(container, {"ModelDataSource": {"S3DataSource": source}})
    folder = container.root / "model"
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {name: data for name, data in found.items() if data} == expected


@pytest.mark.parametrize(("kind", "reason"), [("S3Prefix", "nowhere"), ("S3Object", "nowhere")])
def test_data_that_are_not_there_are_a_reason(place, container, kind, reason):
    source = {"S3Uri": f"{place.uri}/nowhere", "S3DataType": kind, "CompressionType": "None"}
    with pytest.raises(storage.StorageError, match=reason):
        torchserve.prepare(container, {"ModelDataSource": {"S3DataSource": source}})


def archive():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        member = tarfile.TarInfo("model.pt")
        member.size = len(b"weights")
        tar.addfile(member, io.BytesIO(b"weights"))
    return content.getvalue()

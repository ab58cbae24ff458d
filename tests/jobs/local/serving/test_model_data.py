"""Model data that is no archive: a prefix comes whole, an object under the last part of its name, as on AWS."""

import io
import tarfile

import pytest

from fastmaker.jobs import storage
from fastmaker.local.containers import Container, ContainerError
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


@pytest.mark.parametrize(("pickled", "library", "kept"), [(True, False, False), (False, True, True)])
def test_a_folder_that_a_models_code_would_copy_into_lib_is_not_there(place, container, pickled, library, kept):
    source = put_inference_spec(place, pickled, library)
    torchserve.prepare(container, source)
    assert (container.root / "model" / "shared_libs").is_dir() == kept


def test_libraries_that_a_models_code_would_copy_into_lib_are_refused(place, container):
    with pytest.raises(ContainerError, match="shared_libs need AWS"):
        torchserve.prepare(container, put_inference_spec(place, pickled=True, library=True))


def put_inference_spec(place, pickled, library):
    """Model data as version 3 of the SDK writes them for an InferenceSpec."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        folder = tarfile.TarInfo("shared_libs")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        names = [
            "code/inference.py",
            *(["code/serve.pkl"] if pickled else []),
            *(["shared_libs/a.so"] if library else []),
        ]
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    place.put("serve.tar.gz", content.getvalue())
    return {"ModelDataUrl": f"{place.uri}/serve.tar.gz"}

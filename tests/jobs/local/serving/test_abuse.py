"""Many requests, one in twenty of them bad, from several clients at once."""

import zipfile
from contextlib import contextmanager

import pytest
from helpers.abuse import Server, survives
from helpers.local_mode import deployed, workers_of

from fastmaker.jobs.packaging.torchserve import make_archive, running
from fastmaker.local.containers import free_ports, pack
from fastmaker.local.serving import torchserve

pytestmark = pytest.mark.server


@contextmanager
def endpoint(session, archive):
    """An endpoint of local mode with two workers."""
    with deployed(session, archive, env={"SAGEMAKER_MODEL_SERVER_WORKERS": "2"}) as predictor:
        name = predictor.endpoint_name
        port = session.sagemaker_client.endpoints.read(name)["servers"][0]["port"]
        yield Server(f"http://127.0.0.1:{port}/invocations", lambda: workers_of(session, name))


@pytest.fixture(scope="module")
def mar(digits_bundle, tmp_path_factory):
    """An archive that computes in batches, with two workers."""
    archive = tmp_path_factory.mktemp("archive") / "digits.mar"
    make_archive(digits_bundle, archive, model_name="digits", batch_size=4, max_batch_delay=5, workers=2)
    return archive


@contextmanager
def plain_torchserve(mar):
    (port,) = free_ports(1)
    with running(mar, "digits", port) as (container, url):
        yield Server(url, lambda: torchserve.ready_workers(container, port, "digits"), tolerance=1e-6)


@contextmanager
def endpoint_of_an_archive(session, mar, folder):
    """The archive's content in the serving toolkit."""
    with zipfile.ZipFile(mar) as packed:
        packed.extractall(folder / "unpacked")
    pack(folder / "unpacked", folder / "model.tar.gz")
    with endpoint(session, folder / "model.tar.gz") as server:
        server.tolerance = 1e-6
        yield server


@pytest.mark.containers
def test_bad_requests_are_refused_and_good_ones_answered_right_by_the_same_workers(session, digits_archive, good):
    with endpoint(session, digits_archive) as server:
        survives(server, good, 800)


def test_an_archive_in_plain_torchserve_survives_the_same(mar, good):
    with plain_torchserve(mar) as server:
        survives(server, good, 400)


@pytest.mark.slow
def test_an_archive_in_the_serving_toolkit_survives_the_same(session, mar, good, tmp_path):
    with endpoint_of_an_archive(session, mar, tmp_path) as server:
        survives(server, good, 400)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("kind", ["bundle", "archive", "archive in the toolkit"])
def test_ten_thousand_requests_with_every_broken_file(session, digits_archive, mar, good, test_data, tmp_path, kind):
    broken = ("truncated.jpg", "broken_data_stream.png", "broken_header.png", "decompression_bomb.gif")
    servers = {
        "bundle": lambda: endpoint(session, digits_archive),
        "archive": lambda: plain_torchserve(mar),
        "archive in the toolkit": lambda: endpoint_of_an_archive(session, mar, tmp_path),
    }
    with servers[kind]() as server:
        survives(server, good, 10_000, [test_data / "ugly_images" / name for name in broken])

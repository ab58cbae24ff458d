"""The SDK's own local mode, unchanged, on the project's image: training, endpoint, transform job by Compose."""

import json
import shutil
import tarfile

import pytest
from helpers import REPOSITORY
from helpers.engine import docker
from helpers.invocations import ask
from helpers.local_mode import estimator
from sagemaker.deserializers import JSONDeserializer
from sagemaker.local import LocalSession
from sagemaker.serializers import IdentitySerializer

from fastmaker import preprocess
from fastmaker.local.containers import free_ports
from fastmaker.local.sdk import opt_out_of_telemetry
from fastmaker.serving import models

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def sdk_session(tmp_path_factory, front, credentials):
    """A LocalSession that takes code from its directory, with a port of its own; AWS is a server on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**credentials, "AWS_ENDPOINT_URL": front["AWS_ENDPOINT_URL"]}.items():
            patch.setenv(name, value)
        session = LocalSession(default_bucket="bucket-of-the-sdk", sagemaker_config=opt_out_of_telemetry(None))
        (port,) = free_ports(1)
        folder = str(tmp_path_factory.mktemp("containers"))
        session.config = {"local": {"local_code": True, "serving_port": port, "container_root": folder}}
        session.sagemaker_runtime_client.config = session.config
        yield session
    # The SDK leaves what has ended behind; where its files lie, the containers' labels say.
    label = "com.docker.compose.project.working_dir"
    listed = docker("ps", "--all", "--format", f'{{{{.ID}}}} {{{{.Label "{label}"}}}}').splitlines()
    for container in [line.split()[0] for line in listed if folder in line]:
        docker("rm", "--force", container)


@pytest.fixture(scope="module")
def job(sdk_session, training_image, few, tmp_path_factory):
    """A job that has trained on a few digits, whose files are no links: these lead nowhere in a container."""
    data = shutil.copytree(few, tmp_path_factory.mktemp("data") / "few")
    job = estimator(
        sdk_session,
        REPOSITORY / "source",
        entry_point="entry_point.py",
        image_uri=training_image,
        role="arn:aws:iam::000000000000:role/local",  # of any other name the SDK asks AWS
        hyperparameters={"arch": "convnet", "epochs": 2},
        disable_profiler=True,
    )
    job.fit({"train": f"file://{data}"})
    return job


@pytest.fixture(scope="module")
def bundle(job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    with tarfile.open(job.model_data.removeprefix("file://")) as tar:
        tar.extractall(folder, filter="data")
    return folder


def test_fit_leaves_a_bundle(job, bundle, pngs):
    assert models.load(bundle).predict([preprocess.decode(pngs[0])])[0].as_object()["label"] in set("0123456789")


def test_what_an_image_has_trained_it_deploys(job, bundle, sdk_session, pngs):
    model = models.load(bundle)
    formats = {"serializer": IdentitySerializer("image/png"), "deserializer": JSONDeserializer()}
    predictor = job.deploy(1, "local", **formats)
    try:
        for png in pngs:
            [expected] = model.predict([preprocess.decode(png)])
            answer = predictor.predict(png)
            assert (answer["label"], answer["probability"]) == (expected.label, expected.probabilities.max())
        url = f"http://127.0.0.1:{sdk_session.config['local']['serving_port']}/invocations"
        assert ask(url, b"no image", "image/png")[0] == 400
    finally:
        predictor.delete_endpoint()


def test_a_transform_job_answers_each_object(job, bundle, pngs, tmp_path):
    (tmp_path / "in").mkdir()
    for number, png in enumerate(pngs):
        (tmp_path / "in" / f"{number}.png").write_bytes(png)
    # By MultiRecord, its default, the SDK would put images together as if they were text.
    output = {"strategy": "SingleRecord", "accept": "application/json", "output_path": f"file://{tmp_path}/out"}
    transformer = job.transformer(1, "local", **output)
    transformer.transform(f"file://{tmp_path}/in", content_type="image/png", logs=False)
    model = models.load(bundle)
    for number, png in enumerate(pngs):
        [expected] = model.predict([preprocess.decode(png)])
        assert json.loads((tmp_path / "out" / f"{number}.png.out").read_text())["label"] == expected.label

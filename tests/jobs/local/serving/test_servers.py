"""Which server runs a model, by its image; `test_ray` runs Ray Serve itself."""

import importlib.util
import os
import sys

import pytest
from botocore.exceptions import ClientError
from helpers.local_mode import bundle_model

from fastmaker.jobs.runtime import ray_launcher
from fastmaker.local.aws.control import unknown_image
from fastmaker.local.serving import rayserve

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("image", "by_ray", "stands_in"),
    [
        ("763104351884.dkr.ecr.us-west-2.amazonaws.com/ray:serve-ml-sagemaker-cpu", True, True),
        ("763104351884.dkr.ecr.eu-west-1.amazonaws.com/ray:serve-ml-sagemaker-cuda-v1.4", True, True),
        ("public.ecr.aws/deep-learning-containers/ray:serve-ml-sagemaker-cuda", True, True),
        ("ray:serve-ml-cpu", True, True),
        ("763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-inference:2.6.0-cpu-py312", False, True),
        ("763104351884.dkr.ecr.us-west-2.amazonaws.com/ray:train-ml-cuda", False, False),
        ("763104351884.dkr.ecr.us-west-2.amazonaws.com/ray-llm:serve-ml-cuda", False, False),
        ("x-ray:serve-ml-cpu", False, False),
        (None, False, True),
    ],
)
def test_ray_serve_runs_what_awss_ray_images_would_run(image, by_ray, stands_in):
    assert rayserve.serves(image) == by_ray
    assert (unknown_image({"PrimaryContainer": {"Image": image}}) == "") == stands_in


def test_no_training_job_runs_in_an_image_of_ray_serve():
    assert "ray:serve-ml-cpu" in unknown_image({"AlgorithmSpecification": {"TrainingImage": "ray:serve-ml-cpu"}})


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray Serve is installed")
def test_a_model_for_ray_serve_is_refused_without_it(session, tmp_path):
    (tmp_path / "model.tar.gz").write_bytes(b"")
    model = bundle_model(session, tmp_path / "model.tar.gz", image_uri="ray:serve-ml-cpu")
    with pytest.raises(ClientError, match=r"Ray Serve is not installed: `pip install 'fastmaker\[ray\]'` brings it"):
        model.deploy(1, "local")


@pytest.mark.parametrize(
    ("length", "platform", "is_kept"), [(43, "linux", True), (44, "linux", False), (39, "darwin", True)]
)
def test_the_sockets_of_ray_fit_into_a_folder_of_any_path(tmp_path, monkeypatch, length, platform, is_kept):
    monkeypatch.setattr(sys, "platform", platform)
    folder = "/tmp/" + (length - 5) * "d" if is_kept else str(tmp_path)
    found = ray_launcher.short_path(folder)
    assert (found == folder) is is_kept
    assert len(found) + len(ray_launcher.SOCKET) <= 107
    if not is_kept:
        assert os.path.samefile(found, folder)
        os.close(int(found.rpartition("/")[2]))


def test_where_a_long_path_has_no_short_one_the_reason_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ray_launcher.StartError, match="Ray needs a temporary folder whose path has 39 bytes at most"):
        ray_launcher.short_path("/var/folders/" + 40 * "d")

"""Which server runs a model, by its image; `test_ray` runs Ray Serve itself."""

import importlib.util

import pytest
from botocore.exceptions import ClientError
from helpers.local_mode import bundle_model

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

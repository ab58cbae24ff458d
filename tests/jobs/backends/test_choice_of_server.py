"""What serves on AWS unless the user says it: what is patched, where it can run."""

import pytest

from fastmaker.jobs import backends
from fastmaker.jobs.backends import servers

pytestmark = pytest.mark.fast

ENDPOINT = backends.EndpointRequest("e", "s3://b/m")
SERVERLESS = backends.EndpointRequest("e", "s3://b/m", serverless_memory=3072)
TRANSFORM = backends.TransformRequest("t", "s3://b/m", "s3://b/i")


@pytest.mark.parametrize(
    ("request_", "instance_type", "given", "chosen"),
    [
        (ENDPOINT, "ml.c5.xlarge", None, "ray"),
        (ENDPOINT, "ml.g5.xlarge", None, "ray"),
        (ENDPOINT, "ml.p3.2xlarge", None, "torchserve"),
        (ENDPOINT, "ml.c5.xlarge", "torchserve", "torchserve"),
        (SERVERLESS, None, None, "torchserve"),
        (TRANSFORM, "ml.c5.xlarge", None, "ray"),
        (TRANSFORM, "ml.g5.xlarge", None, "torchserve"),
    ],
)
def test_the_server_is_the_one_that_is_patched_where_it_suits(request_, instance_type, given, chosen):
    assert servers.choose(given, request_, instance_type) == chosen
    assert servers.UNPATCHED in servers.summary(given, request_, instance_type)


@pytest.mark.parametrize(
    ("request_", "instance_type"), [(ENDPOINT, "ml.p3.2xlarge"), (SERVERLESS, None), (TRANSFORM, "ml.g5.xlarge")]
)
def test_ray_serve_is_refused_with_the_reason_where_it_does_not(request_, instance_type):
    with pytest.raises(ValueError, match="--server ray: "):
        servers.summary("ray", request_, instance_type)


def test_an_image_of_ones_own_says_itself_what_serves():
    with pytest.raises(ValueError, match="--server goes without --image-uri"):
        backends.connect("local", image_uri="mine:1", server="ray")

"""Random requests for every operation, valid and not: answered, or refused with a reason; what is kept is whole."""

import contextlib
import json
import random
import shutil

import pytest
from botocore import xform_name
from botocore.exceptions import ClientError
from helpers.front import runtime, sagemaker
from helpers.front_jobs import HERE, IMAGE
from helpers.request_values import lacking, spoiled, whole

from fastmaker.local import arguments, boto

pytestmark = pytest.mark.server
MODEL = boto.service_model("sagemaker")
LISTED = {"TrainingJob": "TrainingJobSummaries", "TransformJob": "TransformJobSummaries"}
PROGRAM = {"sagemaker_program": "train.py", "sagemaker_submit_directory": "s3://bucket/source.tar.gz"}


def requests_of(operation, count, seed):
    """Random requests, of which most have something wrong."""
    choices = random.Random(f"{operation}-{seed}")
    shape, honoured = MODEL.operation_model(operation).input_shape, arguments.SAGEMAKER[operation]
    good = whole(shape, honoured)
    bad = [request for _, _, request in spoiled(shape, good, honoured)] + [request for _, request in lacking(good)]
    for request in [good, {}, *choices.choices(bad, k=count - 2)]:
        with contextlib.suppress(TypeError):
            yield json.dumps(as_on_aws(request)).encode()


# Of values that botocore's model takes, what AWS and this machine take together.
FITTING = {
    **dict.fromkeys(("S3Uri", "S3OutputPath", "ModelDataUrl"), ("abc", "s3://bucket/key")),
    **dict.fromkeys(("Image", "TrainingImage"), ("abc", IMAGE)),
    "HyperParameters": ({"abc": "abc"}, PROGRAM),
    "RoutingStrategy": ("KV_AWARE", "RANDOM"),
    "S3DataType": ("Converse", "S3Prefix"),
    "CompressionType": ("Gzip", "None"),
    "SplitType": ("TFRecord", "Line"),
    **dict.fromkeys(("InputFilter", "OutputFilter"), ("abc", "$")),
    "Mode": ("MultiModel", "SingleModel"),
    "LocalPath": ("abc", "/opt/ml/checkpoints"),
}
FIRST = ("CreateModel", "CreateEndpointConfig", "AddTags", "ListTags", "DeleteTags")
IN_ORDER = [*FIRST, *(name for name in arguments.SAGEMAKER if name not in FIRST)]
LEFT_OUT = ("Containers", "ModelDataSource", "NextToken")


def as_on_aws(value, name=""):
    """A request with fitting values, where it was not spoiled."""
    if name in FITTING and value == FITTING[name][0]:
        return FITTING[name][1]
    if isinstance(value, dict):
        return {key: as_on_aws(inner, key) for key, inner in value.items() if key not in LEFT_OUT}
    return [as_on_aws(inner, name) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module", autouse=True)
def an_object(clients):
    """The one that fitting requests name."""
    clients("s3").create_bucket(Bucket="bucket", CreateBucketConfiguration=HERE)
    clients("s3").put_object(Bucket="bucket", Key="key", Body=b"no archive")


def all_are_answered(front, operation, count, seed):
    for body in requests_of(operation, count, seed):
        status, answer = sagemaker(front, operation, body)  # which has its operation's shape
        assert status in (200, 400), (body, answer)


@pytest.mark.parametrize("operation", IN_ORDER)
def test_random_requests_are_answered_or_refused_with_a_reason(front, operation):
    all_are_answered(front, operation, 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize("operation", IN_ORDER)
def test_300_random_requests_are_answered_or_refused_with_a_reason(front, operation):
    all_are_answered(front, operation, 300, 2)


RUNTIME = boto.service_model("sagemaker-runtime")


def all_of_the_runtime_are_answered(front, operation, count):
    choices = random.Random(operation)
    shape, honoured = RUNTIME.operation_model(operation).input_shape, arguments.RUNTIME.get(operation)
    good = whole(shape, honoured)
    bad = [request for _, _, request in spoiled(shape, good, honoured)] + [request for _, request in lacking(good)]
    for request in [good, *choices.choices(bad, k=count - 1)]:
        if request.get("EndpointName"):  # else it is another path
            with contextlib.suppress(ValueError, UnicodeError):  # of what no header can hold
                assert runtime(front, operation, request) in (200, 202, 400), request


@pytest.mark.parametrize("operation", RUNTIME.operation_names)
def test_random_requests_of_the_runtime_are_answered_or_refused(front, operation):
    all_of_the_runtime_are_answered(front, operation, 12)


@pytest.mark.slow
@pytest.mark.parametrize("operation", RUNTIME.operation_names)
def test_300_random_requests_of_the_runtime_are_answered_or_refused(front, operation):
    all_of_the_runtime_are_answered(front, operation, 300)


@pytest.mark.parametrize("kind", ["training-jobs", "transform-jobs", "models", "endpoint-configs", "endpoints"])
def test_whatever_was_asked_each_record_is_whole_and_can_be_described(front_home, clients, kind):
    """After the random requests above."""
    folder = front_home / kind
    entries = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    assert not [name for name in entries if name.startswith(".")], "nothing half made is left"
    words = "".join(word.title() for word in kind.removesuffix("s").split("-"))
    listed = {}
    for page in clients("sagemaker").get_paginator(f"list_{kind.replace('-', '_')}").paginate():
        listed |= {one[f"{words}Name"]: one for found in page.values() if isinstance(found, list) for one in found}
    assert listed.keys() == set(entries)
    for name, one in listed.items():
        found = getattr(clients("sagemaker"), f"describe_{kind.removesuffix('s').replace('-', '_')}")(
            **{f"{words}Name": name}
        )
        assert found[f"{words}Arn"] == one[f"{words}Arn"]
        assert "is damaged" not in found.get("FailureReason", "")


@pytest.mark.parametrize("kind", ["TrainingJob", "TransformJob", "Model", "EndpointConfig", "Endpoint"])
def test_a_damaged_record_is_listed_named_and_deleted(front_home, clients, kind):
    """Every answer about it has its operation's shape: where the description cannot have it, it is an error."""
    sagemaker, words = clients("sagemaker"), xform_name(kind)
    directory = front_home / f"{words.replace('_', '-')}s" / "damaged"
    directory.mkdir(parents=True)
    (directory / "record.json").write_text("{")
    (found,) = getattr(sagemaker, f"list_{words}s")(NameContains="damaged")[LISTED.get(kind, f"{kind}s")]
    assert found.get(f"{kind}Status", "Failed") == "Failed"
    try:
        told = getattr(sagemaker, f"describe_{words}")(**{f"{kind}Name": "damaged"})["FailureReason"]
    except ClientError as error:
        told = str(error)
    assert f"{directory}/record.json is damaged" in told
    if kind != "TransformJob":  # AWS has no such operation
        getattr(sagemaker, f"delete_{words}")(**{f"{kind}Name": "damaged"})
    shutil.rmtree(directory, ignore_errors=True)

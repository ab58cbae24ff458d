"""Checks before anything costs. Each returns what it found, as text, or raises Failure.

A check that the caller's permissions do not allow is no failure: the text says that it was not made.
"""

import difflib
import functools
import re
from collections.abc import Callable

from botocore.exceptions import ClientError, HTTPClientError, NoCredentialsError

from fastmaker.jobs import storage
from fastmaker.jobs.backends.resources import is_missing
from fastmaker.jobs.cli.errors import Failure

DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden")
UNREACHABLE = "not checked: the service cannot be reached from here"
MISSING = ("404", "NoSuchBucket", "NoSuchEntity", "ImageNotFoundException", "RepositoryNotFoundException")
NAME = re.compile(r"(?=.{1,63}$)[a-zA-Z0-9](-*[a-zA-Z0-9])*")
ECR_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[\w-]+)\.amazonaws\.com(?:\.cn)?/"
    r"(?P<repository>[^:@]+)(?:@(?P<digest>sha256:\w+)|:(?P<tag>[\w.-]+))?"
)
# The shapes of their instance types in botocore's model of SageMaker's API.
SHAPES = {
    "training": "TrainingInstanceType",
    "spot training": "TrainingInstanceType",
    "endpoint": "ProductionVariantInstanceType",
    "transform": "TransformInstanceType",
}
# How the quotas of the service code sagemaker are named: https://docs.aws.amazon.com/general/latest/gr/sagemaker.html
QUOTAS = {
    "training": "{} for training job usage",
    "spot training": "{} for spot training job usage",
    "endpoint": "{} for endpoint usage",
    "transform": "{} for transform job usage",
}


def caller(session) -> dict:
    """Return `Account` and `Arn` of the credentials. The first request of all, it finds out if they are valid."""
    try:
        return session.client("sts").get_caller_identity()
    except NoCredentialsError:
        raise Failure("no AWS credentials: set AWS_PROFILE, or run `aws configure`") from None


def name(client, kind: str, name: str) -> None:
    """Check that AWS takes the name and that it is free: data in S3 would be overwritten before AWS refuses it."""
    if not NAME.fullmatch(name):
        raise Failure(f"name {name!r}: expected at most 63 letters, digits and hyphens, with no hyphen at its ends")
    resource = "endpoint" if kind == "endpoint" else f"{kind.split()[-1]}_job"
    key = "".join(word.capitalize() for word in resource.split("_")) + "Name"
    try:
        getattr(client, f"describe_{resource}")(**{key: name})
    except ClientError as error:
        if is_missing(error):
            return
        raise
    raise Failure(f"{resource.replace('_', ' ')} {name} exists; AWS keeps the names of jobs for ever: choose another")


def role(session, arn: str) -> str:
    """Check that the role is there."""
    name = arn.rpartition("/")[2]
    return _requested(f"role {name}", lambda: session.client("iam").get_role(RoleName=name))


def bucket(session, uri: str) -> str:
    """Check that the bucket of a URI is there, to which something will be written."""
    name = storage.bucket_and_key(uri)[0]
    return _requested(f"bucket {name}", lambda: session.client("s3").head_bucket(Bucket=name))


def bucket_exists(session, name: str, owner: str | None) -> bool:
    """Return whether the bucket is there. Raises Failure if another than the owner has taken the name."""
    try:
        session.client("s3").head_bucket(Bucket=name, **({"ExpectedBucketOwner": owner} if owner else {}))
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in MISSING:
            return False
        if code in DENIED:
            raise Failure(f"bucket {name}: it is somebody else's, or these credentials may not use it") from None
        raise
    return True


def data(session, uri: str) -> str:
    """Check that some object has the prefix."""
    bucket_name, prefix = storage.bucket_and_key(uri)
    list_some = functools.partial(session.client("s3").list_objects_v2, Bucket=bucket_name, Prefix=prefix, MaxKeys=1)
    found = []
    result = _requested(f"bucket {bucket_name}", lambda: found.append(list_some()["KeyCount"]))
    if found == [0]:
        raise Failure(f"{uri}: no object in S3 has this prefix")
    return result


def image(session, uri: str) -> str:
    """Check that an image is there. It has to be in ECR: SageMaker takes images from nowhere else."""
    found = ECR_IMAGE.fullmatch(uri)
    if not found:
        raise Failure(f"image {uri}: expected one in Amazon ECR; fastmaker image push puts one there")
    named = {"imageDigest": found["digest"]} if found["digest"] else {"imageTag": found["tag"] or "latest"}
    client = session.client("ecr", region_name=found["region"])
    arguments = {"registryId": found["account"], "repositoryName": found["repository"], "imageIds": [named]}
    return _requested(f"image {uri}", lambda: client.describe_images(**arguments))


def instance_type(client, kind: str, name: str) -> str:
    """Check that SageMaker's API, as botocore knows it, has the type for this kind of job."""
    known = client.meta.service_model.shape_for(SHAPES[kind]).enum
    if name not in known:
        near = difflib.get_close_matches(name, known) or ["ml.g4dn.xlarge"]
        raise Failure(f"instance type {name}: boto3 knows no such {kind} type; expected one such as {', '.join(near)}")
    return "known"


def quota(session, kind: str, instance_type: str, count: int) -> str:
    """Check that so many instances of the type may run; the text says so where Service Quotas does not answer."""
    name = QUOTAS[kind].format(instance_type)
    try:
        pages = session.client("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
        value = next((q["Value"] for page in pages for q in page["Quotas"] if q["QuotaName"] == name), None)
    except ClientError as error:
        return f"not checked: Service Quotas says {error.response['Error']['Code']}"
    except HTTPClientError:
        return UNREACHABLE
    if value is None:
        return "not checked: Service Quotas does not know it"
    if value < count:
        raise Failure(
            f"quota {name!r} is {value:g}, {count} wanted; it is raised at Service Quotas, by "
            f"`aws service-quotas request-service-quota-increase`"
        )
    return f"{value:g}"


def _requested(name: str, request: Callable[[], object]) -> str:
    """Send a request, and return whether what has the name is there. Raises Failure if it is not."""
    try:
        request()
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in DENIED:
            return "not checked: these credentials may not look"
        if code in MISSING:
            raise Failure(f"there is no {name}") from None
        raise
    except HTTPClientError:
        return UNREACHABLE
    return "there"

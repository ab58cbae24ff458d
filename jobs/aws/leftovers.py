"""What the jobs leave on AWS beside SageMaker's own things: scaling policies with their alarms, images, data in S3."""

import contextlib
from collections.abc import Iterator
from functools import partial

from botocore.exceptions import ClientError

from jobs.aws.checks import DENIED
from jobs.aws.endpoints import DIMENSION, POLICY
from jobs.things import Thing, every

NAMESPACE = {"ServiceNamespace": "sagemaker"}


def tag_of(tags: list[dict], key: str) -> str | None:
    """The value of a tag, of tags as AWS's APIs have them."""
    return next((tag["Value"] for tag in tags if tag["Key"] == key), None)


def scalings(boto, is_ours, endpoint: str | None = None) -> list[Thing]:
    """Scaling policies that the jobs made, of one endpoint or of all: by their name and the endpoint, if it is ours."""
    client = boto.client("application-autoscaling")
    with _allowed("scaling"):
        found = every(client, "describe_scaling_policies", "ScalingPolicies", **NAMESPACE)
        named = [(policy["ResourceId"].split("/")[1], policy) for policy in found if policy["PolicyName"] == POLICY]
        return [
            Thing("scaling", name, "-", policy["CreationTime"], "its alarms", partial(_delete_scaling, client, policy))
            for name, policy in named
            if endpoint in (None, name) and is_ours(name)
        ]
    return []


def _delete_scaling(client, policy: dict) -> None:
    target = {**NAMESPACE, "ResourceId": policy["ResourceId"], "ScalableDimension": DIMENSION}
    client.delete_scaling_policy(**target, PolicyName=POLICY)  # with its alarms
    client.deregister_scalable_target(**target)


def images(boto, tag: str) -> list[Thing]:
    """Repositories of ECR that have the tag, with all images in them."""
    client = boto.client("ecr")
    found = []
    with _allowed("images"):
        for repository in every(client, "describe_repositories", "repositories", "nextToken"):
            tags = client.list_tags_for_resource(resourceArn=repository["repositoryArn"])["tags"]
            if tag_of(tags, tag) is not None:
                name = repository["repositoryName"]
                delete = partial(client.delete_repository, repositoryName=name, force=True)
                found.append(Thing("image", name, "-", repository["createdAt"], "storage", delete))
    return found


def folders(client, root: str, marker: str, tag: str) -> list[Thing]:
    """The folders KIND/NAME below the URI `root` whose object `marker` has the tag."""
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    found = []
    with _allowed("data in S3"):
        for kind in _folders_in(client, bucket, f"{prefix}/"):
            for folder in _folders_in(client, bucket, kind):
                if is_marked(client, bucket, folder + marker, tag):
                    name = folder.removeprefix(f"{prefix}/").rstrip("/")
                    found.append(_folder(client, bucket, folder, name))
    return found


def _folders_in(client, bucket: str, prefix: str) -> Iterator[str]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
        yield from (item["Prefix"] for item in page.get("CommonPrefixes", ()))


def _folder(client, bucket: str, folder: str, name: str) -> Thing:
    sizes = [item["Size"] for page in _pages(client, bucket, folder) for item in page]
    status = f"{len(sizes)} objects, {sum(sizes) / 1e6:.1f} MB"
    return Thing("s3", name, status, None, "storage", partial(_delete_folder, client, bucket, folder))


def is_marked(client, bucket: str, key: str, tag: str) -> bool:
    """Whether there is an object of this key that has the tag."""
    try:
        return tag_of(client.get_object_tagging(Bucket=bucket, Key=key)["TagSet"], tag) is not None
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "NoSuchBucket", "404"):
            return False
        raise


def holds_any(client, bucket: str, prefix: str) -> bool:
    """Whether any object has the prefix."""
    try:
        return bool(client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)["KeyCount"])
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchBucket":  # in a dry run, which does not make it
            return False
        raise


def _pages(client, bucket: str, folder: str) -> Iterator[list[dict]]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder):
        if page.get("Contents"):
            yield page["Contents"]


def _delete_folder(client, bucket: str, folder: str) -> None:
    for page in _pages(client, bucket, folder):
        client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": item["Key"]} for item in page], "Quiet": True})


@contextlib.contextmanager
def _allowed(what: str) -> Iterator[None]:
    """Go on without what these credentials may not look at, saying so."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in DENIED:
            print(f"not listed: {what}, at which these credentials may not look")
        elif code != "NoSuchBucket":
            raise

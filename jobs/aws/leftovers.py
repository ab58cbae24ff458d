"""What the jobs leave on AWS beside SageMaker's own things: scaling policies with their alarms, images, data in S3."""

from functools import partial

from botocore.exceptions import ClientError

from jobs.aws.endpoints import DIMENSION, POLICY
from jobs.things import Thing, every

NAMESPACE = {"ServiceNamespace": "sagemaker"}


def tag_of(tags: list[dict], key: str) -> str | None:
    """The value of a tag, of tags as AWS's APIs have them."""
    return next((tag["Value"] for tag in tags if tag["Key"] == key), None)


def scalings(boto, is_ours, endpoint: str | None = None) -> list[Thing]:
    """Scaling policies that the jobs made: by their name, and by the endpoint, which is ours or gone."""
    client = boto.client("application-autoscaling")
    found = every(client, "describe_scaling_policies", "ScalingPolicies", **NAMESPACE)
    named = [(policy["ResourceId"].split("/")[1], policy) for policy in found if policy["PolicyName"] == POLICY]
    return [
        Thing("scaling", name, "-", policy["CreationTime"], "its alarms", partial(_delete_scaling, boto, policy))
        for name, policy in named
        if endpoint in (None, name) and is_ours(name)
    ]


def _delete_scaling(boto, policy: dict) -> None:
    client = boto.client("application-autoscaling")
    target = {**NAMESPACE, "ResourceId": policy["ResourceId"], "ScalableDimension": DIMENSION}
    client.delete_scaling_policy(**target, PolicyName=POLICY)  # with its alarms
    client.deregister_scalable_target(**target)


def images(boto, tag: str) -> list[Thing]:
    """Repositories of ECR that have the tag, with all images in them."""
    client = boto.client("ecr")
    found = []
    for repository in every(client, "describe_repositories", "repositories", "nextToken"):
        tags = client.list_tags_for_resource(resourceArn=repository["repositoryArn"])["tags"]
        if tag_of(tags, tag) is not None:
            name = repository["repositoryName"]
            delete = partial(client.delete_repository, repositoryName=name, force=True)
            found.append(Thing("image", name, "-", repository["createdAt"], "storage", delete))
    return found


def folders(client, bucket: str, prefix: str, marker: str, tag: str) -> list[Thing]:
    """The folders below the prefix, which ends with a slash, whose object `marker` has the tag."""
    found = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
        for folder in (item["Prefix"] for item in page.get("CommonPrefixes", ())):
            if _marked(client, bucket, folder + marker, tag):
                sizes = [item["Size"] for item in _objects(client, bucket, folder)]
                status = f"{len(sizes)} objects, {sum(sizes) / 1e6:.1f} MB"
                delete = partial(_delete_folder, client, bucket, folder)
                found.append(Thing("s3", folder[len(prefix) : -1], status, None, "storage", delete))
    return found


def _marked(client, bucket: str, key: str, tag: str) -> bool:
    try:
        return tag_of(client.get_object_tagging(Bucket=bucket, Key=key)["TagSet"], tag) is not None
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
            return False
        raise


def _objects(client, bucket: str, folder: str):
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder):
        yield from page.get("Contents", ())


def _delete_folder(client, bucket: str, folder: str) -> None:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder):
        keys = [{"Key": item["Key"]} for item in page.get("Contents", ())]
        if keys:
            client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})

"""What the jobs leave on AWS beside SageMaker's own resources: scaling with its alarms, images, data in S3."""

import contextlib
import datetime
from collections.abc import Iterator
from functools import partial

from botocore.exceptions import ClientError

from fastmaker.jobs import storage
from fastmaker.jobs.backends.aws.checks import DENIED
from fastmaker.jobs.backends.aws.endpoints import DIMENSION, POLICIES, alarm_of
from fastmaker.jobs.backends.resources import Resource, is_missing, paginate
from fastmaker.jobs.cli.errors import Failure

NAMESPACE = {"ServiceNamespace": "sagemaker"}


def tag_of(tags: list[dict], key: str) -> str | None:
    """Return the value of a tag, of tags as AWS's APIs have them."""
    return next((tag["Value"] for tag in tags if tag["Key"] == key), None)


def has_tag(client, arn: str, key: str) -> bool:
    """Return whether a resource of SageMaker has the tag; what is gone has none."""
    try:
        return tag_of(client.list_tags(ResourceArn=arn)["Tags"], key) is not None
    except ClientError as error:
        if is_missing(error):
            return False
        raise


def is_our_endpoint(client, name: str, key: str, if_gone: bool) -> bool:
    """Return whether an endpoint has the tag; `if_gone` for one that is not there any more."""
    try:
        return has_tag(client, client.describe_endpoint(EndpointName=name)["EndpointArn"], key)
    except ClientError as error:
        if is_missing(error):
            return if_gone
        raise


def scaling_policies(boto, is_ours, endpoint: str | None = None) -> list[Resource]:
    """Return the scaling, of one endpoint or all, of endpoints that are ours; where one is gone, our policies tell."""
    client = boto.client("application-autoscaling")
    with _unless_denied("scaling"):
        targets = list(paginate(client, "describe_scalable_targets", "ScalableTargets", **NAMESPACE))
        policies = list(paginate(client, "describe_scaling_policies", "ScalingPolicies", **NAMESPACE))
        found = []
        for target in targets:
            name = target["ResourceId"].split("/")[1]
            named = [policy for policy in policies if policy["ResourceId"] == target["ResourceId"]]
            ours = any(policy["PolicyName"] in POLICIES for policy in named)
            if endpoint in (None, name) and is_ours(name, ours):
                delete = partial(_delete_scaling, boto, target["ResourceId"], named)
                found.append(Resource("scaling", name, "-", target["CreationTime"], "its alarms", delete))
        return found
    return []


def _delete_scaling(boto, resource: str, policies: list[dict]) -> None:
    client, target = boto.client("application-autoscaling"), {"ResourceId": resource, "ScalableDimension": DIMENSION}
    for policy in policies:
        client.delete_scaling_policy(**NAMESPACE, **target, PolicyName=policy["PolicyName"])  # with alarms of its own
    client.deregister_scalable_target(**NAMESPACE, **target)
    boto.client("cloudwatch").delete_alarms(AlarmNames=[alarm_of(resource.split("/")[1])])


def images(boto, tag: str) -> list[Resource]:
    """Return the repositories of ECR that have the tag, with all images in them."""
    client = boto.client("ecr")
    found = []
    with _unless_denied("images"):
        for repository in paginate(client, "describe_repositories", "repositories", "nextToken"):
            tags = client.list_tags_for_resource(resourceArn=repository["repositoryArn"])["tags"]
            if tag_of(tags, tag) is not None:
                name = repository["repositoryName"]
                delete = partial(client.delete_repository, repositoryName=name, force=True)
                found.append(Resource("image", name, "-", repository["createdAt"], "storage", delete))
    return found


def folders(client, root: str, marker: str, tag: str, models_below) -> list[Resource]:
    """Return the folders KIND/NAME below the URI `root` whose object `marker` has the tag, as metadata.

    `models_below` names the models whose data lie below a URI; a folder that has such is not deleted.
    """
    bucket, prefix = storage.bucket_and_key(root)
    found = []
    with _unless_denied("data in S3"):
        for kind in _folders_in(client, bucket, f"{prefix}/"):
            for folder in _folders_in(client, bucket, kind):
                if is_marked(client, bucket, folder + marker, tag):
                    name = folder.removeprefix(f"{prefix}/").rstrip("/")
                    found.append(_folder(client, bucket, folder, name, marker, models_below))
    return found


def _folders_in(client, bucket: str, prefix: str) -> Iterator[str]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
        yield from (item["Prefix"] for item in page.get("CommonPrefixes", ()))


def _folder(client, bucket: str, folder: str, name: str, marker: str, models_below) -> Resource:
    sizes = [item["Size"] for page in _pages(client, bucket, folder) for item in page]
    status = f"{len(sizes)} objects, {sum(sizes) / 1e6:.1f} MB"
    delete = partial(_delete_folder, client, bucket, folder, marker, models_below)
    return Resource("s3", name, status, None, "storage", delete)


class ModelData:
    """The places that models, anybody's, take data from. Each is described once: a model never changes."""

    def __init__(self, client):
        self._client = client
        self._uris: dict[tuple[str, datetime.datetime], list[str]] = {}  # a model of the same name has another time

    def models_below(self, uri: str) -> list[str]:
        """Return the models whose data lie below a URI."""
        models = paginate(self._client, "list_models", "Models", MaxResults=100)
        made = [(summary["ModelName"], summary["CreationTime"]) for summary in models]
        return [name for name, time in made if any(data.startswith(uri) for data in self._data_of(name, time))]

    def _data_of(self, name: str, made: datetime.datetime) -> list[str]:
        if (name, made) not in self._uris:
            try:
                model = self._client.describe_model(ModelName=name)
            except ClientError as error:
                if is_missing(error):  # by now
                    return []
                raise
            self._uris[name, made] = list(_data_uris(model))
        return self._uris[name, made]


def _data_uris(model: dict) -> Iterator[str]:
    """Yield the URIs of the data in S3 of a model's containers; `model` is DescribeModel's answer."""
    for container in [model.get("PrimaryContainer", {}), *model.get("Containers", ())]:
        if "ModelDataUrl" in container:
            yield container["ModelDataUrl"]
        for source in [container.get("ModelDataSource", {}), *container.get("AdditionalModelDataSources", ())]:
            if "S3DataSource" in source:
                yield source["S3DataSource"]["S3Uri"]


def is_marked(client, bucket: str, key: str, tag: str) -> bool:
    """Return whether there is an object of this key that has the tag, as metadata: roles seldom may tag objects."""
    try:
        return tag in client.head_object(Bucket=bucket, Key=key)["Metadata"]
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "NoSuchBucket", "404"):
            return False
        raise


def holds_any(client, bucket: str, prefix: str) -> bool:
    """Return whether any object has the prefix."""
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


def _delete_folder(client, bucket: str, folder: str, marker: str, models_below) -> None:
    """Delete a folder, its marker last: while anything is left, it is listed. Raises Failure."""
    if models := models_below(f"s3://{bucket}/{folder}"):
        raise Failure(f"s3://{bucket}/{folder} is kept: it holds the data of the models {', '.join(models)}")
    for page in _pages(client, bucket, folder):
        _delete_objects(client, bucket, [item["Key"] for item in page if item["Key"] != folder + marker])
    if _delete_objects(client, bucket, [folder + marker]):
        print(f"s3://{bucket}/{folder} had versions, which the bucket keeps and which go on costing")


def _delete_objects(client, bucket: str, keys: list[str]) -> bool:
    """Delete the objects and return whether a version of each is kept. Raises Failure."""
    if not keys:
        return False
    answer = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]})
    if errors := answer.get("Errors"):
        raise Failure(f"s3://{bucket}/{errors[0]['Key']} was not deleted: {errors[0].get('Message')}")
    return all(deleted.get("DeleteMarker") for deleted in answer["Deleted"])


@contextlib.contextmanager
def _unless_denied(kind: str) -> Iterator[None]:
    """Go on without a kind of resource that these credentials may not list, saying so."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in DENIED:
            print(f"not listed: {kind}, at which these credentials may not look")
        elif code != "NoSuchBucket":
            raise

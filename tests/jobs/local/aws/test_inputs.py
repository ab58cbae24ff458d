"""What a request reads has to be in S3 when it is sent, as on AWS, whose words the refusals have."""

import pytest
from botocore import xform_name
from botocore.exceptions import ClientError
from helpers.changes import with_value
from helpers.front_jobs import HERE, IMAGE, ROLE, training_request

pytestmark = pytest.mark.server
BUCKET = "inputs"
CHANNEL = ("InputDataConfig", 0, "DataSource", "S3DataSource", "S3Uri")
INPUT = ("TransformInput", "DataSource", "S3DataSource", "S3Uri")
TRANSFORM = {
    "TransformJobName": "job",
    "ModelName": "of-inputs",
    "TransformInput": {"DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/data/"}}},
    "TransformOutput": {"S3OutputPath": f"s3://{BUCKET}/out"},
    "TransformResources": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1},
}
MANIFEST = with_value(TRANSFORM, ("TransformInput", "DataSource", "S3DataSource", "S3DataType"), "ManifestFile")


def model(**container):
    return {"ModelName": "none", "PrimaryContainer": {"Image": IMAGE, **container}, "ExecutionRoleArn": ROLE}


def source(uri, kind="S3Prefix"):
    return {"ModelDataSource": {"S3DataSource": {"S3Uri": uri, "S3DataType": kind, "CompressionType": "None"}}}


def no_objects(uri, bucket=BUCKET):
    return (
        f'No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that the bucket exists in '
        "the selected region (us-west-2), that objects exist under that S3 prefix, and that the role "
        f'"{ROLE}" has "s3:ListBucket" permissions on bucket "{bucket}".'
    )


def missing(operation, request, path, uri, bucket=BUCKET):
    return operation, with_value(request, path, uri), no_objects(uri, bucket)


def no_data(uri, **container):
    return "CreateModel", model(**container or {"ModelDataUrl": uri}), f"Could not find model data at {uri}."


TRAINING = training_request(BUCKET, "none")
REFUSED = {
    "channel": missing("CreateTrainingJob", TRAINING, CHANNEL, f"s3://{BUCKET}/none/"),
    "bucket of a channel": missing("CreateTrainingJob", TRAINING, CHANNEL, "s3://no-bucket/data", "no-bucket"),
    "input": missing("CreateTransformJob", TRANSFORM, INPUT, f"s3://{BUCKET}/none"),
    "bucket of an input": missing("CreateTransformJob", TRANSFORM, INPUT, "s3://no-bucket", "no-bucket"),
    "manifest": missing("CreateTransformJob", MANIFEST, INPUT, f"s3://{BUCKET}/data/"),
    "archive": no_data(f"s3://{BUCKET}/none.tar.gz"),
    "a folder as an archive": no_data(f"s3://{BUCKET}/data"),
    "bucket of an archive": no_data("s3://no-bucket/model.tar.gz"),
    "files": no_data(f"s3://{BUCKET}/none/", **source(f"s3://{BUCKET}/none/")),
    "file": no_data(f"s3://{BUCKET}/none", **source(f"s3://{BUCKET}/none", "S3Object")),
}


@pytest.fixture(scope="module")
def sagemaker(clients):
    s3, sagemaker = clients("s3"), clients("sagemaker")
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=HERE)
    s3.put_object(Bucket=BUCKET, Key="data/a.txt", Body=b"text")
    sagemaker.create_model(**{**model(ModelDataUrl=f"s3://{BUCKET}/data/a.txt"), "ModelName": "of-inputs"})
    return sagemaker


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_in_s3_is_refused_at_once_in_awss_words(sagemaker, case):
    operation, request, told = REFUSED[case]
    with pytest.raises(ClientError) as caught:
        getattr(sagemaker, xform_name(operation))(**request)
    assert caught.value.response["Error"] == {"Code": "ValidationException", "Message": told}


def test_the_requests_of_the_table_are_good_but_for_their_one_fault(sagemaker):
    sagemaker.create_model(**model(**source(f"s3://{BUCKET}/data/")))
    sagemaker.delete_model(ModelName="none")
    for kind, request in (("training", TRAINING), ("transform", TRANSFORM)):
        getattr(sagemaker, f"create_{kind}_job")(**request)
        getattr(sagemaker, f"stop_{kind}_job")(**{f"{kind.title()}JobName": request[f"{kind.title()}JobName"]})

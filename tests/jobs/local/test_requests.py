"""Every request is checked by botocore's model, and each of its members is honoured or refused by its name."""

import contextlib
import json
import re

import pytest
from botocore import xform_name
from botocore.exceptions import ClientError, ParamValidationError
from helpers.changes import with_value
from helpers.request_values import lacking, spoiled, unhonoured, whole
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmaker.local import arguments
from fastmaker.local.client import SageMaker
from fastmaker.local.runtime_client import SageMakerRuntime

HONOURED = arguments.SAGEMAKER
CREATING = [name for name in arguments.SAGEMAKER if name.startswith(("Create", "Update"))]
ARN = "arn:aws:sagemaker:us-west-2:000000000000:model/m"
ROLE = "arn:aws:iam::000000000000:role/local"


@pytest.fixture
def client(tmp_path):
    client = SageMaker("us-west-2", tmp_path / "home")
    yield client
    for store in (client.training_jobs, client.transform_jobs, client.models, client.endpoint_configs):
        assert store.names() == []
    assert client.endpoints.names() == []


def operation_of(client, name):
    return client.meta.service_model.operation_model(name).input_shape, getattr(client, xform_name(name))


@pytest.mark.parametrize("name", arguments.SAGEMAKER)
def test_a_bad_value_of_any_member_is_boto3s_error_that_names_it(client, name):
    shape, call = operation_of(client, name)
    _all_are_refused(call, shape, HONOURED[name])


@pytest.mark.parametrize("name", arguments.RUNTIME)
def test_a_bad_value_of_any_member_of_an_invocation_is_boto3s_error_that_names_it(tmp_path, name):
    shape, call = operation_of(SageMakerRuntime(tmp_path), name)
    _all_are_refused(call, shape, arguments.RUNTIME[name])


def _all_are_refused(call, shape, honoured):
    for member, case, request in spoiled(shape, whole(shape, honoured), honoured):
        with pytest.raises((ParamValidationError, ClientError)) as caught:
            call(**request)
        assert member.lower() in re.sub("[^a-z0-9]", "", str(caught.value).lower()), (case, caught.value)


@pytest.mark.parametrize("name", CREATING)
def test_a_request_that_lacks_any_member_is_boto3s_error_while_another_is_wrong(client, name):
    shape, call = operation_of(client, name)
    here = json.loads(
        re.sub('"InstanceType": "[^"]+"', '"InstanceType": "local"', json.dumps(whole(shape, HONOURED[name])))
    )
    for path, request in lacking(here):
        with pytest.raises((ParamValidationError, ClientError)) as caught:
            call(**request)
        assert str(caught.value), path


@pytest.mark.parametrize("name", arguments.SAGEMAKER)
def test_a_member_that_is_not_honoured_is_refused_by_its_name(client, name):
    shape, call = operation_of(client, name)
    honoured = HONOURED[name]
    for path, member in unhonoured(shape, honoured):
        request = with_value(whole(shape, honoured), path, whole(member))
        words = ".".join(part for part in path if isinstance(part, str))
        with pytest.raises(ClientError, match=f": {re.escape(words)} needs AWS$"):
            call(**request)


def test_an_operation_that_this_machine_does_not_have_is_refused_by_its_name(client):
    for name in client.meta.service_model.operation_names:
        if name not in arguments.SAGEMAKER:
            with pytest.raises(ClientError, match=f"{name} needs AWS: a local session has no such operation$"):
                getattr(client, xform_name(name))()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_request_at_all_is_answered_or_boto3s_error(client, data):
    name = data.draw(st.sampled_from([name for name in arguments.SAGEMAKER if name not in CREATING]))
    shape, call = operation_of(client, name)
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes()
    values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
    request = data.draw(st.dictionaries(st.sampled_from([*shape.members, "Nonsense"]), values))
    with contextlib.suppress(ParamValidationError, ClientError):
        call(**request)


def variants(**changes):
    return {"EndpointConfigName": "c", "ProductionVariants": [{**VARIANT, **changes}]}


def model(**container):
    return {"ModelName": "m", "PrimaryContainer": {"Image": "x", **container}}


def at(source):
    return {"ModelDataSource": {"S3DataSource": source}}


def tagged(*keys):
    return {"Tags": [{"Key": key, "Value": "1"} for key in keys]}


VARIANT = {"VariantName": "v", "ModelName": "m", "InstanceType": "local"}
SOURCE = {"S3Uri": "s3://b/k/", "S3DataType": "S3Prefix", "CompressionType": "None"}
JOB = {
    "TransformJobName": "j",
    "ModelName": "m",
    "TransformInput": {"DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/k"}}},
    "TransformOutput": {"S3OutputPath": "s3://b/o"},
    "TransformResources": {"InstanceType": "local", "InstanceCount": 1},
}
TRAINING = {
    "TrainingJobName": "j",
    "RoleArn": ROLE,
    "AlgorithmSpecification": {"TrainingImage": "x", "TrainingInputMode": "File"},
    "OutputDataConfig": {"S3OutputPath": "s3://b/o"},
    "ResourceConfig": {"InstanceType": "local", "InstanceCount": 1, "VolumeSizeInGB": 1},
    "HyperParameters": {"sagemaker_program": "train.py"},
    "StoppingCondition": {"MaxRuntimeInSeconds": 60},
}
OUTSIDE = ("/opt/ml/../../etc", "/opt/ml/", "/opt/ml", "/opt/mlx/c", "/tmp/c", "opt/ml/c", "/opt/ml/c/../../x")
CHANNEL = {
    "ChannelName": "train",
    "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "file:///usr/bin"}},
}


def stops(**condition):
    return {"StoppingCondition": condition}


MISFITS = {
    "environment-number": ("CreateModel", model(Environment={"N": 3}), "Invalid type for parameter"),
    "environment-name": ("CreateModel", model(Environment={"a-b": "3"}), "'primaryContainer.environment.key'"),
    "no-variant": ("CreateEndpointConfig", {**variants(), "ProductionVariants": []}, "valid min length: 1"),
    "no-model": ("CreateEndpointConfig", {**variants(), "ProductionVariants": [{"VariantName": "v"}]}, "'v' lacks"),
    "nonsense": ("CreateEndpointConfig", variants(Nonsense=1), 'Unknown parameter in .*: "Nonsense"'),
    "twice": ("CreateEndpointConfig", {**variants(), "ProductionVariants": [VARIANT, VARIANT]}, "one name"),
    "instances": ("CreateEndpointConfig", variants(InitialInstanceCount=10**9), "at most 100"),
    "aws-type": ("CreateEndpointConfig", variants(InstanceType="ml.m5.large"), "serves on local"),
    "variable": ("CreateModel", model(Environment={"A": "é" * 1024}), "has 2048 bytes; expected at most 1024"),
    "variables": ("CreateModel", model(Environment={f"A{n}": "1" * 1000 for n in range(33)}), "at most 32,768"),
    "variables-count": (
        "CreateModel",
        model(Environment={f"A{n}": "1" for n in range(101)}),
        "less than or equal to 100",
    ),
    "routing": ("CreateEndpointConfig", variants(RoutingConfig={"RoutingStrategy": "KV_AWARE"}), "KV_AWARE needs AWS"),
    "prefixes": ("CreateEndpointConfig", variants(RoutingConfig={"RoutingStrategy": "PREFIX_AWARE"}), "_AWARE needs"),
    "job-variable": ("CreateTrainingJob", {**TRAINING, "Environment": {"A": "1" * 513}}, "less than or equal to 512"),
    "job-variables": (
        "CreateTrainingJob",
        {**TRAINING, "Environment": {f"A{n}": "1" for n in range(101)}},
        "less than or equal to 100",
    ),
    "batch-variables": (
        "CreateTransformJob",
        {**JOB, "Environment": {f"A{n}": "1" for n in range(17)}},
        "less than or equal to 16",
    ),
    "hyperparameters": (
        "CreateTrainingJob",
        {**TRAINING, "HyperParameters": {f"a{n}": "1" for n in range(101)}},
        "less than or equal to 100",
    ),
    "hyperparameter": ("CreateTrainingJob", {**TRAINING, "HyperParameters": {"a": "1" * 2501}}, "or equal to 2500"),
    "29-days": ("CreateTrainingJob", {**TRAINING, **stops(MaxRuntimeInSeconds=29 * 86400)}, "which is 28 days"),
    "wait": (
        "CreateTrainingJob",
        {**TRAINING, **stops(MaxRuntimeInSeconds=60, MaxWaitTimeInSeconds=59)},
        "is 59; expected at least MaxRuntimeInSeconds, which is 60",
    ),
    "channel-up": (
        "CreateTrainingJob",
        {**TRAINING, "InputDataConfig": [{**CHANNEL, "ChannelName": ".."}]},
        "a channel is named '..', which is no name of a folder",
    ),
    **{
        f"checkpoints-{path}": (
            "CreateTrainingJob",
            {**TRAINING, "CheckpointConfig": {"S3Uri": "s3://b/c", "LocalPath": path}},
            f"checkpoint_local_path is '{path}'; expected a path below /opt/ml/",
        )
        for path in (
            "/opt/ml/../../etc",
            "/opt/ml/",
            "/opt/ml",
            "/opt/mlx/c",
            "/tmp/c",
            "opt/ml/c",
            "/opt/ml/c/../../x",
        )
    },
    "channel-twice": ("CreateTrainingJob", {**TRAINING, "InputDataConfig": [CHANNEL, CHANNEL]}, "are named 'train'"),
    "container": ("CreateModel", {"ModelName": "m"}, "the model has 0 containers"),
    "pipeline": ("CreateModel", {"ModelName": "m", "Containers": [{"Image": "x"}] * 2}, "has 2 containers"),
    "multi-model": ("CreateModel", model(Mode="MultiModel"), "multi-model"),
    "no-data": ("CreateModel", model(ModelDataUrl="file:///nowhere/at/all"), "no such file"),
    "no-scheme": ("CreateModel", model(ModelDataUrl="models/x"), "begins with s3://"),
    "two-sources": ("CreateModel", model(ModelDataUrl="s3://b/k", **at(SOURCE)), "not both"),
    "archives": ("CreateModel", model(**at({**SOURCE, "CompressionType": "Gzip"})), "an archive is an S3Object"),
    "no-slash": ("CreateModel", model(**at({**SOURCE, "S3Uri": "s3://b/k"})), "ends with a slash, and 's3://b/k'"),
    "tag-twice": ("CreateModel", {**model(), **tagged("a", "a")}, "the tag 'a' is given more than once"),
    "tag-of-aws": ("CreateTrainingJob", {**TRAINING, **tagged("aws:x")}, "which is AWS's own"),
    "tag-sign": ("CreateTransformJob", {**JOB, **tagged("a#")}, "'tags.1.member.key'"),
    "tags": ("CreateModel", {**model(), **tagged(*map(str, range(51)))}, "length less than or equal to 50"),
    "name": ("CreateTrainingJob", {**TRAINING, "TrainingJobName": "a" * 64}, "less than or equal to 63"),
    "role": ("CreateTrainingJob", {**TRAINING, "RoleArn": "nobody"}, "valid min length: 20"),
    "line": ("CreateTrainingJob", {**TRAINING, "HyperParameters": {"a": "b\nc"}}, "'hyperParameters.a.value'"),
    "mode": ("CreateTransformJob", {**JOB, "BatchStrategy": "Each"}, r"enum value set: \[MultiRecord, SingleRecord\]"),
    "many": ("CreateTransformJob", {**JOB, "ModelClientConfig": {"InvocationsMaxRetries": 4}}, "or equal to 3"),
    "no-such-model": ("CreateTransformJob", {**JOB, "TransformOutput": {"S3OutputPath": "file:///tmp"}}, "find model"),
    "token": ("ListModels", {"NextToken": "nonsense"}, "NextToken is none of ListModels's"),
    "tags-token": ("ListTags", {"ResourceArn": ARN, "NextToken": "x"}, "NextToken"),
    "no-resource": ("ListTags", {"ResourceArn": ARN}, "Could not find"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_cannot_be_had_is_boto3s_error_and_nothing_is_left(client, case):
    name, request, reason = MISFITS[case]
    with pytest.raises((ParamValidationError, ClientError), match=reason):
        getattr(client, xform_name(name))(**request)


def test_a_transform_job_takes_no_model_data_source_as_on_aws(client, tmp_path):
    source = at({**SOURCE, "S3Uri": f"file://{tmp_path}/"})
    client.create_model(**model(**source))
    assert client.describe_model(ModelName="m")["PrimaryContainer"] == {"Image": "x", **source}
    with pytest.raises(ClientError, match="a transform job takes no model with a ModelDataSource, here as on AWS"):
        client.create_transform_job(**{**JOB, "TransformOutput": {"S3OutputPath": f"file://{tmp_path}"}})
    client.delete_model(ModelName="m")


def test_the_requests_of_the_table_are_good_but_for_their_one_fault(client):
    client.create_model(**model())
    client.create_endpoint_config(**variants())
    assert client.describe_endpoint_config(EndpointConfigName="c")["ProductionVariants"] == [VARIANT]
    client.delete_endpoint_config(EndpointConfigName="c")
    client.delete_model(ModelName="m")

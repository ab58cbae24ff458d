"""List operations with botocore's filters, orders, defaults, pages and paginators; tags, waiters and answers."""

import re
from datetime import datetime, timedelta, timezone

import botocore.loaders
import pytest
from botocore.exceptions import ClientError, WaiterError
from helpers.shapes import assert_answers_as

from fastmaker.local import arguments, names
from fastmaker.local.client import SageMaker
from fastmaker.local.listings import LISTINGS

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)
STATUSES = {"alpha": "Completed", "beta": "Failed", "gamma-a": "Stopped", "Delta": "Completed"}
OPERATIONS = {"TrainingJob": "list_training_jobs", "TransformJob": "list_transform_jobs", "Model": "list_models"}
OPERATIONS |= {"EndpointConfig": "list_endpoint_configs", "Endpoint": "list_endpoints"}


@pytest.fixture
def client(tmp_path):
    return SageMaker("us-west-2", tmp_path / "home")


@pytest.fixture
def filled(client):
    """A resource of each kind and name, one a day, each changed half a day later."""
    for kind in OPERATIONS:
        for number, name in enumerate(STATUSES):
            add(client, kind, name, START + number * DAY)
    return client


def add(client, kind, name, created):
    """A record as an operation leaves it when its work is done."""
    spelled = re.sub("(?<!^)(?=[A-Z])", "-", kind).lower()
    arn = names.arn("us-west-2", spelled, name)
    description = {f"{kind}Name": name, f"{kind}Arn": arn, "CreationTime": created}
    if kind in ("Model", "EndpointConfig"):
        whole = {"PrimaryContainer": {"Image": "x"}, "ProductionVariants": []}
        client_store(client, kind).create(name, {**whole, **description})
        return
    changed = {"TransformEndTime": created + DAY / 2} if kind == "TransformJob" else {}
    changed |= {"LastModifiedTime": created + DAY / 2} if kind != "TransformJob" else {}
    description |= {f"{kind}Status": STATUSES.get(name, "Completed"), **changed}
    more = {"SecondaryStatus": "Completed", "SecondaryStatusTransitions": [], "AlgorithmSpecification": {}}
    servers = {"servers": [], "next_servers": []} if kind == "Endpoint" else {}
    description |= more if kind == "TrainingJob" else {}
    client_store(client, kind).create(name, {"description": description, "tags": [], **servers})


def client_store(client, kind):
    return getattr(client, OPERATIONS[kind].removeprefix("list_"))


def listed(client, kind, **request):
    (listing,) = (listing for listing in LISTINGS if listing.kind == kind)
    answer = getattr(client, OPERATIONS[kind])(**request)
    assert_answers_as(listing.operation, answer)
    return [summary[f"{kind}Name"] for summary in answer[listing.answer]]


ALL = list(STATUSES)
FILTERS = {
    "name": ({"NameContains": "a-"}, ["gamma-a"]),
    "case": ({"NameContains": "D"}, ["Delta"]),
    "no-name": ({"NameContains": "z"}, []),
    "before": ({"CreationTimeBefore": START + DAY}, ["alpha"]),
    "after": ({"CreationTimeAfter": START + 2.5 * DAY}, ["Delta"]),
    "between": ({"CreationTimeAfter": START + DAY / 2, "CreationTimeBefore": START + 3 * DAY}, ["beta", "gamma-a"]),
    "text": ({"CreationTimeBefore": "2026-01-02T00:00:00Z"}, ["alpha"]),
    "seconds": ({"CreationTimeBefore": int((START + DAY).timestamp())}, ["alpha"]),
    "zone": ({"CreationTimeBefore": "2026-01-02T01:00:00+01:00"}, ["alpha"]),
    "names": ({"SortBy": "Name"}, ["Delta", "alpha", "beta", "gamma-a"]),
    "names-down": ({"SortBy": "Name", "SortOrder": "Descending"}, ["gamma-a", "beta", "alpha", "Delta"]),
    "times": ({"SortBy": "CreationTime"}, ALL),
    "times-down": ({"SortOrder": "Descending"}, ALL[::-1]),
    "first": ({"MaxResults": 1}, ["alpha"]),
    "first-down": ({"MaxResults": 1, "SortOrder": "Descending"}, ["Delta"]),
}
OF_STATES = {
    "changed-before": ({"LastModifiedTimeBefore": START + DAY}, ["alpha"]),
    "changed-after": ({"LastModifiedTimeAfter": START + 3.4 * DAY}, ["Delta"]),
    "state": ({"StatusEquals": "Failed"}, ["beta"]),
    "states": ({"SortBy": "Status"}, ["Delta", "alpha", "beta", "gamma-a"]),
}


@pytest.mark.parametrize("case", [*FILTERS, *OF_STATES])
def test_a_list_has_what_its_filters_and_order_say(filled, case):
    request, expected = {**FILTERS, **OF_STATES}[case]
    for kind in OPERATIONS:
        if case in FILTERS or kind.endswith("Job"):
            assert listed(filled, kind, **{"SortOrder": "Ascending", **request}) == expected, kind
    if case in OF_STATES and case.startswith("changed"):
        assert listed(filled, "Endpoint", **{"SortOrder": "Ascending", **request}) == expected


def test_created_at_the_very_time_is_after_it_where_the_documentation_says_so(filled):
    for kind in OPERATIONS:
        last = START + 3 * DAY
        assert listed(filled, kind, CreationTimeAfter=last) == ([] if kind.endswith("Job") else ["Delta"])


def test_defaults_are_those_that_botocore_documents():
    model = botocore.loaders.Loader().load_service_model("sagemaker", "service-2")
    for listing in LISTINGS:
        shape = model["shapes"][model["operations"][listing.operation]["input"]["shape"]]
        text = {name: re.sub("<[^>]+>", "", member["documentation"]) for name, member in shape["members"].items()}
        assert f"The default is {listing.order}" in text["SortOrder"]
        assert "The default is CreationTime" in text["SortBy"]
        documented = re.search("default.* ([0-9]+)[.]", text["MaxResults"])
        assert listing.page == (int(documented[1]) if documented else 100)


def test_a_paginator_yields_each_resource_once_though_others_come_and_go(client):
    for number in range(25):
        add(client, "Model", f"m{number:02}", START + number * DAY)
    seen = []
    for page in client.get_paginator("list_models").paginate(PaginationConfig={"PageSize": 4}):
        seen += [model["ModelName"] for model in page["Models"]]
        add(client, "Model", f"new{len(seen)}", START + 100 * DAY)
        client.delete_model(ModelName=seen[-1])
    assert seen == [f"m{number:02}" for number in range(24, -1, -1)]


@pytest.mark.parametrize("order", ["Ascending", "Descending"])
@pytest.mark.parametrize("sort_by", ["Name", "CreationTime", "Status"])
def test_pages_of_any_order_are_the_whole_list(filled, sort_by, order):
    request = {"SortBy": sort_by, "SortOrder": order}
    pages = filled.get_paginator("list_training_jobs").paginate(**request, PaginationConfig={"PageSize": 1})
    found = [job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]]
    assert found == listed(filled, "TrainingJob", **request)
    assert sorted(found) == sorted(STATUSES)


def test_a_token_of_another_order_is_refused(filled):
    token = filled.list_models(MaxResults=1)["NextToken"]
    assert len(filled.list_models(NextToken=token)["Models"]) == 3
    for request in ({"SortBy": "Name"}, {"SortBy": "Name", "SortOrder": "Ascending"}):
        with pytest.raises(ClientError, match="the NextToken is none of ListModels's in this order"):
            filled.list_models(NextToken=token, **request)


def test_every_operation_that_lists_has_all_of_botocores_filters_but_those_of_what_is_not_here(client):
    missing = {"WarmPoolStatusEquals", "TrainingPlanArnEquals"}
    for listing in LISTINGS:
        shape = client.meta.service_model.operation_model(listing.operation).input_shape
        assert set(shape.members) - set(arguments.SAGEMAKER[listing.operation]) <= missing


# Tags


@pytest.mark.parametrize("kind", OPERATIONS)
@pytest.mark.parametrize("name", ["alpha", "Delta"])
def test_tags_are_added_listed_and_deleted(filled, kind, name):
    arn = filled_arn(filled, kind, name)
    assert filled.list_tags(ResourceArn=arn)["Tags"] == []
    filled.add_tags(ResourceArn=arn, Tags=[{"Key": "owner", "Value": "a"}, {"Key": "team é", "Value": ""}])
    filled.add_tags(ResourceArn=arn, Tags=[{"Key": "owner", "Value": "b"}])
    expected = [{"Key": "owner", "Value": "b"}, {"Key": "team é", "Value": ""}]
    assert filled.list_tags(ResourceArn=arn)["Tags"] == expected
    pages = filled.get_paginator("list_tags").paginate(ResourceArn=arn)
    assert [tag for page in pages for tag in page["Tags"]] == expected
    filled.delete_tags(ResourceArn=arn, TagKeys=["owner", "nobodys"])
    assert filled.list_tags(ResourceArn=arn)["Tags"] == expected[1:]
    more = [{"Key": f"key{number}", "Value": ""} for number in range(50)]
    with pytest.raises(ClientError, match="would have 51 tags"):
        filled.add_tags(ResourceArn=arn, Tags=more)
    assert filled.list_tags(ResourceArn=arn)["Tags"] == expected[1:]


def filled_arn(client, kind, name):
    (listing,) = (listing for listing in LISTINGS if listing.kind == kind)
    summaries = getattr(client, OPERATIONS[kind])(NameContains=name)[listing.answer]
    return summaries[0][f"{kind}Arn"]


def test_tags_that_a_request_gives_are_kept_and_described_nowhere_else(client):
    tags = [{"Key": "owner", "Value": "me"}]
    arn = client.create_model(ModelName="M", PrimaryContainer={"Image": "x"}, Tags=tags)["ModelArn"]
    variants = [{"VariantName": "v", "ModelName": "M", "InstanceType": "local"}]
    config = {"EndpointConfigName": "C", "ProductionVariants": variants, "Tags": tags, "KmsKeyId": "key"}
    config_arn = client.create_endpoint_config(**config)["EndpointConfigArn"]
    assert client.list_tags(ResourceArn=arn)["Tags"] == client.list_tags(ResourceArn=config_arn)["Tags"] == tags
    for operation, described in {
        "DescribeModel": client.describe_model(ModelName="M"),
        "DescribeEndpointConfig": client.describe_endpoint_config(EndpointConfigName="C"),
    }.items():
        assert_answers_as(operation, described)
        assert described.get("KmsKeyId", "key") == "key"


def test_a_model_is_described_with_its_container_where_it_was_given(client):
    container = {"Image": "x", "Environment": {"A": "1"}}
    client.create_model(ModelName="one", PrimaryContainer=container)
    client.create_model(ModelName="other", Containers=[container])
    assert client.describe_model(ModelName="one")["PrimaryContainer"] == container
    other = client.describe_model(ModelName="other")
    assert (other["Containers"], "PrimaryContainer" in other) == ([container], False)


def test_a_name_that_differs_in_case_alone_has_the_same_arn_and_is_taken(client):
    client.create_model(ModelName="model", PrimaryContainer={"Image": "x"})
    with pytest.raises(ClientError, match="already existing model 'MODEL'"):
        client.create_model(ModelName="MODEL", PrimaryContainer={"Image": "x"})


# What boto3 makes of it


def test_waiters_are_botocores(filled):
    filled.get_waiter("endpoint_deleted").wait(EndpointName="nobodys")
    filled.get_waiter("training_job_completed_or_stopped").wait(TrainingJobName="alpha")
    filled.get_waiter("transform_job_completed_or_stopped").wait(TransformJobName="gamma-a")
    with pytest.raises(WaiterError, match='For expression "TrainingJobStatus" we matched expected path: "Failed"'):
        filled.get_waiter("training_job_completed_or_stopped").wait(TrainingJobName="beta")


def test_answers_and_errors_have_boto3s_metadata(filled):
    answers = [filled.list_models(), filled.describe_model(ModelName="alpha"), filled.delete_model(ModelName="alpha")]
    with pytest.raises(filled.exceptions.ClientError) as caught:
        filled.describe_model(ModelName="alpha")
    assert caught.value.operation_name == "DescribeModel"
    for answer, status in [(answer, 200) for answer in answers] + [(caught.value.response, 400)]:
        metadata = answer["ResponseMetadata"]
        assert (metadata["HTTPStatusCode"], metadata["RetryAttempts"]) == (status, 0)
        assert re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", metadata["RequestId"])
        assert metadata["HTTPHeaders"]["x-amzn-requestid"] == metadata["RequestId"]
    assert answers[1]["CreationTime"] == START


def test_a_client_needs_no_credentials_no_configuration_and_no_network(tmp_path, monkeypatch):
    (tmp_path / "config").write_text("[default]\nparameter_validation = false\nnonsense")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "nobodys")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nowhere.invalid")
    client = SageMaker("us-west-2", tmp_path / "home")
    assert client.list_models()["Models"] == []
    assert client.meta.region_name == "us-west-2"

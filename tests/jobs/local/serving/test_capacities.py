"""Weights and numbers of instances of an endpoint's variants, and how they are changed."""

import threading
from collections import Counter

import pytest
from botocore.exceptions import ClientError
from helpers.engine_requests import ECHO, IMAGE, client_of, settled
from helpers.waiting import wait_until

from fastmaker.local.client import SageMaker
from fastmaker.local.runtime_client import SageMakerRuntime
from fastmaker.local.serving import changes, endpoints, instances


def variants(**counts_and_weights):
    return [
        {
            "VariantName": name,
            "ModelName": "m",
            "InstanceType": "local",
            "InitialInstanceCount": count,
            "InitialVariantWeight": weight,
        }
        for name, (count, weight) in counts_and_weights.items()
    ]


@pytest.fixture
def store(tmp_path):
    """The store of an endpoint `e` whose record lists servers, of which none was started."""
    client = SageMaker("us-west-2", tmp_path)
    config = {"ProductionVariants": variants(a=(2, 3.0), b=(1, 1.0))}
    servers = [{**server, "ready": True} for server in instances.planned(config, {"m": {}}, 1)]
    moment = endpoints.now()
    description = {
        "EndpointName": "e",
        "EndpointArn": "arn:aws:sagemaker:us-west-2:000000000000:endpoint/e",
        "EndpointConfigName": "c",
        "ProductionVariants": changes.summaries(config),
        "EndpointStatus": "InService",
        "CreationTime": moment,
        "LastModifiedTime": moment,
    }
    client.endpoints.create("e", {"description": description, "servers": servers, "next_servers": []})
    return client.endpoints


def shares(store, avoid=()):
    picked = Counter(endpoints.pick_server(store, "e", None, list(avoid))["variant"] for _ in range(1000))
    return {name: round(count / 1000, 1) for name, count in picked.items()}


def test_a_variants_share_is_its_weight_however_many_instances_it_has(store):
    assert 0.7 <= shares(store)["a"] <= 0.8
    first = store.read("e")["servers"][0]
    assert 0.7 <= shares(store, [first])["a"] <= 0.8, "one of its instances is not to be asked"


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ([{"VariantName": "x", "DesiredWeight": 1.0}], "the endpoint has no variant x; its variants are a, b"),
        ([{"VariantName": "a"}, {"VariantName": "a"}], "a variant is named twice"),
        ([{"VariantName": "a", "DesiredInstanceCount": 0}], "variant a: DesiredInstanceCount 0 needs AWS"),
        ([{"VariantName": "a", "DesiredInstanceCount": 100}], "would have 101 instances; expected at most 100"),
    ],
)
def test_what_cannot_be_had_changes_nothing(store, wanted, reason):
    before = store.read("e")
    with pytest.raises(ValueError, match=reason):
        endpoints.rescale(store, "e", wanted, None, endpoints.launch_at_once)
    assert store.read("e") == before


def test_what_is_wanted_is_described_beside_what_there_is(store):
    """Nothing is launched: the new server stays a plan, until the process that was to start it is found dead."""
    wanted = [{"VariantName": "b", "DesiredInstanceCount": 2, "DesiredWeight": 0.0}]
    assert endpoints.rescale(store, "e", wanted, None, lambda start: None)
    description = store.read("e")["description"]
    assert description["EndpointStatus"] == "Updating"
    assert description["ProductionVariants"][1] == {
        "VariantName": "b",
        "CurrentWeight": 1.0,
        "DesiredWeight": 0.0,
        "CurrentInstanceCount": 1,
        "DesiredInstanceCount": 2,
    }
    assert not endpoints.rescale(store, "e", wanted, None, endpoints.launch_at_once), "one change at a time"
    endpoints.interrupt(store, "e")
    description = store.read("e")["description"]
    assert description["EndpointStatus"] == "InService"
    assert description["ProductionVariants"][1]["DesiredInstanceCount"] == 1
    assert [server["variant"] for server in store.read("e")["servers"]] == ["a", "a", "b"]


@pytest.mark.slow
@pytest.mark.server
def test_instances_and_weights_change_under_load_and_no_request_is_lost(tmp_path, model_archive):
    with client_of(tmp_path / "home") as client:
        for name in ("first", "second"):
            archive = model_archive(ECHO.format(name=name), name)
            client.create_model(ModelName=name, PrimaryContainer={**IMAGE, "ModelDataUrl": f"file://{archive}"})
        both = [
            {**variant, "ModelName": variant["VariantName"]} for variant in variants(first=(1, 1.0), second=(1, 0.0))
        ]
        client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=both)
        client.create_endpoint(EndpointName="e", EndpointConfigName="c")
        assert settled(client) == "InService"
        runtime, errors, answers, done = SageMakerRuntime(tmp_path / "home"), [], Counter(), threading.Event()

        def ask():
            while not done.is_set():
                try:
                    answer = runtime.invoke_endpoint(EndpointName="e", Body=b"x", ContentType="text/x")
                    answers[answer["InvokedProductionVariant"]] += answer["Body"].read().endswith(b":x")
                except ClientError as error:
                    errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: answers["first"] > 20)
            assert not answers["second"]
            for weights, counts in (((1.0, 1.0), (2, 1)), ((0.0, 1.0), (1, 1)), ((1.0, 1.0), (1, 2))):
                wanted = [
                    {"VariantName": name, "DesiredWeight": weight, "DesiredInstanceCount": count}
                    for name, weight, count in zip(("first", "second"), weights, counts, strict=True)
                ]
                client.update_endpoint_weights_and_capacities(EndpointName="e", DesiredWeightsAndCapacities=wanted)
                assert settled(client) == "InService"
                found = client.describe_endpoint(EndpointName="e")["ProductionVariants"]
                assert [v["CurrentInstanceCount"] for v in found] == list(counts)
                assert [v["CurrentWeight"] for v in found] == list(weights)
                asked = answers.copy()
                wait_until(lambda asked=asked: (answers - asked).total() > 40)
                new = answers - asked
                several = (new["first"] > len(threads), new["second"] > len(threads))  # not those under way before
                assert several == tuple(weight > 0 for weight in weights), new
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert not errors

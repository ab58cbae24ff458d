"""Weights and numbers of instances of an endpoint's variants, and how they are changed."""

import threading
from collections import Counter

import pytest
from botocore.exceptions import ClientError
from helpers.engine_requests import ECHO, IMAGE, client_of, settled
from helpers.waiting import wait_until

from fastmaker.local.client import SageMaker
from fastmaker.local.runtime_client import SageMakerRuntime
from fastmaker.local.serving import capacities, changes, endpoints, instances


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


EXCLUDED = "ExcludeRetainedVariantProperties"


@pytest.mark.parametrize(
    ("asked", "a", "b"),
    [
        ({}, (1, 5.0), (7, 1.0)),
        ({"RetainAllVariantProperties": False}, (1, 5.0), (7, 1.0)),
        ({"RetainAllVariantProperties": True}, (2, 3.0), (1, 1.0)),
        ({"RetainAllVariantProperties": True, EXCLUDED: ["DesiredWeight"]}, (2, 5.0), (1, 1.0)),
        (
            {"RetainAllVariantProperties": True, EXCLUDED: ["DesiredInstanceCount", "DataCaptureConfig"]},
            (1, 3.0),
            (7, 1.0),
        ),
        ({EXCLUDED: ["DesiredWeight"]}, (1, 5.0), (7, 1.0)),
    ],
)
def test_an_update_keeps_the_properties_of_variants_that_it_is_to_retain(store, asked, a, b):
    asked = {**asked, EXCLUDED: [{"VariantPropertyType": kind} for kind in asked.get(EXCLUDED, [])]}
    config = {"EndpointConfigName": "c", "ProductionVariants": variants(a=(1, 5.0), b=(7, 1.0), new=(1, 2.0))}
    retained = capacities.retained(**asked)
    assert endpoints.update(store, "e", config, {"m": {}}, retained, None, lambda start: None)
    planned = store.read("e")["next_servers"]
    found = {name: [server["weight"] for server in planned if server["variant"] == name] for name in ("a", "b", "new")}
    assert found == {"a": [a[1]] * a[0], "b": [b[1]] * b[0], "new": [2.0]}


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


class Load:
    """Four threads that ask an endpoint until the context ends: how often a variant answered, and the errors."""

    def __init__(self, home):
        self._runtime, self._done = SageMakerRuntime(home), threading.Event()
        self.answers, self.errors = Counter(), []
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def _ask(self):
        while not self._done.is_set():
            try:
                answer = self._runtime.invoke_endpoint(EndpointName="e", Body=b"x", ContentType="text/x")
                self.answers[answer["InvokedProductionVariant"]] += answer["Body"].read().endswith(b":x")
            except ClientError as error:
                self.errors.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        for thread in self._threads:
            thread.join()

    def variants_that_answer(self):
        """The variants that answer more requests from now on than can have been under way before."""
        before = self.answers.copy()
        wait_until(lambda: (self.answers - before).total() > 40)
        return {name for name, count in (self.answers - before).items() if count > len(self._threads)}


@pytest.mark.slow
@pytest.mark.server
def test_instances_and_weights_change_under_load_and_no_request_is_lost(tmp_path, model_archive):
    with client_of(tmp_path / "home") as client:
        for name in ("a", "b"):
            archive = model_archive(ECHO.format(name=name), name)
            client.create_model(ModelName=name, PrimaryContainer={**IMAGE, "ModelDataUrl": f"file://{archive}"})
        both = [{**variant, "ModelName": variant["VariantName"]} for variant in variants(a=(1, 1.0), b=(1, 0.0))]
        client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=both)
        client.create_endpoint(EndpointName="e", EndpointConfigName="c")
        assert settled(client) == "InService"
        with Load(tmp_path / "home") as load:
            assert load.variants_that_answer() == {"a"}
            for weights, counts in (((1.0, 1.0), (2, 1)), ((0.0, 1.0), (1, 1)), ((1.0, 1.0), (1, 2))):
                wanted = [
                    {"VariantName": name, "DesiredWeight": weight, "DesiredInstanceCount": count}
                    for name, weight, count in zip("ab", weights, counts, strict=True)
                ]
                client.update_endpoint_weights_and_capacities(EndpointName="e", DesiredWeightsAndCapacities=wanted)
                assert settled(client) == "InService"
                found = client.describe_endpoint(EndpointName="e")["ProductionVariants"]
                assert [(v["CurrentWeight"], v["CurrentInstanceCount"]) for v in found] == list(
                    zip(weights, counts, strict=True)
                )
                assert load.variants_that_answer() == {name for name, w in zip("ab", weights, strict=True) if w}
        assert not load.errors

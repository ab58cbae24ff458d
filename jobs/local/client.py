"""`SageMaker`, which takes the place of ``boto3.client("sagemaker")`` and acts on this machine.

It is boto3's client, with its methods, answers and errors; `Operations` answers its requests:
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_Operations.html
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from botocore import xform_name
from botocore.model import OperationModel

from fastmaker.jobs import instance_types, storage
from fastmaker.local import arguments, boto, docker, inputs, names, repacked, supervisor, tags, validation
from fastmaker.local.batch import transform_jobs
from fastmaker.local.batch.validation import validation_error as transform_job_error
from fastmaker.local.errors import in_use, invalid, must_exist, no_space
from fastmaker.local.listings import LISTINGS
from fastmaker.local.serving import asynchronous, capacities, delivery, endpoints
from fastmaker.local.store import FULL, DamagedRecord, Store, default_home, now
from fastmaker.local.tags import Tag
from fastmaker.local.training import training_jobs
from fastmaker.local.training.validation import validation_error as training_job_error

MODEL_SHAPE = {"ModelName": str, "PrimaryContainer": dict, "CreationTime": datetime, "ModelArn": str}
CONFIG_SHAPE = {
    "EndpointConfigName": str,
    "EndpointConfigArn": str,
    "ProductionVariants": [{"VariantName": str, "ModelName": str, "InstanceType": str}],
    "CreationTime": datetime,
}


class Operations:
    """Keep training jobs, models, endpoint configs, endpoints and transform jobs under `home`.

    What is created runs in containers of its image if that image is to `use_docker`, else as processes of this
    environment. `runs` knows the types of instances, `launch` starts the servers of an endpoint.
    """

    def __init__(
        self,
        region: str,
        home: Path | None = None,
        job_environment: Callable[[], dict[str, str]] = lambda: dict(os.environ),
        s3_client: Any = None,
        use_docker: Callable[[str | None], bool] = lambda image: False,
        runs: instance_types.Check = instance_types.is_local,
        launch: endpoints.Launch = endpoints.launch_at_once,
    ) -> None:
        self.region = region
        self._runs, self._launch, self._use_docker = runs, launch, use_docker
        self._s3_client = s3_client  # for what is fetched by this process; jobs have their environment
        self._job_environment = job_environment
        home = home or default_home()
        self.training_jobs = training_jobs.store_below(home)
        self.models = Store(home, "models", MODEL_SHAPE, ignore_case=True)
        self.repacked_models = Store(home, "repacked-models", {"CreationTime": datetime})
        self.packed_code = Store(home, "packed-code")  # of living processes; jobs have copies
        self.endpoint_configs = Store(home, "endpoint-configs", CONFIG_SHAPE, ignore_case=True)
        self.endpoints = endpoints.store_below(home)
        self.transform_jobs = transform_jobs.store_below(home)
        self._kinds: dict[str, tuple[Store, Callable[[Store, str], dict[str, Any]]]] = {
            "TrainingJob": (self.training_jobs, training_jobs.describe),
            "TransformJob": (self.transform_jobs, transform_jobs.describe),
            "Model": (self.models, Store.read),
            "EndpointConfig": (self.endpoint_configs, Store.read),
            "Endpoint": (self.endpoints, endpoints.describe),
        }

    def answer(self, model: OperationModel, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer to a request that botocore has validated. Raises ClientError."""
        if listing := next((listing for listing in LISTINGS if listing.operation == model.name), None):
            summary = model.output_shape.members[listing.answer].member.members
            return listing.page_of(self._found(listing.kind, request.get("NameContains", "")), summary, request)
        try:
            answer: dict[str, Any] | None = getattr(self, xform_name(model.name))(**request)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise no_space(model.name, self.models.folder.parent, error) from None
        return answer

    # Training jobs

    def create_training_job(self, **request: Any) -> dict[str, Any]:
        name = request["TrainingJobName"]
        tags.check("CreateTrainingJob", request.get("Tags", []))
        if reason := training_job_error(request, self._runs):
            raise invalid("CreateTrainingJob", reason)
        validation.check_gpu("CreateTrainingJob", request["ResourceConfig"]["InstanceType"])
        image = self._checked_image("CreateTrainingJob", request["AlgorithmSpecification"]["TrainingImage"])
        validation.check_entrypoint("CreateTrainingJob", request, self.training_jobs.folder, image is not None)
        inputs.check_channels(request, self.region, env := self._job_environment())
        arn = self._arn("training-job", name)
        try:
            training_jobs.start(self.training_jobs, request, arn, env, image)
        except FileExistsError:
            raise in_use("CreateTrainingJob", "Training", name) from None
        return {"TrainingJobArn": arn}

    def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:
        with must_exist("DescribeTrainingJob", "training job", TrainingJobName):
            return self._describe("TrainingJob", TrainingJobName)

    def stop_training_job(self, TrainingJobName: str) -> None:
        with must_exist("StopTrainingJob", "training job", TrainingJobName):
            training_jobs.stop(self.training_jobs, TrainingJobName)

    def delete_training_job(self, TrainingJobName: str) -> None:
        """Delete a job that has ended, as on AWS, and what it left on this machine."""
        self._delete_job("TrainingJob", TrainingJobName)

    # Models

    def create_model(
        self,
        ModelName: str,
        PrimaryContainer: dict[str, Any] | None = None,
        Containers: list[dict[str, Any]] | None = None,
        Tags: list[Tag] | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        operation = "CreateModel"
        container = validation.check_model(operation, PrimaryContainer, Containers)
        inputs.check_model_data(operation, container, self._s3_client)
        self._checked_image(operation, container.get("Image"))
        record = {
            "ModelName": ModelName,
            "PrimaryContainer": container,
            **({"Containers": [container]} if Containers else {}),
            "CreationTime": now(),
            "ModelArn": self._arn("model", ModelName),
            "tags": tags.check(operation, Tags),
            **request,
        }
        self._create(operation, "model", self.models, ModelName, record)
        return {"ModelArn": record["ModelArn"]}

    def describe_model(self, ModelName: str) -> dict[str, Any]:
        with must_exist("DescribeModel", "model", ModelName):
            record = self.models.read(ModelName)
        if "Containers" in record:  # as it was given
            del record["PrimaryContainer"]
        return _without_tags(record)

    def delete_model(self, ModelName: str) -> None:
        """Delete a model, and the archive that was packed anew for it alone."""
        with must_exist("DeleteModel", "model", ModelName):
            archives = self._archives_of([ModelName])
            self.models.delete(ModelName)
        for archive in archives - self._archives_of(self.models.names()):
            with contextlib.suppress(KeyError):
                self.repacked_models.delete(archive)

    def unused_archives(self) -> list[str]:
        """Return the archives that were packed anew for a model that there is not, or not yet."""
        return sorted(set(self.repacked_models.names()) - self._archives_of(self.models.names()))

    def _archives_of(self, models: list[str]) -> set[str]:
        return repacked.names_of(self.repacked_models, self.models, models)

    # Endpoint configs

    def create_endpoint_config(
        self,
        EndpointConfigName: str,
        ProductionVariants: list[dict[str, Any]],
        Tags: list[Tag] | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        operation = "CreateEndpointConfig"
        validation.check_variants(operation, ProductionVariants, self._runs)
        request = validation.check_modes(operation, request, self.region, self._job_environment())
        for variant in ProductionVariants:
            self.describe_model(variant["ModelName"])
        record = {
            "EndpointConfigName": EndpointConfigName,
            "EndpointConfigArn": self._arn("endpoint-config", EndpointConfigName),
            "ProductionVariants": ProductionVariants,
            "CreationTime": now(),
            "tags": tags.check(operation, Tags),
            **request,
        }
        self._create(operation, "endpoint configuration", self.endpoint_configs, EndpointConfigName, record)
        return {"EndpointConfigArn": record["EndpointConfigArn"]}

    def describe_endpoint_config(self, EndpointConfigName: str) -> dict[str, Any]:
        with must_exist("DescribeEndpointConfig", "endpoint configuration", EndpointConfigName):
            return _without_tags(self.endpoint_configs.read(EndpointConfigName))

    def delete_endpoint_config(self, EndpointConfigName: str) -> None:
        with must_exist("DeleteEndpointConfig", "endpoint configuration", EndpointConfigName):
            self.endpoint_configs.delete(EndpointConfigName)

    # Endpoints

    def create_endpoint(
        self, EndpointName: str, EndpointConfigName: str, Tags: list[Tag] | None = None
    ) -> dict[str, Any]:
        given = tags.check("CreateEndpoint", Tags)
        config = self.describe_endpoint_config(EndpointConfigName)
        arn = self._arn("endpoint", EndpointName)
        try:
            models = self._models_of("CreateEndpoint", config)
            endpoints.create(self.endpoints, EndpointName, arn, config, models, given, self._s3_client, self._launch)
        except FileExistsError:
            raise invalid("CreateEndpoint", f'Cannot create already existing endpoint "{arn}".') from None
        return {"EndpointArn": arn}

    def update_endpoint(self, EndpointName: str, EndpointConfigName: str, **request: Any) -> dict[str, Any]:
        operation = "UpdateEndpoint"
        config = self.describe_endpoint_config(EndpointConfigName)
        models, retained = self._models_of(operation, config), capacities.retained(**request)
        update = partial(endpoints.update, config=config, models=models, retained=retained)
        return self._updated(operation, EndpointName, update)

    def update_endpoint_weights_and_capacities(
        self, EndpointName: str, DesiredWeightsAndCapacities: list[dict[str, Any]]
    ) -> dict[str, Any]:
        operation, rescale = "UpdateEndpointWeightsAndCapacities", endpoints.rescale
        return self._updated(operation, EndpointName, partial(rescale, wanted=DesiredWeightsAndCapacities))

    def _updated(self, operation: str, name: str, update: Callable[..., bool]) -> dict[str, Any]:
        """Change an endpoint that is in service. Raises ClientError."""
        description = self.describe_endpoint(name)
        status = description["EndpointStatus"]
        try:
            with must_exist(operation, "endpoint", name):
                if status == "InService" and not update(self.endpoints, name, s3=self._s3_client, launch=self._launch):
                    status = "Updating"  # another process is first
        except capacities.CannotScale as error:
            raise invalid(operation, str(error)) from None
        if status != "InService":
            raise invalid(operation, f'Cannot update endpoint "{name}" in status {status}.')
        return {"EndpointArn": description["EndpointArn"]}

    def describe_endpoint(self, EndpointName: str) -> dict[str, Any]:
        with must_exist("DescribeEndpoint", "endpoint", EndpointName):
            description = self._describe("Endpoint", EndpointName)
            asynchronous.ensure(self.endpoints, EndpointName, self._job_environment)
            delivery.deliver(self.endpoints, EndpointName, self._job_environment)
            return description

    def delete_endpoint(self, EndpointName: str) -> None:
        """Delete an endpoint; the asynchronous requests that wait for an answer fail."""
        with must_exist("DeleteEndpoint", "endpoint", EndpointName):
            asynchronous.abandon(self.endpoints, EndpointName, self._s3_client or storage.s3.client())
            delivery.deliver(self.endpoints, EndpointName, self._job_environment, held=True)
            self.endpoints.delete(EndpointName)

    # Transform jobs

    def create_transform_job(self, **request: Any) -> dict[str, Any]:
        operation, name = "CreateTransformJob", request["TransformJobName"]
        tags.check(operation, request.get("Tags", []))
        if reason := transform_job_error(request, self._runs):
            raise invalid(operation, reason)
        env = self._job_environment()
        validation.check_output_bucket(operation, request["TransformOutput"]["S3OutputPath"], self.region, env)
        validation.check_gpu(operation, request["TransformResources"]["InstanceType"])
        model = self._container_of(operation, request["ModelName"])
        inputs.check_transform(request, self.describe_model(request["ModelName"]), self.region, env)
        arn = self._arn("transform-job", name)
        archive = repacked.archive_of(self.repacked_models, model)
        try:
            transform_jobs.start(self.transform_jobs, request, arn, model, env, archive)
        except FileExistsError:
            raise in_use(operation, "Transform", name) from None
        except FileNotFoundError:
            raise invalid(operation, f'Could not find model "{request["ModelName"]}".') from None  # deleted meanwhile
        return {"TransformJobArn": arn}

    def describe_transform_job(self, TransformJobName: str) -> dict[str, Any]:
        with must_exist("DescribeTransformJob", "transform job", TransformJobName):
            return self._describe("TransformJob", TransformJobName)

    def stop_transform_job(self, TransformJobName: str) -> None:
        with must_exist("StopTransformJob", "transform job", TransformJobName):
            transform_jobs.stop(self.transform_jobs, TransformJobName)

    def delete_transform_job(self, TransformJobName: str) -> None:
        """Delete a job that has ended, but not its outputs. AWS has no such operation."""
        self._delete_job("TransformJob", TransformJobName)

    # Tags

    def list_tags(self, ResourceArn: str, NextToken: str = "", MaxResults: int = tags.MAX_TAGS) -> dict[str, Any]:
        if NextToken:
            raise invalid("ListTags", "the NextToken is none of ListTags's: a resource's tags are one page")
        return {"Tags": self._of_tagged("ListTags", ResourceArn, tags.read)}

    def add_tags(self, ResourceArn: str, Tags: list[Tag]) -> dict[str, Any]:
        tags.check("AddTags", Tags)
        self._of_tagged("AddTags", ResourceArn, partial(tags.add, tags=Tags))
        return {"Tags": Tags}

    def delete_tags(self, ResourceArn: str, TagKeys: list[str]) -> None:
        self._of_tagged("DeleteTags", ResourceArn, partial(tags.delete, keys=TagKeys))

    def _of_tagged(self, operation: str, arn: str, act: Callable[[Store, str], Any]) -> Any:
        """Return what `act` returns of the resource that has an ARN, in any region. Raises ClientError."""
        region, kind = arn.split(":")[3], arn.rpartition(":")[2].partition("/")[0]
        stores = [store for name, (store, _) in self._kinds.items() if _spelled(name, "-") == kind]
        for store in stores:
            for name in store.names():
                if names.arn(region, kind, name) == arn:
                    with must_exist(operation, kind, name):
                        return act(store, name)
        raise invalid(operation, f'Could not find a resource "{arn}".')

    def _models_of(self, operation: str, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the containers of the config's models, by the models' names."""
        models = {variant["ModelName"] for variant in config["ProductionVariants"]}
        return {name: self._container_of(operation, name) for name in models}

    def _container_of(self, operation: str, model: str) -> dict[str, Any]:
        """Return the model's ContainerDefinition, with the DockerImage to run, if any, and if that serves ByRay."""
        with must_exist(operation, "model", model):
            container = self.models.read(model)["PrimaryContainer"]
        image = self._checked_image(operation, container.get("Image"))
        return {**container, "DockerImage": image, "ByRay": image is not None and docker.serves_by_ray(image)}

    def _checked_image(self, operation: str, image: str | None) -> str | None:
        """Return the image that has to run, None where processes do. Raises ClientError if it cannot run here."""
        use_docker = self._use_docker(image)
        validation.check_image(operation, image, use_docker)
        return image if use_docker else None

    def _create(self, operation: str, kind: str, store: Store, name: str, record: dict[str, Any]) -> None:
        try:
            store.create(name, record)
        except FileExistsError:
            raise invalid(operation, f"Cannot create already existing {kind} {name!r}.") from None

    def _found(self, kind: str, contained: str) -> Iterator[dict[str, Any]]:
        """Yield the descriptions of a kind of resource whose names contain a text.

        A record that is damaged is one of them, as Failed; what is deleted meanwhile is none.
        """
        for name in self._kinds[kind][0].names():
            if contained in name:
                with contextlib.suppress(KeyError):
                    yield self._describe(kind, name)

    def _describe(self, kind: str, name: str) -> dict[str, Any]:
        """Return a resource's description, or that its record is damaged, as of what has failed. Raises KeyError."""
        store, describe = self._kinds[kind]
        try:
            return describe(store, name)
        except DamagedRecord as error:
            arn = self._arn(_spelled(kind, "-"), name)
            changed = store.changed(name)
            times = {"CreationTime": changed, "LastModifiedTime": changed}
            status = {f"{kind}Status": "Failed", "FailureReason": str(error)}
            return {f"{kind}Name": name, f"{kind}Arn": arn, **times, **status}

    def _delete_job(self, kind: str, name: str) -> None:
        """Delete a job that has ended. Raises ClientError for another."""
        operation, words = f"Delete{kind}", _spelled(kind, " ")
        with must_exist(operation, words, name):
            status = self._describe(kind, name)[f"{kind}Status"]
            if status not in supervisor.FINAL:
                raise invalid(operation, f"{words} {name} is {status}; stop it first")
            self._kinds[kind][0].delete(name)

    def _arn(self, kind: str, name: str) -> str:
        return names.arn(self.region, kind, name)


class SageMaker:
    """boto3's client for SageMaker, answered by `Operations`, which has the arguments.

    What boto3's client does not have is that of `Operations`: the stores of resources, and `delete_transform_job`.
    """

    def __init__(self, region: str, *given: Any, **options: Any) -> None:
        self._operations = Operations(region, *given, **options)
        self._client = boto.client("sagemaker", region, arguments.SAGEMAKER, self._operations.answer, arguments.modeled)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while it is copied or unpickled there is no client
            raise AttributeError(name)
        return getattr(self._client if hasattr(self._client, name) else self._operations, name)


def _without_tags(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as a Describe operation answers: its tags have operations of their own."""
    return {name: value for name, value in record.items() if name != "tags"}


def _spelled(kind: str, between: str) -> str:
    """Return the words of a kind, such as TrainingJob, in lower case."""
    return re.sub("(?<!^)(?=[A-Z])", between, kind).lower()

"""`SageMaker`, which takes the place of ``boto3.client("sagemaker")`` and acts on this machine.

It has boto3's methods, answers and errors:
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_Operations.html
"""

import contextlib
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from fastmaker.jobs import storage
from fastmaker.local import names, supervisor, validation
from fastmaker.local.batch import transform_jobs
from fastmaker.local.batch.validation import validation_error as transform_job_error
from fastmaker.local.errors import in_use, invalid, modeled_exceptions, must_exist
from fastmaker.local.serving import endpoints, torchserve
from fastmaker.local.store import DamagedRecord, Store, default_home, now
from fastmaker.local.training import training_jobs
from fastmaker.local.training.validation import validation_error as training_job_error

UNSUPPORTED = ("processing", "pipeline", "tuning", "auto_ml", "compilation", "labeling", "monitoring", "optimization")
MAX_PAGE = 100
MODEL_SHAPE = {"ModelName": str, "PrimaryContainer": dict, "CreationTime": datetime, "ModelArn": str}
CONFIG_SHAPE = {
    "EndpointConfigName": str,
    "EndpointConfigArn": str,
    "ProductionVariants": [{"VariantName": str, "ModelName": str, "InstanceType": str}],
    "CreationTime": datetime,
}


class SageMaker:
    """Keep training jobs, models, endpoint configs, endpoints and transform jobs under `home`.

    With `use_docker` what is created runs in containers of its image, else as processes of this environment.
    """

    def __init__(
        self,
        region: str,
        home: Path | None = None,
        job_environment: Callable[[], dict[str, str]] = lambda: dict(os.environ),
        s3_client: Any = None,
        use_docker: bool = False,
    ) -> None:
        self.region = region
        self.use_docker = use_docker
        self._s3_client = s3_client  # for what is fetched by this process; jobs have their environment
        self._job_environment = job_environment
        home = home or default_home()
        self.training_jobs = training_jobs.store_below(home)
        self.models = Store(home, "models", MODEL_SHAPE)
        self.repacked_models = Store(home, "repacked-models", {"CreationTime": datetime})
        self.packed_code = Store(home, "packed-code")  # of living processes; jobs have copies
        self.endpoint_configs = Store(home, "endpoint-configs", CONFIG_SHAPE)
        self.endpoints = endpoints.store_below(home)
        self.transform_jobs = transform_jobs.store_below(home)

    @property
    def exceptions(self) -> Any:
        """The exception classes of boto3's client."""
        return modeled_exceptions("sagemaker")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not re.match("create|describe|list|start|stop|update|delete", name):
            raise AttributeError(name)
        kind = next((kind for kind in UNSUPPORTED if kind in name), None)
        raise NotImplementedError(
            f"{name}: a ProcessSession runs training jobs, models, endpoints and transform jobs"
            + (f"; {kind.replace('_', ' ')} needs AWS" if kind else "; use a sagemaker.Session for this")
        )

    # Training jobs

    def create_training_job(self, **request: Any) -> dict[str, Any]:
        name = validation.check_name("CreateTrainingJob", request["TrainingJobName"])
        if reason := training_job_error(request):
            raise invalid("CreateTrainingJob", reason)
        validation.check_gpu("CreateTrainingJob", request["ResourceConfig"]["InstanceType"])
        arn = self._arn("training-job", name)
        image = self._checked_image("CreateTrainingJob", request["AlgorithmSpecification"]["TrainingImage"])
        try:
            training_jobs.start(self.training_jobs, request, arn, self._job_environment(), image)
        except FileExistsError:
            raise in_use("CreateTrainingJob", "Training", name) from None
        return {"TrainingJobArn": arn}

    def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:
        with must_exist("DescribeTrainingJob", "training job", TrainingJobName):
            return self._describe(self.training_jobs, "TrainingJob", TrainingJobName, training_jobs.describe)

    def stop_training_job(self, TrainingJobName: str) -> None:
        with must_exist("StopTrainingJob", "training job", TrainingJobName):
            training_jobs.stop(self.training_jobs, TrainingJobName)

    def delete_training_job(self, TrainingJobName: str) -> None:
        """Delete a job that has ended, as on AWS, and what it left on this machine."""
        self._delete_job(self.training_jobs, "TrainingJob", TrainingJobName, training_jobs.describe)

    def list_training_jobs(self, **request: Any) -> dict[str, Any]:
        jobs = self._list(self.training_jobs, "TrainingJob", request, training_jobs.describe)
        keys = ("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime", "LastModifiedTime")
        return _page("TrainingJobSummaries", jobs, (*keys, "TrainingJobStatus", "SecondaryStatus"), request)

    # Models

    def create_model(
        self,
        ModelName: str,
        PrimaryContainer: dict[str, Any] | None = None,
        Containers: list[dict[str, Any]] | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        operation = "CreateModel"
        validation.check_name(operation, ModelName)
        container = validation.check_model(operation, PrimaryContainer, Containers)
        self._checked_image(operation, container.get("Image"))
        if "ModelDataUrl" in container:
            container = {**container, "ModelDataUrl": storage.absolute(container["ModelDataUrl"])}
        arn = self._arn("model", ModelName)
        keys = ("ExecutionRoleArn", "VpcConfig", "EnableNetworkIsolation")
        record = {
            "ModelName": ModelName,
            "PrimaryContainer": container,
            "CreationTime": now(),
            "ModelArn": arn,
            **{key: request[key] for key in keys if key in request},
        }
        self._create(operation, "model", self.models, ModelName, record)
        return {"ModelArn": arn}

    def describe_model(self, ModelName: str) -> dict[str, Any]:
        with must_exist("DescribeModel", "model", ModelName):
            return self.models.read(ModelName)

    def delete_model(self, ModelName: str) -> None:
        """Delete a model, and the archive that was packed anew for it alone."""
        with must_exist("DeleteModel", "model", ModelName):
            archives = self._repacked_archives([ModelName])
            self.models.delete(ModelName)
        for archive in archives - self._repacked_archives(self.models.names()):
            with contextlib.suppress(KeyError):
                self.repacked_models.delete(archive)

    def unused_archives(self) -> list[str]:
        """Return the archives that were packed anew for a model that there is not, or not yet."""
        return sorted(set(self.repacked_models.names()) - self._repacked_archives(self.models.names()))

    def _repacked_archives(self, models: list[str]) -> set[str]:
        """Return the names of the archives that were packed anew for models."""
        found = set()
        for name in models:
            with contextlib.suppress(KeyError, DamagedRecord):
                uri = torchserve.model_uri(self.models.read(name)["PrimaryContainer"]) or ""
                folder = storage.local_path(uri).parent
                if folder.parent == self.repacked_models.folder:
                    found.add(folder.name)
        return found

    def list_models(self, **request: Any) -> dict[str, Any]:
        models = self._list(self.models, "Model", request)
        return _page("Models", models, ("ModelName", "ModelArn", "CreationTime"), request)

    # Endpoint configs

    def create_endpoint_config(
        self, EndpointConfigName: str, ProductionVariants: list[dict[str, Any]], **request: Any
    ) -> dict[str, Any]:
        operation = "CreateEndpointConfig"
        validation.check_name(operation, EndpointConfigName)
        validation.check_endpoint_config(operation, ProductionVariants, request)
        for variant in ProductionVariants:
            self.describe_model(variant["ModelName"])
        arn = self._arn("endpoint-config", EndpointConfigName)
        record = {
            "EndpointConfigName": EndpointConfigName,
            "EndpointConfigArn": arn,
            "ProductionVariants": ProductionVariants,
            "CreationTime": now(),
        }
        self._create(operation, "endpoint configuration", self.endpoint_configs, EndpointConfigName, record)
        return {"EndpointConfigArn": arn}

    def describe_endpoint_config(self, EndpointConfigName: str) -> dict[str, Any]:
        with must_exist("DescribeEndpointConfig", "endpoint configuration", EndpointConfigName):
            return self.endpoint_configs.read(EndpointConfigName)

    def delete_endpoint_config(self, EndpointConfigName: str) -> None:
        with must_exist("DeleteEndpointConfig", "endpoint configuration", EndpointConfigName):
            self.endpoint_configs.delete(EndpointConfigName)

    def list_endpoint_configs(self, **request: Any) -> dict[str, Any]:
        configs = self._list(self.endpoint_configs, "EndpointConfig", request)
        keys = ("EndpointConfigName", "EndpointConfigArn", "CreationTime")
        return _page("EndpointConfigs", configs, keys, request)

    # Endpoints

    def create_endpoint(
        self, EndpointName: str, EndpointConfigName: str, Tags: list[dict[str, str]] | None = None, **request: Any
    ) -> dict[str, Any]:
        validation.check_name("CreateEndpoint", EndpointName)
        config = self.describe_endpoint_config(EndpointConfigName)
        arn = self._arn("endpoint", EndpointName)
        try:
            models = self._models_of("CreateEndpoint", config)
            endpoints.create(self.endpoints, EndpointName, arn, config, models, Tags or [], self._s3_client)
        except FileExistsError:
            raise invalid("CreateEndpoint", f'Cannot create already existing endpoint "{arn}".') from None
        return {"EndpointArn": arn}

    def update_endpoint(self, EndpointName: str, EndpointConfigName: str, **request: Any) -> dict[str, Any]:
        config = self.describe_endpoint_config(EndpointConfigName)
        description = self.describe_endpoint(EndpointName)
        if description["EndpointStatus"] != "InService":
            message = f'Cannot update endpoint "{EndpointName}" in status {description["EndpointStatus"]}.'
            raise invalid("UpdateEndpoint", message)
        models = self._models_of("UpdateEndpoint", config)
        with must_exist("UpdateEndpoint", "endpoint", EndpointName):
            if not endpoints.update(self.endpoints, EndpointName, config, models, self._s3_client):
                raise invalid("UpdateEndpoint", f'Cannot update endpoint "{EndpointName}" in status Updating.')
        return {"EndpointArn": description["EndpointArn"]}

    def describe_endpoint(self, EndpointName: str) -> dict[str, Any]:
        with must_exist("DescribeEndpoint", "endpoint", EndpointName):
            return self._describe(self.endpoints, "Endpoint", EndpointName, endpoints.describe)

    def delete_endpoint(self, EndpointName: str) -> None:
        with must_exist("DeleteEndpoint", "endpoint", EndpointName):
            self.endpoints.delete(EndpointName)

    def list_endpoints(self, **request: Any) -> dict[str, Any]:
        found = self._list(self.endpoints, "Endpoint", request, endpoints.describe)
        keys = ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus")
        return _page("Endpoints", found, keys, request)

    # Transform jobs

    def create_transform_job(self, **request: Any) -> dict[str, Any]:
        operation = "CreateTransformJob"
        name = validation.check_name(operation, request["TransformJobName"])
        if reason := transform_job_error(request):
            raise invalid(operation, reason)
        env = self._job_environment()
        validation.check_output_bucket(operation, request["TransformOutput"]["S3OutputPath"], self.region, env)
        validation.check_gpu(operation, request["TransformResources"]["InstanceType"])
        model = self._container_of(operation, request["ModelName"])
        arn = self._arn("transform-job", name)
        try:
            transform_jobs.start(self.transform_jobs, request, arn, model, env)
        except FileExistsError:
            raise in_use(operation, "Transform", name) from None
        return {"TransformJobArn": arn}

    def describe_transform_job(self, TransformJobName: str) -> dict[str, Any]:
        with must_exist("DescribeTransformJob", "transform job", TransformJobName):
            return self._describe(self.transform_jobs, "TransformJob", TransformJobName, transform_jobs.describe)

    def stop_transform_job(self, TransformJobName: str) -> None:
        with must_exist("StopTransformJob", "transform job", TransformJobName):
            transform_jobs.stop(self.transform_jobs, TransformJobName)

    def delete_transform_job(self, TransformJobName: str) -> None:
        """Delete a job that has ended, but not its outputs. AWS has no such operation."""
        self._delete_job(self.transform_jobs, "TransformJob", TransformJobName, transform_jobs.describe)

    def list_transform_jobs(self, **request: Any) -> dict[str, Any]:
        jobs = self._list(self.transform_jobs, "TransformJob", request, transform_jobs.describe)
        keys = ("TransformJobName", "TransformJobArn", "CreationTime", "TransformEndTime", "TransformJobStatus")
        return _page("TransformJobSummaries", jobs, (*keys, "FailureReason"), request)

    def list_tags(self, ResourceArn: str, **request: Any) -> dict[str, Any]:
        kind, _, name = ResourceArn.rpartition(":")[2].partition("/")
        stores = {"training-job": self.training_jobs, "endpoint": self.endpoints}
        stores |= {"model": self.models, "endpoint-config": self.endpoint_configs, "transform-job": self.transform_jobs}
        with must_exist("ListTags", kind, name):
            return {"Tags": stores[kind].read(name).get("tags", [])}

    def _models_of(self, operation: str, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the containers of the config's models, by the models' names."""
        models = {variant["ModelName"] for variant in config["ProductionVariants"]}
        return {name: self._container_of(operation, name) for name in models}

    def _container_of(self, operation: str, model: str) -> dict[str, Any]:
        """Return the model's ContainerDefinition, with the image to run as DockerImage where Docker is used."""
        container = self.describe_model(model)["PrimaryContainer"]
        return {**container, "DockerImage": self._checked_image(operation, container.get("Image"))}

    def _checked_image(self, operation: str, image: str | None) -> str | None:
        """Return the image that has to run, None where processes do. Raises ClientError if Docker cannot run it."""
        if not self.use_docker:
            return None
        validation.check_image(operation, image)
        return image

    def _create(self, operation: str, kind: str, store: Store, name: str, record: dict[str, Any]) -> None:
        try:
            store.create(name, record)
        except FileExistsError:
            raise invalid(operation, f"Cannot create already existing {kind} {name!r}.") from None

    def _list(
        self,
        store: Store,
        kind: str,
        request: dict[str, Any],
        describe: Callable[[Store, str], dict[str, Any]] = Store.read,
    ) -> list[dict[str, Any]]:
        """Return the descriptions that a List request asks for, the newest first as AWS lists them.

        A record that is damaged is one of them, as Failed; what is deleted meanwhile is none.
        """
        found = []
        for name in (name for name in store.names() if request.get("NameContains", "") in name):
            with contextlib.suppress(KeyError):
                found.append(self._describe(store, kind, name, describe))
        if wanted := request.get("StatusEquals"):
            found = [description for description in found if description.get(f"{kind}Status") == wanted]
        descending = request.get("SortOrder", "Descending") == "Descending"
        return sorted(found, key=lambda description: description["CreationTime"], reverse=descending)

    def _describe(
        self, store: Store, kind: str, name: str, describe: Callable[[Store, str], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return what `describe` returns, or that the record is damaged, as of what has failed. Raises KeyError."""
        try:
            return describe(store, name)
        except DamagedRecord as error:
            arn = self._arn(_spelled(kind, "-"), name)
            changed = store.changed(name)
            times = {"CreationTime": changed, "LastModifiedTime": changed}
            status = {f"{kind}Status": "Failed", "FailureReason": str(error)}
            return {f"{kind}Name": name, f"{kind}Arn": arn, **times, **status}

    def _delete_job(self, store: Store, kind: str, name: str, describe: Callable[[Store, str], dict[str, Any]]) -> None:
        """Delete a job that has ended. Raises ClientError for another."""
        operation, words = f"Delete{kind}", _spelled(kind, " ")
        with must_exist(operation, words, name):
            status = self._describe(store, kind, name, describe)[f"{kind}Status"]
            if status not in supervisor.FINAL:
                raise invalid(operation, f"{words} {name} is {status}; stop it first")
            store.delete(name)

    def _arn(self, kind: str, name: str) -> str:
        return names.arn(self.region, kind, name)


def _spelled(kind: str, between: str) -> str:
    """Return the words of a kind, such as TrainingJob, in lower case."""
    return re.sub("(?<!^)(?=[A-Z])", between, kind).lower()


def _page(
    result_key: str, descriptions: list[dict[str, Any]], keys: tuple[str, ...], request: dict[str, Any]
) -> dict[str, Any]:
    """Return the page of a list that a List request asks for, each description with these keys alone."""
    start = int(request.get("NextToken") or 0)
    end = start + min(request.get("MaxResults", MAX_PAGE), MAX_PAGE)
    page = [{key: d[key] for key in keys if key in d} for d in descriptions[start:end]]
    return {result_key: page, **({"NextToken": str(end)} if end < len(descriptions) else {})}

"""Clients with boto3's methods, answers and errors, that act on this machine.

`SageMaker` takes the place of ``boto3.client("sagemaker")``, `SageMakerRuntime` of
``boto3.client("sagemaker-runtime")``. Shapes:
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_Operations.html
"""

import functools
import io
import os
import re
from pathlib import Path

import botocore.loaders
import urllib3
from botocore.errorfactory import ClientExceptionsFactory
from botocore.exceptions import ClientError
from botocore.model import ServiceModel
from botocore.response import StreamingBody

from fastmaker.jobs import storage
from fastmaker.local import docker, supervisor
from fastmaker.local.batch import transform_jobs
from fastmaker.local.serving import endpoints, torchserve
from fastmaker.local.store import Store, default_home, now
from fastmaker.local.training import training_jobs

ACCOUNT = "000000000000"
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
LOCAL_TYPES = ("local", "local_gpu")
NOT_HERE = ("processing", "pipeline", "tuning", "auto_ml", "compilation", "labeling", "monitoring", "optimization")
MAX_PAGE = 100
S3_ENDPOINTS = {"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}  # variables that say where S3 is, if it is not AWS's


def default_bucket(region: str) -> str:
    """A name that no AWS account can own."""
    return f"sagemaker-{region}-{ACCOUNT}"


@functools.cache
def modeled_exceptions(service: str):
    """The exception classes of a boto3 client, such as ``client.exceptions.ModelError``."""
    model = ServiceModel(botocore.loaders.Loader().load_service_model(service, "service-2"), service)
    return ClientExceptionsFactory().create_client_exceptions(model)


def invalid(operation: str, message: str) -> ClientError:
    return ClientError({"Error": {"Code": "ValidationException", "Message": message}}, operation)


class SageMaker:
    """Training jobs, models, endpoint configs, endpoints and transform jobs under `home`.

    With `use_docker` what is created runs in containers of its image, else as processes of this environment.
    """

    def __init__(
        self,
        region: str,
        home: Path | None = None,
        job_environment=lambda: dict(os.environ),
        s3_client=None,
        use_docker: bool = False,
    ):
        self.region = region
        self.use_docker = use_docker
        self._s3_client = s3_client  # for what is fetched by this process; jobs have their environment
        self._job_environment = job_environment
        home = home or default_home()
        self.training_jobs = Store(home, training_jobs.KIND)
        self.models = Store(home, "models")
        self.endpoint_configs = Store(home, "endpoint-configs")
        self.endpoints = Store(home, endpoints.KIND)
        self.transform_jobs = Store(home, transform_jobs.KIND)

    @property
    def exceptions(self):
        return modeled_exceptions("sagemaker")

    def __getattr__(self, name):
        if name.startswith("_") or not re.match("create|describe|list|start|stop|update|delete", name):
            raise AttributeError(name)
        kind = next((kind for kind in NOT_HERE if kind in name), None)
        raise NotImplementedError(
            f"{name}: a ProcessSession runs training jobs, models, endpoints and transform jobs"
            + (f"; {kind.replace('_', ' ')} needs AWS" if kind else "; use a sagemaker.Session for this")
        )

    # Training jobs

    def create_training_job(self, **request):
        name = self._checked_name("CreateTrainingJob", request["TrainingJobName"])
        if reason := training_jobs.validation_error(request):
            raise invalid("CreateTrainingJob", reason)
        _check_gpu("CreateTrainingJob", request["ResourceConfig"]["InstanceType"])
        arn = self._arn("training-job", name)
        image = self._checked_image("CreateTrainingJob", request["AlgorithmSpecification"]["TrainingImage"])
        try:
            training_jobs.start(self.training_jobs, request, arn, self._job_environment(), image)
        except FileExistsError:
            raise _in_use("CreateTrainingJob", "Training", name) from None
        return {"TrainingJobArn": arn}

    def describe_training_job(self, TrainingJobName):
        with _must_exist("DescribeTrainingJob", "training job", TrainingJobName):
            return training_jobs.describe(self.training_jobs, TrainingJobName)

    def stop_training_job(self, TrainingJobName):
        with _must_exist("StopTrainingJob", "training job", TrainingJobName):
            training_jobs.stop(self.training_jobs, TrainingJobName)

    def delete_training_job(self, TrainingJobName):
        """DeleteTrainingJob, which AWS allows for jobs that have ended: also removes what the job left here."""
        status = self.describe_training_job(TrainingJobName)["TrainingJobStatus"]
        if status not in supervisor.FINAL:
            raise invalid("DeleteTrainingJob", f"training job {TrainingJobName} is {status}; stop it first")
        self.training_jobs.delete(TrainingJobName)

    def list_training_jobs(self, **request):
        jobs = _listed(self.training_jobs, self.describe_training_job, "TrainingJobStatus", request)
        keys = ("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime", "LastModifiedTime")
        return _page("TrainingJobSummaries", jobs, (*keys, "TrainingJobStatus", "SecondaryStatus"), request)

    # Models

    def create_model(self, ModelName, PrimaryContainer=None, Containers=None, **request):
        self._checked_name("CreateModel", ModelName)
        container = PrimaryContainer or (Containers[0] if Containers and len(Containers) == 1 else None)
        if container is None:
            raise invalid("CreateModel", "expected a PrimaryContainer: several containers in one model need AWS")
        if container.get("Mode") == "MultiModel":
            raise invalid("CreateModel", "multi-model containers need AWS")
        try:
            if uri := torchserve.model_uri(container):
                storage.check(uri)
        except storage.StorageError as error:
            raise invalid("CreateModel", f"Could not find model data: {error}") from None
        self._checked_image("CreateModel", container.get("Image"))
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
        self._create("CreateModel", "model", self.models, ModelName, record)
        return {"ModelArn": arn}

    def describe_model(self, ModelName):
        with _must_exist("DescribeModel", "model", ModelName):
            return self.models.read(ModelName)

    def delete_model(self, ModelName):
        self.describe_model(ModelName)
        self.models.delete(ModelName)

    def list_models(self, **request):
        models = _listed(self.models, self.describe_model, None, request)
        return _page("Models", models, ("ModelName", "ModelArn", "CreationTime"), request)

    # Endpoint configs

    def create_endpoint_config(self, EndpointConfigName, ProductionVariants, **request):
        operation = "CreateEndpointConfig"
        self._checked_name(operation, EndpointConfigName)
        for unsupported in ("AsyncInferenceConfig", "DataCaptureConfig", "ShadowProductionVariants"):
            if request.get(unsupported):
                raise invalid(operation, f"{unsupported} needs AWS; a ProcessSession serves real-time variants")
        for variant in ProductionVariants:
            self._checked_name(operation, variant["VariantName"])
            if variant.get("ServerlessConfig"):
                raise invalid(operation, "ServerlessConfig needs AWS; give an instance type of local or local_gpu")
            if variant.get("InstanceType") not in LOCAL_TYPES:
                raise invalid(
                    operation, f"the instance type is {variant.get('InstanceType')!r}; a ProcessSession serves on local"
                )
            _check_gpu(operation, variant["InstanceType"])
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

    def describe_endpoint_config(self, EndpointConfigName):
        with _must_exist("DescribeEndpointConfig", "endpoint configuration", EndpointConfigName):
            return self.endpoint_configs.read(EndpointConfigName)

    def delete_endpoint_config(self, EndpointConfigName):
        self.describe_endpoint_config(EndpointConfigName)
        self.endpoint_configs.delete(EndpointConfigName)

    def list_endpoint_configs(self, **request):
        configs = _listed(self.endpoint_configs, self.describe_endpoint_config, None, request)
        keys = ("EndpointConfigName", "EndpointConfigArn", "CreationTime")
        return _page("EndpointConfigs", configs, keys, request)

    # Endpoints

    def create_endpoint(self, EndpointName, EndpointConfigName, Tags=None, **request):
        self._checked_name("CreateEndpoint", EndpointName)
        config = self.describe_endpoint_config(EndpointConfigName)
        arn = self._arn("endpoint", EndpointName)
        try:
            models = self._models_of("CreateEndpoint", config)
            endpoints.create(self.endpoints, EndpointName, arn, config, models, Tags or [], self._s3_client)
        except FileExistsError:
            raise invalid("CreateEndpoint", f'Cannot create already existing endpoint "{arn}".') from None
        return {"EndpointArn": arn}

    def update_endpoint(self, EndpointName, EndpointConfigName, **request):
        config = self.describe_endpoint_config(EndpointConfigName)
        description = self.describe_endpoint(EndpointName)
        if description["EndpointStatus"] != "InService":
            message = f'Cannot update endpoint "{EndpointName}" in status {description["EndpointStatus"]}.'
            raise invalid("UpdateEndpoint", message)
        models = self._models_of("UpdateEndpoint", config)
        endpoints.update(self.endpoints, EndpointName, config, models, self._s3_client)
        return {"EndpointArn": description["EndpointArn"]}

    def describe_endpoint(self, EndpointName):
        with _must_exist("DescribeEndpoint", "endpoint", EndpointName):
            return endpoints.describe(self.endpoints, EndpointName)

    def delete_endpoint(self, EndpointName):
        with _must_exist("DeleteEndpoint", "endpoint", EndpointName):
            endpoints.delete(self.endpoints, EndpointName)

    def list_endpoints(self, **request):
        endpoints = _listed(self.endpoints, self.describe_endpoint, "EndpointStatus", request)
        keys = ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus")
        return _page("Endpoints", endpoints, keys, request)

    # Transform jobs

    def create_transform_job(self, **request):
        operation = "CreateTransformJob"
        name = self._checked_name(operation, request["TransformJobName"])
        if reason := transform_jobs.validation_error(request):
            raise invalid(operation, reason)
        env = self._job_environment()
        output = request["TransformOutput"]["S3OutputPath"]
        if output.startswith(f"s3://{default_bucket(self.region)}/") and not env.keys() & S3_ENDPOINTS:
            here = "output_path='file:///...', or a session with s3_endpoint_url or default_bucket"
            raise invalid(operation, f"{output} is no place outside of AWS; expected {here}")
        _check_gpu(operation, request["TransformResources"]["InstanceType"])
        model = self._container_of(operation, request["ModelName"])
        arn = self._arn("transform-job", name)
        try:
            transform_jobs.start(self.transform_jobs, request, arn, model, env)
        except FileExistsError:
            raise _in_use(operation, "Transform", name) from None
        return {"TransformJobArn": arn}

    def describe_transform_job(self, TransformJobName):
        with _must_exist("DescribeTransformJob", "transform job", TransformJobName):
            return transform_jobs.describe(self.transform_jobs, TransformJobName)

    def stop_transform_job(self, TransformJobName):
        with _must_exist("StopTransformJob", "transform job", TransformJobName):
            transform_jobs.stop(self.transform_jobs, TransformJobName)

    def delete_transform_job(self, TransformJobName):
        """No operation of AWS, which keeps what it knows of a job: removes a job that has ended, not its outputs."""
        status = self.describe_transform_job(TransformJobName)["TransformJobStatus"]
        if status not in supervisor.FINAL:
            raise invalid("DeleteTransformJob", f"transform job {TransformJobName} is {status}; stop it first")
        self.transform_jobs.delete(TransformJobName)

    def list_transform_jobs(self, **request):
        jobs = _listed(self.transform_jobs, self.describe_transform_job, "TransformJobStatus", request)
        keys = ("TransformJobName", "TransformJobArn", "CreationTime", "TransformEndTime", "TransformJobStatus")
        return _page("TransformJobSummaries", jobs, (*keys, "FailureReason"), request)

    def list_tags(self, ResourceArn, **request):
        kind, _, name = ResourceArn.rpartition(":")[2].partition("/")
        stores = {"training-job": self.training_jobs, "endpoint": self.endpoints}
        stores |= {"model": self.models, "endpoint-config": self.endpoint_configs, "transform-job": self.transform_jobs}
        with _must_exist("ListTags", kind, name):
            return {"Tags": stores[kind].read(name).get("tags", [])}

    def _models_of(self, operation: str, config: dict) -> dict[str, dict]:
        names = {variant["ModelName"] for variant in config["ProductionVariants"]}
        return {name: self._container_of(operation, name) for name in names}

    def _container_of(self, operation: str, model: str) -> dict:
        """The model's ContainerDefinition, with the image to run as DockerImage where Docker is used."""
        container = self.describe_model(model)["PrimaryContainer"]
        return {**container, "DockerImage": self._checked_image(operation, container.get("Image"))}

    def _checked_image(self, operation: str, image: str | None) -> str | None:
        """The image that has to run, None where processes do."""
        if not self.use_docker:
            return None
        if reason := docker.missing(image or ""):
            raise invalid(operation, reason)
        return image

    def _create(self, operation: str, kind: str, store: Store, name: str, record: dict) -> None:
        try:
            store.create(name, record)
        except FileExistsError:
            raise invalid(operation, f"Cannot create already existing {kind} {name!r}.") from None

    def _checked_name(self, operation: str, name: str) -> str:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise invalid(operation, f"the name {name!r} is not 1 to 63 letters, digits and hyphens")
        return name

    def _arn(self, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:{self.region}:{ACCOUNT}:{kind}/{name if kind.endswith('-job') else name.lower()}"


class SageMakerRuntime:
    """InvokeEndpoint on the endpoints under `home`."""

    def __init__(self, home: Path | None = None):
        self._endpoints = Store(home or default_home(), endpoints.KIND)
        self._http = urllib3.PoolManager(retries=False, maxsize=32, timeout=urllib3.Timeout(connect=5, read=None))
        self.config = None  # the SDK sets it

    @property
    def exceptions(self):
        return modeled_exceptions("sagemaker-runtime")

    def invoke_endpoint(
        self,
        EndpointName,
        Body=b"",
        ContentType=None,
        Accept=None,
        CustomAttributes=None,
        TargetVariant=None,
        **request,
    ):
        """As boto3's invoke_endpoint: an answer of 4xx or 5xx raises ModelError, with the status and the body."""
        try:
            server = endpoints.pick_server(self._endpoints, EndpointName, TargetVariant)
        except KeyError:
            raise self._invalid(f"Endpoint {EndpointName} of account {ACCOUNT} not found.") from None
        except LookupError as error:
            raise self._invalid(str(error)) from None
        headers = {
            "Content-Type": ContentType or "application/octet-stream",
            "Accept": Accept or "*/*",
            "X-Amzn-SageMaker-Custom-Attributes": CustomAttributes,
            "X-Amzn-SageMaker-Target-Model": request.get("TargetModel"),
            "X-Amzn-SageMaker-Inference-Id": request.get("InferenceId"),
        }
        headers = {name: value for name, value in headers.items() if value is not None}
        body = Body.encode("utf-8") if isinstance(Body, str) else Body
        url = f"http://127.0.0.1:{server['port']}/invocations"
        try:
            answer = self._http.request("POST", url, body=body, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise self._model_error(server, 500, f"the server did not answer: {error}") from None
        if answer.status >= 400:
            raise self._model_error(server, answer.status, answer.data.decode("utf-8", "replace"))
        result = {
            "ResponseMetadata": {"HTTPStatusCode": 200, "HTTPHeaders": dict(answer.headers), "RetryAttempts": 0},
            "Body": StreamingBody(io.BytesIO(answer.data), len(answer.data)),
            "ContentType": answer.headers.get("Content-Type", "application/octet-stream"),
            "InvokedProductionVariant": server["variant"],
        }
        if attributes := answer.headers.get("X-Amzn-SageMaker-Custom-Attributes"):
            result["CustomAttributes"] = attributes
        return result

    def _invalid(self, message: str) -> ClientError:
        error = {"Error": {"Code": "ValidationError", "Message": message}}
        return self.exceptions.from_code("ValidationError")(error, "InvokeEndpoint")

    def _model_error(self, server: dict, status: int, text: str) -> ClientError:
        kind = "client" if status < 500 else "server"
        message = f'Received {kind} error ({status}) from {server["variant"]} with message "{text}".'
        error = {
            "Error": {"Code": "ModelError", "Message": message},
            "OriginalStatusCode": status,
            "OriginalMessage": text,
            "ResponseMetadata": {"HTTPStatusCode": 424, "RetryAttempts": 0},
        }
        return self.exceptions.ModelError(error, "InvokeEndpoint")


class _must_exist:
    """A KeyError of a store as the ClientError that AWS answers for something that is not there."""

    def __init__(self, operation: str, kind: str, name: str):
        self.operation, self.kind, self.name = operation, kind, name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, KeyError) and error.args == (self.name,):
            raise invalid(self.operation, f'Could not find {self.kind} "{self.name}".') from None
        return False


def _listed(store: Store, describe, status_key: str | None, request: dict) -> list[dict]:
    """The descriptions that a List request asks for, the newest first as AWS lists them."""
    found = [describe(name) for name in store.names() if request.get("NameContains", "") in name]
    if wanted := request.get("StatusEquals"):
        found = [description for description in found if description[status_key] == wanted]
    descending = request.get("SortOrder", "Descending") == "Descending"
    return sorted(found, key=lambda description: description["CreationTime"], reverse=descending)


def _page(result_key: str, descriptions: list[dict], keys: tuple[str, ...], request: dict) -> dict:
    start = int(request.get("NextToken") or 0)
    end = start + min(request.get("MaxResults", MAX_PAGE), MAX_PAGE)
    page = [{key: d[key] for key in keys if key in d} for d in descriptions[start:end]]
    return {result_key: page, **({"NextToken": str(end)} if end < len(descriptions) else {})}


def _check_gpu(operation: str, instance_type: str) -> None:
    if instance_type == "local_gpu" and not Path("/proc/driver/nvidia/version").exists():
        raise invalid(operation, "the instance type is local_gpu, and this machine has no NVIDIA GPU; use local")


def _in_use(operation: str, kind: str, name: str) -> ClientError:
    message = f"{kind} job names must be unique within an AWS account and region: {name} exists"
    return modeled_exceptions("sagemaker").ResourceInUse(
        {"Error": {"Code": "ResourceInUse", "Message": message}}, operation
    )

"""The backend of instance types local and local_gpu: this machine. Data stay where they are, and nothing costs."""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from functools import partial

from fastmaker.jobs import instance_types, storage
from fastmaker.jobs.backends import asynchronous, captures, pytorch, servers, versions
from fastmaker.jobs.backends.requests import EndpointRequest, Request, TrainingRequest, TransformRequest
from fastmaker.jobs.backends.resources import Resource, SageMakerResources
from fastmaker.jobs.backends.sdk import without_iri_grammar
from fastmaker.local.store import DamagedRecord, Store, default_home

# What only AWS's endpoints have: of an EndpointRequest, and of fastmaker deploy.
AWS_ONLY = {
    "serverless_memory": "--serverless-memory",
    "max_instances": "--max",
    "volume_size": "--volume-size",
}


class Local:
    """A `Backend`. Its `kind` is process, or docker for containers of a Docker engine."""

    region = None

    def __init__(
        self,
        kind: str = "process",
        instance_type: str = instance_types.LOCAL,
        *,
        role: str | None = None,
        image_uri: str | None = None,
        server: str | None = None,
        dry_run: bool = False,
    ):
        self.instance_type, self._dry_run = instance_type, dry_run
        self.cli_flags = "" if kind == "process" else f" --backend {kind}"
        self.serving_cli_flags = f"{self.cli_flags} --image-uri {image_uri}" if self.cli_flags else ""
        self.session = session(kind)
        self._arguments = {"role": role or "local", "image_uri": image_uri, "sagemaker_session": self.session}
        self._ray_image = servers.public_ray_image(instance_type) if server == servers.RAY else None

    def check(self, request: Request) -> bool:
        given = [
            flag for name, flag in AWS_ONLY.items() if isinstance(request, EndpointRequest) and getattr(request, name)
        ]
        if given:
            print(f"on AWS alone, without effect here: {', '.join(given)}")
        if self._ray_image:
            servers.check(request.model_data)
        if self._dry_run:
            print("checked; here nothing costs, and no request is made: leave out --dry-run to run it")
        return not self._dry_run

    def training_arguments(self, name: str) -> dict:
        return {**self._arguments, **versions.TRAINING}

    def model_arguments(self) -> dict:
        return {**self._arguments, **versions.INFERENCE}

    def train(self, request: TrainingRequest) -> dict:
        pytorch.estimator(request, self).fit(request.channels, job_name=request.name)
        return pytorch.completed_training_job(self.session, request.name)

    def deploy(self, request: EndpointRequest) -> bool:
        model = pytorch.pytorch_model(request.model_data, env=request.env, backend=self, image=self._ray_image)
        mode = asynchronous.configuration(storage.absolute(request.async_output)) if request.async_output else {}
        if request.data_capture:
            mode |= captures.configuration(request.data_capture, storage.uri_of(captures.FOLDER), self.session)
        model.deploy(request.instance_count, self.instance_type, endpoint_name=request.name, **mode)
        return True

    def transform(self, request: TransformRequest) -> bool:
        model = pytorch.pytorch_model(request.model_data, env=request.env, backend=self, image=self._ray_image)
        # Answers of files go below this folder, those of S3 objects into the session's bucket.
        beside = storage.uri_of(f"answers/{request.name}") if request.source.startswith("file://") else None
        output = request.output or beside
        pytorch.run_transform(model, request, self.instance_type, source=request.source, output=output)
        return True

    def describe_transform(self, name: str) -> dict:
        return self.session.sagemaker_client.describe_transform_job(TransformJobName=name)

    def retry_transform(self, description: dict, name: str, manifest: str) -> None:
        pytorch.retry_transform(self.session, description, name, manifest)

    def runtime(self, endpoint: str):
        client = self.session.sagemaker_runtime_client
        output = asynchronous.output_of(self.session.sagemaker_client, endpoint)
        return asynchronous.AsyncRuntime(client, self.session.s3_client, output) if output else client

    def resources(self, only: list[str] | None = None) -> list[Resource]:
        client = self.session.sagemaker_client
        archives = list(_archives(packed_models()))
        archives += _archives(client.repacked_models, client.unused_archives())
        found = [*self._resources.listed(only), *archives]
        return [resource for resource in found if only is None or resource.label in only]

    def delete_endpoint(self, name: str) -> None:
        self._resources.delete_endpoint(name)

    @property
    def _resources(self) -> SageMakerResources:
        return SageMakerResources(self.session.sagemaker_client)


def packed_models() -> Store:
    """Return the archives that were made of model directories, to be deployed."""
    return Store(default_home(), "packed-models", {"CreationTime": datetime})


def _archives(packed: Store, names: list[str] | None = None) -> Iterator[Resource]:
    """Yield the archives of a store, by default all, also those whose record is damaged."""
    for name in packed.names() if names is None else names:
        with contextlib.suppress(KeyError):  # deleted meanwhile
            try:
                created = packed.read(name)["CreationTime"]
            except DamagedRecord:
                created = packed.changed(name)
            yield Resource("packed-model", name, "-", created, "", partial(packed.delete, name))


def session(kind: str = "process"):
    """Return the SDK's session for local types; `kind` is process or docker."""
    with without_iri_grammar():
        from fastmaker.local import DockerSession, ProcessSession

        return DockerSession() if kind == "docker" else ProcessSession()

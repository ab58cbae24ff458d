"""What can be asked about images: a bundle in this process, an endpoint, a model of a Triton server, each alike.

`connect` makes one of the arguments that `add_arguments` adds, which every command that asks a model shares.
"""

import argparse
import contextlib
import functools
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from fastmaker.jobs import backends
from fastmaker.jobs.cli import arguments
from fastmaker.jobs.clients import endpoint, triton
from fastmaker.jobs.clients.errors import InvalidRequest
from fastmaker.jobs.packaging.models import model_directory
from fastmaker.local.store import DamagedRecord

JSON, PNG, IMAGE = "application/json", "image/png", "application/x-image"


class Source(Protocol):
    """What answers about images. It may be asked from many threads."""

    title: str  # a line that names it
    labels: tuple[str, ...]  # all of them, in their order; () if they are not known before the first answer
    requests: dict[str, str]  # what asks the same, without the page, by the program that does
    bundle: str | None  # what model_directory() takes for the model, if that is on this machine
    session: Any  # of SageMaker, with which it is found

    def ask(self, image: bytes, accept: str = JSON, mask_size: str | None = None) -> bytes:
        """Return the answer for an encoded image; `mask_size` is one of masks.SIZES. Raises InvalidRequest."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name an endpoint or a model of a Triton server."""
    arguments.add_backend(parser, instances=False)
    parser.add_argument("--endpoint", help="its name (default: the only one that is in service)")
    parser.add_argument("--triton", metavar="URL", help="grpc://HOST:PORT, HOST:PORT or http://HOST:PORT in its place")
    parser.add_argument("--model", metavar="NAME", help="of --triton (default: the only one that is ready)")


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the process with a usage message if the arguments exclude or need each other."""
    given = {"MODEL": getattr(args, "bundle", None), "--endpoint": args.endpoint, "--triton": args.triton}
    if len(names := [name for name, value in given.items() if value]) > 1:
        parser.error(f"{' and '.join(names)}: expected one of them")
    if args.model and not args.triton:
        parser.error("--model is a model of --triton, which is missing")


@contextlib.contextmanager
def connect(args: argparse.Namespace) -> Iterator[Source]:
    """Yield what the arguments name. Raises ValueError, OSError or an error of botocore's."""
    if args.triton:
        yield Triton(args.triton, args.model)
        return
    if not getattr(args, "bundle", None):
        yield Endpoint(backends.connect(**arguments.backend_options(args)), args.endpoint)
        return
    with model_directory(args.bundle, lambda: backends.connect(**arguments.backend_options(args)).session) as folder:
        yield Bundle(folder, args.bundle)


class Bundle:
    """A bundle, which is loaded into this process. It answers with the bytes that its endpoint would."""

    def __init__(self, folder: Path, name: str):
        from fastmaker.serving import models

        self.model = models.load(folder)
        self.bundle, self.session = str(folder), None
        self.labels = tuple(self.model.info.labels)
        self.title = f"the bundle {name}"
        served = shlex.quote(Path(name).name.partition(".")[0] or "model")
        deploy = f"fastmaker deploy --model {shlex.quote(name)} --endpoint-name {served}"
        self.requests = {"fastmaker": f"{deploy}\nfastmaker predict --endpoint {served} image.jpg --json"}

    def ask(self, image: bytes, accept: str = JSON, mask_size: str | None = None) -> bytes:
        """Return the answer for an encoded image, see `Source`. Raises InvalidRequest."""
        from fastmaker import preprocess
        from fastmaker.serving import errors, wire

        try:
            given = wire.decode(image, IMAGE, f"mask_size={mask_size}" if mask_size else None)
            answers = self.model.predict_in_time(given.images, given.mask_size)
            return wire.check_response_size(*wire.encode(wire.Answer(answers, given.single), accept))[0]
        except errors.RequestError as error:
            raise InvalidRequest(error.message, error.status) from None
        except preprocess.ImageError as error:
            raise InvalidRequest(str(error), 400) from None


class Endpoint:
    """An endpoint of the backend, by its name, or the only one that is in service. Raises ValueError."""

    labels = ()

    def __init__(self, backend: Any, name: str | None):
        name = name or endpoint.only_in_service(backend.session.sagemaker_client)
        self.ask = endpoint.Endpoint(backend.runtime(name), name).ask
        self.title = f"the endpoint {name}"
        self.session, self._region, self._name = backend.session, backend.region, name

    @functools.cached_property
    def bundle(self) -> str | None:
        """The archive that it serves, None of an endpoint on AWS, of several models or of one that was deleted."""
        if self._region:
            return None
        from botocore.exceptions import ClientError

        client = self.session.sagemaker_client
        try:
            config = client.describe_endpoint(EndpointName=self._name)["EndpointConfigName"]
            variants = client.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
            models = [client.describe_model(ModelName=variant["ModelName"]) for variant in variants]
        except ClientError:
            return None
        uris = {model.get("PrimaryContainer", {}).get("ModelDataUrl") for model in models}
        return uris.pop() if len(uris) == 1 else None

    @functools.cached_property
    def requests(self) -> dict[str, str]:
        """What asks the same, by program; with the port of a server, if that is a process of this machine."""
        endpoints = getattr(self.session.sagemaker_client, "endpoints", None)
        try:
            servers = endpoints.read(self._name).get("servers", []) if endpoints else []
        except (KeyError, DamagedRecord):  # deleted meanwhile, or damaged: whoever asks it is told so
            servers = []
        return requests_of_endpoint(self._name, self._region, servers[0]["port"] if servers else None)


def requests_of_endpoint(name: str, region: str | None, port: int | None) -> dict[str, str]:
    """Return what asks an endpoint about image.jpg, by program: on AWS in `region`, else at a port of this machine."""
    url = f"https://runtime.sagemaker.{region}.amazonaws.com/endpoints/{name}/invocations"
    signed = (
        f' --aws-sigv4 "aws:amz:{region}:sagemaker" \\\n    --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY"'
        ' -H "X-Amz-Security-Token: $AWS_SESSION_TOKEN"'
    )
    curl = f"-H 'Content-Type: {IMAGE}' -H 'Accept: {JSON}' --data-binary @image.jpg"
    client = (
        f'import boto3\n\nruntime = boto3.client("sagemaker-runtime", region_name="{region}")'
        if region
        else "from fastmaker.local import ProcessSession\n\nruntime = ProcessSession().sagemaker_runtime_client"
    )
    boto3 = (
        f'{client}\nwith open("image.jpg", "rb") as image:\n    answer = runtime.invoke_endpoint(\n'
        f'        EndpointName="{name}", ContentType="{IMAGE}", Accept="{JSON}", Body=image\n    )\n'
        'print(answer["Body"].read().decode())'
    )
    found = {"boto3": boto3, "fastmaker": f"fastmaker predict --endpoint {name} image.jpg --json"}
    if region:
        found["fastmaker"] += " --backend aws"
        return {"curl": f"curl {url}{signed} \\\n    {curl}", **found}
    return {"curl": f"curl http://127.0.0.1:{port}/invocations {curl}", **found} if port else found


class Triton:
    """A model of a Triton server. Its answer is the JSON that an endpoint would make of the numbers."""

    def __init__(self, url: str, name: str | None):
        self._model = triton.Model(url, name)
        self.bundle = self.session = None
        self.title = f"the model {self._model.name} of the Triton server {url}"
        self.labels = tuple(self._model.info.get("labels", ()))
        named = f"--triton {shlex.quote(url)} --model {shlex.quote(self._model.name)}"
        self.requests = {"fastmaker": f"fastmaker predict {named} image.jpg --json"}

    def ask(self, image: bytes, accept: str = JSON, mask_size: str | None = None) -> bytes:
        """Return the answer for an encoded image, see `Source`. Raises InvalidRequest, or TritonError if it fails."""
        answer = self._model.answer(image, mask_size)
        return answer.as_png() if accept == PNG else json.dumps(answer.as_object()).encode()

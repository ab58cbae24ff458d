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
CURL = f"-H 'Content-Type: {IMAGE}' -H 'Accept: {JSON}' --data-binary @image.jpg"
SIGNED = (
    ' \\\n    --aws-sigv4 "aws:amz:{region}:sagemaker" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY"'
    ' \\\n    -H "X-Amz-Security-Token: $AWS_SESSION_TOKEN"'
)
BOTO3 = """{client}
with open("image.jpg", "rb") as image:
    answer = runtime.invoke_endpoint(EndpointName="{name}", ContentType="{image}", Accept="{json}", Body=image)
print(answer["Body"].read().decode())"""


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
        self._runtime = backend.runtime(name)
        self.ask = endpoint.Endpoint(self._runtime, name).ask
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
        """What asks the same, by program. curl needs an address, and with boto3 an asynchronous one is asked in S3."""
        from fastmaker.jobs.backends.asynchronous import AsyncRuntime  # imports botocore

        found = {"fastmaker": f"fastmaker predict --endpoint {self._name} image.jpg --json"}
        if self._region:
            found["fastmaker"] += " --backend aws"
        if isinstance(self._runtime, AsyncRuntime):
            return found
        found = {"boto3": BOTO3.format(client=self._client(), name=self._name, image=IMAGE, json=JSON), **found}
        return {"curl": f"curl {address} {CURL}", **found} if (address := self._address()) else found

    def _client(self) -> str:
        if not self._region:
            return "from fastmaker.local import ProcessSession\n\nruntime = ProcessSession().sagemaker_runtime_client"
        return f'import boto3\n\nruntime = boto3.client("sagemaker-runtime", region_name="{self._region}")'

    def _address(self) -> str | None:
        """Return what curl asks: on AWS the service where the client finds it, here a server of this machine."""
        if self._region:
            url = f"{self._runtime.meta.endpoint_url}/endpoints/{self._name}/invocations"
            return url + SIGNED.format(region=self._region)
        endpoints = getattr(self.session.sagemaker_client, "endpoints", None)
        try:
            servers = endpoints.read(self._name).get("servers", []) if endpoints else []
        except (KeyError, DamagedRecord):  # deleted meanwhile, or damaged: whoever asks it is told so
            servers = []
        return f"http://127.0.0.1:{servers[0]['port']}/invocations" if servers else None


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

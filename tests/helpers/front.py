"""AWS on this machine as tests reach it: by boto3, and by requests that are signed and sent as they are."""

import contextlib
import json
from urllib.parse import quote, urlsplit

import boto3
import psutil
import urllib3
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from fastmaker.local import boto
from fastmaker.local.aws import SERVER
from helpers.wire import check, checked

POOL = urllib3.PoolManager(retries=False)
JSON = "application/x-amz-json-1.1"


def client_of(environment, service, **options):
    """boto3's client of a service, which has the server's key and no other configuration; it checks each answer."""
    key = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    session = boto3.Session(*key, region_name=environment["AWS_DEFAULT_REGION"])
    return checked(session.client(service, endpoint_url=environment["AWS_ENDPOINT_URL"], **options))


def servers():
    """The servers that this process has started, the last one last."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.ZombieProcess):  # of another test: one that has ended, which nobody waits for
            if SERVER in child.cmdline():
                found.append(child)
    return sorted(found, key=lambda child: child.create_time())


def kill_server():
    """Kill the server that this process has started last."""
    servers()[-1].kill()


def signed(environment, service, method, path, body=b"", headers=None, secret=None):
    """The headers of a request to the server of an environment."""
    url = environment["AWS_ENDPOINT_URL"] + path
    request = AWSRequest(method, url, {**(headers or {}), "Host": urlsplit(url).netloc}, body)
    key = Credentials(environment["AWS_ACCESS_KEY_ID"], secret or environment["AWS_SECRET_ACCESS_KEY"])
    signer = S3SigV4Auth if service == "s3" else SigV4Auth
    signer(key, service, environment["AWS_DEFAULT_REGION"]).add_auth(request)
    return dict(request.headers)


def send(environment, method, path, body=b"", headers=None):
    """The answer: status, headers and data."""
    return POOL.request(method, environment["AWS_ENDPOINT_URL"] + path, body=body, headers=headers, redirect=False)


def sagemaker(environment, operation, body):
    """The status and the JSON of SageMaker's answer to a body, which may be none that a client would send.

    It has the shape that the operation's model says.
    """
    headers = {"X-Amz-Target": f"SageMaker.{operation}", "Content-Type": JSON}
    answer = send(environment, "POST", "/", body, signed(environment, "sagemaker", "POST", "/", body, headers))
    check(boto.service_model("sagemaker").operation_model(operation), answer.status, answer.headers, answer.data)
    return answer.status, json.loads(answer.data)


def runtime(environment, operation, request):
    """The status of sagemaker-runtime's answer to a request whose members may have values that no client would send.

    It has the shape that the operation's model says. Raises ValueError for what no header can hold.
    """
    model = boto.service_model("sagemaker-runtime").operation_model(operation)
    path = model.http["requestUri"].replace("{EndpointName}", quote(str(request.get("EndpointName", "")), safe=""))
    places = {name: shape.serialization for name, shape in model.input_shape.members.items() if name in request}
    headers = {place["name"]: str(request[name]) for name, place in places.items() if place.get("location") == "header"}
    if not all(text.isascii() for text in headers.values()):
        raise ValueError("no header that can be signed")
    body = request.get("Body", b"")
    body = body if isinstance(body, bytes) else str(body).encode("utf-8", "replace")
    answer = send(environment, "POST", path, body, signed(environment, "sagemaker", "POST", path, body, headers))
    check(model, answer.status, answer.headers, answer.data)
    return answer.status

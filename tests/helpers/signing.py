"""Requests that are signed as clients sign them, and sent as they are."""

import json
from urllib.parse import urlsplit

import urllib3
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

POOL = urllib3.PoolManager(retries=False)
JSON = "application/x-amz-json-1.1"


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
    """The status and the JSON of SageMaker's answer to a body, which may be none that a client would send."""
    headers = {"X-Amz-Target": f"SageMaker.{operation}", "Content-Type": JSON}
    answer = send(environment, "POST", "/", body, signed(environment, "sagemaker", "POST", "/", body, headers))
    return answer.status, json.loads(answer.data)

"""Asynchronous endpoints, which are asked through objects: their configuration, and a client that waits for answers."""

import io
import time
import uuid

from botocore.exceptions import ClientError

from fastmaker.jobs import storage

POLL_SECONDS = 0.5
ANSWER_SECONDS = 3600  # how long an answer is waited for; requests may wait longer in a queue


def configuration(output: str) -> dict:
    """Return the SDK's configuration of an endpoint whose answers go below the URI `output`, as an argument."""
    from sagemaker.async_inference import AsyncInferenceConfig

    output = output.rstrip("/")
    return {"async_inference_config": AsyncInferenceConfig(output, failure_path=f"{output}/failures")}


def output_of(sagemaker_client, endpoint: str) -> str | None:
    """Return the URI below which the answers of an endpoint go, None if it answers at once. Raises ClientError."""
    name = sagemaker_client.describe_endpoint(EndpointName=endpoint)["EndpointConfigName"]
    config = sagemaker_client.describe_endpoint_config(EndpointConfigName=name).get("AsyncInferenceConfig")
    return config and config["OutputConfig"]["S3OutputPath"]


class AsyncRuntime:
    """The invoke_endpoint of boto3's sagemaker-runtime for asynchronous endpoints: sends, and waits for the answer.

    `runtime` and `s3` are boto3's clients, `folder` is the URI below which requests go.
    """

    def __init__(self, runtime, s3, folder: str):
        self._runtime, self._s3, self._folder = runtime, s3, folder

    def invoke_endpoint(self, *, Body: bytes, **arguments) -> dict:
        """Raises ClientError with the code ModelError, as boto3 does, if the model refuses the request."""
        request = storage.join(self._folder, "requests", str(uuid.uuid4()))
        if at_s3 := _s3_object(request):
            self._s3.put_object(**at_s3, Body=Body)
        else:
            storage.put_stream(io.BytesIO(Body), request)
        try:
            return self._answer(request, arguments)
        finally:
            if at_s3:
                self._s3.delete_object(**at_s3)
            else:
                storage.remove(request)

    def _answer(self, request: str, arguments: dict) -> dict:
        sent = self._runtime.invoke_endpoint_async(InputLocation=request, **arguments)
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            if (answer := self._object(sent["OutputLocation"])) is not None:
                return {"Body": io.BytesIO(answer), "ContentType": arguments.get("Accept")}
            if sent.get("FailureLocation") and (failure := self._object(sent["FailureLocation"])) is not None:
                message = failure.decode("utf-8", "replace")
                error = {"Code": "ModelError", "Message": message}
                raise ClientError({"Error": error, "OriginalMessage": message}, "InvokeEndpointAsync")
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"no answer at {sent['OutputLocation']} after {ANSWER_SECONDS} s")

    def _object(self, uri: str) -> bytes | None:
        at_s3 = _s3_object(uri)
        if at_s3 is None:
            path = storage.local_path(uri)
            return path.read_bytes() if path.is_file() else None
        try:
            return self._s3.get_object(**at_s3)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404", "AccessDenied"):  # without ListBucket: denied
                return None
            raise


def _s3_object(uri: str) -> dict | None:
    """Return the arguments that name an object in S3, None for a file."""
    if not uri.startswith("s3://"):
        return None
    bucket, key = storage.bucket_and_key(uri)
    return {"Bucket": bucket, "Key": key}

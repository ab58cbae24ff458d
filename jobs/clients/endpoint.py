"""A client of SageMaker endpoints that serve a bundle."""

import json


class Endpoint:
    """An endpoint; `runtime` has invoke_endpoint, as boto3's sagemaker-runtime."""

    def __init__(self, runtime, name: str):
        self._runtime, self.name = runtime, name

    def answer(self, image: bytes) -> dict:
        """Return the JSON answer for an encoded image, or ``{"error": why}`` if the model refuses it.

        Raises ClientError for what is not the image's fault.
        """
        from botocore.exceptions import ClientError

        try:
            return json.loads(self._invoke(image, "application/json"))
        except ClientError as error:
            if error.response["Error"]["Code"] != "ModelError":
                raise
            return {"error": error.response["OriginalMessage"].splitlines()[0]}

    def mask_png(self, image: bytes) -> bytes:
        """Return the mask of an encoded image as a PNG."""
        return self._invoke(image, "image/png")

    def _invoke(self, image: bytes, accept: str) -> bytes:
        answer = self._runtime.invoke_endpoint(
            EndpointName=self.name, ContentType="application/x-image", Accept=accept, Body=image
        )
        return answer["Body"].read()


def only_in_service(sagemaker_client) -> str:
    """Return the name of the only endpoint that is in service. Raises ValueError, naming them, if it is not one."""
    found = sagemaker_client.list_endpoints(StatusEquals="InService")["Endpoints"]
    if len(found) != 1:
        names = ", ".join(e["EndpointName"] for e in found) or "none; deploy one with fastmaker deploy"
        raise ValueError(f"--endpoint NAME is needed: in service are {names}")
    return found[0]["EndpointName"]

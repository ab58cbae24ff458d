"""A client of SageMaker endpoints that serve a bundle."""

from fastmaker.jobs.clients.errors import InvalidRequest


class Endpoint:
    """An endpoint; `runtime` has invoke_endpoint, as boto3's sagemaker-runtime."""

    def __init__(self, runtime, name: str):
        self._runtime, self.name = runtime, name

    def ask(self, image: bytes, accept: str = "application/json", mask_size: str | None = None) -> bytes:
        """Return the answer for an encoded image, as the endpoint gives it; `mask_size` is one of masks.SIZES.

        Raises InvalidRequest if the model refuses it, ClientError for what is not the image's fault.
        """
        from botocore.exceptions import ClientError

        attributes = {"CustomAttributes": f"mask_size={mask_size}"} if mask_size else {}
        kind = {"ContentType": "application/x-image", "Accept": accept, **attributes}
        try:
            return self._runtime.invoke_endpoint(EndpointName=self.name, Body=image, **kind)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] != "ModelError":
                raise
            [line, *_] = error.response["OriginalMessage"].splitlines() or ["the answer is empty"]
            raise InvalidRequest(line, error.response.get("OriginalStatusCode")) from None


def only_in_service(sagemaker_client) -> str:
    """Return the name of the only endpoint that is in service. Raises ValueError, naming them, if it is not one."""
    found = sagemaker_client.list_endpoints(StatusEquals="InService")["Endpoints"]
    if len(found) != 1:
        names = ", ".join(e["EndpointName"] for e in found) or "none; deploy one with fastmaker deploy"
        raise ValueError(f"--endpoint NAME is needed: in service are {names}")
    return found[0]["EndpointName"]

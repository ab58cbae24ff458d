"""The errors of boto3's clients for SageMaker, as AWS answers them."""

import functools
from types import TracebackType
from typing import Any, Literal

import botocore.loaders
from botocore.errorfactory import ClientExceptionsFactory
from botocore.exceptions import ClientError, ParamValidationError
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from fastmaker.local.store import DamagedRecord


@functools.cache
def modeled_exceptions(service: str) -> Any:
    """Return the exception classes of a boto3 client, such as ``client.exceptions.ModelError``."""
    return ClientExceptionsFactory().create_client_exceptions(_service_model(service))


@functools.cache
def _service_model(service: str) -> ServiceModel:
    return ServiceModel(botocore.loaders.Loader().load_service_model(service, "service-2"), service)


def validate_input(service: str, operation: str, **request: Any) -> None:
    """Check a request's members and their types as boto3 does. Raises ParamValidationError."""
    report = ParamValidator().validate(request, _service_model(service).operation_model(operation).input_shape)
    if report.has_errors():
        raise ParamValidationError(report=report.generate_report())


def invalid(operation: str, message: str) -> ClientError:
    """Return the error of a request that AWS, or this machine, does not take."""
    return ClientError({"Error": {"Code": "ValidationException", "Message": message}}, operation)


def in_use(operation: str, kind: str, name: str) -> ClientError:
    """Return the error of a job whose name is taken; `kind` is Training or Transform."""
    message = f"{kind} job names must be unique within an AWS account and region: {name} exists"
    error: ClientError = modeled_exceptions("sagemaker").ResourceInUse(
        {"Error": {"Code": "ResourceInUse", "Message": message}}, operation
    )
    return error


class must_exist:
    """Turn a store's KeyError for `name` into the ClientError that AWS answers for a resource that does not exist.

    A record that is damaged is a ClientError as well, which names its file.
    """

    def __init__(self, operation: str, kind: str, name: str) -> None:
        self.operation, self.kind, self.name = operation, kind, name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        if isinstance(error, KeyError) and error.args == (self.name,):
            raise invalid(self.operation, f'Could not find {self.kind} "{self.name}".') from None
        if isinstance(error, DamagedRecord):
            raise invalid(self.operation, f"{error}; the {self.kind} can be deleted, and nothing else") from None
        return False

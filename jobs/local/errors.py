"""The errors that AWS answers; boto3's clients raise them as their own class of the code."""

from pathlib import Path
from types import TracebackType
from typing import Literal

from botocore.exceptions import ClientError

from fastmaker.local.store import DamagedRecord


def invalid(operation: str, message: str) -> ClientError:
    """Return the error of a request that AWS, or this machine, does not take."""
    return ClientError({"Error": {"Code": "ValidationException", "Message": message}}, operation)


def in_use(operation: str, kind: str, name: str) -> ClientError:
    """Return the error of a job whose name is taken; `kind` is Training or Transform."""
    message = f"{kind} job names must be unique within an AWS account and region: {name} exists"
    return ClientError({"Error": {"Code": "ResourceInUse", "Message": message}}, operation)


def no_space(operation: str, folder: Path, error: OSError) -> ClientError:
    """Return the error of a request that needs space on a full disk; `folder` has it, if the error names no file."""
    place = error.filename or folder
    message = f"no space is left on the disk of {place}; delete jobs, endpoints or models, which needs none"
    return ClientError({"Error": {"Code": "ResourceLimitExceeded", "Message": message}}, operation)


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

"""What jobs make and leave behind, as fastmaker cleanup lists and deletes it."""

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Resource:
    """Its `kind` and `name` together are unique; `costs` says for what one pays while it is there, or nothing."""

    kind: str
    name: str
    status: str
    created: datetime.datetime | None
    costs: str
    delete: Callable[[], None]

    @property
    def label(self) -> str:
        return f"{self.kind}/{self.name}"


def paginate(client, operation: str, key: str, token: str = "NextToken", **arguments) -> Iterator[dict]:
    """What all pages of a List or Describe operation hold under `key`; `token` is what leads to the next page."""
    following = {}
    while True:
        page = getattr(client, operation)(**arguments, **following)
        yield from page[key]
        if not page.get(token):
            return
        following = {token: page[token]}


def is_missing(error) -> bool:
    """Whether SageMaker's ClientError to a Describe or List operation says that nothing has the name."""
    return error.response["Error"]["Code"] in ("ResourceNotFound", "ResourceNotFoundException", "ValidationException")

"""Pages of List operations: their filters, orders and tokens.

A token names the last resource of a page, so that what is created or deleted meanwhile repeats or hides no other.
"""

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from botocore.utils import parse_to_aware_datetime

from fastmaker.local.errors import invalid

Description = dict[str, Any]
Key = tuple[str | float, str]  # what a page is sorted by, and the resource's name


@dataclass(frozen=True)
class Listing:
    """A List operation, with the defaults that botocore documents.

    `kind` is the prefix of a resource's members, such as TrainingJob, `answer` the answer's member for the summaries.
    """

    operation: str
    kind: str
    answer: str
    order: str = "Descending"
    page: int = 100

    def page_of(self, found: Iterable[Description], summary: Iterable[str], request: dict[str, Any]) -> dict[str, Any]:
        """Return the page that a request asks for, of each resource the members of a `summary` alone.

        Raises ClientError for a NextToken that is not of such a page.
        """
        sort_by = request.get("SortBy", "CreationTime")
        descending = request.get("SortOrder", self.order) == "Descending"
        keys = {self._key(found, sort_by): found for found in found if self._matches(found, request)}
        if last := self._last_of_page_before(request, sort_by):
            keys = {key: found for key, found in keys.items() if (key < last if descending else key > last)}
        size = request.get("MaxResults", self.page)
        ordered = sorted(keys, reverse=descending)
        page = [{name: keys[key][name] for name in summary if name in keys[key]} for key in ordered[:size]]
        following = {"NextToken": _token(sort_by, ordered[size - 1])} if len(ordered) > size else {}
        return {self.answer: page, **following}

    def _matches(self, found: Description, request: dict[str, Any]) -> bool:
        created = found["CreationTime"]
        modified = found.get("LastModifiedTime") or found.get(f"{self.kind.removesuffix('Job')}EndTime") or created
        return (
            request.get("NameContains", "") in found[f"{self.kind}Name"]
            and request.get("StatusEquals") in (None, found.get(f"{self.kind}Status"))
            and self._within(created, request, "CreationTime")
            and self._within(modified, request, "LastModifiedTime")
        )

    def _within(self, moment: datetime, request: dict[str, Any], filtered: str) -> bool:
        after, before = (request.get(f"{filtered}{end}") for end in ("After", "Before"))
        if after is not None and not moment > parse_to_aware_datetime(after):
            # Of jobs the filter is "created after", of others "with a creation time greater than or equal to".
            inclusive = filtered == "CreationTime" and not self.kind.endswith("Job")
            if not (inclusive and moment == parse_to_aware_datetime(after)):
                return False
        return before is None or moment < parse_to_aware_datetime(before)

    def _key(self, found: Description, sort_by: str) -> Key:
        name: str = found[f"{self.kind}Name"]
        keys: dict[str, Callable[[], str | float]] = {
            "Name": lambda: name,
            "Status": lambda: str(found.get(f"{self.kind}Status")),
            "CreationTime": lambda: float(found["CreationTime"].timestamp()),
        }
        return keys[sort_by](), name

    def _last_of_page_before(self, request: dict[str, Any], sort_by: str) -> Key | None:
        token = request.get("NextToken")
        if not token:
            return None
        try:
            of, last, name = json.loads(base64.b64decode(token, validate=True))
        except (ValueError, TypeError):
            of = None
        if of != sort_by or not isinstance(last, float if sort_by == "CreationTime" else str):
            raise invalid(self.operation, f"the NextToken is none of {self.operation}'s in this order")
        return last, str(name)


LISTINGS = (
    Listing("ListTrainingJobs", "TrainingJob", "TrainingJobSummaries", order="Ascending"),
    Listing("ListTransformJobs", "TransformJob", "TransformJobSummaries", page=10),
    Listing("ListModels", "Model", "Models"),
    Listing("ListEndpointConfigs", "EndpointConfig", "EndpointConfigs"),
    Listing("ListEndpoints", "Endpoint", "Endpoints", page=10),
)


def _token(sort_by: str, key: Key) -> str:
    return base64.b64encode(json.dumps([sort_by, *key]).encode()).decode()

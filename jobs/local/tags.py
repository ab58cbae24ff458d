"""Tags of resources, which stand in their records.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_Tag.html
"""

from fastmaker.local.errors import invalid
from fastmaker.local.store import Store

MAX_TAGS = 50  # of a resource
Tag = dict[str, str]


def check(operation: str, tags: list[Tag] | None) -> list[Tag]:
    """Return the tags of a request, an empty list for none. Raises ClientError."""
    keys = [tag["Key"] for tag in tags or ()]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise invalid(operation, f"the tag {twice!r} is given more than once")
    if reserved := next((key for key in keys if key.lower().startswith("aws:")), None):
        raise invalid(operation, f"the tag {reserved!r} begins with aws:, which is AWS's own")
    return tags or []


def read(store: Store, name: str) -> list[Tag]:
    """Return a resource's tags. Raises KeyError and DamagedRecord."""
    tags: list[Tag] = store.read(name).get("tags", [])
    return tags


def add(store: Store, name: str, tags: list[Tag]) -> None:
    """Add tags to a resource, in place of those with the same keys. Raises KeyError, DamagedRecord and ClientError."""
    with store.changing(name) as record:
        values = _values(record.get("tags", [])) | _values(tags)
        if len(values) > MAX_TAGS:
            raise invalid("AddTags", f"the resource would have {len(values)} tags; expected at most {MAX_TAGS}")
        record["tags"] = [{"Key": key, "Value": value} for key, value in values.items()]


def delete(store: Store, name: str, keys: list[str]) -> None:
    """Delete the tags with these keys from a resource. Raises KeyError and DamagedRecord."""
    with store.changing(name) as record:
        record["tags"] = [tag for tag in record.get("tags", []) if tag["Key"] not in keys]


def _values(tags: list[Tag]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in tags}

"""Requests made of botocore's model: whole ones, and each with one value that no service takes."""

from fastmaker.local import constraints
from helpers.changes import with_value

NOTHING = object()
# Tried in this order for a text that has a pattern.
TEXTS = (
    "abc",
    "1",
    "4K",
    "arn:aws:iam::000000000000:role/local",
    "arn:aws:sagemaker:us-west-2:000000000000:model/abc",
    "arn:aws:sagemaker:us-west-2:000000000000:training-plan/abc",
    "arn:aws:sagemaker:us-west-2:000000000000:mlflow-app/abcdefgh",
    "arn:aws:sagemaker:us-west-2:000000000000:model-package/abc",
    "arn:aws:sagemaker:us-west-2:000000000000:model-package-group/abc",
    "arn:aws:sagemaker:us-west-2:aws:hub-content/Hub/Model/abc",
    "arn:aws:sagemaker:us-west-2:aws:hub-content/Hub/DataSet/abc",
    "arn:aws:sns:us-west-2:000000000000:topic",
    "arn:aws:lambda:us-west-2:000000000000:function:abc",
    "fs-0123456789",
    "/metrics",
    "text/csv",
    "mig-1g.10gb",
)


def whole(shape, honoured=None):
    """A value of a shape with all members, or those that are `honoured`, as arguments.Members has them."""
    kind, least = shape.type_name, shape.metadata.get("min", 0)
    match kind:
        case "structure":
            names = shape.members if honoured is None else honoured
            return {name: whole(shape.members[name], (honoured or {}).get(name)) for name in names}
        case "list":
            return [whole(shape.member, honoured) for _ in range(max(1, least))]
        case "map":
            return {whole(shape.key): whole(shape.value)}
        case "string" if shape.enum:
            return shape.enum[-1]
        case "string":
            return next(text for text in TEXTS if len(text) >= least and not constraints.violations(shape, text))
        case "integer" | "long" | "float" | "double":
            return max(1, least)
        case "boolean":
            return True
        case "timestamp":
            return "2026-01-01"
        case "blob":
            return b"bytes"


def bad_values(shape):
    """Values that a shape does not take, by what is wrong with them."""
    most = shape.metadata.get("max")
    bad = {"none": None, "object": object()}
    match shape.type_name:
        case "structure":
            bad |= {"list": [], "text": "abc", "unknown": {"Nonsense": 1}}
            bad |= {"lacks": {}} if shape.required_members else {}
        case "list":
            bad |= {"map": {}, "text": "abc", "element": [object()]}
            bad |= {"long": [whole(shape.member)] * (most + 1)} if most else {}
        case "map":
            bad |= {"list": [], "text": "abc", "value": {"key": object()}, "key": {1: "abc"}}
            bad |= {"long": {f"key{number}": "1" for number in range(most + 1)}} if most else {}
        case "string":
            bad |= {"number": 5, "bytes": b"abc", "list": ["abc"], "null": "a\0b", "surrogate": "\ud800"}
            bad |= {"long": "a" * (most + 1)} if most else {}
            bad |= {"enum": "nonsense"} if shape.enum else {}
            pattern = shape.metadata.get("pattern")
            if pattern and not pattern.removeprefix("^").startswith(constraints.URI):
                bad |= {"pattern": next(t for t in ("../a", "a\nb", "é\n") if constraints.violations(shape, t))}
        case "integer" | "long" | "float" | "double":
            bad |= {"text": "5", "boolean": True, "list": [1], "huge": 2**70, "nan": float("nan")}
            bad |= {"more": most + 1} if most else {}
            bad |= {"less": shape.metadata["min"] - 1} if "min" in shape.metadata else {}
        case "boolean":
            bad |= {"text": "true", "number": 1}
        case "timestamp":
            bad |= {"text": "yesterday", "huge": 10**30, "list": [1], "last": "9999-12-31T23:59:59-12:00"}
        case "blob":
            bad |= {"number": 1, "list": [b"x"], "surrogate": "\ud800"}
    if shape.type_name in ("float", "double"):
        del bad["huge"]
    return bad


def spoiled(shape, request, honoured=None):
    """Yield (the name of a member, what is wrong, the request with that value in its place) for all members."""
    for path, member in _members(shape, honoured):
        for wrong, value in bad_values(member).items():
            yield path[-1], f"{'.'.join(map(str, path))}:{wrong}", with_value(request, path, value)


def _members(shape, honoured, path=()):
    """Yield (path, shape) of each member, of a list's first element and of a map's only value."""
    if path and not isinstance(path[-1], int):
        yield path, shape
    if shape.type_name == "structure":
        for name in shape.members if honoured is None else honoured:
            yield from _members(shape.members[name], (honoured or {}).get(name), (*path, name))
    elif shape.type_name == "list":
        yield from _members(shape.member, honoured, (*path, 0))


def unhonoured(shape, honoured, path=()):
    """Yield (path, shape) of the members that are not honoured."""
    if shape.type_name == "list":
        yield from unhonoured(shape.member, honoured, (*path, 0))
    elif shape.type_name == "structure":
        for name, member in shape.members.items():
            if name not in honoured:
                yield (*path, name), member
            elif honoured[name] is not None:
                yield from unhonoured(member, honoured[name], (*path, name))


def lacking(value):
    """Yield (the path of a member, the request without it) for the members at all depths."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(value, dict):
            yield key, {other: value[other] for other in value if other != key}
        if isinstance(inner, (dict, list)):
            for path, changed in lacking(inner):
                whole = dict(value) if isinstance(value, dict) else list(value)
                whole[key] = changed
                yield f"{key}.{path}", whole

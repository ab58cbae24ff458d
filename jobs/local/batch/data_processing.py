"""DataProcessing of a transform job: InputFilter, JoinSource and OutputFilter, for JSON, JSON lines and CSV.

https://docs.aws.amazon.com/sagemaker/latest/dg/batch-transform-data-processing.html
"""

import csv
import functools
import io
import json
import re
import sys
from dataclasses import dataclass
from typing import Any

import jsonpath_rfc9535 as jsonpath
from jsonpath_rfc9535.node import JSONPathNode
from jsonpath_rfc9535.query import JSONPathQuery
from jsonpath_rfc9535.segments import JSONPathRecursiveDescentSegment, JSONPathSegment
from jsonpath_rfc9535.selectors import FilterSelector, IndexSelector, NameSelector, SliceSelector

JSON, JSON_LINES, CSV = "application/json", "application/jsonlines", "text/csv"
FORMATS = (CSV, JSON, JSON_LINES)
MAX_FILTER = 63  # characters
# A quoted name, which stays as it is, or a dot before a bracket.
QUOTED_OR_DOT = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?<!\.)\.\[""")
csv.field_size_limit(sys.maxsize)  # the limit of the payload is the one that applies


class ProcessingError(Exception):
    """Records that cannot be filtered or joined."""


@dataclass(frozen=True)
class DataProcessing:
    """Filter records before they go to the model, and join and filter what it answers."""

    input_filter: str = "$"
    output_filter: str = "$"
    join_source: str = "None"
    content_type: str = ""
    accept: str = ""

    @property
    def changes_nothing(self) -> bool:
        """Whether records pass as they are."""
        return (self.input_filter, self.output_filter, self.join_source) == ("$", "$", "None")

    def validation_error(self) -> str | None:
        """Return why this cannot be done to any record, or None."""
        if self.changes_nothing:
            return None
        for name, path in (("InputFilter", self.input_filter), ("OutputFilter", self.output_filter)):
            if len(path) > MAX_FILTER:
                return f"{name} has {len(path)} characters; expected at most {MAX_FILTER}"
            try:
                _compile(path)
            except ProcessingError as error:
                return f"{name} {path!r}: {error}"
        for name, value in (("ContentType", self.content_type), ("Accept", self.accept)):
            if value not in FORMATS:
                return f"DataProcessing needs a {name} of {', '.join(FORMATS)}; it is {value or 'not set'}"
        if (self.content_type == CSV) != (self.accept == CSV):
            return f"DataProcessing cannot join {self.content_type} with {self.accept}; both must be CSV, or both JSON"
        return None

    def input(self, payload: bytes) -> bytes:
        """Return what the model gets of `payload`. Raises ProcessingError."""
        if self.input_filter == "$":
            return payload
        filtered = [select(self.input_filter, record) for record in _decode(payload, self.content_type, "the input")]
        return _encode(filtered, self.content_type, whole=_is_whole(payload, self.content_type)).removesuffix(b"\n")

    def output(self, payload: bytes, answer: bytes) -> bytes:
        """Return what is stored for `payload`, to which the model gave `answer`. Raises ProcessingError."""
        if (self.output_filter, self.join_source) == ("$", "None"):
            return answer
        outputs = _decode(answer, self.accept, "the model's answer")
        if self.join_source == "Input":
            inputs = _decode(payload, self.content_type, "the input")
            if len(inputs) != len(outputs):
                outputs = _items_of_one_list(outputs, len(inputs), self.content_type)
            outputs = [_join(*pair, self.content_type) for pair in zip(inputs, outputs, strict=True)]
        filtered = [select(self.output_filter, record) for record in outputs]
        return _encode(filtered, self.accept, whole=self.accept == JSON and len(outputs) == 1)


def select(path: str, record: Any) -> Any:
    """Return what the JSONPath `path` selects in `record`, in AWS's form.

    A path to one place gives its value, several names give an object of them, every other path a list.
    Raises ProcessingError for a name or an index that the record lacks.
    """
    segments = _compile(path).segments
    found, several = [record], False
    for number, segment in enumerate(segments, 1):
        names = all(isinstance(selector, NameSelector) for selector in segment.selectors)
        as_object = names and len(segment.selectors) > 1 and number == len(segments)
        found = [child for value in found for child in _children(path, segment, value, as_object)]
        one = len(segment.selectors) == 1 and isinstance(segment.selectors[0], NameSelector | IndexSelector)
        several = several or not (one or as_object)
    return found if several else found[0]


def _children(path: str, segment: JSONPathSegment, value: Any, as_object: bool) -> list[Any]:
    """Return what one part of a path selects in one value."""
    nodes: list[JSONPathNode] = []
    for selector in segment.selectors:
        chosen = list(selector.resolve(JSONPathNode(value=value, location=(), parent=None, root=value)))
        if isinstance(selector, NameSelector | IndexSelector) and not chosen:
            raise ProcessingError(f"the filter {path!r} names what is not in {_excerpt(value)}")
        if isinstance(selector, SliceSelector) and not isinstance(value, list):
            raise ProcessingError(f"the filter {path!r} slices what is no list: {_excerpt(value)}")
        nodes += chosen
    return [{node.location[-1]: node.value for node in nodes}] if as_object else [node.value for node in nodes]


@functools.cache
def _compile(path: str) -> JSONPathQuery:
    """Compile a JSONPath. Raises ProcessingError for one that batch transform does not support."""
    try:
        # AWS takes a dot before brackets, which the RFC does not.
        query = jsonpath.compile(QUOTED_OR_DOT.sub(lambda found: found[1] or "[", path))
    except jsonpath.JSONPathError as error:
        raise ProcessingError(f"no JSONPath: {str(error).splitlines()[0]}") from None
    for segment in query.segments:
        if isinstance(segment, JSONPathRecursiveDescentSegment):
            raise ProcessingError("recursive descent (..) is not supported by batch transform")
        if any(isinstance(selector, FilterSelector) for selector in segment.selectors):
            raise ProcessingError("filter expressions (?) are not supported by batch transform")
    return query


def _join(record: Any, output: Any, content_type: str) -> Any:
    """Return the input record and the model's output as one record, as JoinSource does."""
    if content_type == CSV:
        return record + output
    if isinstance(record, dict):
        return {**record, "SageMakerOutput": output}
    return {"SageMakerInput": record, "SageMakerOutput": output}


def _items_of_one_list(outputs: list[Any], count: int, content_type: str) -> list[Any]:
    """Return the items of a single JSON list of `count` answers. Raises ProcessingError for any other answer."""
    if content_type != CSV and len(outputs) == 1 and isinstance(outputs[0], list) and len(outputs[0]) == count:
        return outputs[0]
    raise ProcessingError(f"JoinSource: {count} records went to the model and {len(outputs)} answers came back")


def _is_whole(payload: bytes, content_type: str) -> bool:
    """Return whether `payload` is one JSON document, rather than one a line."""
    return content_type == JSON and len(_decode(payload, content_type, "the input")) == 1


def _decode(payload: bytes, content_type: str, what: str) -> list[Any]:
    """Return the records of a payload. JSON that is no single document is read as one document a line."""
    try:
        text = payload.decode("utf-8-sig")
        if content_type == CSV:
            return [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
        if content_type == JSON:
            try:
                return [json.loads(text)]
            except json.JSONDecodeError as error:
                if not error.msg.startswith("Extra data"):
                    raise
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except RecursionError:
        raise ProcessingError(f"{what} is not {content_type}: it is nested too deeply") from None
    except (ValueError, csv.Error) as error:
        raise ProcessingError(f"{what} is not {content_type}: {error}") from None


def _encode(records: list[Any], content_type: str, whole: bool) -> bytes:
    """Return records as bytes, each ended by a newline, except a JSON document that is the only one."""
    if content_type == CSV:
        text = io.StringIO(newline="")
        rows = (record if isinstance(record, list) else [record] for record in records)
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()
    lines = [_encode_json(record) for record in records]
    return lines[0] if whole else b"".join(line + b"\n" for line in lines)


def _encode_json(record: Any) -> bytes:
    """Return a record as JSON on one line."""
    try:
        return json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(record).encode()


def _excerpt(record: Any) -> str:
    """Return the beginning of a record, for a message."""
    text = json.dumps(record, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."

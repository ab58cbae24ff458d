"""CloudWatch's logs of jobs and endpoints: the log files of their containers, with the times at which lines came.

https://docs.aws.amazon.com/sagemaker/latest/dg/logging-cloudwatch.html
"""

import bisect
import contextlib
import hashlib
import heapq
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from botocore.exceptions import ClientError, ParamValidationError

from fastmaker.jobs.runtime import server_log
from fastmaker.local import boto, constraints
from fastmaker.local.batch import transform_jobs
from fastmaker.local.containers import Container
from fastmaker.local.names import ACCOUNT
from fastmaker.local.serving import endpoints
from fastmaker.local.store import DamagedRecord, Store
from fastmaker.local.supervisor import FINAL
from fastmaker.local.training import training_jobs

GROUP = re.compile(r"/aws/sagemaker/(?:(?P<jobs>TrainingJobs|TransformJobs)|Endpoints/(?P<endpoint>[^/]+))")
OPERATIONS = ("DescribeLogStreams", "GetLogEvents", "FilterLogEvents")
# What else is about the events of a group, of which moto has none.
NEEDS_AWS = (
    *("StartQuery", "CreateExportTask", "PutSubscriptionFilter", "PutMetricFilter"),
    *("PutLogEvents", "CreateLogStream", "DeleteLogStream", "DeleteLogGroup"),
)
MAX_EVENTS = 10_000  # of an answer
MAX_BYTES = 2**20  # of an answer, of which each event takes some more than its text
EVENT_BYTES = 26
MAX_MESSAGE = 2**18 - EVENT_BYTES  # bytes; a longer line is several events
QUIET_SECONDS = 60  # after which nobody writes the log of a server that is not there
END = 2**63  # the size of a log that gains nothing more
Position = tuple[int, int]  # the time of an event, and its number among those of that time


@dataclass(frozen=True)
class Event:
    """A line of a log; `time` is in milliseconds of the era, `number` counts the events of one time."""

    stream: str
    time: int
    number: int
    message: str

    @property
    def position(self) -> Position:
        return self.time, self.number


@dataclass(frozen=True)
class Stream:
    """A stream of a log group, which is the log of one container; `created` is in milliseconds of the era."""

    name: str
    container: Container
    created: int
    ended: bool

    def events(self, since: int = 0) -> Iterator[Event]:
        """Yield the events from a time on, in their order; no time goes back from one event to the next."""
        last, number = -1, 0
        log = self.container.log
        for file in (server_log.aside(log), log):
            for moment, message in _lines(file, since, self.ended or file != log):
                moment = max(moment, last)
                number = number + 1 if moment == last else 0
                last = moment
                if moment >= since:
                    yield Event(self.name, moment, number, message)

    def times(self) -> tuple[int, int]:
        """Return the times of the first and the last event."""
        log = self.container.log
        noted = [moment for file in (server_log.aside(log), log) for _, moment in _noted(file)]
        return (noted[0], noted[-1]) if noted else (self.created, self.created)


def _noted(log: Path) -> list[tuple[int, int]]:
    """Return how long a log was at which times, as far as that was noted."""
    try:
        data = server_log.times_of(log).read_bytes()
    except FileNotFoundError:
        return []
    whole = len(data) // server_log.ENTRY.size * server_log.ENTRY.size
    return list(server_log.ENTRY.iter_unpack(data[:whole]))


def _lines(log: Path, since: int, ended: bool) -> Iterator[tuple[int, str]]:
    """Yield the lines of a log with their times, from those that came at the time `since`, or before, on.

    The time of a line is the first at which the log had it. What has come since the last such time is not there yet;
    of a log that has ended it came last of all.
    """
    if not log.is_file():
        return
    noted = _noted(log)
    if ended:
        noted.append((END, max(int(log.stat().st_mtime * 1000), noted[-1][1] if noted else 0)))
    first = bisect.bisect_left([moment for _, moment in noted], since)
    with open(log, "rb") as stream:
        place = _line_start(stream, noted[first - 1][0]) if first else 0
        stream.seek(place)
        for size, moment in noted[first:]:
            while place < size and (line := stream.readline(MAX_MESSAGE)):
                is_whole = line.endswith(b"\n") or len(line) == MAX_MESSAGE or size == END
                if place + len(line) > size or not is_whole:
                    stream.seek(place)
                    break
                place += len(line)
                if text := line.decode("utf-8", "replace").rstrip("\r\n"):
                    yield moment, text


def _line_start(stream: IO[bytes], place: int) -> int:
    """Return where the line begins that has the byte at a place, or the one that begins there."""
    back = min(place, MAX_MESSAGE)
    stream.seek(place - back)
    return place - back + stream.read(back).rfind(b"\n") + 1


class Logs:
    """Answer operations on the log groups of SageMaker."""

    def __init__(self, home: Path) -> None:
        self._jobs: dict[str, tuple[Store, Any, str]] = {
            "TrainingJobs": (training_jobs.store_below(home), training_jobs, "TrainingJobStatus"),
            "TransformJobs": (transform_jobs.store_below(home), transform_jobs, "TransformJobStatus"),
        }
        self._endpoints = endpoints.store_below(home)
        self._model = boto.service_model("logs")

    def answer(self, operation: str, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer to a request, None for another log group or operation. Raises ClientError."""
        group = next(_groups(request), None)
        if group and operation in NEEDS_AWS:
            raise _error(operation, "InvalidParameterException", f"{operation} of {group[0]} needs AWS")
        if operation not in OPERATIONS or group is None:
            return None
        model = self._model.operation_model(operation)
        try:
            reason = boto.type_errors(model, request) or constraints.violations(model.input_shape, request)
        except ParamValidationError as error:
            reason = str(error)
        if reason:
            raise _error(operation, "InvalidParameterException", " ".join(reason.split()))
        act = {"DescribeLogStreams": self._describe, "GetLogEvents": self._get, "FilterLogEvents": self._filter}
        return act[operation](operation, group, request)

    def note_groups(self, region: str) -> None:
        """Have moto, which answers all other operations, know the groups that there are."""
        from moto.logs.models import logs_backends  # after the environment: moto reads it

        jobs = [kind for kind, (store, *_) in self._jobs.items() if store.names()]
        with contextlib.suppress(KeyError):  # of a region that moto does not know
            backend = logs_backends[ACCOUNT][region]
            for name in [*jobs, *(f"Endpoints/{name}" for name in self._endpoints.names())]:
                backend.ensure_log_group(f"/aws/sagemaker/{name}")

    def _describe(self, operation: str, group: re.Match[str], request: dict[str, Any]) -> dict[str, Any]:
        found = self._streams(operation, group, request.get("logStreamNamePrefix", ""))
        rows = [(stream, *stream.times()) for stream in found]
        by_time = request.get("orderBy") == "LastEventTime"
        rows.sort(key=lambda row: (row[2] if by_time else 0, row[0].name), reverse=request.get("descending", False))
        start, size = _number(operation, request.get("nextToken", "0")), request.get("limit", 50)
        answer = [
            {
                "logStreamName": stream.name,
                "creationTime": stream.created,
                "firstEventTimestamp": first,
                "lastEventTimestamp": last,
                "lastIngestionTime": last,
                "storedBytes": 0,
            }
            for stream, first, last in rows[start : start + size]
        ]
        following = {"nextToken": str(start + size)} if len(rows) > start + size else {}
        return {"logStreams": answer, **following}

    def _get(self, operation: str, group: re.Match[str], request: dict[str, Any]) -> dict[str, Any]:
        name = request["logStreamName"]
        stream = next((s for s in self._streams(operation, group, name) if s.name == name), None)
        if stream is None:
            raise _error(operation, "ResourceNotFoundException", "The specified log stream does not exist.")
        start, end = request.get("startTime", 0), request.get("endTime", 2**63)
        direction, at = _token(operation, request.get("nextToken"))
        forward = direction == "f" or (not direction and request.get("startFromHead", False))
        since = max(start, at[0]) if direction == "f" else start
        events = (event for event in stream.events(since) if event.time < end)
        if direction == "f":
            events = (event for event in events if event.position > at)
        elif direction == "b":
            events = (event for event in events if event.position < at)
        page = _page(events, request.get("limit", MAX_EVENTS), forward)
        before, after = (page[0].position, page[-1].position) if page else (at, at)
        return {
            "events": [{"timestamp": e.time, "message": e.message, "ingestionTime": e.time} for e in page],
            "nextForwardToken": f"f/{after[0]}/{after[1]}",
            "nextBackwardToken": f"b/{before[0]}/{before[1]}",
        }

    def _filter(self, operation: str, group: re.Match[str], request: dict[str, Any]) -> dict[str, Any]:
        named = request.get("logStreamNames")
        streams = [
            stream
            for stream in self._streams(operation, group, request.get("logStreamNamePrefix", ""))
            if named is None or stream.name in named
        ]
        start, end = request.get("startTime", 0), request.get("endTime", 2**63)
        matches = _matcher(operation, request.get("filterPattern", ""))
        last = _place(operation, request.get("nextToken"))
        merged = heapq.merge(*(s.events(max(start, last[0])) for s in streams), key=_order)
        wanted = (e for e in merged if e.time < end and _order(e) > last and matches(e.message))
        page = _page(wanted, request.get("limit", MAX_EVENTS), True)
        more = next(wanted, None)
        following = {"nextToken": "/".join(map(str, _order(page[-1])))} if more and page else {}
        found = [
            {
                "logStreamName": event.stream,
                "timestamp": event.time,
                "message": event.message,
                "ingestionTime": event.time,
                "eventId": _event_id(event),
            }
            for event in page
        ]
        return {"events": found, "searchedLogStreams": [], **following}

    def _streams(self, operation: str, group: re.Match[str], prefix: str) -> Iterator[Stream]:
        """Yield the streams of a group whose names begin with a prefix."""
        if group["jobs"]:
            store, module, status = self._jobs[group["jobs"]]
            job = prefix.partition("/")[0]
            for name in [job] if "/" in prefix else [name for name in store.names() if name.startswith(job)]:
                try:
                    description = module.describe(store, name)
                except (KeyError, DamagedRecord):
                    continue
                created = int(description["CreationTime"].timestamp())
                for container in module.containers(store, name):
                    stream = f"{name}/{container.root.name}-{created}"
                    if stream.startswith(prefix) and container.log.is_file():
                        yield Stream(stream, container, created * 1000, description[status] in FINAL)
            return
        try:
            created = int(self._endpoints.read(group["endpoint"])["description"]["CreationTime"].timestamp())
        except (KeyError, DamagedRecord):
            raise _error(operation, "ResourceNotFoundException", "The specified log group does not exist.") from None
        for folder in sorted(self._endpoints.directory(group["endpoint"]).glob("[0-9]*/*")):
            label = hashlib.sha256(f"{folder.parent.name}/{folder.name}".encode()).hexdigest()[:17]
            stream, container = f"{folder.name.rpartition('-')[0]}/i-{label}", Container(folder)
            if stream.startswith(prefix) and container.log.is_file():
                quiet = time.time() - container.log.stat().st_mtime > QUIET_SECONDS
                yield Stream(stream, container, created * 1000, quiet and not container.alive())


def _groups(request: dict[str, Any]) -> Iterator[re.Match[str]]:
    """Yield the log groups of SageMaker that a request names, by their names or ARNs."""
    one = [request.get("logGroupName"), request.get("logGroupIdentifier")]
    many = [request.get("logGroupNames"), request.get("logGroupIdentifiers")]
    for name in [*one, *(name for names in many if isinstance(names, list) for name in names)]:
        if isinstance(name, str) and (found := GROUP.fullmatch(name.rpartition("log-group:")[2].removesuffix(":*"))):
            yield found


def _page(events: Iterator[Event], limit: int, forward: bool) -> list[Event]:
    """Return the first events, or the last, as many as an answer may have; no more are taken than are returned."""
    page: list[Event] = []
    size = 0
    for event in events if forward else reversed(list(events)):
        size += len(event.message.encode()) + EVENT_BYTES
        page.append(event)
        if len(page) >= limit or size + MAX_MESSAGE > MAX_BYTES:
            break
    return page if forward else page[::-1]


def _order(event: Event) -> tuple[int, str, int]:
    return event.time, event.stream, event.number


def _event_id(event: Event) -> str:
    label = int(hashlib.sha256(event.stream.encode()).hexdigest()[:8], 16)
    return f"{event.time:016}{label:010}{event.number:010}"


def _matcher(operation: str, pattern: str) -> Callable[[str], bool]:
    """Return what says whether a message matches a filter pattern of terms. Raises ClientError for another pattern.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/FilterAndPatternSyntax.html
    """
    terms: dict[str, list[str]] = {"": [], "-": [], "?": []}
    for sign, word, text in re.findall(r'([?-]?)(?:(\w+)|"([^"]*)")', pattern):
        terms[sign].append(word or text)
    mixed = terms["?"] and (terms[""] or terms["-"])
    if mixed or not re.fullmatch(r'\s*([?-]?(\w+|"[^"]*")(\s+|$))*', pattern):
        expected = "expected words, or texts in double quotes, with - before those that an event must not have, or ? "
        expected += "before each if one is enough"
        raise _error(operation, "InvalidParameterException", f"the filterPattern {pattern!r} needs AWS; {expected}")
    return lambda message: (
        all(term in message for term in terms[""])
        and not any(term in message for term in terms["-"])
        and (not terms["?"] or any(term in message for term in terms["?"]))
    )


def _token(operation: str, token: str | None) -> tuple[str, Position]:
    """Return the direction of a token, empty for none, and the position that it names. Raises ClientError."""
    if token is None:
        return "", (0, -1)
    if found := re.fullmatch(r"([fb])/(\d{1,18})/(-?\d{1,18})", token):
        return found[1], (int(found[2]), int(found[3]))
    raise _error(operation, "InvalidParameterException", "The specified nextToken is invalid.")


def _place(operation: str, token: str | None) -> tuple[int, str, int]:
    if token is None:
        return 0, "", -1
    if found := re.fullmatch(r"(\d{1,18})/(.+)/(\d{1,18})", token):
        return int(found[1]), found[2], int(found[3])
    raise _error(operation, "InvalidParameterException", "The specified nextToken is invalid.")


def _number(operation: str, token: str) -> int:
    if re.fullmatch(r"\d{1,18}", token):
        return int(token)
    raise _error(operation, "InvalidParameterException", "The specified nextToken is invalid.")


def _error(operation: str, code: str, message: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)

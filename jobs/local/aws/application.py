"""One loopback port that is AWS: requests are checked, and answered by the engine or by moto's server.

SageMaker, its runtime and the logs of its jobs are the engine's; S3, STS, IAM, ECR and the rest are moto's.
"""

import io
import json
import logging
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from botocore.exceptions import ClientError

from fastmaker.local.aws import domains, roles
from fastmaker.local.aws.control import ControlPlane
from fastmaker.local.aws.invocations import Answer, Runtime
from fastmaker.local.aws.logs import Logs
from fastmaker.local.aws.signatures import Key, Received, Refused, check, check_access, claim, is_s3

JSON = "application/x-amz-json-1.1"
SAGEMAKER = "SageMaker."
LOGS = "Logs_20140328."
MB = 2**20
MAX_BODY = 8 * MB  # of any service but S3; an invocation has 6 MB at most
MAX_OBJECT = 5 * 2**30  # of one request of S3, as on AWS
REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d|aws-global")
# moto's own pages, which change what it holds, and the address of an instance's own credentials.
NOT_AWS = re.compile(r"/+(moto-api|latest/(meta-data|api))(/|$)")
FORM = "application/x-www-form-urlencoded"
XML = ("", "s3", "s3express", "s3-outposts", "cloudfront", "route53")  # services of REST and XML; "": not yet known
# In a WSGI environment: the headers that came, by names in lower case; the host of AWS that the proxy was asked for;
# and that the request is signed with the key.
HEADERS, TUNNEL, SIGNED = "fastmaker.headers", "fastmaker.tunnel", "fastmaker.signed"
log = logging.getLogger("fastmaker.aws")
Start = Callable[..., Any]


class Application:
    """The WSGI application. `hosts` are the values of Host that are answered, `key` is the one that signs requests.

    `fallback` is moto's application, around which S3 keeps what it holds.
    """

    def __init__(
        self,
        hosts: set[str],
        key: Key,
        control: ControlPlane,
        runtime: Runtime,
        fallback: Callable[[dict[str, Any], Start], Iterable[bytes]],
        logs: Logs,
    ) -> None:
        self._hosts, self._key = hosts, key
        self._control, self._runtime, self._logs, self._fallback = control, runtime, logs, fallback

    def resume(self) -> None:
        """Go on with what an earlier server was doing, once this one answers."""
        self._control.resume()

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        service = ""
        try:
            region, service, received = self._checked(environ)
            answer = self._answer(environ, region, service, received)
            if answer is None:
                body = b"".join(self._fallback(environ, start))
                return [roles.answer_of_sts(body, self._key) if service == "sts" else body]
        except Refused as refused:
            answer = refusal(environ, refused, service)
        except (NotImplementedError, ImportError) as error:  # of moto; after a 500 clients would ask again
            message = f"moto, which stands in for {service}, does not have it: {error}"
            answer = refusal(environ, Refused("UnknownOperationException", message, 400), service)
        except Exception as error:
            log.exception("%s %s", environ["REQUEST_METHOD"], environ["PATH_INFO"])
            answer = refusal(environ, Refused("InternalFailure", f"{type(error).__name__}: {error}", 500), service)
        return _sent(answer, start)

    def _checked(self, environ: dict[str, Any]) -> tuple[str, str, Received]:
        """Return the region and service that a request is signed for, after its body was read. Raises Refused."""
        self._check_host(environ)
        target = environ["RAW_URI"]
        if not target.startswith("/"):  # an absolute URL, as a proxy is asked for
            raise Refused("AccessDenied", "the request's path does not begin with a slash")
        received = Received(environ["REQUEST_METHOD"], target, environ[HEADERS])
        claimed = claim(received)
        check_access(claimed, self._key)
        if claimed.version == 4 and not REGION.fullmatch(claimed.region):
            raise Refused("AccessDenied", f"{claimed.region!r} is no region of AWS")
        body = _body(environ, MAX_OBJECT if is_s3(claimed.service) else MAX_BODY)
        if claimed.version == 2:  # which signs the bucket in the path also where the host names it
            received = replace(received, target=_path_here(environ, received.target))
        check(received, claimed, body, self._key)
        environ[SIGNED] = True
        self._lead_here(environ, claimed.service)
        if NOT_AWS.match(environ["PATH_INFO"]):
            raise Refused("AccessDenied", "this path is no service's")
        return claimed.region, claimed.service, received

    def _check_host(self, environ: dict[str, Any]) -> None:
        """Check that a request is for this machine, or for the host that the proxy was asked for. Raises Refused."""
        host, tunnel = environ.get("HTTP_HOST", ""), environ.get(TUNNEL)
        if tunnel is None and host not in self._hosts:
            raise Refused("AccessDenied", "the request's Host is not this machine's")
        if tunnel is not None and host.lower() not in (tunnel, f"{tunnel}:443"):
            raise Refused("AccessDenied", f"the request's Host is not {tunnel}, which the proxy was asked for")

    def _lead_here(self, environ: dict[str, Any], service: str) -> None:
        """Have a request that came by the proxy name this machine, and its bucket in the path as all others do."""
        if TUNNEL not in environ:
            return
        if is_s3(service):
            environ.update(
                {name: _path_here(environ, environ[name]) for name in ("PATH_INFO", "RAW_URI", "REQUEST_URI")}
            )
        environ["HTTP_HOST"] = min(self._hosts)

    def _answer(self, environ: dict[str, Any], region: str, service: str, received: Received) -> Answer | None:
        """Return the engine's answer, None if the request is for another service."""
        target, body = received.headers.get("x-amz-target", ""), environ["wsgi.input"].getvalue()
        if service == "sagemaker":
            if target.startswith(SAGEMAKER):
                return _json(lambda: self._control.answer(target.removeprefix(SAGEMAKER), body, region))
            answer = self._runtime.answer(received.target, received.headers, body)
            if answer is None:
                name = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
                raise Refused("UnknownOperationException", f"{name} needs AWS: it is no operation of this machine", 404)
            return answer
        if target.startswith(LOGS):
            return self._answer_logs(target.removeprefix(LOGS), body, region)
        if service == "iam" and environ.get("CONTENT_TYPE", "").startswith(FORM):
            form = parse_qs(body.decode("utf-8", "replace"))
            roles.ensure(form)
            return _simulated_policy(form)
        return None

    def _answer_logs(self, operation: str, body: bytes, region: str) -> Answer | None:
        try:
            request = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            request = {}
        answered = None
        if isinstance(request, dict):
            try:
                answered = self._logs.answer(operation, request)
            except ClientError as error:
                return _client_error(error)
        if answered is None:
            self._logs.note_groups(region)
            return None
        return 200, {"Content-Type": JSON}, json.dumps(answered).encode()


def _path_here(environ: dict[str, Any], path: str) -> str:
    """Return a path of S3 with its bucket, also where the request's host names it. Raises Refused."""
    if TUNNEL not in environ:
        return path
    here = domains.path_on(environ[TUNNEL], path)
    if here is None:
        raise Refused("AccessDenied", f"{environ[TUNNEL]} needs AWS: objects of S3 are not at that host")
    return here


def _body(environ: dict[str, Any], most: int) -> bytes:
    """Return the body of a request, which stays to be read. Raises Refused if it is longer than `most`."""
    length = environ.get("CONTENT_LENGTH", "")
    if length and not (length.isascii() and length.isdecimal()):
        raise Refused("InvalidRequest", "Content-Length is no number", 400)
    if int(length or 0) > most:
        raise Refused("EntityTooLarge", f"the body has more than {most // MB:,} MB", 413)
    if length:
        body = environ["wsgi.input"].read(int(length))
    else:
        body = environ["wsgi.input"].read(most + 1) if environ.get("wsgi.input_terminated") else b""
    if len(body) > most:
        raise Refused("EntityTooLarge", f"the body has more than {most // MB:,} MB", 413)
    if environ.pop("wsgi.input_terminated", None):  # it came in chunks
        environ["CONTENT_LENGTH"] = str(len(body))
        environ.pop("HTTP_TRANSFER_ENCODING", None)
    environ["wsgi.input"] = io.BytesIO(body)
    return bytes(body)


def _json(answer: Callable[[], bytes]) -> Answer:
    try:
        return 200, {"Content-Type": JSON}, answer()
    except ClientError as error:
        return _client_error(error)


def _client_error(error: ClientError) -> Answer:
    given = error.response["Error"]
    body = {"__type": given["Code"], "message": given["Message"]}
    return 400, {"Content-Type": JSON, "x-amzn-ErrorType": given["Code"]}, json.dumps(body).encode()


def refusal(environ: dict[str, Any], refused: Refused, service: str = "") -> Answer:
    """Return that a request is not answered, in the form of the protocol that it speaks, or its `service` if known."""
    code, text = refused.code, refused.message
    invokes = environ.get("PATH_INFO", "").startswith("/endpoints/")
    is_form = environ.get("CONTENT_TYPE", "").startswith(FORM)
    if environ.get("HTTP_X_AMZ_TARGET") or invokes or not (is_form or service in XML):
        told = {"Message": text} if invokes and refused.status == 500 else {"__type": code, "message": text}
        body = json.dumps(told).encode()
        return refused.status, {"Content-Type": JSON, "x-amzn-ErrorType": code}, body
    error = f"<Code>{escape(code)}</Code><Message>{escape(text)}</Message>"
    if is_form:
        error = f"<ErrorResponse><Error><Type>Sender</Type>{error}</Error></ErrorResponse>"
    else:
        error = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{error}</Error>'
    return refused.status, {"Content-Type": "application/xml"}, error.encode()


def _simulated_policy(form: dict[str, list[str]]) -> Answer | None:
    """Return that every action is allowed, of iam:SimulatePrincipalPolicy, which moto lacks; else None."""
    if form.get("Action") != ["SimulatePrincipalPolicy"]:
        return None
    actions = [values[0] for name, values in form.items() if name.startswith("ActionNames.member.")]
    results = "".join(
        f"<member><EvalActionName>{escape(action)}</EvalActionName><EvalResourceName>*</EvalResourceName>"
        "<EvalDecision>allowed</EvalDecision></member>"
        for action in actions
    )
    answer = (
        '<SimulatePrincipalPolicyResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/">'
        "<SimulatePrincipalPolicyResult><IsTruncated>false</IsTruncated>"
        f"<EvaluationResults>{results}</EvaluationResults></SimulatePrincipalPolicyResult>"
        f"<ResponseMetadata><RequestId>{uuid.uuid4()}</RequestId></ResponseMetadata></SimulatePrincipalPolicyResponse>"
    )
    return 200, {"Content-Type": "text/xml"}, answer.encode()


def _sent(answer: Answer, start: Start) -> Iterable[bytes]:
    status, headers, body = answer
    headers = {**headers, "x-amzn-RequestId": str(uuid.uuid4()), "Content-Length": str(len(body))}
    start(f"{status} {'OK' if status == 200 else 'Error'}", list(headers.items()))
    return [body]

"""Whether a request is signed with this machine's key, by Signature Version 4, which botocore's own signer computes.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html
"""

import functools
import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from botocore.auth import HmacV1QueryAuth, S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials

TIMESTAMP = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z", re.ASCII)
# How far a client's clock may be off, as AWS allows.
SKEW = timedelta(minutes=5)
SKEW_OF_S3 = timedelta(minutes=15)
MAX_EXPIRES = 7 * 24 * 3600  # seconds that a presigned URL may be good for
UNSIGNED = "UNSIGNED-PAYLOAD"
# What S3 takes in place of a body's hash. The chunks of a body that is signed piece by piece are not checked: who has
# no key has no signature of the headers either.
STREAMING = re.compile(r"STREAMING-(UNSIGNED-PAYLOAD-TRAILER|AWS4-HMAC-SHA256-PAYLOAD(-TRAILER)?)")
AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=(?P<credential>[^\s,]+),\s*SignedHeaders=(?P<headers>[^\s,]+),\s*"
    r"Signature=(?P<signature>[0-9a-f]{64})"
)


class Refused(Exception):
    """A request that is not answered; `code` is AWS's for the reason."""

    def __init__(self, code: str, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


@dataclass(frozen=True)
class Key:
    """An access key of this machine."""

    access: str
    secret: str


@dataclass(frozen=True)
class Received:
    """A request as it came: `target` is the path and query of its first line."""

    method: str
    target: str
    headers: dict[str, str]  # by names in lower case


@dataclass(frozen=True)
class Claim:
    """What a request says of its signature, before that was checked."""

    access: str
    date: str
    region: str
    service: str
    timestamp: str
    signed: tuple[str, ...]
    signature: str
    expires: int | None  # seconds of a presigned URL; with version 2, the second of the era at which it expires
    version: int = 4  # boto3 presigns URLs of S3's first regions by version 2


def claim(received: Received) -> Claim:
    """Return what the request says of its signature. Raises Refused if it has none."""
    given = _parameters(received)
    expires: int | None = None
    if {"AWSAccessKeyId", "Signature", "Expires"} <= given.keys():
        return Claim(given["AWSAccessKeyId"], "", "", "s3", "", (), given["Signature"], _seconds(given["Expires"]), 2)
    if "X-Amz-Signature" in given:
        credential, headers = given.get("X-Amz-Credential", ""), given.get("X-Amz-SignedHeaders", "")
        signature, timestamp = given["X-Amz-Signature"], given.get("X-Amz-Date", "")
        expires = _seconds(given.get("X-Amz-Expires", ""))
    elif found := AUTHORIZATION.fullmatch(received.headers.get("authorization", "").strip()):
        credential, headers, signature = found["credential"], found["headers"], found["signature"]
        timestamp = received.headers.get("x-amz-date", "")
    else:
        message = "the request is not signed with Signature Version 4; take the key that `fastmaker aws` prints"
        raise Refused("MissingAuthenticationToken", message)
    parts = unquote(credential).split("/")
    if len(parts) != 5 or parts[4] != "aws4_request":
        raise Refused("IncompleteSignature", "the Credential of the signature is not in AWS's form")
    signed = tuple(headers.lower().split(";"))
    return Claim(parts[0], parts[1], parts[2], parts[3], timestamp, signed, signature, expires)


def _parameters(received: Received) -> dict[str, str]:
    query = received.target.partition("?")[2]
    return {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}


def _seconds(text: str) -> int:
    """Return a number of seconds, -1 for what is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else -1


def check(received: Received, claimed: Claim, body: bytes, key: Key, now: datetime | None = None) -> None:
    """Check that a request, with its body, is signed with the key, and recently. Raises Refused."""
    check_access(claimed, key)
    now = now or datetime.now(timezone.utc)
    if claimed.version == 2:
        if not now.timestamp() < (claimed.expires or 0) < now.timestamp() + MAX_EXPIRES:
            raise Refused("AccessDenied", "Request has expired")
        _compare(_PresignedByVersion2(received, key).signature(), claimed)
        return
    _check_time(claimed, now)
    if "host" not in claimed.signed:
        raise Refused("SignatureDoesNotMatch", "the header Host is not signed")
    given_hash = received.headers.get("x-amz-content-sha256", "")
    is_hash = given_hash not in ("", UNSIGNED) and not STREAMING.fullmatch(given_hash)
    if claimed.expires is None and is_hash and given_hash != hashlib.sha256(body).hexdigest():
        raise Refused("XAmzContentSHA256Mismatch", "the body is not the one whose hash was signed")
    _compare(_signature(received, claimed, body, key), claimed)


def _compare(signature: str, claimed: Claim) -> None:
    if not hmac.compare_digest(signature.encode(), claimed.signature.encode()):
        message = "the signature is not that of this request with this machine's key"
        raise Refused("SignatureDoesNotMatch", message)


def check_access(claimed: Claim, key: Key) -> None:
    """Check that a request names the key, before its body is read. Raises Refused."""
    if not hmac.compare_digest(claimed.access.encode(), key.access.encode()):
        message = "the access key is not this machine's; take the one that `fastmaker aws` prints"
        raise Refused("InvalidAccessKeyId" if is_s3(claimed.service) else "UnrecognizedClientException", message)


def is_s3(service: str) -> bool:
    """Return whether S3's rules hold for requests that are signed for a service."""
    return service in ("s3", "s3express")


def _check_time(claimed: Claim, now: datetime) -> None:
    given = TIMESTAMP.fullmatch(claimed.timestamp)
    try:  # strptime takes several times as long
        year, month, day, hour, minute, second = map(int, given.groups() if given else ())
        signed = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        raise Refused("IncompleteSignature", "the request has no X-Amz-Date in AWS's form") from None
    if claimed.timestamp[:8] != claimed.date:
        raise Refused("SignatureDoesNotMatch", "the day of the Credential is not that of X-Amz-Date")
    skew = SKEW_OF_S3 if is_s3(claimed.service) else SKEW
    if claimed.expires is not None:
        if not 0 < claimed.expires <= MAX_EXPIRES:
            raise Refused("AuthorizationQueryParametersError", f"X-Amz-Expires is no number from 1 to {MAX_EXPIRES}")
        if signed - skew > now or now > signed + timedelta(seconds=claimed.expires):
            raise Refused("AccessDenied", "Request has expired")
    elif abs(now - signed) > skew:
        code = "RequestTimeTooSkewed" if is_s3(claimed.service) else "InvalidSignatureException"
        raise Refused(code, f"the request was signed at {signed:%H:%M:%S}, and it is {now:%H:%M:%S} UTC")


@functools.lru_cache(maxsize=64)
def _signing_key(secret: str, *scope: str) -> bytes:
    """Return the key that signs a day's requests to a service of a region: `scope` is these three, in this order."""
    key = f"AWS4{secret}".encode()
    for part in (*scope, "aws4_request"):
        key = hmac.digest(key, part.encode(), hashlib.sha256)
    return key


class _Headers:
    """Signs the headers that the client has signed, also those that botocore leaves out, with a key that is kept."""

    def headers_to_sign(self, request: AWSRequest) -> HTTPHeaders:
        return request.headers

    def signature(self: Any, string_to_sign: str, request: AWSRequest) -> str:
        date = request.context["timestamp"][:8]
        key = _signing_key(self.credentials.secret_key, date, self._region_name, self._service_name)
        return hmac.digest(key, string_to_sign.encode(), hashlib.sha256).hex()


class _Signer(_Headers, SigV4Auth):  # type: ignore[misc]
    pass


class _SignerOfS3(_Headers, S3SigV4Auth):  # type: ignore[misc]
    pass


class _PresignedByVersion2(HmacV1QueryAuth):  # type: ignore[misc]
    """https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html"""

    def __init__(self, received: Received, key: Key) -> None:
        super().__init__(Credentials(key.access, key.secret))
        self._received, self._given = received, _parameters(received)

    def _get_date(self) -> str:
        return self._given["Expires"]

    def signature(self) -> str:
        """Return the signature of the request, of which some headers may stand in the URL."""
        headers = HTTPHeaders()
        for name, value in {**self._received.headers, **self._given}.items():
            if name == name.lower() and name != "date":
                headers[name] = value
        text: str = self.get_signature(self._received.method, urlsplit(f"http://host{self._received.target}"), headers)
        return text


def _signature(received: Received, claimed: Claim, body: bytes, key: Key) -> str:
    headers = HTTPHeaders()
    for name in claimed.signed:
        headers[name] = received.headers.get(name, "")
    target = received.target
    if claimed.expires is not None:
        path, _, query = target.partition("?")
        target = f"{path}?" + "&".join(pair for pair in query.split("&") if not pair.startswith("X-Amz-Signature="))
    request = AWSRequest(received.method, f"http://host{target}", headers, body)
    request.context["timestamp"] = claimed.timestamp
    given_hash = received.headers.get("x-amz-content-sha256")
    make = _SignerOfS3 if is_s3(claimed.service) else _Signer
    signer = make(Credentials(key.access, key.secret), claimed.service, claimed.region)
    if claimed.expires is not None and is_s3(claimed.service):
        signer.payload = lambda request: given_hash if "x-amz-content-sha256" in claimed.signed else UNSIGNED
    else:  # botocore would prepare the whole request for it
        signer.payload = lambda request: given_hash or hashlib.sha256(body).hexdigest()
    text: str = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    return text

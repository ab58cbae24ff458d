"""Redaction of account numbers and signatures, which are for a terminal alone."""

import re
from collections.abc import Iterable

# Where AWS puts account numbers: in ARNs, also quoted for a URL, in registries and in the SDK's default buckets.
ACCOUNT = re.compile(r"(?<=:)\d{12}(?=:)|(?<=%3A)\d{12}(?=%3A)|\d{12}(?=\.dkr\.ecr)|(?<=-\d-)\d{12}", re.IGNORECASE)


ACCOUNTS_OF_AWS = ("763104351884",)  # of its deep learning images, in most regions


SIGNATURE = re.compile(
    r"(X-Amz-(?:Credential|Security-Token|Signature)|AWSAccessKeyId|Credential|Signature)=[^&\s\"',]+", re.IGNORECASE
)


own_accounts: set[str] = set()  # accounts of the caller, which are redacted wherever they stand


class RedactingStream:
    """A text stream that shows AWS account numbers and the secret parts of signed URLs to a terminal alone."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(text if self._stream.isatty() else redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def redact(text: str) -> str:
    """Return the text with asterisks for account numbers, except AWS's own, and for what signs a URL."""
    for account in own_accounts:
        text = text.replace(account, "*" * 12)
    text = ACCOUNT.sub(lambda found: found[0] if found[0] in ACCOUNTS_OF_AWS else "*" * 12, text)
    return SIGNATURE.sub(r"\1=***", text)

"""The errors of a request, as subclasses of the serving toolkit's error class, which keeps their HTTP status."""

try:
    from sagemaker_inference.errors import BaseInferenceToolkitError
except ImportError:  # the training image and notebooks have no inference toolkit

    class BaseInferenceToolkitError(Exception):  # type: ignore[no-redef]
        """The toolkit's class of the same name, where the toolkit is not installed."""

        def __init__(self, status_code: int, message: str, phrase: str):
            self.status_code, self.message, self.phrase = status_code, message, phrase
            super().__init__(status_code, message, phrase)


class RequestError(BaseInferenceToolkitError):
    """A request that cannot be answered: an HTTP status and a message of one line, in ASCII.

    The toolkit answers 500 for errors that are not subclasses of its own.
    """

    status = 400

    def __init__(self, message: str):
        # TorchServe sends the phrase's length in characters, not bytes: non-ASCII characters break its protocol.
        line = " ".join(message.split()).encode("ascii", "backslashreplace").decode("ascii")[:500]
        super().__init__(self.status, line, line)

    def __str__(self) -> str:
        return self.message


class BadRequest(RequestError):
    """400: the body is empty, damaged, too large, or not what its Content-Type says."""


class UnsupportedContentType(RequestError):
    """415: a Content-Type that is not in `wire.DECODERS`."""

    status = 415


class NotAcceptable(RequestError):
    """406: the Accept header names no type that can hold the answer."""

    status = 406


class InternalError(RequestError):
    """500: a fault of the server, not of the request."""

    status = 500

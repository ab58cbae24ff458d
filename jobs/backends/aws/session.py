"""The SageMaker SDK's session on AWS: it looks often, and Ctrl-C gets through it."""

import contextlib
from collections.abc import Iterator

from sagemaker.session import Session

from fastmaker.local.sdk import Interrupted

POLL_SECONDS = 5


class ResponsiveSession(Session):
    """The SDK's Session, which looks every few seconds in place of each 30, and in which Ctrl-C gets through.

    The SDK's fit returns in a ``finally``, which swallows a KeyboardInterrupt.
    """

    def train(self, **request):
        with _interruptible():
            return super().train(**request)

    def wait_for_endpoint(self, endpoint, poll=None, live_logging=False):
        return super().wait_for_endpoint(endpoint, POLL_SECONDS, live_logging)

    def wait_for_transform_job(self, job, poll=None):
        return super().wait_for_transform_job(job, POLL_SECONDS)

    def logs_for_job(self, job_name, wait=False, poll=None, log_type="All", timeout=None):
        with _interruptible():
            return super().logs_for_job(job_name, wait, POLL_SECONDS, log_type, timeout)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None

"""An endpoint on this machine for as long as it is needed."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

from fastmaker.jobs import backends, instance_types
from fastmaker.jobs.backends import captures, pytorch


@contextlib.contextmanager
def running(
    archive: Path,
    env: dict[str, str],
    image: str | None = None,
    capture: str | None = None,
    instance_type: str = instance_types.LOCAL,
) -> Iterator[tuple[object, str]]:
    """Deploy a model.tar.gz with the environment variables `env`, yield the SDK's session and the endpoint's name.

    `image` is in place of the backend's; `capture` is a URI below which all requests are captured; `instance_type` is
    one of this machine's. Afterwards the endpoint, its configuration and its model are deleted.
    """
    backend = backends.Local()
    model = pytorch.pytorch_model(f"file://{archive}", env=env, backend=backend, image=image)
    with contextlib.redirect_stdout(io.StringIO()):  # the SDK prints a dash at each poll
        more = captures.configuration(100, capture, backend.session) if capture else {}
        predictor = model.deploy(1, instance_type, **more)
    try:
        yield backend.session, predictor.endpoint_name
    finally:
        predictor.delete_model()
        predictor.delete_endpoint()

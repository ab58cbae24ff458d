"""S3 on this machine, in memory: ``python -m jobs.local.s3`` until Ctrl-C, or `serve` within a program.

It is moto's server, https://docs.getmoto.org/en/latest/docs/server_mode.html, and speaks S3's protocol over HTTP.
"""

import argparse
import contextlib
import logging
import os
import threading
from collections.abc import Iterator

# What clients sign with; the server takes any.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m jobs.local.s3",
        description="S3 on this machine, in memory, until Ctrl-C. What is in it is lost then.",
    )
    parser.add_argument("--port", type=int, default=9090, help="(default: %(default)s)")
    return parser.parse_args(argv)


def main(args) -> None:
    with serve(args.port) as url:
        print("\n".join(f"export {name}={value}" for name, value in environment(url).items()), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


@contextlib.contextmanager
def serve(port: int = 0) -> Iterator[str]:
    """An S3 server on loopback while the context lasts, at a free port unless one is given; yields its URL.

    Within the context this process and what it starts use it (AWS_ENDPOINT_URL_S3).
    """
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it has a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    before = {name: os.environ.get(name) for name in environment(url)}
    os.environ.update(environment(url))
    try:
        yield url
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def environment(url: str) -> dict[str, str]:
    """The variables by which boto3 uses the server at `url`."""
    region = os.environ.get("AWS_DEFAULT_REGION", "us-west-2")
    return {"AWS_ENDPOINT_URL_S3": url, "AWS_DEFAULT_REGION": region, **CREDENTIALS}


if __name__ == "__main__":
    main(parse_args())

"""S3 on this machine, in memory: ``fastmaker s3`` until Ctrl-C, or `serve` within a program.

It is moto's server, https://docs.getmoto.org/en/latest/docs/server_mode.html, and speaks S3's protocol over HTTP.
"""

import argparse
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from urllib.request import ProxyHandler, Request, build_opener

# What clients sign with; the server takes any.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="fastmaker s3",
        description="S3 on this machine, in memory, until Ctrl-C. Its objects are lost then.",
    )
    parser.add_argument("--port", type=int, default=9090, help="(default: %(default)s)")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command's arguments."""
    return get_parser().parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, after printing the variables by which clients find the server."""
    with serve(args.port) as url:
        print("\n".join(f"export {name}={value}" for name, value in environment(url).items()), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


@contextlib.contextmanager
def serve(port: int = 0) -> Iterator[str]:
    """Run an empty S3 server on loopback while the context lasts, at a free port unless one is given; yield its URL.

    Sessions and clients that are made within the context use it, in this process and in those that it starts.
    """
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it has a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    # The servers of one process share their buckets.
    build_opener(ProxyHandler({})).open(Request(f"{url}/moto-api/reset", method="POST")).close()
    ours = environment(url)
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield url
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def environment(url: str) -> dict[str, str]:
    """Return the variables by which boto3 uses the server at `url`."""
    region = os.environ.get("AWS_DEFAULT_REGION", "us-west-2")
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
    return {"AWS_ENDPOINT_URL_S3": url, "AWS_DEFAULT_REGION": region, "NO_PROXY": direct, **CREDENTIALS}


if __name__ == "__main__":
    sys.exit(main(parse_args()))

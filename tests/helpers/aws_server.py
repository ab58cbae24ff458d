"""An AWS for tests: moto's server, and before it one that records, lets operations fail, and has endpoints that answer.

moto has no quotas of SageMaker, takes any credentials and throttles nobody; its endpoints give answers that were put
there before. Here what fails does so with the status and the error that AWS documents, and an endpoint is a container
of local mode. AWS on this machine, which the other tests have, would run the jobs that are only looked at here, and
refuses what it cannot run: serverless and capturing endpoints, policies that scale.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import urllib3
from moto.server import ThreadedMotoServer

from helpers import PATIENCE

READS = ("Describe", "Get", "Head", "List", "BatchGet")
INVOCATION = re.compile(r"/endpoints/([^/]+)/invocations")


class AwsServer:
    """`url` is what AWS_ENDPOINT_URL takes."""

    def __init__(self):
        self._moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._moto.start()
        self.moto_url = "http://{}:{}".format(*self._moto.get_host_and_port())
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.reset()

    def reset(self) -> None:
        self.requests: list[tuple[str, dict]] = []  # (operation, parameters) of what is no S3 object
        self.failures: dict[str, tuple[int, str, str]] = {}  # operation -> status, code, message
        self.quotas: dict[str, float] = {}
        self.containers: dict[str, str] = {}  # endpoint -> the URL of its container
        urllib3.request("POST", f"{self.moto_url}/moto-api/reset")

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._moto.stop()

    def sent(self, operation: str) -> list[dict]:
        return [parameters for name, parameters in self.requests if name == operation]

    def expect_async(self, answers: list[dict]) -> None:
        """What moto answers to the next requests of asynchronous endpoints."""
        url = f"{self.moto_url}/moto-api/static/sagemaker/async-endpoint-results"
        urllib3.request("POST", url, json={"results": answers})

    def changes(self) -> list[str]:
        """The operations that were sent and do more than look."""
        return [name for name, _ in self.requests if not name.startswith(READS)]

    def _handler(self):
        aws = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, answer = aws._answer(self.command, self.path, dict(self.headers), body)
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(answer))
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def log_message(self, *_):
                pass

        return Handler

    def _answer(self, method: str, path: str, headers: dict, body: bytes) -> tuple[int, dict, bytes]:
        operation, parameters = _operation(method, path, headers, body)
        self.requests.append((operation, parameters))
        if operation in self.failures:
            return _failure(*self.failures[operation], headers)
        if operation == "ListServiceQuotas":
            quotas = [{"QuotaName": name, "Value": value} for name, value in self.quotas.items()]
            return 200, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps({"Quotas": quotas}).encode()
        url = self.moto_url + path
        if (found := INVOCATION.match(path)) and found[1] in self.containers:
            url = self.containers[found[1]] + "/invocations"
        passed_on = {"redirect": False, "decode_content": False, "timeout": PATIENCE}  # urllib3's own is 3 s
        answer = urllib3.request(method, url, body=body, headers=headers, **passed_on)
        return answer.status, dict(answer.headers), answer.data


def _operation(method: str, path: str, headers: dict, body: bytes) -> tuple[str, dict]:
    """The operation's name, as far as it can be told from a request, and its parameters."""
    if target := headers.get("X-Amz-Target"):  # JSON protocols
        return target.rpartition(".")[2], json.loads(body or b"{}")
    if b"Action=" in body[:2000] and "urlencoded" in headers.get("Content-Type", ""):  # query protocols
        parameters = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        return parameters["Action"], parameters
    path, _, query = path.partition("?")
    place = "Bucket" if path.strip("/").count("/") == 0 else "Object"
    verbs = {"GET": "Get", "HEAD": "Head", "PUT": "Put", "DELETE": "Delete", "POST": "Post"}
    return f"{verbs[method]}{place}", {"path": path, "query": query}


def _failure(status: int, code: str, message: str, headers: dict) -> tuple[int, dict, bytes]:
    """The error in the form of the protocol that the request speaks."""
    if "X-Amz-Target" in headers:
        answer = json.dumps({"__type": code, "message": message})
        return status, {"Content-Type": "application/x-amz-json-1.1", "x-amzn-ErrorType": code}, answer.encode()
    error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
    answer = f"<ErrorResponse>{error}<RequestId>1</RequestId></ErrorResponse>"
    return status, {"Content-Type": "text/xml"}, answer.encode()

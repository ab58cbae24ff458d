"""Client of a Triton server with a model repository of `fastmaker package triton`, over gRPC or HTTP."""

import http.client
import json
import re
import threading
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from fastmaker.jobs.clients.errors import InvalidRequest
from fastmaker.jobs.packaging.triton import INFO, import_tritonclient

DEFAULT_PORTS = {"grpc": 8001, "http": 8000, "grpcs": 8001, "https": 8000}  # grpcs and https use TLS
OUTPUTS = {"segmentation": "mask", "regression": "values", "points": "points"}  # of other tasks: probabilities
TIMEOUT = 60  # seconds for one response
# Statuses of gRPC and HTTP for a request that the server rejects, and for a server that cannot be reached.
INVALID_REQUEST = ("StatusCode.INVALID_ARGUMENT", "400")
UNAVAILABLE = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED", "503")
# Before the reason, Triton's message names the request and the ensemble.
PREFIX = re.compile(r"^(\[request id: [^\]]*\] )?(in ensemble '[^']*', )?")


class TritonError(OSError):
    """The server cannot be reached, fails or lacks the model; the message is one line."""


class Model:
    """A model that is ready on the server at `url`, safe to use from many threads. Raises TritonError or ValueError."""

    def __init__(self, url: str, name: str | None = None):
        self._server = _Server(url)
        self.name = name or self._only_model()
        self._check_ready()
        config = self._server.config(self.name)
        try:
            self.info = json.loads(config["parameters"][INFO]["string_value"])
        except (KeyError, ValueError):
            raise ValueError(
                f"--model {self.name}: its configuration has no parameter {INFO}: was it made by `fastmaker package`?"
            ) from None
        (self._input,) = (tensor["name"] for tensor in config["input"])

    def answer(self, data: bytes, mask_size: str | None = None):
        """Return the answer for an encoded image, one of `fastmaker.answers`; `mask_size` is one of masks.SIZES.

        Raises InvalidRequest for an image that cannot be predicted, TritonError if the server fails.
        """
        from fastmaker import answers, masks, preprocess

        info: Any = SimpleNamespace(**{"steps": (), "names": ()} | self.info)  # as a ModelInfo, which needs torch
        name = OUTPUTS.get(info.task, "probabilities")
        try:
            output = self._server.infer(self.name, self._input, self._tensor(data), name)[0]
            size = preprocess.decode(data).size
            if name == "mask" and (mask_size or info.mask_size) == "original":
                output = masks.resize_to_original(output, size, info.resize_method, info.void_code, info.steps)
            return answers.of(output, size, info)
        except preprocess.ImageError as error:
            raise InvalidRequest(str(error)) from None

    def _tensor(self, data: bytes) -> np.ndarray:
        """Return the model's input, of one image: its bytes, or its pixels if the model has no preprocessing."""
        from fastmaker import image_steps, preprocess

        if self._input == "image_bytes":
            return np.array([[data]], dtype=object)
        return image_steps.to_array(preprocess.decode(data), self.info)[None]

    def _only_model(self) -> str:
        """Return the name of the only model that is ready, ignoring the models of ensembles. Raises ValueError."""
        ready = [name for name, state, _ in self._server.index() if state == "READY"]
        steps = {step for name in ready for step in _steps(self._server.config(name))}
        found = [name for name in ready if name not in steps]
        if len(found) != 1:
            raise ValueError(f"--model NAME is needed: ready are {', '.join(found) or 'none'}")
        return found[0]

    def _check_ready(self) -> None:
        if self._server.is_ready(self.name):
            return
        index = self._server.index()
        for name, state, reason in index:
            if name == self.name:
                raise TritonError(f"--model {name} is not ready on {self._server.url}: {state} {reason}".rstrip())
        names = ", ".join(name for name, _, _ in index) or "none"
        raise ValueError(f"--model {self.name}: there is no such model on {self._server.url}; its models are {names}")


class _Server:
    """The requests of this module, the same over gRPC and HTTP; each thread has its own client."""

    def __init__(self, url: str):
        scheme, address = _split_url(url)
        self.url = url
        self._is_grpc = scheme.startswith("grpc")
        self._library = import_tritonclient("grpc" if self._is_grpc else "http")
        self._address, self._ssl = address, scheme.endswith("s")
        self._thread = threading.local()

    def is_ready(self, model: str) -> bool:
        return self._call("is_model_ready", model)

    def config(self, model: str) -> dict:
        """Return the configuration of a model as JSON's types."""
        if self._is_grpc:
            return self._call("get_model_config", model, as_json=True)["config"]
        return self._call("get_model_config", model)

    def index(self) -> list[tuple[str, str, str]]:
        """Return (name, state, reason) of each model of the repository."""
        if self._is_grpc:
            models = self._call("get_model_repository_index", as_json=True).get("models", [])
        else:
            models = self._call("get_model_repository_index")
        return [(model["name"], model.get("state", "UNLOADED"), model.get("reason", "")) for model in models]

    def infer(self, model: str, name: str, value: np.ndarray, output: str) -> np.ndarray:
        """Return the `output` of the model for the input `name`. Raises InvalidRequest or TritonError."""
        from tritonclient.utils import np_to_triton_dtype

        tensor = self._library.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value)
        result = self._call("infer", model, [tensor], outputs=[self._library.InferRequestedOutput(output)])
        return result.as_numpy(output)

    def _call(self, method: str, *arguments, **options):
        from tritonclient.utils import InferenceServerException

        if self._is_grpc:
            options["client_timeout"] = TIMEOUT
        try:
            return getattr(self._client(), method)(*arguments, **options)
        except InferenceServerException as error:
            line = PREFIX.sub("", " ".join((error.message() or "no reason given").split()))
            if error.status() in INVALID_REQUEST:
                raise InvalidRequest(line) from None
            failure = "no Triton server answers at" if error.status() in UNAVAILABLE else "Triton fails at"
            raise TritonError(f"{failure} {self.url}: {line}") from None
        except (OSError, http.client.HTTPException) as error:
            raise TritonError(f"no Triton server answers at {self.url}: {error or type(error).__name__}") from None

    def _client(self):
        if not hasattr(self._thread, "client"):
            # Over HTTP the connection has the timeout; over gRPC each call has it.
            timeouts = {} if self._is_grpc else {"connection_timeout": TIMEOUT, "network_timeout": TIMEOUT}
            self._thread.client = self._library.InferenceServerClient(self._address, ssl=self._ssl, **timeouts)
        return self._thread.client


def _split_url(url: str) -> tuple[str, str]:
    """Return the scheme (by default grpc) and the address with its port and path. Raises ValueError."""
    parts = urlsplit(url if "://" in url else f"grpc://{url}")
    try:
        default = DEFAULT_PORTS[parts.scheme]
        port = parts.port or default
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"--triton {url!r}: expected grpc://HOST:PORT, HOST:PORT or http://HOST:PORT") from None
    return parts.scheme, f"{host}:{port}{parts.path.rstrip('/')}"


def _steps(config: dict) -> list[str]:
    """Return the names of an ensemble's models; of any other model none."""
    return [step["model_name"] for step in config.get("ensemble_scheduling", {}).get("step", [])]

"""Requests to a server of a bundle: one of each Content-Type, and what is answered."""

import base64
import io
import json

import numpy as np
import urllib3
from PIL import Image

from helpers import PATIENCE


def ask(url, body, kind, accept="*/*"):
    """The answer's status, bytes and media type."""
    answer = urllib3.request(
        "POST", url, body=body, headers={"Content-Type": kind, "Accept": accept}, retries=False, timeout=PATIENCE
    )
    return answer.status, answer.data, answer.headers.get("Content-Type")


def bodies_of(pngs):
    """The same images in each Content-Type."""
    stream = io.BytesIO()
    np.save(stream, np.stack([np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in pngs]))
    objects = [{"b64": base64.b64encode(png).decode()} for png in pngs]
    return {
        "image/png": pngs[0],
        "application/x-npy": stream.getvalue(),
        "application/json": json.dumps({"instances": objects}).encode(),
        "application/jsonlines": "\n".join(map(json.dumps, objects)).encode(),
    }


def asked_for(pngs, accepts):
    """Each Content-Type, and for an image each Accept: (body, type, accept)."""
    bodies = bodies_of(pngs)
    return [(body, kind, "application/json") for kind, body in bodies.items()] + [
        (bodies["image/png"], "image/png", accept) for accept in accepts
    ]

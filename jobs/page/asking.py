"""One question to a model, and all that the page shows of its answer."""

import io
import json
import time
from dataclasses import dataclass
from typing import Any

from PIL import Image

from fastmaker import masks, preprocess
from fastmaker.jobs.cli import pictures, redaction
from fastmaker.jobs.clients.errors import InvalidRequest
from fastmaker.jobs.clients.sources import PNG, Source

WIDEST = 1280  # pixels of a picture on the page


@dataclass(frozen=True)
class Asked:
    """An image that was sent, as its bytes were, with the answer or the error."""

    name: str
    image: bytes
    raw: bytes = b""  # the answer as it came
    seconds: float = 0.0
    error: str = ""  # in the words of what was asked
    mask: bytes = b""  # of a segmentation: the mask as a PNG with a palette, as large as the image if that is possible
    note: str = ""  # why the mask does not lie on the image

    @property
    def answer(self) -> dict[str, Any]:
        """The answer; without one the `error` alone."""
        return {"error": self.error} if self.error else json.loads(self.raw)

    @property
    def task(self) -> str:
        """The task of the model, by its answer; "" without one."""
        return task_of(self.answer)


def task_of(answer: dict[str, Any]) -> str:
    """Return the task that an answer is of, one of fastmaker.tasks.TASKS, or "" if it is an error."""
    keys = {"label": "classification", "labels": "multilabel", "values": "regression", "points": "points"}
    keys |= {"base64_prediction": "segmentation"}
    return next((task for key, task in keys.items() if key in answer), "")


def ask(source: Source, name: str, image: bytes, with_mask: bool = True) -> Asked:
    """Ask about an image, and of a segmentation a second time, for the mask that is drawn. Errors are in the answer."""
    started = time.perf_counter()
    try:
        raw = source.ask(image)
        seconds = time.perf_counter() - started
    except Exception as error:  # whatever it is, the page goes on and says it
        return Asked(name, image, seconds=time.perf_counter() - started, error=reason(error))
    if not with_mask or task_of(json.loads(raw)) != "segmentation":
        return Asked(name, image, raw, seconds)
    mask, note = _mask(source, image)
    return Asked(name, image, raw, seconds, mask=mask, note=note)


def reason(error: Exception) -> str:
    """Return an error in one line, with the status of an endpoint's, and without account numbers."""
    line = redaction.redact(" ".join(str(error).split())) or type(error).__name__
    return f"{error.status}: {line}" if isinstance(error, InvalidRequest) and error.status else line


def _mask(source: Source, image: bytes) -> tuple[bytes, str]:
    """Return the mask that lies on the image; else the model's, and why."""
    try:
        return source.ask(image, PNG, "original"), ""
    except InvalidRequest as refused:
        try:
            return source.ask(image, PNG, "model"), f"The mask does not lie on the image: {reason(refused)}"
        except InvalidRequest as error:
            return b"", f"There is no mask to draw: {reason(error)}"


def draw(asked: Asked, opacity: float = 0.5) -> Image.Image | None:
    """Return the image as the model was given it, with points and the mask on it; None if it is no image.

    It has WIDEST pixels at most in width and height; small images are enlarged. Where the mask cannot lie on the image
    it stands beside it.
    """
    try:
        image = preprocess.decode(asked.image).convert("RGB")
    except (ValueError, OSError):
        return None
    drawn = pictures.with_points(image, [] if asked.error else asked.answer.get("points", []))
    drawn.info.clear()  # the transparency of another mode, with which it could not be saved
    drawn.thumbnail((WIDEST, WIDEST))
    drawn = pictures.enlarged(drawn)
    if not asked.mask:
        return drawn
    mask = Image.open(io.BytesIO(asked.mask))
    return pictures.beside(drawn, mask) if asked.note else pictures.with_mask(drawn, mask, opacity)


def legend(asked: Asked) -> list[tuple[str, tuple[int, int, int], float]]:
    """Return the classes of a mask: name, colour, and share of the pixels, the largest first."""
    if asked.task != "segmentation":
        return []
    found = sorted(asked.answer["classes"], key=lambda one: -one["pixels"])
    total = sum(one["pixels"] for one in found)
    names = {one["index"]: one["label"] for one in found}
    colours: Any = masks.palette([names.get(index, "") for index in range(max(names) + 1)])
    if asked.mask and (palette := Image.open(io.BytesIO(asked.mask)).getpalette()):
        colours = [tuple(palette[i : i + 3]) for i in range(0, len(palette), 3)]
    return [(one["label"], tuple(map(int, colours[one["index"]])), one["pixels"] / total) for one in found]

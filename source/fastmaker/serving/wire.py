"""Content types: request bodies -> images (DECODERS by Content-Type), answers -> bytes (ENCODERS by Accept).

Bodies and headers are those of SageMaker's InvokeEndpoint
(https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html). No server is needed.
"""

import base64
import binascii
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from fastmaker import masks, preprocess
from fastmaker.answers import Answer as ImageAnswer
from fastmaker.answers import Mask
from fastmaker.serving import limits
from fastmaker.serving.errors import BadRequest, InternalError, NotAcceptable, UnsupportedContentType

CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"  # InvokeEndpoint's CustomAttributes
TORCHSERVE_MAX_RESPONSE_SIZE = 6_553_500  # bytes, its default
# Types that say nothing of the body. curl gives them: none for -T, that of forms for --data-binary, the last for -F.
UNTYPED = ("", "application/octet-stream", "application/x-www-form-urlencoded", "multipart/form-data")


@dataclass(frozen=True)
class Images:
    """The images of a request."""

    images: list[Image.Image]
    single: bool  # whether the request is for one image rather than for a list
    mask_size: str | None = None  # one of masks.SIZES, if the request names one


@dataclass(frozen=True)
class Answer:
    """The answers for the images of a request, all of the same class."""

    predictions: Sequence[ImageAnswer]
    single: bool  # whether to answer with one object rather than with a list


def body_of(parts: Mapping[str, Any]) -> bytes | str | None:
    """Return the body of a request, in the form in which TorchServe passes it on: parts by their names.

    Of a form, which ``curl -F data=@file`` sends, that is its one part. Raises BadRequest if it has several.
    """
    if "body" in parts or not parts:
        return parts.get("body")
    if len(parts) > 1:
        raise BadRequest(f"the form has {len(parts)} parts; expected one, which holds an image")
    (body,) = parts.values()
    return body


def size_of(parts: Mapping[str, Any]) -> int:
    """Return the length of the parts of a request, in the form that `body_of` takes."""
    return sum(len(part) for part in parts.values() if isinstance(part, (bytes, bytearray, str)))


def decode(body: bytes | str | None, content_type: str | None, attributes: str | None = None) -> Images:
    """Return the images in a request body. Raises UnsupportedContentType or BadRequest.

    A type of UNTYPED is for an image. `attributes` is the request's header CUSTOM_ATTRIBUTES, in which mask_size=model
    or mask_size=original is read.
    """
    mask_size = _mask_size(attributes)
    media_type = (content_type or "").split(";")[0].strip().lower()
    decoder = DECODERS.get(media_type)
    if decoder is None and not (media_type.startswith("image/") or media_type in UNTYPED):
        raise _unsupported(media_type)
    if not body:
        raise BadRequest(f"the body is empty; expected {media_type or 'an image'}")
    if isinstance(body, str):  # a server that decoded text already
        body = body.encode("utf-8")
    try:
        return replace((decoder or _decode_image)(bytes(body)), mask_size=mask_size)
    except preprocess.ImageError as error:
        if media_type in UNTYPED and not preprocess.is_image(bytes(body)):
            raise _unsupported(media_type) from None
        raise BadRequest(str(error)) from None


def _unsupported(media_type: str) -> UnsupportedContentType:
    named = repr(media_type) if media_type else "missing"
    return UnsupportedContentType(f"Content-Type is {named}; accepted: image/*, {', '.join(DECODERS)}")


def encode(answer: Answer, accept: str | None) -> tuple[bytes, str]:
    """Return the answer's bytes in the most wanted media type of the Accept header that can hold it, and that type.

    Quality values are honoured; ``*/*`` or no header gives application/json. Raises NotAcceptable, with the reason of
    the most wanted type that is known; InternalError for numbers that JSON cannot hold.
    """
    encoders = MASK_ENCODERS if isinstance(answer.predictions[0], Mask) else ENCODERS
    first_error = None
    for media_type in _accepted(accept):
        if media_type in ("*/*", "application/*"):
            media_type = "application/json"
        elif media_type == "text/*":
            media_type = "text/csv"
        elif media_type == "image/*":
            media_type = "image/png"
        if media_type in encoders:
            try:
                return encoders[media_type](answer), media_type
            except NotAcceptable as error:
                first_error = first_error or error
    raise first_error or NotAcceptable(f"Accept is {accept!r}; this model answers with {', '.join(encoders)}")


def header(headers: Mapping, name: str) -> str:
    """Return the value of the header `name`, given in lower case, or "". Header names match in any case.

    TorchServe adds values that are not text, for each part of the body; they are ignored.
    """
    return ",".join(value for key, value in headers.items() if key.lower() == name and isinstance(value, str))


def check_response_size(body: bytes, media_type: str) -> tuple[bytes, str]:
    """Return the arguments if TorchServe can send a body of this size; it answers 500 without a reason otherwise.

    Raises NotAcceptable.
    """
    limit = int(os.environ.get("TS_MAX_RESPONSE_SIZE", TORCHSERVE_MAX_RESPONSE_SIZE))
    if len(body) > limit:
        raise NotAcceptable(
            f"as {media_type} the answer has {len(body):,} bytes, and TS_MAX_RESPONSE_SIZE is {limit:,}; accept a"
            " smaller form, or raise it"
        )
    return body, media_type


def _mask_size(attributes: str | None) -> str | None:
    # Other attributes are not ours, and are ignored.
    found = re.search(r"(?<![\w-])mask_size[ \t]*=[ \t]*([^\s,;]*)", attributes or "", re.IGNORECASE)
    if found and found[1] not in masks.SIZES:
        raise BadRequest(
            f"mask_size is {found[1]!r} in the custom attributes; expected one of {', '.join(masks.SIZES)}"
        )
    return found and found[1]


def _accepted(accept: str | None) -> list[str]:
    """Return the media types of an Accept header, the most wanted first (RFC 9110, section 12.5.1)."""
    weighted = []
    for choice in (accept or "*/*").split(","):
        media_type, *parameters = (part.strip().lower() for part in choice.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weighted.append((float(quality), media_type))
        except ValueError:
            weighted.append((0.0, media_type))
    return [media_type for quality, media_type in sorted(weighted, key=lambda pair: -pair[0]) if quality > 0]


def _decode_image(body: bytes) -> Images:
    return Images([preprocess.decode(body)], single=True)


def _decode_npy(body: bytes) -> Images:
    array = _read_npy(body)
    if array.ndim == 4:
        if not len(array):
            raise BadRequest(f"the array holds no images: its shape is {array.shape}")
        limits.check_count(len(array))
        return Images([preprocess.image_from_array(image) for image in array], single=False)
    return Images([preprocess.image_from_array(array)], single=True)


def _read_npy(body: bytes) -> np.ndarray:
    """Return the uint8 array of a .npy body. Its header is checked before memory is allocated; nothing is unpickled."""
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read_header(stream)
    except Exception as error:  # NumPy parses the header as Python, which fails in many ways
        raise BadRequest(f"the body is not a .npy array: {error or type(error).__name__}") from None
    if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 4 or 0 in shape[1:]:
        raise BadRequest(f"expected a uint8 array (H, W), (H, W, 3) or (N, H, W, 3), got the shape {str(shape)[:80]}")
    if dtype != np.uint8:
        raise BadRequest(f"expected a uint8 array (H, W), (H, W, 3) or (N, H, W, 3), got {dtype} {shape}")
    data = body[stream.tell() :]
    if int(np.prod(shape, dtype=object)) != len(data):
        raise BadRequest(f"the array's shape {shape} does not fit the {len(data):,} bytes that follow its header")
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran_order else "C")


def _decode_json(body: bytes) -> Images:
    instances = _parse_json(body, "the body")
    instances = instances.get("instances") if isinstance(instances, dict) else None
    if not isinstance(instances, list) or not instances:
        raise BadRequest('expected {"instances": [{"b64": "..."}, ...]} with at least one instance')
    limits.check_count(len(instances))
    return _from_objects((f"instance {i}", item) for i, item in enumerate(limits.in_time(instances)))


def _decode_jsonlines(body: bytes) -> Images:
    lines = [(f"line {i}", line) for i, line in enumerate(body.splitlines(), 1) if line.strip()]
    if not lines:
        raise BadRequest('expected one {"b64": "..."} a line, got no line')
    limits.check_count(len(lines))
    return _from_objects((where, _parse_json(line, where)) for where, line in limits.in_time(lines))


def _from_objects(objects: Iterable[tuple[str, object]]) -> Images:
    """Return the images of (where, object) pairs. In all they may have as many pixels as a single image."""
    images, pixels = [], 0
    for where, item in objects:
        images.append(_from_base64(item, where))
        pixels += images[-1].width * images[-1].height
        if pixels > preprocess.max_pixels():
            raise BadRequest(f"{where}: the images have more than {preprocess.max_pixels():,} pixels together")
    return Images(images, single=False)


def _parse_json(text: bytes, where: str) -> object:
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{where} is not JSON: {error}") from None


def _from_base64(item: object, where: str) -> Image.Image:
    if not isinstance(item, dict) or not isinstance(item.get("b64"), str):
        raise BadRequest(f'{where}: expected {{"b64": "<a base64 encoded image>"}}')
    try:
        text = item["b64"].encode("ascii").translate(None, b" \t\r\n")  # many encoders break lines
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{where}: not base64: {error}") from None
    try:
        return preprocess.decode(data)
    except preprocess.ImageError as error:
        raise BadRequest(f"{where}: {error}") from None


def _encode_json(answer: Answer) -> bytes:
    objects = [prediction.as_object() for prediction in answer.predictions]
    return _json(objects[0] if answer.single else objects)


def _encode_jsonlines(answer: Answer) -> bytes:
    return b"".join(_json(prediction.as_line()) + b"\n" for prediction in answer.predictions)


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except ValueError:  # JSON has no NaN
        raise InternalError("the model's numbers are not finite; did its training diverge?") from None


def _encode_csv(answer: Answer) -> bytes:
    """Return a line for each image, without a header: the `as_row` of its answer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(prediction.as_row() for prediction in answer.predictions)
    return text.getvalue().encode("utf-8")


def _encode_npy(answer: Answer) -> bytes:
    """Return the `array` of the answer, float32, of a mask uint8 (H, W); for a list of images with a first axis N."""
    arrays = [prediction.array for prediction in answer.predictions]
    if len({array.shape for array in arrays}) > 1:
        raise NotAcceptable("the masks have different sizes, which one array cannot hold; accept application/json")
    stream = io.BytesIO()
    np.save(stream, arrays[0] if answer.single else np.stack(arrays), allow_pickle=False)
    return stream.getvalue()


def _encode_png(answer: Answer) -> bytes:
    mask = answer.predictions[0]
    if len(answer.predictions) > 1 or not isinstance(mask, Mask):
        raise NotAcceptable("one PNG holds one mask, and there are several; accept application/json")
    return mask.as_png()


DECODERS: dict[str, Callable[[bytes], Images]] = {
    "application/x-image": _decode_image,
    "application/x-npy": _decode_npy,
    "application/json": _decode_json,
    "application/jsonlines": _decode_jsonlines,
}
ENCODERS: dict[str, Callable[[Answer], bytes]] = {
    "application/json": _encode_json,
    "application/jsonlines": _encode_jsonlines,
    "text/csv": _encode_csv,
    "application/x-npy": _encode_npy,
}
MASK_ENCODERS = ENCODERS | {"image/png": _encode_png}

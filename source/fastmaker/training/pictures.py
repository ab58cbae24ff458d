"""Generated images in the modes, sizes and orientations that photos come in, encoded.

`parity` compares a Learner with its bundle on them.
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

SIZES = {"landscape": (401, 307), "portrait": (203, 350), "small": (41, 29), "wide": (520, 90), "square": (224, 224)}
ORIENTATION = 0x0112  # EXIF's tag
ROTATED = 6


def generate(size: tuple[int, int] | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield names and encoded images; all of `size` (height, width) if that is given."""
    sizes = dict.fromkeys(("landscape", "portrait"), (size[1], size[0])) if size else SIZES
    for name, of in sizes.items():
        yield name, plain(of, seed=len(name))
    base = (size[1], size[0]) if size else (233, 177)
    image = _picture(base, 3)
    yield "RGB JPEG", _encode(image.convert("RGB"), "JPEG", quality=92)
    exif = Image.Exif()
    exif[ORIENTATION] = ROTATED
    yield "EXIF orientation", _encode(image.convert("RGB"), "JPEG", exif=exif)
    for mode in ("L", "RGBA", "LA", "1"):
        yield mode, _encode(image.convert("RGB").convert(mode) if mode == "1" else image.convert(mode), "PNG")
    yield "P", _encode(image.convert("RGB").convert("P"), "PNG", transparency=3)
    yield "CMYK", _encode(image.convert("RGB").convert("CMYK"), "JPEG")
    yield "I;16", _encode(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 3), "PNG")


def plain(size: tuple[int, int], seed: int = 0) -> bytes:
    """Return an RGB image of `size` (width, height) as PNG."""
    return _encode(_picture(size, seed).convert("RGB"), "PNG")


def _picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Return soft spots of colour with noise and some transparency, RGBA."""
    numbers = np.random.default_rng(seed)
    spots = Image.fromarray(numbers.integers(0, 200, (7, 9, 4), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = numbers.integers(0, 56, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(np.minimum(np.asarray(spots), 199) + noise)


def _encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()

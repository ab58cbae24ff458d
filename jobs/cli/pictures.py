"""Images with their answers, as cards on a sheet."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps


def captioned(image: Image.Image, caption: str, size: int = 224) -> Image.Image:
    """Return a square of `size` pixels with the image in it and the caption below."""
    band = 28
    card = Image.new("RGB", (size, size + band), "white")
    image = image.convert("RGB")
    scale = min(size / image.width, size / image.height)
    shape = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    card.paste(image.resize(shape, resample), ((size - shape[0]) // 2, (size - shape[1]) // 2))
    draw, font = ImageDraw.Draw(card), ImageFont.load_default(15)
    while caption and draw.textlength(caption, font) > size - 8:
        caption = caption[:-2] + "…"
    draw.text((size / 2, size + band / 2), caption, "black", font, anchor="mm")
    return card


def enlarged(image: Image.Image, least: int = 320) -> Image.Image:
    """Return a small image so many times as large that its longer side has `least` pixels, by the nearest pixel."""
    times = -(-least // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST) if times > 1 else image


def with_points(image: Image.Image, points: Sequence[Sequence[float]]) -> Image.Image:
    """Return an RGB copy of the image with a red circle around each point, (x, y) in its pixels."""
    marked = image.convert("RGB")
    draw, radius = ImageDraw.Draw(marked), max(2, min(image.size) / 50)
    for x, y in points:
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, outline="red", width=max(1, round(radius / 3)))
    return marked


def with_mask(image: Image.Image, mask: Image.Image, opacity: float) -> Image.Image:
    """Return an RGB copy of the image under its mask, whose colours cover it by `opacity`, 0 to 1.

    The mask is stretched to the image, by the nearest pixel. Black covers nothing: it is void, or a background.
    """
    colours = mask.convert("RGB").resize(image.size, Image.Resampling.NEAREST)
    covered = Image.fromarray(np.asarray(colours).any(axis=2))
    own = image.convert("RGB")
    return Image.composite(Image.blend(own, colours, opacity), own, covered)


def with_heat(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Return a gray copy of the image under a map of numbers of 0 to 1, (H, W) as the image: the higher the redder."""
    gray = ImageOps.grayscale(image.convert("RGB")).convert("RGB")
    strength = Image.fromarray((heat * 190).clip(0, 255).astype(np.uint8))
    return Image.composite(Image.new("RGB", image.size, "#ff2a00"), gray, strength)


def beside(image: Image.Image, other: Image.Image) -> Image.Image:
    """Return the image with another one on its right, scaled to the same height."""
    width = max(1, round(other.width * image.height / other.height))
    both = Image.new("RGB", (image.width + width, image.height), "white")
    both.paste(image, (0, 0))
    both.paste(other.convert("RGB").resize((width, image.height), Image.Resampling.NEAREST), (image.width, 0))
    return both


def contact_sheet(cards: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return a picture of the cards, all of one size, row by row."""
    width, height = cards[0].size
    rows = -(-len(cards) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, card in enumerate(cards):
        sheet.paste(card, (i % columns * width, i // columns * height))
    return sheet

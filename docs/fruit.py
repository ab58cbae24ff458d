"""Generated photos of fruit on a wooden table, with masks: what the pictures of the documentation are made of."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

KINDS = ("apple", "banana", "lemon", "orange", "plum")
TABLE = "background"  # what a mask's 0 stands for
COLOURS = {
    "apple": (176, 24, 32),
    "banana": (236, 196, 52),
    "lemon": (246, 226, 60),
    "orange": (240, 130, 24),
    "plum": (84, 40, 104),
}
FINER = 2  # drawn so many times as large, for smooth edges
LIGHT = np.array([-0.45, -0.55, 0.7])
SCENES, PHOTOS, HELD_OUT = 48, 60, 6  # PHOTOS of each kind


def write_photos(folder: Path) -> None:
    """Write photos of one fruit each below `folder`: train/<kind>/ and held-out/<kind>/."""
    random = np.random.default_rng(5)
    for kind in KINDS:
        for number in range(PHOTOS + HELD_OUT):
            part = folder / ("train" if number < PHOTOS else "held-out") / kind
            part.mkdir(parents=True, exist_ok=True)
            place = (random.uniform(0.4, 0.6), random.uniform(0.4, 0.6), random.uniform(0.26, 0.36))
            photo, _ = _scene((160, 160), [(kind, *place)], random)
            photo.save(part / f"{kind}-{number:02}.jpg", quality=92)


def write_scenes(folder: Path) -> None:
    """Write photos of several fruits, images/, their masks, labels/, and the names of the masks' numbers, codes.txt."""
    random = np.random.default_rng(6)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    (folder / "codes.txt").write_text("\n".join((TABLE, *KINDS)))
    for number in range(SCENES):
        places = [(0.2, 0.3), (0.52, 0.32), (0.82, 0.3), (0.35, 0.72), (0.7, 0.72)]
        fruit = [
            (str(random.choice(KINDS)), *(place + random.normal(0, 0.02, 2)), random.uniform(0.15, 0.19))
            for place in random.permutation(places)[: random.integers(3, 6)]
        ]
        photo, mask = _scene((240, 320), fruit, random)
        photo.save(folder / "images" / f"{number:02}.jpg", quality=92)
        mask.save(folder / "labels" / f"{number:02}_P.png")


def _scene(size: tuple[int, int], fruit: list[tuple], random: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Return a photo and its mask; `fruit` are kinds with x, y and a radius, as parts of the width and the height."""
    height, width = (FINER * side for side in size)
    y, x = np.mgrid[:height, :width].astype(float)
    pixels, mask = _table(x, y, random), np.zeros((height, width), np.uint8)
    for kind, left, top, radius in fruit:
        length, angle = radius * height, random.uniform(0, 2 * np.pi)
        across, down = (x - left * width) / length, (y - top * height) / length
        u = across * np.cos(angle) + down * np.sin(angle)
        v = down * np.cos(angle) - across * np.sin(angle)
        inside = _depth(kind, u, v)
        shadow = _blurred(_depth(kind, np.roll(u, FINER * 6), np.roll(v, FINER * 6)) > 0, FINER * 5)
        pixels *= 1 - 0.55 * shadow[..., None]
        covered = inside > 0
        pixels[covered] = _shaded(kind, inside, u, v, length, random)[covered]
        mask[covered] = KINDS.index(kind) + 1
    pixels = pixels * random.uniform(0.85, 1.1) + random.normal(0, 5, pixels.shape)
    photo = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize(size[::-1], Image.Resampling.BOX)
    return photo, Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)


def _table(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the pixels of a wooden board."""
    waves = random.uniform(0, 6, 4)
    warped = y / FINER + 6 * np.sin(x / FINER / 70 + waves[0]) + 2 * np.sin(x / FINER / 23 + waves[1])
    grain = np.sin(warped / 3.1 + waves[2]) + 0.6 * np.sin(warped / 1.3 + waves[3]) + np.sin(warped / 11)
    colour = np.array(random.choice([(158, 112, 70), (186, 150, 108), (116, 82, 56)]), float)
    return colour * (1 + 0.06 * grain[..., None])


def _depth(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return how far inside a fruit of radius 1 each point lies: 1 in its middle, below 0 outside."""
    if kind == "banana":
        distance, angle = np.hypot(u, v - 0.9), np.arctan2(u, 0.9 - v)
        return np.where(abs(angle) < 0.95, 1 - ((distance - 1.05) / (0.3 * np.cos(angle * 1.45).clip(0.1))) ** 2, -1)
    distance, angle = np.hypot(u, v), np.arctan2(v, u)
    if kind == "apple":
        distance = distance + 0.16 * np.exp(-(((angle - np.pi / 2) / 0.35) ** 2))
    elif kind == "lemon":
        distance = np.hypot(u / 1.15, v / 0.85) - 0.14 * np.exp(-((v / 0.22) ** 2) - ((abs(u) - 1.2) / 0.35) ** 2)
    elif kind == "plum":
        distance = np.hypot(u, v / 0.82) + 0.05 * np.exp(-((v / 0.06) ** 2))
    return 1 - distance**2


def _shaded(
    kind: str, inside: np.ndarray, u: np.ndarray, v: np.ndarray, length: float, random: np.random.Generator
) -> np.ndarray:
    """Return the pixels of a fruit whose radius has `length` pixels, lit from the upper left."""
    down, across = np.gradient(np.sqrt(inside.clip(0.02)) * length * 0.75)
    normal = np.stack([-across, -down, np.ones_like(across)], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    lit = (normal @ (LIGHT / np.linalg.norm(LIGHT))).clip(0)
    colour = np.array(COLOURS[kind], float) * random.uniform(0.92, 1.08)
    colour = np.broadcast_to(colour, (*inside.shape, 3)).copy()
    if kind == "apple":
        streaks = 0.6 * (np.sin(9 * np.arctan2(v, u)) * 0.5 + 0.5) * np.exp(-2 * (v - 0.6) ** 2)
        colour += streaks[..., None] * np.array([50, 90, 10])
        colour[np.hypot(u, v - 0.72) < 0.09] = (60, 40, 20)
    elif kind == "banana":
        colour[abs(np.arctan2(u, 0.9 - v)) > 0.86] = (84, 62, 24)
    elif kind in ("orange", "lemon"):
        dots = _blurred(random.random(inside.shape) < 0.02, FINER * 0.8)
        colour *= 1 - dots[..., None] * (1.2 if kind == "orange" else 0.6)
    return colour * (0.35 + 0.75 * lit[..., None]) + 110 * (lit**24)[..., None]


def _blurred(there: np.ndarray, radius: float) -> np.ndarray:
    image = Image.fromarray((there * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image) / 255.0

"""Real images that are there without a network: scikit-learn's 1,797 gray digits of 8x8 pixels (UCI ML)."""

from pathlib import Path

from PIL import Image

HELD_OUT = 10  # of so many digits one is kept away from training


def write_digits(folder: Path) -> None:
    """Write the digits as PNGs: train/<digit>/*.png, and every tenth as held-out/<digit>/*.png."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = folder / ("held-out" if number % HELD_OUT == 0 else "train") / str(label)
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).save(part / f"{number:04}.png")

"""What the job scripts share in talking to a person: one-line errors, tables, pictures with their answers."""

import contextlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

# Packages whose own exceptions say what AWS, or a job, has answered.
AWS = ("botocore", "boto3", "sagemaker")
SHOWN_CLASSES = 3  # of a mask
# Where AWS puts account numbers: in ARNs, also quoted for a URL, in registries and in the SDK's default buckets.
ACCOUNT = re.compile(r"(?<=:)\d{12}(?=:)|(?<=%3A)\d{12}(?=%3A)|\d{12}(?=\.dkr\.ecr)|(?<=-\d-)\d{12}", re.IGNORECASE)
ACCOUNTS_OF_AWS = ("763104351884",)  # of its deep learning images, in most regions
SIGNATURE = re.compile(
    r"(X-Amz-(?:Credential|Security-Token|Signature)|AWSAccessKeyId|Credential|Signature)=[^&\s\"',]+", re.IGNORECASE
)
own_accounts: set[str] = set()  # that were found out, and are masked wherever they stand


class Failure(Exception):
    """What a job needs and AWS does not have, or does not allow: one line."""


class Interrupted(KeyboardInterrupt, Exception):
    """Ctrl-C where the SDK would swallow it: its fit returns in a ``finally``, from which an Exception gets out."""


@contextlib.contextmanager
def errors_as_one_line() -> Iterator[None]:
    """Bad usage and failed jobs end the script with one line on stderr; a fault of ours keeps its traceback.

    SIGTERM ends it as Ctrl-C does, which leaves nothing running. What is written to files and pipes comes without
    account numbers and signatures.
    """
    with (
        contextlib.redirect_stdout(Masked(sys.stdout)),
        contextlib.redirect_stderr(Masked(sys.stderr)),
        signals([signal.SIGTERM], signal.default_int_handler),
    ):
        yield from _ending_with_one_line()


def _ending_with_one_line() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except Exception as error:
        if isinstance(error, (Failure, NotImplementedError)) or type(error).__module__.partition(".")[0] in AWS:
            fail(error, 1)
        if isinstance(error, (ValueError, OSError)):
            fail(error, 2)
        traceback.print_exc()
        sys.exit(1)


class Masked:
    """A text stream that shows AWS account numbers and the secret parts of signed URLs to a terminal alone."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(text if self._stream.isatty() else masked(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def masked(text: str) -> str:
    """The text with asterisks for account numbers, but AWS's own, and for what signs a URL."""
    for account in own_accounts:
        text = text.replace(account, "*" * 12)
    text = ACCOUNT.sub(lambda found: found[0] if found[0] in ACCOUNTS_OF_AWS else "*" * 12, text)
    return SIGNATURE.sub(r"\1=***", text)


@contextlib.contextmanager
def signals(numbers: Iterable[int], handler) -> Iterator[None]:
    """Let `handler` take these signals."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, of_before in before.items():
            signal.signal(number, of_before)


def fail(error: object, status: int) -> None:
    line = " ".join(str(error).split("\nTraceback")[0].split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their content; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    numeric = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, cells)])


def in_words(answer: dict) -> tuple[str, float | None]:
    """An endpoint's JSON answer for one image: its label and probability, or the classes that cover most of a mask."""
    if "classes" not in answer:
        return answer.get("label", "-"), answer.get("probability")
    most = sorted(answer["classes"], key=lambda found: -found["pixels"])[:SHOWN_CLASSES]
    pixels = sum(found["pixels"] for found in answer["classes"])
    return ", ".join(f"{found['label']} {found['pixels'] / pixels:.0%}" for found in most), None


def as_json(rows: Sequence[dict]) -> str:
    """A JSON object a line."""
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def captioned(image: Image.Image, caption: str, size: int = 224) -> Image.Image:
    """A square of `size` pixels with the image in it and the caption below."""
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


def contact_sheet(cards: Sequence[Image.Image], columns: int) -> Image.Image:
    """The cards, all of one size, row by row."""
    width, height = cards[0].size
    rows = -(-len(cards) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, card in enumerate(cards):
        sheet.paste(card, (i % columns * width, i // columns * height))
    return sheet

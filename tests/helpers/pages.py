"""What the pages show, and the folders that their examples expect."""

import re
import shutil


def blocks(text, language):
    """The code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def lay_out(few, folder):
    """The folder `digits` as `make digits` writes it, with few images in it."""
    shutil.copytree(few, folder / "digits" / "train")
    (folder / "digits" / "held-out" / "7").mkdir(parents=True)
    for number, file in enumerate(sorted((few / "7").iterdir())):
        shutil.copy(file, folder / "digits" / "held-out" / "7" / f"{240 + number:04}.png")

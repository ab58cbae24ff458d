"""The image files that a command is given."""

from pathlib import Path

from PIL import Image


def image_files(name: str) -> list[Path]:
    """Return the file itself, or the images below the folder but for hidden ones.

    As training has it, in training/data.py, which needs torch. Raises ValueError if the folder holds none.
    """
    path, extensions = Path(name), Image.registered_extensions()
    if not path.is_dir():
        return [path]
    files = (f for f in path.rglob("*") if f.suffix.lower() in extensions and f.is_file())
    files = sorted(f for f in files if not any(part.startswith(".") for part in f.relative_to(path).parts))
    if not files:
        raise ValueError(f"{name}: the folder holds no image")
    return files

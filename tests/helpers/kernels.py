"""What the tests of notebooks share: photos, to run a notebook in a kernel, and to look at what it showed and left."""

import os
from pathlib import Path

import nbformat
import numpy as np
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CELL_SECONDS = 900
# Nothing listens on this port: whatever would leave the machine fails at once.
NO_NETWORK = "http://127.0.0.1:9"


class CellFailed(Exception):
    """A cell raised what the message says."""


def make_photos(folder: Path, count: int) -> None:
    """`count` cats, red with upright stripes, and as many dogs, blue with level ones, under Oxford's names."""
    random = np.random.default_rng(0)
    stripes = np.tile([1.0, 1.0, 0.4, 0.4], 16)
    for number in range(1, count + 1):
        for name, colour, pattern in (
            ("Bombay", (220, 90, 40), np.tile(stripes, (64, 1))),
            ("beagle", (40, 90, 220), np.tile(stripes, (64, 1)).T),
        ):
            pixels = pattern[:, :, None] * colour + random.normal(0, 12, (64, 64, 3))
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / f"{name}_{number}.jpg")


def execute(notebook, folder: Path, cell_seconds: int = CELL_SECONDS) -> None:
    """Run all cells in `folder`. Raises CellFailed."""
    client = NotebookClient(notebook, timeout=cell_seconds, resources={"metadata": {"path": str(folder)}})
    try:
        client.execute()
    except CellExecutionError as error:  # its text holds the cell, but not what went wrong in it
        raise CellFailed(f"{error.ename}: {error.evalue}") from error


def execute_without_data(environment, path: Path, cell_id: str, variable: str, folder: Path, **others: str) -> None:
    """Run the notebook up to a cell where no data lie beside it and `variable` names none. Raises CellFailed."""
    notebooks = folder / "project" / "notebooks"
    notebooks.mkdir(parents=True)
    with environment.context() as patch:
        patch.delenv(variable, raising=False)
        for name, value in others.items():
            patch.setenv(name, value)
        execute(up_to(nbformat.read(path, 4), cell_id), notebooks)


def up_to(notebook, cell_id: str):
    """The notebook without the cells that follow this one."""
    last = next(i for i, cell in enumerate(notebook.cells) if cell.id == cell_id)
    notebook.cells = notebook.cells[: last + 1]
    return notebook


def printed(notebook, cell_id: str) -> list[str]:
    """The lines that a cell has printed."""
    cell = next(cell for cell in notebook.cells if cell.id == cell_id)
    return "".join(o.text for o in cell.outputs if o.get("name") == "stdout").splitlines()


def pictures(notebook, cell_id: str) -> int:
    cell = next(cell for cell in notebook.cells if cell.id == cell_id)
    return sum("image/png" in o.get("data", {}) for o in cell.outputs)


def processes_of(home: Path) -> list[psutil.Process]:
    """What runs in `home`'s containers: their environment names it."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(home) in word for word in words):
            found.append(process)
    return found

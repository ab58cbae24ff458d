"""What the tests of notebooks share: to run one in a kernel, and to look at what it showed and what it left running."""

import os
from pathlib import Path

import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CELL_SECONDS = 300
# Nothing listens on this port: whatever would leave the machine fails at once.
NO_NETWORK = "http://127.0.0.1:9"


class CellFailed(Exception):
    """A cell raised what the message says."""


def execute(notebook, folder: Path, cell_seconds: int = CELL_SECONDS) -> None:
    """Run all cells in `folder`. Raises CellFailed."""
    client = NotebookClient(notebook, timeout=cell_seconds, resources={"metadata": {"path": str(folder)}})
    try:
        client.execute()
    except CellExecutionError as error:  # its text holds the cell, but not what went wrong in it
        raise CellFailed(f"{error.ename}: {error.evalue}") from error


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

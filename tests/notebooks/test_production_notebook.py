"""The notebook of production code runs from top to bottom on AWS on this machine, without a network."""

import re

import nbformat
import pytest
from helpers.kernels import NOTEBOOKS, execute, pictures, printed, processes_of

CELL_SECONDS = 1200
PRODUCTION = NOTEBOOKS / "05_production_code_on_this_machine.ipynb"


def test_production_has_one_cell_that_would_not_run_on_aws():
    cells = [cell for cell in nbformat.read(PRODUCTION, 4).cells if cell.cell_type == "code"]
    assert [cell.id for cell in cells if re.search(r"fastmaker\.local|import aws|\"local\"|Local", cell.source)] == [
        "here"
    ]
    assert "sagemaker.Session()" in "".join(cell.source for cell in cells)


@pytest.fixture(scope="module")
def production(environment, home):
    notebook = nbformat.read(PRODUCTION, 4)
    execute(notebook, NOTEBOOKS, cell_seconds=CELL_SECONDS)
    return notebook


@pytest.mark.slow
def test_production_runs_the_four_flows_and_leaves_nothing_running(production, home):
    assert printed(production, "here")[0].startswith("http://127.0.0.1:")
    assert printed(production, "pets-fit")[-1].startswith("s3://sagemaker-us-west-2-000000000000/pets-")
    answers = dict(line.split(maxsplit=1) for line in printed(production, "pets-deploy")[-2:])
    assert set(re.findall(r"'label': '(\w+)'", str(answers))) <= {"Bombay", "beagle"}
    assert len(answers) == 2
    right = re.fullmatch(r"60 answers, (\d+) right", printed(production, "mnist-transform")[-1])
    assert int(right[1]) > 40
    assert printed(production, "mnist-manifest")[-1] == "20 answers, 20 the same as by prefix"
    assert printed(production, "mnist-two-instances")[-1] == "60 answers, 60 the same as by prefix"
    status, first_line = printed(production, "unet-fit")
    assert status == "Completed ml.p3.2xlarge"
    assert first_line.startswith("torch ")
    assert "stand in for 763104351884.dkr.ecr.us-west-2.amazonaws.com" in first_line
    assert printed(production, "unet-deploy") == ["InService"]
    assert re.fullmatch(r"mask \(64, 64\) uint8, \d+% of the pixels right", printed(production, "unet-invoke")[0])
    assert pictures(production, "unet-invoke") == 1
    assert "endpoint: digits" in printed(production, "scripts-deploy")
    assert ["answers", "60"] in [line.split() for line in printed(production, "scripts-transform")]
    assert printed(production, "clean-up")[-1] == "endpoints: []"
    assert processes_of(home) == []

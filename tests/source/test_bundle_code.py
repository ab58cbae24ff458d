"""A bundle's code/: it serves, and saves bundles, without the checkout and without fastai."""

import json
import shutil
import subprocess
import sys

import pytest

from fastmaker import bundle


@pytest.fixture
def folder(digits_bundle, tmp_path):
    """A bundle of one's own to damage."""
    return shutil.copytree(digits_bundle, tmp_path / "model")


SERVE_FROM_THE_BUNDLE_ALONE = """
import json, sys
sys.path = [sys.argv[1] + "/code", *(path for path in sys.path if path and not path.endswith("/source"))]
import entry_point, fastmaker

assert fastmaker.__file__.startswith(sys.argv[1]), fastmaker.__file__
assert entry_point.__file__.startswith(sys.argv[1]), entry_point.__file__
model = fastmaker.load_bundle(sys.argv[1])
request = entry_point.input_fn(open(sys.argv[2], "rb").read(), "image/png")
body, media_type = entry_point.output_fn(entry_point.predict_fn(request, model), "application/json")
heavy = {"fastai", "fastcore", "pandas", "spacy", "matplotlib", "sklearn", "sagemaker", "jobs"}
heavy = {name for name in sys.modules if name in heavy or name.startswith(("fastmaker.training", "fastmaker.export"))}
print(json.dumps({"answer": json.loads(body), "heavy": sorted(heavy)}))
"""


def test_a_bundle_serves_from_its_own_code_without_fastai(folder, digits):
    from fastmaker import preprocess
    from fastmaker.serving import models

    file = sorted((digits / "3").iterdir())[0]
    command = [sys.executable, "-I", "-c", SERVE_FROM_THE_BUNDLE_ALONE, str(folder), str(file)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads(run.stdout)
    assert result["heavy"] == []
    [expected] = models.load(folder).predict([preprocess.decode(file.read_bytes())])
    assert result["answer"] == expected.as_object()


def test_a_bundle_saved_from_a_bundles_code_is_complete(folder, tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1] + '/code')\n"
        "from fastmaker import bundle\n"
        "assert bundle.__file__.startswith(sys.argv[1])\n"
        "bundle.save(sys.argv[2], *bundle.load(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-I", "-c", program, str(folder), str(tmp_path / "copy")], check=True)
    assert bundle.load(tmp_path / "copy")[1].labels == bundle.load(folder)[1].labels
    assert (tmp_path / "copy" / "code" / "entry_point.py").is_file()

"""Networks of every kind that are kept as graphs answer in ONNX Runtime as in torch."""

import pytest
from helpers import kinds

from fastmaker.export import onnx_file

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", kinds.SMALL)
def test_small_networks(tmp_path, name):
    kinds.save(kinds.SMALL[name], tmp_path)
    assert onnx_file.to_onnx(tmp_path, tmp_path / "model.onnx") < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"norm_type": kinds.NormType.Weight}, {"y_range": (-1, 1)}], ids=str)
def test_unets(tmp_path, options):
    kinds.save(kinds.UNETS[str(options)], tmp_path, segments=True)
    assert onnx_file.to_onnx(tmp_path, tmp_path / "model.onnx") < 1e-4

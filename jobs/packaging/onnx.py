"""ONNX files of a bundle: alone, or beside the bundle in a model directory that ONNX Runtime serves.

The graph and its checks are in source/fastmaker/export/onnx_file.py.
"""

import tempfile
from pathlib import Path

from fastmaker.jobs.packaging import models


def make_file(
    model_dir: Path, file: Path, *, image_input: str = "uint8", calibration_folder: Path | None = None
) -> None:
    """Write the bundle in `model_dir` as `file`, and print its size and how close its answers are to torch's.

    `image_input` is uint8 or float (0..1). With a `calibration_folder` of images the file is quantised to int8.
    Raises bundle.BundleError or onnx_file.ExportError.
    """
    from fastmaker import bundle
    from fastmaker.export import onnx_file
    from fastmaker.serving import onnx_engine

    with tempfile.TemporaryDirectory() as scratch:
        info = bundle.load_info(model_dir)
        images = onnx_file.calibration_images(calibration_folder, info, image_input) if calibration_folder else []
        float_file = Path(scratch, "float32.onnx") if calibration_folder else file
        difference = onnx_file.to_onnx(model_dir, float_file, image_input)
        print(
            f"float32:    {_megabytes(float_file)}, {onnx_engine.output_name(info)} within {difference:.1e} of torch's"
        )
        if calibration_folder:
            same, total = onnx_file.to_int8(float_file, file, images)
            unit = {"segmentation": "pixels", "regression": "values", "points": "coordinates"}.get(info.task, "labels")
            print(f"int8:       {_megabytes(file)}, {same} of {total} {unit} as in float32 on {len(images)} images")


def make_model_directory(model_dir: Path, target: Path, *, calibration_folder: Path | None = None) -> None:
    """Write a copy of the bundle in `model_dir` with its ONNX file as the new folder `target`, whole or not at all.

    Raises as `make_file`.
    """
    from fastmaker import bundle

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as scratch:
        copy = Path(scratch, "bundle")
        models.copy_with_this_code(model_dir, copy)
        make_file(model_dir, copy / bundle.ONNX_FILE, calibration_folder=calibration_folder)
        copy.rename(target)


def _megabytes(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"

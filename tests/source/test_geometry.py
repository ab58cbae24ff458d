"""A point of the network's input lies where fastai's own transforms have it from, for images of any size."""

import dataclasses

import numpy as np
import pytest
import torch
from fastai.vision.all import PILImage, PointScaler, Resize, TensorImage, TensorPoint, Zoom
from PIL import Image

from fastmaker import bundle, geometry, pipeline

INFO = bundle.ModelInfo(
    task="points",
    architecture="convnet",
    labels=(),
    image_mode="L",
    image_size=(64, 48),
    resize_method="crop",
    mean=(0.0,),
    std=(1.0,),
    activation="none",
    output_shape=(4,),
    format=2,
)
METHODS = ("crop", "pad", "squish")
RANDOM = np.random.default_rng(4)
SIZES = [tuple(map(int, RANDOM.integers(8, 700, 2))) for _ in range(24)]


def with_steps(*steps):
    size = pipeline.output_size(steps)
    return dataclasses.replace(INFO, steps=steps, resize_method="steps", image_size=size)


def resize(size, method="squish", resample="bilinear"):
    return {"step": "resize", "size": size, "method": method, "pad_mode": "border", "resample": resample}


@pytest.mark.parametrize("batches", [False, True], ids=["", "batches"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("image_size", "size"), [((300, 225), (64, 64)), *zip(SIZES[::2], SIZES[1::2], strict=True)], ids=str
)
def test_what_fastai_makes_of_a_point_is_undone(image_size, size, method, batches):
    points = np.array([[0.0, 0.0], image_size, [image_size[0] / 3, image_size[1] / 7], [-5.0, 3.0]])
    scaler, resizing = PointScaler(), Resize(size, method=method)
    scaler(PILImage(Image.new("L", image_size)))
    scaled = resizing(scaler(TensorPoint.create(points)), split_idx=1)
    assert isinstance(scaled, TensorPoint)
    info = dataclasses.replace(INFO, image_size=size, resize_method=method)
    if batches:
        zoom = Zoom(size=(33, 57))
        _, scaled = zoom((TensorImage(torch.zeros(1, 3, *size)), scaled[None]), split_idx=1)
        grid = {"step": "grid_sample", "size": [33, 57], "mode": "bilinear", "pad_mode": "zeros", "align_corners": True}
        info = with_steps(resize(list(size), method), grid)
    found = geometry.to_image(np.asarray(scaled).reshape(-1, 2), image_size, info)
    assert np.allclose(found, points, atol=1e-3, rtol=1e-4)
    assert np.allclose(geometry.from_image(points, image_size, info), np.asarray(scaled).reshape(-1, 2), atol=1e-4)


CROP_AND_GRID_SAMPLE = {
    "step": "crop_and_grid_sample",
    "size": [90, 120],
    "ratio": [0.75, 1.3],
    "scale": 0.8,
    "mode": "bilinear",
}


@pytest.mark.parametrize("image_size", [(300, 225), (120, 400), (90, 80)])
@pytest.mark.parametrize(
    "steps",
    [
        [resize([80, 140], "crop")],
        [resize([80, 140], "pad")],
        [resize([140, 140]), {"step": "crop_pad", "size": [100, 120], "pad_mode": "zeros"}],  # RandomResizedCrop
        [{"step": "crop_pad", "size": [200, 160], "pad_mode": "border"}, resize([100, 150], "pad")],
        [resize([128, 200]), CROP_AND_GRID_SAMPLE],
    ],
    ids=lambda steps: " ".join(step["step"] for step in steps),
)
def test_a_point_is_where_the_pixel_comes_from(image_size, steps):
    """An image of which each pixel says where it is, in 1/255 of the width or height."""
    info = with_steps(*steps)
    for axis in (0, 1):
        ramp = np.linspace(0, 255, image_size[axis])
        pixels = np.broadcast_to(ramp if axis == 0 else ramp[:, None], image_size[::-1]).astype(np.uint8)
        prepared = pipeline.to_pixels(pipeline.to_tensor(Image.fromarray(pixels), info)[None], steps)[0, 0].numpy()
        size = prepared.shape[::-1]
        assert geometry.input_size(image_size, info) == size
        for x, y in ((0.4, 0.45), (0.5, 0.5), (0.55, 0.6)):
            found = geometry.to_image(np.array([[2 * x - 1, 2 * y - 1]]), image_size, info)[0, axis]
            found = np.clip(found, 0, image_size[axis])  # padding continues the border
            said = prepared[int(y * size[1]), int(x * size[0])] * image_size[axis]
            assert abs(found - said) < 0.02 * image_size[axis] + 1


def test_a_step_that_moves_points_in_an_unknown_way_is_refused():
    info = dataclasses.replace(INFO, steps=({"step": "turn", "size": [3, 3]},), resize_method="steps")
    with pytest.raises(ValueError, match="pixels cannot be followed through the step turn"):
        geometry.to_image(np.zeros((1, 2)), (30, 30), info)

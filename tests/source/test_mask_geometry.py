"""A mask that is brought back to the image that was sent lies where fastai's transforms took it from."""

import numpy as np
import pytest
from fastai.vision.all import (
    AffineCoordTfm,
    CropPad,
    PILMask,
    RandomResizedCrop,
    RandomResizedCropGPU,
    RatioResize,
    Resize,
    TensorMask,
)

from fastmaker import masks, preprocess
from fastmaker.training import learner_steps

VOID = 9
SIZES = [(120, 90), (90, 120), (100, 100), (61, 47), (300, 200)]
ITEMS = {
    "crop": lambda: [Resize((60, 80))],
    "pad": lambda: [Resize((60, 80), "pad", "zeros")],
    "squish": lambda: [Resize((64, 48), "squish")],
    "RandomResizedCrop": lambda: [RandomResizedCrop(64)],
    "CropPad": lambda: [CropPad((104, 110))],
    "RatioResize": lambda: [RatioResize(60)],
    "pad, crop_pad": lambda: [Resize((80, 80), "pad", "zeros"), CropPad(70)],
}
BATCHES = {
    "none": lambda: [],
    "grid": lambda: [AffineCoordTfm(size=(50, 40), align_corners=True)],
    "grid, corners apart": lambda: [AffineCoordTfm(size=(50, 40), align_corners=False)],
    "crop and grid": lambda: [RandomResizedCropGPU(56, valid_scale=0.8)],
}


def blocks(size, edge):
    """An image of blocks of pixels, each of a class of its own among its neighbours."""
    y, x = np.mgrid[: size[1], : size[0]] // edge
    return ((x % 3) + 3 * (y % 3)).astype(np.uint8) % VOID


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("item", ITEMS)
def test_the_middle_of_each_block_comes_back(item, batch):
    items, batches = ITEMS[item](), BATCHES[batch]()
    steps = [step for tfm in items for step in learner_steps._ITEM_STEPS[type(tfm)](tfm)]
    steps += [learner_steps._batch_step(tfm, 3) for tfm in batches]
    for size in SIZES:
        if item == "RatioResize" and size == (61, 47):
            continue  # which it cuts at a random place
        original = blocks(size, edge := 12 if max(size) < 200 else 40)
        mask = PILMask.create(original)
        for tfm in items:
            mask = tfm(mask, split_idx=1)
        tensor = TensorMask(np.asarray(mask)[None].copy())
        for tfm in batches:
            tensor = tfm(tensor, split_idx=1)
        found = masks.resize_to_original(np.asarray(tensor[0]).astype(np.uint8), size, preprocess.STEPS, VOID, steps)
        assert found.shape == original.shape
        inner = np.zeros(original.shape, bool)
        inner[edge // 2 :: edge, edge // 2 :: edge] = True
        seen = found != VOID
        assert (seen & inner).sum() > 3
        assert np.array_equal(found[seen & inner], original[seen & inner]), size


def test_what_is_cut_off_needs_a_void_class():
    steps = [{"step": "crop_pad", "size": [4, 4], "pad_mode": "zeros"}]
    mask = np.ones((4, 4), np.uint8)
    assert masks.resize_to_original(mask, (8, 6), preprocess.STEPS, 2, steps).tolist() == [
        [2] * 8,
        *[[2, 2, 1, 1, 1, 1, 2, 2]] * 4,
        [2] * 8,
    ]
    with pytest.raises(preprocess.ImageError, match="sees 4x4 of the image's 8x6 pixels"):
        masks.resize_to_original(mask, (8, 6), preprocess.STEPS, None, steps)
    assert not masks.can_resize_to_original(preprocess.STEPS, None, steps)
    assert masks.can_resize_to_original(preprocess.STEPS, 2, steps)
    grid = [{"step": "grid_sample", "size": [4, 4], "mode": "bilinear", "pad_mode": "zeros", "align_corners": True}]
    assert masks.can_resize_to_original(preprocess.STEPS, None, grid)
    assert masks.resize_to_original(mask, (9, 7), preprocess.STEPS, None, grid).tolist() == [[1] * 9] * 7

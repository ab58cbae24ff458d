"""The Learner made of a bundle predicts what the Learner predicted that the bundle was made of."""

import numpy as np
import pytest
import torch
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    PILImageBW,
    Resize,
    SegmentationDataLoaders,
    aug_transforms,
    imagenet_stats,
    resnet18,
    set_seed,
    unet_learner,
    vision_learner,
)

from fastmaker import bundle, save_bundle
from fastmaker.export import reference

pytestmark = pytest.mark.learner


def assert_predicts_the_same(learn, model_dir, files):
    again = reference.learner(model_dir)
    for file in files:
        with learn.no_bar(), learn.no_logging(), again.no_bar(), again.no_logging():
            expected, found = learn.predict(file), again.predict(file)
        assert str(found[0]) == str(expected[0])
        assert np.array_equal(found[1], expected[1])
        assert torch.equal(torch.Tensor(found[2]), torch.Tensor(expected[2]))


def test_a_convnet_comes_back(digits_learner, digits_bundle, digits):
    assert_predicts_the_same(digits_learner, digits_bundle, sorted(digits.rglob("*.png"))[::300])


@pytest.mark.parametrize(
    "transforms",
    [
        {"item_tfms": Resize(40), "batch_tfms": [*aug_transforms(), Normalize.from_stats(*imagenet_stats)]},
        {"item_tfms": Resize((32, 48), method="pad")},
        {"item_tfms": Resize(32, method="squish"), "img_cls": PILImageBW},
    ],
    ids=["augmented", "padded", "gray"],
)
def test_a_vision_learner_comes_back(photos, tmp_path, transforms):
    set_seed(2)
    dls = ImageDataLoaders.from_folder(photos, valid_pct=0.5, bs=4, num_workers=0, **transforms)
    n_in = 1 if "img_cls" in transforms else 3
    learn = vision_learner(dls, resnet18, pretrained=False, normalize=False, n_in=n_in)
    save_bundle(learn, tmp_path)
    assert_predicts_the_same(learn, tmp_path, sorted(photos.rglob("*.jpg"))[::9])


@pytest.mark.parametrize("options", [{}, {"self_attention": True, "blur": True, "last_cross": False}])
def test_a_unet_learner_comes_back(scenes, tmp_path, options):
    set_seed(2)
    files = sorted((scenes / "images").iterdir())
    dls = SegmentationDataLoaders.from_label_func(
        scenes,
        files,
        lambda file: scenes / "labels" / f"{file.stem}_P.png",
        codes=(scenes / "codes.txt").read_text().split(),
        item_tfms=Resize((24, 33), method="squish") if options else None,
        bs=4,
        num_workers=0,
    )
    learn = unet_learner(dls, resnet18, pretrained=False, n_out=4, **options)
    save_bundle(learn, tmp_path)
    assert_predicts_the_same(learn, tmp_path, files[::6])


def test_a_bundle_that_was_altered_does_not_come_back(digits_bundle, tmp_path):
    (tmp_path / "model.json").write_text((digits_bundle / "model.json").read_text())
    (tmp_path / "model.pth").write_bytes(b"other")
    with pytest.raises(bundle.BundleError, match="altered"):
        reference.learner(tmp_path)

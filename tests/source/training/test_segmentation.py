"""A U-Net's bundle answers with the mask of learn.predict, on every pixel. Also its figures, and what is refused."""

import contextlib

import numpy as np
import pytest
import torch
import torchvision.models
from fastai.vision.all import (
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    FocalLossFlat,
    Normalize,
    PILImageBW,
    RandomCrop,
    Resize,
    SegmentationDataLoaders,
    aug_transforms,
    imagenet_stats,
    set_seed,
    unet_learner,
)
from PIL import Image
from torch import nn

from fastmaker import bundle, masks, preprocess, save_bundle
from fastmaker.serving import engines, models
from fastmaker.training import data, learner, mask_data, segmentation
from fastmaker.training.arguments import parse_args

pytestmark = pytest.mark.learner
NAMES = {"ids": lambda value: "+".join(value) or "the plainest" if isinstance(value, dict) else None}


def images_of(folder, every=4):
    return sorted((folder / "images").iterdir())[::every]


def notebook_learner(folder, item_tfms=None, batch_tfms=None, img_cls=None, codes=True, **options):
    set_seed(4)
    dls = SegmentationDataLoaders.from_label_func(
        folder,
        sorted((folder / "images").iterdir()),
        lambda file: folder / "labels" / f"{file.stem}_P{file.suffix}",
        codes=(folder / "codes.txt").read_text().splitlines() if codes else None,
        seed=1,
        item_tfms=item_tfms,
        batch_tfms=batch_tfms,
        bs=4,
        num_workers=0,
        **({"img_cls": img_cls} if img_cls else {}),
    )
    arch = options.pop("arch", torchvision.models.resnet18)
    return unet_learner(dls, arch, pretrained=False, n_out=options.pop("n_out", 4), **options)


@contextlib.contextmanager
def outputs_of(network):
    """A list that takes in what the network puts out."""
    outputs = []
    handle = network.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def assert_same_masks(learn, model_dir, files):
    """The bundle of `learn` answers each file with the mask and the very logits of `learn.predict`."""
    save_bundle(learn, model_dir)
    model = models.load(model_dir, precision="float32")
    seen = set()
    with outputs_of(learn.model) as expected, outputs_of(model.engine.network) as logits:
        for file in files:
            with learn.no_bar(), learn.no_logging():
                mask, _, probabilities = learn.predict(file)
            [found] = model.predict([preprocess.decode(file.read_bytes())])
            assert found.array.dtype == np.uint8
            assert np.array_equal(found.array, mask.numpy())
            assert torch.equal(logits[-1][0].softmax(dim=0), torch.Tensor(probabilities))
            assert torch.equal(logits.pop(), torch.Tensor(expected.pop()))
            seen |= set(found.array.ravel().tolist())
    assert len(seen) > 1


def test_a_trained_network_masks_as_in_fastai(scenes_learner, scenes, tmp_path):
    assert_same_masks(scenes_learner, tmp_path, images_of(scenes, every=2))


def test_a_trained_network_knows_most_pixels(scenes_learner, scenes_bundle, scenes):
    model = models.load(scenes_bundle)
    truth = [masks.read(scenes / "labels" / f"{file.stem}_P.png") for file in images_of(scenes)]
    found = [answer.array for answer in model.predict([Image.open(file) for file in images_of(scenes)])]
    counted = np.stack(truth) != 3
    assert np.mean(np.stack(found)[counted] == np.stack(truth)[counted]) > 0.8


def test_images_of_one_request_are_masked_as_if_each_came_alone(scenes_bundle, scenes):
    model = models.load(scenes_bundle)
    images = [Image.open(file) for file in images_of(scenes)]
    alone = [model.predict([image])[0].array for image in images]
    assert np.array_equal([answer.array for answer in model.predict(images)], alone)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"item_tfms": Resize((48, 33), method="squish")},
        pytest.param({"item_tfms": Resize(32)}, marks=pytest.mark.slow),
        pytest.param({"item_tfms": Resize((24, 40), method="pad")}, marks=pytest.mark.slow),
        {"batch_tfms": Normalize.from_stats(*imagenet_stats)},
        pytest.param({"batch_tfms": aug_transforms()}, marks=pytest.mark.slow),
        {"self_attention": True},
        {"blur": True, "last_cross": False},
        {"loss_func": CrossEntropyLossFlat(axis=1, ignore_index=3)},
        pytest.param({"loss_func": FocalLossFlat(axis=1)}, marks=pytest.mark.slow),
        {"img_cls": PILImageBW, "n_in": 1},
        pytest.param({"arch": torchvision.models.resnet50, "item_tfms": Resize(32)}, marks=pytest.mark.slow),
    ],
    **NAMES,
)
def test_a_notebooks_learner_masks_as_in_fastai(scenes, tmp_path, options):
    learn = notebook_learner(scenes, **options)
    for module in learn.model.modules():
        if hasattr(module, "gamma"):
            nn.init.constant_(module.gamma, 0.7)  # a new network's attention is off
    assert_same_masks(learn, tmp_path, images_of(scenes))


def test_the_bundle_says_what_the_learner_was(scenes, tmp_path):
    options = {"blur": True, "self_attention": True, "last_cross": False}
    loss = CrossEntropyLossFlat(axis=1, ignore_index=3)
    learn = notebook_learner(scenes, Resize((32, 48), method="pad"), loss_func=loss, **options)
    info = save_bundle(learn, tmp_path, mask_size="original")
    assert (info.task, info.architecture, info.labels) == (
        "segmentation",
        "resnet18",
        ("ground", "box", "disc", "Void"),
    )
    assert (info.image_size, info.resize_method, info.mask_size, info.void_code) == ((32, 48), "pad", "original", 3)
    assert info.options == options | {"blur_final": True}
    assert bundle.load_info(tmp_path) == info


def test_in_bf16_almost_every_pixel_gets_the_same_class(scenes, tmp_path):
    learn = notebook_learner(scenes, self_attention=True)
    nn.init.constant_(learn.model.layers[5].conv2[2].gamma, 0.7)
    save_bundle(learn, tmp_path)
    images = [Image.open(file) for file in images_of(scenes)]
    full, half = (models.load(tmp_path, precision=p).predict(images) for p in engines.PRECISIONS)
    assert np.mean([one.array == other.array for one, other in zip(full, half, strict=True)]) > 0.9


def test_without_resize_only_images_of_the_training_size_are_answered(scenes, tmp_path):
    save_bundle(notebook_learner(scenes), tmp_path)
    model = models.load(tmp_path)
    assert (model.info.resize_method, model.info.image_size) == ("none", (40, 56))
    with pytest.raises(preprocess.ImageError, match="takes images of 56x40"):
        model.predict([Image.new("RGB", (57, 40))])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"loss_func": BCEWithLogitsLossFlat(axis=1)}, "loss BCEWithLogitsLossFlat decodes otherwise"),
        (
            {"loss_func": CrossEntropyLossFlat()},
            "has an activation that a bundle lacks; expected softmax over axis 1",
        ),
        ({"codes": False}, "no class names"),
        ({"n_out": 5}, r"has the shape \[5, 40, 56\] for one image; expected \[4, 40, 56\]"),
        ({"bottle": True}, "cannot be kept in a bundle"),  # fastai 2.8 cannot run it either
        ({"item_tfms": [Resize(48), RandomCrop(40)], "mask_size": "original"}, "no class is void"),
        ({"item_tfms": Resize(32), "mask_size": "original"}, "no class is void"),
    ],
    **NAMES,
)
def test_a_learner_that_a_bundle_cannot_reproduce_is_refused(scenes, tmp_path, options, reason):
    served = {"mask_size": options.get("mask_size", "model")}
    learn = notebook_learner(scenes, **{name: value for name, value in options.items() if name not in served})
    with pytest.raises(bundle.BundleError, match=reason):
        save_bundle(learn, tmp_path / "model", **served)
    assert not (tmp_path / "model").exists()


# Figures


def confused(kind, logits, true, void_code=None):
    metric = kind(["a", "b", "c"], void_code)
    metric.add(torch.tensor(logits, dtype=torch.float).permute(2, 0, 1)[None], torch.tensor(true)[None])
    return metric


A, B, C = [1, 0, 0], [0, 1, 0], [0, 0, 1]


def test_pixel_accuracy_leaves_void_pixels_out():
    assert confused(segmentation.PixelAccuracy, [[A, A, B, C]], [[0, 1, 1, 2]]).value == 3 / 4
    assert confused(segmentation.PixelAccuracy, [[A, A, B, C]], [[0, 1, 1, 2]], void_code=2).value == 2 / 3


def test_iou_is_the_intersection_over_the_union_of_each_class():
    metric = confused(segmentation.MeanIou, [[A, A, B, B]], [[0, 1, 1, 1]])
    assert metric.by_class()[:2].tolist() == [1 / 2, 2 / 3]
    assert np.isnan(metric.by_class()[2])  # neither there nor predicted
    assert metric.value == pytest.approx(7 / 12)


def test_iou_does_not_count_the_void_class_and_what_is_predicted_there():
    metric = confused(segmentation.MeanIou, [[A, B, C]], [[0, 2, 0]], void_code=2)
    assert metric.by_class()[0] == 1 / 2
    assert np.isnan(metric.by_class()[1:]).all()


def test_figures_of_masks_that_are_all_void_are_zero():
    for kind in (segmentation.PixelAccuracy, segmentation.MeanIou):
        assert confused(kind, [[A, B]], [[2, 2]], void_code=2).value == 0


def test_the_figures_of_the_classes_average_to_the_one_that_fastai_records(scenes_learner):
    before = [list(row) for row in scenes_learner.recorder.values]
    iou = segmentation.iou_by_class(scenes_learner)
    assert scenes_learner.recorder.values == before
    assert set(iou) == {"iou_ground", "iou_box", "iou_disc"}
    with scenes_learner.no_bar():
        _, _, mean_iou = scenes_learner.validate()
    assert np.mean(list(iou.values())) == pytest.approx(mean_iou, abs=1e-6)


def test_void_pixels_are_not_learnt_and_a_batch_that_is_all_void_does_not_count():
    torch.manual_seed(0)
    logits, true = torch.randn(2, 4, 5, 6, requires_grad=True), torch.randint(0, 4, (2, 5, 6))
    loss = segmentation.CrossEntropyWithoutVoid(3)
    assert torch.equal(loss(logits, true), nn.functional.cross_entropy(logits, true, ignore_index=3))
    nothing = loss(logits, torch.full_like(true, 3))
    assert nothing == 0
    nothing.backward()
    assert not logits.grad.any()


def test_augmentation_moves_image_and_mask_together(tmp_path):
    """White where the mask says so: after all transforms still."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "codes.txt").write_text("dark\nlight\n")
    for number in range(8):
        mask = np.kron(random.integers(0, 2, (4, 4), dtype=np.uint8), np.ones((16, 16), np.uint8))
        Image.fromarray(mask * 255).convert("RGB").save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "labels" / f"{number}_P.png")
    set_seed(3)
    samples = mask_data.read(tmp_path)
    dls = data.dataloaders(samples, "RGB", (48, 60), "crop", batch_size=6, augment=True, workers=0)
    images, true = dls.one_batch()
    light = images[:, 0] > images.mean()
    assert (light == true.bool()).float().mean() > 0.9  # but for the blurred edges
    assert (light.flip(-1) == true.bool()).float().mean() < 0.9


# Road scenes


def camvid_learner(test_data, architecture):
    set_seed(6)
    samples = mask_data.read(test_data / "camvid")
    dls = data.dataloaders(samples, "RGB", (96, 128), "squish", batch_size=8, augment=True, workers=0)
    args = parse_args(["--train", "camvid", "--task", "segmentation", "--arch", architecture])
    return learner.create(dls, samples, args, pretrained=False)


@pytest.mark.data
def test_a_few_road_scenes_are_masked_as_in_fastai(test_data, tmp_path):
    assert_same_masks(camvid_learner(test_data, "resnet18"), tmp_path, images_of(test_data / "camvid", every=90))


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"self_attention": True}, {"blur": True}, {"blur": True, "blur_final": False}, {"last_cross": False}],
    **NAMES,
)
@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_all_road_scenes_are_masked_as_in_fastai(test_data, tmp_path, arch, options):
    camvid = test_data / "camvid"
    resize = Resize((96, 128), method="squish")
    learn = notebook_learner(camvid, resize, n_out=12, arch=getattr(torchvision.models, arch), **options)
    for module in learn.model.modules():
        if hasattr(module, "gamma"):
            nn.init.constant_(module.gamma, 0.7)  # a new network's attention is off
    assert_same_masks(learn, tmp_path, images_of(camvid, every=1))

"""Each step gives the very tensor that fastai's validation pipeline gives. The steps of a model.json are checked."""

import io
import json

import numpy as np
import pytest
import torch
from fastai.vision.all import (
    CategoryBlock,
    CropPad,
    DataBlock,
    ImageBlock,
    ImageDataLoaders,
    ItemGetter,
    Normalize,
    PILImage,
    PILImageBW,
    RandomCrop,
    RandomResizedCrop,
    RandomResizedCropGPU,
    RandomSplitter,
    Resize,
    SegmentationDataLoaders,
    aug_transforms,
    imagenet_stats,
    resnet18,
    set_seed,
    unet_learner,
    vision_learner,
)
from PIL import Image

from fastmaker import bundle, masks, pipeline, preprocess, save_bundle
from fastmaker.export import onnx_file, reference
from fastmaker.serving import models
from fastmaker.training import learner_steps

SIZES = [(70, 45), (45, 70), (64, 64), (9, 7), (171, 43), (430, 300), (37, 251)]  # (width, height)
PAD_MODES = ("zeros", "border", "reflection")
ITEM_TFMS = {
    **{f"pad {mode}": lambda mode=mode: Resize((36, 50), method="pad", pad_mode=mode) for mode in PAD_MODES},
    **{f"resample {n}": lambda n=n: Resize((40, 33), resamples=(n, 0)) for n in range(6)},
    **{f"CropPad {mode}": lambda mode=mode: CropPad((40, 52), pad_mode=mode) for mode in PAD_MODES},
    "RandomCrop": lambda: RandomCrop((30, 41)),
    "RandomResizedCrop": lambda: RandomResizedCrop(56, min_scale=0.5),
    "RandomResizedCrop, a rectangle": lambda: RandomResizedCrop((40, 57), val_xtra=0.3),
    "RandomResizedCrop, nothing cut off": lambda: RandomResizedCrop(48, val_xtra=0, resamples=(3, 0)),
    "Resize, then CropPad": lambda: [Resize(64), CropPad(48)],
}
BATCH_TFMS = {
    "aug_transforms(size=...)": lambda: aug_transforms(size=(40, 56)),
    "aug_transforms, much smaller": lambda: aug_transforms(size=(12, 9)),
    "aug_transforms, larger": lambda: aug_transforms(size=300, pad_mode="zeros"),
    "aug_transforms, other modes": lambda: aug_transforms(size=33, mode="nearest", pad_mode="border"),
    "align_corners": lambda: aug_transforms(size=(33, 47), align_corners=False),
    "min_scale": lambda: aug_transforms(size=48, min_scale=0.75),
    "RandomResizedCropGPU": lambda: [RandomResizedCropGPU((40, 50), valid_scale=0.7, ratio=(0.9, 1.2))],
}


def array_of(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)


def png(size):
    stream = io.BytesIO()
    Image.fromarray(array_of(size)).save(stream, "PNG")
    return stream.getvalue()


def dataloaders(item_tfms=None, batch_tfms=None, image=PILImage, size=(64, 64)):
    images = [Image.fromarray(array_of(size, seed)).convert(image._open_args["mode"]) for seed in range(8)]
    block = DataBlock(
        (ImageBlock(image), CategoryBlock),
        get_x=ItemGetter(0),
        get_y=ItemGetter(1),
        splitter=RandomSplitter(seed=1),
        item_tfms=item_tfms,
        batch_tfms=batch_tfms,
    )
    return block.dataloaders([(np.asarray(image), n % 2) for n, image in enumerate(images)], bs=4, num_workers=0)


class Holder:
    """As much of a Learner as the steps are read from."""

    def __init__(self, dls):
        self.dls = dls


def assert_same_as_fastai(dls, mode="RGB", sizes=SIZES):
    channels = preprocess.CHANNELS[mode]
    validation = learner_steps.read(Holder(dls), channels)
    steps = validation.steps
    assert pipeline.problem(json.loads(json.dumps(steps)), channels) is None
    info = bundle.ModelInfo("classification", "resnet18", ("a", "b"), mode, (1, 1), "steps", (), (), steps=tuple(steps))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (validation.mean, validation.std))
    for size in sizes:
        data = png(size)
        expected = torch.Tensor(dls.test_dl([data], num_workers=0).one_batch()[0])
        batch = pipeline.to_tensor(preprocess.decode(data), info)[None]
        given = preprocess.standardise(pipeline.to_pixels(batch, steps), mean, std, validation.resampled)
        assert torch.equal(given, expected), size
        wanted = pipeline.output_size(steps)
        assert wanted is None or tuple(given.shape[-2:]) == wanted


@pytest.mark.parametrize("image", [PILImage, PILImageBW])
@pytest.mark.parametrize("name", ITEM_TFMS)
def test_a_step_of_images_gives_fastais_tensor(name, image):
    assert_same_as_fastai(dataloaders(ITEM_TFMS[name](), image=image), image._open_args["mode"])


@pytest.mark.parametrize("name", BATCH_TFMS)
def test_a_step_of_batches_gives_fastais_tensor(name):
    assert_same_as_fastai(dataloaders(None, BATCH_TFMS[name]()))


def test_presizing_gives_fastais_tensor():
    assert_same_as_fastai(dataloaders(Resize(100, method="pad", pad_mode="zeros"), aug_transforms(size=(32, 48))))
    assert_same_as_fastai(dataloaders(RandomResizedCrop(64), aug_transforms()))


def learner(dls):
    set_seed(5)
    return vision_learner(dls, resnet18, pretrained=False, normalize=False)


@pytest.fixture(scope="module")
def presized(photos, tmp_path_factory):
    """A bundle whose images are cropped and then resized in batches."""
    dls = ImageDataLoaders.from_folder(
        photos,
        valid_pct=0.3,
        item_tfms=Resize(80),
        batch_tfms=[*aug_transforms(size=(40, 48), min_scale=0.75), Normalize.from_stats(*imagenet_stats)],
        bs=8,
        num_workers=0,
    )
    folder = tmp_path_factory.mktemp("presized") / "model"
    save_bundle(learner(dls), folder)
    return folder


def test_a_model_json_with_steps_is_of_format_2(presized):
    values = json.loads((presized / "model.json").read_text())
    assert (values["format"], values["resize_method"], values["image_size"]) == (2, "steps", [40, 48])
    assert [step["step"] for step in values["steps"]] == ["resize", "grid_sample", "crop_and_grid_sample"]
    assert bundle.load_info(presized).steps == tuple(values["steps"])


def test_what_one_resize_says_stays_format_1(digits_bundle):
    info = bundle.load_info(digits_bundle)
    assert (info.format, info.steps, info.resize_method) == (1, (), "crop")


def test_a_format_1_without_the_key_steps_loads(digits_bundle, tmp_path):
    values = json.loads((digits_bundle / "model.json").read_text())
    del values["steps"]
    (tmp_path / "model.json").write_text(json.dumps(values))
    assert bundle.load_info(tmp_path) == bundle.load_info(digits_bundle)


RESIZE = {"step": "resize", "size": [40, 48], "method": "pad", "pad_mode": "zeros", "resample": "bilinear"}
GRID = {"step": "grid_sample", "size": [40, 48], "mode": "bilinear", "pad_mode": "zeros", "align_corners": True}


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([], "steps if, and only if"),
        (None, "steps if, and only if"),
        ("resize", "expected a list of objects"),
        ([[1]], "expected a list of objects"),
        ([{"step": "rotate"}], "step 'rotate' is unknown; expected one of resize, crop_pad"),
        ([{"step": ["resize"]}], "is unknown"),
        ([{**RESIZE, "more": 1}], "step 'resize' has other keys than size, method"),
        ([{**RESIZE, "size": [40, 0]}], "'size' of step 'resize' is"),
        ([{**RESIZE, "size": [40, True]}], "'size' of step 'resize' is"),
        ([{**RESIZE, "method": "none"}], "expected one of crop, pad, squish"),
        ([{**RESIZE, "pad_mode": "wrap"}], "'pad_mode' of step 'resize' is wrap"),
        ([{**GRID, "align_corners": 1}], "'align_corners' of step 'grid_sample' is 1; expected true or false"),
        ([GRID, RESIZE], "a step of images follows a step of batches"),
        ([{**RESIZE, "size": [41, 48]}], "'image_size' is"),
        ([{**GRID, "size": None}], "'image_size' is"),
    ],
)
def test_a_model_json_with_wrong_steps_is_refused(presized, tmp_path, steps, reason):
    values = json.loads((presized / "model.json").read_text()) | {"steps": steps}
    (tmp_path / "model.json").write_text(json.dumps(values))
    with pytest.raises(bundle.BundleError, match=reason) as error:
        bundle.load_info(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_images_of_several_sizes_are_answered_in_one_request(photos, tmp_path):
    learn = learner(dataloaders(None, aug_transforms(size=40)))
    save_bundle(learn, tmp_path / "model")
    model = models.load(tmp_path / "model", precision="float32")
    images = [Image.fromarray(array_of(size)) for size in ((64, 64), (64, 64), (90, 70), (64, 64))]
    found = model.predict(images)
    for image, prediction in zip(images, found, strict=True):
        assert np.allclose(prediction.probabilities, model.predict([image])[0].probabilities, atol=1e-6)


def test_a_learner_that_resizes_nothing_takes_images_of_its_size(tmp_path):
    learn = learner(dataloaders(size=(66, 50)))
    info = save_bundle(learn, tmp_path / "model")
    assert (info.format, info.resize_method, info.image_size) == (1, preprocess.NO_RESIZE, (50, 66))
    model = models.load(tmp_path / "model", precision="float32")
    image = Image.fromarray(array_of((66, 50), seed=99))
    with learn.no_bar(), learn.no_logging():
        expected = learn.predict(np.asarray(image))[2]
    assert np.array_equal(model.predict([image])[0].probabilities, expected.numpy())
    with pytest.raises(preprocess.ImageError, match="takes images of 66x50"):
        model.predict([Image.fromarray(array_of((66, 51)))])


def test_a_unets_masks_of_several_steps_have_no_original_size(scenes, tmp_path):
    learn = unet_of(scenes, aug_transforms(size=(32, 40)))
    with pytest.raises(bundle.BundleError, match="mask_size is original, but the Learner resizes images in several"):
        save_bundle(learn, tmp_path / "model", mask_size="original")


def test_paths_that_know_one_resize_refuse_a_bundle_with_steps(presized, tmp_path):
    with pytest.raises(onnx_file.ExportError, match="its model resizes batches"):
        onnx_file.to_onnx(presized, tmp_path / "model.onnx")
    with pytest.raises(bundle.BundleError, match="its images go through steps"):
        reference.learner(presized)
    with pytest.raises(preprocess.ImageError, match="'steps' has no one window"):
        preprocess.to_array(Image.new("RGB", (50, 40)), "RGB", (40, 48), preprocess.STEPS)
    with pytest.raises(preprocess.ImageError, match="ask for mask_size=model"):
        masks.resize_to_original(np.zeros((4, 4), np.uint8), (9, 9), preprocess.STEPS, 0)
    assert not masks.can_resize_to_original(preprocess.STEPS, 0)


def unet_of(scenes, batch_tfms):
    set_seed(2)
    dls = SegmentationDataLoaders.from_label_func(
        scenes,
        sorted((scenes / "images").iterdir()),
        lambda file: scenes / "labels" / f"{file.stem}_P.png",
        codes=(scenes / "codes.txt").read_text().split(),
        batch_tfms=batch_tfms,
        bs=4,
        num_workers=0,
    )
    return unet_learner(dls, resnet18, pretrained=False, n_out=4)


def test_a_unet_whose_batches_are_resized_gives_fastais_masks(scenes, tmp_path):
    learn = unet_of(scenes, aug_transforms(size=(32, 40)))
    save_bundle(learn, tmp_path / "model")
    model = models.load(tmp_path / "model", precision="float32")
    for file in sorted((scenes / "images").iterdir())[::6]:
        with learn.no_bar(), learn.no_logging():
            expected = learn.predict(file)[0]
        [found] = model.predict([preprocess.decode(file.read_bytes())])
        assert np.array_equal(found.array, np.asarray(expected))

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
    IntToFloatTensor,
    ItemGetter,
    Learner,
    Normalize,
    PILImage,
    PILImageBW,
    RandomCrop,
    RandomResizedCrop,
    RandomResizedCropGPU,
    RandomSplitter,
    RatioResize,
    Resize,
    SegmentationDataLoaders,
    aug_transforms,
    imagenet_stats,
    resnet18,
    set_seed,
    unet_learner,
    vision_learner,
)
from helpers import random_networks
from PIL import Image

from fastmaker import bundle, pipeline, preprocess, save_bundle
from fastmaker.export import onnx_file, reference
from fastmaker.serving import models
from fastmaker.training import image_classes, learner_steps

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
    "Resize in training alone": lambda: [Resize(64, split_idx=0), CropPad(48)],
}


def STATISTICS():
    return Normalize.from_stats(*imagenet_stats, cuda=False)


def ordered(transform, order):
    transform.order = order
    return transform


def in_training(transform):
    transform.split_idx = 0
    return transform


BATCH_TFMS = {
    "aug_transforms(size=...)": lambda: aug_transforms(size=(40, 56)),
    "aug_transforms, much smaller": lambda: aug_transforms(size=(12, 9)),
    "aug_transforms, larger": lambda: aug_transforms(size=300, pad_mode="zeros"),
    "aug_transforms, other modes": lambda: aug_transforms(size=33, mode="nearest", pad_mode="border"),
    "align_corners": lambda: aug_transforms(size=(33, 47), align_corners=False),
    "min_scale": lambda: aug_transforms(size=48, min_scale=0.75),
    "RandomResizedCropGPU": lambda: [RandomResizedCropGPU((40, 50), valid_scale=0.7, ratio=(0.9, 1.2))],
    "a divisor": lambda: [IntToFloatTensor(div=100), *aug_transforms(size=40)],
    "Normalize last": lambda: [*aug_transforms(), STATISTICS()],
    "Normalize before the rest": lambda: [ordered(STATISTICS(), 11), *aug_transforms(size=40)],
    "Normalize before the division": lambda: [ordered(Normalize(torch.tensor(99.0), torch.tensor(7.5)), 5)],
    "Normalize in training alone": lambda: [in_training(STATISTICS())],
}


def array_of(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)


def png(size):
    stream = io.BytesIO()
    Image.fromarray(array_of(size)).save(stream, "PNG")
    return stream.getvalue()


def dataloaders(item_tfms=None, batch_tfms=None, image=PILImage, size=(64, 64)):
    """Of images that all have this size, or, without one, several."""
    sizes = [size or of for of in (SIZES * 2)[:8]]
    images = [Image.fromarray(array_of(of, n)).convert(image._open_args["mode"]) for n, of in enumerate(sizes)]
    block = DataBlock(
        (ImageBlock(image), CategoryBlock),
        get_x=ItemGetter(0),
        get_y=ItemGetter(1),
        splitter=RandomSplitter(0.4, seed=1),
        item_tfms=item_tfms,
        batch_tfms=batch_tfms,
    )
    return block.dataloaders(
        [(np.asarray(image), n % 2) for n, image in enumerate(images)], bs=4 if size else 1, num_workers=0
    )


class Holder:
    """As much of a Learner as the steps are read from."""

    def __init__(self, dls):
        self.dls = dls


def assert_same_as_fastai(dls, mode="RGB", sizes=SIZES):
    channels = preprocess.CHANNELS[mode]
    validation = learner_steps.read(Holder(dls), channels)
    size = pipeline.output_size(validation.steps)
    steps, resampled = learner_steps.split_identity(validation.steps, size) if size else (validation.steps, False)
    steps = steps or [{"step": "any_size"}]
    assert pipeline.problem(json.loads(json.dumps(steps)), channels) is None
    info = bundle.ModelInfo("classification", "resnet18", ("a", "b"), mode, (1, 1), "steps", (), (), steps=tuple(steps))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (validation.mean, validation.std))
    for size in sizes:
        data = png(size)
        expected = torch.Tensor(dls.test_dl([data], num_workers=0).one_batch()[0])
        batch = pipeline.to_tensor(preprocess.decode(data), info)[None]
        given = preprocess.standardise(pipeline.to_pixels(batch, steps), mean, std, resampled)
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


def test_each_of_two_normalize_gives_fastais_tensor():
    dls = dataloaders(None, [STATISTICS()])
    dls.add_tfms([ordered(Normalize(torch.tensor(0.1), torch.tensor(3.0)), 98)], "after_batch")
    assert_same_as_fastai(dls, sizes=SIZES[:2])


RESIZES = [
    *(Resize((40, 31), method, mode) for method in ("crop", "pad", "squish") for mode in PAD_MODES),
    *([CropPad(64, pad_mode=mode), ordered(Resize(57, "pad", "zeros"), 2)] for mode in PAD_MODES),
    [CropPad(20, pad_mode="border"), ordered(Resize(31), 2)],
    RandomResizedCrop(40),
    RandomCrop(30),
]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "CMYK", "HSV", "YCbCr", "LAB", "1"])
def test_an_image_in_any_mode_gives_fastais_tensor(mode):
    """Above all where an image is padded by nothing, since it fits: of CMYK images that changes the mode."""
    image = type("Own", (PILImage,), {"_open_args": {"mode": mode}})
    assert image_classes.mode_of(image(Image.new(mode, (4, 3)))) == mode
    for resize in RESIZES:
        assert_same_as_fastai(dataloaders(resize, image=image), mode, [*SIZES[:3], (62, 80)])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"_open_args": {"mode": "I"}}, "opened in the mode I; expected one of RGB, L"),
        ({"_open_args": {"mode": None}}, "Own, have no one mode"),
        ({"resize": lambda image, *size: image}, "images are Own; expected PILImage or PILImageBW"),
        ({"_tensor_cls": torch.Tensor}, "images are Own; expected PILImage or PILImageBW"),
    ],
)
def test_an_image_class_that_does_something_else_is_refused(body, reason):
    image = type("Own", (PILImage,), body)(Image.new(body.get("_open_args", {}).get("mode") or "RGB", (4, 3)))
    with pytest.raises(bundle.BundleError, match=reason):
        image_classes.mode_of(image)


def test_images_of_ratio_resize_are_fastais_or_refused():
    """To whole pixels most images have another aspect ratio, and fastai then cuts them at a random place."""
    dls = dataloaders([RatioResize(48), ordered(CropPad(40), 2)])
    exact = [(96, 64), (64, 96), (60, 60), (480, 320)]
    assert_same_as_fastai(dls, sizes=exact)
    steps = learner_steps.read(Holder(dls), 3).steps
    info = bundle.ModelInfo(
        "classification", "resnet18", ("a", "b"), "RGB", (1, 1), "steps", (), (), steps=tuple(steps)
    )
    with pytest.raises(preprocess.ImageError, match="RatioResize cuts an image of 401x307 at a random place"):
        pipeline.to_tensor(Image.new("RGB", (401, 307)), info)


@pytest.mark.parametrize(
    ("batch_tfms", "reason"),
    [
        (
            lambda: [Normalize(torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64))],
            r"Normalize has a mean of the shape \[1, 3, 64, 64\]; expected one number",
        ),
        (lambda: [Normalize(torch.zeros(1), torch.zeros(1))], "'std' of step 'normalize' is"),
        (lambda: [IntToFloatTensor(div=0)], "'by' of step 'divide' is 0.0; expected a number above 0"),
    ],
)
def test_a_batch_transform_that_is_no_step_is_refused(batch_tfms, reason):
    dls = dataloaders()
    dls.valid.after_batch.fs = type(dls.valid.after_batch.fs)([IntToFloatTensor(), *batch_tfms()])
    dls.valid.after_batch.fs = [*dls.valid.after_batch.fs, ordered(STATISTICS(), 100)]
    with pytest.raises(bundle.BundleError, match=reason):
        learner_steps.read(Holder(dls), 3)


def test_presizing_gives_fastais_tensor():
    assert_same_as_fastai(dataloaders(Resize(100, method="pad", pad_mode="zeros"), aug_transforms(size=(32, 48))))
    assert_same_as_fastai(dataloaders(RandomResizedCrop(64), aug_transforms()))
    assert_same_as_fastai(dataloaders(Resize((90, 40)), aug_transforms()))  # so tall that fastai takes means


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
        ([RESIZE, {"step": "normalize", "mean": [0.5], "std": [1.0]}], "has 1 and 1 numbers; expected 3"),
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


def test_a_learner_that_resizes_nothing_takes_images_of_any_size_if_they_had_several(tmp_path):
    dls = dataloaders(size=None, batch_tfms=[*aug_transforms(), STATISTICS()])
    learn = Learner(dls, random_networks.Tiny(3, 2))
    info = save_bundle(learn, tmp_path / "model")
    assert [step["step"] for step in info.steps] == ["any_size", "grid_sample"]
    model = models.load(tmp_path / "model", precision="float32")
    for size in SIZES[:5]:
        image = Image.fromarray(array_of(size, seed=99))
        with learn.no_bar(), learn.no_logging():
            expected = learn.predict(np.asarray(image))[2]
        assert np.array_equal(model.predict([image])[0].probabilities, expected.numpy())
    with pytest.raises(preprocess.ImageError, match="the model takes no image of 1x2"):
        model.predict([Image.new("RGB", (1, 2))])
    learn.model = random_networks.sized(3, 2, (64, 64))
    with pytest.raises(bundle.BundleError):
        save_bundle(learn, tmp_path / "other")


def test_images_that_are_resized_in_batches_alone_or_not_at_all_become_an_onnx_file(tmp_path):
    dls = dataloaders(batch_tfms=[ordered(STATISTICS(), 11), *aug_transforms()])
    save_bundle(Learner(dls, random_networks.Tiny(3, 2)), tmp_path / "model")
    assert bundle.load_info(tmp_path / "model").steps[0]["step"] == "check_size"
    assert onnx_file.to_onnx(tmp_path / "model", tmp_path / "model.onnx") < 1e-6
    save_bundle(
        Learner(dataloaders(size=None, batch_tfms=aug_transforms(size=40)), random_networks.Tiny(3, 2)), tmp_path
    )
    assert onnx_file.to_onnx(tmp_path, tmp_path / "model.onnx") < 1e-6


def test_a_bundle_with_steps_is_rebuilt_as_a_learner_and_exported(presized, photos, tmp_path):
    learn, model = reference.learner(presized), models.load(presized, precision="float32")
    assert onnx_file.to_onnx(presized, presized / "model.onnx") < 1e-6
    runtime = models.load(presized, engine="onnxruntime")
    for file in sorted(photos.rglob("*.jpg"))[::9]:
        with learn.no_bar(), learn.no_logging():
            expected = learn.predict(file)[2].numpy()
        image = preprocess.decode(file.read_bytes())
        assert np.array_equal(model.predict([image])[0].probabilities, expected)
        assert np.allclose(runtime.predict([image])[0].probabilities, expected, atol=1e-5)


def test_steps_of_every_kind_are_those_of_the_rebuilt_learner(tmp_path):
    tfms = [Resize(70, "pad", "zeros", resamples=(3, 0)), ordered(CropPad((60, 64), "border"), 2)]
    batch = [IntToFloatTensor(div=100), ordered(STATISTICS(), 11), RandomResizedCropGPU(48, valid_scale=0.8)]
    save_bundle(Learner(dataloaders(tfms, batch), random_networks.Tiny(3, 2)), tmp_path)
    learn, model = reference.learner(tmp_path), models.load(tmp_path, precision="float32")
    for size in SIZES:
        with learn.no_bar(), learn.no_logging():
            expected = learn.predict(png(size))[2].numpy()
        assert np.array_equal(model.predict([preprocess.decode(png(size))])[0].probabilities, expected)
    assert onnx_file.to_onnx(tmp_path, tmp_path / "model.onnx") < 1e-6
    assert onnx_file.to_onnx(tmp_path, tmp_path / "float.onnx", "float") < 1e-6


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

"""A bundle served by pure PyTorch answers as fastai's learn.predict does: same label, same bits.

Also the Learners of which a bundle could not say that: they are refused when they are saved.
"""

import numpy as np
import pytest
import torch
import torchvision.models
from fastai.vision.all import (
    BCEWithLogitsLossFlat,
    CategoryBlock,
    CropPad,
    DataBlock,
    ImageBlock,
    ImageDataLoaders,
    IntToFloatTensor,
    LabelSmoothingCrossEntropyFlat,
    Normalize,
    PILImage,
    RandomCrop,
    RandomResizedCrop,
    RatioResize,
    Resize,
    TensorImage,
    Transform,
    TransformBlock,
    accuracy,
    aug_transforms,
    get_image_files,
    imagenet_stats,
    parent_label,
    set_seed,
    vision_learner,
)
from torch import nn

from fastmaker import bundle, preprocess, save_bundle
from fastmaker.serving import models
from fastmaker.training import data, learner
from fastmaker.training.arguments import parse_args

pytestmark = pytest.mark.learner
METHODS = preprocess.RESIZE_METHODS


def images_of(folder, every=6):
    return sorted(file for file in folder.rglob("*") if file.suffix in (".jpg", ".png"))[::every]


def assert_same_answers(learn, model_dir, files):
    """The bundle of `learn` answers each file with the label and the very bits that `learn.predict` gives."""
    save_bundle(learn, model_dir)
    model = models.load(model_dir, precision="float32")
    answers = set()
    for file in files:
        with learn.no_bar(), learn.no_logging():
            label, _, expected = learn.predict(file)
        [found] = model.predict([preprocess.decode(file.read_bytes())])
        assert found.label == str(label)
        assert np.array_equal(found.probabilities, expected.numpy()), abs(found.probabilities - expected.numpy()).max()
        answers.add(found.probabilities.tobytes())
    assert len(answers) == len(files)  # the images do make a difference


def learner_of(folder, architecture, mode="RGB", size=(64, 64), method="crop", augment=False, batch_size=8):
    set_seed(2)
    samples = data.read(folder)
    dls = data.dataloaders(samples, mode, size, method, batch_size, augment, workers=0)
    args = parse_args(["--train", "images", "--arch", architecture, "--image-mode", mode])
    return learner.create(dls, samples, args, pretrained=False)


def train(learn):
    with learn.no_bar(), learn.no_logging():
        learner.fit(learn, epochs=1, lr=0.003, fine_tune=False)
    return learn


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "architecture",
    ["convnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "resnet34", "resnet50"))],
)
def test_a_new_network_answers_as_in_fastai(photos, tmp_path, architecture, method):
    assert_same_answers(learner_of(photos, architecture, method=method), tmp_path, images_of(photos))


@pytest.mark.parametrize("architecture", ["vgg11_bn", "alexnet", "densenet121", "squeezenet1_1"])
def test_a_network_of_another_family_answers_as_in_fastai(photos, tmp_path, architecture):
    assert_same_answers(learner_of(photos, architecture), tmp_path, images_of(photos, every=12))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("architecture", ["convnet", "resnet18"])
def test_a_trained_network_answers_as_in_fastai(photos, tmp_path, architecture, mode):
    learn = train(learner_of(photos, architecture, mode, size=(48, 56), method="pad"))
    assert_same_answers(learn, tmp_path, images_of(photos, every=3))


def test_a_convnet_trained_on_digits_answers_as_in_fastai(digits_learner, digits, tmp_path):
    assert_same_answers(digits_learner, tmp_path, images_of(digits, every=45))


def test_a_fine_tuned_network_answers_as_in_fastai(photos, tmp_path):
    learn = learner_of(photos, "resnet18", size=(32, 32))
    with learn.no_bar(), learn.no_logging():
        learner.fit(learn, epochs=1, lr=0.003, fine_tune=True)
    assert_same_answers(learn, tmp_path, images_of(photos))


@pytest.mark.parametrize("architecture", ["convnet", "resnet18"])
def test_a_network_trained_with_augmentation_answers_as_in_fastai(photos, tmp_path, architecture):
    learn = train(learner_of(photos, architecture, size=(32, 32), augment=True))
    assert_same_answers(learn, tmp_path, images_of(photos))


def test_a_batch_of_images_is_answered_as_fastai_answers_it(digits_learner, digits_bundle, digits):
    files = images_of(digits, every=120)
    with digits_learner.no_bar():
        expected, _ = digits_learner.get_preds(dl=digits_learner.dls.test_dl(files, bs=16))
    found = models.load(digits_bundle).predict([preprocess.decode(file.read_bytes()) for file in files])
    assert len(files) <= models.MAX_BATCH
    assert np.array_equal([prediction.probabilities for prediction in found], expected.numpy())


# Learners from a notebook


def notebook_learner(photos, item_tfms=None, batch_tfms=None, arch=torchvision.models.resnet18, **options):
    set_seed(4)
    dls = ImageDataLoaders.from_folder(
        photos, valid_pct=0.25, seed=1, item_tfms=item_tfms or Resize(48), batch_tfms=batch_tfms, bs=8, num_workers=0
    )
    return vision_learner(dls, arch, pretrained=False, **options)


def photos_normalised():
    return [*aug_transforms(), Normalize.from_stats(*imagenet_stats)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"item_tfms": Resize((40, 64), method="squish")},
        {"item_tfms": Resize(48, method="pad")},
        pytest.param({"item_tfms": [Resize(32), Resize(48)]}, marks=pytest.mark.slow),
        {"batch_tfms": Normalize.from_stats(*imagenet_stats)},
        pytest.param({"batch_tfms": aug_transforms()}, marks=pytest.mark.slow),
        pytest.param({"batch_tfms": photos_normalised()}, marks=pytest.mark.slow),
        {"batch_tfms": aug_transforms(size=40)},
        {"batch_tfms": [*aug_transforms(size=(32, 40), min_scale=0.75), Normalize.from_stats(*imagenet_stats)]},
        {"item_tfms": RandomResizedCrop(48)},
        {"item_tfms": Resize(48, method="pad", pad_mode="zeros")},
        pytest.param({"item_tfms": Resize(48, resamples=(3, 0))}, marks=pytest.mark.slow),
        {"item_tfms": [Resize(64), CropPad(48)]},
        {"item_tfms": [Resize(64), RandomCrop(48)]},
        {"loss_func": LabelSmoothingCrossEntropyFlat()},
        pytest.param({"metrics": accuracy}, marks=pytest.mark.slow),
        pytest.param({"ps": 0.1}, marks=pytest.mark.slow),
    ],
    ids=lambda options: "+".join(options) or "the plainest",
)
def test_a_notebooks_learner_answers_as_in_fastai(photos, tmp_path, options):
    assert_same_answers(notebook_learner(photos, **options), tmp_path, images_of(photos))


def test_a_trained_learner_of_a_notebook_answers_as_in_fastai(photos, tmp_path):
    learn = notebook_learner(photos, batch_tfms=Normalize.from_stats(*imagenet_stats))
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1)
    assert_same_answers(learn, tmp_path, images_of(photos))


@Transform
def inverted(image: PILImage):
    return PILImage.create(255 - np.asarray(image))


@Transform
def doubled(batch: TensorImage):
    return batch * 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"item_tfms": RatioResize(48)}, "RatioResize cuts an image of .* at a random place"),
        ({"item_tfms": [inverted, Resize(48)]}, "inverted"),
        ({"batch_tfms": doubled}, "doubled"),
        ({"loss_func": BCEWithLogitsLossFlat()}, "loss BCEWithLogitsLossFlat decodes otherwise"),
        ({"loss_func": nn.CrossEntropyLoss()}, "loss CrossEntropyLoss has no decodes"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else str(value),
)
def test_a_learner_that_a_bundle_cannot_reproduce_is_refused(photos, tmp_path, options, reason):
    learn = notebook_learner(photos, **options)
    with pytest.raises(bundle.BundleError, match=reason):
        save_bundle(learn, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": (TransformBlock([PILImage.create, inverted], batch_tfms=IntToFloatTensor), CategoryBlock)},
        {"get_x": lambda file: 255 - np.asarray(PILImage.create(file))},
    ],
    ids=["in the block", "before it"],
)
def test_a_learner_that_changes_pixels_where_it_opens_images_is_refused(photos, tmp_path, change):
    parts = {"blocks": (ImageBlock, CategoryBlock), "get_y": parent_label, "item_tfms": Resize(48), **change}
    dls = DataBlock(get_items=get_image_files, **parts).dataloaders(photos, bs=8, num_workers=0)
    with pytest.raises(bundle.BundleError, match="makes or changes images before"):
        save_bundle(vision_learner(dls, torchvision.models.resnet18, pretrained=False), tmp_path / "model")


def test_a_learner_that_resizes_twice_answers_as_in_fastai(photos, tmp_path):
    learn = notebook_learner(photos)
    learn.dls.valid.after_item.add(Resize((32, 40)))
    assert_same_answers(learn, tmp_path / "model", images_of(photos))


def test_a_learner_in_channels_last_is_saved(photos, tmp_path):
    learn = notebook_learner(photos)
    save_bundle(learn, tmp_path / "before")
    save_bundle(learn.to_channelslast(), tmp_path / "after")
    [(before, _), (after, _)] = bundle.load(tmp_path / "before"), bundle.load(tmp_path / "after")
    assert all(map(torch.equal, before.state_dict().values(), after.state_dict().values()))


class Capped(nn.ReLU):
    def forward(self, x):
        return super().forward(x).clamp(max=1e4)


def added(model):
    model[1].append(nn.ReLU())


def capped(model):
    model[1][5] = nn.Hardtanh(0, 1e4)


def of_ones_own(model):
    model[1][5] = Capped()


def patched(model):
    relu = model[1][5]
    relu.forward = lambda x: nn.functional.relu(x).clamp(max=1e4)


def hooked(model):
    model[1][5].register_forward_hook(lambda _, inputs, result: result.clamp(max=1e4))


@pytest.mark.parametrize("change", [added, capped, of_ones_own, patched, hooked])
def test_what_no_weights_tell_of_is_kept_as_a_graph(photos, tmp_path, change):
    """Most images get the same logits without it."""
    learn = notebook_learner(photos)
    *_, norm, _, last = learn.model[1]
    with torch.no_grad():
        norm.bias += 9
        last.weight.abs_()  # all logits are positive
    change(learn.model)
    assert_same_answers(learn, tmp_path, images_of(photos)[:3])
    assert bundle.load_info(tmp_path).architecture == "graph"


def test_a_network_with_another_activation_is_kept_as_a_graph(photos, tmp_path):
    learn = notebook_learner(photos)
    learn.model[1][5] = nn.GELU()  # in the head; no weights tell of it
    assert_same_answers(learn, tmp_path, images_of(photos))
    assert bundle.load_info(tmp_path).architecture == "graph"


# Real photographs


def pets_learner(test_data):
    set_seed(6)
    samples = data.read(test_data / "pets" / "images", label_regex=r"^(.+)_\d+\.jpg$")
    dls = data.dataloaders(samples, "RGB", (224, 224), "crop", batch_size=8, augment=False, workers=0)
    return learner.create(dls, samples, parse_args(["--train", "pets"]), pretrained=False)


@pytest.mark.data
def test_some_of_the_pets_are_answered_as_in_fastai(test_data, tmp_path):
    assert_same_answers(pets_learner(test_data), tmp_path, images_of(test_data / "pets" / "images", every=20))


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_all_pets_are_answered_as_in_fastai(test_data, tmp_path, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same_answers(pets_learner(test_data), tmp_path, images_of(test_data / "pets" / "images", every=1))
    finally:
        torch.set_num_threads(before)


@pytest.mark.data
def test_ugly_images_are_answered_as_in_fastai(test_data, photos, tmp_path):
    broken = ("broken_data_stream.png", "broken_header.png", "decompression_bomb.gif", "truncated.jpg")
    files = [file for file in sorted((test_data / "ugly_images").iterdir()) if file.name not in (*broken, "SOURCE.txt")]
    assert len(files) == 14
    assert_same_answers(learner_of(photos, "resnet18", method="pad"), tmp_path, files)

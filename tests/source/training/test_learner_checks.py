"""A Learner in any state becomes a bundle that answers as it does, or is refused in a line, and nothing is written."""

import re

import numpy as np
import pytest
import torch
from fastai.vision.all import (
    Callback,
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    DataLoaders,
    ImageBlock,
    ImageDataLoaders,
    L,
    Learner,
    MSELossFlat,
    PILImageBW,
    RandomSplitter,
    RegressionBlock,
    Resize,
    set_seed,
)
from torch import nn

from fastmaker import BundleError, load_bundle, preprocess, save_bundle


@pytest.fixture(scope="module")
def files(photos):
    return sorted(photos.rglob("*.jpg"))[::6]


@pytest.fixture(scope="module")
def dls(files):
    labels = [file.parent.name for file in files]
    return ImageDataLoaders.from_lists(
        "/", files, labels, valid_pct=0.3, seed=1, item_tfms=Resize(24), bs=4, num_workers=0
    )


def network():
    layers = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, 3))


@pytest.fixture
def learn(dls):
    set_seed(4)
    learn = Learner(dls, network(), loss_func=CrossEntropyLossFlat())
    yield learn
    dls.vocab = L("checks", "rings", "stripes")


def distributed(model):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(model)


def with_history(model):
    """The model with weight norm, after a batch of training: its weights are results, with gradients."""
    model[0] = torch.nn.utils.weight_norm(model[0])
    model.train()(torch.rand(2, 3, 24, 24)).sum().backward()
    return model


def with_hook(model):
    model[0].register_forward_hook(lambda _, inputs, result: result * 2 + inputs[0].mean((1, 2, 3), keepdim=True))
    return model


WORKS = {
    "not trained": lambda model: model,
    "frozen": lambda model: model.requires_grad_(False),
    "partly in training mode": lambda model: model.train() and model[1].eval() and model,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": distributed,
    "compiled": torch.compile,
    "with a hook": with_hook,
    "without classes of its own": lambda model: nn.Sequential(*model, nn.Linear(3, 3)),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "with a mask of infinity": lambda model: model.register_buffer("mask", torch.tensor([-torch.inf])) or model,
    "weight norm after training": with_history,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "compiled" else ()) for n in WORKS])
def test_a_learner_in_this_state_is_answered_as_in_fastai(learn, files, tmp_path, name):
    try:
        given = learn.model = WORKS[name](learn.model)
        modes = [module.training for module in given.modules()]
        save_bundle(learn, tmp_path)
        assert learn.model is given
        assert [module.training for module in given.modules()] == modes
        learn.model = getattr(given, "_orig_mod", getattr(given, "module", given))
        for file in files[:2]:
            with learn.no_bar(), learn.no_logging():
                label, _, expected = learn.predict(file)
            [found] = load_bundle(tmp_path).predict([preprocess.decode(file.read_bytes())])
            assert found.label == label
            assert np.abs(found.probabilities - expected.numpy()).max() <= (1e-6 if name == "channels last" else 0)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def change(model, tensor, value):
    with torch.no_grad():
        model.get_parameter(tensor)[0] = value
    return model


def quantized(model):
    return torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear}, dtype=torch.qint8)


NETWORKS = {
    "float16": (nn.Module.half, "its 0.weight is float16, and a Learner's images are float32"),
    "bfloat16": (nn.Module.bfloat16, "its 0.weight is bfloat16"),
    "float64": (nn.Module.double, "its 0.weight is float64, and a Learner's images are float32"),
    "NaN": (lambda model: change(model, "5.bias", torch.nan), "its 5.bias holds NaN"),
    "infinite": (lambda model: change(model, "0.weight", torch.inf), "its 0.weight holds infinite numbers"),
    "NaN statistics": (
        lambda model: model[1].running_var.fill_(torch.nan) is not None and model,
        "its 1.running_var holds NaN",
    ),
    "meta": (lambda model: model.to("meta"), "its 0.weight has no values"),
    "lazy": (lambda model: nn.Sequential(*model[:5], nn.LazyLinear(3)), "its 5.weight is not initialized"),
    "scripted": (torch.jit.script, "a RecursiveScriptModule, is scripted"),
    "traced": (lambda model: torch.jit.trace(model.eval(), torch.rand(2, 3, 24, 24)), "is scripted"),
    "a scripted layer": (
        lambda model: nn.Sequential(torch.jit.script(model[0]), *model[1:]),
        "0 (RecursiveScriptModule) is scripted",
    ),
    "quantized": (quantized, "cannot be kept in a bundle"),
    "no weights": (lambda _: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "it has no weights"),
    "other channels": (lambda model: nn.Sequential(nn.Conv2d(1, 8, 3), *model[1:]), "its layer 0 (Conv2d)"),
    "other classes": (
        lambda model: nn.Sequential(*model, nn.Linear(3, 5)),
        "has the shape [5] for one",
    ),
    "pixels": (lambda model: model[:3], "has the shape ["),
}


def assert_refused(given, folder, reason):
    with pytest.raises(BundleError) as error:
        save_bundle(given, folder / "model")
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500
    assert not (folder / "model").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_cannot_predict_is_refused(learn, tmp_path, name):
    make, reason = NETWORKS[name]
    learn.model = make(learn.model)
    assert_refused(learn, tmp_path, reason)


class Brighter(Callback):
    def before_batch(self):
        if self.xb[0].mean() < -1:  # of an image that is all but black
            self.learn.xb = tuple(batch + 1 for batch in self.xb)


class InTraining(Brighter):
    run_valid = False


class Cut(Callback):
    def after_pred(self):
        self.learn.pred = self.pred.clamp(-1000, 255)


class Counted(Callback):
    def after_epoch(self):
        self.epochs = getattr(self, "epochs", 0) + 1


class Unsure(Learner):
    def predict(self, item, **options):
        label, index, numbers = super().predict(item, **options)
        return ("unsure" if numbers.max() < 0.2 else label), index, numbers


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda learn: learn.add_cb(Brighter()),
            "Brighter also runs when the Learner predicts (before_batch)",
        ),
        (
            lambda learn: learn.add_cb(Cut()),
            "learn.remove_cb(Cut), or --ignore, takes it out if no answer depends on it",
        ),
        (lambda learn: learn.add_cb(Callback(after_pred=lambda learn: None)), "callback Callback also runs"),
        (lambda learn: setattr(learn, "__class__", Unsure), "the Learner's predict is not fastai's"),
        (lambda learn: setattr(learn, "get_preds", lambda **options: None), "the Learner's get_preds is not fastai's"),
    ],
    ids=["before_batch", "after_pred", "a callback of functions", "a class of its own", "a method of its own"],
)
def test_code_of_ones_own_that_predicts_as_well_is_refused(learn, tmp_path, change, reason):
    """It may do to rare images what it does not to those that are compared."""
    change(learn)
    with pytest.raises(BundleError, match=re.escape(reason)):
        save_bundle(learn, tmp_path / "model")


@pytest.mark.parametrize("callback", [InTraining, Counted])
def test_a_callback_of_ones_own_that_only_trains_is_free(learn, tmp_path, callback):
    learn.add_cb(callback())
    save_bundle(learn, tmp_path / "model")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (network(), "expected a fastai Learner, found Sequential; a network alone does not say"),
        (None, "expected a fastai Learner, found NoneType"),
        ("export.pkl", "expected a fastai Learner, found str"),
        (Learner, "expected a fastai Learner, found type"),
        ({"model": network()}, "expected a fastai Learner, found dict"),
    ],
    ids=["network", "None", "path", "class", "dictionary"],
)
def test_what_is_no_learner_is_refused(tmp_path, given, reason):
    assert_refused(given, tmp_path, reason)


def test_a_learner_of_torchs_data_loaders_is_refused(tmp_path):
    loader = torch.utils.data.DataLoader([(torch.rand(3, 24, 24), 0)] * 4)
    learn = Learner(DataLoaders(loader, loader), network(), loss_func=CrossEntropyLossFlat())
    assert_refused(learn, tmp_path, "is in a torch.utils.data.dataloader.DataLoader; expected a DataLoader of fastai")


def test_a_learner_without_validation_data_loader_is_refused(tmp_path, dls):
    learn = Learner(DataLoaders(dls.train), network(), loss_func=CrossEntropyLossFlat())
    assert_refused(learn, tmp_path, "has no validation DataLoader")


@pytest.mark.parametrize("vocab", [[], ["alone"]])
def test_classes_that_are_none_are_refused(learn, tmp_path, vocab):
    learn.dls.vocab = L(vocab)
    assert_refused(learn, tmp_path, f"the Learner's classes are {vocab}; expected two or more")


class Opened(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.rand(3, 24, 24), 0


def test_a_learner_of_torchs_dataset_is_refused(tmp_path):
    dls = DataLoaders.from_dsets(Opened(), Opened(), bs=4, num_workers=0)
    learn = Learner(dls, network(), loss_func=CrossEntropyLossFlat())
    assert_refused(learn, tmp_path, "validation data is a Opened, which does not say how it opens an image file; make")


class Squeezed(nn.Module):
    def __init__(self, n_out):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, n_out, 3), nn.AdaptiveAvgPool2d(1))

    def forward(self, images):
        return self.layers(images).squeeze()


class Decoder(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1))


class OtherDecodes(CrossEntropyLossFlat):
    def decodes(self, numbers):
        return numbers.argmin(dim=1)


class OtherActivation(CrossEntropyLossFlat):
    def activation(self, logits):
        return (logits / 2).softmax(dim=1)


def number(file):
    return float(file.stem)


def as_it_is(file):
    return file


OF_NUMBERS = {"blocks": (ImageBlock, RegressionBlock), "get_y": number}


@pytest.mark.parametrize(
    ("network", "loss", "data", "reason"),
    [
        (
            Decoder(),
            MSELossFlat(),
            {"blocks": (ImageBlock, ImageBlock), "get_y": as_it_is},
            "predicts images (TensorImage), which a",
        ),
        (
            Decoder(),
            MSELossFlat(),
            {"blocks": (ImageBlock, ImageBlock(PILImageBW)), "get_y": as_it_is},
            "images (TensorImageBW)",
        ),
        (Decoder(), MSELossFlat(), OF_NUMBERS, "[3, 24, 24] for one image; expected [n], for numbers and points: x.fl"),
        (Squeezed(3), CrossEntropyLossFlat(), {}, "[2, 3] for two images and [3] for one; expected a row for each"),
        (Squeezed(1), MSELossFlat(), OF_NUMBERS, "[2] for two images and [] for one; expected a row for each image: ."),
        (network(), OtherDecodes(), {}, "decodes otherwise; expected one whose decodes picks the highest number of e"),
        (network(), OtherDecodes(), {}, "learn.loss_func = CrossEntropyLossFlat() answers so"),
        (network(), OtherActivation(), {}, "or none: learn.loss_func = CrossEntropyLossFlat() has one"),
    ],
)
def test_what_a_bundle_cannot_answer_is_refused_with_what_to_do(files, tmp_path, network, loss, data, reason):
    options = {"blocks": (ImageBlock, CategoryBlock), "get_y": lambda file: file.parent.name} | data
    block = DataBlock(get_items=lambda _: files, splitter=RandomSplitter(seed=1), item_tfms=Resize(24), **options)
    learn = Learner(block.dataloaders("/", bs=4, num_workers=0), network, loss_func=loss)
    assert_refused(learn, tmp_path, reason)

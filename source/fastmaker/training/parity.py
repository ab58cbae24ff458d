"""Compares a Learner's answers with those of the bundle that is to be made of it.

On the Learner's side runs ``learn.predict``, with the Learner's own input pipeline, network and loss; on the bundle's
side what serving runs. Both get the same bytes: images of the Learner's own validation set, and generated ones.
"""

import contextlib
import dataclasses
import io
import itertools
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.vision.all import AttrGetter, ColReader, DataLoader, ItemGetter, L, Learner, PILBase
from PIL import Image

from fastmaker import bundle, image_steps, pipeline, preprocess
from fastmaker.serving import engines, models
from fastmaker.training import answer_parity, capture, pictures

VALIDATION_IMAGES = 4  # of the Learner's validation set, spread over it
SIZED_IMAGES = 24  # of which the size is looked at, where the Learner resizes none
ANSWERED = 3  # generated images whose whole answers are compared; of all of them, the network's input is
TOLERANCE = 1e-6  # of the network's input; equal bits are usual
SAME_ITEM = (ItemGetter, AttrGetter, ColReader)  # fastai's getters, which do not change what they get


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a Learner says about one image."""

    batch: torch.Tensor  # the network's input (1, C, H, W)
    decoded: Any  # the first value of learn.predict: a label, labels, numbers, points or a mask
    numbers: np.ndarray  # the third: probabilities, or what the network returns


def check(learn: Learner, network: torch.nn.Module, info: bundle.ModelInfo) -> None:
    """Raise BundleError unless the bundle of `network`, the Learner's, with `info` answers as `learn` does.

    Also raised if that cannot be found out. `learn` must be `predicting`.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = _model(learn, network, info)
        _check_generated(learn, model, Path(folder))
        for index in _spread(len(learn.dls.valid_ds), VALIDATION_IMAGES):
            _check_validation_image(learn, model, index)


def sizes_of_images(learn: Learner) -> list[tuple[int, int]]:
    """Return the different sizes (height, width) that some validation images have before they are stacked."""
    dl = learn.dls.valid.new(bs=1, shuffle=False, drop_last=False, num_workers=0)
    try:
        items = [dl.do_item(index)[0] for index in _spread(len(learn.dls.valid_ds), SIZED_IMAGES)]
    except Exception as error:  # a reader of the user's own may raise anything
        raise bundle.BundleError(f"the Learner's validation images cannot be read: {_line(error)}") from None
    return list(dict.fromkeys((int(item.shape[-2]), int(item.shape[-1])) for item in items))


def check_ratio_resize(learn: Learner, steps: list[pipeline.Step]) -> None:
    """Raise BundleError if the first step is a RatioResize that is random for some validation images."""
    if not steps or steps[0]["step"] != "ratio_resize":
        return
    for index in _spread(len(learn.dls.valid_ds), SIZED_IMAGES):
        try:
            image_steps.ratio_size(_source(learn, index).size, steps[0]["longest"])
        except ValueError as error:
            raise bundle.BundleError(f"the Learner's validation images cannot be prepared: {error}") from None


def image_of(learn: Learner) -> Image.Image:
    """Return what the Learner opens a generated image file as, before its item transforms. Raises BundleError."""
    with tempfile.TemporaryDirectory() as folder:
        item = accepted_item(learn, _saved(pictures.plain((401, 307)), Path(folder), "image"))
        return learn.dls.test_dl([item], num_workers=0).dataset[0][0]


def _check_generated(learn: Learner, model: models.Model, folder: Path) -> None:
    """Compare on generated images: the first few with their answers, all with the network's input."""
    accepted, compared = None, 0
    for name, data in pictures.generate(_size_taken(learn, model.info)):
        file = _saved(data, folder, name)
        if accepted is None:  # an image that every Learner takes, or the reason why not
            accepted = accepted_item(learn, file)
            _check_opened(learn, accepted)
            _check_repeats(learn, accepted)
            answer_parity.check_decoding(learn, model.info, learn.dls.test_dl([accepted], num_workers=0).one_batch()[0])
        item = next(item for item in _forms(file) if isinstance(item, type(accepted)))
        compared += _compare_generated(learn, model, item, (name, data), whole=compared < ANSWERED)
    if not compared:
        raise bundle.BundleError("the bundle cannot be compared with the Learner: the bundle takes no generated image")


def _size_taken(learn: Learner, info: bundle.ModelInfo) -> tuple[int, int] | None:
    """Return the size (height, width) of the only images that the bundle takes; None if it takes any."""
    names = [step["step"] for step in info.steps if step["step"] in pipeline.OF_IMAGES]
    if info.resize_method == preprocess.NO_RESIZE:
        return info.image_size
    if names[:1] == ["check_size"] or ("check_size" in names and not len(learn.dls.valid_ds)):
        return info.image_size
    if "ratio_resize" in names and len(learn.dls.valid_ds):
        image = _source(learn, 0)
        return image.height, image.width
    return None


def _check_opened(learn: Learner, value: Any) -> None:
    """Raise BundleError if something else than an image class of fastai makes the image of what `predict` gets.

    A function of the user's own may do to some images what it does not to those that are compared.
    """
    for transform in learn.dls.test_dl([value], num_workers=0).dataset.tls[0].tfms.fs:
        value = transform(value, split_idx=1) if _takes_split(transform) else transform(value)
        if not isinstance(value, (str, Path, bytes)) and not _is_create(transform):
            raise bundle.BundleError(
                f"the Learner's {_name(transform)} makes or changes images before its item transforms; a bundle opens"
                " files as PILImage.create does"
            )


def _is_create(transform: Any) -> bool:
    """Return whether a transform opens images by ``PILBase.create`` (a pickle has a copy of it) or as our jobs do."""
    methods = getattr(getattr(transform, "encodes", None), "methods", ())
    names = [_where(getattr(method, "implementation", method)) for method in methods]
    fastais = (PILBase.__module__, PILBase.create.__qualname__)
    return bool(names) and all(module.startswith("fastmaker.") or (module, name) == fastais for module, name in names)


def _where(function: Any) -> tuple[str, str]:
    return str(getattr(function, "__module__", "")), str(getattr(function, "__qualname__", ""))


def _check_repeats(learn: Learner, item: Any) -> None:
    """Raise BundleError if the Learner is random."""
    if not np.array_equal(_answer(learn, item).numbers, _answer(learn, item).numbers, equal_nan=True):
        raise bundle.BundleError("the Learner answers the same image differently each time; a bundle cannot")


def _compare_generated(learn: Learner, model: models.Model, item: Any, picture: tuple[str, bytes], whole: bool) -> bool:
    """Compare on one image; return False if the Learner or the bundle does not take it."""
    name, data = picture
    try:
        batch = learn.dls.test_dl([item], num_workers=0).one_batch()[0]
        expected = _answer(learn, item) if whole else Answer(batch, None, np.empty(0))
    except Exception:  # of a rare mode, or of a size that is too small for the network
        return False
    try:
        # A Learner of arrays sees a palette's indices as pixels: so does an endpoint that is sent the array.
        image = preprocess.image_from_array(item) if isinstance(item, np.ndarray) else preprocess.decode(data)
        tensor = model.to_tensor(image)
    except preprocess.ImageError:
        return False
    _compare_input(_input(model, tensor), expected.batch, name)
    if whole:
        _compare_answer(model, image, expected, name)
    return True


def _check_validation_image(learn: Learner, model: models.Model, index: int) -> None:
    """Compare on one of the Learner's own images, which goes through the readers of its DataBlock."""
    name = f"validation image {index}"
    try:
        image = _source(learn, index)
        dl = learn.dls.valid.new(bs=1, shuffle=False, drop_last=False, num_workers=0, get_idxs=lambda: [index])
        try:
            expected = _answer_of(learn, dl)
        except Exception:  # of a label, perhaps, that training lacks; to predict reads none
            expected = _answer(learn, L(learn.dls.valid_ds.tls[0].items, use_list=None)[index])
    except bundle.BundleError:
        raise
    except Exception as error:  # a reader of the user's own may raise anything
        raise bundle.BundleError(
            f"the Learner cannot be checked on its validation image {index}: {_line(error)}"
        ) from None
    try:
        tensor = model.to_tensor(image)
    except preprocess.ImageError as error:
        if _size_taken(learn, model.info) not in (None, (image.height, image.width)):
            return  # of another size than the first
        raise bundle.BundleError(f"the bundle does not take the Learner's {name}: {error}") from None
    _compare_input(_input(model, tensor), expected.batch, name)
    _compare_answer(model, image, expected, name)


def _source(learn: Learner, index: int) -> Image.Image:
    """Return the image that a validation item stands for, as serving decodes it: the first file that is read for it."""
    images = learn.dls.valid_ds.tls[0]
    value, reader = L(images.items, use_list=None)[index], None
    for transform in [None, *images.tfms.fs]:
        if transform is not None:
            value, reader = transform(value, split_idx=1) if _takes_split(transform) else transform(value), transform
        if isinstance(value, bytes):
            return preprocess.decode(value)
        if isinstance(value, (str, Path)) and Path(value).is_file():
            return preprocess.decode(Path(value).read_bytes())
        if isinstance(value, (np.ndarray, torch.Tensor, Image.Image)):
            if reader is not None and not isinstance(reader, SAME_ITEM):
                break
            return value if isinstance(value, Image.Image) else preprocess.image_from_array(np.asarray(value))
    raise bundle.BundleError(
        f"the Learner's {_name(reader)} makes an image of {type(L(images.items, use_list=None)[index]).__name__} items;"
        " a bundle takes image files as they are"
    )


def _takes_split(transform: Any) -> bool:
    return hasattr(transform, "split_idx")


def _name(transform: Any) -> str:
    return (
        str(getattr(transform, "name", getattr(transform, "__name__", type(transform).__name__)))
        .split(" -- ")[0]
        .split(".")[-1]
    )


def accepted_item(learn: Learner, file: Path) -> Any:
    """Return `file` in the first of `_forms` that the Learner takes. Raises BundleError."""
    reason = ""
    for item in _forms(file):
        try:
            learn.dls.test_dl([item], num_workers=0).one_batch()
            return item
        except Exception as error:  # fastai raises AssertionError, a reader of the user's own anything
            reason = reason or _line(error)
    raise bundle.BundleError(f"the bundle cannot be compared with the Learner, which takes no image file: {reason}")


def _forms(file: Path) -> Iterator[Any]:
    """Yield an image file in each form that a Learner may take: path, string, bytes, array, image."""
    yield from (file, str(file), file.read_bytes())
    with Image.open(file) as image:
        yield from (np.asarray(image), image)


def _answer(learn: Learner, item: Any) -> Answer:
    """Return the answer of ``learn.predict``. Raises BundleError if it fails."""
    try:
        batch = learn.dls.test_dl([item], num_workers=0).one_batch()[0]
        decoded, _, numbers = learn.predict(item)
    except Exception as error:  # whatever a Learner of the user's own raises
        raise bundle.BundleError(
            f"the Learner's own predict fails: {_line(error)}; learn.predict(image) has to give an answer first"
        ) from None
    return Answer(torch.Tensor(batch), decoded, np.asarray(numbers))


def _answer_of(learn: Learner, dl: DataLoader) -> Answer:
    """Return the Learner's answer for the only item of `dl`, by the steps of ``Learner.predict``."""
    batch, numbers, _, decoded = learn.get_preds(dl=dl, with_input=True, with_decoded=True)
    return Answer(torch.Tensor(batch), learn.dls.decode_batch((batch, decoded))[0][1], np.asarray(numbers[0]))


def _model(learn: Learner, network: torch.nn.Module, info: bundle.ModelInfo) -> models.Model:
    """Return the bundle as serving loads it, in memory."""
    network = bundle.rebuild(network, info)
    engine = engines.TorchEngine(network, info)
    if any(not parameter.is_contiguous() for parameter in learn.model.parameters()):
        # The Learner's layout, for the same bits.
        engine.memory_format = torch.channels_last
        engine.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return models.Model(engine, info)


def _input(model: models.Model, tensor: torch.Tensor) -> torch.Tensor:
    engine = model.engine
    assert isinstance(engine, engines.TorchEngine)
    return engine.prepare(tensor[None])


def _compare_input(given: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    expected = torch.Tensor(expected).cpu()
    if given.shape != expected.shape:
        what = f"the network gets {_size(expected)} pixels, in the bundle {_size(given)}"
    elif given.dtype != expected.dtype:
        what = f"the network gets {expected.dtype}, in the bundle {given.dtype}"
    elif not torch.allclose(given, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        what = f"by up to {float((given - expected).abs().max()):.1e} in the network's input"
    else:
        return
    raise bundle.BundleError(
        f"the Learner changes the pixels of an image in another way than a bundle can: {what} ({name})"
    )


def _compare_answer(model: models.Model, image: Image.Image, expected: Answer, name: str) -> None:
    """Compare the whole answer that serving gives. Raises BundleError."""
    [given] = model.predict([image], mask_size="model")
    height, width = expected.batch.shape[-2:]
    answer_parity.compare(given, expected.decoded, expected.numbers, (width, height), name)


@contextlib.contextmanager
def predicting(learn: Learner) -> Iterator[None]:
    """Let the Learner predict on the CPU without output within the block; leave it, and random numbers, as they were.

    Callbacks of this package belong to a training job and may wait for its other processes.
    """
    ours = [callback for callback in learn.cbs if type(callback).__module__.startswith("fastmaker.")]
    device, model_device, model = learn.dls.device, next(learn.model.parameters()).device, learn.model
    modes = {module: module.training for module in learn.model.modules()}
    python, numpy, generator = random.getstate(), np.random.get_state(), torch.get_rng_state()
    recorder = getattr(learn, "recorder", None)
    recorded = dict(vars(recorder)) if recorder else {}
    with learn.no_bar(), learn.no_logging(), learn.removed_cbs(ours):
        try:
            learn.dls.to(torch.device("cpu"))
            learn.model = capture.unwrapped(model.cpu())  # several GPUs, or a compiler, are for training
            yield
        finally:
            learn.dls.to(device)
            learn.model = model.to(model_device)
            if recorder:
                vars(recorder).update(recorded)  # to predict empties the history of the training
            for module, training in modes.items():
                module.training = training
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(generator)


def _saved(data: bytes, folder: Path, name: str) -> Path:
    suffix = (Image.open(io.BytesIO(data)).format or "png").lower()
    file = folder / f"{name.replace(' ', '_')}.{suffix}"
    file.write_bytes(data)
    return file


def _spread(total: int, n: int) -> list[int]:
    """Return at most `n` indexes below `total`, the first and the last among them."""
    return sorted({round(position * (total - 1) / max(1, n - 1)) for position in range(n)}) if total else []


def _size(batch: torch.Tensor) -> str:
    return "x".join(map(str, itertools.islice(reversed(batch.shape), 2)))


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]

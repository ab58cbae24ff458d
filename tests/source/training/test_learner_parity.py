"""A bundle answers as its Learner on real images, or the Learner is refused by name, in whatever way it reads them."""

import numpy as np
import pandas as pd
import pytest
from fastai.vision.all import (
    CategoryBlock,
    ColReader,
    CrossEntropyLossFlat,
    DataBlock,
    FuncSplitter,
    ImageBlock,
    ImageDataLoaders,
    IntToFloatTensor,
    Normalize,
    PILImage,
    PILImageBW,
    RandomSplitter,
    Resize,
    Transform,
    TransformBlock,
    aug_transforms,
    imagenet_stats,
    load_learner,
    parent_label,
    resnet18,
    set_seed,
    vision_learner,
)
from PIL import Image
from torch import nn

from fastmaker import bundle, preprocess, save_bundle
from fastmaker.serving import models
from fastmaker.training import parity, pictures

pytestmark = pytest.mark.learner
SIZE = Resize(40)


def files_of(photos):
    return sorted(photos.rglob("*.jpg"))


def table(photos, absolute=False):
    """A DataFrame of the photos: name below the folder, without its suffix, and label."""
    files = files_of(photos)
    names = [str(file if absolute else file.relative_to(photos)) for file in files]
    return pd.DataFrame({"name": names, "label": [file.parent.name for file in files]})


def of_table(photos, get_x, item_tfms=SIZE, bs=8, num_workers=0, **options):
    block = DataBlock(
        (ImageBlock, CategoryBlock), get_x=get_x, get_y=ColReader("label"), splitter=RandomSplitter(seed=1),
        item_tfms=item_tfms, **options,
    )  # fmt: skip
    return block.dataloaders(table(photos), bs=bs, num_workers=num_workers)


def from_csv(photos, **options):
    table(photos).to_csv(photos / "labels.csv", index=False)
    return ImageDataLoaders.from_csv(photos, "labels.csv", **options)


READERS = {
    "from_folder": lambda photos, **o: ImageDataLoaders.from_folder(photos, valid_pct=0.3, **o),
    "from_name_func": lambda photos, **o: ImageDataLoaders.from_name_func(
        photos, files_of(photos), label_func=lambda name: name[-5] in "02468", **o
    ),
    "from_path_func": lambda photos, **o: ImageDataLoaders.from_path_func(photos, files_of(photos), parent_label, **o),
    "from_path_re": lambda photos, **o: ImageDataLoaders.from_path_re(
        photos, files_of(photos), pat=r"/([^/]+)/[^/]+.jpg$", **o
    ),
    "from_lists": lambda photos, **o: ImageDataLoaders.from_lists(
        photos, list(map(str, files_of(photos))), [file.parent.name for file in files_of(photos)], **o
    ),
    "from_df": lambda photos, **o: ImageDataLoaders.from_df(table(photos), photos, **o),
    "from_df of whole paths": lambda photos, **o: ImageDataLoaders.from_df(table(photos, absolute=True), "/", **o),
    "from_csv": from_csv,
    "ColReader with pref": lambda photos, **o: of_table(photos, ColReader("name", pref=photos), **o),
    "get_x of a row": lambda photos, **o: of_table(photos, lambda row: photos / row["name"], **o),
    "get_x of a row, a string": lambda photos, **o: of_table(photos, lambda row: f"{photos}/{row['name']}", **o),
}


def learner(dls, **options):
    set_seed(4)
    return vision_learner(dls, resnet18, pretrained=False, **options)


def make(photos, reader, **options):
    return learner(READERS[reader](photos, **{"item_tfms": SIZE, "bs": 8, "num_workers": 0} | options))


def assert_same_answers(learn, model_dir, files):
    save_bundle(learn, model_dir)
    model = models.load(model_dir, precision="float32")
    for file in files:
        with learn.no_bar(), learn.no_logging():
            label, _, expected = learn.predict(str(file))
        [found] = model.predict([preprocess.decode(file.read_bytes())])
        assert found.label == str(label)
        assert np.array_equal(found.probabilities, expected.numpy())


@pytest.fixture
def photos_copy(photos, tmp_path):
    """The photos in a folder of the test's own."""
    folder = tmp_path / "photos"
    for file in files_of(photos):
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / file.parent.name / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_a_learner_is_answered_exactly_however_it_finds_its_images(photos_copy, tmp_path, reader):
    assert_same_answers(make(photos_copy, reader), tmp_path / "model", files_of(photos_copy)[::13])


@pytest.mark.parametrize("reader", READERS)
def test_a_transform_that_changes_pixels_is_refused_however_images_are_found(photos_copy, tmp_path, reader):
    """The item transforms are those that pass; the image changes where it is opened."""
    learn = make(photos_copy, reader)
    learn.dls.valid_ds.tls[0].tfms.add(Transform(darker))
    with pytest.raises(bundle.BundleError, match="darker makes or changes images before its item transforms"):
        save_bundle(learn, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def darker(image: PILImage):
    return PILImage.create(np.asarray(image) // 2)


def test_a_row_that_is_made_an_image_by_a_function_of_ones_own_is_refused(photos_copy, tmp_path):
    def negative(row):
        return 255 - np.asarray(Image.open(photos_copy / row["name"]))

    with pytest.raises(bundle.BundleError, match="the Learner's negative makes an image of Series items"):
        save_bundle(learner(of_table(photos_copy, negative)), tmp_path / "model")


def test_a_reader_that_opens_another_file_is_refused(photos_copy, tmp_path):
    def other(file):
        return sorted(file.parent.glob("*.jpg"))[0] if file.suffix == ".jpg" else file

    dls = DataBlock(
        (ImageBlock, CategoryBlock), get_items=files_of, get_x=other, get_y=parent_label, item_tfms=SIZE
    ).dataloaders(photos_copy, bs=8, num_workers=0)
    with pytest.raises(bundle.BundleError, match="changes the pixels of an image"):
        save_bundle(learner(dls), tmp_path / "model")


def cropped(file):
    pixels = np.asarray(Image.open(file).convert("RGB"))
    rows = pixels.max(axis=(1, 2)) > 40  # a black border, which none of these photos has
    return pixels[rows]


def smaller(file):
    image = PILImage.create(file)
    image.thumbnail((600, 600))
    return image


def last_frame(file):
    image = Image.open(file)
    image.seek(getattr(image, "n_frames", 1) - 1)
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("opens", [cropped, smaller, last_frame])
@pytest.mark.parametrize("where", ["get_x", "type_tfms"])
def test_a_function_of_ones_own_that_opens_images_is_refused(photos, tmp_path, opens, where):
    """It does nothing to most images."""
    block = TransformBlock(type_tfms=lambda file: PILImage.create(opens(file)), batch_tfms=IntToFloatTensor)
    block = DataBlock(
        (block if where == "type_tfms" else ImageBlock, CategoryBlock),
        get_items=files_of,
        get_x=opens if where == "get_x" else None,
        get_y=parent_label,
        splitter=RandomSplitter(seed=1),
        item_tfms=SIZE,
    )
    with pytest.raises(bundle.BundleError, match="makes or changes images before its item transforms"):
        save_bundle(learner(block.dataloaders(photos, bs=8, num_workers=0)), tmp_path / "model")


def test_a_label_that_only_validation_has_is_no_obstacle(photos_copy, tmp_path):
    validation = files_of(photos_copy)[::12]
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_items=files_of,
        get_y=lambda file: "rare" if file in validation else parent_label(file),
        splitter=FuncSplitter(lambda file: file in validation),
        item_tfms=SIZE,
    )
    learn = learner(block.dataloaders(photos_copy, bs=8, num_workers=0))
    assert_same_answers(learn, tmp_path / "model", files_of(photos_copy)[:3])


def test_images_that_are_gone_cannot_be_checked(photos_copy, tmp_path):
    learn = make(photos_copy, "from_folder")
    for file in files_of(photos_copy):
        file.unlink()
    with pytest.raises(bundle.BundleError, match="cannot be checked on its validation image 0"):
        save_bundle(learn, tmp_path / "model")


class AlwaysDropout(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


def test_a_network_that_is_random_is_refused(photos, tmp_path):
    learn = make(photos, "from_folder")
    learn.model[1][3] = AlwaysDropout()
    with pytest.raises(bundle.BundleError):
        save_bundle(learn, tmp_path / "model")


class Inverted(PILImage):
    @classmethod
    def create(cls, fn, **kwargs):
        return cls(Image.fromarray(255 - np.asarray(PILImage.create(fn))))


def test_an_image_class_of_ones_own_is_refused_by_name(photos, tmp_path):
    dls = DataBlock(
        (ImageBlock(Inverted), CategoryBlock), get_items=files_of, get_y=parent_label, item_tfms=SIZE
    ).dataloaders(photos, bs=8, num_workers=0)
    with pytest.raises(bundle.BundleError, match="images are Inverted; expected PILImage or PILImageBW"):
        save_bundle(learner(dls), tmp_path / "model")


def test_a_loss_that_decodes_otherwise_is_refused(photos, tmp_path):
    learn = make(photos, "from_folder")
    learn.loss_func = CrossEntropyLossFlat()  # fastai's default is one for all Learners
    learn.loss_func.decodes = lambda x: x.argmin(dim=-1)
    with pytest.raises(bundle.BundleError, match="loss CrossEntropyLossFlat decodes otherwise; expected one whose"):
        save_bundle(learn, tmp_path / "model")


def test_a_loss_with_another_activation_is_refused(photos, tmp_path):
    learn = make(photos, "from_folder")
    learn.loss_func = CrossEntropyLossFlat()
    learn.loss_func.activation = lambda x: (x / 2).softmax(dim=-1)
    with pytest.raises(bundle.BundleError, match="loss CrossEntropyLossFlat has an activation that a bundle lacks"):
        save_bundle(learn, tmp_path / "model")


def test_the_learner_is_left_as_it_was(photos, tmp_path):
    learn = make(photos, "from_folder")
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    values, losses = list(learn.recorder.values), list(learn.recorder.losses)
    learn.model.train()
    learn.model[0].eval()
    modes = [module.training for module in learn.model.modules()]
    callbacks, state = [type(callback) for callback in learn.cbs], np.random.get_state()[1].copy()
    save_bundle(learn, tmp_path / "model")
    assert [module.training for module in learn.model.modules()] == modes
    assert learn.recorder.values == values
    assert learn.recorder.losses == losses
    assert [type(callback) for callback in learn.cbs] == callbacks
    assert np.array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("method", preprocess.RESIZE_METHODS)
def test_a_loaded_learner_which_holds_no_data_is_answered_exactly(photos, tmp_path, method, gray):
    options = (
        {"img_cls": PILImageBW} if gray else {"batch_tfms": [*aug_transforms(), Normalize.from_stats(*imagenet_stats)]}
    )
    dls = ImageDataLoaders.from_folder(
        photos, valid_pct=0.3, item_tfms=Resize(40, method=method), bs=8, num_workers=0, **options
    )
    learn = learner(dls, n_in=1 if gray else 3, normalize=not gray)
    live = save_bundle(learn, tmp_path / "live")
    learn.export(tmp_path / "export.pkl")
    loaded = load_learner(tmp_path / "export.pkl")
    assert_same_answers(loaded, tmp_path / "model", files_of(photos)[::13])
    assert bundle.load_info(tmp_path / "model") == live


def test_a_loaded_learner_that_changes_pixels_is_refused(photos, tmp_path):
    learn = make(photos, "from_folder")
    learn.dls.valid_ds.tls[0].tfms.add(Transform(darker))
    learn.export(tmp_path / "export.pkl")
    with pytest.raises(bundle.BundleError, match="darker makes or changes images before its item transforms"):
        save_bundle(load_learner(tmp_path / "export.pkl"), tmp_path / "model")


def test_the_generated_images_have_all_modes_and_an_orientation():
    images = {name: preprocess.decode(data) for name, data in pictures.generate()}
    assert {image.mode for image in images.values()} == {"RGB", "L", "RGBA", "LA", "P", "CMYK", "I;16", "1"}
    assert len({image.size for image in images.values()}) > 4
    assert "transparency" in images["P"].info
    assert images["EXIF orientation"].getexif()[pictures.ORIENTATION] == pictures.ROTATED
    assert {image.size for _, data in pictures.generate((24, 33)) for image in [preprocess.decode(data)]} == {(33, 24)}


def test_validation_images_are_spread_over_the_set():
    assert [parity._spread(n, 4) for n in (0, 1, 2, 4, 31)] == [[], [0], [0, 1], [0, 1, 2, 3], [0, 10, 20, 30]]

"""Samples of a channel directory: unreadable images, the split, the DataLoaders."""

import re

import numpy as np
import pytest
import torch
from fastai.vision.all import PILImage
from helpers.channels import class_folders, files_of, idx, image, labels_of, refused
from PIL import Image

from fastmaker.training import data, image_checks

# Unreadable images


def test_a_few_unreadable_images_are_skipped_and_counted(tmp_path):
    class_folders(tmp_path, a=15, b=15)
    broken = [tmp_path / "a" / "00.png", tmp_path / "b" / "07.png"]
    broken[0].write_bytes(b"no image")
    broken[1].write_bytes(broken[1].read_bytes()[:50])
    samples = data.read(tmp_path)
    assert len(samples.labels) == 28
    assert not set(broken) & set(samples.images)
    assert [line.split(":")[0] for line in samples.skipped] == list(map(str, broken))
    assert samples.summary().endswith("; 2 unreadable images skipped")


@pytest.mark.parametrize(
    ("pixels", "is_read"),
    [
        (np.arange(400, dtype=np.uint16).reshape(20, 20), False),
        (np.arange(400, dtype=np.int32).reshape(20, 20) - 200, False),
        (np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20), False),
        (np.arange(400, dtype=np.uint16).reshape(20, 20) // 2, True),
        (np.arange(400, dtype=np.float32).reshape(20, 20) // 2, True),
    ],
    ids=["16 bits", "32 bits", "0 to 1", "16 bits that fit in 8", "floats that fit in 8 bits"],
)
def test_images_that_fastai_would_cut_off_to_8_bits_are_not_read(tmp_path, pixels, is_read):
    class_folders(tmp_path, a=15, b=15)
    Image.fromarray(pixels).save(tmp_path / "a" / "deep.tiff")
    shown = np.asarray(PILImage.create(tmp_path / "a" / "deep.tiff"))
    assert np.array_equal(shown, np.repeat(pixels[:, :, None], 3, axis=2)) == is_read
    skipped = data.read(tmp_path).skipped
    assert [line.split(": ")[0] for line in skipped] == ([] if is_read else [str(tmp_path / "a" / "deep.tiff")])


def test_a_link_to_nothing_is_an_unreadable_image(tmp_path):
    class_folders(tmp_path, a=15, b=15)
    (tmp_path / "a" / "15.png").symlink_to(tmp_path / "nowhere.png")
    assert data.read(tmp_path).summary().endswith("; 1 unreadable images skipped")


@pytest.mark.parametrize(("n_broken", "fatal"), [(2, False), (3, True)])
def test_more_than_a_tenth_unreadable_is_fatal(tmp_path, n_broken, fatal):
    class_folders(tmp_path, a=10, b=10)
    for file in sorted((tmp_path / "a").iterdir())[:n_broken]:
        file.write_bytes(b"")
    if fatal:
        refused("3 of 20 images", "more than a tenth", "00.png", folder=tmp_path)
    else:
        assert len(data.read(tmp_path).skipped) == n_broken


def test_a_class_whose_every_image_is_unreadable_is_refused(tmp_path):
    class_folders(tmp_path, a=20, b=20, c=1)
    (tmp_path / "c" / "00.png").write_bytes(b"no image")
    refused("'c'", folder=tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_of_what_does_not_decode_in_training_another_image_takes_the_place(tmp_path, workers, capsys):
    class_folders(tmp_path, a=15, b=15)
    whole = data.read(tmp_path)
    train, valid = whole.is_valid.index(False) + 1, whole.is_valid.index(True)
    assert not whole.is_valid[train]  # the second: fastai opens the first by itself
    broken = [whole.images[train], whole.images[valid]]
    for file in broken:
        file.write_bytes(file.read_bytes()[:-30])
    samples = data.read(tmp_path, depth="headers")
    assert (samples.n_train, sum(samples.is_valid)) == (whole.n_train, sum(whole.is_valid) - 1)  # no metric counts it
    assert [line.split(":")[0] for line in samples.skipped] == [str(broken[1])]
    dls = data.dataloaders(samples, "RGB", (8, 8), "squish", 6, False, workers)
    images = image_checks.replacing(dls.train)
    assert len(list(dls.train)) == samples.n_train // 6
    place = list(images.dataset.items).index((broken[0], "a"))
    assert torch.equal(*(dls.train.do_item(i)[0] for i in (place, place + 1)))
    assert (images.unreadable.nonzero().flatten().tolist(), images.file(place)) == ([place], broken[0])


def test_only_the_layout_is_looked_at_before_a_job(tmp_path):
    class_folders(tmp_path, a=15, b=15)
    for file in (tmp_path / "a").iterdir():
        file.write_bytes(b"no image")
    assert len(data.read(tmp_path, depth="layout").labels) == 30
    refused("15 of 30 images", folder=tmp_path, depth="headers")


# The split


def test_the_split_takes_the_same_share_of_each_class(tmp_path):
    samples = data.read(class_folders(tmp_path, a=40, b=10, c=3), valid_pct=0.2)
    assert labels_of(samples, valid=True) == {"a": 8, "b": 2, "c": 1}
    assert not files_of(samples, valid=True) & files_of(samples, valid=False)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_of_each_class_at_least_one_image_validates_and_one_trains(tmp_path, share):
    samples = data.read(class_folders(tmp_path, a=7, b=2), valid_pct=share)
    for valid in (True, False):
        assert min(labels_of(samples, valid)[label] for label in "ab") >= 1


def test_a_seed_gives_one_split_and_another_seed_another(digits):
    first, again, other = (files_of(data.read(digits, seed=seed), valid=True) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(first) == len(other)


def test_the_split_does_not_depend_on_the_order_of_the_file_system(tmp_path):
    names = [f"{i}.png" for i in range(9)]
    for folder, order in (("one", names), ("two", names[::-1])):
        for label in "ab":
            for name in order:
                image(tmp_path / folder / label / name)
    one, two = (data.read(tmp_path / folder) for folder in ("one", "two"))
    assert [f.name for f in one.images] == [f.name for f in two.images]
    assert one.is_valid == two.is_valid


def test_the_summary_counts_images_and_classes(digits):
    summary = data.read(digits).summary()
    assert re.match(
        r"found class folders: \d+ images to train, \d+ to validate, 10 classes \(0, 1, 2, 3, 4, ...\)$", summary
    )


# DataLoaders


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_the_dataloaders_give_normalised_images_and_classes(photos, mode, channels):
    dls = data.dataloaders(data.read(photos), mode, (20, 30), "crop", batch_size=4, augment=False, workers=0)
    x, y = dls.valid.one_batch()
    assert x.shape == (4, channels, 20, 30)
    assert x.dtype == torch.float32
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in data.STATISTICS[mode])
    pixels = (x * std + mean) * 255
    assert torch.allclose(pixels, pixels.round().clamp(0, 255), atol=1e-3)
    assert pixels.std() > 10
    assert y.dtype == torch.int64
    assert list(dls.vocab) == ["checks", "rings", "stripes"]


def test_the_dataloaders_keep_the_split_and_the_labels(photos):
    samples = data.read(photos)
    dls = data.dataloaders(samples, "RGB", (20, 20), "crop", batch_size=4, augment=True, workers=0)
    assert {item[0] for item in dls.valid_ds.items} == files_of(samples, valid=True)
    for file, label in dls.train_ds.items:
        assert file.parent.name == label


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_idx_images_become_the_mode_that_was_asked_for(tmp_path, mode, channels):
    idx(tmp_path, "train", [0, 1] * 10)
    dls = data.dataloaders(data.read(tmp_path), mode, (28, 28), "crop", batch_size=4, augment=False, workers=0)
    assert dls.valid_ds[0][0].mode == mode
    assert dls.valid.one_batch()[0].shape == (4, channels, 28, 28)

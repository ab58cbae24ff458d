"""The layout of images and masks, and what is said of data that no U-Net can be trained on."""

import shutil

import numpy as np
import pytest
from PIL import Image

from fastmaker import masks
from fastmaker.training import mask_data
from fastmaker.training.data import DataError


@pytest.fixture
def folder(scenes, tmp_path):
    """Scenes of one's own to spoil."""
    return shutil.copytree(scenes, tmp_path / "scenes")


def valid_of(samples):
    return [image.name for image, is_valid in zip(samples.images, samples.is_valid, strict=True) if is_valid]


def write_mask(path, mask, mode=None):
    Image.fromarray(np.asarray(mask, np.uint8), mode).save(path)


def refused(*expected, folder, **options):
    with pytest.raises(DataError) as error:
        mask_data.read(folder, **options)
    for text in expected:
        assert text in str(error.value)
    assert len(str(error.value).splitlines()) == 1


# Layouts


def test_each_image_has_its_mask(scenes):
    samples = mask_data.read(scenes)
    assert len(samples.images) == len(samples.labels) == len(samples.is_valid) == 15
    assert all(mask.name == f"{image.stem}_P.png" for image, mask in zip(samples.images, samples.labels, strict=True))
    assert (samples.codes, samples.void_code) == (("ground", "box", "disc", "Void"), 3)
    assert samples.summary() == (
        "found images with masks: 12 images to train, 3 to validate, 4 classes (ground, box, disc, Void); Void is void"
    )


def test_the_split_is_the_seeds(scenes):
    first, again, other = (valid_of(mask_data.read(scenes, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(valid_of(mask_data.read(scenes, valid_pct=0.4))) == 6


def test_a_valid_txt_says_which_images_validate(folder):
    (folder / "valid.txt").write_text(f"03.png\n\n./05.png\r\n../images/08.png\n{folder}/images/11.png\n")
    assert valid_of(mask_data.read(folder)) == ["03.png", "05.png", "08.png", "11.png"]


def test_a_separate_channel_validates(folder, scenes):
    samples = mask_data.read(folder, scenes)
    assert len(samples.images) == 30
    assert all(
        image.is_relative_to(scenes) == valid for image, valid in zip(samples.images, samples.is_valid, strict=True)
    )


@pytest.mark.parametrize(
    ("void_code", "index"), [(None, 3), ("box", 1), ("0", 0), ("none", None)], ids=["default", "name", "index", "none"]
)
def test_the_void_class_is_named_by_name_or_index(scenes, void_code, index):
    assert mask_data.read(scenes, void_code=void_code).void_code == index


def test_a_label_that_the_codes_do_not_name_may_be_void(folder):
    shutil.copy(folder / "labels" / "00_P.png", folder / "was.png")
    mask = masks.read(folder / "was.png")
    mask[5:9] = 255
    write_mask(folder / "labels" / "00_P.png", mask)
    (folder / "codes.txt").write_text("ground\nbox\ndisc\nother")
    samples = mask_data.read(folder, void_code="255")
    assert (samples.codes, samples.void_code) == (("ground", "box", "disc", "other", "void"), 4)
    [create] = samples.block().type_tfms
    expected = masks.read(folder / "was.png")
    expected[5:9] = 4
    assert np.array_equal(create(folder / "labels" / "00_P.png"), expected)


def test_without_a_class_of_that_name_nothing_is_void(folder):
    (folder / "codes.txt").write_text("ground\nbox\ndisc\nother")
    assert mask_data.read(folder).void_code is None


def test_photos_may_have_png_masks(folder):
    Image.open(folder / "images" / "02.png").save(folder / "images" / "02.jpg")
    (folder / "images" / "02.png").unlink()
    Image.open(folder / "labels" / "02_P.png").save(folder / "labels" / "02_P.jpg")
    samples = mask_data.read(folder)
    assert dict(zip(samples.images, samples.labels, strict=True))[folder / "images" / "02.jpg"].name == "02_P.png"


def test_suffixes_may_be_in_capitals(folder):
    (folder / "images" / "02.png").rename(folder / "images" / "02.JPEG")
    (folder / "labels" / "02_P.png").rename(folder / "labels" / "02_P.PNG")
    assert len(mask_data.read(folder).images) == 15


def test_of_a_palette_mask_the_indexes_count_and_not_the_colours(folder):
    path = folder / "labels" / "00_P.png"
    mask = masks.read(path)
    image = Image.open(path)
    image.putpalette([200, 10, 30, 255, 255, 255, 0, 0, 0, 90, 90, 90])
    image.save(path)
    assert Image.open(path).mode == "P"
    assert np.array_equal(masks.read(path), mask)
    samples = mask_data.read(folder)
    [create] = samples.block().type_tfms
    assert np.array_equal(create(path), mask)


@pytest.mark.parametrize("name", ["images/04.png", "labels/04_P.png"])
def test_unreadable_images_and_masks_are_skipped_and_named(folder, name):
    (folder / name).write_bytes(b"no image")
    samples = mask_data.read(folder)
    assert len(samples.images) == 14
    assert len(samples.skipped) == 1
    assert samples.skipped[0].startswith(str(folder / name))


@pytest.mark.data
def test_the_road_scenes_are_read(test_data):
    samples = mask_data.read(test_data / "camvid")
    assert (len(samples.images), sum(samples.is_valid), len(samples.codes), samples.void_code) == (367, 73, 12, 11)


@pytest.mark.parametrize(
    ("name", "folder_name"), [("{}.png", "labels"), ("{}.png", "masks"), ("{}_mask.png", "annotations")]
)
def test_masks_may_have_the_names_of_their_images(folder, name, folder_name):
    for file in (folder / "labels").iterdir():
        file.rename(file.with_name(name.format(file.stem.removesuffix("_P"))))
    (folder / "labels").rename(folder / folder_name)
    samples = mask_data.read(folder)
    assert {(i.stem, m.name) for i, m in zip(samples.images, samples.labels, strict=True)} == {
        (i.stem, name.format(i.stem)) for i in samples.images
    }


def two_classes(folder, high, mixed=()):
    """Let the masks hold 0 and `high`, and one of them the numbers `mixed`."""
    (folder / "codes.txt").write_text("ground\nthing\n")
    for i, file in enumerate(sorted((folder / "labels").iterdir())):
        mask = np.where(masks.read(file) > 0, high, 0)
        mask.flat[: len(mixed)] = mixed if i == 5 else mask.flat[: len(mixed)]
        write_mask(file, mask)


@pytest.mark.parametrize(("high", "option", "notes"), [(255, None, 1), (255, 255, 0), (100, 100, 0), (1, None, 0)])
def test_masks_of_0_and_255_become_0_and_1(folder, high, option, notes):
    two_classes(folder, high)
    samples = mask_data.read(folder, mask_scale=option)
    [create] = samples.block().type_tfms
    for file in samples.labels:
        assert np.array_equal(create(file), masks.read(file) > 0)
    assert len(samples.notes) == notes
    assert all("--mask-scale 255" in note for note in samples.notes)


@pytest.mark.parametrize("end", ["bmp", "tif", "gif"])
def test_masks_may_be_of_any_format_that_keeps_numbers(folder, end):
    for file in (folder / "labels").iterdir():
        Image.fromarray(masks.read(file).astype(np.uint8)).save(file.with_suffix(f".{end}"))
        file.unlink()
    assert all(np.array_equal(masks.read(file), masks.read(folder / file)) for file in mask_data.read(folder).labels)


def test_an_archive_unpacked_into_a_folder_of_its_name_is_read(scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "scenes" / "scenes")
    assert len(mask_data.read(tmp_path / "scenes", depth="layout").images) == 15


def test_a_note_names_what_is_missing(folder):
    (folder / "images" / "03.png").unlink()
    (folder / "codes.txt").write_text("ground\nbox\ndisc\nother\nOther\n")
    unused, alike, absent = sorted(mask_data.read(folder).notes)
    assert unused == f"1 files of {folder / 'labels'} are the mask of no image, and not used"
    assert alike == "labels that differ in case alone are two each: 'Other' and 'other'"
    assert absent.startswith("no mask has the classes ")
    assert "'Other'" in absent


# Refused


def two_masks(folder):
    shutil.copy(folder / "labels" / "05_P.png", folder / "labels" / "05.png")


def two_images(folder):
    shutil.copy(folder / "images" / "05.png", folder / "images" / "05.bmp")


def palettes(folder):
    for number, colours in ((5, [0, 0, 0, 9, 9, 9]), (6, [9, 9, 9, 0, 0, 0])):
        image = Image.fromarray(np.asarray([[0, 1] * 28] * 40, np.uint8))
        image.putpalette(colours)
        image.save(folder / "labels" / f"{number:02}_P.png")


def from_one(folder):
    write_mask(folder / "labels" / "05_P.png", np.asarray([[1, 2, 3, 4] * 14] * 40))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (two_masks, "05.png has two masks, "),
        (two_images, "05_P.png is the mask of "),
        (palettes, " in another colour than "),
        (from_one, "holds the label 4; codes.txt names 0 to 3 (if its numbers begin at 1, name a class for 0"),
    ],
)
def test_what_may_mean_two_things_is_refused(folder, spoil, reason):
    spoil(folder)
    refused(reason, folder=folder)


def test_images_that_train_and_validate_are_refused(folder):
    refused("15 images train and validate, such as", folder=folder, valid_dir=folder)


@pytest.mark.parametrize(
    ("high", "mixed", "option", "reason"),
    [
        (255, (254,), None, "holds the number 254, which --mask-scale 255 does not divide"),
        (1, (255,), None, "holds the label 255; codes.txt names 0 to 1"),
        (200, (), None, "holds the label 200; codes.txt names 0 to 1 (--void-code 200 ignores it in loss and metrics;"),
        (200, (), 100, "holds the label 2; codes.txt names 0 to 1"),
    ],
)
def test_numbers_that_no_scale_makes_classes_are_refused(folder, high, mixed, option, reason):
    two_classes(folder, high, mixed)
    refused(reason, folder=folder, mask_scale=option)


def test_a_scale_beside_a_void_number_is_refused(scenes):
    refused("do not go together", folder=scenes, void_code="255", mask_scale=2)


def test_two_folders_of_masks_are_refused(folder):
    shutil.copytree(folder / "labels", folder / "masks")
    refused("labels and", "masks may both hold the masks", folder=folder)


def test_a_mask_of_another_size_than_its_image_is_refused(folder):
    write_mask(folder / "labels" / "05_P.png", np.zeros((40, 55)))
    refused("05_P.png is 55x40, its image 05.png is 56x40", folder=folder)


def test_a_label_outside_the_codes_is_refused(folder):
    write_mask(folder / "labels" / "05_P.png", np.full((40, 56), 4))
    refused("05_P.png holds the label 4; codes.txt names 0 to 3 (--void-code 4 ignores", folder=folder)
    refused("05_P.png holds the label 4", folder=folder, void_code="255")


def test_a_label_beyond_a_byte_is_refused(folder):
    Image.fromarray(np.full((40, 56), 256, np.uint16)).save(folder / "labels" / "05_P.png")
    refused("05_P.png holds the label 256; codes.txt names 0 to 3", folder=folder, void_code="255")


def test_an_image_without_a_mask_is_refused(folder):
    (folder / "labels" / "05_P.png").unlink()
    refused("05.png has no mask", "05_P.png is missing", folder=folder)


def test_masks_in_colour_are_refused(folder):
    Image.open(folder / "labels" / "05_P.png").convert("RGB").save(folder / "labels" / "05_P.png")
    refused("05_P.png: this is a RGB image; a mask has one channel", folder=folder)


def test_masks_that_are_jpegs_are_refused(folder):
    (folder / "images" / "05.png").rename(folder / "images" / "05.jpg")
    Image.open(folder / "labels" / "05_P.png").save(folder / "labels" / "05_P.jpg")
    (folder / "labels" / "05_P.png").unlink()
    refused("05_P.jpg: this is a JPEG, which changes class indexes", folder=folder)


@pytest.mark.parametrize("name", ["codes.txt", "images", "labels"])
def test_what_the_layout_lacks_is_named_with_what_was_found(folder, name):
    (folder / name).rename(folder / "elsewhere")
    refused(f"holds no {'' if '.' in name else 'folder '}{name}", "Found: ", "elsewhere", folder=folder)


def test_a_folder_without_images_is_refused(folder):
    for file in (folder / "images").iterdir():
        file.unlink()
    refused("images holds no image file", folder=folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    refused("nowhere is not a directory", folder=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("codes", "reason"),
    [
        ("", "line 1 is empty"),
        ("sky", "names 1 classes; expected 2 to 256"),
        ("\n".join(map(str, range(257))), "names 257 classes"),
        ("sky\n\nroad", "line 2 is empty"),
        ("\nsky\nroad", "line 1 is empty"),
        ("sky\nroad\nsky\n", "names 'sky' twice"),
    ],
)
def test_class_names_that_cannot_be_used_are_refused(folder, codes, reason):
    (folder / "codes.txt").write_text(codes)
    refused(f"codes.txt{':' if 'empty' in reason else ''} {reason}", folder=folder)


@pytest.mark.parametrize("void_code", ["Sky", "256", "-1", ""])
def test_a_void_class_that_is_none_is_refused(scenes, void_code):
    refused(
        "--void-code", "expected none, 0 to 255, or one of ground, box, disc, Void", folder=scenes, void_code=void_code
    )


def test_a_void_label_that_no_mask_has_is_refused(scenes):
    refused("--void-code 4: no mask has it, and codes.txt names 0 to 3", folder=scenes, void_code="4")


def test_a_void_class_that_leaves_one_other_is_refused(folder):
    (folder / "codes.txt").write_text("Unlabeled\ntumour\n")
    refused("Unlabeled is void, and only one other class is left; --void-code none makes it a class", folder=folder)


@pytest.mark.parametrize("name", ["codes.txt", "valid.txt"])
def test_a_list_that_is_no_text_is_refused(folder, name):
    (folder / name).write_bytes(b"\xff\xfe\x00")
    refused(f"{name} is not text in UTF-8", folder=folder)


def test_a_valid_txt_that_names_a_missing_image_is_refused(folder):
    (folder / "valid.txt").write_text("03.png\n99.png\n")
    refused("valid.txt names '99.png', which is not in", folder=folder)


def test_a_valid_txt_beside_a_validation_channel_is_refused(folder, scenes):
    (folder / "valid.txt").write_text("03.png\n")
    refused("valid.txt lists the validation images; do not give", str(scenes), folder=folder, valid_dir=scenes)


@pytest.mark.parametrize(("names", "lacking"), [([], "validation"), (range(15), "training")])
def test_a_valid_txt_that_leaves_no_image_is_refused(folder, names, lacking):
    (folder / "valid.txt").write_text("".join(f"{name:02}.png\n" for name in names))
    refused(f"no image is left for {lacking}", folder=folder)


def test_a_validation_channel_with_other_classes_is_refused(folder, scenes):
    (folder / "codes.txt").write_text("ground\nbox\nother\nVoid\n")
    refused("codes.txt", "differ", folder=folder, valid_dir=scenes)

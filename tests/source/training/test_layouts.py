"""The layouts of training data: which are recognised, and what is refused with which reason."""

import gzip
from collections import Counter

import numpy as np
import pytest
from helpers.channels import class_folders, files_of, flat, idx, image, labels_csv, labels_of, refused

from fastmaker.training import data

# Layouts


def test_class_folders_are_found(digits):
    samples = data.read(digits)
    assert samples.layout == "class folders"
    assert samples.classes == list("0123456789")
    assert len(samples.images) == len(samples.labels) == len(samples.is_valid) == 1797
    assert all(file.parent.name == label for file, label in zip(samples.images, samples.labels, strict=True))
    assert samples.skipped == ()


@pytest.mark.parametrize("valid", ["valid", "val", "validation"])
def test_train_and_valid_folders_are_found(tmp_path, valid):
    class_folders(tmp_path / "train", a=5, b=4)
    class_folders(tmp_path / valid, a=2, b=1)
    samples = data.read(tmp_path)
    assert labels_of(samples, valid=False) == {"a": 5, "b": 4}
    assert labels_of(samples, valid=True) == {"a": 2, "b": 1}
    assert all(valid in file.parts for file in files_of(samples, valid=True))


def test_a_train_folder_alone_is_split(tmp_path):
    samples = data.read(class_folders(tmp_path / "train", a=10, b=10).parent)
    assert samples.classes == ["a", "b"]
    assert labels_of(samples, valid=True) == {"a": 2, "b": 2}


def test_images_deep_in_a_class_folder_belong_to_the_class(tmp_path):
    class_folders(tmp_path, a=3, b=3)
    deep = image(tmp_path / "a" / "2024" / "b" / "x.PNG")
    samples = data.read(tmp_path)
    assert dict(zip(samples.images, samples.labels, strict=True))[deep] == "a"


def test_a_separate_channel_validates(tmp_path):
    class_folders(tmp_path / "one", a=5, b=5)
    class_folders(tmp_path / "two", a=1, b=3)
    samples = data.read(tmp_path / "one", tmp_path / "two")
    assert labels_of(samples, valid=False) == {"a": 5, "b": 5}
    assert labels_of(samples, valid=True) == {"a": 1, "b": 3}


def test_a_regex_takes_the_label_from_each_file_name(tmp_path):
    flat(tmp_path, "cat_1.png", "cat_2.jpg", "more/dog_1.png", "more/dog_2.png")
    (tmp_path / "notes.txt").touch()
    samples = data.read(tmp_path, label_regex=r"^(.+)_\d+\.")
    assert samples.layout == "label regex"
    assert Counter(samples.labels) == {"cat": 2, "dog": 2}


def test_a_regex_also_reads_the_validation_channel(tmp_path):
    flat(tmp_path / "one", "a_1.png", "a_2.png", "b_1.png")
    flat(tmp_path / "two", "a_3.png", "b_3.png")
    samples = data.read(tmp_path / "one", tmp_path / "two", label_regex="^(.)_")
    assert labels_of(samples, valid=True) == {"a": 1, "b": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_labels_csv_is_read(tmp_path, encoding):
    flat(tmp_path, "1.png", "2.png", "images/3.png", "sub/4.png", "unlisted.png")
    labels_csv(tmp_path, "1.png,Löwe", "2.png,Löwe,", "", '3.png,"a, b"', 'sub/4.png,"a, b"', encoding=encoding)
    samples = data.read(tmp_path)
    assert samples.layout == "labels.csv"
    assert [(file.name, label) for file, label in zip(samples.images, samples.labels, strict=True)] == [
        ("1.png", "Löwe"),
        ("2.png", "Löwe"),
        ("3.png", "a, b"),
        ("4.png", "a, b"),
    ]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_mnists_idx_files_are_read(tmp_path, packed):
    train, valid = idx(tmp_path, "train", [3, 1, 3, 1, 3]), idx(tmp_path, "t10k", [1, 3])
    if packed:
        for file in list(tmp_path.iterdir()):
            file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    samples = data.read(tmp_path)
    assert samples.layout == "idx"
    assert samples.labels == ("3", "1", "3", "1", "3", "1", "3")
    assert samples.is_valid == [False] * 5 + [True] * 2
    assert np.array_equal(samples.images, [*train, *valid])


def test_idx_files_without_t10k_are_split(tmp_path):
    idx(tmp_path, "train", [0, 1] * 10)
    assert labels_of(data.read(tmp_path), valid=True) == {"0": 2, "1": 2}


@pytest.mark.data
def test_the_whole_of_mnist_is_read(test_data):
    samples = data.read(test_data / "mnist_idx")
    assert samples.classes == list("0123456789")
    assert (sum(samples.is_valid), len(samples.labels)) == (10_000, 70_000)
    assert samples.labels[:5] == ("5", "0", "4", "1", "9")


@pytest.mark.data
def test_the_pets_are_read_by_a_regex(test_data):
    samples = data.read(test_data / "pets" / "images", label_regex=r"^(.+)_\d+\.jpg$")
    assert (len(samples.labels), len(samples.classes)) == (483, 37)
    assert min(labels_of(samples, valid=False).values()) >= 8


@pytest.mark.data
def test_the_flat_mnist_sample_is_read_by_a_regex(test_data):
    assert data.read(test_data / "mnist_sample", label_regex=r"label(\d)").classes == list("0123456789")


@pytest.mark.parametrize("hidden", [".a.png", "._01.png", ".thumbnails/01.png"])
def test_hidden_files_are_ignored(tmp_path, hidden):
    class_folders(tmp_path, a=3, b=3)
    (tmp_path / "a" / hidden).parent.mkdir(exist_ok=True)
    (tmp_path / "a" / hidden).write_bytes(b"no image")
    samples = data.read(tmp_path)
    assert (len(samples.labels), samples.skipped) == (6, ())


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", "__pycache__"])
def test_hidden_folders_are_no_classes(tmp_path, hidden):
    class_folders(tmp_path, a=3, b=3)
    image(tmp_path / hidden / "x.png")
    assert data.read(tmp_path).classes == ["a", "b"]


def test_files_that_are_no_images_are_ignored(tmp_path):
    class_folders(tmp_path, a=3, b=3)
    for name in ("readme.txt", "a/notes.md", "a/Thumbs.db"):
        (tmp_path / name).write_text("text")
    assert len(data.read(tmp_path).labels) == 6


# Refusals


def test_a_layout_that_is_not_known_lists_what_was_looked_for_and_what_was_found(tmp_path):
    flat(tmp_path, "1.png", "2.png")
    refused("idx", "labels.csv", "class folders", "--label-regex", "Found: 1.png, 2.png", folder=tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    refused("Found: nothing", folder=tmp_path)


def test_of_many_entries_some_are_listed(tmp_path):
    flat(tmp_path, *(f"{i:02}.png" for i in range(30)))
    assert refused("00.png", "30 entries", folder=tmp_path).count(".png") < 10


@pytest.mark.parametrize("option", ["train", "valid"])
def test_a_folder_that_is_not_there_is_refused(tmp_path, option):
    class_folders(tmp_path / "train", a=2, b=2)
    missing = tmp_path / "missing"
    if option == "train":
        refused("missing is not a directory", folder=missing)
    else:
        refused("missing is not a directory", folder=tmp_path / "train", valid_dir=missing)


def test_masks_for_segmentation_are_refused(tmp_path):
    image(tmp_path / "images" / "1.png")
    image(tmp_path / "labels" / "1_P.png")
    (tmp_path / "codes.txt").write_text("sky\nroad\n")
    refused("codes.txt", "--task segmentation", folder=tmp_path)


@pytest.mark.parametrize("content", [None, "notes.txt", ".hidden.png"])
def test_a_class_without_images_is_refused(tmp_path, content):
    class_folders(tmp_path, a=3, b=3)
    (tmp_path / "empty").mkdir()
    if content:
        (tmp_path / "empty" / content).touch()
    refused("class 'empty' is empty", folder=tmp_path)


def test_a_train_folder_without_classes_is_refused(tmp_path):
    image(tmp_path / "train" / "1.png")
    refused("holds no class folder", "1.png", folder=tmp_path)


def test_folders_of_parts_are_no_classes(tmp_path):
    class_folders(tmp_path / "a", cat=3, dog=3)
    class_folders(tmp_path / "val", cat=3, dog=3)
    refused("val holds folders of images and is not a class", folder=tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    assert data.read(class_folders(tmp_path, train=3, bus=3)).classes == ["bus", "train"]


def test_one_class_is_refused(tmp_path):
    refused("only one class: 'a' (4 images)", "--label-regex", folder=class_folders(tmp_path, a=4))


def test_a_class_of_one_image_trains(tmp_path):
    samples = data.read(class_folders(tmp_path, a=5, b=1))
    assert labels_of(samples, valid=False)["b"] == 1


def test_classes_of_one_image_each_are_refused(tmp_path):
    refused("no image is left for validation", folder=class_folders(tmp_path, a=1, b=1))


@pytest.mark.parametrize("where", ["folder", "channel"])
def test_a_label_that_only_validation_images_have_is_refused(tmp_path, where):
    class_folders(tmp_path / "data" / "train", a=3, b=3)
    valid = class_folders(tmp_path / "data" / "valid" if where == "folder" else tmp_path / "channel", a=1, c=1)
    options = {"folder": tmp_path / "data"} if where == "folder" else {"folder": tmp_path / "data", "valid_dir": valid}
    refused("no training image for 'c'", **options)


def test_a_valid_folder_and_a_valid_channel_are_refused(tmp_path):
    class_folders(tmp_path / "one" / "train", a=3, b=3)
    class_folders(tmp_path / "one" / "valid", a=1, b=1)
    two = class_folders(tmp_path / "two", a=1, b=1)
    refused("has validation images of its own", "two", folder=tmp_path / "one", valid_dir=two)


@pytest.mark.parametrize(
    ("regex", "reason"),
    [
        ("cat", "has no group"),
        ("(?:cat)_", "has no group"),
        ("(cat", "is not a regular expression"),
        (r"^(dog)_", "finds no label in the file name 'cat_1.png'"),
        (r"^cat(x?)_", "finds no label in the file name 'cat_1.png'"),
        (r"^cat(x)?_", "finds no label in the file name 'cat_1.png'"),
    ],
)
def test_a_regex_that_finds_no_label_is_refused(tmp_path, regex, reason):
    refused(f"--label-regex {regex!r}", reason, folder=flat(tmp_path, "cat_1.png", "dog_1.png"), label_regex=regex)


def test_a_regex_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    refused("holds no image file", "notes.txt", folder=tmp_path, label_regex="(.)")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("3.png,b", "line 4: there is no file '3.png'"),
        ("2.png,", "line 4: '2.png' has no label"),
        ("2.png", "a header and two columns"),
        (" 1.png ,b", "line 4: '1.png' is listed twice"),
    ],
)
def test_a_wrong_line_in_labels_csv_is_named(tmp_path, line, reason):
    flat(tmp_path, "1.png", "2.png")
    refused("labels.csv", reason, folder=labels_csv(tmp_path, "1.png,a", "2.png,b", line))


def test_a_labels_csv_without_a_header_is_refused(tmp_path):
    flat(tmp_path, "1.png", "2.png")
    (tmp_path / "labels.csv").write_text("1.png,a\n2.png,b\n")
    refused("labels.csv, line 1: '1.png' is a file; expected a header", folder=tmp_path)


def test_blanks_around_a_name_or_a_label_do_not_count(tmp_path):
    flat(tmp_path, *(f"{i}.png" for i in range(4)))
    assert data.read(labels_csv(tmp_path, "0.png, a", "1.png,a ", "2.png ,b", " 3.png,b")).classes == ["a", "b"]


def test_a_labels_csv_with_nothing_but_a_header_is_refused(tmp_path):
    refused("labels.csv", "a header and two columns", folder=labels_csv(tmp_path))


def test_a_labels_csv_in_another_encoding_is_refused(tmp_path):
    flat(tmp_path, "1.png", "2.png")
    refused("labels.csv", folder=labels_csv(tmp_path, "1.png,Löwe", "2.png,b", encoding="latin-1"))


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
@pytest.mark.parametrize("keep", [-1, 12, 2, 0])
def test_an_idx_file_cut_short_is_named(tmp_path, name, keep):
    idx(tmp_path, "train", [0, 1] * 5)
    idx(tmp_path, "t10k", [0, 1])
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    refused(name, folder=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "no gzip", "flipped"])
def test_a_damaged_gz_file_is_named(tmp_path, damage):
    idx(tmp_path, "train", [0, 1] * 5)
    file = tmp_path / "train-images-idx3-ubyte"
    packed = bytearray(gzip.compress(file.read_bytes()))
    packed[len(packed) // 2] ^= damage == "flipped"
    packed = {"cut": packed[:-200], "no gzip": b"text", "flipped": packed}[damage]
    file.with_name(file.name + ".gz").write_bytes(packed)
    file.unlink()
    refused("train-images-idx3-ubyte.gz cannot be unpacked", folder=tmp_path)


def test_an_idx_file_of_another_type_is_refused(tmp_path):
    idx(tmp_path, "train", [0, 1] * 5)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes((0, 0, 13, 3)) + bytes(100))
    refused("is not an idx file of uint8 with 3 dimensions", folder=tmp_path)


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_missing_idx_labels_are_refused(tmp_path, part):
    idx(tmp_path, "train", [0, 1])
    idx(tmp_path, "t10k", [0, 1])
    (tmp_path / f"{part}-labels-idx1-ubyte").unlink()
    refused(f"no {part}-labels-idx1-ubyte", folder=tmp_path)


def test_as_many_idx_labels_as_images_are_needed(tmp_path):
    idx(tmp_path / "more", "train", [0, 1, 1])
    idx(tmp_path, "train", [0, 1])
    (tmp_path / "more" / "train-labels-idx1-ubyte").replace(tmp_path / "train-labels-idx1-ubyte")
    refused("2 images", "3 labels", folder=tmp_path)


def test_idx_files_without_an_image_are_refused(tmp_path):
    idx(tmp_path, "train", [])
    refused("train-images-idx3-ubyte", folder=tmp_path)


def test_channels_of_two_layouts_are_refused(tmp_path):
    idx(tmp_path / "one", "train", [0, 1] * 5)
    class_folders(tmp_path / "two", **{"0": 1, "1": 1})
    refused("layout", folder=tmp_path / "one", valid_dir=tmp_path / "two")


def test_images_that_train_and_validate_are_refused_also_by_a_link(tmp_path):
    train = class_folders(tmp_path / "one", a=3, b=3)
    valid = class_folders(tmp_path / "two", a=1, b=1)
    (valid / "b" / "link.png").symlink_to(train / "b" / "01.png")
    refused("1 images train and validate, such as", "link.png", folder=train, valid_dir=valid)
    refused("6 images train and validate", folder=train, valid_dir=train)

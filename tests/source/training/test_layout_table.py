"""How people keep their images: each folder is read as meant, or refused by one line. A row is a case."""

import pytest
from helpers.channels import image
from helpers.layout_cases import (
    CLASSES,
    FILES,
    LABELS,
    MULTI,
    NUMBERS,
    PLAIN,
    POINTS,
    Case,
    T,
    V,
    check,
    parts,
    read_as,
    split,
    table,
)

FOLDERS = [
    *(split(*names) for names in [("Training", "Testing"), ("Train", "Valid"), ("training_set", "test_set")]),
    *(split(*names) for names in [("seg_train", "seg_test"), ("TRAIN", "VAL"), ("train", "dev"), ("train", "eval")]),
    *(split(*names) for names in [("trainset", "testset"), ("train2017", "val2017"), ("Training Data", "Test Data")]),
    *(split(*names) for names in [("train-images", "validation-images"), ("images_train", "images_val")]),
    Case(
        "a test set beside train and valid is left out",
        parts(a="train", b="valid", c="test"),
        read_as("train", "valid"),
        notes=("test is not used (4 images)",),
    ),
    Case(
        "a test set validates without valid",
        parts(a="train", b="test"),
        read_as("train", "test"),
        notes=("validates, as there is no folder valid",),
    ),
    Case("two for training", parts(a="train", b="training", c="valid"), error=("are both for train",)),
    Case(
        "a split in an archive's folder",
        parts(a="pets/train", b="pets/val"),
        read_as("pets/train", "pets/val"),
        notes=("only folder",),
    ),
    Case("parts of unknown names", parts(a="part1", b="part2"), error=("part1, part2", "cat, dog", "Rename them")),
    Case("a part with fewer classes", (*parts(a="one"), "two/cat/1.png"), error=("look like the parts of a split",)),
    Case("no train", parts(a="test", b="other"), error=("test holds folders of images and is not a class",)),
    Case(
        "images without classes", ("train/1.png", "test/1.png"), error=("train holds no class folder; if file names",)
    ),
    Case(
        "class folders in folders of one folder each",
        tuple(f"data/data/{file}" for file in CLASSES),
        {f"data/data/{file}": file[:3] for file in CLASSES},
        notes=("data is read, the only folder of", "data/data is read, the only folder of"),
    ),
    Case(
        "parts unpacked into folders of their names",
        parts(a="train/train", b="valid/valid"),
        read_as("train/train", "valid/valid"),
    ),
    Case(
        "a table in the only folder",
        tuple(f"pets/images/{file}" for file in FILES),
        {f"pets/images/{file}": label for file, label in LABELS.items()},
        texts={"pets/labels.csv": PLAIN},
        notes=("pets is read, the only folder of",),
    ),
    Case("masks beside images", ("images/1.png", "masks/1.png"), error=("images/ and masks/, which are no classes",)),
    Case(
        "boxes beside images",
        ("train/images/1.png", "valid/images/1.png"),
        error=("images/ and labels/, which are no classes", "boxes are not read"),
        texts={"train/labels/1.txt": "0 0.5 0.5 1 1", "valid/labels/1.txt": "0 0.5 0.5 1 1"},
    ),
    Case(
        "years in classes",
        ("cat/2020/1.png", "cat/2021/1.png", "dog/2020/1.png", "dog/2021/1.png"),
        error=("give --label-regex '^([^/]+)/'",),
    ),
    Case(
        "what systems leave",
        (*CLASSES, "cat/@eaDir/1.png", "__MACOSX/cat/._1.png", ".ipynb_checkpoints/1.png", "lost+found/1.png"),
        dict.fromkeys(CLASSES[:2], "cat") | dict.fromkeys(CLASSES[2:], "dog"),
        texts={"data.zip": b"PK", "desktop.ini": "", "cat/Thumbs.db": b""},
    ),
    Case(
        "names that begin with lines",
        ("__ground__/__1.png", "__ground__/2.png", "dog/1.png", "dog/2.png"),
        {"__ground__/__1.png": "__ground__", "__ground__/2.png": "__ground__", "dog/1.png": "dog", "dog/2.png": "dog"},
    ),
    Case(
        "classes that differ in case",
        ("Cat/1.png", "Cat/2.png", "cat/1.png", "cat/2.png"),
        {"Cat/1.png": "Cat", "Cat/2.png": "Cat", "cat/1.png": "cat", "cat/2.png": "cat"},
        notes=("differ in case alone are two each: 'Cat' and 'cat'",),
    ),
    Case("classes that differ in a blank", ("cat/1.png", "cat /1.png"), error=("'cat' and 'cat ' look the same",)),
    Case(
        "classes that differ in how accents are written",
        ("L\xf6we/1.png", "Lo\u0308we/1.png"),
        error=(r"'Lo\u0308we' and 'L\xf6we' look the same",),
    ),
    Case(
        "classes named train and test",
        ("train/1.png", "train/2.png", "test/1.png", "test/2.png", "bus/1.png", "bus/2.png"),
        {f"{c}/{i}.png": c for c in ("train", "test", "bus") for i in (1, 2)},
    ),
    Case(
        "different folders in classes",
        ("pets/cat/1.png", "pets/dog/1.png", "cars/vw/1.png", "cars/bmw/1.png"),
        {"pets/cat/1.png": "pets", "pets/dog/1.png": "pets", "cars/vw/1.png": "cars", "cars/bmw/1.png": "cars"},
    ),
    Case(
        "files left out are counted",
        CLASSES,
        dict.fromkeys(CLASSES[:2], "cat") | dict.fromkeys(CLASSES[2:], "dog"),
        notes=("2 .heic, 1 without a suffix",),
        texts={"cat/3.HEIC": b"x", "cat/4.heic": b"x", "cat/5": b"x", "dog/._1.png": b"x", "dog/a.txt": "x"},
    ),
    Case("a class of other files", CLASSES, error=("'emu' is empty", "1 .heic"), texts={"emu/1.heic": b"x"}),
    Case(
        "images beside class folders are counted",
        (*CLASSES, "loose.png"),
        dict.fromkeys(CLASSES[:2], "cat") | dict.fromkeys(CLASSES[2:], "dog"),
        notes=("in no class folder: 1 images",),
    ),
    Case(
        "folders of numbers",
        ("1.5/a.png", "1.5/b.png", "20/a.png", "20/b.png"),
        {"1.5/a.png": (1.5,), "1.5/b.png": (1.5,), "20/a.png": (20.0,), "20/b.png": (20.0,)},
        options=NUMBERS,
    ),
    Case("folders for points", CLASSES, error=("are no points",), options=POINTS),
]
REGEX = [
    Case(
        "a regex sees the path",
        CLASSES,
        dict.fromkeys(CLASSES[:2], "cat") | dict.fromkeys(CLASSES[2:], "dog"),
        options={"label_regex": "^([a-z]+)/"},
    ),
    Case(
        "a regex keeps a split",
        ("train/a_1.png", "train/b_1.png", "val/a_2.png", "val/b_2.png"),
        {"train/a_1.png": ("a", T), "train/b_1.png": ("b", T), "val/a_2.png": ("a", V), "val/b_2.png": ("b", V)},
        options={"label_regex": "^(.)_"},
    ),
    Case(
        "groups are several labels",
        ("big_cat_1.png", "big_dog_2.png", "small_cat_3.png", "small_dog_4.png"),
        {
            "big_cat_1.png": ("big", "cat"),
            "big_dog_2.png": ("big", "dog"),
            "small_cat_3.png": ("cat", "small"),
            "small_dog_4.png": ("dog", "small"),
        },
        options={"label_regex": "^([a-z]+)_([a-z]+)", **MULTI},
    ),
    Case(
        "a number in the name",
        ("a_1.5.png", "b_-2.png"),
        {"a_1.5.png": (1.5,), "b_-2.png": (-2.0,)},
        options={"label_regex": r"_(-?[\d.]+)\.png", **NUMBERS},
    ),
]
BESIDE = [
    table(
        "rows of a split's folders",
        "image,label\ntrain/1.png,a\ntrain/2.png,b\nvalid/1.png,a\nvalid/2.png,b\n",
        {"train/1.png": ("a", T), "train/2.png": ("b", T), "valid/1.png": ("a", V), "valid/2.png": ("b", V)},
        images=("train/1.png", "train/2.png", "valid/1.png", "valid/2.png"),
    ),
    table(
        "only training rows",
        "image,label\ntrain/cat/1.png,cat\ntrain/dog/1.png,dog\n",
        images=parts(a="train", b="valid"),
        error=("lists no image of", "valid", "--labels-csv none"),
    ),
    table(
        "the folders' classes",
        "image,label\ntrain/cat/1.png,x\n",
        read_as("train", "valid"),
        images=parts(a="train", b="valid"),
        notes=("labels.csv is not used",),
        labels_csv="none",
    ),
    table(
        "ambiguous without the folder",
        PLAIN,
        images=tuple(f"{p}/{f}" for p in ("train", "valid") for f in FILES),
        error=("may be", "write its path"),
    ),
    table(
        "a row against its folder",
        "image,label,split\ntrain/1.png,a,valid\ntrain/2.png,b,train\nvalid/3.png,a,valid\nvalid/4.png,b,valid\n",
        images=("train/1.png", "train/2.png", "valid/3.png", "valid/4.png"),
        error=("said to be for valid, and lies in a folder for train",),
    ),
    Case(
        "train.csv and valid.csv",
        FILES,
        {"1.png": ("a", T), "2.png": ("b", T), "3.png": ("a", V), "4.png": ("b", V)},
        texts={"train.csv": "f,l\n1.png,a\n2.png,b\n", "valid.csv": "f,l\n3.png,a\n4.png,b\n"},
    ),
    Case(
        "a table in each part",
        ("train/1.png", "train/2.png", "val/1.png", "val/2.png"),
        {"train/1.png": ("a", T), "train/2.png": ("b", T), "val/1.png": ("a", V), "val/2.png": ("b", V)},
        texts={f"{part}/labels.csv": "f,l\n1.png,a\n2.png,b\n" for part in ("train", "val")},
    ),
    Case(
        "class folders and a table of other things",
        CLASSES,
        dict.fromkeys(CLASSES[:2], "cat") | dict.fromkeys(CLASSES[2:], "dog"),
        texts={"runs.csv": "epoch,loss\n1,2\n"},
        notes=("runs.csv is not used",),
    ),
]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return image(tmp_path_factory.mktemp("picture") / "one.png")


@pytest.mark.parametrize("case", [*FOLDERS, *REGEX, *BESIDE], ids=lambda case: case.name)
def test_a_folder_is_read_as_meant_or_refused_by_one_line(tmp_path, picture, case):
    check(tmp_path, picture, case)

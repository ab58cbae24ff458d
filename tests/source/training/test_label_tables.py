"""How people write tables of labels: each is read as meant, or refused by one line. A row is a case."""

import pytest
from helpers.channels import image
from helpers.layout_cases import FILES, LABELS, MULTI, NUMBERS, PLAIN, POINTS, T, V, check, rows, table

TABLES = [
    table("plain", PLAIN),
    table("train.csv", PLAIN, file="train.csv", texts={"test.csv": "image\n9.png\n"}, notes=("test.csv is not used",)),
    table("the only table", PLAIN, file="dogs.csv"),
    table(
        "a named table",
        PLAIN,
        file="mine.csv",
        texts={"other.csv": "x,y\n"},
        notes=("other.csv",),
        labels_csv="mine.csv",
    ),
    table("two tables", PLAIN, error=("mine.csv, other.csv; --labels-csv",), file="mine.csv", texts={"other.csv": "x"}),
    table("a table that is not there", PLAIN, error=("--labels-csv no.csv", "labels.csv"), labels_csv="no.csv"),
    table("tsv", PLAIN.replace(",", "\t"), file="labels.tsv"),
    table("semicolon", PLAIN.replace(",", ";")),
    table("tab", PLAIN.replace(",", "\t")),
    table("sep=", "sep=;\n" + PLAIN.replace(",", ";")),
    table("BOM", PLAIN.encode("utf-8-sig")),
    table("UTF-16", PLAIN.encode("utf-16")),
    table("CRLF", PLAIN.replace("\n", "\r\n")),
    table("CR alone", PLAIN.replace("\n", "\r")),
    table("quotes", PLAIN.replace("1.png,a", '"1.png","a"')),
    table("an open quote", PLAIN.replace("1.png,a", '"1.png,a'), error=("labels.csv, line", "no CSV")),
    table("blank lines", "\n" + PLAIN.replace("2.png", "\n2.png") + "\n\n,\n \n"),
    table("spaces", PLAIN.replace(",", " , ").replace("\n", " \n")),
    table("without suffix", PLAIN.replace(".png", "")),
    table("without suffix, ambiguous", PLAIN.replace(".png", ""), error=("may be",), images=(*FILES, "1.jpg")),
    table(
        "a column of the index", ",image,label\n" + "".join(f"{i},{line}\n" for i, line in enumerate(PLAIN.split()[1:]))
    ),
    table(
        "the index first",
        "Unnamed: 0;label;image\n" + "".join(f"{i};{label};{f}\n" for i, (f, label) in enumerate(LABELS.items())),
    ),
    table("label first", "label,image\n" + "".join(f"{label},{f}\n" for f, label in LABELS.items())),
    table("columns of any name", PLAIN.replace("image,label", "photo,animal")),
    table(
        "backslashes",
        "image,label\npics\\1.png,a\n.\\pics\\2.png,a\nC:\\data\\pics\\3.png,b\npics/4.png,b\n",
        {f"pics/{file}": label for file, label in LABELS.items()},
        images=tuple(f"pics/{file}" for file in FILES),
    ),
    table(
        "in images/",
        PLAIN,
        {f"images/{f}": label for f, label in LABELS.items()},
        images=tuple(f"images/{f}" for f in FILES),
    ),
    table(
        "in train/",
        PLAIN,
        {f"train/{f}": label for f, label in LABELS.items()},
        images=tuple(f"train/{f}" for f in FILES),
    ),
    table("no header", "1.png,a\n2.png,b\n", error=("line 1: '1.png' is a file; expected a header",)),
    table("no header, no suffix", "1,a\n2,a\n3,b\n4,b\n", error=("line 1: '1' is a file; expected a header",)),
    table(
        "is_valid",
        rows("name,label,is_valid", *zip("aabb", ("True", "False", "1", "0"), strict=True)),
        {"1.png": ("a", V), "2.png": ("a", T), "3.png": ("b", V), "4.png": ("b", T)},
    ),
    table(
        "split",
        rows("name,label,split", *zip("aabb", ("Train", "val", "training", "VALID"), strict=True)),
        {"1.png": ("a", T), "2.png": ("a", V), "3.png": ("b", T), "4.png": ("b", V)},
    ),
    table(
        "data set",
        rows("name,label,data set", *zip("aabb", ("train", "test", "train", "test"), strict=True)),
        {"1.png": ("a", T), "2.png": ("a", V), "3.png": ("b", T), "4.png": ("b", V)},
        notes=("test set validates",),
    ),
    table(
        "an unknown name that says parts",
        rows("name,label,usage", *zip("aabb", ("train", "val") * 2, strict=True)),
        {"1.png": ("a", T), "2.png": ("a", V), "3.png": ("b", T), "4.png": ("b", V)},
    ),
    table(
        "a wrong flag",
        rows("name,label,is_valid", *zip("aabb", "0012", strict=True)),
        error=("line 5: '2' in the column 'is_valid'; expected true or false",),
    ),
    table(
        "a wrong part",
        rows("name,label,split", *zip("aabb", ("train", "", "val", "x"), strict=True)),
        error=("line 3: '' in the column 'split'; expected train, valid or test",),
    ),
    table(
        "none validates",
        rows("name,label,is_valid", *zip("aabb", "0000", strict=True)),
        error=("no image is left to validate",),
    ),
    table(
        "two say what validates",
        rows("name,label,is_valid,split", *zip("aabb", "0101", ("train", "val") * 2, strict=True)),
        error=("'is_valid' and 'split' both say",),
    ),
    table(
        "folds",
        rows("name,label,fold", *zip("aabb", "0123", strict=True)),
        error=("'fold' splits the rows into folds",),
    ),
    table(
        "unknown columns", rows("name,label,width", *zip("aabb", "5678", strict=True)), notes=("columns 'width' of",)
    ),
    table(
        "any column may be the label",
        rows("name,w,h", *zip("aabb", "5678", strict=True)),
        error=("'w', 'h' may be the label",),
    ),
    table("a named column", rows("name,w,h", *zip("5678", "aabb", strict=True)), notes=("'w'",), label_columns=["h"]),
    table("a column that is not there", PLAIN, error=("has no column 'breed'",), label_columns=["breed"]),
    table(
        "two columns of one name",
        rows("name,label,label", *zip("aabb", "5678", strict=True)),
        error=("two columns 'label'",),
    ),
    table("too many fields", PLAIN.replace("2.png,a", "2.png,a,b"), error=("line 3: 3 columns, and the header has 2",)),
    table("a duplicate", PLAIN + "1.png,b\n", error=("line 6: '1.png' is listed twice",)),
    table("a missing file", PLAIN + "9.png,b\n", error=("line 6: there is no file '9.png'",)),
    table("an empty label", PLAIN + "5.png,\n", error=("line 6: '5.png' has no label",), images=(*FILES, "5.png")),
    table("an empty name", PLAIN + ",b\n", error=("line 6: the column 'image' is empty",)),
    table("a duplicate with the same label", PLAIN + "1.png,a\n", error=("'1.png' is listed twice; expected one row",)),
    table(
        "leading zeros",
        rows("image,label", ("007",), ("007",), ("010",), ("010",)),
        dict(zip(FILES, ("007", "007", "010", "010"), strict=True)),
    ),
    table(
        "one number in two ways",
        rows("image,label", ("1",), ("1.0",), ("1",), ("1.0",)),
        dict(zip(FILES, ("1", "1.0", "1", "1.0"), strict=True)),
        notes=("are the same number are two each: '1' and '1.0'",),
    ),
    table(
        "measured numbers as classes",
        rows("image,size", ("1.5",), ("1.5",), ("2",), ("2",)),
        dict(zip(FILES, ("1.5", "1.5", "2", "2"), strict=True)),
        notes=("--task regression learns them as numbers",),
    ),
    table(
        "labels that may be none",
        rows("image,label", ("nan",), ("NA",), ("nan",), ("NA",)),
        dict(zip(FILES, ("nan", "NA", "nan", "NA"), strict=True)),
        notes=("'NA', 'nan'; leave out the rows",),
    ),
    table(
        "labels in two cases",
        rows("image,label", ("Cat",), ("cat",), ("cat",), ("a",)),
        dict(zip(FILES, ("Cat", "cat", "cat", "a"), strict=True)),
        notes=("'Cat' and 'cat'",),
    ),
    table(
        "a character without room",
        rows("image,label", *zip(("a\u200b", "a", "b", "b"), strict=True)),
        error=("look the same",),
    ),
    table("a line break", PLAIN.replace(",b", ',"b\nc"'), error=(r"'b\nc' holds a line break",)),
    table(
        "accents of macOS",
        "image,label\n\xf61.png,a\n\xf62.png,a\n\xf63.png,b\n\xf64,b\n",
        {f"o\u0308{file}": label for file, label in LABELS.items()},
        images=tuple(f"o\u0308{file}" for file in FILES),
    ),
    table(
        "listed files that are no images",
        PLAIN + "5.heic,a\n6.heic,b\n",
        texts={"5.heic": "", "6.heic": "", "7.heic": ""},
        notes=("as no images that Pillow reads: 3 .heic",),
    ),
    table(
        "a class of files that are no images",
        PLAIN + "5.heic,c\n",
        texts={"5.heic": ""},
        error=("lists no image of 'c'; left out: 1 .heic",),
    ),
    table("no images at all", "image,label\n5.heic,a\n", texts={"5.heic": ""}, error=("no image that Pillow reads",)),
    table("images that are not listed", PLAIN, images=(*FILES, "5.png"), notes=("does not list 1 images",)),
    table(
        "files that are no images",
        PLAIN,
        texts={"5.heic": "", "6.HEIC": ""},
        notes=("as no images that Pillow reads: 2 .heic",),
    ),
    table(
        "words in another order",
        rows("name,label", ("car person",), ("person car",), ("car",), ("x",)),
        error=("--task multilabel --label-delimiter space", "--label-delimiter none"),
    ),
    table(
        "labels of labels",
        rows("name,label", ("car|person",), ("person",), ("car",), ("x",)),
        error=("--label-delimiter pipe",),
    ),
    table(
        "classes of words",
        rows("name,label", ("red car",), ("red car",), ("car red",), ("car red",)),
        dict(zip(FILES, ("red car", "red car", "car red", "car red"), strict=True)),
        label_delimiter="",
    ),
    table("one-hot", "image,a,b\n1.png,1,0\n2.png,1,0\n3.png,0,1\n4.png,0,1.0\n"),
    table(
        "one-hot with two",
        "image,a,b\n1.png,1,1\n2.png,1,0\n3.png,0,1\n4.png,0,1\n",
        error=("line 2", "2 labels", "multilabel"),
    ),
]
SEVERAL = [
    table(
        "tags",
        rows("name,tags", ("x y",), ("y x",), ("",), ("y",)),
        {"1.png": ("x", "y"), "2.png": ("x", "y"), "3.png": (), "4.png": ("y",)},
        label_delimiter=" ",
        **MULTI,
    ),
    table(
        "tags without a delimiter",
        rows("name,tags", ("x|y",), ("y",), ("x",), ("y",)),
        error=("--label-delimiter pipe",),
        **MULTI,
    ),
    table(
        "lists of Python",
        rows("name,tags", *zip(("\"['x', 'y']\"", "y", "x", "y"), strict=True)),
        error=("a list as a program writes it", "as in a|b"),
        label_delimiter=",",
        **MULTI,
    ),
    table(
        "one column of 0 and 1",
        rows("name,smiling", *zip("0110", strict=True)),
        {"1.png": (), "2.png": ("smiling",), "3.png": ("smiling",), "4.png": ()},
        **MULTI,
    ),
    table(
        "one column of numbers",
        rows("name,label", *zip("0110", strict=True)),
        {"1.png": ("0",), "2.png": ("1",), "3.png": ("1",), "4.png": ("0",)},
        **MULTI,
    ),
    table(
        "a row for each label",
        "name,label\n1.png,x\n1.png,y\n2.png,x\n",
        error=("line 3: '1.png' is listed twice; expected one row for each image",),
        **MULTI,
    ),
    table(
        "tags with slashes",
        rows("name,tags", *zip(("x/y", "y", "x", "y"), strict=True)),
        error=("give --label-delimiter '/'",),
        **MULTI,
    ),
    table(
        "commas in quotes",
        rows("name,tags", ('"x, y"',), ("y",), ("x",), ("y",)),
        {"1.png": ("x", "y"), "2.png": ("y",), "3.png": ("x",), "4.png": ("y",)},
        label_delimiter=",",
        **MULTI,
    ),
    table(
        "columns of 0 and 1",
        "image,x y,z\n1.png,1,1\n2.png,0,0\n3.png,1,0\n4.png,0,1\n",
        {"1.png": ("x y", "z"), "2.png": (), "3.png": ("x y",), "4.png": ("z",)},
        **MULTI,
    ),
    table(
        "columns of labels",
        "image,kind,breed\n1.png,cat,siam\n2.png,cat,bengal\n3.png,dog,pug\n4.png,dog,pug\n",
        {"1.png": ("cat", "siam"), "2.png": ("bengal", "cat"), "3.png": ("dog", "pug"), "4.png": ("dog", "pug")},
        label_columns=["kind", "breed"],
        **MULTI,
    ),
    table(
        "a number",
        rows("name,age", *zip(("1", "2.5", "-3e1", "4"), strict=True)),
        {"1.png": (1.0,), "2.png": (2.5,), "3.png": (-30.0,), "4.png": (4.0,)},
        **NUMBERS,
    ),
    table(
        "two numbers",
        rows("name,w,h", *zip("1234", "5678", strict=True)),
        {f"{i}.png": (float(i), i + 4.0) for i in range(1, 5)},
        label_columns=["w", "h"],
        **NUMBERS,
    ),
    table(
        "no number",
        rows("name,age", *zip(("1", "2", "old", "4"), strict=True)),
        error=("line 4: '3.png' has 'old', which is not",),
        **NUMBERS,
    ),
    table(
        "not a number",
        rows("name,age", *zip(("1", "2", "nan", "4"), strict=True)),
        error=("'nan', which is not a number",),
        **NUMBERS,
    ),
    table(
        "a decimal comma",
        rows("name;age", *zip(("1", "2", "3,5", "4"), strict=True), delimiter=";"),
        error=("decimals have a point",),
        **NUMBERS,
    ),
    table(
        "numbers in a cell",
        rows("name,sizes", *zip(("1 2", "3 4", "5 6", "7 8"), strict=True)),
        {f"{i + 1}.png": (2.0 * i + 1, 2.0 * i + 2) for i in range(4)},
        label_delimiter=" ",
        **NUMBERS,
    ),
    table(
        "points",
        rows("name,x1,y1,x2,y2", *(("1", "2", "3", "4"),) * 4),
        dict.fromkeys(FILES, ((1.0, 2.0), (3.0, 4.0))),
        **POINTS,
    ),
    table(
        "points, x first",
        rows("name,nose_x,ear_x,nose_y,ear_y", *(("1", "3", "2", "4"),) * 4),
        dict.fromkeys(FILES, ((1.0, 2.0), (3.0, 4.0))),
        **POINTS,
    ),
    table(
        "points, y first",
        rows("name,y,x", *(("1", "20"),) * 4),
        dict.fromkeys(FILES, ((20.0, 1.0),)),
        label_columns=["y", "x"],
        **POINTS,
    ),
    table(
        "points as parts of the image",
        rows("name,x,y", *(("0.25", "1"),) * 4),
        error=("write x and y in pixels",),
        **POINTS,
    ),
    table(
        "half a point",
        rows("name,x1,y1,x2", *(("1", "2", "3"),) * 4),
        error=("'x1', 'y1', 'x2' may be the label",),
        **POINTS,
    ),
]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return image(tmp_path_factory.mktemp("picture") / "one.png")


@pytest.mark.parametrize("case", [*TABLES, *SEVERAL], ids=lambda case: case.name)
def test_a_table_is_read_as_meant_or_refused_by_one_line(tmp_path, picture, case):
    check(tmp_path, picture, case)

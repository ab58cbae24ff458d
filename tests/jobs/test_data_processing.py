"""DataProcessing: filters and joins of CSV, JSON and JSON lines.

AWS's operators and examples: https://docs.aws.amazon.com/sagemaker/latest/dg/batch-transform-data-processing.html
"""

import csv
import io
import json

import pytest

from fastmaker.local.batch.data_processing import CSV, JSON, JSON_LINES, DataProcessing, ProcessingError, select

LETTERS = list("abcdefgh")
OBJECT = {
    "id": 7,
    "nothing": None,
    "no": False,
    "field1": {"child1": "one", "child2": [2, [3]], "child3": {"deep": {"er": 4}}},
    "features": [1.5, -2, "3", None, [5]],
    "two words": "2",
    "größe": "L",
    "dotted.name": 1,
}
PEOPLE = {"people": [{"name": "Ada", "age": 36}, {"name": "Alan", "age": 41}]}


def rows(text):
    return list(csv.reader(io.StringIO(text.decode(), newline="")))


def values(text):
    return [json.loads(line) for line in text.decode().splitlines()]


def processing(content_type, **arguments):
    return DataProcessing(content_type=content_type, accept=content_type, **arguments)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("$[1]", LETTERS[1]),
        ("$[-1]", LETTERS[-1]),
        ("$[-8]", LETTERS[0]),
        ("$[1,3,5]", [LETTERS[1], LETTERS[3], LETTERS[5]]),
        ("$[5, 1]", [LETTERS[5], LETTERS[1]]),
        ("$[0,-1]", [LETTERS[0], LETTERS[-1]]),
        ("$[2:5]", LETTERS[2:5]),
        ("$[:5]", LETTERS[:5]),
        ("$[2:]", LETTERS[2:]),
        ("$[1:]", LETTERS[1:]),
        ("$[-2:]", LETTERS[-2:]),
        ("$[:-1]", LETTERS[:-1]),
        ("$[1:99]", LETTERS[1:]),
        ("$[0,5:]", [LETTERS[0], *LETTERS[5:]]),
        ("$[:2,-1]", [*LETTERS[:2], LETTERS[-1]]),
        ("$[*]", LETTERS),
        ("$.*", LETTERS),
        ("$", LETTERS),
    ],
)
def test_a_filter_of_indexes_gives_the_element_or_a_list(path, expected):
    assert select(path, LETTERS) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("$", OBJECT),
        ("$.id", OBJECT["id"]),
        ("$['id']", OBJECT["id"]),
        ('$["id"]', OBJECT["id"]),
        ("$.nothing", None),
        ("$.no", False),
        ("$['two words']", OBJECT["two words"]),
        ("$.größe", OBJECT["größe"]),
        ("$['dotted.name']", OBJECT["dotted.name"]),
        ("$['id','nothing']", {"id": OBJECT["id"], "nothing": None}),
        ("$['nothing', 'id']", {"id": OBJECT["id"], "nothing": None}),
        ("$.field1.['child1','child2']", {name: OBJECT["field1"][name] for name in ("child1", "child2")}),
        ("$.field1['child1','child2']", {name: OBJECT["field1"][name] for name in ("child1", "child2")}),
        ("$.field1.child3.deep.er", 4),
        ("$.field1.child2[1][0]", 3),
        ("$.field1.*", list(OBJECT["field1"].values())),
        ("$.*", list(OBJECT.values())),
        ("$.features[1]", OBJECT["features"][1]),
        ("$.features.[1]", OBJECT["features"][1]),
        ("$.features[-1]", OBJECT["features"][-1]),
        ("$.features[1:]", OBJECT["features"][1:]),
        ("$.features[0,3:]", [OBJECT["features"][0], *OBJECT["features"][3:]]),
    ],
)
def test_a_filter_of_names_gives_the_value_or_an_object_of_them(path, expected):
    assert select(path, OBJECT) == expected


@pytest.mark.parametrize(
    ("path", "record"),
    [
        ("$[8]", LETTERS),
        ("$[-9]", LETTERS),
        ("$[0,8]", LETTERS),
        ("$[0,-9]", LETTERS),
        ("$[8,2:]", LETTERS[:1]),
        ("$[0]", []),
        ("$[0][0]", LETTERS),
        ("$[0]", OBJECT),
        ("$[0]", "text"),
        ("$.id", LETTERS),
        ("$.missing", OBJECT),
        ("$['id','missing']", OBJECT),
        ("$['missing','id']", OBJECT),
        ("$.field1.['child1','child2.grandchild']", OBJECT),
        ("$.missing.child1", OBJECT),
        ("$.id.child", OBJECT),
        ("$.nothing.child", OBJECT),
        ("$.features[5]", OBJECT),
        ("$.features[0,5]", OBJECT),
        ("$.people[*].missing", PEOPLE),
    ],
)
def test_a_filter_that_names_what_is_not_there_fails_and_says_so(path, record):
    with pytest.raises(ProcessingError) as failed:
        select(path, record)
    assert path in str(failed.value)
    assert "\n" not in str(failed.value)
    assert len(str(failed.value)) < 200


@pytest.mark.parametrize(
    ("path", "record"),
    [("$[9,0:]", LETTERS), ("$[-9,0:]", LETTERS), ("$.people[*]['name','missing']", PEOPLE)],
)
def test_a_missing_index_or_name_fails_whatever_else_is_found(path, record):
    with pytest.raises(ProcessingError):
        select(path, record)


@pytest.mark.parametrize("path", ["$.missing.*", "$.missing[*]", "$.missing[1:]", "$.field1.missing[0:2]"])
def test_a_missing_name_fails_also_where_a_wildcard_or_a_slice_follows(path):
    with pytest.raises(ProcessingError):
        select(path, OBJECT)


@pytest.mark.parametrize(("path", "record"), [("$[1:]", OBJECT), ("$.id[1:]", OBJECT), ("$[1:]", "text")])
def test_a_slice_of_what_is_no_list_fails(path, record):
    with pytest.raises(ProcessingError):
        select(path, record)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("$.people[*].name", ["Ada", "Alan"]),
        ("$.people[0:2].name", ["Ada", "Alan"]),
        ("$.people[0,1].age", [36, 41]),
        ("$.people[*]['name','age']", PEOPLE["people"]),
    ],
)
def test_a_name_in_each_of_several_objects_gives_a_list(path, expected):
    assert select(path, PEOPLE) == expected


@pytest.mark.parametrize("name", ["a.[b", "price.[EUR]"])
def test_a_quoted_name_may_hold_a_dot_and_a_bracket(name):
    assert select(f"$['{name}']", {name: 1}) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"input_filter": "id"}, ["InputFilter 'id'", "no JSONPath", "expected '$'"]),
        ({"input_filter": ""}, ["InputFilter ''", "no JSONPath", "expected '$'"]),
        ({"output_filter": "$["}, ["OutputFilter '$['", "no JSONPath"]),
        ({"output_filter": "$.a b"}, ["OutputFilter '$.a b'", "no JSONPath"]),
        ({"input_filter": "$..id"}, ["InputFilter '$..id'", "recursive descent"]),
        ({"output_filter": "$.a[?(@.b>1)]"}, ["OutputFilter", "filter expressions"]),
        ({"join_source": "Input", "content_type": ""}, ["ContentType", CSV, JSON, JSON_LINES, "not set"]),
        ({"join_source": "Input", "accept": ""}, ["Accept", CSV, JSON, JSON_LINES, "not set"]),
        ({"input_filter": "$.a", "content_type": "application/x-npy"}, ["ContentType", CSV, "application/x-npy"]),
        ({"output_filter": "$[0]", "accept": "image/png"}, ["Accept", CSV, "image/png"]),
        ({"join_source": "Input", "content_type": CSV}, [CSV, JSON, "both"]),
        ({"join_source": "Input", "accept": CSV}, [CSV, JSON, "both"]),
    ],
)
def test_what_can_be_done_to_no_record_is_refused_with_the_reason(arguments, words):
    refusal = DataProcessing(**{"content_type": JSON, "accept": JSON, **arguments}).validation_error()
    assert [word for word in words if word not in refusal] == []
    assert len(refusal.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"content_type": "image/png", "accept": "application/x-npy"},
        {
            "input_filter": "$[1:]",
            "join_source": "Input",
            "output_filter": "$[0,-1]",
            "content_type": CSV,
            "accept": CSV,
        },
        {"output_filter": "$['id','SageMakerOutput']", "content_type": JSON_LINES, "accept": JSON_LINES},
        {"join_source": "Input", "content_type": JSON, "accept": JSON_LINES},
        {"input_filter": "$.field1.['child1','child2']", "content_type": JSON_LINES, "accept": JSON},
    ],
)
def test_what_aws_takes_is_not_refused(arguments):
    assert DataProcessing(**arguments).validation_error() is None


def test_a_filter_that_is_longer_than_aws_takes_is_refused():
    assert processing(JSON, input_filter="$." + "a" * 61).validation_error() is None
    assert "63" in processing(JSON, input_filter="$." + "a" * 62).validation_error()


@pytest.mark.parametrize("payload", [b"", b"\xff\x00not text", b'{"a": 1, "a":  2}\n', b"1,\r\n\r\n"])
def test_without_filters_and_join_nothing_is_changed(payload):
    nothing = DataProcessing()
    assert nothing.input(payload) == payload
    assert nothing.output(payload, b"answer") == b"answer"


@pytest.mark.parametrize("content_type", [CSV, JSON, JSON_LINES])
def test_the_default_input_filter_passes_the_payload_as_it_is(content_type):
    payload = b' {"a":1}  \r\n\r\n'
    assert processing(content_type, join_source="Input").input(payload) == payload


def test_the_default_output_filter_without_join_passes_the_answer_as_it_is():
    assert processing(JSON, input_filter="$.a").output(b'{"a": 1}', b"no JSON at all") == b"no JSON at all"


@pytest.mark.parametrize(
    ("path", "payload", "expected"),
    [
        ("$[1:]", b"7,a,b\n8,c,d\n", b"a,b\nc,d"),
        ("$[1:]", b"7,a,b\r\n8,c,d", b"a,b\nc,d"),
        ("$[0]", b"7,a,b\n8,c,d", b"7\n8"),
        ("$[0,-1]", b"7,a,b\n8,c\n", b"7,b\n8,c"),
        ("$[1:]", b"1,007,1.10,1e5, x ,", b"007,1.10,1e5, x ,"),
        ("$[1:]", b'1,"a, b","say ""hi"""', b'"a, b","say ""hi"""'),
        ("$[1]", '1,ünïcode,2\n2,"日,本",3'.encode(), 'ünïcode\n"日,本"'.encode()),
        ("$[0]", b"\xef\xbb\xbf1,2", b"1"),
        ("$[1:]", b"", b""),
    ],
)
def test_an_input_filter_takes_columns_of_csv_as_they_are_written(path, payload, expected):
    assert processing(CSV, input_filter=path).input(payload) == expected


def test_newlines_within_quotes_of_csv_are_kept():
    cells = [["1", "two\nlines", 'a "quote", and\r\nmore'], ["2", "", "x"]]
    text = io.StringIO(newline="")
    csv.writer(text).writerows(cells)
    filtered = processing(CSV, input_filter="$[1:]").input(text.getvalue().encode())
    assert rows(filtered) == [row[1:] for row in cells]


def test_a_cell_of_csv_may_be_as_long_as_the_payload():
    assert processing(CSV, input_filter="$[1]").input(b"1," + b"x" * 200_000) == b"x" * 200_000


@pytest.mark.parametrize("content_type", [JSON, JSON_LINES])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("$.features", OBJECT["features"]),
        ("$.field1.['child1','child2']", {name: OBJECT["field1"][name] for name in ("child1", "child2")}),
        ("$.nothing", None),
        ("$['two words']", OBJECT["two words"]),
    ],
)
def test_an_input_filter_takes_parts_of_json_with_their_types(content_type, path, expected):
    payload = json.dumps(OBJECT).encode()
    assert json.loads(processing(content_type, input_filter=path).input(payload)) == expected


@pytest.mark.parametrize("content_type", [JSON, JSON_LINES])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n"])
def test_each_line_of_json_is_a_record_and_no_newline_follows_the_last(content_type, end):
    payload = end.join([b'{"a": [1]}', b'{"a": "x"}', b'{"a": null}', b""])
    assert processing(content_type, input_filter="$.a").input(payload) == b'[1]\n"x"\nnull'


def test_a_json_document_of_many_lines_is_one_record():
    payload = json.dumps(OBJECT, indent=2).encode()
    assert json.loads(processing(JSON, input_filter="$.field1").input(payload)) == OBJECT["field1"]


def test_numbers_names_and_letters_of_json_come_through_as_they_were():
    payload = '{"z": 12345678901234567890, "a": -0.1, "ä": "日本 😀", "m": 1e-7, "u": "x\u2028y"}'.encode()
    (joined,) = processing(JSON_LINES, join_source="Input").output(payload, b"1").decode().split("\n")[:-1]
    assert list(json.loads(joined)) == ["z", "a", "ä", "m", "u", "SageMakerOutput"]
    assert json.loads(joined) == {**json.loads(payload), "SageMakerOutput": 1}
    assert "日本 😀" in joined


@pytest.mark.parametrize("payload", [b'{"a": "\\ud800"}', b'{"\\udfff": 1, "a": 2}'])
def test_half_a_surrogate_pair_comes_through_as_it_was(payload):
    joined = processing(JSON_LINES, join_source="Input").output(payload, b"1")
    assert json.loads(joined) == {**json.loads(payload), "SageMakerOutput": 1}


@pytest.mark.parametrize(
    ("content_type", "payload"),
    [
        (CSV, b"1,\xff"),
        (JSON, b'{"a": "\xff"}'),
        (JSON_LINES, b'{"a": "\xff"}'),
        (CSV, b'1,"no end'),
        (CSV, b'1,"a"b'),
        (JSON, b""),
        (JSON, b"{'a': 1}"),
        (JSON, b'{"a": 1'),
        (JSON, b'{"a": 1}\n{"a": '),
        (JSON_LINES, b'{"a": 1}\n{"a": '),
        (JSON_LINES, b'{\n"a": 1\n}'),
        (JSON, b'{"a": ' + b"9" * 5000 + b"}"),
    ],
)
def test_what_is_not_of_its_format_fails_and_says_which_and_why(content_type, payload):
    job = processing(content_type, input_filter="$[0]", join_source="Input")
    with pytest.raises(ProcessingError, match=f"^the input is not {content_type}: [^\n]+$"):
        job.input(payload)
    with pytest.raises(ProcessingError, match=f"^the model's answer is not {content_type}: [^\n]+$"):
        job.output(b"1", payload)


@pytest.mark.parametrize("content_type", [JSON, JSON_LINES])
@pytest.mark.parametrize("payload", [b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000], ids=["open", "closed"])
def test_json_that_is_nested_too_deeply_fails_its_object(content_type, payload):
    with pytest.raises(ProcessingError, match="the input is not"):
        processing(content_type, input_filter="$[0]").input(payload)


@pytest.mark.parametrize(
    ("arguments", "payload", "answer", "expected"),
    [
        ({}, b"1,2,3\n", b"1\n", b"1,2,3,1\n"),
        ({}, b"7,a,b\n8,c,d", b"0.1\n0.2\n", b"7,a,b,0.1\n8,c,d,0.2\n"),
        ({}, b"7,a\r\n8,b\r\n", b"0.1,x\r\n0.2,y\r\n", b"7,a,0.1,x\n8,b,0.2,y\n"),
        ({"input_filter": "$[1:]"}, b"7,a,b\n8,c,d\n", b"0.1\n0.2", b"7,a,b,0.1\n8,c,d,0.2\n"),
        ({"output_filter": "$[0,-1]"}, b"7,a,b\n8,c,d\n", b"0.1\n0.2\n", b"7,0.1\n8,0.2\n"),
        ({"output_filter": "$[-1]"}, b"7,a,b\n8,c,d\n", b"0.1\n0.2\n", b"0.1\n0.2\n"),
        ({"output_filter": "$[0,2:]"}, b"7,a\n", b"0.1,0.2\n", b"7,0.1,0.2\n"),
        ({}, b'7,"a, ""b"""\n', b'"x,y"\n', b'7,"a, ""b""","x,y"\n'),
        ({"join_source": "None", "output_filter": "$[1:]"}, b"7,a\n", b"0.1,0.2,0.3\n", b"0.2,0.3\n"),
        ({}, b"", b"", b""),
    ],
)
def test_rows_of_csv_are_joined_by_appending_the_answers(arguments, payload, answer, expected):
    assert processing(CSV, **{"join_source": "Input", **arguments}).output(payload, answer) == expected


def test_joined_csv_with_newlines_in_quotes_reads_as_what_was_joined():
    joined = processing(CSV, join_source="Input").output(b'1,"two\nlines"\n2,x\n', b'"y\nz"\n3\n')
    assert rows(joined) == [["1", "two\nlines", "y\nz"], ["2", "x", "3"]]


@pytest.mark.parametrize(
    ("arguments", "payload", "answer", "expected"),
    [
        ({}, b'{"key": 1}', b'{"label": 1}', {"key": 1, "SageMakerOutput": {"label": 1}}),
        ({}, b"[1, [2]]", b"0.5", {"SageMakerInput": [1, [2]], "SageMakerOutput": 0.5}),
        ({}, b'"text"', b"[1, 2]", {"SageMakerInput": "text", "SageMakerOutput": [1, 2]}),
        ({}, b"null", b"null", {"SageMakerInput": None, "SageMakerOutput": None}),
        ({}, b'{"SageMakerOutput": 1}', b"2", {"SageMakerOutput": 2}),
        ({"output_filter": "$['id','SageMakerOutput']"}, b'{"id": 1, "a": 2}', b"3", {"id": 1, "SageMakerOutput": 3}),
        ({"output_filter": "$.SageMakerOutput"}, b'{"id": 1}', b'{"b": 3}', {"b": 3}),
        ({"output_filter": "$.SageMakerOutput.b"}, b'{"id": 1}', b'{"b": 3}', 3),
        ({"join_source": "None", "output_filter": "$.b"}, b'{"id": 1}', b'{"b": [3]}', [3]),
    ],
)
@pytest.mark.parametrize("content_type", [JSON, JSON_LINES])
def test_json_gets_the_answer_as_sagemakeroutput(content_type, arguments, payload, answer, expected):
    joined = processing(content_type, **{"join_source": "Input", **arguments}).output(payload, answer)
    assert json.loads(joined) == expected
    assert joined.endswith(b"\n") == (content_type == JSON_LINES)


@pytest.mark.parametrize("answer", [b'1\n{"b": 2}\n', b'1\r\n{"b": 2}', b'[1, {"b": 2}]'])
@pytest.mark.parametrize("content_type", [JSON, JSON_LINES])
def test_answers_to_several_records_come_as_lines_or_as_one_list(content_type, answer):
    joined = processing(content_type, join_source="Input").output(b'{"a": 1}\n[2]\n', answer)
    assert joined.endswith(b"}\n")
    assert values(joined) == [
        {"a": 1, "SageMakerOutput": 1},
        {"SageMakerInput": [2], "SageMakerOutput": {"b": 2}},
    ]


def test_a_document_that_is_a_list_is_one_record_with_one_answer():
    joined = processing(JSON, join_source="Input").output(b'[{"a": 1}, {"a": 2}]', b"[10, 20]")
    assert json.loads(joined) == {"SageMakerInput": [{"a": 1}, {"a": 2}], "SageMakerOutput": [10, 20]}


@pytest.mark.parametrize(
    ("content_type", "payload", "answer"),
    [
        (CSV, b"1\n2\n3\n", b"1\n2\n"),
        (CSV, b"1\n2\n", b"1\n2\n3\n"),
        (CSV, b"1\n2\n", b""),
        (CSV, b"", b"1\n"),
        (JSON, b'{"a": 1}\n{"a": 2}\n', b"1"),
        (JSON, b'{"a": 1}\n{"a": 2}\n', b"[1, 2, 3]"),
        (JSON, b'{"a": 1}\n{"a": 2}\n', b"[1, 2]\n[3, 4]\n[5, 6]"),
        (JSON_LINES, b'{"a": 1}\n', b"1\n2\n"),
        (JSON_LINES, b'{"a": 1}\n{"a": 2}\n', b"[]"),
        (JSON_LINES, b'{"a": 1}\n{"a": 2}\n', b'{"a": 1, "b": 2}'),
    ],
)
def test_more_or_fewer_answers_than_records_fail_and_are_counted(content_type, payload, answer):
    read = rows if content_type == CSV else values
    counts = f"{len(read(payload))} records went to the model and {len(read(answer))} answers came back"
    with pytest.raises(ProcessingError, match=counts):
        processing(content_type, join_source="Input").output(payload, answer)


def test_one_row_of_csv_is_no_answer_to_several_rows():
    with pytest.raises(ProcessingError, match="3 records went to the model and 1 answers came back"):
        processing(CSV, join_source="Input").output(b"1,2\n3,4\n5,6\n", b"0.1,0.2,0.3\n")


@pytest.mark.parametrize(
    ("content_type", "path", "payload", "answer"),
    [
        (CSV, "$[5]", b"1,2\n", b"3\n"),
        (CSV, "$[0,5]", b"1,2\n", b"3\n"),
        (CSV, "$.SageMakerOutput", b"1,2\n", b"3\n"),
        (CSV, "$[2]", b"1,2\n3\n", b"4\n5\n"),
        (JSON, "$[0]", b'{"a": 1}', b"2"),
        (JSON_LINES, "$['a','SageMakerOutput']", b'{"a": 1}\n{"b": 1}', b"2\n3"),
    ],
)
def test_an_output_filter_that_does_not_fit_a_joined_record_fails(content_type, path, payload, answer):
    with pytest.raises(ProcessingError, match="the filter"):
        processing(content_type, join_source="Input", output_filter=path).output(payload, answer)

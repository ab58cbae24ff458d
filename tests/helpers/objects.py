"""Names that objects in S3 and files may have, and what those are given to hold."""

NAMES = [
    "plain",
    "two words.jpg",
    " spaces around ",
    "ünïcode/日本/😀.png",
    "semi;colon",
    "question?mark=1&b=2",
    "hash#tag",
    "per%20cent",
    "per cent",
    "100%",
    "plus+plus",
    "a=b@c:d,e",
    "quo'te\"s",
    "back\\slash",
    "[brackets]{braces}<angles>",
    "*star~tilde|pipe^caret`",
    "deep/er/and/deeper",
    ".hidden",
    "..dots..",
    "UPPER",
    "lower.out",
    "x" * 200,
]


def data_of(name):
    return name.encode() * 3

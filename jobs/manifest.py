"""Build and check the manifests of batch transform: ``fastmaker manifest build|check``.

build    from a folder, an S3 prefix, or a list on stdin (-): keys or URIs, one a line, as text or JSON lines
check    its form, its prefix, that every key is there and stands in it once, and how large the objects are
"""

import argparse
import contextlib
import io
import itertools
import sys
from collections.abc import Iterator

import jsonlines

from fastmaker.jobs import storage
from fastmaker.jobs.cli import errors, tables
from fastmaker.jobs.storage import manifests
from fastmaker.jobs.storage.listings import listed

MB = 2**20
KEY_FIELDS = ("key", "source-ref")  # of an object on a line; the second is what augmented manifests have


def get_parser() -> argparse.ArgumentParser:
    """Return this command's parser."""
    parser = argparse.ArgumentParser(
        prog="fastmaker manifest",
        description="Build and check manifests of batch transform.",
        epilog="example: fastmaker manifest build digits --prefix s3://bucket/digits/ --output digits.json; "
        "find digits -name '*7.png' | fastmaker manifest build - --prefix file:///data/",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="write a manifest")
    build.add_argument("source", help="a folder, a file:// or s3:// prefix, or - for a list on stdin")
    build.add_argument("--prefix", help="where the objects lie (default: where the source says); ends with /")
    build.add_argument("--output", default="-", help="a file or an s3:// URI (default: stdout)")
    build.add_argument("--suffix", default="", help="take only keys that end so, such as .png")
    build.add_argument("--limit", type=int, help="take only the first so many")
    check = commands.add_parser("check", help="look for mistakes in a manifest, and look up each of its keys")
    check.add_argument("manifest", help="a file, or its file:// or s3:// URI")
    check.add_argument("--max-payload", type=int, default=6, help="count objects larger than this, MB (%(default)s)")
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the arguments."""
    return get_parser().parse_args(argv)


def main(args) -> int:
    """Build or check a manifest. Raises ValueError or OSError, saying what is wrong and where."""
    {"build": _build, "check": _check}[args.command](args)
    return 0


def _build(args) -> None:
    prefix, keys = _from_stdin(args.prefix) if args.source == "-" else _from_storage(args.source)
    keys = itertools.islice((key for key in keys if key.endswith(args.suffix)), args.limit)
    uri = None if args.output == "-" else storage.uri_of(args.output)
    count = manifests.write(uri, args.prefix or prefix, keys)
    if not count:
        raise ValueError("there is no key to put into the manifest")
    if uri:
        print(f"{args.output}: {count} keys", file=sys.stderr)


def _check(args) -> None:
    """Print how many keys the manifest has and how large the objects are."""
    sizes = {"keys": 0, "MB": 0.0, "empty objects": 0, f"larger than {args.max_payload} MB": 0}
    count, total, empty, large = sizes
    with listed("ManifestFile", storage.uri_of(args.manifest)) as inputs:
        for _, size in inputs:
            sizes[count] += 1
            sizes[total] += size / MB
            sizes[empty] += size == 0
            sizes[large] += size > args.max_payload * MB
        rows = [["prefix", inputs.prefix], *([name, f"{value:.10g}"] for name, value in sizes.items())]
    print(tables.table(["manifest", args.manifest], rows))


def _from_storage(source: str) -> tuple[str, Iterator[str]]:
    """Return the prefix and the keys of all objects below a folder or URI, in their order."""
    lists = contextlib.ExitStack()
    inputs = lists.enter_context(listed("S3Prefix", storage.uri_of(source)))

    def keys():
        with lists:
            yield from (name for name, _ in inputs)

    return inputs.prefix, keys()


def _from_stdin(prefix: str | None) -> tuple[str, Iterator[str]]:
    """Return the prefix and the keys of a list; URIs must begin with the prefix, by default the bucket of the first."""
    names = _names(io.TextIOWrapper(sys.stdin.buffer, "utf-8", newline="\n"))
    first = next(names, None)
    if first is None:
        raise ValueError("stdin: expected keys or URIs, one a line, and found none")
    prefix = prefix or _root(first[1])

    def keys():
        for number, name in itertools.chain([first], names):
            if name.startswith(("s3://", "file://")) and not name.startswith(prefix):
                raise ValueError(f"stdin, line {number}: {name!r} does not begin with the prefix {prefix!r}")
            yield name.removeprefix(prefix)

    return prefix, keys()


def _names(lines: io.TextIOBase) -> Iterator[tuple[int, str]]:
    """Yield (line number, key or URI) of each line that is not blank."""
    numbered = ((number, line.strip()) for number, line in enumerate(lines, 1))
    for number, line in ((number, line) for number, line in numbered if line):
        if line[0] not in '{"':
            yield number, line
            continue
        try:
            item = jsonlines.Reader([line]).read()
        except jsonlines.InvalidLineError as error:
            raise ValueError(f"stdin, line {number}: not JSON: {error}") from None
        named = [item] if isinstance(item, str) else [item[field] for field in KEY_FIELDS if field in item]
        if not named or not isinstance(named[0], str):
            raise ValueError(f"stdin, line {number}: expected a string, or an object with {' or '.join(KEY_FIELDS)}")
        yield number, named[0]


def _root(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    if scheme not in ("s3", "file") or "/" not in rest:
        raise ValueError(f"stdin: {uri!r} is no s3:// or file:// URI; with keys alone, --prefix says where they lie")
    return f"{scheme}://{rest.partition('/')[0]}/"


if __name__ == "__main__":
    errors.run(sys.modules[__name__])

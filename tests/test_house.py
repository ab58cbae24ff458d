"""The rooms of source/ and jobs/: what each may import, how large they are, and what setup.cfg says of them."""

import ast
import configparser
import functools
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from helpers import REPOSITORY

CONFIG = configparser.ConfigParser()
CONFIG.read(REPOSITORY / "setup.cfg")
# "fastmaker.jobs" -> its folder
FOLDERS = {
    package.strip(): REPOSITORY / folder.strip()
    for package, _, folder in (line.partition("=") for line in CONFIG["options"]["package_dir"].split("\n") if line)
}
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))

# A room's name is the beginning of its modules' names; the longest one that fits counts.
SOURCE = ("fastmaker", "fastmaker.files", "fastmaker.training", "fastmaker.serving", "fastmaker.export")
FLOOR = (
    "fastmaker.files",
    *(f"fastmaker.jobs.{name}" for name in ("digits", "files", "instance_types", "runtime", "storage")),
)
BELOW_BACKENDS = (*FLOOR, "fastmaker.local", "fastmaker.jobs.cli")
BELOW_LIBRARIES = (*SOURCE, *BELOW_BACKENDS, "fastmaker.jobs.backends")
LIBRARIES = tuple(
    f"fastmaker.jobs.{name}" for name in ("packaging", "clients", "verification", "monitoring", "benchmarks", "page")
)
MAY_IMPORT = {
    "fastmaker": SOURCE,  # its __init__ offers what the rooms hold
    "fastmaker.training": ("fastmaker", "fastmaker.files", "fastmaker.serving", "fastmaker.export"),
    "fastmaker.serving": ("fastmaker", "fastmaker.files"),
    "fastmaker.export": ("fastmaker", "fastmaker.files", "fastmaker.serving", "fastmaker.training"),
    "fastmaker.files": (),
    **dict.fromkeys(FLOOR[1:], FLOOR[:1]),
    "fastmaker.jobs.runtime": (),  # the images have this room and no other
    "fastmaker.jobs.cli": FLOOR,
    "fastmaker.local": FLOOR,
    # What runs on the workers of a Ray cluster, and sends them there.
    "fastmaker.jobs.cluster": (*BELOW_BACKENDS, *SOURCE),
    "fastmaker.jobs.backends": (*BELOW_BACKENDS, "fastmaker.jobs.cluster"),
    # A library may import those before it.
    **{name: (*BELOW_LIBRARIES, *LIBRARIES[:number]) for number, name in enumerate(LIBRARIES)},
    # The commands: none imports another, but the one that completes them all.
    "fastmaker.jobs": (*BELOW_LIBRARIES, *LIBRARIES),
    "fastmaker.jobs.completion": ("fastmaker.jobs", "fastmaker.jobs.cli"),
}

LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 40
# What is longer, with its reason.
LONGER = {}

# Distributions that are declared though nothing here imports them, with the reason.
NOT_IMPORTED = {
    "onnxscript": "torch.onnx exports by it",
    "setuptools": "the serving toolkits import its pkg_resources",
    "torch-model-archiver": "run as a program",
    "torchserve": "run as a program",
    "ray": "no extra of the tests brings it: `make test-ray` does",
    "flask": "moto's server imports it, and moto does not bring it",
    "flask-cors": "as flask",
}
# Modules that are imported though no distribution is declared, with the reason.
NOT_DECLARED = {
    "fasttransform": "fastai brings it",
    "plum": "fasttransform brings it",
    **dict.fromkeys(("aiohttp", "grpc", "pydantic"), "ray[serve] brings it"),
    "ray": "declared, and installed by `make test-ray` alone",
    "sitecustomize": "Python's own name for what an environment may have",
    "google": "protobuf: onnx and tritonclient bring it",
    "triton_python_backend_utils": "Triton's server has it",
}


@functools.cache
def modules() -> dict[str, Path]:
    """The files of the package by the names that they are imported by."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            if not name.startswith("fastmaker.jobs.local"):  # the engine has a name of its own
                found[name] = file
    return found


@functools.cache
def imports(file: Path) -> list[tuple[int, str]]:
    """The line and full name of whatever a file imports, in functions as well; a name of a module is the module's."""
    found = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def room_of(name: str) -> str:
    """The room that a module, or a name within it, belongs to."""
    while name not in modules():
        name = name.rpartition(".")[0]
    parents = [name.rsplit(".", count)[0] for count in range(name.count(".") + 1)]
    return next(parent for parent in parents if parent in MAY_IMPORT)


def test_no_room_imports_a_higher_one():
    wrong = []
    for name, file in modules().items():
        room = room_of(name)
        for line, imported in imports(file):
            if imported.partition(".")[0] != "fastmaker":
                continue
            among_themselves = room_of(imported) == room != "fastmaker.jobs"
            if not among_themselves and room_of(imported) not in MAY_IMPORT[room]:
                wrong.append(f"{file.relative_to(REPOSITORY)}:{line}: {room} imports {imported}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", ["Dockerfile", "docker/ray.Dockerfile"])
def test_what_the_images_run_imports_nothing_that_they_lack(file):
    copied = re.findall(r"^COPY (?!--)(.+) (\S+)$", (REPOSITORY / file).read_text(), re.MULTILINE)
    assert ("jobs/runtime/*.py", "/opt/fastmaker/fastmaker/jobs/runtime/") in copied
    names = {name for _, name in imports(REPOSITORY / "docker" / "run.py") if name.startswith("fastmaker")}
    assert names
    assert {room_of(name) for name in names} == {"fastmaker.jobs.runtime"}


def test_the_tests_of_source_run_where_jobs_are_missing():
    """`make test-versions` runs them so."""
    helpers = {f"helpers.{file.stem}": file for file in TESTS if file.parent.name == "helpers"}
    found = []
    for file in [file for file in TESTS if "source" in file.relative_to(REPOSITORY).parts]:
        names = [name for _, name in imports(file)]
        for name in names:
            names += [more for helper in helpers if name.startswith(helper) for _, more in imports(helpers[helper])]
        found += [f"{file}: {name}" for name in names if name.startswith(("fastmaker.jobs", "fastmaker.local"))]
    assert not found, "\n".join(found)


def test_source_and_the_engine_are_imported_by_their_own_names_alone():
    files = [*modules().values(), REPOSITORY / "source" / "entry_point.py", *TESTS]
    names = re.compile(r"jobs(\.|$)|source(\.|$)|fastmaker\.jobs\.local")
    found = [f"{file}:{line}: {name}" for file in files for line, name in imports(file) if names.match(name)]
    assert not found, "\n".join(found)


def test_the_sdk_is_imported_by_the_engine_in_its_doors_alone():
    found = {
        name
        for name, file in modules().items()
        if room_of(name) == "fastmaker.local"
        and any(imported.partition(".")[0] == "sagemaker" for _, imported in imports(file))
    }
    assert found <= {"fastmaker.local.session", "fastmaker.local.sdk"}


def test_no_test_module_imports_another():
    names = {file.stem for file in TESTS if file.name.startswith("test_")}
    found = [
        f"{file.relative_to(REPOSITORY)}:{line}: {name}"
        for file in TESTS
        for line, name in imports(file)
        if names & set(name.split(".")) or name.partition(".")[0] in ("tests", "conftest")
    ]
    assert not found, "\n".join(found)


def test_no_test_module_or_helper_has_the_name_of_a_library():
    """A program finds its own folder first: beside a requests.py, `import requests` would be that file."""
    libraries = sys.stdlib_module_names | set(metadata.packages_distributions())
    found = [str(file.relative_to(REPOSITORY)) for file in TESTS if file.stem in libraries]
    assert not found, found


def longer(sizes: dict[str, int], limit: int) -> str:
    """What is longer than `limit` without a reason in LONGER, a line each."""
    found = sorted(name for name, size in sizes.items() if size > limit and name not in LONGER)
    return "\n".join(f"{name}: {sizes[name]} lines, expected at most {limit}" for name in found)


def test_no_file_is_longer_than_it_may_be():
    own = [*modules().values(), REPOSITORY / "setup.py", *(REPOSITORY / "docker").glob("*.py")]
    own += [file for file in TESTS if not file.name.startswith("test_")]
    sizes = {str(file.relative_to(REPOSITORY)): len(file.read_text("utf-8").splitlines()) for file in own}
    assert not longer(sizes, LINES_OF_A_FILE), longer(sizes, LINES_OF_A_FILE)


def test_no_function_is_longer_than_it_may_be():
    sizes = {}
    for file in [*modules().values(), *TESTS]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{file.relative_to(REPOSITORY)}::{node.name}"
                sizes[name] = max(node.end_lineno - node.lineno + 1, sizes.get(name, 0))
    assert not longer(sizes, LINES_OF_A_FUNCTION), longer(sizes, LINES_OF_A_FUNCTION)


def test_setup_cfg_lists_the_packages_that_are_there():
    listed = CONFIG["options"]["packages"].split()
    there = [name for name, file in modules().items() if file.name == "__init__.py"]
    assert sorted(listed) == sorted(there)
    assert len(listed) == len(set(listed))


def declared() -> set[str]:
    """The distributions that setup.cfg names for those who use the package, as PyPI spells them."""
    extras = dict(CONFIG["options.extras_require"])
    for name in ("test", "notebooks", "docs", "dev"):
        extras.pop(name, None)
    lines = "\n".join([CONFIG["options"]["install_requires"], *extras.values()]).split("\n")
    names = {spelled(re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0]) for line in lines if line}
    return names - {"fastmaker"}


def spelled(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def imported() -> dict[str, set[str]]:
    """The names of other top-level modules that the package imports, and the distributions that have them."""
    names = {
        name.partition(".")[0]
        for file in [*modules().values(), REPOSITORY / "source" / "entry_point.py"]
        for _, name in imports(file)
    }
    others = names - sys.stdlib_module_names - {"fastmaker", *NOT_DECLARED}
    # What is not installed here has the name of its module.
    return {name: distributions().get(name, {spelled(name)}) for name in others}


@functools.cache
def distributions() -> dict[str, set[str]]:
    """The installed distributions by the top-level modules that they have (Python 3.10 has no such function)."""
    found: dict[str, set[str]] = {}
    for distribution in metadata.distributions():
        names = (distribution.read_text("top_level.txt") or "").split()
        if not names:
            files = map(str, distribution.files or ())
            names = list({re.split(r"[/.]", file)[0] for file in files if file.endswith((".py", ".so"))})
        for name in names:
            found.setdefault(name, set()).add(spelled(distribution.metadata["Name"]))
    return found


def test_what_is_imported_is_declared():
    assert {name: found for name, found in imported().items() if not found & declared()} == {}


def test_what_is_declared_is_imported():
    used = set().union(*imported().values())
    assert declared() - used - NOT_IMPORTED.keys() == set()
    assert NOT_IMPORTED.keys() <= declared()
    assert NOT_IMPORTED.keys() & used == set()

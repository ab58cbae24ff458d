"""What `import fastmaker` offers: names that load when they are used, former names, the tree of exceptions."""

import ast
import builtins
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastmaker
from fastmaker import bundle
from fastmaker.serving import models

PACKAGE = Path(fastmaker.__file__).parent


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


def test_importing_the_package_imports_neither_torch_nor_fastai():
    program = "import sys, fastmaker; print(sorted({'torch', 'fastai', 'numpy', 'PIL'} & set(sys.modules)))"
    assert run(program).stdout == "[]\n"


def test_an_exception_is_imported_without_torch():
    program = "import sys; from fastmaker import ImageError, DataError, BadRequest; print('torch' in sys.modules)"
    assert run(program).stdout == "False\n"


def test_every_public_name_can_be_imported():
    for name in fastmaker.__all__:
        assert getattr(fastmaker, name) is not None
    assert set(fastmaker._LAZY) == set(fastmaker.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="module 'fastmaker' has no attribute 'no_such_name'"):
        _ = fastmaker.no_such_name


def test_a_bundle_is_saved_and_loaded_by_the_public_names(digits_learner, tmp_path):
    info = fastmaker.save_bundle(digits_learner, tmp_path / "model")
    assert isinstance(info, bundle.ModelInfo)
    assert isinstance(fastmaker.load_bundle(tmp_path / "model"), models.Model)


@pytest.mark.parametrize(
    ("module", "name", "message", "target"),
    [
        (
            "fastmaker.learner",
            "save_bundle",
            "fastmaker.learner.save_bundle has moved; use fastmaker.save_bundle",
            "save_bundle",
        ),
        (
            "fastmaker.serving",
            "load",
            "fastmaker.serving.load has moved; use fastmaker.load_bundle",
            "load_bundle",
        ),
    ],
)
def test_a_former_name_works_and_warns(module, name, message, target):
    with pytest.warns(DeprecationWarning, match=f"^{re.escape(message)}$"):
        function = getattr(importlib.import_module(module), name)
    assert function is getattr(fastmaker, target)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = importlib.import_module(module).no_such_name


def drawn_exceptions():
    """Return {class: base} of the tree in the package's docstring; a base in the tree without its module."""
    drawn, above = {}, []
    tree = fastmaker.__doc__.partition("The exceptions")[2]
    for line in tree.splitlines():
        if match := re.match(r"    ([\s│]*[├└]── )?([\w.]*(?:Exception|Error|Request|Acceptable|ContentType))\b", line):
            depth = len(match[1] or "") // 4
            above[depth:] = [match[2]]
            if depth:
                drawn[match[2]] = above[depth - 1].rpartition(".")[2]
    return drawn


def defined_exceptions():
    """Return {class with its module: base} of the exception classes that the files of the package define."""
    classes = {}
    for file in PACKAGE.rglob("*.py"):
        module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                classes[f"{module}.{node.name}"] = bases[0] if bases else "object"
    known = {name for name, value in vars(builtins).items() if isinstance(value, type) and _is_exception(value)}
    while found := {name for name, base in classes.items() if base in known} - known:
        known |= found | {name.rpartition(".")[2] for name in found}
    exceptions = {name: base for name, base in classes.items() if name in known}
    stand_in = exceptions.pop("serving.errors.BaseInferenceToolkitError")  # the toolkit's, where that is not installed
    return {name: stand_in if base == "BaseInferenceToolkitError" else base for name, base in exceptions.items()}


def _is_exception(kind):
    return issubclass(kind, BaseException)


def test_the_drawn_tree_of_exceptions_is_that_of_the_code():
    assert drawn_exceptions() == defined_exceptions()


def test_each_drawn_exception_is_a_class_with_that_base_and_a_public_name():
    drawn = drawn_exceptions()
    assert len(drawn) == 19
    for path, base in drawn.items():
        module, _, name = path.rpartition(".")
        kind = getattr(importlib.import_module(f"fastmaker.{module}"), name)
        assert base in {parent.__name__ for parent in kind.__mro__[1:]}
        assert getattr(fastmaker, name) is kind


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()

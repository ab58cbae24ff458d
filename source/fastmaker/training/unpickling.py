"""A module in the place of ``pickle``, for ``torch.load``: it finds what other machines and versions named otherwise.

Names that are missing become stand-ins (`stand_ins`). What was moved between versions of fastai, NumPy and Python, and
the paths of another operating system, are found where they are here.
"""

import contextlib
import dis
import functools
import importlib
import inspect
import pathlib
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from fastmaker.training import old_fastai
from fastmaker.training.stand_ins import StandIns

MAIN = "__main__"  # the notebook
HERE = ".".join(map(str, sys.version_info[:2]))
PATHS = {"WindowsPath", "PosixPath"}  # only one of them can be made on a system
NOTEBOOK_OF_DILL = [("__builtin__", MAIN), ("builtins", MAIN), (MAIN, "__dict__")]  # the dictionary of its names
PARALLEL = [("torch.nn.parallel.distributed", "DistributedDataParallel")]
MOVED = {"pathlib._local": "pathlib", "numpy._core": "numpy.core", "numpy.core": "numpy._core"}


class _Parallel(nn.parallel.DistributedDataParallel):
    """Holds a network as ``DistributedDataParallel`` does, without the processes that its own unpickling needs."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class PickleModule(types.ModuleType):
    """What `torch.load` needs of a pickle module, with names found by `find`."""

    def __init__(self, stand_ins: StandIns, imported: Sequence[types.ModuleType] = ()) -> None:
        super().__init__("fastmaker_pickle")
        finder = _Finder(stand_ins, imported)

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                return finder.find(module, name, super().find_class)

        self.Unpickler = Unpickler
        self.UnpicklingError = pickle.UnpicklingError
        self.load = lambda file, **options: Unpickler(file, **options).load()


class _Finder:
    """Finds what a pickle names."""

    def __init__(self, stand_ins: StandIns, imported: Sequence[types.ModuleType]) -> None:
        self.stand_ins, self.imported = stand_ins, imported
        self.notebook = {name: value for candidate in imported for name, value in vars(candidate).items()}
        self.notebook["__name__"] = MAIN

    def find(self, module: str, name: str, find_class: Callable[[str, str], Any]) -> Any:
        """Return the object that a pickle names: of the imported modules, of this machine, or a stand-in.

        `find_class` is pickle's own, which knows the names of Python 2 that it writes in protocol 2.
        """
        provided = self.provided(module, name)
        if provided is not None:
            return provided
        if (module, name) in NOTEBOOK_OF_DILL:
            return self.notebook
        if (module, name) in PARALLEL:
            return _Parallel
        if module == MAIN:  # here that is another program
            return self.stand_ins.make(module, name, _IN_NOTEBOOK)
        if module in ("pathlib", "pathlib._local") and name in PATHS:
            return type(pathlib.Path())
        if module.partition(".")[0] == "dill":
            importlib.import_module("dill")  # where it is missing, nothing of the pickle can be made
        if module.partition(".")[0] in ("cloudpickle", "dill") and (maker := self._maker(module, name)):
            return maker
        try:
            return _find_or_moved(find_class, module, name)
        except (ImportError, AttributeError) as error:
            with contextlib.suppress(ImportError, AttributeError):
                return old_fastai.find(module, name)
            return self.stand_ins.make(module, name, _reason(module, error))

    def provided(self, module: str, name: str) -> Any:
        """Return the object of the modules that --import names; None if they lack it."""
        for candidate in self.imported:
            if module in (MAIN, candidate.__name__):
                try:
                    return functools.reduce(getattr, name.split("."), candidate)
                except AttributeError:
                    continue
        return None

    def _maker(self, module: str, name: str) -> Callable[..., Any] | None:
        """Return what makes a function of bytecode, with a check that the bytecode is this Python's."""
        makers: dict[str, Callable[..., Any]] = {
            "_builtin_type": self._builtin_type,  # cloudpickle's, as the following two
            "_make_function": functools.partial(self._function, module, name),
            "_function_setstate": functools.partial(self._set_state, module),
            "_create_code": _code,  # dill's, as the following
            "_create_function": functools.partial(self._function, module, name),
        }
        return makers.get(name)

    def _builtin_type(self, name: str) -> Any:
        return _code if name == "CodeType" else getattr(types, name)

    def _function(self, module: str, maker: str, code: Any, namespace: Any, *args: Any, **options: Any) -> Any:
        """Return the function, what --import has in its place, or a stand-in if its bytecode is of another Python."""
        owner = (namespace or {}).get("__name__") or MAIN
        if isinstance(code, _OtherCode):
            code = next(filter(None, map(code.of_module, [owner, *self.imported])), code)
        if isinstance(code, types.CodeType):
            return getattr(importlib.import_module(module), maker)(code, namespace, *args, **options)
        return self.provided(owner, code.name) or self.stand_ins.make(owner, code.name, _OF_ANOTHER_PYTHON)

    def _set_state(self, module: str, function: Any, state: Any) -> None:
        """Give a function made of bytecode its attributes; others have them."""
        imported = any(function is value for candidate in self.imported for value in vars(candidate).values())
        if isinstance(function, types.FunctionType) and not imported:
            importlib.import_module(module)._function_setstate(function, state)


class _OtherCode:
    """A function's bytecode that this Python cannot run, by the arguments of its code object."""

    def __init__(self, args: Sequence[Any]) -> None:
        names = [value for value in args if isinstance(value, str)]  # the file, then the function
        self.name = names[1] if len(names) > 1 else "function"
        # The names that it uses: others', its own, and those of functions around it.
        self.used = (set(args[8]), args[9], args[-2]) if len(args) > 15 else ()

    def of_module(self, module: str | types.ModuleType) -> types.CodeType | None:
        """Return the same function's bytecode in a module that is here; None if that has none, or several."""
        if module == MAIN:  # here that is another program
            return None
        try:
            found = importlib.import_module(module) if isinstance(module, str) else module
            whole = compile(inspect.getsource(found), found.__name__, "exec", dont_inherit=True)
        except (ImportError, OSError, TypeError, SyntaxError):
            return None
        named = [code for code in _within(whole) if code.co_name == self.name != "<lambda>"]
        equal = [code for code in named if (set(code.co_names), code.co_varnames, code.co_freevars) == self.used]
        return equal[0] if len(equal) == 1 else None


def _within(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the code objects within another, at any depth."""
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield value
            yield from _within(value)


_IN_NOTEBOOK = "which the pickle names but does not hold: give the file that defines it, --import FILE.py"
_OF_ANOTHER_PYTHON = (
    f"which the pickle holds as bytecode of another Python than {HERE}: use that Python, or give the file that defines"
    " it, --import FILE.py"
)


def _code(*args: Any) -> Any:
    """Return a code object, or what stands for one that is of another Python."""
    if args and isinstance(args[0], bytes):  # dill's begin with the line numbers of older Pythons
        args = args[1:]
    operations = next((value for value in args if isinstance(value, bytes)), b"")
    inner = any(isinstance(value, _OtherCode) for arg in args if isinstance(arg, tuple) for value in arg)
    if _is_of_this_python(operations) and not inner:
        with contextlib.suppress(TypeError, ValueError):  # another Python's has other values
            return types.CodeType(*args)
    return _OtherCode(args)


def _is_of_this_python(operations: bytes) -> bool:
    """Return whether all operations are known here and are followed by as many cache entries as they have here."""
    cache_entries = getattr(dis, "_inline_cache_entries", {})
    position = 0
    while position < len(operations):
        operation = dis.opname[operations[position]]
        if operation.startswith("<") or operation == "CACHE":
            return False
        entries = _entries(cache_entries, operations[position], operation)
        position += 2
        if any(operations[position : position + 2 * entries : 2]) or position + 2 * entries > len(operations):
            return False
        position += 2 * entries
    return True


def _entries(cache_entries: Any, number: int, operation: str) -> int:
    return int(cache_entries.get(operation, 0) if isinstance(cache_entries, dict) else cache_entries[number])


def _find_or_moved(find_class: Callable[[str, str], Any], module: str, name: str) -> Any:
    """Return an object by its names, also where its module was moved. Raises ImportError or AttributeError."""
    try:
        return find_class(module, name)
    except ModuleNotFoundError:
        for old, new in MOVED.items():
            if module == old or module.startswith(f"{old}."):
                return find_class(new + module[len(old) :], name)
        raise


def _reason(module: str, error: Exception) -> str:
    package = module.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package:
        return f"whose package {package} is not installed here: install it, or give its file, --import {package}.py"
    found = sys.modules.get(package)
    version = getattr(found, "__version__", None)
    if version:
        return f"which {package} {version} does not have: the pickle was made with another version"
    return f"which {module} does not have here: give the file that defines it, --import FILE.py"

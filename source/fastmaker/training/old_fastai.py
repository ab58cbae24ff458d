"""Finds what pickles of fastai before 2.8 name: its transforms were in fastcore, and dispatched by a class there."""

import functools
import types
import typing
from typing import Any

TRANSFORM, DISPATCH = "fastcore.transform", "fastcore.dispatch"


class _TypeDict:
    """Functions by the type of an argument: `d`, the more special types first. As fastcore's class of this name."""

    d: dict[Any, Any]

    def matching(self, kind: type) -> list[Any]:
        return [value for key, value in self.d.items() if _is_subclass(kind, key)]


class TypeDispatch:
    """fastcore's dispatch by the types of the first two arguments, in the form that a Transform calls today."""

    funcs: _TypeDict
    bases: Any
    inst: Any = None
    owner: Any = None

    @property
    def methods(self) -> list[Any]:
        return [function for by_second in self.funcs.d.values() for function in by_second.d.values()]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = self._bound(args)
        return args[0] if function is None else function(*args, **kwargs)

    def _resolve_method_with_cache(self, args: tuple[Any, ...]) -> tuple[Any, Any]:
        """Return the function for these arguments and the type that it is annotated to return, Any if it is not.

        Raises plum's NotFoundLookupError, as a Transform expects.
        """
        from plum import NotFoundLookupError

        function = self._bound(args)
        if function is None:
            raise NotFoundLookupError.__new__(NotFoundLookupError)  # its __init__ takes plum's own lists
        return function, _returns(function)

    def _bound(self, args: tuple[Any, ...]) -> Any:
        function = self._find(type(args[0]), type(args[1]) if len(args) > 1 else object)
        if isinstance(function, staticmethod):
            return function.__func__
        owner = self.inst if self.inst is not None else self.owner
        return function if function is None or owner is None else types.MethodType(function, owner)

    def _find(self, first: type, second: type) -> Any:
        for by_second in self.funcs.matching(first):
            if found := by_second.matching(second):
                return found[0]
        others = (base._find(first, second) for base in self.bases or () if isinstance(base, TypeDispatch))
        return next((found for found in others if found is not None), None)


def find(module: str, name: str) -> Any:
    """Return what a name of an older fastcore stands for today. Raises ImportError or AttributeError for another."""
    if module == DISPATCH and name in ("TypeDispatch", "_TypeDict"):
        return {"TypeDispatch": TypeDispatch, "_TypeDict": _TypeDict}[name]
    if module not in (TRANSFORM, DISPATCH):
        raise ImportError(module)
    import fasttransform.cast
    import fasttransform.transform

    place = fasttransform.transform if module == TRANSFORM else fasttransform.cast
    return functools.reduce(getattr, name.split("."), place)


def _returns(function: Any) -> Any:
    try:
        return typing.get_type_hints(function).get("return", Any)
    except Exception:  # annotations may be anything
        return Any


def _is_subclass(kind: Any, other: Any) -> bool:
    """As fastcore's lenient_issubclass."""
    if kind is object and other is not object:
        return False
    try:
        return isinstance(kind, other) or issubclass(kind, other)
    except TypeError:
        return False

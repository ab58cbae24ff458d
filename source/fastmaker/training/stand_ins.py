"""Stand-ins for what a pickle names and this machine lacks: functions and classes of a notebook, or of another package.

A stand-in can be held, and passed on. Whoever calls one, or asks for what it would have, gets a `MissingError`, and the
use is noted: code that swallows the error does not hide it.
"""

from typing import Any, NoReturn

from fastmaker.bundle import BundleError

_STATE = "_state_of_the_missing_object"


class MissingError(BundleError):
    """An object that an answer depends on is missing; the message names it, and says how to provide it."""


class StandIns:
    """The stand-ins of one pickle."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}  # "module.name" -> why it is missing and what to do
        self.used: list[str] = []  # the names of those that were called or looked into, once loaded
        self.loading = True  # until then, a pickle may make objects of them
        self._made: dict[str, Any] = {}

    def make(self, module: str, name: str, reason: str) -> Any:
        """Return the stand-in for `name` of `module`: one and the same for one name."""
        full = f"{module}.{name}"
        if full not in self._made:
            self.reasons[full] = reason
            self._made[full] = _StandInType(
                name.rpartition(".")[2], (StandIn,), {"__module__": module, "__qualname__": name, "stand_ins": self}
            )
        return self._made[full]

    def error(self) -> MissingError | None:
        """Return the error that says what was used first; None if nothing was."""
        return (
            MissingError(f"the answer depends on {self.used[0]}, {self.reasons[self.used[0]]}") if self.used else None
        )

    def names(self) -> list[str]:
        """Return the full names of the missing objects, in the order of the pickle."""
        return list(self.reasons)

    def fail(self, kind: type) -> NoReturn:
        """Note that the stand-in `kind`, or a class made of it, is used. Raises MissingError."""
        known = [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]
        self.used.append(next(name for name in known if name in self.reasons))
        error = self.error()
        assert error
        raise error


class _StandInType(type):
    """The class of stand-ins. A stand-in is a class itself: what is missing may be one, or a function."""

    stand_ins: StandIns

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.stand_ins.loading:
            return cls.__new__(cls)  # type: ignore[call-overload]
        return cls.stand_ins.fail(cls)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):  # asked for by copy, inspect and the like, which do without
            raise AttributeError(name)
        if cls.stand_ins.loading:  # a method of a missing class, such as PILImage.create is of PILImage
            module, qualname = cls.__module__, cls.__qualname__
            method = type.__call__(_StandInType, name, (cls,), {"__module__": module, "__qualname__": qualname})
            setattr(cls, name, method)
            return method
        return cls.stand_ins.fail(cls)


class StandIn(metaclass=_StandInType):
    """The base of all stand-ins; its instances stand for those of a missing class."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def __setstate__(*args: Any) -> None:
        """Keep what the pickle gives an instance. What stands for a function gets its attributes without itself."""
        if len(args) == 2:
            object.__setattr__(args[0], _STATE, args[1])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == _STATE:
            raise AttributeError(name)
        return type(self).stand_ins.fail(type(self))

    def _used(self, *args: Any, **kwargs: Any) -> Any:
        return type(self).stand_ins.fail(type(self))

    def _filled(self, *args: Any) -> None:
        """What unpickling calls to fill a list or a dict of a class of its own."""
        if not type(self).stand_ins.loading:
            type(self).stand_ins.fail(type(self))

    __call__ = __len__ = __iter__ = __getitem__ = __contains__ = __enter__ = _used
    append = extend = __setitem__ = _filled


def state_of(instance: StandIn) -> dict[str, Any]:
    """Return the attributes that the pickle gives an instance of a missing class."""
    state = getattr(instance, _STATE, None)
    return state if isinstance(state, dict) else {}

"""What a graph returns in the place of another library's classes where those are not at hand."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any


class Output(OrderedDict[Any, Any]):
    """The parts of an output, by key, as attributes and by position."""

    def __getattr__(self, name: str) -> Any:
        try:
            if name.startswith("__"):  # Python's and numpy's protocols are no parts
                raise KeyError(name)
            return super().__getitem__(name)
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no part {name!r}") from None

    def __getitem__(self, key: Any) -> Any:
        by_position = isinstance(key, (int, slice)) and (isinstance(key, slice) or key not in self)
        return tuple(self.values())[key] if by_position else super().__getitem__(key)


class State:
    """The attributes of an object, without the methods of its class."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(vars(self))})"


def stand_in(kind: type, name: str) -> type:
    """A subclass of `Output` or `State` by the name of the class that it stands for."""
    return type(name, (kind,), {"__module__": __name__})

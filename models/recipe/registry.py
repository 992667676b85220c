"""Registries of components. A component is a class: its constructor is its schema, and a decorator registers it.

>>> LOSSES = Registry("loss")
>>> @LOSSES.register("ce", paper="textbook")
... class CrossEntropy: ...
>>> LOSSES.build("ce", num_classes=10)
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from models.errors import ConfigError

KINDS = {int: "integer", float: "number", str: "text", bool: "true or false", dict: "table", tuple: "list of numbers"}


@dataclass(frozen=True)
class Range:
    """Bounds of a number, used as Annotated[float, Range(low, high)]. An open end excludes the bound itself."""

    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        return f"{'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"


def check(field: str, value: Any, annotation: Any) -> Any:
    """The value, converted to the annotated type: an int may become a float, a list or a number a tuple.

    Raises:
        ConfigError: another type, or out of range; the message names the field.
    """
    bounds: tuple[Any, ...] = ()
    annotation, optional = _without_none(annotation)
    if optional and value is None:
        return None
    if typing.get_origin(annotation) is typing.Literal:
        return _choice(field, value, typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *rest = typing.get_args(annotation)
        bounds = tuple(r for r in rest if isinstance(r, Range))
    kind = typing.get_origin(annotation) or annotation
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is tuple and isinstance(value, int | float):
        value = [value]
    if kind is tuple and isinstance(value, list):
        inner = typing.get_args(annotation)[0]
        value = tuple(check(f"{field}[{i}]", item, inner) for i, item in enumerate(value))
    if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
        raise ConfigError(
            f"{field}: {value!r} is not {_with_article(kind)}; correct it in the recipe or with --set {field}=..."
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{field}: {value!r} is not finite; correct it in the recipe or with --set {field}=...")
    for bound in bounds:
        if value not in bound:
            raise ConfigError(
                f"{field}: {value!r} is outside {bound}; correct it in the recipe or with --set {field}=..."
            )
    return value


def _with_article(kind: type) -> str:
    name = KINDS.get(kind, kind.__name__)
    return name if kind in (str, bool) else f"{'an' if kind is int else 'a'} {name}"


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """The annotation without None, and True if it had one: (float, True) for float | None."""
    if typing.get_origin(annotation) not in (types.UnionType, typing.Union):  # Annotated[...] | None is the latter
        return annotation, False
    (kind,) = [part for part in typing.get_args(annotation) if part is not types.NoneType]
    return kind, True


def _choice(field: str, value: Any, known: tuple[str, ...]) -> Any:
    if value not in known:
        near = closest(str(value), known)
        raise ConfigError(f"{field}: {value!r} is not one of {', '.join(map(repr, known))}{near}")
    return value


def written(annotation: Any) -> str:
    """Type and range for readers: "(0, 1]", "integer [0, inf]", "true or false"."""
    annotation, _ = _without_none(annotation)
    kind, *rest = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Annotated else (annotation,)
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f'"{choice}"' for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        rest += typing.get_args(typing.get_args(kind)[0])[1:]  # the bounds of each number
    bounds = [str(bound) for bound in rest if isinstance(bound, Range)]
    kind = typing.get_origin(kind) or kind
    return " ".join(bounds if kind is float and bounds else [KINDS.get(kind, kind.__name__), *bounds])


def closest(name: str, known: typing.Iterable[str]) -> str:
    """Hint for a message, " (did you mean 'x'?)"; "" if no known name is similar."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


@dataclass(frozen=True)
class Parameter:
    """A parameter that a recipe may set: annotation (type and Range) and default."""

    annotation: Any
    default: Any


@dataclass(frozen=True)
class Component:
    """A registered name: its constructor, its source, and the parameters that it accepts.

    formula: for a composition of classes; empty: the first paragraph of the class's docstring is the formula.
    """

    build: Callable[..., Any]
    paper: str
    parameters: Mapping[str, Parameter]
    formula: str = ""


def parameters_of(cls: type) -> dict[str, Parameter]:
    """Parameters of a constructor that have a default."""
    hints = typing.get_type_hints(inspect.getattr_static(cls, "__init__"), include_extras=True)
    found = inspect.signature(cls).parameters.values()
    return {p.name: Parameter(hints[p.name], p.default) for p in found if p.default is not inspect.Parameter.empty}


class Registry:
    """Name -> component, with parameters checked before anything is built."""

    def __init__(self, noun: str, *, table: str = "") -> None:
        """Creates an empty registry.

        Args:
            noun: name of a component in messages, such as "loss".
            table: table of the recipe with the parameters; default: the noun.
        """
        self.noun, self.table = noun, table or noun
        self.components: dict[str, Component] = {}

    def register(
        self, name: str, *, paper: str, without: Collection[str] = (), changed: Mapping[str, Parameter] | None = None
    ) -> Callable[[type], type]:
        """Decorator that registers a class; one class may be registered under several names.

        Args:
            paper: source of the method.
            without: parameters of the constructor that a recipe cannot set under this name.
            changed: parameters with another range or default under this name.
        """
        changed = changed or {}

        def add(cls: type) -> type:
            known = {key: value for key, value in parameters_of(cls).items() if key not in without}
            build = partial(cls, **{key: value.default for key, value in changed.items()}) if changed else cls
            self.components[name] = Component(build, paper, {**known, **changed})
            return cls

        return add

    def find(self, name: str) -> Component:
        """The component of that name; raises ConfigError with the known names if there is none."""
        if name not in self.components:
            raise ConfigError(
                f"{self.noun}.name: no {self.noun} {name!r}{closest(name, self.components)}; "
                f"known: {', '.join(sorted(self.components))}"
            )
        return self.components[name]

    def build(self, name: str, /, *args: Any, **params: Any) -> Any:
        """An instance of that name.

        Raises:
            ConfigError: an unknown name, a misspelt parameter or a value out of range.
        """
        component = self.find(name)
        return component.build(*args, **self.check(name, component.parameters, params))

    def check(self, name: str, known: Mapping[str, Parameter], params: Mapping[str, Any]) -> dict[str, Any]:
        """The given parameters, converted; raises ConfigError for an unknown one or a value out of range."""
        for key in params:
            if key not in known:
                takes = ", ".join(known) or "none"
                raise ConfigError(
                    f"{self.table}.params.{key}: {name!r} has no such parameter{closest(key, known)}; it takes {takes}"
                )
        return {key: check(f"{self.table}.params.{key}", value, known[key].annotation) for key, value in params.items()}

"""Arguments and results between Python and Qt, by PythonQt's rules.

A string takes anything, a bool takes anything by its truth, an int takes a float by truncation and
refuses text, lists come back as tuples, enums are ints.
"""

import enum
import functools
import numbers
import types
import typing
from collections.abc import Sequence

from PySide6 import QtCore
from shiboken6 import Shiboken
from shibokensupport.signature import get_signature

Object = Shiboken.Object
MISFIT = (1000, None)


class EnumValue(int):
    """A value of a Qt enum as PythonQt has it: an int that knows its type's name."""

    def __repr__(self) -> str:
        return str(int(self))

    __str__ = __repr__


@functools.cache
def enumClass(pysideEnum) -> type:
    """The int subclass that stands for a Qt enum; its values are not among its attributes."""
    return type(pysideEnum.__name__, (EnumValue,), {"pysideEnum": pysideEnum})


def enumValue(member) -> EnumValue:
    """A PySide enum member as an int."""
    return enumClass(type(member))(member.value)


def unwrap(value):
    """What PySide takes for a value whose declared type says nothing."""
    inner = getattr(type(value), "pysideObject", None)
    if inner is not None:
        return value.pysideObject()
    if isinstance(value, EnumValue):
        return int(value)
    if isinstance(value, list | tuple):
        return (
            type(value)(unwrap(item) for item in value) if type(value) in (list, tuple) else value
        )
    return value


def fit(value, annotation) -> tuple[int, object]:
    """How badly a value suits a declared type (0 is exact), and what to hand over.

    Returns `MISFIT` when it does not suit at all.
    """
    if annotation is typing.Any or annotation is object:
        return 0, unwrap(value)
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        fits = [fit(value, option) for option in typing.get_args(annotation)]
        return min(fits, key=lambda pair: pair[0])
    if origin is not None:
        return _fitContainer(value, annotation, origin)
    if annotation is type(None):
        return (0, None) if value is None else MISFIT
    if annotation in _SIMPLE:
        return _SIMPLE[annotation](value)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _fitEnum(value, annotation)
    if isinstance(annotation, type) and issubclass(annotation, Object):
        return _fitObject(value, annotation)
    return 1, unwrap(value)


def _fitContainer(value, annotation, origin) -> tuple[int, object]:
    arguments = typing.get_args(annotation)
    if not (isinstance(origin, type) and issubclass(origin, Sequence)):
        return 1, unwrap(value)
    # A text is a sequence too, of its letters; PythonQt takes it as one.
    if not isinstance(value, list | tuple | str):
        return MISFIT
    inner = arguments[0] if arguments else typing.Any
    fits = [fit(item, inner) for item in value]
    if any(rank >= MISFIT[0] for rank, _ in fits):
        return MISFIT
    return (5 if isinstance(value, str) else 0), [item for _, item in fits]


def _fitEnum(value, annotation) -> tuple[int, object]:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return MISFIT
    exact = isinstance(value, EnumValue) and type(value).pysideEnum is annotation
    try:
        return (0 if exact else 2), annotation(int(value))
    except ValueError:
        return MISFIT


def _fitObject(value, annotation) -> tuple[int, object]:
    inner = unwrap(value)
    if isinstance(inner, annotation):
        return type(inner).__mro__.index(annotation), inner
    if inner is None and issubclass(annotation, QtCore.QObject):
        return 0, None
    if issubclass(annotation, QtCore.QByteArray) and isinstance(inner, str | bytes):
        return 1, QtCore.QByteArray(inner.encode() if isinstance(inner, str) else inner)
    return MISFIT


def toText(value) -> tuple[int, object]:
    inner = unwrap(value)
    return (0, value) if isinstance(value, str) else (20, str(value if inner is None else inner))


def toBool(value) -> tuple[int, object]:
    return (0 if isinstance(value, bool) else 10), bool(value)


def toInt(value) -> tuple[int, object]:
    if isinstance(value, bool):
        return 1, int(value)
    if isinstance(value, numbers.Integral):
        return 0, int(value)
    return (2, int(value)) if isinstance(value, numbers.Real) else MISFIT


def toFloat(value) -> tuple[int, object]:
    if not isinstance(value, numbers.Real):
        return MISFIT
    return (0 if isinstance(value, float) else 1), float(value)


_SIMPLE = {str: toText, bool: toBool, int: toInt, float: toFloat}


@functools.cache
def overloads(function) -> tuple | None:
    """[(declared types, how many are needed)] of a PySide function, None when it does not say."""
    signatures = get_signature(function)
    if signatures is None:
        return None
    if not isinstance(signatures, list):
        signatures = [signatures]
    found = []
    for signature in signatures:
        parameters = [
            p for p in signature.parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]  # fmt: skip
        if parameters and parameters[0].name == "self":
            parameters = parameters[1:]
        if any(p.kind == p.VAR_POSITIONAL for p in signature.parameters.values()):
            return None
        needed = sum(p.default is p.empty for p in parameters)
        found.append((tuple(p.annotation for p in parameters), needed))
    return tuple(found)


def call(function, name: str, arguments, kwargs, target=None, virtual: bool = False):
    """Call a PySide function with arguments converted as PythonQt does.

    Raises:
        ValueError: the arguments suit no overload, or some come by name.
    """
    if kwargs:
        raise ValueError(f"{name}() does not support kwargs")
    known = overloads(function)
    before = () if target is None or virtual else (target,)
    invoked = getattr(target, name.removesuffix("_")) if virtual else function
    if known is None:
        return invoked(*before, *(unwrap(value) for value in arguments))
    best = MISFIT
    for annotations, needed in known:
        if not needed <= len(arguments) <= len(annotations):
            continue
        fits = [fit(value, annotations[n]) for n, value in enumerate(arguments)]
        rank = sum(rank for rank, _ in fits)
        if rank < best[0]:
            best = (rank, [value for _, value in fits])
    if best[1] is None:
        wanted = " or ".join(f"{name}({_declared(types_)})" for types_, _ in known)
        raise ValueError(f"Called {wanted} with wrong arguments: {tuple(arguments)!r}")
    try:
        return invoked(*before, *best[1])
    except TypeError as error:
        raise ValueError(
            f"Called {name} with wrong arguments: {tuple(arguments)!r}: {error}"
        ) from error


def _declared(annotations) -> str:
    return ", ".join(getattr(a, "__name__", str(a)) for a in annotations)


def toProperty(value, prop: QtCore.QMetaProperty, className: str):
    """What to store for `object.property = value`.

    Raises:
        AttributeError: the property's type does not take such a value.
    """
    kind = prop.typeName()
    if prop.isEnumType() or prop.isFlagType():
        converted = toInt(value)
    elif kind in _PROPERTY_TYPES:
        converted = _PROPERTY_TYPES[kind](value)
    elif kind == "QStringList":
        if not isinstance(value, list | tuple | str):
            converted = MISFIT
        else:
            converted = (0, [toText(item)[1] for item in value])
    else:
        converted = (0, unwrap(value))
    if converted[0] >= MISFIT[0]:
        raise AttributeError(
            f"Property '{prop.name()}' of type '{kind}' does not accept an object of type"
            f" {type(value).__name__} ({value!r})"
        )
    return converted[1]


_PROPERTY_TYPES = {
    "QString": toText, "bool": toBool, "int": toInt, "uint": toInt, "qlonglong": toInt,
    "double": toFloat, "float": toFloat,
}  # fmt: skip

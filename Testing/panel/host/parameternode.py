"""Stand-in for `slicer.parameterNodeWrapper`: typed attributes kept in a parameter node.

Its public behavior for int, float, str, bool, pathlib paths, enums, tuples and node references;
for anything else it raises, as the original does for types that it does not know. Values lie in
the scene's own node, in the original's form for plain types, so that they come back with the scene.
"""

import ast
import dataclasses
import enum
import pathlib
import types
import typing
from collections.abc import Callable

import slicer
import vtk

from .connectors import connectorFor

PROPERTY = "SlicerParameterName"


class Validator:
    """Base of what restricts a value."""

    def validate(self, value) -> None:
        raise NotImplementedError


@dataclasses.dataclass
class WithinRange(Validator):
    minimum: float
    maximum: float

    def validate(self, value) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(
                f"Value must be within range [{self.minimum}, {self.maximum}], is {value}"
            )


@dataclasses.dataclass
class Minimum(Validator):
    minimum: float

    def validate(self, value) -> None:
        if value < self.minimum:
            raise ValueError(f"Value {value} is below the minimum {self.minimum}")


@dataclasses.dataclass
class Maximum(Validator):
    maximum: float

    def validate(self, value) -> None:
        if value > self.maximum:
            raise ValueError(f"Value {value} is above the maximum {self.maximum}")


@dataclasses.dataclass
class Choice(Validator):
    choices: typing.Sequence

    def validate(self, value) -> None:
        if value not in self.choices:
            raise ValueError(f"Value {value!r} is none of {self.choices}")


@dataclasses.dataclass
class Default:
    """The value of a parameter that was never set."""

    value: object


@dataclasses.dataclass
class Decimals:
    value: int


@dataclasses.dataclass
class SingleStep:
    value: float


def nodeTypes(kind) -> list[str] | None:
    """Class names of a node type or a union of them; None for any other type."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        names = [nodeTypes(option) for option in typing.get_args(kind)]
        return None if None in names else [name for each in names for name in each or ()]
    if isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):
        return [kind.__name__]
    return None


def _isPath(kind) -> bool:
    return isinstance(kind, type) and issubclass(kind, pathlib.PurePath)


class Parameter:
    """One typed value by name."""

    def __init__(self, name: str, annotated, default) -> None:
        self.name, self.dataType = name, annotated
        self.kind, self.notes = annotated, ()
        if typing.get_origin(annotated) is typing.Annotated:
            self.kind, *notes = typing.get_args(annotated)
            self.notes = tuple(notes)
        self.nodeTypes = nodeTypes(self.kind)
        isEnum = isinstance(self.kind, type) and issubclass(self.kind, enum.Enum)
        known = self.kind in (int, float, str, bool) or _isPath(self.kind) or isEnum
        self.isTuple = typing.get_origin(self.kind) is tuple
        if not (known or self.nodeTypes or self.isTuple):
            raise TypeError(f"The host's parameter '{name}' cannot be of type {annotated}")
        self.isEnum = isEnum
        noted = [note for note in self.notes if isinstance(note, Default)]
        self.default = default or (noted[0] if noted else Default(self._ownDefault()))

    def _ownDefault(self):
        if self.nodeTypes:
            return None
        if self.isEnum:
            return next(iter(self.kind))
        return tuple(k() for k in typing.get_args(self.kind)) if self.isTuple else self.kind()

    def note(self, kind):
        """The first annotation of a class, or None."""
        return next((note for note in self.notes if isinstance(note, kind)), None)

    def check(self, value) -> None:
        """Raise what the original raises for a value that does not suit."""
        if self.nodeTypes:
            if value is not None and not any(value.IsA(name) for name in self.nodeTypes):
                raise TypeError(f"Value must be one of {self.nodeTypes}, is {value.GetClassName()}")
            return
        if value is None:
            raise ValueError("Value must not be None")
        wanted = (int, float) if self.kind is float else tuple if self.isTuple else self.kind
        if not isinstance(value, wanted):
            raise TypeError(f"Value must be of type {wanted}, is {type(value)} {value!r}")
        for note in self.notes:
            if isinstance(note, Validator):
                note.validate(value)

    def isIn(self, node) -> bool:
        return bool(node.HasParameter(self.name))

    def write(self, node, value) -> None:
        self.check(value)
        if self.nodeTypes:
            node.SetParameter(self.name, "")
            node.SetNodeReferenceID(self.name, None if value is None else value.GetID())
        elif self.isEnum:
            node.SetParameter(self.name, value.name)
        else:
            node.SetParameter(self.name, repr(value) if self.isTuple else str(value))

    def read(self, node):
        if not self.isIn(node):
            self.write(node, self.default.value)
        if self.nodeTypes:
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        if self.isEnum:
            return self.kind[text]
        if self.kind is bool:
            return text == "True"
        return ast.literal_eval(text) if self.isTuple else self.kind(text)


def _attribute(parameter: Parameter) -> property:
    return property(
        lambda self: parameter.read(self.parameterNode),
        lambda self, value: self.setValue(parameter.name, value),
    )


class ParameterNodeWrapper:
    """What the decorator adds to a class."""

    allParameters: dict[str, Parameter] = {}

    def __init__(self, parameterNode) -> None:
        if parameterNode is None:
            raise AssertionError("A parameter node wrapper needs a parameter node")
        self.parameterNode = parameterNode
        self._guis: dict[int, dict] = {}
        self._nextTag = 0
        self._updating = False
        for parameter in self.allParameters.values():
            parameter.read(parameterNode)

    def _parameter(self, name: str) -> Parameter:
        if name not in self.allParameters:
            raise ValueError(f"Cannot find a param with the given name: {name}")
        return self.allParameters[name]

    def default(self, name: str) -> Default:
        return self._parameter(name).default

    def dataType(self, name: str):
        return self._parameter(name).dataType

    def getValue(self, name: str):
        return self._parameter(name).read(self.parameterNode)

    def setValue(self, name: str, value) -> None:
        parameter = self._parameter(name)
        with slicer.util.NodeModify(self.parameterNode):
            parameter.write(self.parameterNode, value)

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, wasModified):
        return self.parameterNode.EndModify(wasModified)

    def Modified(self) -> None:
        self.parameterNode.Modified()

    def AddObserver(self, event, callback: Callable, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def connectGui(self, gui) -> int:
        """Bind every widget whose property SlicerParameterName names a parameter; a tag for
        `disconnectGui`."""
        if hasattr(gui, "isWidgetType"):
            widgets = gui.findChildren("QWidget")
        else:
            widgets = list(vars(gui).values())
        named = [(w.property(PROPERTY), w) for w in widgets]
        return self.connectParametersToGui({name: w for name, w in named if name})

    def connectParametersToGui(self, mapping: dict) -> int:
        connectors = {}
        for name, widget in mapping.items():
            connectors[name] = connectorFor(widget, self._parameter(name))
        tag, self._nextTag = self._nextTag, self._nextTag + 1
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.listen(lambda name=name, c=connector: self._fromGui(name, c))
        self._guis[tag] = connectors
        if not hasattr(self, "_observed"):
            self._observed = self.AddObserver(
                vtk.vtkCommand.ModifiedEvent, lambda caller, event: self._toGui()
            )
        return tag

    def _fromGui(self, name: str, connector) -> None:
        if not self._updating:
            self.setValue(name, connector.read())

    def _toGui(self) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            with slicer.util.NodeModify(self.parameterNode):
                for connectors in list(self._guis.values()):
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            self._updating = False

    def disconnectGui(self, tag: int) -> None:
        for connector in self._guis.pop(tag, {}).values():
            connector.stop()
        if not self._guis and hasattr(self, "_observed"):
            # An observer that outlives its wrapper is called after it was collected.
            self.RemoveObserver(self._observed)
            del self._observed


def parameterNodeWrapper(cls=None):
    """The decorator, with or without parentheses."""
    if cls is None:
        return parameterNodeWrapper
    own = set(vars(ParameterNodeWrapper)) - {"__init__", "__module__", "__doc__"}
    parameters = {}
    for name, annotated in typing.get_type_hints(cls, include_extras=True).items():
        if name in own:
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
        default = Default(getattr(cls, name)) if hasattr(cls, name) else None
        parameters[name] = Parameter(name, annotated, default)
    namespace = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    namespace.update({name: _attribute(p) for name, p in parameters.items()})
    namespace["allParameters"] = parameters
    namespace.pop("__init__", None)
    return type(cls.__name__, (ParameterNodeWrapper,), namespace)


def findChildWidgetForParameter(widget, parameter: str):
    """The child whose SlicerParameterName is this, or None."""
    return next(
        (w for w in widget.findChildren("QWidget") if w.property(PROPERTY) == parameter), None
    )


EXPORTED = (
    parameterNodeWrapper, findChildWidgetForParameter, Validator, WithinRange, Minimum, Maximum,
    Choice, Default, Decimals, SingleStep,
)  # fmt: skip

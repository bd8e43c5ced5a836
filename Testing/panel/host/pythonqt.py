"""Qt objects as PythonQt shows them, on top of PySide6.

Every Qt class gets a wrapper class of the same name. The wrappers do not inherit from each other;
their attributes come from Qt's own meta-objects: properties are values, signals are signals, the
rest are methods, and there is nothing else.
"""

import enum
import functools
import re
import sys
import traceback
import weakref
from types import FunctionType, MethodType

from PySide6 import QtCore
from shiboken6 import Shiboken

from .conversion import Object, call, enumClass, enumValue, toProperty, unwrap

# What the code under test did wrong without anything being raised to its caller.
recorded: list[str] = []
# PySide has these, PythonQt does not.
NOT_IN_PYTHONQT = {
    "emit", "tr", "sender", "receivers", "staticMetaObject", "connectNotify", "disconnectNotify",
    "isSignalConnected", "destroyed", "connect", "disconnect", "toPython", "findChild",
    "findChildren", "className", "delete",
}  # fmt: skip
# Of overloaded signals the attribute form gives one, the first that Qt 5 declares.
PREFERRED = {("QProcess", "finished"): "finished(int)"}
_held: dict[int, object] = {}


def record(text: str) -> None:
    """Print what went wrong and keep it for the test to fail on."""
    print(text, file=sys.stderr)
    recorded.append(text)


def recordException() -> None:
    """The exception at hand is printed and does not go on, as with slots in the application."""
    record(traceback.format_exc())


class WrapperType(type):
    """Type of the wrapper classes; a class that is derived in Python gets a Qt class of its own."""

    def __new__(cls, name, bases, namespace, pysideClass=None):
        created = super().__new__(cls, name, bases, namespace)
        if pysideClass is not None:
            created._pysideClass, created._isPython = pysideClass, False
        elif bases:
            created._isPython = True
            created._pysideClass = _shadow(created, name, namespace)
            for key, value in namespace.items():
                if isinstance(value, QtCore.Signal):
                    setattr(created, key, SignalAttribute(key))
        return created

    def __init__(cls, name, bases, namespace, pysideClass=None):
        super().__init__(name, bases, namespace)


def _shadow(wrapperClass, name: str, namespace: dict) -> type:
    """A PySide class that hands Qt's virtual calls to the methods of a Python class."""
    base = next(c for c in wrapperClass.__mro__[1:] if hasattr(c, "_pysideClass"))._pysideClass
    members: dict = {"_wrapper": None}
    for key, value in namespace.items():
        if isinstance(value, QtCore.Signal):
            members[key] = value
        elif isinstance(value, FunctionType) and callable(getattr(base, key, None)):
            if not key.startswith("__"):
                members[key] = _forwarded(base, key)
    return type(base)(name, (base,), members)


def _forwarded(base, key: str):
    def forward(this, *arguments):
        owner = this._wrapper
        if owner is None:
            return getattr(base, key)(this, *arguments)
        try:
            return unwrap(getattr(owner, key)(*map(wrap, arguments)))
        except Exception:
            recordException()
            return getattr(base, key)(this, *arguments)

    return forward


class PythonQtInstanceWrapper(metaclass=WrapperType):
    """Base of all wrappers."""

    __slots__ = ("__dict__", "__weakref__", "_object")

    def __init__(self, *arguments, **kwargs) -> None:
        kind = type(self)._pysideClass
        if type(self)._isPython or not isGenerated(kind):
            if kwargs:
                raise ValueError(f"{type(self).__name__}() does not support kwargs")
            created = kind(*(unwrap(value) for value in arguments))
        else:
            created = call(kind, type(self).__name__, arguments, kwargs)
        self._adopt(created)

    def _adopt(self, pysideObject) -> None:
        object.__setattr__(self, "_object", pysideObject)
        if isinstance(pysideObject, QtCore.QObject):
            # A Python class's state lives as long as the Qt object, anything else is made anew.
            pysideObject._wrapper = self if type(self)._isPython else None
            pysideObject._weakWrapper = weakref.ref(self)

    def pysideObject(self):
        """The Qt object itself.

        Raises:
            ValueError: it was deleted.
        """
        if not Shiboken.isValid(self._object):
            raise ValueError(f"Trying to use a destroyed {type(self).__name__} object")
        return self._object

    def __bool__(self) -> bool:
        return Shiboken.isValid(self._object)

    def __eq__(self, other) -> bool:
        if other is None:
            return not Shiboken.isValid(self._object)
        if isinstance(other, PythonQtInstanceWrapper):
            other = other._object
        return self._object is other or (_isValue(self._object) and self._object == other)

    def __hash__(self) -> int:
        return id(self._object)

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({type(self).__name__} at: {hex(id(self._object))})"

    def __getattr__(self, name: str):
        if name == "_object":
            raise AttributeError(f"{type(self).__name__} was not initialized: call super().__init__")
        if not name.startswith("__") and name.encode() in self._dynamicNames():
            return asProperty(self._object.property(name))
        raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")

    def __setattr__(self, name: str, value) -> None:
        found = _lookup(type(self), name)
        if isinstance(found, PropertyAttribute | Fixed):
            found.__set__(self, value)
        elif name.encode() in self._dynamicNames():
            self._object.setProperty(name, unwrap(value))
        elif type(self)._isPython:
            object.__setattr__(self, name, value)
        else:
            raise AttributeError(
                f"'{name}' does not exist on {type(self).__name__} and creating new attributes on"
                " C++ objects is not allowed"
            )

    def _dynamicNames(self) -> list:
        held = self._object
        if isinstance(held, QtCore.QObject) and Shiboken.isValid(held):
            return [bytes(name.data()) for name in held.dynamicPropertyNames()]
        return []

    def _alive(self, doing: str):
        if not Shiboken.isValid(self._object):
            raise ValueError(f"Trying to {doing} a destroyed {type(self).__name__} object")
        return self._object


def _lookup(cls: type, name: str):
    for base in cls.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return None


def _isValue(held) -> bool:
    return not isinstance(held, QtCore.QObject)


def asProperty(value):
    """A property's value in Python: enums are plain ints, lists are tuples."""
    return value.value if isinstance(value, enum.Enum) else wrap(value)


class PropertyAttribute:
    """A Qt property as an attribute."""

    def __init__(self, name: str, qtName: str | None = None) -> None:
        self.name = qtName or name

    def __get__(self, wrapper, owner=None):
        if wrapper is None:
            return self
        return asProperty(wrapper._alive(f"read property '{self.name}' of").property(self.name))

    def __set__(self, wrapper, value) -> None:
        held = wrapper._alive(f"write property '{self.name}' of")
        meta = held.metaObject()
        prop = meta.property(meta.indexOfProperty(self.name))
        if not prop.isWritable():
            raise AttributeError(
                f"Property '{self.name}' of {type(wrapper).__name__} object is not writable"
            )
        held.setProperty(self.name, toProperty(value, prop, type(wrapper).__name__))


class Fixed:
    """A Python function in place of a Qt member; it cannot be assigned to."""

    def __init__(self, function, static: bool = False) -> None:
        self.function, self.static = function, static

    def __get__(self, wrapper, owner=None):
        if self.static or wrapper is None:
            return self.function
        return MethodType(self.function, wrapper)

    def __set__(self, wrapper, value) -> None:
        raise AttributeError(f"'{self.function.__name__}' cannot be overwritten")


class SlotFunction:
    """A method of a Qt object that can be called and connected to."""

    def __init__(self, function, name: str, wrapper, generated: bool) -> None:
        self.function, self.name, self.wrapper = function, name, wrapper
        self.generated = generated

    def __call__(self, *arguments, **kwargs):
        if self.wrapper is None:
            if arguments and isinstance(arguments[0], PythonQtInstanceWrapper):
                owner, *rest = arguments
                return getattr(owner, self.name)(*rest, **kwargs)
            raise ValueError(f"{self.name}() needs an object")
        held = self.wrapper._alive(f"call '{self.name}' on")
        if not self.generated:
            return wrap(self._callStandIn(held, arguments, kwargs))
        if not type(self.wrapper)._isPython:
            # The Qt object may be of a class that overrides it.
            return wrap(call(self.function, self.name, arguments, kwargs, held, virtual=True))
        return wrap(call(self.function, self.name, arguments, kwargs, held))

    def _callStandIn(self, held, arguments, kwargs):
        """Stand-ins check their arguments themselves; their number is checked here."""
        if kwargs:
            raise ValueError(f"{self.name}() does not support kwargs")
        code = self.function.__code__
        most = code.co_argcount - 1
        least = most - len(self.function.__defaults__ or ())
        if not least <= len(arguments) <= most:
            raise ValueError(f"Called {self.name} with wrong number of arguments: {arguments!r}")
        return self.function(held, *map(unwrap, arguments))

    def __eq__(self, other) -> bool:
        return (
            isinstance(other, SlotFunction)
            and self.name == other.name
            and self.wrapper is not None
            and self.wrapper == other.wrapper
        )

    def __hash__(self) -> int:
        return hash((self.name, self.wrapper))


class MethodAttribute:
    """A Qt method as an attribute of the wrapper class."""

    def __init__(self, name: str, function, generated: bool, static: bool) -> None:
        self.name, self.function, self.generated, self.static = name, function, generated, static

    def __get__(self, wrapper, owner=None):
        # Some are both: QFile.exists(name) and file.exists().
        if self.static and wrapper is None:
            return self._callStatic
        return SlotFunction(self.function, self.name, wrapper, self.generated)

    def _callStatic(self, *arguments, **kwargs):
        return wrap(call(self.function, self.name, arguments, kwargs))


class SignalAttribute:
    """A Qt signal as an attribute of the wrapper class."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, wrapper, owner=None):
        return self if wrapper is None else BoundSignal(wrapper, self.name)


class BoundSignal:
    """A signal of one object: connect, disconnect, emit, or call it to emit."""

    def __init__(self, wrapper, name: str) -> None:
        self._wrapper, self._name = wrapper, name

    def _signature(self) -> str:
        held = self._wrapper._alive(f"use signal '{self._name}' of")
        for (className, name), signature in PREFERRED.items():
            if name == self._name and held.inherits(className):
                return signature
        return next(s for s in signalsOf(held.metaObject()) if s.split("(")[0] == self._name)

    def connect(self, target, slot=None) -> bool:
        signature = self._signature()
        return connect(self._wrapper, signature, *([target] if slot is None else [target, slot]))

    def disconnect(self, *target) -> bool:
        return disconnect(self._wrapper, self._signature(), *target)

    def emit(self, *arguments) -> bool:
        held = self._wrapper._alive(f"emit '{self._name}' of")
        wanted = [s for s in signalsOf(held.metaObject()) if s.split("(")[0] == self._name]
        for signature in wanted:
            types = [t for t in signature[len(self._name) + 1 : -1].split(",") if t]
            if len(types) == len(arguments):
                instance = getattr(held, self._name)
                # An overload is chosen by its C++ types; the only one needs no choice.
                several = len({s.count(",") for s in wanted}) < len(wanted)
                chosen = instance[_PYTHON_TYPES.get(types[0], object)] if several else instance
                chosen.emit(*map(unwrap, arguments))
                return True
        raise ValueError(f"{self._name} cannot be emitted with {arguments!r}")

    __call__ = emit


_PYTHON_TYPES = {"bool": bool, "int": int, "double": float, "QString": str}


def signalsOf(meta) -> list[str]:
    """Signatures of all signals, inherited ones too."""
    found = []
    for n in range(meta.methodCount()):
        method = meta.method(n)
        if method.methodType() == QtCore.QMetaMethod.MethodType.Signal:
            found.append(bytes(method.methodSignature().data()).decode())
    return found


def _resolve(wrapper, signal: str) -> str | None:
    """Qt's own signature for what the code wrote; None when there is no such signal."""
    if "(" not in signal or not signal.endswith(")"):
        return None
    held = wrapper._alive(f"connect '{signal}' of")
    wanted = bytes(QtCore.QMetaObject.normalizedSignature(signal).data()).decode()
    if "vtk" in wanted:
        if wanted not in getattr(type(held), "vtkSignals", ()):
            return None
        wanted = re.sub(r"vtk\w+\*", "PyObject", wanted)
    elif "PyObject" in wanted:
        return None
    return wanted if wanted in signalsOf(held.metaObject()) else None


def connect(wrapper, signal: str, *target) -> bool:
    """`object.connect('signal(type)', callable)` or `(..., receiver, 'slot(type)')`."""
    internal = signal in signalsOf(wrapper._alive("connect").metaObject())
    signature = signal if internal else _resolve(wrapper, signal)
    if signature is None:
        record(f"QObject::connect: No such signal {type(wrapper).__name__}::{signal}")
        return False
    if len(target) == 2 and isinstance(target[1], str):
        callee = getattr(target[0], target[1].split("(")[0])
        slotCount = len([t for t in target[1].split("(")[1].rstrip(")").split(",") if t.strip()])
        relay = _Relay(callee, slotCount)
    elif len(target) == 1 and callable(target[0]):
        relay = _Relay(target[0], _most(target[0]))
    else:
        record(f"{type(wrapper).__name__}.connect: {target!r} cannot be called")
        return False
    held = wrapper.pysideObject()
    relays = held.__dict__.setdefault("_relays", [])
    relays.append((signature, target, relay.__call__))
    QtCore.QObject.connect(held, QtCore.SIGNAL(signature), relays[-1][2])
    _hold(held)
    return True


def disconnect(wrapper, signal: str, *target) -> bool:
    """Undo `connect`; without a target everything that is connected to the signal."""
    held = wrapper._alive("disconnect")
    internal = signal in signalsOf(held.metaObject())
    signature = signal if internal else _resolve(wrapper, signal)
    relays = held.__dict__.get("_relays", [])
    matching = [r for r in relays if r[0] == signature and (not target or r[1] == target)]
    for found in matching[:1] if target else matching:
        QtCore.QObject.disconnect(held, QtCore.SIGNAL(found[0]), found[2])
        relays.remove(found)
    return bool(matching)


def _hold(held) -> None:
    """What Qt owns must not forget its Python side, where its connections are."""
    if Shiboken.ownedByPython(held):
        return
    (pointer, *_) = Shiboken.getCppPointer(held)
    if pointer not in _held:
        _held[pointer] = held
        held.destroyed.connect(functools.partial(_held.pop, pointer, None))


def _most(callee) -> int | None:
    """How many arguments PythonQt hands over; None for all of them."""
    function = callee.__func__ if isinstance(callee, MethodType) else callee
    if isinstance(callee, SlotFunction):
        return callee.function.__code__.co_argcount - 1 if not callee.generated else -1
    if not isinstance(function, FunctionType) or function.__code__.co_flags & 0x04:
        return None
    return function.__code__.co_argcount - isinstance(callee, MethodType)


class _Relay:
    """Between a signal and a Python callable; nothing that the callable raises gets out."""

    def __init__(self, callee, most: int | None) -> None:
        self.callee, self.most = callee, most

    def __call__(self, *arguments) -> None:
        values = [wrap(value) for value in arguments]
        try:
            if self.most == -1:
                self._callSlot(values)
            else:
                self.callee(*(values if self.most is None else values[: self.most]))
        except Exception:
            recordException()

    def _callSlot(self, values: list) -> None:
        """A Qt slot takes as many of the signal's arguments as it can."""
        from .conversion import overloads

        known = overloads(self.callee.function)
        counts = {len(values)} if known is None else {len(types) for types, _ in known}
        least = 0 if known is None else min(needed for _, needed in known)
        count = max((n for n in counts if n <= len(values)), default=least)
        self.callee(*values[: max(count, least)])


def isGenerated(pysideClass) -> bool:
    """Whether PySide has the class, not the host."""
    return pysideClass.__module__.startswith("PySide6.")


_classes: dict[type, type] = {}
# {class name: {attribute: anything}}, laid over what the meta-object gives.
SPECIAL: dict[str, dict] = {}


def classFor(pysideClass: type) -> type:
    """The wrapper class of a PySide class, or of a stand-in that derives from one."""
    if pysideClass not in _classes:
        namespace = _members(pysideClass)
        for base in reversed(pysideClass.__mro__):
            namespace.update(SPECIAL.get(base.__name__, {}))
        _classes[pysideClass] = WrapperType(
            pysideClass.__name__, (PythonQtInstanceWrapper,), namespace, pysideClass=pysideClass
        )
    return _classes[pysideClass]


def _members(pysideClass: type) -> dict:
    generated = next(c for c in pysideClass.__mro__ if isGenerated(c) or c is object)
    namespace = _generatedMembers(generated)
    meta = getattr(pysideClass, "staticMetaObject", None)
    for base in reversed(pysideClass.__mro__):
        if base is not object and not isGenerated(base) and not base.__module__.startswith("Shib"):
            namespace.update(_standInMembers(base))
    if meta is None or not issubclass(pysideClass, QtCore.QObject):
        return namespace
    for signature in signalsOf(meta):
        name = signature.split("(")[0]
        namespace[name] = SignalAttribute(name)
    for n in range(meta.propertyCount()):
        name = meta.property(n).name()
        namespace[name] = PropertyAttribute(name)
    namespace.setdefault("name", PropertyAttribute("name", "objectName"))
    namespace.update(_OBJECT_METHODS)
    return namespace


def _generatedMembers(generated: type) -> dict:
    namespace: dict = {}
    for name in dir(generated):
        value = _lookup(generated, name)
        if name.startswith("_") or name in NOT_IN_PYTHONQT or isinstance(value, QtCore.Signal):
            continue
        if isinstance(value, type):
            if issubclass(value, enum.Enum):
                namespace[name] = enumClass(value)
                namespace.update({key: enumValue(m) for key, m in value.__members__.items()})
            elif issubclass(value, Object):
                namespace[name] = classFor(value)
            continue
        static = isinstance(value, staticmethod)
        if static or callable(value):
            function = getattr(generated, name) if static else value
            namespace[name] = MethodAttribute(name, function, True, static)
    if "exec" in namespace:
        namespace["exec_"] = namespace["exec"]
    return namespace


def _standInMembers(standIn: type) -> dict:
    """Of the host's own classes only what is declared as a slot, and what they list as enums."""
    namespace: dict = dict(standIn.__dict__.get("pythonEnums", {}))
    for hidden in standIn.__dict__.get("notInPython", ()):
        namespace[hidden] = Hidden(hidden)
    for name, value in standIn.__dict__.items():
        if isinstance(value, FunctionType) and hasattr(value, "_slots"):
            namespace[name] = MethodAttribute(name, value, False, False)
    return namespace


class Hidden:
    """What the base class of a stand-in has and the original has not."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, wrapper, owner=None):
        raise AttributeError(f"{owner.__name__} has no attribute named '{self.name}'")


def wrap(value):
    """What PythonQt gives back for a result of Qt."""
    if isinstance(value, enum.Enum):
        return enumValue(value)
    if isinstance(value, list | tuple):
        return tuple(wrap(item) for item in value)
    if isinstance(value, dict):
        return {key: wrap(item) for key, item in value.items()}
    if not isinstance(value, Object):
        return value
    known = getattr(value, "_weakWrapper", None) if isinstance(value, QtCore.QObject) else None
    existing = known() if known is not None else None
    if existing is not None:
        return existing
    cls = classFor(_shown(type(value)))
    wrapper = cls.__new__(cls)
    wrapper._adopt(value)
    return wrapper


def _shown(pysideClass: type) -> type:
    """The class that the application would show: no private helper classes of the host."""
    return next(c for c in pysideClass.__mro__ if not c.__name__.startswith("_"))


def _inherits(held, kind) -> bool:
    return held.inherits(kind if isinstance(kind, str) else kind.__name__)


def _find(wrapper, kind, name=None) -> list:
    held = wrapper._alive("call 'findChildren' on")
    found = held.findChildren(QtCore.QObject)
    return [c for c in found if _inherits(c, kind) and name in (None, "", c.objectName())]


def _findChildren(wrapper, kind=None, name=None) -> tuple:
    return wrap(_find(wrapper, "QObject" if kind is None else kind, name))


def _findChild(wrapper, kind, name=None):
    return wrap(next(iter(_find(wrapper, kind, name)), None))


def _className(wrapper) -> str:
    return type(wrapper).__name__


def _delete(wrapper) -> None:
    Shiboken.delete(wrapper._alive("delete"))


def _property(wrapper, name: str):
    return asProperty(wrapper._alive("call 'property' on").property(name))


def _setProperty(wrapper, name: str, value) -> bool:
    held = wrapper._alive("call 'setProperty' on")
    if held.metaObject().indexOfProperty(name) >= 0:
        setattr(wrapper, name, value)
        return True
    return held.setProperty(name, unwrap(value))


_OBJECT_METHODS = {
    "connect": Fixed(connect), "disconnect": Fixed(disconnect), "findChild": Fixed(_findChild),
    "findChildren": Fixed(_findChildren), "className": Fixed(_className),
    "delete": Fixed(_delete), "property": Fixed(_property), "setProperty": Fixed(_setProperty),
}  # fmt: skip

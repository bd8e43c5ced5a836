"""Qt objects as PythonQt shows them, on top of PySide6.

Every Qt class gets a wrapper class of the same name. The wrappers do not inherit from each other;
their attributes come from Qt's own meta-objects: properties are values, signals are signals, the
rest are methods, and there is nothing else.
"""

import enum
import weakref
from types import FunctionType, MethodType

from PySide6 import QtCore
from shiboken6 import Shiboken

from .conversion import Object, call, enumClass, enumValue, toProperty, unwrap
from .records import recordException
from .signals import BoundSignal, connect, disconnect, signalsOf

# PySide has these, PythonQt does not.
NOT_IN_PYTHONQT = {
    "emit", "tr", "sender", "receivers", "staticMetaObject", "connectNotify", "disconnectNotify",
    "isSignalConnected", "destroyed", "connect", "disconnect", "toPython", "findChild",
    "findChildren", "className", "delete",
}  # fmt: skip


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
        elif (
            isinstance(value, FunctionType)
            and callable(getattr(base, key, None))
            and not key.startswith("__")
        ):
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
            raise AttributeError(
                f"{type(self).__name__} was not initialized: call super().__init__"
            )
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
    """The class that the application would show: no private classes of the host."""
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

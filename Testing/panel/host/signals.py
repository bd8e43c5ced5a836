"""Signals and slots by PythonQt's rules."""

import functools
import re
from types import FunctionType, MethodType

from PySide6 import QtCore
from shiboken6 import Shiboken

from .conversion import overloads, unwrap
from .records import record, recordException

# Of overloaded signals the attribute form gives one, the first that Qt 5 declares.
PREFERRED = {("QProcess", "finished"): "finished(int)"}
_held: dict[int, object] = {}
# What is connected, until it is disconnected or its sender is destroyed: PythonQt's signal targets
# are C++ objects, through which Python's collector of cycles does not see.
_connected: dict[int, list[tuple]] = {}


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
        relay = Relay(callee, slotCount)
    elif len(target) == 1 and callable(target[0]):
        relay = Relay(target[0], mostArguments(target[0]))
    else:
        record(f"{type(wrapper).__name__}.connect: {target!r} cannot be called")
        return False
    held = wrapper.pysideObject()
    relays = held.__dict__.setdefault("_relays", [])
    relays.append((signature, target, relay.__call__))
    QtCore.QObject.connect(held, QtCore.SIGNAL(signature), relays[-1][2])
    _hold(held)
    (pointer, *_) = Shiboken.getCppPointer(held)
    if pointer not in _connected:
        _connected[pointer] = []
        held.destroyed.connect(functools.partial(_connected.pop, pointer, None))
    _connected[pointer].append((signature, target))
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
        (pointer, *_) = Shiboken.getCppPointer(held)
        _connected[pointer].remove((found[0], found[1]))
    return bool(matching)


def _hold(held) -> None:
    """What Qt owns must not forget its Python side, where its connections are."""
    if Shiboken.ownedByPython(held):
        return
    (pointer, *_) = Shiboken.getCppPointer(held)
    if pointer not in _held:
        _held[pointer] = held
        held.destroyed.connect(functools.partial(_held.pop, pointer, None))


def mostArguments(callee) -> int | None:
    """How many arguments PythonQt hands over; None for all of them."""
    function = callee.__func__ if isinstance(callee, MethodType) else callee
    if hasattr(callee, "generated"):
        return callee.function.__code__.co_argcount - 1 if not callee.generated else -1
    if not isinstance(function, FunctionType) or function.__code__.co_flags & 0x04:
        return None
    return function.__code__.co_argcount - isinstance(callee, MethodType)


class Relay:
    """Between a signal and a Python callable; nothing that the callable raises gets out."""

    def __init__(self, callee, most: int | None) -> None:
        self.callee, self.most = callee, most

    def __call__(self, *arguments) -> None:
        from .pythonqt import wrap

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
        known = overloads(self.callee.function)
        counts = {len(values)} if known is None else {len(types) for types, _ in known}
        least = 0 if known is None else min(needed for _, needed in known)
        count = max((n for n in counts if n <= len(values)), default=least)
        self.callee(*values[: max(count, least)])

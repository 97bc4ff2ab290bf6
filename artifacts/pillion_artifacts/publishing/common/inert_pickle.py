"""Reads a pickle without executing it: nothing is imported, and nothing in it is called.

A pickle is a program for a small stack machine. `pickletools` splits it into opcodes without running them. This reader
runs the opcodes that make plain data, and makes numpy arrays from their bytes itself. For any other class or function, it
makes an `InertObject` with the name and the arguments of the call.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.errors import InvalidSourceError
from pillion_artifacts.limits import PICKLE_BYTES_MAX, PICKLE_OPCODES_MAX

_PLAIN: Final = {
    *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_SINGLE: Final[dict[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STORE: Final = {"PUT", "BINPUT", "LONG_BINPUT"}
_RECALL: Final = {"GET", "BINGET", "LONG_BINGET"}

_KEYS: Final = (str, int, float, bytes, type(None))
"""The types of keys. Tuples are not among them: hashing nested tuples with shared parts takes exponential time."""

_DTYPE_KINDS: Final = "biuf"
_RECONSTRUCT: Final = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
_FROM_BUFFER: Final = {"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"}
_SCALAR: Final = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}


class InertObject:
    """An object that a pickle describes, but that was not made: the class or function, its arguments and its state.

    `name` is `module.qualified_name`. `arguments` is None for a class or function that is named, but not called.
    """

    def __init__(self, name: str, arguments: tuple[Any, ...] | None = None) -> None:
        self.name = name
        self.arguments = arguments
        self.state: dict[Any, Any] = {}
        self.items: list[Any] = []

    def __repr__(self) -> str:
        return f"InertObject({self.name})"


class _Mark:
    """The start of a group on the stack."""


def read_pickle(data: bytes, what: str) -> Any:
    """Reads plain data, arrays and `InertObject`s from a pickle. Errors start with `what`.

    Raises `InvalidSourceError` if it is no pickle, too large, or has an opcode without an inert meaning.
    """
    if len(data) > PICKLE_BYTES_MAX:
        raise InvalidSourceError(f"{what}: expected a pickle of at most {PICKLE_BYTES_MAX} bytes, got {len(data)}")
    machine = _Machine()
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if number >= PICKLE_OPCODES_MAX:
                raise InvalidSourceError(f"{what}: expected a pickle of at most {PICKLE_OPCODES_MAX} steps")
            machine.step(opcode.name, argument)
        return machine.result()
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        # all errors that pickletools and the handlers raise for a malformed pickle
        raise InvalidSourceError(f"{what}: not a pickle that can be read inertly: {error}") from None


class _Machine:
    """The stack, the memo, and a handler for each opcode."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._stopped = False
        self._array_bytes = 0

    def step(self, name: str, argument: Any) -> None:
        if name in _PLAIN:
            self._stack.append(argument)
        elif name in _SINGLE:
            self._stack.append(_SINGLE[name]())
        elif name in _TUPLES:
            self._push_tuple(self._pop_many(_TUPLES[name]))
        elif name in _STORE:
            self._memo[int(argument)] = self._stack[-1]
        elif name in _RECALL:
            self._stack.append(self._memo[int(argument)])
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        else:
            raise ValueError(f"opcode {name} is not allowed")

    def result(self) -> Any:
        if not self._stopped or len(self._stack) != 1:
            raise ValueError("it does not end with one value")
        return _settle(self._stack[0])

    def _pop(self) -> Any:
        value = self._stack.pop()
        if isinstance(value, _Mark):
            raise TypeError("a mark where a value is expected")
        return value

    def _pop_many(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _pop_group(self) -> list[Any]:
        group: list[Any] = []
        while not isinstance(value := self._stack.pop(), _Mark):
            group.append(value)
        return group[::-1]

    def _push_tuple(self, values: list[Any]) -> None:
        self._stack.append(tuple(values))

    def _on_proto(self, _: Any) -> None: ...

    def _on_frame(self, _: Any) -> None: ...

    def _on_stop(self, _: Any) -> None:
        self._stopped = True

    def _on_mark(self, _: Any) -> None:
        self._stack.append(_Mark())

    def _on_pop(self, _: Any) -> None:
        self._stack.pop()

    def _on_pop_mark(self, _: Any) -> None:
        self._pop_group()

    def _on_dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _on_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _on_tuple(self, _: Any) -> None:
        self._push_tuple(self._pop_group())

    def _on_list(self, _: Any) -> None:
        self._stack.append(self._pop_group())

    def _on_dict(self, _: Any) -> None:
        group = self._pop_group()
        self._stack.append(dict(_pairs(group)))

    def _on_frozenset(self, _: Any) -> None:
        self._stack.append(frozenset(_keys(self._pop_group())))

    def _on_append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _on_appends(self, _: Any) -> None:
        self._extend(self._pop_group())

    def _on_additems(self, _: Any) -> None:
        group = self._pop_group()
        self._stack[-1].update(_keys(group))

    def _on_setitem(self, _: Any) -> None:
        self._set_items(self._pop_many(2))

    def _on_setitems(self, _: Any) -> None:
        self._set_items(self._pop_group())

    def _on_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(InertObject(f"{module}.{name}"))

    def _on_stack_global(self, _: Any) -> None:
        module, name = self._pop_many(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a class is named by two strings")
        self._stack.append(InertObject(f"{module}.{name}"))

    def _on_reduce(self, _: Any) -> None:
        function, arguments = self._pop_many(2)
        self._stack.append(self._describe_call(function, arguments))

    def _on_newobj(self, _: Any) -> None:
        self._on_reduce(None)

    def _on_newobj_ex(self, _: Any) -> None:
        self._pop()
        self._on_reduce(None)

    def _on_build(self, _: Any) -> None:
        state = self._pop()
        target = self._stack[-1]
        if isinstance(target, InertObject):
            self._set_state(target, state)
        else:
            raise TypeError(f"a {type(target).__name__} has no state")

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        (target.items if isinstance(target, InertObject) else target).extend(values)

    def _set_items(self, group: list[Any]) -> None:
        target = self._stack[-1]
        (target.state if isinstance(target, InertObject) else target).update(_pairs(group))

    def _describe_call(self, function: Any, arguments: Any) -> Any:
        """The result of a call that makes plain data; for any other call, an `InertObject`."""
        if not isinstance(function, InertObject) or not isinstance(arguments, tuple):
            raise TypeError("a call of something that has no name, or without a tuple of arguments")
        if function.arguments is not None:
            return InertObject(f"{function.name}()", arguments)
        if function.name in _RECONSTRUCT:
            return _Array(function.name, arguments)
        if function.name in _FROM_BUFFER:
            data, dtype, shape, order = arguments
            return self._array(data, dtype, shape, order)
        if function.name in _SCALAR:
            dtype, data = arguments
            return self._array(data, dtype, (), "C")[()]
        if function.name == "collections.OrderedDict" and not arguments:
            return {}
        return InertObject(function.name, arguments)

    def _set_state(self, target: InertObject, state: Any) -> None:
        if isinstance(target, _Array):
            _, shape, dtype, is_fortran, data = state
            target.state["array"] = self._array(data, dtype, shape, "F" if is_fortran else "C")
        elif target.name == "numpy.dtype":
            target.state["byteorder"] = state[1]
        elif isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            target.state.update(state[0] or {})
            target.state.update(state[1])
        elif isinstance(state, dict):
            target.state.update(state)
        else:
            target.state["state"] = state

    def _array(self, data: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:
        """Makes a numpy array from bytes."""
        array = _make_array(data, dtype, shape, order)
        self._array_bytes += array.nbytes
        if self._array_bytes > PICKLE_BYTES_MAX:
            raise ValueError(f"its arrays take more than {PICKLE_BYTES_MAX} bytes")
        return array


_HANDLERS: Final[dict[str, Callable[[_Machine, Any], None]]] = {
    name.removeprefix("_on_").upper(): handler for name, handler in vars(_Machine).items() if name.startswith("_on_")
}


class _Array(InertObject):
    """An array that gets its shape, dtype and bytes with its state."""


def _keys(values: list[Any]) -> list[Any]:
    """Returns the values if all of them can be keys. Raises `TypeError`."""
    for value in values:
        if not isinstance(value, _KEYS):
            raise TypeError(f"a {type(value).__name__} as a key")
    return values


def _pairs(group: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(_keys(group[::2]), group[1::2], strict=True))


def _make_array(data: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:
    """Raises `TypeError` or `ValueError` if the parts do not fit together."""
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, InertObject) or dtype.name != "numpy.dtype":
        raise TypeError("an array that is not bytes with a dtype")
    code = str((dtype.arguments or ("?",))[0])
    kind = np.dtype(code if code[:1] in _DTYPE_KINDS and code[1:].isdigit() else "V1")
    if kind.kind not in _DTYPE_KINDS:
        raise TypeError(f"an array of dtype {code!r}")
    sizes = tuple(int(size) for size in shape)
    if min(sizes, default=0) < 0 or math.prod(sizes) * kind.itemsize != len(data):
        raise ValueError(f"an array of shape {sizes} and dtype {code} in {len(data)} bytes")
    byteorder = dtype.state.get("byteorder", "=")
    values = np.frombuffer(bytes(data), kind.newbyteorder(">" if byteorder == ">" else "="))
    return values.reshape(sizes, order="F" if order == "F" else "C").astype(kind)


def _settle(value: Any) -> Any:
    """Returns `value` with each `_Array` replaced by its numpy array."""
    return _Settler().settle(value)


class _Settler:
    """Visits each object once, so that shared parts stay shared and cycles end."""

    def __init__(self) -> None:
        self._settled: dict[int, Any] = {}

    def settle(self, item: Any) -> Any:
        if isinstance(item, _Array):
            return item.state["array"]
        if id(item) not in self._settled:
            self._settle_new(item)
        return self._settled[id(item)]

    def _settle_new(self, item: Any) -> None:
        made: Any = {} if isinstance(item, dict) else [] if isinstance(item, list) else item
        self._settled[id(item)] = made
        if isinstance(item, dict):
            made.update({key: self.settle(inner) for key, inner in item.items()})
        elif isinstance(item, list):
            made.extend(self.settle(inner) for inner in item)
        elif isinstance(item, tuple):
            self._settled[id(item)] = tuple(self.settle(inner) for inner in item)
        elif isinstance(item, InertObject):
            item.state = {key: self.settle(inner) for key, inner in item.state.items()}
            item.arguments = None if item.arguments is None else tuple(map(self.settle, item.arguments))
            item.items = [self.settle(inner) for inner in item.items]

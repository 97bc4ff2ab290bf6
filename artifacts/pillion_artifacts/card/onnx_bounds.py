"""Whether an ONNX graph is bounded: a run takes about as long, and as much memory, whatever the observations hold.

Rule: in a bounded graph nothing that an observation holds decides how often something runs, how large a tensor is, which
element is read or written, or what an integer is divided by; except for integers that cannot leave the range that this
needs. The daemon enforces the bounds of integer observations on every row, so those count. It does not enforce the bounds
of floats.

The graph is walked once, without its weights, and with the operators of `onnx_operators`; any other makes it unbounded.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Final, Protocol

import msgspec

from pillion_artifacts.card.integer_bounds import Bounded, integer_bounds
from pillion_artifacts.card.onnx_checks import DTYPES, STANDARD_DOMAINS
from pillion_artifacts.card.onnx_operators import OPERATORS, RANDOM, Node, Operator
from pillion_artifacts.card.onnx_values import Value, any_value, constant, range_of
from pillion_artifacts.card.protobuf import merged, number, submessages, text, texts
from pillion_artifacts.limits import GRAPH_DEPTH_MAX, GRAPH_NODES_MAX

_IDENTICAL_DOMAINS: Final = {"ai.onnx": ""}
_SUBGRAPHS: Final = (6, 11)

Values = MutableMapping[str, Value | None]
"""What is known about each tensor so far, by its name. None: an input of a function that its caller left out."""


class Observation(Bounded, Protocol):
    """What a tensor of a card and one of a spec have in common."""

    @property
    def name(self) -> str: ...


def why_unbounded(data: bytes | memoryview, observation: Sequence[Observation]) -> str:
    """Returns why the ONNX file in `data` is not bounded, as one clause; an empty text if it is.

    `observation` holds the observations of its card. Raises nothing: a file that cannot be read is not bounded.
    """
    try:
        return _Walk(memoryview(data)).why_unbounded(observation)
    except (IndexError, ValueError, OverflowError, RecursionError) as error:
        return f"its graph cannot be read: {error}"


class _Function(msgspec.Struct, frozen=True):
    """A function that the file defines: an operator of its own."""

    body: memoryview
    inputs: list[str]
    outputs: list[str]
    defaults: dict[str, memoryview]


class _Walk:
    """Walks the nodes of a model, and of the functions that they call. Methods return a reason, empty if there is none."""

    def __init__(self, model: memoryview) -> None:
        self._graph = merged(model, 7) or memoryview(b"")
        self._functions: dict[tuple[str, str, str], _Function] = {}
        self._doubtful: list[str] = []
        self._nodes = 0
        for function in submessages(model, 25):
            self._define(function)

    def why_unbounded(self, observation: Sequence[Observation]) -> str:
        if self._doubtful:
            return f"it defines the operator {self._doubtful[0]!r}, which exists already"
        values: Values = {}
        why = self._take_constants(self._graph, values)
        for entry in submessages(self._graph, 11):
            name = text(entry, 1)
            # exporters list weights as inputs, too
            values[name] = values.get(name) or any_value(_declared(entry))
        values.update({tensor.name: _observed(tensor) for tensor in observation})
        return why or self._walk(submessages(self._graph, 1), values, {}, 0)

    def _define(self, function: memoryview) -> None:
        domain, name, overload = text(function, 10), text(function, 1), text(function, 13)
        if domain in STANDARD_DOMAINS or (domain, name, overload) in self._functions:
            self._doubtful.append(name)
        defaults = {text(attribute, 1): attribute for attribute in submessages(function, 11)}
        self._functions[domain, name, overload] = _Function(function, texts(function, 4), texts(function, 5), defaults)

    def _take_constants(self, graph: memoryview, values: Values) -> str:
        named = [(text(tensor, 8), constant(tensor)) for tensor in submessages(graph, 5)]
        for sparse in submessages(graph, 15):
            named += [(text(tensor, 8), any_value(is_fixed=True)) for tensor in submessages(sparse, 1)]
        return next((why for name, value in named if (why := _put(values, name, value))), "")

    def _walk(self, nodes: Iterator[memoryview], values: Values, outer: Mapping[str, memoryview], depth: int) -> str:
        """`outer` holds the attributes of the call that the nodes are part of."""
        if depth > GRAPH_DEPTH_MAX:
            return f"its graphs and functions are nested more than {GRAPH_DEPTH_MAX} deep"
        for view in nodes:
            self._nodes += 1
            if self._nodes > GRAPH_NODES_MAX:
                return f"it has more than {GRAPH_NODES_MAX} nodes"
            found = self._outputs(view, values, outer, depth)
            if isinstance(found, str):
                return found
            for name, value in zip(texts(view, 2), found, strict=True):
                if name and (why := _put(values, name, value)):
                    return why
        return ""

    def _outputs(
        self, view: memoryview, values: Values, outer: Mapping[str, memoryview], depth: int
    ) -> list[Value | None] | str:
        """The values of a node's outputs, or why it is not bounded."""
        domain, operator = text(view, 7), text(view, 4)
        # a tensor that nothing above defines: the file is not sorted, or the name is wrong
        given = [values.get(name, any_value()) if name else None for name in texts(view, 1)]
        node = Node(operator, _attributes(view, outer), given)
        outputs = len(texts(view, 2))
        function = self._functions.get((domain, operator, text(view, 8)))
        if function is not None:
            return self._call(function, node, outputs, depth)
        domain = _IDENTICAL_DOMAINS.get(domain, domain)
        if (domain, operator) == ("", "If"):
            return self._choose(node, values, outer, outputs, depth)
        if any(_holds_graph(attribute) for attribute in node.attributes.values()):
            return f"its graph has a {operator}"
        return _computed(domain, node, outputs)

    def _call(self, function: _Function, node: Node, outputs: int, depth: int) -> list[Value | None] | str:
        values: Values = dict.fromkeys(function.inputs)
        values.update(zip(function.inputs, node.given, strict=False))
        attributes = function.defaults | node.attributes
        if why := self._walk(submessages(function.body, 7), values, attributes, depth + 1):
            return why
        found = [values.get(name) or any_value() for name in function.outputs]
        return _padded(found, outputs)

    def _choose(
        self, node: Node, values: Values, outer: Mapping[str, memoryview], outputs: int, depth: int
    ) -> list[Value | None] | str:
        """An If. Only one whose condition is fixed is bounded: it always takes the same branch, with equal shapes."""
        if not node.value(0).is_fixed:
            return "an If depends on an observation"
        branches = [graph for name in ("then_branch", "else_branch") if (graph := node.graph(name)) is not None]
        found: list[list[Value | None]] = []
        for graph in branches:
            inner: Values = ChainMap({}, values)
            why = self._take_constants(graph, inner) or self._walk(submessages(graph, 1), inner, outer, depth + 1)
            if why:
                return why
            results = [inner.get(text(entry, 1)) or any_value() for entry in submessages(graph, 12)]
            found.append(_padded(results, outputs))
        return [_one_of(results) for results in zip(*found, strict=True)] if found else [any_value()] * outputs


def _computed(domain: str, node: Node, outputs: int) -> list[Value | None] | str:
    """The values of the outputs of an operator of ONNX."""
    known = OPERATORS.get((domain, node.operator))
    is_fixed = node.operator not in RANDOM and all(value is None or value.is_fixed for value in node.given)
    if known is None:
        if is_fixed and domain == "":
            return [any_value(is_fixed=True)] * outputs
        return f"nothing is known about {node.operator!r} with inputs that depend on an observation"
    if not is_fixed and (position := _closed(known, node)) is not None:
        return f"input {position} of {node.operator!r} depends on an observation"
    value = known.rule(node)
    if isinstance(value, str):
        # what always happens, happened when the version was tried
        return [any_value(is_fixed=True)] * outputs if is_fixed else value
    value = msgspec.structs.replace(value, is_fixed=is_fixed or known.is_fixed)
    return [value] * outputs if known.is_alike else _padded([value], outputs, is_fixed)


def _closed(known: Operator, node: Node) -> int | None:
    """The first input that depends on an observation and must not."""
    depends = [index for index, value in enumerate(node.given) if value is not None and not value.is_fixed]
    return next((index for index in depends if known.open is not None and index not in known.open), None)


def _padded(found: Sequence[Value | None], outputs: int, is_fixed: bool = False) -> list[Value | None]:
    """As many values as there are outputs; of the others nothing is known."""
    return [*found[:outputs], *[any_value(is_fixed=is_fixed)] * (outputs - len(found))]


def _one_of(results: Sequence[Value | None]) -> Value:
    values = [value or any_value() for value in results]
    first = values[0]
    return Value(
        first.dtype,
        min(value.low for value in values),
        max(value.high for value in values),
        all(value.is_fixed for value in values),
    )


def _put(values: Values, name: str, value: Value | None) -> str:
    if name in values:
        return f"its graph defines {name!r} twice"
    values[name] = value
    return ""


def _attributes(node: memoryview, outer: Mapping[str, memoryview]) -> dict[str, memoryview]:
    """The attributes of a node by name. One that refers to an attribute of the caller is that one."""
    found: dict[str, memoryview] = {}
    for attribute in submessages(node, 5):
        refers_to = text(attribute, 21)
        if not refers_to:
            found[text(attribute, 1)] = attribute
        elif refers_to in outer:
            found[text(attribute, 1)] = outer[refers_to]
    return found


def _holds_graph(attribute: memoryview) -> bool:
    return any(next(submessages(attribute, field), None) is not None for field in _SUBGRAPHS)


def _observed(tensor: Observation) -> Value:
    bounds = integer_bounds(tensor)
    low, high = (min(bounds[0]), max(bounds[1])) if bounds else range_of(tensor.dtype)
    # rows that no act fills hold zeros
    return Value(tensor.dtype, min(low, 0), max(high, 0))


def _declared(entry: memoryview) -> str:
    for kind in submessages(entry, 2):
        for tensor in submessages(kind, 1):
            return DTYPES.get(number(tensor, 1), "")
    return ""

"""A torch policy as one function of flat tensors, whichever file it came in."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch

from pillion_worker.errors import EngineError
from pillion_worker.model_source import Model
from pillion_worker.torch_engine.layout import channels_last, with_channels_last
from pillion_worker.torch_engine.pt2_archive import OPERATORS, disarm
from pillion_worker.torch_engine.script_code import check_code

Call = Callable[..., Sequence[Any]]
"""Takes the inputs by position, rows first, and returns the outputs by position."""

_EXPORT_SO: Final = (
    'export it with dynamic_shapes that give axis 0 of every input torch.export.Dim("rows", min=1, max=4096)'
)

_EXPECTED_STATELESS: Final = (
    "expected a program that changes nothing but new tensors: export model.eval(), name what it remembers as a state of the "
    "card, and use no operators in place on inputs"
)


class Program(NamedTuple):
    """A policy that torch runs."""

    call: Call
    input_count: int | None = None
    """How many inputs it takes, where it says so."""
    inputs: list[str] | None = None
    """The names of the inputs in the order of `call`, where the program names them; None: they are the card's."""
    outputs: list[str] | None = None
    """The same of the outputs, where the program returns a dictionary."""
    exported: Any = None
    """The program of `torch.export` on its device; None for TorchScript."""


def load_program(
    model: Model,
    kind: str,
    shapes: Sequence[int],
    device: str,
    example: Sequence[torch.Tensor],
    has_channels_last: bool = False,
) -> Program:
    """Loads a program onto a device (`cpu` or `cuda:N`).

    `shapes` are the numbers of rows that it must take; `example` are inputs of two rows on that device. With
    `has_channels_last` its images and the weights of its convolutions have their channels last in memory.

    Raises `EngineError`, in one line, if torch cannot load it, if it could run code, or if it does not take these rows. Raises
    `RuntimeError` if the device fails, such as for want of memory: `device_error` says it in one line.
    """
    if kind == "torchscript":
        return _load_script(model, device, example, has_channels_last)
    program = load_exported(model, device)
    for name, dimension in _rows_of_inputs(program):
        _check_rows(program, name, dimension, shapes)
    return _flat(program, has_channels_last)


def first_line(error: BaseException) -> str:
    """The line of an error's text that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # TorchScript quotes its own source, and ends with the error.
    return lines[-1] if "TorchScript" in lines[0] else lines[0]


def device_error(error: Exception) -> EngineError:
    """What torch raised while it used a device, in one line."""
    # torch before 2.5 knows it by this name alone.
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return EngineError(f"device memory is used up: {first_line(error)}")
    return EngineError(f"torch: {first_line(error)}")


def load_exported(model: Model, device: str) -> Any:
    """Loads a program of `torch.export` onto a device, without its example. Raises as `load_program` does."""
    archive = disarm(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(archive)
    except Exception as error:  # noqa: BLE001 - torch raises many types for a file that it cannot read
        raise EngineError(f"torch.export cannot load the program: {first_line(error)}") from None
    _check_operators(program.graph_module)
    changed = [spec.kind.name for spec in program.graph_signature.output_specs if spec.kind.name != "USER_OUTPUT"]
    if changed:
        what = changed[0].lower().replace("_", " ")
        raise EngineError(f"the program changes its own tensors ({what}): {_EXPECTED_STATELESS}")
    given = {node: node.name for node in program.graph.nodes if node.op == "placeholder"}
    _check_writes(program.graph_module, given)
    if device == "cpu":
        return program
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)


def _check_writes(graph_module: Any, given: Mapping[Any, str]) -> None:
    """Raises `EngineError` if a program overwrites its weights, its buffers or its inputs, or views of them.

    `given` names the tensors that the graph was given. The inputs lie in memory that others read too.
    """
    views = dict(given)
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            operands = [each for each in node.all_input_nodes if each.op != "get_attr"]
            for inner in (getattr(graph_module, each.target) for each in node.all_input_nodes if each.op == "get_attr"):
                if isinstance(inner, torch.fx.GraphModule):
                    own = [each for each in inner.graph.nodes if each.op == "placeholder"]
                    _check_writes(inner, {to: views[each] for to, each in zip(own, operands) if each in views})
        elif isinstance(node.target, torch._ops.OpOverload):
            for argument, value in _arguments(node):
                name = views.get(value) if isinstance(value, torch.fx.Node) and argument.alias_info else None
                if name and argument.alias_info.is_write:
                    raise EngineError(f"the program overwrites {name!r} ({node.target}): {_EXPECTED_STATELESS}")
                if name:
                    views[node] = name


def _arguments(node: Any) -> list[tuple[Any, Any]]:
    """What an operator's schema says of each argument of a call, and the argument."""
    schema = node.target._schema.arguments
    by_name = {argument.name: argument for argument in schema}
    named = [(by_name[name], value) for name, value in node.kwargs.items() if name in by_name]
    return [*zip(schema, node.args), *named]


def _check_operators(graph_module: Any) -> None:
    """The second look at what will be called, after torch has looked the names up."""
    for module in graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            if node.op != "call_function" or isinstance(
                node.target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)
            ):
                continue
            home = getattr(node.target, "__module__", "")
            name = getattr(node.target, "__name__", "")
            if not (home == "math" or (home == "_operator" and name in OPERATORS) or name.startswith("sym_")):
                raise EngineError(f"the program calls {home}.{name}, which is not one of torch's operators")


def _rows_of_inputs(program: Any) -> list[tuple[str, Any]]:
    """The name and the length of axis 0 of each input: an integer, or a symbol."""
    wanted = set(program.graph_signature.user_inputs)
    rows = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in wanted:
            shape = getattr(node.meta.get("val"), "shape", None)
            if not shape:
                raise EngineError(f"input {node.name!r} of the program: expected a tensor with an axis of rows")
            rows.append((node.name, shape[0]))
    return rows


def _check_rows(program: Any, name: str, dimension: Any, shapes: Sequence[int]) -> None:
    """Raises `EngineError` if axis 0 of an input cannot be as long as needed."""
    if isinstance(dimension, int):
        raise EngineError(f"input {name!r} was exported for exactly {dimension} rows: {_EXPORT_SO}")
    symbol = dimension.node.expr
    if not symbol.is_Symbol:
        raise EngineError(f"input {name!r} takes {symbol} rows: expected any number: {_EXPORT_SO}")
    range_of = program.range_constraints.get(symbol)
    if range_of is None:
        return
    least, most = range_of.lower, range_of.upper
    # torch writes 2 for what also takes 1: it never treats one row as a case of its own, unless the axis is fixed.
    if least > max(2, min(shapes)) or most < max(shapes):
        raise EngineError(
            f"input {name!r} was exported for {least} to {most} rows, expected {min(shapes)} to {max(shapes)}: {_EXPORT_SO}"
        )


def _flat(program: Any, has_channels_last: bool) -> Program:
    """The program's own graph, with its weights bound: calling it skips the checks and trees of `program.module()`."""
    signature = program.graph_signature
    bound = []
    for spec in signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            break
        kept = program.state_dict if spec.target in program.state_dict else program.constants
        weight = kept[spec.target].detach()
        bound.append(channels_last(weight) if has_channels_last else weight)
    if len(bound) + len(signature.user_inputs) != len(signature.input_specs):
        raise EngineError("the program's weights do not come before its inputs: export it anew")
    call: Call = functools.partial(program.graph_module.forward, *bound)
    if has_channels_last:
        call = with_channels_last(call)
    count = len(signature.user_inputs)
    names = _input_names(program.call_spec.in_spec), _output_names(program.call_spec.out_spec)
    return Program(call, count, *names, program)


def _input_names(tree: Any) -> list[str] | None:
    """The names of the inputs where they were given by keyword, or in one dictionary."""
    arguments, keywords = torch.utils._pytree.tree_unflatten(list(range(tree.num_leaves)), tree)
    if len(arguments) == 1 and isinstance(arguments[0], dict) and not keywords:
        return _by_position(arguments[0])
    return _by_position(keywords) if keywords and not arguments else None


def _output_names(tree: Any) -> list[str] | None:
    made = torch.utils._pytree.tree_unflatten(list(range(tree.num_leaves)), tree)
    return _by_position(made) if isinstance(made, dict) else None


def _by_position(places: Mapping[str, Any]) -> list[str] | None:
    """The keys in the order of their positions; None unless each key has exactly one."""
    if not all(isinstance(place, int) for place in places.values()):
        return None
    return sorted(places, key=lambda name: int(places[name]))


def _load_script(model: Model, device: str, example: Sequence[torch.Tensor], has_channels_last: bool) -> Program:
    check_code(model)
    try:
        with warnings.catch_warnings():
            # The card says TorchScript, so torch's deprecation warning says nothing new.
            warnings.simplefilter("ignore")
            source = io.BytesIO(model) if isinstance(model, bytes) else model
            module = torch.jit.load(source, map_location=device).eval()  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 - as above
        raise EngineError(f"torch cannot load the TorchScript: {first_line(error)}") from None
    _check_script_writes(module.inlined_graph)
    forward = module.forward
    if has_channels_last:
        module.to(memory_format=torch.channels_last)
        forward = with_channels_last(forward)
    flatten, names = _flattening(run_trial(forward, example))
    if flatten is None:
        return Program(forward)
    return Program(lambda *inputs: flatten(forward(*inputs)), outputs=names)


def _check_script_writes(graph: Any) -> None:
    """As `_check_writes`, but only for the inputs themselves: a script may hold branches that are never taken."""
    inputs = {value.debugName() for value in graph.inputs()}
    for node in graph.nodes():
        first = next(iter(node.inputs()), None)
        if node.kind().endswith("_") and first is not None and first.debugName() in inputs:
            raise EngineError(f"the TorchScript overwrites an input ({node.kind()}): {_EXPECTED_STATELESS}")


def run_trial(call: Callable[..., Any], example: Sequence[torch.Tensor]) -> Any:
    """Runs a program on an example. Raises `EngineError` if it fails."""
    try:
        return call(*example)
    except Exception as error:  # noqa: BLE001 - a program may fail in its own ways
        rows = len(example[0])
        raise EngineError(
            f"the program does not run on {rows} rows of its card's shapes: {first_line(error)}"
        ) from None


def _flattening(made: Any) -> tuple[Callable[[Any], Sequence[Any]] | None, list[str] | None]:
    """How to make a sequence of tensors of what a script returns (None: it is one), and the names of these tensors."""
    if isinstance(made, torch.Tensor):
        return lambda one: (one,), None
    if isinstance(made, dict):
        names = list(made)
        return lambda by_name: [by_name[name] for name in names], names
    if isinstance(made, (tuple, list)) and any(isinstance(item, (tuple, list)) for item in made):
        return _flattened, None
    return None, getattr(made, "_fields", None)


def _flattened(made: Any) -> list[Any]:
    """Nested tuples as one list, as in `(action, (hidden, cell))`."""
    return [part for item in made for part in _flattened(item)] if isinstance(made, (tuple, list)) else [made]

"""Inspects a program of `torch.export` without torch, and refuses one in which anything but a computation could run.

When torch reads a program, it unpickles sample inputs and some constants, evaluates the expressions of sizes, looks
operators and argument types up by name, and compiles guards. A published program has no pickle, no guard and no trace;
every text that torch would evaluate or look up is on a list of harmless ones. `publishing` removes what need not be there.

The worker has the same lists in `pillion_worker.torch_engine.pt2_archive`, because it may not need this package. A test compares
what both accept.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from pillion_artifacts.errors import UNREADABLE, InvalidArtifactError
from pillion_artifacts.formats.declared_tensor import DeclaredTensor
from pillion_artifacts.formats.plain_zip import read_plain_zip
from pillion_artifacts.limits import PROGRAM_BYTES_MAX

MODEL: Final = "models/model.json"
SAMPLE: Final = "data/sample_inputs/model.pt"
_WEIGHTS: Final = "data/weights/"
_CONSTANTS: Final = "data/constants/"
CONFIGS: Final = (f"{_WEIGHTS}model_weights_config.json", f"{_CONSTANTS}model_constants_config.json")
_FORMAT: Final = "archive_format"
_PLAIN: Final = (_FORMAT, "archive_version", "byteorder", ".data/version", ".data/serialization_id")
_TENSORS: Final = re.compile(rf"({_WEIGHTS}weight|{_CONSTANTS}tensor)_\d+", re.ASCII)

_ARITHMETIC: Final = "add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|lshift|rshift|getitem"
"""Functions of Python's `operator` that compute sizes. The others call or look up what their arguments name."""
_DUNDERS: Final = "__and__|__or__|__xor__|__lshift__|__rshift__|__iand__|__ior__|__ixor__|__ilshift__|__irshift__"
"""The only operators of torch with names of this kind; the others are attributes that every object has."""

_TARGET: Final = re.compile(
    rf"torch\.ops\.(aten|prims)\.({_DUNDERS}|(?!__)\w+)\.(?!__)\w+"
    r"|torch\.ops\.higher_order\.(cond|while_loop|wrap_with_autocast|wrap_with_set_grad_enabled)"
    rf"|torch\.sym_\w+|_operator\.({_ARITHMETIC})|math\.(?!__)\w+",
    re.ASCII,
)
_FORBIDDEN_OPERATORS: Final = {"save", "from_file", "load"}
"""Operators that read or write files."""
_IN_PLACE: Final = re.compile(r"torch\.ops\.aten\.(\w*[a-z0-9]_|__i\w+__)\.\w+|torch\.ops\.aten\.\w+\.\w*out", re.ASCII)

_SAME_ROWS: Final = re.compile(r"L(\['\w+'\]|\[\d+\])+\.size\(\)\[0\] == L(\['\w+'\]|\[\d+\])+\.size\(\)\[0\]")
"""The only guard that always holds: every input has the same number of rows."""

_WORD: Final = re.compile(r"[A-Za-z_]\w*")
_EXPRESSION: Final = re.compile(r"[\w\s+\-*/%(),<>=&|~.]*", re.ASCII)
"""Python reads a letter of another alphabet, such as a wide one, as the plain one: none may stand here."""
_ATTRIBUTE: Final = re.compile(r"\.\s*[A-Za-z_]|\)\s*\.|\w\s*\.\s*\(")
"""A dot that is not that of a number."""
_SYMBOL: Final = re.compile(r"Symbol\('(s|u|zuf|zf)\d+'(, [a-z]+=(True|False))*\)", re.ASCII)
_ALONE: Final = re.compile(r"(s|u|zuf|zf)\d+", re.ASCII)
_FUNCTIONS: Final = {
    *("Integer", "Rational", "Float", "Add", "Mul", "Pow"),
    *("Max", "Min", "FloorDiv", "CleanDiv", "CeilDiv", "Mod", "PythonMod", "ModularIndexing", "IntTrueDiv", "Abs"),
    *("ToFloat", "FloatTrueDiv", "TruncToInt", "FloorToInt", "CeilToInt"),
    *("Eq", "Ne", "Ge", "Gt", "Le", "Lt", "And", "Or", "Not", "True", "False", "oo", "int_oo"),
}
_STRING_ARGUMENT: Final = re.compile(r"[A-Za-z_,.> -]{0,128}")
"""Modes and the equation of einsum. Without a slash, none of them is the path of a file elsewhere."""

_NAME: Final = re.compile(r"([A-Za-z_]\w*)?", re.ASCII)
"""torch makes Python of a program, and writes its names into it as they are. So every text that has no rule of its own, and
every key, must be one: also those that are not known here.
"""
_PATH: Final = re.compile(r"[\w./ -]{0,512}", re.ASCII)
"""The name of a weight or of a module, as in `layers.0.weight`, and the key of an observation: torch looks them up, and its
compiler writes them between quotes.
"""
_PATHS: Final = {"parameter_name", "buffer_name", "tensor_constant_name", "fqn"}
_FLOAT: Final = re.compile(r"-?Infinity|NaN")
"""What JSON has no numbers for."""
_VERSION: Final = re.compile(r"[\w.+-]{0,64}", re.ASCII)
_TREE: Final = re.compile(r'[\w\s./:{}\[\],"\\-]*', re.ASCII)
"""JSON without a bracket that could end a text of C++, see `_PATH`."""
_MEMBER: Final = re.compile(r"(weight|tensor)_\d+", re.ASCII)

_TREES: Final = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}

_DTYPES: Final = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    12: "bool", 13: "bfloat16", 28: "uint16", 34: "uint32", 35: "uint64",
}  # fmt: skip
"""The data types by their number in a program."""


class TorchProgram(msgspec.Struct, frozen=True):
    """The inputs and outputs of a program, by position. Names are the program's own."""

    inputs: list[DeclaredTensor]
    outputs: list[DeclaredTensor]
    input_keys: list[str] = []
    """The names of its inputs, if it takes them by keyword or in one dictionary."""
    output_keys: list[str] = []
    """The keys of its outputs, if it returns a dictionary."""
    rows_max: int | None = None
    """The most rows that it takes at once; None: it does not say."""


def inspect_torch_program(view: memoryview, what: str) -> TorchProgram:
    """Reads the inputs and outputs of a published program.

    Raises `InvalidArtifactError` if it is no program of torch.export, if it has a pickle, code or an operator that is not
    torch's own, and if it changes its inputs or keeps something from run to run.
    """
    members = members_of(read_plain_zip(view, what, "publish the file itself, with --engine torch"), what)
    check_members(members, what)
    if bytes(members.get(_FORMAT, b"")) != b"pt2":
        raise InvalidArtifactError(f"{what}: expected the format pt2, got another")
    if len(members.get(SAMPLE, b"")):
        raise InvalidArtifactError(
            f"{what}: {SAMPLE}: expected no sample inputs, which are a pickle, got some: "
            "publish the program with --engine torch, which removes them"
        )
    for name in CONFIGS:
        check_config(members.get(name, b"{}"), f"{what}: {name}")
    program = read_program(members[MODEL], what)
    check_texts(program, what)
    return declared(program, what)


def members_of(members: dict[str, memoryview], what: str) -> dict[str, memoryview]:
    """The members without the folder that all of them are in. Raises `InvalidArtifactError` for members of several."""
    root = next(iter(members), "").partition("/")[0]
    prefix = f"{root}/"
    if not root or not all(name.startswith(prefix) for name in members):
        raise InvalidArtifactError(f"{what}: expected members in one folder, got {', '.join(sorted(members)[:4])}")
    return {name.removeprefix(prefix): content for name, content in members.items()}


def check_members(names: Any, what: str) -> None:
    """Raises `InvalidArtifactError` unless these are the members of one program, and none is code or a legacy pickle."""
    if MODEL not in names:
        raise InvalidArtifactError(
            f"{what}: expected a file of torch.export with {MODEL}, got {', '.join(sorted(names)[:4])}"
        )
    known = (*_PLAIN, MODEL, SAMPLE, *CONFIGS)
    for name in names:
        if name not in known and not _TENSORS.fullmatch(name):
            raise InvalidArtifactError(
                f"{what}: {name!r} is not part of a program that can be read without running anything"
            )


def check_config(data: bytes | memoryview, what: str) -> None:
    """Raises `InvalidArtifactError` if a weight or a constant is a pickle."""
    try:
        config = msgspec.json.decode(data, type=dict[str, Any])
        entries = config.get("config", {})
        unsafe = [name for name, entry in entries.items() if entry["use_pickle"] is not False]
        paths = [str(entry["path_name"]) for entry in entries.values()]
    except (*UNREADABLE, KeyError, TypeError, AttributeError) as error:
        raise InvalidArtifactError(f"{what}: expected weights by name, got {error!r}") from None
    if unsafe:
        raise InvalidArtifactError(f"{what}: expected plain tensors, but {unsafe[0]!r} is a pickle")
    for path in paths:
        if not _MEMBER.fullmatch(path):
            raise InvalidArtifactError(f"{what}: expected tensors of this file, got {path!r}")
    check_texts(config, what)


def read_program(data: bytes | memoryview, what: str) -> dict[str, Any]:
    """Decodes the JSON of a program. Raises `InvalidArtifactError`."""
    if len(data) > PROGRAM_BYTES_MAX:
        raise InvalidArtifactError(f"{what}: {MODEL}: expected at most {PROGRAM_BYTES_MAX} bytes, got {len(data)}")
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except UNREADABLE as error:
        raise InvalidArtifactError(f"{what}: {MODEL}: expected JSON, got {error}") from None


def strip(value: Any, what: str) -> None:
    """Removes guards, which torch would run, and traces, from a decoded program.

    Raises `InvalidArtifactError` for a guard that does not hold for every number of rows: without it, the program would
    answer wrongly for the others.
    """
    if isinstance(value, list):
        for item in value:
            strip(item, what)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "metadata":
                value[key] = {}
            elif key == "guards_code":
                _check_guards(item, what)
                value[key] = []
            else:
                strip(item, what)


def _check_guards(guards: Any, what: str) -> None:
    for guard in guards if isinstance(guards, list) else ():
        if not _SAME_ROWS.fullmatch(str(guard)):
            raise InvalidArtifactError(
                f"{what}: it was exported under a condition, {str(guard)[:120]!r}: expected a program for any number of "
                "rows: do not branch on the number of rows"
            )


def check_texts(value: Any, what: str, key: str = "") -> None:
    """Checks all strings. Guards and traces must not be there."""
    if isinstance(value, list):
        for item in value:
            check_texts(item, what, key)
    elif isinstance(value, str):
        _check_text(key, value, what)
    elif isinstance(value, dict):
        for name, item in value.items():
            if not (_PATH if key == "config" else _NAME).fullmatch(name):
                raise InvalidArtifactError(f"{what}: {name!r} is not a name")
            if name in ("metadata", "guards_code") and item:
                raise InvalidArtifactError(
                    f"{what}: {MODEL}: expected no {name}, got some: publish with --engine torch"
                )
            check_texts(item, what, name)


def _check_text(key: str, text: str, what: str) -> None:
    if key in ("target", "as_operator"):
        if not is_allowed_operator(text):
            raise InvalidArtifactError(f"{what}: operator {text!r} is not one of torch's own that only compute")
    elif key == "expr_str":
        if not _is_expression(text):
            raise InvalidArtifactError(f"{what}: {text!r} is not a size")
    elif key in ("as_string", "as_strings"):
        if not _STRING_ARGUMENT.fullmatch(text):
            raise InvalidArtifactError(f"{what}: {text!r} as an argument of an operator")
    elif key == "class_fqn":
        raise InvalidArtifactError(f"{what}: expected tensors and numbers, got an object {text!r}")
    elif key in ("in_spec", "out_spec"):
        if text:
            _check_tree(text, what)
    elif not _pattern_of(key).fullmatch(text):
        raise InvalidArtifactError(f"{what}: {key}: {text!r} is not a name")


def _pattern_of(key: str) -> re.Pattern[str]:
    """What a text that torch may write into code must be."""
    if key in _PATHS:
        return _PATH
    return {"torch_version": _VERSION, "path_name": _MEMBER, "as_float": _FLOAT, "as_floats": _FLOAT}.get(key, _NAME)


def is_allowed_operator(target: str) -> bool:
    """Whether an operator is one of torch's own that only computes."""
    return bool(_TARGET.fullmatch(target)) and not _FORBIDDEN_OPERATORS & set(target.split("."))


def _is_expression(text: str) -> bool:
    """Whether `text` has only sizes and arithmetic. sympy evaluates it as Python."""
    text = _SYMBOL.sub("s0", text)
    words = _WORD.findall(text)
    is_arithmetic = _EXPRESSION.fullmatch(text) and not _ATTRIBUTE.search(text)
    return bool(is_arithmetic) and all(word in _FUNCTIONS or _ALONE.fullmatch(word) for word in words)


def _check_tree(text: str, what: str) -> None:
    """Raises `InvalidArtifactError` for an argument type that torch would import, and for odd names."""
    if not _TREE.fullmatch(text):
        raise InvalidArtifactError(f"{what}: {text!r}: expected arguments by plain names")
    try:
        found = _types(msgspec.json.decode(text))
    except UNREADABLE as error:
        raise InvalidArtifactError(f"{what}: arguments: {error}") from None
    if found - _TREES:
        raise InvalidArtifactError(f"{what}: arguments of type {min(map(str, found - _TREES))}")
    _check_contexts(msgspec.json.decode(text), what)


def _check_contexts(tree: Any, what: str) -> None:
    """Raises `InvalidArtifactError` unless contexts are keys alone: they are JSON again, and torch imports their enums."""
    if isinstance(tree, list):
        for item in tree:
            _check_contexts(item, what)
    elif isinstance(tree, dict):
        context = tree.get("context")
        try:
            keys = msgspec.json.decode(context) if isinstance(context, str) else context
        except UNREADABLE as error:
            raise InvalidArtifactError(f"{what}: arguments: {error}") from None
        if isinstance(keys, dict) or not all(
            isinstance(key, int) or (isinstance(key, str) and _PATH.fullmatch(key)) for key in keys or ()
        ):
            raise InvalidArtifactError(f"{what}: arguments by other keys than names")
        for item in tree.values():
            _check_contexts(item, what)


def _types(value: Any) -> set[Any]:
    if isinstance(value, list):
        return set().union(*map(_types, value))
    if isinstance(value, dict):
        own = {str(value["type"]) if value["type"] is not None else None} if "type" in value else set()
        return own.union(*map(_types, value.values()))
    return set()


def declared(program: dict[str, Any], what: str) -> TorchProgram:
    """The inputs and outputs of a decoded program. Raises `InvalidArtifactError`."""
    try:
        module = program["graph_module"]
        tensors, signature = module["graph"]["tensor_values"], module["signature"]
        _check_writes(module["graph"], what)
        inputs = [
            _tensor(spec["user_input"]["arg"], tensors, "input", what)
            for spec in signature["input_specs"]
            if _kind_of(spec, ("user_input", "parameter", "buffer", "tensor_constant"), what) == "user_input"
        ]
        outputs = [
            _tensor(spec["user_output"]["arg"], tensors, "output", what)
            for spec in signature["output_specs"]
            if _kind_of(spec, ("user_output",), what)
        ]
        call = next(entry["signature"] for entry in module["module_call_graph"] if entry["fqn"] == "")
        given, made = msgspec.json.decode(call["in_spec"])[1], msgspec.json.decode(call["out_spec"])[1]
        rows_max = _rows_max(program, [tensors[tensor.name] for tensor in inputs])
        return TorchProgram(inputs, outputs, _input_keys(given, len(inputs)), _keys(made, len(outputs)), rows_max)
    except (*UNREADABLE, KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
        raise InvalidArtifactError(f"{what}: {MODEL}: expected a program of torch.export, got {error!r}") from None


def _rows_max(program: dict[str, Any], inputs: list[dict[str, Any]]) -> int | None:
    """The least of the bounds that the program sets to the first axis of its inputs."""
    bounds = []
    for tensor in inputs:
        size = tensor["sizes"][0] if tensor["sizes"] else {}
        symbol = re.match(r"Symbol\('(\w+)'", size.get("as_expr", {}).get("expr_str", ""), re.ASCII)
        most = program.get("range_constraints", {}).get(symbol.group(1), {}).get("max_val") if symbol else None
        bounds += [most] if isinstance(most, int) else []
    return min(bounds, default=None)


def _check_writes(graph: dict[str, Any], what: str) -> None:
    """Raises `InvalidArtifactError` for a program that overwrites a weight, a buffer or an input.

    What overwrites a view of one, the engine refuses.
    """
    given = {argument["as_tensor"]["name"] for argument in graph["inputs"] if "as_tensor" in argument}
    for node in graph["nodes"]:
        if _IN_PLACE.fullmatch(node["target"]):
            arguments = [each["arg"] for each in node["inputs"][:1] + [i for i in node["inputs"] if i["name"] == "out"]]
            for name in (each["as_tensor"]["name"] for each in arguments if "as_tensor" in each):
                if name in given:
                    raise InvalidArtifactError(
                        f"{what}: expected a program that changes nothing but new tensors, but it overwrites {name!r}: "
                        "export model.eval(), and name what it remembers as a state of the card"
                    )


def _kind_of(spec: dict[str, Any], known: tuple[str, ...], what: str) -> str:
    """The kind of an input or output of the graph. Raises `InvalidArtifactError` for one that is not known."""
    (kind,) = spec
    if kind not in known:
        raise InvalidArtifactError(f"{what}: expected a program of tensors that changes nothing, but it has a {kind}")
    return kind


def _tensor(argument: dict[str, Any], tensors: dict[str, Any], kind: str, what: str) -> DeclaredTensor:
    if "as_tensor" not in argument:
        raise InvalidArtifactError(f"{what}: {kind}: expected a tensor, got {', '.join(argument)}")
    name = str(argument["as_tensor"]["name"])
    meta = tensors[name]
    sizes = [size.get("as_int") for size in meta["sizes"]]
    return DeclaredTensor(name, _DTYPES.get(meta["dtype"], f"torch's dtype {meta['dtype']}"), sizes)


def _input_keys(tree: Any, count: int) -> list[str]:
    positional, named = tree["children_spec"]
    if len(positional["children_spec"]) == 1 and not named["children_spec"]:
        return _keys(positional["children_spec"][0], count)
    return [] if positional["children_spec"] else _keys(named, count)


def _keys(tree: Any, count: int) -> list[str]:
    """The keys of a dictionary of `count` tensors; none of any other tree."""
    is_dictionary = tree["type"] in ("builtins.dict", "collections.OrderedDict")
    if not is_dictionary or len(tree["children_spec"]) != count:
        return []
    return [str(key) for key in msgspec.json.decode(tree["context"])]

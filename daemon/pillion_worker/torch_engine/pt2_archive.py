"""Disarms a file of `torch.export` before torch reads it: torch unpickles, evaluates and imports what the file says.

Only the standard library is used here. A new archive is made of the checked parts, so that torch sees these bytes and no
others, whatever its own reader of zips makes of the file.
"""

from __future__ import annotations

import io
import json
import pickletools
import re
import shutil
import zipfile
from collections.abc import Mapping
from typing import Any, Final

from pillion_worker.errors import EngineError
from pillion_worker.limits import PT2_MEMBERS_MAX
from pillion_worker.model_source import Model, open_model

_PART_BYTES: Final = 1 << 20
_MODEL: Final = "models/model.json"
_SAMPLE: Final = "data/sample_inputs/model.pt"
_WEIGHTS: Final = "data/weights/"
_CONSTANTS: Final = "data/constants/"
_CONFIGS: Final = (f"{_WEIGHTS}model_weights_config.json", f"{_CONSTANTS}model_constants_config.json")
_PLAIN: Final = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
_TENSORS: Final = re.compile(rf"({_WEIGHTS}weight|{_CONSTANTS}tensor)_\d+", re.ASCII)

OPERATORS: Final = frozenset(
    [
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "neg",
        "pos",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "and_",
        "or_",
        "lshift",
        "rshift",
        "getitem",
    ]
)
"""Those of Python's `operator` that compute sizes. The others call or look up what their arguments name."""

_DUNDERS: Final = "__and__|__or__|__xor__|__lshift__|__rshift__|__iand__|__ior__|__ixor__|__ilshift__|__irshift__"
_TARGET: Final = re.compile(
    rf"torch\.ops\.(aten|prims)\.({_DUNDERS}|(?!__)\w+)\.(?!__)\w+"
    r"|torch\.ops\.higher_order\.(cond|while_loop|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.sym_\w+"
    rf"|_operator\.({'|'.join(sorted(OPERATORS))})"
    r"|math\.(?!__)\w+",
    re.ASCII,
)
_OF_FILES: Final = {"save", "load", "from_file"}
"""Operators that read or write files."""

_SAME_ROWS: Final = re.compile(r"L(\['\w+'\]|\[\d+\])+\.size\(\)\[0\] == L(\['\w+'\]|\[\d+\])+\.size\(\)\[0\]")
"""The only guard that always holds: every input of a batch has the same number of rows."""

_SYMBOL: Final = re.compile(r"Symbol\('(s|u|zuf|zf)\d+'(, [a-z]+=(True|False))*\)", re.ASCII)
_ARITHMETIC: Final = re.compile(r"[\w\s+\-*/%(),<>=&|~.]*", re.ASCII)
"""Python reads a letter of another alphabet, such as a wide one, as the plain one: none may stand here."""
_WORD: Final = re.compile(r"[A-Za-z_]\w*")
_IS_SYMBOL: Final = re.compile(r"(s|u|zuf|zf)\d+", re.ASCII)
_FUNCTIONS: Final = frozenset(
    [
        "Integer",
        "Rational",
        "Float",
        "Add",
        "Mul",
        "Pow",
        "Max",
        "Min",
        "Abs",
        "FloorDiv",
        "CleanDiv",
        "CeilDiv",
        "IntTrueDiv",
        "FloatTrueDiv",
        "Mod",
        "PythonMod",
        "ModularIndexing",
        "ToFloat",
        "TruncToInt",
        "FloorToInt",
        "CeilToInt",
        "Eq",
        "Ne",
        "Ge",
        "Gt",
        "Le",
        "Lt",
        "And",
        "Or",
        "Not",
        "True",
        "False",
        "oo",
        "int_oo",
    ]
)
_PLAIN_STRING: Final = re.compile(r"[A-Za-z_,.> -]{0,128}")
"""Modes, and the equation of einsum. Without a slash it is no path."""

_NAME: Final = re.compile(r"([A-Za-z_]\w*)?", re.ASCII)
"""torch makes Python of a program, and writes its names into it as they are. So every text that has no rule of its own, and
every key, must be one: also those that are not known here.
"""
_PATH: Final = re.compile(r"[\w./ -]{0,512}", re.ASCII)
"""The name of a weight or of a module, as in `layers.0.weight`, and the key of an observation: torch looks them up, and its
compiler writes them between quotes.
"""
_PATHS: Final = frozenset(("parameter_name", "buffer_name", "tensor_constant_name", "fqn"))
_FLOAT: Final = re.compile(r"-?Infinity|NaN")
"""What JSON has no numbers for."""
_VERSION: Final = re.compile(r"[\w.+-]{0,64}", re.ASCII)
_TREE: Final = re.compile(r'[\w\s./:{}\[\],"\\-]*', re.ASCII)
"""JSON without a bracket that could end a text of C++, see `_PATH`."""
_MEMBER: Final = re.compile(r"(weight|tensor)_\d+", re.ASCII)

_TREES: Final = frozenset(("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"))
_SAMPLE_GLOBALS: Final = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v2)?|parameter)|torch (\w+Storage|\w+)|torch\.serialization _get_layout"
)
_NAMING_OPCODES: Final = ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4")


def disarm(model: Model) -> io.BytesIO:
    """Returns the same program in a new archive, without anything that could run. Raises `EngineError`.

    Sample inputs and traces are left out.
    """
    try:
        with open_model(model) as file, zipfile.ZipFile(file) as archive:
            return _repacked(archive)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, RecursionError) as error:
        raise EngineError(f"the .pt2 file is not a readable archive: {error}") from None


def _repacked(archive: zipfile.ZipFile) -> io.BytesIO:
    members = archive.infolist()
    root = members[0].filename.partition("/")[0] + "/" if members else ""
    names = {member.filename[len(root) :] for member in members if member.filename.startswith(root)}
    if len(names) != len(members) or len(names) > PT2_MEMBERS_MAX or _MODEL not in names:
        raise EngineError("the .pt2 file: expected the archive of one program of torch.export.save, got other members")
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as safe:
        for member in members:
            # torch.export.save stores; what is compressed could grow to any size.
            if member.compress_type != zipfile.ZIP_STORED:
                raise EngineError(
                    f"the .pt2 file: expected stored members, got {member.filename!r}, which is compressed"
                )
            name = member.filename[len(root) :]
            if _TENSORS.fullmatch(name):
                _copy(archive, member, safe, root + name)
            else:
                safe.writestr(root + name, _checked(name, archive.read(member)))
    made.seek(0)
    return made


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, safe: zipfile.ZipFile, name: str) -> None:
    """Copies a tensor in small parts: whole, a large one would be in memory once more."""
    target = zipfile.ZipInfo(name)
    target.file_size = member.file_size
    with archive.open(member) as source, safe.open(target, "w") as copy:
        shutil.copyfileobj(source, copy, _PART_BYTES)


def _checked(name: str, content: bytes) -> bytes:
    """The content of a member as torch may read it."""
    if name == _MODEL:
        program = _json(name, content)
        _check(program)
        return json.dumps(program).encode()
    if name == _SAMPLE:
        _check_sample(content)
        return b""
    if name in _CONFIGS:
        config = _json(name, content)
        _check_config(name, config)
        return json.dumps(config).encode()
    if name not in _PLAIN:
        raise EngineError(f"the .pt2 file: {name!r} could not be read without running code: expected tensors only")
    return content


def _json(name: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise EngineError(f"the .pt2 file: {name}: {error}") from None


def _check_config(name: str, config: Any) -> None:
    try:
        pickled = [key for key, entry in config["config"].items() if entry["use_pickle"] is not False]
    except (KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"the .pt2 file: {name}: {error!r}") from None
    if pickled:
        raise EngineError(f"the .pt2 file: {pickled[0]!r} is a pickle: expected tensors only")
    _check(config)


def _check_sample(content: bytes) -> None:
    """Raises `EngineError` unless a pickle of sample inputs makes tensors alone. torch never gets to see it."""
    if not content:
        return
    wrong = "the .pt2 file: its sample inputs are a pickle of more than tensors: export it anew, from tensors only"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
        for opcode, argument, _ in pickletools.genops(pickles[0]):
            if opcode.name in _NAMING_OPCODES or (
                opcode.name == "GLOBAL" and not _SAMPLE_GLOBALS.fullmatch(str(argument))
            ):
                raise EngineError(wrong)
    except (zipfile.BadZipFile, ValueError, IndexError):
        raise EngineError(wrong) from None


def _check(value: Any, key: str = "") -> None:
    """Checks all strings, and removes guards, which torch would run, and traces."""
    if isinstance(value, str):
        _check_text(key, value)
    elif isinstance(value, list):
        for item in value:
            _check(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_key(key, name)
            if name == "metadata":
                value[name] = {}
            elif name == "guards_code":
                _check_guards(item)
                value[name] = []
            else:
                _check(item, name)


def _check_guards(guards: Any) -> None:
    """Raises `EngineError` if the program holds for some numbers of rows alone: torch would run code to find out."""
    for guard in guards if isinstance(guards, list) else ():
        if not _SAME_ROWS.fullmatch(str(guard)):
            raise EngineError(
                f"the program was exported under a condition, {str(guard)[:120]!r}: expected one for any number of rows, "
                "so do not branch on the number of rows"
            )


def _check_key(of: str, key: str) -> None:
    """Checks a key of the object `of`."""
    if not (_PATH if of == "config" else _NAME).fullmatch(key):
        raise EngineError(f"the .pt2 file: {key[:80]!r} is not a name")


def _check_text(key: str, text: str) -> None:
    if key in ("target", "as_operator"):
        if not (_TARGET.fullmatch(text) and _OF_FILES.isdisjoint(text.split("."))):
            raise EngineError(f"the .pt2 file: operator {text[:80]!r} is not one of torch's own that only compute")
    elif key == "class_fqn":
        raise EngineError(f"the .pt2 file: an object of {text[:80]!r}: expected tensors and numbers")
    elif key in ("as_string", "as_strings"):
        if not _PLAIN_STRING.fullmatch(text):
            raise EngineError(f"the .pt2 file: {text[:80]!r} as the argument of an operator")
    elif key == "expr_str":
        if not _is_size(text):
            raise EngineError(f"the .pt2 file: {text[:80]!r} is not a size")
    elif key in ("in_spec", "out_spec"):
        if text:
            _check_tree_text(key, text)
    elif not _pattern_of(key).fullmatch(text):
        raise EngineError(f"the .pt2 file: {key}: {text[:80]!r} is not a name")


def _pattern_of(key: str) -> re.Pattern[str]:
    """What a text that torch may write into code must be."""
    if key in _PATHS:
        return _PATH
    return {"torch_version": _VERSION, "path_name": _MEMBER, "as_float": _FLOAT, "as_floats": _FLOAT}.get(key, _NAME)


def _is_size(text: str) -> bool:
    """Whether it has only sizes and arithmetic: sympy evaluates it as Python."""
    text = _SYMBOL.sub("s0", text)
    words = _WORD.findall(text)
    is_arithmetic = _ARITHMETIC.fullmatch(text) and not re.search(r"\.\s*[A-Za-z_]|\)\s*\.|\w\s*\.\s*\(", text)
    return bool(is_arithmetic) and all(word in _FUNCTIONS or _IS_SYMBOL.fullmatch(word) for word in words)


def _check_tree_text(key: str, text: str) -> None:
    if not _TREE.fullmatch(text):
        raise EngineError(f"the .pt2 file: {key}: {text[:80]!r}: expected arguments by plain names")
    _check_tree(_json(key, text.encode()))


def _check_tree(tree: Any) -> None:
    """Raises `EngineError` for arguments of a type, or with a context, that torch would import."""
    if isinstance(tree, list):
        for item in tree:
            _check_tree(item)
    elif isinstance(tree, Mapping):
        if tree.get("type") is not None and tree["type"] not in _TREES:
            raise EngineError(
                f"the .pt2 file: arguments of type {str(tree['type'])[:80]!r}: expected tuples, lists, dicts"
            )
        _check_context(tree.get("context"))
        for item in tree.values():
            _check_tree(item)


def _check_context(context: Any) -> None:
    """Raises `EngineError` unless it names keys alone. It is JSON again, and torch imports the enums that it names."""
    keys = _json("context", context.encode()) if isinstance(context, str) else context
    if isinstance(keys, Mapping) or not all(
        isinstance(key, int) or (isinstance(key, str) and _PATH.fullmatch(key)) for key in keys or ()
    ):
        raise EngineError("the .pt2 file: arguments by other keys than names: expected tuples, lists, dicts")

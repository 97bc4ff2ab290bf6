"""Programs that torch's inductor compiled for this host: built while a version is staged, and only loaded afterwards.

A compiled program is a library that computes the whole graph. It is no artifact: it is made of the checked program, on the
host that runs it, and kept in a cache there. Loading it runs its code, so the cache decides what may be loaded.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch

from pillion_worker.builds.cache import read_or_build
from pillion_worker.builds.host import device_key, model_digest
from pillion_worker.devices import cuda_index
from pillion_worker.errors import EngineError
from pillion_worker.model_source import Model
from pillion_worker.tensors import LoadRequest
from pillion_worker.torch_engine.precision import HALVES
from pillion_worker.torch_engine.program import Call, Program, first_line, load_exported, run_trial

_FOLDERS: Final = ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
_MODEL: Final = "model"
"""The name that inductor gives the only program of a package."""


def compiled_call(
    model: Model,
    request: LoadRequest,
    program: Program,
    shapes: Sequence[int],
    device: str,
    example: Sequence[torch.Tensor],
) -> Call:
    """Returns the compiled program of a model on `cpu` or `cuda:N` from the cache; compiles it if the request says so.

    `shapes` are the numbers of rows that it will run, `example` are inputs in the order of the program. Raises
    `EngineError` if there is none, it cannot be trusted, or it cannot be compiled.
    """
    if program.exported is None:
        raise EngineError("only programs of torch.export can be compiled")
    if request.precision in HALVES or request.channels_last:
        raise EngineError("a compiled program computes in float32 or tf32, and with tensors as they come")
    _check_inputs(program.exported, example)
    key = {
        "model": model_digest(model),
        **device_key(device),
        "torch": torch.__version__,
        "precision": request.precision,
        "rows": [min(shapes), max(shapes)],
        "threads": request.threads,
    }
    package = read_or_build(request, key, partial(_build, model, example, request.threads, device))
    return _load(package, device)


def _check_inputs(program: Any, example: Sequence[torch.Tensor]) -> None:
    """Raises `EngineError` if the rows of an input are others than the program was exported for.

    A compiled program compares nothing: it would read beyond the memory of a smaller one.
    """
    wanted = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]
    expected, actual = _rows_of(values), _rows_of(example)
    if expected != actual:
        raise EngineError(f"it was exported for rows of {expected}, and the card has {actual}")


def _rows_of(tensors: Sequence[Any]) -> str:
    return ", ".join(f"{each.dtype} {list(each.shape[1:])}" for each in tensors)


def _build(model: Model, example: Sequence[torch.Tensor], threads: int, device: str, folder: str) -> bytes:
    package = _compile(model, example, threads, folder)
    # One that crashes does so here: then none is kept, and no other worker crashes with it.
    run_trial(_load(package, device), example)
    return package


def _compile(model: Model, example: Sequence[torch.Tensor], threads: int, folder: str) -> bytes:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise EngineError(f"it needs a C++ compiler, and {compiler} is not installed")
    file = os.path.join(folder, "program.pt2")
    options = {
        "compile_threads": 1,
        "cpp.threads": threads,
        "force_disable_caches": True,
        # Those lie in a folder of /tmp that other users can make first, whatever the variables say.
        "cpp_cache_precompile_headers": False,
        "aot_inductor.precompile_headers": False,
    }
    try:
        # Tensors of the inference mode that a worker runs in cannot be traced: the program is loaded anew.
        with _working_in(folder), torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            from torch._inductor import aoti_compile_and_package

            warnings.simplefilter("ignore")
            program = load_exported(model, str(example[0].device))
            # The file's own example was not read: it is a pickle.
            given = [torch.zeros_like(each) for each in example]
            program.example_inputs = torch.utils._pytree.tree_unflatten(given, program.call_spec.in_spec)
            aoti_compile_and_package(program, package_path=file, inductor_configs=options)
    except EngineError:
        raise
    except Exception as error:  # noqa: BLE001 - inductor and the compiler fail in their own ways
        raise EngineError(f"inductor cannot compile it: {first_line(error)}") from None
    with open(file, "rb") as built:
        return built.read()


def _load(package: bytes, device: str) -> Call:
    index = -1 if device == "cpu" else cuda_index(device)
    try:
        # Its library is unpacked into a folder. Once loaded it needs none, and a worker that is killed could not remove it.
        with (
            _file_of(package) as path,
            tempfile.TemporaryDirectory(prefix="pillion-") as folder,
            _working_in(folder),
        ):
            # `aoti_load_package` does no more, but imports all of inductor first, for seconds.
            loader: Any = torch._C._aoti.AOTIModelPackageLoader(path, _MODEL, True, 1, index)
    except OSError as error:
        raise EngineError(f"it cannot be unpacked: {error.strerror}") from None
    except Exception as error:  # noqa: BLE001 - torch raises many types for what it cannot load
        raise EngineError(f"torch cannot load it: {first_line(error)}") from None
    run = loader.boxed_run

    def call(*inputs: torch.Tensor) -> Sequence[Any]:
        made: Sequence[Any] = run([*inputs])
        return made

    return call


@contextmanager
def _file_of(data: bytes) -> Iterator[str]:
    """A path to these very bytes, which nobody else can change."""
    descriptor = os.memfd_create("pillion-compiled", os.MFD_CLOEXEC)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"


@contextmanager
def _working_in(folder: str) -> Iterator[None]:
    """Has everything temporary of this process in a folder, and what inductor keeps between builds, too.

    By default that lies where other users may write, and it is executed.
    """
    before, temporary = {name: os.environ.get(name) for name in _FOLDERS}, tempfile.tempdir
    os.environ.update(dict.fromkeys(_FOLDERS, folder))
    tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = temporary
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

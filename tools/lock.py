"""Compiles the lock with uv: exact versions with hashes, for every extra that CI installs, the peers of the bench and a foreign interpreter.

    make lock                          # renew it: the newest of everything
    make lock LOCK_ARGS=--keep         # change only what pyproject.toml now requires otherwise
    python tools/lock.py --resolution lowest-direct --into FOLDER   # another resolution, for this Python alone

One resolution covers the extras; it is then written to several files, because not everybody needs all of it:

    bench.txt       what `make demo` needs; no torch
    dev.txt         everything else but torch and what only torch needs
    torch-cpu.txt   the CPU builds of torch that pip finds; PyPI has none
    torch-cuda.txt  PyPI's builds of torch, with the CUDA packages that they need
    daemon.txt      what a daemon runs on, with signatures and buckets
    peers.txt       the peers of the bench, in an environment of their own
    foreign.txt     another interpreter for workers, in an environment of its own
    foreign-3.9.txt the same for the oldest Python that a worker runs on

The extras `cuda` and `tensorrt` are not locked: they exclude the daemon's, and CI has no GPU.

Every file is complete in itself (but dev.txt goes with one of torch's), so pip installs it with `--no-deps`.
The index comes from uv's and pip's own configuration. No file names one.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "locks"
TORCH = LOCKS / "torch.in"
EDITABLE = LOCKS / "editable.in"
FOREIGN = LOCKS / "foreign.in"
FOREIGN_3_9 = LOCKS / "foreign-3.9.in"
PEERS = ROOT / "bench" / "peers" / "requirements.txt"
PYTHONS = ("3.11", "3.12", "3.13")

HEADER = "# Made by `make lock`; do not edit. Install it with pip's --require-hashes and --no-deps.\n"

Blocks = dict[str, list[str]]
"""Normalized names to what the lock has of them: one text for each version, with its marker, hashes and reasons."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the lock.")
    parser.add_argument("--keep", action="store_true", help="keep the locked versions that still fit")
    parser.add_argument("--resolution", choices=["highest", "lowest-direct"], default="highest")
    parser.add_argument("--python", type=Path, help="resolve for this interpreter alone")
    parser.add_argument("--into", type=Path, default=LOCKS, help="the folder for the files")
    options = parser.parse_args()

    into: Path = options.into
    into.mkdir(parents=True, exist_ok=True)
    # One version of each package for all Pythons: what passes on one is what runs on the others.
    everywhere = ["--universal", "--fork-strategy", "fewest", "--python-version"]
    scope = ["--python", str(options.python)] if options.python else [*everywhere, PYTHONS[0]]
    scope += ["--resolution", options.resolution]

    def compiled(name: str, *inputs: str, known: Path | None = None, scope: list[str] = scope) -> Blocks:
        locked = [LOCKS / name, LOCKS / "torch-cuda.txt"] if options.keep else []
        return compile_with_uv(inputs, scope, locked, known)

    everything = compiled("dev.txt", "pyproject.toml", str(EDITABLE), "--extra", "dev", "--constraint", str(TORCH))
    with tempfile.TemporaryDirectory() as folder:
        # The smaller sets get the versions of the whole, so that one lock serves them all.
        whole = Path(folder) / "whole.txt"
        whole.write_text("".join(text for texts in everything.values() for text in texts))
        bench = compiled("bench.txt", "pyproject.toml", str(EDITABLE), "--extra", "bench", known=whole)
        daemon_extras = [word for extra in ("daemon", "s3", "sign") for word in ("--extra", extra)]
        daemon = compiled("daemon.txt", "pyproject.toml", *daemon_extras, known=whole)

    write(into / "bench.txt", bench)
    write(into / "daemon.txt", daemon)
    write(into / "dev.txt", chosen(everything, lambda name: not is_of_torch(name)))
    if into == LOCKS:
        write(into / "torch-cuda.txt", chosen(everything, is_of_torch))
        write(into / "torch-cpu.txt", {"torch": [cpu_builds()]})
        write(into / "peers.txt", compiled("peers.txt", str(PEERS)))
        write(into / "foreign.txt", compiled("foreign.txt", str(FOREIGN)))
        oldest = [*everywhere, "3.9"]
        write(into / "foreign-3.9.txt", compiled("foreign-3.9.txt", str(FOREIGN_3_9), scope=oldest))


def is_of_torch(name: str) -> bool:
    """Whether that package is torch, or PyPI's build of it needs it and a CPU build does not."""
    return name.startswith(("nvidia-", "cuda-")) or name in {"torch", "triton"}


def chosen(blocks: Blocks, wanted: Callable[[str], bool]) -> Blocks:
    """The blocks of the names that are wanted."""
    return {name: texts for name, texts in blocks.items() if wanted(name)}


def write(path: Path, blocks: Blocks) -> None:
    """Writes a file of the lock."""
    path.write_text(HEADER + "".join(text for texts in blocks.values() for text in texts))


def compile_with_uv(inputs: Iterable[str], scope: list[str], locked: Iterable[Path], known: Path | None) -> Blocks:
    """The versions and hashes that uv finds for these inputs; those in `locked` stay if they fit, those in `known` must."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lock.txt"
        output.write_text("".join(file.read_text() for file in locked if file.exists()))
        command = [uv(), "pip", "compile", "--quiet", "--generate-hashes", "--no-header", *scope]
        command += ["--constraint", str(known)] if known else []
        command += [each.replace(f"{ROOT}/", "") for each in inputs]
        subprocess.run([*command, "--output-file", str(output)], cwd=ROOT, check=True)
        return parse(re.sub(rf"^ +# +-c {known}\n", "", output.read_text(), flags=re.MULTILINE))


def uv() -> str:
    """The uv beside this interpreter, else the one on PATH."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        sys.exit("tools/lock.py: uv is not installed: make setup")
    return found


def parse(text: str) -> Blocks:
    """The blocks of a file of uv's: a line that names a version, then indented lines that belong to it."""
    blocks: Blocks = {}
    for text_of_one in re.findall(r"^\S.*\n(?:[ \t]+.*\n)*", text, re.MULTILINE):
        if not text_of_one.startswith("#"):
            name = re.match(r"[A-Za-z0-9._-]+", text_of_one)
            assert name, text_of_one
            blocks.setdefault(name[0], []).append(text_of_one)
    return blocks


def cpu_builds() -> str:
    """The block of torch's CPU builds: those that pip finds now, and those of this version that were locked before."""
    pinned = re.search(r"^(torch==\S+)", TORCH.read_text(), re.MULTILINE)
    assert pinned, f"no version of torch in {TORCH}"
    requirement = f"{pinned[1]}+cpu"
    before = LOCKS / "torch-cpu.txt"
    old = before.read_text() if before.exists() else ""
    hashes = set(re.findall(r"sha256:[0-9a-f]{64}", old)) if f"{requirement} " in old else set()
    for python in PYTHONS:
        for machine in ("x86_64", "aarch64"):
            hashes |= hashes_of_wheels(requirement, python, f"manylinux_2_28_{machine}")
    if not hashes:
        sys.exit(f"tools/lock.py: pip finds no wheel of {requirement}: give it an index that has CPU builds of torch")
    return " \\\n".join([requirement, *(f"    --hash={each}" for each in sorted(hashes))]) + "\n"


def hashes_of_wheels(requirement: str, python: str, platform: str) -> set[str]:
    """The hash of the wheel that pip finds for that Python and platform; none is no error."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--python-version", python, "--platform", platform, "--dest", folder, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        # Where pip is configured with constraints, it calls the same thing an impossible resolution.
        if done.returncode != 0 and not re.search("No matching distribution|ResolutionImpossible", done.stderr):
            sys.exit(done.stderr)
        return {f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" for wheel in Path(folder).glob("*.whl")}


if __name__ == "__main__":
    main()

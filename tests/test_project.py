"""The project's own files agree: make's targets, the lock, the workflows, the hooks and what CONTRIBUTING tells people to type."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.fast_tests import reaches_what_is_slow

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "locks"
FOREIGN = LOCKS / "foreign.in"
PYTHONS = ("3.11", "3.12", "3.13")
MAKEFILE = (ROOT / "Makefile").read_text()
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
OF_A_GPU = {"cuda", "tensorrt"}
"""Extras for an environment of workers. They are not locked, because they exclude that of the daemon."""
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()

MACHINE_PATHS = re.compile(
    next(
        hook["entry"]
        for repository in tomllib.loads((ROOT / "prek.toml").read_text())["repos"]
        for hook in repository["hooks"]
        if hook["id"] == "no-machine-paths"
    )
)


def targets() -> set[str]:
    """The targets of the Makefile that somebody may type."""
    listed = re.search(r"^\.PHONY:((?:.*\\\n)*.*)\n", MAKEFILE, re.MULTILINE)
    assert listed
    return set(listed[1].replace("\\\n", " ").split())


def helped() -> set[str]:
    """The targets that `make help` names."""
    return set(re.findall(r'^\t@echo "make ([a-z-]+) +\S', MAKEFILE, re.MULTILINE))


def requirements_of(extra: str) -> list[Requirement]:
    """What an extra asks for, with the extras that it takes in and the package's own dependencies."""
    found = [Requirement(each) for each in PYPROJECT["project"]["dependencies"]]
    for each in map(Requirement, EXTRAS[extra]):
        found += [one for other in each.extras for one in requirements_of(other)] if each.name == "pillion" else [each]
    return found


def locked(*files: str) -> list[Requirement]:
    """The versions that these files of the lock hold."""
    lines = re.findall(r"^[a-zA-Z].*", "\n".join((LOCKS / file).read_text() for file in files), re.MULTILINE)
    return [Requirement(line.rstrip(" \\")) for line in lines]


def version_of(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", requirement
    return specifier.version


def test_every_target_has_a_line_of_help_and_every_line_a_target() -> None:
    assert helped() == targets() - {"help"}
    rules = set(re.findall(r"^([a-z][a-z -]*):", MAKEFILE, re.MULTILINE))
    assert targets() <= {target for rule in rules for target in rule.split()}


@pytest.mark.parametrize("file", sorted(path.name for path in LOCKS.glob("*.txt")))
def test_a_lock_names_versions_and_hashes_and_no_place(file: str) -> None:
    _, text = (LOCKS / file).read_text().split("\n", 1)  # the first line tells how to install it
    assert not re.search(r"://|^-|--(?!hash=)|(^|\s)[./~]", text, re.MULTILINE)
    assert not MACHINE_PATHS.search(text)
    blocks = re.findall(r"^[a-zA-Z].*\n(?:[ \t]+.*\n)*", text, re.MULTILINE)
    assert blocks
    for block in blocks:
        assert re.match(r"[A-Za-z0-9._-]+==", block)
        assert re.search(r"^ +--hash=sha256:[0-9a-f]{64}", block, re.MULTILINE), block


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - OF_A_GPU))
@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_of_every_extra_is_locked_once_for_each_python(extra: str, python: str) -> None:
    assert_locked(requirements_of(extra), ["dev.txt", "torch-cuda.txt"], python)


@pytest.mark.parametrize(
    ("extra", "file"), [("bench", "bench.txt"), ("daemon", "daemon.txt"), ("s3", "daemon.txt"), ("sign", "daemon.txt")]
)
@pytest.mark.parametrize("python", PYTHONS)
def test_a_smaller_lock_holds_all_that_its_extra_needs(extra: str, file: str, python: str) -> None:
    assert_locked(requirements_of(extra), [file], python)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_peers_the_foreign_interpreter_and_the_build_backend_are_locked(python: str) -> None:
    for inputs, file in ((ROOT / "bench" / "peers" / "requirements.txt", "peers.txt"), (FOREIGN, "foreign.txt")):
        lines = inputs.read_text().splitlines()
        assert_locked([Requirement(line) for line in lines if line and not line.startswith("#")], [file], python)
    backend = list(map(Requirement, PYPROJECT["build-system"]["requires"]))
    assert_locked(backend, ["bench.txt"], python)
    assert_locked(backend, ["dev.txt"], python)


def assert_locked(requirements: list[Requirement], files: list[str], python: str) -> None:
    """Each requirement has one version in these files that counts for that Python, and it satisfies it."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    held = [each for each in locked(*files) if each.marker is None or each.marker.evaluate(environment)]
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        (version,) = [version_of(each) for each in held if canonicalize_name(each.name) == name]
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_one_lock_serves_all() -> None:
    whole = {(each.name, version_of(each)) for each in locked("dev.txt")}
    for file in ("bench.txt", "daemon.txt"):
        assert {(each.name, version_of(each)) for each in locked(file)} <= whole


def test_torch_is_in_its_own_locks_alone_and_a_cpu_build_brings_no_cuda() -> None:
    of_torch = {each.name for each in locked("torch-cuda.txt")}
    assert {"torch", "triton"} <= of_torch
    for file in ("bench.txt", "daemon.txt", "dev.txt"):
        assert not {each.name for each in locked(file)} & of_torch
    (cpu,) = locked("torch-cpu.txt")
    (cuda,) = [each for each in locked("torch-cuda.txt") if each.name == "torch"]
    assert (cpu.name, version_of(cpu)) == ("torch", f"{version_of(cuda)}+cpu")


@pytest.mark.parametrize("extra", sorted(OF_A_GPU))
def test_no_extra_of_a_gpu_installs_a_second_onnx_runtime(extra: str) -> None:
    names = {each.name for each in requirements_of(extra)}
    assert "onnxruntime-gpu" in names
    assert "onnxruntime" not in names
    for other in EXTRAS.keys() - OF_A_GPU:
        assert not names & {"onnxruntime-gpu"} & {each.name for each in requirements_of(other)}


def test_only_the_tools_have_upper_bounds() -> None:
    bounded = {
        Requirement(each).name
        for extra in EXTRAS
        if extra != "dev"
        for each in EXTRAS[extra]
        if re.search(r"<|==|~=|!=", each)
    }
    assert not bounded


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_targets_that_exist(workflow: Path) -> None:
    text = workflow.read_text()
    jobs = yaml.safe_load(text)["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        program, *words = shlex.split(command)
        if program == "make":
            matrices = [job["strategy"]["matrix"] for job in jobs.values() if "strategy" in job]
            chosen = [target for matrix in matrices for target in matrix.get("target", [])]
            called = chosen if words[0] == "${{" else [words[0]]
            assert called
            assert set(called) <= targets(), command
        else:
            assert (ROOT / program).stat().st_mode & 0o111, command
    for job in jobs.values():
        assert job["timeout-minutes"] <= 60


def test_every_python_that_we_claim_is_tried_by_a_workflow() -> None:
    claimed = set(re.findall(r"Python :: (3\.\d+)", " ".join(PYPROJECT["project"]["classifiers"])))
    assert claimed == set(PYTHONS)
    ci = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert claimed == set(re.findall(r'"(3\.\d+)"', ci))


def test_ci_calls_targets_that_exist_and_enforces_the_coverage() -> None:
    called = re.findall(r"^make ([a-z-]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert set(called) <= targets()
    assert {"check", "demo", "test", "coverage"} <= set(called)
    assert PYPROJECT["tool"]["coverage"]["run"]["branch"]
    assert PYPROJECT["tool"]["coverage"]["report"]["fail_under"] >= 85


def commands() -> list[str]:
    """The command lines that CONTRIBUTING tells people to type."""
    blocks = re.findall(r"^```sh\n(.*?)^```", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0].split("   ")[0].strip() for line in "".join(blocks).splitlines()]
    return [line for line in lines if line] + re.findall(r"`(make [^`]+)`", CONTRIBUTING)


def test_every_command_of_contributing_exists() -> None:
    assert len(commands()) > 15
    for command in commands():
        program, *words = shlex.split(command)
        if program == "make":
            for word in words:
                assert word in targets() or f"$({word.partition('=')[0]})" in MAKEFILE, command
        else:
            assert program == ".venv/bin/pillion"
            names = [word for word in words if re.fullmatch(r"[a-z]+", word)][:2]
            line = [str(Path(sys.executable).with_name("pillion")), *names, "--help"]
            said = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout
            for option in [word for word in words if word.startswith("--")]:
                assert option in said, command


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "SECURITY.md"])
def test_every_file_that_a_document_names_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text)}
    named = set(re.findall(r"`((?:\.?[a-z_]+/)[\w./-]*)`", text))
    assert named
    for path in linked | named:
        assert (ROOT / path).exists(), path


def test_the_hooks_need_nothing_from_elsewhere() -> None:
    repositories = tomllib.loads((ROOT / "prek.toml").read_text())["repos"]
    assert {repository["repo"] for repository in repositories} == {"local", "builtin"}
    tools = {canonicalize_name(Requirement(each).name) for each in EXTRAS["dev"]}
    for repository in repositories:
        for hook in repository["hooks"]:
            if hook.get("language") == "system":
                assert hook["entry"].split()[0].removeprefix(".venv/bin/") in tools, hook


@pytest.mark.parametrize(
    "text", ["/home/alice/x", "cd /Users/alice/x", "--find-links /x", "--index-url=x", "file:///opt/x"]
)
def test_the_hook_knows_a_path_of_a_machine(text: str) -> None:
    assert MACHINE_PATHS.search(text)


def test_no_file_names_a_path_of_a_machine() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        path = ROOT / name
        if path != Path(__file__) and name != "prek.toml" and path.is_file():
            assert not MACHINE_PATHS.search(path.read_bytes().decode(errors="replace")), name


def test_a_test_that_starts_a_process_is_not_fast() -> None:
    assert reaches_what_is_slow(ROOT / "tests" / "conftest.py", "start_daemon")
    assert reaches_what_is_slow(Path(__file__), "test_no_file_names_a_path_of_a_machine")
    assert not reaches_what_is_slow(Path(__file__), "test_one_lock_serves_all")

"""The `pillion` command: its help is quick, and an error is one line with a sysexits code."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pillion import cli
from pillion_bench.recordings import recording_session as studio
from tests.bench.conftest import run_pillion

HEAVY = {"torch", "onnxruntime", "aiohttp", "numpy", "zmq", "gymnasium", "rich", "hdrh", "yaml", "pilliond"}


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has imported after `code`."""
    script = f"import sys\n{code}\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["bench", "--help"], ["bench", "load", "--help"]])
def test_help_waits_for_nothing_heavy(arguments: list[str]) -> None:
    assert not HEAVY & modules_after(f"from pillion import cli\ncli.run({arguments!r})")


@pytest.mark.parametrize("arguments", [["artifact", "--help"], ["artifact", "publish", "--help"], ["token", "--help"]])
def test_help_of_the_store_and_of_the_operator_waits_for_no_engine(arguments: list[str]) -> None:
    loaded = modules_after(f"from pillion import cli\ncli.run({arguments!r})")
    assert not loaded & {"torch", "onnxruntime", "aiohttp", "zmq", "gymnasium", "rich", "hdrh"}


def test_importing_the_client_imports_no_command_line() -> None:
    assert not {"click", "pillion_bench", "numpy"} & modules_after("import pillion")


def test_the_plumbing_of_commands_imports_click_alone() -> None:
    loaded = modules_after("import pillion.cli_support")
    assert "click" in loaded
    assert not (HEAVY | {"msgspec", "pillion_protocol"}) & loaded


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nothing"], "nothing"),
        (["bench", "load", "--bogus"], "--bogus"),
        (["bench", "load", "--sessions", "many"], "--sessions"),
        (["bench", "load", "--sessions", "0"], "--sessions"),
        (["bench", "load", "--pin", "sideways"], "--pin: expected two-cores, one-core, none or SERVER:CLIENT"),
        (["bench", "load", "--carrier", "pigeon"], "pigeon"),
        (["bench", "replay"], "FILE"),
    ],
)
def test_a_mistyped_line_gets_one_line_and_code_64(arguments: list[str], complaint: str) -> None:
    done = run_pillion(*arguments)
    assert done.returncode == 64
    assert done.stdout == ""
    assert done.stderr.startswith("pillion: ")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_response_from_the_address_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(studio, "RECORD_ANSWER_S_MAX", 0.2)
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = cli.run(["bench", "record", "LunarLander-v3", "--address", "ipc:///nowhere/at/all"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 69
    message = capsys.readouterr().err
    assert message.startswith("pillion: no response from ipc:///nowhere/at/all")
    assert message.count("\n") == 1


def test_without_click_the_command_names_the_extra_to_install() -> None:
    script = "import sys\nsys.modules['click'] = None\nfrom pillion.__main__ import main\nsys.exit(main())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 69
    assert done.stderr == "pillion: the command line is not installed: pip install 'pillion[cli]'\n"


def test_without_the_benchs_packages_the_command_names_the_extra_to_install() -> None:
    script = (
        "import sys\nsys.modules['hdrh'] = sys.modules['rich'] = None\nfrom pillion import cli\n"
        "sys.exit(cli.run(['bench', 'floor', '--seconds', '0.01']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 69
    assert "pip install 'pillion[bench]'" in done.stderr
    assert done.stderr.count("\n") == 1

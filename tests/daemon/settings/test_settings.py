"""Settings: flags override the environment, the file and the defaults; an error is one line with the setting's path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pilliond.errors import SettingsError
from pilliond.settings.schema import load_settings
from tests.harness import START_S_MAX


def load(tmp_path: Path, text: str = "", environment: dict[str, str] | None = None, **flags: Any) -> Any:
    """Loads settings from a file with this text, these variables and these flags."""
    file = tmp_path / "pillion.toml"
    file.write_text(text)
    return load_settings(file, environment or {}, flags)


def test_each_layer_overrides_the_one_below(tmp_path: Path) -> None:
    text = '[store]\npath = "/from/file"\npolicy = "from-file"\n[limits]\nrows_max = 4\nqueue_rows_max = 8\n'
    environment = {"PILLION_STORE__POLICY": "from-environment", "PILLION_LIMITS__ROWS_MAX": "5"}
    settings = load(tmp_path, text, environment, limits={"rows_max": 6})
    assert settings.store.path == "/from/file"
    assert settings.store.policy == "from-environment"
    assert settings.limits.rows_max == 6
    assert settings.limits.queue_rows_max == 8
    assert settings.engine.threads == 1


def test_variables_that_are_not_settings_are_ignored(tmp_path: Path) -> None:
    environment = {"PILLION_CONFIG": "x", "OMP_NUM_THREADS": "1", "HOME": "/"}
    assert load(tmp_path, environment=environment) == load(tmp_path)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda:0", "cuda:63"])
def test_a_device_is_named_as_torch_names_it(tmp_path: Path, device: str) -> None:
    assert load(tmp_path, f'[engine]\ndevice = "{device}"\n').engine.device == device


def test_several_devices_are_a_list_and_each_may_have_cpus_of_its_own(tmp_path: Path) -> None:
    text = '[engine]\ndevice = ["cpu", "cuda:1"]\nworker_cpus = ["0", ""]\n'
    engine = load(tmp_path, text).engine
    assert engine.devices == ["cpu", "cuda:1"]
    assert [(own.device, own.worker_cpus) for own in map(engine.on_device, (0, 1))] == [("cpu", "0"), ("cuda:1", "")]
    shared = load(tmp_path, '[engine]\ndevice = ["cpu", "cpu"]\nworker_cpus = "0"\n').engine
    assert [shared.on_device(index).worker_cpus for index in (0, 1)] == ["0", "0"]


def test_several_devices_may_come_from_the_environment(tmp_path: Path) -> None:
    for text, devices in [("cuda:0,cuda:1", ["cuda:0", "cuda:1"]), ("cpu", ["cpu"]), ("auto", ["auto"])]:
        engine = load(tmp_path, environment={"PILLION_ENGINE__DEVICE": text}).engine
        assert (engine.devices, engine.on_device(0).device) == (devices, devices[0])


def test_packages_that_are_trusted_may_come_from_the_environment(tmp_path: Path) -> None:
    assert load(tmp_path, environment={"PILLION_TRUST__CODE": "openpi,my-policy"}).trust.code == ["openpi", "my-policy"]


def test_a_list_in_the_environment_is_separated_by_commas(tmp_path: Path) -> None:
    settings = load(tmp_path, environment={"PILLION_DATA__LISTEN": "ipc:///tmp/a.sock,tcp://127.0.0.1:0"})
    assert settings.data_addresses() == ["ipc:///tmp/a.sock", "tcp://127.0.0.1:0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[limits]\nrow_max = 4\n", r"^limits: .*`row_max`"),
        ('[limits]\nrows_max = "many"\n', r"^limits\.rows_max: "),
        ("[limits]\nrows_max = 0\n", r"rows_max: expected 1 to 4096, got 0"),
        ("[limits]\nrows_max = 64\nqueue_rows_max = 8\n", "queue_rows_max: expected at least rows_max"),
        ("[nonsense]\n", "`nonsense`"),
        ("limits = 3\n", "^limits: expected a section"),
        ("[limits\n", "pillion.toml: "),
        ('[data]\nlisten = ["http://127.0.0.1"]\n', "^listen: expected lane:///PATH, ipc:///PATH or tcp"),
        ('[data]\nlisten = ["ipc://relative.sock"]\n', "absolute path"),
        ('[data]\nlisten = ["tcp://127.0.0.1"]\n', "expected a port"),
        ('[data]\nlisten = ["tcp://localhost:5"]\n', "numeric address"),
        (f'[data]\nlisten = ["ipc:///{"x" * 120}"]\n', "at most 107 bytes"),
        ('[admin]\nlisten = "127.0.0.1:80"\n', r"^admin\.listen: expected unix"),
        ('[log]\nlevel = "loud"\n', r"^log\.level: "),
        ("[engine]\nthreads = 0\n", "threads: expected 1 to 256"),
        ('[engine]\nplacement = "outside"\n', r"^engine\.placement: "),
        ("[engine]\nstart_s_max = 0.5\n", "start_s_max: expected 1 to 3600, got 0.5"),
        ('[engine]\npython = "python3"\n', "python: expected an absolute path, got 'python3'"),
        ('[engine]\ndevice = "gpu"\n', "device: expected auto, cpu, or cuda:0 to cuda:63, got 'gpu'"),
        ('[engine]\ndevice = "cuda"\n', "device: expected auto, cpu, or cuda:0 to cuda:63, got 'cuda'"),
        ('[engine]\ndevice = "cuda:64"\n', "device: expected auto, cpu, or cuda:0 to cuda:63, got 'cuda:64'"),
        ('[engine]\ndevice = "cuda:007"\n', "device: expected auto, cpu, or cuda:0 to cuda:63, got 'cuda:007'"),
        ("[engine]\nprovider = 'rocm'\n", "engine.provider: "),
        ("[engine]\nbuild_cache_dir = 'cache'\n", "build_cache_dir: expected an absolute path, got 'cache'"),
        ("[engine]\nbuild_cache_mb_max = 0\n", "build_cache_mb_max: expected 1 to 1000000, got 0"),
        ("[engine]\nbuild_s_max = 4e3\n", "build_s_max: expected 1 to 3600, got 4000"),
        ("[engine]\ndevice = []\n", "device: expected 1 to 16 devices, got 0"),
        ('[engine]\ndevice = ["cpu", "gpu"]\n', "device: expected auto, cpu, or cuda:0 to cuda:63, got 'gpu'"),
        ('[engine]\ndevice = ["cpu", "auto"]\n', "device: expected cpu or cuda:N as each of several, got 'auto'"),
        (
            '[engine]\ndevice = ["cpu", "cpu"]\nplacement = "inline"\n',
            "placement: expected auto or worker for 2 devices, got 'inline'",
        ),
        (
            '[engine]\ndevice = ["cpu", "cpu"]\nworker_cpus = ["0"]\n',
            r"worker_cpus: expected a text, or as many as devices \(2\), got 1",
        ),
        ("[engine]\ndevice_memory_mb = -1\n", "device_memory_mb: expected 0 to 4000000, got -1"),
        ('[engine]\nprecision = "int8"\n', r"^engine\.precision: "),
        ("[engine]\nkeep_warm_ms = 60001\n", "keep_warm_ms: expected 0 to 60000, got 60001"),
        ("[engine]\ninline_us_max = 0\n", "inline_us_max: expected more than 0, at most 1000000, got 0"),
        ("[engine]\ninline_us_max = nan\n", "inline_us_max: expected more than 0"),
        ("[engine]\ncache_rows_max = -1\n", "cache_rows_max: expected 0 to 65536, got -1"),
        ("[engine]\ncache_rows_max = 65537\n", "cache_rows_max: expected 0 to 65536, got 65537"),
        ("[engine]\ncache_mb_max = 0\n", "cache_mb_max: expected 1 to 65536, got 0"),
    ],
)
def test_an_error_names_the_path_of_its_setting(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_by_default_only_this_host_can_connect(tmp_path: Path) -> None:
    assert all(address.startswith(("ipc://", "lane://")) for address in load(tmp_path).data_addresses())
    for address in ("tcp://0.0.0.0:5555", "tcp://192.0.2.1:5555", "tcp://[::]:5555"):
        with pytest.raises(SettingsError, match="expected a loopback address"):
            load(tmp_path, data={"listen": [address]})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_settings(Path("/nonexistent/pillion.toml"), {}, {})


def test_what_refuses_its_settings_has_not_loaded_the_daemon() -> None:
    script = "import sys, pilliond.__main__ as it; print(it.main(), 'pilliond.control' in sys.modules)"
    command = [sys.executable, "-c", script, "--admin", "http://0.0.0.0:0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=True)
    assert "admin.listen: http://0.0.0.0:0" in result.stderr
    assert result.stdout == f"{os.EX_CONFIG} False\n"

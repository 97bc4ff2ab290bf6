"""What the documents of the daemon say is so."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from pilliond.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]


def test_the_example_settings_name_every_setting_at_its_default() -> None:
    file = ROOT / "conf" / "pillion.toml"
    assert load_settings(file, {}, {}) == Settings()
    assert tomllib.loads(file.read_text()) == msgspec.to_builtins(Settings())

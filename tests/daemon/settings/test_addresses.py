"""Before the daemon binds a Unix socket, it removes a stale socket file and nothing else."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pilliond.errors import AddressInUseError, ListenError
from pilliond.settings.addresses import clear_socket_path, remove_dead_socket


def test_a_stale_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    clear_socket_path(str(path))
    assert not path.exists()


def test_a_socket_with_a_listener_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "live.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with pytest.raises(AddressInUseError):
            clear_socket_path(str(path))
    assert path.exists()


def test_a_file_of_another_kind_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("data")
    with pytest.raises(ListenError, match="not a socket"):
        clear_socket_path(str(path))
    assert path.read_text() == "data"


def test_only_a_socket_where_nobody_answers_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "some.sock"
    remove_dead_socket(str(path))
    path.write_text("data")
    remove_dead_socket(str(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        remove_dead_socket(str(path))
        assert path.exists()
    remove_dead_socket(str(path))
    assert not path.exists()


def test_a_missing_folder_is_created_for_this_user_only(tmp_path: Path) -> None:
    clear_socket_path(str(tmp_path / "new" / "x.sock"))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700

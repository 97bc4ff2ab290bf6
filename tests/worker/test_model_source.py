"""A model is the same whether its bytes are in memory or in a sealed memfd."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pillion_worker.model_source import Model, open_model, path_of, size_of, view_of

CONTENT = bytes(range(256)) * 100


@pytest.fixture(params=["bytes", "memfd"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    if request.param == "bytes":
        yield CONTENT
        return
    descriptor = os.memfd_create("model")
    os.write(descriptor, CONTENT)
    yield path_of(descriptor)
    os.close(descriptor)


def test_a_model_is_read_mapped_and_measured_from_its_beginning(model: Model) -> None:
    for _ in range(2):
        with open_model(model) as file:
            assert file.read() == CONTENT
    view = view_of(model)
    assert (bytes(view), view.readonly, size_of(model)) == (CONTENT, True, len(CONTENT))


def test_a_mapped_model_outlives_its_descriptor() -> None:
    descriptor = os.memfd_create("model")
    os.write(descriptor, CONTENT)
    view = view_of(path_of(descriptor))
    os.close(descriptor)
    assert bytes(view) == CONTENT


def test_an_empty_model_has_an_empty_view() -> None:
    descriptor = os.memfd_create("model")
    assert bytes(view_of(path_of(descriptor))) == b""
    os.close(descriptor)

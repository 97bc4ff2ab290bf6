"""The result cache by itself: what it finds, what it forgets, and that it keeps to its bounds whatever is put into it."""

from __future__ import annotations

import sys
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilliond.core.result_cache import ResultCache
from pilliond.limits import RESULT_CACHE_ENTRY_BYTES, RESULT_CACHE_EVICTIONS_MAX, RESULT_CACHE_FREED_MAX

MANY = 1 << 30
"""More rows and bytes than any test puts in."""


def number(value: int) -> bytes:
    """Returns an observation of four bytes."""
    return value.to_bytes(4, "little")


def test_what_was_put_is_found_by_the_same_version_and_bytes_only() -> None:
    cache = ResultCache(MANY, MANY)
    first, second = object(), object()
    assert cache.put(first, b"observation", 1, b"outputs")
    assert cache.get(first, b"observation") == b"outputs"
    assert cache.get(second, b"observation") is None
    assert cache.get(first, b"observatiom") is None
    assert cache.get(first, b"observation\0") is None


def test_bytes_with_the_same_hash_are_told_apart() -> None:
    class SameHash(bytes):
        def __hash__(self) -> int:
            return 1

    cache = ResultCache(MANY, MANY)
    for value in range(3):
        cache.put("a version", SameHash(number(value)), 1, number(value + 10))
    assert [cache.get("a version", SameHash(number(value))) for value in range(3)] == [
        number(10),
        number(11),
        number(12),
    ]
    assert cache.get("a version", SameHash(number(3))) is None


def test_the_rows_and_bytes_of_every_entry_count() -> None:
    cache = ResultCache(MANY, MANY)
    cache.put("a version", b"12345678", 2, b"123")
    cache.put("another", b"1234", 1, b"")
    assert (cache.rows, cache.nbytes) == (3, 15 + 2 * RESULT_CACHE_ENTRY_BYTES)
    # The same observations once more: a newer answer replaces the older one.
    cache.put("another", b"1234", 1, b"12345")
    assert (cache.rows, cache.nbytes) == (3, 20 + 2 * RESULT_CACHE_ENTRY_BYTES)
    assert cache.get("another", b"1234") == b"12345"


@pytest.mark.parametrize(
    ("rows_max", "bytes_max"), [(3, MANY), (MANY, 3 * (RESULT_CACHE_ENTRY_BYTES + 5))], ids=["rows", "bytes"]
)
def test_the_entry_that_was_unused_for_longest_goes_first_of_whatever_version(rows_max: int, bytes_max: int) -> None:
    cache = ResultCache(rows_max, bytes_max)
    for version, value in (("old", 1), ("new", 2), ("old", 3)):
        cache.put(version, number(value), 1, b"x")
    assert cache.get("old", number(1))
    cache.put("new", number(4), 1, b"x")
    assert cache.get("new", number(2)) is None
    cache.put("new", number(5), 1, b"x")
    assert cache.get("old", number(3)) is None
    assert all((cache.get("old", number(1)), cache.get("new", number(4)), cache.get("new", number(5))))
    assert cache.rows == 3


def test_what_is_larger_than_the_bounds_is_not_kept_and_pushes_nothing_out() -> None:
    cache = ResultCache(2, 2 * RESULT_CACHE_ENTRY_BYTES)
    assert cache.put("a version", b"1", 1, b"1")
    assert not cache.put("a version", b"2", 3, b"2")
    assert not cache.put("a version", bytes(2 * RESULT_CACHE_ENTRY_BYTES), 1, b"3")
    assert cache.get("a version", b"1") == b"1"
    assert (cache.rows, cache.nbytes) == (1, RESULT_CACHE_ENTRY_BYTES + 2)


def test_one_entry_pushes_out_no_more_than_the_loop_may_wait_for() -> None:
    cache = ResultCache(2 * RESULT_CACHE_EVICTIONS_MAX, MANY)
    for value in range(2 * RESULT_CACHE_EVICTIONS_MAX):
        cache.put("a version", number(value), 1, b"x")
    assert not cache.put("a version", b"large", 2 * RESULT_CACHE_EVICTIONS_MAX, b"y")
    assert cache.rows == RESULT_CACHE_EVICTIONS_MAX
    # There is room by now.
    assert cache.put("a version", b"large", 2 * RESULT_CACHE_EVICTIONS_MAX, b"y")
    assert cache.rows == 2 * RESULT_CACHE_EVICTIONS_MAX


def test_a_version_that_is_unloaded_is_forgotten_at_once_and_freed_piece_by_piece() -> None:
    cache = ResultCache(MANY, MANY)
    for value in range(RESULT_CACHE_FREED_MAX + 5):
        cache.put("unloaded", number(value), 1, b"x")
    cache.put("loaded", b"observation", 1, b"y")
    cache.keep_only({"loaded"})
    assert cache.get("unloaded", number(0)) is None
    assert cache.rows == RESULT_CACHE_FREED_MAX + 6
    cache.free()
    assert cache.rows == 6
    cache.free()
    assert (cache.rows, cache.nbytes) == (1, 12 + RESULT_CACHE_ENTRY_BYTES)
    # As if it had never been loaded before.
    assert cache.get("unloaded", number(0)) is None
    assert cache.get("loaded", b"observation") == b"y"


def test_forgotten_entries_go_before_those_that_can_be_found() -> None:
    cache = ResultCache(3, MANY)
    cache.put("loaded", number(1), 1, b"x")
    cache.put("unloaded", number(2), 1, b"x")
    cache.put("unloaded", number(3), 1, b"x")
    cache.keep_only({"loaded"})
    cache.put("loaded", number(4), 1, b"x")
    cache.put("loaded", number(5), 1, b"x")
    assert all(cache.get("loaded", number(value)) for value in (1, 4, 5))


def test_what_the_interpreter_needs_for_an_entry_is_counted() -> None:
    """Of the entry's own objects. The table has a place for each on top, and some that are free."""
    entry = (1 << 31, 1 << 12, bytes(4))
    needed = sys.getsizeof(bytes(4)) + sys.getsizeof(entry) + sum(map(sys.getsizeof, entry)) - 8
    assert needed < RESULT_CACHE_ENTRY_BYTES


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["get", "put", "put", "put", "unload", "free"]),
            st.integers(0, 2),
            st.integers(0, 9),
            st.integers(1, 4),
            st.integers(0, 40),
        )
    )
)
def test_it_is_a_dictionary_that_forgets_what_was_unused_for_longest(
    steps: list[tuple[str, int, int, int, int]],
) -> None:
    """It finds what the simplest model finds. Entries of unloaded versions count until they are freed, and hide nothing."""
    rows_max, bytes_max = 8, 5 * RESULT_CACHE_ENTRY_BYTES + 60
    cache = ResultCache(rows_max, bytes_max)
    model: OrderedDict[tuple[int, bytes], tuple[int, bytes]] = OrderedDict()
    has_unloaded = False

    def size(key: tuple[int, bytes]) -> int:
        return len(key[1]) + len(model[key][1]) + RESULT_CACHE_ENTRY_BYTES

    for action, version, value, rows, outputs in steps:
        key = (version, number(value))
        if action == "put":
            answer = bytes([value]) * outputs
            cache.put(version, key[1], rows, answer)
            model.pop(key, None)
            model[key] = (rows, answer)
            while sum(its[0] for its in model.values()) > rows_max or sum(map(size, model)) > bytes_max:
                model.popitem(last=False)
        elif action == "get":
            found = cache.get(version, key[1])
            assert found == (model[key][1] if key in model else None)
            if key in model:
                model.move_to_end(key)
        elif action == "unload":
            has_unloaded = True
            cache.keep_only({0, 1, 2} - {version})
            for gone in [each for each in model if each[0] == version]:
                del model[gone]
            assert cache.get(version, key[1]) is None
        else:
            cache.free()
        assert 0 <= cache.rows <= rows_max
        assert 0 <= cache.nbytes <= bytes_max
        rows_found, bytes_found = sum(its[0] for its in model.values()), sum(map(size, model))
        assert (cache.rows >= rows_found, cache.nbytes >= bytes_found) == (True, True)
        if not has_unloaded:
            assert (cache.rows, cache.nbytes) == (rows_found, bytes_found)

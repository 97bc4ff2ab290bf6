"""The result cache of a policy: answers of its versions, kept by the bytes of the observations. Pure: no clock, no socket.

Rule 1: an entry belongs to one loaded version, the object itself. No other version can find it, whatever it is called, so
nothing is served across a switch.
Rule 2: an entry is found by all the bytes of an act's observations. A dictionary compares them whole after it has compared
their hashes, so no client can make an observation whose hash finds another one's answer. A digest alone (blake2b) would
save the stored bytes, at a cost: it is no quicker than Python's hash of bytes (SipHash, with a key of each process), and
then the answer would rest on it.
Rule 3: an act is found as a whole, with all its rows in their order. Rows found one by one would have to be completed by a
batch of the others, of another shape than any that was certified; and each row would cost a copy and a look-up.
Rule 4: the rows and the bytes of all versions together stay within their bounds. The entry unused for longest goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable

from pilliond.limits import RESULT_CACHE_ENTRY_BYTES, RESULT_CACHE_EVICTIONS_MAX, RESULT_CACHE_FREED_MAX

Entries = OrderedDict[bytes, tuple[int, int, bytes]]
"""By the bytes of the observations: the number of the last use, the rows, and the bytes of all outputs. In order of use.

Bytes and numbers only: they do not call the garbage collector, and it soon takes such tuples out of its sight.
"""


class ResultCache:
    """At most `rows_max` rows and `bytes_max` bytes of entries, with what the interpreter needs for each."""

    __slots__ = ("_bytes_max", "_forgotten", "_of_version", "_rows_max", "_uses", "nbytes", "rows")

    def __init__(self, rows_max: int, bytes_max: int) -> None:
        self.rows = 0
        """The rows of all entries."""
        self.nbytes = 0
        """The bytes of all entries: observations, outputs, and `RESULT_CACHE_ENTRY_BYTES` for each."""
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._uses = 0
        self._of_version: dict[Hashable, Entries] = {}
        self._forgotten: list[Entries] = []
        """Of versions that were unloaded: nothing finds them, and `free` frees them."""

    def get(self, version: Hashable, observations: bytes) -> bytes | None:
        """Returns the bytes of all outputs that `version` gave for these observations, or None."""
        entries = self._of_version.get(version)
        if entries is None:
            return None
        found = entries.get(observations)
        if found is None:
            return None
        _, rows, outputs = found
        self._uses += 1
        entries[observations] = (self._uses, rows, outputs)
        entries.move_to_end(observations)
        return outputs

    def put(self, version: Hashable, observations: bytes, rows: int, outputs: bytes) -> bool:
        """Keeps the outputs of an act of `rows` rows; returns whether there was room.

        An entry that is larger than the bounds finds none. Nor does one for which more than `RESULT_CACHE_EVICTIONS_MAX` others
        would have to go, because that would keep the loop waiting. Then those that went leave room for the next one.
        """
        size = len(observations) + len(outputs) + RESULT_CACHE_ENTRY_BYTES
        if rows > self._rows_max or size > self._bytes_max:
            return False
        entries = self._of_version.get(version)
        if entries is None:
            entries = self._of_version[version] = OrderedDict()
        if observations in entries:
            self._count_out(observations, entries.pop(observations))
        evictions = 0
        while self.rows + rows > self._rows_max or self.nbytes + size > self._bytes_max:
            if evictions == RESULT_CACHE_EVICTIONS_MAX:
                return False
            self._evict()
            evictions += 1
        self._uses += 1
        entries[observations] = (self._uses, rows, outputs)
        self.rows += rows
        self.nbytes += size
        return True

    def keep_only(self, versions: Collection[Hashable]) -> None:
        """Forgets the entries of all versions but these: the others are unloaded."""
        for version in [version for version in self._of_version if version not in versions]:
            self._forgotten.append(self._of_version.pop(version))

    def free(self) -> None:
        """Frees some of the entries that were forgotten. Call it on every tick: all at once would keep the loop waiting."""
        for _ in range(RESULT_CACHE_FREED_MAX):
            if not self._drop_forgotten():
                return

    def _evict(self) -> None:
        """Drops a forgotten entry, or else the one that was unused for longest."""
        if self._drop_forgotten():
            return
        entries = min(filter(None, self._of_version.values()), key=_last_use)
        self._count_out(*entries.popitem(last=False))

    def _drop_forgotten(self) -> bool:
        while self._forgotten:
            if self._forgotten[-1]:
                self._count_out(*self._forgotten[-1].popitem())
                return True
            self._forgotten.pop()
        return False

    def _count_out(self, observations: bytes, entry: tuple[int, int, bytes]) -> None:
        _, rows, outputs = entry
        self.rows -= rows
        self.nbytes -= len(observations) + len(outputs) + RESULT_CACHE_ENTRY_BYTES


def _last_use(entries: Entries) -> int:
    """The number of the last use of the entry that was unused for longest."""
    return next(iter(entries.values()))[0]

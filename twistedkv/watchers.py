"""Who wants to know of a key: ranges, found by any key inside them without looking at all ranges.

Single keys and prefixes, which nearly all watchers ask for, are found in dictionaries, however many there are. What
asks for any other range is found among those ranges alone.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from operator import itemgetter
from typing import Generic, TypeVar

from sortedcontainers import SortedDict

from twistedkv.storage.keyindex import FROM_KEY

T = TypeVar("T")

_BLOCK_RANGES = 128  # of other ranges in one block; about the square root of many

_by_start = itemgetter(0)


def prefix_end(prefix: bytes) -> bytes:
    """The ``range_end`` of all keys that start with ``prefix``; etcd ``client/v3/op.go``, GetPrefixRangeEnd."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,)) if stripped else FROM_KEY


class RangeIndex(Generic[T]):
    """Items by the range of keys that each asks for. An item may be in it for several ranges.

    Ranges are etcd's: ``range_end`` is exclusive, empty for the single key, :data:`FROM_KEY` for every key from ``key``
    on; any other one must be greater than ``key``. Asking changes nothing, so that an index which nobody changes may be
    asked by any thread.
    """

    def __init__(self) -> None:
        self._keys: dict[bytes, list[T]] = {}
        self._prefixes: dict[bytes, list[T]] = {}
        self._lengths: dict[int, int] = {}  # of prefixes, to how many different ones there are
        self._from_key: SortedDict[bytes, list[T]] = SortedDict()
        self._others = _Ranges[T]()
        self._nothing: list[T] = []

    def add(self, key: bytes, range_end: bytes, item: T) -> None:
        """Have ``item`` found by the keys of a range."""
        if not range_end:
            self._keys.setdefault(key, []).append(item)
        elif range_end == FROM_KEY:
            self._from_key.setdefault(key, []).append(item)
        elif range_end == prefix_end(key):
            if key not in self._prefixes:
                self._lengths[len(key)] = self._lengths.get(len(key), 0) + 1
            self._prefixes.setdefault(key, []).append(item)
        else:
            self._others.add(key, range_end, item)

    def discard(self, key: bytes, range_end: bytes, item: T) -> None:
        """Take back one :meth:`add` of the same arguments.

        Raises:
            KeyError, ValueError: there was none.
        """
        if not range_end:
            _take(self._keys, key, item)
        elif range_end == FROM_KEY:
            _take(self._from_key, key, item)
        elif range_end == prefix_end(key):
            _take(self._prefixes, key, item)
            if key not in self._prefixes:
                self._lengths[len(key)] -= 1
                if not self._lengths[len(key)]:
                    del self._lengths[len(key)]
        else:
            self._others.discard(key, range_end, item)

    def matching(self, key: bytes) -> list[T]:
        """The items that ask for ``key``, in no particular order. The list is the index's own: do not change it."""
        found = self._keys.get(key, self._nothing)
        if self._prefixes:
            for length in self._lengths:
                # A shorter key would give itself here, which is a prefix of another length.
                if length <= len(key) and (more := self._prefixes.get(key[:length])):
                    found = found + more if found else more
        if self._from_key:
            for start in self._from_key.irange(maximum=key):
                found = found + self._from_key[start]
        if self._others:
            found = found + self._others.matching(key)
        return found


class _Ranges(Generic[T]):
    """Ranges with two ends, in blocks by start; a block knows its greatest end and is skipped if that is too small."""

    def __init__(self) -> None:
        self._blocks: list[list[tuple[bytes, bytes, T]]] = []
        self._starts: list[bytes] = []  # of each block's first range
        self._ends: list[bytes] = []  # of each block, the greatest

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def add(self, start: bytes, end: bytes, item: T) -> None:
        if not self._blocks:
            self._blocks.append([])
            self._starts.append(start)
            self._ends.append(end)
        at = max(bisect_right(self._starts, start) - 1, 0)
        block = self._blocks[at]
        insort(block, (start, end, item), key=_by_start)
        self._learn(at)
        if len(block) > 2 * _BLOCK_RANGES:
            self._blocks[at : at + 1] = [block[:_BLOCK_RANGES], block[_BLOCK_RANGES:]]
            self._starts.insert(at + 1, b"")
            self._ends.insert(at + 1, b"")
            self._learn(at)
            self._learn(at + 1)

    def discard(self, start: bytes, end: bytes, item: T) -> None:
        # Equal starts may lie on both sides of a border between blocks.
        at = bisect_right(self._starts, start) - 1
        while at >= 0:
            block = self._blocks[at]
            if (start, end, item) in block:
                block.remove((start, end, item))
                if block:
                    self._learn(at)
                else:
                    del self._blocks[at], self._starts[at], self._ends[at]
                return
            if self._starts[at] < start:
                break
            at -= 1
        raise ValueError("no such range")

    def matching(self, key: bytes) -> list[T]:
        found: list[T] = []
        for at in range(bisect_right(self._starts, key)):
            if self._ends[at] > key:
                block = self._blocks[at]
                last = bisect_right(block, key, key=_by_start)
                found += (item for _, end, item in block[:last] if end > key)
        return found

    def _learn(self, at: int) -> None:
        block = self._blocks[at]
        self._starts[at] = block[0][0]
        self._ends[at] = max(end for _, end, _ in block)


def _take(items: dict[bytes, list[T]], key: bytes, item: T) -> None:
    items[key].remove(item)
    if not items[key]:
        del items[key]

"""The live keys in bytewise order, each with its newest key-value pair, bounded in the bytes of values it keeps.

An entry is *resident*: the encoded ``mvccpb.KeyValue`` as it goes into a response, a watch event and a hash; or
:class:`Evicted`: everything but the value, which is then read from the database. One dictionary look-up finds
either. A key that was deleted has no entry. Plain bytes rather than objects keep a million keys out of the garbage
collector's sight.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import NamedTuple

from sortedcontainers import SortedList

from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.storage.backend import pack

FROM_KEY = b"\0"  # a range_end that means: every key from the first one on

# A pair with no more than this beside its key always stays: an Evicted in its place would take as much memory. It is
# more than the fixed fields of a pair can take, so that a larger pair has a value.
SMALL_BYTES = 128


class Evicted(NamedTuple):
    """What stays of a key-value pair whose value went to the database only."""

    revision: int  # packed: the row that holds the value
    create_revision: int
    mod_revision: int
    version: int
    lease: int
    value_bytes: int


class KeyIndex:
    """Ordered map of live keys. Pure memory; whoever writes it also writes the rows.

    Args:
        limit_bytes: how many bytes of encoded pairs, without their keys and without small pairs, stay resident; more
            are evicted by :meth:`evict`.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.entries: dict[bytes, bytes | Evicted] = {}
        self.limit_bytes = limit_bytes
        self.resident_bytes = 0  # of what can be evicted, so that evict() finds something whenever this is not 0
        self.evicted = 0  # how many entries are Evicted; 0 lets readers skip all checks
        self._ordered: SortedList[bytes] = SortedList()
        self._subs: dict[bytes, int] = {}  # the sub revision of keys whose newest one is not 0
        self._hand = b""  # where the next eviction starts

    def __len__(self) -> int:
        return len(self.entries)

    def load(self, entries: dict[bytes, bytes | Evicted], subs: dict[bytes, int]) -> None:
        """Take a whole index at once, as a member does when it starts."""
        self.entries = entries
        self._subs = subs
        self._ordered = SortedList(entries)
        self.evicted = sum(type(entry) is not bytes for entry in entries.values())
        sizes = (len(entry) - len(key) for key, entry in entries.items() if type(entry) is bytes)
        self.resident_bytes = sum(size for size in sizes if size > SMALL_BYTES)

    def set(self, key: bytes, encoded: bytes, sub: int) -> None:
        """Make ``encoded`` the newest pair of ``key``; ``sub`` is its sub revision."""
        entries = self.entries
        old = entries.get(key)
        if old is None:
            self._ordered.add(key)
        elif type(old) is not bytes:
            self.evicted -= 1
        elif (size := len(old) - len(key)) > SMALL_BYTES:
            self.resident_bytes -= size
        if (size := len(encoded) - len(key)) > SMALL_BYTES:
            self.resident_bytes += size
        entries[key] = encoded
        if sub:
            self._subs[key] = sub
        elif self._subs:
            self._subs.pop(key, None)

    def remove(self, key: bytes) -> None:
        """Forget a key that exists."""
        old = self.entries.pop(key)
        self._ordered.remove(key)
        self._subs.pop(key, None)
        if type(old) is not bytes:
            self.evicted -= 1
        elif (size := len(old) - len(key)) > SMALL_BYTES:
            self.resident_bytes -= size

    def keys(self, key: bytes, range_end: bytes, limit: int = 0) -> list[bytes]:
        """The live keys of a range in order, at most ``limit`` of them unless it is 0.

        Args:
            range_end: exclusive; empty for the single key; :data:`FROM_KEY` for all from ``key`` on.
        """
        if not range_end:
            return [key] if key in self.entries else []
        first, last = self._span(key, range_end)
        if limit:
            last = min(last, first + limit)
        return list(self._ordered.islice(first, last)) if first < last else []

    def count(self, key: bytes, range_end: bytes) -> int:
        """How many live keys a range has; logarithmic in the size of the index."""
        if not range_end:
            return 1 if key in self.entries else 0
        first, last = self._span(key, range_end)
        return max(0, last - first)

    def _span(self, key: bytes, range_end: bytes) -> tuple[int, int]:
        ordered = self._ordered
        last = len(ordered) if range_end == FROM_KEY else ordered.bisect_left(range_end)
        return ordered.bisect_left(key), last

    def not_resident(self, key: bytes, range_end: bytes) -> Iterator[int]:
        """The packed revisions of the rows that hold the evicted values of a range."""
        if self.evicted:
            for each in self.keys(key, range_end):
                entry = self.entries[each]
                if type(entry) is Evicted:
                    yield entry.revision

    def evict(self, most: int = 1_000) -> int:
        """Evict values until the limit holds, in key order from where the last call stopped.

        Looks at no more than ``most`` keys, so that one call never takes long; the caller calls again.

        Returns:
            How many values were evicted.
        """
        if self.resident_bytes <= self.limit_bytes:
            return 0
        done = 0
        ordered, entries = self._ordered, self.entries
        start = ordered.bisect_left(self._hand)
        round_trip = chain(ordered.islice(start), ordered.islice(0, start))
        for key in islice(round_trip, most):
            if self.resident_bytes <= self.limit_bytes:
                self._hand = key
                break
            entry = entries[key]
            if type(entry) is bytes and (size := len(entry) - len(key)) > SMALL_BYTES:
                pair = KeyValue.FromString(entry)
                entries[key] = Evicted(
                    pack(pair.mod_revision, self._subs.get(key, 0)),
                    pair.create_revision,
                    pair.mod_revision,
                    pair.version,
                    pair.lease,
                    len(pair.value),
                )
                self.resident_bytes -= size
                self.evicted += 1
                done += 1
        else:
            self._hand = next(round_trip, b"")
        return done

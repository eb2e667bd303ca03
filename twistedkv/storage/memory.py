"""The reference backend: the storage seam in plain lists and dictionaries, which every other one is compared with.

Nothing survives :meth:`MemoryBackend.close`. It serves tests, and members that may lose their data.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise

from sortedcontainers import SortedDict

from twistedkv.storage.backend import BackendError, Batch, Bucket, RevisionRow, Size, pack

FROM_KEY = b"\0"  # as range_end: every key from the first one on


class MemoryBackend:
    """A :class:`~twistedkv.storage.backend.Backend` that keeps everything in this process."""

    def __init__(self) -> None:
        self._revisions: list[int] = []  # ascending; the keys of _rows
        self._rows: dict[int, RevisionRow] = {}
        self._by_key: SortedDict[bytes, list[int]] = SortedDict()  # each key's revisions, ascending, never empty
        self._records: dict[Bucket, dict[bytes, bytes]] = {bucket: {} for bucket in Bucket}
        self._data_bytes = 0
        self._held_bytes = 0  # the most that _data_bytes was since the last defragmentation

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to let go of: the data goes with the object."""

    def write(self, batch: Batch) -> None:
        """Apply ``batch``; it is refused whole unless its revisions ascend from the newest one written so far."""
        newest = self._revisions[-1:] + [row.revision for row in batch.rows]
        if any(later <= earlier for earlier, later in pairwise(newest)):
            raise BackendError("memory: revisions do not ascend")
        for row in batch.rows:
            self._revisions.append(row.revision)
            self._rows[row.revision] = row
            self._by_key.setdefault(row.key, []).append(row.revision)
            self._data_bytes += _bytes_of(row)
        for (bucket, key), value in batch.records.items():
            if value is None:
                self._records[bucket].pop(key, None)
            else:
                self._records[bucket][key] = value
        self._held_bytes = max(self._held_bytes, self._data_bytes)

    def replace(self, batches: Iterable[Batch]) -> None:
        """Collect everything apart, and swap it in when it is complete."""
        new = MemoryBackend()
        for batch in batches:
            new.write(batch)
        self._revisions, self._rows, self._by_key = new._revisions, new._rows, new._by_key
        self._records, self._data_bytes = new._records, new._data_bytes
        self._held_bytes = max(self._held_bytes, self._data_bytes)

    def sync(self) -> None:
        """Nothing to sync: no batch survives a power cut."""

    def records(self, bucket: Bucket) -> dict[bytes, bytes]:
        """All records of one bucket; the caller's own copy."""
        return dict(self._records[bucket])

    def scan(self, first: int, last: int, limit: int) -> list[RevisionRow]:
        """Rows between two revisions, both included."""
        return list(islice(self._between(first, last), limit))

    def rows(self, revisions: Sequence[int]) -> list[RevisionRow]:
        """The rows with exactly these revisions."""
        return [self._rows[revision] for revision in sorted(set(revisions)) if revision in self._rows]

    def range_at(self, key: bytes, range_end: bytes | None, last: int) -> list[RevisionRow]:
        """The newest live row of each key as of ``last``."""
        if range_end is None:
            keys = iter([key] if key in self._by_key else [])
        elif range_end == FROM_KEY:
            keys = self._by_key.irange(key)
        else:
            keys = self._by_key.irange(key, range_end, inclusive=(True, False))
        newest = (self._newest(key, last) for key in keys)
        return [row for row in newest if row is not None and not row.tombstone]

    def surviving(self, first: int, last: int, compacted: int, limit: int) -> list[RevisionRow]:
        """As :meth:`scan`, without what a compaction at ``last`` would drop of the compacted rows."""
        bound = _last_of(compacted)
        kept = (row for row in self._between(first, last) if row.revision > bound or not self._dropped(row, last))
        return list(islice(kept, limit))

    def compact(self, compacted: int, after: int, limit: int) -> tuple[int, int]:
        """Delete what compaction drops among the next ``limit`` rows."""
        bound = _last_of(compacted)
        looked_at = list(islice(self._between(after + 1, bound), limit))
        kept = []
        for row in looked_at:
            if not self._dropped(row, bound):
                kept.append(row.revision)
                continue
            del self._rows[row.revision]
            revisions = self._by_key[row.key]
            revisions.remove(row.revision)
            if not revisions:
                del self._by_key[row.key]
            self._data_bytes -= _bytes_of(row)
        start = bisect_right(self._revisions, after)
        self._revisions[start : start + len(looked_at)] = kept
        return len(looked_at) - len(kept), looked_at[-1].revision if looked_at else 0

    def size(self) -> Size:
        """Bytes of keys and values, now and at most since the last :meth:`defragment`."""
        return Size(self._held_bytes, self._data_bytes)

    def defragment(self) -> bool:
        """Forget how much was held."""
        self._held_bytes = self._data_bytes
        return True

    def _between(self, first: int, last: int) -> Iterator[RevisionRow]:
        start, stop = bisect_left(self._revisions, first), bisect_right(self._revisions, last)
        return (self._rows[self._revisions[position]] for position in range(start, stop))

    def _newest(self, key: bytes, last: int) -> RevisionRow | None:
        revisions = self._by_key[key]
        position = bisect_right(revisions, last)
        return self._rows[revisions[position - 1]] if position else None

    def _dropped(self, row: RevisionRow, last: int) -> bool:
        """Whether compaction up to packed revision ``last`` drops a row that is not newer than that."""
        return row.tombstone or self._newest(row.key, last) is not row


def _last_of(main: int) -> int:
    """The last possible packed revision of main revision ``main``."""
    return pack(main + 1) - 1


def _bytes_of(row: RevisionRow) -> int:
    return len(row.key) + len(row.value)

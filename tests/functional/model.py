"""A model of etcd's store for checks: what a history of changes must leave behind, down to HashKV. Pure Python.

Written from the rules of the API and checked against real etcd; it shares no code with the server it examines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import google_crc32c

from twistedkv.pb.kv_pb2 import KeyValue

Changes = Mapping[bytes, bytes | None]
"""What one revision did: the new value of each key it touched; ``None`` deletes."""

_HASHED_FIRST = b"key"  # the name of etcd's bucket


@dataclass(frozen=True, slots=True)
class _Record:
    main: int
    key: bytes
    tombstone: bool
    data: bytes  # as etcd stores it: the revision's bytes, then the KeyValue's


class StoreModel:
    """The store after a history without leases, whose every transaction touched its keys in ascending order."""

    def __init__(self) -> None:
        self.revision = 1  # etcd's empty store
        self.compacted = -1
        self.live: dict[bytes, KeyValue] = {}
        self._records: list[_Record] = []
        self._checksum: int = google_crc32c.extend(0, _HASHED_FIRST)

    def apply(self, changes: Changes) -> None:
        """One more revision.

        Raises:
            ValueError: no change at all, or a deletion of a key that is not there; neither makes a revision.
        """
        if not changes or any(value is None and key not in self.live for key, value in changes.items()):
            raise ValueError(f"not a revision: {dict(changes)!r}")
        self.revision += 1
        for sub, key in enumerate(sorted(changes)):
            self._append(sub, key, changes[key])

    def compact(self, revision: int) -> None:
        """As a finished compaction."""
        self.compacted = revision

    def hash_kv(self) -> int:
        """HashKV at the current revision.

        A record at or below the compacted revision counts only if it is the newest of its key at the revision that is
        hashed, and no tombstone: having survived the compaction is not enough. While no key is live at all, whatever
        is stored counts. Source: etcd ``mvcc/kvstore.go``, HashByRev; ``mvcc/key_index.go``, keep.
        """
        if self.compacted < 0:
            return self._checksum
        newest = {record.key: record for record in self._records}
        kept = {id(record) for record in newest.values() if not record.tombstone}
        if not kept:
            survivors = {record.key: record for record in self._records if record.main <= self.compacted}
            kept = {id(record) for record in survivors.values() if not record.tombstone}
        checksum: int = google_crc32c.extend(0, _HASHED_FIRST)
        for record in self._records:
            if record.main > self.compacted or id(record) in kept:
                checksum = google_crc32c.extend(checksum, record.data)
        return checksum

    def _append(self, sub: int, key: bytes, value: bytes | None) -> None:
        if value is None:
            del self.live[key]
            kv = KeyValue(key=key)
        else:
            old = self.live.get(key)
            created, version = (old.create_revision, old.version + 1) if old else (self.revision, 1)
            kv = KeyValue(key=key, value=value, create_revision=created, mod_revision=self.revision, version=version)
            self.live[key] = kv
        stamp = self.revision.to_bytes(8, "big") + b"_" + sub.to_bytes(8, "big") + (b"t" if value is None else b"")
        data = stamp + kv.SerializeToString()
        self._records.append(_Record(self.revision, key, value is None, data))
        self._checksum = google_crc32c.extend(self._checksum, data)

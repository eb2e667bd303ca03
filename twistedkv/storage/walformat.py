"""The bytes of a write-ahead log: how segments and records are laid out, and how they are read back.

All integers are little-endian. A segment is a header, a prologue record, then any number of other records, then zeros.

Segment header, 48 bytes::

     0  8  magic b"tkvwal\\r\\n"
     8  4  format version, 1
    12  4  CRC-32 of the header with zeros in this place
    16  8  nonce, random for each segment; its CRC-32 is the segment's *seed*
    24  8  sequence number, one more than the segment's before
    32  8  first index: one more than the last index of the log when the segment was begun
    40  4  chain value at the end of the segment before, 0 in segment 0
    44  4  zero

Record, padded with zeros to a multiple of 8 bytes::

     0  4  CRC-32, seeded, of the next 20 bytes
     4  4  type: 1 prologue, 2 append, 3 snapshot
     8  8  length of the payload, without padding
    16  4  chain value before this record; the seed for the first one of a segment
    20  4  chain value after it: CRC-32 of the payload, starting from the value before
    24  …  payload

The seed makes a record header something that only this log can have written: bytes that a client chose and that happen
to be on disk as part of a value do not pass for one. So a header that fits proves that its record was begun.

Payloads::

    prologue  8 term, 8 vote, 8 commit, 4 length of the metadata, the metadata, a snapshot
    append    8 term, 8 vote, 8 commit, 8 number of entries, then for each entry:
              8 term, 8 index, 4 type, 4 length of the data, the data
    snapshot  8 index, 8 term, 4 auto_leave, then 4 for the number each of voters, learners, voters_outgoing and
              learners_next, then the ids, 8 each

An append whose first index is not above the last one replaces the log from there on (Raft §5.3). A snapshot makes the
log begin after its index; if the log has another term there, or does not reach that far, all of it goes (Raft §7).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple
from zlib import crc32

from twistedkv.raft.messages import ConfState, Entry, EntryType, HardState, SnapshotMeta

MAGIC = b"tkvwal\r\n"
VERSION = 1
SEGMENT_HEADER = struct.Struct("<8sII8sQQII")
RECORD_CHECK = struct.Struct("<I")
RECORD_BODY = struct.Struct("<IQII")  # type, length, chain value before, chain value after
RECORD_HEADER_BYTES = RECORD_CHECK.size + RECORD_BODY.size
APPEND = struct.Struct("<QQQQ")
ENTRY = struct.Struct("<QQII")
PROLOGUE = struct.Struct("<QQQI")
SNAPSHOT = struct.Struct("<QQIIIII")
ALIGNMENT = 8

_ENTRY_TYPES = tuple(EntryType)  # by value; a call of the enum costs more than the rest of an entry
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.wal")


class RecordType(IntEnum):
    """What a record's payload is."""

    PROLOGUE = 1
    APPEND = 2
    SNAPSHOT = 3


class WALError(Exception):
    """The log on disk can not be used; the text is for the operator."""


class WALDamagedError(WALError):
    """The log holds something else than what was written to it, and not just a torn end.

    Args:
        name: the segment's file.
        offset: where in that file.
        reason: what is wrong there.
    """

    def __init__(self, name: str, offset: int, reason: str) -> None:
        super().__init__(f"{name}: offset {offset}: {reason}")
        self.name = name
        self.offset = offset
        self.reason = reason


class SegmentName(NamedTuple):
    """What a segment's file name says: 16 hexadecimal digits each."""

    sequence: int
    first_index: int

    def __str__(self) -> str:
        return f"{self.sequence:016x}-{self.first_index:016x}.wal"

    @classmethod
    def parse(cls, text: str) -> SegmentName | None:
        """The name's numbers; ``None`` for a file that is no segment."""
        match = _NAME.fullmatch(text)
        return cls(int(match[1], 16), int(match[2], 16)) if match else None


@dataclass(slots=True)
class Recovered:
    """What a log held when it was opened."""

    metadata: bytes = b""
    snapshot: SnapshotMeta = field(default_factory=SnapshotMeta)
    hard_state: HardState = field(default_factory=HardState)
    entries: list[Entry] = field(default_factory=list)  # consecutive; the first has index snapshot.index + 1
    truncated_bytes: int = 0  # of a write that the last crash tore


class SegmentEnd(NamedTuple):
    """Where the records of one segment stop."""

    name: SegmentName
    seed: int
    offset: int  # of the first byte after the last good record, its padding included
    chain: int  # after the last good record
    highest_index: int  # of any entry that the segment holds; 0 if it holds none
    torn_bytes: int  # that are not zero-filled room after offset


def encode_segment_header(name: SegmentName, nonce: bytes, previous: int) -> bytes:
    """The first 48 bytes of a segment that continues the chain value ``previous``."""
    fields = (nonce, name.sequence, name.first_index, previous, 0)
    check = crc32(SEGMENT_HEADER.pack(MAGIC, VERSION, 0, *fields))
    return SEGMENT_HEADER.pack(MAGIC, VERSION, check, *fields)


def encode_record_header(kind: RecordType, length: int, seed: int, before: int, after: int) -> bytes:
    """The 24 bytes in front of a payload that takes the chain from ``before`` to ``after``."""
    body = RECORD_BODY.pack(kind, length, before, after)
    return RECORD_CHECK.pack(crc32(body, seed)) + body


def encode_record(kind: RecordType, payload: bytes, seed: int, chain: int) -> tuple[bytes, int]:
    """A whole record with its padding, and the chain value after it."""
    after = crc32(payload, chain)
    return encode_record_header(kind, len(payload), seed, chain, after) + payload + bytes(
        -len(payload) % ALIGNMENT
    ), after


def encode_prologue(metadata: bytes, snapshot: SnapshotMeta, hard_state: HardState) -> bytes:
    """The payload that lets a log be read from this segment on."""
    return PROLOGUE.pack(*hard_state, len(metadata)) + metadata + encode_snapshot(snapshot)


def encode_snapshot(meta: SnapshotMeta) -> bytes:
    """The payload of a snapshot record."""
    conf = meta.conf_state
    groups = (conf.voters, conf.learners, conf.voters_outgoing, conf.learners_next)
    ids = [member for group in groups for member in group]
    head = SNAPSHOT.pack(meta.index, meta.term, conf.auto_leave, *map(len, groups))
    return head + struct.pack(f"<{len(ids)}Q", *ids)


def decode_snapshot(payload: bytes) -> SnapshotMeta:
    """What :func:`encode_snapshot` encoded.

    Raises:
        ValueError: the payload is not one of a snapshot.
    """
    try:
        index, term, auto_leave, *sizes = SNAPSHOT.unpack_from(payload)
    except struct.error as error:
        raise ValueError(str(error)) from None
    if len(payload) != SNAPSHOT.size + 8 * sum(sizes):
        raise ValueError("the member ids do not fill the record")
    groups: list[tuple[int, ...]] = []
    position = SNAPSHOT.size
    for size in sizes:
        groups.append(struct.unpack_from(f"<{size}Q", payload, position))
        position += 8 * size
    voters, learners, voters_outgoing, learners_next = groups
    conf_state = ConfState(voters, learners, voters_outgoing, learners_next, bool(auto_leave))
    return SnapshotMeta(index, term, conf_state)


class Replay:
    """Reads the segments of one log, oldest first, and ends up with what the log holds.

    Only the last segment may have a torn end, and only such that nothing written later follows it: every record is
    durable before the next one is begun, so a record after a bad one means that the bad one was once good.
    """

    def __init__(self) -> None:
        self.recovered = Recovered()
        self.ends: list[SegmentEnd] = []
        self._base = 0  # index before that of entries[0]

    @property
    def last_index(self) -> int:
        """The last index of the log as read so far."""
        return self._base + len(self.recovered.entries)

    def read(self, name: SegmentName, data: bytes, is_last: bool) -> None:
        """Take one whole segment.

        Raises:
            WALDamagedError: it, or the end of the one before it, is not as it was written.
        """
        seed = self._read_header(name, data)
        offset, chain, highest = SEGMENT_HEADER.size, seed, 0
        while (record := _next_record(name, data, offset, seed, chain)) is not None:
            kind, length, chain = record
            start = offset + RECORD_HEADER_BYTES
            try:
                highest = max(highest, self._take(kind, data[start : start + length], offset == SEGMENT_HEADER.size))
            except (ValueError, struct.error) as error:
                raise WALDamagedError(str(name), offset, str(error)) from None
            offset = start + length + -length % ALIGNMENT
        if offset == SEGMENT_HEADER.size:
            raise WALDamagedError(str(name), offset, "the segment's first record is damaged")
        torn_bytes = _examine_end(name, data, offset, seed) if is_last else 0
        self.ends.append(SegmentEnd(name, seed, offset, chain, highest, torn_bytes))

    def finish(self) -> Recovered:
        """The log, after all segments were read.

        Raises:
            WALDamagedError: entries are missing.
        """
        first = self.recovered.snapshot.index + 1
        if self._base >= first:
            reason = f"the log begins at index {self._base + 1}, and entries from {first} on are missing"
            raise WALDamagedError(str(self.ends[0].name), 0, reason)
        self.recovered.truncated_bytes = self.ends[-1].torn_bytes
        return self.recovered

    def _read_header(self, name: SegmentName, data: bytes) -> int:
        """Check that ``data`` is the segment that comes next; returns its seed."""
        text = str(name)
        if len(data) < SEGMENT_HEADER.size:
            raise WALDamagedError(text, len(data), "the file ends inside the segment header")
        magic, version, check, nonce, sequence, first_index, previous, _ = SEGMENT_HEADER.unpack_from(data)
        if magic != MAGIC:
            raise WALDamagedError(text, 0, "not a segment of a twistedkv log")
        if check != crc32(data[:12] + bytes(4) + data[16 : SEGMENT_HEADER.size]):
            raise WALDamagedError(text, 0, "the segment header is damaged")
        if version != VERSION:
            raise WALDamagedError(text, 8, f"format version {version}; this program reads version {VERSION}")
        if (sequence, first_index) != name:
            raise WALDamagedError(text, 24, f"this is segment {SegmentName(sequence, first_index)} under another name")
        if not self.ends:
            self._base = max(first_index - 1, 0)
            return crc32(nonce)
        before = self.ends[-1]
        if sequence != before.name.sequence + 1:
            missing = f"segment {before.name.sequence + 1:016x} is missing"
            raise WALDamagedError(text, 24, f"{missing} between this one and {before.name}")
        if previous != before.chain:
            raise WALDamagedError(str(before.name), before.offset, f"a damaged or missing record; {text} follows")
        if first_index != self.last_index + 1:
            raise WALDamagedError(text, 32, f"begins at index {first_index}, after index {self.last_index}")
        return crc32(nonce)

    def _take(self, kind: int, payload: bytes, is_first: bool) -> int:
        """Apply one good record; returns the highest index in it."""
        if (kind == RecordType.PROLOGUE) is not is_first:
            raise ValueError(f"a record of type {kind} out of place")
        match kind:
            case RecordType.PROLOGUE:
                self._take_prologue(payload)
            case RecordType.APPEND:
                return self._take_append(payload)
            case RecordType.SNAPSHOT:
                self._take_snapshot(decode_snapshot(payload))
            case _:
                raise ValueError(f"a record of unknown type {kind}")
        return 0

    def _take_prologue(self, payload: bytes) -> None:
        term, vote, commit, length = PROLOGUE.unpack_from(payload)
        after = PROLOGUE.size + length
        snapshot = decode_snapshot(payload[after:])
        if self.ends:  # repeats what is known, for the day when the segments before are gone
            if snapshot != self.recovered.snapshot or payload[PROLOGUE.size : after] != self.recovered.metadata:
                raise ValueError("the segment begins with another state than the one before ended with")
        else:
            self.recovered.metadata = payload[PROLOGUE.size : after]
            self.recovered.snapshot = snapshot
        self.recovered.hard_state = HardState(term, vote, commit)

    def _take_append(self, payload: bytes) -> int:
        term, vote, commit, count = APPEND.unpack_from(payload)
        entries, position, highest = self.recovered.entries, APPEND.size, 0
        for _ in range(count):
            entry_term, index, kind, length = ENTRY.unpack_from(payload, position)
            position += ENTRY.size
            data = payload[position : position + length]
            position += length
            if len(data) != length or kind >= len(_ENTRY_TYPES):
                raise ValueError(f"entry {index} is malformed")
            last = self._base + len(entries)
            if index != last + 1:
                if index > last or index <= self.recovered.snapshot.index:
                    raise ValueError(f"entry {index} after {last}, with a snapshot at {self.recovered.snapshot.index}")
                del entries[max(index - self._base - 1, 0) :]  # Raft §5.3: a conflicting suffix is replaced
                self._base = min(self._base, index - 1)  # it may begin in a segment that was released
            entries.append(Entry(entry_term, index, data, _ENTRY_TYPES[kind]))
            highest = max(highest, index)
        if position != len(payload):
            raise ValueError("the entries do not fill the record")
        self.recovered.hard_state = HardState(term, vote, commit)
        return highest

    def _take_snapshot(self, meta: SnapshotMeta) -> None:
        entries = self.recovered.entries
        if meta.index < self.recovered.snapshot.index:
            raise ValueError(f"a snapshot at {meta.index} after one at {self.recovered.snapshot.index}")
        self.recovered.snapshot = meta
        covered = meta.index - self._base
        if 0 < covered <= len(entries) and entries[covered - 1].term == meta.term:
            del entries[:covered]
            self._base = meta.index
        elif covered > 0:  # Raft §7: a log that lacks the snapshot's last entry is of no use
            entries.clear()
            self._base = meta.index


def _examine_end(name: SegmentName, data: bytes, end: int, seed: int) -> int:
    """How many bytes a torn write left after the last good record, which ends at ``end``."""
    torn_bytes = max(len(data.rstrip(b"\0")) - end, 0)  # a cut file may end inside that record's padding
    for offset in range(end + ALIGNMENT, end + torn_bytes, ALIGNMENT):
        if _is_record_header(data, offset, seed):
            raise WALDamagedError(str(name), end, f"a damaged record; another one follows at offset {offset}")
    return torn_bytes


def _is_record_header(data: bytes, offset: int, seed: int) -> bool:
    """Whether a record header of this segment, and no other bytes, stands at ``offset``."""
    start = offset + RECORD_CHECK.size
    body = data[start : offset + RECORD_HEADER_BYTES]
    if len(body) != RECORD_BODY.size or not 0 < body[0] <= len(RecordType):  # the type's lowest byte
        return False
    check: int = RECORD_CHECK.unpack_from(data, offset)[0]
    return crc32(body, seed) == check


def _next_record(name: SegmentName, data: bytes, offset: int, seed: int, chain: int) -> tuple[int, int, int] | None:
    """Type, payload length and new chain value of the good record at ``offset``; ``None`` if there is none."""
    start = offset + RECORD_HEADER_BYTES
    if start > len(data):
        return None
    (check,) = RECORD_CHECK.unpack_from(data, offset)
    body = data[offset + RECORD_CHECK.size : start]
    if check != crc32(body, seed):
        return None
    kind, length, before, after = RECORD_BODY.unpack(body)
    if before != chain:
        raise WALDamagedError(str(name), offset, "a record that does not follow the one before it")
    if length > len(data) - start or crc32(memoryview(data)[start : start + length], chain) != after:
        return None
    return kind, length, after

"""The Raft log on disk: what :meth:`WAL.append` returned for survives a power cut.

A log is a directory of segment files, laid out byte by byte in :mod:`twistedkv.storage.walformat` and named
``SSSSSSSSSSSSSSSS-IIIIIIIIIIIIIIII.wal`` by sequence number and first index. Segments are allocated whole, so that
writing into them changes no metadata and ``fdatasync`` has only the record to write.

Three rules carry the safety of it:

* Each call of :meth:`WAL.append` that syncs writes one record and waits for it, so that no record is begun before the
  one in front of it is durable. A crash can tear the last record only, and recovery cuts it off; anything else that is
  not as it was written is damage, and the log refuses to open.
* A new segment gets its name only when it is complete and durable: a half-made one is a ``.tmp`` file, which recovery
  deletes.
* After a failed ``fdatasync`` nobody knows what is on disk, and asking again would answer for pages that the kernel has
  already given up. The log then refuses further use, and the member has to stop. A full disk is not such a case: it
  shows before the sync, the log is put back as it was, and the same append may be tried again.

Everything blocks. One thread at a time drives a log.
"""

from __future__ import annotations

import errno
import fcntl
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from zlib import crc32

from twistedkv.raft.messages import Entry, HardState, SnapshotMeta
from twistedkv.storage.walformat import (
    ALIGNMENT,
    APPEND,
    ENTRY,
    RECORD_HEADER_BYTES,
    RecordType,
    Recovered,
    Replay,
    SegmentEnd,
    SegmentName,
    WALDamagedError,
    WALError,
    encode_prologue,
    encode_record,
    encode_record_header,
    encode_segment_header,
    encode_snapshot,
)

__all__ = ["WAL", "DiskFullError", "Recovered", "UnsafeDisk", "WALDamagedError", "WALError", "WALFailedError"]

SEGMENT_BYTES = 64 * 1024 * 1024  # etcd server/storage/wal/wal.go, SegmentSizeBytes

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_ALLOCATION = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
_PADDING = tuple(bytes(-length % ALIGNMENT) for length in range(ALIGNMENT))
_ZEROS = bytes(1024 * 1024)
_TEMPORARY = ".tmp"


class DiskFullError(WALError):
    """There is no room; nothing changed, and the same call may be made again."""


class WALFailedError(WALError):
    """Writing failed in a way that leaves open what is on disk: the log can not be used until it is opened again."""


def reserve_nothing(fd: int, offset: int, length: int) -> None:
    """Stands in for posix_fallocate where the system lacks it."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


class Disk:
    """The system calls that can find a disk full or broken. A test passes one that does."""

    write = staticmethod(os.pwritev)
    sync = staticmethod(os.fsync)
    sync_data = staticmethod(getattr(os, "fdatasync", os.fsync))
    reserve = staticmethod(getattr(os, "posix_fallocate", reserve_nothing))

    def allocate(self, fd: int, size: int) -> None:
        """Make a new file ``size`` bytes long, with all its blocks reserved."""
        try:
            self.reserve(fd, 0, size)
        except OSError as error:
            if error.errno not in _NO_ALLOCATION:
                raise
            for offset in range(0, size, len(_ZEROS)):
                _write_all(self, fd, _ZEROS[: size - offset], offset)


def sync_nothing(fd: object) -> None:
    """Stands in for fsync where nobody minds what a power cut leaves."""


class UnsafeDisk(Disk):
    """Writes and never waits: what was appended survives the process, but not a power cut."""

    sync = staticmethod(sync_nothing)
    sync_data = staticmethod(sync_nothing)


@dataclass(slots=True)
class _Segment:
    name: SegmentName
    highest_index: int  # of any entry in it; 0 if it holds none


class WAL:
    """One open log. Make it by :meth:`create` or :meth:`open`; it holds a lock on the directory until :meth:`close`.

    ``on_sync`` is called after each ``fdatasync`` with the seconds it took. ``bytes_written`` counts what went into
    records and segment headers since the log was opened.
    """

    def __init__(
        self, directory: Path, metadata: bytes, segment_bytes: int, disk: Disk, nonce: Callable[[], bytes]
    ) -> None:
        """Internal: use :meth:`create` or :meth:`open`."""
        self.on_sync: Callable[[float], None] | None = None
        self.bytes_written = 0
        self._directory = directory
        self._metadata = metadata
        self._segment_bytes = segment_bytes
        self._disk = disk
        self._nonce = nonce
        self._directory_fd = _lock(directory)
        self._fd = -1
        self._segments: list[_Segment] = []
        self._seed = 0
        self._chain = 0
        self._offset = 0  # where the next record goes
        self._limit = 0  # end of the allocated part of the last segment
        self._hard_state = self._durable_state = HardState()
        self._snapshot = SnapshotMeta()
        self._last_index = self._durable_index = 0  # the second without the entries that wait for a sync
        self._runs: list[tuple[int, int]] = []  # (first index, term), both ascending: the terms of the entries
        self._waiting: list[bytes] = []  # encoded entries that a later sync takes along
        self._waiting_count = 0
        self._waiting_highest = 0
        self._dirty = False  # something waits for a sync
        self._failure: str | None = None

    @staticmethod
    def exists(directory: Path) -> bool:
        """Whether a log was ever completely created there."""
        return directory.is_dir() and any(SegmentName.parse(name) for name in os.listdir(directory))

    @classmethod
    def create(
        cls,
        directory: Path,
        metadata: bytes,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        disk: Disk | None = None,
        nonce: Callable[[], bytes] = lambda: os.urandom(8),
    ) -> WAL:
        """A new, empty log, durable with its directory.

        Args:
            directory: made if it is missing, with its parents.
            metadata: kept with the log and given back by :meth:`open`.
            segment_bytes: size of a segment file; a single larger record makes a larger one.
            nonce: 8 random bytes for each segment.

        Raises:
            FileExistsError: there is a log already.
            DiskFullError: there is no room for the first segment.
        """
        if cls.exists(directory):
            raise FileExistsError(f"{directory} holds a write-ahead log already")
        _make_directory(directory)
        wal = cls(directory, metadata, segment_bytes, disk or Disk(), nonce)
        try:
            wal._discard_unfinished()
            wal._begin_segment(SegmentName(0, 1), 0)
        except BaseException:
            wal.close()
            raise
        return wal

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        disk: Disk | None = None,
        nonce: Callable[[], bytes] = lambda: os.urandom(8),
    ) -> tuple[WAL, Recovered]:
        """The log as it was, ready to go on. What it returns is durable, also if the last owner died before its sync.

        Raises:
            FileNotFoundError: there is no log.
            WALDamagedError: the log is not as it was written, beyond a torn end.
            WALError: another process has the log open.
        """
        if not cls.exists(directory):
            raise FileNotFoundError(f"{directory} holds no write-ahead log")
        wal = cls(directory, b"", segment_bytes, disk or Disk(), nonce)
        try:
            return wal, wal._recover()
        except WALDamagedError as error:
            wal._abandon()
            raise WALDamagedError(str(directory / error.name), error.offset, error.reason) from None
        except BaseException:
            wal._abandon()
            raise

    @property
    def last_index(self) -> int:
        """The index of the last entry appended, or of the snapshot if that is later."""
        return self._last_index

    def append(self, hard_state: HardState | None, entries: Sequence[Entry], sync: bool = True) -> None:
        """Add entries and a new hard state; durable on return. All or nothing survives a crash.

        Args:
            hard_state: ``None`` keeps the last one.
            entries: consecutive. The first one's index is at most one more than the last one's of the log; if it is
                less, the entries from there on are replaced.
            sync: false keeps everything in memory until the next call that syncs, which writes it in the same record.

        Raises:
            DiskFullError: nothing changed, and the same call may be made again.
            WALFailedError: the log can not be used further.
            ValueError: the indexes do not fit.
        """
        if self._failure is not None:
            raise WALFailedError(self._failure)
        if entries:
            first, last = entries[0].index, entries[-1].index
            if not self._snapshot.index < first <= self._last_index + 1 or last - first + 1 != len(entries):
                raise ValueError(f"entries {first} to {last} after {self._last_index}, snapshot {self._snapshot.index}")
        encoded: list[bytes] = []
        pack = ENTRY.pack
        for term, index, data, kind in entries:
            encoded += (pack(term, index, kind, len(data)), data)
        state = self._hard_state if hard_state is None else hard_state
        if sync:
            count = self._waiting_count + len(entries)
            self._write(RecordType.APPEND, b"".join((APPEND.pack(*state, count), *self._waiting, *encoded)))
        self._hard_state = state
        if entries:
            self._note_terms(entries)
            self._last_index = last
        if sync:
            self._settle()
        else:
            self._waiting += encoded
            self._waiting_count += len(entries)
            self._waiting_highest = max(self._waiting_highest, self._last_index)
            self._dirty = True

    def save_snapshot(self, meta: SnapshotMeta) -> None:
        """Say durably that a snapshot of the state stands for the log up to ``meta.index``.

        Recovery then yields only the entries after it; none, if the log does not hold its last entry (Raft §7).

        Raises:
            DiskFullError: nothing changed, except that what waited for a sync may have been written.
            WALFailedError: the log can not be used further.
            ValueError: it is older than the last one.
        """
        if meta.index < self._snapshot.index:
            raise ValueError(f"a snapshot at {meta.index} after one at {self._snapshot.index}")
        self.flush()
        self._write(RecordType.SNAPSHOT, encode_snapshot(meta))
        if meta.index > self._snapshot.index and self._term(meta.index) != meta.term:
            self._last_index = self._durable_index = meta.index
            self._runs.clear()
        self._snapshot = meta
        kept = bisect_right(self._runs, meta.index, key=lambda run: run[0]) - 1
        del self._runs[: max(kept, 0)]

    def release(self, index: int) -> int:
        """Delete the segments that hold no entry above ``index``, oldest first; returns how many.

        What recovery needs stays, whatever ``index`` is: the last segment, and entries after the last snapshot.
        """
        if self._failure is not None:
            raise WALFailedError(self._failure)
        index = min(index, self._snapshot.index)
        released = 0
        while len(self._segments) > 1 and self._segments[0].highest_index <= index:
            try:
                os.unlink(self._directory / str(self._segments[0].name))
                self._disk.sync(self._directory_fd)  # one by one, so that no crash leaves a hole in the sequence
            except OSError as error:
                raise self._fail("releasing a segment", error) from error
            del self._segments[0]
            released += 1
        return released

    def flush(self) -> None:
        """Make durable what was appended without a sync.

        Raises:
            DiskFullError: nothing changed.
            WALFailedError: the log can not be used further.
        """
        if self._failure is not None:
            raise WALFailedError(self._failure)
        if self._dirty:
            self.append(None, ())

    def close(self) -> None:
        """Flush, unlock, and let the files go. A closed log refuses further use; closing it again does nothing.

        Raises:
            WALError: the flush failed; the log is closed all the same.
        """
        try:
            if self._failure is None:
                self.flush()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        for fd in (self._fd, self._directory_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._directory_fd = -1
        self._failure = self._failure or "the write-ahead log is closed"

    def _write(self, kind: RecordType, payload: bytes) -> None:
        """Write one record and sync it; on a full disk leave everything as it was."""
        length = len(payload)
        size = RECORD_HEADER_BYTES + length + -length % ALIGNMENT
        if self._offset + size > self._limit:
            self._begin_segment(SegmentName(self._segments[-1].name.sequence + 1, self._durable_index + 1), size)
        chain = crc32(payload, self._chain)
        header = encode_record_header(kind, length, self._seed, self._chain, chain)
        parts = (header, payload, _PADDING[length % ALIGNMENT])
        try:
            written = self._disk.write(self._fd, parts, self._offset)
            if written != size:
                _write_all(self._disk, self._fd, b"".join(parts)[written:], self._offset + written)
        except OSError as error:
            raise self._undo(size, error) from error
        self._sync_data()
        self._chain = chain
        self._offset += size
        self.bytes_written += size

    def _settle(self) -> None:
        """All that was appended is durable now."""
        self._durable_state = self._hard_state
        self._durable_index = self._last_index
        segment = self._segments[-1]
        segment.highest_index = max(segment.highest_index, self._last_index, self._waiting_highest)
        if self._dirty:
            self._waiting, self._waiting_count, self._waiting_highest = [], 0, 0
            self._dirty = False

    def _sync_data(self) -> None:
        started = perf_counter()
        try:
            self._disk.sync_data(self._fd)
        except OSError as error:
            raise self._fail("fdatasync", error) from error
        if self.on_sync is not None:
            self.on_sync(perf_counter() - started)

    def _undo(self, size: int, error: OSError) -> WALError:
        """Take back what a failed write of ``size`` bytes left; returns what to raise."""
        if error.errno not in _FULL:
            return self._fail("writing", error)
        try:
            _write_all(self._disk, self._fd, bytes(size), self._offset)  # allocated before: zeros need no new block
        except OSError as second:
            return self._fail("taking back a write on a full disk", second)
        return DiskFullError(f"{self._directory}: {error.strerror}")

    def _fail(self, what: str, error: OSError) -> WALFailedError:
        self._failure = f"{self._directory}: {what}: {error.strerror}"
        return WALFailedError(self._failure)

    def _begin_segment(self, name: SegmentName, room: int) -> None:
        """Make a new last segment with at least ``room`` bytes for a record; on a full disk leave all as it was."""
        nonce = self._nonce()
        seed, header = crc32(nonce), encode_segment_header(name, nonce, self._chain)
        prologue, chain = encode_record(
            RecordType.PROLOGUE, encode_prologue(self._metadata, self._snapshot, self._durable_state), seed, seed
        )
        used = len(header) + len(prologue)
        size = max(self._segment_bytes, used + room)
        path = self._directory / str(name)
        temporary = path.with_name(path.name + _TEMPORARY)
        fd = -1
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            self._disk.allocate(fd, size)
            _write_all(self._disk, fd, header + prologue, 0)
            self._disk.sync(fd)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
                with suppress(OSError):  # the next open deletes it
                    temporary.unlink()
            if error.errno in _FULL:
                raise DiskFullError(f"{self._directory}: {error.strerror}") from error
            raise self._fail("making a segment", error) from error
        try:
            os.rename(temporary, path)
            self._disk.sync(self._directory_fd)
        except OSError as error:
            os.close(fd)
            raise self._fail("naming a segment", error) from error
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._seed, self._chain, self._offset, self._limit = fd, seed, chain, used, size
        self._segments.append(_Segment(name, 0))
        self.bytes_written += used

    def _recover(self) -> Recovered:
        self._discard_unfinished()
        names = sorted(name for name in map(SegmentName.parse, os.listdir(self._directory)) if name)
        if len(names) > 1 and _is_blank(self._directory / str(names[-1])):
            os.unlink(self._directory / str(names.pop()))  # a file system that names a file before it has its bytes
        replay = Replay()
        for name in names:
            replay.read(name, (self._directory / str(name)).read_bytes(), is_last=name is names[-1])
        recovered = replay.finish()
        self._metadata, self._snapshot = recovered.metadata, recovered.snapshot
        self._hard_state = self._durable_state = recovered.hard_state
        self._last_index = self._durable_index = replay.last_index
        if recovered.entries:
            self._note_terms(recovered.entries)
        self._segments = [_Segment(end.name, end.highest_index) for end in replay.ends]
        self._resume(replay.ends[-1])
        return recovered

    def _resume(self, end: SegmentEnd) -> None:
        """Open the last segment for writing, without its torn end."""
        self._fd = os.open(self._directory / str(end.name), os.O_RDWR)
        self._seed, self._chain, self._offset = end.seed, end.chain, end.offset
        self._limit = os.fstat(self._fd).st_size
        try:
            _write_all(self._disk, self._fd, bytes(end.torn_bytes), end.offset)
            # The last owner may have died between write and sync, or rename and sync: what was read here would count
            # as durable although only the page cache has it.
            self._disk.sync(self._fd)
            self._disk.sync(self._directory_fd)
        except OSError as error:
            raise self._fail("opening", error) from error

    def _discard_unfinished(self) -> None:
        for path in self._directory.glob("*.wal" + _TEMPORARY):
            path.unlink()

    def _note_terms(self, entries: Sequence[Entry]) -> None:
        """Remember the terms of ``entries``, which replace all from the first one on."""
        runs, first = self._runs, entries[0]
        while runs and runs[-1][0] >= first.index:
            runs.pop()
        # Terms never fall along a log: equal ends, equal all.
        for entry in (first,) if first.term == entries[-1].term else entries:
            if not runs or runs[-1][1] != entry.term:
                runs.append((entry.index, entry.term))

    def _term(self, index: int) -> int | None:
        """The term of the entry at ``index``; ``None`` if the log does not hold it."""
        run = bisect_right(self._runs, index, key=lambda run: run[0]) - 1
        return self._runs[run][1] if run >= 0 and index <= self._last_index else None


def _write_all(disk: Disk, fd: int, data: bytes, offset: int) -> None:
    """Write all of ``data``, in as many calls as the system wants."""
    view = memoryview(data)
    while view:
        written = disk.write(fd, [view], offset)
        offset += written
        view = view[written:]


def _lock(directory: Path) -> int:
    """A descriptor of the directory that keeps other processes' locks off it."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise WALError(f"{directory}: the write-ahead log is in use by another process") from None
    return fd


def _make_directory(directory: Path) -> None:
    """Make the directory and its missing parents, for the owner alone, each durable in the one above it."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _is_blank(path: Path) -> bool:
    """Whether the file holds nothing but zeros, if that."""
    data = path.read_bytes()
    return data.count(0) == len(data)

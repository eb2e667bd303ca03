"""A node's Raft log in memory: every entry since the last compaction, and how far it is durable, committed and applied.

``compacted <= applied <= committed <= last_index`` (but a snapshot just received is still to be applied), and
``stable <= last_index``: entries above ``stable`` are not known to be durable here. The log never loses a committed
entry (Raft §5.3, §5.4): whatever would replace one raises :class:`~twistedkv.errors.InvariantError`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from twistedkv.errors import InvariantError
from twistedkv.raft.messages import Entry, Snapshot

NO_LIMIT = (1 << 63) - 1

ENTRY_OVERHEAD_BYTES = 12  # of term, index, type and lengths on the wire, more or less


def payload_bytes(entries: Sequence[Entry]) -> int:
    """How much data ``entries`` hold."""
    return sum([len(entry.data) for entry in entries])


def count_within(entries: Sequence[Entry], limit_bytes: int) -> int:
    """How many of ``entries``, from the first one on, go into one message of ``limit_bytes``: at least one of them."""
    size = 0
    for count, entry in enumerate(entries):
        size += len(entry.data) + ENTRY_OVERHEAD_BYTES
        if size > limit_bytes and count:
            return count
    return len(entries)


class RaftLog:
    """The log; the driver gives it what the disk held, and compacts it, and the node does the rest.

    Args:
        entries: consecutive, durable, the first one's index one more than ``compacted``.
        compacted: index of the last entry that is not held any more, 0 if all are.
        compacted_term: its term.
    """

    def __init__(self, entries: Iterable[Entry] = (), compacted: int = 0, compacted_term: int = 0) -> None:
        self._entries = list(entries)
        self.compacted = compacted
        self.compacted_term = compacted_term
        self.last_index = compacted + len(self._entries)
        self.stable = self.last_index
        self.committed = compacted
        self.applied = compacted
        self.snapshot: Snapshot | None = None  # received, and not yet durable
        if self._entries and (self._entries[0].index, self._entries[-1].index) != (compacted + 1, self.last_index):
            raise InvariantError(f"a log after {compacted} does not begin with entry {self._entries[0].index}")

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        return self._entries[-1].term if self._entries else self.compacted_term

    def term(self, index: int) -> int:
        """The term of the entry at ``index``; 0, which is no entry's term, if it is not known any more or not yet."""
        position = index - self.compacted
        if 0 < position <= len(self._entries):
            return self._entries[position - 1].term
        return self.compacted_term if position == 0 else 0

    def slice(self, first: int, last: int, limit_bytes: int = NO_LIMIT) -> list[Entry]:
        """Entries ``first`` to ``last``, both inclusive; fewer if they exceed ``limit_bytes``, but at least one.

        Raises:
            ValueError: one of them is not there, or not any more.
        """
        if first <= self.compacted or last > self.last_index:
            raise ValueError(f"entries {first} to {last} of a log from {self.compacted + 1} to {self.last_index}")
        entries = self._entries[first - self.compacted - 1 : last - self.compacted]
        if limit_bytes == NO_LIMIT:
            return entries
        count = count_within(entries, limit_bytes)
        return entries if count == len(entries) else entries[:count]

    def to_persist(self) -> Sequence[Entry]:
        """Entries that are not durable yet."""
        return self.slice(self.stable + 1, self.last_index) if self.stable < self.last_index else ()

    def to_apply(self, limit_bytes: int = NO_LIMIT) -> Sequence[Entry]:
        """Committed entries that are not applied yet; none while a snapshot is to be applied before them."""
        if self.applied >= self.committed or self.snapshot is not None:
            return ()
        return self.slice(self.applied + 1, self.committed, limit_bytes)

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a candidate whose log ends so may lead this node (Raft §5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add a leader's own new entries to the end."""
        self._entries += entries
        self.last_index += len(entries)

    def maybe_append(self, index: int, term: int, entries: Sequence[Entry]) -> bool:
        """Take a leader's entries that follow its entry at ``index``, if this log has that one too (Raft §5.3).

        What is there already is kept; a suffix that conflicts is replaced.

        Raises:
            InvariantError: a committed entry would be replaced.
        """
        if index < self.compacted or self.term(index) != term or index > self.last_index:
            return False
        for position, entry in enumerate(entries):
            if entry.index > self.last_index or self.term(entry.index) != entry.term:
                if entry.index <= self.committed:
                    raise InvariantError(f"entry {entry.index} of term {entry.term} would replace a committed one")
                del self._entries[entry.index - self.compacted - 1 :]
                self._entries += entries[position:]
                self.last_index = self.compacted + len(self._entries)
                self.stable = min(self.stable, entry.index - 1)
                break
        return True

    def conflict_hint(self, index: int, term: int) -> tuple[int, int]:
        """The last index up to ``index`` whose term is at most ``term``, and its term.

        No entry between the two can be the same in a log that has ``term`` at ``index``, so the search for the last
        common entry skips a whole term at once (Raft §5.3, last paragraph; etcd raft/log.go, findConflictByTerm). The
        term is 0 if it is not known any more.
        """
        held = min(index, self.last_index) - self.compacted
        if held >= 0:
            index = self.compacted + bisect_right(self._entries, term, hi=held, key=lambda entry: entry.term)
            if index > self.compacted or self.compacted_term <= term:
                return index, self.term(index)
            index -= 1
        return index, 0

    def commit_to(self, index: int) -> None:
        """Note that the log up to ``index`` is committed; never takes it back.

        Raises:
            InvariantError: the log does not reach that far, so it lost something that it had acknowledged.
        """
        if index > self.committed:
            if index > self.last_index:
                raise InvariantError(f"entry {index} is committed, and the log ends at {self.last_index}")
            self.committed = index

    def stable_to(self, entries: Sequence[Entry]) -> None:
        """Note that ``entries``, which :meth:`to_persist` gave, are durable.

        Of those that were replaced in the meantime it says nothing: what came in their place is not durable yet.
        """
        for entry in reversed(entries):
            if entry.index <= self.stable:
                break
            if self.term(entry.index) == entry.term:
                self.stable = entry.index  # and all before it, which are the same too (Raft §5.3, Log Matching)
                break

    def applied_to(self, index: int) -> None:
        """Note that the log up to ``index`` was handed on to be applied."""
        if not self.applied <= index <= self.committed:
            raise InvariantError(f"entry {index} applied after {self.applied}, committed up to {self.committed}")
        self.applied = index

    def compact(self, index: int) -> None:
        """Drop the entries up to ``index``, whose term stays known. What is dropped already is no error.

        Raises:
            ValueError: not all of them were applied.
        """
        if index > self.applied:
            raise ValueError(f"entry {index} is not applied, only up to {self.applied}")
        if index > self.compacted:
            self.compacted_term = self.term(index)
            del self._entries[: index - self.compacted]
            self.compacted = index

    def restore(self, snapshot: Snapshot) -> None:
        """Begin again after ``snapshot``, which the leader sent because it has the entries before it no more."""
        index = snapshot.meta.index
        self._entries.clear()
        self.compacted, self.compacted_term = index, snapshot.meta.term
        self.last_index = self.stable = self.committed = index
        self.snapshot = snapshot

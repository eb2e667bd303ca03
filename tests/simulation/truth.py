"""What really happened: the one history that all members carry out, as the first of them to apply each entry shows it.

Every other member, and every answer to a client, is compared with it.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from twistedkv.members import Membership
from twistedkv.raft.messages import EntryType
from twistedkv.storage.backend import RevisionRow, main_of


class Violation(AssertionError):
    """A promise was broken."""


class V2Facts(NamedTuple):
    """One change of a key of the v2 API."""

    at: int  # index of the store
    action: str
    key: str
    value: str | None


class Applied(NamedTuple):
    """One entry, and what came of it."""

    term: int
    type: EntryType
    data: bytes
    outcome: str  # the refusal, if it was refused
    rows: tuple[RevisionRow, ...]  # the changes of keys
    revision: int  # of the store after it
    compacted: int  # likewise
    version: str  # of the cluster, likewise
    v2_event: V2Facts | None  # of a request for keys of the v2 API
    tree: int  # a digest of those keys after it


class Event(NamedTuple):
    """One change of one key, as a watch shows it."""

    revision: int
    key: bytes
    value: bytes | None  # None: deleted
    version: int
    create_revision: int
    lease: int


class Truth:
    """The history so far."""

    def __init__(self) -> None:
        self.entries: dict[int, Applied] = {}
        self.applied_in: dict[int, int] = {}  # the term in which somebody applied an entry first
        self.members: dict[int, tuple[object, ...]] = {}  # who was in the cluster after an entry that changed it
        self.membership = Membership()  # after the last one of those
        self.last = 0  # index
        self.revision = 1
        self.events: list[Event] = []
        self.first_event: dict[int, int] = {}  # position in events, by revision
        self.v2_events: dict[int, V2Facts] = {}  # by index
        self.v2_acknowledged = 0  # the highest index of those that a client was told of
        self._by_key: dict[bytes, list[Event]] = {}

    def apply(self, index: int, applied: Applied, term: int) -> bool:
        """A member has applied an entry, in its ``term``; whether it is the first one to do so.

        Raises:
            Violation: another one was applied at that index elsewhere, or something else came of it.
        """
        known = self.entries.get(index)
        is_first = known is None
        if is_first:
            if index != self.last + 1:
                raise Violation(f"entry {index} is applied, and nobody applied {self.last + 1}")
            self.entries[index] = applied
            self.applied_in[index] = term
            self.last = index
            self._extend(applied)
        elif known != applied:
            raise Violation(f"state machine safety: at index {index} there is {applied}, and elsewhere {known}")
        elif term < self.applied_in[index]:
            self.applied_in[index] = term
        return is_first

    def _extend(self, applied: Applied) -> None:
        if applied.v2_event is not None:
            self.v2_events[applied.v2_event.at] = applied.v2_event
        for row in applied.rows:
            revision = main_of(row.revision)
            if revision != self.revision + 1:
                raise Violation(f"revision {revision} comes after {self.revision}")
            event = Event(
                revision,
                row.key,
                None if row.tombstone else row.value,
                row.version,
                row.create_revision,
                row.lease,
            )
            self.first_event.setdefault(revision, len(self.events))
            self.events.append(event)
            self._by_key.setdefault(row.key, []).append(event)
        if applied.revision != self.revision + bool(applied.rows):
            raise Violation(f"the revision goes from {self.revision} to {applied.revision} by {len(applied.rows)} rows")
        self.revision = applied.revision

    def members_after(self, index: int, membership: Membership) -> None:
        """These are the members after an entry that changed them.

        Raises:
            Violation: they are others elsewhere.
        """
        picture = (tuple(membership.listed()), tuple(sorted(membership.removed)))
        if index not in self.members:
            self.membership = Membership(membership.members, membership.removed)
        if self.members.setdefault(index, picture) != picture:
            raise Violation(f"the members after {index} are {picture}, and elsewhere {self.members[index]}")

    def members_at(self, index: int) -> tuple[object, ...]:
        """The members as of an index."""
        return self.members[max(each for each in self.members if each <= index)]

    def at(self, key: bytes, revision: int) -> Event | None:
        """The newest change of a key up to a revision; None if there was none, or if the key was deleted by it."""
        events = self._by_key.get(key, [])
        position = bisect_right(events, revision, key=lambda event: event.revision)
        if not position or events[position - 1].value is None:
            return None
        return events[position - 1]

    def live(self, revision: int) -> dict[bytes, Event]:
        """All live keys at a revision."""
        found = ((key, self.at(key, revision)) for key in sorted(self._by_key))
        return {key: event for key, event in found if event is not None}

    def events_of(self, revision: int) -> list[Event]:
        """The changes of one revision."""
        first = self.first_event.get(revision)
        if first is None:
            return []
        events = []
        while first < len(self.events) and self.events[first].revision == revision:
            events.append(self.events[first])
            first += 1
        return events

    def position_after(self, revision: int) -> int:
        """Where in :attr:`events` the first one behind a revision is or will be."""
        return bisect_right(self.events, revision, key=lambda event: event.revision)

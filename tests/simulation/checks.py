"""Raft's promises (Raft, figure 3) and the store's, checked while the members run.

Election safety, log matching, leader completeness and state machine safety are checked when a member leads, writes or
applies; what a member shows of itself after each of its deeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple
from zlib import crc32

from tests.simulation.truth import Applied, Truth, V2Facts, Violation
from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.raft.messages import Entry, EntryType, Message, MessageType, Role
from twistedkv.restore import Loaded
from twistedkv.server import Member
from twistedkv.storage.backend import RevisionRow
from twistedkv.storage.directory import Directory
from twistedkv.storage.mvcc import Store
from twistedkv.v2watch import V2Hub


class Outcome(NamedTuple):
    """What came of a request."""

    answer: str
    rows: tuple[RevisionRow, ...]
    changes_members: bool  # what is known of them
    revoked: int  # the lease that is no more; 0: none
    v2_event: V2Facts | None = None


NOTHING = Outcome("", (), False, 0)


class Watched:
    """What was seen of one process."""

    def __init__(self, name: str, member_id: int) -> None:
        self.name = name
        self.member_id = member_id
        self.term = 0
        self.commit = 0
        self.applied = 0
        self.revision = 0
        self.told = 0  # the last index whose outcome was told
        self._tree = (-1, 0)  # the index of the keys of the v2 API, and their digest

    def tree(self, directory: Directory) -> int:
        """See :func:`digest`, which is asked once for each change."""
        if self._tree[0] != directory.index:
            self._tree = directory.index, digest(directory)
        return self._tree[1]


class Checks:
    """All that is checked in passing.

    Args:
        lease_ended: called when a lease is revoked.
    """

    def __init__(self, lease_ended: Callable[[int], None]) -> None:
        self.truth = Truth()
        self._lease_ended = lease_ended
        self.leaders: dict[int, int] = {}  # by term
        self.elections = 0
        self._votes: dict[tuple[int, int], int] = {}  # by member and term
        self._entries: dict[tuple[int, int], tuple[Entry, int]] = {}  # by term and index, with the term before

    # --- what members say ----------------------------------------------------------------------------

    def sent(self, message: Message) -> None:
        """Raft §5.2: one vote a member and term, whatever happened to the member in between."""
        if message.type is MessageType.VOTE_RESPONSE and not message.reject:
            self._voted(message.sender, message.term, message.to)

    def _voted(self, member: int, term: int, candidate: int) -> None:
        if self._votes.setdefault((member, term), candidate) != candidate:
            raise Violation(f"{member:x} votes for {candidate:x} in term {term}, and for {self._votes[member, term]:x}")

    # --- what members write --------------------------------------------------------------------------

    def persists(self, entries: Sequence[Entry], term_before: int) -> None:
        """Raft §5.3, Log Matching: equal term and index mean equal entries, and equal logs before them."""
        for entry in entries:
            known = self._entries.setdefault((entry.term, entry.index), (entry, term_before))
            if known != (entry, term_before):
                raise Violation(f"log matching: {entry} after term {term_before}, and elsewhere {known}")
            term_before = entry.term

    # --- what members do -----------------------------------------------------------------------------

    def looks_like(self, watched: Watched, member: Member) -> None:
        """The member has done something."""
        node = member._node
        if node.role is Role.LEADER and self.leaders.get(node.term) != member.member_id:
            self._leads(member)
        committed, applied, revision = node.commit, member.applied, member.revision
        if node.term < watched.term:
            raise Violation(f"{watched.name} goes from term {watched.term} to {node.term}")
        if committed < watched.commit:
            raise Violation(f"the commit index of {watched.name} goes from {watched.commit} to {committed}")
        if applied > committed:
            raise Violation(f"{watched.name} has applied {applied}, and {committed} is committed")
        if applied < watched.applied or revision < watched.revision:
            raise Violation(
                f"{watched.name} goes from index {watched.applied} and revision {watched.revision} to {applied} and "
                f"{revision}"
            )
        watched.term, watched.commit, watched.applied, watched.revision = node.term, committed, applied, revision

    def _leads(self, member: Member) -> None:
        """Raft §5.2, Election Safety, and §5.4, Leader Completeness."""
        node, truth = member._node, self.truth
        term, me = node.term, member.member_id
        if self.leaders.setdefault(term, me) != me:
            raise Violation(f"{me:x} and {self.leaders[term]:x} lead in term {term}")
        self.elections += 1
        self._voted(me, term, me)
        log = node.log
        for index in range(truth.last, log.compacted, -1):
            if truth.applied_in[index] < term and log.term(index) != truth.entries[index].term:
                raise Violation(f"{me:x} leads in term {term} without the committed entry {index}")

    def applied(self, watched: Watched, member: Member, outcome: Outcome = NOTHING) -> None:
        """The member has applied the entry at its applied index.

        It is told of a request before its client is answered, and once more with all other entries when it is done.
        """
        index = member.applied
        if index == watched.told:
            return
        watched.told = index
        # As it was written: the member's log in memory may have been replaced while this was on its way to the state.
        entry, _ = self._entries[member.applied_term, index]
        store = member.store
        applied = Applied(
            entry.term,
            entry.type,
            entry.data,
            outcome.answer,
            outcome.rows,
            store.revision,
            store.compacted,
            member.applier.cluster_version,
            outcome.v2_event,
            watched.tree(member.directory),
        )
        if self.truth.apply(index, applied, member.term) and outcome.revoked:
            self._lease_ended(outcome.revoked)
        if entry.type is not EntryType.NORMAL or outcome.changes_members:
            self.truth.members_after(index, member.membership)

    def loaded(self, name: str, loaded: Loaded) -> None:
        """A member has this state, out of its database or out of a snapshot.

        Raises:
            Violation: it is none that there ever was.
        """
        truth = self.truth
        index, store = loaded.described.index, loaded.store
        if not index:
            return
        entry = truth.entries.get(index)
        if entry is None:
            raise Violation(f"{name} has the state after {index}, and nobody applied that")
        found = (store.revision, store.compacted, loaded.cluster_version, digest(loaded.directory))
        if found != (entry.revision, entry.compacted, entry.version, entry.tree):
            raise Violation(f"{name} has revision, compact revision, version and tree {found} after {index}: {entry}")
        membership = loaded.membership
        picture = (tuple(membership.listed()), tuple(sorted(membership.removed)))
        if picture != truth.members_at(index):
            raise Violation(f"{name} has the members {picture} after {index}: {truth.members_at(index)}")
        self.has_state(name, store)
        for lease in loaded.lessor:
            hanging = {key for key, event in truth.live(store.revision).items() if event.lease == lease.id}
            if hanging != lease.keys:
                raise Violation(
                    f"{name} has the keys {sorted(lease.keys)} on a lease, and {sorted(hanging)} hang on it"
                )

    def has_state(self, name: str, store: Store) -> None:
        """The live keys of a store are those of the history.

        Raises:
            Violation: they are not.
        """
        live = self.truth.live(store.revision)
        entries = store.index.entries
        if sorted(entries) != list(live):
            raise Violation(f"{name} has the keys {sorted(entries)} at {store.revision}, and there are {list(live)}")
        for key, entry in entries.items():
            pair = KeyValue.FromString(entry) if isinstance(entry, bytes) else entry
            event = live[key]
            found = (pair.mod_revision, pair.create_revision, pair.version, pair.lease)
            expected = (event.revision, event.create_revision, event.version, event.lease)
            if found != expected or (isinstance(pair, KeyValue) and pair.value != event.value):
                raise Violation(f"{name} has {key!r} as {pair}, and it is {event}")


def digest(directory: Directory) -> int:
    """A number that is the same for the same tree, index and history."""
    nodes = [(node.path, node.value, node.created, node.modified, node.expires_ns) for node in directory.nodes()]
    history = directory.sink.history if isinstance(directory.sink, V2Hub) else None
    events = [(event.index, event.action, event.node.key) for event in history.events] if history else []
    return crc32(repr((directory.index, nodes, events)).encode())

"""What goes between this member and the others: Raft's messages, snapshots, and who they are.

The transport calls this object when something comes (see :class:`twistedkv.protocols.receiver.Receiver`), the drive
loop calls it with what Raft has to say. Of the members it keeps two pictures: ``committed``, by which Raft counts and
messages go, which follows the log as soon as an entry commits; and the state's own, which is as old as the last entry
that was applied. Both take the same changes in the same order and refuse the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from twisted.logger import Logger

from twistedkv.errors import KVError
from twistedkv.incoming import IncomingSnapshots, Receiving
from twistedkv.members import Membership
from twistedkv.outgoing import OutgoingSnapshots
from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeV2
from twistedkv.peering import Transport
from twistedkv.raft import confchange
from twistedkv.raft.messages import Entry, Message, MessageType
from twistedkv.raft.node import RaftNode

_log = Logger()


class Driver(Protocol):
    """What drives Raft; see :class:`twistedkv.server.Member`."""

    @property
    def stopped(self) -> bool: ...

    @property
    def membership(self) -> Membership:
        """As of the applied index."""

    @property
    def version_json(self) -> bytes:
        """The versions of server and cluster."""

    def step(self, message: Message) -> None:
        """Give Raft a message."""

    def stirred(self) -> None:
        """Raft was told something: see what follows from it."""

    def leave(self) -> None:
        """The cluster goes on without this member."""


class Replication:
    """This member among the others.

    Args:
        me: our id.
        node: Raft.
        driver: drives it.
        membership: as of the applied index; it is copied.
    """

    def __init__(self, me: int, node: RaftNode, driver: Driver, membership: Membership) -> None:
        self.committed = Membership(membership.members, membership.removed)
        self._me = me
        self._node = node
        self._driver = driver

    def connect(self, peers: Transport, outgoing: OutgoingSnapshots, incoming: IncomingSnapshots) -> None:
        """Say by what the others are reached; all of these need this object first."""
        self._peers = peers
        self._outgoing = outgoing
        self._incoming = incoming

    def start(self) -> None:
        """Talk to all other members."""
        for member in self.committed.listed():
            self._set_peer(member.id, member.peer_urls)

    def stop(self) -> None:
        """Send no snapshots any more; the transport is its owner's to stop."""
        self._outgoing.stop()

    # --- what Raft says ----------------------------------------------------------------------------

    def send(self, messages: Sequence[Message]) -> None:
        """Send what Raft has to say."""
        if any(message.type is MessageType.SNAPSHOT for message in messages):
            for message in messages:
                if message.type is MessageType.SNAPSHOT:
                    self._outgoing.send(message)
            messages = [message for message in messages if message.type is not MessageType.SNAPSHOT]
        self._peers.send(messages if len(messages) <= len(self.committed.members) else _without_overtaken(messages))

    def members_committed(self, entry: Entry) -> None:
        """A change of the members is committed: it counts for Raft from now on, before it is applied.

        One that does not fit the members concerns nobody, on every member alike (etcd ``server.go``,
        applyConfChange).
        """
        change = confchange.decode(entry)
        if isinstance(change, ConfChangeV2):
            self._node.apply_conf_change(change)
            return
        try:
            self.committed.check(change)
        except (KVError, ValueError) as error:
            _log.info("a change of the members at index {index} is refused: {error}", index=entry.index, error=error)
            self._node.apply_conf_change(ConfChange(id=change.id, type=change.type, node_id=0))
            return
        before = self.committed.members.get(change.node_id)
        member = self.committed.apply(change)
        self._node.apply_conf_change(change)
        if member is not None:
            self._set_peer(member.id, member.peer_urls)
            if before is not None and before.peer_urls != member.peer_urls:
                # What was on its way to the old URLs is given up, and the transport does not say so.
                self.snapshot_sent(member.id, ok=False)
        else:
            self._remove_peer(change.node_id)

    def restored(self) -> None:
        """The state is another one now, by a snapshot: so are the members."""
        before, now = self.committed, self._driver.membership
        self.committed = Membership(now.members, now.removed)
        for member in before.members.values():
            if member.id not in now.members:
                self._remove_peer(member.id)
            elif member.peer_urls != now.members[member.id].peer_urls:
                self._outgoing.over(member.id)
        self.start()

    def wants_snapshot(self, message: Message) -> bool:
        """Whether a snapshot that Raft asked for is still of use."""
        return not self._driver.stopped and message.term == self._node.term and message.to in self._node.progress

    def snapshot_failed(self, member_id: int) -> None:
        """There is no snapshot for this member after all."""
        self._node.report_snapshot(member_id, failed=True)
        self._driver.stirred()

    # --- what the transport says -------------------------------------------------------------------

    def received(self, message: Message) -> None:
        """See :class:`~twistedkv.protocols.receiver.Receiver`."""
        self._driver.step(message)

    def snapshot_begin(self, message: Message, crc32c: int | None) -> Receiving:
        """See :class:`~twistedkv.protocols.receiver.Receiver`."""
        return self._incoming.begin(message, crc32c)

    def unreachable(self, member_id: int) -> None:
        """See :class:`~twistedkv.protocols.receiver.Receiver`."""
        if not self._driver.stopped:
            self._node.report_unreachable(member_id)

    def snapshot_sent(self, member_id: int, ok: bool) -> None:
        """See :class:`~twistedkv.protocols.receiver.Receiver`."""
        self._outgoing.over(member_id, delivered=ok and not self._driver.stopped)
        if not self._driver.stopped:
            self._node.report_snapshot(member_id, failed=not ok)
            self._driver.stirred()

    def removed(self) -> None:
        """See :class:`~twistedkv.protocols.receiver.Receiver`."""
        self._driver.leave()

    def is_removed(self, member_id: int) -> bool:
        """See :class:`~twistedkv.protocols.receiver.Receiver`."""
        return member_id in self.committed.removed

    def members_json(self) -> bytes:
        """See :class:`~twistedkv.protocols.receiver.Receiver`; etcd ``api/membership/member.go`` has the fields."""
        return b"[%b]\n" % b",".join(member.to_json() for member in self._driver.membership.listed())

    def version_json(self) -> bytes:
        """See :class:`~twistedkv.protocols.receiver.Receiver`."""
        return self._driver.version_json

    def _set_peer(self, member_id: int, urls: Sequence[str]) -> None:
        if member_id == self._me:
            return
        try:
            self._peers.set_peer(member_id, urls)
        except ValueError as error:
            _log.error("{member:x} cannot be reached by {urls}: {error}", member=member_id, urls=urls, error=error)

    def _remove_peer(self, member_id: int) -> None:
        self._peers.remove_peer(member_id)
        self._outgoing.over(member_id)


def _without_overtaken(messages: Sequence[Message]) -> list[Message]:
    """Leave out appends that say no more than the next one to the same member does.

    When a leader commits and has new entries at once, it tells each follower of the commit index by an empty append,
    and then again with the entries; each costs an answer.
    """
    kept: list[Message] = []
    last: dict[int, int] = {}  # where the last append to each member is
    for message in messages:
        if message.type is MessageType.APPEND:
            place = last.get(message.to)
            if place is not None:
                before = kept[place]
                if not before.entries and (before.index, before.log_term, before.term) == (
                    message.index,
                    message.log_term,
                    message.term,
                ):
                    kept[place] = message
                    continue
            last[message.to] = len(kept)
        kept.append(message)
    return kept

"""Changing who counts: adding, removing, promoting and demoting members, one at a time or by joint consensus.

A change of at most one voter is applied at once: old and new majorities overlap (Raft thesis §4.1). Any other goes
through a joint configuration, in which decisions need majorities of old and of new voters (Raft §6). All of it is
arithmetic on frozen sets, after etcd raft/confchange/confchange.go, whose error texts these are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from twistedkv.pb import raft_pb2
from twistedkv.raft.messages import ConfState, Entry, EntryType

ConfChange = raft_pb2.ConfChange | raft_pb2.ConfChangeV2


class ConfChangeError(Exception):
    """The change does not fit the configuration; nothing was changed."""


class Configuration(NamedTuple):
    """Who votes and who learns. While ``outgoing`` is not empty the configuration is joint."""

    voters: frozenset[int] = frozenset()
    outgoing: frozenset[int] = frozenset()
    learners: frozenset[int] = frozenset()  # disjoint from both
    learners_next: frozenset[int] = frozenset()  # outgoing voters that become learners when the joint state ends
    auto_leave: bool = False  # the leader proposes the end of the joint state by itself

    @classmethod
    def of(cls, state: ConfState) -> Configuration:
        """The configuration that was saved as ``state``."""
        groups = (state.voters, state.voters_outgoing, state.learners, state.learners_next)
        voters, outgoing, learners, learners_next = map(frozenset, groups)
        return cls(voters, outgoing, learners, learners_next, state.auto_leave)

    @property
    def state(self) -> ConfState:
        """What is saved of it, ids ascending."""
        groups = (self.voters, self.learners, self.outgoing, self.learners_next)
        voters, learners, outgoing, learners_next = (tuple(sorted(group)) for group in groups)
        return ConfState(voters, learners, outgoing, learners_next, self.auto_leave)

    @property
    def is_joint(self) -> bool:
        """Whether two majorities are needed."""
        return bool(self.outgoing)

    @property
    def is_possible(self) -> bool:
        """Whether changes can have led here: somebody votes, and nobody is two things at once."""
        return (
            bool(self.voters)
            and 0 not in self.members
            and self.learners.isdisjoint(self.all_voters)
            and self.learners_next <= self.outgoing - self.voters
            and (self.is_joint or not self.auto_leave)
        )

    @property
    def all_voters(self) -> frozenset[int]:
        """Everyone whose vote counts in one half at least."""
        return self.voters | self.outgoing

    @property
    def members(self) -> frozenset[int]:
        """Everyone who gets the log."""
        return self.voters | self.outgoing | self.learners | self.learners_next

    def changed(self, change: raft_pb2.ConfChangeV2) -> Configuration:
        """The configuration after ``change``, by whichever of the three ways below it asks for.

        Raises:
            ConfChangeError: it does not fit.
        """
        if leaves_joint(change):
            return self.leave_joint()
        if len(change.changes) > 1 or change.transition != raft_pb2.ConfChangeTransitionAuto:
            return self.enter_joint(change.changes, change.transition != raft_pb2.ConfChangeTransitionJointExplicit)
        return self.simple(change.changes)

    def simple(self, changes: Iterable[raft_pb2.ConfChangeSingle]) -> Configuration:
        """Change at most one voter, and any learners."""
        if self.is_joint:
            raise ConfChangeError("can't apply simple config change in joint config")
        new = self._apply(changes)
        if len(self.voters ^ new.voters) > 1:
            raise ConfChangeError("more than one voter changed without entering joint config")
        return new

    def enter_joint(self, changes: Iterable[raft_pb2.ConfChangeSingle], auto_leave: bool) -> Configuration:
        """Let today's voters be the outgoing ones, and change the incoming ones."""
        if self.is_joint:
            raise ConfChangeError("config is already joint")
        if not self.voters:
            raise ConfChangeError("can't make a zero-voter config joint")
        return self._replace(outgoing=self.voters, auto_leave=auto_leave)._apply(changes)

    def leave_joint(self) -> Configuration:
        """Only the incoming voters count from now on."""
        if not self.is_joint:
            raise ConfChangeError("can't leave a non-joint config")
        return Configuration(voters=self.voters, learners=self.learners | self.learners_next)

    def _apply(self, changes: Iterable[raft_pb2.ConfChangeSingle]) -> Configuration:
        voters, learners, learners_next = set(self.voters), set(self.learners), set(self.learners_next)
        for change in changes:
            node = change.node_id
            if node == 0 or change.type == raft_pb2.ConfChangeUpdateNode:
                continue  # etcd marks a change that it refused by id 0; an update concerns nothing that Raft knows
            for group in (voters, learners, learners_next):
                group.discard(node)
            if change.type == raft_pb2.ConfChangeAddNode:
                voters.add(node)
            elif change.type == raft_pb2.ConfChangeAddLearnerNode:
                # No voter of either half is a learner: an outgoing one becomes it later.
                (learners_next if node in self.outgoing else learners).add(node)
            elif change.type != raft_pb2.ConfChangeRemoveNode:
                raise ConfChangeError(f"unexpected conf type {change.type}")
        if not voters:
            raise ConfChangeError("removed all voters")
        return self._replace(
            voters=frozenset(voters), learners=frozenset(learners), learners_next=frozenset(learners_next)
        )

    def __str__(self) -> str:
        def group(ids: frozenset[int]) -> str:
            return "(" + " ".join(f"{node:x}" for node in sorted(ids)) + ")"

        text = "voters=" + group(self.voters)
        text += f"&&{group(self.outgoing)}" if self.outgoing else ""
        text += f" learners={group(self.learners)}" if self.learners else ""
        text += f" learners_next={group(self.learners_next)}" if self.learners_next else ""
        return text + (" autoleave" if self.auto_leave else "")


def as_v2(change: ConfChange) -> raft_pb2.ConfChangeV2:
    """The change in the general form."""
    if isinstance(change, raft_pb2.ConfChangeV2):
        return change
    single = raft_pb2.ConfChangeSingle(type=change.type, node_id=change.node_id)
    return raft_pb2.ConfChangeV2(changes=[single], context=change.context)


def leaves_joint(change: raft_pb2.ConfChangeV2) -> bool:
    """Whether the change is the empty one that ends a joint state."""
    return not change.changes and change.transition == raft_pb2.ConfChangeTransitionAuto


def encode(change: ConfChange) -> Entry:
    """The log entry for ``change``, still without term and index."""
    kind = EntryType.CONF_CHANGE_V2 if isinstance(change, raft_pb2.ConfChangeV2) else EntryType.CONF_CHANGE
    return Entry(0, 0, change.SerializeToString(), kind)


def decode(entry: Entry) -> ConfChange:
    """The change that a log entry holds.

    Raises:
        ValueError: it holds none.
    """
    if entry.type is EntryType.NORMAL:
        raise ValueError(f"entry {entry.index} is no configuration change")
    kind = raft_pb2.ConfChangeV2 if entry.type is EntryType.CONF_CHANGE_V2 else raft_pb2.ConfChange
    try:
        change = kind.FromString(entry.data)
    except DecodeError as error:
        raise ValueError(f"entry {entry.index}: {error}") from None
    if any(map(_has_unknown_word, (change, *_singles(change)))):
        raise ValueError(f"entry {entry.index}: a kind of change that is not known")
    return change


def _singles(change: ConfChange) -> Iterable[raft_pb2.ConfChangeSingle]:
    return change.changes if isinstance(change, raft_pb2.ConfChangeV2) else ()


def _has_unknown_word(part: Message) -> bool:
    """Whether a word of ``part``, a type or a transition, is none of those in the ``.proto`` file.

    The parser keeps such a one apart, and says the first of the known words in its place: a voter would be added.
    """
    unknown = UnknownFieldSet(part)
    words = {field.number for field in part.DESCRIPTOR.fields if field.enum_type is not None}
    return any(unknown[each].field_number in words for each in range(len(unknown)))

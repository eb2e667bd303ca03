"""Who is in the cluster: ids, names, URLs, and the changes of membership that come through the log.

Sources: etcd ``server/etcdserver/api/membership/{member,cluster}.go`` for the ids and the JSON forms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from twistedkv.errors import (
    MemberExistsError,
    MemberNotFoundError,
    NotEnoughStartedError,
    NotLearnerError,
    PeerURLExistsError,
    TooManyLearnersError,
)
from twistedkv.pb import raft_pb2
from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeAddNode
from twistedkv.raft.messages import ConfState


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """One member. A member that has not started yet has neither a name nor client URLs."""

    id: int
    peer_urls: tuple[str, ...]
    name: str = ""
    client_urls: tuple[str, ...] = ()
    is_learner: bool = False

    def to_json(self) -> bytes:
        """The form of etcd's ``members`` bucket and of a ConfChange's context; empty fields are left out."""
        fields: dict[str, object] = {"id": self.id, "peerURLs": list(self.peer_urls)}
        if self.is_learner:
            fields["isLearner"] = True
        if self.name:
            fields["name"] = self.name
        if self.client_urls:
            fields["clientURLs"] = list(self.client_urls)
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, encoded: bytes) -> MemberInfo:
        """Read :meth:`to_json`.

        Raises:
            ValueError: it is not that form.
        """
        try:
            fields = json.loads(encoded)
            return cls.from_fields(int(fields["id"]), fields)
        except (KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a member record: {encoded!r}") from error

    @classmethod
    def from_fields(cls, member_id: int, fields: Mapping[str, object]) -> MemberInfo:
        """The member ``member_id`` with the fields of :meth:`to_json`, of which any may be missing.

        Raises:
            ValueError: one is of another type.
        """
        name = fields.get("name", "")
        if not isinstance(name, str):
            raise ValueError(f"the name of member {member_id:x} is no text")
        peer_urls, client_urls = (_urls_in(fields, key, member_id) for key in ("peerURLs", "clientURLs"))
        return cls(member_id, peer_urls, name, client_urls, fields.get("isLearner") is True)


def _urls_in(fields: Mapping[str, object], key: str, member: int) -> tuple[str, ...]:
    found = fields.get(key) or []  # Go writes an empty list as null
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"the {key} of member {member:x} are no list of texts")
    return tuple(found)


def member_id(peer_urls: Iterable[str], token: str) -> int:
    """The id of a member of a new cluster: the first 8 bytes of SHA-1 over its sorted peer URLs and the token."""
    text = "".join(sorted(peer_urls)) + token
    return int.from_bytes(hashlib.sha1(text.encode(), usedforsecurity=False).digest()[:8], "big")


def cluster_id(member_ids: Iterable[int]) -> int:
    """The id of a cluster: the first 8 bytes of SHA-1 over the ids of its first members, ascending, 8 bytes each."""
    joined = b"".join(each.to_bytes(8, "big") for each in sorted(member_ids))
    return int.from_bytes(hashlib.sha1(joined, usedforsecurity=False).digest()[:8], "big")


class Membership:
    """The members as of the applied index, and the configuration that Raft counts with.

    Args:
        members: by id.
        removed: ids that were members once; they never come back.
    """

    def __init__(self, members: Mapping[int, MemberInfo] | None = None, removed: Iterable[int] = ()) -> None:
        self.members: dict[int, MemberInfo] = dict(members or {})
        self.removed: set[int] = set(removed)

    @classmethod
    def from_records(cls, records: Mapping[bytes, bytes], removed: Iterable[bytes] = ()) -> Membership:
        """Rebuild from the records of the ``members`` bucket (key: the id in hex, value: JSON), and the keys of
        ``members_removed``."""
        loaded = [MemberInfo.from_json(value) for value in records.values()]
        return cls({member.id: member for member in loaded}, (int(each, 16) for each in removed))

    def restore(self, other: Membership) -> None:
        """Have the members of ``other``, which is not used any more."""
        self.members = other.members
        self.removed = other.removed

    def listed(self) -> Sequence[MemberInfo]:
        """All members by ascending id, as etcd lists them."""
        return [self.members[each] for each in sorted(self.members)]

    def voters(self) -> Sequence[MemberInfo]:
        """Those who are no learners, by ascending id."""
        return [member for member in self.listed() if not member.is_learner]

    def conf_state(self) -> ConfState:
        """Voters and learners by ascending id."""
        return ConfState(
            tuple(sorted(each for each, member in self.members.items() if not member.is_learner)),
            tuple(sorted(each for each, member in self.members.items() if member.is_learner)),
        )

    # --- what may be proposed ----------------------------------------------------------------------

    def check_add_voter(self) -> None:
        """Refuse another voter if the quorum that it makes larger would not be there.

        A lone started member may always get a second one, or a cluster could never grow from one.

        Raises:
            NotEnoughStartedError: too few of today's voters have started.
        """
        started = sum(bool(member.name) for member in self.voters())
        total = len(self.voters()) + 1
        if not (started == 1 and total == 2) and started < total // 2 + 1:
            raise NotEnoughStartedError

    def check_promote(self, member_id: int) -> None:
        """Refuse a promotion as :meth:`check_add_voter` does an addition; the learner itself counts as started."""
        started = sum(bool(member.name) for member in self.voters()) + 1
        total = len(self.voters()) + 1
        if started < total // 2 + 1:
            raise NotEnoughStartedError

    def check_remove(self, member_id: int) -> None:
        """Refuse to remove a voter whose going would leave no quorum of started members; so the last one stays.

        Raises:
            NotEnoughStartedError: as it says. A learner can always go.
        """
        member = self.members.get(member_id)
        if member is not None and member.is_learner:
            return
        rest = [each for each in self.voters() if each.id != member_id]
        if not rest or sum(bool(each.name) for each in rest) < len(rest) // 2 + 1:
            raise NotEnoughStartedError

    # --- what comes through the log ----------------------------------------------------------------

    def check(self, change: ConfChange) -> None:
        """Refuse a change that does not fit the members; the same on every member of the cluster.

        Raises:
            MemberNotFoundError, MemberExistsError, PeerURLExistsError, NotLearnerError, TooManyLearnersError: as they
                say.
            ValueError: the change contradicts itself.
        """
        if change.node_id in self.removed:
            raise MemberNotFoundError
        known = self.members.get(change.node_id)
        match change.type:
            case raft_pb2.ConfChangeAddNode | raft_pb2.ConfChangeAddLearnerNode:
                if _is_promotion(change):
                    if known is None:
                        raise MemberNotFoundError
                    if not known.is_learner:
                        raise NotLearnerError
                    return
                if known is not None:
                    raise MemberExistsError
                self._check_urls(_described(change))
                if change.type == raft_pb2.ConfChangeAddLearnerNode and len(self.members) > len(self.voters()):
                    raise TooManyLearnersError  # etcd 3.5: one at a time
            case raft_pb2.ConfChangeRemoveNode:
                if known is None:
                    raise MemberNotFoundError
            case raft_pb2.ConfChangeUpdateNode:
                if known is None:
                    raise MemberNotFoundError
                self._check_urls(_described(change))
            case _:
                raise ValueError(f"configuration change of unknown type {change.type}")

    def apply(self, change: ConfChange) -> MemberInfo | None:
        """Carry out a change that :meth:`check` let pass; the member as it is now, None if it is gone."""
        match change.type:
            case raft_pb2.ConfChangeRemoveNode:
                self.members.pop(change.node_id, None)
                self.removed.add(change.node_id)
                return None
            case raft_pb2.ConfChangeUpdateNode:
                member = replace(self.members[change.node_id], peer_urls=_described(change).peer_urls)
            case _ if _is_promotion(change):
                member = replace(self.members[change.node_id], is_learner=False)
            case _:
                member = replace(_described(change), is_learner=change.type == raft_pb2.ConfChangeAddLearnerNode)
        self.members[member.id] = member
        return member

    def _check_urls(self, member: MemberInfo) -> None:
        taken = {url for each in self.members.values() if each.id != member.id for url in each.peer_urls}
        if taken & set(member.peer_urls):
            raise PeerURLExistsError

    def set_attributes(self, member: int, name: str, client_urls: Iterable[str]) -> MemberInfo | None:
        """Record what a started member says of itself; None if there is no such member."""
        known = self.members.get(member)
        if known is None:
            return None
        self.members[member] = replace(known, name=name, client_urls=tuple(client_urls))
        return self.members[member]


def _described(change: ConfChange) -> MemberInfo:
    """The member in a change's context.

    Raises:
        ValueError: the context does not describe it.
    """
    member = MemberInfo.from_json(change.context)
    if member.id != change.node_id:
        raise ValueError(f"configuration change for {change.node_id:x} describes member {member.id:x}")
    if not member.peer_urls:
        raise ValueError(f"configuration change for {change.node_id:x} names no peer URL")
    return member


def _is_promotion(change: ConfChange) -> bool:
    """Whether the context says that a learner becomes a voter (etcd membership.ConfigChangeContext)."""
    try:
        return bool(json.loads(change.context).get("isPromote", False))
    except (ValueError, AttributeError):
        return False


def promotion(member_id: int) -> bytes:
    """The context of a promotion."""
    return json.dumps({"id": member_id, "peerURLs": None, "isPromote": True}, separators=(",", ":")).encode()


def bootstrap_changes(members: Iterable[MemberInfo]) -> list[bytes]:
    """The first entries of a new cluster's log: one encoded ConfChange a member, by ascending id."""
    return [
        ConfChange(id=0, type=ConfChangeAddNode, node_id=member.id, context=member.to_json()).SerializeToString()
        for member in sorted(members, key=lambda each: each.id)
    ]

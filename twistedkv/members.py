"""Who is in the cluster: ids, names, URLs, and the changes of membership that come through the log.

Sources: etcd ``server/etcdserver/api/membership/{member,cluster}.go`` for the ids and the JSON forms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeAddLearnerNode, ConfChangeAddNode
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
            return cls(
                int(fields["id"]),
                tuple(fields.get("peerURLs") or ()),
                fields.get("name", ""),
                tuple(fields.get("clientURLs") or ()),
                bool(fields.get("isLearner", False)),
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"not a member record: {encoded!r}") from error


def member_id(peer_urls: Iterable[str], token: str) -> int:
    """The id of a member of a new cluster: the first 8 bytes of SHA-1 over its sorted peer URLs and the token."""
    text = "".join(sorted(peer_urls)) + token
    return int.from_bytes(hashlib.sha1(text.encode(), usedforsecurity=False).digest()[:8], "big")


def cluster_id(member_ids: Iterable[int]) -> int:
    """The id of a cluster: the first 8 bytes of SHA-1 over the ids of its first members, ascending, 8 bytes each."""
    joined = b"".join(each.to_bytes(8, "big") for each in sorted(member_ids))
    return int.from_bytes(hashlib.sha1(joined, usedforsecurity=False).digest()[:8], "big")


class Membership:
    """The members as of the applied index, and the configuration that Raft counts with."""

    def __init__(self, members: Mapping[int, MemberInfo] | None = None) -> None:
        self.members: dict[int, MemberInfo] = dict(members or {})

    @classmethod
    def from_records(cls, records: Mapping[bytes, bytes]) -> Membership:
        """Rebuild from the records of the ``members`` bucket (key: the id in hex, value: JSON)."""
        loaded = [MemberInfo.from_json(value) for value in records.values()]
        return cls({member.id: member for member in loaded})

    def listed(self) -> Sequence[MemberInfo]:
        """All members by ascending id, as etcd lists them."""
        return [self.members[each] for each in sorted(self.members)]

    def conf_state(self) -> ConfState:
        """Voters and learners by ascending id."""
        return ConfState(
            tuple(sorted(each for each, member in self.members.items() if not member.is_learner)),
            tuple(sorted(each for each, member in self.members.items() if member.is_learner)),
        )

    def add(self, change: ConfChange) -> MemberInfo:
        """Apply the addition of a voter or a learner; the new member.

        Raises:
            ValueError: another kind of change, or a context that does not describe the member. A promotion is such a
                one: its context has no peer URLs.
        """
        if change.type not in (ConfChangeAddNode, ConfChangeAddLearnerNode):
            raise ValueError(f"configuration change of type {change.type} does not add a member")
        member = MemberInfo.from_json(change.context)
        if member.id != change.node_id:
            raise ValueError(f"configuration change for {change.node_id:x} describes member {member.id:x}")
        if not member.peer_urls:
            raise ValueError(f"configuration change for {change.node_id:x} names no peer URL")
        self.members[member.id] = member
        return member

    def set_attributes(self, member: int, name: str, client_urls: Iterable[str]) -> MemberInfo | None:
        """Record what a started member says of itself; None if there is no such member."""
        known = self.members.get(member)
        if known is None:
            return None
        self.members[member] = replace(known, name=name, client_urls=tuple(client_urls))
        return self.members[member]


def bootstrap_changes(members: Iterable[MemberInfo]) -> list[bytes]:
    """The first entries of a new cluster's log: one encoded ConfChange a member, by ascending id."""
    return [
        ConfChange(id=0, type=ConfChangeAddNode, node_id=member.id, context=member.to_json()).SerializeToString()
        for member in sorted(members, key=lambda each: each.id)
    ]

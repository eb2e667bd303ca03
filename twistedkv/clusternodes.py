"""The cluster's own nodes in the v2 store: its members, who was removed, and its version.

etcd kept its members in the v2 store before it kept them in the database, and up to 3.5 does both. Below ``/0`` are
``members/<id>/raftAttributes`` (peer URLs, whether it learns), ``members/<id>/attributes`` (name and client URLs, once
it has started), ``removed_members/<id>`` and ``version``, ids in hex. Every change of them takes an index of the store
and is an event in its history, which clients see by the indexes of their own changes; so they are made here one by one
as etcd makes them.

A change that finds the nodes not as they should be, in a store from somebody who wrote less of it, makes them what they
should be: members are kept elsewhere, and nothing is decided by these nodes.

Sources: etcd ``server/etcdserver/api/membership/{store,cluster,storev2}.go``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from twistedkv.gojson import quoted
from twistedkv.members import MemberInfo, Membership
from twistedkv.storage.directory import Directory, Node

_MEMBERS: Final = "/0/members"
_REMOVED: Final = "/0/removed_members"
_VERSION: Final = "/0/version"
_RAFT: Final = "raftAttributes"
_ATTRIBUTES: Final = "attributes"


class ClusterFacts(NamedTuple):
    """What the nodes say of the cluster."""

    membership: Membership
    cluster_version: str  # empty while it is not decided


def member_added(directory: Directory, member: MemberInfo) -> None:
    """A member was added, which has not started yet."""
    path = f"{_MEMBERS}/{member.id:x}/{_RAFT}"
    if directory.node(path) is None:
        directory.create(path, False, _raft_attributes(member))
    else:
        directory.set(path, False, _raft_attributes(member))


def member_updated(directory: Directory, member: MemberInfo) -> None:
    """A member has other peer URLs, or was promoted."""
    path = f"{_MEMBERS}/{member.id:x}/{_RAFT}"
    if directory.node(path) is None:
        directory.set(path, False, _raft_attributes(member))
    else:
        directory.update(path, _raft_attributes(member))


def member_removed(directory: Directory, member_id: int) -> None:
    """A member was removed, and never comes back."""
    path = f"{_MEMBERS}/{member_id:x}"
    if directory.node(path) is not None:
        directory.delete(path, is_dir=True, recursive=True)
    path = f"{_REMOVED}/{member_id:x}"
    if directory.node(path) is None:
        directory.create(path, False, "")


def attributes_set(directory: Directory, member: MemberInfo) -> None:
    """A member that has started has said its name and its client URLs."""
    fields = []
    if member.name:
        fields.append(f'"name":{quoted(member.name)}')
    if member.client_urls:
        fields.append(f'"clientURLs":{_texts(member.client_urls)}')
    directory.set(f"{_MEMBERS}/{member.id:x}/{_ATTRIBUTES}", False, f"{{{','.join(fields)}}}")


def version_set(directory: Directory, version: str) -> None:
    """The cluster's version was decided."""
    directory.set(_VERSION, False, version)


def found(directory: Directory, membership: Membership, version: str) -> None:
    """Make the nodes of a cluster of which only this is known, in a new ``directory``.

    Its index is lower than that of a store which saw it all, and the same wherever the same is known.
    """
    for member in membership.listed():
        member_added(directory, member)
        if member.name or member.client_urls:
            attributes_set(directory, member)
    for member_id in sorted(membership.removed):
        member_removed(directory, member_id)
    if version:
        version_set(directory, version)


def facts(directory: Directory) -> ClusterFacts:
    """What the nodes say.

    Raises:
        ValueError: they are none of a cluster; in one line.
    """
    members = {}
    for name, node in _in(directory, _MEMBERS).items():
        member_id = _id(name)
        members[member_id] = _member(member_id, node)
    removed = map(_id, _in(directory, _REMOVED))
    version = directory.node(_VERSION)
    return ClusterFacts(Membership(members, removed), "" if version is None else _value(version))


def _raft_attributes(member: MemberInfo) -> str:
    learner = ',"isLearner":true' if member.is_learner else ""
    return f'{{"peerURLs":{_texts(member.peer_urls)}{learner}}}'


def _texts(texts: Iterable[str]) -> str:
    return f"[{','.join(map(quoted, texts))}]"


# --- reading -----------------------------------------------------------------------------------------


def _in(directory: Directory, path: str) -> Mapping[str, Node]:
    node = directory.node(path)
    return {} if node is None else _children(node)


def _children(node: Node) -> Mapping[str, Node]:
    if node.children is None:
        raise ValueError(f"{node.path[:200]!r} is no directory")
    return node.children


def _value(node: Node) -> str:
    if node.children is not None:
        raise ValueError(f"{node.path[:200]!r} is no file")
    return node.value


def _member(member_id: int, node: Node) -> MemberInfo:
    children = _children(node)
    if _RAFT not in children:
        raise ValueError(f"member {member_id:x} has no {_RAFT}")
    fields: dict[str, object] = {}
    for name in (_RAFT, _ATTRIBUTES):
        if name in children:
            try:
                told = json.loads(_value(children[name]))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"the {name} of member {member_id:x} are no JSON: {error}") from error
            if not isinstance(told, dict):
                raise ValueError(f"the {name} of member {member_id:x} are no object")
            fields.update(told)
    return MemberInfo.from_fields(member_id, fields)


def _id(text: str) -> int:
    try:
        member_id = int(text, 16)
    except ValueError:
        member_id = -1
    if not 0 < member_id < 1 << 64:
        raise ValueError(f"{text[:200]!r} is no member's id")
    return member_id

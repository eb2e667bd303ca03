"""The members of a cluster as etcd's v2 store serialises them, which every snapshot between members carries.

etcd kept its members in the v2 store before it kept them in the database, and still reads them from there: a snapshot
without this text, or without a member in it, is no good to etcd 3.4 and 3.5. The store is a tree of nodes. Below ``/0``
are ``members/<id>/raftAttributes`` (peer URLs, whether it learns), ``members/<id>/attributes`` (name and client URLs,
once it has started), ``removed_members/<id>`` and ``version``, ids in hex; below ``/1`` are the keys of the v2 API,
which are left out here: written as an empty directory, and passed over in what is read.

Sources: etcd ``server/etcdserver/api/v2store/{store,node_extern,event_history}.go``,
``server/etcdserver/api/membership/store.go``; seen in snapshots of 3.5.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from twistedkv.members import MemberInfo, Membership

_NO_EXPIRY: Final = "0001-01-01T00:00:00Z"
_HISTORY_EVENTS: Final = 1000  # etcd v2store/store.go, the capacity of the event history; all slots are written
_FORMAT: Final = 2  # v2store/store.go, defaultVersion
_COUNTERS: Final = (
    *("getsSuccess", "getsFail", "setsSuccess", "setsFail", "deleteSuccess", "deleteFail"),
    *("updateSuccess", "updateFail", "createSuccess", "createFail", "compareAndSwapSuccess", "compareAndSwapFail"),
    *("compareAndDeleteSuccess", "compareAndDeleteFail", "expireCount", "watchers"),
)


class ClusterFacts(NamedTuple):
    """What the text says of the cluster."""

    membership: Membership
    cluster_version: str  # empty while it is not decided


def encode(membership: Membership, cluster_version: str) -> bytes:
    """The text for these members; equal members give equal text."""
    store = _Store()
    for member in membership.listed():
        path = f"/0/members/{member.id:x}"
        raft: dict[str, object] = {"peerURLs": list(member.peer_urls)}
        if member.is_learner:
            raft["isLearner"] = True
        store.write("create", f"{path}/raftAttributes", _json(raft))
        attributes: dict[str, object] = {}
        if member.name:
            attributes["name"] = member.name
        if member.client_urls:
            attributes["clientURLs"] = list(member.client_urls)
        if attributes:
            store.write("set", f"{path}/attributes", _json(attributes))
    for member_id in sorted(membership.removed):
        store.write("create", f"/0/removed_members/{member_id:x}", "")
    if cluster_version:
        store.write("set", "/0/version", cluster_version)
    return store.serialized()


def decode(text: bytes) -> ClusterFacts:
    """Read what a member of any version since 3.0 has written.

    Raises:
        ValueError: it is no such text, in one line.
    """
    try:
        store = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from error
    root = _field(store, "Root")
    if root is None:
        raise ValueError("it has no root")
    cluster = _child(root, "0")
    members = {}
    for text_id, node in _children(_child(cluster, "members")).items():
        member_id = _id(text_id)
        members[member_id] = _member(member_id, node)
    removed = map(_id, _children(_child(cluster, "removed_members")))
    version = _child(cluster, "version")
    return ClusterFacts(Membership(members, removed), _value(version) if version is not None else "")


class _Store:
    """Builds the tree, and the history of its making, which is what v2 watchers would read."""

    def __init__(self) -> None:
        self._root = _directory("/", 0)
        self._index = 0  # counts changes
        self._events: list[dict[str, object]] = []
        for name in ("0", "1"):  # made before anything is counted
            self._root["Children"][name] = _directory(f"/{name}", 0)

    def write(self, action: str, path: str, value: str) -> None:
        """Make a file that does not exist, and the directories above it."""
        self._index += 1
        *directories, name = path.split("/")[1:]
        node, at = self._root, ""
        for each in directories:
            at = f"{at}/{each}"
            node = node["Children"].setdefault(each, _directory(at, self._index))
        node["Children"][name] = _node(path, self._index, value, None)
        event = {"key": path, "value": value, "modifiedIndex": self._index, "createdIndex": self._index}
        self._events.append({"action": action, "node": event})

    def serialized(self) -> bytes:
        """The whole of it, the children of a directory by name."""
        kept = self._events[-_HISTORY_EVENTS:]
        queue = {
            "Events": [*kept, *[None] * (_HISTORY_EVENTS - len(kept))],
            "Size": len(kept),
            "Front": 0,
            "Back": len(kept) % _HISTORY_EVENTS,
            "Capacity": _HISTORY_EVENTS,
        }
        first = self._index - len(kept) + 1 if kept else 0
        history = {"Queue": queue, "StartIndex": first, "LastIndex": self._index}
        return _json(
            {
                "Root": _sorted(self._root),
                "WatcherHub": {"EventHistory": history},
                "CurrentIndex": self._index,
                "Stats": dict.fromkeys(_COUNTERS, 0),
                "CurrentVersion": _FORMAT,
            }
        ).encode()


def _node(path: str, index: int, value: str, children: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "Path": path,
        "CreatedIndex": index,
        "ModifiedIndex": index,
        "ExpireTime": _NO_EXPIRY,
        "Value": value,
        "Children": children,
    }


def _directory(path: str, index: int) -> dict[str, Any]:
    return _node(path, index, "", {})


def _sorted(node: dict[str, Any]) -> dict[str, Any]:
    children = node["Children"]
    if children is None:
        return node
    return {**node, "Children": {name: _sorted(children[name]) for name in sorted(children)}}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


# --- reading -----------------------------------------------------------------------------------------


def _member(member_id: int, node: object) -> MemberInfo:
    fields: dict[str, object] = {}
    raft = _child(node, "raftAttributes")
    if raft is None:
        raise ValueError(f"member {member_id:x} has no raftAttributes")
    for each in (raft, _child(node, "attributes")):
        if each is not None:
            try:
                found = json.loads(_value(each))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"the attributes of member {member_id:x} are no JSON: {error}") from error
            if not isinstance(found, dict):
                raise ValueError(f"the attributes of member {member_id:x} are no object")
            fields.update(found)
    return MemberInfo.from_fields(member_id, fields)


def _field(value: object, name: str) -> object:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is not where it should be")
    return value.get(name)


def _children(node: object) -> Mapping[str, object]:
    """The children of a directory; none of one that is not there."""
    if node is None:
        return {}
    children = _field(node, "Children")
    if not isinstance(children, Mapping):
        raise ValueError("a directory has no children")
    return children


def _child(node: object, name: str) -> object:
    """A child of a directory; None if either is not there."""
    return _children(node).get(name)


def _value(node: object) -> str:
    value = _field(node, "Value")
    if not isinstance(value, str):
        raise ValueError("a file has no value")
    return value


def _id(text: str) -> int:
    try:
        found = int(text, 16)
    except ValueError:
        found = -1
    if not 0 < found < 1 << 64:
        raise ValueError(f"{text!r} is no member's id")
    return found

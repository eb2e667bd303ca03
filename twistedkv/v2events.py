"""What happens to the store of the v2 API, in words: actions, pictures of nodes, events, and who hears of them.

Source: etcd ``server/etcdserver/api/v2store/{event,node_extern,stats}.go``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple, Protocol

PERMANENT: Final = 0  # as expires_ns


class Action(StrEnum):
    """What an event tells of."""

    GET = "get"
    CREATE = "create"
    SET = "set"
    UPDATE = "update"
    DELETE = "delete"
    COMPARE_AND_SWAP = "compareAndSwap"
    COMPARE_AND_DELETE = "compareAndDelete"
    EXPIRE = "expire"


class NodeView(NamedTuple):
    """A node as it was at one moment, as events show it."""

    key: str
    value: str | None  # None: a directory, or a file that is no more
    is_dir: bool
    expires_ns: int
    nodes: tuple[NodeView, ...]  # of a directory that was listed
    modified: int
    created: int


class Event:
    """A change, or the answer to a read.

    Args:
        action: what was done.
        node: as it is afterwards.
        previous: as it was before; None if it was not.
        etcd_index: of the store, when the event was made.
        refresh: only the time to live was changed, of which watchers hear nothing.
    """

    __slots__ = ("action", "encoded", "etcd_index", "node", "previous", "refresh")

    def __init__(
        self, action: Action, node: NodeView, previous: NodeView | None, etcd_index: int, refresh: bool = False
    ) -> None:
        self.action = action
        self.node = node
        self.previous = previous
        self.etcd_index = etcd_index
        self.refresh = refresh
        self.encoded: bytes | None = None  # for whoever shows it to many

    @property
    def index(self) -> int:
        """Of the change."""
        return self.node.modified

    @property
    def is_created(self) -> bool:
        """Whether there is a node that was not there before."""
        return self.action is Action.CREATE or (self.action is Action.SET and self.previous is None)


class EventSink(Protocol):
    """Who hears of changes; see :class:`twistedkv.v2watch.V2Hub`."""

    def notify(self, event: Event) -> None:
        """Something was changed."""

    def add(self, event: Event) -> None:
        """Something was changed of which no watcher is to hear."""

    def removed(self, event: Event, path: str) -> None:
        """``event``, of which :meth:`notify` is told next, takes the node at ``path`` away."""


class Counters:
    """How many requests of each kind this member has carried out since it started."""

    __slots__ = ("counts", "recursive_gets_failed", "recursive_gets_succeeded")

    NAMES: Final = (
        *("getsSuccess", "getsFail", "setsSuccess", "setsFail", "deleteSuccess", "deleteFail"),
        *("updateSuccess", "updateFail", "createSuccess", "createFail", "compareAndSwapSuccess", "compareAndSwapFail"),
        *("compareAndDeleteSuccess", "compareAndDeleteFail", "expireCount"),
    )

    def __init__(self) -> None:
        self.counts = dict.fromkeys(self.NAMES, 0)  # in etcd's order
        self.recursive_gets_succeeded = 0  # of getsSuccess
        self.recursive_gets_failed = 0  # of getsFail

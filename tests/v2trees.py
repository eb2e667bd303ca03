"""Trees of the v2 store for tests: of a cluster, and with whatever users may put into them."""

from __future__ import annotations

from random import Random

from twistedkv.clusternodes import found
from twistedkv.members import Membership
from twistedkv.storage.directory import Directory, Node
from twistedkv.v2errors import V2Error
from twistedkv.v2events import PERMANENT, Event, NodeView
from twistedkv.v2text import encode
from twistedkv.v2watch import History, V2Hub

START_NS = 1_700_000_000_000_000_000
# Few names, so that they meet again; of other alphabets, with what JSON escapes, hidden, and bytes that are no UTF-8.
NAMES = ("a", "b", "c", "dir", "_h", 'q"<&>\\', "ä\u2028", "\U0001f600", "\udcff\udc80", "\x01\n", "n" * 700)
VALUES = ("", "v", "ä<>&\"'\\/", "\u2028\x7f\x00\t\x08", "\udcfe", "value " * 300, "\U0001f600")
ENDS = (PERMANENT, PERMANENT, START_NS, START_NS + 1, START_NS + 1_500_000_000, START_NS + 10**18, 5, -5)


def new_store() -> tuple[Directory, History]:
    """An empty store."""
    hub = V2Hub()
    return Directory(hub), hub.history


def text_of(membership: Membership, version: str) -> bytes:
    """The text of a store in which there is nothing but a cluster."""
    directory, history = new_store()
    found(directory, membership, version)
    return encode(directory, history)


def change_tree(directory: Directory, dice: Random) -> None:
    """One request of any kind, which may be refused."""
    path = "/1/" + "/".join(dice.choice(NAMES) for _ in range(dice.randint(1, 4)))
    value, end = dice.choice(VALUES), dice.choice(ENDS)
    refresh = dice.random() < 0.2
    try:
        match dice.randrange(9):
            case 0 | 1 | 2:
                directory.set(path, False, value, end, refresh=refresh)
            case 3:
                directory.set(path, True, "", end)
            case 4:
                directory.create(path, dice.random() < 0.3, value, end, unique=dice.random() < 0.5)
            case 5:
                directory.update(path, value, end, refresh=refresh)
            case 6:
                directory.delete(path, dice.random() < 0.5, dice.random() < 0.5)
            case 7:
                directory.compare_and_swap(path, "", directory.index, value, end, refresh=refresh)
            case _ if dice.random() < 0.3:
                directory.expire(START_NS + dice.choice((0, 10**10)))
            case _:
                directory.compare_and_delete(path, value, 0)
    except V2Error:
        return


def content(directory: Directory) -> list[tuple[str, str | None, int, int, int]]:
    """All that counts of a tree: paths, values, indexes and ends."""
    return [(node.path, _value(node), node.created, node.modified, node.expires_ns) for node in directory.nodes()]


def told(history: History) -> list[tuple[str, NodeView, NodeView | None, int, bool]]:
    """All that counts of a history."""
    return [_told(event) for event in history.events]


def _value(node: Node) -> str | None:
    return node.value if node.children is None else None


def _told(event: Event) -> tuple[str, NodeView, NodeView | None, int, bool]:
    return event.action, event.node, event.previous, event.etcd_index, event.refresh

"""A tree of the v2 API under examination: what it tells, and that a refused request changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedkv.storage.directory import Directory
from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2events import Event, NodeView

NOON_NS = 1_600_000_000 * 10**9
SECOND_NS = 10**9


class Sink:
    """Remembers what it is told, one line each."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def notify(self, event: Event) -> None:
        self.told.append(f"notify {event.action} {event.node.key} {event.index}")

    def add(self, event: Event) -> None:
        self.told.append(f"add {event.action} {event.node.key} {event.index}")

    def removed(self, event: Event, path: str) -> None:
        self.told.append(f"removed {path} {event.index}")


def copied(tree: Directory) -> Directory:
    """Another tree, loaded with the nodes of this one."""
    copy = Directory(Sink())
    for node in tree.nodes():
        value = None if node.children is not None else node.value
        copy.load(node.path, value, node.created, node.modified, node.expires_ns)
    copy.index = tree.index
    return copy


class DirectoryCase(SynchronousTestCase):
    """A tree and what it tells."""

    def setUp(self) -> None:
        self.sink = Sink()
        self.tree = Directory(self.sink)

    def dump(self, tree: Directory | None = None) -> list[tuple[object, ...]]:
        tree = tree or self.tree
        return [
            (node.path, None if node.children is not None else node.value, node.created, node.modified, node.expires_ns)
            for node in tree.nodes()
        ]

    def paths(self) -> list[str]:
        return [node.path for node in self.tree.nodes()]

    def assert_refused(
        self, code: V2Code, cause: str, request: Callable[..., object], *arguments: Any, **options: Any
    ) -> None:
        """The request fails with that at the index of the store, and changes and tells nothing."""
        before = (self.tree.index, self.dump(), set(self.tree.changed), self.tree.first_end_ns, list(self.sink.told))
        error = self.assertRaises(V2Error, request, *arguments, **options)
        self.assertEqual((error.code, error.cause, error.index), (code, cause, self.tree.index))
        after = (self.tree.index, self.dump(), self.tree.changed, self.tree.first_end_ns, self.sink.told)
        self.assertEqual(after, before)

    def value(self, path: str) -> str | None:
        return self.tree.get(path).node.value

    def keys(self, path: str, recursive: bool = False) -> list[str]:
        """What a sorted listing shows, those below a directory right after it."""

        def flat(nodes: tuple[NodeView, ...]) -> list[str]:
            return [key for node in nodes for key in (node.key, *flat(node.nodes))]

        return flat(self.tree.get(path, recursive, True).node.nodes)

"""The store of the v2 API as its rules say it, as simple and as slow as can be: what ours is compared with.

A tree of dicts that is walked from the root for each request, a list of all that ever happened, and a list of watchers
that are all asked about each change. Nodes are shown as plain tuples in the order of
:class:`~twistedkv.v2events.NodeView`.

Source: etcd ``server/etcdserver/api/v2store/{store,node,watcher_hub,watcher,event_history}.go``.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

YEAR_2000_NS = 946_684_800 * 10**9

Shown = tuple[Any, ...]  # key, value, is_dir, expires_ns, nodes, modified, created


class Refused(Exception):
    """What the rules forbid."""

    def __init__(self, code: int, cause: str) -> None:
        super().__init__(code, cause)
        self.code = code
        self.cause = cause


@dataclass(frozen=True)
class Happened:
    """A change."""

    action: str
    node: Shown
    previous: Shown | None
    refresh: bool

    @property
    def index(self) -> int:
        return int(self.node[5])

    @property
    def names(self) -> list[str]:
        return names_of(self.node[0])


@dataclass
class ModelNode:
    value: str
    children: dict[str, ModelNode] | None
    created: int
    modified: int
    ends: int = 0


@dataclass(eq=False)
class ModelWatcher:
    path: str
    recursive: bool
    stream: bool
    since: int
    told: list[tuple[str, int]] = field(default_factory=list)  # action and index of each event
    waits: bool = True
    lost: bool = False

    def tell(self, event: Happened) -> None:
        self.told.append((event.action, event.index))
        self.waits = self.stream


def names_of(path: str) -> list[str]:
    return [name for name in posixpath.normpath("/" + path.lstrip("/")).split("/") if name]


def path_of(names: list[str]) -> str:
    return "/" + "/".join(names)


class Model:
    """The whole store: tree, history and watchers.

    Args:
        capacity: of the history.
    """

    def __init__(self, capacity: int = 1000) -> None:
        self.capacity = capacity
        self.index = 0
        self.root = ModelNode("", {"0": ModelNode("", {}, 0, 0), "1": ModelNode("", {}, 0, 0)}, 0, 0)
        self.counts: Counter[str] = Counter()
        self.changed: set[str] = set()
        self.events: list[Happened] = []
        self.watchers: list[ModelWatcher] = []
        self.asleep = False  # whether watchers are not told

    # --- the tree ----------------------------------------------------------------------------------

    def find(self, names: list[str]) -> ModelNode:
        node = self.root
        for position, name in enumerate(names):
            if node.children is None:
                raise Refused(104, path_of(names[:position]))
            if name not in node.children:
                raise Refused(100, path_of(names[: position + 1]))
            node = node.children[name]
        return node

    def all_nodes(self) -> list[tuple[str, ModelNode]]:
        def below(names: list[str], node: ModelNode) -> list[tuple[str, ModelNode]]:
            found = [(path_of(names), node)]
            for name, child in sorted((node.children or {}).items()):
                found += below([*names, name], child)
            return found

        return below([], self.root)

    def shown(self, names: list[str], node: ModelNode, depth: int = 0) -> Shown:
        nodes: list[Shown] = []
        if depth and node.children is not None:
            visible = [(name, child) for name, child in node.children.items() if name[0] != "_"]
            visible.sort(key=lambda each: each[0].encode("utf-8", "surrogateescape"))
            nodes = [self.shown([*names, name], child, depth - 1) for name, child in visible]
        value = None if node.children is not None else node.value
        is_dir = node.children is not None
        return (path_of(names), value, is_dir, node.ends, tuple(nodes), node.modified, node.created)

    # --- requests: what happened, or Refused ---------------------------------------------------------

    def request(self, kind: str, *arguments: Any, **options: Any) -> Happened:
        """Carry out the request that :class:`~twistedkv.storage.directory.Directory` has under this name."""
        counted = {
            "get": "gets",
            "set": "sets",
            "compare_and_swap": "compareAndSwap",
            "compare_and_delete": "compareAndDelete",
        }.get(kind, kind)
        try:
            happened: Happened = getattr(self, "_" + kind)(*arguments, **options)
        except Refused:
            self.counts[counted + "Fail"] += 1
            raise
        self.counts[counted + "Success"] += 1
        return happened

    def _get(self, path: str, recursive: bool = False, sort: bool = False) -> Happened:
        names = names_of(path)
        node = self.find(names)
        return Happened("get", self.shown(names, node, 99 if recursive else 1), None, False)

    def _set(self, path: str, is_dir: bool, value: str, ends: int = 0, *, refresh: bool = False) -> Happened:
        names = names_of(path)
        try:
            node = self.find(names)
        except Refused as refused:
            if refused.code != 100 or refresh:
                raise
            previous = None
        else:
            previous = self.shown(names, node)
            if refresh:
                value = node.value
        self._writable(names)
        if previous is not None and previous[2]:
            raise Refused(102, path_of(names))
        return self._happened(Happened("set", self._put(names, is_dir, value, ends), previous, refresh))

    def _create(self, path: str, is_dir: bool, value: str, ends: int = 0, *, unique: bool = False) -> Happened:
        names = names_of(path)
        if unique:
            names.append(str(self.index + 1).rjust(20, "0"))
        self._writable(names)
        for above in range(1, len(names)):
            try:
                found = self.find(names[:above])
            except Refused:
                break
            if found.children is None:
                raise Refused(104, path_of(names[:above]))
        else:
            if names[-1] in (self.find(names[:-1]).children or {}):
                raise Refused(105, path_of(names))
        return self._happened(Happened("create", self._put(names, is_dir, value, ends), None, False))

    def _update(self, path: str, value: str, ends: int = 0, *, refresh: bool = False) -> Happened:
        names = names_of(path)
        self._writable(names)
        node = self.find(names)
        if node.children is not None and value:
            raise Refused(102, path_of(names))
        return self._written("update", names, node, value, ends, refresh)

    def _compare_and_swap(
        self, path: str, previous_value: str, previous_index: int, value: str, ends: int = 0, *, refresh: bool = False
    ) -> Happened:
        names = names_of(path)
        self._writable(names)
        node = self._compared(names, previous_value, previous_index)
        return self._written("compareAndSwap", names, node, value, ends, refresh)

    def _delete(self, path: str, is_dir: bool = False, recursive: bool = False) -> Happened:
        names = names_of(path)
        self._writable(names)
        node = self.find(names)
        if node.children is not None and not (is_dir or recursive):
            raise Refused(102, path_of(names))
        if node.children and not recursive:
            raise Refused(108, path_of(names))
        return self._gone("delete", names, node)

    def _compare_and_delete(self, path: str, previous_value: str, previous_index: int) -> Happened:
        names = names_of(path)
        return self._gone("compareAndDelete", names, self._compared(names, previous_value, previous_index))

    def expire(self, until: int) -> int:
        """Remove what ends by then, the earliest first."""
        before = self.index
        while due := [(node.ends, path) for path, node in self.all_nodes() if node.ends and node.ends <= until]:
            names = names_of(min(due)[1])
            self._gone("expire", names, self.find(names))
        self.counts["expireCount"] += self.index - before
        return self.index - before

    def _writable(self, names: list[str]) -> None:
        if names in ([], ["0"], ["1"]):
            raise Refused(107, "/")

    def _compared(self, names: list[str], value: str, index: int) -> ModelNode:
        node = self.find(names)
        if node.children is not None:
            raise Refused(102, path_of(names))
        wrong = [(value, node.value)] if value not in ("", node.value) else []
        wrong += [(str(index), str(node.modified))] if index not in (0, node.modified) else []
        if wrong:
            raise Refused(101, " ".join(f"[{given} != {found}]" for given, found in wrong))
        return node

    def _put(self, names: list[str], is_dir: bool, value: str, ends: int) -> Shown:
        self.index += 1
        node = self.root
        for position, name in enumerate(names[:-1], 1):
            assert node.children is not None
            if name not in node.children:
                node.children[name] = ModelNode("", {}, self.index, self.index)
                self.changed.add(path_of(names[:position]))
            node = node.children[name]
        assert node.children is not None
        made = ModelNode("" if is_dir else value, {} if is_dir else None, self.index, self.index)
        made.ends = ends if ends >= YEAR_2000_NS else 0
        node.children[names[-1]] = made
        self.changed.add(path_of(names))
        return self.shown(names, made)

    def _written(
        self, action: str, names: list[str], node: ModelNode, value: str, ends: int, refresh: bool
    ) -> Happened:
        previous = self.shown(names, node)
        self.index += 1
        node.ends = ends
        if node.children is None:
            node.value = node.value if refresh else value
            node.modified = self.index
        self.changed.add(path_of(names))
        shown = (*self.shown(names, node)[:5], self.index, node.created)
        return self._happened(Happened(action, shown, previous, refresh))

    def _gone(self, action: str, names: list[str], node: ModelNode) -> Happened:
        self.index += 1
        shown = (path_of(names), None, node.children is not None, 0, (), self.index, node.created)
        event = Happened(action, shown, self.shown(names, node), False)
        removed = [each for each, _ in self.all_nodes() if names_of(each)[: len(names)] == names]
        parent = self.find(names[:-1])
        assert parent.children is not None
        del parent.children[names[-1]]
        self.changed.update(removed)
        if not self.asleep:
            for watcher in self.watchers:
                if watcher.waits and watcher.path in removed and watcher.since <= self.index:
                    watcher.tell(event)
        return self._happened(event)

    # --- those who watch -----------------------------------------------------------------------------

    def _happened(self, event: Happened) -> Happened:
        self.events.append(event)
        if event.refresh or self.asleep:
            return event
        for watcher in self.watchers:
            names = names_of(watcher.path)
            below = event.names[len(names) :]
            seen = event.names[: len(names)] == names and not any(name[0] == "_" for name in below)
            if seen and watcher.waits and (watcher.recursive or not below) and watcher.since <= event.index:
                watcher.tell(event)
        return event

    def scan(self, path: str, recursive: bool, since: int) -> Happened | None:
        """The first event of the history that is wanted; Refused if the history begins later."""
        window = self.events[-self.capacity :]
        if window and since < window[0].index:
            raise Refused(401, f"the requested history has been cleared [{window[0].index}/{since}]")
        names = names_of(path)
        for event in window:
            wanted = event.names == names or (recursive and event.names[: len(names)] == names)
            if event.action in ("delete", "expire") and event.node[2]:
                wanted = wanted or path.startswith(event.node[0])
            if wanted and event.index >= since and not event.refresh:
                return event
        return None

    def watch(self, path: str, recursive: bool, stream: bool, since: int) -> ModelWatcher:
        """A new watcher, told already what it wants of the past."""
        watcher = ModelWatcher(path, recursive, stream, since or self.index + 1)
        self._catch_up(watcher, watcher.since)
        self.watchers.append(watcher)
        return watcher

    def wake(self, untold: int) -> None:
        """Let watchers hear again, of all from index ``untold`` on."""
        self.asleep = False
        for watcher in self.watchers:
            if watcher.waits:
                try:
                    self._catch_up(watcher, max(watcher.since, untold))
                except Refused:
                    watcher.waits, watcher.lost = False, True

    def _catch_up(self, watcher: ModelWatcher, since: int) -> None:
        while watcher.waits and (event := self.scan(watcher.path, watcher.recursive, since)) is not None:
            watcher.tell(event)
            since = event.index + 1

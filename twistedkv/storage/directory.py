"""The store of the v2 API: a tree of directories and files with times to live, changed by one request after the other.

Every change has an index, one higher than the one before. The tree depends on the requests alone: a node's end is a
moment that its request names, and it goes when a request says that this moment is over (:meth:`Directory.expire`), so
that equal logs give equal trees. How long a node still has to live is not known here; who shows it looks at a clock.

Paths are absolute and without a trailing slash. The cluster's own nodes are below ``/0``, those of clients below
``/1``. Keys and values are text in which bytes that are no UTF-8 stand as surrogates (PEP 383): etcd's are bytes.

Everything here is iterative: a path may have thousands of segments.

Sources: etcd ``server/etcdserver/api/v2store/{store,node}.go``. Different from 3.5: a directory's time to live can be
changed, as up to 3.4; and each request that is refused counts as a failure, of which etcd counts some as successes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from sortedcontainers import SortedList

from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2events import PERMANENT, Action, Counters, Event, EventSink, NodeView

CLUSTER: Final = "/0"  # whose nodes are the members
KEYS: Final = "/1"  # whose nodes are the keys of clients
_READ_ONLY: Final = frozenset(("/", CLUSTER, KEYS))
_new_view: Final = partial(tuple.__new__, NodeView)  # in half the time of its class
_EARLIEST_NS: Final = 946_684_800_000_000_000  # 2000-01-01: an end before that is none, in a node that is made


class Node:
    """One file or directory. ``value`` counts for files, ``children`` is None for them."""

    __slots__ = ("children", "created", "expires_ns", "modified", "path", "value")

    def __init__(
        self, path: str, value: str, children: dict[str, Node] | None, created: int, modified: int, expires_ns: int
    ) -> None:
        self.path = path
        self.value = value
        self.children = children  # by the last segment of their paths
        self.created = created
        self.modified = modified
        self.expires_ns = expires_ns  # since 1970; PERMANENT for never

    @property
    def is_hidden(self) -> bool:
        """Whether listings leave it out."""
        return self.path[self.path.rfind("/") + 1 :].startswith("_")


class Directory:
    """The tree.

    Args:
        sink: hears of every change, in the order in which they happen.
    """

    def __init__(self, sink: EventSink) -> None:
        self.sink = sink
        self.index = 0  # of the last change
        self.counters = Counters()
        self.changed: set[str] = set()  # paths whose nodes were made, changed or removed, for whoever keeps them
        self._nodes: dict[str, Node] = {}  # all of them by path
        self._ends: SortedList[tuple[int, str]] = SortedList()  # of the nodes that have one
        root = self._nodes["/"] = Node("/", "", {}, 0, 0, PERMANENT)
        for path in (CLUSTER, KEYS):
            self._attach(Node(path, "", {}, 0, 0, PERMANENT), root)

    @property
    def root(self) -> Node:
        """The node ``/``."""
        return self._nodes["/"]

    @property
    def first_end_ns(self) -> int | None:
        """When the first node is to expire, since 1970; None if none is."""
        return self._ends[0][0] if self._ends else None

    def node(self, path: str) -> Node | None:
        """The node at ``path``, if there is one. Not to be changed by the caller."""
        return self._nodes.get(path)

    def nodes(self) -> Iterator[Node]:
        """All nodes, each before those below it. The tree must not change meanwhile."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            yield node
            if node.children:
                stack += (node.children[name] for name in sorted(node.children, reverse=True))

    def load(self, path: str, value: str | None, created: int, modified: int, expires_ns: int) -> None:
        """Put a node in that was kept; its directory first. ``/`` and the two below it are there already.

        Args:
            value: None for a directory.

        Raises:
            ValueError: there is one already, or no directory for it, or the path is none.
        """
        node = self._nodes.get(path)
        if node is not None and path in _READ_ONLY and node.children is not None and value is None:
            node.created, node.modified = created, modified
            return
        parent = self._nodes.get(path[: path.rfind("/")] or "/")
        if node is not None or path != _clean(path) or parent is None or parent.children is None:
            raise ValueError(f"there can be no node {path[:200]!r}")
        children: dict[str, Node] | None = {} if value is None else None
        self._attach(Node(path, value or "", children, created, modified, expires_ns), parent)

    def restore(self, other: Directory) -> None:
        """Have the content of ``other``, which is not used any more; the sink, and what was counted, stay."""
        self.index = other.index
        self._nodes = other._nodes
        self._ends = other._ends
        self.changed = other.changed

    # --- reads -------------------------------------------------------------------------------------

    def get(self, path: str, recursive: bool = False, sort: bool = False) -> Event:
        """The node at ``path``; a directory with those in it, and with all below them if ``recursive``.

        Raises:
            V2Error: there is none.
        """
        counters = self.counters
        try:
            node = self._find(_clean(path))
        except V2Error:
            counters.counts["getsFail"] += 1
            counters.recursive_gets_failed += recursive
            raise
        counters.counts["getsSuccess"] += 1
        counters.recursive_gets_succeeded += recursive
        view = _view(node) if node.children is None else _listing(node, recursive, sort)
        return Event(Action.GET, view, None, self.index)

    # --- changes -----------------------------------------------------------------------------------

    def set(self, path: str, is_dir: bool, value: str, expires_ns: int = PERMANENT, *, refresh: bool = False) -> Event:
        """Make a node, or replace a file. The directories above it are made, too.

        Raises:
            V2Error: a directory is there, or a file is where a directory should be, or it is the root.
        """
        node = self._nodes.get(path)
        if not (node is None or node.children is not None or is_dir or expires_ns or node.expires_ns or refresh):
            return self._replace(node, value)
        with _Counting(self.counters, "sets"):
            path = _clean(path)
            if refresh:
                value = self._find(path).value
            event = self._make(Action.SET, path, is_dir, value, expires_ns, replace=True, refresh=refresh)
        self._tell(event)
        return event

    def create(
        self, path: str, is_dir: bool, value: str, expires_ns: int = PERMANENT, *, unique: bool = False
    ) -> Event:
        """Make a node that is not there yet, and the directories above it.

        Args:
            unique: below ``path``, with the index of this change as its name.

        Raises:
            V2Error: it is there, or a file is where a directory should be, or it is the root.
        """
        with _Counting(self.counters, "create"):
            if unique:
                path = f"{path}/{self.index + 1:020d}"
            event = self._make(Action.CREATE, _clean(path), is_dir, value, expires_ns)
        self._tell(event)
        return event

    def update(self, path: str, value: str, expires_ns: int = PERMANENT, *, refresh: bool = False) -> Event:
        """Change a file's value and time to live, or a directory's time to live.

        Raises:
            V2Error: it is not there, or a directory was to get a value, or it is the root.
        """
        with _Counting(self.counters, "update"):
            path = self._writable(path)
            node = self._find(path)
            if node.children is not None and value:
                raise V2Error(V2Code.NOT_FILE, path, self.index)
        return self._write(Action.UPDATE, node, value, expires_ns, refresh)

    def compare_and_swap(
        self,
        path: str,
        previous_value: str,
        previous_index: int,
        value: str,
        expires_ns: int = PERMANENT,
        *,
        refresh: bool = False,
    ) -> Event:
        """Change a file that has this value (if one is given) and this modified index (if it is not 0).

        Raises:
            V2Error: it is not there, is another one, is a directory, or is the root.
        """
        with _Counting(self.counters, "compareAndSwap"):
            path = self._writable(path)
            node = self._compared(path, previous_value, previous_index)
        return self._write(Action.COMPARE_AND_SWAP, node, value, expires_ns, refresh)

    def delete(self, path: str, is_dir: bool = False, recursive: bool = False) -> Event:
        """Remove a file, an empty directory with ``is_dir``, or all of a directory with ``recursive``.

        Raises:
            V2Error: it is not there, or is not to be removed this way, or is the root.
        """
        with _Counting(self.counters, "delete"):
            path = self._writable(path)
            node = self._find(path)
            if node.children is not None:
                if not is_dir and not recursive:
                    raise V2Error(V2Code.NOT_FILE, path, self.index)
                if node.children and not recursive:
                    raise V2Error(V2Code.DIR_NOT_EMPTY, path, self.index)
        return self._remove(Action.DELETE, node)

    def compare_and_delete(self, path: str, previous_value: str, previous_index: int) -> Event:
        """Remove a file that has this value (if one is given) and this modified index (if it is not 0).

        Raises:
            V2Error: it is not there, is another one, or is a directory.
        """
        with _Counting(self.counters, "compareAndDelete"):
            node = self._compared(_clean(path), previous_value, previous_index)
        return self._remove(Action.COMPARE_AND_DELETE, node)

    def expire(self, until_ns: int) -> int:
        """Remove the nodes whose end has come by ``until_ns``, in the order of their ends; how many there were."""
        expired = 0
        while self._ends and self._ends[0][0] <= until_ns:
            self._remove(Action.EXPIRE, self._nodes[self._ends[0][1]])
            expired += 1
        self.counters.counts["expireCount"] += expired
        return expired

    # --- how it is done ----------------------------------------------------------------------------

    def _writable(self, path: str) -> str:
        path = _clean(path)
        if path in _READ_ONLY:
            raise V2Error(V2Code.ROOT_READ_ONLY, "/", self.index)
        return path

    def _find(self, path: str) -> Node:
        """The node at ``path``, or what keeps it from being there: the first segment that is missing, or no directory.

        Raises:
            V2Error: there is none.
        """
        node = self._nodes.get(path)
        if node is not None:
            return node
        above, start = self.root, 1
        while above.children is not None:
            end = path.find("/", start)
            end = len(path) if end < 0 else end
            below = above.children.get(path[start:end])
            if below is None:
                raise V2Error(V2Code.KEY_NOT_FOUND, path[:end], self.index)
            above, start = below, end + 1
        raise V2Error(V2Code.NOT_DIR, above.path, self.index)

    def _compared(self, path: str, value: str, index: int) -> Node:
        node = self._find(path)
        if node.children is not None:
            raise V2Error(V2Code.NOT_FILE, path, self.index)
        wrong_value = bool(value) and node.value != value
        wrong_index = bool(index) and node.modified != index
        if wrong_value or wrong_index:
            causes = [f"[{value} != {node.value}]"] if wrong_value else []
            if wrong_index:
                causes.append(f"[{index} != {node.modified}]")
            raise V2Error(V2Code.TEST_FAILED, " ".join(causes), self.index)
        return node

    def _make(
        self,
        action: Action,
        path: str,
        is_dir: bool,
        value: str,
        expires_ns: int,
        *,
        replace: bool = False,
        refresh: bool = False,
    ) -> Event:
        if path in _READ_ONLY:
            raise V2Error(V2Code.ROOT_READ_ONLY, "/", self.index)
        if expires_ns < _EARLIEST_NS:
            expires_ns = PERMANENT
        node = self._nodes.get(path)
        previous = None
        if node is None:
            parent = self._directory_for(path)
            node = Node(path, "", None, 0, 0, PERMANENT)
            self._attach(node, parent)
        elif not replace:
            raise V2Error(V2Code.NODE_EXISTS, path, self.index)
        elif node.children is not None:
            raise V2Error(V2Code.NOT_FILE, path, self.index)
        else:
            previous = _view(node)
        self.index += 1
        node.value, node.children = ("", {}) if is_dir else (value, None)
        node.created = node.modified = self.index
        self._end_at(node, expires_ns)
        self.changed.add(path)
        return Event(action, _view(node), previous, self.index, refresh)

    def _replace(self, node: Node, value: str) -> Event:
        """Set a file that is there and lives for ever, as most that are set: all that :meth:`_make` may leave out."""
        previous = _view(node)
        index = self.index = self.index + 1
        node.value = value
        node.created = node.modified = index
        self.counters.counts["setsSuccess"] += 1
        self.changed.add(node.path)
        event = Event(Action.SET, _view(node), previous, index)
        self.sink.notify(event)
        return event

    def _directory_for(self, path: str) -> Node:
        """The directory that ``path`` is to be in, made with all above it if it is not there.

        Raises:
            V2Error: a file is in its place; nothing was made.
        """
        missing: list[str] = []
        end = path.rfind("/")
        while end > 0 and path[:end] not in self._nodes:
            missing.append(path[:end])
            end = path.rfind("/", 0, end)
        parent = self._nodes[path[:end] or "/"]
        if parent.children is None:
            raise V2Error(V2Code.NOT_DIR, parent.path, self.index)
        for above in reversed(missing):
            made = Node(above, "", {}, self.index + 1, self.index + 1, PERMANENT)
            self._attach(made, parent)
            self.changed.add(above)
            parent = made
        return parent

    def _write(self, action: Action, node: Node, value: str, expires_ns: int, refresh: bool) -> Event:
        previous = _view(node)
        self.index += 1
        if node.children is None:
            if not refresh:
                node.value = value
            node.modified = self.index
        self._end_at(node, expires_ns)
        self.changed.add(node.path)
        view = _view(node)
        if node.children is not None:
            view = view._replace(modified=self.index)  # its own stays as it was
        event = Event(action, view, previous, self.index, refresh)
        self._tell(event)
        return event

    def _remove(self, action: Action, node: Node) -> Event:
        self.index += 1
        is_dir = node.children is not None
        gone = NodeView(node.path, None, is_dir, PERMANENT, (), self.index, node.created)
        event = Event(action, gone, _view(node), self.index)
        slash = node.path.rfind("/")
        around = self._nodes[node.path[:slash] or "/"].children
        assert around is not None
        del around[node.path[slash + 1 :]]
        for each in reversed(list(_below(node))):  # those below a directory before it
            del self._nodes[each.path]
            self._end_at(each, PERMANENT)
            self.changed.add(each.path)
            self.sink.removed(event, each.path)
        self.sink.notify(event)
        return event

    def _attach(self, node: Node, parent: Node) -> None:
        assert parent.children is not None
        parent.children[node.path[node.path.rfind("/") + 1 :]] = node
        self._nodes[node.path] = node
        if node.expires_ns:
            self._ends.add((node.expires_ns, node.path))

    def _end_at(self, node: Node, expires_ns: int) -> None:
        if node.expires_ns != expires_ns:
            if node.expires_ns:
                self._ends.remove((node.expires_ns, node.path))
            node.expires_ns = expires_ns
            if expires_ns:
                self._ends.add((expires_ns, node.path))

    def _tell(self, event: Event) -> None:
        if event.refresh:
            self.sink.add(event)
        else:
            self.sink.notify(event)


class _Counting:
    """Counts what is done inside of it, as a success or, if it raises, as a failure."""

    __slots__ = ("_counts", "_kind")

    def __init__(self, counters: Counters, kind: str) -> None:
        self._counts = counters.counts
        self._kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._counts[self._kind + ("Success" if error is None else "Fail")] += 1


def _clean(path: str) -> str:
    """``path`` as an absolute one without empty, ``.`` and ``..`` segments, as Go's ``path.Join("/", path)`` has it."""
    if path.startswith("/") and "//" not in path and "/." not in path and (path == "/" or not path.endswith("/")):
        return path
    kept: list[str] = []
    for name in path.split("/"):
        if name == "..":
            del kept[-1:]  # what is above the root is the root
        elif name not in ("", "."):
            kept.append(name)
    return "/" + "/".join(kept)


def _below(node: Node) -> Iterator[Node]:
    """``node`` and all nodes below it, each before those below it."""
    stack = [node]
    while stack:
        each = stack.pop()
        yield each
        if each.children:
            stack += each.children.values()


def _view(node: Node, nodes: tuple[NodeView, ...] = ()) -> NodeView:
    is_dir = node.children is not None
    value = None if is_dir else node.value
    return _new_view((node.path, value, is_dir, node.expires_ns, nodes, node.modified, node.created))


def _listing(top: Node, recursive: bool, sort: bool) -> NodeView:
    """A directory with what is in it, hidden nodes left out."""
    listed = [top]
    if recursive:
        for directory in listed:  # which grows
            listed += (each for each in _shown(directory) if each.children is not None)
    views: dict[str, tuple[NodeView, ...]] = {}  # of what is in the directories that are listed, by their paths
    for directory in reversed(listed):  # those below a directory before it
        found = [_view(each, views.pop(each.path, ())) for each in _shown(directory)]
        if sort:
            found.sort(key=_by_key)
        views[directory.path] = tuple(found)
    return _view(top, views[top.path])


def _shown(directory: Node) -> Iterator[Node]:
    """What is in a directory and not hidden."""
    assert directory.children is not None
    return (node for node in directory.children.values() if not node.is_hidden)


def _by_key(view: NodeView) -> bytes:
    return view.key.encode("utf-8", "surrogateescape")

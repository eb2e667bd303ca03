"""The v2 store as text, in etcd's form, which every snapshot between members carries.

It is JSON: the tree of nodes with each node's path, indexes, end, value and children; the last thousand events, in the
slots of a ring; the index; and how often what was done. Whatever etcd of any version 3 has written is understood; what
is written here is what etcd 3.5 would write for the same tree and events. etcd decodes no more than 5,000 levels of
directories; here there is no bound.

The time that is left to nodes in events is not known to the store, but is in the text: it is that of the moment at
which the text is made. What was counted is not taken over from a text.

Bytes that are no UTF-8 survive between members of ours (see :mod:`twistedkv.gojson`). etcd writes U+FFFD instead, and
then forgets one of two children whose names differ in such bytes only.

Sources: etcd ``server/etcdserver/api/v2store/{store,node,node_extern,event,event_queue,event_history}.go``; Go 1.16
``time/format.go``, RFC3339Nano; seen in snapshots of 3.5.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from twistedkv.clusternodes import ClusterFacts, facts
from twistedkv.gojson import loads, quoted, timestamp
from twistedkv.storage.directory import Directory
from twistedkv.v2events import PERMANENT, Action, Event, NodeView
from twistedkv.v2watch import CAPACITY, History, V2Hub

_NO_END: Final = "0001-01-01T00:00:00Z"
_FORMAT: Final = 2  # v2store/store.go, defaultVersion
_SECOND_NS: Final = 1_000_000_000
_DAY_S: Final = 86_400
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII)
_MAX_INDEX: Final = (1 << 64) - 1
_SHOWN: Final = 200  # characters of what was found, in an error


class Stored(NamedTuple):
    """What a text holds."""

    facts: ClusterFacts
    directory: Directory  # its sink has the history
    history: History


def encode(directory: Directory, history: History, now_ns: int = 0) -> bytes:
    """The text of a store, the children of each directory by name.

    Args:
        history: of the changes up to now.
        now_ns: since 1970; 0 leaves out how long nodes in events still have to live.
    """
    parts = ['{"Root":']
    parts += _tree(directory)
    events = history.events
    parts.append(',"WatcherHub":{"EventHistory":{"Queue":{"Events":[')
    slots = [_event(event, now_ns) for event in events]
    slots += ["null"] * (CAPACITY - len(slots))
    parts.append(",".join(slots))
    size = len(events)
    counts = ",".join(f'"{name}":{count}' for name, count in directory.counters.counts.items())
    parts.append(
        f'],"Size":{size},"Front":0,"Back":{size % CAPACITY},"Capacity":{CAPACITY}}},'
        f'"StartIndex":{history.first},"LastIndex":{history.last}}}}},'
        f'"CurrentIndex":{directory.index},"Stats":{{{counts},"watchers":0}},"CurrentVersion":{_FORMAT}}}'
    )
    return "".join(parts).encode()


def decode(text: bytes) -> Stored:
    """Read what a member has written.

    Raises:
        ValueError: it is no such text, in one line.
    """
    try:
        store = loads(text.decode())
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from error
    has_surrogates = b"\\ud" in text or b"\\uD" in text
    root = _field(store, "Root")
    if root is None:
        raise ValueError("it has no root")
    index = _index(store, "CurrentIndex")
    history = History(_events(_field(store, "WatcherHub"), index, has_surrogates))
    directory = Directory(V2Hub(history))
    for path, node in _walk(root, has_surrogates):
        is_file = _field(node, "Children") is None
        modified = _index(node, "ModifiedIndex")
        if modified > index:
            raise ValueError(f"the node {path[:_SHOWN]!r} was modified at {modified}, and the store is at {index}")
        value = _value(node, has_surrogates) if is_file else None
        end = node.get("ExpireTime", _NO_END)
        directory.load(path, value, _index(node, "CreatedIndex"), modified, PERMANENT if end == _NO_END else _ns(end))
    directory.index = index
    return Stored(facts(directory), directory, history)


# --- writing -----------------------------------------------------------------------------------------


def _tree(directory: Directory) -> Iterator[str]:
    """The root with everything below it, in pieces."""
    above: list[str] = []  # the directories that are open
    separator = ""  # before the next child
    for node in directory.nodes():
        path = node.path
        if path != "/":
            slash = path.rfind("/")
            parent = path[:slash] or "/"
            while above[-1] != parent:
                above.pop()
                yield "}}"
                separator = ","
            yield f"{separator}{quoted(path[slash + 1 :])}:"
        end = timestamp(node.expires_ns) if node.expires_ns else _NO_END
        indexes = f'"CreatedIndex":{node.created},"ModifiedIndex":{node.modified}'
        head = f'{{"Path":{quoted(path)},{indexes},"ExpireTime":"{end}"'
        if node.children is None:
            yield f'{head},"Value":{quoted(node.value)},"Children":null}}'
            separator = ","
        else:
            yield f'{head},"Value":"","Children":{{'
            above.append(path)
            separator = ""
    yield "}}" * len(above)


def _event(event: Event, now_ns: int) -> str:
    previous = "" if event.previous is None else f',"prevNode":{_view(event.previous, now_ns)}'
    refresh = ',"refresh":true' if event.refresh else ""
    return f'{{"action":"{event.action}","node":{_view(event.node, now_ns)}{previous}{refresh}}}'


def _view(node: NodeView, now_ns: int) -> str:
    """A node in an event; Go leaves out what is zero."""
    fields = [f'"key":{quoted(node.key)}']
    if node.value is not None:
        fields.append(f'"value":{quoted(node.value)}')
    if node.is_dir:
        fields.append('"dir":true')
    if node.expires_ns:
        fields.append(f'"expiration":"{timestamp(node.expires_ns)}"')
        ttl_s = -((now_ns - node.expires_ns) // _SECOND_NS) if now_ns else 0
        if ttl_s:
            fields.append(f'"ttl":{ttl_s}')
    for name, index in (("modifiedIndex", node.modified), ("createdIndex", node.created)):
        if index:
            fields.append(f'"{name}":{index}')
    return f"{{{','.join(fields)}}}"


# --- reading -----------------------------------------------------------------------------------------


def _walk(root: object, has_surrogates: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All nodes with their paths, each before those below it."""
    if _children(root, "/") is None:
        raise ValueError("the root is no directory")
    stack: list[tuple[str, object]] = [("/", root)]
    while stack:
        path, node = stack.pop()
        children = _children(node, path)
        assert isinstance(node, dict)
        if node.get("Path", path) != path and not has_surrogates:
            raise ValueError(f"the node {path[:_SHOWN]!r} has another path")
        yield path, node
        if children:
            below = "/" if path == "/" else path + "/"
            for name, child in children.items():
                if "/" in name:
                    raise ValueError(f"{name[:_SHOWN]!r} in {path[:_SHOWN]!r} is no name")
                stack.append((below + (_text(name) if has_surrogates else name), child))


def _children(node: object, path: str) -> Mapping[str, object] | None:
    """The children of a directory; None of a file."""
    children = _field(node, "Children")
    if children is not None and not isinstance(children, dict):
        raise ValueError(f"the children of {path[:_SHOWN]!r} are none")
    return children


def _events(hub: object, index: int, has_surrogates: bool) -> list[Event]:
    """The last events up to ``index`` without a gap, from a ring that may begin anywhere."""
    found: list[Event] = []
    if hub is None:
        return found
    queue = _field(_field(hub, "EventHistory"), "Queue")
    slots, capacity = _field(queue, "Events"), _index(queue, "Capacity")
    front, size = _index(queue, "Front"), _index(queue, "Size")
    if not isinstance(slots, list) or len(slots) != capacity or size > capacity or (size and front >= capacity):
        raise ValueError("the history is no ring")
    for number in range(size):
        event = _event_in(slots[(front + number) % capacity], has_surrogates)
        if found and event.index != found[-1].index + 1:
            found.clear()
        found.append(event)
    return found if found and found[-1].index == index else []


def _event_in(fields: object, has_surrogates: bool) -> Event:
    try:
        action = Action(str(_field(fields, "action")))
    except ValueError as error:
        raise ValueError(f"an event is none: {error}") from error
    node = _view_in(_field(fields, "node"), has_surrogates)
    assert isinstance(fields, dict)
    before = fields.get("prevNode")
    previous = None if before is None else _view_in(before, has_surrogates)._replace(key=node.key)
    return Event(action, node, previous, node.modified, fields.get("refresh") is True)


def _view_in(fields: object, has_surrogates: bool) -> NodeView:
    key, value, end = _field(fields, "key"), _field(fields, "value"), _field(fields, "expiration")
    if not isinstance(key, str) or not key.startswith("/") or not (value is None or isinstance(value, str)):
        raise ValueError("an event has no node")
    if has_surrogates:
        key, value = _text(key), None if value is None else _text(value)
    is_dir = _field(fields, "dir") is True
    expires_ns = PERMANENT if end is None else _ns(end)
    return NodeView(key, value, is_dir, expires_ns, (), _index(fields, "modifiedIndex"), _index(fields, "createdIndex"))


def _field(value: object, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not where it should be")
    return value.get(name)


def _index(value: object, name: str) -> int:
    """A number that Go has in 64 bits; 0 if it is not there."""
    found = _field(value, name)
    if found is None:
        return 0
    if type(found) is not int or not 0 <= found <= _MAX_INDEX:
        raise ValueError(f"{name} is {str(found)[:_SHOWN]!r}")
    return found


def _value(node: object, has_surrogates: bool) -> str:
    value = _field(node, "Value")
    if not isinstance(value, str):
        raise ValueError("a file has no value")
    return _text(value) if has_surrogates else value


def _text(text: str) -> str:
    """``text`` with surrogates only for bytes that are no UTF-8; Go has U+FFFD for the others."""
    kept = "".join(
        "\ufffd" if "\ud800" <= each <= "\udfff" and not "\udc80" <= each <= "\udcff" else each for each in text
    )
    return kept.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def _ns(text: object) -> int:
    """A moment since 1970."""
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    try:
        if match is None:
            raise ValueError
        seconds, fraction, sign, hours, minutes = match.groups()
        east = timedelta(hours=int(hours), minutes=int(minutes)) if sign else timedelta()
        moment = datetime.fromisoformat(seconds).replace(tzinfo=timezone(-east if sign == "-" else east))
    except ValueError:
        raise ValueError(f"{str(text)[:_SHOWN]!r} is no time") from None
    since = moment - _EPOCH
    ns = (since.days * _DAY_S + since.seconds) * _SECOND_NS + int((fraction or "").ljust(9, "0"))
    if not -(1 << 63) <= ns < 1 << 63:
        raise ValueError(f"{text!r} is no time that can be")
    return ns

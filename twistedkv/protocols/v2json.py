"""Events and errors of the v2 API as Go's ``encoding/json`` writes them.

Absent is what is empty: a node has no ``key`` at the root, no ``value`` in a directory, no ``ttl`` when less than a
second is left. Keys are shown without the ``/1`` that they have in the store. Bytes that are no UTF-8 become
``\\ufffd``, one for each.

Nothing here recurses: a listing may be as deep as paths are long.

Sources: etcd 3.5 ``server/etcdserver/api/v2store/{event,node_extern,node}.go``, ``v2error/error.go``; Go's
``encoding/json/encode.go``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from twistedkv.gojson import is_plain, timestamp
from twistedkv.v2errors import MESSAGES, V2Error
from twistedkv.v2events import Action, Event, NodeView

KEYS_PREFIX: Final = "/1"  # of the paths of clients' keys in the store

_NS: Final = 1_000_000_000  # in a second
_ESCAPES: Final = {
    **{code: f"\\u{code:04x}" for code in (*range(0x20), *map(ord, "<>&\u2028\u2029"))},
    **dict.fromkeys(range(0xD800, 0xE000), "\\ufffd"),
    **{ord(char): text for char, text in {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}.items()},
}
_WITHOUT_VALUE: Final = {action: f'{{"action":"{action}"}}\n'.encode("ascii") for action in Action}


def json_text(text: str) -> str:
    """``text`` as a JSON string."""
    return f'"{text}"' if is_plain(text) else f'"{text.translate(_ESCAPES)}"'


def event_json(event: Event, now_ns: int) -> bytes:
    """An event, with a line end.

    Args:
        now_ns: since 1970; the times to live are counted from it.
    """
    node, previous = event.node, event.previous
    if previous is not None and (shown := _replaced(event.action, node, previous)):
        return shown.encode("ascii")
    key = json_text(node.key[2:])
    shown = _other(node, now_ns) if node.value is None else _file(node, key, now_ns)
    if previous is None:
        return f'{{"action":"{event.action}","node":{shown}}}\n'.encode()
    if event.action is Action.EXPIRE:
        now_ns = previous.expires_ns  # when etcd makes the event; it may be looked at much later
    before = _other(previous, now_ns) if previous.value is None else _file(previous, key, now_ns)
    return f'{{"action":"{event.action}","node":{shown},"prevNode":{before}}}\n'.encode()


def _replaced(action: Action, node: NodeView, previous: NodeView) -> str:
    """An event of a file in place of another, as most are, if nothing needs a second look; empty if something does."""
    value, before = node.value, previous.value
    if value is None or before is None or node.expires_ns or previous.expires_ns:
        return ""
    texts = f"{node.key}{value}{before}"
    if not texts.isascii() or not is_plain(texts):
        return ""
    key = node.key[2:]
    return (
        f'{{"action":"{action}","node":{{"key":"{key}","value":"{value}",'
        f'"modifiedIndex":{node.modified},"createdIndex":{node.created}}},'
        f'"prevNode":{{"key":"{key}","value":"{before}",'
        f'"modifiedIndex":{previous.modified},"createdIndex":{previous.created}}}}}\n'
    )


def without_value(action: Action) -> bytes:
    """An event of which only the action is told, with a line end."""
    return _WITHOUT_VALUE[action]


def error_json(error: V2Error) -> bytes:
    """An error, with a line end."""
    cause = error.cause.removeprefix(KEYS_PREFIX)
    shown = f',"cause":{json_text(cause)}' if cause else ""
    message = json_text(MESSAGES[error.code])
    return f'{{"errorCode":{error.code.value},"message":{message}{shown},"index":{error.index}}}\n'.encode()


def _file(view: NodeView, key: str, now_ns: int) -> str:
    """A file that has a value; ``key`` is its own, as a JSON string."""
    end = _end(view.expires_ns, now_ns) if view.expires_ns else ""
    return (
        f'{{"key":{key},"value":{json_text(view.value or "")}{end},'
        f'"modifiedIndex":{view.modified},"createdIndex":{view.created}}}'
    )


def _other(view: NodeView, now_ns: int) -> str:
    """A directory with what is in it, or a file that is no more."""
    pieces = [_head(view, now_ns)]
    open_: list[tuple[NodeView, Iterator[NodeView]]] = []
    if view.nodes:
        open_.append((view, iter(view.nodes)))
    comma = ""
    while open_:
        inside = next(open_[-1][1], None)
        if inside is None:
            pieces.append("]" + _tail(open_.pop()[0]))
            comma = ","
            continue
        if inside.value is not None:
            pieces.append(comma + _file(inside, json_text(inside.key[2:]), now_ns))
            comma = ","
            continue
        pieces.append(comma + _head(inside, now_ns))
        comma = ","
        if inside.nodes:
            open_.append((inside, iter(inside.nodes)))
            comma = ""
    return "".join(pieces)


def _head(view: NodeView, now_ns: int) -> str:
    """A node without a value as far as the nodes in it; all of it if there are none."""
    fields: list[str] = []
    key = view.key[2:]
    if key:
        fields.append(f'"key":{json_text(key)}')
    if view.is_dir:
        fields.append('"dir":true')
    start = "{" + ",".join(fields) + (_end(view.expires_ns, now_ns) if view.expires_ns else "")
    return f'{start},"nodes":[' if view.nodes else start + _tail(view)


def _tail(view: NodeView) -> str:
    """What comes behind the nodes in a directory."""
    modified = f',"modifiedIndex":{view.modified}' if view.modified else ""
    created = f',"createdIndex":{view.created}' if view.created else ""
    return f"{modified}{created}}}"


def _end(expires_ns: int, now_ns: int) -> str:
    """When a node ends, and in how many seconds, rounded up; left out if that is 0."""
    ttl_s = -((now_ns - expires_ns) // _NS)
    shown = f',"ttl":{ttl_s}' if ttl_s else ""
    return f',"expiration":"{timestamp(expires_ns)}"{shown}'

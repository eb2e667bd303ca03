"""When two answers of the v2 API are the same to a client: the comparison of the differential test.

Bodies are compared byte by byte. What two healthy servers may differ in is masked first: the moments when keys end,
which must be close to one another, and the seconds that are left, which may differ by one; ids, ports and counters of
the pages beside the keys. The order of a listing that was not asked to be sorted is open, as etcd's is a Go map's.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import NamedTuple

from tests.functional.v2client import Reply, Request

COMPARED_HEADERS = (
    *("content-type", "allow", "location", "x-content-type-options", "x-etcd-index"),
    *("access-control-allow-origin", "access-control-allow-methods", "access-control-allow-headers"),
)
"""Equal by value, and as often there."""
SPELLED_HEADERS = ("X-Etcd-Cluster-Id", "X-Etcd-Index", "X-Raft-Index", "X-Raft-Term")
"""There or not, in this spelling; of all but the second the values are a server's own."""
_APART_S = 10.0  # how far the ends of one key may be apart: the time between two requests, on a busy machine
_TTL_APART_S = 1
_BEFORE_BYTES, _AFTER_BYTES = 300, 300  # of a body in a report
_EXPIRATION = re.compile(rb'"expiration":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d{0,8}[1-9])?Z"')  # RFC 3339, as Go's
_TTL = re.compile(rb'"ttl":(-?\d+)')
_OVERDUE = re.compile(rb',"ttl":-\d+')  # in the event of an end that came late
_SORTED = re.compile(rb"^sorted=(?:1|[tT]|true|TRUE|True)$")
_HEX_ID = re.compile(rb'"[0-9a-f]{10,16}"')
_LOOPBACK = re.compile(rb"127\.0\.0\.1:\d+")
_PAGES = (b"/v2/members", b"/v2/machines", b"/v2/stats", b"/v2/auth")
_OWN_VALUES = re.compile(
    rb'"(startTime|uptime|name|\w+Cnt|\w+Rate|\w+Success|\w+Fail|expireCount|watchers)":("[^"]*"|[\d.]+)'
)


class Masked(NamedTuple):
    """A body without what may differ, and what was taken out of it, in order."""

    body: bytes
    expirations_s: tuple[float, ...]
    ttls_s: tuple[int, ...]


def masked(body: bytes) -> Masked:
    """The body of an answer about keys. Times in another style than Go's stay as they are, and are seen."""
    if b'"action":"expire"' in body:
        body = _OVERDUE.sub(b"", body)
    moments: list[float] = []

    def take(found: re.Match[bytes]) -> bytes:
        try:
            moments.append(datetime.fromisoformat(found[1].decode()).replace(tzinfo=UTC).timestamp())
        except ValueError:  # as of a 25th hour
            return found[0]
        return b'"expiration":""'

    ttls = [int(found[1]) for found in _TTL.finditer(body)]
    return Masked(_TTL.sub(b'"ttl":0', _EXPIRATION.sub(take, body)), tuple(moments), tuple(ttls))


def masked_page(body: bytes) -> bytes:
    """The body of a page beside the keys."""
    body = _LOOPBACK.sub(b"127.0.0.1:1", _HEX_ID.sub(b'"id"', body))
    return _OWN_VALUES.sub(rb'"\1":0', body)


def equal(request: Request, expected: Reply, found: Reply) -> bool:
    """Whether two answers to one request are the same to a client."""
    if (expected.status, expected.interim) != (found.status, found.interim):
        return False
    return same_headers(expected, found) and same_body(request, expected.body, found.body)


def same_headers(expected: Reply, found: Reply) -> bool:
    """Whether the headers that a client acts on are the same."""
    if any(expected.all(name) != found.all(name) for name in COMPARED_HEADERS):
        return False
    spelled = [
        [sum(each == name for each, _ in reply.headers) for name in SPELLED_HEADERS] for reply in (expected, found)
    ]
    return spelled[0] == spelled[1]


def same_body(request: Request, expected: bytes, found: bytes) -> bool:
    """Whether two bodies, or two lines of a watch, are the same."""
    if expected == found:
        return True
    if request.target.startswith(_PAGES):
        return masked_page(expected) == masked_page(found)
    left, right = masked(expected), masked(found)
    if left.body == right.body:
        return _close(left, right)
    if not has_open_order(request) or sorted(left.body) != sorted(right.body):  # the same bytes, in any order
        return False
    ordered = [_settled(body) for body in (expected, found)]
    return ordered[0] is not None and ordered[1] is not None and _equal_settled(ordered[0], ordered[1])


def has_open_order(request: Request) -> bool:
    """Whether the order of the nodes in the answer is left to the server."""
    if request.method not in ("GET", "HEAD"):
        return False
    parameters = re.split(rb"[&;]", request.target.partition(b"?")[2])
    first = next((each for each in parameters if each.startswith(b"sorted=")), b"")
    return not _SORTED.match(first)


def report(request: Request, expected: Reply, found: Reply) -> tuple[str, str]:
    """Two different answers as a report shows them: the headers that differ, and bodies from where they do."""
    bodies = [expected.body, found.body]
    if has_open_order(request):
        bodies = [_settled(body) or body for body in bodies]
    first, second = excerpts(*bodies)
    compared = {name.lower() for name in (*COMPARED_HEADERS, *SPELLED_HEADERS)}
    alike = {
        name.lower()
        for name, value in expected.headers
        if (name, value) in found.headers and len(expected.all(name)) == len(found.all(name))
    }
    shown = compared - alike
    return f"{_head(expected, shown)}\n           {first}", f"{_head(found, shown)}\n           {second}"


def excerpts(expected: bytes, found: bytes) -> tuple[str, str]:
    """Both texts from shortly before where they begin to differ, times aside."""
    left, right = masked(expected).body, masked(found).body
    if left == right:  # then it is the times
        left, right = expected, found
    at = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    begin = max(at - _BEFORE_BYTES, 0)
    shown = [repr(text[begin : at + _AFTER_BYTES]) for text in (left, right)]
    return (f"…{shown[0]}", f"…{shown[1]}") if begin else (shown[0], shown[1])


def _head(reply: Reply, names: set[str]) -> str:
    headers = [f"{name}: {value}" for name, value in reply.headers if name.lower() in names]
    return f"{f'{reply.interim} ' if reply.interim else ''}{reply.status} {', '.join(headers)}"


def _close(left: Masked, right: Masked) -> bool:
    pairs = zip(left.expirations_s, right.expirations_s, strict=True)
    seconds = zip(left.ttls_s, right.ttls_s, strict=True)
    return all(abs(a - b) <= _APART_S for a, b in pairs) and all(abs(a - b) <= _TTL_APART_S for a, b in seconds)


def _settled(body: bytes) -> bytes | None:
    """The body with the nodes of each directory in the order of their keys; ``None`` if it is no JSON."""
    try:
        tree = json.loads(body)
    except ValueError:
        return None
    return json.dumps(_by_key(tree), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _by_key(value: object) -> object:
    match value:
        case dict():
            return {name: _by_key(each) for name, each in value.items()}
        case list():
            return sorted(map(_by_key, value), key=_without_times)  # two keys may look alike, if they are no UTF-8
    return value


def _without_times(node: object) -> bytes:
    return masked(json.dumps(node, separators=(",", ":")).encode()).body


def _equal_settled(expected: bytes, found: bytes) -> bool:
    left, right = masked(expected), masked(found)
    return left.body == right.body and _close(left, right)

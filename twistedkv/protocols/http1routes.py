"""Where a plain HTTP/1.1 request leads, by its head, remembered for when the same head comes again.

A client that keeps its connection sends the same bytes again and again. Those lead by one lookup to the method of the
gateway and its metadata, or to a request of the v2 API whose path and query are parsed already.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from twistedkv.errors import RPCError
from twistedkv.protocols.gateway import Gateway, request_head
from twistedkv.protocols.http1wire import MAX_REMEMBERED_BYTES, Refusal, RequestHead, fields_of, parse_head
from twistedkv.protocols.rpc import Head, Kind, Method
from twistedkv.protocols.v2site import MAX_BODY_BYTES, V2Site
from twistedkv.protocols.v2words import V2Asked

MAX_DRAINED_BYTES: Final = 256 << 10  # of a body nobody wants, or the connection ends; Go net/http/server.go

_MEMO_ENTRIES: Final = 512
_ENDPOINTS: Final = ("/health", "/version")
_V2_METHODS: Final = frozenset(("DELETE", "GET", "HEAD", "POST", "PUT"))
_TARGET: Final = re.compile(r"/|\*|https?://", re.IGNORECASE)
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
# A request for a key whose path is clean and has nothing to be decoded: most are.
_PLAIN_KEY: Final = re.compile(
    rb"(GET|PUT|POST|DELETE) (/v2/keys(?:/[0-9A-Za-z_~-][0-9A-Za-z_.~-]*)+)(?:\?([!-~]*))? HTTP/1\.1\r\n"
)
_UNCLEAN: Final = re.compile(r"/(?:/|\.\.?(?:/|\Z))")


class Route(NamedTuple):
    """What the head of a request asks for."""

    method: Method | None  # of the gateway
    head: Head | None  # for that method
    endpoint: str  # else, a plain endpoint
    v2: V2Asked | None
    length: int
    limit_bytes: int  # of a body that is read at all
    expects: bool  # to be told that its body is wanted
    close: bool


_new_route: Final = partial(tuple.__new__, Route)  # in half the time of its class


class Routes:
    """Finds them.

    Args:
        gateway: for ``/v3/...``.
        max_body_bytes: of what goes there.
        v2: for ``/v2/...``, if there is one.
    """

    def __init__(self, gateway: Gateway, max_body_bytes: int, v2: V2Site | None) -> None:
        self._gateway = gateway
        self._max_body_bytes = max_body_bytes
        self._v2 = v2
        self._known: dict[bytes, Route] = {}

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._known)

    def find(self, block: bytes) -> Route | None:
        """Where a head leads; None to twisted.web.

        Raises:
            Refusal: nowhere.
        """
        route = self._known.get(block)
        if route is not None:
            return route
        route = None if self._v2 is None else self._find_plain_key(self._v2, block)
        if route is None:
            route = self._parse(block)
        if route is not None and len(block) <= MAX_REMEMBERED_BYTES:
            if len(self._known) >= _MEMO_ENTRIES:
                self._known.clear()
            self._known[block] = route
        return route

    def _find_plain_key(self, site: V2Site, block: bytes) -> Route | None:
        """The same as :meth:`_parse` at a third of its cost; None where that must decide."""
        match = _PLAIN_KEY.match(block)
        if match is None:
            return None
        read = fields_of(block[match.end() :])
        if not read.plain or read.hosts != 1 or read.expects:
            return None
        method, path, query = match.groups(b"")
        asked = site.keys.asked(method.decode(), path.decode(), query.decode(), read.fields)
        close = read.close or (read.length > MAX_DRAINED_BYTES and not asked.takes_body)
        return _new_route((None, None, "", asked, read.length, MAX_BODY_BYTES, False, close))

    def _parse(self, block: bytes) -> Route | None:
        request = parse_head(block)
        target = request.target
        if not _TARGET.match(target) and request.method != "CONNECT":
            raise Refusal(400, "400 Bad Request")
        path = target.partition("?")[0]
        if "%" in path and _BAD_ESCAPE.search(path):
            raise Refusal(400, "400 Bad Request")
        return self._find(request) if request.plain else None

    def _find(self, request: RequestHead) -> Route | None:
        target, length, close = request.target, request.length, request.close
        if self._v2 is not None and target.startswith("/v2/"):
            return self._find_v2(self._v2, request) if request.method in _V2_METHODS else None
        if request.expects:
            return None
        if request.method == "GET" and target in _ENDPOINTS and not length:
            return Route(None, None, target, None, 0, 0, False, close)
        if request.method != "POST" or (method := self._gateway.methods.get(target)) is None:
            return None
        if method.kind is not Kind.UNARY:
            return None
        try:
            head = request_head(method.path, request.fields)
        except RPCError:
            return None
        return Route(method, head, "", None, length, self._max_body_bytes, False, close)

    def _find_v2(self, site: V2Site, request: RequestHead) -> Route | None:
        path, _, query = request.target.partition("?")
        if "%" in path or not path.isascii():
            path = decoded(path.encode("latin-1"))
        if _UNCLEAN.search(path):
            return None
        found = site.find(request.method, path, query, request.fields)
        length, expects, close = request.length, request.expects, request.close
        if length and not found.takes_body:
            if expects:  # it waits with its body for an answer that does not need one
                length, expects, close = 0, False, True
            elif length > MAX_DRAINED_BYTES:
                close = True
        return Route(None, None, "", found.asked, length, MAX_BODY_BYTES, expects and length > 0, close)


def decoded(path: bytes) -> str:
    """A path without escapes; bytes that are no UTF-8 are surrogates."""
    return unquote_to_bytes(path).decode("utf-8", "surrogateescape")

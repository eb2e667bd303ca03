"""The same answers under twisted.web, for what :mod:`twistedkv.protocols.http1` does not answer itself.

Streams of the gateway, chunked bodies, expectations, other methods, paths to be cleaned, and restricted origins and
hosts all come here.

Sources: etcd 3.5 ``server/embed/serve.go``, accessController; Go's ``net/http`` ServeMux for clean paths, and
``net/url/url.go`` for how one is written.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs, quote

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from twistedkv.errors import RPCError
from twistedkv.protocols.answers import CORS, ERROR_TEXT, NO_FIELDS, TEXT, Answer, Fields, error_text
from twistedkv.protocols.endpoints import Endpoints
from twistedkv.protocols.gateway import (
    NOT_FOUND,
    NOT_POST,
    PREFIXES,
    Gateway,
    GatewayCall,
    error_answer,
    request_head,
    too_long,
)
from twistedkv.protocols.http1routes import decoded
from twistedkv.protocols.rpc import Peer
from twistedkv.protocols.v2site import MAX_BODY_BYTES, V2Site
from twistedkv.protocols.v2words import V2Request

IDLE_TIMEOUT_S: Final = 60  # without a byte from the client while nothing is being answered

_ABSOLUTE: Final = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
_REQUEST_LINE: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [!-~\x80-\xff]+ HTTP/1\.[01]")
_NOT_ASCII: Final = re.compile(rb"[\x80-\xff]")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_UNESCAPED: Final = "$&+,/:;=@"  # in a path, besides what never is; Go net/url/url.go, shouldEscape
_BAD_REQUEST: Final = Answer(400, TEXT, b"400 Bad Request")
_HTML: Final = (b"Content-Type", b"text/html; charset=utf-8")
_HTML_ESCAPES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"})

_log = Logger()


@dataclass(frozen=True, slots=True)
class AccessRules:
    """From where requests are taken; ``*`` is everywhere.

    Args:
        origins: that browsers may come from, by etcd's ``--cors``.
        hosts: names by which a client without TLS may call this server, by etcd's ``--host-whitelist``.
    """

    origins: frozenset[str] = frozenset(("*",))
    hosts: frozenset[str] = frozenset(("*",))

    @property
    def open_to_all(self) -> bool:
        """Whether there is nothing to check."""
        return "*" in self.origins and "*" in self.hosts


class WebFront:
    """The site of all connections.

    Args:
        clock: the reactor.
        gateway: answers the paths with a version prefix.
        endpoints: answer the rest.
        rules: checked before anything else.
        max_body_bytes: of a request that is not of the v2 API.
        v2: answers ``/v2/...``; None: nobody does.
    """

    def __init__(
        self,
        clock: IReactorTime,
        gateway: Gateway,
        endpoints: Endpoints,
        rules: AccessRules,
        max_body_bytes: int,
        v2: V2Site | None = None,
    ) -> None:
        self.gateway = gateway
        self.endpoints = endpoints
        self.rules = rules
        self.max_body_bytes = max_body_bytes
        self.v2 = v2
        self._clock = clock
        self._site = Site(_Leaf(self), timeout=IDLE_TIMEOUT_S, reactor=clock)

    def channel(self, peer: Peer) -> WebChannel:
        """The protocol of one connection."""
        channel = WebChannel()
        channel.site = channel.factory = self._site
        channel.timeOut = IDLE_TIMEOUT_S
        channel.callLater = self._clock.callLater
        channel.requestFactory = lambda *args: WebRequest(self, peer, *args)
        return channel


class WebChannel(HTTPChannel):
    """One connection."""

    site: Any
    factory: Any
    requestFactory: Any
    callLater: Any
    timeOut: int | None

    def lineReceived(self, line: bytes) -> None:
        """Take a target that is not all ASCII, as Go does, by escaping what twisted.web refuses."""
        if not line.isascii() and _REQUEST_LINE.fullmatch(line):
            line = _NOT_ASCII.sub(lambda byte: b"%%%02X" % ord(byte[0]), line)
        super().lineReceived(line)

    def go_away(self) -> None:
        """Close after the answer in progress, at once if there is none."""
        if self.requests:
            self.persistent = False
        else:
            self.loseConnection()


class WebRequest(Request):
    """One request: checked first, then given to its resource."""

    def __init__(self, front: WebFront, peer: Peer, *args: Any) -> None:
        super().__init__(*args)
        self.front = front
        self.rpc_peer = peer
        self.clean_path = ""
        self.fields: tuple[tuple[str, str], ...] = ()  # of the header, in order, names in lower case
        self._origin = ""  # of a target in the absolute form
        self._body_bytes = 0

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a body only as long as it may be; of one that is longer nothing is kept."""
        self._body_bytes += len(data)
        if self._body_bytes <= max(self.front.max_body_bytes, MAX_BODY_BYTES):
            super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Keep twisted.web from taking a body apart as a form: curl says that JSON is one unless told otherwise."""
        absolute = _ABSOLUTE.match(path)
        if absolute:  # RFC 9112 §3.2.2: a server takes that form too; the Host header says the same
            self._origin = absolute[0].decode("latin-1")
            path = path[absolute.end() :] or b"/"
        headers: Headers = self.requestHeaders
        self.fields = tuple(
            (name.decode("latin-1").lower(), value.decode("latin-1"))
            for name, values in headers.getAllRawHeaders()
            for value in values
        )
        headers.removeHeader(b"content-type")
        super().requestReceived(command, path, version)

    def process(self) -> None:
        front = self.front
        if _BAD_ESCAPE.search(self.path) or (self.method == b"HEAD" and self._body_bytes):
            self._refuse(_BAD_REQUEST, close=True)
            return
        if not self.rpc_peer.secure and "*" not in front.rules.hosts:
            host = self.getRequestHostname().decode("latin-1")
            if host not in front.rules.hosts:
                self._refuse(error_text(421, f"host {host!r} is not in the host whitelist of this server"))
                return
        self._allow_origin()
        path = decoded(self.path)
        is_v2 = front.v2 is not None and path.startswith("/v2/")
        if self._body_bytes > (MAX_BODY_BYTES if is_v2 else front.max_body_bytes):
            self._refuse(self._too_long(), close=True)
            return
        if self.method == b"OPTIONS":
            self._refuse(Answer(200, NO_FIELDS, b""))
            return
        self.clean_path = _clean(path)
        if self.clean_path != path and self.method != b"CONNECT":
            self._refuse(self._redirection())
            return
        super().process()

    def _too_long(self) -> Answer:
        if self.front.v2 is not None and self.path.startswith(b"/v2/"):
            return self.front.v2.too_long
        error = too_long(self._body_bytes, self.front.gateway.max_message_bytes)
        return error_answer(error.code, str(error))

    def _redirection(self) -> Answer:
        """Go's, to the clean path."""
        _, mark, query = self.uri.decode("ascii").partition("?")
        path = quote(self.clean_path.encode("utf-8", "surrogateescape"), safe=_UNESCAPED)
        location = f"{self._origin}{path}{mark}{query}"
        pairs = [(b"Location", location.encode("ascii"))]
        if self.method not in (b"GET", b"HEAD"):
            return Answer(301, Fields(pairs), b"")
        text = f'<a href="{location.translate(_HTML_ESCAPES)}">Moved Permanently</a>.\n\n'
        return Answer(301, Fields([_HTML, *pairs]), text.encode("ascii") if self.method == b"GET" else b"")

    def _allow_origin(self) -> None:
        rules = self.front.rules
        origin = (self.getHeader("origin") or "") if "*" not in rules.origins else "*"
        if origin == "*" or origin in rules.origins:
            for name, value in CORS.pairs:
                self.setHeader(name, value)
            self.setHeader(b"Access-Control-Allow-Origin", origin.encode("latin-1"))

    def _refuse(self, answer: Answer, *, close: bool = False) -> None:
        if close:
            self.channel.persistent = False
        WebOutlet(self).respond(answer)


@implementer(IResource)
class _Leaf(Resource):
    """Gateway, v2 API and plain endpoints."""

    isLeaf = True

    def __init__(self, front: WebFront) -> None:
        super().__init__()
        self._front = front

    def render(self, request: WebRequest) -> int:
        outlet = WebOutlet(request)
        path = request.clean_path
        query = request.uri.partition(b"?")[2].decode("latin-1")
        if path.startswith(PREFIXES):
            self._call(path, request, outlet)
        elif self._front.v2 is not None and path.startswith("/v2/"):
            assert request.content is not None
            method, body = request.method.decode("latin-1"), request.content.read()
            asked = V2Request(method, path, query, request.fields, body, request.rpc_peer)
            outlet.attend(self._front.v2.serve(asked, outlet))
        else:
            parameters = parse_qs(query, keep_blank_values=True)
            method = request.method.decode("latin-1")
            answer: Deferred[Answer] = self._front.endpoints.answer(method, path, parameters)
            answer.addCallback(outlet.respond)
            answer.addErrback(outlet.failed)
        return NOT_DONE_YET

    def _call(self, path: str, request: WebRequest, outlet: WebOutlet) -> None:
        gateway = self._front.gateway
        method = gateway.methods.get(path)
        if method is None:
            outlet.respond(NOT_FOUND)
            return
        if request.method != b"POST":
            outlet.respond(NOT_POST)
            return
        try:
            head = request_head(method.path, request.fields)
        except RPCError as error:
            outlet.respond(error_answer(error.code, str(error)))
            return
        assert request.content is not None
        call = gateway.call(method, head, request.rpc_peer, request.content.read(), outlet)
        if call is not None and not call.done:
            outlet.attend(call.cancel, call)


@implementer(IPushProducer)
class WebOutlet:
    """The outlet of one request of twisted.web's.

    Args:
        request: to be answered.
    """

    def __init__(self, request: WebRequest) -> None:
        self._request = request
        self._cancel: Callable[[], None] | None = None
        self._call: GatewayCall | None = None
        self._over = False
        self._streaming = False
        self.writable = True
        request.notifyFinish().addErrback(self._client_gone)

    def attend(self, cancel: Callable[[], None] | None, call: GatewayCall | None = None) -> None:
        """The answer may come later: ``cancel`` is called if the client goes, and ``call`` hears when there is room."""
        self._cancel = cancel
        self._call = call

    def respond(self, answer: Answer) -> None:
        if self._over:
            return
        self._over = True
        self._set_fields(answer.fields)
        self._request.setResponseCode(answer.status)
        if answer.measured and answer.status != HTTPStatus.NO_CONTENT:
            self._request.setHeader(b"Content-Length", b"%d" % len(answer.body))
        self._request.write(answer.body)
        self._request.finish()

    def begin(self, fields: Fields) -> None:
        if self._over:
            return
        self._set_fields(fields)
        self._request.registerProducer(self, True)
        self._streaming = True
        self._request.write(b"")  # the head, which is not to wait for the first piece

    def write(self, data: bytes) -> None:
        if not self._over:
            self._request.write(data)

    def end(self) -> None:
        if self._over:
            return
        self._over = True
        if self._streaming:
            self._request.unregisterProducer()
        self._request.write(b"")  # a body without pieces is still one of unknown length
        self._request.finish()

    def failed(self, failure: Failure) -> None:
        """The answer could not be made."""
        _log.failure("cannot answer a request", failure)
        self.respond(error_text(500, "Internal Server Error", ERROR_TEXT))

    def pauseProducing(self) -> None:
        self.writable = False

    def resumeProducing(self) -> None:
        self.writable = True
        if self._call is not None and not self._call.done and self._call.on_writable is not None:
            self._call.on_writable()

    def stopProducing(self) -> None:
        self.writable = False

    def _client_gone(self, failure: Failure) -> None:
        if self._over:
            return
        self._over = True
        if self._cancel is not None:
            self._cancel()

    def _set_fields(self, fields: Fields) -> None:
        headers: Headers = self._request.responseHeaders
        headers.removeHeader(b"server")  # etcd does not name itself
        headers.removeHeader(b"content-type")
        for name, value in fields.pairs:
            headers.addRawHeader(name, value)


def _clean(path: str) -> str:
    """``path`` as Go's ServeMux wants it; a request for another spelling is redirected."""
    if not path.startswith("/"):
        return path  # "*", or the absolute form, which twisted.web has taken apart
    clean = posixpath.normpath(path).replace("//", "/", 1) if path != "/" else path
    if path == "/v3":
        return "/v3/"  # the root of the gateway
    return clean + "/" if path.endswith("/") and clean != "/" else clean

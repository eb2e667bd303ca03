"""``/v2/keys``: requests for keys in, answers and events out.

A request is parsed in two steps, so that the first can be remembered with its head: :meth:`KeysEndpoint.asked` takes
all but the body, :meth:`AskedForKeys.serve` the rest. Reads are answered from this member's own tree, with ``quorum``
once it is sure to be up to date; writes go through the log. A long poll (``wait``) is a :class:`_Watch`: it holds a
watcher of the hub and an outlet, and nothing else, neither a timer nor a Deferred.

Sources: etcd 3.5 ``server/etcdserver/api/v2http/client.go``, ``server/etcdserver/v2_server.go``; reference: the answers
of etcd 3.5.1. Different from it: a stream whose client does not read ends, once a hundred events wait for it, where
etcd's goes silent; and ``quorum`` reads leave no entry in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.errors import KVError
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.protocols.answers import ERROR_TEXT, JSON, MEASURED_BYTES, Answer, Fields, Outlet, error_text
from twistedkv.protocols.goform import BODY_METHODS, Form, FormError, FormReader, is_form, plain_value
from twistedkv.protocols.rpc import Peer
from twistedkv.protocols.v2json import KEYS_PREFIX, error_json, event_json, without_value
from twistedkv.protocols.v2requests import NAMES, KeyRequest, expiration_ns, parse_key_request
from twistedkv.protocols.v2words import V2Access, V2Request
from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2events import Action, Event
from twistedkv.v2watch import V2Hub, Watcher
from twistedkv.wire import prefixed

METHODS: Final = ("HEAD", "GET", "PUT", "POST", "DELETE")
MAX_UNSENT_EVENTS: Final = 100  # of a stream; etcd v2store/watcher_hub.go

_PREFIX: Final = "/v2/keys"
_NO_METHOD: Final = error_text(
    405, "Method Not Allowed", Fields([(b"Allow", ",".join(METHODS).encode("ascii")), *ERROR_TEXT.pairs])
)
_WRITES: Final = frozenset((Action.SET, Action.CREATE, Action.UPDATE, Action.COMPARE_AND_SWAP))
_new_answer: Final = partial(tuple.__new__, Answer)  # in half the time of its class
_FORM: Final = FormReader(NAMES)

# etcdserverpb.Request: field 2 is the method, 3 the path, 4 the value.
_PUT: Final = prefixed(b"\x12", b"PUT")
_PATH_TAG: Final = b"\x1a"
_VALUE_TAG: Final = b"\x22"

_log = Logger()


class KeyTree(Protocol):
    """The store, to read in; see :class:`twistedkv.storage.directory.Directory`."""

    index: int  # of the last change

    def get(self, path: str, recursive: bool = False, sort: bool = False) -> Event:
        """The node at ``path``.

        Raises:
            V2Error: there is none.
        """


class Writing(Protocol):
    """Who waits for a write; see :class:`twistedkv.waiting.V2Waiter`."""

    def applied(self, event: Event) -> None:
        """It was carried out."""

    def fail(self, error: BaseException) -> None:
        """It was refused, or nobody knows what became of it."""


class KeysMember(Protocol):
    """What is asked of the member."""

    reactor: IReactorTime
    cluster_id: int
    v2hub: V2Hub

    @property
    def directory(self) -> KeyTree:
        """The store."""

    @property
    def term(self) -> int:
        """Raft's."""

    @property
    def committed(self) -> int:
        """The index up to which the log is."""

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None:
        """Call ``ready`` once this member's state has all that was acknowledged before now."""

    def propose_v2(self, fields: bytes, waiter: Writing, *, plain: tuple[str, str] | None = None) -> None:
        """Have an encoded ``etcdserverpb.Request`` without an id carried out by all members.

        Args:
            plain: path and value, if it sets a file and says nothing else.
        """


class KeysEndpoint:
    """Answers requests for keys.

    Args:
        member: carries them out.
        access: says who may.
    """

    def __init__(self, member: KeysMember, access: V2Access) -> None:
        self.access = access
        self._member = member
        self._cluster = b"%sX-Etcd-Cluster-Id: %x\r\n" % (JSON.block, member.cluster_id)
        self._raft = (-1, -1, b"")  # commit index, term, the fields that say so
        self._shown = (-1, self._raft, JSON)  # index of the store, those, all fields
        self.too_long = self.refusal(V2Error(V2Code.INVALID_FORM, "http: POST too large"))

    def asked(self, method: str, path: str, query: str, fields: tuple[tuple[str, str], ...]) -> AskedForKeys:
        """What a request with this head asks for, apart from its body."""
        return AskedForKeys(self, method, path, query, fields)

    def serve(self, request: V2Request, outlet: Outlet) -> Callable[[], None] | None:
        """Answer one request; see :class:`twistedkv.protocols.v2words.V2Endpoint`."""
        asked = self.asked(request.method, request.path, request.query, request.fields)
        return asked.serve(request.body, request.peer, outlet)

    def set(self, path: str, request: bytes, value: bytes, outlet: Outlet) -> None:
        """Set a file, which is allowed, by an encoded ``Request`` that has no value yet."""
        fields = request + prefixed(_VALUE_TAG, value) if value else request
        plain = (path, value.decode("utf-8", "surrogateescape"))
        self._member.propose_v2(fields, _Write(self, outlet, False), plain=plain)

    def carry_out(self, asked: KeyRequest, outlet: Outlet) -> Callable[[], None] | None:
        """Answer a request that is allowed."""
        if asked.method not in ("GET", "HEAD"):
            fields = self._proposal(asked).SerializeToString()
            self._member.propose_v2(fields, _Write(self, outlet, asked.no_value))
            return None
        if asked.quorum and asked.method == "GET":
            read = _QuorumRead(self, asked, outlet)
            self._member.when_readable(read.ready, read.fail)
            return read.cancel
        if asked.wait:
            return self._watch(asked, outlet)
        self.read(asked, outlet)
        return None

    def decided(self, allowed: bool, asked: KeyRequest, outlet: Outlet) -> Callable[[], None] | None:
        """Answer a request of which it is known whether it is allowed."""
        if allowed:
            return self.carry_out(asked, outlet)
        outlet.respond(self.refusal(V2Error(V2Code.UNAUTHORIZED, "Insufficient credentials")))
        return None

    def read(self, asked: KeyRequest, outlet: Outlet) -> None:
        """Answer from the tree as it is now."""
        try:
            event = self._member.directory.get(asked.path, asked.recursive, asked.sort)
        except V2Error as error:
            outlet.respond(self.refusal(error))
            return
        body = event_json(event, self._now_ns())
        outlet.respond(_new_answer((200, self.fields(event.etcd_index), body, len(body) <= MEASURED_BYTES)))

    def written(self, event: Event, no_value: bool, outlet: Outlet) -> None:
        """Answer a write that was carried out."""
        body = without_value(event.action) if no_value and event.action in _WRITES else self.shown(event)
        status = 201 if event.is_created else 200
        outlet.respond(_new_answer((status, self.fields(event.etcd_index), body, len(body) <= MEASURED_BYTES)))

    def shown(self, event: Event) -> bytes:
        """A change as everybody is shown it, in the answer to it and as an event, with the times left when it was made.

        Only what has a time left, or is shown to watchers, is kept in that form.
        """
        if event.encoded is not None:
            return event.encoded
        body = event_json(event, self._now_ns())
        if event.node.expires_ns or (event.previous is not None and event.previous.expires_ns):
            event.encoded = body
        return body

    def refused(self, error: BaseException, outlet: Outlet) -> None:
        """Answer a request that failed."""
        if not isinstance(error, V2Error):
            if not isinstance(error, KVError):
                _log.failure("cannot answer a request for keys", Failure(error))
            error = V2Error(V2Code.RAFT_INTERNAL, str(error))
        outlet.respond(self.refusal(error))

    def refusal(self, error: V2Error) -> Answer:
        """The answer that says no."""
        fields = Fields.of(b"%sX-Etcd-Index: %d\r\n" % (self._cluster, error.index))
        return Answer(error.status, fields, error_json(error))

    def fields(self, index: int) -> Fields:
        """The header fields of a success at this index of the store."""
        committed, term = self._member.committed, self._member.term
        raft = self._raft
        if committed != raft[0] or term != raft[1]:
            lines = b"X-Raft-Index: %d\r\nX-Raft-Term: %d\r\n" % (committed, term)
            raft = self._raft = (committed, term, lines)
        shown = self._shown
        if index != shown[0] or raft is not shown[1]:
            fields = Fields.of(b"%bX-Etcd-Index: %d\r\n%b" % (self._cluster, index, raft[2]))
            shown = self._shown = (index, raft, fields)
        return shown[2]

    def forget(self, watcher: Watcher) -> None:
        """Nobody listens to it any more."""
        self._member.v2hub.remove(watcher)

    def _watch(self, asked: KeyRequest, outlet: Outlet) -> Callable[[], None] | None:
        member = self._member
        index = member.directory.index
        watch = _Watch(self, outlet, self.fields(index), asked.stream)
        try:
            watcher = member.v2hub.watch(asked.path, asked.recursive, asked.stream, asked.since, index, watch)
        except V2Error as error:
            outlet.respond(self.refusal(error))
            return None
        return watch.cancel if watch.began(watcher) else None

    def _proposal(self, asked: KeyRequest) -> Request:
        request = Request(Method=asked.method, Path=asked.path.encode("utf-8", "surrogateescape"))
        if asked.value:
            request.Val = asked.value.encode("utf-8", "surrogateescape")
        if asked.is_dir:
            request.Dir = True
        if asked.previous_value:
            request.PrevValue = asked.previous_value.encode("utf-8", "surrogateescape")
        if asked.previous_index:
            request.PrevIndex = asked.previous_index
        if asked.previous_exists is not None:
            request.PrevExist = asked.previous_exists
        if asked.ttl_s is not None:
            request.Expiration = expiration_ns(asked.ttl_s, self._now_ns())
        if asked.refresh is not None:
            request.Refresh = asked.refresh
        if asked.recursive:
            request.Recursive = True
        return request

    def _now_ns(self) -> int:
        return int(self._member.reactor.seconds() * 1e9)


class AskedForKeys:
    """A request apart from its body and its client. It serves all requests that have the same head.

    Args:
        keys: answers it.
        method: as it came, as the others are.
        path: decoded and clean.
        query: the rest of the target.
        fields: of the header.
    """

    takes_body = False
    _plain_put = b""  # the request without a value, if the body may say all that is missing
    _asked: KeyRequest | None = None  # if the body does not matter
    _error: Answer | None = None  # to whatever the body is
    _query: Form = {}
    _bad_query: FormError | None = None  # that of the body comes first

    def __init__(
        self, keys: KeysEndpoint, method: str, path: str, query: str, fields: tuple[tuple[str, str], ...]
    ) -> None:
        self._keys = keys
        self.method = method
        self._head = (method, path, query, fields)
        self._key = key = path[len(_PREFIX) :]
        self._path = KEYS_PREFIX + key.rstrip("/")
        if method not in METHODS:
            self._error = _NO_METHOD
            return
        try:
            if method in BODY_METHODS:
                for name, value in fields:
                    if name == "content-type":
                        self.takes_body = is_form(value)
                        break
            if query:
                self._read_query(query)
            elif self.takes_body and method == "PUT":
                self._plain_put = _PUT + prefixed(_PATH_TAG, self._path.encode("utf-8", "surrogateescape"))
            if not self.takes_body:
                self._asked = self._parse({})
        except V2Error as error:
            self._error = keys.refusal(error)
        except FormError as error:
            self._error = keys.refusal(V2Error(V2Code.INVALID_FORM, str(error)))

    def serve(self, body: bytes, peer: Peer, outlet: Outlet) -> Callable[[], None] | None:
        """Answer one of them; see :class:`twistedkv.protocols.v2words.V2Asked`."""
        keys = self._keys
        asked = self._asked
        if asked is None:
            if self._error is not None:
                outlet.respond(self._error)
                return None
            value = plain_value(body) if self._plain_put else None
            if value is not None and keys.access.open_to_all():
                keys.set(self._path, self._plain_put, value, outlet)
                return None
            try:
                asked = self._parse(_FORM.body(body) if body else {})
            except V2Error as error:
                outlet.respond(keys.refusal(error))
                return None
            except FormError as error:
                outlet.respond(keys.refusal(V2Error(V2Code.INVALID_FORM, str(error))))
                return None
            if value is not None:
                return self._judge(asked, body, peer, outlet)
        if keys.access.open_to_all():
            return keys.carry_out(asked, outlet)
        return self._judge(asked, body, peer, outlet)

    def _judge(self, asked: KeyRequest, body: bytes, peer: Peer, outlet: Outlet) -> Callable[[], None] | None:
        """Answer a request once it is known whether this client may make it."""
        request = V2Request(*self._head, body, peer)
        allowed = self._keys.access.may_use_key(request, self._key, asked.recursive)
        if isinstance(allowed, bool):
            return self._keys.decided(allowed, asked, outlet)
        return _Judgement(self._keys, asked, outlet, allowed).cancel

    def _read_query(self, query: str) -> None:
        try:
            self._query = _FORM.pairs(query.encode("latin-1"))
        except FormError as error:
            self._bad_query = error

    def _parse(self, body: Form) -> KeyRequest:
        if self._bad_query is not None:
            raise self._bad_query
        return parse_key_request(self.method, self._path, self._query | body if self._query else body)


class _Judgement:
    """Waits until it is known whether a client may do what it asks."""

    __slots__ = ("_asked", "_cancel", "_keys", "_outlet")

    def __init__(self, keys: KeysEndpoint, asked: KeyRequest, outlet: Outlet, verdict: Deferred[bool]) -> None:
        self._keys = keys
        self._asked = asked
        self._outlet = outlet
        self._cancel: Callable[[], None] | None = verdict.cancel
        verdict.addCallback(self._decided)
        verdict.addErrback(self._failed)

    def cancel(self) -> None:
        """The client is gone."""
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    def _decided(self, allowed: bool) -> None:
        self._cancel = self._keys.decided(allowed, self._asked, self._outlet)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if error is not None and not isinstance(error, CancelledError):
            self._keys.refused(error, self._outlet)


class _Write:
    """Waits for a write; that its client is gone does not keep it from being carried out."""

    __slots__ = ("_keys", "_no_value", "_outlet")

    def __init__(self, keys: KeysEndpoint, outlet: Outlet, no_value: bool) -> None:
        self._keys = keys
        self._outlet = outlet
        self._no_value = no_value

    def applied(self, event: Event) -> None:
        """It was carried out."""
        self._keys.written(event, self._no_value, self._outlet)

    def fail(self, error: BaseException) -> None:
        """It was not, or nobody knows."""
        self._keys.refused(error, self._outlet)


class _QuorumRead:
    """Waits until this member is sure to be up to date."""

    __slots__ = ("_asked", "_gone", "_keys", "_outlet")

    def __init__(self, keys: KeysEndpoint, asked: KeyRequest, outlet: Outlet) -> None:
        self._keys = keys
        self._asked = asked
        self._outlet = outlet
        self._gone = False

    def ready(self) -> None:
        """It is."""
        if not self._gone:
            self._keys.read(self._asked, self._outlet)

    def fail(self, error: KVError) -> None:
        """It is not, and will not be soon."""
        if not self._gone:
            self._keys.refused(error, self._outlet)

    def cancel(self) -> None:
        """The client is gone."""
        self._gone = True


class _Watch:
    """A long poll, or a stream of events; the hub's :class:`~twistedkv.v2watch.Watching`.

    Args:
        keys: makes the bytes of events.
        outlet: to the client.
        fields: of the answer, which begins before there is an event.
        stream: whether there may be more than one.
    """

    __slots__ = ("_begun", "_fields", "_keys", "_outlet", "_stream", "_unsent", "_watcher")

    def __init__(self, keys: KeysEndpoint, outlet: Outlet, fields: Fields, stream: bool) -> None:
        self._keys = keys
        self._outlet: Outlet | None = outlet  # None when it is over
        self._fields = fields
        self._stream = stream
        self._watcher: Watcher | None = None
        self._begun = False
        self._unsent = 0  # events in a row that the client was not there to read

    def began(self, watcher: Watcher | None) -> bool:
        """It is registered, unless one event of the past was all; whether it goes on."""
        outlet = self._outlet
        if outlet is None:
            if watcher is not None:
                self._keys.forget(watcher)
            return False
        self._watcher = watcher
        if not self._begun:
            self._begin(outlet)
        return True

    def happened(self, event: Event) -> None:
        """Send one event, the only one unless it is a stream."""
        outlet = self._outlet
        if outlet is None:
            return
        if not self._begun:
            self._begin(outlet)
        if event.encoded is None:
            event.encoded = self._keys.shown(event)
        outlet.write(event.encoded)
        if not self._stream:
            self._outlet = None
            outlet.end()
        elif outlet.writable:
            self._unsent = 0
        else:
            self._unsent += 1
            if self._unsent > MAX_UNSENT_EVENTS:
                self.lost()

    def lost(self) -> None:
        """It missed events, or its client does not read: what was sent so far is all."""
        outlet = self._outlet
        self.cancel()
        if outlet is not None:
            if not self._begun:
                self._begin(outlet)
            outlet.end()

    def cancel(self) -> None:
        """The client is gone."""
        self._outlet = None
        if self._watcher is not None:
            self._keys.forget(self._watcher)

    def _begin(self, outlet: Outlet) -> None:
        self._begun = True
        outlet.begin(self._fields)

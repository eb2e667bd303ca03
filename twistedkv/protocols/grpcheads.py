"""What the header block of a gRPC request says, and the header blocks of answers.

Validation follows RFC 9113 §8.2, §8.3 for HTTP, and grpc-go for gRPC (``internal/transport/http2_server.go``,
``server.go`` handleStream), whose texts clients and tests know.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from twistedkv.errors import Code, RPCError
from twistedkv.protocols import frames
from twistedkv.protocols.frames import ErrorCode, StreamError
from twistedkv.protocols.grpcframes import encode_status_text, parse_timeout
from twistedkv.protocols.headers import Fields, encode_block
from twistedkv.protocols.rpc import Head, Kind, Method, MethodTable
from twistedkv.protocols.status import DEADLINE_EXCEEDED_TEXT

_CONTENT_TYPE: Final = b"application/grpc"
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_CONNECTION_SPECIFIC: Final = frozenset(  # RFC 9113 §8.2.2
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
_TRANSPORT: Final = frozenset({b"content-type", b"content-length", b"te", b"grpc-encoding", b"grpc-accept-encoding"})
_NAME_FORBIDDEN: Final = bytes(range(0x21)) + bytes(range(0x41, 0x5B)) + bytes(range(0x7F, 0x100))  # RFC 9113 §8.2.1
_WHOLE_KINDS: Final = (Kind.UNARY, Kind.SERVER_STREAM)  # their request is one message


class Request:
    """What equal request headers have in common. Shared and memoised: treat it as frozen.

    Attributes:
        method: None where the request is refused.
        refusal: the header block that answers at once, or None.
        whole: the request is one message, and its handler gets it whole.
        quick: nothing about it needs a look at each frame.
        answer_start: length, type and flags of the HEADERS frame that opens an answer.
        answer_block: that frame's payload.
    """

    __slots__ = (
        "answer_block",
        "answer_start",
        "content_length",
        "content_type",
        "gzip",
        "head",
        "method",
        "quick",
        "refusal",
        "whole",
    )

    def __init__(self, head: Head, method: Method | None, content_type: bytes = _CONTENT_TYPE) -> None:
        self.head = head
        self.method = method
        self.content_type = content_type
        self.content_length: int | None = None
        self.gzip = False
        self.refusal: bytes | None = None
        self.whole = method is not None and method.kind in _WHOLE_KINDS
        self.quick = self.whole
        self.answer_block = _answer_block(content_type)
        self.answer_start = frames.HEAD.pack(len(self.answer_block) << 8 | frames.HEADERS, frames.END_HEADERS, 0)[:5]

    def refuse(self, http_status: int, code: Code, text: str) -> None:
        """Answer by ``code`` and ``text`` at once, in the form of trailers only."""
        self.refusal = trailers_only(self.content_type, int(code), text, http_status)
        self.quick = False

    def with_timeout(self, text: bytes) -> Request:
        """This request with a grpc-timeout."""
        twin = Request.__new__(Request)
        twin.method = self.method
        twin.content_type = self.content_type
        twin.content_length = self.content_length
        twin.gzip = self.gzip
        twin.refusal = self.refusal
        twin.whole = self.whole
        twin.quick = self.quick
        twin.answer_block = self.answer_block
        twin.answer_start = self.answer_start
        try:
            timeout_s = parse_timeout(text)
        except RPCError as error:
            twin.head = self.head
            twin.refuse(400, error.code, error.text)
            return twin
        path, metadata, _ = self.head
        twin.head = Head(path, metadata, timeout_s)
        if not timeout_s and twin.refusal is None:
            twin.refuse(200, Code.DEADLINE_EXCEEDED, DEADLINE_EXCEEDED_TEXT)
        return twin


def parse_request(stream_id: int, fields: Fields, methods: MethodTable) -> Request:
    """What ``fields``, without grpc-timeout, ask for.

    Raises:
        StreamError: they are no HTTP/2 request (RFC 9113 §8.1.1).
    """
    values = _checked(stream_id, fields)
    path = values[b":path"].decode("utf-8", "surrogateescape")
    content_type = _answer_content_type(values.get(b"content-type", b""))
    head = Head(path, _metadata(fields), None)
    method = methods.find(head)
    if values[b":method"] != b"POST":
        request = Request(head, None)
        verb = values[b":method"].decode("ascii", "backslashreplace")
        request.refuse(405, Code.INTERNAL, f'Received a HEADERS frame with :method "{verb}" which should be POST')
        return request
    if content_type is None:
        request = Request(head, None)
        given = values.get(b"content-type", b"").decode("ascii", "backslashreplace")
        request.refuse(415, Code.INVALID_ARGUMENT, f'invalid gRPC request content-type "{given}"')
        return request
    request = Request(head, method, content_type)
    encoding = values.get(b"grpc-encoding", b"identity")
    if method is None:
        request.refuse(200, *_no_such_method(path, methods))
    elif encoding == b"gzip":
        request.gzip = True
        request.quick = False
    elif encoding not in (b"identity", b""):
        name = encoding.decode("ascii", "backslashreplace")
        request.refuse(200, Code.UNIMPLEMENTED, f'grpc: Decompressor is not installed for grpc-encoding "{name}"')
    length = values.get(b"content-length")
    if length is not None:
        if not length.isdigit():
            raise _malformed(stream_id, "content-length is no number")
        request.content_length = int(length[:20])
        request.quick = False
    return request


def _malformed(stream_id: int, text: str) -> StreamError:
    return StreamError(stream_id, ErrorCode.PROTOCOL_ERROR, text)


def _checked(stream_id: int, fields: Fields) -> dict[bytes, bytes]:
    """The first value of each field, once the list is a legal request's."""
    values: dict[bytes, bytes] = {}
    regular = False
    for name, value in fields:
        if name[:1] == b":":
            if regular or name not in _PSEUDO or name in values:  # RFC 9113 §8.3
                raise _malformed(stream_id, "misplaced, unknown or repeated pseudo header")
        else:
            regular = True
            if not name or name.translate(None, _NAME_FORBIDDEN) != name or b":" in name:
                raise _malformed(stream_id, "illegal header name")
            if name in _CONNECTION_SPECIFIC or (name == b"te" and value != b"trailers"):
                raise _malformed(stream_id, "connection-specific header")
        if b"\n" in value or b"\r" in value or b"\0" in value:
            raise _malformed(stream_id, "illegal header value")
        values.setdefault(name, value)
    if not (b":method" in values and b":scheme" in values and values.get(b":path")):
        raise _malformed(stream_id, "pseudo header missing")  # RFC 9113 §8.3.1
    return values


def _answer_content_type(given: bytes) -> bytes | None:
    """The content-type that answers ``given``: grpc-go names the same sub-type; None where it is not gRPC's."""
    given = given.lower()
    rest = given[len(_CONTENT_TYPE) :]
    if not given.startswith(_CONTENT_TYPE) or rest[:1] not in (b"", b"+", b";"):
        return None
    return _CONTENT_TYPE + (b"+" + rest[1:] if len(rest) > 1 else b"")


def _metadata(fields: Fields) -> dict[str, str]:
    """The fields that are the caller's own; of repeated names the first, which is the one that etcd reads."""
    metadata: dict[str, str] = {}
    for name, value in fields:
        if name[:1] != b":" and name not in _TRANSPORT:
            metadata.setdefault(name.decode("ascii"), value.decode("utf-8", "surrogateescape"))
    return metadata


def _no_such_method(path: str, methods: MethodTable) -> tuple[Code, str]:
    """grpc-go's words for a path that is not in the table. Source: grpc-go ``server.go`` handleStream."""
    service, slash, method = path.removeprefix("/").rpartition("/")
    if not slash:
        return Code.RESOURCE_EXHAUSTED, f'malformed method name: "{path}"'
    if any(known.startswith(f"/{service}/") for known in methods.by_path):
        return Code.UNIMPLEMENTED, f"unknown method {method} for service {service}"
    return Code.UNIMPLEMENTED, f"unknown service {service}"


@lru_cache(64)
def _answer_block(content_type: bytes) -> bytes:
    return encode_block(((b":status", b"200"), (b"content-type", content_type)))


@lru_cache(256)
def trailers(code: int, text: str) -> bytes:
    """The block that ends an answer which had messages. grpc-go sends grpc-message even where it is empty."""
    return encode_block(((b"grpc-status", b"%d" % code), (b"grpc-message", encode_status_text(text))))


@lru_cache(256)
def trailers_only(content_type: bytes, code: int, text: str, http_status: int = 200) -> bytes:
    """The block that is a whole answer: a status before any message."""
    opening = encode_block(((b":status", b"%d" % http_status), (b"content-type", content_type)))
    return opening + trailers(code, text)

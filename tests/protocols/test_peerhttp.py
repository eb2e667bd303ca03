"""HTTP/1.1 between members, without a socket."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.peerdata import cut
from twistedkv.optiontypes import Url
from twistedkv.protocols.http1wire import parse_head
from twistedkv.protocols.msgappv2 import StreamKind
from twistedkv.protocols.peerheads import CLUSTER_ID_MISMATCH, INCOMPATIBLE, Identity, parse_id, sender_urls
from twistedkv.protocols.peerhttp import (
    LAST_CHUNK,
    Body,
    ChunkedBody,
    EndlessBody,
    ProtocolError,
    SizedBody,
    chunk,
    parse_response,
)

sizes = st.lists(st.integers(0, 20), max_size=20)


def read(body: Body, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """The body in these pieces, and what comes after it."""
    content = rest = b""
    for piece in pieces:
        if body.done:
            rest += piece
        else:
            content += body.feed(piece)
            rest += body.rest
    return content, rest


class BodyTests(SynchronousTestCase):
    @given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), sizes, st.binary(max_size=10))
    def test_chunks_are_joined(self, parts: list[bytes], where: list[int], rest: bytes) -> None:
        """A chunked body comes out as it went in, cut anywhere, and what follows it is left."""
        stream = b"".join(map(chunk, parts)) + LAST_CHUNK + rest
        body = ChunkedBody()
        self.assertEqual(read(body, cut(stream, where)), (b"".join(parts), rest))
        self.assertTrue(body.done)

    @given(st.binary(max_size=40), sizes, st.binary(max_size=10))
    def test_announced_length_is_read(self, content: bytes, where: list[int], rest: bytes) -> None:
        """So does one of announced length."""
        self.assertEqual(read(SizedBody(len(content)), cut(content + rest, where)), (content, rest))

    def test_extensions_and_trailers_are_passed_over(self) -> None:
        """What may surround chunks is no part of the body."""
        stream = b"3;name=value\r\nabc\r\n0\r\nA: b\r\nC: d\r\n\r\nnext"
        for pieces in ([stream], [bytes((each,)) for each in stream]):
            self.assertEqual(read(ChunkedBody(), pieces), (b"abc", b"next"))

    def test_malformed_chunks_are_refused(self) -> None:
        """A size that is none, a chunk of another length, and lines or trailers without end."""
        for stream in (
            b"zz\r\n",
            b"-1\r\n",
            b"\r\n",
            b"0x3\r\nabc\r\n",
            b"1" * 16 + b"\r\n",
            b"3\r\nabcd\r\n",
            b"3" * 5000,
            b"3;" + b"x" * 5000 + b"\r\n",
            b"0\r\n" + b"A: b\r\n" * 5000,
        ):
            self.assertRaises(ProtocolError, ChunkedBody().feed, stream)

    @given(st.binary(max_size=60), sizes)
    def test_any_bytes_are_chunks_or_refused(self, data: bytes, where: list[int]) -> None:
        """Whatever comes, nothing but a ProtocolError comes of it."""
        try:
            read(ChunkedBody(), cut(data, where))
        except ProtocolError:
            return


class ResponseTests(SynchronousTestCase):
    def test_kinds_of_body(self) -> None:
        """Length, chunks, neither, and statuses that have no body at all."""
        for fields, kind in (
            ("Content-Length: 5", SizedBody),
            ("Transfer-Encoding: chunked", ChunkedBody),
            ("Connection: close", EndlessBody),
        ):
            head = parse_response(f"HTTP/1.1 200 OK\r\n{fields}".encode())
            self.assertIsInstance(head.body, kind)
        self.assertTrue(parse_response(b"HTTP/1.1 204 No Content").body.done)
        self.assertFalse(parse_response(b"HTTP/1.1 204 No Content").close)
        self.assertTrue(parse_response(b"HTTP/1.0 200 OK\r\nContent-Length: 0").close)

    def test_doubtful_heads_are_refused(self) -> None:
        """What is no response, or one of two lengths."""
        for head in (
            b"HTTP/2 200",
            b"SSH-2.0-OpenSSH",
            b"HTTP/1.1 200 OK\r\nA : b",
            b"HTTP/1.1 200 OK\r\n folded",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1",
        ):
            self.assertRaises(ProtocolError, parse_response, head)


class IdentityTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.identity = Identity(0xEC1C560B83D6320, 0xC1, "3.5.1", ("https://a:2380", "https://b:2380"))
        head = parse_head(self.identity.stream_request(StreamKind.APPENDS, 0xB, Url("https", "::1", 2380))[:-4])
        self.target, self.fields = head.target, dict(head.fields)

    def test_request_says_who_asks(self) -> None:
        """Ids are hexadecimal without padding, and all header fields are there."""
        self.assertEqual(self.target, "/raft/stream/msgapp/ec1c560b83d6320")
        self.assertEqual(self.fields["host"], "[::1]:2380")
        self.assertEqual(self.fields["x-raft-to"], "b")
        self.assertEqual(parse_id(self.fields["x-server-from"]), self.identity.member_id)
        self.assertEqual(tuple(sender_urls(self.fields)), self.identity.urls)
        self.assertIsNone(self.identity.refusal(self.fields))

    def test_versions_must_fit_both_ways(self) -> None:
        """Who is too old for us, or for whom we are too old, is refused; a newer one that takes us is not."""
        for name, value, expected in (
            ("x-server-version", "3.9.0-alpha.1", None),
            ("x-server-version", "2.3.8", INCOMPATIBLE),
            ("x-server-version", "new", INCOMPATIBLE),
            ("x-min-cluster-version", "3.6.0", INCOMPATIBLE),
            ("x-min-cluster-version", "3.5.9", None),
            ("x-etcd-cluster-id", "0c1", CLUSTER_ID_MISMATCH),
        ):
            self.assertEqual(self.identity.refusal({**self.fields, name: value}), expected)
        self.assertEqual(self.identity.refusal({}), INCOMPATIBLE)

    def test_answers_are_looked_at_too(self) -> None:
        """Whoever answers our dial must be of our cluster, as far as it says."""
        self.assertIsNone(self.identity.refusal_of_answer({"x-server-version": "3.4.0"}))
        self.assertEqual(self.identity.refusal_of_answer({}), INCOMPATIBLE)
        answer = {"x-server-version": "3.5.1", "x-etcd-cluster-id": "c2"}
        self.assertEqual(self.identity.refusal_of_answer(answer), CLUSTER_ID_MISMATCH)

    def test_ids(self) -> None:
        """An id is up to 64 bits in hexadecimal, and not 0."""
        self.assertEqual(parse_id("00" + "f" * 16), (1 << 64) - 1)
        for text in ("", "0", "xyz", "-1", "1" + "0" * 16, "0x1", "1 "):
            self.assertIsNone(parse_id(text), text)

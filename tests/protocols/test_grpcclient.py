"""A gRPC client's connection: against the ``h2`` library as a server, and against our own server."""

from __future__ import annotations

from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.settings
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.grpcpeers import BROKEN, COLLECT, LATER, PEER, PUT, SNAPSHOT, WATCH, ToyService, framed, put_bytes
from twistedkv.protocols import frames
from twistedkv.protocols.frames import ErrorCode
from twistedkv.protocols.grpc import GrpcServerConnection
from twistedkv.protocols.grpcclient import GrpcClientConnection
from twistedkv.protocols.limits import Limits

Reply = tuple[int, str, bytes]


class H2Server:
    """The ``h2`` library as a server of one ``GrpcClientConnection``."""

    def __init__(self, settings: dict[int, int] | None = None) -> None:
        self.client = GrpcClientConnection("example:2379")
        self.events: list[h2.events.Event] = []
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        if settings:
            self.h2.local_settings = h2.settings.Settings(client=False, initial_values=settings)
        self.h2.initiate_connection()
        self.client.start()
        self.pump()

    def pump(self) -> None:
        """Move bytes until both sides are silent."""
        while True:
            outbound = self.client.take_output()
            if outbound:
                self.events += self.h2.receive_data(outbound)
            inbound = self.h2.data_to_send()
            if inbound:
                self.client.receive(inbound)
            if not outbound and not inbound:
                return

    def headers(self) -> list[dict[str, str]]:
        """The headers of the requests so far."""
        return [dict(event.headers) for event in self.events if isinstance(event, h2.events.RequestReceived)]  # type: ignore[arg-type]

    def body(self, stream_id: int) -> bytes:
        """What came on a stream."""
        data = [event for event in self.events if isinstance(event, h2.events.DataReceived)]
        return b"".join(event.data for event in data if event.stream_id == stream_id)

    def answer(self, stream_id: int, message: bytes, *status: tuple[str, str]) -> None:
        """Send a whole answer."""
        self.h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/grpc")])
        self.h2.send_data(stream_id, framed(message))
        self.h2.send_headers(stream_id, status or [("grpc-status", "0"), ("grpc-message", "")], end_stream=True)


class Pair:
    """Our client and our server, in memory."""

    def __init__(self, cut: int = 0, limits: Limits | None = None) -> None:
        self.service = ToyService()
        self.client = GrpcClientConnection()
        self.server = GrpcServerConnection(
            self.service.table(), PEER, limits or Limits(), 2097152, self.service.log_failure
        )
        self.replies: list[Reply] = []
        self._cut = cut
        self.client.start()
        self.server.start()
        self.pump()

    def pump(self) -> None:
        """Move bytes until both sides are silent."""
        while True:
            there, back = self.client.take_output(), self.server.take_output()
            self._give(there, lambda data: self.server.receive(data, 5.0))
            self._give(back, self.client.receive)
            if not there and not back:
                return

    def _give(self, data: bytes, receive: Callable[[bytes], None]) -> None:
        for start in range(0, len(data), self._cut or len(data) or 1):
            receive(data[start : start + (self._cut or len(data))])

    def call(self, path: str, message: bytes, timeout: float | None = None) -> Reply:
        """One unary call and its reply."""
        before = len(self.replies)
        self.client.call(path, message, self.reply, timeout=timeout)
        self.pump()
        assert len(self.replies) == before + 1
        return self.replies[-1]

    def reply(self, code: int, text: str, message: bytes) -> None:
        """Take a reply."""
        self.replies.append((code, text, message))


class UnaryTests(SynchronousTestCase):
    """Unary calls."""

    def test_request_on_the_wire(self) -> None:
        """A call is a gRPC request with its metadata and deadline."""
        server, replies = H2Server(), list[Reply]()
        server.client.call(PUT, b"abc", lambda *reply: replies.append(reply), (("Token", "t"),), 1.5)
        server.pump()
        self.assertEqual(
            server.headers(),
            [
                {
                    ":method": "POST",
                    ":scheme": "https",
                    ":path": PUT,
                    ":authority": "example:2379",
                    "content-type": "application/grpc",
                    "te": "trailers",
                    "user-agent": "twistedkv",
                    "token": "t",
                    "grpc-timeout": "1500000u",
                }
            ],
        )
        self.assertEqual(server.body(1), framed(b"abc"))
        server.answer(1, b"answer")
        server.pump()
        self.assertEqual(replies, [(0, "", b"answer")])
        self.assertTrue(server.client.idle)

    def test_many_answers_through_a_dynamic_table(self) -> None:
        """Answers that a server packs with HPACK's dynamic table, as Go does, keep being read right."""
        server, replies = H2Server(), list[Reply]()
        for number in range(50):
            server.client.call(PUT, b"%d" % number, lambda *reply: replies.append(reply))
            server.pump()
            status = ("3", f"no {number}") if number % 10 == 9 else ("0", "")
            server.answer(2 * number + 1, b"re %d" % number, ("grpc-status", status[0]), ("grpc-message", status[1]))
            server.pump()
        for number, reply in enumerate(replies):
            refused = number % 10 == 9
            self.assertEqual(reply, (3, f"no {number}", b"") if refused else (0, "", b"re %d" % number))
        self.assertEqual(len(replies), 50)

    def test_large_messages_both_ways(self) -> None:
        """Messages larger than all windows come through in both directions."""
        message = put_bytes(value=bytes(2_000_000))
        pair = Pair()
        self.assertEqual(pair.call(PUT, message), (0, "", message))

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 100))
    def test_any_cut(self, cut: int) -> None:
        """Answers cut anywhere are the same answers."""
        pair = Pair(cut)
        for number in range(3):
            message = put_bytes(b"%d" % number)
            self.assertEqual(pair.call(PUT, message), (0, "", message))
        self.assertEqual(pair.call(PUT, put_bytes(b"")), (3, "etcdserver: key not found", b""))

    def test_statuses(self) -> None:
        """Refusals come as code and text, with the percent-encoding taken off."""
        pair = Pair()
        self.assertEqual(pair.call(PUT, put_bytes(b"")), (3, "etcdserver: key not found", b""))
        self.assertEqual(pair.call(BROKEN, b""), (2, "no such thing", b""))
        self.assertEqual(pair.call("/é/x", b""), (12, "unknown service é", b""))
        self.assertEqual(pair.call(PUT, put_bytes(), timeout=0.0)[0], 4)

    def test_answers_in_another_order(self) -> None:
        """Calls are answered in the server's order, each to its own callback."""
        pair = Pair()
        got: dict[int, bytes] = {}
        for number in range(3):
            pair.client.call(
                LATER, b"%d" % number, lambda code, text, message, number=number: got.update({number: message})
            )
        pair.pump()
        for call in reversed(pair.service.calls):
            call.reply(b"re " + call.message)
        pair.pump()
        self.assertEqual(got, {2: b"re 2", 1: b"re 1", 0: b"re 0"})

    def test_cancel(self) -> None:
        """A cancelled call is told so at once, and the server's handler as well."""
        pair = Pair()
        call = pair.client.call(LATER, b"", pair.reply)
        pair.pump()
        call.cancel()
        call.cancel()
        pair.pump()
        self.assertEqual(pair.replies, [(1, "context canceled", b"")])
        self.assertEqual(pair.service.cancelled, pair.service.calls)

    def test_concurrency_of_the_server(self) -> None:
        """Calls above the server's MAX_CONCURRENT_STREAMS wait for others to end."""
        pair = Pair(limits=Limits(concurrent_streams=2))
        for _ in range(5):
            pair.client.call(LATER, b"", pair.reply)
        pair.pump()
        self.assertEqual(len(pair.service.calls), 2)
        for number in range(5):
            pair.service.calls[number].reply(b"%d" % number)
            pair.pump()
        self.assertEqual([message for _, _, message in pair.replies], [b"0", b"1", b"2", b"3", b"4"])


class AnswerTests(SynchronousTestCase):
    """Servers that do not answer as they should."""

    def reply_to(self, answer: Callable[[H2Server], None]) -> tuple[int, str]:
        """What a caller is told when the server does ``answer`` on stream 1."""
        server, replies = H2Server(), list[Reply]()
        server.client.call(PUT, b"", lambda *reply: replies.append(reply))
        server.pump()
        answer(server)
        server.pump()
        self.assertTrue(server.client.idle)
        ((code, text, _),) = replies
        return code, text

    def test_not_grpc(self) -> None:
        """An HTTP error and a foreign content type become the codes that gRPC maps them to."""
        codes = {"503": 14, "401": 16, "404": 12, "418": 2}
        for status, code in codes.items():
            self.assertEqual(
                self.reply_to(lambda server, status=status: server.h2.send_headers(1, [(":status", status)], True)),
                (code, f"unexpected HTTP status code received from server: {status}"),
            )
        html = [(":status", "200"), ("content-type", "text/html")]
        self.assertEqual(self.reply_to(lambda server: server.h2.send_headers(1, html))[0], 2)

    def test_trailers_missing(self) -> None:
        """A stream that ends without a status is INTERNAL."""

        def answer(server: H2Server) -> None:
            server.h2.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
            server.h2.send_data(1, framed(b"x"), end_stream=True)

        self.assertEqual(self.reply_to(answer), (13, "server closed the stream without sending trailers"))

    def test_resets(self) -> None:
        """A reset stream is what PROTOCOL-HTTP2.md maps its code to."""
        codes = {ErrorCode.REFUSED_STREAM: 14, ErrorCode.CANCEL: 1, ErrorCode.ENHANCE_YOUR_CALM: 8, 99: 13}
        for reset, code in codes.items():
            self.assertEqual(self.reply_to(lambda server, reset=reset: server.h2.reset_stream(1, reset))[0], code)

    def test_wrong_number_of_messages(self) -> None:
        """A unary answer of no message or of two is INTERNAL."""

        def two(server: H2Server) -> None:
            server.h2.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
            server.h2.send_data(1, framed(b"x") * 2)
            server.h2.send_headers(1, [("grpc-status", "0")], end_stream=True)

        head = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")]
        self.assertEqual(self.reply_to(two)[0], 13)
        self.assertEqual(self.reply_to(lambda server: server.h2.send_headers(1, head, True))[0], 13)

    def test_interim_answer(self) -> None:
        """A 1xx head is passed over."""

        def answer(server: H2Server) -> None:
            server.h2.send_headers(1, [(":status", "103")])
            server.answer(1, b"x")

        self.assertEqual(self.reply_to(answer), (0, ""))


class StreamTests(SynchronousTestCase):
    """Streaming calls."""

    def setUp(self) -> None:
        self.pair = Pair()
        self.messages: list[bytes] = []
        self.ends: list[tuple[int, str]] = []

    def end(self, code: int, text: str) -> None:
        """Take the end of a stream."""
        self.ends.append((code, text))

    def test_bidi(self) -> None:
        """Messages go both ways while the stream is open; it ends after the half-close."""
        stream = self.pair.client.open_stream(WATCH, self.messages.append, self.end)
        for number in range(3):
            stream.send(b"%d" % number)
            self.pair.pump()
        self.assertEqual(self.messages, [b"echo 0", b"echo 1", b"echo 2"])
        stream.half_close()
        stream.send(b"too late")
        self.pair.pump()
        self.assertEqual(self.ends, [(0, "")])
        self.assertTrue(self.pair.client.idle and self.pair.server.idle)

    def test_server_and_client_streams(self) -> None:
        """Streams of one side end with their status."""
        stream = self.pair.client.open_stream(SNAPSHOT, self.messages.append, self.end)
        stream.send(b"x")
        stream.half_close()
        self.pair.pump()
        stream = self.pair.client.open_stream(COLLECT, self.messages.append, self.end)
        for part in (b"a", b"b"):
            stream.send(part)
        stream.half_close()
        self.pair.pump()
        self.assertEqual(self.messages, [b"0x", b"1x", b"2x", b"ab"])
        self.assertEqual(self.ends, [(0, ""), (0, "")])

    def test_cancel(self) -> None:
        """A cancelled stream ends on both sides."""
        stream = self.pair.client.open_stream(WATCH, self.messages.append, self.end)
        self.pair.pump()
        stream.cancel()
        self.pair.pump()
        self.assertEqual(self.ends, [(1, "context canceled")])
        self.assertEqual(self.pair.service.cancelled, self.pair.service.calls)

    def test_server_ends_first(self) -> None:
        """A server that ends a stream which we still write to ends it for both."""
        self.pair.client.open_stream(WATCH, self.messages.append, self.end)
        self.pair.pump()
        self.pair.service.calls[0].fail(LookupError("gone"))
        self.pair.pump()
        self.assertEqual(self.ends, [(2, "gone")])
        self.assertTrue(self.pair.client.idle and self.pair.server.idle)
        self.assertEqual(self.pair.call(PUT, put_bytes())[0], 0)

    def test_stream_that_waits_for_its_turn(self) -> None:
        """What is said on a stream before the server lets it open is said when it does."""
        self.pair = Pair(limits=Limits(concurrent_streams=1))
        self.pair.client.call(LATER, b"", self.pair.reply)
        stream = self.pair.client.open_stream(WATCH, self.messages.append, self.end)
        stream.send(b"early")
        stream.half_close()
        self.pair.pump()
        self.assertEqual(self.messages, [])
        self.pair.service.calls[0].reply(b"")
        self.pair.pump()
        self.assertEqual((self.messages, self.ends), ([b"echo early"], [(0, "")]))


class EndTests(SynchronousTestCase):
    """The end of a connection."""

    def test_go_away(self) -> None:
        """A server's graceful end finishes open calls, refuses new ones, and closes."""
        pair = Pair()
        pair.client.call(LATER, b"", pair.reply)
        pair.pump()
        pair.server.go_away()
        pair.pump()
        pair.client.call(PUT, put_bytes(), pair.reply)
        self.assertEqual(pair.replies, [(14, "transport is closing", b"")])
        pair.service.calls[0].reply(b"done")
        pair.pump()
        self.assertEqual(pair.replies[1:], [(0, "", b"done")])
        self.assertTrue(pair.client.closing and pair.server.closing)

    def test_go_away_below_our_streams(self) -> None:
        """Streams that a GOAWAY leaves out were not served: UNAVAILABLE, so that a caller may try again elsewhere."""
        pair = Pair()
        for _ in range(2):
            pair.client.call(LATER, b"", pair.reply)
        pair.client.receive(frames.goaway(1, ErrorCode.NO_ERROR))
        self.assertEqual([code for code, _, _ in pair.replies], [14])

    def test_lost(self) -> None:
        """A lost connection fails every call with UNAVAILABLE, once, and each later one."""
        pair = Pair(limits=Limits(concurrent_streams=2))
        ends: list[tuple[int, str]] = []
        pair.client.call(LATER, b"", pair.reply)
        pair.client.open_stream(WATCH, lambda message: None, lambda code, text: ends.append((code, text)))
        pair.client.call(LATER, b"waits", pair.reply)
        pair.pump()
        pair.client.lost()
        pair.client.lost()
        pair.client.call(PUT, b"", pair.reply)
        self.assertEqual(pair.replies, [(14, "transport is closing", b"")] * 3)
        self.assertEqual(ends, [(14, "transport is closing")])
        self.assertEqual(pair.client.take_output(), b"")

    def test_broken_server(self) -> None:
        """Bytes that are no HTTP/2 end the connection and every call."""
        pair = Pair()
        pair.client.call(LATER, b"", pair.reply)
        pair.client.receive(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\x80"))
        self.assertTrue(pair.client.closing)
        self.assertEqual(len(pair.replies), 1)
        self.assertIn(b"index 0", pair.client.take_output())

    def test_push(self) -> None:
        """A pushed stream is a PROTOCOL_ERROR: we refuse push in our SETTINGS (RFC 9113 §8.4)."""
        pair = Pair()
        pair.client.call(LATER, b"", pair.reply)
        block = Encoder().encode([(":method", "GET")])
        pair.client.receive(frames.frame(frames.PUSH_PROMISE, frames.END_HEADERS, 1, b"\0\0\0\2" + block))
        self.assertTrue(pair.client.closing)

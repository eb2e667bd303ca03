"""HTTP/2 by the letter of RFC 9113: what a peer may send in which state, and how it ends when it may not."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.grpcpeers import LATER, PEER, PUT, WATCH, H2Client, framed, put_bytes
from twistedkv.protocols import frames
from twistedkv.protocols.frames import ErrorCode
from twistedkv.protocols.grpc import GrpcServerConnection
from twistedkv.protocols.headers import encode_block
from twistedkv.protocols.limits import Limits

BLOCK = encode_block(
    [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", WATCH.encode()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
)


def headers(stream_id: int, flags: int = frames.END_HEADERS, block: bytes = BLOCK) -> bytes:
    """A HEADERS frame."""
    return frames.frame(frames.HEADERS, flags, stream_id, block)


def data(stream_id: int, body: bytes, flags: int = 0) -> bytes:
    """A DATA frame."""
    return frames.frame(frames.DATA, flags, stream_id, body)


class ErrorTests(SynchronousTestCase):
    """RFC 9113 §5.4: which faults end the connection, and which the stream."""

    def after(self, sent: bytes, open_stream: bool = True) -> tuple[H2Client, bytes]:
        """A server with stream 1 open (and 3 closed, 5 half-closed by the client), after ``sent``."""
        client = H2Client()
        if open_stream:
            client.server.receive(headers(1), 0.0)
            client.server.receive(headers(3) + data(3, b"", frames.END_STREAM), 0.0)
            client.server.receive(headers(5) + data(5, b""), 0.0)
            client.service.calls[-1].on_half_close = None
            client.server.receive(data(5, b"", frames.END_STREAM), 0.0)
            client.server.take_output()
        client.server.receive(sent, 0.0)
        return client, client.server.take_output()

    def test_connection_errors(self) -> None:
        """Each of these ends the connection with its code."""
        cases = {
            "HEADERS on stream 0 (§6.2)": (headers(0), ErrorCode.PROTOCOL_ERROR),
            "even stream id (§5.1.1)": (headers(2), ErrorCode.PROTOCOL_ERROR),
            "HEADERS on a closed stream (§5.1)": (headers(3), ErrorCode.STREAM_CLOSED),
            "DATA on stream 0 (§6.1)": (data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
            "DATA on an idle stream (§5.1)": (data(9, b"x"), ErrorCode.PROTOCOL_ERROR),
            "padding too long (§6.1)": (data(1, b"\5abc", frames.PADDED), ErrorCode.PROTOCOL_ERROR),
            "RST_STREAM on an idle stream (§6.4)": (frames.rst_stream(9, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
            "RST_STREAM on stream 0 (§6.4)": (frames.rst_stream(0, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
            "RST_STREAM of 3 bytes (§6.4)": (frames.frame(3, 0, 1, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
            "SETTINGS on a stream (§6.5)": (frames.frame(4, 0, 1), ErrorCode.PROTOCOL_ERROR),
            "SETTINGS of 5 bytes (§6.5)": (frames.frame(4, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
            "SETTINGS ack with payload (§6.5)": (frames.frame(4, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
            "window setting too large (§6.5.2)": (frames.settings([(4, 2**31)]), ErrorCode.FLOW_CONTROL_ERROR),
            "PUSH_PROMISE from a client (§8.4)": (frames.frame(5, 4, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
            "PING of 7 bytes (§6.7)": (frames.ping(bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
            "PING on a stream (§6.7)": (frames.frame(6, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
            "GOAWAY on a stream (§6.8)": (frames.frame(7, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
            "WINDOW_UPDATE of 0 (§6.9)": (frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
            "WINDOW_UPDATE of 3 bytes (§6.9)": (frames.frame(8, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
            "WINDOW_UPDATE on idle (§5.1)": (frames.window_update(9, 1), ErrorCode.PROTOCOL_ERROR),
            "connection window too large (§6.9.1)": (frames.window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
            "CONTINUATION alone (§6.10)": (frames.frame(9, 4, 1), ErrorCode.PROTOCOL_ERROR),
            "block interrupted (§6.10)": (headers(7, 0) + frames.ping(bytes(8)), ErrorCode.PROTOCOL_ERROR),
            "block of another stream (§6.10)": (headers(7, 0) + frames.frame(9, 4, 9), ErrorCode.PROTOCOL_ERROR),
            "block that is no HPACK (§4.3)": (headers(7, block=b"\x80"), ErrorCode.COMPRESSION_ERROR),
            "frame too large (§4.2)": (frames.HEAD.pack(16385 << 8, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
            "PRIORITY on stream 0 (§6.3)": (frames.frame(2, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
        }
        for what, (sent, code) in cases.items():
            client, answer = self.after(sent)
            self.assertTrue(client.server.closing, what)
            at = answer.index(b"\7\0\0\0\0\0") - 3  # the head of the GOAWAY
            self.assertEqual(frames.parse_goaway(answer[at + 9 :])[1], code, what)
            self.assertEqual([call for call in client.service.calls if not call.done], [], what)
            client.server.receive(frames.ping(bytes(8)), 0.0)
            self.assertEqual(client.server.take_output(), b"", what)

    def test_stream_errors(self) -> None:
        """Each of these ends its stream with its code, and the connection goes on."""
        cases = {
            "DATA on a closed stream (§5.1)": (3, data(3, b"x"), ErrorCode.STREAM_CLOSED),
            "DATA after END_STREAM (§5.1)": (5, data(5, b"x"), ErrorCode.STREAM_CLOSED),
            "HEADERS after END_STREAM (§5.1)": (5, headers(5, 5), ErrorCode.STREAM_CLOSED),
            "trailers that end nothing (§8.1)": (1, headers(1), ErrorCode.PROTOCOL_ERROR),
            "WINDOW_UPDATE of 0 (§6.9)": (1, frames.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
            "stream window too large (§6.9.1)": (1, frames.window_update(1, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
            "PRIORITY of 4 bytes (§6.3)": (1, frames.frame(2, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
            "no pseudo headers (§8.3)": (7, headers(7, block=b""), ErrorCode.PROTOCOL_ERROR),
        }
        for what, (stream_id, sent, code) in cases.items():
            client, answer = self.after(sent + frames.ping(b"12345678"))
            self.assertEqual(answer, frames.rst_stream(stream_id, code) + frames.ping(b"12345678", ack=True), what)
            self.assertFalse(client.server.closing, what)

    def test_what_is_ignored(self) -> None:
        """Each of these is legal, or late, and changes nothing."""
        cases = {
            "unknown frame type (§4.1)": frames.frame(0x55, 0xFF, 1, b"???"),
            "unknown setting (§6.5.2)": frames.settings([(0x99, 1)]),
            "PRIORITY of an idle stream (§6.3)": frames.frame(2, 0, 99, bytes(5)),
            "WINDOW_UPDATE on a closed stream (§5.1)": frames.window_update(3, 1),
            "RST_STREAM on a closed stream (§5.1)": frames.rst_stream(3, ErrorCode.CANCEL),
            "a PING's answer that nobody waits for": frames.ping(bytes(8), ack=True),
            "GOAWAY of a client": frames.goaway(0, ErrorCode.NO_ERROR),
            "reserved bit of a stream id (§4.1)": frames.HEAD.pack(8 << 8 | 6, 1, 1 << 31) + bytes(8),
        }
        for what, sent in cases.items():
            client, answer = self.after(sent)
            self.assertIn(answer, (b"", frames.SETTINGS_ACK), what)
            self.assertFalse(client.server.closing, what)
            client.server.receive(data(1, framed(b"still here")), 0.0)
            self.assertIn(b"echo still here", client.server.take_output(), what)

    def test_late_frames_of_a_stream_that_we_reset(self) -> None:
        """What was under way on a stream that we ended is ignored, and its header blocks are still decoded (§5.1)."""
        client, _ = self.after(frames.window_update(1, 0))
        client.server.receive(data(1, b"x") + data(1, b"y"), 0.0)
        self.assertEqual(client.server.take_output(), b"")
        trailer = b"\x40\x01a\x01b"  # enters the dynamic table
        client.server.receive(headers(1, 5, trailer) + headers(7, block=BLOCK + b"\xbe"), 0.0)
        self.assertEqual(client.service.calls[-1].head.metadata["a"], "b")

    def test_first_bytes(self) -> None:
        """What does not begin with the preface, and a first frame other than SETTINGS, end the connection (§3.4)."""
        for sent in (b"GET / HTTP/1.1\r\n", frames.PREFACE + frames.ping(bytes(8))):
            client = H2Client()
            fresh = GrpcServerConnection(client.service.table(), PEER, Limits(), 100, client.service.log_failure)
            fresh.start()
            fresh.receive(sent, 0.0)
            self.assertTrue(fresh.closing)
            self.assertIn(b"\7\0\0\0\0\0", fresh.take_output())


class StreamTests(SynchronousTestCase):
    """Streams in their states."""

    def test_padding_and_priority_fields(self) -> None:
        """Padded frames and priority fields carry the same request; padding counts against the window."""
        client = H2Client()
        block = b"\3" + bytes(5) + BLOCK + bytes(3)
        client.server.receive(headers(1, frames.END_HEADERS | frames.PADDED | frames.PRIORITY_FLAG, block), 0.0)
        client.server.receive(data(1, b"\x0a" + framed(b"x") + bytes(10), frames.PADDED), 0.0)
        self.assertEqual(client.service.messages, [b"x"])
        self.assertEqual(client.service.calls[0].unconsumed_bytes, 17)  # type: ignore[attr-defined]

    def test_continuation(self) -> None:
        """A header block in pieces opens the same stream."""
        client = H2Client()
        pieces = [BLOCK[start : start + 7] for start in range(0, len(BLOCK), 7)]
        client.server.receive(headers(1, 0, pieces[0]), 0.0)
        for piece in pieces[1:]:
            client.server.receive(frames.frame(frames.CONTINUATION, 0, 1, piece), 0.0)
        self.assertEqual(client.service.calls, [])
        client.server.receive(frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1), 0.0)
        self.assertEqual(client.service.calls[0].head.path, WATCH)

    def test_request_trailers_end_the_stream(self) -> None:
        """A client may end its half by trailers (§8.1)."""
        client = H2Client()
        stream_id = client.open(WATCH)
        client.send_body(stream_id, framed(b"x"))
        client.h2.send_headers(stream_id, [("a", "b")], end_stream=True)
        client.pump()
        self.assertEqual(client.service.half_closed, 1)
        self.assertEqual(client.answers[stream_id].status, (0, ""))

    def test_answer_before_the_request_is_complete(self) -> None:
        """An early answer is followed by RST_STREAM NO_ERROR, so that the client stops sending (§8.1)."""
        client = H2Client()
        stream_id = client.open(WATCH)
        client.pump()
        client.service.calls[0].finish()
        client.pump()
        answer = client.answers[stream_id]
        self.assertEqual((answer.status, answer.reset), ((0, ""), ErrorCode.NO_ERROR))

    def test_large_frames_where_the_peer_allows_them(self) -> None:
        """A peer's MAX_FRAME_SIZE above the default is used."""
        client = H2Client(settings={4: 1 << 20, 5: 100_000})
        client.h2.increment_flow_control_window(1 << 20)
        client.h2.max_inbound_frame_size = 100_000
        client.send(LATER, b"")
        client.pump()
        client.service.calls[0].reply(bytes(90_000))
        self.assertIn(frames.HEAD.pack(90_005 << 8, 0, 1), client.server.take_output())

    def test_settings_are_acknowledged_in_order(self) -> None:
        """Each SETTINGS frame and each PING is answered once (§6.5.3, §6.7)."""
        client = H2Client()
        client.server.receive(frames.settings([(3, 5)]) * 2 + frames.ping(b"abcdefgh"), 0.0)
        self.assertEqual(client.server.take_output(), frames.SETTINGS_ACK * 2 + frames.ping(b"abcdefgh", ack=True))

    def test_quick_and_slow_requests_mix(self) -> None:
        """Whole requests, requests in pieces and streams in one read are all served, in order."""
        client = H2Client()
        ids = []
        for number in range(4):
            ids.append(client.send(PUT, put_bytes(b"%d" % number)))
            stream_id = client.open(PUT)
            client.send_body(stream_id, framed(put_bytes(b"p%d" % number))[:4])
            client.send_body(stream_id, framed(put_bytes(b"p%d" % number))[4:], end_stream=True)
            ids += [stream_id, client.send(WATCH, b"w%d" % number)]
        client.pump()
        expected = []
        for number in range(4):
            expected += [[put_bytes(b"%d" % number)], [put_bytes(b"p%d" % number)], [b"echo w%d" % number]]
        self.assertEqual([client.answers[stream_id].messages for stream_id in ids], expected)

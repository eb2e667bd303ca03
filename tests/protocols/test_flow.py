"""Flow control and back-pressure of a gRPC server, with the ``h2`` library as its client."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.grpcpeers import (
    LATER,
    PUT,
    WATCH,
    H2Client,
    framed,
    put_bytes,
)
from twistedkv.protocols import frames
from twistedkv.protocols.frames import ErrorCode
from twistedkv.protocols.limits import Limits


class FlowTests(SynchronousTestCase):
    """Flow control and back-pressure, both ways."""

    def test_large_request(self) -> None:
        """A message of 2 MB, larger than the stream's window, comes through, and so does the answer."""
        message = put_bytes(value=bytes(2_000_000))
        answer = H2Client().request(PUT, message)
        self.assertEqual(answer.messages, [message])

    def test_answer_waits_for_the_window(self) -> None:
        """An answer larger than the client's window goes out as far as that allows, and goes on with each credit."""
        client = H2Client()
        client.auto_ack = False
        message = put_bytes(value=bytes(200_000))
        stream_id = client.send(PUT, message)
        client.pump()
        answer = client.answers[stream_id]
        self.assertEqual(len(answer.body), 65535)
        self.assertFalse(answer.ended)
        client.h2.increment_flow_control_window(10_000)
        client.h2.increment_flow_control_window(5_000, stream_id)
        client.pump()
        self.assertEqual(len(answer.body), 70535)
        client.h2.increment_flow_control_window(1_000_000)
        client.h2.increment_flow_control_window(1_000_000, stream_id)
        client.pump()
        self.assertEqual(answer.messages, [message])
        self.assertTrue(client.server.idle)

    def test_answers_share_the_window(self) -> None:
        """Two large answers take turns: neither waits for the other's end."""
        client = H2Client(settings={4: 1 << 20})
        client.auto_ack = False
        client.h2.increment_flow_control_window(131072 - 65535)
        ids = [client.send(LATER, b"") for _ in range(2)]
        client.pump()
        for call in client.service.calls:
            call.reply(bytes(1_000_000))
        client.pump()
        sizes = [len(client.answers[stream_id].body) for stream_id in ids]
        self.assertEqual(sum(sizes), 131072)
        self.assertLessEqual(abs(sizes[0] - sizes[1]), 16384)

    def test_a_stream_without_window_does_not_hold_up_others(self) -> None:
        """While one stream's window is shut, others are answered."""
        client = H2Client()
        client.auto_ack = False
        slow = client.send(LATER, b"")
        client.pump()
        client.h2.increment_flow_control_window(1_000_000)
        client.pump()
        client.service.calls[0].reply(bytes(100_000))
        answer = client.request(PUT, put_bytes())
        self.assertEqual(answer.messages, [put_bytes()])
        self.assertEqual(len(client.answers[slow].body), 65535)

    def test_initial_window_moves_open_streams(self) -> None:
        """A new INITIAL_WINDOW_SIZE opens or shuts streams that are open (RFC 9113 §6.9.2)."""
        client = H2Client(settings={4: 100})
        client.auto_ack = False
        stream_id = client.send(LATER, b"")
        client.pump()
        client.service.calls[0].send(bytes(500))
        client.pump()
        answer = client.answers[stream_id]
        self.assertEqual(len(answer.body), 100)
        client.h2.update_settings({4: 50})
        client.pump()
        client.h2.increment_flow_control_window(50, stream_id)  # from -50 to 0
        client.pump()
        self.assertEqual(len(answer.body), 100)
        client.h2.update_settings({4: 1000})
        client.pump()
        self.assertEqual(len(answer.body), 505)

    def test_writable_follows_the_client(self) -> None:
        """A stream that is not read becomes unwritable, and says once when there is room again."""
        client = H2Client(Limits(send_buffer_bytes=10_000))
        client.auto_ack = False
        stream_id = client.open(WATCH)
        client.pump()
        (call,) = client.service.calls
        sent = 0
        while call.writable:
            call.send(bytes(1000))
            client.pump()
            sent += 1005
        self.assertLess(sent, 65535 + 10_000 + 2 * 1005)
        self.assertEqual(client.service.writable_again, 0)
        client.h2.increment_flow_control_window(100_000)
        client.h2.increment_flow_control_window(100_000, stream_id)
        client.pump()
        self.assertTrue(call.writable)
        self.assertEqual(client.service.writable_again, 1)
        self.assertEqual(len(client.answers[stream_id].body), sent)

    def test_full_transport_stops_data(self) -> None:
        """While the transport is full no DATA goes out and nothing is writable; then all goes on."""
        client = H2Client()
        stream_id = client.open(WATCH)
        client.pump()
        (call,) = client.service.calls
        client.server.pause_output()
        self.assertFalse(call.writable)
        call.send(b"waits")
        put = client.send(PUT, put_bytes())
        client.pump()
        self.assertEqual(client.answers[stream_id].body, b"")
        self.assertEqual(client.answers[put].body, b"")
        client.server.resume_output()
        self.assertTrue(call.writable)
        self.assertEqual(client.service.writable_again, 1)
        client.pump()
        self.assertEqual(client.answers[stream_id].messages, [b"waits"])
        self.assertEqual(client.answers[put].messages, [put_bytes()])

    def test_paused_call_stops_its_client(self) -> None:
        """A paused call gets no message and its client no credit; other calls go on; nothing is lost."""
        client = H2Client(Limits(stream_window_bytes=20_000))
        stream_id = client.open(WATCH)
        client.pump()
        (call,) = client.service.calls
        call.pause()
        messages = [b"%03d" % number + bytes(997) for number in range(100)]
        client.send_body(stream_id, b"".join(map(framed, messages)), end_stream=True)
        client.pump()
        self.assertEqual(client.service.messages, [])
        self.assertEqual(client.h2.local_flow_control_window(stream_id), 0)
        self.assertEqual(client.request(PUT, put_bytes()).status, (0, ""))
        call.resume()
        client.pump()
        self.assertEqual(client.service.messages, messages)
        self.assertEqual(client.service.half_closed, 1)

    def test_pause_within_a_message(self) -> None:
        """A handler may pause while it takes a message; the next one waits for resume."""
        client = H2Client()
        stream_id = client.open(WATCH)
        client.pump()
        (call,) = client.service.calls
        got: list[bytes] = []

        def on_message(message: bytes) -> None:
            got.append(message)
            call.pause()

        call.on_message = on_message
        client.send_body(stream_id, framed(b"1") + framed(b"2") + framed(b"3"))
        client.pump()
        self.assertEqual(got, [b"1"])
        call.resume()
        self.assertEqual(got, [b"1", b"2"])

    def test_connection_credit_comes_in_large_pieces(self) -> None:
        """The connection's window is given back when half of it is used, not message by message."""
        client = H2Client(Limits(connection_window_bytes=100_000))
        for _ in range(200):
            self.assertEqual(client.request(PUT, put_bytes(value=bytes(1000))).status, (0, ""))

    def test_window_overrun(self) -> None:
        """A client that sends more than a stream's window loses the stream; more than the connection's, all."""
        client = H2Client(Limits(stream_window_bytes=1000))
        stream_id = client.open(WATCH)
        client.pump()
        client.service.calls[0].pause()
        client.raw(frames.frame(frames.DATA, 0, stream_id, bytes(1001)))
        self.assertEqual(client.answers[stream_id].reset, ErrorCode.FLOW_CONTROL_ERROR)
        self.assertEqual(client.service.cancelled, client.service.calls)
        self.assertFalse(client.server.closing)

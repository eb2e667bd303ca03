"""The limits of a connection: each of them crossed, with the ``h2`` library as the client."""

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
from twistedkv.protocols.keepalive import Keepalive
from twistedkv.protocols.limits import Limits


class LimitTests(SynchronousTestCase):
    """Each limit ends the connection by ENHANCE_YOUR_CALM, one above it and not below."""

    def check_calm(self, client: H2Client) -> None:
        """The server asked for calm, is closing, and left no call open."""
        assert client.goaway is not None
        self.assertEqual(client.goaway.error_code, ErrorCode.ENHANCE_YOUR_CALM)
        self.assertTrue(client.server.closing)
        self.assertTrue(client.server.idle)
        self.assertEqual([call for call in client.service.calls if not call.done], [])

    def test_concurrent_streams(self) -> None:
        """A stream above the limit is refused, and can be had when another has ended."""
        client = H2Client(Limits(concurrent_streams=2))
        client.h2.remote_settings.update({3: 1000})
        client.h2.remote_settings.acknowledge()
        ids = [client.send(LATER, b"") for _ in range(3)]
        client.pump()
        self.assertEqual(client.answers[ids[2]].reset, ErrorCode.REFUSED_STREAM)
        client.service.calls[0].reply(b"")
        self.assertEqual(client.request(PUT, put_bytes()).status, (0, ""))

    def test_control_frames(self) -> None:
        """PING, SETTINGS, PRIORITY, empty DATA and unknown frames count together, by the second."""
        floods = [
            frames.ping(bytes(8)),
            frames.settings([]),
            frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
            frames.frame(0x77, 0, 0, b"?"),
            frames.frame(frames.DATA, 0, 1),
        ]
        for flood in floods:
            client = H2Client(Limits(control_frames_per_s=20), keepalive=Keepalive(policed=False))
            client.open(WATCH)
            client.pump()
            for _ in range(3):
                client.now_s += 1.0
                client.server.receive(flood * 20, client.now_s)
                client.server.take_output()
                self.assertFalse(client.server.closing)
            client.server.receive(flood, client.now_s)
            self.assertTrue(client.server.closing)
            self.assertTrue(client.server.take_output().endswith(b"too many control frames"))

    def test_rapid_reset(self) -> None:
        """A client that opens and resets streams faster than the limit is cut off (CVE-2023-44487)."""
        client = H2Client(Limits(resets_per_s=10))
        for number in range(11):
            self.assertFalse(client.server.closing, number)
            stream_id = client.send(LATER, b"")
            client.h2.reset_stream(stream_id)
            client.server.receive(client.h2.data_to_send(), client.now_s)
        client.take(client.server.take_output())
        self.check_calm(client)

    def test_made_you_reset(self) -> None:
        """Streams that we reset for the client's fault count as well (CVE-2025-8671)."""
        client = H2Client(Limits(resets_per_s=10))
        for number in range(11):
            self.assertFalse(client.server.closing, number)
            stream_id = client.send(LATER, b"")
            data = client.h2.data_to_send() + frames.window_update(stream_id, 0)
            client.server.receive(data, client.now_s)
        client.take(client.server.take_output())
        self.check_calm(client)

    def test_header_list(self) -> None:
        """Headers that add up to more than the limit, packed or not."""
        client = H2Client(Limits(header_list_bytes=1000))
        client.open(PUT, token="x" * 500)
        client.pump()
        self.assertFalse(client.server.closing)
        client.open(PUT, token="x" * 1000)
        client.pump()
        self.check_calm(client)

    def test_continuation_flood(self) -> None:
        """A header block in more CONTINUATION frames than the limit, though they are empty (CVE-2024-27316)."""
        client = H2Client(Limits(continuation_frames=5))
        client.raw(frames.frame(frames.HEADERS, 0, 1) + frames.frame(frames.CONTINUATION, 0, 1) * 5)
        self.assertFalse(client.server.closing)
        client.raw(frames.frame(frames.CONTINUATION, 0, 1))
        self.check_calm(client)

    def test_unread_answers(self) -> None:
        """A client that asks for more while too much waits for it to read."""
        client = H2Client(Limits(unsent_bytes=100_000))
        client.auto_ack = False
        client.send(LATER, b"")
        client.pump()
        client.service.calls[0].reply(bytes(200_000))
        client.pump()
        self.assertFalse(client.server.closing)  # one large answer is fine
        client.send(LATER, b"")
        client.pump()
        self.check_calm(client)

    def test_unread_acks(self) -> None:
        """A client that does not read, and makes the server talk by frames outside of flow control."""
        client = H2Client(Limits(unsent_bytes=1000), keepalive=Keepalive(policed=False))
        client.server.pause_output()
        for _ in range(100):
            client.server.receive(frames.ping(bytes(8)), client.now_s)
        self.assertTrue(client.server.closing)

    def test_incomplete_requests(self) -> None:
        """Requests that never come to an end, or wait for a paused call, are bounded over all streams."""
        client = H2Client(Limits(held_bytes=50_000))
        for _ in range(4):
            client.send_body(client.open(PUT), framed(bytes(20_000))[:15_000])
            client.pump()
        self.check_calm(client)

    def test_what_was_consumed_is_not_held(self) -> None:
        """Any amount of requests may pass, as long as they do not wait."""
        client = H2Client(Limits(held_bytes=50_000))
        for _ in range(4):
            self.assertEqual(client.request(PUT, put_bytes(value=bytes(40_000))).status, (0, ""))
        stream_id = client.open(WATCH)
        for _ in range(4):
            client.send_body(stream_id, framed(bytes(40_000)))
            client.pump()
        self.assertFalse(client.server.closing)

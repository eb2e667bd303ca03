"""HTTP/2 frames: what we build ``hyperframe`` reads, and payloads that break RFC 9113 are refused."""

from __future__ import annotations

from hyperframe.frame import (
    ContinuationFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.protocols import frames
from twistedkv.protocols.frames import ErrorCode, ProtocolError


def read(data: bytes) -> list[Frame]:
    """The frames of ``data`` as the library reads them."""
    found = []
    while data:
        frame, size = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + size]))
        found.append(frame)
        data = data[9 + size :]
    return found


class BuildingTests(SynchronousTestCase):
    """RFC 9113 §4, §6, writing."""

    def test_connection_frames(self) -> None:
        """SETTINGS, PING, GOAWAY and WINDOW_UPDATE say what they were told."""
        built = read(
            frames.settings([(frames.MAX_CONCURRENT_STREAMS, 7), (frames.INITIAL_WINDOW_SIZE, 2**31 - 1)])
            + frames.SETTINGS_ACK
            + frames.ping(b"12345678")
            + frames.ping(b"12345678", ack=True)
            + frames.goaway(5, ErrorCode.ENHANCE_YOUR_CALM, b"calm")
            + frames.window_update(0, 2**31 - 1)
            + frames.rst_stream(3, ErrorCode.CANCEL)
        )
        one, ack, ping, pong, goaway, update, reset = built
        assert isinstance(one, SettingsFrame)
        assert isinstance(ack, SettingsFrame)
        assert isinstance(ping, PingFrame)
        assert isinstance(pong, PingFrame)
        assert isinstance(goaway, GoAwayFrame)
        assert isinstance(update, WindowUpdateFrame)
        assert isinstance(reset, RstStreamFrame)
        self.assertEqual(one.settings, {3: 7, 4: 2**31 - 1})
        self.assertEqual((ack.settings, set(ack.flags)), ({}, {"ACK"}))
        self.assertEqual((ping.opaque_data, set(ping.flags)), (b"12345678", set()))
        self.assertEqual((pong.opaque_data, set(pong.flags)), (b"12345678", {"ACK"}))
        self.assertEqual((goaway.last_stream_id, goaway.error_code, goaway.additional_data), (5, 11, b"calm"))
        self.assertEqual((update.stream_id, update.window_increment), (0, 2**31 - 1))
        self.assertEqual((reset.stream_id, reset.error_code), (3, 8))

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=200), st.sampled_from([0, frames.END_STREAM]), st.integers(1, 50))
    def test_header_blocks_are_cut_to_frames(self, block: bytes, flags: int, limit: int) -> None:
        """A block goes into one HEADERS and as many CONTINUATION frames as it needs; flags stand where they belong."""
        built = read(frames.headers_frames(9, block, flags, limit))
        self.assertIsInstance(built[0], HeadersFrame)
        self.assertTrue(all(isinstance(frame, ContinuationFrame) for frame in built[1:]))
        self.assertEqual(b"".join(frame.data for frame in built), block)
        self.assertTrue(all(len(frame.data) <= limit for frame in built))
        self.assertEqual(["END_HEADERS" in frame.flags for frame in built], [False] * (len(built) - 1) + [True])
        self.assertEqual("END_STREAM" in built[0].flags, bool(flags))


class ParsingTests(SynchronousTestCase):
    """RFC 9113 §6, reading."""

    def check(self, code: ErrorCode, parse: object, *args: object) -> None:
        """``parse`` refuses ``args`` with ``code``."""
        assert callable(parse)
        with self.assertRaises(ProtocolError) as caught:
            parse(*args)
        self.assertEqual(caught.exception.code, code)

    def test_settings(self) -> None:
        """Settings come in their order; unknown ones pass; values out of their range do not (§6.5.2)."""
        pairs = [(1, 0), (0x99, 2**32 - 1), (1, 5)]
        self.assertEqual(frames.parse_settings(frames.settings(pairs)[9:]), pairs)
        self.check(ErrorCode.FRAME_SIZE_ERROR, frames.parse_settings, bytes(7))
        for pair, code in {
            (frames.ENABLE_PUSH, 2): ErrorCode.PROTOCOL_ERROR,
            (frames.INITIAL_WINDOW_SIZE, 2**31): ErrorCode.FLOW_CONTROL_ERROR,
            (frames.MAX_FRAME_SIZE, 16383): ErrorCode.PROTOCOL_ERROR,
            (frames.MAX_FRAME_SIZE, 2**24): ErrorCode.PROTOCOL_ERROR,
        }.items():
            self.check(code, frames.parse_settings, frames.settings([pair])[9:])

    def test_words(self) -> None:
        """A RST_STREAM or WINDOW_UPDATE payload is exactly four bytes."""
        self.assertEqual(frames.parse_word(b"\0\0\1\0"), 256)
        for size in (0, 3, 5):
            self.check(ErrorCode.FRAME_SIZE_ERROR, frames.parse_word, bytes(size))

    def test_goaway(self) -> None:
        """A GOAWAY comes back; the reserved bit is ignored; a short one is refused."""
        self.assertEqual(frames.parse_goaway(b"\x80\0\0\5\0\0\0\x0bwhy"), (5, 11, b"why"))
        self.check(ErrorCode.FRAME_SIZE_ERROR, frames.parse_goaway, bytes(7))

    def test_unpad(self) -> None:
        """Padding and priority fields are taken off; padding beyond the frame is refused (§6.1, §6.2)."""
        self.assertEqual(frames.unpad(0, b"abc"), b"abc")
        self.assertEqual(frames.unpad(frames.PADDED, b"\2abc\0\0"), b"abc")
        self.assertEqual(frames.unpad(frames.PRIORITY_FLAG, b"\0\0\0\0\1abc"), b"abc")
        self.assertEqual(frames.unpad(frames.PADDED | frames.PRIORITY_FLAG, b"\1\0\0\0\0\1abc\0"), b"abc")
        self.check(ErrorCode.FRAME_SIZE_ERROR, frames.unpad, frames.PADDED, b"")
        self.check(ErrorCode.PROTOCOL_ERROR, frames.unpad, frames.PADDED, b"\3ab")
        self.check(ErrorCode.PROTOCOL_ERROR, frames.unpad, frames.PRIORITY_FLAG, b"\0\0")

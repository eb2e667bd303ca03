"""Keepalive of a gRPC server, by a clock that is passed in: what etcd 3.5.1 did to the same pings is said at each."""

from __future__ import annotations

from itertools import pairwise
from math import inf

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.grpcpeers import LATER, PUT, WATCH, H2Client, framed, put_bytes
from twistedkv.protocols import frames
from twistedkv.protocols.frames import ErrorCode, ProtocolError
from twistedkv.protocols.keepalive import IDLE_MIN_TIME_S, MAX_STRIKES, NO_MIN_TIME_S, Keepalive, PingPolice

PING = frames.ping(b"12345678")
ACK = frames.ping(b"12345678", ack=True)
KEEPALIVE_PING = frames.ping(bytes(8))


class PingPoliceTests(SynchronousTestCase):
    """The strikes themselves."""

    @given(st.lists(st.tuples(st.sampled_from([0.0, 4.9, 5.0, 6.0, 7199.0, 7200.0]), st.booleans(), st.booleans())))
    def test_three_soon_pings_in_a_row(self, pings: list[tuple[float, bool, bool]]) -> None:
        """A client is thrown out at the third ping that came too soon with no answer since the first of them."""
        police = PingPolice(5.0)
        now_s, progress, soon = 100.0, 0, 0
        for number, (gap_s, answered, idle) in enumerate(pings):
            now_s += gap_s
            progress += answered
            if answered:
                soon = 0
            elif number and gap_s < (IDLE_MIN_TIME_S if idle else 5.0):
                soon += 1
            if soon > MAX_STRIKES:
                with self.assertRaises(ProtocolError):
                    police.count(now_s, progress, idle)
                return
            police.count(now_s, progress, idle)

    def test_least_time_of_zero(self) -> None:
        """Without a least time grpc-go's own of five minutes holds (etcd closed at the fourth ping, 5.5 s apart)."""
        for gap_s, thrown_out in ((NO_MIN_TIME_S, False), (NO_MIN_TIME_S - 0.1, True)):
            police = PingPolice(0.0)
            for number in range(3):
                police.count(gap_s * number, 0, False)
            if thrown_out:
                with self.assertRaises(ProtocolError):
                    police.count(gap_s * 3, 0, False)
            else:
                police.count(gap_s * 3, 0, False)


class PolicedTests(SynchronousTestCase):
    """The pings of a client, as they come over a connection."""

    def ping(self, client: H2Client, gap_s: float = 0.0) -> None:
        client.now_s += gap_s
        client.h2.ping(b"12345678")
        client.pump()

    def pings(self, client: H2Client, count: int, gap_s: float = 0.0) -> None:
        for _ in range(count):
            self.ping(client, gap_s)

    def test_fourth_ping_without_a_stream(self) -> None:
        """The first ping is free, three more in two hours are too many: all are answered, then GOAWAY (as etcd)."""
        client = H2Client()
        self.pings(client, 3, gap_s=2000.0)
        self.assertFalse(client.server.closing)
        client.server.receive(PING, client.now_s)
        self.assertEqual(
            client.server.take_output(), ACK + frames.goaway(0, ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings")
        )
        self.assertTrue(client.server.closing)

    def test_fourth_ping_with_a_stream(self) -> None:
        """With an open stream they are too many below the least time; GOAWAY names the stream and it is cancelled."""
        client = H2Client(keepalive=Keepalive(min_time_s=1.0))
        client.open(WATCH)
        client.pump()
        self.pings(client, 20, gap_s=1.0)
        self.assertFalse(client.server.closing)
        self.pings(client, 3, gap_s=0.9)
        assert client.goaway is not None
        self.assertEqual(client.goaway.additional_data, b"too_many_pings")
        self.assertEqual(client.goaway.last_stream_id, 1)
        self.assertEqual(client.service.cancelled, client.service.calls)

    def test_an_answer_forgives(self) -> None:
        """Three pings for each answer are never too many (etcd let that pass for as long as it was tried)."""
        for answered in (put_bytes(), put_bytes(key=b"")):  # by a message, and by trailers alone
            client = H2Client()
            for _ in range(20):
                client.request(PUT, answered)
                self.pings(client, 3)
            self.assertFalse(client.server.closing)
            self.pings(client, 1)
            self.assertTrue(client.server.closing)

    def test_answers_forgive_though_the_client_gives_credit(self) -> None:
        """Data counts as an answer also where a WINDOW_UPDATE of its size came before the ping."""
        client = H2Client()
        client.open(WATCH)
        client.pump()
        (call,) = client.service.calls
        for _ in range(20):
            call.send(b"event")
            size = len(framed(b"event"))
            client.server.take_output()
            client.server.receive(frames.window_update(0, size) + frames.window_update(1, size) + PING, client.now_s)
            self.assertIn(ACK, client.server.take_output())
        self.assertFalse(client.server.closing)

    def test_credit_does_not_forgive(self) -> None:
        """Frames of the client, and what answers them alone, are no answers of the server."""
        client = H2Client()
        client.open(WATCH)
        client.pump()
        for _ in range(4):
            client.raw(frames.window_update(0, 1000) + frames.settings([]) + PING)
        self.assertTrue(client.server.closing)

    def test_bandwidth_pings_never_count(self) -> None:
        """A client that pings whenever data comes and no ping is under way, as grpc-go and grpc-core do, may stay."""
        client = H2Client()
        client.auto_ack = False
        client.open(LATER)
        stream_id = client.open(WATCH)
        client.pump()
        call = client.service.calls[-1]
        under_way = False
        for number in range(200):
            call.send(bytes(number % 7))
            output = client.server.take_output()
            if ACK in output:
                under_way = False
            after_ack = output.rpartition(ACK)[2]
            sent = frames.window_update(0, 100) + frames.window_update(stream_id, 100)
            if after_ack and not under_way:
                under_way = True
                sent += PING
            client.server.receive(sent, client.now_s)
            if number % 3 == 0:  # more data crosses the ping
                call.send(b"x")
            self.assertFalse(client.server.closing)

    def test_acks_do_not_count(self) -> None:
        """Answers to our pings are no pings."""
        client = H2Client()
        for _ in range(10):
            client.raw(ACK)
        self.assertFalse(client.server.closing)

    def test_unpoliced(self) -> None:
        """Where pings are not policed they are answered, any number of them."""
        client = H2Client(keepalive=Keepalive(policed=False))
        self.pings(client, 100)
        self.assertFalse(client.server.closing)


class SilenceTests(SynchronousTestCase):
    """A client that says nothing."""

    def setUp(self) -> None:
        self.client = H2Client(keepalive=Keepalive(interval_s=60.0, timeout_s=20.0))
        self.server = self.client.server
        self.start_s = self.client.now_s

    def test_silent_client_is_pinged_and_given_up(self) -> None:
        """After the interval comes a ping, once; after the time-out the client is dead."""
        start_s = self.start_s
        self.assertEqual(self.server.keep_alive(start_s + 59.9), start_s + 60)
        self.assertEqual(self.server.take_output(), b"")
        announced = self.client.announced
        self.assertEqual(self.server.keep_alive(start_s + 61), start_s + 81)
        self.assertEqual(self.client.announced, announced + 1)
        self.assertEqual(self.server.take_output(), KEEPALIVE_PING)
        self.assertEqual(self.server.keep_alive(start_s + 80.9), start_s + 81)
        self.assertEqual(self.server.take_output(), b"")
        self.assertIsNone(self.server.keep_alive(start_s + 81))

    def test_anything_is_a_sign_of_life(self) -> None:
        """The answer to the ping, or any other bytes, even part of a frame, begin a new interval."""
        for sign in (frames.ping(bytes(8), ack=True), frames.window_update(0, 1), b"\0"):
            start_s = self.client.now_s
            self.assertEqual(self.server.keep_alive(start_s + 60), start_s + 80)
            self.assertEqual(self.server.take_output(), KEEPALIVE_PING)
            self.client.now_s = start_s + 79
            self.server.receive(sign, self.client.now_s)
            self.assertEqual(self.server.keep_alive(start_s + 80), start_s + 139)
            self.assertEqual(self.server.take_output(), b"")

    def test_busy_client_is_not_pinged(self) -> None:
        """A client that speaks within each interval never sees a ping."""
        for at_s in range(0, 600, 59):
            self.server.receive(frames.window_update(0, 1), self.start_s + at_s)
            self.server.keep_alive(self.start_s + at_s + 58)
        self.assertEqual(self.server.take_output(), b"")

    def test_our_pings_are_no_strikes(self) -> None:
        """A client that answers our pings for long, and does nothing else, may stay."""
        client = H2Client(keepalive=Keepalive(interval_s=1.0, timeout_s=1.0))
        for _ in range(50):
            client.now_s += 1.0
            self.assertEqual(client.server.keep_alive(client.now_s), client.now_s + 1.0)
            client.pump()
        self.assertFalse(client.server.closing)

    def test_zero_switches_it_off(self) -> None:
        """An interval or a time-out of 0 means that no client is pinged, however long it is silent."""
        for off in (Keepalive(interval_s=0.0), Keepalive(timeout_s=0.0)):
            client = H2Client(keepalive=off)
            self.assertEqual(client.server.keep_alive(client.now_s + 1e9), inf)
            self.assertEqual(client.server.take_output(), b"")

    def test_connection_that_ends_is_left_alone(self) -> None:
        """A connection that is closing, or lost, is not pinged any more."""
        self.server.lost()
        self.assertEqual(self.server.keep_alive(self.start_s + 1e9), inf)

    @given(st.lists(st.floats(0.0, 100.0), max_size=30))
    def test_called_when_due(self, gaps_s: list[float]) -> None:
        """Called each time that it asked for, it gives up a client after interval and time-out, not before."""
        client = H2Client(keepalive=Keepalive(interval_s=60.0, timeout_s=20.0))
        heard = [client.now_s]
        for gap_s in gaps_s:
            heard.append(heard[-1] + gap_s)
        due_s = client.server.keep_alive(client.now_s)
        for before_s, at_s in pairwise(heard):
            while due_s is not None and due_s < at_s:
                due_s = client.server.keep_alive(due_s)
            if due_s is None:
                self.assertGreaterEqual(at_s - before_s, 80.0)
                return
            client.server.receive(frames.window_update(0, 1), at_s)
        self.assertLess(max((after - before for before, after in pairwise(heard)), default=0.0), 80.001)

"""HTTP/1.1 on the client port, read by read: what goes out together and when, and requests that come in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from operator import is_
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.httpfakes import Wire, parse, request
from tests.protocols.test_http1 import chunked
from tests.protocols.test_http1v2 import BY_WEB, FORM, GET, put
from twistedkv.protocols.answers import CORS, JSON, MEASURED_BYTES, STATUS_LINES, Answer
from twistedkv.protocols.goform import FORM_TYPE
from twistedkv.protocols.http1 import CHECK_INTERVAL_S, IDLE_TIMEOUT_S, MAX_WAITING_BYTES, REQUEST_TIMEOUT_S
from twistedkv.protocols.http1routes import MAX_DRAINED_BYTES

CLOSE = "Connection: close"
SMALL = (
    b"PUT /v2/keys/a HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\nContent-Length: 7\r\n\r\nvalue=1" % FORM_TYPE.encode()
)


class TurnCase(SynchronousTestCase):
    """Connections of one server, each read of which may be in a bracket."""

    def setUp(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Another server, with one connection."""
        self.wire = Wire()
        self.protocol: Any = self.wire.protocol
        self.transport: Any = self.wire.transport

    def feed(self, pieces: Iterable[bytes], *, bracketed: bool) -> None:
        """One read after the other."""
        for piece in pieces:
            with self.wire.turn if bracketed else nullcontext():
                self.protocol.dataReceived(piece)

    @contextmanager
    def counted(self) -> Iterator[list[bytes]]:
        """What is written, write by write."""
        writes: list[bytes] = []
        patch = self.patch(self.transport, "write", writes.append)
        yield writes
        patch.restore()

    def values(self, answers: bytes) -> list[str]:
        """The values that answers in a row show, none of which is long."""
        return [
            json.loads(each.rpartition(b"\r\n\r\n")[2])["node"]["value"] for each in answers.split(b"HTTP/1.1 ")[1:]
        ]


class BracketTests(TurnCase):
    """A read may be one of many that are answered together."""

    def test_answers_go_out_at_the_end_of_the_bracket(self) -> None:
        """Each connection's in one write and in the order of its requests; nothing goes out before."""
        other: Any = self.wire.another()
        sent: list[tuple[str, bytes]] = []
        self.patch(self.transport, "write", lambda data: sent.append(("one", data)))
        self.patch(other.transport, "write", lambda data: sent.append(("other", data)))
        with self.wire.turn:
            self.protocol.dataReceived(put("1"))
            other.dataReceived(put("2"))
            with self.wire.turn:
                self.protocol.dataReceived(GET + put("3"))
            other.dataReceived(GET)
            self.protocol.dataReceived(GET[:10])
            self.protocol.dataReceived(GET[10:])
            self.assertEqual((sent, len(self.wire.keys.proposed)), ([], 3))
        (first, one), (second, others) = sent
        self.assertEqual((first, self.values(one)), ("one", ["1", "2", "3", "3"]))
        self.assertEqual((second, self.values(others)), ("other", ["2", "3"]))

    def test_without_a_bracket_they_go_out_at_once(self) -> None:
        """In one write for each read, and nothing is left to be done."""
        with self.counted() as writes:
            self.feed([put("1") + put("2"), GET], bracketed=False)
        self.assertEqual([self.values(each) for each in writes], [["1", "2"], ["2"]])
        self.assertEqual(len(self.wire.clock.getDelayedCalls()), 1)  # which looks after all connections

    def test_what_is_answered_by_then_may_go_out_before(self) -> None:
        """When the bracket takes long; the rest follows at its end."""
        with self.counted() as writes, self.wire.turn:
            self.protocol.dataReceived(put("1") + put("2"))
            self.wire.turn.flush()
            self.assertEqual([self.values(each) for each in writes], [["1", "2"]])
            self.protocol.dataReceived(put("3"))
            self.assertEqual(len(writes), 1)
            self.protocol.dataReceived(GET)
        self.assertEqual([self.values(each) for each in writes], [["1", "2"], ["3", "3"]])

    def test_answers_that_come_later_go_out_with_the_others(self) -> None:
        """A write that is applied while others are read, with what is pipelined behind it, in order."""
        self.wire.keys.held = []
        with self.counted() as writes:
            self.feed([put("1") + GET, put("2")], bracketed=True)
            self.assertEqual((writes, len(self.wire.keys.proposed)), ([], 1))
            with self.wire.turn:
                self.wire.keys.release()
                self.protocol.dataReceived(GET)
                self.assertEqual(writes, [])
        self.assertEqual([self.values(each) for each in writes], [["1", "1", "2", "2"]])

    def test_a_client_that_does_not_read_is_not_written_to(self) -> None:
        """Nor served, not even at the end of the bracket in which it stopped to; it gets all in one write later."""
        with self.counted() as writes:
            with self.wire.turn:
                self.protocol.dataReceived(put("1"))
                self.transport.producer.pauseProducing()
                self.protocol.dataReceived(put("2"))
            self.assertEqual((writes, len(self.wire.keys.proposed)), ([], 1))
            self.transport.producer.resumeProducing()
        self.assertEqual([self.values(each) for each in writes], [["1", "2"]])

    def test_a_client_that_goes_within_the_bracket(self) -> None:
        """Nothing is written to it, and nothing is left; what it has asked for is done."""
        with self.counted() as writes, self.wire.turn:
            self.protocol.dataReceived(put("1") + put("2"))
            self.wire.lose()
            self.protocol.dataReceived(put("3"))
        self.assertEqual((writes, len(self.wire.keys.proposed)), ([], 2))
        self.assertEqual(self.wire.clock.getDelayedCalls(), [])

    def test_going_away_within_the_bracket(self) -> None:
        """What was answered goes out, and then the connection ends."""
        with self.wire.turn:
            self.protocol.dataReceived(put("1") + SMALL[:9])
            self.protocol.go_away()
        self.assertEqual((self.values(self.wire.taken()), self.transport.disconnecting), (["1"], True))
        self.assertEqual(self.wire.clock.getDelayedCalls(), [])

    def test_what_is_handed_over_comes_behind_what_was_answered(self) -> None:
        """Also if that was not sent yet, and whatever hands it over."""
        for other in (
            GET.replace(b"\r\n", f"\r\n{BY_WEB}\r\n".encode(), 1),
            chunked("/v2/keys/foo", b"value=2").replace(b"POST", b"PUT").replace(b"Host", f"{FORM}\r\nHost".encode()),
        ):
            self.renew()
            with self.wire.turn:
                self.protocol.dataReceived(put("1"))
                self.protocol.dataReceived(other + GET)
            self.assertIsNotNone(self.protocol._web)
            last = "2" if b"chunked" in other else "1"
            self.assertEqual(self.values(self.wire.taken()), ["1", last, last])

    def test_what_is_refused_comes_behind_what_was_answered(self) -> None:
        """And ends the connection; what comes after it in the same bracket is not looked at."""
        with self.counted() as writes, self.wire.turn:
            self.protocol.dataReceived(put("1") + b"nonsense\r\n\r\n" + put("2"))
            self.protocol.dataReceived(put("3"))
            self.assertEqual((writes, self.transport.disconnecting), ([], False))
        self.assertEqual((len(writes), self.transport.disconnecting), (1, True))
        first, _, refusal = writes[0].partition(b"HTTP/1.1 400 Bad Request\r\n")
        self.assertEqual((self.values(first), refusal.count(b"HTTP/1.1")), (["1"], 0))
        self.assertEqual(len(self.wire.keys.proposed), 1)

    def test_a_client_that_sends_ahead_is_made_to_wait(self) -> None:
        """Until what it has sent is served, all of which is answered in order."""
        self.wire.keys.held = []
        count = MAX_WAITING_BYTES // len(GET) + 1
        with self.wire.turn:
            self.protocol.dataReceived(put("1"))
            for _ in range(count):
                self.protocol.dataReceived(GET)
        self.assertEqual(self.transport.producerState, "paused")
        with self.wire.turn:
            self.wire.keys.release()
        self.assertEqual(self.transport.producerState, "producing")
        self.assertEqual(self.values(self.wire.taken()), ["1"] * (count + 1))


class PiecesTests(TurnCase):
    """Reads end where they end."""

    def test_cut_anywhere(self) -> None:
        """Requests in a row are answered like whole ones, in a bracket or not, be the first one answered at once or
        not."""
        data = SMALL + GET.replace(b"foo", b"a") + SMALL.replace(b"value=1", b"value=2")
        whole = self.wire.send(data)
        self.assertEqual(self.values(whole), ["1", "1", "2"])
        for cut in range(1, len(data)):
            for bracketed, held in ((True, False), (False, False), (True, True), (False, True)):
                self.renew()
                if held:
                    self.wire.keys.held = []
                self.feed([data[:cut], data[cut:]], bracketed=bracketed)
                self.assertEqual(len(self.wire.keys.proposed), 1 if held else 2)
                self.wire.keys.release()
                self.assertEqual(self.wire.taken(), whole, (cut, bracketed, held))
                self.assertEqual(len(self.wire.keys.proposed), 2)

    def test_byte_by_byte(self) -> None:
        """In brackets of their own, in one, or in none."""
        whole = Wire().send(SMALL + SMALL)
        pieces = [bytes((byte,)) for byte in SMALL + SMALL]
        for bracketed in (True, False):
            self.renew()
            self.feed(pieces, bracketed=bracketed)
            self.assertEqual(self.wire.taken(), whole)
        self.renew()
        with self.wire.turn:
            self.feed(pieces, bracketed=False)
            self.assertEqual(self.transport.value(), b"")
        self.assertEqual(self.wire.taken(), whole)

    def test_the_last_request_of_a_connection(self) -> None:
        """All before it are answered, and so is it, with the word that the connection ends; nothing after it is."""
        last = put("2", "/v2/keys/foo", CLOSE)
        data = put("1") + last + put("3")
        whole = Wire().send(data)
        first, second = (b"HTTP/1.1 " + each for each in whole.split(b"HTTP/1.1 ")[1:])
        self.assertNotIn("connection", parse(first)[1])
        self.assertEqual(parse(second)[1]["connection"], "close")
        self.assertEqual(self.values(whole), ["1", "2"])
        for cut in range(1, len(data)):
            for bracketed, held in ((True, False), (False, False), (True, True)):
                self.renew()
                if held:
                    self.wire.keys.held = []
                self.feed([data[:cut], data[cut:]], bracketed=bracketed)
                with self.wire.turn:
                    self.wire.keys.release()
                    self.assertIs(self.transport.disconnecting, not held)
                self.assertEqual(self.wire.taken(), whole, (cut, bracketed, held))
                self.assertTrue(self.transport.disconnecting)
                self.feed([put("4")], bracketed=bracketed)
                self.assertEqual((self.wire.taken(), len(self.wire.keys.proposed)), (b"", 2))
                self.assertEqual(self.wire.clock.getDelayedCalls(), [])

    def test_the_last_request_in_a_bracket(self) -> None:
        """The connection ends with the bracket, after all answers are sent by one write."""
        with self.counted() as writes, self.wire.turn:
            self.protocol.dataReceived(put("1"))
            self.protocol.dataReceived(put("2", "/v2/keys/foo", CLOSE) + put("3"))
            self.protocol.dataReceived(put("4"))
            self.assertEqual((writes, self.transport.disconnecting), ([], False))
        self.assertEqual(([self.values(each) for each in writes], self.transport.disconnecting), ([["1", "2"]], True))
        self.assertEqual(len(self.wire.keys.proposed), 2)

    def test_a_long_body_is_put_together_once(self) -> None:
        """However many reads it takes: what has arrived is kept as it came, and the head looked at before and after."""
        value = "x" * 200_000
        head, _, body = put(value).partition(b"\r\n\r\n")
        pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)]
        for bracketed in (True, False):
            self.renew()
            routes, looks = self.wire.front.routes, list[bytes]()
            assert routes is not None
            find = routes.find

            def looking(block: bytes, looks: list[bytes] = looks, find: Any = find) -> Any:
                looks.append(block)
                return find(block)

            self.patch(routes, "find", looking)
            self.feed([GET + head + b"\r\n\r\n", *pieces[:-1]], bracketed=bracketed)
            self.assertEqual(parse(self.wire.taken())[0], 404)
            before = looks.count(head)
            self.assertLessEqual(before, 2)
            kept = self.protocol._parts
            self.assertEqual(len(kept), len(pieces))
            self.assertTrue(all(map(is_, kept[1:], pieces)))
            self.feed([pieces[-1] + GET], bracketed=bracketed)
            self.assertEqual((looks.count(head) - before, len(looks)), (1, before + 3))
            self.assertTrue(self.wire.keys.proposed[0].Val == value.encode())
            self.assertEqual(self.wire.taken().count(b"HTTP/1.1 20"), 2)


class TimeTests(TurnCase):
    """Neither brackets nor pieces put time-outs off, or bring them near."""

    def test_a_client_that_is_always_ahead_is_not_cut_off(self) -> None:
        """Each request has a minute of its own, also one that begins behind the end of the one before."""
        for bracketed in (True, False):
            self.renew()
            self.feed([SMALL + SMALL[:30]], bracketed=bracketed)
            for _ in range(5):
                self.wire.clock.pump([9] * 6)
                self.feed([SMALL[30:] + SMALL[:30]], bracketed=bracketed)
                self.assertFalse(self.wire.transport.disconnected)

    def test_a_request_that_does_not_end_is_cut_off(self) -> None:
        """A minute after it has begun, whatever part of it is missing, and not before."""
        for bracketed in (True, False):
            for first in (b"", put("0")):
                for cut in (2, 30, SMALL.index(b"\r\n\r\n") + 2, len(SMALL) - 7, len(SMALL) - 1):
                    self.renew()
                    self.wire.clock.advance(5)
                    self.feed([first + SMALL[: cut - 1]], bracketed=bracketed)
                    self.wire.clock.pump([5] * 6)
                    self.feed([SMALL[cut - 1 : cut]], bracketed=bracketed)
                    while self.wire.clock.seconds() < 5 + REQUEST_TIMEOUT_S - 1:
                        self.assertFalse(self.transport.disconnected)
                        self.wire.clock.advance(5)
                    self.wire.clock.advance(CHECK_INTERVAL_S)
                    self.assertTrue(self.transport.disconnected, (bracketed, first, cut))

    def test_an_idle_connection_is_closed(self) -> None:
        """Five minutes after the last request of the last read, not while a request is being carried out."""
        for bracketed in (True, False):
            self.renew()
            for _ in range(3):
                self.wire.clock.pump([IDLE_TIMEOUT_S / 10] * 9)
                self.feed([put("1"), GET[:9], GET[9:]], bracketed=bracketed)
            self.wire.keys.held = []
            self.feed([put("2")], bracketed=bracketed)
            self.wire.clock.pump([CHECK_INTERVAL_S] * 100)
            self.assertFalse(self.transport.disconnecting)
            with self.wire.turn:
                self.wire.keys.release()
            self.feed([GET], bracketed=bracketed)
            self.wire.clock.pump([CHECK_INTERVAL_S] * int(IDLE_TIMEOUT_S / CHECK_INTERVAL_S - 1))
            self.assertFalse(self.transport.disconnecting)
            self.wire.clock.pump([CHECK_INTERVAL_S] * 2)
            self.assertTrue(self.transport.disconnecting)
            self.assertEqual(self.wire.clock.getDelayedCalls(), [])


class EncodingTests(SynchronousTestCase):
    """One answer."""

    def test_all_kinds_of_answers(self) -> None:
        """Status, fields, date, how long the body is, whether the connection ends, and the body, if it has one."""
        front = Wire().front
        for status, body in product((200, 201, 404), (b"", b"{}", b"x" * (MEASURED_BYTES + 1))):
            for measured, close, has_body in product((True, False), repeat=3):
                encoded = front.encode(Answer(status, JSON, body, measured), close, has_body)
                head, _, shown = encoded.partition(b"\r\n\r\n")
                lines = [*head.split(b"\r\n")[4:], *shown.split(b"\r\n")]  # behind those of CORS
                framing = (
                    [b"Content-Length: %d" % len(body)] if measured else [b"Transfer-Encoding: chunked"] * has_body
                )
                content = [body if has_body else b""]
                if has_body and not measured:
                    content = [b"%x" % len(body), body, b"0", b"", b""]
                self.assertTrue(encoded.startswith(STATUS_LINES[status] + CORS.block))
                self.assertEqual(
                    lines,
                    [
                        b"Content-Type: application/json",
                        b"Date: Thu, 01 Jan 1970 00:00:00 GMT",
                        *framing,
                        *([b"Connection: close"] * close),
                        *content,
                    ],
                )


class RouteTests(TurnCase):
    """Keys that need no decoding are found in a short way."""

    def test_keys_that_need_no_decoding_are_found_as_others_are(self) -> None:
        """What is proposed and answered is the same for the same key with a character escaped."""
        long = b"value=" + b"2" * MAX_DRAINED_BYTES
        for method, query, body, headers in (
            ("PUT", "", b"value=1", (FORM,)),
            ("PUT", "?", b"value=1", (FORM,)),
            ("PUT", "?ttl=5", b"value=1", (FORM,)),
            ("PUT", "?ttl=%zz", b"value=1", (FORM,)),
            ("PUT", "?value=2;dir", b"value=1", (FORM,)),
            ("PUT", "", b"value=1", (FORM, CLOSE)),
            ("PUT", "", b"value=1", (FORM, "Host: y")),
            ("PUT", "", b"value=1", (FORM, "Expect: 100-continue")),
            ("PUT", "", b"value=1", ()),
            ("PUT", "", long, (FORM,)),
            ("PUT", "", long, ("Content-Type: text/plain",)),
            ("POST", "", b"value=1", (FORM,)),
            ("DELETE", "", b"", ()),
            ("DELETE", "?recursive=true", long, ()),
            ("GET", "", b"", ()),
            ("GET", "?wait=true", b"", ()),
            ("GET", "?quorum=true&recursive=true", b"", (CLOSE,)),
            ("GET", "", b"value=1", ()),
        ):
            found: list[object] = []
            for path in ("/v2/keys/foo/b-a_r.~", "/v2/keys/foo/%62-a_r.~"):
                self.renew()
                answer = self.wire.send(request(path + query, body, method, *headers))
                found.append((answer, self.wire.keys.encoded, self.wire.keys.plain, self.transport.disconnecting))
                self.assertIsNone(self.protocol._web)
            self.assertTrue(answer)
            self.assertEqual(found[0], found[1], (method, query, headers))

"""The v2 API over HTTP/1.1: in place and by twisted.web, long polls and streams, bodies, paths, and ten thousand."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.httpfakes import PEER, Wire, parse, request
from twistedkv.protocols.answers import NO_FIELDS, Answer
from twistedkv.protocols.goform import FORM_TYPE, MAX_BODY_BYTES
from twistedkv.protocols.http1 import CHECK_INTERVAL_S, IDLE_TIMEOUT_S, MAX_WAITING_BYTES
from twistedkv.protocols.http1routes import MAX_DRAINED_BYTES
from twistedkv.protocols.v2keys import MAX_UNSENT_EVENTS
from twistedkv.protocols.web import AccessRules

FORM = f"Content-Type: {FORM_TYPE}"
GET = request("/v2/keys/foo", b"", "GET")
WAIT = request("/v2/keys/foo?wait=true", b"", "GET")
STREAM = request("/v2/keys/foo?wait=true&stream=true", b"", "GET")
BY_WEB = "Connection: keep-alive, x"  # is for twisted.web


def put(value: str, path: str = "/v2/keys/foo", *headers: str) -> bytes:
    """A PUT of a value."""
    return request(path, f"value={value}".encode(), "PUT", FORM, *headers)


def chunks(data: bytes) -> tuple[list[bytes], bytes]:
    """The chunks at the start of ``data``, and what is behind the last one."""
    found = []
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return found, rest[2:]
        found.append(rest[:length])
        data = rest[length + 2 :]
    return found, b""


def body(answer: bytes) -> Any:
    """The JSON in one whole answer."""
    return json.loads(parse(answer)[2])


class FastWayTests(SynchronousTestCase):
    def test_an_answer_has_etcds_fields_in_its_order(self) -> None:
        """And its spelling."""
        answer = Wire().send(put("bar"))
        self.assertEqual(
            answer,
            b"HTTP/1.1 201 Created\r\n"
            b"Access-Control-Allow-Headers: accept, content-type, authorization\r\n"
            b"Access-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE\r\n"
            b"Access-Control-Allow-Origin: *\r\n"
            b"Content-Type: application/json\r\n"
            b"X-Etcd-Cluster-Id: abcdef\r\n"
            b"X-Etcd-Index: 1\r\n"
            b"X-Raft-Index: 101\r\n"
            b"X-Raft-Term: 2\r\n"
            b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
            b"Content-Length: 88\r\n\r\n"
            b'{"action":"set","node":{"key":"/foo","value":"bar","modifiedIndex":1,"createdIndex":1}}\n',
        )

    def test_pipelined_requests_are_answered_in_order(self) -> None:
        """Each sees what those before it did, and all answers go out together."""
        wire = Wire()
        answers = wire.send(put("1") + GET + put("2") + request("/v2/keys/foo", b"", "DELETE") + GET)
        found = [json.loads(part.rpartition(b"\r\n\r\n")[2]) for part in answers.split(b"HTTP/1.1 ")[1:]]
        self.assertEqual(
            [each.get("action", each.get("errorCode")) for each in found], ["set", "get", "set", "delete", 100]
        )

    def test_writes_that_take_their_time_hold_those_behind_them_up(self) -> None:
        """They are carried out one after the other."""
        wire = Wire()
        wire.keys.held = []
        self.assertEqual(wire.send(put("1") + put("2")), b"")
        self.assertEqual(len(wire.keys.proposed), 1)
        wire.keys.release()
        self.assertEqual(wire.taken().count(b"HTTP/1.1 20"), 2)

    def test_equal_heads_ask_for_the_same_with_other_bodies(self) -> None:
        """A remembered head says nothing about the body."""
        wire = Wire()
        self.assertEqual([body(wire.send(put(value)))["node"]["value"] for value in "abc"], ["a", "b", "c"])
        self.assertEqual(len(wire.front.routes or ()), 1)
        self.assertEqual(body(wire.send(GET))["node"]["value"], "c")

    def test_head_has_the_length_and_no_body(self) -> None:
        """Unless it would be long; the connection goes on. A body of its own is no HEAD's, as Go has it."""
        wire = Wire()
        wire.send(put("bar"))
        head, fields, rest = parse(wire.send(GET.replace(b"GET", b"HEAD")), has_body=False)
        self.assertEqual((head, fields["content-length"], rest), (200, "88", b""))
        wire.send(put("x" * 3000))
        head, fields, rest = parse(wire.send(GET.replace(b"GET", b"HEAD")), has_body=False)
        self.assertEqual((head, rest, set(fields) & {"content-length", "transfer-encoding"}), (200, b"", set()))
        self.assertEqual(parse(wire.send(request("/v2/keys/foo", b"x=1", "HEAD")))[0], 400)
        self.assertTrue(wire.transport.disconnecting)

    def test_an_answer_without_content_has_no_length(self) -> None:
        """RFC 9110 §8.6: a 204 says nothing of how long its body is."""
        encoded = Wire().front.encode(Answer(204, NO_FIELDS, b""), False)
        self.assertTrue(encoded.startswith(b"HTTP/1.1 204 No Content\r\n"))
        self.assertNotIn(b"Content-Length", encoded)

    def test_long_answers_are_one_chunk(self) -> None:
        """As Go sends what is longer than its buffer."""
        wire = Wire()
        wire.send(put("x" * 3000))
        status, fields, rest = parse(wire.send(GET))
        (chunk,), left = chunks(rest)
        self.assertEqual((status, fields["transfer-encoding"], left), (200, "chunked", b""))
        self.assertEqual(len(json.loads(chunk)["node"]["value"]), 3000)

    def test_paths_are_decoded(self) -> None:
        """Escaped or not, and a "+" is one."""
        wire = Wire()
        for target, key in (
            ("/v2/keys/sp%20ace", "/sp ace"),
            ("/v2/keys/%C3%A9", "/\xe9"),
            ("/v2/keys/\xc3\xa9", "/\xe9"),
            ("/v2/keys/a%2Fb", "/a/b"),
            ("/v2/keys%2Fslash", "/slash"),
            ("/v2/keys/a+b;c#d", "/a+b;c#d"),
            ("/v2/keys/...", "/..."),
            ("/v2/keys/tr/", "/tr"),
            ("/v2/keys/%25", "/%"),
        ):
            self.assertEqual(body(wire.send(put("x", target)))["node"]["key"], key)
        self.assertIsNone(wire.protocol._web)  # type: ignore[attr-defined]

    def test_targets_that_are_none_are_refused(self) -> None:
        """With Go's 400, which ends the connection."""
        for target in ("/v2/keys/%zz", "/v2/keys/%", "v2/keys/x", "/v2/keys/\x7f", "/v2/keys/%4?x=1"):
            wire = Wire()
            self.assertTrue(wire.send(put("x", target)).endswith(b"Connection: close\r\n\r\n400 Bad Request"), target)
            self.assertEqual((wire.keys.proposed, wire.transport.disconnecting), ([], True))

    def test_expectations(self) -> None:
        """A form is asked for; what is not needed is not waited for, and the connection ends. Other ones fail."""
        wire = Wire()
        whole = put("1", "/v2/keys/foo", "Expect: 100-continue")
        cut = len(whole) - 3
        self.assertEqual(wire.send(whole[:cut]), b"HTTP/1.1 100 Continue\r\n\r\n")
        self.assertEqual(body(wire.send(whole[cut:]))["action"], "set")
        self.assertTrue(wire.send(whole).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"))
        delete = request("/v2/keys/foo", b"value=1", "DELETE", "Expect: 100-continue")
        status, fields, _ = parse(wire.send(delete[: -len(b"value=1")]))
        self.assertEqual((status, fields["connection"], wire.transport.disconnecting), (200, "close", True))
        self.assertEqual(parse(Wire().send(put("1", "/v2/keys/foo", "Expect: nonsense")))[0], 417)

    def test_bodies_may_be_as_long_as_forms(self) -> None:
        """Beyond that they are refused; the connection lives on only if they were read to their end."""
        wire = Wire()
        length = MAX_BODY_BYTES - len("value=")
        _, _, rest = parse(wire.send(put("x" * length)))
        self.assertEqual(len(json.loads(chunks(rest)[0][0])["node"]["value"]), length)
        for more, close in ((1, False), (MAX_DRAINED_BYTES + 1, True)):
            data = put("x" * (length + more))
            status, fields, text = parse(wire.send(data if not close else data[:1000]))
            self.assertEqual((status, fields.get("connection")), (400, "close" if close else None))
            self.assertIn(b'"cause":"http: POST too large"', text)
        self.assertTrue(wire.transport.disconnecting)

    def test_bodies_that_do_not_matter_are_read_and_forgotten(self) -> None:
        """A long one costs the connection."""
        for length, close in ((1000, None), (MAX_DRAINED_BYTES + 1, "close")):
            for method, kind in (("DELETE", FORM), ("PUT", "Content-Type: text/plain")):
                wire = Wire()
                wire.send(put("1"))
                answer = wire.send(request("/v2/keys/foo", b"value=" + b"2" * length, method, kind))
                status, fields, _ = parse(answer)
                self.assertEqual((status, fields.get("connection")), (200, close))

    def test_without_v2_there_is_nothing(self) -> None:
        """Go's 404."""
        wire = Wire(v2=False)
        for data in (GET, put("1"), request("/v2/keys", b"", "GET"), request("/v2/members", b"", "GET")):
            status, fields, text = parse(wire.send(data))
            self.assertEqual(
                (status, fields["x-content-type-options"], text), (404, "nosniff", b"404 page not found\n")
            )


class WatchTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.wire = Wire()
        self.other = self.wire.another()

    def change(self, value: str) -> None:
        """Somebody else puts a value."""
        with self.wire.turn:
            self.other.dataReceived(put(value))

    def events(self) -> list[Any]:
        """What has come since the last time, without its end."""
        taken, _ = chunks(self.wire.taken())
        return [json.loads(chunk) for chunk in taken]

    def test_a_long_poll(self) -> None:
        """The head at once; the event and the end in one piece; then the connection is as before."""
        status, fields, rest = parse(self.wire.send(WAIT))
        self.assertEqual(
            (status, fields["transfer-encoding"], fields["x-etcd-index"], rest), (200, "chunked", "0", b"")
        )
        writes: list[bytes] = []
        self.wire.transport.write = writes.append
        self.change("1")
        ((chunk,), rest), *more = (chunks(data) for data in writes)
        self.assertEqual((json.loads(chunk)["node"]["value"], rest, more), ("1", b"", []))
        del self.wire.transport.write
        self.assertEqual(body(self.wire.send(GET))["node"]["value"], "1")
        self.assertTrue(self.wire.send(WAIT))
        self.change("2")
        self.assertEqual(self.events()[0]["node"]["value"], "2")

    def test_what_is_pipelined_behind_it_waits(self) -> None:
        """And is served after the event."""
        self.wire.send(WAIT + GET)
        self.change("1")
        _, rest = chunks(self.wire.taken())
        self.assertEqual(body(rest)["node"]["value"], "1")

    def test_what_waits_behind_it_is_not_served_within_the_change(self) -> None:
        """A directory that is being removed is not looked at halfway."""
        for key in ("d/a", "d/b"):
            self.wire.send(put("1", f"/v2/keys/{key}"))
        self.wire.send(request("/v2/keys/d/a?wait=true", b"", "GET") + request("/v2/keys/d/b", b"", "GET"))
        with self.wire.turn:
            self.other.dataReceived(request("/v2/keys/d?recursive=true", b"", "DELETE"))
        _, rest = chunks(self.wire.taken())
        self.assertEqual(parse(rest)[0], 404)

    def test_an_event_of_the_past_comes_with_the_head(self) -> None:
        """In one write."""
        self.change("1")
        writes: list[bytes] = []
        self.wire.transport.write = writes.append
        self.wire.send(request("/v2/keys/foo?wait=true&waitIndex=1", b"", "GET"))
        (data,) = writes
        (chunk,), rest = chunks(data.partition(b"\r\n\r\n")[2])
        self.assertEqual((json.loads(chunk)["node"]["value"], rest), ("1", b""))

    def test_a_stream(self) -> None:
        """Event after event, those of one turn in one piece, until the client goes, which frees its watcher."""
        self.wire.send(STREAM)
        writes: list[bytes] = []
        self.wire.transport.write = writes.append
        with self.wire.turn:
            self.other.dataReceived(put("1") + put("2"))
        self.change("3")
        self.assertEqual([len(chunks(data)[0]) for data in writes], [2, 1])
        self.assertEqual(self.wire.keys.v2hub.count, 1)
        del self.wire.transport.write
        self.wire.lose()
        self.assertEqual(self.wire.keys.v2hub.count, 0)
        self.change("4")
        self.assertEqual(self.wire.taken(), b"")

    def test_no_timer_runs_out_while_it_waits(self) -> None:
        """One is enough for all connections; afterwards the connection may idle as long as any."""
        self.wire.send(WAIT)
        self.assertEqual(len(self.wire.clock.getDelayedCalls()), 1)
        self.wire.clock.pump([CHECK_INTERVAL_S] * 100)
        self.assertFalse(self.wire.transport.disconnecting)
        self.other = self.wire.another()  # the first one was idle for too long
        self.change("1")
        self.wire.clock.pump([CHECK_INTERVAL_S] * int(IDLE_TIMEOUT_S / CHECK_INTERVAL_S - 1))
        self.assertFalse(self.wire.transport.disconnecting)
        self.wire.clock.pump([CHECK_INTERVAL_S])
        self.assertTrue(self.wire.transport.disconnecting)
        self.assertEqual(self.wire.clock.getDelayedCalls(), [])

    def test_a_client_that_reads_later_gets_what_waited(self) -> None:
        """Nothing is written while it does not read."""
        self.wire.send(STREAM)
        self.wire.transport.producer.pauseProducing()
        for value in "abc":
            self.change(value)
        self.assertEqual(self.wire.taken(), b"")
        self.wire.transport.producer.resumeProducing()
        self.assertEqual([event["node"]["value"] for event in self.events()], ["a", "b", "c"])

    def test_a_client_that_never_reads_is_given_up(self) -> None:
        """What waits for it is no more than a hundred events; then it may idle, and is cut off."""
        self.wire.send(STREAM)
        self.wire.transport.producer.pauseProducing()
        for number in range(MAX_UNSENT_EVENTS + 50):
            self.change(f"{number}")
        self.assertEqual(self.wire.keys.v2hub.count, 0)
        self.assertEqual(len(self.wire.protocol._out), MAX_UNSENT_EVENTS + 2)  # type: ignore[attr-defined]
        self.wire.clock.pump([CHECK_INTERVAL_S] * int(IDLE_TIMEOUT_S / CHECK_INTERVAL_S + 1))
        self.assertTrue(self.wire.transport.disconnected)

    def test_a_client_that_was_given_up_may_go_on(self) -> None:
        """It reads what it was sent, and the end of it, and asks again."""
        self.wire.send(STREAM)
        self.wire.transport.producer.pauseProducing()
        for number in range(MAX_UNSENT_EVENTS + 50):
            self.change(f"{number}")
        self.wire.transport.producer.resumeProducing()
        taken, rest = chunks(self.wire.taken())
        self.assertEqual((len(taken), rest), (MAX_UNSENT_EVENTS + 1, b""))
        self.assertEqual(parse(self.wire.send(GET))[0], 200)

    def test_a_client_that_sends_ahead_is_made_to_wait(self) -> None:
        """Until its poll has ended."""
        self.wire.send(WAIT)
        self.wire.send(GET * (MAX_WAITING_BYTES // len(GET) + 1))
        self.assertEqual(self.wire.transport.producerState, "paused")
        self.change("1")
        self.assertEqual(self.wire.transport.producerState, "producing")

    def test_connection_close_is_obeyed(self) -> None:
        """After the event."""
        answer = self.wire.send(request("/v2/keys/foo?wait=true", b"", "GET", "Connection: close"))
        self.assertEqual(parse(answer)[1]["connection"], "close")
        self.change("1")
        self.assertEqual(len(self.events()), 1)
        self.assertTrue(self.wire.transport.disconnecting)

    def test_going_away_does_not_wait_for_an_event(self) -> None:
        """The client sees that its answer was cut off, and the watcher is gone."""
        self.wire.send(WAIT)
        self.wire.protocol.go_away()  # type: ignore[attr-defined]
        self.assertTrue(self.wire.transport.disconnecting)
        self.assertEqual((self.wire.taken(), self.wire.keys.v2hub.count), (b"", 0))

    def test_a_refused_watch_is_an_answer(self) -> None:
        """With a length."""
        status, _, text = parse(self.wire.send(request("/v2/keys/foo?wait=true&waitIndex=x", b"", "GET")))
        self.assertEqual((status, json.loads(text)["errorCode"]), (400, 203))


class ManyWatchersTests(SynchronousTestCase):
    """Ten thousand long polls on one member."""

    COUNT = 10_000

    def test_ten_thousand_long_polls(self) -> None:
        """They take some kilobytes each, no timer, and no time until something happens; then each gets the same event
        in one write, within a second, and what it took is free again."""
        wire = Wire()
        protocols = [wire.front.http1_protocol(PEER) for _ in range(self.COUNT)]
        sinks = [Sink() for _ in protocols]
        for protocol, sink in zip(protocols, sinks, strict=True):
            protocol.makeConnection(sink)
        tracemalloc.start()
        for protocol in protocols:
            protocol.dataReceived(WAIT)
        each_bytes = tracemalloc.get_traced_memory()[0] / self.COUNT
        tracemalloc.stop()
        self.assertEqual({sink.writes for sink in sinks}, {1})
        self.assertEqual(wire.keys.v2hub.count, self.COUNT)
        self.assertLess(each_bytes, 2048)
        self.assertEqual(len(wire.clock.getDelayedCalls()), 1)
        began_s = time.process_time()
        wire.send(put("1"))
        notified_s = time.process_time() - began_s
        self.assertEqual({sink.writes for sink in sinks}, {2})
        self.assertEqual(len({sink.last for sink in sinks}), 1)
        self.assertTrue(sinks[0].last.endswith(b"}\n\r\n0\r\n\r\n"))
        self.assertEqual(wire.keys.v2hub.count, 0)
        self.assertLess(notified_s, 1.0)


class Sink(StringTransport):
    """A transport that keeps the last write."""

    writes = 0
    last = b""

    def write(self, data: bytes) -> None:
        self.writes += 1
        self.last = data


class WebTests(SynchronousTestCase):
    """What twisted.web answers is the same."""

    def test_its_answers_are_the_same(self) -> None:
        """Status, fields in any order, and body; by way of whatever makes it twisted.web's."""
        for data in (
            put("bar"),
            put("x" * 3000),
            put("1", "/v2/keys/foo?ttl=x"),
            put("%zz"),
            GET,
            request("/v2/keys?recursive=true", b"", "GET"),
            request("/v2/keys/%C3%A9%ff", b"", "GET"),
            request("/v2/keys/nope", b"", "DELETE"),
            request("/v2/keys/q", b"value=1", "POST", FORM),
            request("/v2/keys/q", b"value=1", "POST"),
            request("/v2/keys/q", b"value=1", "POST", "Content-Type: multipart/form-data"),
            request("/v2/keysfoo", b"", "GET"),
            request("/v2/members", b"", "GET"),
            request("/v2/keys/foo", b"", "HEAD"),
        ):
            fast, slow = Wire(), Wire()
            expected = parse(fast.send(data), has_body=b"HEAD" not in data)
            found = parse(
                slow.send(data.replace(b"\r\n", f"\r\n{BY_WEB}\r\n".encode(), 1)), has_body=b"HEAD" not in data
            )
            self.assertIsNone(fast.protocol._web)  # type: ignore[attr-defined]
            self.assertIsNotNone(slow.protocol._web)  # type: ignore[attr-defined]
            del found[1]["date"], expected[1]["date"]
            self.assertEqual(found, expected, data)

    def test_chunked_bodies(self) -> None:
        """A form is a form however it comes."""
        data = f"PUT /v2/keys/foo HTTP/1.1\r\nHost: x\r\n{FORM}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        wire = Wire()
        answer = wire.send(data + b"6\r\nvalue=\r\n3\r\nbar\r\n0\r\n\r\n")
        self.assertEqual(body(answer)["node"]["value"], "bar")
        piece = b"x" * (1 << 20)
        wire.send(data + b"6\r\nvalue=\r\n")
        for _ in range(10):
            wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        status, _, text = parse(wire.send(b"0\r\n\r\n"))
        self.assertEqual((status, b"http: POST too large" in text), (400, True))
        wire.send(data + b"6\r\nvalue=\r\n")
        for _ in range(11):
            wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        status, _, text = parse(wire.send(b"0\r\n\r\n"))
        self.assertEqual((status, b"http: POST too large" in text), (400, True))
        self.assertTrue(wire.transport.disconnecting)

    def test_streams(self) -> None:
        """With the client's going noticed, and how fast it reads."""
        wire = Wire()
        other = wire.another()
        status, fields, _ = parse(wire.send(STREAM.replace(b"\r\n", f"\r\n{BY_WEB}\r\n".encode(), 1)))
        self.assertEqual((status, fields["transfer-encoding"], wire.keys.v2hub.count), (200, "chunked", 1))
        other.dataReceived(put("1"))
        (chunk,), _ = chunks(wire.taken())
        self.assertEqual(json.loads(chunk)["node"]["value"], "1")
        wire.transport.producer.pauseProducing()
        for number in range(MAX_UNSENT_EVENTS + 1):
            other.dataReceived(put(f"{number}"))
        self.assertEqual(wire.keys.v2hub.count, 0)
        wire.transport.producer.resumeProducing()
        wire.taken()
        wire.send(STREAM)
        self.assertEqual(wire.keys.v2hub.count, 1)
        wire.lose()
        self.assertEqual(wire.keys.v2hub.count, 0)

    def test_a_long_poll_ends_and_the_connection_goes_on(self) -> None:
        """Also where origins are restricted, so that all goes this way."""
        wire = Wire(rules=AccessRules(frozenset(("http://a",))))
        wire.send(WAIT)
        with wire.turn:
            wire.another().dataReceived(put("1"))
        (_,), rest = chunks(wire.taken())
        self.assertEqual(rest, b"")
        self.assertEqual(body(wire.send(GET))["node"]["value"], "1")

    def test_paths_are_cleaned_by_redirection(self) -> None:
        """In the words of Go, to a path that is spelled as Go does it, with the query as it was."""
        for method, target, location, text in (
            ("PUT", "/v2/keys//dbl?a=b&c=%zz", "/v2/keys/dbl?a=b&c=%zz", ""),
            ("GET", "/v2/keys//dbl?a=b&c", "/v2/keys/dbl?a=b&c", "/v2/keys/dbl?a=b&amp;c"),
            ("GET", "/v2/keys/d/../%C3%A9%ff/", "/v2/keys/%C3%A9%FF/", "/v2/keys/%C3%A9%FF/"),
            ("GET", "/v2/keys/a%2F..%2Fb//", "/v2/keys/b/", "/v2/keys/b/"),
            ("GET", "/v2/keys//<b>&\"'!", "/v2/keys/%3Cb%3E&%22%27%21", "/v2/keys/%3Cb%3E&amp;%22%27%21"),
            ("GET", "/v2/keys/..?", "/v2?", "/v2?"),
            ("GET", "http://h/v2/keys//x", "http://h/v2/keys/x", "http://h/v2/keys/x"),
            ("DELETE", "/v2/keys//\xc3\xa9", "/v2/keys/%C3%A9", ""),
        ):
            wire = Wire()
            answer = wire.send(request(target, b"", method))
            head, _, shown = answer.partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 301 "), target)
            self.assertIn(f"\r\nLocation: {location}".encode(), head)
            self.assertEqual(shown.decode(), text and f'<a href="{text}">Moved Permanently</a>.\n\n')
            self.assertEqual(b"text/html" in head, method == "GET")
            self.assertNotIn(b"X-Etcd", head)

    def test_other_methods(self) -> None:
        """405 for keys, 200 for OPTIONS anywhere."""
        wire = Wire()
        for method in ("PATCH", "FOO", "put", "CONNECT"):
            status, fields, text = parse(wire.send(request("/v2/keys/p?ttl=%zz", b"", method)))
            self.assertEqual(
                (status, fields["allow"], text), (405, "head,get,put,post,delete", b"Method Not Allowed\n")
            )
        self.assertEqual(parse(wire.send(request("/v2/keys/p", b"", "OPTIONS")))[0], 200)
        self.assertEqual(parse(wire.send(request("/v2/keys/%zz", b"", "PATCH")))[2], b"400 Bad Request")
        self.assertTrue(wire.transport.disconnecting)

    def test_http_1_0(self) -> None:
        """A watch ends with its connection, and has no chunks."""
        wire = Wire()
        head, _, rest = wire.send(b"GET /v2/keys/foo?wait=true HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
        self.assertNotIn(b"chunked", head)
        wire.another().dataReceived(put("1"))
        self.assertEqual(json.loads(rest + wire.taken())["node"]["value"], "1")
        self.assertTrue(wire.transport.disconnecting)

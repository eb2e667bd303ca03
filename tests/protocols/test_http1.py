"""HTTP/1.1 connections: the fast way, twisted.web behind it, and what is refused."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.httpfakes import PEER, Wire, parse, request
from twistedkv.pb import rpc_pb2
from twistedkv.protocols.http1 import IDLE_TIMEOUT_S, MAX_WAITING_BYTES, REQUEST_TIMEOUT_S
from twistedkv.protocols.http1wire import MAX_HEAD_BYTES, Refusal, parse_head, refuse_incomplete
from twistedkv.protocols.web import AccessRules

PUT = request("/v3/kv/put", b'{"key":"Zm9v","value":"YmFy"}')
RANGE = request("/v3/kv/range", b'{"key":"Zm9v"}')
WATCH = request("/v3/watch", b'{"create_request":{"key":"Zm9v"}}')
CORS = {
    "access-control-allow-headers": "accept, content-type, authorization",
    "access-control-allow-methods": "post, get, options, put, delete",
    "access-control-allow-origin": "*",
}


def chunked(path: str, *chunks: bytes) -> bytes:
    """A request whose body comes in chunks."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + body


def revisions(answers: bytes) -> list[int]:
    """The revisions in a row of answers to puts."""
    return [
        int(json.loads(part[: part.index(b"}}") + 2])["header"]["revision"]) for part in answers.split(b"\r\n\r\n")[1:]
    ]


class FastWayTests(SynchronousTestCase):
    """Plain requests on a kept connection."""

    def test_an_answer_has_etcds_headers(self) -> None:
        """Status, CORS, type, the mark of a proxied answer, date and length."""
        status, headers, body = parse(Wire().send(PUT))
        self.assertEqual(status, 200)
        self.assertEqual(
            headers,
            {
                **CORS,
                "content-type": "application/json",
                "grpc-metadata-content-type": "application/grpc",
                "date": "thu, 01 jan 1970 00:00:00 gmt",
                "content-length": "54",
            },
        )
        self.assertEqual(body, b'{"header":{"revision":"1"},"prev_kv":{"value":"YmFy"}}')

    def test_a_request_may_arrive_in_pieces(self) -> None:
        """Cut anywhere, two requests in a row are answered like whole ones."""
        whole = Wire().send(PUT + PUT)
        for cut in range(1, len(PUT + PUT)):
            wire = Wire()
            first = wire.send((PUT + PUT)[:cut])
            self.assertEqual(first + wire.send((PUT + PUT)[cut:]), whole, cut)

    @given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
    @settings(max_examples=30, deadline=None)
    def test_requests_may_arrive_in_any_pieces(self, sizes: list[int]) -> None:
        """However the bytes of three requests come, three answers go out in order."""
        data, wire, answers = PUT * 3, Wire(), b""
        for size in (*sizes, len(data)):
            answers += wire.send(data[:size]) if data else b""
            data = data[size:]
        self.assertEqual(revisions(answers), [1, 2, 3])

    def test_pipelined_requests_are_answered_in_order_by_one_write(self) -> None:
        """The second waits for the first, and what is ready together goes out together."""
        wire = Wire()
        self.assertEqual(wire.send(RANGE + PUT + PUT), b"")
        self.assertEqual(len(wire.member.calls), 1)  # the puts have not been called yet
        wire.member.calls[0].reply(b"")
        answers = wire.taken()
        self.assertTrue(answers.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertEqual(answers.count(b"HTTP/1.1 200 OK\r\n"), 3)
        self.assertLess(answers.index(b'"revision":"2"'), answers.index(b'"revision":"3"'))

    def test_a_client_that_sends_ahead_is_made_to_wait(self) -> None:
        """Beyond a limit nothing more is read until the call in progress is answered."""
        wire = Wire()
        wire.send(RANGE)
        wire.send(PUT * (MAX_WAITING_BYTES // len(PUT) + 1))
        self.assertEqual(wire.transport.producerState, "paused")
        wire.member.calls[0].reply(b"")
        wire.clock.advance(0)
        self.assertEqual(wire.transport.producerState, "producing")

    def test_a_client_that_does_not_read_is_not_served(self) -> None:
        """While its answers pile up in the transport, no further request is called."""
        wire = Wire()
        wire.transport.producer.pauseProducing()
        self.assertEqual(wire.send(PUT), b"")
        self.assertEqual(wire.member.calls, [])
        wire.transport.producer.resumeProducing()
        self.assertEqual(revisions(wire.taken()), [1])

    def test_names_of_headers_have_no_case(self) -> None:
        """Length and metadata are found however they are written."""
        wire = Wire()
        body = b'{"key":"Zm9v"}'
        data = request("/v3/kv/put", body).replace(b"Content-Length", b"cOnTeNt-LeNgTh")
        self.assertEqual(parse(wire.send(data.replace(b"Host: x", b"HOST: x\r\nGRPC-METADATA-TOKEN: t")))[0], 200)
        self.assertEqual(wire.member.calls[0].head.metadata, {"token": "t"})

    def test_equal_heads_with_other_bodies_are_told_apart(self) -> None:
        """A remembered head says nothing about the body."""
        wire = Wire()
        for value in (b"YQ==", b"Yg=="):
            body = parse(wire.send(request("/v3/kv/put", b'{"key":"Zm9v","value":"%s"}' % value)))[2]
            self.assertIn(value, body)

    def test_heads_without_end_are_not_remembered(self) -> None:
        """However many different heads come, what is remembered stays small."""
        wire = Wire()
        for number in range(1200):
            wire.send(request("/v3/kv/put", b'{"key":"Zm9v"}', "POST", f"X: {number}"))
        self.assertLessEqual(len(wire.front.routes), 512)
        wire = Wire()
        wire.send(request("/v3/kv/put", b'{"key":"Zm9v"}', "POST", f"X: {'x' * 4000}"))
        self.assertEqual(len(wire.front.routes), 0)

    def test_connection_close_is_obeyed(self) -> None:
        """The answer says so, and the connection ends."""
        wire = Wire()
        answer = wire.send(request("/v3/kv/put", b'{"key":"Zm9v"}', "POST", "Connection: close") + PUT)
        self.assertEqual(parse(answer)[1]["connection"], "close")
        self.assertTrue(wire.transport.disconnecting)
        self.assertEqual(wire.clock.getDelayedCalls(), [])

    def test_health_and_version_are_answered(self) -> None:
        """Also when the health check takes its time, in order with what follows."""
        wire = Wire()
        wire.view.linearizable = check = Deferred()
        self.assertEqual(wire.send(request("/health", b"", "GET") + request("/version", b"", "GET")), b"")
        check.callback(None)
        answers = wire.taken()
        self.assertLess(answers.index(b'"health":"true"'), answers.index(b'"etcdserver":"3.5.1"'))

    def test_a_lost_client_cancels_its_call(self) -> None:
        """The handler hears of it, a late answer is dropped, and no timer is left."""
        wire = Wire()
        wire.send(RANGE + PUT)
        wire.lose()
        (call,) = wire.member.calls
        self.assertEqual(wire.member.cancelled, [call])
        call.reply(b"")
        self.assertEqual(wire.taken(), b"")
        self.assertEqual(wire.clock.getDelayedCalls(), [])


class LimitTests(SynchronousTestCase):
    """Too long, too slow, too unclear."""

    def test_a_body_over_the_limit_is_refused_at_once(self) -> None:
        """The answer is etcd's for a message over the limit, and the connection ends."""
        wire = Wire()
        head = f"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: {wire.front.max_body_bytes + 1}\r\n\r\n"
        status, headers, body = parse(wire.send(head.encode() + b"{"))
        self.assertEqual((status, headers["connection"]), (429, "close"))
        self.assertIn(b"grpc: received message larger than max", body)
        self.assertTrue(wire.transport.disconnecting)

    def test_a_chunked_body_over_the_limit_is_refused_without_being_kept(self) -> None:
        """The same answer comes by twisted.web's way."""
        wire = Wire()
        chunk = b"x" * 4096
        status, _, body = parse(wire.send(chunked("/v3/kv/put", *[chunk] * (wire.front.max_body_bytes // 4096 + 1))))
        self.assertEqual(status, 429)
        self.assertIn(b"grpc: received message larger than max", body)
        self.assertTrue(wire.transport.disconnecting)

    def test_a_head_over_the_limit_is_refused(self) -> None:
        """Whether or not its end has arrived."""
        for end in (b"", b"\r\n\r\n"):
            wire = Wire()
            data = request("/v3/kv/put")[:-4] + b"\r\nX: " + b"x" * MAX_HEAD_BYTES + end
            self.assertEqual(parse(wire.send(data))[0], 431)
            self.assertTrue(wire.transport.disconnecting)

    def test_what_two_servers_could_read_differently_is_refused(self) -> None:
        """Requests cannot be smuggled: 400, the connection ends, and no method is called."""
        good = PUT.decode("latin-1")
        length = "Content-Length: 29"
        for bad in (
            good.replace(length, f"{length}\r\n{length}"),
            good.replace(length, f"{length}\r\nContent-Length: 5"),
            good.replace(length, f"{length}\r\nTransfer-Encoding: chunked"),
            good.replace(length, f"Transfer-Encoding: chunked\r\n{length}"),
            good.replace(length, "Content-Length: +29"),
            good.replace(length, "Content-Length: 29, 29"),
            good.replace(length, "Content-Length: 0x1d"),
            good.replace(length, "Content-Length: -1"),
            good.replace(length, "Content-Length:"),
            good.replace(length, "Content-Length : 29"),
            good.replace(length, " Content-Length: 29"),
            good.replace(length, f"A: b\r\n c\r\n{length}"),
            good.replace(length, f"A: b\0\r\n{length}"),
            good.replace(length, f"A: b\r{length}"),
            good.replace(length, f"A: b\n{length}"),
            good.replace("\r\n", "\n"),
            good.replace("Host: x", "Host: x\r\nHost: y"),
            good.replace("Host: x", "Host x"),
            good.replace("POST ", "POST  "),
            good.replace(" HTTP/1.1", ""),
            good.replace("HTTP/1.1", "HTTP/2.0"),
            good.replace("/v3/kv/put", "/v3/kv/p ut"),
        ):
            wire = Wire()
            answer = wire.send(bad.encode("latin-1"))
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), bad)
            self.assertTrue(wire.transport.disconnecting, bad)
            self.assertEqual(wire.member.calls, [], bad)

    def test_a_request_without_host_is_refused_with_gos_words(self) -> None:
        """HTTP/1.1 demands it."""
        answer = Wire().send(PUT.replace(b"Host: x\r\n", b""))
        self.assertTrue(answer.endswith(b"\r\n\r\n400 Bad Request: missing required Host header"))

    def test_an_idle_connection_is_closed(self) -> None:
        """Not while it is used, and not while its call is in progress."""
        wire = Wire()
        for _ in range(4):
            wire.clock.advance(IDLE_TIMEOUT_S / 2)
            wire.send(PUT)
        wire.send(RANGE)
        wire.clock.pump([IDLE_TIMEOUT_S / 10] * 30)
        self.assertFalse(wire.transport.disconnecting)
        wire.member.calls[-1].reply(b"")
        wire.clock.pump([IDLE_TIMEOUT_S / 10] * 11)
        self.assertTrue(wire.transport.disconnecting)
        self.assertEqual(wire.clock.getDelayedCalls(), [])

    def test_a_request_that_does_not_end_is_cut_off(self) -> None:
        """Bytes that trickle in do not prolong it."""
        wire = Wire()
        for byte in PUT[:30]:
            wire.send(bytes((byte,)))
            wire.clock.advance(REQUEST_TIMEOUT_S / 20)
        self.assertTrue(wire.transport.disconnected)

    def test_going_away_waits_for_the_answer_in_progress(self) -> None:
        """An idle connection ends at once, a busy one after its answer."""
        idle = Wire()
        idle.protocol.go_away()
        self.assertTrue(idle.transport.disconnecting)
        busy = Wire()
        busy.send(RANGE + PUT)
        busy.protocol.go_away()
        self.assertFalse(busy.transport.disconnecting)
        busy.member.calls[0].reply(b"")
        self.assertEqual(parse(busy.taken())[1]["connection"], "close")
        self.assertTrue(busy.transport.disconnecting)
        self.assertEqual(len(busy.member.calls), 1)


class HeadParserTests(SynchronousTestCase):
    """The parser by itself."""

    @given(st.binary(max_size=60))
    @settings(max_examples=300, deadline=None)
    def test_any_bytes_are_parsed_or_refused(self, data: bytes) -> None:
        """Nothing else is raised on whatever comes."""
        for block in (data, b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\n" + data):
            try:
                parse_head(block)
                refuse_incomplete(block)
            except Refusal as refusal:
                self.assertEqual(refusal.status, 400)

    def test_what_is_not_plain_is_marked(self) -> None:
        """It is legal, and for twisted.web."""
        for line in ("Transfer-Encoding: chunked", "Upgrade: x", "Connection: upgrade"):
            self.assertFalse(parse_head(f"POST / HTTP/1.1\r\nHost: x\r\n{line}".encode()).plain)
        self.assertFalse(parse_head(b"POST / HTTP/1.0").plain)
        self.assertTrue(parse_head(b"POST / HTTP/1.1\r\nhost:x\r\nConnection: Keep-Alive").plain)


class WebTests(SynchronousTestCase):
    """What twisted.web answers, on the same connection."""

    def test_chunked_bodies_are_read(self) -> None:
        """The same answer comes, with the same headers, and the connection stays open for more."""
        wire = Wire()
        fast = parse(Wire().send(PUT))
        status, headers, body = parse(wire.send(chunked("/v3/kv/put", b'{"key":"Zm9v",', b'"value":"YmFy"}')))
        self.assertEqual((status, body), (fast[0], fast[2]))
        self.assertEqual(set(headers), set(fast[1]))
        self.assertEqual(parse(wire.send(PUT))[0], 200)

    def test_what_was_answered_before_the_hand_over_stays_in_order(self) -> None:
        """A put, a chunked put and a put in one read give three answers in a row."""
        answers = Wire().send(PUT + chunked("/v3/kv/put", b'{"key":"Zm9v"}') + PUT)
        self.assertEqual(revisions(answers), [1, 2, 3])

    def test_expectations_are_met(self) -> None:
        """A client that asks may send its body."""
        wire = Wire()
        head, _, body = request("/v3/kv/put", b'{"key":"Zm9v"}', "POST", "Expect: 100-continue").partition(b"\r\n\r\n")
        self.assertEqual(wire.send(head + b"\r\n\r\n"), b"HTTP/1.1 100 Continue\r\n\r\n")
        self.assertEqual(parse(wire.send(body))[0], 200)

    def test_a_body_that_looks_like_a_form_is_json(self) -> None:
        """The content type does not matter, as curl sends a wrong one."""
        for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "multipart/form-data"):
            data = chunked("/v3/kv/put", b'{"key":"Zm9v"}').replace(
                b"Host: x", f"Host: x\r\nContent-Type: {kind}".encode()
            )
            self.assertEqual(parse(Wire().send(data))[0], 200)

    def test_a_watch_streams_in_chunks(self) -> None:
        """Each result is one chunk, sent at once; the end of the call ends the body."""
        wire = Wire()
        self.assertEqual(wire.send(WATCH), b"")
        (call,) = wire.member.calls
        call.send(rpc_pb2.WatchResponse(created=True).SerializeToString())
        _, headers, piece = parse(wire.taken())
        self.assertEqual(headers["transfer-encoding"], "chunked")
        self.assertEqual(headers["grpc-metadata-content-type"], "application/grpc")
        self.assertEqual(piece, b'1c\r\n{"result":{"created":true}}\n\r\n')
        call.send(rpc_pb2.WatchResponse(watch_id=1).SerializeToString())
        self.assertEqual(wire.taken(), b'1c\r\n{"result":{"watch_id":"1"}}\n\r\n')
        call.finish()
        self.assertEqual(wire.taken(), b"0\r\n\r\n")
        self.assertEqual(parse(wire.send(PUT))[0], 200)

    def test_a_stream_without_results_has_an_empty_body(self) -> None:
        """It ends properly, and the connection goes on."""
        wire = Wire()
        wire.send(WATCH)
        wire.member.calls[0].finish()
        status, headers, body = parse(wire.taken())
        self.assertEqual((status, headers["transfer-encoding"], body), (200, "chunked", b"0\r\n\r\n"))
        self.assertNotIn("grpc-metadata-content-type", headers)
        self.assertEqual(parse(wire.send(PUT))[0], 200)

    def test_a_client_that_reads_slowly_is_waited_for(self) -> None:
        """The stream hears that there is no room, and when there is again."""
        wire = Wire()
        wire.send(WATCH)
        (call,) = wire.member.calls
        room: list[bool] = []
        call.on_writable = lambda: room.append(call.writable)
        call.send(b"")
        self.assertTrue(call.writable)
        wire.transport.producer.pauseProducing()
        self.assertFalse(call.writable)
        wire.transport.producer.resumeProducing()
        self.assertEqual(room, [True])

    def test_a_lost_client_cancels_its_stream(self) -> None:
        """The service hears of it, and what it sends later is dropped."""
        wire = Wire()
        wire.send(WATCH)
        (call,) = wire.member.calls
        call.send(b"")
        wire.taken()
        wire.lose()
        self.assertEqual(wire.member.cancelled, [call])
        call.send(b"")
        call.finish()
        self.assertEqual(wire.taken(), b"")
        self.assertEqual(wire.clock.getDelayedCalls(), [])

    def test_methods_and_paths_are_told_from_each_other(self) -> None:
        """405 for a method that is not POST, 404 for a path that is none, in etcd's words."""
        for data, status, text in (
            (request("/v3/kv/put", b"", "GET"), 405, b"Method Not Allowed\n"),
            (request("/v3/kv/put", b"", "DELETE"), 405, b"Method Not Allowed\n"),
            (request("/v3/kv/nope"), 404, b"Not Found\n"),
            (request("/v3/kv/put/"), 404, b"Not Found\n"),
            (request("/v3/"), 404, b"Not Found\n"),
            (request("/v3/KV/put"), 404, b"Not Found\n"),
            (request("/nope"), 404, b"404 page not found\n"),
            (request("/health", b"", "POST"), 405, b"Method Not Allowed\n"),
        ):
            answer = parse(Wire().send(data))
            self.assertEqual((answer[0], answer[2]), (status, text), data)
            self.assertEqual(answer[1]["content-type"], "text/plain; charset=utf-8")
            self.assertEqual(answer[1]["x-content-type-options"], "nosniff")
            self.assertEqual(answer[1]["access-control-allow-origin"], "*")
            self.assertNotIn("server", answer[1])

    def test_head_requests_have_no_body(self) -> None:
        """Only its length."""
        head, _, body = Wire().send(request("/v3/kv/put", b"", "HEAD")).partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: 19", head)
        self.assertEqual(body, b"")

    def test_options_are_answered_for_any_path(self) -> None:
        """A browser learns what is allowed, with an empty body."""
        for path in ("/v3/kv/put", "/nope", "/health"):
            status, headers, body = parse(Wire().send(request(path, b"", "OPTIONS")))
            self.assertEqual((status, body), (200, b""))
            self.assertLessEqual(CORS.items(), headers.items())

    def test_paths_are_cleaned_by_redirection(self) -> None:
        """As Go's router does it; escapes are undone first."""
        for path, location in (("/v3", "/v3/"), ("/v3//kv/put", "/v3/kv/put"), ("//v3/kv/../kv/put", "/v3/kv/put")):
            status, headers, _ = parse(Wire().send(request(path)))
            self.assertEqual((status, headers["location"]), (301, location))
        body = b'{"key":"Zm9v"}'
        for path in ("/v3/kv/p%75t", "/v3/kv/put?key=x", "http://x/v3/kv/put", "/v3beta/kv/put", "/v3alpha/kv/put"):
            self.assertEqual(parse(Wire().send(request(path, body)))[0], 200, path)

    def test_http_1_0_is_answered_and_closed(self) -> None:
        """Without chunks, without a Host header."""
        wire = Wire()
        answer = wire.send(b'POST /v3/kv/put HTTP/1.0\r\nContent-Length: 14\r\n\r\n{"key":"Zm9v"}')
        self.assertEqual(parse(answer)[2], b'{"header":{"revision":"1"},"prev_kv":{}}')
        self.assertTrue(wire.transport.disconnecting)

    def test_bad_headers_are_answered_by_the_gateway(self) -> None:
        """A timeout that cannot be read is a 400 with JSON."""
        data = request("/v3/kv/put", b'{"key":"Zm9v"}', "POST", "Grpc-Timeout: zz")
        status, _, body = parse(Wire().send(data))
        self.assertEqual((status, json.loads(body)["message"]), (400, "invalid grpc-timeout: zz"))

    def test_metrics_and_checks_are_served(self) -> None:
        """Query parameters reach the endpoints."""
        self.assertIn(b"# TYPE process_cpu_seconds_total counter\n", Wire().send(request("/metrics", b"", "GET")))
        self.assertIn(b"[+]serializable_read ok\n", Wire().send(request("/livez?verbose", b"", "GET")))

    def test_going_away_waits_for_twisted_webs_answer_too(self) -> None:
        """An idle connection ends at once, a busy one after its answer."""
        wire = Wire()
        wire.send(WATCH)
        wire.protocol.go_away()
        self.assertFalse(wire.transport.disconnecting)
        wire.member.calls[0].finish()
        self.assertTrue(wire.transport.disconnecting)
        idle = Wire()
        idle.send(request("/nope"))
        idle.protocol.go_away()
        self.assertTrue(idle.transport.disconnecting)


class AccessTests(SynchronousTestCase):
    """Origins and hosts."""

    def test_only_listed_origins_are_allowed(self) -> None:
        """A listed one is echoed, another gets no permission, though an answer."""
        rules = AccessRules(origins=frozenset(("http://a",)))
        for origin, allowed in (("http://a", "http://a"), ("http://b", None)):
            data = request("/v3/kv/put", b'{"key":"Zm9v"}', "POST", f"Origin: {origin}")
            status, headers, _ = parse(Wire(rules=rules).send(data))
            self.assertEqual((status, headers.get("access-control-allow-origin")), (200, allowed))

    def test_without_tls_only_listed_hosts_are_served(self) -> None:
        """A page that has its name point at this server gets nothing (CVE-2018-5702); TLS protects by itself."""
        rules = AccessRules(hosts=frozenset(("x",)))
        self.assertEqual(parse(Wire(rules=rules).send(PUT))[0], 200)
        other = PUT.replace(b"Host: x", b"Host: evil:2379")
        self.assertEqual(parse(Wire(rules=rules).send(other))[0], 421)
        secure = PEER._replace(secure=True)
        self.assertEqual(parse(Wire(secure, rules).send(other))[0], 200)

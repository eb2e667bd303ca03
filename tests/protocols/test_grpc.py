"""A gRPC server's connection, with the ``h2`` library as its client."""

from __future__ import annotations

import gzip
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.grpcpeers import (
    BROKEN,
    COLLECT,
    LATER,
    PUT,
    SNAPSHOT,
    WATCH,
    Answer,
    H2Client,
    framed,
    put_bytes,
)
from twistedkv.protocols import frames
from twistedkv.protocols.frames import ErrorCode
from twistedkv.protocols.rpc import Call


class Counts:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int | None]] = []
        self.messages: list[tuple[str, str]] = []
        self.received_bytes = 0
        self.sent_bytes = 0

    def started(self, call: Call) -> None:
        self.calls.append((call.head.path, None))

    def handled(self, call: Call, code: int) -> None:
        self.calls.append((call.head.path, code))

    def message_received(self, call: Call) -> None:
        self.messages.append((call.head.path, "received"))

    def message_sent(self, call: Call) -> None:
        self.messages.append((call.head.path, "sent"))

    def received(self, size: int) -> None:
        self.received_bytes += size

    def sent(self, size: int) -> None:
        self.sent_bytes += size


class KindsTests(SynchronousTestCase):
    """The four kinds of methods."""

    def test_unary(self) -> None:
        """A unary request is answered by head, message and status, as etcd 3.5 writes them."""
        answer = H2Client().request(PUT, put_bytes())
        self.assertEqual(answer.headers, {":status": "200", "content-type": "application/grpc"})
        self.assertEqual(answer.messages, [put_bytes()])
        self.assertEqual(answer.trailers, {"grpc-status": "0", "grpc-message": ""})
        self.assertTrue(answer.ended)

    def test_unary_later(self) -> None:
        """A reply from outside of receive is announced once, however many there are, and reaches its stream."""
        client = H2Client()
        ids = [client.send(LATER, b"%d" % number) for number in range(3)]
        client.pump()
        before = client.announced
        for call in reversed(client.service.calls):
            call.reply(b"re " + call.message)
        self.assertEqual(client.announced, before + 1)
        client.pump()
        self.assertEqual([client.answers[stream_id].messages for stream_id in ids], [[b"re 0"], [b"re 1"], [b"re 2"]])
        self.assertTrue(client.server.idle)

    def test_server_stream(self) -> None:
        """A server stream gives its messages in order, then the status."""
        answer = H2Client().request(SNAPSHOT, b"x")
        self.assertEqual(answer.messages, [b"0x", b"1x", b"2x"])
        self.assertEqual(answer.status, (0, ""))

    def test_client_stream(self) -> None:
        """A client stream is answered when the client has sent all."""
        answer = H2Client().request(COLLECT, b"a", b"", b"bc")
        self.assertEqual(answer.messages, [b"abc"])

    def test_bidi_stream(self) -> None:
        """On a bidi stream messages are answered while it is open, and it ends after the client's half-close."""
        client = H2Client()
        stream_id = client.open(WATCH)
        for number in range(3):
            client.send_body(stream_id, framed(b"%d" % number))
            client.pump()
            self.assertEqual(client.answers[stream_id].messages[-1], b"echo %d" % number)
        client.send_body(stream_id, b"", end_stream=True)
        client.pump()
        self.assertEqual(client.answers[stream_id].status, (0, ""))
        self.assertEqual(client.service.half_closed, 1)

    def test_finish_without_a_message(self) -> None:
        """A stream that ends before any message is a head with the status in it."""
        answer = H2Client().request(WATCH)
        self.assertEqual(answer.status, (0, ""))
        self.assertEqual(answer.trailers, {})

    def test_messages_after_the_end_are_dropped(self) -> None:
        """Verbs on a call that is done do nothing."""
        client = H2Client()
        stream_id = client.send(LATER, b"x")
        client.pump()
        (call,) = client.service.calls
        call.reply(b"first")
        call.reply(b"second")
        call.send(b"third")
        call.fail(ValueError("fourth"))
        call.finish()
        client.pump()
        self.assertEqual(client.answers[stream_id].messages, [b"first"])
        self.assertEqual(client.service.failures, [])


class RefusalTests(SynchronousTestCase):
    """What is wrong with a request, in grpc-go's words; checked against etcd 3.5.1 unless said otherwise."""

    def check(self, answer: Answer, code: int, text: str, http_status: str = "200") -> None:
        """The answer is a status alone."""
        self.assertEqual(answer.status, (code, text))
        self.assertEqual(answer.headers[":status"], http_status)
        self.assertEqual((answer.body, answer.trailers, answer.ended), (b"", {}, True))

    def test_refusal_of_a_handler(self) -> None:
        """A KVError is the status of its class, without any message."""
        self.check(H2Client().request(PUT, put_bytes(key=b"")), 3, "etcdserver: key not found")

    def test_bug_in_a_handler(self) -> None:
        """Any other exception is UNKNOWN with its text, and logged with the path."""
        client = H2Client()
        self.check(client.request(BROKEN, b""), 2, "no such thing")
        ((error, path),) = client.service.failures
        self.assertIsInstance(error, LookupError)
        self.assertEqual(path, BROKEN)

    def test_bug_in_a_handler_after_its_reply(self) -> None:
        """An exception after the reply is logged; the client keeps its answer."""
        client = H2Client()
        stream_id = client.open(WATCH)
        client.pump()
        (call,) = client.service.calls

        def on_message(message: bytes) -> None:
            call.finish()
            raise LookupError("afterthought")

        call.on_message = on_message
        client.send_body(stream_id, framed(b"x"))
        client.pump()
        self.assertEqual(client.answers[stream_id].status, (0, ""))
        self.assertEqual([str(error) for error, _ in client.service.failures], ["afterthought"])

    def test_undecodable_request(self) -> None:
        """Bytes that are no protobuf of the request's type are INTERNAL, and no bug."""
        client = H2Client()
        answer = client.request(PUT, b"\xff\xff\xff")
        self.assertEqual(answer.status[0], 13)
        self.assertTrue(answer.status[1].startswith("grpc: error unmarshalling request: "), answer.status)
        self.assertEqual(client.service.failures, [])

    def test_unknown_method_and_service(self) -> None:
        """Paths that are not in the table are UNIMPLEMENTED, or RESOURCE_EXHAUSTED where they are no path."""
        client = H2Client()
        texts = {
            "/etcdserverpb.KV/Nope": (12, "unknown method Nope for service etcdserverpb.KV"),
            "/foo.Bar/Baz": (12, "unknown service foo.Bar"),
            "/a/b/c": (12, "unknown service a/b"),
            "nope/x": (12, "unknown service nope"),
            "/nope": (8, 'malformed method name: "/nope"'),
            "/": (8, 'malformed method name: "/"'),
        }
        for path, (code, text) in texts.items():
            self.check(client.request(path, b""), code, text)

    def test_texts_are_percent_encoded(self) -> None:
        """A text with bytes outside of printable ASCII goes percent-encoded."""
        answer = H2Client().request("/é%/x", b"")
        self.assertEqual(answer.status, (12, "unknown service %C3%A9%25"))

    def test_not_post(self) -> None:
        """Another HTTP method is 405, as newer grpc-go answers (3.5.1 resets the stream)."""
        answer = H2Client().request(PUT, b"", method="GET")
        self.check(answer, 13, 'Received a HEADERS frame with :method "GET" which should be POST', "405")

    def test_not_grpc(self) -> None:
        """Another content type is 415, as newer grpc-go answers (3.5.1 resets the stream)."""
        for value in ("application/json", "application/grpc-web", "application/grpcx"):
            answer = H2Client().request(PUT, b"", content_type=value)
            self.check(answer, 3, f'invalid gRPC request content-type "{value}"', "415")
        answer = H2Client().request(PUT, b"", content_type=None)
        self.check(answer, 3, 'invalid gRPC request content-type ""', "415")

    def test_sub_types_are_answered_in_kind(self) -> None:
        """A content sub-type is accepted and named in the answer."""
        for value in ("application/grpc+proto", "application/grpc;proto"):
            answer = H2Client().request(PUT, put_bytes(), content_type=value)
            self.assertEqual(answer.headers["content-type"], "application/grpc+proto")
            self.assertEqual(answer.messages, [put_bytes()])

    def test_malformed_timeout(self) -> None:
        """A grpc-timeout that is none is INTERNAL, as newer grpc-go answers (3.5.1 resets the stream)."""
        for value in ("xx", "5", "S", "123456789S", "5X", "-1S"):
            self.check(H2Client().request(PUT, b"", grpc_timeout=value), 13, f"malformed grpc-timeout: {value}", "400")

    def test_timeout_of_zero(self) -> None:
        """A deadline that has passed on arrival keeps the request from its handler."""
        client = H2Client()
        self.check(client.request(PUT, put_bytes(), grpc_timeout="0S"), 4, "context deadline exceeded")
        self.assertEqual(client.service.calls, [])

    def test_no_message(self) -> None:
        """A unary request without a message is INTERNAL (etcd 3.5.1 never answers it)."""
        client = H2Client()
        stream_id = client.open(PUT, end_stream=True)
        client.pump()
        text = "cardinality violation: received no request message from non-client-streaming RPC"
        self.check(client.answers[stream_id], 13, text)

    def test_half_a_message(self) -> None:
        """A body that ends inside a message is UNKNOWN to a unary method, and INTERNAL to a stream."""
        client = H2Client()
        for path, code in ((PUT, 2), (WATCH, 13)):
            for size in (3, 7):
                stream_id = client.open(path)
                client.send_body(stream_id, framed(put_bytes())[:size], end_stream=True)
                client.pump()
                self.check(client.answers[stream_id], code, "unexpected EOF")

    def test_two_messages(self) -> None:
        """Of two messages of a unary request the first is served."""
        self.assertEqual(H2Client().request(PUT, put_bytes(b"1"), put_bytes(b"2")).messages, [put_bytes(b"1")])

    def test_flags(self) -> None:
        """A compressed message without an encoding, and an unknown flag, are INTERNAL."""
        client = H2Client()
        texts = {
            1: "grpc: compressed flag set with identity or empty encoding",
            2: "grpc: received unexpected payload format 2",
        }
        for flag, text in texts.items():
            stream_id = client.open(PUT)
            client.send_body(stream_id, framed(put_bytes(), flag), end_stream=True)
            client.pump()
            self.check(client.answers[stream_id], 13, text)

    def test_unknown_encoding(self) -> None:
        """An encoding that we lack is UNIMPLEMENTED, compressed or not."""
        answer = H2Client().request(PUT, put_bytes(), grpc_encoding="snappy")
        self.check(answer, 12, 'grpc: Decompressor is not installed for grpc-encoding "snappy"')

    def test_gzip(self) -> None:
        """A message packed by gzip is unpacked, but not beyond the limit."""
        client = H2Client(max_message_bytes=5000)
        for size, status in ((1000, 0), (6000, 8)):
            stream_id = client.open(PUT, grpc_encoding="gzip")
            message = put_bytes(value=bytes(size))
            client.send_body(stream_id, framed(gzip.compress(message), 1), end_stream=True)
            client.pump()
            self.assertEqual(client.answers[stream_id].status[0], status)
        self.assertEqual(len(client.service.calls), 1)

    def test_message_too_large(self) -> None:
        """A message above the limit is RESOURCE_EXHAUSTED as soon as its length is read; the stream is reset."""
        client = H2Client(max_message_bytes=2097152)
        stream_id = client.open(PUT)
        client.send_body(stream_id, framed(bytes(3_000_000))[:10])
        client.pump()
        self.check(client.answers[stream_id], 8, "grpc: received message larger than max (3000000 vs. 2097152)")
        self.assertEqual(client.answers[stream_id].reset, ErrorCode.NO_ERROR)
        self.assertTrue(client.server.idle)

    def test_one_byte_too_large_in_one_read(self) -> None:
        """The limit also holds for a request that comes in one read."""
        client = H2Client(max_message_bytes=100)
        self.assertEqual(client.request(PUT, put_bytes(value=bytes(90))).status[0], 0)
        self.assertEqual(client.request(PUT, bytes(101)).status[0], 8)

    def test_malformed_requests(self) -> None:
        """What RFC 9113 §8.2 and §8.3 forbid ends the stream with PROTOCOL_ERROR, and only the stream."""
        client = H2Client()
        malformed: list[dict[str, str | None]] = [
            {"method": None},
            {"scheme": None},
            {":path": None},
            {":path": ""},
            {"UPPER": "x"},
            {"connection": "close"},
            {"transfer_encoding": "chunked"},
            {"te": "gzip"},
            {":status": "200"},
            {":scheme ": "http"},
            {":late": "x"},
            {"bad name": "x"},
            {"name": "a\nb"},
            {"content_length": "x"},
            {"content_length": "3"},
        ]
        for more in malformed:
            answer = client.request(PUT, put_bytes(), **more)
            self.assertEqual(answer.reset, ErrorCode.PROTOCOL_ERROR, more)
        self.assertEqual(client.request(PUT, put_bytes()).status, (0, ""))

    def test_content_length_that_is_right(self) -> None:
        """A content-length is allowed where it is true."""
        body = framed(put_bytes())
        self.assertEqual(H2Client().request(PUT, put_bytes(), content_length=str(len(body))).status, (0, ""))


class HeadTests(SynchronousTestCase):
    """What a handler learns of its caller."""

    def test_metadata(self) -> None:
        """Metadata are the caller's own headers, the first of each name, without pseudo and transport headers."""
        client = H2Client()
        client.send(LATER, b"", token="secret", hasleader="true", grpc_timeout="3S", user_agent="x/1")
        client.pump()
        (call,) = client.service.calls
        self.assertEqual(call.head.path, LATER)
        self.assertEqual(dict(call.head.metadata), {"token": "secret", "hasleader": "true", "user-agent": "x/1"})
        self.assertEqual(call.head.timeout_s, 3.0)
        self.assertEqual(call.peer.common_name, "client")

    def test_changing_timeouts_and_tokens_keep_their_calls_apart(self) -> None:
        """Requests whose headers differ in one value get that value, whatever was remembered of the others."""
        client = H2Client()
        for number in range(300):
            client.send(LATER, b"", grpc_timeout=f"{1 + number}S", token=f"token{number % 7}")
            client.pump()
        for number, call in enumerate(client.service.calls):
            self.assertEqual((call.head.timeout_s, call.head.metadata["token"]), (1.0 + number, f"token{number % 7}"))


class CutTests(SynchronousTestCase):
    """TCP and TLS cut the bytes where they like."""

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
    def test_any_cut_gives_the_same_answers(self, sizes: list[int]) -> None:
        """However the bytes are cut, all kinds of calls are answered as if they came in one piece."""

        def cut(data: bytes) -> list[bytes]:
            places = [0]
            while places[-1] < len(data):
                places.append(places[-1] + sizes[len(places) % len(sizes)])
            return [data[start:end] for start, end in pairwise(places)]

        client = H2Client(cut=cut)
        ids = [client.send(PUT, put_bytes(b"%d" % number)) for number in range(5)]
        ids += [client.send(WATCH, b"a", b"b"), client.send(SNAPSHOT, b"c"), client.send(PUT, put_bytes(b""))]
        client.pump()
        self.assertEqual(
            [client.answers[stream_id].messages for stream_id in ids],
            [*([put_bytes(b"%d" % number)] for number in range(5)), [b"echo a", b"echo b"], [b"0c", b"1c", b"2c"], []],
        )
        self.assertTrue(client.server.idle)

    def test_every_single_cut(self) -> None:
        """Two requests, cut once at each place, give the same two answers."""
        whole = H2Client()
        for _ in range(2):
            whole.send(PUT, put_bytes())
        for place in range(1, len(whole.h2.data_to_send())):
            client = H2Client()
            ids = [client.send(PUT, put_bytes()) for _ in range(2)]
            data = client.h2.data_to_send()
            client.raw(data[:place])
            client.raw(data[place:])
            self.assertEqual([client.answers[stream_id].messages for stream_id in ids], [[put_bytes()]] * 2, place)


class EndTests(SynchronousTestCase):
    """Cancellation, deadlines, shutdown and loss."""

    def test_client_reset_cancels(self) -> None:
        """A client's reset cancels the call; what the handler says later goes nowhere."""
        client = H2Client()
        stream_id = client.send(LATER, b"")
        client.pump()
        (call,) = client.service.calls
        client.h2.reset_stream(stream_id, ErrorCode.CANCEL)
        client.pump()
        self.assertTrue(call.done)
        self.assertEqual(client.service.cancelled, [call])
        self.assertTrue(client.server.idle)
        call.reply(b"too late")
        self.assertEqual(client.server.take_output(), b"")

    def test_reset_drops_what_is_queued(self) -> None:
        """Data that waits for a window is forgotten with its stream, and the connection goes on."""
        client = H2Client()
        client.auto_ack = False
        stream_id = client.send(LATER, b"")
        client.pump()
        client.service.calls[0].reply(bytes(200_000))
        client.pump()
        client.h2.reset_stream(stream_id, ErrorCode.CANCEL)
        client.h2.increment_flow_control_window(65535)
        client.pump()
        self.assertTrue(client.server.idle)
        self.assertEqual(client.server.flow.unsent_bytes, 0)
        self.assertEqual(client.request(PUT, put_bytes()).status, (0, ""))

    def test_deadline(self) -> None:
        """A call that is not answered in time ends with DEADLINE_EXCEEDED and is cancelled, once, and not before."""
        client = H2Client()
        slow = client.send(LATER, b"", grpc_timeout="2S")
        slower = client.send(WATCH, b"", grpc_timeout="3000m")
        client.pump()
        client.server.expire(client.now_s + 1.9)
        self.assertEqual(client.service.cancelled, [])
        client.server.expire(client.now_s + 2.1)
        client.pump()
        self.assertEqual(client.answers[slow].status, (4, "context deadline exceeded"))
        self.assertEqual(client.service.cancelled, client.service.calls[:1])
        client.server.expire(client.now_s + 9.0)
        client.pump()
        self.assertEqual(client.answers[slower].status[0], 0)  # it had ended by itself
        self.assertEqual(len(client.service.cancelled), 1)

    def test_deadline_of_a_stream(self) -> None:
        """An open stream ends at its deadline by trailers after its messages."""
        client = H2Client()
        stream_id = client.open(WATCH, grpc_timeout="1S")
        client.send_body(stream_id, framed(b"x"))
        client.pump()
        client.server.expire(client.now_s + 1.0)
        client.pump()
        answer = client.answers[stream_id]
        self.assertEqual(answer.messages, [b"echo x"])
        self.assertEqual(answer.trailers["grpc-status"], "4")
        self.assertEqual(answer.reset, ErrorCode.NO_ERROR)

    def test_deadline_of_a_stream_that_is_not_read(self) -> None:
        """A stream whose messages wait for the client at its deadline is reset with CANCEL, and they are dropped."""
        counts = Counts()
        client = H2Client(observer=counts)
        client.auto_ack = False
        stream_id = client.open(WATCH, grpc_timeout="1S")
        client.pump()
        (call,) = client.service.calls
        call.send(bytes(100_000))
        client.pump()
        client.server.expire(client.now_s + 0.9)
        self.assertFalse(call.done)
        client.server.expire(client.now_s + 1.0)
        client.pump()
        self.assertEqual(client.answers[stream_id].reset, ErrorCode.CANCEL)
        self.assertEqual(client.service.cancelled, [call])
        self.assertEqual(counts.calls, [(WATCH, None), (WATCH, 4)])
        self.assertTrue(client.server.idle)
        self.assertEqual(client.server.flow.unsent_bytes, 0)
        call.send(b"too late")
        client.h2.increment_flow_control_window(1_000_000)
        self.assertEqual(client.request(PUT, put_bytes()).status, (0, ""))

    def test_deadline_of_an_answer_that_is_not_read(self) -> None:
        """A whole answer that still waits for the client at the call's deadline is dropped; its handler had ended."""
        counts = Counts()
        client = H2Client(observer=counts)
        client.auto_ack = False
        stream_id = client.send(LATER, b"", grpc_timeout="1S")
        client.pump()
        client.service.calls[0].reply(bytes(100_000))
        client.pump()
        client.server.expire(client.now_s + 1.0)
        client.pump()
        self.assertEqual(client.answers[stream_id].reset, ErrorCode.CANCEL)
        self.assertEqual(client.service.cancelled, [])
        self.assertEqual(counts.calls, [(LATER, None), (LATER, 0)])
        self.assertTrue(client.server.idle)
        self.assertEqual(client.server.flow.unsent_bytes, 0)

    def test_go_away_lets_calls_finish(self) -> None:
        """A graceful end refuses nothing that was under way, finishes what is open, and closes then."""
        client = H2Client()
        stream_id = client.send(LATER, b"")
        client.pump()
        client.server.go_away()
        client.server.take_output()
        late = client.send(PUT, put_bytes())  # crosses the first GOAWAY on the wire
        client.server.receive(client.h2.data_to_send(), client.now_s)
        self.assertIn(framed(put_bytes()), client.server.take_output())
        self.assertEqual(late, 3)
        client.server.receive(frames.ping(b"draining", ack=True), client.now_s)
        self.assertEqual(client.server.take_output(), frames.goaway(3, ErrorCode.NO_ERROR))
        self.assertFalse(client.server.closing)
        client.service.calls[0].reply(b"done")
        self.assertIn(framed(b"done"), client.server.take_output())
        self.assertTrue(client.server.closing)
        self.assertEqual(stream_id, 1)

    def test_go_away_ignores_new_streams(self) -> None:
        """After the second GOAWAY a new request is not served, and does not keep the connection open."""
        client = H2Client()
        client.send(LATER, b"")
        client.pump()
        client.server.go_away()
        client.server.receive(frames.ping(b"draining", ack=True), client.now_s)
        client.send(PUT, put_bytes())
        client.server.receive(client.h2.data_to_send(), client.now_s)
        self.assertEqual(len(client.service.calls), 1)
        self.assertFalse(client.server.closing)

    def test_go_away_without_an_answer(self) -> None:
        """A client that does not answer the ping is told the end after a second."""
        client = H2Client()
        client.server.go_away()
        client.server.take_output()
        client.server.expire(client.now_s)
        client.server.expire(client.now_s + 0.9)
        self.assertEqual(client.server.take_output(), b"")
        client.server.expire(client.now_s + 1.0)
        self.assertEqual(client.server.take_output(), frames.goaway(0, ErrorCode.NO_ERROR))
        self.assertTrue(client.server.closing)

    def test_lost_connection_cancels_all(self) -> None:
        """When the transport is gone every open call is cancelled, and nothing more is said."""
        client = H2Client()
        client.send(LATER, b"")
        client.open(WATCH)
        client.pump()
        client.server.lost()
        self.assertEqual(client.service.cancelled, client.service.calls)
        self.assertTrue(client.server.idle)
        for call in client.service.calls:
            call.send(b"x")
            call.finish()
        self.assertEqual(client.server.take_output(), b"")

    def test_client_that_shrinks_its_header_table(self) -> None:
        """After a SETTINGS_HEADER_TABLE_SIZE of 0 our blocks still decode (RFC 7541 §4.2)."""
        client = H2Client(settings={1: 0})
        client.h2.decoder.max_allowed_table_size = 0
        for _ in range(2):
            self.assertEqual(client.request(PUT, put_bytes()).status, (0, ""))


class ObserverTests(SynchronousTestCase):
    """What is counted."""

    def test_calls_and_bytes(self) -> None:
        """An observer sees each call of a known method begin and end once, and all bytes."""
        counts = Counts()
        client = H2Client(observer=counts)
        client.request(PUT, put_bytes())
        client.request(PUT, put_bytes(key=b""))
        client.request("/no.Such/Method", b"")
        client.request(SNAPSHOT, b"")
        cancelled = client.open(WATCH)
        client.pump()
        client.h2.reset_stream(cancelled)
        client.pump()
        ends = [(PUT, 0), (PUT, 3), (SNAPSHOT, 0), (WATCH, 1)]
        self.assertEqual(counts.calls, [step for path, code in ends for step in ((path, None), (path, code))])
        self.assertGreater(counts.received_bytes, 100)
        self.assertGreater(counts.sent_bytes, 100)


class GarbageTests(SynchronousTestCase):
    """Nothing on the wire makes ``receive`` raise."""

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40))))
    def test_random_frames(self, some: list[tuple[int, int, int, bytes]]) -> None:
        """Any sequence of frames is served, refused or ends the connection."""
        client = H2Client()
        client.send(WATCH, b"x")
        client.pump()
        for kind, flags, stream_id, payload in some:
            client.server.receive(frames.frame(kind, flags, stream_id, payload), client.now_s)
            client.server.take_output()
        client.server.lost()
        self.assertEqual(client.service.failures, [])

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=200))
    def test_random_bytes(self, data: bytes) -> None:
        """Bytes that are no HTTP/2 end the connection, or wait for more."""
        client = H2Client()
        client.server.receive(data, client.now_s)
        client.server.take_output()
        client.server.lost()

"""The JSON gateway: paths, calls of all kinds, errors and headers."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.httpfakes import MAX_MESSAGE_BYTES, PEER, RecordingOutlet, Wire
from twistedkv.errors import Code, CompactedError, NoLeaderError, RPCError
from twistedkv.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from twistedkv.protocols.answers import GATEWAY_JSON, JSON, Answer
from twistedkv.protocols.gateway import HTTP_STATUS, PATHS, GatewayCall, error_answer, request_head
from twistedkv.protocols.rpc import Head


class GatewayCase(SynchronousTestCase):
    """A gateway on toy services."""

    def setUp(self) -> None:
        self.wire = Wire()
        self.member = self.wire.member
        self.outlet = RecordingOutlet()

    def call(self, path: str, body: bytes, timeout_s: float | None = None) -> GatewayCall | None:
        """Make a call."""
        method = self.wire.gateway.methods[path]
        return self.wire.gateway.call(method, Head(method.path, {}, timeout_s), PEER, body, self.outlet)

    def answer(self) -> tuple[int, object]:
        """Status and JSON of the one answer."""
        (answer,) = self.outlet.answers
        return answer.status, json.loads(answer.body)

    def counted(self, sample: str) -> int:
        """The value of a sample of the metrics."""
        for line in self.wire.metrics.exposition().decode().splitlines():
            if line.startswith(sample + " "):
                return int(line.rpartition(" ")[2])
        return 0


class PathTests(SynchronousTestCase):
    """Which path leads where."""

    def test_every_path_leads_to_a_method_of_etcds_api(self) -> None:
        """Each method in the table exists, and each method of the API has a path."""
        services = [
            service
            for module in (rpc_pb2, v3lock_pb2, v3election_pb2)
            for service in module.DESCRIPTOR.services_by_name.values()
        ]
        api = {f"{service.full_name}/{method.name}" for service in services for method in service.methods}
        self.assertEqual(set(PATHS.values()), api)

    def test_old_prefixes_lead_to_the_same_methods(self) -> None:
        """/v3beta and /v3alpha are accepted."""
        methods = Wire().gateway.methods
        self.assertIs(methods["/v3beta/kv/put"], methods["/v3/kv/put"])
        self.assertIs(methods["/v3alpha/kv/put"], methods["/v3/kv/put"])

    def test_every_status_has_a_place_in_http(self) -> None:
        """No gRPC code is without its HTTP status."""
        self.assertEqual(set(HTTP_STATUS), set(Code))


class UnaryTests(GatewayCase):
    """One body in, one body out."""

    def test_a_put_is_called_and_answered(self) -> None:
        """The service sees protobuf, the client JSON with the header of a proxied answer."""
        self.call("/v3/kv/put", b'{"key":"Zm9v","value":"YmFy"}')
        body = b'{"header":{"revision":"1"},"prev_kv":{"value":"YmFy"}}'
        self.assertEqual(self.outlet.answers, [Answer(200, GATEWAY_JSON, body)])
        self.assertEqual(rpc_pb2.PutRequest.FromString(self.member.calls[0].message).key, b"foo")

    def test_a_refusal_has_its_status_and_text_twice(self) -> None:
        """3.5 answers with error, code and message, in this order."""
        self.call("/v3/kv/put", b"")
        (answer,) = self.outlet.answers
        self.assertEqual((answer.status, answer.fields), (400, JSON))
        text = b"etcdserver: key is not provided"
        self.assertEqual(answer.body, b'{"error":"%s","code":3,"message":"%s"}' % (text, text))

    def test_texts_of_errors_are_escaped(self) -> None:
        """A text with quotes and angle brackets is still JSON, as Go writes it."""
        answer = error_answer(Code.NOT_FOUND, 'no "<x>"')
        self.assertEqual(answer.body.count(rb'"no \"\u003cx\u003e\""'), 2)
        self.assertEqual(answer.status, 404)

    def test_a_bad_body_does_not_come_to_a_call(self) -> None:
        """Bad JSON is answered with 400 and Go's text."""
        self.assertIsNone(self.call("/v3/kv/put", b"nox"))
        text = "invalid character 'o' in literal null (expecting 'u')"
        self.assertEqual(self.answer(), (400, {"error": text, "code": 3, "message": text}))
        self.assertEqual(self.member.calls, [])

    def test_a_request_that_is_too_long_is_refused(self) -> None:
        """The limit is that of the message, not of the body, and the text is grpc-go's."""
        self.call("/v3/kv/put", b'{"key":"YQ==","value":"%s"}' % (b"AAAA" * 1300))  # 3900 bytes
        self.assertEqual(self.outlet.answers.pop().status, 200)
        self.call("/v3/kv/put", b'{"key":"YQ==","value":"%s"}' % (b"AAAA" * 1400))
        status, body = self.answer()
        self.assertEqual(status, 429)
        self.assertIn(f"grpc: received message larger than max (4206 vs. {MAX_MESSAGE_BYTES})", str(body))

    def test_a_broken_handler_is_logged_and_answered(self) -> None:
        """What is no refusal becomes UNKNOWN with status 500, and its traceback is reported."""
        self.call("/v3/kv/txn", b"{}")
        self.assertEqual(self.answer()[0], 500)
        ((error, path),) = self.wire.failures
        self.assertIsInstance(error, RuntimeError)
        self.assertEqual(path, "/etcdserverpb.KV/Txn")

    def test_only_the_first_verdict_counts(self) -> None:
        """After a reply, a cancellation or a second reply does nothing."""
        call = self.call("/v3/kv/range", b"{}")
        assert call is not None
        call.reply(b"")
        call.reply(b"")
        call.fail(NoLeaderError())
        call.cancel()
        self.assertEqual([answer.status for answer in self.outlet.answers], [200])
        self.assertEqual(self.member.cancelled, [])

    def test_a_deadline_ends_the_call(self) -> None:
        """When Grpc-Timeout has passed, the client gets 504 and the handler is told once."""
        self.call("/v3/kv/range", b"{}", timeout_s=2.0)
        self.wire.clock.advance(1.9)
        self.assertEqual(self.outlet.answers, [])
        self.wire.clock.advance(0.2)
        text = "context deadline exceeded"
        self.assertEqual(self.answer(), (504, {"error": text, "code": 4, "message": text}))
        self.assertEqual(self.member.cancelled, self.member.calls)

    def test_a_deadline_in_the_past_calls_nobody(self) -> None:
        """A timeout of zero or less is over before the call."""
        self.call("/v3/kv/range", b"{}", timeout_s=-1.0)
        self.assertEqual(self.answer()[0], 504)
        self.assertEqual(self.member.calls, [])

    def test_an_answer_in_time_stops_the_clock(self) -> None:
        """Nothing is left on the clock after the answer."""
        before = self.wire.clock.getDelayedCalls()
        call = self.call("/v3/kv/range", b"{}", timeout_s=2.0)
        assert call is not None
        call.reply(b"")
        self.assertEqual(self.wire.clock.getDelayedCalls(), before)

    def test_a_client_that_leaves_cancels_its_call(self) -> None:
        """The handler hears of it, and nothing is sent any more."""
        call = self.call("/v3/kv/range", b"{}")
        assert call is not None
        call.cancel()
        call.reply(b"")
        self.assertEqual(self.member.cancelled, [call])
        self.assertEqual(self.outlet.answers, [])

    def test_calls_are_counted_with_their_status(self) -> None:
        """Calls of the gateway count like those of gRPC."""
        self.call("/v3/kv/put", b'{"key":"Zm9v"}')
        self.call("/v3/kv/put", b"{}")
        labels = 'grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"'
        self.assertEqual(self.counted(f"grpc_server_started_total{{{labels}}}"), 2)
        self.assertEqual(self.counted(f'grpc_server_handled_total{{grpc_code="OK",{labels}}}'), 1)
        self.assertEqual(self.counted(f'grpc_server_handled_total{{grpc_code="InvalidArgument",{labels}}}'), 1)


class NameTests(SynchronousTestCase):
    """Common names of client certificates."""

    def test_a_common_name_never_reaches_a_service(self) -> None:
        """A call through the gateway has no user by certificate."""
        wire, outlet = Wire(), RecordingOutlet()
        method = wire.gateway.methods["/v3/kv/put"]
        peer = PEER._replace(common_name="root", secure=True)
        wire.gateway.call(method, Head(method.path, {}, None), peer, b'{"key":"Zm9v"}', outlet)
        self.assertIsNone(wire.member.calls[0].peer.common_name)

    def test_with_authentication_a_named_client_is_turned_away(self) -> None:
        """Its name would silently not count, so it is told."""
        wire, outlet = Wire(auth=True), RecordingOutlet()
        method = wire.gateway.methods["/v3/kv/put"]
        peer = PEER._replace(common_name="root", secure=True)
        self.assertIsNone(wire.gateway.call(method, Head(method.path, {}, None), peer, b"{}", outlet))
        (answer,) = outlet.answers
        self.assertEqual(answer.status, 400)
        self.assertTrue(answer.body.startswith(b"CommonName of client sending a request against gateway"))


class StreamTests(GatewayCase):
    """Bodies of several messages, answers line by line."""

    def test_a_watch_is_answered_line_by_line(self) -> None:
        """Each message is a result on a line of its own, sent at once; headers go out with the first."""
        call = self.call("/v3/watch", b'{"create_request":{"key":"Zm9v"}}')
        assert call is not None
        self.assertEqual(self.outlet.begun, [])
        call.send(rpc_pb2.WatchResponse(created=True).SerializeToString())
        call.send(rpc_pb2.WatchResponse(watch_id=3).SerializeToString())
        self.assertEqual(self.outlet.begun, [GATEWAY_JSON])
        self.assertEqual(self.outlet.pieces, [b'{"result":{"created":true}}\n', b'{"result":{"watch_id":"3"}}\n'])
        call.finish()
        self.assertTrue(self.outlet.ended)

    def test_all_messages_of_the_body_arrive_in_order(self) -> None:
        """Objects in a row are messages in a row, then the client has no more to say."""
        call = self.call(
            "/v3/watch", b'{"create_request":{"key":"YQ=="}} {"progress_request":{}}\n{"cancel_request":{}}'
        )
        kinds = [
            rpc_pb2.WatchRequest.FromString(message).WhichOneof("request_union") for message in self.member.received
        ]
        self.assertEqual(kinds, ["create_request", "progress_request", "cancel_request"])
        self.assertEqual(self.member.half_closed, [call])

    def test_a_paused_stream_waits(self) -> None:
        """No message comes before the service asks for it."""
        self.member.pause_after = 1
        call = self.call("/v3/watch", b"{} {} {}")
        assert call is not None
        self.assertEqual((len(self.member.received), self.member.half_closed), (1, []))
        call.resume()
        self.assertEqual((len(self.member.received), self.member.half_closed), (3, [call]))

    def test_a_bad_first_message_is_an_error_without_code(self) -> None:
        """grpc-gateway answers it with UNKNOWN and 500, other than for unary calls."""
        self.assertIsNone(self.call("/v3/watch", b"nox"))
        self.assertEqual(self.answer()[0], 500)

    def test_a_bad_later_message_ends_the_requests(self) -> None:
        """The messages before it count, and the answer goes on."""
        call = self.call("/v3/watch", b"{} nox")
        self.assertEqual((len(self.member.received), self.member.half_closed), (1, [call]))
        self.assertEqual(self.outlet.answers, [])

    def test_an_empty_body_is_a_stream_without_messages(self) -> None:
        """The call begins, and its requests end at once."""
        call = self.call("/v3/watch", b"")
        self.assertEqual((self.member.received, self.member.half_closed), ([], [call]))

    def test_an_error_before_anything_was_sent(self) -> None:
        """It has its HTTP status, and the body that any stream ends with; so etcd 3.5.1 answers."""
        for path, body in (("/v3/maintenance/snapshot", b""), ("/v3/watch", b"{}")):
            call = self.call(path, body)
            assert call is not None
            call.fail(NoLeaderError())
            text = b"etcdserver: no leader"
            line = (
                b'{"error":{"grpc_code":14,"http_code":503,"message":"%s","http_status":"Service Unavailable"}}' % text
            )
            self.assertEqual(self.outlet.answers.pop(), Answer(503, JSON, line))

    def test_an_error_after_that_is_the_last_line(self) -> None:
        """It names both statuses, since the HTTP status has been sent."""
        call = self.call("/v3/maintenance/snapshot", b"")
        assert call is not None
        call.send(rpc_pb2.SnapshotResponse(blob=b"x").SerializeToString())
        call.fail(CompactedError())
        text = b"etcdserver: mvcc: required revision has been compacted"
        line = b'{"error":{"grpc_code":11,"http_code":400,"message":"%s","http_status":"Bad Request"}}' % text
        self.assertEqual(self.outlet.pieces[1:], [line])
        self.assertTrue(self.outlet.ended)

    def test_a_stream_without_a_message_has_no_grpc_header(self) -> None:
        """It is 200 with nothing in it."""
        call = self.call("/v3/watch", b"")
        assert call is not None
        call.finish()
        self.assertEqual((self.outlet.begun, self.outlet.pieces, self.outlet.ended), ([JSON], [], True))

    def test_a_full_client_makes_the_stream_wait(self) -> None:
        """What the connection says about room is what the service sees."""
        call = self.call("/v3/watch", b"")
        assert call is not None
        self.outlet.writable = False
        self.assertFalse(call.writable)


class HeaderTests(SynchronousTestCase):
    """What HTTP headers mean to a call."""

    def test_metadata_comes_from_prefixed_headers(self) -> None:
        """Authorization passes as it is, Grpc-Metadata-X as x, others not; the first of equal names counts."""
        head = request_head(
            "/p",
            [
                ("Authorization", "token"),
                ("Grpc-Metadata-HasLeader", "true"),
                ("grpc-metadata-hasleader", "false"),
                ("Accept", "x"),
                ("Grpc-Metadata-Key-Bin", "AP8"),
            ],
        )
        self.assertEqual(head, Head("/p", {"authorization": "token", "hasleader": "true", "key-bin": "\0\xff"}, None))

    def test_timeouts_are_read_in_all_units(self) -> None:
        """H, M, S, m, u and n; negative ones too, as Go takes them."""
        for value, seconds in (
            ("1H", 3600),
            ("2M", 120),
            ("3S", 3),
            ("40m", 0.04),
            ("5u", 5e-6),
            ("6n", 6e-9),
            ("-1S", -1),
        ):
            timeout_s = request_head("/p", [("Grpc-Timeout", value)]).timeout_s
            assert timeout_s is not None
            self.assertAlmostEqual(timeout_s, seconds)

    def test_what_cannot_be_understood_is_refused(self) -> None:
        """With grpc-gateway's words."""
        for name, value, text in (
            ("Grpc-Timeout", "zz", "invalid grpc-timeout: zz"),
            ("Grpc-Timeout", "1", "invalid grpc-timeout: 1"),
            (
                "Grpc-Metadata-foo-bin",
                "!!",
                "invalid binary header Grpc-Metadata-Foo-Bin: illegal base64 data at input byte 0",
            ),
        ):
            error = self.assertRaises(RPCError, request_head, "/p", [(name, value)])
            self.assertEqual((error.code, str(error)), (Code.INVALID_ARGUMENT, text))

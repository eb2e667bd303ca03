"""twistedkv against real etcd, answer by answer; and the comparison itself against answers that are wrong on purpose.

``TWISTEDKV_DIFFERENTIAL_SEEDS`` ("1,2,3") and ``TWISTEDKV_DIFFERENTIAL_STEPS`` (of each seed) ask for more.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.clients import GatewayClient, GrpcClient, Reply
from tests.functional.differential import Difference, ServerSide, equal, masked_json, run, same_headers
from tests.functional.operations import Door, Step
from tests.functional.processes import (
    MISSING_ETCD,
    EtcdProcess,
    ServerProcess,
    TLSFiles,
    TwistedkvProcess,
)
from twistedkv.pb import kv_pb2
from twistedkv.pb import rpc_pb2 as pb

_SEEDS = [int(seed) for seed in os.environ.get("TWISTEDKV_DIFFERENTIAL_SEEDS", "1,2,3").split(",")]
_STEPS = int(os.environ.get("TWISTEDKV_DIFFERENTIAL_STEPS", "800"))


class PairedServers(SynchronousTestCase):
    """New servers for each test."""

    skip = MISSING_ETCD

    def start(self, *types: type[ServerProcess], plaintext: bool = False) -> list[ServerProcess]:
        """Start one server of each type, with mutual TLS if not told otherwise; they stop when the test ends."""
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        tls = None if plaintext else TLSFiles.make(Path(scratch.name) / "tls")
        servers = [each(Path(scratch.name) / f"{n}", tls) for n, each in enumerate(types)]
        for server in servers:
            self.addCleanup(server.stop)
            server.spawn()
        for server in servers:
            server.wait_until_ready()
        return servers

    def side(self, server: ServerProcess) -> ServerSide:
        """Connections to a server, closed when the test ends."""
        side = ServerSide(server)
        self.addCleanup(side.close)
        return side


class DifferentialTests(PairedServers):
    """The random sequences."""

    def test_random_requests_get_etcds_answers(self) -> None:
        """Every answer to thousands of random requests over both doors is the one that real etcd gives."""
        for seed in _SEEDS:
            servers = self.start(EtcdProcess, TwistedkvProcess, plaintext=seed % 3 == 0)
            reference, subject = map(self.side, servers)
            for difference in run(reference, subject, seed, _STEPS):
                self.fail(str(difference))
            for server in servers:
                server.stop()

    def test_no_space_alarm_refuses_what_etcd_refuses(self) -> None:
        """With the alarm NOSPACE raised, writes that take space are refused and all else works, as in etcd."""
        sides = [self.side(server) for server in self.start(EtcdProcess, TwistedkvProcess)]
        members = []
        for side in sides:
            status = side.send(Step(Door.GRPC, pb.StatusRequest())).message
            assert status is not None
            members.append(status.header.member_id)
        script: list[Callable[[int], pb.PutRequest | pb.AlarmRequest]] = [
            lambda _: pb.PutRequest(key=b"a", value=b"1"),
            lambda member: pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=member, alarm=pb.NOSPACE),
            lambda _: pb.AlarmRequest(),
            lambda _: pb.PutRequest(key=b"a", value=b"2"),
            lambda _: pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=b"b"))]),
            lambda _: pb.TxnRequest(success=[pb.RequestOp(request_range=pb.RangeRequest(key=b"a"))]),
            lambda _: pb.RangeRequest(key=b"a"),
            lambda _: pb.DeleteRangeRequest(key=b"a"),
            lambda _: pb.CompactionRequest(revision=2),
            lambda _: pb.StatusRequest(),
            lambda _: pb.DefragmentRequest(),
            lambda _: pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=7, alarm=pb.NOSPACE),
            lambda _: pb.PutRequest(key=b"a", value=b"3"),
            lambda member: pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=member, alarm=pb.NOSPACE),
            lambda _: pb.AlarmRequest(),
            lambda _: pb.PutRequest(key=b"a", value=b"4"),
            lambda _: pb.HashKVRequest(),
        ]
        for number, make in enumerate(script, 1):
            steps = [Step(Door.GRPC, make(member)) for member in members]
            expected, found = (side.send(step) for side, step in zip(sides, steps, strict=True))
            if isinstance(expected.message, pb.StatusResponse) and isinstance(found.message, pb.StatusResponse):
                self.assertEqual(len(found.message.errors), len(expected.message.errors))
                continue  # the text of the alarm names the member
            self.assertTrue(equal(steps[0], expected, found), str(Difference(0, number, steps[0], expected, found)))

    def test_a_request_that_crashes_etcd_is_refused(self) -> None:
        """A put that keeps the value of a key which its transaction deletes first is refused, and changes nothing.

        etcd's check for duplicate keys takes the range end "\\0" literally and lets this pass, and then panics.
        """
        (server,) = self.start(TwistedkvProcess)
        side = self.side(server)
        everything = pb.DeleteRangeRequest(key=b"\0", range_end=b"\0")
        keep = pb.PutRequest(key=b"a", ignore_value=True)
        ops = [pb.RequestOp(request_delete_range=everything), pb.RequestOp(request_put=keep)]
        side.send(Step(Door.GRPC, pb.PutRequest(key=b"a", value=b"1")))
        reply = side.send(Step(Door.GRPC, pb.TxnRequest(success=ops)))
        self.assertEqual((reply.code, reply.text), (3, "etcdserver: key not found"))
        after = side.send(Step(Door.GRPC, pb.RangeRequest(key=b"a"))).message
        assert isinstance(after, pb.RangeResponse)
        self.assertEqual((after.header.revision, after.kvs[0].value), (2, b"1"))


class BadInputTests(PairedServers):
    """What is no request at all."""

    def test_bad_grpc_requests_get_etcds_status(self) -> None:
        """Unknown methods, garbage and oversized messages get the status code and the text of etcd."""
        put, txn = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Txn"
        cases = [
            *((path, b"") for path in ("/nope.Service/X", "/etcdserverpb.KV/Nope", "/nope", "/", "/a/b/c")),
            # A known field of another wire type is not among these: etcd's generated code refuses it, the protobuf
            # library keeps it as an unknown field, as the protobuf specification allows.
            *((put, garbage) for garbage in (b"\xff\xff", b"\x0a\x05ab", b"\x00\x01", b"\x0c", b"\x0f")),
            *((put, b"\x0a\x01a" + tail) for tail in (b"\xa0\x1f\x01", b"\x20\x02", b"\x18" + b"\xff" * 10 + b"\x01")),
            (txn, b"\x12\x04\x12\x02\x0a\x09"),
            *((put, pb.PutRequest(key=b"a", value=bytes(size)).SerializeToString()) for size in (1_600_000, 2 << 20)),
            (put, pb.PutRequest(key=b"a", value=bytes(1_500_000)).SerializeToString()),
            (put, b""),
        ]
        clients = [GrpcClient(server) for server in self.start(EtcdProcess, TwistedkvProcess)]
        wrong = []
        for path, request in cases:
            (code, text, _), (found_code, found_text, _) = (client.call_raw(path, request) for client in clients)
            if (found_code, _without_parser(found_text)) != (code, _without_parser(text)):
                wrong.append(f"{path} {request[:20]!r}: expected {code} {text!r}, found {found_code} {found_text!r}")
        for client in clients:
            client.close()
        self.assertEqual(wrong, [], "\n".join(wrong))

    def test_bad_http_requests_get_etcds_answer(self) -> None:
        """Wrong verbs, wrong paths and bodies that are no JSON get the status, headers and body of etcd."""
        bodies = [b"", b"{}", b"{", b"nope", b"[]", b'"x"', b'{"key":"a"}', b'{"key":1}', b'{"key":"YQ==","lease":"x"}']
        bodies += [b'{"key":"YQ==","lease":1.5}', b'{"key":"YQ==","prev_kv":"x"}', b'{"key":"YQ=="} trailing', b"\xff"]
        bodies += [b'{"key":"YQ==","value":"' + b"eHh4" * (size // 3) + b'"}' for size in (1_600_000, 2_400_000)]
        cases: list[tuple[str, str, bytes | None]] = [
            *(("POST", "/v3/kv/put", body) for body in bodies),
            ("POST", "/v3/kv/range", b'{"key":"YQ==","sort_order":"UP"}'),
            ("POST", "/v3/kv/range", b'{"rangeEnd":"AA==","key":"enp6","unknown":[1]}'),
            ("POST", "/v3beta/kv/range", b'{"key":"enp6"}'),
            ("POST", "/v3/kv/range?x=1", b'{"key":"enp6"}'),
            *((verb, "/v3/kv/put", None) for verb in ("GET", "OPTIONS", "HEAD", "DELETE", "PUT")),
            *(("POST", path, b"{}") for path in ("/v3/nope", "/v3/kv/put/", "/v3//kv/put", "/v3", "/nope", "/health")),
            *(("GET", path, None) for path in ("/", "/version", "/health", "/v3/kv/range")),
        ]
        clients = [GatewayClient(server) for server in self.start(EtcdProcess, TwistedkvProcess)]
        wrong = []
        for verb, path, body in cases:
            expected, found = (client.call_raw(verb, path, body) for client in clients)
            if _comparable(found) != _comparable(expected) or not same_headers(expected[0], expected[1], found[1]):
                wrong.append(f"{verb} {path} {(body or b'')[:60]!r}:\n  expected {expected}\n  found    {found}")
        for client in clients:
            client.close()
        self.assertEqual(wrong, [], "\n".join(wrong))


class SelfCheckTests(PairedServers):
    """The harness examined: real etcd against itself, and against falsified answers."""

    def test_etcd_equals_itself(self) -> None:
        """Two real etcd servers show no difference, so what the test reports is not of its own making."""
        reference, subject = map(self.side, self.start(EtcdProcess, EtcdProcess))
        self.assertEqual([str(difference) for difference in run(reference, subject, 4, 600)], [])

    def test_a_falsified_answer_is_found(self) -> None:
        """Each of a dozen wrong answers, put into a sequence of right ones, is reported with its step."""
        reference, subject = map(self.side, self.start(EtcdProcess, EtcdProcess))
        for number, (name, falsify) in enumerate(_FALSIFICATIONS.items()):
            liar = Liar(subject, falsify)
            found = run(reference, liar, 100 + number, 400)
            self.assertTrue(liar.lied, f"the sequence never gave an occasion for {name}")
            self.assertEqual([str(each.step) for each in found], [str(liar.lied[0])], name)


class Liar:
    """A side that changes the first answer that ``falsify`` can change."""

    def __init__(self, side: ServerSide, falsify: Callable[[Reply], None]) -> None:
        self._side = side
        self._falsify = falsify
        self.lied: list[Step] = []

    def send(self, step: Step) -> Reply:
        """The true answer, or once a changed one; a question repeated because of it is answered as wrongly."""
        reply = self._side.send(step)
        if not self.lied or self.lied[0] is step:
            before = deepcopy(reply)
            self._falsify(reply)
            if reply != before and not self.lied:
                self.lied.append(step)
        return reply

    def close(self) -> None:
        """Nothing of its own to close."""


def _of(kind: type, change: Callable[[Reply], None]) -> Callable[[Reply], None]:
    def falsify(reply: Reply) -> None:
        if isinstance(reply.message, kind):
            change(reply)

    return falsify


def _swap_keys(reply: Reply) -> None:
    kvs = reply.message.kvs  # type: ignore[union-attr]
    if len(kvs) > 1 and kvs[0].version != kvs[-1].version and kvs[0].value != kvs[-1].value:
        first, last = deepcopy(kvs[0]), deepcopy(kvs[-1])
        kvs[0].CopyFrom(last)
        kvs[-1].CopyFrom(first)


def _bump(*path: str) -> Callable[[Reply], None]:
    def change(reply: Reply) -> None:
        target = reply.message
        for name in path[:-1]:
            if not target.HasField(name):  # type: ignore[union-attr]
                return
            target = getattr(target, name)
        setattr(target, path[-1], getattr(target, path[-1]) + 1)

    return change


def _flip(name: str) -> Callable[[Reply], None]:
    return lambda reply: setattr(reply.message, name, not getattr(reply.message, name))


def _lose_member_id(reply: Reply) -> None:
    reply.message.header.member_id = 0  # type: ignore[union-attr]


def _drop_nested(reply: Reply) -> None:
    for op in reply.message.responses:  # type: ignore[union-attr]
        if op.WhichOneof("response") == "response_txn":
            op.response_txn.header.revision = 9
            return


def _reword(reply: Reply) -> None:
    if reply.text:
        reply.text = reply.text.replace("etcdserver", "server")


def _recode(reply: Reply) -> None:
    if reply.code:
        reply.code = 2


def _restyle_json(reply: Reply) -> None:
    reply.body = reply.body.replace(b'","', b'", "')


def _drop_header(reply: Reply) -> None:
    reply.headers.pop("access-control-allow-origin", None)


_FALSIFICATIONS: dict[str, Callable[[Reply], None]] = {
    "keys in another order": _of(pb.RangeResponse, _swap_keys),
    "count one too high": _of(pb.RangeResponse, _bump("count")),
    "more turned round": _of(pb.RangeResponse, _flip("more")),
    "revision one too high": _of(pb.PutResponse, _bump("header", "revision")),
    "previous version one too high": _of(pb.PutResponse, _bump("prev_kv", "version")),
    "deleted one too high": _of(pb.DeleteRangeResponse, _bump("deleted")),
    "the other branch": _of(pb.TxnResponse, _flip("succeeded")),
    "a revision in a nested header": _of(pb.TxnResponse, _drop_nested),
    "another hash": _of(pb.HashKVResponse, _bump("hash")),
    "another compact revision": _of(pb.HashKVResponse, _bump("compact_revision")),
    "no member id": _of(pb.MemberListResponse, _lose_member_id),
    "another error text": _reword,
    "another error code": _recode,
    "another style of JSON": _restyle_json,
    "a missing header": _drop_header,
}


class OpenOrderTests(SynchronousTestCase):
    """What counts as equal where etcd's sort leaves the order open."""

    def _equal(self, target: int, left: str, right: str, more: bool = False) -> bool:
        request = pb.RangeRequest(key=b"a", range_end=b"z", sort_target=target, sort_order=pb.RangeRequest.DESCEND)
        answers = [
            pb.RangeResponse(
                kvs=[kv_pb2.KeyValue(key=each[:1].encode(), version=int(each[1:])) for each in text.split()], more=more
            )
            for text in (left, right)
        ]
        return equal(Step(Door.GRPC, request), *(Reply(0, "", answer) for answer in answers))

    def test_equal_sort_keys_may_come_in_any_order(self) -> None:
        """Keys of one version may change places, keys of different versions may not."""
        self.assertTrue(self._equal(pb.RangeRequest.VERSION, "a2 b1 c1 d0", "a2 c1 b1 d0"))
        self.assertFalse(self._equal(pb.RangeRequest.VERSION, "a2 b1 c0", "a2 c0 b1"))
        self.assertFalse(self._equal(pb.RangeRequest.VERSION, "a1 b2 c1", "c1 b2 a1"))

    def test_key_order_is_never_open(self) -> None:
        """Sorted by key, nothing may change places."""
        self.assertFalse(self._equal(pb.RangeRequest.KEY, "a1 b1", "b1 a1"))

    def test_a_limit_may_cut_anywhere_among_equals(self) -> None:
        """Which of several equals a limit leaves is open, but how many and of which sort key is not."""
        self.assertTrue(self._equal(pb.RangeRequest.VERSION, "a2 b1", "a2 c1", more=True))
        self.assertFalse(self._equal(pb.RangeRequest.VERSION, "a2 b1", "a2 c1", more=False))
        self.assertFalse(self._equal(pb.RangeRequest.VERSION, "a2 b1", "d2 b1", more=True))
        self.assertFalse(self._equal(pb.RangeRequest.VERSION, "a2 b1 c1", "a2 b1", more=True))


def _without_parser(text: str) -> str:
    """The status text without what etcd's generated Go code says about the bytes it could not parse."""
    prefix = "grpc: error unmarshalling request: "
    return prefix if text.startswith(prefix) else text


def _comparable(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, bytes]:
    status, _, body = answer
    return status, masked_json(body).replace(b"3.5.1", b"3.5.x")

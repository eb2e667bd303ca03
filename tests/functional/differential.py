"""The differential test: one sequence of requests to two servers, every answer compared.

A full answer is compared: message or error code and text, over the gateway also HTTP status, headers and the text of
the JSON. Left out is only what may differ between two healthy servers: ids, Raft terms and indexes, sizes, ports (all
masked to "set" or "not set"), and the order of keys that a non-stable sort leaves open.

Run by hand with ``python -m tests.functional.differential --help``: it names seed and step of a difference, and the
same seed with that many steps is the shortest failing run of it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

from google.protobuf import text_format
from google.protobuf.message import Message

from tests.functional.clients import GatewayClient, GrpcClient, Reply
from tests.functional.operations import Door, OperationSource, Step
from tests.functional.processes import EtcdProcess, ServerProcess, TLSFiles, TwistedkvProcess
from twistedkv.pb import rpc_pb2 as pb

_MASKED_NUMBERS = (
    *("cluster_id", "member_id", "raft_term", "memberID", "ID", "leader"),
    *("raftIndex", "raftTerm", "raftAppliedIndex", "dbSize", "dbSizeInUse"),
)
_MASKED_JSON = re.compile(rb'("(?:%s)":)"\d+"' % b"|".join(name.encode() for name in _MASKED_NUMBERS))
_PORT = re.compile(r"127\.0\.0\.1:\d+")
_VERSION = re.compile(r"^3\.5\.\d+$")
_JSON_VERSION = re.compile(rb'("version":"3\.5)\.\d+"')
COMPARED_HEADERS = (
    *("content-type", "allow", "location", "x-content-type-options"),
    *("access-control-allow-origin", "access-control-allow-methods", "access-control-allow-headers"),
)
"""What a client can act on; the gateway's ``Grpc-Metadata-*`` is left to :func:`same_headers`."""
_HASH_TRIES = 300  # a background compaction is done long before so many questions are answered
_CHECK_EVERY = 250  # steps between comparisons of the whole store


class Side(Protocol):
    """One of the two servers, through both doors."""

    def send(self, step: Step) -> Reply:
        """Send one request and wait for the answer."""

    def close(self) -> None:
        """Close the connections."""


class ServerSide:
    """The side of a running server."""

    def __init__(self, server: ServerProcess) -> None:
        self._doors = {Door.GRPC: GrpcClient(server), Door.GATEWAY: GatewayClient(server)}

    def send(self, step: Step) -> Reply:
        """Send one request and wait for the answer."""
        return self._doors[step.door].call(step.request)

    def close(self) -> None:
        """Close the connections."""
        for client in self._doors.values():
            client.close()


@dataclass(frozen=True, slots=True)
class Difference:
    """A request to which the two servers gave different answers."""

    seed: int
    number: int  # of the step, from 1
    step: Step
    expected: Reply
    found: Reply

    def __str__(self) -> str:
        return (
            f"seed {self.seed}, step {self.number}: {self.step}\n"
            f"  expected {readable(self.expected)}\n  found    {readable(self.found)}\n"
            f"  again: python -m tests.functional.differential --seed {self.seed} --steps {self.number}"
        )


def run(reference: Side, subject: Side, seed: int, steps: int, most: int = 1) -> list[Difference]:
    """Send one sequence to both and compare; the differences found, at most ``most``.

    Both must be new, empty servers. After a first difference the stores may have parted, and what follows may be its
    consequence.
    """
    source = OperationSource(Random(seed))
    differences: list[Difference] = []
    for number in range(1, steps + 1):
        step = source.next()
        asked = [step]
        if number % _CHECK_EVERY == 0 or number == steps:
            everything = pb.RangeRequest(key=b"\x00", range_end=b"\x00")
            asked += [Step(Door.GRPC, everything), Step(Door.GRPC, pb.HashKVRequest())]
        for each in asked:
            expected, found = _ask(reference, subject, each)
            follow(source, each, expected)
            if not equal(each, expected, found):
                differences.append(Difference(seed, number, each, expected, found))
                if len(differences) >= most:
                    return differences
    return differences


def equal(step: Step, expected: Reply, found: Reply) -> bool:
    """Whether two answers to one request are the same to a client."""
    if (expected.code, expected.text, expected.http_status) != (found.code, found.text, found.http_status):
        return False
    if not same_headers(expected.http_status, expected.headers, found.headers):
        return False
    if (expected.message is None) != (found.message is None):
        return False
    if expected.message is None or found.message is None:
        return expected.body == found.body
    left, right = masked(expected.message), masked(found.message)
    if left == right and masked_json(expected.body) == masked_json(found.body):
        return True
    settle_order(step.request, left)
    settle_order(step.request, right)
    return left == right and has_open_order(step.request) and _is_compact(found.body)


def same_headers(status: int, expected: dict[str, str], found: dict[str, str]) -> bool:
    """Whether two HTTP answers of one status have the same headers, as far as a client can act on them.

    etcd echoes its own HTTP headers as ``Grpc-Metadata-*`` in ways that depend on TLS; the one that is documented,
    ``Grpc-Metadata-Content-Type``, is on every success.
    """
    names = COMPARED_HEADERS + (("grpc-metadata-content-type",) if status == 200 else ())
    return all(expected.get(name) == found.get(name) for name in names)


def masked(message: Message) -> Message:
    """A copy in which what may differ between two healthy servers says only whether it is set."""
    copy = type(message)()
    copy.CopyFrom(message)
    _mask(copy)
    return copy


def masked_json(body: bytes) -> bytes:
    """As :func:`masked`, on the JSON text of the gateway."""
    body = _MASKED_JSON.sub(rb'\1"1"', body)
    return _JSON_VERSION.sub(rb'\1"', re.sub(_PORT.pattern.encode(), b"127.0.0.1:1", body))


def has_open_order(request: Message) -> bool:
    """Whether the order of the answer is not settled by the request: Go's sort is not stable."""
    match request:
        case pb.RangeRequest():
            return request.sort_target != pb.RangeRequest.KEY
        case pb.TxnRequest():
            return any(has_open_order(getattr(op, op.WhichOneof("request"))) for op in _ops(request))
    return False


def settle_order(request: Message, answer: Message) -> None:
    """Put keys that sort as equals into the order of their names; of equals that a limit cut off, only count them."""
    match request, answer:
        case pb.RangeRequest(), pb.RangeResponse():
            if has_open_order(request):
                _settle_range(request, answer)
        case pb.TxnRequest(), pb.TxnResponse():
            ops = request.success if answer.succeeded else request.failure
            for op, result in zip(ops, answer.responses, strict=False):
                asked, answered = op.WhichOneof("request"), result.WhichOneof("response")
                if asked and answered:
                    settle_order(getattr(op, asked), getattr(result, answered))


def _settle_range(request: pb.RangeRequest, answer: pb.RangeResponse) -> None:
    def sort_key(kv: pb.RangeResponse) -> object:
        match request.sort_target:
            case pb.RangeRequest.VERSION:
                return kv.version
            case pb.RangeRequest.CREATE:
                return kv.create_revision
            case pb.RangeRequest.MOD:
                return kv.mod_revision
        return kv.value  # with keys_only all values are empty: then only the set of keys is compared

    groups: dict[object, list] = {}
    for kv in answer.kvs:
        groups.setdefault(sort_key(kv), []).append(kv)
    if sum(1 for a, b in zip(answer.kvs, answer.kvs[1:], strict=False) if sort_key(a) != sort_key(b)) >= len(groups):
        return  # equals are not together: that is wrong, and stays to be seen
    ordered = [sorted(group, key=lambda kv: kv.key) for group in groups.values()]
    if answer.more and ordered:
        cut = ordered[-1]
        ordered[-1] = [type(kv)() for kv in cut]
        for blank, kv in zip(ordered[-1], cut, strict=True):
            _copy_sort_key(request, kv, blank)
    del answer.kvs[:]
    for group in ordered:
        answer.kvs.extend(group)


def _copy_sort_key(request: pb.RangeRequest, kv: Message, blank: Message) -> None:
    names = {
        pb.RangeRequest.VERSION: "version",
        pb.RangeRequest.CREATE: "create_revision",
        pb.RangeRequest.MOD: "mod_revision",
    }
    name = names.get(request.sort_target, "value")
    setattr(blank, name, getattr(kv, name))


def _ops(txn: pb.TxnRequest) -> list[pb.RequestOp]:
    return [op for op in (*txn.success, *txn.failure) if op.WhichOneof("request")]


def _mask(message: Message) -> None:
    for field, value in message.ListFields():
        if field.name in _MASKED_NUMBERS and isinstance(value, int) and not _is_of_lease(message):
            setattr(message, field.name, 1)
        elif field.name in ("peerURLs", "clientURLs"):
            value[:] = [_PORT.sub("127.0.0.1:1", url) for url in value]
        elif field.name == "version" and isinstance(value, str):
            setattr(message, field.name, _VERSION.sub("3.5", value))
        elif field.type == field.TYPE_MESSAGE:
            for each in value if field.is_repeated else [value]:
                _mask(each)


def _is_of_lease(message: Message) -> bool:
    """Whether an ``ID`` in it is a lease's, which clients choose and compare."""
    return message.DESCRIPTOR.name.startswith("Lease")


def _ask(reference: Side, subject: Side, step: Step) -> tuple[Reply, Reply]:
    """Both answers. HashKV is asked again while it differs: a compaction deletes in the background, and until it is
    done etcd's hash of a store without live keys covers what is about to go (mvcc/kvstore.go, HashByRev).
    """
    expected, found = reference.send(step), subject.send(step)
    if isinstance(step.request, pb.HashKVRequest):
        for _ in range(_HASH_TRIES):
            if equal(step, expected, found):
                break
            expected, found = reference.send(step), subject.send(step)
    return expected, found


def follow(source: OperationSource, step: Step, reply: Reply) -> None:
    """Tell the source how far the reference is."""
    if reply.message is None:
        return
    header = getattr(reply.message, "header", None)
    if header is not None:
        source.revision = max(source.revision, header.revision)
    if isinstance(step.request, pb.CompactionRequest):
        source.compacted = max(source.compacted, step.request.revision)


def _is_compact(body: bytes) -> bool:
    """Whether this is JSON in the gateway's style; for answers of open order, whose texts differ anyway."""
    return not body or json.dumps(json.loads(body), separators=(",", ":")).encode() == body


def readable(reply: Reply) -> str:
    """An answer in one line, or over the gateway two."""
    if reply.message is None:
        shown = f"code {reply.code} {reply.text!r}"
    else:
        shown = f"OK {{{text_format.MessageToString(masked(reply.message), as_one_line=True)}}}"
    if reply.http_status:
        headers = {name: reply.headers[name] for name in COMPARED_HEADERS if name in reply.headers}
        shown += f"\n           HTTP {reply.http_status} {headers} {masked_json(reply.body)[:2000]!r}"
    return shown


def main(arguments: list[str]) -> int:
    """Run one sequence against real etcd and twistedkv, and write every difference; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.functional.differential", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--most", type=int, default=1, help="stop after so many differences (default 1)")
    parser.add_argument("--plaintext", action="store_true", help="without TLS")
    parser.add_argument("--subject", choices=["twistedkv", "etcd"], default="twistedkv")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        tls = None if chosen.plaintext else TLSFiles.make(Path(scratch) / "tls")
        subject_type = TwistedkvProcess if chosen.subject == "twistedkv" else EtcdProcess
        servers = [EtcdProcess(Path(scratch) / "reference", tls), subject_type(Path(scratch) / "subject", tls)]
        try:
            for server in servers:
                server.spawn()
            for server in servers:
                server.wait_until_ready()
            reference, subject = map(ServerSide, servers)
            differences = run(reference, subject, chosen.seed, chosen.steps, chosen.most)
            reference.close()
            subject.close()
        finally:
            for server in servers:
                server.stop()
    for difference in differences:
        sys.stdout.write(f"{difference}\n")
    sys.stdout.write(f"{chosen.steps} steps with seed {chosen.seed}: {len(differences)} differences\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

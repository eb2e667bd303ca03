"""The load generator: one process, one kind of load, run for a time or through a list of keys once.

Started by the benchmark as ``python -m tests.bench.load``, with a :class:`Job` as JSON on standard input; it writes a
:class:`Result` as JSON to standard output. It reads the server's CPU time itself, at the edges of what it measures.
"""

from __future__ import annotations

import base64
import gc
import itertools
import json
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from random import Random

from google.protobuf.message import Message

from tests.bench.connections import GrpcLoad, HttpLoad, Loop
from tests.bench.longpolls import PollLoad, SetLoad, get_request, set_request, text_of
from tests.bench.streaming import FanOut, KeepAliveLoad, PutLoad, WatchLoad
from tests.functional.processes import cpu_seconds_of
from twistedkv.pb import rpc_pb2 as pb

WARM_UP_S = 0.2
SCANNED_KEYS = 1000
_DISTINCT = 1 << 15  # requests prepared beforehand; they are sent in turn
_DRAIN_TIMEOUT_S = 60.0
_PATHS = {
    "put": "/etcdserverpb.KV/Put",
    "range": "/etcdserverpb.KV/Range",
    "scan": "/etcdserverpb.KV/Range",
    "txn": "/etcdserverpb.KV/Txn",
}


@dataclass(frozen=True, slots=True)
class Job:
    """What to send where."""

    host: str
    port: int
    server_pids: list[int]  # of all members, whose CPU time is counted together
    tls: tuple[str, str, str] | None  # CA, client certificate, client key
    api: str  # grpc | gateway | v2
    method: str  # put | range | scan | txn | keepalive | fanout; of the gateway put | range; of v2 set | get | fanout
    connections: int
    streams: int  # in flight on each connection, over HTTP/1.1 always 1; of fanout: watches on its one stream
    keys: int
    value_bytes: int
    seconds: float  # measured, after the warm-up; 0: put every key once and stop
    puts: int = 0  # of fanout: at most so many that are not yet with every watcher

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it."""

    seconds: float
    server_cpu_s: float
    client_cpu_s: float
    latencies_us: list[int]  # one for each answer that came within the measured time
    events: int = 0  # delivered to watchers, where that is what counts


def key_of(number: int) -> bytes:
    """The key with this number."""
    return b"bench/%08d" % number


def requests(job: Job, dice: Random) -> list[bytes]:
    """Serialised requests in the order in which they are sent."""
    most = max(1, job.keys - SCANNED_KEYS) if job.method == "scan" else job.keys
    numbers = [dice.randrange(most) for _ in range(_DISTINCT)] if job.seconds else range(job.keys)
    match job.api:
        case "v2" if job.method == "set":
            return [set_request(job.address, key_of(each), text_of(dice, job.value_bytes)) for each in numbers]
        case "v2":
            return [get_request(job.address, key_of(each)) for each in numbers]
        case "gateway":
            return [_gateway_request(job, key_of(each), dice.randbytes(job.value_bytes)) for each in numbers]
    return [message(job.method, each, dice.randbytes(job.value_bytes)).SerializeToString() for each in numbers]


def message(method: str, number: int, value: bytes) -> Message:
    """The request about the key with this number."""
    key = key_of(number)
    match method:
        case "put":
            return pb.PutRequest(key=key, value=value)
        case "scan":
            return pb.RangeRequest(key=key, range_end=key_of(number + SCANNED_KEYS))
        case "txn":  # the usual one: write if it is there, else read
            there = pb.Compare(key=key, target=pb.Compare.VERSION, result=pb.Compare.GREATER, version=0)
            put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))
            get = pb.RequestOp(request_range=pb.RangeRequest(key=key))
            return pb.TxnRequest(compare=[there], success=[put], failure=[get])
    return pb.RangeRequest(key=key)


def _gateway_request(job: Job, key: bytes, value: bytes) -> bytes:
    fields = {"key": base64.b64encode(key).decode()}
    if job.method == "put":
        fields["value"] = base64.b64encode(value).decode()
    body = json.dumps(fields).encode()
    head = f"POST /v3/kv/{job.method} HTTP/1.1\r\nHost: {job.address}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def run(job: Job) -> Result:
    """Do the job."""
    latencies: list[float] = []
    loop = Loop((job.host, job.port), _context(job))
    gc.disable()
    fan_out: FanOut | None = None
    match job.method:
        case "keepalive":
            for number in range(job.connections):
                loop.add(KeepAliveLoad(number + 1, job.streams, latencies.append))
        case "fanout":
            fan_out = _start_fan_out(job, loop, latencies.append)
        case _:
            _add_requests(job, loop, latencies)
    if job.seconds:
        _turn_until(loop, time.perf_counter() + WARM_UP_S)
        latencies.clear()
    events = fan_out.events if fan_out else 0
    started, server_cpu, client_cpu = time.perf_counter(), _cpu_seconds(job), time.process_time()
    if job.seconds:
        _turn_until(loop, started + job.seconds)
    else:
        deadline = started + _DRAIN_TIMEOUT_S
        while loop.in_flight and time.perf_counter() < deadline:
            loop.turn()
    result = Result(
        seconds=time.perf_counter() - started,
        server_cpu_s=_cpu_seconds(job) - server_cpu,
        client_cpu_s=time.process_time() - client_cpu,
        latencies_us=[round(each * 1e6) for each in latencies],
        events=fan_out.events - events if fan_out else 0,
    )
    loop.close()
    return result


def _cpu_seconds(job: Job) -> float:
    return sum(map(cpu_seconds_of, job.server_pids))


def _context(job: Job) -> ssl.SSLContext | None:
    if job.tls is None:
        return None
    ca, certificate, key = job.tls
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2" if job.api == "grpc" else "http/1.1"])
    return context


def _add_requests(job: Job, loop: Loop, latencies: list[float]) -> None:
    """Connections with unary requests."""
    messages = requests(job, Random(job.keys))
    source: Iterator[bytes] = itertools.cycle(messages) if job.seconds else iter(messages)
    # Every key that is asked for is there, so that an answer holds at least a value, over the gateway in base64.
    values = {"range": 1, "get": 1, "set": 1, "scan": min(SCANNED_KEYS, job.keys)}.get(job.method, 0)
    least_bytes = max(1, values * (job.value_bytes * 4 // 3 if job.api == "gateway" else job.value_bytes))
    for _ in range(job.connections):
        if job.api == "grpc":
            loop.add(GrpcLoad(_PATHS[job.method], source, least_bytes, job.streams, latencies.append))
        else:
            loop.add(HttpLoad(source, least_bytes, latencies.append))


def _start_fan_out(job: Job, loop: Loop, done: Callable[[float], None]) -> FanOut:
    """One writer and all its watchers, over gRPC or as long polls."""
    key = key_of(0)
    if job.api == "v2":
        value = text_of(Random(job.keys), job.value_bytes)
        fan_out = FanOut(loop, SetLoad(set_request(job.address, key, value)), job.puts, done)
        polls = [PollLoad(job.address, key, job.value_bytes, fan_out.got) for _ in range(job.connections)]
        fan_out.start(polls, job.connections)
    else:
        fan_out = FanOut(loop, PutLoad(key, bytes(job.value_bytes)), job.puts, done)
        watches = [WatchLoad(key, job.streams, fan_out.got) for _ in range(job.connections)]
        fan_out.start(watches, job.connections * job.streams)
    return fan_out


def _turn_until(loop: Loop, deadline: float) -> None:
    while time.perf_counter() < deadline:
        loop.turn()


def main() -> None:
    """One job from standard input."""
    fields = json.load(sys.stdin)
    fields["tls"] = tuple(fields["tls"]) if fields["tls"] else None
    json.dump(asdict(run(Job(**fields))), sys.stdout)


if __name__ == "__main__":
    main()

"""``python -m tests.bench``: one table of real etcd 3.5.1 and twistedkv, measured in turns on this machine.

Each pass starts one server, fills it, runs every row, and stops it; the passes alternate (etcd, twistedkv, etcd,
twistedkv), so that a machine that gets slower or faster meanwhile does so for both. Both get the same certificates
and the same load from the same client process. With ``--members 3`` a server is a cluster, the load goes to its leader,
and the CPU time is that of all members. Both serve the v2 API too; the rows about it come after the others, and have
keys of their own filled in only then. The table goes to standard output as Markdown, progress to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from tests.bench.load import Job, Result
from tests.functional.cluster import ClusterOfProcesses
from tests.functional.processes import MISSING_ETCD, ROOT, EtcdProcess, ServerProcess, TwistedkvProcess
from tests.functional.shared import V2_OPTIONS

VALUE_BYTES = 256
V2_KEYS = 10_000  # at most so many are filled in below /v2/keys
_SERVERS: dict[str, type[ServerProcess]] = {"etcd": EtcdProcess, "twistedkv": TwistedkvProcess}
_LOAD_TIMEOUT_S = 120
_OPEN_FILES = 4096  # a thousand long polls are a thousand connections at both ends; often 1,024 are allowed


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str  # on the command line
    title: str
    method: str
    connections: int
    streams: int
    api: str = "grpc"  # see Job
    puts: int = 0  # see Job
    keys: int | None = None  # what it is about at most; all that are filled in


ROWS = (
    Row("put-50x1", "Put, 50 connections x 1", "put", 50, 1),
    Row("put-10x20", "Put, 10 connections x 20", "put", 10, 20),
    Row("range-50x1", "Range, 50 connections x 1", "range", 50, 1),
    Row("range-10x20", "Range, 10 connections x 20", "range", 10, 20),
    Row("gateway-put", "Gateway put, 50 connections x 1", "put", 50, 1, api="gateway"),
    Row("gateway-range", "Gateway range, 50 connections x 1", "range", 50, 1, api="gateway"),
    Row("put-1x1", "Put, one sequential client", "put", 1, 1),
    Row("range-1x1", "Range, one sequential client", "range", 1, 1),
    Row("txn-50x1", "Txn (compare, put), 50 connections x 1", "txn", 50, 1),
    Row("txn-10x20", "Txn (compare, put), 10 connections x 20", "txn", 10, 20),
    Row("scan-10x1", "Range of 1,000 keys, 10 connections x 1", "scan", 10, 1),
    Row("keepalive-50", "Lease keepalives, 50 streams", "keepalive", 50, 1),
    Row("fanout-1000", "Watch: one put to 1,000 watchers, events", "fanout", 10, 100, puts=1),
    Row("fanout-100", "Watch: 10 puts at once to 100 watchers, events", "fanout", 10, 10, puts=10),
    Row("v2-set", "v2 set, 50 connections x 1", "set", 50, 1, api="v2"),
    Row("v2-get", "v2 get, 50 connections x 1", "get", 50, 1, api="v2"),
    Row("v2-get-hot", "v2 get of one key, 50 connections x 1", "get", 50, 1, api="v2", keys=1),
    Row("v2-fanout", "v2 wait: one set to 1,000 long polls, events", "fanout", 1000, 1, api="v2", puts=1),
)
_ROW = {row.name: row for row in ROWS}


@dataclass(slots=True)
class Figures:
    """One row of one server over all passes."""

    seconds: float = 0.0
    server_cpu_s: float = 0.0
    client_cpu_s: float = 0.0
    latencies_us: list[int] = field(default_factory=list)
    count: int = 0  # of answers, or of events

    def add(self, result: Result) -> None:
        """One more pass."""
        self.seconds += result.seconds
        self.server_cpu_s += result.server_cpu_s
        self.client_cpu_s += result.client_cpu_s
        self.latencies_us += result.latencies_us
        self.count += result.events or len(result.latencies_us)

    @property
    def rate(self) -> float:
        """Requests or events a second."""
        return self.count / self.seconds

    @property
    def cpu_us(self) -> float:
        """The server's CPU time for one request or event."""
        return self.server_cpu_s * 1e6 / max(1, self.count)

    def percentile(self, percent: int) -> float:
        """Milliseconds within which so many of the answers came."""
        ordered = sorted(self.latencies_us)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] / 1000 if ordered else 0.0


class Bench:
    """All passes.

    Args:
        rows: what to measure.
        names: of the servers, in the order of their turns.
        seconds: of load for each row and pass.
        passes: turns of each server.
        keys: that the first pass fills in, and whose memory is measured; later passes fill in a tenth.
        plaintext: measure without TLS.
        members: of each cluster.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        names: Sequence[str],
        seconds: float,
        passes: int,
        keys: int,
        plaintext: bool,
        members: int = 1,
    ) -> None:
        self._rows = rows
        self._names = names
        self._seconds = seconds
        self._passes = passes
        self._keys = keys
        self._plaintext = plaintext
        self._members = members
        self.figures = {(name, row.name): Figures() for name in names for row in rows}
        self.rss_bytes: dict[str, int] = {}

    def run(self) -> None:
        """Measure everything."""
        with tempfile.TemporaryDirectory() as scratch:
            for turn in range(self._passes):
                for name in self._names:
                    kind = _SERVERS[name]
                    directory, options = Path(scratch) / f"{name}-{turn}", V2_OPTIONS[kind]
                    cluster = ClusterOfProcesses(directory, [kind] * self._members, options, secure=not self._plaintext)
                    try:
                        cluster.start()
                        self._one_pass(name, cluster, turn)
                    finally:
                        cluster.kill_all()

    def _one_pass(self, name: str, cluster: ClusterOfProcesses, turn: int) -> None:
        keys = self._keys if turn == 0 else max(1, self._keys // 10)
        server = cluster.leader()
        pids = [each.pid for each in cluster.members]
        _say(f"{name}, pass {turn + 1}, pids {pids}: {keys} keys")
        self._load(server, pids, _ROW["put-10x20"], keys, 0)
        if turn == 0:
            self.rss_bytes[name] = server.rss_bytes()
        v2_keys = 0
        for row in self._rows:
            if row.api == "v2" and not v2_keys:
                v2_keys = min(keys, V2_KEYS)
                self._load(server, pids, _ROW["v2-set"], v2_keys, 0)
            filled = v2_keys if row.api == "v2" else keys
            result = self._load(server, pids, row, min(filled, row.keys or filled), self._seconds)
            self.figures[name, row.name].add(result)
            rate = (result.events or len(result.latencies_us)) / result.seconds
            busy = result.client_cpu_s / result.seconds
            _say(f"  {row.title}: {rate:,.0f}/s, the load generator {busy:.0%} of a core")

    def _load(self, server: ServerProcess, pids: list[int], row: Row, keys: int, seconds: float) -> Result:
        tls = server.tls
        job = Job(
            host="127.0.0.1",
            port=server.port,
            server_pids=pids,
            tls=(str(tls.ca), str(tls.client_cert), str(tls.client_key)) if tls else None,
            api=row.api,
            method=row.method,
            connections=row.connections,
            streams=row.streams,
            keys=keys,
            value_bytes=VALUE_BYTES,
            seconds=seconds,
            puts=row.puts,
        )
        command = [sys.executable, "-m", "tests.bench.load"]
        order = json.dumps(asdict(job)).encode()
        done = subprocess.run(
            command, input=order, stdout=subprocess.PIPE, cwd=ROOT, timeout=_LOAD_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"the load {row.name} failed; {server.label} logged:\n{server.log_tail()}")
        return Result(**json.loads(done.stdout))


def table(bench: Bench, rows: Sequence[Row], names: Sequence[str]) -> str:
    """The figures as Markdown; with two servers also what the second makes of the first."""
    ratio = len(names) == 2
    heads = ["load"]
    for what in ("1/s", "CPU µs each", "p50 ms", "p99 ms"):
        heads += [f"{name} {what}" for name in names] + (["ratio"] if ratio else [])
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in rows:
        figures = [bench.figures[name, row.name] for name in names]
        line = [row.title]
        for values, digits in (
            ([each.rate for each in figures], 0),
            ([each.cpu_us for each in figures], 1),
            ([each.percentile(50) for each in figures], 2),
            ([each.percentile(99) for each in figures], 2),
        ):
            line += [f"{value:,.{digits}f}" for value in values]
            if ratio:
                line.append(f"{values[1] / values[0]:.2f}" if values[0] else "-")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe(bench: Bench, names: Sequence[str], keys: int, plaintext: bool, members: int) -> str:
    """The machine, the versions and the memory, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    busy = [each.client_cpu_s / each.seconds for each in bench.figures.values() if each.seconds]
    versions = {name: "3.5.1" if name == "etcd" else _version(name) for name in names}
    sizes = ", ".join(f"{name} {bench.rss_bytes[name] / 2**20:,.0f} MiB" for name in names)
    return "\n".join(
        [
            f"{', '.join(f'{name} {versions[name]}' for name in names)}; Python {platform.python_version()}, "
            f"Twisted {_version('twisted')}; {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}; "
            f"{members} member{'s' if members > 1 else ''} of each, "
            f"{'plaintext' if plaintext else 'mutual TLS'}, values of {VALUE_BYTES} bytes, "
            "linearizable reads (v2 gets without quorum, as is their default), every write synced to disk. "
            "What is counted is requests, with watches and long polls events. "
            "A ratio is the second server's figure over the first's.",
            f"Resident memory after {keys:,} keys of {VALUE_BYTES} bytes: {sizes}. "
            f"The load generator took up to {max(busy, default=0):.0%} of one core.",
        ]
    )


def main(arguments: list[str]) -> int:
    """Measure and write the table; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="etcd and twistedkv side by side.")
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", default=",".join(names), help=f"comma list of {', '.join(names)}")
    parser.add_argument("--servers", default="etcd,twistedkv", help="comma list, in the order of their turns")
    parser.add_argument("--seconds", type=float, default=1.0, help="of load for each row and pass")
    parser.add_argument("--passes", type=int, default=2, help="turns of each server")
    parser.add_argument("--keys", type=int, default=50_000, help="to fill in first")
    parser.add_argument("--plaintext", action="store_true", help="without TLS")
    parser.add_argument("--members", type=int, default=1, help="of each server's cluster")
    chosen = parser.parse_args(arguments)
    wanted, servers = chosen.rows.split(","), chosen.servers.split(",")
    for name in [*(set(wanted) - set(names)), *(set(servers) - set(_SERVERS))]:
        parser.error(f"there is no {name!r}; rows: {', '.join(names)}; servers: {', '.join(_SERVERS)}")
    if "etcd" in servers and MISSING_ETCD:
        parser.error(MISSING_ETCD)
    rows = [row for row in ROWS if row.name in wanted]
    _allow_open_files()
    members = chosen.members
    bench = Bench(rows, servers, chosen.seconds, chosen.passes, chosen.keys, chosen.plaintext, members)
    bench.run()
    description = describe(bench, servers, chosen.keys, chosen.plaintext, members)
    sys.stdout.write(f"{table(bench, rows, servers)}\n\n{description}\n")
    return 0


def _allow_open_files() -> None:
    """Raise what this process and those that it starts may open, as far as that is permitted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(this checkout)"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Real etcdctl 3.5.1 against twistedkv prints what it prints against real etcd, command by command."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.processes import (
    MISSING_ETCD,
    EtcdProcess,
    ServerProcess,
    TLSFiles,
    TwistedkvProcess,
    etcd_binary,
)

_TIMEOUT_S = 30


class Command(NamedTuple):
    """One run of etcdctl."""

    arguments: tuple[str, ...]
    stdin: str = ""


class Outcome(NamedTuple):
    """What it did, with everything masked that differs between two healthy servers."""

    status: int
    stdout: str
    stderr: str


def _commands(*lines: str) -> list[Command]:
    return [Command(tuple(line.split())) for line in lines]


def _in_formats(line: str, formats: Sequence[str] = ("simple", "json", "fields")) -> list[Command]:
    return _commands(*(f"{line} -w {each}" for each in formats))


_EVERY_FORMAT = ("simple", "json", "fields", "table")

PUT = [
    *_commands("put foo bar", "put foo baz --prev-kv", "put foo --ignore-value", "put nokey --ignore-value"),
    Command(("put", "stdin"), "from stdin"),
    Command(("put", "empty", "")),
    Command(("put", "binary", "\x01\u00e9\n")),
    *_commands("put foo bar --ignore-lease", "put foo x --lease=1234", "put foo"),
    *_in_formats("put foo more --prev-kv"),
    *_commands("put foo x -w table", "put foo x --hex --prev-kv"),
    *_commands(*(f"put list/{n} {n * 5 % 7}" for n in range(7))),  # no two alike: etcd's sort is not stable
    *_commands("put list/3 again", "put list/0 anew"),
]
GET = [
    *_in_formats("get foo", ("simple", "json", "fields", "table", "protobuf")),
    *_in_formats("get missing"),
    *_in_formats("get list/ --prefix"),
    *_commands("get list/ --prefix --limit 2", "get list/ --prefix --limit 2 -w fields", "get list/2 list/5"),
    *_commands("get list/5 --from-key", "get list/ --prefix --keys-only", "get list/ --prefix --print-value-only"),
    *_commands("get list/ --prefix --count-only", "get list/ --prefix --count-only -w fields"),
    *_commands("get foo --rev 2", "get foo --rev 3 -w json", "get foo --rev 100000", "get foo --consistency s"),
    *_commands(*(f"get list/ --prefix --order {order} --sort-by KEY" for order in ("ASCEND", "DESCEND"))),
    *_commands(*(f"get list/ --prefix --order DESCEND --sort-by {by}" for by in ("CREATE", "MODIFY"))),
    *_commands("get list/ --prefix --sort-by VALUE --order ASCEND --keys-only --limit 0", "get foo --order UP"),
    *_commands("get foo --hex", "get foo --hex -w json", "get binary", "get empty -w json", "get"),
    Command(("get", "", "--prefix", "--keys-only")),
    Command(("get", "", "--from-key", "-w", "json")),
]
DELETE = [
    *_commands("del missing", "del list/6", "del foo --prev-kv", "del list/4 list/6", "put foo bar"),
    *_in_formats("del foo --prev-kv"),
    *_commands("del list/ --prefix --prev-kv", "put z 1", "put zz 2", "del z --from-key", "del"),
]
TXN = [
    *_commands("put k v"),
    Command(("txn",), 'value("k") = "v"\nver("k") > "0"\n\nput k w\nget k\n\nget k\n\n'),
    Command(("txn",), 'mod("k") < "1"\n\nput k w\n\nget k\ndel k\nget k --rev 2\n\n'),
    Command(("txn",), "\nput a 1\nput b 2\nget a b0 --keys-only\ndel c d --prev-kv\n\n\n"),
    Command(("txn",), 'create("none") = "0"\n\nput none --ignore-value\n\n\n'),
    Command(("txn",), "\nput dup 1\nput dup 2\n\n\n"),
    Command(("txn",), 'nonsense("k") = "v"\n\n\n\n'),
    Command(("txn", "-w", "json"), 'value("b") = "2"\n\nput b 3 --prev-kv\nget b\ndel a --prev-kv\n\n\n'),
    Command(("txn", "-w", "fields"), 'value("b") = "2"\n\n\nput b 4\nget b\n\n'),
    Command(("txn", "--interactive"), 'value("b") = "4"\n\nput b 5\n\nget b\n\n'),
]
MAINTENANCE = [
    *_commands(
        "compaction 5", "compaction 5", "compaction 100000", "compaction 8 --physical", "compaction", "get k --rev 3"
    ),
    *_commands("compaction x", "compaction -- -1"),
    *_in_formats("endpoint hashkv", _EVERY_FORMAT),
    *_commands("endpoint hashkv --rev 9", "endpoint hashkv --rev 3", "endpoint hashkv --rev 100000"),
    *_in_formats("endpoint status", _EVERY_FORMAT),
    *_in_formats("endpoint health", _EVERY_FORMAT),
    *_commands("endpoint health --cluster", "endpoint status --cluster"),
    *_in_formats("member list", _EVERY_FORMAT),
    *_commands("member list --hex -w json"),
    *_in_formats("alarm list"),
    *_in_formats("alarm disarm", ("simple", "json")),  # with fields this etcdctl crashes by itself
    *_commands("defrag", "defrag --cluster", "version"),
]


class EtcdctlTests(SynchronousTestCase):
    """etcdctl cannot tell one from the other."""

    skip = MISSING_ETCD

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        tls = TLSFiles.make(Path(scratch.name) / "tls")
        self.servers: list[ServerProcess] = []
        for kind in (EtcdProcess, TwistedkvProcess):
            server = kind(Path(scratch.name) / kind.label, tls)
            self.servers.append(server)
            self.addCleanup(server.stop)
            server.spawn()
        for server in self.servers:
            server.wait_until_ready()

    def test_output_is_the_same(self) -> None:
        """Every command of one script, in every output format, ends with the same status and prints the same."""
        script = [*PUT, *GET, *DELETE, *TXN, *MAINTENANCE]
        with ThreadPoolExecutor(2) as pool:  # the two servers side by side, each command after the one before
            expected, found = pool.map(lambda server: [run(server, command) for command in script], self.servers)
        different = [
            f"etcdctl {' '.join(command.arguments)}  < {command.stdin!r}\n  etcd      {wanted}\n  twistedkv {got}"
            for command, wanted, got in zip(script, expected, found, strict=True)
            if wanted != got
        ]
        self.assertEqual(different, [], "\n".join(different))
        self.assertGreater(sum(outcome.status == 0 for outcome in expected), 80, "the script itself is broken")


def run(server: ServerProcess, command: Command) -> Outcome:
    """Run one command against one server."""
    done = subprocess.run(
        [str(etcd_binary("etcdctl")), *command.arguments],
        input=command.stdin.encode(),
        env=etcdctl_environment(server),
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    protobuf = "protobuf" in command.arguments
    stdout = re.sub(rb"(?s)^.*?(\x12.)", rb"\1", done.stdout, count=1) if protobuf else done.stdout
    return Outcome(done.returncode, masked(stdout), masked(done.stderr))


def etcdctl_environment(server: ServerProcess) -> dict[str, str]:
    """What leads etcdctl to a server."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
    environment |= {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": server.endpoint}
    if server.tls:
        files = {"CACERT": server.tls.ca, "CERT": server.tls.client_cert, "KEY": server.tls.client_key}
        environment |= {f"ETCDCTL_{name}": str(path) for name, path in files.items()}
    return environment


_MASKS = (
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"(?m)^\{\"level\":.*\n", ""),  # the client's own log
    (r"\b\d{15,20}\b", "ID"),
    (r"\b(0x)?[0-9a-f]{14,16}\b", "ID"),
    (r"took = \S+", "took = TIME"),
    (r'("took":)"[^"]*"', r"\1TIME"),
    (r'("(?:raft_term|raftTerm|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse)":)\d+', r"\1N"),
    (r'("(?:RaftTerm|RaftIndex|RaftAppliedIndex|DBSize|DBSizeInUse|Took)" : )\S+', r"\1N"),
    (r"3\.5\.\d+", "3.5.x"),
    (r"\d+(\.\d+)? [kM]B", "SIZE"),
    (r"(?m)(SIZE, true, false), \d+, \d+, \d+,", r"\1, N, N, N,"),
    (r"(SIZE +\| +true +\| +false +\|) +\d+ +\| +\d+ +\| +\d+ +\|", r"\1 N | N | N |"),
    (r"\d+(\.\d+)?(ms|µs|s)\b", "TIME"),
    (r" +", " "),  # columns are as wide as what they hold
    (r"-{2,}", "--"),
)


def masked(output: bytes) -> str:
    """The output without ids, addresses, times, sizes, terms and indexes."""
    text = output.decode(errors="backslashreplace")
    for pattern, replacement in _MASKS:
        text = re.sub(pattern, replacement, text)
    return text

"""Servers that several tests of one process have in common.

trial knows no fixtures of a class or a module, and gives each test of ``-j`` to whichever process is free. So a server
is started when the first test of a process asks for it, and is stopped when the process ends. Such tests keep to keys
of their own, and leave the server as they found it.
"""

from __future__ import annotations

import atexit
import json
import tempfile
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tests.functional.etcdctlv2 import v2_index, wait_until
from tests.functional.processes import (
    MISSING_ETCD,
    EtcdProcess,
    ServerFailed,
    ServerProcess,
    TLSFiles,
    TwistedkvProcess,
)
from tests.functional.v2client import Request, V2Client, form

V2_OPTIONS: dict[type[ServerProcess], tuple[str, ...]] = {
    EtcdProcess: ("--enable-v2",),
    TwistedkvProcess: (),  # it has the v2 API by default
}


class Pair(NamedTuple):
    """Real etcd and twistedkv, over mutual TLS; who compares them has their indexes levelled before."""

    etcd: ServerProcess
    twistedkv: ServerProcess
    first_v2_indexes: tuple[int, int]  # of each, before anybody wrote


def v2_server(kind: type[ServerProcess]) -> ServerProcess:
    """A server with etcd's v2 API, over mutual TLS: the one of the pair, where there is a real etcd.

    Raises:
        ServerFailed: it does not start; it is not tried twice.
    """
    if MISSING_ETCD is None:
        return next(server for server in v2_pair()[:2] if isinstance(server, kind))
    started = _started((kind,), "single")
    if isinstance(started, ServerFailed):
        raise started
    return started[0]


def v2_pair() -> Pair:
    """Both servers with the v2 API.

    Raises:
        ServerFailed: one of them does not start; it is not tried twice.
    """
    started = _started((EtcdProcess, TwistedkvProcess), "pair")
    if isinstance(started, ServerFailed):
        raise started
    etcd, twistedkv = started
    return Pair(etcd, twistedkv, _first_indexes(etcd, twistedkv))


def level_v2_indexes(servers: Sequence[ServerProcess]) -> None:
    """Make what follows on these servers comparable.

    What earlier tests have left is removed, so that nothing expires later, on one sooner than on the other. The keys
    that hold users and roles are made with the first of these, so both get a role, for a test may have made one on one
    of them only. Then the one with the lower index is written to until it has the higher one's.
    """
    for server in servers:
        with closing(V2Client(server)) as client:
            client.ask(Request("PUT", b"/v2/auth/roles/level", b'{"role":"level"}'))
            client.ask(Request("DELETE", b"/v2/auth/roles/level"))
            left = json.loads(client.ask(Request("GET", b"/v2/keys/")).body)["node"].get("nodes", [])
            for key in (*(node["key"] for node in left), "/_locks"):
                client.ask(Request("DELETE", f"/v2/keys{quote(key)}?recursive=true".encode()))
    indexes = {server: v2_index(server) for server in servers}
    for server, index in indexes.items():
        with closing(V2Client(server)) as client:
            for _ in range(index, max(indexes.values())):
                client.ask(form("PUT", b"/v2/keys/_level", b"value="))


@cache
def _scratch() -> Path:
    directory = tempfile.TemporaryDirectory(prefix="twistedkv-shared-")
    atexit.register(directory.cleanup)  # what is registered later, the end of the servers, comes before
    return Path(directory.name)


@cache
def _started(kinds: Sequence[type[ServerProcess]], name: str) -> list[ServerProcess] | ServerFailed:
    tls = TLSFiles.make(_scratch() / name)
    servers = [kind(_scratch() / f"{name}-{kind.__name__}", tls, V2_OPTIONS[kind]) for kind in kinds]
    for server in servers:
        atexit.register(server.stop)
        server.spawn()
    try:
        for server in servers:
            server.wait_until_ready()
    except ServerFailed as error:
        return error
    return servers


@cache
def _first_indexes(etcd: ServerProcess, twistedkv: ServerProcess) -> tuple[int, int]:
    for server in (etcd, twistedkv):
        # The version of a cluster is a key as well, and is written soon after a member serves.
        wait_until(lambda server=server: _cluster_version(server) == "3.5.0", f"the cluster version of {server.label}")
    return v2_index(etcd), v2_index(twistedkv)


def _cluster_version(server: ServerProcess) -> str:
    with closing(V2Client(server)) as client:
        version: str = json.loads(client.ask(Request("GET", b"/version")).body)["etcdcluster"]
    return version

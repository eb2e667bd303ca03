"""What scenarios with python-etcd 0.4.5 have in common: clients over mutual TLS, and calls in threads of their own.

Each scenario says by itself what is right. That this is what real etcd 3.5.1 does is shown by the same scenarios
against it, with ``TWISTEDKV_REFERENCE=1`` in the environment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from threading import Thread
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.etcdctlv2 import wait_for_watchers
from tests.functional.processes import EtcdProcess, ServerProcess, TwistedkvProcess
from tests.functional.shared import v2_server

try:
    import etcd
except ImportError:
    MISSING_CLIENT: str | None = "python-etcd is not installed: pip install python-etcd"
else:
    MISSING_CLIENT = None
"""For ``skip`` of a test class: why there is no python-etcd here, or ``None``."""

KIND: type[ServerProcess] = EtcdProcess if os.environ.get("TWISTEDKV_REFERENCE") else TwistedkvProcess
"""Whom the scenarios visit."""

TIMEOUT_S = 20.0


class Aside(Thread):
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._result: Any = None
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:
            self._failure = error

    def result(self) -> Any:
        """What it returned, or what it raised.

        Raises:
            TimeoutError: it does neither within ``TIMEOUT_S``.
        """
        self.join(TIMEOUT_S)
        if self.is_alive():
            raise TimeoutError(f"{self._call} does not come back")
        if self._failure is not None:
            raise self._failure
        return self._result


class PythonEtcdCase(SynchronousTestCase):
    """A test with a server, a client, and a directory of its own under the test's name."""

    def setUp(self) -> None:
        self.server = v2_server(KIND)
        self.client = self.new_client()
        self.root = "/" + self.id().rpartition(".")[2]
        self.addCleanup(self.clean)

    def clean(self) -> None:
        """Nothing of a test stays: neither keys nor watches."""
        with contextlib.suppress(etcd.EtcdKeyNotFound):  # where a test has left nothing
            self.client.delete(self.root, recursive=True)
        wait_for_watchers(self.server, 0)

    def new_client(self, **options: Any) -> Any:
        """One more client, with connections of its own."""
        tls = self.server.tls
        assert tls is not None
        where = {"host": "127.0.0.1", "port": self.server.port, "read_timeout": TIMEOUT_S, **options}
        pair = (str(tls.client_cert), str(tls.client_key))
        client = etcd.Client(protocol="https", cert=pair, ca_cert=str(tls.ca), **where)

        def silence() -> None:
            # Whoever still waits in a thread then ends with an error that a lock does not take for one of etcd's.
            client.http.clear()
            client.http = None

        self.addCleanup(silence)
        return client

"""Clients of other people: what each does and sees with twistedkv is what it does and sees with real etcd.

The scenarios are programs of their own under ``guests/``; what they write is compared. A library that is not there is
skipped, and the skip says how to get it. ``TWISTEDKV_NPM_CACHE`` names the directory where Node's package is kept from
one run to the next.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.functional.processes import (
    MISSING_ETCD,
    ROOT,
    EtcdProcess,
    ServerProcess,
    TLSFiles,
    TwistedkvProcess,
    etcd_binary,
)

_GUESTS = Path(__file__).parent / "guests"
_CA_OVERRIDES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # of requests, stronger than what its caller says
_TIMEOUT_S = 40
_NPM_TIMEOUT_S = 180
_NODE_PACKAGE = "etcd3@1.1.2"


def _missing(module: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"{module} is not installed: pip install {module}"


class GuestTests(SynchronousTestCase):
    """One test for each library."""

    skip = MISSING_ETCD

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.directory = Path(scratch.name)

    def servers(self, plaintext: bool = False) -> list[ServerProcess]:
        """Real etcd and twistedkv; they stop when the test ends."""
        tls = None if plaintext else TLSFiles.make(self.directory / "tls")
        servers = [each(self.directory / each.__name__, tls) for each in (EtcdProcess, TwistedkvProcess)]
        for server in servers:
            self.addCleanup(server.stop)
            server.spawn()
        for server in servers:
            server.wait_until_ready()
        return servers

    def compare(self, servers: Sequence[ServerProcess], command: Sequence[str], steps: int, **environment: str) -> None:
        """Both visits go well, have so many steps, and say the same."""
        said = []
        clean = {name: text for name, text in os.environ.items() if name not in _CA_OVERRIDES}
        for server in servers:
            arguments = ["127.0.0.1", str(server.port)]
            if server.tls:
                files = (server.tls.ca, server.tls.client_cert, server.tls.client_key)
                arguments += [str(each) for each in files]
            done = self.visit([*command, *arguments], {**clean, **environment})
            self.assertEqual(done.returncode, 0, f"{server.label}: {done.stdout}{done.stderr}")
            said.append(done.stdout.splitlines())
        self.assertEqual(said[1], said[0])
        self.assertEqual(len(said[0]), steps)

    def visit(self, command: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a guest to its end. One that hangs is heard, and gets a second chance: grpc-js did so once under load."""
        heard = ""
        for _ in range(2):
            try:
                return subprocess.run(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=_TIMEOUT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                heard += f"hung after saying {error.stdout!r} {error.stderr!r}\n"
        self.fail(heard)

    def python(self, guest: str) -> list[str]:
        """The command of a guest written in Python."""
        return [sys.executable, str(_GUESTS / f"{guest}.py")]

    def test_etcdctl(self) -> None:
        """Real etcdctl puts, gets, watches, leases, locks and elects."""
        etcdctl = str(etcd_binary("etcdctl"))
        self.compare(self.servers(), [*self.python("etcdctl_guest"), etcdctl], 12)

    def test_aetcd(self) -> None:
        """aetcd gets, puts, watches, leases and locks, with our messages loaded in the same process."""
        if missing := _missing("aetcd"):
            raise SkipTest(missing)
        self.compare(self.servers(plaintext=True), self.python("aetcd_guest"), 13, PYTHONPATH=str(ROOT))

    def test_etcd3gw(self) -> None:
        """etcd3gw does the same over the JSON gateway and TLS."""
        if missing := _missing("etcd3gw"):
            raise SkipTest(missing)
        self.compare(self.servers(), self.python("etcd3gw_guest"), 15)

    def test_stubs_of_our_proto_files(self) -> None:
        """grpcio with stubs generated from our .proto files, in a process that knows nothing else of us."""
        if missing := _missing("grpc_tools"):
            raise SkipTest(missing)
        stubs = self.directory / "stubs"
        stubs.mkdir()
        sources = sorted(str(each) for each in (ROOT / "twistedkv" / "pb").glob("*.proto"))
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", f"--python_out={stubs}"]
        subprocess.run([*protoc, f"--grpc_python_out={stubs}", *sources], check=True, timeout=_TIMEOUT_S)
        for package in (stubs / "twistedkv", stubs / "twistedkv" / "pb"):  # else an installed twistedkv comes first
            (package / "__init__.py").touch()
        self.compare(self.servers(), self.python("stubs_guest"), 10, PYTHONPATH=str(stubs))

    def test_etcd3_of_node(self) -> None:
        """Node's etcd3 does the same, over grpc-js."""
        modules = self.install_for_node()
        self.compare(self.servers(), ["node", str(_GUESTS / "etcd3_guest.js")], 12, NODE_PATH=str(modules))

    def install_for_node(self) -> Path:
        """Node's package, from the cache or from npm.

        Raises:
            SkipTest: there is no npm, or it cannot get the package.
        """
        if shutil.which("npm") is None or shutil.which("node") is None:
            raise SkipTest("Node.js with npm is not installed")
        cache = Path(os.environ.get("TWISTEDKV_NPM_CACHE", str(Path(tempfile.gettempdir()) / "twistedkv-npm")))
        if not (cache / "complete").exists():
            cache.mkdir(parents=True, exist_ok=True)
            command = ["npm", "install", "--prefix", str(cache), "--no-audit", "--no-fund", _NODE_PACKAGE]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_NPM_TIMEOUT_S, check=False)
            except subprocess.TimeoutExpired:
                raise SkipTest(f"npm does not get {_NODE_PACKAGE} within {_NPM_TIMEOUT_S} s") from None
            if done.returncode:
                raise SkipTest(f"npm does not get {_NODE_PACKAGE}: {done.stderr.strip()[-300:]}")
            (cache / "complete").touch()
        return cache / "node_modules"

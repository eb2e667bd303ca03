"""Who imports whom: pure modules touch no clock, disk, wire or framework, and imports go down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

_PACKAGE = Path(__file__).resolve().parent.parent / "twistedkv"

_IMPURE = {"twisted", "sqlalchemy", "ssl", "OpenSSL", "os", "time", "socket", "threading", "random"}
_TYPE_ONLY = {"random": {"Random"}}  # dice come from outside, but their type must be named

# What touches Twisted, SQL, files or clocks. Every other module is pure, so that a new one has to ask to be here.
_ADAPTERS = (
    "applying",
    "assembly",
    "bootstrap",
    "certs",
    "cli",
    "clusterversion",
    "compaction",
    "config",
    "configload",
    "configsources",
    "corruption",
    "datadir",
    "discovery",
    "driving",
    "handover",
    "incoming",
    "installation",
    "interfaces",
    "launch",
    "leaseclock",
    "leaseforward",
    "leaseprimary",
    "leasesite",
    "localcluster",
    "logkeeper",
    "logs",
    "logwriter",
    "memberview",
    "metrics",
    "options",
    "outgoing",
    "peercerts",
    "peering",
    "peermetrics",
    "peersite",
    "plugins",
    "proposals",
    "protocols.client",
    "protocols.endpoints",
    "protocols.gateway",
    "protocols.http1",
    "protocols.http1routes",
    "protocols.peer",
    "protocols.peerbodies",
    "protocols.peerclient",
    "protocols.peerposts",
    "protocols.peerserver",
    "protocols.peerstreams",
    "protocols.poller",
    "protocols.receiver",
    "protocols.server",
    "protocols.services",
    "protocols.tls",
    "protocols.transport",
    "protocols.turn",
    "protocols.v2access",
    "protocols.v2auth",
    "protocols.v2authstore",
    "protocols.v2keys",
    "protocols.v2members",
    "protocols.v2passwords",
    "protocols.v2site",
    "protocols.v2stats",
    "protocols.v2words",
    "protocols.web",
    "publication",
    "quota",
    "reconfiguration",
    "replication",
    "restore",
    "server",
    "service",
    "snapshot",
    "statekeeper",
    "storage.contract",
    "storage.contractcase",
    "storage.dialects",
    "storage.registry",
    "storage.replacecontract",
    "storage.schema",
    "storage.sql",
    "storage.wal",
    "storage.worker",
    "storage.writebehind",
    "tap",
    "v2api",
    "v2clock",
    "waiting",
)

_TOOLS = ("pb.generate",)  # run by developers, imported by nothing

# Lowest first: a module imports from its own level or a lower one. The longest name that fits decides.
_LEVELS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "gojson",
        "interfaces",
        "optiontypes",
        "pb",
        "protocols.rpc",
        "raft.messages",
        "storage.backend",
        "v2errors",
        "v2events",
        "wire",
    ),
    ("peering",),
    (
        "applywait",
        "auth",
        "clusternodes",
        "downgrade",
        "history",
        "identity",
        "lease",
        "members",
        "peerstats",
        "reads",
        "storage.directory",
        "storage.keyindex",
        "storage.mvcc",
        "txn",
        "v2auth",
        "v2authjson",
        "v2text",
        "v2records",
        "v2request",
        "v2store",
        "v2watch",
        "watch",
        "watchers",
        "watchevents",
        "watchgroups",
        "watchstream",
    ),
    ("apply", "raft"),
    ("founding",),
    (
        "certs",
        "config",
        "configsources",
        "datadir",
        "launch",
        "logs",
        "metrics",
        "plugins",
        "protocols",
        "storage",
        "v2metrics",
    ),
    (
        "clusterversion",
        "compaction",
        "configload",
        "corruption",
        "handover",
        "restore",
        "snapshot",
        "snapshotreader",
        "leaseclock",
        "leaseforward",
        "leaseprimary",
        "leasesite",
        "logwriter",
        "peermetrics",
        "quota",
        "statekeeper",
    ),
    ("discovery", "peercerts"),
    ("bootstrap",),
    ("logkeeper", "peersite", "reconfiguration", "waiting"),
    ("applying", "incoming", "outgoing", "proposals", "v2clock"),
    ("installation", "replication"),
    ("driving",),
    ("server",),
    ("protocols.services", "publication"),
    ("memberview", "v2api"),
    ("assembly",),
    ("service", "options"),
    ("localcluster",),
    ("cli", "tap"),
)

# On one level, but apart: bytes know nothing of rows, and Raft nothing of what it replicates.
_APART = (("protocols", "storage"), ("storage", "protocols"), ("raft", "apply"), ("apply", "raft.node"))

_RAFT_KNOWS = ("errors", "pb", "raft", "wire")


def _name(path: Path) -> str:
    parts = path.relative_to(_PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def _modules() -> tuple[tuple[str, ast.Module], ...]:
    return tuple(
        (_name(path), ast.parse(path.read_text(), str(path)))
        for path in sorted(_PACKAGE.rglob("*.py"))
        if not path.name.endswith("_pb2.py") and _name(path) not in _TOOLS
    )


def imports(tree: ast.Module) -> Iterator[tuple[str, set[str]]]:
    """Every module that a module imports anywhere, absolute, with the names taken from it.

    What is only imported for a type checker counts too: it is known all the same.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, set()
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), {alias.name for alias in node.names}


def _ours(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """Our own modules among the imports, without the package's name."""
    for module, names in imports(tree):
        if module != "twistedkv" and not module.startswith("twistedkv."):
            continue
        name = module.removeprefix("twistedkv").removeprefix(".")
        inner = {f"{name}.{item}".lstrip(".") for item in names} & known
        yield from inner
        if not inner or names - {item.rpartition(".")[2] for item in inner}:
            yield name


def _fits(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _is_pure(name: str) -> bool:
    return not any(_fits(name, prefix) for prefix in _ADAPTERS + _TOOLS)


def _level(name: str) -> int:
    fitting = [
        (len(prefix), level) for level, prefixes in enumerate(_LEVELS) for prefix in prefixes if _fits(name, prefix)
    ]
    return max(fitting)[1]


def impurities(tree: ast.Module) -> list[str]:
    """What a pure module must not import, and this one does."""
    found = []
    for module, names in imports(tree):
        root = module.partition(".")[0]
        if root in _IMPURE and not (names and names <= _TYPE_ONLY.get(root, set())):
            found.append(module)
    return found


class PurityTests(SynchronousTestCase):
    def test_pure_modules_import_nothing_impure(self) -> None:
        """What decides has no clock, disk, socket, thread or framework in reach."""
        for name, tree in _modules():
            if _is_pure(name):
                self.assertEqual(impurities(tree), [], name)

    def test_pure_modules_import_only_pure_ones(self) -> None:
        """Nor does it reach them by way of another module of ours."""
        trees = dict(_modules())
        for name, tree in trees.items():
            if _is_pure(name):
                impure = [other for other in _ours(tree, set(trees)) if not _is_pure(other)]
                self.assertEqual(impure, [], name)

    def test_an_impure_import_is_found(self) -> None:
        """The check sees every form of import, wherever it stands."""
        for text in (
            "import os",
            "import os.path as p",
            "from time import sleep",
            "def f():\n    import threading",
            "from twisted.python import log",
            "from random import Random, random",
            "import random",
        ):
            self.assertNotEqual(impurities(ast.parse(text)), [], text)
        self.assertEqual(impurities(ast.parse("from random import Random\nimport ossaudiodev")), [])


class DirectionTests(SynchronousTestCase):
    def test_every_module_has_a_level(self) -> None:
        """A new module says where it belongs."""
        known = {prefix for prefixes in _LEVELS for prefix in prefixes}
        for name, _ in _modules():
            if name:
                self.assertTrue(any(_fits(name, prefix) for prefix in known), f"{name} is on no level")

    def test_imports_go_down(self) -> None:
        """A module knows those below it, never those above."""
        trees = dict(_modules())
        for name, tree in trees.items():
            for other in _ours(tree, set(trees)):
                if other:
                    self.assertLessEqual(_level(other), _level(name), f"{name} imports {other}")

    def test_lists_name_what_exists(self) -> None:
        """A module that is gone, or became pure, is taken off the list of adapters."""
        trees = dict(_modules())
        for prefix in _ADAPTERS:
            inside = [tree for name, tree in trees.items() if _fits(name, prefix)]
            self.assertNotEqual(inside, [], f"{prefix} does not exist")

    def test_neighbours_stay_apart(self) -> None:
        """Bytes know nothing of rows, and Raft nothing of what it replicates."""
        trees = dict(_modules())
        for name, tree in trees.items():
            for other in _ours(tree, set(trees)):
                for one, two in _APART:
                    if _fits(name, one) and _fits(other, two):
                        self.assertNotEqual(_level(other), _level(two), f"{name} imports {other}")
                if other and _fits(name, "raft"):
                    self.assertTrue(any(_fits(other, known) for known in _RAFT_KNOWS), f"{name} imports {other}")

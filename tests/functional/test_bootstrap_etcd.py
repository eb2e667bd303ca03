"""A first start beside real etcd 3.5.1 members, over mutual TLS: ids, members and refusals are etcd's."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor as trial_reactor  # noqa: TID251  the one that trial runs
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.functional.processes import MISSING_ETCD, EtcdProcess, TLSFiles, etcd_binary, free_ports
from twistedkv.bootstrap import found
from twistedkv.configload import load_config
from twistedkv.founding import BootstrapError, Founding
from twistedkv.protocols.tls import ClientContext, TLSConfig


class BesideEtcdTests(TestCase):
    skip = MISSING_ETCD
    timeout = 90

    @inlineCallbacks
    def setUp(self) -> Any:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.tls = TLSFiles.make(self.directory / "pki")
        # It would have us wait until both have been connected for five seconds.
        options = ["--strict-reconfig-check=false"]
        self.servers = [
            EtcdProcess(self.directory / name, None, options, name=name, peer_tls=self.tls) for name in ("m1", "m2")
        ]
        self.together = ",".join(f"{each.name}={each.peer_url}" for each in self.servers)
        for each in self.servers:
            each.initial_cluster = self.together
            self.addCleanup(each.kill9)
            each.spawn()
        yield gatherResults([deferToThread(each.wait_until_ready) for each in self.servers])
        listed = yield self.ctl("member", "list")
        self.cluster_id = listed["header"]["cluster_id"]
        self.ids = {each["name"]: each["ID"] for each in listed["members"]}

    def ctl(self, *arguments: str) -> Deferred[Any]:
        """What etcdctl answers; it does not hold up the reactor."""
        command = [str(etcd_binary("etcdctl")), "--endpoints", self.servers[0].endpoint, *arguments, "-w", "json"]

        def run() -> Any:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
            return json.loads(done.stdout)

        return deferToThread(run)

    def found(self, name: str, url: str, cluster: str, state: str) -> Deferred[Founding]:
        flags = {"name": name, "initial-advertise-peer-urls": url, "initial-cluster": cluster}
        config = load_config({**flags, "initial-cluster-state": state}, {})
        files = TLSConfig(str(self.tls.server_cert), str(self.tls.server_key), str(self.tls.ca))
        tls = ClientContext(files, trial_reactor, ("http/1.1",))  # type: ignore[arg-type]
        return Deferred.fromCoroutine(found(config, trial_reactor, tls, "3.5.1"))

    @inlineCallbacks
    def test_started_before(self) -> Any:
        """A member that comes back without its log is refused in the words in which etcd refuses its own."""
        _, second = self.servers
        second.kill9()
        error = yield self.assertFailure(self.found("m2", second.peer_url, self.together, "new"), BootstrapError)
        self.assertEqual(str(error), f"member {self.ids['m2']:x} has already been bootstrapped")
        anew = EtcdProcess(self.directory / "anew", name="m2", peer_tls=self.tls)
        anew.peer_port, anew.initial_cluster = second.peer_port, self.together
        result = yield deferToThread(anew.run_to_end)
        self.assertIn(str(error), result.stderr)

    @inlineCallbacks
    def test_new_members_reckon_etcds_ids(self) -> Any:
        """From the same options come the same ids as etcd's."""
        for server in self.servers:
            server.kill9()  # whoever is asked remembers no one
        for server in self.servers:
            founding = yield self.found(server.name, server.peer_url, self.together, "new")
            self.assertEqual((founding.member_id, founding.cluster_id), (self.ids[server.name], self.cluster_id))

    @inlineCallbacks
    def test_joins(self) -> Any:
        """A member that was added finds its id and the others; before that it is refused as etcd's would be."""
        url = f"https://127.0.0.1:{free_ports(1)[0]}"
        cluster = f"{self.together},ours={url}"
        error = yield self.assertFailure(self.found("ours", url, cluster, "existing"), BootstrapError)
        self.assertIn("member count is unequal", str(error))
        added = yield self.ctl("member", "add", "ours", "--learner", "--peer-urls", url)
        founding = yield self.found("ours", url, cluster, "existing")
        self.assertEqual(founding.member_id, added["member"]["ID"])
        self.assertEqual(founding.cluster_id, added["header"]["cluster_id"])
        others = {each["ID"]: tuple(each["peerURLs"]) for each in added["members"]}
        del others[founding.member_id]
        self.assertEqual(dict(founding.remotes), others)
        elsewhere = url.replace("127.0.0.1", "localhost")
        moved = self.found("ours", elsewhere, f"{self.together},ours={elsewhere}", "existing")
        error = yield self.assertFailure(moved, BootstrapError)
        self.assertIn("unmatched member while checking PeerURLs", str(error))

    @inlineCallbacks
    def test_joins_without_a_majority(self) -> Any:
        """While the cluster waits for us it cannot tell of downgrades, and that does not keep us out."""
        self.servers[1].kill9()  # one of two: no majority
        founding = yield self.found("m2", self.servers[1].peer_url, self.together, "existing")
        self.assertEqual((founding.member_id, founding.cluster_id), (self.ids["m2"], self.cluster_id))

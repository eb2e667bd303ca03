"""``--force-new-cluster`` after a majority was lost, beside what the real etcd makes of it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.cluster import ClusterOfProcesses, Make
from tests.functional.processes import MISSING_ETCD, NOT_ETCD_ITSELF, EtcdProcess, TwistedkvProcess

FORCE = "--force-new-cluster"


class ForceNewClusterTests(SynchronousTestCase):
    skip = MISSING_ETCD

    def go_on_alone(self, kind: Make) -> None:
        """Three members, of which one is left: it keeps its data and its ids, and can have others again."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        cluster = ClusterOfProcesses(Path(directory.name), [kind, kind, kind], ["--strict-reconfig-check=false"])
        self.addCleanup(cluster.kill_all)
        cluster.start()
        survivor = cluster.members[0]

        def ask(*words: str) -> Any:
            return json.loads(cluster.ctl(*words, "-w", "json", members=[survivor]))

        def values(*words: str) -> str:
            return cluster.ctl("get", "", "--from-key", "--print-value-only", *words, members=[survivor])

        for number in range(5):
            cluster.ctl("put", f"k{number}", f"v{number}", members=[cluster.members[1]])
        self.assertEqual(values(), "".join(f"v{number}\n" for number in range(5)))  # it has all of them
        before = ask("member", "list")
        (own,) = (each for each in before["members"] if each["name"] == survivor.name)
        cluster.kill_all()

        for options in ((FORCE,), (FORCE,), ()):  # the flag may stay for a while
            survivor.options = (*cluster.options, *options)
            survivor.start()
            listed = ask("member", "list")
            self.assertEqual(listed["members"], [own])
            self.assertEqual(listed["header"]["cluster_id"], before["header"]["cluster_id"])
            self.assertEqual(values(), "".join(f"v{number}\n" for number in range(5)))
            cluster.ctl("put", "k0", "v0", members=[survivor])
            if options:
                survivor.stop()
        added = cluster.add(kind)
        added.start()
        self.assertEqual(len(ask("member", "list")["members"]), 2)
        cluster.ctl("put", "k5", "v5", members=[added])
        self.assertEqual(values(), "".join(f"v{number}\n" for number in range(6)))

    def test_etcd(self) -> None:
        """What etcd 3.5.1 does."""
        self.go_on_alone(EtcdProcess)

    test_etcd.skip = NOT_ETCD_ITSELF  # type: ignore[attr-defined]

    def test_twistedkv(self) -> None:
        """The same."""
        self.go_on_alone(TwistedkvProcess)

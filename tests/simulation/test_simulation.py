"""Clusters keep their promises whatever a seed does to them; and a simulation that sees broken promises says so.

``TWISTEDKV_SIMULATION_SEEDS`` says how many seeds are run. A seed that fails prints its number and what happened last;
``python -m tests.simulation NUMBER`` runs it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.simulation import sabotage
from tests.simulation.__main__ import digest
from tests.simulation.observed import Parts
from tests.simulation.truth import Violation
from tests.simulation.world import TRACE_LINES, World, run_seed, scratch

SEEDS = int(os.environ.get("TWISTEDKV_SIMULATION_SEEDS", "100"))
SHARES = 10  # test methods, so that several processes can share the work


class SimulationTests(SynchronousTestCase):
    def run_share(self, share: int) -> None:
        """Every tenth seed, and a look at whether anything happened in all of them."""
        worlds = []
        for seed in range(share, SEEDS, SHARES):
            with scratch() as directory:
                worlds.append(run_seed(seed, Path(directory)))
            self.flushLoggedErrors()  # the world has judged them
        if worlds:
            self.assertGreater(sum(world.history.answers for world in worlds), 50 * len(worlds))
            self.assertGreater(sum(world.checks.elections for world in worlds), 2 * len(worlds))

    def test_seeds_0(self) -> None:
        """Nothing acknowledged is lost, no read is old, no watch misses anything; and all comes right in the end."""
        self.run_share(0)

    def test_seeds_1(self) -> None:
        """The next tenth of the seeds."""
        self.run_share(1)

    def test_seeds_2(self) -> None:
        """The next tenth of the seeds."""
        self.run_share(2)

    def test_seeds_3(self) -> None:
        """The next tenth of the seeds."""
        self.run_share(3)

    def test_seeds_4(self) -> None:
        """The next tenth of the seeds."""
        self.run_share(4)

    def test_seeds_5(self) -> None:
        """The next tenth of the seeds."""
        self.run_share(5)

    def test_seeds_6(self) -> None:
        """The next tenth of the seeds."""
        self.run_share(6)

    def test_seeds_7(self) -> None:
        """The next tenth of the seeds."""
        self.run_share(7)

    def test_seeds_8(self) -> None:
        """The next tenth of the seeds."""
        self.run_share(8)

    def test_seeds_9(self) -> None:
        """The last tenth of the seeds."""
        self.run_share(9)


class DeterminismTests(SynchronousTestCase):
    """What a seed has found can be found again."""

    def test_a_seed_gives_the_same_run(self) -> None:
        """Two runs of one seed are equal in every line."""
        lines = []
        for _ in range(2):
            with scratch() as directory:
                world = World(3, Path(directory), keep=None)
                world.run()
            self.flushLoggedErrors()  # the world has judged them
            lines.append(world.lines())
        self.assertGreater(len(lines[0]), 1000)
        self.assertEqual(*lines)

    def test_a_seed_gives_the_same_run_elsewhere(self) -> None:
        """So are they in a process that hashes otherwise, which shows in the order of sets."""
        with scratch() as directory:
            here = digest(4, Path(directory))
        self.flushLoggedErrors()  # the world has judged them
        there = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--digest", "4"],
            env={**os.environ, "PYTHONHASHSEED": "12345"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
            timeout=120,
        )
        self.assertEqual(there.stdout.decode().strip(), here)


class SabotageTests(SynchronousTestCase):
    """Members that break a promise are caught within a few seeds."""

    def caught(self, parts: Parts, seeds: range, **plan: Any) -> str:
        """What is said of the first seed that sees it; those before ``seeds`` do not, or were not needed."""
        for seed in seeds:
            try:
                with scratch() as directory:
                    run_seed(seed, Path(directory), parts, v2_clients=0, **plan)
            except Violation as violation:
                return str(violation)
            finally:
                self.flushLoggedErrors()
        self.fail(f"not seen by {seeds}")

    def test_an_answer_before_the_sync(self) -> None:
        """A member that answers before its log is durable loses what it has answered, when the power goes."""
        text = self.caught(sabotage.ANSWERS_BEFORE_SYNC, range(5), faults=("kill all",))
        self.assertTrue(text.startswith("seed "), text[:100])
        self.assertTrue(text.splitlines()[-1].startswith("seed "), text[-100:])
        self.assertLessEqual(len(text.splitlines()), TRACE_LINES + 100)

    def test_a_forgotten_vote(self) -> None:
        """A member that does not write its vote down votes twice in one term, when it restarts in between."""
        plan = {"fault_pause_s": 1.0, "deadly_votes": True, "pre_vote": False, "size": 3, "watchers": 1, "owners": 0}
        text = self.caught(sabotage.FORGETS_ITS_VOTE, range(40), faults=("rivals",), clients=2, **plan)
        self.assertIn(" votes for ", text.splitlines()[-1])

    def test_a_read_that_asks_nobody(self) -> None:
        """A leader that reads without asking whether it still leads shows what is old, when others lead by now."""
        plan = {"fault_pause_s": 1.0, "clients": 6, "client_pause_s": 0.04, "keys": 1, "value_bytes": 0}
        more = {"size": 3, "watchers": 1, "owners": 0, "reconfigures": False}
        text = self.caught(sabotage.READS_WITHOUT_ASKING, range(66, 86), faults=("isolate", "pause"), **plan, **more)
        self.assertIn("was there before the question", text.splitlines()[-1])

    def test_events_that_a_snapshot_brought(self) -> None:
        """A member that is brought up to date by a snapshot owes its watchers what they have not seen."""
        plan = {"snapshot_count": 10, "catch_up_entries": 2, "clients": 4, "client_pause_s": 0.1, "watchers": 3}
        faults = ("isolate", "pause", "cut some")
        self.caught(sabotage.HIDES_WHAT_A_SNAPSHOT_BROUGHT, range(20), faults=faults, **plan)

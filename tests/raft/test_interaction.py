"""etcd's interaction scenarios: the same messages, hard states, syncs and applied entries, in the same order.

The library's log sentences are left out of the comparison; they prove nothing more.
"""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests import datadriven
from tests.raft.interaction import World

SCENARIOS = Path(__file__).with_name("testdata") / "interaction"
LOG_SENTENCE = re.compile(r"\s*(DEBUG|INFO|WARN|ERROR) ")

# Scenarios about what this core does not have, with the reason.
LEFT_OUT = {
    "async_storage_writes.txt": "durability is confirmed by advance(), not by messages from a storage thread",
    "forget_leader_read_only_lease_based.txt": "there are no reads by lease",
}


def facts(text: str) -> list[str]:
    """The lines that count."""
    return [line for line in text.split("\n") if line.strip() and line != "ok" and not LOG_SENTENCE.match(line)]


class InteractionTests(SynchronousTestCase):
    def test_etcds_scenarios(self) -> None:
        """Whole clusters behave as etcd's do, step by step."""
        equal, differences = 0, list[str]()
        paths = [path for path in sorted(SCENARIOS.glob("*.txt")) if path.name not in LEFT_OUT]
        self.assertEqual(len(paths), 17)
        for path in paths:
            world = World()
            for stanza in datadriven.parse(path.read_text()):
                expected, actual = facts(stanza.expected), facts(world.run(stanza))
                if expected == actual:
                    equal += 1
                else:
                    place = f"{path.name}:{stanza.line}: {stanza.command}"
                    differences.append("\n".join([place, "expected:", *expected, "actual:", *actual]))
        self.assertEqual(differences, [], f"{equal} stanzas are equal; the first difference: {differences[:1]}")

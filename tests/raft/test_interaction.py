"""etcd's interaction scenarios: the same messages, hard states, syncs and applied entries, in the same order.

What is left out of the comparison is in one table, :data:`NOT_COMPARED`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests import datadriven
from tests.raft.interaction import World

SCENARIOS = Path(__file__).with_name("testdata") / "interaction"

# Every scenario is run, and every command carried out. Its output is compared line by line, but for these kinds of
# lines and stanzas, given by a pattern that finds them.
NOT_COMPARED = {
    "log sentences": (
        r"^\s*(DEBUG|INFO|WARN|ERROR) ",
        "the library's own wording of what the other lines show; `log-level`, but for `none`, chooses among them",
    ),
    "ok": (r"^ok$", "stands for no output"),
    "storage threads": (
        r"async-storage-writes=true",
        "etcd's driver then gives its storage threads messages, as many behind each other as there are batches; ours "
        "confirms one batch at a time by advance(), and what comes meanwhile is one batch (group commit). So the "
        "scenario's stanzas are not compared one by one; over all of it the same must be persisted, sent, acknowledged "
        "and applied by each member, in the same order (test_slow_disks).",
    ),
    "process-append-thread": (
        r"^process-append-thread ",
        "the end of a disk's work here: the batch is confirmed, and what waited for it is sent",
    ),
    "process-apply-thread": (
        r"^process-apply-thread ",
        "the end of the state's work here; Raft is not told, for advance() has said that the entries were handed on",
    ),
    "messages to storage threads": (
        r"Msg(StorageAppend|StorageAppendResp|StorageApply|StorageApplyResp) ",
        "there are none: a Ready says the same; test_slow_disks takes what is persisted and applied from them",
    ),
    "messages of a member to itself": (
        r"\b(\d)->\1 Msg",
        "its own vote and acknowledgement are no messages; they count when advance() says that they are durable",
    ),
    "votes asked for before the term is durable": (
        r"->\d MsgVote ",
        "only with storage threads: here a candidate's question waits for the disk, as in etcd's server",
    ),
}
UNCOMPARED_LINE = re.compile("|".join(NOT_COMPARED[kind][0] for kind in ("log sentences", "ok")))
SLOW = "async_storage_writes.txt"


def stanzas(name: str) -> list[datadriven.Stanza]:
    return datadriven.parse((SCENARIOS / name).read_text())


def facts(text: str) -> list[str]:
    """The lines that count."""
    return [line for line in text.split("\n") if line.strip() and not UNCOMPARED_LINE.match(line)]


MESSAGE = re.compile(r"(\w+)->(\w+) (Msg\w+) (.*)")
ENTRY = re.compile(r"\d+/\d+ Entry\w+ \"[^\"]*\"")
STATE = re.compile(r"\b(Term|Vote|Commit):(\d+)")
SECTION = re.compile(r"(> |Processing:|Responses:$|Messages:)")


class Deeds:
    """What members have done, as a scenario's output tells it, in whichever batches."""

    def __init__(self) -> None:
        self.persisted: dict[str, list[str]] = {}
        self.applied: dict[str, list[str]] = {}
        self.hard_states: dict[str, dict[str, int]] = {}  # the last one persisted
        self.sent: dict[tuple[str, str], list[str]] = {}  # entries, from whom to whom
        self.acknowledged: dict[tuple[str, str], int] = {}  # up to which index
        self.votes: set[tuple[str, str, str, str]] = set()  # question or answer, from, to, term

    def read(self, text: str) -> None:
        """Add what ``text`` tells."""
        section, entries = "", list[str]()
        for line in map(str.strip, text.split("\n")):
            if begins := SECTION.match(line):
                section, entries = begins[1], []
            elif message := MESSAGE.match(line):
                entries = self._begin(section, *message.groups())
                entries += ENTRY.findall(line)
            else:
                entries += ENTRY.findall(line)  # of the message above, or of nothing that counts

    def _begin(self, section: str, sender: str, to: str, kind: str, rest: str) -> list[str]:
        """One message; the list that its entries go to."""
        state = {word: int(number) for word, number in STATE.findall(rest)}
        match section, kind:
            case "Processing:", "MsgStorageAppend":
                if state.get("Term"):
                    self.hard_states[sender] = state
                return self.persisted.setdefault(sender, [])
            case "Processing:", "MsgStorageApply":
                return self.applied.setdefault(sender, [])
            case "Messages:", "MsgApp":
                return self.sent.setdefault((sender, to), [])
            case "Responses:", "MsgAppResp" if sender != to:
                index = int(rest.rpartition("/")[2])
                self.acknowledged[sender, to] = max(index, self.acknowledged.get((sender, to), 0))
            case _, "MsgVote" | "MsgVoteResp" if sender != to and not section.startswith(">"):
                self.votes.add((kind, sender, to, str(state["Term"])))
        return []


class InteractionTests(SynchronousTestCase):
    def test_etcds_scenarios(self) -> None:
        """Whole clusters behave as etcd's do, step by step."""
        equal, differences = 0, list[str]()
        names = sorted(path.name for path in SCENARIOS.glob("*.txt"))
        self.assertEqual(len(names), 19)
        names.remove(SLOW)
        for name in names:
            world = World()
            for stanza in stanzas(name):
                expected, actual = facts(stanza.expected), facts(world.run(stanza))
                if expected == actual:
                    equal += 1
                else:
                    place = f"{name}:{stanza.line}: {stanza.command}"
                    differences.append("\n".join([place, "expected:", *expected, "actual:", *actual]))
        self.assertEqual(differences, [], f"{equal} stanzas are equal; the first difference: {differences[:1]}")
        self.assertEqual(equal, 329)

    def test_slow_disks(self) -> None:
        """With slow disks and slow states members persist, send, acknowledge and apply what etcd's do, in its order."""
        world, theirs, ours = World(), Deeds(), Deeds()
        for number, stanza in enumerate(stanzas(SLOW)):
            theirs.read(stanza.expected)
            ours.read(world.run(stanza))
            if stanza.command == "stabilize":  # all are at rest
                self.assertEqual(vars(ours), vars(theirs), f"after stanza {number}")
        everything = ["1/11", "1/12", "1/13", "1/14", "1/15"]
        for deeds in (*ours.persisted.values(), *ours.applied.values(), *ours.sent.values()):
            self.assertEqual([entry.partition(" ")[0] for entry in deeds], everything)
        self.assertEqual((len(ours.persisted), len(ours.applied), len(ours.sent)), (3, 3, 2))
        self.assertEqual(ours.acknowledged, {("2", "1"): 15, ("3", "1"): 15})
        self.assertEqual(set(map(str, ours.hard_states.values())), {str({"Term": 1, "Vote": 1, "Commit": 15})})

    def test_table_is_true(self) -> None:
        """Everything in the table is in a scenario, and every command of a scenario is carried out."""
        text = "\n".join(path.read_text() for path in sorted(SCENARIOS.glob("*.txt")))
        for kind, (pattern, reason) in NOT_COMPARED.items():
            self.assertTrue(re.search(pattern, text, re.MULTILINE) and reason, kind)
        for command in self.commands():
            self.assertTrue(hasattr(World, "on_" + command.replace("-", "_")), command)

    def commands(self) -> Iterator[str]:
        for path in SCENARIOS.glob("*.txt"):
            yield from (stanza.command for stanza in stanzas(path.name))

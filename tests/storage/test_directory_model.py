"""The tree of the v2 API against a model of it, request by request."""

from __future__ import annotations

import os
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from tests.storage.treecase import NOON_NS, Sink, copied
from tests.v2model import YEAR_2000_NS, Model, Refused, Shown
from twistedkv.storage.directory import Directory
from twistedkv.v2errors import V2Error
from twistedkv.v2events import Event, NodeView

EXAMPLES = int(os.environ.get("TWISTEDKV_V2_EXAMPLES", "30"))

NAMES = ["a", "b", "ab", "_h", "\udcff", "\U0001f600"]
ODD = ["/", "", "/1", "/0", "/2", "1/a", "//1/./a/", "/1/a/../b", "/../1/ab", "/1/.x", "/1/..y"]
VALUES = ["", "x", "y", "\udcfe"]
ENDS_NS = [0, 0, *range(NOON_NS, NOON_NS + 4), -7, 5, YEAR_2000_NS]
BOTH = (False, True)


def asked(number: int) -> tuple[Any, ...]:
    """A request. Hypothesis draws its number alone, which is much faster than to draw it piece by piece."""
    dice = Random(number)
    path: str | int = dice.randrange(25)  # the number of a node that is there
    if dice.random() < 0.5:
        path = "/1/" + "/".join(dice.choices(NAMES, k=dice.choice([1, 1, 2, 3])))
    elif dice.random() < 0.1:
        path = dice.choice(ODD)
    value, ends_ns = dice.choice(VALUES), dice.choice(ENDS_NS)
    yes, no, maybe, rather = (dice.choice(BOTH) for _ in range(4))
    return dice.choice(
        [
            ("set", path, yes, value, ends_ns, no and maybe),
            ("set", path, False, value, 0, False),
            ("create", path, yes, value, ends_ns, no),
            ("update", path, value, ends_ns, yes),
            ("compare", path, yes, no, value, dice.randrange(2), maybe, rather),
            ("delete", path, yes, no),
            ("get", path, yes),
            ("expire", NOON_NS + dice.randrange(-1, 4)),
        ]
    )


requests = st.integers(0, 99_999).map(asked)


def plain(event: Event | int) -> object:
    if isinstance(event, int):
        return event
    return str(event.action), event.node, event.previous, event.refresh, event.index


def by_key(node: NodeView) -> NodeView:
    """The listing in the model's order."""
    nodes = sorted(map(by_key, node.nodes), key=lambda each: each.key.encode("utf-8", "surrogateescape"))
    return node._replace(nodes=tuple(nodes))


class TreeMachine(RuleBasedStateMachine):
    """One request after the other to both."""

    def __init__(self) -> None:
        super().__init__()
        self.sink = Sink()
        self.tree = Directory(self.sink)
        self.model = Model()

    def path(self, chosen: str | int) -> str:
        if isinstance(chosen, str):
            return chosen
        there = [node.path for node in self.tree.nodes()]
        return there[-1 - chosen % len(there)]

    def both(self, kind: str, chosen: str | int, *others: Any, **options: Any) -> None:
        """The same request to ours and to the model."""
        arguments = (self.path(chosen), *others)
        ours: object
        expected: object
        try:
            event = getattr(self.tree, kind)(*arguments, **options)
            assert event.etcd_index == self.tree.index
            ours = plain(event)
        except V2Error as error:
            ours = (error.code.value, error.cause, error.index)
        try:
            happened = self.model.request(kind, *arguments, **options)
            expected = (happened.action, happened.node, happened.previous, happened.refresh, happened.index)
        except Refused as refused:
            expected = (refused.code, refused.cause, self.model.index)
        assert ours == expected, f"{kind} {arguments}: {ours} and not {expected}"

    @rule(requests=st.lists(requests, min_size=8, max_size=40))
    def ask(self, requests: list[tuple[Any, ...]]) -> None:
        for kind, *arguments in requests:
            getattr(self, kind)(*arguments)

    def set(self, path: str | int, is_dir: bool, value: str, ends_ns: int, refresh: bool) -> None:
        self.both("set", path, is_dir, value, ends_ns, refresh=refresh)

    def create(self, path: str | int, is_dir: bool, value: str, ends_ns: int, unique: bool) -> None:
        self.both("create", path, is_dir, value, ends_ns, unique=unique)

    def update(self, path: str | int, value: str, ends_ns: int, refresh: bool) -> None:
        self.both("update", path, value, ends_ns, refresh=refresh)

    def compare(
        self,
        path: str | int,
        knows_value: bool,
        knows_index: bool,
        value: str,
        index: int,
        refresh: bool,
        swap: bool,
    ) -> None:
        path = self.path(path)
        node = self.tree.node(path)
        previous_value = node.value if node is not None and knows_value else value
        previous_index = node.modified if node is not None and knows_index else index
        if swap:
            self.both("compare_and_swap", path, previous_value, previous_index, "s", NOON_NS, refresh=refresh)
        else:
            self.both("compare_and_delete", path, previous_value, previous_index)

    def delete(self, path: str | int, is_dir: bool, recursive: bool) -> None:
        self.both("delete", path, is_dir, recursive)

    def get(self, path: str | int, recursive: bool) -> None:
        self.both("get", path, recursive, True)

    def expire(self, until_ns: int) -> None:
        assert self.tree.expire(until_ns) == self.model.expire(until_ns)

    @rule(recursive=st.booleans())
    def list(self, recursive: bool) -> None:
        """Everything, sorted or not."""
        self.both("get", "/1", recursive, True)
        unsorted = by_key(self.tree.get("/1", recursive).node)
        assert unsorted == self.model.request("get", "/1", recursive).node

    @rule()
    def keep(self) -> None:
        """Whoever keeps the tree hears of each node that changed."""
        assert self.tree.changed == self.model.changed
        self.tree.changed.clear()
        self.model.changed.clear()

    @rule()
    def restart(self) -> None:
        """A tree of the nodes that were kept goes on as this one would."""
        changed = self.tree.changed
        self.tree.restore(copied(self.tree))
        self.tree.changed = changed

    @invariant()
    def agree(self) -> None:
        expected: list[Shown] = [
            (path, node.value, node.children is not None, node.created, node.modified, node.ends)
            for path, node in self.model.all_nodes()
        ]
        found = [
            (node.path, node.value, node.children is not None, node.created, node.modified, node.expires_ns)
            for node in self.tree.nodes()
        ]
        assert sorted(found) == sorted(expected)
        assert self.tree.index == self.model.index
        assert self.tree.first_end_ns == min((node[5] for node in expected if node[5]), default=None)
        told = [
            f"{'add' if event.refresh else 'notify'} {event.action} {event.node[0]} {event.index}"
            for event in self.model.events
        ]
        assert [line for line in self.sink.told if not line.startswith("removed")] == told

    def teardown(self) -> None:
        counts = {name: self.model.counts[name] for name in self.tree.counters.counts}
        assert self.tree.counters.counts == counts


class TreeModelTests(SynchronousTestCase):
    """Random requests."""

    def test_does_what_the_model_does(self) -> None:
        """Answers, refusals, nodes, indexes, ends and counts are those of the rules, whatever is asked for."""
        run_state_machine_as_test(
            TreeMachine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            ),
        )

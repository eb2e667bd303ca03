"""Watchers of the v2 store against a model of them: who is told of what, and when."""

from __future__ import annotations

import os
from itertools import product
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from tests.storage.treecase import NOON_NS
from tests.v2model import Model, ModelWatcher, Refused
from twistedkv import v2watch
from twistedkv.storage.directory import Directory
from twistedkv.v2errors import V2Error
from twistedkv.v2events import Event
from twistedkv.v2watch import History, V2Hub, Watcher

EXAMPLES = int(os.environ.get("TWISTEDKV_V2_EXAMPLES", "30"))
CAPACITY = 12

PATHS = ["/1/a", "/1/a/b", "/1/ab", "/1/a/_h", "/1/a/_h/b", "/1/_h", "/1/a/b/ab", "/1/_h/a", "/_h"]
WATCHED = [*PATHS, "/1", "/1/a", "/1/a/b", "/", "/1/a/b/none", "/1/abc"]

# each drawn at once, which is much faster than piece by piece
changes = st.sampled_from(
    [
        change
        for path in PATHS
        for change in (
            *(("set", path, False, "x", ends_ns) for ends_ns in (0, 0, NOON_NS, NOON_NS + 1)),
            ("set", path, True, "", NOON_NS),
            ("create", path, True, ""),
            ("update", path, "", NOON_NS),
            ("refresh", path),
            ("compare_and_delete", path, "x", 0),
            ("compare_and_swap", path, "x", 0, "x", NOON_NS),
            ("delete", path, True, True),
            ("expire", NOON_NS + len(path) % 2),
        )
    ]
)
watchers = st.sampled_from(list(product(WATCHED, (False, True), (False, True), (*[None] * 15, *range(-14, 5)))))


class Ear:
    """What one watcher heard."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.is_lost = False

    def happened(self, event: Event) -> None:
        self.told.append((str(event.action), event.index))

    def lost(self) -> None:
        self.is_lost = True


class WatchMachine(RuleBasedStateMachine):
    """Changes and watchers, of ours and of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.hub = V2Hub()
        self.tree = Directory(self.hub)
        self.model = Model(CAPACITY)
        self.pairs: list[tuple[Ear, Watcher | None, ModelWatcher]] = []

    def change(self, tree: Directory, kind: str, *arguments: Any) -> None:
        """The same request to a tree of ours and to the model."""
        if kind == "expire":
            assert tree.expire(*arguments) == self.model.expire(*arguments)
            return
        options = {}
        if kind == "refresh":
            kind, arguments, options = "update", (*arguments, "", NOON_NS), {"refresh": True}
        try:
            getattr(tree, kind)(*arguments, **options)
        except V2Error:
            try:
                self.model.request(kind, *arguments, **options)
            except Refused:
                return
            raise
        self.model.request(kind, *arguments, **options)

    @initialize(requests=st.lists(changes, max_size=2 * CAPACITY))
    def begin(self, requests: list[tuple[Any, ...]]) -> None:
        """There may be a past, of which the beginning is forgotten."""
        for each in requests:
            self.change(self.tree, *each)

    @rule(requests=st.lists(changes, min_size=5, max_size=15))
    def changed(self, requests: list[tuple[Any, ...]]) -> None:
        for each in requests:
            self.change(self.tree, *each)

    @rule(watchers=st.lists(watchers, min_size=5, max_size=15))
    def watch(self, watchers: list[tuple[str, bool, bool, int | None]]) -> None:
        for path, recursive, stream, since in watchers:
            self.one_more(path, recursive, stream, 0 if since is None else max(1, self.model.index + since))

    def one_more(self, path: str, recursive: bool, stream: bool, wanted: int) -> None:
        ear, watcher = Ear(), None
        refusal: tuple[int, str, int] | None = None
        try:
            watcher = self.hub.watch(path, recursive, stream, wanted, self.tree.index, ear)
        except V2Error as error:
            refusal = (error.code.value, error.cause, error.index)
        try:
            model = self.model.watch(path, recursive, stream, wanted)
        except Refused as refused:
            expected = (refused.code, refused.cause, self.model.index)
            assert refusal == expected, f"{refusal} and not {expected}"
            return
        assert refusal is None
        assert (watcher is not None) == model.waits
        self.pairs.append((ear, watcher, model))

    @rule(number=st.integers(0, 30))
    def go_away(self, number: int) -> None:
        """A client hangs up, be it one that was told long ago."""
        if self.pairs:
            _, watcher, model = self.pairs[number % len(self.pairs)]
            model.waits = False
            if watcher is not None:
                self.hub.remove(watcher)

    @rule(requests=st.lists(changes, max_size=2 * CAPACITY))
    def snapshot(self, requests: list[tuple[Any, ...]]) -> None:
        """A member that fell behind gets the store of another one."""
        history = History(self.hub.history.events)
        ahead = Directory(V2Hub(history))
        for node in self.tree.nodes():
            value = None if node.children is not None else node.value
            ahead.load(node.path, value, node.created, node.modified, node.expires_ns)
        ahead.index = self.tree.index
        untold, self.model.asleep = self.tree.index + 1, True
        for each in requests:
            self.change(ahead, *each)
        self.model.wake(untold)
        self.tree.restore(ahead)
        self.hub.restored(history)

    @invariant()
    def agree(self) -> None:
        for ear, _, model in self.pairs:
            assert (ear.told, ear.is_lost) == (model.told, model.lost), (ear.told, model)
        assert self.hub.count == sum(model.waits for _, _, model in self.pairs)
        assert [event.index for event in self.hub.history.events] == [
            event.index for event in self.model.events[-CAPACITY:]
        ]


class WatchModelTests(SynchronousTestCase):
    """Random changes with random watchers."""

    def test_tells_what_the_model_tells(self) -> None:
        """Each watcher hears what the rules say: of the past, of the present, of a snapshot, and nothing else."""
        self.patch(v2watch, "CAPACITY", CAPACITY)
        run_state_machine_as_test(
            WatchMachine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            ),
        )

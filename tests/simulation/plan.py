"""What a seed decides before anything happens."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tests.simulation.faults import KINDS
from tests.simulation.network import Quality


@dataclass(frozen=True, slots=True)
class Plan:
    """A kind of cluster, of clients, and of what goes wrong."""

    size: int
    chaos_s: float
    clients: int
    keys: int
    client_pause_s: float
    value_bytes: int
    snapshot_count: int
    catch_up_entries: int
    value_cache_bytes: int
    quality: Quality
    faults: tuple[str, ...]
    fault_pause_s: float
    deadly_votes: bool
    pre_vote: bool
    reconfigures: bool
    strict: bool
    compares: bool  # members compare what they have, at their start and now and then
    watchers: int
    owners: int
    v2_clients: int

    @classmethod
    def draw(cls, random: Random) -> Plan:
        """A plan."""
        bad = random.choice([0.0, 0.3, 1.0])
        return cls(
            size=random.choice([3, 3, 5]),
            chaos_s=random.uniform(15, 25),
            clients=random.choice([2, 4]),
            keys=random.choice([1, 3, 5]),
            client_pause_s=random.choice([0.1, 0.3]),
            value_bytes=random.choice([0, 200, 3000]),
            snapshot_count=random.choice([10, 30, 100]),
            catch_up_entries=random.choice([2, 5, 20]),
            value_cache_bytes=random.choice([0, 1000, 1 << 20]),
            quality=Quality(
                delay_s=random.choice([0.0005, 0.002, 0.01]),
                slow=bad * random.choice([0.0, 0.01]),
                lost=bad * random.choice([0.0, 0.02, 0.1]),
                repeated=bad * random.choice([0.0, 0.05]),
                reordered=bad * random.choice([0.0, 0.05, 0.5]),
                snapshots_cut=random.choice([0.0, 0.3]),
                snapshots_damaged=random.choice([0.0, 0.3]),
            ),
            faults=tuple(kind for kind in KINDS if random.random() < 0.6),
            fault_pause_s=random.choice([0.7, 1.5, 4.0]),
            deadly_votes=random.random() < 0.3,
            pre_vote=random.random() < 0.7,
            reconfigures=random.random() < 0.6,
            strict=random.random() < 0.3,
            compares=random.random() < 0.3,
            watchers=random.choice([1, 3]),
            owners=random.choice([0, 1, 3]),
            v2_clients=random.choice([0, 0, 1, 2]),
        )

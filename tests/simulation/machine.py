"""A machine with its disks, on which the processes of one member run one after the other."""

from __future__ import annotations

from tests.simulation.clock import PowerCut
from tests.simulation.disk import Condition, SimulatedDatabase
from tests.simulation.process import Process, Surroundings
from twistedkv.config import Config
from twistedkv.founding import Founding
from twistedkv.server import Member
from twistedkv.storage.wal import DiskFullError

RESTART_S = 1.0  # after a start that failed


class Machine:
    """What outlives the processes of one member.

    Args:
        world: around it.
        config: of the member; another member has another machine.
        founding: how it begins.
    """

    def __init__(self, world: Surroundings, config: Config, founding: Founding) -> None:
        self.world = world
        self.member_id = founding.member_id
        self.name = config.name
        self.config = config
        self.founding = founding
        self.database = SimulatedDatabase()
        self.condition = Condition()
        self.process: Process | None = None
        self.lives = 0
        self.removed = False  # it was told so, and stays down
        self.retired = False  # switched off for good
        self.graveyard: list[Process] = []  # kept, so that no dead process is collected while others run

    @property
    def runs(self) -> bool:
        """Whether a process runs."""
        return self.process is not None

    @property
    def member(self) -> Member | None:
        """The member, if its process runs."""
        return None if self.process is None else self.process.member

    def start(self) -> None:
        """Start a process; where its disk is full, another one a little later."""
        if self.process is not None or self.removed or self.retired:
            return
        self.lives += 1
        self.world.note("start", self.member_id, self.lives)
        process = self.process = Process(self)
        try:
            process.start()
        except PowerCut:  # a promise was broken
            self.kill(power_cut=False)
        except DiskFullError:
            self.kill(power_cut=False)
            self.start_soon()

    def start_soon(self) -> None:
        """Start a process a little later."""
        self.world.clock.callLater(RESTART_S, self.start)

    def kill(self, *, power_cut: bool) -> None:
        """The process is over at once; with a power cut the disks lose what was not synced."""
        process, self.process = self.process, None
        if process is not None:
            self.world.note("kill", self.member_id, power_cut)
            self.graveyard.append(process)
            process.end()
            self.database = self.database.after_crash(self.world.random, power_cut)

    def cut_power_soon(self, writes: int) -> None:
        """Kill the process in the middle of one of its next writes to the log."""
        if self.process is not None:
            self.process.disk.cut_in = writes

    def break_log(self) -> None:
        """The log's next sync fails."""
        if self.process is not None:
            self.process.disk.broken = True

    def stop(self) -> None:
        """End the process in an orderly way."""
        if self.process is not None:
            self.process.stop()

    def heal(self) -> None:
        """Have the disks do well."""
        self.condition = Condition()
        if self.process is not None:
            self.process.take_condition()

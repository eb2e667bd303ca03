"""The v2 commands of real etcdctl 3.5.1 against twistedkv print what they print against real etcd, over mutual TLS.

Both servers begin empty and go through the same commands, so that the indexes are the same as well. In one point they
are not compared: an update of a directory's TTL works as in etcd 3.4, where etcd 3.5.1 fails with an error of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from shutil import which

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.functional.cluster import ClusterOfProcesses, start_together
from tests.functional.etcdctlv2 import Etcdctl, Outcome, get_status, v2_index, wait_for_watchers, wait_until
from tests.functional.processes import MISSING_ETCD, EtcdProcess, TwistedkvProcess
from tests.functional.shared import V2_OPTIONS, level_v2_indexes, v2_pair
from tests.functional.v2client import V2Client, form

KEYS = r"""
    get -q none; ls none; set k/a one; set k/a two; set k/empty ''; set --ttl 100 k/ttl y; set k/a/b under-a-file
    set 'k/ключ и' ' зна чение '; get 'k/ключ и'; set 'k/q?wait=true#f%2f%zz' 100%; get 'k/q?wait=true#f%2f%zz'
    set --swap-with-value two k/a three; set --swap-with-value two k/a four; set --swap-with-value x k/none y
    set --swap-with-value one --swap-with-index 1 k/a five; set --swap-with-value three k/a --ttl 50 six
    -o extended set k/a seven; -o extended get k/ttl; -o json set k/a eight; -o json get k/ttl; -o json get k/empty
    get --sort k/a; mk k/a x; mk k/new x; mk --ttl 50 k/soon x; -o extended mk k/newer x; -o json mk k/deep/er/est x
    mk --in-order k/queue a; mk --in-order k/a x; -o json mk --in-order k/queue c; mk --in-order --ttl 40 k/queue d
    update --ttl 100 k/a ten; -o json update k/a eleven; update k/none x; update k/queue x; -o extended update k/a z
    rm --with-value nope k/a; rm --with-value z k/a; rm k/a; rm --with-value x --with-index 1 k/new
    -o extended rm k/new; -o json rm k/ttl; rm k/queue; rm --dir k/newer; rm --with-value x k/queue
    set _hidden/k secret; get _hidden/k; ls --sort -r /; ls --sort _hidden; rm -r _hidden
"""
DIRECTORIES = r"""
    mkdir d; mkdir d; mkdir d/sub/deep; mkdir --ttl 100 d/ttl; -o extended mkdir d/x; -o json mkdir d/y; set d/file x
    mkdir d/file/below; set d x; mk d x; mk d/_hidden x; set d/sub/f 1
    ls d; ls -p --sort d; ls --sort -r -p d; ls --recursive --quorum d; ls -p d/file; ls d/sub/deep; -o extended ls d
    -o json ls --sort -r d; -o json ls d/ttl; get d; setdir d; setdir --ttl 30 d/newttl; setdir d/file; ls -p d/file
    -o extended setdir d/ext; -o json setdir d/js/a/b/c; setdir d/sub/f; set d/sub/f 3; -o json rm --dir d/sub/f
    set d/f x; updatedir --ttl 20 d/f; -o json get d/f; updatedir d/none; rmdir d/f
    rmdir d; rmdir d/none; -o extended rmdir d/ext; rm d; rm --dir d; rm -r d/none; rm --dir d/ttl
    rm --recursive --dir d/sub; rm --with-value x d/x; ls --sort -r -p d; -o json rm -r d; rm -r /; setdir /; set / x
    mk --in-order / x
"""
CLUSTER = r"""
    cluster-health; member list; member remove nope; member remove m1; member update 1234 http://127.0.0.1:9
    member update nope http://127.0.0.1:9; member add m2 nonsense; member add m2 http://127.0.0.1
    member add m2 {peer}; member update {id} {peer}; member update {id} nonsense; member list
    --no-sync get k/none; --timeout 3s --total-timeout 9s get k/none
"""


class EtcdctlV2Tests(SynchronousTestCase):
    """etcdctl cannot tell one from the other."""

    skip = MISSING_ETCD

    def compare(self, visit: Callable[[Etcdctl], Sequence[Outcome]], successes: int) -> None:
        """Both servers give the same for all steps of a visit, of which at least so many succeed on real etcd."""
        servers = v2_pair()[:2]
        level_v2_indexes(servers)
        visitors = [Etcdctl(server) for server in servers]
        for each in visitors:
            self.addCleanup(each.kill)
        with ThreadPoolExecutor(2) as pool:  # the two servers side by side, each command after the one before
            expected, found = pool.map(visit, visitors)
        different = _different(expected, found)
        self.assertEqual(different, [], "\n".join(different))
        self.assertGreaterEqual(sum(each.status == 0 for each in expected), successes, "the script itself is broken")
        self.assertEqual(*(v2_index(server) for server in servers))

    def test_first_index(self) -> None:
        """The first key of a new member has the same index on both: what members say of themselves counts as well."""
        etcd, twistedkv = v2_pair().first_v2_indexes
        self.assertEqual(twistedkv, etcd)

    def test_keys(self) -> None:
        """Keys are set, made, swapped, updated, read and removed with etcd's output, indexes and exit statuses."""
        self.compare(_keys, 35)

    def test_directories(self) -> None:
        """Directories are made, listed and removed with etcd's output, and refused what etcd refuses."""
        self.compare(lambda etcdctl: etcdctl.run_all(_lines(DIRECTORIES)), 30)

    def test_watches_of_the_past(self) -> None:
        """A watch after an index prints the first event behind it, whatever kind of event that is."""
        self.compare(_watch_the_past, 20)

    def test_watches_of_the_present(self) -> None:
        """A watch goes on for ever, follows changes as they come, and is gone from the server when etcdctl ends."""
        self.compare(_watch_the_present, 15)

    def test_exec_watch(self) -> None:
        """exec-watch runs a command for each change with the change in its environment."""
        self.compare(_exec_watch, 10)

    def test_cluster(self) -> None:
        """The health of a cluster, its members, and what is wrong about a change of them, are told in etcd's words."""
        self.compare(lambda etcdctl: etcdctl.run_all(_lines(CLUSTER.format(**_own(etcdctl)))), 4)

    def test_updatedir(self) -> None:
        """updatedir gives a directory another TTL or none, which etcd 3.5.1 has forgotten how to do."""
        etcdctl = Etcdctl(v2_pair().twistedkv)
        self.assertEqual([each.status for each in etcdctl.run_all(["mkdir u/d", "set u/d/key x"])], [0, 0])
        began = v2_index(etcdctl.server)
        for ttl, shown in (("--ttl 100", "100"), ("--ttl 50", "50"), ("", "0")):
            self.assertEqual(etcdctl.run(f"updatedir {ttl} u/d")[1:], (0, "", ""))
            listed = etcdctl.run("-o extended ls u/d").stdout
            self.assertIn(f"TTL: {shown}\n", listed)
            self.assertIn(f"Created-Index: {began - 1}\n", listed)
        self.assertEqual(v2_index(etcdctl.server), began + 3)
        made = etcdctl.run("-o json updatedir --ttl 30 u/d").stdout
        self.assertIn(f'"node":{{"key":"/u/d","dir":true,"value":"","nodes":null,"createdIndex":{began - 1},', made)
        self.assertIn(f'"modifiedIndex":{began + 4},"expiration":TIME,"ttl":30}}', made)
        self.assertEqual(etcdctl.run("get u/d/key")[1:3], (0, "x\n"))
        self.assertEqual(etcdctl.run("rm -r u").status, 0)

    def test_etcdctl_of_debian(self) -> None:
        """The etcdctl of Debian's etcd-client, of release 3.4, prints the same from both servers too."""
        binary = which("etcdctl")
        version = _version(binary) if binary else ""
        if binary is None or "3.4." not in version:
            raise SkipTest(f"etcd-client 3.4 is not installed: apt-get install etcd-client (here is {version or None})")
        self.compare(lambda ours: _keys(Etcdctl(ours.server, Path(binary))), 35)


class EtcdctlV2MembersTests(SynchronousTestCase):
    """The same for members that leave and come, in plaintext."""

    skip = MISSING_ETCD

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.clusters = []
        for kind in (EtcdProcess, TwistedkvProcess):
            options = (*V2_OPTIONS[kind], "--strict-reconfig-check=false")  # else a change waits for five calm seconds
            cluster = ClusterOfProcesses(Path(scratch.name) / kind.__name__, [kind, kind], options, secure=False)
            self.addCleanup(cluster.kill_all)
            self.clusters.append(cluster)

    def test_members_go_and_come(self) -> None:
        """A member of two gets another URL, is removed and ends; another is added that has not started yet."""
        start_together([member for cluster in self.clusters for member in cluster.members])
        with ThreadPoolExecutor(2) as pool:
            expected, found = pool.map(_shrink_and_grow, self.clusters)
        different = _different(expected, found)
        self.assertEqual(different, [], "\n".join(different))
        self.assertEqual(sum(each.status == 0 for each in expected), 15, "the script itself is broken")


def _different(expected: Sequence[Outcome], found: Sequence[Outcome]) -> list[str]:
    pairs = zip(expected, found, strict=True)
    return [f"real etcd: {wanted}\ntwistedkv: {got}" for wanted, got in pairs if wanted != got]


def _version(binary: str) -> str:
    environment = {**os.environ, "ETCDCTL_API": "2"}
    return subprocess.run([binary, "--version"], env=environment, capture_output=True, text=True, check=False).stdout


def _lines(script: str) -> list[str]:
    return [line.strip() for line in re.split(r"[;\n]", script) if line.strip()]


def _keys(etcdctl: Etcdctl) -> list[Outcome]:
    said = etcdctl.run_all([*_lines(KEYS), "set k/swapped 1"])
    index = v2_index(etcdctl.server)
    swaps = [f"set --swap-with-index {index} k/swapped {value}" for value in (2, 3)]
    return said + etcdctl.run_all([*swaps, *(f"rm --with-index {index + n} k/swapped" for n in (0, 1)), "rm -r k"])


def _own(etcdctl: Etcdctl) -> dict[str, str]:
    """The id and the peer URL of a server that is alone."""
    return {"id": etcdctl.output("member list").partition(":")[0], "peer": etcdctl.server.peer_url}


_CHANGES = _lines("""
    set p/a 1; set p/a 2; set p/b/c 3; mkdir p/d; setdir --ttl 100 p/e; rm p/a; update p/b/c 4; mk --in-order p/q 5
    set --swap-with-value 4 p/b/c 6; rm --with-value 6 p/b/c; set p/_hidden/x 7; update p/_hidden/x 8; rm -r p/b
    mk p/z 9
""")


def _watch_the_past(etcdctl: Etcdctl) -> list[Outcome]:
    server, before = etcdctl.server, v2_index(etcdctl.server)
    said = etcdctl.run_all(_CHANGES)
    after = range(before, before + len(_CHANGES), 2)
    said += etcdctl.run_all(f"-o extended watch --recursive --after-index {index} p" for index in after)
    said += etcdctl.run_all(f"watch --after-index {before + n} p/a" for n in (0, 2))
    said += etcdctl.run_all(f"{each} watch -r --after-index {before + 9} p" for each in ("", "-o json"))
    for key, last in (("/", "/p/z"), ("p/b", "compareAndDelete"), ("p/_hidden", "update")):
        running = etcdctl.begin(f"watch -f -r --after-index {before} {key}")
        running.until(last)
        wait_for_watchers(server, 1)  # it has caught up
        said.append(running.end())
        wait_for_watchers(server, 0)
    with closing(V2Client(server)) as client:
        for n in range(1001 - len(_CHANGES)):
            client.ask(form("PUT", b"/v2/keys/p/many", b"value=%d" % n))
    late = (f"-o extended watch -r --after-index {before + 1} p", f"watch -r --after-index {before} p")
    return [*said, *etcdctl.run_all([*late, f"watch -f --after-index {before} none", "rm -r p"])]


_PRESENT = _lines("""
    set now/a 1; set now/a 2; mkdir now/d; set now/d/x 3; set now/_hidden 4; set elsewhere 5; update --ttl 100 now/a 6
    set --swap-with-value 6 now/a 7; mk --in-order now/q 8; rm now/a; setdir now/d/y; rm -r now/d; set --ttl 1 now/a 9
""")


def _watch_the_present(etcdctl: Etcdctl) -> list[Outcome]:
    server, said = etcdctl.server, []
    once = [etcdctl.begin("-o extended watch now/a"), etcdctl.begin("watch -r /")]
    wait_for_watchers(server, 2)
    said += [etcdctl.run("set now/a 0"), *(each.end(by=None) for each in once)]
    running = [etcdctl.begin("-o extended watch -f -r now"), etcdctl.begin("watch -f now/a")]
    wait_for_watchers(server, 2)
    for line in _PRESENT:
        said.append(etcdctl.run(line))
        wait_for_watchers(server, 2)  # they took the event, if it was one for them, and wait for the next
    wait_until(lambda: get_status(server, "now/a") == 404, "the end of a key")
    wait_for_watchers(server, 2)
    said += [each.end() for each in running]
    wait_for_watchers(server, 0)  # a client that goes away takes its watch along
    return [*said, etcdctl.run("rm -r now")]  # what has a TTL must not end later, at a moment of its own on each server


def _exec_watch(etcdctl: Etcdctl) -> list[Outcome]:
    show = """sh -c 'echo $(env | grep ^ETCD_WATCH | sort)'"""
    server, said = etcdctl.server, []
    running = etcdctl.begin(f"exec-watch --recursive e -- {show}")
    wait_for_watchers(server, 1)
    steps = (
        "set e/a 1",
        "update e/a '2 = two'",
        "mk --in-order e/q 3",
        "mkdir e/d",
        "rm e/a",
        "set e/b ''",
        "set --ttl 1 e/t 4",
    )
    for number, line in enumerate(steps, 1):
        said.append(etcdctl.run(line))
        running.until("/e/", number)  # commands run side by side with what comes next: one after the other here
        wait_for_watchers(server, 1)
    running.until("ETCD_WATCH_ACTION=expire")
    wait_for_watchers(server, 1)
    said.append(running.end())
    wait_for_watchers(server, 0)
    index = v2_index(server)
    said += etcdctl.run_all(["set e/a 5", "set e/a 6"])
    running = etcdctl.begin(f"exec-watch --after-index {index} e/a -- {show}")
    running.until("ETCD_WATCH_VALUE=6")
    wait_for_watchers(server, 1)
    said.append(running.end())
    wait_for_watchers(server, 0)
    said.append(etcdctl.run(f"exec-watch --after-index {index} e/a -- /nonexistent/program"))
    return [*said, *etcdctl.run_all(["exec-watch", "exec-watch e/a"])]


def _shrink_and_grow(cluster: ClusterOfProcesses) -> list[Outcome]:
    """What is said of two members of which the one that follows leaves, and of one that is to come."""
    leader = cluster.leader()
    (follower,) = (each for each in cluster.members if each is not leader)
    etcdctl = Etcdctl(leader)
    found = re.search(rf"^(\w+): name={follower.name} ", etcdctl.output("member list"), re.M)
    member_id, elsewhere = found[1] if found else "none", follower.peer_url.replace("127.0.0.1", "localhost")
    said = etcdctl.run_all(["member list", "cluster-health", "set m/x 1"])
    said += Etcdctl(follower).run_all(
        f"--no-sync {each}"
        for each in ("-o extended set m/y 2", "mk --in-order m/q 3", "-o extended get -q m/x", "cluster-health")
    )
    said += etcdctl.run_all(
        f"member {each}"
        for each in (
            *(f"add m3 {follower.peer_url}", f"update {member_id} {leader.peer_url}"),
            *(f"update {member_id} {elsewhere}", "list", f"remove {member_id}", "list"),
        )
    )
    follower.wait_for_end()
    said += etcdctl.run_all([f"member remove {member_id}", f"member update {member_id} {elsewhere}", "cluster-health"])
    said += etcdctl.run_all(["-o extended set m/x alone", f"member add m3 {elsewhere}", "member list"])
    return [_roles_masked(each) for each in said]


def _roles_masked(outcome: Outcome) -> Outcome:
    """Without what chance decides: which of two members it is, and how often they said what they are at their start."""
    stdout = re.sub(r"(Index: )\d+", r"\1N", re.sub(r"\bm[12]\b", "mN", outcome.stdout))
    lines = sorted(stdout.splitlines(keepends=True))  # they come in the order of ids
    return outcome._replace(stdout="".join(lines))

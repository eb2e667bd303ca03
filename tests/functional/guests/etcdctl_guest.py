"""What a user does with ``etcdctl`` from end to end: ``python etcdctl_guest.py ETCDCTL HOST PORT CA CERT KEY``.

Lease ids are the server's choice and are not shown.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

_TIMEOUT_S = 20
_LEASE = re.compile(r"[0-9a-f]{15,16}")


class Etcdctl:
    """The program with its global options."""

    def __init__(self, program: str, host: str, port: str, ca: str, certificate: str, key: str) -> None:
        options = [f"--endpoints={host}:{port}", f"--cacert={ca}", f"--cert={certificate}", f"--key={key}"]
        self._command = [program, *options]

    def run(self, line: str, stdin: str = "") -> str:
        """One command to its end; what it printed."""
        command = [*self._command, *line.split()]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        ).stdout

    def begin(self, line: str) -> subprocess.Popen[str]:
        """A command that goes on until it is ended."""
        return subprocess.Popen([*self._command, *line.split()], stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    """So many lines of what a process prints."""
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(count)]


def say(step: str, *facts: object) -> None:
    """One line of the protocol."""
    sys.stdout.write(_LEASE.sub("LEASE", json.dumps([step, *facts])) + "\n")


def visit(etcdctl: Etcdctl) -> None:
    """All of it."""
    say("put", etcdctl.run("put guest one"), etcdctl.run("put guest two --prev-kv"))
    say("get", etcdctl.run("get guest"), etcdctl.run("get nothing"))
    say("txn", etcdctl.run("txn", 'value("guest") = "two"\n\nput guest three\nget guest\n\ndel guest\n\n'))
    watching = etcdctl.begin("watch guest --rev 2 --prev-kv")
    say("past", lines(watching, 3 + 5 + 5))
    etcdctl.run("del guest")
    say("live", lines(watching, 5))
    watching.terminate()
    watching.wait(_TIMEOUT_S)
    granted = etcdctl.run("lease grant 300")
    lease = granted.split()[1]
    etcdctl.run(f"put leased x --lease={lease}")
    say("lease", granted, etcdctl.run(f"lease keep-alive --once {lease}"), etcdctl.run("lease list"))
    say("keys", re.sub(r"remaining\(\d+s\)", "", etcdctl.run(f"lease timetolive {lease} --keys")))
    say("revoked", etcdctl.run(f"lease revoke {lease}"), etcdctl.run("get leased"))
    holder = etcdctl.begin("lock guest-lock")
    held = lines(holder, 1)
    waiting = etcdctl.begin("lock guest-lock echo mine")
    while etcdctl.run("get guest-lock/ --prefix --keys-only").count("guest-lock/") < 2:
        pass  # asking is what paces the questions
    holder.terminate()
    say("lock", held, lines(waiting, 1), waiting.wait(_TIMEOUT_S))
    holder.wait(_TIMEOUT_S)
    leader = etcdctl.begin("elect guest-election me")
    elected = lines(leader, 2)
    listening = etcdctl.begin("elect --listen guest-election")
    say("elect", elected, lines(listening, 2))
    for process in (listening, leader):
        process.terminate()
        process.wait(_TIMEOUT_S)
    say("resigned", etcdctl.run("get guest-election/ --prefix"))
    say("health", "is healthy" in etcdctl.run("endpoint health -w simple"), etcdctl.run("alarm list"))


if __name__ == "__main__":
    visit(Etcdctl(*sys.argv[1:]))

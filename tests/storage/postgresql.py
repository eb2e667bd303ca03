"""A real PostgreSQL for tests: the one that ``TWISTEDKV_TEST_POSTGRESQL`` names, or one started for this run.

It listens on a socket in a temporary directory only, is started when the first test asks for it, and is stopped when
the process ends.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

import psycopg
from sqlalchemy import URL, make_url
from twisted.trial.unittest import SkipTest

WAIT_S = 60
# Nothing here needs to survive a power cut.
SETTINGS = "-c listen_addresses='' -c fsync=off -c full_page_writes=off -c shared_buffers=16MB -k {sockets}"


@cache
def server_url() -> URL:
    """Where the server is; starts one if need be.

    Raises:
        SkipTest: there is none and none is installed.
    """
    if named := os.environ.get("TWISTEDKV_TEST_POSTGRESQL"):
        return make_url(named).set(drivername="postgresql+psycopg")
    found = shutil.which("initdb") or next(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)
    if found is None:
        raise SkipTest(
            "no PostgreSQL: install a server, or name a database by TWISTEDKV_TEST_POSTGRESQL=postgresql://…"
        )
    user = _unprivileged()
    directory = Path(mkdtemp(prefix="twistedkv-postgresql-"))
    atexit.register(shutil.rmtree, directory)
    if user is not None:
        shutil.chown(directory, user)
    data, tools = directory / "data", Path(found).parent

    def call(tool: str, *arguments: str) -> None:
        done = subprocess.run(
            [tools / tool, "-D", data, *arguments],
            user=user,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if tool == "initdb" else subprocess.DEVNULL,  # the server keeps pg_ctl's open
            stderr=subprocess.STDOUT,
            timeout=WAIT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{tool} failed: {done.stdout!r}")

    call("initdb", "--no-sync", "--auth=trust", "--username=twistedkv", "--encoding=UTF8")
    options = SETTINGS.format(sockets=directory)
    call("pg_ctl", "-w", "-l", str(directory / "log"), "-o", options, "start")
    atexit.register(call, "pg_ctl", "-w", "-m", "immediate", "stop")
    return URL.create("postgresql+psycopg", "twistedkv", database="postgres", query={"host": str(directory)})


def new_schema() -> URL:
    """The server's URL with a new, empty schema as the place for tables."""
    url, name = server_url(), f"test_{uuid4().hex}"
    with connect(url) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return url.update_query_dict({"options": f"-csearch_path={name}"})


def connect(url: URL) -> psycopg.Connection[tuple[object, ...]]:
    """A connection of the test's own, in autocommit mode."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


def _unprivileged() -> str | None:
    """Whom to run a server as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)

"""``twistedkvctl``: what an operator does to a member from outside, or without one."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from twistedkv import __version__

API_VERSION = "3.5"  # etcd's, as its own etcdctl reports it


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="twistedkvctl")
def main() -> None:
    """Command line of twistedkv, a key-value store that etcd clients can talk to."""


@main.command()
def version() -> None:
    """Print the versions of this command and of the API it speaks."""
    click.echo(f"twistedkvctl version: {__version__}")
    click.echo(f"API version: {API_VERSION}")


@main.command()
@click.argument("directory", type=click.Path(file_okay=False))
@click.option(
    "--ca",
    "authority",
    metavar="DIRECTORY",
    type=click.Path(file_okay=False),
    help="Sign with the authority in this directory, whose key stays there.",
)
@click.option("--host", "hosts", multiple=True, help="Name or address that the servers are reached by; may come again.")
def certs(directory: str, authority: str | None, hosts: tuple[str, ...]) -> None:
    """Fill DIRECTORY with an authority and the certificates of a server, a peer and a client.

    What is there and still good is kept. The servers' certificates are good for localhost, every --host and, without
    --ca, this machine's name.

    Members on several machines need one authority. Make it, and with it a directory for each member, named by the
    addresses that the others and its clients use:

    \b
      twistedkvctl certs ca
      twistedkvctl certs a --ca ca --host 10.0.0.1
      twistedkvctl certs b --ca ca --host 10.0.0.2 --host b.example.com
      twistedkvctl certs c --ca ca --host 10.0.0.3

    Copy a to the first machine as pki in the member's data directory (mode 0700), and so on: members use what they
    find there. Keep ca to yourself, since whoever has ca/ca.key can make members and clients; the pair ca/client.crt
    and ca/client.key is for your own etcdctl. The same commands renew what ends within thirty days; members take new
    files up by themselves.
    """
    from twistedkv.certs import (  # slow to import, and only needed here
        CertificateFileError,
        ensure_certificates,
        issue_certificates,
    )

    try:
        if authority is None:
            files = ensure_certificates(directory, hosts)
        else:
            files = issue_certificates(directory, authority, hosts)
    except (CertificateFileError, OSError) as error:
        click.echo(f"twistedkvctl: {error}", err=True)
        sys.exit(1)
    for role, pair in (("ca", files.ca), ("server", files.server), ("peer", files.peer), ("client", files.client)):
        click.echo(f"{role}: {pair.certificate} {pair.key}")


@main.command()
@click.option(
    "--directory",
    default="data-cluster",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where everything of it is kept.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65530),
    help="First of six ports in a row, instead of 2379 and 2380, 22379 and 22380, 32379 and 32380.",
)
def cluster(directory: Path, port: int | None) -> None:
    """Run a cluster of three members on this machine, to try things with.

    It says how to talk to it, and how to kill a member and start it again. Members that run already are left alone.
    Ctrl-C stops all of them; their data stays.
    """
    from twistedkv.certs import CertificateFileError
    from twistedkv.localcluster import LocalCluster, LocalClusterError

    try:
        LocalCluster(directory, port, click.echo).run()
    except (LocalClusterError, CertificateFileError, OSError) as error:
        click.echo(f"twistedkvctl: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

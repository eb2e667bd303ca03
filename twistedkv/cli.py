"""``twistedkvctl``: what an operator does to a member from outside, or without one."""

from __future__ import annotations

import sys

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
@click.option("--host", "hosts", multiple=True, help="Name or address that the servers are reached by; may come again.")
def certs(directory: str, hosts: tuple[str, ...]) -> None:
    """Fill DIRECTORY with an authority and the certificates of a server, a peer and a client.

    What is there and still good is kept. The servers' certificates are good for localhost, this machine's name, and
    every --host.
    """
    from twistedkv.certs import CertificateFileError, ensure_certificates  # slow to import, and only needed here

    try:
        files = ensure_certificates(directory, hosts)
    except (CertificateFileError, OSError) as error:
        click.echo(f"twistedkvctl: {error}", err=True)
        sys.exit(1)
    for role, pair in (("ca", files.ca), ("server", files.server), ("peer", files.peer), ("client", files.client)):
        click.echo(f"{role}: {pair.certificate} {pair.key}")

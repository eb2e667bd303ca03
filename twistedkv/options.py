"""The options of ``twistd twistedkv``, and the pages that are made from their table.

``python -m twistedkv.options`` writes ``docs/configuration.md`` to standard output.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from twisted.python import usage

from twistedkv import __version__
from twistedkv.config import OPTIONS, Config
from twistedkv.configload import load_config
from twistedkv.configsources import ConfigError, Option, parse_flags

USAGE_STATUS = 2  # of the process, for a configuration that cannot be used

_PREFACE = """\
# Configuration

<!-- Made by `make generate` from twistedkv/config.py: change it there. -->

A member is started by `twistd`, with options of its own after the word `twistedkv`:

    twistd -n twistedkv --name=a --data-dir=/var/lib/twistedkv

Each option below can be given in three places. A flag wins over the environment, which wins over the file.

| place | how | example |
| --- | --- | --- |
| flag | `--option=value` or `--option value`; for true, `--option` alone | `--name=a` |
| environment | `TWISTEDKV_`, then the option in upper case with `_` for `-` | `TWISTEDKV_NAME=a` |
| file | TOML, named by `--config` or `--config-file`; its keys are the options | `name = "a"` |

A value that cannot be used ends the start with one line that names it, and exit status 2. Durations are written
`300ms`, `5s` or `1h30m`, sizes `1572864` or `512MiB`; several URLs are parted by commas (in the file, also a list).

Without any certificate option, the member makes its own authority and certificates in `pki` under its data directory,
lets only clients in that have one, and logs the command line that does. Several members need one authority for all:
`twistedkvctl certs` makes it and each member's certificates, which then go into its `pki`.

`twistd`'s own options come before the word `twistedkv`: `--nodaemon`, `--logfile`, `--pidfile` and others. Where there
is a log file, SIGHUP rotates it, and if something else has moved it away, opens a new one.
"""


class MemberOptions(usage.Options):
    """What twistd parses after the word ``twistedkv``; ``config`` is what came out.

    Flags are read here and not by twistd, whose parser takes abbreviations, refuses ``--flag=true``, and answers a
    mistake with the whole help text and status 1.
    """

    synopsis = "[options]"
    config: Config

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the flags, the environment and the file, or end the process with one line and status 2."""
        arguments = list(sys.argv[1:] if options is None else options)
        if "--help" in arguments:
            self.opt_help()
        if "--version" in arguments:
            self.opt_version()
        try:
            self.config = load_config(parse_flags(OPTIONS, arguments), os.environ)
        except ConfigError as error:
            sys.stderr.write(f"twistedkv: {error}\n")
            raise SystemExit(USAGE_STATUS) from error

    def opt_version(self) -> None:
        """Display the version of twistedkv and exit."""
        sys.stdout.write(f"twistedkv {__version__}\n")
        raise SystemExit(0)

    def getUsage(self, width: int | None = None) -> str:
        """The options by section, as ``--help`` shows them."""
        columns = width or int(os.environ.get("COLUMNS") or 80)
        lines = []
        for section, options in _sections():
            lines += ["", f"{section}:"]
            for option in options:
                lines.append(f"  --{option.flag}={option.kind.metavar}")
                lines += textwrap.wrap(_sentence(option), columns, initial_indent=" " * 8, subsequent_indent=" " * 8)
        lines += ["", "General:", "  --config=PATH", " " * 8 + "TOML file with any of these options as keys."]
        return "\n".join([*lines, "  --version", "  --help", ""])


def configuration_page() -> str:
    """The text of ``docs/configuration.md``."""
    lines = [_PREFACE]
    for section, options in _sections():
        lines += [f"## {section}", "", "| option | value | default | meaning |", "| --- | --- | --- | --- |"]
        for option in options:
            value = option.kind.metavar.replace("|", "\\|")
            default = f"`{option.default}`" if option.default else option.default_note.replace("<", "\\<") or "none"
            meaning = f"{option.help} Also: `{option.alias}`." if option.alias else option.help
            lines.append(f"| `{option.flag}` | {value.replace('<', chr(92) + '<')} | {default} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def _sections() -> Iterator[tuple[str, Iterator[Option]]]:
    return groupby(OPTIONS.values(), lambda option: option.section)


def _sentence(option: Option) -> str:
    also = f" Also: --{option.alias}." if option.alias else ""
    default = option.default or option.default_note
    return f"{option.help}{also} [default: {default}]" if default else option.help + also


if __name__ == "__main__":
    sys.stdout.write(configuration_page())

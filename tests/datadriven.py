"""Scenarios as text: reads files of commands and expected outputs, and compares (or, with REWRITE=1, rewrites) them.

The format is cockroachdb's datadriven: a command line, optional input lines, ``----``, the expected output up to a
blank line; an output that holds blank lines stands between doubled ``----`` lines. ``key=(a,b c)`` is an argument of
several values. Lines before a command that begin with ``#`` are comments.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_ARGUMENT = re.compile(r"([^\s=]+)(?:=(?:\(([^)]*)\)|(\S*)))?")
_FENCE = "----"


@dataclass(slots=True)
class Stanza:
    """One command of a scenario."""

    line: int  # of the command in its file
    command: str
    args: dict[str, list[str]] = field(default_factory=dict)  # a flag without a value has an empty list
    input: str = ""
    expected: str = ""

    @property
    def positional(self) -> list[str]:
        """Arguments without a value, in order."""
        return [name for name, values in self.args.items() if not values]

    def one(self, name: str, default: str) -> str:
        """The single value of ``name=value``."""
        values = self.args.get(name)
        return values[0] if values else default


def parse(text: str) -> list[Stanza]:
    """The stanzas of one file."""
    lines, stanzas, position = text.split("\n"), list[Stanza](), 0
    while position < len(lines):
        line = lines[position]
        if not line.strip() or line.startswith("#"):
            position += 1
            continue
        start = position
        position = lines.index(_FENCE, start)
        stanza = _parse_command(lines[start], start + 1)
        stanza.input = "\n".join(lines[start + 1 : position])
        position += 1
        if lines[position : position + 1] == [_FENCE]:
            end = next(at for at in range(position + 1, len(lines)) if lines[at : at + 2] == [_FENCE, _FENCE])
            stanza.expected = "\n".join(lines[position + 1 : end])
            position = end + 2
        else:
            end = next((at for at in range(position, len(lines)) if not lines[at].strip()), len(lines))
            stanza.expected = "\n".join(lines[position:end])
            position = end
        stanzas.append(stanza)
    return stanzas


def _parse_command(line: str, number: int) -> Stanza:
    command, _, rest = line.partition(" ")
    stanza = Stanza(number, command)
    for name, group, single in _ARGUMENT.findall(rest):
        values = [value for value in re.split(r"[,\s]+", group) if value] if group else [single] if single else []
        stanza.args[name] = values
    return stanza


def check(path: Path, run: Callable[[Stanza], str]) -> list[str]:
    """Run every stanza of a file; what differs, one text each. With ``REWRITE=1`` the file is changed instead."""
    text = path.read_text()
    rewrite, differences = os.environ.get("REWRITE") == "1", list[str]()
    for stanza in parse(text):
        actual = run(stanza).strip("\n")
        if actual == stanza.expected:
            continue
        if rewrite:
            head = "\n".join(text.split("\n")[: stanza.line - 1])
            tail = text[len(head) :]
            text = head + tail.replace(f"{_FENCE}\n{stanza.expected}", f"{_FENCE}\n{actual}", 1)
        else:
            place = f"{path.name}:{stanza.line}: {stanza.command}"
            differences.append(f"{place}\nexpected:\n{stanza.expected}\nactual:\n{actual}")
    if rewrite:
        path.write_text(text)
    return differences

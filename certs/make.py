"""Fill this directory with a throwaway CA and its pairs, for tests and demos: ``python certs/make.py [host …]``."""

from __future__ import annotations

import sys
from pathlib import Path

from twistedkv.certs import ensure_certificates

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    made = ensure_certificates(here, hosts=sys.argv[1:])
    for pair in (made.ca, made.server, made.peer, made.client):
        sys.stdout.write(f"{pair.certificate}\n{pair.key}\n")

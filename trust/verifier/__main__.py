"""``python3 evidence.zip``: verify the pack that this verifier came with, or the one that is named."""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

from .pack import Pack, fingerprint


def main(arguments: list[str], own: str | None) -> int:
    """The exit code: 0 if everything holds, 1 if not, 2 if there is nothing to verify."""
    parser = argparse.ArgumentParser(
        prog="python3 evidence.zip", description="Verify an evidence pack of Licet, with nothing but Python."
    )
    parser.add_argument("pack", nargs="?", default=own, help="the pack; without it, the one that this verifier is in")
    parser.add_argument(
        "--key", action="append", default=[], help="a log's verifier key that you hold (origin+id+base64); repeatable"
    )
    parser.add_argument("--witness", help="the witness's verifier key that you hold")
    given = parser.parse_args(arguments)
    try:
        with zipfile.ZipFile(given.pack) as archive:
            names = archive.namelist()
            if len(names) != len(set(names)):
                print("FAULT  a file stands twice in the pack")
                return 1
            report = Pack(archive.read, given.key, given.witness).verify()
    except (OSError, zipfile.BadZipFile, TypeError) as bad:
        print(f"{given.pack} is no evidence pack: {bad}")
        return 2
    for sentence in report.said:
        print("ok     " + sentence)
    for sentence in report.open:
        print("open   " + sentence)
    for sentence in report.faults:
        print("FAULT  " + sentence)
    print("VERIFIED" if not report.faults else f"NOT VERIFIED: {len(report.faults)} faults")
    print("this pack has the SHA-256 " + fingerprint(Path(given.pack).read_bytes()))
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], None))

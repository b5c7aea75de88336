"""``python3 evidence.zip``: verify the pack that this verifier came with, or the one that is named."""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

from .pack import Pack, fingerprint

MAX_FILE, MAX_PACK = 64 << 20, 1 << 30


def main(arguments: list[str], own: str | None) -> int:
    """The exit code: 0 if everything holds, 1 if something does not, 2 if there is nothing to verify, 3 if something
    could not be checked."""
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
            infos = archive.infolist()
            if any(one.file_size > MAX_FILE for one in infos) or sum(one.file_size for one in infos) > MAX_PACK:
                print("FAULT  the pack is larger than any evidence")
                return 1
            report = Pack(archive.read, given.key, given.witness).verify()
    except (OSError, zipfile.BadZipFile, TypeError) as bad:
        print(f"{given.pack} is no evidence pack: {bad}")
        return 2
    for sentence in report.said:
        print("ok     " + sentence)
    for sentence in report.open:
        print("open   " + sentence)
    for sentence in report.partly:
        print("part   " + sentence)
    for sentence in report.faults:
        print("FAULT  " + sentence)
    print(report.words())
    print("this pack has the SHA-256 " + fingerprint(Path(given.pack).read_bytes()))
    return 1 if report.faults else 3 if report.partly else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], None))

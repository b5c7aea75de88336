"""``licet``: the command line."""

from __future__ import annotations

from licet.cli import app


def main() -> None:
    app(prog_name="licet")


if __name__ == "__main__":
    main()

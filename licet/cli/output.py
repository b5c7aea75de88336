"""How commands speak: for people by default, as JSON with ``--json``; exit codes that scripts can rely on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from edge.config import BadConfig
from licet.client import ApiError, Unavailable
from trust.policy.bundle import BundleRejected
from trust.reasons import Unverifiable

OK: Final = 0
FAILED: Final = 1
"""Something is wrong that a person must look at: a check failed, a refusal, an unverifiable ledger."""
USAGE: Final = 2
BAD_POLICY: Final = 3
CASES_FAILED: Final = 4
UNREACHABLE: Final = 5

console = Console(highlight=False, soft_wrap=True, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

_WIDE: Final = console.options.update(max_width=10_000)

Json = typer.Option(False, "--json", help="Print JSON for programs.")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def show(value: Any, as_json: bool, people: Callable[[], None]) -> None:
    """*value* as JSON, or what *people* prints."""
    if as_json:
        print(json.dumps(value, indent=1, sort_keys=True, default=str))
    else:
        people()


def say(text: str, style: str = "") -> None:
    """A line of plain text; nothing in it is markup."""
    console.print(escape(text), style=style or None)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, no_wrap=True)
    count = 0
    for row in rows:
        made.add_row(*(escape(str(cell)) for cell in row))
        count += 1
    if count:
        # Never cut: what stands here is copied. A terminal that is too narrow folds the lines itself.
        needed = Measurement.get(console, _WIDE, made).maximum
        Console(file=console.file, width=max(console.width, needed), highlight=False, emoji=False).print(made)
    else:
        say(empty, "dim")


def warn(text: str) -> None:
    """A line for people beside the output."""
    errors.print(escape(text), style="yellow")


def fail(text: str, code: int = FAILED) -> typer.Exit:
    """Print *text* as an error; raise what comes back."""
    errors.print(escape(text), style="red")
    return typer.Exit(code)


def reporting(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Expected failures become one clear message and a documented exit code."""

    @wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except BadConfig as bad:
            raise fail(str(bad), USAGE) from None
        except BundleRejected as bad:
            raise fail(str(bad), BAD_POLICY) from None
        except Unavailable as bad:
            raise fail(f"{bad}\nIs it running? Try `licet check`.", UNREACHABLE) from None
        except ApiError as bad:
            raise fail(str(bad), FAILED) from None
        except Unverifiable as bad:
            raise fail(bad.detail, FAILED) from None
        except OSError as bad:
            raise fail(str(bad), FAILED) from None
        except KeyboardInterrupt:
            sys.exit(130)

    return wrapped

"""The command groups, put together. One file per group, imported when it is used: each start is felt."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperGroup

from licet import __version__

COMMANDS: Final = {
    "up": "up",
    "gateway": "serve",
    "sidecar": "serve",
    "node": "serve",
    "run": "run",
    "check": "check",
    "ready": "check",
    "console": "console",
    "config": "config",
    "agents": "agents",
    "nodes": "nodes",
    "servers": "servers",
    "people": "people",
    "policy": "policy",
    "approvals": "approvals",
    "audit": "asking",
    "usage": "usage",
}
"""Command or group → the module beside this one that has it (as a function of this name, or as its ``app``)."""


class _WhenUsed(TyperGroup):
    """Imports what is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"licet.cli.{COMMANDS[cmd_name]}")
        holder = typer.Typer(pretty_exceptions_enable=False)
        if hasattr(module, "app"):
            holder.add_typer(module.app)
        else:
            free = {"ignore_unknown_options": True, "allow_extra_args": True} if cmd_name == "run" else {}
            holder.command(cmd_name, context_settings=free)(getattr(module, cmd_name))
        return typer.main.get_group(holder).get_command(ctx, cmd_name)


app = typer.Typer(
    cls=_WhenUsed,
    help="Licet: every action of an agent is checked, recorded, and only then done.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"licet {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Exit codes: 0 fine, 1 refused or failed, 2 usage or configuration, 3 bad policy, 4 failed cases,
    5 not reachable."""

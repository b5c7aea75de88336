"""The command groups, put together. One file per group."""

from __future__ import annotations

import typer

from licet import __version__
from licet.cli import agents, approvals, asking, check, config, console, nodes, people, policy, run, serve, servers, up

app = typer.Typer(
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


app.command("up")(up.up)
app.command("gateway")(serve.gateway)
app.command("sidecar")(serve.sidecar)
app.command("node")(serve.node)
app.command("run", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(run.run)
app.command("check")(check.check)
app.command("console")(console.console)
for group in (config, agents, nodes, servers, people, policy, approvals, asking):
    app.add_typer(group.app)

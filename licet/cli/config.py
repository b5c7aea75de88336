"""``licet config``: check."""

from __future__ import annotations

import typer

from licet.cli.output import Json, reporting, say, show
from licet.settings import load

app = typer.Typer(name="config", help="The configuration.", no_args_is_help=True)


@app.command("check")
@reporting
def check(as_json: bool = Json) -> None:
    """Read licet.toml and the environment; names file, line, what was found and what was expected."""
    settings = load()
    sections = {name: getattr(settings, name).model_dump(mode="json") for name in ("gateway", "sidecar", "node")}
    for hidden in ("sidecar", "node"):
        sections[hidden].pop("enrolment_token")

    def people() -> None:
        where = settings.config_path
        say(f"{where} is fine" if where else "there is no licet.toml; these are the defaults", "green")
        for name, values in sections.items():
            say(f"[{name}]", "bold")
            for key, value in values.items():
                say(f"  {key} = {value}")

    show(sections, as_json, people)

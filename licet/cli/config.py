"""``licet config``: check, and the key that gateways share."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from licet.cli.output import Json, reporting, say, show
from licet.settings import load
from trust.identity.keys import SecretKey

app = typer.Typer(name="config", help="The configuration.", no_args_is_help=True)


_PASSWORD = re.compile(r"(//[^:@/]*:)[^@/]*@")


@app.command("key")
@reporting
def key(path: Path, as_json: bool = Json) -> None:
    """Make the key that several gateways share (key_file), or say whose it is if it is there."""
    public = SecretKey.load_or_create(path).public
    show({"key": str(path), "did": public.did}, as_json, lambda: say(f"{path} holds the key of {public.did}"))


@app.command("check")
@reporting
def check(as_json: bool = Json) -> None:
    """Read licet.toml and the environment; names file, line, what was found and what was expected."""
    settings = load()
    sections = {name: getattr(settings, name).model_dump(mode="json") for name in ("gateway", "sidecar", "node")}
    for name in ("database", "redis"):
        sections["gateway"][name] = _PASSWORD.sub(r"\1…@", sections["gateway"][name])
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

"""The gateway as commands reach it: by its address, with the token of whoever acts."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import typer

from licet.client import Api
from licet.settings import free_port, load, read_token

As = typer.Option(
    None, "--as", metavar="TOKEN-FILE", help="Act as the person whose token is in this file ($LICET_PERSON)."
)


def gateway(token_file: Path | None = None) -> Api:
    """The configured gateway; by default as the operator that its first start made."""
    settings = load()
    named = token_file or (Path(os.environ["LICET_PERSON"]) if "LICET_PERSON" in os.environ else None)
    path = named or settings.gateway.home / "operator.token"
    authority = os.environ.get("LICET_GATEWAY_CA")
    url = os.environ.get("LICET_GATEWAY_URL", settings.gateway.url)
    if authority and url.startswith("http://"):
        url = "https://" + url.removeprefix("http://")
    return Api(
        url, read_token(path, "a person"), authority=Path(authority) if authority else settings.gateway.authority
    )


def enrolling(part: str, name: str, token: str) -> str:
    """The command line with which a new sidecar or node (*part*) enrols, for a shell on this machine."""
    settings, api = load(), gateway()
    near = settings.sidecar if part == "sidecar" else settings.node
    where: dict[str, object] = {"HOME": settings.home / name, "PORT": free_port(near.host, near.port + 1)}
    where["GATEWAY_URL"] = api.url
    if api.authority is not None:
        where["GATEWAY_CA"] = api.authority
    where["ENROLMENT_TOKEN"] = token
    words = " ".join(f"LICET_{part.upper()}__{key}={shlex.quote(str(value))}" for key, value in where.items())
    return f"{words} licet {part}"

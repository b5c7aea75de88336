"""``licet console``: a link that signs one person in to the console, once."""

from __future__ import annotations

from pathlib import Path

from licet.cli.gateway_api import As, gateway
from licet.cli.output import Json, reporting, say, show


@reporting
def console(token_file: Path | None = As, as_json: bool = Json) -> None:
    """Print a link that signs you in to the console: it works once, for fifteen minutes."""
    api = gateway(token_file)
    told = api.call("POST", "/v1/console/links").body

    def people() -> None:
        say(f"Sign in as {told['person']}, once, within {told['seconds'] // 60} minutes:")
        print(f"  {told['url']}")

    show(told, as_json, people)

"""Pages: templates filled in, with the headers that let a browser run nothing but what we sent."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Final

import jinja2
import markupsafe

from edge.http import Response
from gateway.console import text
from gateway.console.assets import Assets
from trust.ledger import words

TEMPLATES: Final = Path(__file__).parent / "templates"
_FIXED: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser's own forms would come with Origin: null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), usb=()",
}


def policy(nonce: str) -> str:
    """The content security policy of one page: our scripts by nonce, our style, and nothing else."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types htmx"
    )


class Pages:
    """Every value that a template writes passes :func:`gateway.console.text.readable` and is escaped."""

    def __init__(self, assets: Assets) -> None:
        self._env = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            finalize=_made_visible,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._env.globals["asset"] = assets.url
        self._env.filters["moment"] = words.moment
        self._env.filters["clock"] = lambda wall_us: words.moment(wall_us, "%H:%M:%S.%f")[:-3]

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """*template* (without its suffix) with *values*."""
        nonce = secrets.token_urlsafe(16)
        body = self._env.get_template(f"{template}.html.j2").render(nonce=nonce, **values)
        headers = {
            **_FIXED,
            "Content-Type": "text/html; charset=utf-8",
            "Cache-Control": "no-store",
            "Content-Security-Policy": policy(nonce),
        }
        return Response(status=status, body=body.encode(), headers=headers)


def _made_visible(value: Any) -> Any:
    return text.readable(value) if isinstance(value, str) and not isinstance(value, markupsafe.Markup) else value


def redirect(to: str, cookie: str = "") -> Response:
    """See other: what follows a form, or what stands elsewhere."""
    headers = {**_FIXED, "Location": to, "Cache-Control": "no-store"}
    return Response(status=303, headers=headers | ({"Set-Cookie": cookie} if cookie else {}))

"""What the console's pages load: our style, htmx and uPlot as npm gave them, each named with its SHA-256.

``make assets`` copies what the lock file in ``npm/`` names into ``static/vendor/``; a test fetches it anew, to compare.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

STATIC: Final = Path(__file__).parent / "static"
VENDORED: Final = {
    "htmx.min.js": "htmx.org/dist/htmx.min.js",
    "hx-csp.min.js": "htmx.org/dist/ext/hx-csp.min.js",
    "hx-sse.min.js": "htmx.org/dist/ext/hx-sse.min.js",
    "htmx.LICENSE": "htmx.org/LICENSE",
    "uPlot.iife.min.js": "uplot/dist/uPlot.iife.min.js",
    "uPlot.min.css": "uplot/dist/uPlot.min.css",
    "uPlot.LICENSE": "uplot/LICENSE",
}
"""Under ``static/vendor/``, and where it lies in ``node_modules``."""
_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
FOR_EVER: Final = "public, max-age=31536000, immutable"


class Assets:
    """Read once; a page names each with the beginning of its digest, so that it can be kept for ever."""

    def __init__(self, static: Path = STATIC) -> None:
        self._found = {
            path.name: (path.read_bytes(), _TYPES[path.suffix])
            for path in sorted(static.rglob("*"))
            if path.suffix in _TYPES
        }

    def url(self, name: str) -> str:
        """Where the page finds the asset *name*."""
        return f"/console/assets/{hashlib.sha256(self._found[name][0]).hexdigest()[:16]}/{name}"

    def get(self, digest: str, name: str) -> tuple[bytes, str] | None:
        """(bytes, media type) of what :meth:`url` named, or None."""
        found = self._found.get(name)
        return found if found is not None and self.url(name) == f"/console/assets/{digest}/{name}" else None


def vendor(node_modules: Path, static: Path = STATIC) -> None:
    """Copy what npm installed into the package, with the digests beside it."""
    target = static / "vendor"
    target.mkdir(parents=True, exist_ok=True)
    sums = []
    for name, source in sorted(VENDORED.items()):
        data = (node_modules / source).read_bytes()
        (target / name).write_bytes(data)
        sums.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    (target / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    vendor(Path(__file__).parent / "npm" / "node_modules")

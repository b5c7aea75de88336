"""The workbench: Licet's own MCP server with operating-system tools, rooted in one folder."""

from pathlib import Path

MANIFEST = Path(__file__).with_name("manifest.toml")
"""What its tools do, in the words of whoever ships it."""

BROWSER_MANIFEST = Path(__file__).with_name("browser.toml")
"""The same for the MCP server that drives a browser."""

BROWSER = Path(__file__).parent / "npm" / "node_modules" / ".bin" / "playwright-mcp"
"""That server, once `npm ci` has put it there."""

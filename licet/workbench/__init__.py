"""The workbench: Licet's own MCP server with operating-system tools, rooted in one folder."""

from pathlib import Path

MANIFEST = Path(__file__).with_name("manifest.toml")
"""What its tools do, in the words of whoever ships it."""

"""The workbench: Licet's own MCP server with operating-system tools, rooted in one folder."""

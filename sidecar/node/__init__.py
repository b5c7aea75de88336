"""The inbound sidecar: stands in front of tools, opens tickets, executes exactly the bytes that they name."""

"""The gateway's HTTP interface: who may call what, and how requests become commands."""

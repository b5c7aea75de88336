"""The console: server-rendered pages for people, on the gateway's own port."""

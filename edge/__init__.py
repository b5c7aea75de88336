"""What gateway and sidecar share of the outside world: HTTP servers and clients, clocks, ids, the awaited ledger."""

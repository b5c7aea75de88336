"""The tamper-evident ledger: entries, durable frames, Merkle tiles, signed checkpoints, offline verification."""

"""What gateway and sidecar must believe alike: bytes, identity, policy, standing, ledger."""

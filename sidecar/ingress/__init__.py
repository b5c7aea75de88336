"""One module per protocol: bytes become an Action, an Answer becomes bytes. Nothing else is decided here."""

"""The schema, the default policies and their cases. Data, no Python."""

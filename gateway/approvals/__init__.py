"""The queue of actions that wait for a person."""

"""Beside an agent it decides, records and forwards; turned around, beside tools, it opens tickets and executes."""

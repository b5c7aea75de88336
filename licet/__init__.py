"""What people hold in their hands: the command line, the Python client, the workbench."""

__version__ = "0.1.0"

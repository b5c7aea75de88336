"""The stand-alone verifier: what an outsider runs on an evidence pack, with nothing but a bare Python.

Written a second time on purpose, from the standards and not from Licet's own code, and with nothing but Python's own
library: it is put into each pack, and it must not be wrong in the same way as the program whose record it checks.
"""

from pathlib import Path

SOURCE = Path(__file__).parent
"""Its own text, which goes into each pack."""

"""What a tool used, as far as this system tells: CPU time and memory of its process, tokens that its answer names."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

import msgspec

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_SCHED: Final = 2
"""Linux's number of the clock that counts a process's CPU time (clock_getcpuclockid(3) builds it so)."""
_NAMES: Final = (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens"))


def cpu_us(pid: int) -> int | None:
    """CPU time of all threads of a process so far; None where that cannot be told."""
    try:
        return time.clock_gettime_ns((~pid << 3) | _SCHED) // 1000 if pid else None
    except OSError:
        return None


def memory_bytes(pid: int) -> int | None:
    """What of a process is in memory now."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None


def tokens(body: bytes) -> tuple[int | None, int | None]:
    """Read and written tokens of a model's answer, if its ``usage`` names them (as OpenAI and Anthropic do)."""
    try:
        result = msgspec.json.decode(body)["result"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return None, None
    for holder in ("structuredContent", "_meta"):
        held = result.get(holder) if isinstance(result, dict) else None
        usage = held.get("usage") if isinstance(held, dict) else None
        if isinstance(usage, dict):
            read, written = (_count(usage, names) for names in _NAMES)
            return read, written
    return None, None


def _count(usage: dict[str, Any], names: tuple[str, ...]) -> int | None:
    found = next((usage[name] for name in names if name in usage), None)
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 2**53 else None

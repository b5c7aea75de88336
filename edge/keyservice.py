"""Keys that stay with a key service: an SSH agent signs, and the key itself is never in this process.

``ssh-agent:PATH`` names the socket of an agent (ssh-agent, gpg-agent, a smart card's or an HSM's agent) that holds one
Ed25519 key; ``ssh-agent:PATH#SHA256:…`` names the key among several, as ``ssh-add -l`` prints it. Ed25519 signatures
of the SSH agent protocol are over the message itself, so they are what RFC 8032 says.

Source: draft-miller-ssh-agent, RFC 8709.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
from typing import Final

from trust.identity.keys import SIGNATURE_BYTES, PublicKey, Signer
from trust.reasons import Unverifiable

_REQUEST_IDENTITIES: Final = 11
_IDENTITIES_ANSWER: Final = 12
_SIGN_REQUEST: Final = 13
_SIGN_RESPONSE: Final = 14
_ALGORITHM: Final = b"ssh-ed25519"
_TIMEOUT_S: Final = 5.0
_MAX_ANSWER: Final = 1 << 20


class KeyServiceFailed(Exception):
    """The key service cannot be reached, has no such key, or will not sign."""


def connect(name: str) -> Signer:
    """The key that *name* means, or :class:`KeyServiceFailed`."""
    scheme, _, rest = name.partition(":")
    path, _, fingerprint = rest.partition("#")
    if scheme != "ssh-agent" or not path:
        raise KeyServiceFailed(
            f'key service "{name}": expected ssh-agent:/path/of/socket, with #SHA256:… if it has several'
        )
    keys = _identities(path)
    chosen = [key for key in keys if not fingerprint or _fingerprint(key) == fingerprint]
    if len(chosen) != 1:
        known = ", ".join(map(_fingerprint, keys)) or "none"
        raise KeyServiceFailed(
            f"{path}: expected exactly one Ed25519 key{f' {fingerprint}' if fingerprint else ''}; found {known}"
        )
    return SshAgentKey(path, chosen[0])


class SshAgentKey:
    """One key of one SSH agent."""

    def __init__(self, path: str, blob: bytes) -> None:
        self._path = path
        self._blob = blob
        try:
            self.public = PublicKey(_fields(blob)[1])
        except (Unverifiable, IndexError) as bad:
            raise KeyServiceFailed(f"{path}: not a usable Ed25519 key: {bad}") from None

    def sign(self, message: bytes) -> bytes:
        """64 bytes (RFC 8032), checked: what the agent returns is another process's word."""
        request = bytes([_SIGN_REQUEST]) + _string(self._blob) + _string(message) + struct.pack(">I", 0)
        answer = _ask(self._path, request, _SIGN_RESPONSE)
        algorithm, signature = (*_fields(_fields(answer)[0]), b"", b"")[:2]
        if algorithm != _ALGORITHM or len(signature) != SIGNATURE_BYTES:
            raise KeyServiceFailed(f"{self._path}: the agent returned something else than an Ed25519 signature")
        try:
            self.public.verify(signature, message)
        except Unverifiable:
            raise KeyServiceFailed(f"{self._path}: the agent's signature does not verify") from None
        return signature


def _identities(path: str) -> list[bytes]:
    answer = _ask(path, bytes([_REQUEST_IDENTITIES]), _IDENTITIES_ANSWER)
    blobs = _fields(answer[4:])[::2]
    return [blob for blob in blobs if _fields(blob)[:1] == [_ALGORITHM]]


def _fingerprint(blob: bytes) -> str:
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")
    return f"SHA256:{digest}"


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _fields(data: bytes) -> list[bytes]:
    """The length-prefixed strings that *data* begins with."""
    found: list[bytes] = []
    while len(data) >= 4:
        length = int.from_bytes(data[:4], "big")
        if len(data) < 4 + length:
            break
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


def _ask(path: str, request: bytes, expected: int) -> bytes:
    """The agent's answer without its type."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
            agent.settimeout(_TIMEOUT_S)
            agent.connect(path)
            agent.sendall(_string(request))
            length = int.from_bytes(_exactly(agent, 4), "big")
            if not 0 < length <= _MAX_ANSWER:
                raise KeyServiceFailed(f"{path}: an answer of {length} bytes")
            answer = _exactly(agent, length)
    except OSError as bad:
        raise KeyServiceFailed(f"{path}: {bad}") from None
    if answer[0] != expected:
        raise KeyServiceFailed(f"{path}: the agent refused (message {answer[0]}, expected {expected})")
    return answer[1:]


def _exactly(agent: socket.socket, count: int) -> bytes:
    parts = b""
    while len(parts) < count:
        part = agent.recv(count - len(parts))
        if not part:
            raise KeyServiceFailed("the agent closed the connection")
        parts += part
    return parts

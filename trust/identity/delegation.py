"""Delegated authority: chains of tokens, each made by the holder of the one before, offline, and only ever narrower.

After draft-niyikiza-oauth-attenuating-agent-tokens: a token says which tools may be called with which arguments, and
whose key may use it or hand it on. A root is signed by the trust domain and names the principal (``sub``), the
audience and its own id (``rid``). Each further token is signed with the key that the one before names; its ``iss`` is
the thumbprint of that key, its ``par_hash`` the SHA-256 of the bytes of the one before. A chain is written
``root~child~leaf``. An argument that a token constrains must be there; others are free.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from trust.canonical import JsonObject, jcs, read_object
from trust.identity import constraints, jws
from trust.identity.constraints import Constraint
from trust.identity.keys import PublicKey, Signer, b64url
from trust.reasons import Reason, Unverifiable, visible

TYP: Final = "aat+jwt"
DETAIL: Final = "attenuating_agent_token"
THUMBPRINT_URI: Final = "urn:ietf:params:oauth:jwk-thumbprint:sha-256:"
MAX_DEPTH: Final = 5
MAX_CHAIN_BYTES: Final = 256 << 10
MAX_LIFE_S: Final = 7 * 86_400
"""Of a root, and so of everything below it: a revoked token is over by itself after this."""
CLOCK_SKEW_S: Final = 5

ToolGrants = dict[str, dict[str, Constraint]]
"""Tool (``server/tool``) → argument → constraint; an argument that is not named is free."""


class _Detail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["attenuating_agent_token"]
    tools: Annotated[ToolGrants, msgspec.Meta(min_length=1)]


class _Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    iss: str
    iat: int
    exp: int
    jti: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    cnf: dict[Literal["jwk"], dict[str, str]]
    del_depth: int
    del_max_depth: int
    authorization_details: Annotated[list[_Detail], msgspec.Meta(min_length=1, max_length=1)]
    sub: str = ""
    aud: str = ""
    rid: str = ""
    par_hash: str = ""

    @property
    def tools(self) -> ToolGrants:
        return self.authorization_details[0].tools

    @property
    def holder(self) -> PublicKey:
        """The key that may use this token, or hand it on."""
        try:
            return PublicKey.from_jwk(self.cnf.get("jwk"))
        except Unverifiable as bad:
            raise _refuse(f"cnf: {bad.detail}") from None


class Authority(msgspec.Struct, frozen=True):
    """What a verified chain gives to the holder of its last key.

    ``tokens`` are the hashes of its tokens, root first: what is revoked, and what entries name. ``keys`` are the
    thumbprints of the keys that they name; the last one is ``holder``'s.
    """

    principal: str
    root: str
    tokens: tuple[str, ...]
    keys: tuple[str, ...]
    holder: PublicKey
    tools: ToolGrants
    max_depth: int
    expires_at: int

    def require(self, tool: str, arguments: JsonObject) -> None:
        """Nothing, if the last token allows *tool* with *arguments*; else :class:`Unverifiable`."""
        allowed = self.tools.get(tool)
        if allowed is None:
            raise _exceeded(f"{visible(tool)} was not delegated; delegated: {_some(sorted(self.tools))}")
        for name, constraint in allowed.items():
            if name not in arguments:
                raise _exceeded(f'{tool} was delegated with a constraint on "{visible(name)}", which is not given')
            if not constraints.satisfies(constraint, arguments[name]):
                raise _exceeded(
                    f'"{visible(name)}" of {tool} is not what was delegated: {constraints.told(constraint)}'
                )

    def require_holder(self, key: PublicKey) -> None:
        """A chain is of use to whoever holds its last key, and to nobody else."""
        if key != self.holder:
            raise _refuse("this chain ends at another key; only its holder can use it")


def audience(trust_domain: str) -> str:
    """Whom roots are made for: every gateway, sidecar and node of one trust domain."""
    return f"wimse://{trust_domain}/mesh"


def token_hash(token: str) -> str:
    """What names a token: base64url of the SHA-256 of its bytes, as ``par_hash`` has it."""
    return b64url(hashlib.sha256(token.encode("ascii")).digest())


def named(chain: str) -> tuple[str, ...]:
    """The hashes of what *chain* consists of, believed or not, for the record of a refusal."""
    return tuple(token_hash(token) for token in chain.split("~")[: MAX_DEPTH + 1] if token)


def grants(value: Mapping[str, Any]) -> ToolGrants:
    """Tools and constraints as JSON, read strictly, or :class:`Unverifiable`."""
    try:
        made = msgspec.convert(value, ToolGrants)
    except msgspec.ValidationError as bad:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"tools: {bad}") from None
    _require_sound(made)
    return made


def mint(
    *,
    trust_domain: str,
    principal: str,
    audience: str,
    holder: PublicKey,
    tools: ToolGrants,
    max_depth: int,
    now: int,
    expires_at: int,
    root: str,
    key: Signer,
) -> str:
    """A root for *holder*, signed by the trust domain's *key*."""
    claims = _Claims(
        iss=f"https://{trust_domain}",
        iat=now,
        exp=expires_at,
        jti=root,
        cnf={"jwk": dict(holder.jwk)},
        del_depth=0,
        del_max_depth=max_depth,
        authorization_details=[_Detail(DETAIL, tools)],
        sub=principal,
        aud=audience,
        rid=root,
    )
    _require_root(claims)
    return _seal(claims, key)


def derive(
    chain: str,
    *,
    holder: PublicKey,
    tools: ToolGrants,
    expires_at: int,
    now: int,
    token_id: str,
    key: Signer,
    max_depth: int | None = None,
) -> str:
    """*chain* with one more token, for *holder*, by whoever holds *key*. Refuses to make what nobody would accept."""
    parent_token = chain.rpartition("~")[2]
    parent = _claims(jws.peek(parent_token, TYP))
    claims = _Claims(
        iss=THUMBPRINT_URI + key.public.thumbprint,
        iat=now,
        exp=min(expires_at, parent.exp),
        jti=token_id,
        cnf={"jwk": dict(holder.jwk)},
        del_depth=parent.del_depth + 1,
        del_max_depth=parent.del_max_depth if max_depth is None else max_depth,
        authorization_details=[_Detail(DETAIL, tools)],
        par_hash=token_hash(parent_token),
    )
    _require_narrower(claims, parent, parent_token)
    made = f"{chain}~{_seal(claims, key)}"
    if len(made) > MAX_CHAIN_BYTES:
        raise _refuse(f"the chain would have more than {MAX_CHAIN_BYTES} bytes")
    return made


def hand_over(chain: str, to: PublicKey, *, now: int, token_id: str, key: Signer) -> str:
    """*chain* with the same authority for another key of its holder, who replaces *key*."""
    last = _claims(jws.peek(chain.rpartition("~")[2], TYP))
    return derive(chain, holder=to, tools=last.tools, expires_at=last.exp, now=now, token_id=token_id, key=key)


def ends(chain: str) -> tuple[PublicKey, ToolGrants]:
    """Whose *chain* seems to be, and what it seems to give, before anything of it is verified."""
    last = _claims(jws.peek(chain.rpartition("~")[2], TYP))
    return last.holder, last.tools


def open_chain(chain: str, *, issuer: PublicKey, trust_domain: str, audience: str, now: float) -> Authority:
    """What *chain* gives, once every link of it holds, or :class:`Unverifiable`.

    That the sender holds the last key, and that nothing of it was revoked, is for the caller to see.
    """
    if len(chain) > MAX_CHAIN_BYTES:
        raise _refuse(f"more than {MAX_CHAIN_BYTES} bytes")
    tokens = chain.split("~")
    if len(tokens) > MAX_DEPTH + 1:
        raise _refuse(f"{len(tokens)} tokens; a chain has at most {MAX_DEPTH + 1}")
    root = parent = _opened(tokens[0], issuer)
    if root.iss != f"https://{trust_domain}":
        raise _refuse("its root was issued by another trust domain")
    if root.aud != audience:
        raise _refuse("its root was made for another audience")
    _require_root(root)
    _require_in_time(root, now)
    keys = [root.holder]
    for before, token in itertools.pairwise(tokens):
        child = _opened(token, keys[-1])
        _require_narrower(child, parent, before)
        _require_in_time(child, now)
        keys.append(child.holder)
        parent = child
    return Authority(
        root.sub,
        root.rid,
        tuple(token_hash(token) for token in tokens),
        tuple(key.thumbprint for key in keys),
        keys[-1],
        parent.tools,
        parent.del_max_depth,
        parent.exp,
    )


def _seal(claims: _Claims, key: Signer) -> str:
    sealed = jws.seal(jcs(msgspec.to_builtins(claims)), TYP, key)
    if len(sealed) > jws.MAX_TOKEN_BYTES:
        raise _refuse(f"a token has at most {jws.MAX_TOKEN_BYTES} bytes")
    return sealed


def _opened(token: str, key: PublicKey) -> _Claims:
    try:
        return _claims(read_object(jws.open_sealed(token, TYP, key)))
    except Unverifiable as bad:
        raise _refuse(bad.detail) from None


def _claims(claims: JsonObject) -> _Claims:
    try:
        made = msgspec.convert(claims, _Claims)
    except msgspec.ValidationError as bad:
        raise _refuse(f"claims: {bad}") from None
    _require_sound(made.tools)
    return made


def _require_sound(tools: ToolGrants) -> None:
    size = sum(constraints.parts(one) for arguments in tools.values() for one in arguments.values())
    if size > constraints.MAX_PARTS:
        raise _refuse(f"{size} values and constraints in one token; the limit is {constraints.MAX_PARTS}")
    for tool, arguments in tools.items():
        for name, constraint in arguments.items():
            if not constraints.sound(constraint):
                raise _refuse(f'the constraint on "{visible(name)}" of {visible(tool)} says nothing, or too much')


def _require_root(claims: _Claims) -> None:
    if claims.del_depth != 0 or claims.par_hash:
        raise _refuse("the first token is not a root")
    if not (claims.sub and claims.aud and claims.rid):
        raise _refuse("a root names sub, aud and rid")
    if not 0 <= claims.del_max_depth <= MAX_DEPTH:
        raise _refuse(f"max_depth {claims.del_max_depth} (del_max_depth): expected 0 to {MAX_DEPTH}")
    if not 0 < claims.exp - claims.iat <= MAX_LIFE_S:
        raise _refuse(f"a root lives 1 to {MAX_LIFE_S} s, not {claims.exp - claims.iat}")


def _require_narrower(child: _Claims, parent: _Claims, parent_token: str) -> None:
    """Every way in which a child could hold more than its parent."""
    holder = parent.holder
    if child.iss != THUMBPRINT_URI + holder.thumbprint:
        raise _refuse("a token is issued by somebody else than the holder of the one before")
    if child.par_hash != token_hash(parent_token):
        raise _refuse("a token was made from another parent")
    if child.sub or child.aud or child.rid:
        raise _refuse("sub, aud and rid stand in the root only")
    if child.del_depth != parent.del_depth + 1:
        raise _refuse(f"del_depth {child.del_depth} after {parent.del_depth}")
    if child.del_depth > parent.del_max_depth:
        raise _refuse(
            f"it may be handed on {parent.del_max_depth} times in all (max_depth), and this would be number "
            f"{child.del_depth}"
        )
    if child.del_max_depth > parent.del_max_depth:
        raise _refuse(f"max_depth (del_max_depth) rises from {parent.del_max_depth} to {child.del_max_depth}")
    if child.exp > parent.exp:
        raise _refuse("a token outlives the one before")
    if child.exp <= child.iat:
        raise _refuse(f"a token ends after it begins; this one would live {child.exp - child.iat} s")
    if child.iat < parent.iat - CLOCK_SKEW_S:
        raise _refuse("a token is older than the one before")
    for tool, arguments in child.tools.items():
        _require_tool_narrower(tool, arguments, parent.tools)


def _require_tool_narrower(tool: str, child: Mapping[str, Constraint], known: ToolGrants) -> None:
    parent = known.get(tool)
    if parent is None:
        raise _refuse(f"{visible(tool)} is not among the tools of the token before: {_some(sorted(known))}")
    for name, constraint in parent.items():
        kept = child.get(name)
        if kept is None:
            kept_before = f"{visible(name)} {constraints.told(constraint)}"
            raise _refuse(f"a constraint on {visible(tool)} is dropped; the token before has: {kept_before}")
        if not constraints.narrows(kept, constraint):
            inside = f"{constraints.told(kept)} is not known to lie inside: {constraints.told(constraint)}"
            raise _refuse(f"{visible(name)} of {visible(tool)} {inside}")


def _require_in_time(claims: _Claims, now: float) -> None:
    if now >= claims.exp:
        raise _refuse(f"its {_link(claims)} ended {now - claims.exp:.0f} s ago, at {_moment(claims.exp)}")
    if now < claims.iat - CLOCK_SKEW_S:
        raise _refuse(f"its {_link(claims)} begins at {_moment(claims.iat)}; do the clocks agree?")


def _link(claims: _Claims) -> str:
    return "root" if claims.del_depth == 0 else f"token at depth {claims.del_depth}"


def _moment(seconds: int) -> str:
    if not 0 <= seconds < 2**36:
        return f"the second {seconds}"
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def narrowest(tools: Sequence[str]) -> ToolGrants:
    """*tools* without any constraint."""
    return {tool: {} for tool in tools}


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.DELEGATION_INVALID, f"delegation: {detail}")


def _exceeded(detail: str) -> Unverifiable:
    return Unverifiable(Reason.AUTHORITY_EXCEEDED, detail)

"""One policy bundle, as the gateway signed it, and a recorded decision made again with it."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from . import arguments, cedar, ed25519, jcs, text
from .cedar import Entity, Request, Uid
from .notes import Fault


class Undecidable(Exception):
    """What is recorded is not enough to make a decision again; the text says what is missing."""


class Bundle:
    """Policies, tools and servers. ``digest`` is the name that decisions give it."""

    def __init__(self, data: bytes, public: bytes) -> None:
        token, newline, body = data.partition(b"\n")
        parts = token.decode("ascii").split(".")
        if not newline or len(parts) != 3:
            raise Fault("a bundle is not a seal and a content")
        header, statement = (jcs.read(_unb64(part)) for part in parts[:2])
        if header != {"alg": "EdDSA", "typ": "licet-bundle+jwt"}:
            raise Fault(f"a bundle is sealed with another algorithm or type: {header!r}")
        if not ed25519.verifies(public, (parts[0] + "." + parts[1]).encode("ascii"), _unb64(parts[2])):
            raise Fault("a bundle is not signed by the gateway's key")
        self.digest = hashlib.sha256(body).hexdigest()
        if statement["digest"] != self.digest:
            raise Fault("the content of a bundle is not what was signed")
        content = jcs.read(body)
        self._tools = content["inventory"]["servers"]
        known = dict(content["sources"].get("expected", {}).get("servers", {}))
        known.update(self._tools)
        self._entities = _entities(content["sources"]["schema"], known)
        self.policies: dict[str, text.Policy] = {}
        known_ids: set[str] = set()
        for _, source in sorted(content["sources"]["policies"].items()):
            for policy in text.policies(source):
                name = policy.annotations["id"]
                if name in known_ids:
                    raise Fault(f"two policies are called {name}")
                known_ids.add(name)
                if policy.annotations.get("mode") != "shadow":
                    self.policies[name] = policy

    def action_digest(self, deed: Any, salt: bytes = b"") -> str:
        """What an approval is bound to: who asks for what, exactly, by whose authority. *salt*: of a personal one."""
        name = f"{deed['server']}/{deed['tool']}"
        tool = self._tools.get(deed["server"], {}).get("tools", {}).get(deed["tool"])
        if tool is None:
            raise Undecidable(f"the bundle does not know {name}")
        return jcs.digest(
            {
                "action": name,
                "agent": deed["agent"],
                "arguments": deed["arguments"],
                "authority": deed.get("authority", []),
                "principal": deed["principal"],
                "resource": f'Server::"{deed["server"]}"',
                **({"salt": salt.hex()} if salt else {}),
                "server": deed["server"],
                "tool_schema": tool["digest"],
            }
        )

    def decide(self, deed: Any, judgement: Any, approved: bool) -> tuple[str, list[str]]:
        """(permit, hold or refuse; the policies that decided) from the recorded facts."""
        tool = self._tools.get(deed["server"], {}).get("tools", {}).get(deed["tool"])
        if tool is None:
            raise Undecidable(f"the bundle does not know {deed['server']}/{deed['tool']}")
        agent = judgement["facts"]["agent"]
        principal = Uid("Agent", agent["name"])
        entities = dict(self._entities)
        entities[principal] = Entity(
            {
                "owner": Uid("Human", agent["owner"]),
                "purpose": agent["purpose"],
                "environment": agent["environment"],
                "attested": agent["attested"],
            },
            [Uid("Team", team) for team in agent["teams"]],
        )
        context = cedar.from_json(judgement["facts"]["context"])
        context["args"] = arguments.projected(arguments.shape_of(tool["input_schema"]), deed["arguments"])
        action = Uid("Action", f"{deed['server']}/{deed['tool']}")
        request = Request(principal, action, Uid("Server", deed["server"]), context, entities)
        return self._find(request, context, approved)

    def asks(self, deed: Any, judgement: Any) -> list[str]:
        """The ``@approval`` of each policy that asks people for this, as it stood when it ran."""
        outcome, policies = self.decide(deed, judgement, approved=False)
        return [self.policies[name].annotations["approval"] for name in policies] if outcome == "hold" else []

    def _find(self, request: Request, context: Any, approved: bool) -> tuple[str, list[str]]:
        """Without an approval; if that is no permit, as if a person had approved: then it waits for one."""
        context["approved"] = approved
        allowed, decided, failed = cedar.answer(self.policies, request)
        if allowed and not failed:
            return "permit", decided
        if not approved:
            context["approved"] = True
            would, by, failing = cedar.answer(self.policies, request)
            if would and not failing:
                asking = [p for p in decided + by if "approval" in self.policies[p].annotations]
                return ("hold", sorted(set(asking))) if asking else ("refuse", decided)
        return "refuse", failed or decided


def _entities(schema: Any, servers: Any) -> dict[Uid, Entity]:
    """The actions with the groups that they are in, and the servers with their zones."""
    found = {}
    for action, groups in text.action_groups(schema).items():
        found[Uid("Action", action)] = Entity(parents=[Uid("Action", group) for group in groups])
    for server in servers.values():
        for tool in server["tools"].values():
            manifest = tool["manifest"]
            groups = ["server/" + server["name"], manifest["category"], manifest["effect"], *list(manifest["groups"])]
            groups += ["privileged"] if manifest["privileged"] else []
            name = Uid("Action", f"{server['name']}/{tool['name']}")
            found[name] = Entity(parents=[Uid("Action", group) for group in groups])
        labels = cedar.from_json(list(server["labels"]))
        found[Uid("Server", server["name"])] = Entity({"labels": labels}, [Uid("Zone", server["zone"])])
    return found


def _unb64(part: Any) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))

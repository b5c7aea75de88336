"""Passkeys in a real Chromium with its virtual authenticator: made, signed in with, and votes signed by them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from playwright.async_api import Browser, expect

from gateway.api.access import Services
from gateway.state import Passkey as Kept
from gateway.state import Person as Known
from tests.authenticator import PRESENT, Authenticator
from tests.console.conftest import PHONE, Screen, screen
from tests.console.test_door import get, post, signed_in
from tests.mesh import Mesh
from tests.stories.test_agents_cli import fine
from tests.stories.test_approvals import PAY, done, edit, files, held, no, state, steps
from tests.stories.test_approvals import mesh as mesh
from tests.stories.test_asking import settled
from tests.verifier.test_packs import bare, pack_of
from trust.identity.keys import b64url, unb64url
from trust.ledger import entries
from trust.ledger.entries import AnyEntry, Approval, Intent, Passkey, Person, Stamp
from trust.ledger.signed import SignedVotes
from trust.reasons import Unverifiable
from trust.verifier.approvals import Approvals

pytestmark = pytest.mark.slow


class Told:
    """An entry as the bare verifier reads it."""

    def __init__(self, index: int, stamp: Stamp, entry: AnyEntry) -> None:
        whole = json.loads(entries.stamped(stamp, entries.encode(entry)))
        self.origin, self.index, self.stamp, self.body = stamp.origin, index, whole["stamp"], whole["entry"]
        self.kind = self.body["kind"]
        self.when = (self.stamp.get("turn", 0), index)


SIGNED = {"bank.cedar": files()["bank.cedar"].replace("of=finance ttl=1h", "of=finance ttl=1h step_up")}


async def with_authenticator(desk: Screen, verifies: bool = True) -> None:
    """Gives the page's browser a virtual authenticator that knows its person."""
    session = await desk.context.new_cdp_session(desk.page)
    await session.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True,
        "isUserVerified": verifies, "automaticPresenceSimulation": True,
    }  # fmt: skip
    await session.send("WebAuthn.addVirtualAuthenticator", {"options": options})


def keys(mesh: Mesh, who: str) -> list[Kept]:
    return services(mesh).passkeys.of(who)


def services(mesh: Mesh) -> Services:
    return mesh.gateway._console._services


def person(mesh: Mesh, who: str) -> Known:
    return services(mesh).people.identify(mesh.tokens[who])


async def give(mesh: Mesh, who: str, **more: int) -> Authenticator:
    """A passkey of *who*, made by an authenticator in software."""
    found, made = services(mesh).passkeys, Authenticator(mesh.gateway.console, **more)
    await found.add(person(mesh, who), "passkey", "software", made.create(found.to_add(person(mesh, who))))
    return made


async def signing(mesh: Mesh) -> dict[str, Authenticator]:
    """Passkeys for everybody of finance, and policies that want signatures."""
    made = {who: await give(mesh, who) for who in ("fay", "finn", "flo")}
    assert (await mesh.activate({**files(), **SIGNED})).status == 200
    await mesh.ready()
    return made


def yes(mesh: Mesh, approval: str, who: str, key: Authenticator) -> dict[str, str]:
    asked = services(mesh).passkeys.to_vote(person(mesh, who), mesh.gateway.desk.get(approval))
    answer = json.loads(key.get(asked))
    response = answer["response"]
    return {
        "credential": answer["id"],
        "client_data": response["clientDataJSON"],
        "authenticator_data": response["authenticatorData"],
        "signature": response["signature"],
    }


async def test_made_signed_in_with_and_approved_with(mesh: Mesh, browser: Browser) -> None:
    desk = await screen(mesh, browser, "fay")
    await with_authenticator(desk)
    await desk.go("/console/you")
    await desk.page.get_by_label("Name").fill("laptop")
    await desk.page.get_by_role("button", name="Add a passkey").click()
    await expect(desk.page.get_by_role("table")).to_contain_text("laptop")
    assert await desk.violations("you") == []
    await expect(desk.page.locator("main")).to_contain_text("sign in with one of them")
    await desk.page.get_by_role("button", name="Sign out").click()
    await desk.go("/console/you")
    assert await desk.violations("sign-in") == []
    await desk.page.get_by_role("button", name="With a passkey").click()
    await desk.page.wait_for_url("**/console/you")
    await expect(desk.page.locator("main")).to_contain_text("by a passkey")
    await give(mesh, "finn")
    assert (await mesh.activate({**files(), **SIGNED})).status == 200
    await mesh.ready()
    approval = await held(mesh)
    await desk.go("/console/queue")
    card = desk.page.locator(f"#{approval}")
    await expect(card).to_contain_text("signed with your passkey")
    assert await desk.violations("card") == []
    await card.get_by_label("Reason").first.fill("rent")
    await card.get_by_role("button", name="Approve").click()
    await expect(desk.page.get_by_role("status").first).to_contain_text("approved")
    assert (await mesh.claim(approval)).status == 200
    assert done(mesh) == [["refund", PAY]]
    vote = next(e for e in mesh.entries("gateway") if isinstance(e, Approval) and e.event == "vote")
    assert vote.signed is not None
    assert vote.signed.credential == keys(mesh, "fay")[0].credential
    assert keys(mesh, "fay")[0].count > 1, "this authenticator counts"
    assert desk.complaints == []


async def test_by_keys_and_a_no_needs_no_passkey(mesh: Mesh, browser: Browser) -> None:
    await signing(mesh)
    approval = await held(mesh)
    desk = await screen(mesh, browser, "fay")
    await desk.go("/console/queue")
    await desk.page.locator(f"#{approval}").focus()
    for key in ("d", "Enter"):
        await desk.page.keyboard.press(key)
    await expect(desk.page.get_by_role("status").first).to_contain_text("denied")
    assert state(mesh, approval) == "denied"


async def test_without_a_passkey_that_fits_nothing_is_sent(mesh: Mesh, browser: Browser) -> None:
    await signing(mesh)
    approval = await held(mesh)
    desk, phone = await screen(mesh, browser, "fay"), await screen(mesh, browser, "ada", viewport=PHONE)
    await with_authenticator(desk)
    await desk.go("/console/queue")
    await desk.page.locator(f"#{approval}").get_by_role("button", name="Approve").click()
    await expect(desk.page.get_by_role("alert").first).to_contain_text("nothing was sent", timeout=70_000)
    assert state(mesh, approval) == "pending"
    await phone.go("/console/you")
    assert await phone.violations("phone") == []
    mute = await screen(mesh, browser, "fay", javascript=False)
    await mute.go("/console/queue")
    await mute.page.locator(f"#{approval}").get_by_role("button", name="Approve").click()
    await expect(mute.page.locator("main")).to_contain_text("signed with a passkey")
    assert "vote" not in steps(mesh, approval)


async def test_a_vote_is_signed_for_exactly_this_by_exactly_who_gives_it(mesh: Mesh) -> None:
    made = await signing(mesh)
    first, second = await held(mesh), await held(mesh, run="another")
    no(await mesh.vote(first, who="fay"), "not_yours", "signed with a passkey")
    other = yes(mesh, second, "fay", made["fay"])
    no(await mesh.vote(first, who="fay", signed=other), "unauthenticated", "challenge")
    theirs = yes(mesh, first, "finn", made["finn"])
    no(await mesh.vote(first, who="fay", signed=theirs), "not_yours", "no passkey of fay")
    stranger = {**yes(mesh, first, "fay", Authenticator(mesh.gateway.console)), "credential": theirs["credential"]}
    no(await mesh.vote(first, who="finn", signed=stranger), "unauthenticated")
    seen = Authenticator(mesh.gateway.console, flags=PRESENT, credential=made["fay"].credential)
    seen.key = made["fay"].key
    no(await mesh.vote(first, who="fay", signed=yes(mesh, first, "fay", seen)), "unauthenticated", "verification")
    before = yes(mesh, first, "fay", made["fay"])
    assert (await edit(mesh, first, "flo", {**PAY, "cents": 5})).status == 200
    no(await mesh.vote(first, who="fay", signed=before), "unauthenticated", "challenge")
    assert "vote" not in steps(mesh, first)
    no(await mesh.vote(second, who="fay", signed=other, scope={"kind": "uses", "uses": 5}), "approval_mismatch", "once")
    assert (await mesh.vote(second, who="fay", signed=other)).json["state"] == "approved"
    third = await held(mesh, run="third")
    no(await mesh.vote(third, who="fay", signed=other), "unauthenticated", "challenge")


async def test_outsiders_check_each_signature_again(mesh: Mesh, tmp_path: Path) -> None:
    made = await signing(mesh)
    approval = await held(mesh, run="r1")
    signed = yes(mesh, approval, "fay", made["fay"])
    assert (await mesh.vote(approval, who="fay", signed=signed)).json["state"] == "approved"
    assert (await mesh.claim(approval)).status == 200
    await settled(mesh)
    path = tmp_path / "evidence.zip"
    path.write_bytes(await pack_of(mesh))
    code, text = bare(path)
    assert code == 0, text
    assert "approved by fay" in text
    assert "1 votes are signed by passkeys" in await fine(mesh, "audit", "verify", str(mesh.gateway.ledger.root))
    lines = [line.entry for _, line in mesh.gateway.ledger.lines()]

    def told(change: dict[str, object]) -> list[str]:
        followed, faults = SignedVotes(), []
        for entry in lines:
            if isinstance(entry, Approval) and entry.event == "vote":
                entry = msgspec.structs.replace(entry, **change)
            faults.append(followed.read(entry))
        return [fault for fault in faults if fault]

    vote = next(e for e in lines if isinstance(e, Approval) and e.event == "vote")
    assert told({}) == []
    assert "without the signature" in told({"signed": None})[0]
    assert "not theirs" in told({"by": "finn"})[0]
    forged = msgspec.structs.replace(vote.signed, signature=yes(mesh, approval, "fay", made["finn"])["signature"])
    assert "not signed for what was asked" in told({"signed": forged})[0]
    lines = [e for e in lines if getattr(e, "credential", "") != vote.signed.credential]
    assert "not theirs" in told({})[0]


async def test_a_link_gives_nobody_another_passkey(mesh: Mesh, browser: Browser) -> None:
    await give(mesh, "fay")
    found, fay, finn = services(mesh).passkeys, person(mesh, "fay"), person(mesh, "finn")
    second, credential = Authenticator(mesh.gateway.console), keys(mesh, "fay")[0].credential
    for how in ("link", "oidc"):
        with pytest.raises(Unverifiable, match="sign in with it"):
            await found.add(fay, how, "", second.create(found.to_add(fay)))
        with pytest.raises(Unverifiable, match="sign in with it"):
            await found.remove("fay", credential, fay, how)
    desk = await screen(mesh, browser, "fay")
    await desk.go("/console/you")
    assert await desk.page.get_by_role("button", name="Add a passkey").count() == 0
    with pytest.raises(Unverifiable, match="no such passkey"):
        await found.remove("finn", credential, finn, "passkey")
    with pytest.raises(Unverifiable, match="did not ask"):
        await found.add(finn, "link", "", second.create(found.to_add(fay)))
    assert "software" in await fine(mesh, "people", "passkeys", "fay")
    await fine(mesh, "people", "passkeys", "fay", "--remove", credential)
    assert keys(mesh, "fay") == []
    await found.add(fay, "link", "", second.create(found.to_add(fay)))
    assert [key.name for key in keys(mesh, "fay")] == ["passkey"]


async def test_signing_in_is_answered_once_here_and_in_time(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    key = await give(mesh, "fay")
    found = services(mesh).passkeys
    answer = key.get(found.to_sign_in())
    assert (await found.sign_in(answer))[0].name == "fay"
    with pytest.raises(Unverifiable, match="used before"):
        await found.sign_in(answer)
    for _ in range(50):
        with pytest.raises(Unverifiable):
            await found.sign_in(Authenticator(mesh.gateway.console).get(found.to_sign_in()))
    assert len(found._used._seen) == 2, "junk is not remembered: this sign-in, and that the passkey was made"
    vote = json.dumps({"challenge": b64url(bytes(56)), "rpId": found.party})
    with pytest.raises(Unverifiable, match="did not ask"):
        await found.sign_in(key.get(vote))
    with pytest.raises(Unverifiable, match="nobody here"):
        await found.sign_in(Authenticator(mesh.gateway.console).get(found.to_sign_in()))
    fake = Authenticator("https://evil.example", credential=key.credential)
    fake.key = key.key
    with pytest.raises(Unverifiable, match="origin"):
        await found.sign_in(fake.get(found.to_sign_in()))
    monkeypatch.setattr("gateway.passkeys.CHALLENGE_S", 0)
    with pytest.raises(Unverifiable, match="old"):
        await found.sign_in(key.get(found.to_sign_in()))


async def test_policies_that_nobody_could_sign_for_are_refused(mesh: Mesh) -> None:
    answer = await mesh.activate({**files(), **SIGNED})
    assert answer.status == 422
    assert "0 of them have a passkey" in answer.json["rejected"]
    await give(mesh, "fay")
    assert (await mesh.activate({**files(), **SIGNED})).status == 200


# What an attack found


async def test_a_yes_that_nobody_signed_is_not_used_where_policy_asks_for_signatures_by_then(
    mesh: Mesh, tmp_path: Path
) -> None:
    keys_of = {who: await give(mesh, who) for who in ("fay", "finn", "flo")}
    approval = await held(mesh)
    assert (await mesh.vote(approval, who="fay")).json["state"] == "approved"
    covered = await held(mesh, args={**PAY, "cents": 1}, run="r2")
    await mesh.vote(covered, who="fay", scope={"kind": "tool", "minutes": 9})
    assert (await mesh.claim(covered)).status == 200
    assert (await mesh.activate({**files(), **SIGNED})).status == 200
    await mesh.ready()
    no(await mesh.claim(approval), "approval_mismatch", "signatures")
    asked = await mesh.call("bank/refund", {**PAY, "cents": 2}, run="r2")
    assert asked.status == 202, "the scope of before covers nothing that is signed for"
    assert done(mesh) == [["refund", {**PAY, "cents": 1}]]
    assert state(mesh, approval) == "approved", "it stays unspent"
    # Who asks again is asked about anew, and what was tried in vain is no fault of the evidence.
    again = await held(mesh)
    assert again != approval
    assert state(mesh, approval) == "cancelled"
    signed = yes(mesh, again, "finn", keys_of["finn"])
    assert (await mesh.vote(again, who="finn", signed=signed)).json["state"] == "approved"
    assert (await mesh.claim(again)).status == 200
    await settled(mesh)
    path = tmp_path / "evidence.zip"
    path.write_bytes(await pack_of(mesh, mesh.gateway.desk.get(again).run))
    code, text = bare(path)
    assert code == 0, text
    assert "was refused before it did" in text


async def test_nobody_signs_in_the_seat_of_somebody_else(mesh: Mesh) -> None:
    made = {**await signing(mesh), "gus": await give(mesh, "gus")}
    day = 86_400 * 1_000_000
    now = mesh.gateway.desk._clock.wall_us()
    named = {"deputy": "gus", "since_us": now - day, "until_us": now + day}
    assert (await mesh.admin("POST", "/v1/deputies", named, "fay")).status == 201
    approval = await held(mesh)
    signed = yes(mesh, approval, "gus", made["gus"])
    no(await mesh.vote(approval, who="gus", signed=signed), "not_yours", "nobody signs for")
    assert (await mesh.vote(approval, "deny", who="gus")).json["state"] == "denied", "a no needs no signature"
    plain = await held(mesh, "pay")
    assert (await mesh.vote(plain, who="gus")).json["votes"][0]["seat"] == "fay", "without signatures a deputy may"


async def test_what_a_lost_passkey_opened_ends_with_it(mesh: Mesh) -> None:
    key, found = await give(mesh, "fay"), services(mesh).passkeys
    page = (await post(mesh, "/console/sign-in/passkey", urlencode({"passkey": key.get(found.to_sign_in())}))).headers
    stolen = page["Set-Cookie"].partition(";")[0]
    linked, _ = await signed_in(mesh, "fay")
    assert [(await get(mesh, "/console/you", one)).status for one in (stolen, linked)] == [200, 200]
    await fine(mesh, "people", "passkeys", "fay", "--remove", keys(mesh, "fay")[0].credential)
    assert [(await get(mesh, "/console/you", one)).status for one in (stolen, linked)] == [303, 200]
    assert "1 visits" in await fine(mesh, "people", "sign-out", "fay")
    assert (await get(mesh, "/console/you", linked)).status == 303


async def test_an_operator_does_not_take_away_their_own_passkey_by_token(mesh: Mesh) -> None:
    await give(mesh, "operator")
    credential = keys(mesh, "operator")[0].credential
    asked = {"credential": credential}
    no(await mesh.admin("POST", "/v1/people/operator/passkeys/remove", asked), "not_yours", "another operator")
    assert keys(mesh, "operator")


async def test_names_are_printed_harmlessly(mesh: Mesh) -> None:
    found, fay = services(mesh).passkeys, person(mesh, "fay")
    made = Authenticator(mesh.gateway.console).create(found.to_add(fay))
    with pytest.raises(Unverifiable, match="printable"):
        await found.add(fay, "link", "\x1b[2J\x1b]0;x", made)
    assert keys(mesh, "fay") == []


async def test_evidence_tells_of_nobody_else(mesh: Mesh) -> None:
    made = await signing(mesh)
    await give(mesh, "gus")
    approval = await held(mesh, run="r1")
    await mesh.vote(approval, who="fay", signed=yes(mesh, approval, "fay", made["fay"]))
    assert (await mesh.claim(approval)).status == 200
    await settled(mesh)
    with zipfile.ZipFile(io.BytesIO(await pack_of(mesh))) as pack:
        told = [json.loads(pack.read(name))["entry"] for name in pack.namelist() if name.startswith("entries/")]
    assert {one["person"] for one in told if one["kind"] in ("person", "passkey", "deputy")} == {"fay"}


async def test_each_forged_story_is_a_fault_for_both_who_check(mesh: Mesh) -> None:
    """By a gateway that writes what it likes: entries as they are, and one thing in them changed."""
    made = await signing(mesh)
    approval = await held(mesh, run="r1")
    await mesh.vote(approval, who="fay", signed=yes(mesh, approval, "fay", made["fay"]))
    assert (await mesh.claim(approval)).status == 200
    lines = [(index, line) for index, line in mesh.gateway.ledger.lines()]
    intent = next(e for e in mesh.entries() if isinstance(e, Intent) and e.approval)
    asking = ["of=finance ttl=1h step_up"]

    def both(change: Callable[[AnyEntry], AnyEntry | None]) -> tuple[bool, bool]:
        """Whether each of the two finds it good."""
        kept = [(i, line.stamp, changed) for i, line in lines if (changed := change(line.entry)) is not None]
        followed = SignedVotes()
        good = not [fault for _, _, entry in kept if (fault := followed.read(entry))]
        found = [Told(i, stamp, entry) for i, stamp, entry in kept]
        try:
            Approvals(found).require(Told(0, lines[0][1].stamp, intent), asking)
        except Exception:  # whatever it meets, a pack reports it as a fault
            return good, False
        return good, True

    def step(event: str, **more: Any) -> Callable[[AnyEntry], AnyEntry | None]:
        def change(entry: AnyEntry) -> AnyEntry | None:
            fits = isinstance(entry, Approval) and entry.event == event
            return msgspec.structs.replace(entry, **more) if fits else entry

        return change

    def without(fits: Callable[[Any], bool]) -> Callable[[AnyEntry], AnyEntry | None]:
        return lambda entry: None if fits(entry) else entry

    vote = next(line.entry for _, line in lines if isinstance(line.entry, Approval) and line.entry.event == "vote")
    asked = next(line.entry for _, line in lines if isinstance(line.entry, Approval) and line.entry.request)
    assert both(lambda entry: entry) == (True, True)
    assert both(step("vote", signed=None)) == (False, False)
    assert both(step("vote", by="finn")) == (False, False)
    assert both(step("vote", seat="finn")) == (False, False)
    assert both(without(lambda e: isinstance(e, Approval) and e.event == "vote")) == (False, False)
    assert both(without(lambda e: isinstance(e, Passkey) and e.person == "fay")) == (False, False)
    assert both(without(lambda e: isinstance(e, Approval) and e.request is not None)) == (False, False)
    weak = {**asked.request, "terms": {**asked.request["terms"], "step_up": False}}
    assert both(step("requested", request=weak, presented=asked.presented)) == (True, True), (
        "it was signed all the same"
    )
    both_changed = step("requested", request=weak)
    assert both(lambda e: step("vote", signed=None)(both_changed(e) or e))[1] is False, "policy says what is signed"
    assert both(step("requested", request={**asked.request, "terms": {}}))[0] is False
    assert both(step("requested", under="apr_other")) == (False, False)
    for part in ("client_data", "authenticator_data", "signature"):
        longer = b64url(unb64url(getattr(vote.signed, part)) + b"x")
        assert both(step("vote", signed=msgspec.structs.replace(vote.signed, **{part: longer}))) == (False, False)
    gone = Person("removed", "fay", "operator")
    assert both(lambda entry: gone if isinstance(entry, Passkey) and entry.person == "flo" else entry) == (False, False)

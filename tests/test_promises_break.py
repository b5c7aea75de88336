"""Each promise broken on purpose: in a copy of the house one line is changed, and the promise's test must fail.

Run by `make soak`. A test that still passes when its promise is broken proves nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mesh import REPOSITORY

pytestmark = pytest.mark.soak

STORY = "tests/stories/test_promises.py::"
ROUTING = "tests/stories/test_routing.py::"
INSTANCES = "tests/stories/test_instances.py::"
TENANTS = "tests/attacks/test_tenants.py::"
EVIDENCE = "tests/stories/test_gpus.py::"
FORGETTING = "tests/trust/test_forgetting.py::"
FORGOTTEN = "tests/stories/test_forgetting.py::"
BREAKS = {
    "7 a log keeps to itself what it says": (
        "trust/ledger/mirror.py", "        if by_writer and end > max(self.known.size, self._lacks):\n", "        if False:\n",
        FORGETTING + "test_nobody_keeps_to_himself_what_nobody_has_seen",
    ),
    "7 a writer has copies put aside again and again": (
        "gateway/witness.py", "self._records.shared and self._clock.wall_us() - known.at_us < JUST_NOW_US", "False",
        "tests/stories/test_replicas.py::test_a_writer_cannot_have_a_copy_put_aside_that_is_only_a_moment_behind",
    ),
    "7 a writer says that another log was pruned": (
        "trust/ledger/mirror.py", "isinstance(line.entry, entries.Pruned) and kind != \"gateway\" and", "False and",
        FORGETTING + "test_no_writer_says_that_another_log_was_pruned",
    ),
    "7 two keys are met for one log": (
        "gateway/witness.py", "                known = self._records.store.get(LogRecord, origin)\n                if known is None:\n                    await", "                if known is None:\n                    await",
        "tests/stories/test_replicas.py::test_two_keys_for_one_log_meet_one_gateway_each",
    ),
    "7 a log that began anew is written over its former copy": (
        "gateway/witness.py", "            if not self._is_of(origin, known):\n", "            if False:\n",
        "tests/stories/test_replicas.py::test_a_gateway_that_was_away_while_a_log_began_anew_keeps_the_former_copy_aside",
    ),
    "7 hashes of more than was pruned are taken": (
        "trust/ledger/mirror.py", "        if end > below:\n", "        if False:\n",
        FORGETTING + "test_hashes_are_enough_where_a_person_said_so",
    ),
    "7 what all know of a quiet log stays behind": (
        "gateway/witness.py", " or known is None or known.size < sealed.size:\n", ":\n",
        "tests/stories/test_replicas.py::test_what_all_know_of_a_log_catches_up_when_it_is_quiet",
    ),
    "7 one log that cannot be copied hides others": (
        "gateway/peers.py", "        except (Unverifiable, msgspec.DecodeError, OSError) as bad:\n", "        except ZeroDivisionError as bad:\n",
        "tests/stories/test_replicas.py::test_one_log_that_cannot_be_copied_hides_no_other",
    ),
    "7 entries go while the gateway is away": (
        "sidecar/forgetting.py", "        if self._shipper.unwitnessed_s() > WITNESSED_WITHIN_S:\n", "        if False:\n",
        FORGOTTEN + "test_nothing_goes_while_the_gateway_is_away",
    ),
    "7 hashes are kept that are not of the entries": (
        "sidecar/forgetting.py", "            await asyncio.to_thread(require_hashes, root, first)\n", "",
        FORGOTTEN + "test_a_tile_that_a_power_failure_emptied_stops_it",
    ),
    "7 full tiles are not durable when they are vouched for": (
        "trust/ledger/sealer.py", "        self._tiles.flush()\n", "",
        FORGETTING + "test_a_tile_that_is_full_is_durable_before_anything_vouches_for_it",
    ),
    "7 a hole that nobody tells of holds": (
        "trust/ledger/verify.py", "    if report.pruned > report.said_pruned and not report.copy:\n", "    if False:\n",
        FORGETTING + "test_a_hole_that_no_entry_tells_of_is_a_fault",
    ),
    "7 what cannot be read any more is still found": (
        "gateway/index.py", "        if first > self._firsts.get(source.origin, 0):\n", "        if False:\n",
        "tests/trust/test_pruning.py::test_the_index_forgets_what_its_copy_has_not_any_more",
    ),
    "7 a writer makes a witness forget": (
        "trust/ledger/mirror.py", "        if self.size > max(self._pruned, first_kept(self._root)):\n", "        if False:\n",
        FORGETTING + "test_nobody_makes_a_witness_forget",
    ),
    "7 a mark that is too high removes frames": (
        "trust/ledger/log.py", "    if pruned > sealed.size:\n", "    if False:\n",
        FORGETTING + "test_a_mark_that_is_none_removes_nothing",
    ),
    "7 what a crash left of a pruned log stays": (
        "trust/ledger/log.py", "    segments.forget(pruned)  # what a crash while it was pruned has left\n", "",
        FORGETTING + "test_a_crash_while_it_forgets_loses_nothing_else",
    ),
    "7 frames that are missing are never missed": (
        "trust/ledger/verify.py", "            if found[0] > max(self.expected, self._pruned):\n", "            if False:\n",
        FORGETTING + "test_segments_are_missed_unless_it_says_that_they_were_pruned",
    ),
    "7 a copy that was damaged is taken for a fork": (
        "trust/ledger/mirror.py", "        if not self._is_whole:", "        if False:",
        FORGETTING + "test_a_copy_that_seems_whole_and_is_not_is_no_fork",
    ),
    "7 after a crash a copy begins anew though its writer has only hashes": (
        "trust/ledger/mirror.py", "resumed or whole_tiles(root, sealed.size)", "resumed or whole_tiles(root, 0)",
        FORGETTING + "test_a_copy_whose_last_tiles_a_crash_took_goes_on_where_it_is_whole",
    ),
    "7 what the gateway has not is forgotten": (
        "sidecar/forgetting.py", "first_to_keep, root, self._shipper.cosigned, before_us", "first_to_keep, root, self._ledger.size, before_us",
        FORGOTTEN + "test_nothing_goes_that_the_gateway_has_not",
    ),
    "7 which bundle was the newest is forgotten": (
        "sidecar/forgetting.py", "            await self._keep()\n", "",
        FORGOTTEN + "test_a_sidecar_and_a_node_forget_and_go_on",
    ),
    "7 a writer's hashes come before another gateway's entries": (
        "gateway/witness.py", "(shipment.pruned and not known.wrong and comes_from_there)", "False",
        FORGOTTEN + "test_from_whom_a_copy_comes",
    ),
    "7 a hole has no reason": (
        "gateway/witness.py", "        if mirror.newly_pruned:\n", "        if False:\n",
        FORGOTTEN + "test_a_gateway_that_lost_its_copy_gets_hashes_and_says_so",
    ),
    "7 large arguments that are needed again go": (
        "edge/blobs.py", "            os.utime(path)  # it is needed from now on\n", "            path.stat()\n",
        FORGOTTEN + "test_blobs_go_when_nobody_has_added_them_for_so_long",
    ),
    "7 gateways do not ship what they pruned": (
        "trust/ledger/shipment.py", "    if first < begin:\n", "    if False:\n",
        "tests/stories/test_replicas.py::test_a_gateway_that_begins_late_copies_what_others_have_pruned",
    ),
    "7 a gateway takes another key than it had": (
        "gateway/app.py", "    if own.exists() and SecretKey.load(own).public != key.public:\n", "    if False:\n",
        "tests/stories/test_replicas.py::test_a_gateway_that_was_alone_keeps_its_key",
    ),
    "7 who ends does not finish what is in hand": (
        "edge/run.py", "    await _drained(part, stopping)\n", "",
        "tests/edge/test_run.py::test_what_is_in_hand_is_finished_first",
    ),
    "7 a node that ends takes something new on": (
        "sidecar/node/app.py", "        if self._leaving:\n", "        if False:\n",
        "tests/stories/test_draining.py::test_what_runs_ends_well_and_nothing_new_begins[node]",
    ),
    "7 a gateway that ends keeps its connections": (
        "edge/http.py", "        if self.leaving and not response.prepared:\n", "        if False:\n",
        "tests/stories/test_draining.py::test_who_asks_a_gateway_that_ends_is_answered_and_asks_another_next",
    ),
    "7 what forwards is accepted without a proxy": (
        "edge/http.py", "    if behind_proxy:\n", "    if True:\n",
        "tests/attacks/test_bad_input.py",
    ),
    "7 a page that came without tls calls the public name": (
        "edge/http.py", "for host in self.hosts if host != self.public_url.partition(\"://\")[2]}", "for host in self.hosts}",
        "tests/console/test_public_url.py::test_only_its_own_pages_may_call_and_nobody_is_who_a_header_says",
    ),
    "7 another image is taken for the sidecar": (
        "gateway/injection.py", "            if _repository(there) != _repository(wanted):\n", "            if False:\n",
        "tests/deploy/test_deploy.py::test_another_image_is_none_of_ours",
    ),
    "7 behind a pooler who falls silent keeps the turn": (
        "gateway/postgres.py", "            await session.execute(f\"SET {setting} = '{value}'\")\n", "            pass\n",
        "tests/gateway/test_order.py::test_behind_a_pooler_of_sessions_who_falls_silent_loses_the_turn_too",
    ),
    "7 a database that lost changes stays so": (
        "gateway/api/routes.py", " and not records.damaged\n", "\n",
        "tests/stories/test_replicas.py::test_a_database_that_lost_changes_gets_them_back_when_the_processes_are_started_again",
    ),
    "7 the first operator is made twice or never": (
        "gateway/app.py", "                return  # another gateway, which starts at the same time, was first\n", "                raise\n",
        "tests/stories/test_replicas.py::test_gateways_that_start_at_once_are_one",
    ),
    "6 an outage is held against an agent": (
        "sidecar/pipeline.py", "        if no.reason in COUNTED:\n", "        if True:\n",
        "tests/attacks/test_found.py::test_an_outage_is_held_against_nobody_and_a_refusal_outlives_a_restart",
    ),
    "6 what the gateway refused is forgotten by a restart": (
        "sidecar/recovery.py", "if outcome.reason in COUNTED and", "if False and",
        "tests/attacks/test_found.py::test_an_outage_is_held_against_nobody_and_a_refusal_outlives_a_restart",
    ),
    "17 what redis says and nobody understands is a yes": (
        "edge/shared.py", "    raise Unverifiable(Reason.REPLAY_UNKNOWN, f\"redis: expected bytes", "    Unverifiable(Reason.REPLAY_UNKNOWN, f\"redis: expected bytes",
        "tests/gateway/test_shared.py::test_an_answer_that_is_not_understood_is_no_yes",
    ),
    "17 a server that takes over again is believed": (
        "edge/did.py", ".. '-' .. history", ".. '-'",
        "tests/gateway/test_shared.py::test_a_server_that_takes_over_again_is_not_the_one_that_it_was",
    ),
    "17 an older memory of nonces is believed": (
        "edge/did.py", "  if of ~= memory then return nil, nil, nil end", "",
        "tests/gateway/test_shared.py::test_a_redis_that_comes_back_with_an_older_memory_accepts_nothing_from_before",
    ),
    "17 a replica that takes over is believed": (
        "edge/did.py", "  if of ~= memory then return nil, nil, nil end", "",
        "tests/gateway/test_shared.py::test_a_replica_that_takes_over_accepts_nothing_from_before",
    ),
    "17 an older count is believed": (
        "edge/did.py", "if redis.call('HGET', did, 'memory') ~= mark then\n", "if redis.call('HSETNX', did, 'memory', mark) == 2 then\n",
        "tests/gateway/test_shared.py::test_of_an_older_memory_no_count_and_no_key_is_believed",
    ),
    "17 a key is given again after its claim was lost": (
        "edge/did.py", "if lost and tonumber(ARGV[1]) < remembered + ARGV[4] then return '' end", "",
        "tests/gateway/test_shared.py::test_of_an_older_memory_no_count_and_no_key_is_believed",
    ),
    "6 a trail is told before what was sent is in it": (
        "gateway/ledgers.py", "        await self._caught_up()\n", "",
        "tests/stories/test_usage.py::test_a_trail_has_what_was_sent_before_it_was_asked",
    ),
    "17 what hangs keeps a process alive": (
        "edge/run.py", "        faulthandler.dump_traceback_later(END_WITHIN_S, exit=True)\n", "        pass\n",
        "tests/edge/test_run.py::test_a_thread_that_hangs_keeps_no_process_alive",
    ),
    "17 a task that was cancelled once in vain keeps a process alive": (
        "edge/run.py", "        await ended(asyncio.all_tasks() - {asyncio.current_task()})\n", "",
        "tests/edge/test_run.py::test_a_task_that_needs_more_than_one_cancellation_ends",
    ),
    "6 a ticket is for any key": (
        "trust/identity/ticket.py", "    if ticket.key != key:", "    if False:",
        "tests/attacks/test_forgery.py::test_a_node_executes_a_ticket_once_and_only_its_bytes",
    ),
    "6 whoever has a ticket brings it": (
        "trust/identity/ticket.py", "    PublicKey(unb64url(ticket.key)).verify(unb64url(proof), _use_of(token, body))\n", "",
        "tests/stories/test_bound_data.py::test_somebody_else_with_a_nodes_ticket_reads_nothing",
    ),
    "6 guarded data is given twice": (
        "licet/client/guarding.py", "        self._spent.spend(found.id, found.deadline, now)\n", "",
        "tests/stories/test_bound_data.py::test_through_its_node_data_is_read_and_a_copy_of_the_call_reads_nothing",
    ),
    "9 rows of a product are not compared": (
        "trust/product.py", "    if wrong.size:", "    if False:",
        "tests/trust/test_product.py::test_one_wrong_entry_in_a_row_that_is_looked_at_is_found",
    ),
    "9 rows may be made after they were asked for": (
        "trust/product.py", "    if _hash(hashes) != commitment:", "    if False:",
        "tests/trust/test_product.py::test_rows_that_were_not_committed_to_are_not_believed",
    ),
    "9 who makes no product keeps its gpu": (
        "gateway/proving.py", "        if found.holds:\n            until", "        if True:\n            until",
        EVIDENCE + "test_a_gpu_counts_once_its_node_made_the_product",
    ),
    "9 a gpu counts before it was looked at": (
        "gateway/router/capabilities.py", "    out = frozenset(suspended) | (frozenset(shown) - verified)", "    out = frozenset(suspended)",
        EVIDENCE + "test_what_was_shown_ends_with_its_time_with_the_epoch_and_at_once",
    ),
    "9 a slow gpu is a gpu": (
        "gateway/gpus.py", "        if times >= TIMES:", "        if False:",
        EVIDENCE + "test_a_gpu_that_is_five_times_slower_than_its_class_is_none_until_it_shows_itself",
    ),
    "1 a function runs without a permit": (
        "licet/mesh/calls.py", "        try:\n            answer = await self._act(tool, arguments, self._place)", "        if function is not None:\n            await function.here(arguments)\n        try:\n            answer = await self._act(tool, arguments, self._place)",
        "tests/stories/test_mesh_client.py::test_a_call_runs_on_a_node_and_the_model_hears_what_it_said",
    ),
    "10 a server in a sandbox sees this machine": (
        "sidecar/node/sandbox.py", "*named[: len(config.read)]])]", "*named[: len(config.read)], '/tmp'])]",
        "tests/stories/test_browser_and_sandbox.py::test_a_server_in_a_sandbox_reaches_what_was_named_and_nothing_else",
    ),
    "10 a server of root keeps what root may": (
        "sidecar/node/sandbox.py", '    flags += ["--cap-drop", "ALL"]', "    pass",
        "tests/stories/test_browser_and_sandbox.py::test_a_server_in_a_sandbox_reaches_what_was_named_and_nothing_else",
    ),
    "10 an agent's token goes to whoever is asked": (
        "licet/mesh/endpoint.py", '        if asked not in ({"mesh"}, {"management"}):', "        if False:",
        "tests/stories/test_mesh_client.py::test_the_agents_token_goes_to_its_sidecar_and_to_nobody_else",
    ),
    "4 a node brings other bytes under its ticket": (
        "trust/identity/ticket.py", "    if ticket.body != sha256_hex(body):", "    if False:",
        "tests/stories/test_bound_data.py::test_a_node_that_is_not_honest_does_not_bring_other_bytes_under_a_ticket",
    ),
    "1 a function runs though its stub says no": (
        "licet/mesh/calls.py", '        if result.get("isError") or (result.get("structuredContent") or {}).get("client_stub") is not True:', "        if False:",
        "tests/stories/test_mesh_client.py::test_a_function_runs_only_if_its_stub_says_so",
    ),
    "9 who lies may try again at once": (
        "gateway/proving.py", "AGAIN_S * 2 ** max(0, lies - 1)", "AGAIN_S",
        EVIDENCE + "test_rows_are_shown_once_and_only_of_what_was_committed",
    ),
    "10 a server in a sandbox has a network": (
        "sidecar/node/sandbox.py", '*(["--share-net"] if config.network else [])', '*["--share-net"]',
        "tests/stories/test_browser_and_sandbox.py::test_a_server_in_a_sandbox_reaches_what_was_named_and_nothing_else",
    ),
    "1 a permit is minted elsewhere": (
        "sidecar/forward.py", "def refusal_of(", "PERMITTED = Permit\n\n\ndef mint() -> Permit:\n    return Permit('', '', (), (), None)\n\n\ndef refusal_of(",
        "tests/test_architecture.py::test_permits_are_minted_in_one_place",
    ),
    "1 the gateway believes the sidecar": (
        "gateway/dispatch.py", "        if not isinstance(verdict, Permit):", "        if False:",
        "tests/attacks/test_forgery.py::test_a_compromised_sidecar_cannot_skip_policy",
    ),
    "1 the node opens any ticket": (
        "trust/identity/ticket.py", "    if ticket.payload != payload:", "    if False:",
        "tests/attacks/test_forgery.py::test_a_node_executes_a_ticket_once_and_only_its_bytes",
    ),
    "2 an error does not refuse": (
        "trust/policy/cedar.py", "return self.allowed and not self.errors", "return self.allowed",
        STORY + "test_a_policy_that_cannot_be_evaluated_refuses",
    ),
    "2 nothing permits it, so it is permitted": (
        "trust/policy/engine.py", "        if first.clean_allow:", "        if first.clean_allow or not (first.policies or first.errors):",
        "tests/trust/test_engine.py::test_nothing_permitting_refuses",
    ),
    "2 old facts are good enough": (
        "sidecar/pipeline.py", "        if age > limit:", "        if age > limit * 1e9:",
        STORY + "test_a_dead_gateway_refuses_what_has_effects_and_what_must_be_routed",
    ),
    "3 the action leaves before the intent is durable": (
        "sidecar/pipeline.py", "            stamp = await self._ledger.append(\n                entries.Intent(", "            stamp = self._ledger.append_later(\n                entries.Intent(",
        STORY + "test_a_full_disk_refuses_everything_and_nothing_leaves",
    ),
    "3 unfinished intents stay unfinished": (
        "sidecar/app.py", "        for outcome in self._own.unfinished:", "        for outcome in ():",
        "tests/stories/test_processes.py::test_kill_9_under_load_loses_no_answer_and_leaves_no_action_without_intent",
    ),
    "3 a failed write is tried again": (
        "trust/ledger/writer.py", "            if self.poison is None:\n                self.poison =", "            if self.poison is None:\n                return LedgerUnavailable('again')\n                self.poison =",
        "tests/trust/test_ledger.py::test_a_failed_flush_is_never_retried",
    ),
    "4 duplicate keys are resolved": (
        "trust/canonical.py", "    if len(made) != len(pairs):", "    if False:",
        "tests/attacks/test_bad_input.py::test_json_with_two_readings_is_refused",
    ),
    "4 a body rides along with GET": (
        "trust/wire.py", '    if payload.method != "POST" and payload.body:', "    if False:",
        "tests/attacks/test_found.py::test_a_body_that_nobody_judges_is_not_carried",
    ),
    "6 an approval is not consumed": (
        "gateway/fold.py", 'state="consumed"', 'state="approved"',
        STORY + "test_a_held_action_runs_exactly_once_though_claimed_by_many_at_once",
    ),
    "6 an approval is for any bytes": (
        "gateway/approvals/desk.py", 'record.request["payload_sha256"] != payload:', "False:",
        "tests/attacks/test_forgery.py::test_an_approval_of_one_action_does_not_cover_another",
    ),
    "6 the owner approves": (
        "gateway/approvals/rules.py", ', owner: f"owns {record.agent}"}', "}",
        STORY + "test_only_the_right_people_decide",
    ),
    "7 state changes beside the ledger": (
        "gateway/fold.py", '    if entry.event == "killed":', '    if entry.event == "killed" and entry.by != "operator":',
        STORY + "test_a_kill_stops_an_agent_and_survives_a_restart",
    ),
    "8 a signature is not checked": (
        "trust/ledger/checkpoint.py", "    key.verify(blob, text.encode())\n", "",
        "tests/trust/test_ledger.py::test_a_checkpoint_opens_only_for_its_log_and_key",
    ),
    "8 a decision is not made again": (
        "trust/policy/judge.py", "    if finding.outcome == expected", "    if True or finding.outcome == expected",
        STORY + "test_a_decision_that_does_not_follow_from_its_facts_is_found",
    ),
    "9 a constraint softens": (
        "gateway/router/eligibility.py", "    if not permitted(candidate):", "    if False:",
        STORY + "test_placement_policy_is_a_hard_filter",
    ),
    "9 a claim is believed": (
        "gateway/router/routing.py", "held(node.capabilities, ", "held({**node.claims, **node.capabilities}, ",
        ROUTING + "test_a_claim_gets_nothing_that_is_hard",
    ),
    "9 a drained node gets work": (
        "gateway/router/eligibility.py", '    if node.state != "ready":', "    if False:",
        ROUTING + "test_a_drained_node_finishes_what_runs_and_gets_nothing_more",
    ),
    "9 whoever joins is admitted": (
        "gateway/fleet.py", '        if finding.outcome != "permit":', "        if False:",
        ROUTING + "test_admission_is_a_decision_of_policy_each_time_it_changes",
    ),
    "9 what a node does not hold is not asked for": (
        "gateway/router/eligibility.py", "    if lacking:", "    if False:",
        ROUTING + "test_data_may_say_itself_what_a_node_must_hold",
    ),
    "6 a node does again what it did": (
        "sidecar/node/execution.py", "        if self._done.knows(entitled.action_id, entitled.payload):", "        if False:",
        ROUTING + "test_when_the_second_answer_is_lost_too_it_is_unknown_and_happened_once",
    ),
    "6 a payment is made elsewhere": (
        "gateway/tries.py", "        if _manifest(asked).idempotent:", "        if True:",
        ROUTING + "test_a_payment_whose_node_died_is_not_made_elsewhere",
    ),
    "6 what was approved once is sent twice": (
        "gateway/tries.py", "        if asked.dispatch.approval is not None or state.same", "        if state.same",
        ROUTING + "test_what_a_person_approved_once_is_never_sent_twice",
    ),
    "6 a ticket outlives its epoch": (
        "trust/identity/ticket.py", "    if ticket.epoch != epoch:", "    if False:",
        "tests/gateway/test_at_most_once.py",
    ),
    "8 a choice is not made again": (
        "gateway/router/trace.py", "    if again.chosen < 0 or again.node != trace.node_id:", "    if False:",
        "tests/gateway/test_choice.py",
    ),
    "8 what was lost is not taken back": (
        "gateway/usage.py", "            if otherwise:", "            if False:",
        "tests/stories/test_usage.py::test_what_was_lost_is_taken_back_when_the_node_tells_how_it_ended",
    ),
    "9 a listed name leads inside": (
        "licet/workbench/network.py", "        if inside or not addresses:", "        if not addresses:",
        "tests/licet/test_network.py",
    ),
    "10 the agent's token goes to the tool": (
        "sidecar/node/http_upstream.py", "**(lent or {}), **added}", "**(lent or {}), **added, 'Authorization': 'Bearer x'}",
        "tests/attacks/test_forgery.py::test_upstream_credentials_are_injected_and_never_come_from_or_go_to_the_agent",
    ),
    "1 a changed tool is called": (
        "gateway/offers.py", "        and (now.digest, now.manifest) == (pinned.digest, pinned.manifest)\n", "",
        "tests/attacks/test_changed_tools.py::test_no_policy_and_no_case_keeps_a_changed_tool_callable",
    ),
    "1 a server is called before it was looked at": (
        "sidecar/node/offers.py", "offer is None or offer.generation != upstream.generation", "offer is None",
        "tests/attacks/test_changed_tools.py::test_a_replaced_http_server_is_listed_before_it_is_called",
    ),
    "2 policy of before is good enough": (
        "gateway/statements.py", "        if asked.bundle is not self._bundles.for_agent(asked.agent.name).compiled:", "        if False:",
        "tests/attacks/test_races_and_riders.py::test_a_claim_runs_under_the_policy_of_the_moment_in_which_it_is_spent",
    ),
    "4 cargo rides along": (
        "trust/mcp.py", "        if member not in _TOP_LEVEL:", "        if False:",
        "tests/attacks/test_races_and_riders.py::test_what_no_policy_judges_does_not_ride_along",
    ),
    "5 a session speaks for any agent": (
        "gateway/registry.py", 'workload.kind != "agent" or record is None or record.via != workload.name', "record is None",
        "tests/attacks/test_sessions.py::test_another_agents_session_speaks_only_for_that_agent",
    ),
    "5 a MAC is not checked": (
        "trust/identity/httpsig.py", "not hmac.compare_digest(claim.signature, hmac.digest(key, claim.base, \"sha256\"))", "False",
        "tests/trust/test_session.py",
    ),
    "5 high risk needs no signature": (
        "gateway/dispatch.py", "    if risk >= RISK_HIGH and not asked.sender.strong:", "    if False:",
        "tests/attacks/test_sessions.py::test_high_risk_within_a_session_is_refused",
    ),
    "6 a key is used twice": (
        "sidecar/ingress/repeats.py", "        if known is not None:", "        if False:",
        "tests/stories/test_idempotency.py",
    ),
    "5 a chain widens": (
        "trust/identity/delegation.py", "        if not constraints.narrows(kept, constraint):", "        if False:",
        "tests/trust/test_delegation.py",
    ),
    "5 a chain outlives its parent": (
        "trust/identity/delegation.py", "    if child.exp > parent.exp:", "    if False:",
        "tests/trust/test_delegation.py::test_a_chain_that_widens_is_refused",
    ),
    "5 what narrows allows more": (
        "trust/identity/constraints.py", "            return _all_among(child.allowed, parent.allowed)", "            return True",
        "tests/trust/test_vectors.py::test_the_files_are_what_the_code_makes",
    ),
    "5 anybody uses a chain": (
        "sidecar/chains.py", "        if authority.holder.raw not in self._own_keys():", "        if False:",
        "tests/stories/test_delegation.py::test_who_does_not_hold_the_last_key_cannot_use_it",
    ),
    "5 the gateway believes a chain that its sidecar brings": (
        "gateway/delegations.py", "        if self._holder(authority.keys[-1]).agent.name != agent:", "        if False:",
        "tests/stories/test_delegation.py::test_the_gateway_opens_the_chain_itself",
    ),
    "5 what was delegated is not compared at the gateway": (
        "gateway/statements.py", "            delegated.authority.require(action.name, action.arguments)", "            pass",
        "tests/stories/test_delegation.py::test_the_gateway_opens_the_chain_itself",
    ),
    "5 those who delegated are not asked": (
        "gateway/statements.py", "for one in (agent, *delegators)", "for one in (agent,)",
        "tests/stories/test_delegation.py::test_policy_holds_for_everybody_in_the_chain",
    ),
    "5 what was revoked is believed": (
        "gateway/stops.py", "            revoked = self.revoked(what, name)\n            if revoked is not None:", "            revoked = self.revoked(what, name)\n            if revoked is not None and False:",
        "tests/stories/test_stops.py",
    ),
    "5 a node honours tickets of who was stopped": (
        "sidecar/node/membership.py", "        if self.is_stopped(agent):", "        if False:",
        "tests/stories/test_stops.py::test_the_first_refusal_comes_within_a_second_at_two_sidecars_and_a_node",
    ),
    "5 a feed takes something back": (
        "trust/feed.py", "    if after is not None and line.version < after.version:", "    if False:",
        "tests/stories/test_stops.py::test_a_feed_that_takes_something_back_is_not_believed",
    ),
    "5 a shared sidecar needs no proof": (
        "gateway/statements.py", "        if agent.name != sender.workload.name:", "        if False:",
        "tests/stories/test_own_keys.py::test_a_compromised_sidecar_cannot_act_for_its_guest",
    ),
    "5 a certificate is not compared": (
        "gateway/api/access.py", "    if secured and named != sender.workload.subject:", "    if False:",
        "tests/stories/test_tls.py::test_a_workload_without_its_own_certificate_is_refused",
    ),
    "5 a nonce is used twice": (
        "edge/did.py", "if not redis.call('SET', KEYS[2], 1, 'NX', 'PX', ARGV[2]) then return 'replayed' end", "",
        "tests/gateway/test_shared.py::test_of_all_verifiers_one_accepts",
    ),
    "5 a token for somebody else": (
        "trust/identity/oauth.py", '    if claims.get("aud") not in (audience, [audience]):', "    if False:",
        "tests/stories/test_oauth.py::test_a_token_that_is_not_for_us_is_refused",
    ),
    "a day has no cap": (
        "trust/standing/rules.py", ", DAY_MILLI - sum(today)))", "))",
        "tests/trust/test_standing.py",
    ),
    "a critical event is forgotten": (
        "trust/standing/score.py", "    if book.critical:", "    if False:",
        "tests/trust/test_standing.py",
    ),
    "beginning anew pays": (
        "trust/standing/rules.py", "    burden = max([share, *others], key=lambda total: int(total, 16))", "    burden = decay.NOTHING",
        "tests/trust/test_standing.py::test_whitewashing_never_pays",
    ),
    "a slice forgets a policy": (
        "trust/policy/slicing.py", "            for principal_key in (_ANY, *principal.uids)", "            for principal_key in (_ANY, principal.uid)",
        "tests/trust/test_engine.py",
    ),
    "a narrowed context forgets an attribute": (
        "trust/policy/slicing.py", "                _note(found, outer, attrs[0])", "                pass",
        "tests/trust/test_engine.py",
    ),
    "2 a revoked key goes on with what it began": (
        "gateway/statements.py", "            self._registry.require_not_cut_off(signer)", "            pass",
        "tests/stories/test_stops.py::test_a_call_that_runs_is_ended_and_nothing_of_it_is_told_or_earned",
    ),
    "2 a node goes on when the gateway hangs up": (
        "sidecar/node/execution.py", " or is_gone(incoming)", "",
        "tests/stories/test_stops.py::test_a_call_that_runs_is_ended_and_nothing_of_it_is_told_or_earned",
    ),
    "8 a witness takes another root": (
        "trust/ledger/mirror.py", "        if sealed.root != self._tiles.edge.root():", "        if False:",
        "tests/stories/test_witness.py::test_a_fork_a_rollback_and_a_new_key_are_refused_and_recorded",
    ),
    "8 a witness lets a log be taken back": (
        "trust/ledger/mirror.py", "        if sealed.size < self.known.size:", "        if False:",
        "tests/stories/test_witness.py::test_a_fork_a_rollback_and_a_new_key_are_refused_and_recorded",
    ),
    "8 unwitnessed high risk goes on": (
        "sidecar/world.py", "        if behind > self._unwitnessed_s:", "        if False:",
        "tests/stories/test_witness.py::test_unwitnessed_for_too_long_nothing_of_high_risk_may_happen",
    ),
    "2 a certificate of any role is a gateway's": (
        "edge/tls.py", 'named.split("/")[3] != role', "False",
        "tests/stories/test_tls.py::test_a_workload_at_the_gateways_address_is_not_taken_for_the_gateway",
    ),
    "8 a sidecar's log may hold votes": (
        "trust/ledger/mirror.py", "            if not entries.may_stand_in(line.entry, kind):", "            if False:",
        "tests/attacks/test_evidence_and_search.py::test_the_witness_takes_no_entry_that_its_writer_may_not_write",
    ),
    "8 frames may differ from what was sealed": (
        "trust/ledger/verify.py", "            if frame is not None and frame != data:", "            if False:",
        "tests/interop/test_go_sumdb.py::test_go_finds_an_edited_entry_in_the_tiles",
    ),
    "8 a checkpoint that was kept is not compared": (
        "trust/ledger/verify.py", "        require_consistent(proof, earlier.size", "        (lambda *_: None)(proof, earlier.size",
        "tests/stories/test_anchors.py::test_checkpoints_that_were_kept_find_a_log_that_was_written_anew",
    ),
    "8 a pack needs no witness": (
        "trust/verifier/pack.py", "        checkpoint.cosigned_at(manifest[\"witness\"])", "        pass",
        "tests/attacks/test_evidence_and_search.py::test_a_gateway_of_ones_own_invention_proves_nothing",
    ),
    "8 a pack's decisions are believed": (
        "trust/verifier/pack.py", "        if outcome != expected or policies != recorded:", "        if False:",
        "tests/verifier/test_packs.py::test_a_decision_that_does_not_follow_is_found_even_if_it_is_sealed",
    ),
    "8 an approval is good for another action": (
        "trust/verifier/pack.py", "        if bundle.action_digest(deed, salt) != deed[\"action_digest\"]:", "        if False:",
        "tests/attacks/test_evidence_and_search.py::test_what_a_compromised_sidecar_could_seal_does_not_verify",
    ),
    "8 any signature is one": (
        "trust/verifier/ed25519.py", "    return _same(_times(scalar, BASE)", "    return True or _same(_times(scalar, BASE)",
        "tests/verifier/test_primitives.py::test_the_vectors_of_rfc_8032_verify_and_with_any_bit_changed_do_not",
    ),
    "8 what cannot be read back is written": (
        "trust/ledger/entries.py", "        _checker.decode(data)", "        pass",
        "tests/trust/test_ledger.py::test_what_would_not_be_read_back_is_not_written_and_poisons_nothing",
    ),
    "8 entries are pruned without a word": (
        "gateway/ledgers.py", "                await self._records.note(entries.Pruned(log.origin, first, before_us, by))", "                pass",
        "tests/trust/test_pruning.py::test_the_gateway_prunes_copies_says_so_and_goes_on",
    ),
    "11 a question may do more than read": (
        "gateway/duck.py", "    if kind is not duckdb.StatementType.SELECT:", "    if False:",
        "tests/gateway/test_sql.py::test_what_does_more_than_read_the_table_is_refused_and_changes_nothing",
    ),
    "11 a question may read files": (
        "gateway/duck.py", "    \"SET enable_external_access = false\",\n", "",
        "tests/gateway/test_sql.py::test_what_does_more_than_read_the_table_is_refused_and_changes_nothing",
    ),
    "11 reading is not recorded": (
        "gateway/ledgers.py", "        await self._records.note(entries.Query(by, \"find\", told(asked), len(page.rows)))\n", "",
        "tests/console/test_door.py::test_that_somebody_read_is_recorded",
    ),
    "11 what is personal is recorded in plain": (
        "sidecar/pipeline.py", "            action = self._subjects.guarded(action)\n", "            pass\n",
        "tests/stories/test_personal.py::test_a_call_whose_key_cannot_be_had_is_refused_and_recorded_without_it",
    ),
    "11 a digest can be guessed": (
        "trust/personal.py", "        return hmac.digest(self.secret, b\"licet salt\\n\" + canonical, \"sha256\")", "        return b\"\"",
        "tests/stories/test_personal.py::test_equal_calls_have_equal_digests_and_nobody_can_guess_them",
    ),
    "11 what is erased comes back": (
        "gateway/subjects.py", "        file.destroy(key for key in there if known.get(key, True))", "        pass",
        "tests/stories/test_personal.py::test_a_key_that_comes_back_from_a_backup_is_destroyed_again",
    ),
    "11 a refusal quotes what is personal": (
        "trust/report.py", "return QUIET if (personal or no.personal) and no.reason in QUOTING else no.detail[:2000]", "return no.detail[:2000]",
        "tests/stories/test_personal.py::test_what_is_personal_stands_nowhere_in_plain",
    ),
    "12 a vote is for whatever it is now": (
        "gateway/approvals/votes.py", "    if seen != record.presented:", "    if False:",
        "tests/stories/test_approvals.py::test_a_vote_is_for_what_was_shown",
    ),
    "12 whoever edited it votes": (
        "gateway/approvals/rules.py", '    found = dict.fromkeys(record.editors, "edited it")', "    found: dict[str, str] = {}",
        "tests/stories/test_approvals.py::test_nobody_decides_for_themselves",
    ),
    "12 a deputy is a second vote": (
        "gateway/approvals/rules.py", "    taken = {vote.seat for vote in record.votes} | {vote.by for vote in record.votes}", "    taken = {vote.by for vote in record.votes}",
        "tests/stories/test_approvals.py::test_a_deputy_votes_in_the_seat_of_another",
    ),
    "12 votes of before an edit count": (
        "gateway/fold.py", "        votes=(),\n", "",
        "tests/stories/test_approvals.py::test_edited_arguments_run_and_votes_of_before_do_not_count",
    ),
    "12 a scope goes on for ever": (
        "gateway/fold.py", "            left = replace(used, uses=used.uses - 1)", "            left = used",
        "tests/stories/test_approvals.py::test_these_arguments_so_many_times",
    ),
    "12 the widest vote says how far": (
        "gateway/approvals/rules.py", "    kind = min((scope.kind for scope in scopes), key=_NARROW.__getitem__)", "    kind = max((scope.kind for scope in scopes), key=_NARROW.__getitem__)",
        "tests/stories/test_approvals.py::test_a_yes_goes_as_far_as_its_narrowest_vote",
    ),
    "12 a form may come from anywhere": (
        "gateway/console/visits.py", "    if site not in (None, \"same-origin\"):", "    if False:",
        "tests/console/test_door.py::test_a_form_from_anywhere_else_is_refused_and_changes_nothing",
    ),
    "12 a form needs no token of its page": (
        "gateway/console/visits.py", "not hmac.compare_digest(token.encode(), guest.csrf.encode())", "False",
        "tests/console/test_door.py::test_a_form_from_anywhere_else_is_refused_and_changes_nothing",
    ),
    "12 a sign-in link works twice": (
        "gateway/console/visits.py", "        del self._links[_digest(code)]\n", "",
        "tests/console/test_door.py::test_a_link_works_once_and_only_by_the_button",
    ),
    "12 the cookie goes to every port": (
        "gateway/console/door.py", "            if incoming.authority == origin.partition(\"://\")[2]:", "            if True:",
        "tests/attacks/test_evidence_and_search.py::test_a_cookie_is_for_the_consoles_own_name",
    ),
    "12 a page runs what an agent wrote": (
        "gateway/console/pages.py", "            autoescape=True,", "            autoescape=False,",
        "tests/console/test_pages.py::test_what_agents_say_is_shown_and_never_done",
    ),
    "12 what cannot be seen stays unseen": (
        "gateway/console/text.py", "        hidden = not c.isprintable()", "        hidden = False and not c.isprintable()",
        "tests/console/test_pages.py::test_what_agents_say_is_shown_and_never_done",
    ),
    "12 pages are for everybody": (
        "gateway/console/door.py", "            self._require(guest, act, of, parameters)\n            return await handler(incoming, guest, **parameters)", "            return await handler(incoming, guest, **parameters)",
        "tests/console/test_door.py::test_pages_are_for_their_roles",
    ),
    '12 an unsigned yes counts': (
        'gateway/approvals/votes.py', '            if signs:\n                self._passkeys', '            if False:\n                self._passkeys',
        'tests/console/test_passkeys.py::test_a_vote_is_signed_for_exactly_this_by_exactly_who_gives_it',
    ),
    '12 signatures count as policy was': (
        'gateway/approvals/rules.py', '    seats = {vote.seat for vote in yes if not step_up or (vote.signed and vote.seat == vote.by)}', '    seats = {vote.seat for vote in yes}',
        'tests/console/test_passkeys.py::test_a_yes_that_nobody_signed_is_not_used_where_policy_asks_for_signatures_by_then',
    ),
    '12 a deputy signs for another': (
        'gateway/approvals/rules.py', '    seats = [voter] if signs else all_.seats(voter)', '    seats = all_.seats(voter)',
        'tests/console/test_passkeys.py::test_nobody_signs_in_the_seat_of_somebody_else',
    ),
    '12 a link makes a signature': (
        'gateway/passkeys.py', '        if known and how != "passkey":', '        if False:',
        'tests/console/test_passkeys.py::test_a_link_gives_nobody_another_passkey',
    ),
    '12 a lost passkey stays signed in': (
        'gateway/fold.py', '            if visit.credential == entry.credential:', '            if False:',
        'tests/console/test_passkeys.py::test_what_a_lost_passkey_opened_ends_with_it',
    ),
    '12 the same answer signs in twice': (
        'gateway/passkeys.py', '        self._used.spend(b64url(challenge), until, self._clock.now())  # only what holds: junk is not remembered\n', '',
        'tests/console/test_passkeys.py::test_signing_in_is_answered_once_here_and_in_time',
    ),
    '12 outsiders believe the terms that were recorded': (
        'trust/verifier/approvals.py', '        terms = [asked.body["request"]["terms"], *(terms_of(text) for text in asking)]', '        terms = [asked.body["request"]["terms"]]',
        'tests/console/test_passkeys.py::test_each_forged_story_is_a_fault_for_both_who_check',
    ),
    '12 an ID token answers any sign-in': (
        'trust/identity/oauth.py', '    if claims.get("nonce") != nonce:', '    if False:',
        'tests/console/test_oidc.py::test_nobody_comes_in_by_another_token',
    ),
    '12 an address counts that nobody verified': (
        'gateway/oidc.py', '        if self._config.claim == "email" and claims.get("email_verified") is not True:', '        if False:',
        'tests/console/test_oidc.py::test_nobody_comes_in_by_another_token',
    ),
    '12 a flow ends in any browser': (
        'gateway/oidc.py', '        if not hmac.compare_digest(answer.get("state", "").encode(), state.encode()):', '        if False:',
        'tests/console/test_oidc.py::test_nobody_comes_in_by_another_flow',
    ),
    '7 a vote without its consequence stays so': (
        'gateway/approvals/votes.py', '                    await self._conclude(record)\n', '                    pass\n',
        'tests/stories/test_approvals.py::test_a_death_between_the_last_vote_and_its_consequence_loses_nothing',
    ),
    "13 who lost the turn publishes": (
        "gateway/postgres.py", '            raise OrderUnavailable("the turn was lost before it was used")', "            pass",
        "tests/gateway/test_order.py::test_without_the_turn_nobody_publishes",
    ),
    "13 a database makes changes up": (
        "gateway/postgres.py", '        if not hmac.compare_digest(bytes(row["mac"]), self._mac(change)):', "        if False:",
        "tests/gateway/test_order.py::test_what_the_database_made_up_is_not_believed",
    ),
    "13 a database loses changes": (
        "gateway/replica.py", "            if not told or told[0].turn != self._last or told[0].mark != self.store.mark:", "            if False:",
        "tests/gateway/test_order.py::test_a_database_that_lost_changes_is_noticed",
    ),
    "13 what never was is not void": (
        "gateway/replica.py", '            await self._void(seq, turn, "the order could not be reached when it was made")\n', "            pass\n",
        "tests/gateway/test_order.py::test_an_entry_that_others_never_saw_is_void",
    ),
    "13 who does not hear the others goes on": (
        "gateway/replica.py", "        if age > STALE_S:", "        if False:",
        "tests/gateway/test_order.py::test_who_does_not_hear_the_others_relies_on_nothing",
    ),
    "13 what an entry names is not there yet": (
        "gateway/replica.py", "            await self._borrow(line.entry)\n", "            pass\n",
        "tests/gateway/test_order.py::test_what_entries_name_is_on_every_disk_before_it_counts",
    ),
    "13 an action goes out at each gateway": (
        "edge/did.py", "if not redis.call('SET', KEYS[6], 1, 'NX', 'PX', ARGV[2]) then return {{'replayed'}} end", "",
        "tests/stories/test_replicas.py::test_an_action_goes_out_once_whichever_gateway_is_asked",
    ),
    "13 a nonce is used at each gateway": (
        "gateway/callers.py", "            await self._shared.spend(claim.nonce, claim.created_at, claim.expires_at, now)", "            pass",
        "tests/stories/test_replicas.py::test_an_action_goes_out_once_whichever_gateway_is_asked",
    ),
    "13 logs are told to everybody": (
        "gateway/api/peers.py", "        self._peers.require(incoming)\n        return json_response(", "        return json_response(",
        "tests/stories/test_replicas.py::test_only_gateways_are_told_what_logs_say",
    ),
    "13 a pod holds its agent's key": (
        "gateway/injection.py", "    if own:", "    if False:",
        "tests/deploy/test_deploy.py::test_a_pod_that_would_act_without_its_sidecar_is_refused",
    ),
    "13 a pod mounts its sidecar's volume": (
        "gateway/injection.py", '        if any(mount.get("name") in (IDENTITY, DATA) for mount in one.get("volumeMounts") or []):', "        if False:",
        "tests/deploy/test_deploy.py::test_a_pod_that_would_act_without_its_sidecar_is_refused",
    ),
    "13 a pod is without a sidecar": (
        "gateway/injection.py", "    if not isinstance(agent, str) or _NAME.fullmatch(agent) is None:", "    if False:",
        "tests/deploy/test_deploy.py::test_a_pod_that_would_act_without_its_sidecar_is_refused",
    ),
    "13 two workers have the turn": (
        "sidecar/journal.py", "                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)", "                pass",
        "tests/sidecar/test_journal.py::test_who_dies_in_its_turn_keeps_nobody_waiting_and_who_hangs_is_named",
    ),
    "13 what another worker permits meanwhile is not seen": (
        "sidecar/pipeline.py", "            if turn.known != known:", "            if False:",
        "tests/stories/test_workers.py::test_what_another_permits_meanwhile_is_reckoned_with",
    ),
    "13 a key is in the hands of two workers": (
        "sidecar/siblings.py", "        return None if owner == self.worker else owner", "        return None",
        "tests/stories/test_workers.py::test_a_key_is_in_one_hand_whoever_is_asked",
    ),
    "13 a guest is heard once by each worker": (
        "sidecar/guests.py", "            self._journal.tell(Spent(claim.nonce, claim.expires_at))", "            self._journal.memories.apply(Spent(claim.nonce, claim.expires_at))",
        "tests/stories/test_workers.py::test_a_guest_is_heard_once_whoever_hears_it",
    ),
    "13 fewer workers shed what the others did": (
        "sidecar/left.py", "        for number in numbers:", "        for number in numbers[:0]:",
        "tests/stories/test_workers.py::test_fewer_or_more_workers_know_what_all_did",
    ),
    "14 what a namespace permits is permitted everywhere": (
        "trust/policy/confined.py", '        if effect is not None and effect[1] == "permit" and last >= 0:', "        if False:",
        "tests/gateway/test_control.py::test_what_a_namespace_permits_is_permitted_on_its_own_servers",
    ),
    "14 a text that cannot be confined is believed": (
        "trust/policy/confined.py", '        if read.sources[key].file.startswith(prefix) and node.effect == "permit" and node.clauses[-1:] != expected', "        if False",
        "tests/gateway/test_control.py::test_a_permit_that_is_not_confined_is_found",
    ),
    "14 what is another's is shown": (
        "gateway/control/__init__.py", "        return person.namespace in (MESH, namespace)", "        return True",
        "tests/stories/test_namespaces.py::test_no_page_and_no_answer_shows_the_other_anything",
    ),
    "14 what is another's can be changed": (
        "gateway/control/__init__.py", "        if whose is None or not self.may(person, act, whose):", "        if whose is None:",
        "tests/stories/test_namespaces.py::test_nothing_of_the_other_can_be_changed",
    ),
    "14 the ledger answers whoever asks": (
        "gateway/questions.py", "    if asked.namespace:", "    if False:",
        "tests/stories/test_namespaces.py::test_no_page_and_no_answer_shows_the_other_anything",
    ),
    "14 a role may do everything": (
        "gateway/control/__init__.py", '    return answer.policies[0] if answer.clean_allow else ""', '    return "operator"',
        "tests/gateway/test_control.py::test_a_role_may_do_its_own_and_nothing_else",
    ),
    "14 authority crosses namespaces": (
        "gateway/delegations.py", "            if record.namespace != self._registry.agent(agent).namespace:", "            if False:",
        "tests/stories/test_namespaces.py::test_authority_stays_in_its_namespace",
    ),
    "14 strangers decide": (
        "gateway/approvals/desk.py", "if person.namespace in within}", "}",
        "tests/stories/test_namespaces.py::test_strangers_do_not_decide",
    ),
    "14 one namespace holds up all": (
        "gateway/bundles.py", "            elif renewed:", "            elif False:",
        "tests/stories/test_namespaces.py::test_a_namespace_that_cannot_follow_holds_up_nobody_else",
    ),
    "15 each sidecar has limits of its own": (
        "gateway/statements.py", "        if more is context:", "        if True:",
        INSTANCES + "test_a_limit_is_one_for_all_sidecars",
    ),
    "15 who knew too little is refused": (
        "gateway/dispatch.py", "            if asked.recalled is not None:", "            if False:",
        INSTANCES + "test_what_one_sidecar_saw_the_other_knows_and_a_person_is_asked",
    ),
    "15 a key is one action at each sidecar": (
        "gateway/recall.py", "        if holder != action:", "        if False:",
        INSTANCES + "test_a_key_is_one_action_through_whatever_sidecar",
    ),
    "15 what was not sent keeps its key": (
        "gateway/attempts.py", '            await self._ended(attempt, "refused", by_us=True, reason=reason, detail="it was not sent")\n', "",
        INSTANCES + "test_a_key_of_what_was_not_sent_after_all_is_free",
    ),
    "15 a key is freed by whoever comes": (
        "edge/did.py", "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end", "redis.call('DEL', KEYS[1])",
        "tests/gateway/test_recall.py::test_a_key_has_one_action",
    ),
    "15 what was not sent counts": (
        "sidecar/pipeline.py", "        self._recalled.took_back(action.name, judged.permitted_at, judged.tool.manifest.cents)\n", "",
        INSTANCES + "test_who_is_told_that_a_limit_is_reached_reaches_no_other",
    ),
    "15 half a certificate is shown": (
        "edge/tls.py", "            show(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *self._paths)\n", "",
        "tests/stories/test_tls.py::test_with_certificates_from_files",
    ),
    "16 an edition of which nothing is known permits nothing of its own": (
        "gateway/editions.py", "            if own is None and draft.lost:", "            if False:",
        "tests/gateway/test_control.py::test_policies_that_cannot_be_read_are_not_left_out",
    ),
    "16 what permits elsewhere stays": (
        "gateway/bundles.py", "        return not permits_elsewhere(", "        return True or not permits_elsewhere(",
        TENANTS + "test_an_edition_that_permits_where_it_is_not_at_home_any_more_is_lost",
    ),
    "15 what did not happen keeps its key": (
        "gateway/dispatch.py", "        except Unverifiable as bad:\n            if bad.reason in NOTHING_HAPPENED:", "        except Unverifiable as bad:\n            if False:",
        INSTANCES + "test_a_key_of_what_no_node_took_is_free",
    ),
    "15 a gateway that starts again forgets": (
        "gateway/recall.py", "                self._own.begin(agent, past, self._clock.now())", "                self._own.begin(agent, Past(), self._clock.now())",
        INSTANCES + "test_a_gateway_that_starts_again_knows_what_was_done",
    ),
    "15 a redis that starts again forgets": (
        "gateway/recall.py", "        if counted.whole:", "        if True:",
        INSTANCES + "test_a_redis_that_lost_everything_is_told_again",
    ),
    "15 refusals are of one sidecar": (
        "gateway/api/workloads.py", "            await self._s.recall.denied(name, sum(one.count for one in counted), origin)", "            pass",
        INSTANCES + "test_refusals_are_known_to_both",
    ),
    "15 a window forgets early": (
        "edge/did.py", "  local least = part - {BUCKETS}", "  local least = part - {BUCKETS} + 1",
        "tests/gateway/test_recall.py::test_redis_counts_as_one_process_does",
    ),
    "16 votes for a namespace are votes for the mesh": (
        "gateway/approvals/desk.py", "        policies = record.policies if asks is None else asks.policies", "        policies = record.policies",
        TENANTS + "test_votes_for_a_namespace_are_none_for_the_mesh",
    ),
    "16 a namespace undoes what the mesh did after it": (
        "gateway/stops.py", "            if before is not None and not taken_over:", "            if before is not None:",
        TENANTS + "test_a_stop_of_the_mesh_is_the_meshs_though_the_namespace_stopped_it_before",
    ),
    "16 a name of somebody who left is free": (
        "gateway/people.py", "bool(namespace and former and former.namespace != namespace)", "False",
        TENANTS + "test_who_takes_the_name_of_somebody_of_the_mesh_lifts_nothing",
    ),
    "16 a broken policy hides others": (
        "trust/policy/engine.py", "        if answer.errors and (answer.allowed or not any(self._forbids(one) for one in answer.policies)):", "        if answer.errors:",
        TENANTS + "test_a_broken_policy_hides_no_other",
    ),
    "16 who begins anew is new": (
        "trust/standing/rules.py", '    return f"{namespace}/everybody" if namespace else owner', "    return owner",
        TENANTS + "test_a_broken_policy_hides_no_other",
    ),
    "16 trust is made at home": (
        "gateway/attempts.py", "            at_home=asked.at_home,", "            at_home=False,",
        TENANTS + "test_nobody_earns_at_home",
    ),
    "16 everything waits for policies": (
        "gateway/bundles.py", "_Made(basis, await asyncio.to_thread(prepare, self._draft(name, own, mesh, tried=first)))", "_Made(basis, prepare(self._draft(name, own, mesh, tried=first)))",
        TENANTS + "test_while_policies_are_prepared_everything_goes_on",
    ),
    "16 what changed meanwhile is lost": (
        "gateway/bundles.py", "        changed = [name for name, one in made.items() if one.basis != self._basis(name)]", "        changed = [name for name in made if False]",
        TENANTS + "test_while_policies_are_prepared_everything_goes_on",
    ),
    "16 a name of the mesh is free": (
        "gateway/servers.py", "            return \"\"\n        return self._reserved", "            return otherwise\n        return self._reserved",
        TENANTS + "test_a_name_that_a_node_of_the_mesh_may_offer_is_the_meshs",
    ),
    "16 one namespace takes a server away": (
        "trust/standing/breaker.py", '        failing[f"{namespace}/" if namespace else agent] = now_s', "        failing[agent] = now_s",
        TENANTS + "test_one_namespace_takes_no_server_away_from_all",
    ),
    "16 what was held under a key is done again": (
        "sidecar/pipeline.py", "idempotency_key=key or asked.idempotency_key", "idempotency_key=key",
        TENANTS + "test_a_key_is_one_action_though_it_was_held_and_claimed",
    ),
    "16 one namespace hides what others ask": (
        "gateway/approvals/desk.py", "            places[namespace] += 1", "            pass",
        TENANTS + "test_of_many_requests_of_one_namespace_others_are_seen",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "test"), BREAKS.values(), ids=BREAKS.keys())
def test_a_broken_promise_is_noticed(tmp_path: Path, file: str, old: str, new: str, test: str) -> None:
    house = tmp_path / "house"
    shutil.copytree(
        REPOSITORY,
        house,
        ignore=shutil.ignore_patterns(".git", ".venv", ".licet", "build", ".hypothesis", "__pycache__", ".*_cache"),
    )
    text = (house / file).read_text("utf-8")
    assert text.count(old) == 1, f"{file}: the line to break is not there once"
    (house / file).write_text(text.replace(old, new), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test],
        cwd=house,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, f"nobody noticed:\n{done.stdout[-1500:]}"
    assert "error" not in done.stdout.splitlines()[-1], done.stdout[-1500:]

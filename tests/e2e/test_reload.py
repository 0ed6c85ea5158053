"""The real program follows its file, mounted as a ConfigMap: live sockets are judged again, and only those
that are no longer allowed are closed; a file that is no good changes nothing."""

import signal
import time

import pytest

from client import PAGE, end_of, open_socket, opens, refusal, seen_by, talks
from parts import Daphne, free_port, wait_until
from sso import claims

CHAT = '[[route]]\npath = "/ws/chat/{room}/"'
FOR_ADMINS = f'{CHAT}\nroles = ["admin"]'
SHADOW = 'mode = "shadow"\nclaims'
OTHER_REALM = '[[issuer]]\nurl = "{}"\naudiences = ["chat"]\n'


def test_a_role_that_a_route_asks_for_from_now_on_closes_only_who_lacks_it(start_gate, daphne, alice, bob, room):
    with start_gate() as gate, open_socket(gate, room, alice.access) as hers, open_socket(gate, room, bob.access) as his:
        seen_by(hers), seen_by(his)
        began = time.monotonic()
        gate.edit((CHAT, FOR_ADMINS))
        assert time.monotonic() - began < 3, "files count within 2 s, and this machine may be busy"
        assert end_of(his) == (4003, "rule_denied")
        daphne.wait_until_left(room)
        talks(hers, "alice")
        reloaded = gate.line(event="config_reloaded")
        assert reloaded["closed"] == 1
        closed = gate.line(event="session_closed", request_id=his.request_id)
        assert (closed["reason"], closed["code"], closed["username"]) == ("rule_denied", 4003, "bob")
        assert refusal(gate, room, bob.access).reason == "rule_denied"
        assert opens(gate, room, alice.access)
        gate.edit((FOR_ADMINS, CHAT))
        assert opens(gate, room, bob.access)
        talks(hers, "alice")


def test_a_shadow_route_that_begins_to_enforce_closes_whom_it_would_have_refused(start_gate, alice):
    with (
        start_gate() as gate,
        open_socket(gate, "/ws/shadow/acme/", alice.access) as member,
        open_socket(gate, "/ws/shadow/globex/", alice.access) as stranger,
        open_socket(gate, "/ws/shadow/globex/") as nobody,
    ):
        for socket in (member, stranger, nobody):
            seen_by(socket)
        gate.edit((SHADOW, "claims"))
        assert end_of(stranger) == (4003, "rule_denied")
        assert end_of(nobody) == (4001, "token_missing")
        talks(member, "alice")


def test_a_page_that_is_no_longer_listed_loses_its_sockets(start_gate, alice, bob, room):
    with (
        start_gate() as gate,
        open_socket(gate, room, alice.access, origin=PAGE) as page,
        open_socket(gate, room, bob.access) as program,
    ):
        seen_by(page), seen_by(program)
        gate.edit((f'allow = ["{PAGE}"]', 'allow = ["https://new.example.com"]'))
        assert end_of(page) == (4003, "origin_denied")
        talks(program, "bob")
        assert opens(gate, room, alice.access, origin="https://new.example.com")


def test_a_realm_that_is_taken_out_takes_its_users_with_it_until_it_is_back(start_gate, keycloak, alice, room):
    mallory = keycloak.login("mallory", realm="other")
    other = OTHER_REALM.format(keycloak.issuer("other"))
    with (
        start_gate(more=other) as gate,
        open_socket(gate, room, alice.access) as hers,
        open_socket(gate, room, mallory.access) as theirs,
    ):
        seen_by(hers), seen_by(theirs)
        assert {row["iss"] for row in gate.sessions()} == {gate.issuer, keycloak.issuer("other")}
        gate.edit((other, ""))
        assert end_of(theirs) == (4001, "token_issuer")
        talks(hers, "alice")
        # Its keys are still in memory, and its token was verified before: neither helps.
        assert refusal(gate, room, mallory.access).reason == "token_issuer"
        gate.edit(("[drain]", f"{other}[drain]"))
        wait_until(lambda: gate.lines(event="jwks_ready", issuer=keycloak.issuer("other"))[1:], "its keys again", 5)
        assert opens(gate, room, mallory.access)
        gate.edit((f'"{keycloak.issuer("other")}"\naudiences = ["chat"]', f'"{keycloak.issuer("other")}"\naudiences = ["billing"]'))
        assert refusal(gate, room, mallory.access).reason == "token_audience"
        talks(hers, "alice")


def test_a_file_that_is_no_good_changes_nothing_and_log_and_prometheus_tell(start_gate, start_prometheus, alice, bob, room):
    with (
        start_gate() as gate,
        start_prometheus(gate) as prometheus,
        open_socket(gate, room, alice.access) as hers,
        open_socket(gate, room, bob.access) as his,
    ):
        seen_by(hers), seen_by(his)

        def successful():
            return prometheus.query("sidegate_config_last_reload_successful")

        wait_until(lambda: successful() == [1], "the first scrape", 30)
        # One change would be fine, two others are not: nothing of it counts, and both are told.
        gate.edit((CHAT, FOR_ADMINS), ("RS256", "HS256"), ("delay", "delai"), result="failure")
        wait_until(lambda: gate.lines(event="config_reload_refused")[1:], "both mistakes in the log", 5)
        told = [line["message"] for line in gate.lines(event="config_reload_refused")]
        lines = gate.config.read_text().splitlines()
        for key in ("algorithms", "delai"):
            (number,) = [n for n, line in enumerate(lines, start=1) if line.startswith(key)]
            assert any(message.startswith(f"line {number}: ") and key in message for message in told), told
        assert len(told) == 2
        talks(hers, "alice"), talks(his, "bob")
        assert opens(gate, room, bob.access)
        wait_until(lambda: successful() == [0], "the failure in Prometheus", 10)
        assert prometheus.query('sidegate_config_reloads_total{result="failure"}') == [1]

        gate.edit(("HS256", "RS256"), ("delai", "delay"))
        assert end_of(his) == (4003, "rule_denied")
        talks(hers, "alice")
        wait_until(lambda: successful() == [1], "its end in Prometheus", 10)


def test_an_empty_file_half_a_file_and_no_file_change_nothing(start_gate, bob, room):
    def failures(count):
        wait_until(lambda: gate.metric("config_reloads_total", result="failure") == count, f"failure {count}", 5)

    with start_gate() as gate, open_socket(gate, room, bob.access) as socket:
        seen_by(socket)
        whole = gate.config.read_text()
        for number, text in enumerate(["", whole[: len(whole) // 2], whole.replace("[drain]", "[drain")], start=1):
            gate.mount.write(text)
            gate.process.send_signal(signal.SIGHUP)
            failures(number)
        gate.config.unlink()
        failures(4)
        last = lambda: gate.lines(event="config_reload_refused")[-1]["message"]
        wait_until(lambda: str(gate.config) in last(), "the file that is missing in the log", 5)
        assert gate.process.poll() is None
        talks(socket, "bob")
        assert opens(gate, room, bob.access)


def test_sighup_reads_the_file_at_once_and_a_storm_of_it_harms_nobody(start_gate, alice, room):
    with start_gate() as gate, open_socket(gate, room, alice.access) as socket:
        seen_by(socket)
        gate.process.send_signal(signal.SIGHUP)
        # The file is as it was, and is read all the same: what it refers to may have changed.
        wait_until(lambda: gate.metric("config_reloads_total", result="success") == 1, "a reload", 5)
        for _ in range(50):
            gate.process.send_signal(signal.SIGHUP)
            opens(gate, room, alice.access)
        gate.mount.write("nonsense")
        gate.process.send_signal(signal.SIGHUP)
        wait_until(lambda: gate.metric("config_last_reload_successful") == 0, "the refusal", 5)
        assert gate.process.poll() is None
        talks(socket, "alice")
        assert {line["closed"] for line in gate.lines(event="config_reloaded")} == {0}


def test_what_needs_a_restart_is_named_and_refused_as_a_whole(start_gate, bob, room):
    with start_gate() as gate:
        gate.edit(
            (CHAT, FOR_ADMINS),
            (f'address = "127.0.0.1:{gate.port}"', f'address = "127.0.0.1:{free_port()}"'),
            ('probes = "', '# probes = "'),
            ("[drain]", '[runtime]\nworkers = 7\n\n[metrics]\nnamespace = "other"\n\n[drain]'),
            result="failure",
        )
        fixed = {"listen.address", "admin.probes", "runtime.workers", "metrics.namespace"}
        wait_until(lambda: len(gate.lines(event="config_reload_refused")) == len(fixed), "a line for each key", 5)
        told = {line["message"].split()[0] for line in gate.lines(event="config_reload_refused")}
        assert told == fixed
        assert opens(gate, room, bob.access), "the other change does not count either"


def test_over_a_reload_revocations_hold_and_places_stay_taken(start_gate, alice, bob, room):
    with (
        start_gate(limits='attempts_per_address = "off"\nsessions_per_user = 1') as gate,
        open_socket(gate, room, alice.access) as socket,
    ):
        seen_by(socket)
        gate.admin("POST", "/revocations", json={"sub": claims(bob.access)["sub"]})
        gate.edit(("sessions_per_user = 1", "sessions_per_user = 1\nsessions = 7"))
        assert refusal(gate, room, bob.access).reason == "user_revoked"
        assert refusal(gate, room, alice.access).reason == "user_sessions_exceeded"
        assert gate.admin("GET", "/limits").json()["sessions"] == 7
        socket.close()
        wait_until(lambda: gate.sessions() == [], "the place is free", 5)
        assert opens(gate, room, alice.access)


def test_a_reload_without_changes_closes_nobody_whatever_a_rule_has_looked_at(start_gate, alice):
    rule = """[[route]]\npath = "/ws/hosts/{room}/"\nallow = 'request.host.startsWith("127.0.0.1")'"""
    forwarded = [("X-Forwarded-Host", "chat.example.com"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-For", "198.51.100.7")]
    with (
        start_gate(listen='trusted_proxies = ["127.0.0.1"]', more=rule) as gate,
        open_socket(gate, "/ws/hosts/lobby/", alice.access, headers=forwarded) as socket,
    ):
        seen_by(socket)
        gate.process.send_signal(signal.SIGHUP)
        assert gate.line(event="config_reloaded")["closed"] == 0
        talks(socket, "alice")


def test_another_backend_gets_the_new_sockets_and_the_old_ones_stay(start_gate, logs, daphne, alice, bob, room):
    with start_gate() as gate, Daphne(logs) as newer, open_socket(gate, room, alice.access) as old:
        seen_by(old)
        gate.edit((f'url = "{daphne.url}"', f'url = "{newer.url}"'))
        with open_socket(gate, room, bob.access) as new:
            seen_by(new)
            assert room in newer.output()
            # Two processes, two rooms.
            talks(new, "bob")
            talks(old, "alice")
        assert claims(alice.access)["sub"] in {row["sub"] for row in gate.sessions()}

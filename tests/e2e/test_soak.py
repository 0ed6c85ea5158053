"""How long a socket lives whose page renews its token: in real time, with tokens of a minute. It runs beside all
other tests (soak.py); these come last and look at what it has come to."""

import pytest

from soak import EVERY, LEEWAY, LENGTH
from sso import claims

pytestmark = pytest.mark.timeout(LENGTH + 180)


def ended_with(held, token):
    """Told with 4001 at the end of this token: never before it, and less than two seconds after it."""
    assert held.close == (4001, "token_expired")
    late = held.ended - (claims(token)["exp"] + LEEWAY)
    assert 0 <= late < 2, f"{late:.3f} s after the end of its token"


def test_a_page_that_renews_its_token_of_a_minute_keeps_one_socket_for_ten_minutes(soak):
    soak = soak.finished()
    tokens = [soak.first, *(token for token, _ in soak.shown)]
    assert {claims(token)["exp"] - claims(token)["iat"] for token in tokens} == {60}
    assert len(set(tokens)) == len(tokens) > LENGTH / EVERY - 1
    assert soak.kept.ended - soak.kept.opened > LENGTH

    # The gate has had one socket of his, and after each token that one was good until the end of it.
    rows = [row for _, row in soak.shown]
    assert len({(row["id"], row["started_at"]) for row in rows}) == 1
    assert [row["expires_at"] for row in rows] == [claims(token)["exp"] + LEEWAY for token, _ in soak.shown]
    assert soak.kept.heard == [f"turn {turn}" for turn in range(1, len(rows) + 1)]
    opened = soak.gate.line(event="session_opened", username="dave")
    closed = soak.gate.line(event="session_closed", username="dave")
    assert opened["request_id"] == closed["request_id"] == soak.kept.request_id
    assert closed["received_messages"] == len(rows)
    assert closed["duration_ms"] > LENGTH * 1000


def test_it_ends_with_its_last_token_when_the_page_no_longer_renews_it(soak):
    soak = soak.finished()
    ended_with(soak.kept, soak.shown[-1][0])


def test_a_lost_role_ends_the_socket_with_the_last_token_that_had_it(soak):
    soak = soak.finished()
    assert "crew" in claims(soak.with_role)["realm_access"]["roles"]
    assert "crew" not in claims(soak.without_role)["realm_access"]["roles"]
    assert claims(soak.without_role)["sid"] == claims(soak.with_role)["sid"]
    # By the rule of the route; and where the backend was told of it.
    ended_with(soak.ruled, soak.with_role)
    ended_with(soak.told, soak.with_role)
    # Newer tokens were shown all the while: where the role is nothing to anybody they did prolong.
    assert claims(soak.without_role)["exp"] - claims(soak.with_role)["exp"] >= 2 * EVERY - 1
    ended_with(soak.free, soak.without_role)


def test_every_newer_token_is_counted(soak):
    soak = soak.finished()
    # Carol: the first prolonged all three, the second one of them and was refused by two, which the third met no more.
    assert (soak.prolonged, soak.refused) == (len(soak.shown) + 3 + 1 + 1, 2)

"""examples/gym-checkins: what its README promises."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from client import by_header, by_query, by_subprotocol, end_of, open_socket, refusal
from parts import http
from sso import with_claims

GYM = "/ws/checkins/"
IRON = "/ws/checkins/iron/"
SOCKETS = 300


@pytest.fixture(scope="module")
def gym(start_example):
    with start_example("gym-checkins") as gym:
        yield gym


@pytest.fixture(scope="module")
def alice(gym):
    return gym.login("alice").access


@pytest.fixture(scope="module")
def bob(gym):
    return gym.login("bob").access


def hears(socket):
    return json.loads(socket.recv(timeout=10))


def test_a_room_hears_its_own_check_ins_and_the_gym_hears_all(gym, alice, bob):
    with (
        open_socket(gym.gate, GYM, alice, by_subprotocol, origin=gym.url) as lobby,
        open_socket(gym.gate, IRON, alice) as iron,
        open_socket(gym.gate, "/ws/checkins/pool/", bob) as pool,
    ):
        assert [hears(socket) for socket in (lobby, iron, pool)] == [{"welcome": user} for user in ("alice", "alice", "bob")]
        pool.send("{}")
        iron.send("{}")
        assert hears(pool) == {"member": "bob", "room": "pool"}
        assert hears(iron) == {"member": "alice", "room": "iron"}
        assert sorted(hears(lobby)["room"] for _ in range(2)) == ["iron", "pool"]
        assert lobby.subprotocol == "Bearer"


def test_an_old_client_with_its_token_in_the_query_is_let_in_and_it_is_in_no_log(gym, alice):
    with open_socket(gym.gate, IRON, alice, by_query) as socket:
        assert hears(socket) == {"welcome": "alice"}
    line = gym.gate.line(event="session_opened", request_id=socket.request_id)
    assert line["target"] == f"{IRON}?token=***"
    assert alice not in gym.gate.output() + gym.backend.output()

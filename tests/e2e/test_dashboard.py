"""The dashboard of k8s/: each query of each panel finds something in a real Prometheus, under load."""

from contextlib import ExitStack

from client import open_socket, seen_by
from dashboard import check, shown, some_of_everything


def test_every_panel_shows_what_it_is_there_for(prometheus, gate, alice, room):
    with ExitStack() as sockets:
        for _ in range(3):
            seen_by(sockets.enter_context(open_socket(gate, "/ws/chat/silent/", alice.access)))
        panels = shown(prometheus, "sidegate_", lambda: some_of_everything(gate, room, alice.access))
    check(panels)
    (((labels, active),),) = panels["Active connections"]
    assert labels == {"job": "sidegate"} and active >= 3

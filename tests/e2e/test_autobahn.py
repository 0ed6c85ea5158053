"""Autobahn|Testsuite: how an echo server takes what a client may do, and what it may not. Its verdict on each case
is the same through the gate as without it. The quick cases by default, all of them with --autobahn."""

import json
import subprocess

import pytest

from client import by_query, refusal
from parts import ROOT, Reflector, skip

WSTEST = ROOT / ".cache" / "autobahn" / "wstest"
# Every chapter; of what takes long (performance, compression, and a second in which wrong UTF-8 is to be noticed)
# a few, and of the large messages the one that is as large as the gate allows: 16 MiB.
QUICK = [
    "1.*", "2.*", "3.*", "4.*", "5.*", "6.1.*", "6.2.*", "6.3.*", "6.4.1", "6.5.*", "6.6.*", "6.7.*", "6.8.*", "6.9.*",
    "6.10.*", "6.11.*", "6.12.*", "6.13.*", "6.14.*", "6.15.*", "6.16.*", "6.17.*", "6.18.*", "6.19.*", "6.20.*", "6.21.*",
    "6.22.*", "6.23.*", "7.*", "9.1.1", "9.1.6", "9.2.1", "9.3.9", "9.4.9", "9.5.6", "9.6.6", "9.7.1", "9.8.1", "10.*",
    "12.1.1", "12.2.1", "12.3.1", "13.1.1", "13.7.1",
]  # fmt: skip
# 4 MiB in frames of 64 bytes, and an empty last one, are one frame more than the default allows.
ROUTE = """
[[route]]
path = "/autobahn/"
upstream = {{ url = "{}", profile = "generic" }}
limits = {{ fragments = 65537 }}
"""


@pytest.fixture(scope="module")
def cases(request):
    return ["*"] if request.config.getoption("--autobahn") else QUICK


@pytest.fixture(scope="module")
def fuzz(logs):
    """The verdicts of its client on several servers: {server: {case: (on the exchange, on the closing)}}"""
    if not WSTEST.is_file():
        skip("no Autobahn|Testsuite, which needs Python 2.7")

    def run(name, urls, cases):
        folder = logs / f"autobahn-{name}"
        folder.mkdir()
        servers = [{"agent": agent, "url": url} for agent, url in urls.items()]
        spec = {"outdir": str(folder), "servers": servers, "cases": cases, "exclude-cases": []}
        (folder / "spec.json").write_text(json.dumps(spec))
        ran = subprocess.run(
            [WSTEST, "--mode", "fuzzingclient", "--spec", folder / "spec.json"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout[-3000:]
        index = json.loads((folder / "index.json").read_text())
        return {
            agent: {case: (said["behavior"], said["behaviorClose"]) for case, said in verdicts.items()}
            for agent, verdicts in index.items()
        }

    return run


@pytest.mark.parametrize("kind", ["deflate", "plain"])
def test_every_case_has_the_same_verdict_through_the_gate_as_without_it(logs, start_gate, keycloak, fuzz, cases, kind):
    token = keycloak.login("alice", client="chat-long").access
    with Reflector(logs, kind) as server, start_gate(more=ROUTE.format(server.url)) as gate:
        assert refusal(gate, "/autobahn/").reason == "token_missing"
        urls = {part.name: f"ws://127.0.0.1:{part.port}/autobahn/?{by_query(token)['query']}" for part in (server, gate)}
        verdicts = fuzz(kind, urls, cases)
        direct, through = verdicts[server.name], verdicts[gate.name]
        assert {case: (direct[case], through.get(case)) for case in direct if direct[case] != through.get(case)} == {}
        assert direct.keys() == through.keys()

        # All of them came through, by the token, and the server has done what it is here for.
        assert gate.metric("websocket_connections_total", status="accepted") == len(through)
        assert {case.split(".")[0] for case in through} == {"1", "2", "3", "4", "5", "6", "7", "9", "10", "12", "13"}
        failed = {case: verdict for case, verdict in through.items() if not set(verdict) <= {"OK", "INFORMATIONAL"}}
        compressed = {case for case in through if case.startswith(("12.", "13."))}
        assert failed == (dict.fromkeys(compressed, ("UNIMPLEMENTED", "OK")) if kind == "plain" else {})

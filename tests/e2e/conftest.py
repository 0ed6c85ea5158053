"""What the tests stand on. Keycloak, Daphne and uvicorn start once; a gate starts for each module."""

import functools
import uuid
from contextlib import ExitStack

import pytest

from browser import Browser
from client import open_socket, seen_by
from example import Example
from gate import BINARY, Demo, Gate
from parts import Daphne, Pages, Part, Prometheus, Redis, Uvicorn, skip
from soak import Soak
from sso import Keycloak


def pytest_addoption(parser):
    parser.addoption("--autobahn", action="store_true", help="all cases of Autobahn|Testsuite, and nothing else")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--autobahn"):
        others = [item for item in items if "fuzz" not in item.fixturenames]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
        for item in items:
            item.add_marker(pytest.mark.timeout(7200))
    items.sort(key=lambda item: "soak" in item.fixturenames)  # it has run longest when they come last
    makers = {"start_gate", "start_example", "start_demo", "soak"}
    if not BINARY.is_file() and any(makers & set(item.fixturenames) for item in items):
        pytest.exit(f"there is no gate at {BINARY}: cargo build, or set SIDEGATE_BIN", returncode=1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed:
        for name, part in item.funcargs.items():
            for part in part.parts if isinstance(part, Example) else [part]:
                if isinstance(part, Part):
                    report.sections.append((f"end of the log of {part.name} ({name})", part.output()[-3000:]))
    return report


@pytest.fixture(scope="session")
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def keycloak(logs):
    with Keycloak(logs) as keycloak:
        yield keycloak


@pytest.fixture(scope="session")
def daphne(logs):
    with Daphne(logs) as daphne:
        yield daphne


@pytest.fixture(scope="session")
def pages(logs):
    with Pages(logs) as pages:
        yield pages


@pytest.fixture(scope="session")
def uvicorn(logs):
    with Uvicorn(logs) as uvicorn:
        yield uvicorn


@pytest.fixture(scope="session")
def browser(logs):
    with Browser(logs) as browser:
        yield browser


@pytest.fixture(scope="module")
def redis(logs):
    if not Redis.is_installed():
        skip("no redis-server (Debian: redis-server)")
    with Redis(logs) as redis:
        yield redis


@pytest.fixture(scope="session")
def start_gate(logs, keycloak, daphne, uvicorn):
    """`with start_gate(realm="other") as gate`: one with settings of its own."""
    return functools.partial(Gate, logs, keycloak, daphne, uvicorn)


@pytest.fixture(scope="session")
def start_example(logs, keycloak):
    """`with start_example("gym-checkins") as gym`: a folder of examples/ with all its parts."""
    return lambda name: Example(name, logs, keycloak)


@pytest.fixture(scope="session")
def start_demo(logs):
    """`with start_demo("--issuer", …) as demo`"""
    return functools.partial(Demo, logs)


@pytest.fixture(scope="session")
def soak(logs, keycloak):
    """Not before Keycloak is up: two must not copy their realms at once."""
    soak = Soak(logs)
    soak.start()
    yield soak
    soak.interrupt()


@pytest.fixture(scope="session", autouse=True)
def soak_from_the_start(request):
    if any("soak" in item.fixturenames for item in request.session.items):
        request.getfixturevalue("soak")


@pytest.fixture(scope="module")
def gate(start_gate):
    with start_gate() as gate:
        yield gate


@pytest.fixture(scope="module")
def alice(keycloak):
    """Member of acme, with the roles chat and admin."""
    return keycloak.login("alice")


@pytest.fixture(scope="module")
def bob(keycloak):
    """Member of globex, with the role chat."""
    return keycloak.login("bob")


@pytest.fixture
def room():
    """A room that nobody else has ever asked for, so that its name in a log is this test's."""
    return f"/ws/chat/{uuid.uuid4().hex}/"


@pytest.fixture
def sockets():
    """Opens sockets that are closed after the test."""
    with ExitStack() as stack:

        def open_one(gate, path, tokens):
            socket = stack.enter_context(open_socket(gate, path, tokens.access))
            seen_by(socket)
            return socket

        yield open_one


@pytest.fixture(scope="session")
def start_prometheus(logs):
    """`with start_prometheus(gate) as prometheus`"""
    if not Prometheus.is_installed():
        skip("no prometheus (Debian: prometheus)")
    return lambda gate, rules=(): Prometheus(logs, gate.probes.removeprefix("http://"), rules)


@pytest.fixture
def prometheus(start_prometheus, gate):
    with start_prometheus(gate) as prometheus:
        yield prometheus

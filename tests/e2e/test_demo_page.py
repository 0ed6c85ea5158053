"""The page of `sidegate demo` in a real browser: every button does to a real gate what it says."""

import re

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from parts import http, wait_until

LENGTH = 5  # seconds that a token of the real issuer lives here


class Page:
    """What a visitor sees and does."""

    def __init__(self, browser):
        self.browser = browser

    def text(self, name):
        return self.browser.find(f"#{name}").get_property("textContent")

    def press(self, selector):
        element = self.browser.find(selector)
        self.browser.run("args[0].scrollIntoView({ block: 'center' })", element)
        element.click()

    def choose(self, name, value):
        Select(self.browser.find(f"#{name}")).select_by_value(value)

    def fill(self, name, value):
        element = self.browser.find(f"#{name}")
        element.clear()
        element.send_keys(value)

    def open(self, path="/ws/chat/", carrier="subprotocol", show="good"):
        self.fill("path", path)
        self.choose("carrier", carrier)
        self.choose("show", show)
        self.press("#open button.main")
        return self

    def until(self, name, text, seconds=20):
        wait_until(lambda: text in self.text(name), f"{text!r} in #{name}, not {self.text(name)!r}", seconds)
        return self

    def until_open(self):
        return self.until("now", "open")

    def until_ended(self, code, label):
        """It stays to be read, also when the socket is back."""
        self.until("label", label)
        assert self.text("code") == str(code)
        assert self.text("meaning") and self.text("remedy") != self.text("meaning")

    def saw(self):
        return self.browser.run("return JSON.parse(document.querySelector('#seen').textContent)")

    def log(self):
        return self.browser.run("return [...document.querySelectorAll('#log li div')].map(line => line.textContent)")


@pytest.fixture(scope="module")
def demo(start_demo):
    with start_demo() as demo:
        yield demo
        assert "eyJ" not in demo.output(), "no token is in the log"


@pytest.fixture
def page(browser, demo):
    """As a visitor finds it who was never here, and has got the first token."""
    browser.open(f"{demo.url}/icon.svg").run("localStorage.clear(); sessionStorage.clear()")
    browser.violations()
    page = Page(browser.open(demo.url)).until("holder", "Token of alice")
    yield page
    assert browser.violations() == []
    browser.open("about:blank")


# ---- tokens and sockets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["subprotocol", "kubernetes", "query", "cookie"])
def test_each_carrier_brings_the_token_and_the_page_shows_what_the_backend_saw(page, carrier):
    page.open(carrier=carrier).until_open()
    seen = page.saw()
    assert seen["headers"]["x-auth-username"] == "alice" and "authorization" not in seen["headers"]
    assert (seen["query"], seen["subprotocols"]) == ("", ["demo"] if carrier == "kubernetes" else [])
    page.fill("text", "is it there")
    page.press("#send button")
    page.until("log", "Message: is it there")
    assert page.browser.run("return document.cookie") == ""
    page.press("#close")
    page.until("now", "closed")


def test_the_header_goes_over_plain_http(page):
    page.press("#ask")
    page.until("log", "GET /api/me: 200")
    assert page.saw()["headers"] | {"authorization": "***", "x-auth-username": "alice"} == page.saw()["headers"]


@pytest.mark.parametrize(
    ("show", "path", "code", "label", "state"),
    [
        ("none", "/ws/chat/", 4001, "token_missing", "waiting"),
        ("changed", "/ws/chat/", 4001, "token_signature", "stopped"),
        ("id", "/ws/chat/", 4001, "token_type", "stopped"),
        ("two", "/ws/chat/", 4003, "token_ambiguous", "stopped"),
        ("good", "/ws/events/globex/", 4003, "rule_denied", "stopped"),
        ("good", "/nowhere/", 4003, "route_unknown", "stopped"),
    ],
)
def test_a_refusal_is_told_with_code_label_meaning_and_remedy(page, show, path, code, label, state):
    page.open(path, show=show).until("now", state).until_ended(code, label)
    assert page.text("seen").startswith("Nothing")
    assert label in page.text("reasons"), "all of them are listed below"
    page.press("#close") if state == "waiting" else None


def test_a_token_of_ones_own_is_kept_and_the_embedded_issuer_gives_to_others_as_well(page, demo):
    page.choose("user", "bob")
    page.press("#login button")
    page.until("holder", "Token of bob")
    page.open("/ws/staff/").until_open()
    token = http.get(f"{demo.url}/realms/demo/token", params={"user": "bob"}).text.strip()
    page.press("#mine summary")
    page.fill("token", token)
    page.press("#paste button:first-of-type")
    page.browser.open(demo.url)
    page.until("holder", "Token of bob")
    assert page.browser.run("return document.querySelector('#token').value") == token
    assert page.browser.run("return document.querySelector('#path').value") == "/ws/staff/"
    page.press("#mine summary")
    page.press("#forget")
    page.until("holder", "No token yet").open().until("now", "stopped").until("remedy", "sign in")


# ---- trouble --------------------------------------------------------------------------------------------------


def test_a_token_that_runs_out_is_renewed(page):
    page.press("#expire")
    page.until_open()
    page.until_ended(4001, "token_expired")
    page.until_open()
    assert any("gets a new token, then reconnects at once" in line for line in page.log())


def test_a_revoked_token_stops_and_a_new_one_opens_again(page):
    page.open().until_open().press("#revoke")
    page.until("now", "stopped").until_ended(4001, "token_revoked")
    page.open().until("now", "stopped")
    page.press("#login button")
    page.until("holder", "runs out in").open().until_open()


def test_a_gate_that_drains_is_followed_by_another_one(page, demo):
    page.open().until_open()
    page.press("#drain")
    page.until_ended(1012, "draining")
    page.until_open()
    assert demo.output().count('"event":"drained"') == 1 and demo.output().count('"event":"listening"') == 2
    assert http.get(f"{demo.url}/api/me").status_code == 401, "by the same issuer, whose tokens are still good"


def test_too_many_messages(page):
    page.press("#flood")
    page.until_ended(4029, "message_rate_exceeded")
    page.until_open()


def test_too_many_sockets(page):
    page.open().until_open().press("#crowd")
    page.until_ended(4029, "user_sessions_exceeded")
    assert any(line.startswith("Socket 5: 4029") for line in page.log()), "five in all"
    page.until("sessions", "alice").until_open()


def test_a_wrong_origin(page, demo):
    page.open().until_open().press("#foreign")
    page.until_ended(4003, "origin_denied")
    assert f'"origin":"http://localhost:{demo.port}"' in demo.output(), "a real page of another origin"
    page.until_open()


def test_live_sessions_are_listed_closed_and_revoked(page):
    page.open().until_open().until("sessions", "alice on /ws/*, from this page")
    page.press("#sessions button[aria-label^=Close]")
    page.until_ended(1012, "operator_closed")
    page.until_open().until("sessions", "alice")
    page.press("#sessions button[aria-label^=Revoke]")
    page.until_ended(4001, "token_revoked")
    page.until("sessions", "None.")


def test_no_other_page_reaches_the_buttons(page, browser, demo, pages):
    fetch = "return await fetch(args[0], args[1]).then(({ status }) => status, ({ name }) => name)"
    assert browser.run(fetch, f"{demo.url}/demo/sessions", {}) == 200
    browser.open(pages.at("127.0.0.1"))
    assert browser.run(fetch, f"{demo.url}/demo/sessions", {}) == "TypeError"
    assert browser.run(fetch, f"{demo.url}/demo/drain", {"method": "POST"}) == "TypeError"
    assert http.post(f"{demo.url}/demo/drain", headers={"Origin": pages.url}).status_code == 403
    # Nor one whose name was turned to loopback.
    browser.open(f"http://evil.example:{demo.port}/")
    assert browser.run(fetch, "/demo/sessions", {}) == 403
    assert '"event":"drain_started"' not in demo.output().rpartition('"event":"listening"')[2]


# ---- any gate, any issuer -------------------------------------------------------------------------------------


def test_any_gate_and_any_token(page, start_gate, demo, alice):
    routes = f'[[route]]\npath = "/ws/page/{{room}}/"\norigin = {{ allow = ["{demo.url}"] }}'
    with start_gate(more=routes) as gate:
        page.press("#mine summary")
        page.fill("token", alice.access)
        page.press("#paste button:first-of-type")
        page.fill("gate", f"ws://127.0.0.1:{gate.port}")
        page.open("/ws/page/x/").until_open()
        assert ["x-auth-username", "alice"] in page.saw()["headers"]
        assert [page.browser.find(f"#{name}").is_enabled() for name in ("revoke", "drain", "foreign")] == [False, False, True]
        assert page.browser.find("#elsewhere").is_displayed()
        page.press("#foreign")
        page.until_ended(4003, "origin_denied")
        page.open("/ws/chat/x/").until("now", "stopped").until_ended(4003, "origin_denied")


@pytest.fixture(scope="module")
def external(start_demo, keycloak):
    """Keycloak demands PKCE with S256 of this client, and knows where it may send its answers."""
    with start_demo("--issuer", keycloak.issuer("demo"), "--client", "page", "--audience", "chat") as demo:
        (chat,) = keycloak.admin("GET", "/realms/demo/clients", params={"clientId": "chat"}).json()
        client = {
            "clientId": "page",
            "publicClient": True,
            "standardFlowEnabled": True,
            "redirectUris": [f"{demo.url}/"],
            "webOrigins": ["+"],
            "attributes": {"pkce.code.challenge.method": "S256", "access.token.lifespan": str(LENGTH)},
            "protocolMappers": [{key: mapper[key] for key in ("name", "protocol", "protocolMapper", "config")} for mapper in chat["protocolMappers"]],
        }
        keycloak.admin("POST", "/realms/demo/clients", json=client)
        yield demo


def test_signing_in_at_keycloak(browser, external, keycloak):
    browser.open(external.url)
    browser.violations()
    page = Page(browser).until("holder", "No token yet")
    page.press("#signin button")
    wait_until(lambda: browser.driver.current_url.startswith(keycloak.url), "the login page of Keycloak")
    asked = browser.driver.current_url
    assert "code_challenge_method=S256" in asked and "response_type=code" in asked
    browser.find("#username").send_keys("alice", Keys.ENTER)  # with organizations the password has a page of its own
    wait_until(lambda: browser.driver.find_elements(By.ID, "password"), "the password's page")
    browser.find("#password").send_keys("alice-password", Keys.ENTER)
    wait_until(lambda: browser.driver.current_url == f"{external.url}/", "the way back, without the code in the address")
    page.until("holder", "Token of alice").open().until_open()
    assert page.saw()["headers"]["x-auth-email"] == "alice@acme.example"
    # It runs out, and Keycloak gives a new one for the refresh token.
    page.press("#expire")
    page.until_ended(4001, "token_expired")
    page.until_open()
    page.press("#revoke")
    page.until_ended(4001, "token_revoked")
    assert browser.violations() == []


def test_an_answer_that_was_not_asked_for_is_none(browser, external):
    browser.open(external.url).run("localStorage.clear()")
    page = Page(browser.open(f"{external.url}/?state=chosen&code=stolen"))
    page.until("log", "the state is another").until("holder", "No token yet")
    assert browser.driver.current_url == f"{external.url}/"


def test_an_issuer_that_is_none_is_told(start_demo):
    demo = start_demo("--issuer", "keycloak")
    demo.start(wait=False)
    assert demo.process.wait(20) == 1
    assert "issuer[1].url" in demo.output()


# ---- as a page ------------------------------------------------------------------------------------------------


def test_the_page_brings_all_it_needs_under_a_strict_policy(page, browser, demo):
    (policy,) = http.get(demo.url).headers.get_list("Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
    names = browser.run("return performance.getEntriesByType('resource').map(({ name }) => new URL(name).origin)")
    assert set(names) == {demo.url}
    browser.run("""
        const script = document.createElement("script");
        script.textContent = "window.alien = true";
        document.body.append(script);
        document.body.setAttribute("onclick", "window.alien = true");
        document.body.click();
    """)
    assert browser.run("return window.alien ?? null") is None
    assert len(browser.violations()) == 2


CONTRAST = """
    const parse = color => color.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
    const behind = element => {
        for (; element; element = element.parentElement) {
            const color = parse(getComputedStyle(element).backgroundColor);
            if (color[3] !== 0) return color;
        }
        return [255, 255, 255];
    };
    const poor = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!own || !element.checkVisibility() || element.disabled) continue;
        const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
        if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(element.outerHTML.slice(0, 120));
    }
    return poor;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_easy_to_read(page, browser, scheme):
    browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        page.open("/nowhere/").until("now", "stopped")
        page.open().until_open().until("sessions", "alice")
        browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
        background = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert (int(re.search(r"\d+", background)[0]) < 60) == (scheme == "dark")
        wait_until(lambda: browser.run(CONTRAST) == [], "all text is easy to read", 3)
    finally:
        browser.devtools("Emulation.setEmulatedMedia", features=[])


def test_a_phone_never_scrolls_sideways(page, browser):
    browser.devtools("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    try:
        page.open("/nowhere/").until("now", "stopped")
        page.open().until_open().until("sessions", "alice")
        browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
        assert browser.run("return [document.documentElement.scrollWidth, document.body.scrollWidth <= 360]") == [360, True]
        small = "return [...document.querySelectorAll('button, input, select')].filter(one => one.checkVisibility() && one.offsetHeight < 30).length"
        assert browser.run(small) == 0, "fingers find them"
    finally:
        browser.devtools("Emulation.clearDeviceMetricsOverride")


def test_the_keyboard_is_enough(page, browser):
    """Tab by tab: each control is reached, shows that it is, and has a name; Enter opens the socket."""
    browser.run("document.body.focus()")
    reached = []
    for _ in range(60):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        told = browser.run("""
            const { id, tagName, labels } = document.activeElement, { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
            const name = labels?.[0]?.textContent || document.activeElement.textContent || document.activeElement.getAttribute("aria-label");
            return { id, tagName, name: name?.trim(), outline: outlineStyle !== "none" && parseFloat(outlineWidth) >= 2 };
        """)
        if told["tagName"] == "BODY" or (told["id"] and told["id"] in reached):
            break
        assert told["outline"] and told["name"], told
        reached.append(told["id"])
        if told["id"] == "path":
            browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
            page.until_open()
    assert {"user", "life", "gate", "path", "carrier", "show", "close", "ask", "text", "expire", "revoke", "drain", "flood", "crowd", "foreign", "log"} <= set(reached)
    assert browser.run("return document.querySelector('#state [role=status]').contains(document.querySelector('#now'))")
    assert browser.run("return document.querySelector('#log').getAttribute('role')") == "log"

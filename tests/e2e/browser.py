"""A real Chromium without a window, as selenium drives it."""

import shutil

from selenium import webdriver
from selenium.webdriver.common.by import By

from parts import Part, http, skip, wait_until

OPTIONS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
    "--host-resolver-rules=MAP * 127.0.0.1", "--window-size=1280,1000",
]  # fmt: skip


class Browser(Part):
    """With a profile of its own, which chromedriver makes and removes."""

    name = "chromedriver"

    def __init__(self, logs):
        if not shutil.which("chromedriver"):
            skip("no chromedriver (Debian: chromium-driver)")
        super().__init__(logs)

    def command(self):
        return ["chromedriver", f"--port={self.port}", "--log-level=SEVERE"]

    def is_up(self):
        return http.get(f"{self.url}/status").json()["value"]["ready"]

    def start(self, wait=True):
        super().start(wait)
        options = webdriver.ChromeOptions()
        for option in OPTIONS:
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Remote(self.url, options=options)
        self.driver.set_script_timeout(60)
        return self

    def stop(self, patience=20):
        self.driver.quit()
        return super().stop(patience)

    def open(self, url):
        self.driver.get(url)
        return self

    def run(self, body, *arguments):
        """What an async function with this body returns in the page; `args` is what it was given."""
        script = f"""
            const done = arguments[arguments.length - 1], args = [...arguments].slice(0, -1);
            (async () => {{ {body} }})().then(value => done([value]), error => done([null, String(error)]));
        """
        value, *error = self.driver.execute_async_script(script, *arguments)
        assert not error, f"{error[0]}\n{body}"
        return value

    def until(self, expression, *arguments, seconds=20):
        """The first true value of an expression in the page."""
        return wait_until(lambda: self.run(f"return {expression}", *arguments), f"in the page: {expression} {arguments}", seconds)

    def find(self, selector):
        """The one element."""
        (element,) = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return element

    def violations(self):
        """What the policy has blocked since one last asked, as the browser told it."""
        return [entry["message"] for entry in self.driver.execute("getLog", {"type": "browser"})["value"] if "Content Security Policy" in entry["message"]]

    def devtools(self, command, **parameters):
        return self.driver.execute("executeCdpCommand", {"cmd": command, "params": parameters})["value"]

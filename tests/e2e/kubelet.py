"""How kubelet ends a pod with a native sidecar (KEP-753), played with processes: every preStop hook at once;
SIGTERM once a container's own hook has returned, to a sidecar only after the main containers have ended as well;
SIGKILL when the grace period is over, and all of that took its time from it."""

import subprocess
import threading
import time
from dataclasses import dataclass, field

from gate import BINARY
from parts import Part, http

MINIMUM = 2  # seconds from SIGTERM to SIGKILL that kubelet grants even where the grace period is over


@dataclass
class Container:
    name: str
    part: Part
    spec: dict  # of the pod, as in the manifest
    ports: dict  # of the manifest: where they are here
    hook_failed: str = ""
    hook_returned: float = 0
    told: float = 0  # SIGTERM
    code: int | None = None
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def is_sidecar(self):
        return self.spec.get("restartPolicy") == "Always"

    @property
    def hook(self):
        return self.spec.get("lifecycle", {}).get("preStop")

    def run_hook(self):
        """Returns what went wrong."""
        if "exec" in self.hook:
            binary, *arguments = self.hook["exec"]["command"]
            assert binary == "/sidegate"
            ran = subprocess.run([BINARY, *arguments], env=self.part.environment(), capture_output=True, text=True, timeout=60)
            return ran.stderr if ran.returncode else ""
        get = self.hook["httpGet"]
        answer = http.get(f"http://127.0.0.1:{self.ports[get['port']]}{get['path']}")
        return "" if answer.status_code == 200 else answer.text

    def end(self, grace, minimum, others):
        over = time.monotonic() + grace

        def left():
            return max(0, over - time.monotonic())

        if self.hook:
            hook = threading.Thread(target=self._hook, daemon=True)
            hook.start()
            hook.join(left())
        if self.is_sidecar:
            for other in others:
                if not other.is_sidecar:
                    other.gone.wait(left())
        self.told = time.time()
        self.part.process.terminate()
        try:
            self.code = self.part.process.wait(max(minimum, left()))
        except subprocess.TimeoutExpired:
            self.part.process.kill()
            self.code = self.part.process.wait()
        self.gone.set()

    def _hook(self):
        try:
            self.hook_failed = self.run_hook()
        except Exception as failure:
            self.hook_failed = repr(failure)
        self.hook_returned = time.time()


def end_pod(containers, grace, scale):
    """Begins to end them; the threads that do it, to be joined."""
    threads = [
        threading.Thread(target=container.end, args=(grace, MINIMUM * scale, containers), daemon=True) for container in containers
    ]
    for thread in threads:
        thread.start()
    return threads

"""Keycloak: started, stopped, asked for tokens, told to change its keys. And what can be done to a token."""

import base64
import itertools
import json
import shutil
import time
from dataclasses import dataclass

from parts import HERE, ROOT, Part, http

ADMIN = "admin"


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(part):
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def header(token):
    return json.loads(decode(token.split(".")[0]))


def claims(token):
    return json.loads(decode(token.split(".")[1]))


def with_claims(token, **changes):
    """The same token with other claims under the old signature."""
    head, payload, signature = token.split(".")
    changed = json.loads(decode(payload)) | changes
    return f"{head}.{encode(json.dumps(changed).encode())}.{signature}"


def wait_until_expired(token, leeway=1):
    time.sleep(max(0, claims(token)["exp"] + leeway + 0.2 - time.time()))


@dataclass(frozen=True)
class Tokens:
    access: str
    refresh: str
    id: str


class Keycloak(Part):
    """Its database is in memory: a restart makes new keys, as a lost realm would."""

    name = "keycloak"
    patience = 170  # the soak's own one starts beside it
    home = ROOT / ".cache" / "keycloak" / "home"

    def __init__(self, logs, realms=("demo", "other"), port=None):
        super().__init__(logs, port)
        self.realms = realms
        self.issued = []
        self.priorities = itertools.count(200)  # the highest signs; those of the import have 100

    def command(self):
        imports = self.home / "data" / "import"
        shutil.rmtree(imports, ignore_errors=True)
        imports.mkdir(parents=True)
        for realm in self.realms:
            shutil.copy(HERE / "keycloak" / f"{realm}-realm.json", imports)
        # Not start-dev: it builds again at each start, and takes twice as long.
        return [
            "bash", str(self.home / "bin" / "kc.sh"), "start", "--optimized", "--import-realm", "--cache=local",
            "--http-enabled=true", "--hostname-strict=false", "--http-host=127.0.0.1", f"--http-port={self.port}",
        ]  # fmt: skip

    def environment(self):
        return {
            "KC_BOOTSTRAP_ADMIN_USERNAME": ADMIN,
            "KC_BOOTSTRAP_ADMIN_PASSWORD": ADMIN,
            # C1 alone: half the CPU for a server that lives for minutes.
            "JAVA_OPTS_APPEND": "-Xmx512m -XX:TieredStopAtLevel=1",
        }

    def is_up(self):
        return http.get(self.issuer((*self.realms, "master")[0])).status_code == 200

    def issuer(self, realm):
        return f"{self.url}/realms/{realm}"

    def keys(self, realm):
        """The keys that are published for signatures."""
        keys = http.get(f"{self.issuer(realm)}/protocol/openid-connect/certs").json()["keys"]
        return [key for key in keys if key["use"] == "sig"]

    def login(self, user, *, realm="demo", client="chat", scope="openid organization"):
        """A password grant."""
        return self._grant(realm, client, grant_type="password", username=user, password=f"{user}-password", scope=scope)

    def renew(self, tokens):
        """A refresh grant: as good as a login and much cheaper for Keycloak."""
        said = claims(tokens.refresh)
        realm = said["iss"].rpartition("/")[2]
        return self._grant(realm, said["azp"], grant_type="refresh_token", refresh_token=tokens.refresh)

    def log_out(self, tokens):
        """The end of this login, by its refresh token; who has a back channel is told before it returns."""
        said = claims(tokens.refresh)
        form = {"client_id": said["azp"], "refresh_token": tokens.refresh}
        http.post(f"{said['iss']}/protocol/openid-connect/logout", data=form).raise_for_status()

    def _grant(self, realm, client, **form):
        answer = http.post(f"{self.issuer(realm)}/protocol/openid-connect/token", data={"client_id": client, **form})
        assert answer.status_code == 200, answer.text
        said = answer.json()
        tokens = Tokens(said["access_token"], said["refresh_token"], said.get("id_token", ""))
        self.issued += [token for token in (tokens.access, tokens.refresh, tokens.id) if token]
        return tokens

    def admin(self, method, path, **options):
        form = {"client_id": "admin-cli", "grant_type": "password", "username": ADMIN, "password": ADMIN}
        login = http.post(f"{self.issuer('master')}/protocol/openid-connect/token", data=form).json()
        bearer = {"Authorization": f"Bearer {login['access_token']}"}
        answer = http.request(method, f"{self.url}/admin{path}", headers=bearer, **options)
        answer.raise_for_status()
        return answer

    def add_realm(self, representation):
        """If it is not there; a restart forgets it."""
        if http.get(self.issuer(representation["realm"])).status_code == 404:
            self.admin("POST", "/realms", json=representation)

    def take_role(self, realm, user, role):
        """From the next token on the user has this realm role no longer."""
        (found,) = self.admin("GET", f"/realms/{realm}/users", params={"username": user, "exact": True}).json()
        known = self.admin("GET", f"/realms/{realm}/roles/{role}").json()
        self.admin("DELETE", f"/realms/{realm}/users/{found['id']}/role-mappings/realm", json=[known])

    def add_key(self, realm):
        """A new RS256 key that signs from now on; the old ones are still published."""
        key = {
            "name": "newer",
            "providerId": "rsa-generated",
            "providerType": "org.keycloak.keys.KeyProvider",
            "parentId": self.admin("GET", f"/realms/{realm}").json()["id"],
            "config": {"priority": [str(next(self.priorities))], "algorithm": ["RS256"]},
        }
        self.admin("POST", f"/realms/{realm}/components", json=key)

    def remove_key(self, realm, kid):
        """The key is neither used nor published any longer."""
        keys = self.admin("GET", f"/realms/{realm}/keys").json()["keys"]
        provider = next(key["providerId"] for key in keys if key.get("kid") == kid)
        self.admin("DELETE", f"/realms/{realm}/components/{provider}")

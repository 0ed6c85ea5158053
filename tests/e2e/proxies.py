"""Proxies before a gate, which tell it whom they speak for: those that this machine has, or else a small one of
ours."""

import shutil
import sys

from parts import Part, http


class Proxy(Part):
    def __init__(self, logs, gate):
        super().__init__(logs)
        self.gate = gate
        self.folder = self.log.with_suffix(".d")
        self.config = self.folder / "config"

    def write_config(self, text):
        self.folder.mkdir(exist_ok=True)
        self.config.write_text(text)

    def is_up(self):
        return http.get(f"{self.url}/api/echo/").status_code == 200


class Nginx(Proxy):
    name = "nginx"

    def command(self):
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        folders = "".join(f"{kind}_temp_path {self.folder}/{kind};\n" for kind in kinds)
        self.write_config(f"""
            daemon off;
            master_process off;
            pid {self.folder}/pid;
            error_log stderr warn;
            events {{}}
            http {{
                access_log off;
                {folders}
                server {{
                    listen 127.0.0.1:{self.port};
                    location / {{
                        proxy_pass {self.gate.url};
                        proxy_http_version 1.1;
                        proxy_set_header Host $http_host;
                        proxy_set_header Upgrade $http_upgrade;
                        proxy_set_header Connection upgrade;
                        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                    }}
                }}
            }}
        """)
        return ["nginx", "-e", "stderr", "-p", str(self.folder), "-c", str(self.config)]


class Haproxy(Proxy):
    name = "haproxy"

    def command(self):
        self.write_config(f"""
global
    maxconn 100
defaults
    mode http
    option forwardfor
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout tunnel 60s
listen gate
    bind 127.0.0.1:{self.port}
    server gate 127.0.0.1:{self.gate.port}
""")
        return ["haproxy", "-db", "-f", str(self.config)]


class Forwarder(Proxy):
    name = "forwarder"

    def command(self):
        return [sys.executable, "forwarder.py", str(self.port), str(self.gate.port)]


PROXIES = [proxy for proxy in (Nginx, Haproxy) if shutil.which(proxy.name)] or [Forwarder]

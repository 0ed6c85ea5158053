//! Who listens where, as a configuration for the gate and as lines for a terminal.

use super::issuer;
use crate::base::value::quoted;

/// A real issuer in place of the embedded one.
#[derive(Clone, Debug)]
pub(super) struct External {
    pub(super) issuer: String,
    pub(super) client: String,
    pub(super) audience: Option<String>,
}

/// Ports on loopback, and an issuer of the visitor's.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) gate: u16,
    pub(super) admin: u16,
    pub(super) issuer: u16,
    pub(super) backend: u16,
    pub(super) external: Option<External>,
}

impl Setting {
    /// What the embedded issuer calls itself.
    pub(super) fn embedded(&self) -> String {
        format!("http://127.0.0.1:{}{}", self.issuer, issuer::REALM)
    }

    /// What the terminal shows, and the page too: lines that work as they are.
    pub(super) fn commands(&self) -> [String; 3] {
        let gate = format!("127.0.0.1:{}", self.gate);
        let token = match self.external {
            None => format!("$(curl -s 'http://{gate}{}/token?user=alice')", issuer::REALM),
            Some(_) => "$TOKEN".to_owned(),
        };
        [
            format!("curl -i http://{gate}/api/me -H \"Authorization: Bearer {token}\""),
            format!("websocat \"ws://{gate}/ws/chat/?token={token}\""),
            format!("http://{gate}/"),
        ]
    }

    /// The configuration of the demo's gate. The page shows it, so its comments are for the visitor.
    pub(super) fn configuration(&self) -> String {
        let Self { gate, admin, backend, .. } = self;
        let (issuer, source, realm) = match &self.external {
            None => (self.embedded_section(), String::new(), self.embedded_route()),
            Some(external) => (external.section(), format!(", {}", quoted(external.origin())), String::new()),
        };
        format!(
            r#"[listen]
address = "127.0.0.1:{gate}"
max_connections = 200               # few files may be open on a desktop

[admin]
address = "127.0.0.1:{admin}"

[limits]
attempts_per_address = "off"        # its page fails on purpose, again and again
sessions_per_user = 5
messages_per_session = "20/1s"
message = "64KiB"

[upstream]                          # it has no authentication code
url = "http://127.0.0.1:{backend}"

{issuer}
[token]
from = ["header", "subprotocol", "query:token", "cookie:token"]

[[route]]
path = "/ws/*"                      # any valid token

[[route]]
path = "/ws/events/{{org_id}}/"
claims = {{ organization = "{{org_id}}" }}

[[route]]
path = "/ws/staff/"
roles = ["admin"]

[[route]]
path = "/api/*"                     # plain HTTP, too

[[route]]
path = "/demo/*"                    # what an operator does, for the buttons of the page alone
auth = "none"

{realm}# No route names the page at "/": plain HTTP passes, a WebSocket there is route_unknown.

[csp.policy]                        # of the page, which may open sockets to any gate
default-src = ["'none'"]
script-src = ["'self'"]
style-src = ["'self'"]
img-src = ["'self'"]
connect-src = ["'self'", "ws:", "wss:"{source}]
frame-src = ["http://127.0.0.1:*", "http://localhost:*"]
frame-ancestors = ["http://127.0.0.1:*", "http://localhost:*"]
base-uri = ["'none'"]
form-action = ["'none'"]

[drain]
delay = "0s"
spread = "0s"
deadline = "3s"

[log]
format = "text"
"#
        )
    }

    fn embedded_section(&self) -> String {
        format!(
            r#"[[issuer]]
url = "{}"
audiences = ["chat"]
leeway = "0s"                       # one clock for all: a token ends to the second
"#,
            self.embedded()
        )
    }

    fn embedded_route(&self) -> String {
        format!(
            r#"[[route]]                           # the issuer, so that the browser needs one port only
path = "{}/*"
auth = "none"
upstream = {{ url = "http://127.0.0.1:{}" }}

"#,
            issuer::REALM.rsplit_once('/').map_or("", |(folder, _)| folder),
            self.issuer
        )
    }
}

impl External {
    fn section(&self) -> String {
        let audience = match &self.audience {
            Some(audience) => format!("audiences = [{}]\n", quoted(audience)),
            None => "any_audience = true                 # in earnest: audiences = [\"…\"]\n".to_owned(),
        };
        format!("[[issuer]]\nurl = {}\n{audience}", quoted(&self.issuer))
    }

    /// Where the page goes for tokens.
    fn origin(&self) -> &str {
        let path =
            self.issuer.find("://").and_then(|at| Some(at + 3 + self.issuer.get(at + 3..)?.find('/')?));
        path.and_then(|at| self.issuer.get(..at)).unwrap_or(&self.issuer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_of_an_issuer_is_all_before_its_path() {
        for (issuer, origin) in [
            ("https://sso.example.com/realms/demo", "https://sso.example.com"),
            ("http://127.0.0.1:8180/realms/demo", "http://127.0.0.1:8180"),
            ("https://sso.example.com", "https://sso.example.com"),
        ] {
            let external = External { issuer: issuer.into(), client: String::new(), audience: None };
            assert_eq!(external.origin(), origin);
        }
    }
}

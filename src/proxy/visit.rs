//! One request as every step sees it: its head, who it is from, and what browsers see of the gate.

use std::borrow::Cow;

use http::request::Parts;

use super::plan::{PublicUrl, Settings};
use crate::base::reject::Reason;
use crate::policy::expression::RequestView;
use crate::policy::origin::Own;
use crate::policy::peer::Peer;

/// A request and its client.
#[derive(Clone, Copy, Debug)]
pub struct Visit<'a> {
    pub head: &'a Parts,
    /// As sent.
    pub host: &'a str,
    pub peer: &'a Peer,
    /// What a route in shadow mode has let pass already.
    pub noted: Option<Reason>,
}

/// The gate as browsers see it.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    pub secure: bool,
    /// With its port, unless that is the scheme's own.
    pub host: Cow<'a, str>,
    pub port: u16,
    /// Of `public_url`.
    pub origin: Option<&'a str>,
}

impl Seen<'_> {
    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    pub fn own(&self) -> Own<'_> {
        Own { public_origin: self.origin, host: &self.host }
    }
}

impl<'a> Visit<'a> {
    /// By `public_url`, else by what a trusted proxy says, else by `Host`.
    pub fn seen(&self, settings: &'a Settings) -> Seen<'a> {
        if let Some(PublicUrl { origin, scheme, host, port }) = &settings.public_url {
            let (secure, host) = (scheme == "https", Cow::Borrowed(host.as_str()));
            return Seen { secure, host, port: *port, origin: Some(origin) };
        }
        let secure = self.peer.proto == Some("https");
        let standard = if secure { 443 } else { 80 };
        let host = self.peer.host.as_deref().unwrap_or(self.host);
        let written = host.rsplit_once(':').and_then(|(_, port)| port.trim_end_matches(']').parse().ok());
        let (host, port) = match (written, self.peer.port) {
            (Some(port), _) if !host.ends_with(']') => (host.into(), port),
            (_, Some(port)) if port != standard => (format!("{host}:{port}").into(), port),
            (_, _) => (host.into(), standard),
        };
        Seen { secure, host, port, origin: None }
    }

    /// What a rule may know of it.
    pub fn view(&self) -> RequestView<'a> {
        let origin = self.head.headers.get(http::header::ORIGIN);
        RequestView {
            method: self.head.method.as_str(),
            path: self.head.uri.path(),
            host: self.host,
            origin: origin.and_then(|origin| origin.to_str().ok()),
            address: self.peer.address,
            headers: Some(&self.head.headers),
        }
    }
}

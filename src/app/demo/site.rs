//! The page and its files. It brings all that it needs, under the policy of the demo's own configuration.

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;

use super::answer::{Answer, answer};
use super::issuer::USERS;
use super::setting::Setting;

/// With `{{data}}`, `{{config}}` and `{{commands}}` to be filled in.
const PAGE: &str = include_str!("page.html");
const FILES: [(&str, &str, &str); 7] = [
    ("/page.css", "text/css", include_str!("page.css")),
    ("/page.mjs", "text/javascript", include_str!("page.mjs")),
    ("/tokens.mjs", "text/javascript", include_str!("tokens.mjs")),
    ("/sidegate.mjs", "text/javascript", include_str!("../../../clients/sidegate.mjs")),
    ("/frame", "text/html; charset=utf-8", include_str!("frame.html")),
    ("/frame.mjs", "text/javascript", include_str!("frame.mjs")),
    ("/icon.svg", "image/svg+xml", include_str!("icon.svg")),
];

/// The page, with what it would otherwise have to repeat.
pub(super) fn page(setting: &Setting) -> String {
    let users: Vec<_> = USERS
        .iter()
        .map(|user| json!({"name": user.name, "organization": user.organization, "roles": user.roles}))
        .collect();
    let external = setting.external.as_ref();
    let issuer = external.map(|external| json!({"url": external.issuer, "client": external.client}));
    // "</script>" inside a text would end the element.
    let data = json!({"users": users, "issuer": issuer}).to_string().replace('<', "\\u003c");
    let [curl, websocat, _] = setting.commands();
    PAGE.replace("{{config}}", &escaped(&setting.configuration()))
        .replace("{{commands}}", &escaped(&format!("{curl}\n\n{websocat}")))
        .replace("{{data}}", &data)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// What is at a path that is not the page itself.
pub(super) fn file(path: &str) -> Option<Answer> {
    let (_, content_type, text) = FILES.into_iter().find(|(name, ..)| *name == path)?;
    Some(answer(StatusCode::OK, content_type, Bytes::from_static(text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::super::setting::External;
    use super::*;

    #[test]
    fn the_page_stands_alone() {
        for (name, _, text) in FILES.iter().chain([&("/", "", PAGE)]) {
            let links: Vec<_> = text.match_indices("https://").chain(text.match_indices("http://")).collect();
            let told = ["/page.mjs", "/frame.mjs", "/icon.svg"].contains(name);
            assert!(told || links.is_empty(), "{name}: {links:?}");
            assert!(!text.contains("@import") && !text.contains("style="), "{name}");
        }
        assert!(!PAGE.contains("<script>") && !PAGE.contains("<style"));
    }

    #[test]
    fn what_is_filled_in_ends_no_element() {
        let external =
            External { issuer: "http://a/</script><i>".into(), client: "a&b".into(), audience: None };
        let page = page(&Setting { gate: 1, admin: 2, issuer: 3, backend: 4, external: Some(external) });
        assert_eq!(page.matches("</script>").count(), PAGE.matches("</script>").count());
        assert!(!page.contains("<i>") && !page.contains("{{"));
        assert!(page.contains("alice"));
    }
}

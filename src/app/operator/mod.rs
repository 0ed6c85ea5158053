//! What an operator asks of a running gate: who is on it, throw them out, who may not come back, what is
//! limited, what is configured.

mod asked;
mod revocations;
mod sessions;

use std::sync::Arc;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use self::asked::{Wrong, parameters};
use super::answer::{Answer, Asker, json_answer, problem};
use super::drain::Control;
use crate::base::effective;
use crate::base::value::{Rate, Value as _};
use crate::proxy::gate::Gate;
use crate::proxy::plan::Plan;

/// All that the admin listener answers.
pub const ALL: &str = "GET /livez /readyz /metrics /drained /sessions /revocations /limits /config, DELETE /sessions /revocations/ID, POST /revocations /drain";

/// Whether a path is one for operators.
pub fn has(path: &str) -> bool {
    matches!(path, "/sessions" | "/revocations" | "/limits" | "/config" | "/drain")
        || path.starts_with("/revocations/")
}

/// Answers one who may ask.
pub async fn answer(control: &Arc<Control>, asker: Asker, request: Request<Incoming>) -> Answer {
    let result = dispatch(control, asker, request).await;
    result.unwrap_or_else(|Wrong(status, detail)| problem(status, &detail))
}

async fn dispatch(control: &Arc<Control>, asker: Asker, request: Request<Incoming>) -> Result<Answer, Wrong> {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    let gate = control.gate();
    match (&head.method, head.uri.path()) {
        (&Method::GET, "/sessions") => sessions::list(gate, query),
        (&Method::DELETE, "/sessions") => sessions::close(gate, asker, query),
        (&Method::GET, "/revocations") => revocations::list(gate, query),
        (&Method::POST, "/revocations") => {
            parameters(query, &[])?;
            revocations::post(gate, asker, body).await
        }
        (&Method::GET, "/limits") => parameters(query, &[]).map(|_| limits(gate)),
        (&Method::GET, "/config") => {
            parameters(query, &[])?;
            Ok(json_answer(StatusCode::OK, &effective::json(&control.effective())))
        }
        (&Method::POST, "/drain") => {
            parameters(query, &[])?;
            control.drain();
            Ok(json_answer(StatusCode::ACCEPTED, &json!({"draining": true})))
        }
        (&Method::DELETE, path) => match path.strip_prefix("/revocations/") {
            Some(id) => {
                parameters(query, &[])?;
                revocations::withdraw(gate, asker, id).await
            }
            None => Err(Wrong(StatusCode::METHOD_NOT_ALLOWED, ALL.into())),
        },
        _ => Err(Wrong(StatusCode::METHOD_NOT_ALLOWED, ALL.into())),
    }
}

fn limits(gate: &Gate) -> Answer {
    let snapshot = gate.snapshot.load_full();
    let settings = &snapshot.settings;
    let rate = |rate: Option<Rate>| rate.map(|rate| rate.show().trim_matches('"').to_owned());
    let route = |plan: &Arc<Plan>| {
        json!({
            "route": plan.name,
            "sessions_per_address": plan.limits.per_address.limit,
            "sessions_per_user": plan.limits.per_user.limit,
            "on_user_limit": plan.limits.on_user_limit.word(),
            "messages_per_session": rate(plan.frames.rate),
        })
    };
    let body = json!({
        "attempts_per_address": rate(settings.limits.attempts),
        "attempts_count": settings.limits.attempts_count.word(),
        "sessions": settings.limits.sessions,
        "routes": settings.routes.values().map(route).collect::<Vec<_>>(),
        "held": {
            "sessions": gate.permits.taken(),
            "connections": gate.connections.taken(),
            "users": gate.users.keys(),
            "addresses": gate.addresses.keys(),
            "tracked_addresses": gate.attempts.tracked(),
        },
    });
    json_answer(StatusCode::OK, &body)
}

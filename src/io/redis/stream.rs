//! The stream of revocations: snapshot and tail in one. Who starts reads it from its beginning, who was cut
//! off from where they stopped, and then all wait for what comes.
//!
//! Key `PREFIX{v1}:revocations`. Fields of an entry: `op` = `revoke`, `withdraw` or `displace`; `by` = the
//! replica that wrote it; `ttl` = seconds from the entry's own time, after which it means nothing.
//! `revoke`: `kind` = `jti`, `sid`, `sub`, `sub_before` or `before`; `iss`, `value`; `before` = milliseconds
//! since the epoch, for the kinds that have a moment; `note`. `withdraw`: `id` of a revocation.
//! `displace`: `replica` and `session`, which has to give way to a newer one of its user.

use std::collections::HashMap;
use std::time::Duration;

use redis::streams::{StreamId, StreamRangeReply, StreamReadReply};
use redis::{FromRedisValue, Value, cmd};

use super::link::{Away, Shared};
use super::server::Connection;
use crate::base::clock::Unix;
use crate::policy::revocation::{Kind, Selector};

/// Read, told or deleted at once.
pub const AT_ONCE: usize = 1000;
/// Who tells something waits no longer for the answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// A session that has to give way does so at once, or its replica is gone.
const DISPLACED_FOR: Duration = Duration::from_secs(60);
/// Clocks do not go apart by so much by themselves.
const CLOCK_SET: Duration = Duration::from_secs(1);
/// Longest text in an entry, as in what operators may post.
const MAX_TEXT: usize = 16 * 1024;

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Revoked { selector: Selector, note: Option<String> },
    Withdrawn { id: String },
    Displaced { replica: String, session: u64 },
}

/// An entry of the stream, its times by our clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub id: String,
    pub at: Unix,
    pub expires: Unix,
    pub by: String,
    /// `None` = not understood.
    pub news: Option<News>,
}

/// The place of an entry among all: milliseconds of the server's clock, and a number.
pub type Position = (u64, u64);

impl Told {
    pub fn position(&self) -> Position {
        let (millis, number) = self.id.split_once('-').unwrap_or_default();
        (millis.parse().unwrap_or_default(), number.parse().unwrap_or_default())
    }
}

/// What tells one stream from another that has taken its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Of the server's process; `None` = it does not say.
    pub run: Option<String>,
    pub anchor: Option<Anchor>,
}

/// An entry that has to be there until it expires.
pub type Anchor = (String, Unix);

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Sub => "sub",
        Kind::Jti => "jti",
        Kind::Sid => "sid",
        Kind::SubBefore => "sub_before",
        Kind::Before => "before",
    }
}

fn whole_seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}

impl News {
    fn fields(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Revoked { selector, note } => {
                let mut fields = vec![
                    ("op", "revoke".to_owned()),
                    ("kind", word(selector.kind).to_owned()),
                    ("iss", selector.iss.clone()),
                    ("value", selector.value.clone()),
                ];
                let before = selector.issued_before.map(|moment| moment.0.as_millis().to_string());
                fields.extend(before.map(|before| ("before", before)));
                fields.extend(note.clone().map(|note| ("note", note)));
                fields
            }
            Self::Withdrawn { id } => vec![("op", "withdraw".to_owned()), ("id", id.clone())],
            Self::Displaced { replica, session } => vec![
                ("op", "displace".to_owned()),
                ("replica", replica.clone()),
                ("session", session.to_string()),
            ],
        }
    }

    fn of(fields: &HashMap<String, String>) -> Option<Self> {
        let text = |name: &str| fields.get(name).filter(|text| text.len() <= MAX_TEXT).cloned();
        match fields.get("op")?.as_str() {
            "revoke" => {
                let kind = *Kind::ALL.iter().find(|kind| Some(word(**kind)) == text("kind").as_deref())?;
                let issued_before = if kind.has_moment() {
                    Some(Unix(Duration::from_millis(text("before")?.parse().ok()?)))
                } else {
                    None
                };
                let selector = Selector { kind, iss: text("iss")?, value: text("value")?, issued_before };
                Some(Self::Revoked { selector, note: text("note") })
            }
            "withdraw" => Some(Self::Withdrawn { id: text("id")? }),
            "displace" => {
                Some(Self::Displaced { replica: text("replica")?, session: text("session")?.parse().ok()? })
            }
            _ => None,
        }
    }
}

impl Shared {
    fn stream(&self) -> String {
        self.key("revocations")
    }

    fn entry(&self, news: &News, ttl: Duration) -> redis::Cmd {
        let mut add = cmd("XADD");
        add.arg(self.stream()).arg("*").arg("by").arg(self.replica()).arg("ttl").arg(whole_seconds(ttl));
        for (name, value) in news.fields() {
            add.arg(name).arg(value);
        }
        add
    }

    /// Tells all replicas of the revocation of this id. What does not get through is told when they are in
    /// touch again.
    pub async fn publish(&self, id: &str, news: &News, ttl: Duration) -> Result<(), Away> {
        let told = self.tell(news, ttl).await;
        if told.is_err() {
            self.add_pending(id);
            self.set_unpublished(true);
            self.wake();
        }
        told
    }

    /// As [`Self::publish`], but what does not get through has not happened.
    pub async fn tell(&self, news: &News, ttl: Duration) -> Result<(), Away> {
        self.ask_for::<String>(PATIENCE, &self.entry(news, ttl)).await.map(|_| ())
    }

    /// As [`Self::publish`], many at once, on a connection that only its keeper knows of yet.
    pub async fn publish_all(
        &self,
        connection: &mut Connection,
        all: &[(News, Duration)],
    ) -> Result<(), Away> {
        let mut pipeline = redis::pipe();
        for (news, ttl) in all {
            pipeline.add_command(self.entry(news, *ttl));
        }
        let _: Vec<Value> = pipeline.query_async(connection).await?;
        Ok(())
    }

    /// A session of another replica has to give way.
    pub async fn displace(&self, replica: String, session: u64) -> Result<(), Away> {
        self.tell(&News::Displaced { replica, session }, DISPLACED_FOR).await
    }

    /// The next entries after `after`, which is an id, or empty for the first of all.
    pub async fn range(&self, connection: &mut Connection, after: &str) -> Result<Vec<Told>, Away> {
        let from = if after.is_empty() { "-".to_owned() } else { format!("({after}") };
        let mut range = cmd("XRANGE");
        range.arg(self.stream()).arg(from).arg("+").arg("COUNT").arg(AT_ONCE);
        let reply: StreamRangeReply = range.query_async(connection).await?;
        Ok(reply.ids.into_iter().map(|entry| self.read(entry)).collect())
    }

    /// Waits for what comes after `after`.
    pub async fn tail(
        &self,
        connection: &mut Connection,
        after: &str,
        wait: Duration,
    ) -> Result<Vec<Told>, Away> {
        let after = if after.is_empty() { "0-0" } else { after };
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(AT_ONCE).arg("BLOCK").arg(wait.as_millis().to_string());
        read.arg("STREAMS").arg(self.stream()).arg(after);
        let reply: Option<StreamReadReply> = read.query_async(connection).await?;
        let entries: Vec<_> =
            reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids).collect();
        // What has just been told cannot be long ago, nor is it still to come: unless a clock was set.
        let newest = entries.last().map(|entry| self.read(entry.clone()).at);
        if newest.is_some_and(|at| at.0.abs_diff(Unix::now().0) > CLOCK_SET) {
            self.compare_clocks(connection).await?;
        }
        Ok(entries.into_iter().map(|entry| self.read(entry)).collect())
    }

    fn read(&self, entry: StreamId) -> Told {
        let at: u64 = entry.id.split('-').next().and_then(|ms| ms.parse().ok()).unwrap_or_default();
        let text = |(name, value)| Some((name, String::from_redis_value(value).ok()?));
        let fields: HashMap<String, String> = entry.map.into_iter().filter_map(text).collect();
        let ttl = fields.get("ttl").and_then(|ttl| ttl.parse().ok()).map(Duration::from_secs);
        let at = self.by_our_clock(at);
        // One without an end is not understood, for what is kept must end.
        let news = ttl.and_then(|_| News::of(&fields));
        let expires = Unix(at.0.saturating_add(ttl.unwrap_or_default()));
        let by = fields.get("by").cloned().unwrap_or_default();
        Told { id: entry.id, at, expires, by, news }
    }

    /// Which stream it is.
    pub async fn mark(&self, connection: &mut Connection) -> Result<Mark, Away> {
        // Who may not ask that reads the stream as a whole after each loss of the connection.
        let info = cmd("INFO").arg("server").query_async::<String>(connection).await.unwrap_or_default();
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        Ok(Mark { run: run.map(|run| run.trim().to_owned()), anchor: self.newest(connection).await? })
    }

    /// The newest entry.
    pub async fn newest(&self, connection: &mut Connection) -> Result<Option<Anchor>, Away> {
        let mut last = cmd("XREVRANGE");
        last.arg(self.stream()).arg("+").arg("-").arg("COUNT").arg(1);
        let reply: StreamRangeReply = last.query_async(connection).await?;
        let newest = reply.ids.into_iter().next().map(|entry| self.read(entry));
        Ok(newest.map(|told| (told.id, told.expires)))
    }

    /// Whether the stream is still the one with this anchor.
    pub async fn goes_on(&self, connection: &mut Connection, anchor: Option<&Anchor>) -> Result<bool, Away> {
        let Some((id, _)) = anchor.filter(|(_, expires)| *expires > Unix::now()) else { return Ok(true) };
        let mut range = cmd("XRANGE");
        let reply: StreamRangeReply =
            range.arg(self.stream()).arg(id).arg(id).query_async(connection).await?;
        Ok(!reply.ids.is_empty())
    }

    /// For one replica at a time: may this one tell what the stream lacks?
    pub async fn may_restore(&self, connection: &mut Connection) -> Result<bool, Away> {
        const FOR: u64 = 10_000;
        let mut set = cmd("SET");
        set.arg(self.key("restoring")).arg(self.replica()).arg("NX").arg("PX").arg(FOR);
        let set: Option<String> = set.query_async(connection).await?;
        Ok(set.is_some())
    }

    /// It has told all.
    pub async fn has_restored(&self, connection: &mut Connection) -> Result<(), Away> {
        let _: u64 = cmd("DEL").arg(self.key("restoring")).query_async(connection).await?;
        Ok(())
    }

    /// Deletes what has expired, of a part of the stream after another: returns where the next begins.
    pub async fn trim(
        &self,
        connection: &mut Connection,
        mut after: String,
        now: Unix,
    ) -> Result<String, Away> {
        loop {
            let part = self.range(connection, &after).await?;
            let Some(last) = part.last() else { return Ok(String::new()) };
            after.clone_from(&last.id);
            let expired: Vec<&str> =
                part.iter().filter(|told| told.expires <= now).map(|told| told.id.as_str()).collect();
            if expired.is_empty() {
                return Ok(after);
            }
            let _: u64 = cmd("XDEL").arg(self.stream()).arg(&expired).query_async(connection).await?;
        }
    }

    /// Whether the server may throw out what it was given: a warning in its own words.
    pub async fn may_evict(&self, connection: &mut Connection) -> Option<String> {
        let info: String = cmd("INFO").arg("memory").query_async(connection).await.ok()?;
        let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"))?.trim().to_owned();
        let bounded = info.lines().any(|line| line.starts_with("maxmemory:") && line.trim() != "maxmemory:0");
        (bounded && policy.starts_with("allkeys")).then_some(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(news: &News) -> HashMap<String, String> {
        news.fields().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    #[test]
    fn what_is_told_is_understood() {
        let note = Some("left".to_owned());
        for kind in Kind::ALL {
            let issued_before = kind.has_moment().then(|| Unix(Duration::from_millis(1_700_000_000_123)));
            let selector = Selector { kind, iss: "https://a".into(), value: "x y".into(), issued_before };
            for note in [None, note.clone()] {
                let news = News::Revoked { selector: selector.clone(), note };
                assert_eq!(News::of(&fields(&news)), Some(news));
            }
        }
        for news in
            [News::Withdrawn { id: "ab".into() }, News::Displaced { replica: "r".into(), session: u64::MAX }]
        {
            assert_eq!(News::of(&fields(&news)), Some(news));
        }
    }

    #[test]
    fn what_is_not_understood_is_nothing() {
        let selector = Selector { kind: Kind::Jti, iss: "i".into(), value: "v".into(), issued_before: None };
        let good = fields(&News::Revoked { selector, note: None });
        for (name, value) in [
            ("op", Some("revoked")),
            ("op", None),
            ("kind", Some("JTI")),
            ("kind", Some("sub_before")),
            ("iss", None),
            ("value", None),
            ("value", Some("v".repeat(MAX_TEXT + 1).as_str())),
        ] {
            let mut fields = good.clone();
            fields.remove(name);
            fields.extend(value.map(|value| (name.to_owned(), value.to_owned())));
            assert_eq!(News::of(&fields), None, "{name}");
        }
    }
}

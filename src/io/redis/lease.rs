//! Sessions of users, counted over all replicas.
//!
//! Key `PREFIX{v1}:sessions:REPLICA`: a sorted set, all scores 0, of one member for each session that counts:
//! the user in 32 hexadecimal digits, when it began in 13 digits (milliseconds since the epoch, by the
//! server's clock), `-`, its id on that replica; and one empty member. It lives for [`LEASE`] and is renewed
//! while its replica does: those of a crashed one vanish by themselves. Key `PREFIX{v1}:replicas`: the set of
//! all replicas.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{Script, Value, cmd};

use super::link::{Away, PATIENCE, Shared, millis};
use super::releases::{Claim, started};
use super::server::Connection;
use crate::base::clock::Unix;
use crate::state::tally::Along as _;

/// A replica that is gone counts for no longer than this.
const LEASE: Duration = Duration::from_secs(30);
/// So often a lease is renewed.
pub const RENEWAL: Duration = Duration::from_secs(10);
/// Told in one go.
const AT_ONCE: usize = 1000;
/// A session younger than this may still be on its way from there to here.
const UNDER_WAY: Duration = Duration::from_secs(15);

/// Takes a place for a session if the user has fewer than the limit, or in place of the oldest of them.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local replicas, mine = KEYS[1], KEYS[2]
local member, user, limit, displace, prefix = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
if not redis.call('ZSCORE', mine, '') then return {'lost'} end
local from, to, total, oldest, owner = '[' .. user, '(' .. user .. '~', 0, nil, nil
for _, replica in ipairs(redis.call('SMEMBERS', replicas)) do
    local key = prefix .. replica
    local held = redis.call('ZLEXCOUNT', key, from, to)
    if held > 0 then
        total = total + held
        local first = redis.call('ZRANGEBYLEX', key, from, to, 'LIMIT', 0, 1)[1]
        if not oldest or first < oldest then oldest, owner = first, replica end
    elseif redis.call('EXISTS', key) == 0 then
        redis.call('SREM', replicas, replica)
    end
end
if total < limit then
    redis.call('ZADD', mine, 0, member)
    return {'granted'}
end
if displace == '1' and oldest then
    redis.call('ZREM', prefix .. owner, oldest)
    redis.call('ZADD', mine, 0, member)
    return {'displaced', owner, oldest}
end
return {'full'}
",
    )
});

/// What has become of the wish for a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    Granted,
    /// In place of the oldest session of the user.
    InsteadOf {
        replica: String,
        session: u64,
    },
    Full,
}

impl Shared {
    fn sessions_prefix(&self) -> String {
        self.key("sessions:")
    }

    fn mine(&self) -> String {
        format!("{}{}", self.sessions_prefix(), self.replica())
    }

    fn replicas(&self) -> String {
        self.key("replicas")
    }

    /// Asks for a place for one more session of a user.
    pub async fn take(&self, claim: &Claim, user: u128, limit: u32, displace: bool) -> Result<Taken, Away> {
        let mut call = TAKE.key(self.replicas());
        call.key(self.mine());
        call.arg(claim.name()).arg(format!("{user:032x}")).arg(limit);
        call.arg(i32::from(displace)).arg(self.sessions_prefix());
        let mut connection = self.connection()?;
        let answer: Vec<String> = self.within(PATIENCE, call.invoke_async(&mut connection)).await?;
        let mut answer = answer.into_iter();
        match (answer.next().as_deref(), answer.next(), answer.next()) {
            (Some("granted"), ..) => Ok(Taken::Granted),
            (Some("displaced"), Some(replica), Some(member)) => {
                let session = member.rsplit('-').next().and_then(|id| id.parse().ok()).unwrap_or_default();
                Ok(Taken::InsteadOf { replica, session })
            }
            (Some("full"), ..) => Ok(Taken::Full),
            // The next renewal finds it out too.
            _ => Err(Away::LeaseLost),
        }
    }

    /// Makes what is known there equal to what this replica holds, and begins the lease anew.
    pub async fn settle(&self, connection: &mut Connection, held: &HashSet<String>) -> Result<(), Away> {
        self.releases.untold.store(false, Ordering::Release);
        let mine = self.mine();
        let known: HashSet<String> = cmd("ZRANGE").arg(&mine).arg(0).arg(-1).query_async(connection).await?;
        let recent = self.by_their_clock(Unix::now()).0.saturating_sub(UNDER_WAY).as_millis();
        let is_old = |member: &&String| started(member).is_some_and(|at| u128::from(at) < recent);
        let gone: Vec<&String> = known.difference(held).filter(is_old).collect();
        let new: Vec<(u8, &String)> = held.difference(&known).map(|member| (0, member)).collect();
        let mut pipeline = redis::pipe();
        pipeline.atomic().zadd(&mine, "", 0).ignore();
        for part in new.chunks(AT_ONCE) {
            pipeline.zadd_multiple(&mine, part).ignore();
        }
        for part in gone.chunks(AT_ONCE) {
            pipeline.zrem(&mine, part).ignore();
        }
        pipeline.pexpire(&mine, millis(LEASE)).ignore();
        pipeline.sadd(self.replicas(), self.replica()).ignore();
        let () = pipeline.query_async(connection).await?;
        Ok(())
    }

    /// Whether the lease holds on: else it has to be settled anew.
    pub async fn renew_lease(&self, connection: &mut Connection) -> Result<bool, Away> {
        let mut pipeline = redis::pipe();
        pipeline.pexpire(self.mine(), millis(LEASE)).sadd(self.replicas(), self.replica()).ignore();
        let (renewed,): (bool,) = pipeline.query_async(connection).await?;
        Ok(renewed && !self.releases.untold.load(Ordering::Acquire))
    }

    /// Ends the lease: this replica goes.
    pub async fn end_lease(&self) {
        let mut pipeline = redis::pipe();
        pipeline.del(self.mine()).srem(self.replicas(), self.replica());
        if let Ok(mut connection) = self.connection() {
            let _ = self.within(PATIENCE, pipeline.query_async::<Vec<Value>>(&mut connection)).await;
        }
    }

    /// Tells what is given back, for ever.
    pub async fn tell_releases(&self, connection: &mut Connection) -> Result<Infallible, Away> {
        let mut told = self.releases.told.lock().await;
        let mut some = Vec::new();
        loop {
            some.clear();
            told.recv_many(&mut some, AT_ONCE).await;
            let _: u64 = cmd("ZREM").arg(self.mine()).arg(&some).query_async(connection).await?;
        }
    }
}

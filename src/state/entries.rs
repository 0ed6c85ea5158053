//! Where revocations are kept: found by a hash, held once.

use std::time::Duration;

use hashbrown::HashTable;

use super::naming::{id, short, spread};
use crate::base::clock::Unix;
use crate::policy::revocation::{Kind, Selector};

/// One revocation; about 110 bytes with its text and its place in the index.
#[derive(Debug)]
pub struct Entry {
    pub value: Box<str>,
    /// Why, in the words of whoever asked for it.
    pub note: Option<Box<str>>,
    /// Milliseconds since the epoch, for the kinds that have a moment.
    pub before: u64,
    /// Seconds since the epoch; 0 = was not asked for by anybody.
    pub expires: u32,
    /// Round of the file's reading in which it was seen; 0 = it is not in the file.
    pub round: u8,
    pub kind: Kind,
    pub issuer: u16,
}

impl Entry {
    pub fn holds(&self, now: u64) -> bool {
        self.round != 0 || u64::from(self.expires) > now
    }
}

/// A place in the index. The hash is kept, so that a growing index need not look at each entry again while
/// readers wait.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub position: u32,
    pub hash: u32,
}

#[derive(Debug, Default)]
pub struct Table {
    /// Where the entries are, by hash.
    pub index: HashTable<Slot>,
    pub entries: Vec<Option<Entry>>,
    pub free: Vec<u32>,
    /// Named by position: few, and long.
    pub issuers: Vec<Box<str>>,
    /// How many there are of each kind: what there is none of need not be looked up.
    pub kinds: [u32; Kind::ALL.len()],
}

impl Table {
    pub fn entry(&self, position: u32) -> Option<&Entry> {
        self.entries.get(position as usize).and_then(Option::as_ref)
    }

    pub fn entry_mut(&mut self, position: u32) -> Option<&mut Entry> {
        self.entries.get_mut(position as usize).and_then(Option::as_mut)
    }

    pub fn issuer(&self, entry: &Entry) -> &str {
        self.issuers.get(usize::from(entry.issuer)).map_or("", |iss| iss)
    }

    pub fn id_of(&self, entry: &Entry) -> u128 {
        id(entry.kind, self.issuer(entry), &entry.value)
    }

    pub fn find(&self, kind: Kind, iss: &str, value: &str) -> Option<u32> {
        let hash = short(id(kind, iss, value));
        let is_it = |slot: &Slot| {
            slot.hash == hash
                && self.entry(slot.position).is_some_and(|entry| {
                    entry.kind == kind && *entry.value == *value && self.issuer(entry) == iss
                })
        };
        self.index.find(spread(hash), is_it).map(|slot| slot.position)
    }

    /// Where the one of this name is.
    pub fn position(&self, id: u128) -> Option<u32> {
        let is_it = |slot: &Slot| self.entry(slot.position).is_some_and(|entry| self.id_of(entry) == id);
        self.index.find(spread(short(id)), is_it).map(|slot| slot.position)
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// A new entry that nobody holds yet.
    pub fn insert(&mut self, selector: &Selector) -> Option<u32> {
        let known = self.issuers.iter().position(|iss| **iss == *selector.iss);
        let issuer = known.unwrap_or_else(|| {
            self.issuers.push(selector.iss.as_str().into());
            self.issuers.len() - 1
        });
        let entry = Entry {
            value: selector.value.as_str().into(),
            note: None,
            before: 0,
            expires: 0,
            round: 0,
            kind: selector.kind,
            issuer: u16::try_from(issuer).ok()?,
        };
        let position = if let Some(free) = self.free.pop() {
            free
        } else {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).ok()?
        };
        *self.entries.get_mut(position as usize)? = Some(entry);
        if let Some(count) = self.kinds.get_mut(selector.kind as usize) {
            *count += 1;
        }
        let hash = short(id(selector.kind, &selector.iss, &selector.value));
        self.index.insert_unique(spread(hash), Slot { position, hash }, |slot| spread(slot.hash));
        Some(position)
    }

    pub fn remove(&mut self, position: u32) {
        let Some(entry) = self.entries.get_mut(position as usize).and_then(Option::take) else { return };
        let hash = short(self.id_of(&entry));
        if let Ok(found) = self.index.find_entry(spread(hash), |slot| slot.position == position) {
            found.remove();
        }
        if let Some(count) = self.kinds.get_mut(entry.kind as usize) {
            *count -= 1;
        }
        self.free.push(position);
    }

    pub fn selector(&self, entry: &Entry) -> Selector {
        Selector {
            kind: entry.kind,
            iss: self.issuer(entry).to_owned(),
            value: entry.value.to_string(),
            issued_before: entry.kind.has_moment().then(|| Unix(Duration::from_millis(entry.before))),
        }
    }
}

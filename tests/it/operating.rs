//! What an operator does to a running gate: who is revoked, by request and by file, who is on it and
//! thrown out, what it tells of itself, and who may ask.

mod access;
mod closing;
pub mod desk;
mod expiring;
mod feed;
mod feed_lost;
mod listing;
mod moments;
mod overview;
mod pages;
mod racing;
mod refusing;
mod revocations;
mod room;
mod shadowing;
mod storms;
mod throng;
mod together;

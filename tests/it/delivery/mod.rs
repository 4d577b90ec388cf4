//! Nothing lost, nothing twice: the real binary with real services, all of which are killed, stopped,
//! cut off and filled up from outside while a fleet publishes.
//!
//! The fleet knows what the broker has acknowledged ([`record`]); the [`oracle`] compares it with what is
//! in a table with a key, in one without, in the lake and in the dead letters. Faults come from
//! [`daemons`] (processes), [`proxy`] (connections, at chosen bytes) and [`small_disk`].
//!
//! [`crashes`], [`limits`] and [`workers`] run with all other tests in a short form, the others with `DELIVERY=1`.
//! `DELIVERY_ROUNDS` and `DELIVERY_OUTAGE_SECONDS` make them longer, `DELIVERY_SEED` repeats their choices: see
//! `tests/README.md`.

mod chance;
mod crashes;
mod daemons;
mod faults;
mod fleet;
mod full_disk;
mod limits;
mod oracle;
mod outage;
mod places;
mod proxy;
mod record;
mod reload;
mod site;
mod small_disk;
mod stops;
mod table;
mod workers;

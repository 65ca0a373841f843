//! How many connections each address has that have not earned their place yet.

use std::collections::HashMap;
use std::sync::Arc;

use wire::relay::RelayCode;

use super::Relay;
use crate::source::Source;

/// Pending connections: in all, and by source.
#[derive(Default)]
pub(super) struct Sources {
    pending: usize,
    by_source: HashMap<Source, Count>,
}

#[derive(Default)]
struct Count {
    pending: usize,
    registrations: usize,
}

/// A pending connection. Dropped when it is registered, spliced, or gone.
pub(super) struct Pending {
    relay: Arc<Relay>,
    source: Source,
}

impl Pending {
    /// Counts a new connection, if there is room for it.
    pub(super) fn enter(relay: &Arc<Relay>, source: Source) -> Result<Self, RelayCode> {
        let limits = &relay.config.limits;
        let mut sources = relay.sources();
        if sources.pending >= limits.pending {
            return Err(RelayCode::Busy);
        }
        let count = sources.by_source.entry(source).or_default();
        // A service dials once for each gateway that waits for it, and has to be able to.
        let expected = count.registrations * limits.pending_per_service;
        if limits.pending_per_address + expected <= count.pending {
            return Err(RelayCode::Limit);
        }
        count.pending += 1;
        sources.pending += 1;
        Ok(Self {
            relay: Arc::clone(relay),
            source,
        })
    }

    /// The connection has registered: it is pending no more, and its address may have as many more
    /// as may wait for its service.
    pub(super) fn registered(self) -> Home {
        let (relay, source) = (Arc::clone(&self.relay), self.source);
        drop(self);
        let mut sources = relay.sources();
        sources.by_source.entry(source).or_default().registrations += 1;
        drop(sources);
        Home { relay, source }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut sources = self.relay.sources();
        sources.pending = sources.pending.saturating_sub(1);
        sources.leave(self.source, |count| &mut count.pending);
    }
}

/// The address of a registered service. Dropped when its registration ends.
pub(super) struct Home {
    relay: Arc<Relay>,
    source: Source,
}

impl Drop for Home {
    fn drop(&mut self) {
        let mut sources = self.relay.sources();
        sources.leave(self.source, |count| &mut count.registrations);
    }
}

impl Sources {
    /// Counts one less, and forgets an address that has nothing.
    fn leave(&mut self, source: Source, which: impl FnOnce(&mut Count) -> &mut usize) {
        let Some(count) = self.by_source.get_mut(&source) else {
            return;
        };
        let one = which(count);
        *one = one.saturating_sub(1);
        if count.pending == 0 && count.registrations == 0 {
            self.by_source.remove(&source);
        }
    }
}

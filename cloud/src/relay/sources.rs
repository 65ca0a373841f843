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
    by_source: HashMap<Source, usize>,
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
        if *count >= limits.pending_per_address {
            return Err(RelayCode::Limit);
        }
        *count += 1;
        sources.pending += 1;
        Ok(Self {
            relay: Arc::clone(relay),
            source,
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut sources = self.relay.sources();
        sources.pending = sources.pending.saturating_sub(1);
        if let Some(count) = sources.by_source.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                sources.by_source.remove(&self.source);
            }
        }
    }
}

//! Who is registered, who waits for whom, and which statements are too old.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use channel::Statement;
use link::relay::ConnectionId;
use rand_core::{Rng, UnwrapErr};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use wire::relay::RelayCode;

use super::{Limits, Relay};

/// A service's fingerprint, as it travels.
pub(super) type ServiceId = [u8; 32];

/// All services that are known, and all gateways that were let in.
#[derive(Default)]
pub(super) struct Services {
    known: HashMap<ServiceId, Service>,
    waiting: HashMap<ConnectionId, oneshot::Sender<TcpStream>>,
    clients: usize,
    instances_begun: u64,
}

/// What is known of one service. Outlives its registrations, for the serial.
struct Service {
    serial: u64,
    /// SHA-256 of the statement, to tell two under one serial apart.
    statement: [u8; 32],
    instances: Vec<Instance>,
    waiting: usize,
    seen_at: Instant,
}

/// One registration: where to tell it that a gateway waits.
struct Instance {
    number: u64,
    calls: mpsc::Sender<ConnectionId>,
}

impl Services {
    /// Gateways that are spliced, or wait for it.
    pub(super) fn clients(&self) -> usize {
        self.clients
    }

    /// Finds or makes the place of the service, and keeps the statement if it is the newest.
    fn admit(&mut self, statement: &Statement, limits: &Limits) -> Result<&mut Service, RelayCode> {
        let id = *statement.fingerprint().bytes();
        if !self.known.contains_key(&id) && self.known.len() >= limits.services {
            self.forget_one()?;
        }
        let hash: [u8; 32] = Sha256::digest(statement.bytes()).into();
        let service = match self.known.entry(id) {
            Entry::Vacant(vacant) => vacant.insert(Service {
                serial: statement.serial(),
                statement: hash,
                instances: Vec::new(),
                waiting: 0,
                seen_at: Instant::now(),
            }),
            Entry::Occupied(occupied) => occupied.into_mut(),
        };
        let older = statement.serial() < service.serial;
        let other = statement.serial() == service.serial && hash != service.statement;
        if older || other {
            return Err(RelayCode::BadProof);
        }
        if service.instances.len() >= limits.instances_per_service {
            return Err(RelayCode::Limit);
        }
        service.serial = statement.serial();
        service.statement = hash;
        Ok(service)
    }

    /// Makes room for a new service at the cost of the one that is absent for longest.
    fn forget_one(&mut self) -> Result<(), RelayCode> {
        let absent = self.known.iter();
        let absent = absent.filter(|(_, service)| service.instances.is_empty());
        let oldest = absent.min_by_key(|(_, service)| service.seen_at);
        let oldest = oldest.map(|(id, _)| *id).ok_or(RelayCode::Busy)?;
        self.known.remove(&oldest);
        Ok(())
    }
}

/// A registration. Dropped when its connection ends.
pub(super) struct Registered {
    relay: Arc<Relay>,
    service: ServiceId,
    number: u64,
}

impl Registered {
    /// Registers a service whose proof was good. The ids of gateways that wait come out of the
    /// receiver.
    pub(super) fn enter(
        relay: &Arc<Relay>,
        statement: &Statement,
    ) -> Result<(Self, mpsc::Receiver<ConnectionId>), RelayCode> {
        let limits = &relay.config.limits;
        let mut services = relay.services();
        services.instances_begun += 1;
        let number = services.instances_begun;
        let service = services.admit(statement, limits)?;
        let (calls, called) = mpsc::channel(limits.pending_per_service.max(1));
        service.instances.push(Instance { number, calls });
        if service.instances.len() == 1 {
            relay.config.metrics.services.inc();
        }
        let registered = Self {
            relay: Arc::clone(relay),
            service: *statement.fingerprint().bytes(),
            number,
        };
        Ok((registered, called))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut services = self.relay.services();
        if let Some(service) = services.known.get_mut(&self.service) {
            let number = self.number;
            service.instances.retain(|other| other.number != number);
            if service.instances.is_empty() {
                self.relay.config.metrics.services.dec();
            }
            service.seen_at = Instant::now();
        }
    }
}

/// A gateway that was let in. Dropped when it is gone.
pub(super) struct Client {
    relay: Arc<Relay>,
}

impl Client {
    /// Counts a gateway, if there is room for it.
    pub(super) fn enter(relay: &Arc<Relay>) -> Result<Self, RelayCode> {
        let mut services = relay.services();
        if services.clients >= relay.config.max_clients {
            return Err(RelayCode::Busy);
        }
        services.clients += 1;
        relay.config.metrics.clients.inc();
        Ok(Self {
            relay: Arc::clone(relay),
        })
    }

    /// Calls one of the service's instances, chosen at random.
    pub(super) fn call(
        &self,
        service: ServiceId,
    ) -> Result<(Call, oneshot::Receiver<TcpStream>), RelayCode> {
        let mut services = self.relay.services();
        let known = services.known.get_mut(&service);
        let known = known.filter(|known| !known.instances.is_empty());
        let known = known.ok_or(RelayCode::NoSuchService)?;
        if known.waiting >= self.relay.config.limits.pending_per_service {
            return Err(RelayCode::Busy);
        }
        let mut rng = UnwrapErr(getrandom::SysRng);
        let mut id = ConnectionId::default();
        rng.fill_bytes(&mut id);
        let (first, last) = known
            .instances
            .split_at(random_below(known.instances.len(), &mut rng));
        // The one chosen, or another if it is behind or just leaving.
        let mut instances = last.iter().chain(first);
        if !instances.any(|instance| instance.calls.try_send(id).is_ok()) {
            return Err(RelayCode::Busy);
        }
        known.waiting += 1;
        let (give, given) = oneshot::channel();
        services.waiting.insert(id, give);
        let call = Call {
            relay: Arc::clone(&self.relay),
            service,
            id,
        };
        Ok((call, given))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut services = self.relay.services();
        services.clients = services.clients.saturating_sub(1);
        self.relay.config.metrics.clients.dec();
    }
}

/// A gateway that waits for a service. Dropped when it is spliced, or has waited enough; its id
/// is worth nothing from then on.
pub(super) struct Call {
    relay: Arc<Relay>,
    service: ServiceId,
    id: ConnectionId,
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut services = self.relay.services();
        services.waiting.remove(&self.id);
        if let Some(service) = services.known.get_mut(&self.service) {
            service.waiting = service.waiting.saturating_sub(1);
        }
    }
}

/// Takes the gateway that waits under `id`, which is thereby used.
pub(super) fn take(relay: &Relay, id: ConnectionId) -> Option<oneshot::Sender<TcpStream>> {
    relay.services().waiting.remove(&id)
}

/// Uniform but for a bias of one in 2^48 for as many instances as there may be.
fn random_below(count: usize, rng: &mut impl Rng) -> usize {
    let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
    usize::try_from(rng.next_u64() % count).unwrap_or_default()
}

//! What a relay counts. It has no names to show: who talks to whom is nobody's business here.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use wire::relay::RelayCode;

/// Counters and gauges of a relay. Clones count together.
#[derive(Clone)]
pub struct RelayMetrics {
    /// Services with a registration.
    pub(super) services: Gauge,
    /// Gateways that are spliced, or wait for it.
    pub(super) clients: Gauge,
    /// Bytes that services have taken.
    pub(super) to_service: Counter,
    /// Bytes that gateways have taken.
    pub(super) to_gateway: Counter,
    bytes: Family<Towards, Counter>,
    refused: Family<Refusal, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Towards {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    reason: &'static str,
}

impl RelayMetrics {
    /// Shows them in `registry`: `services`, `clients`, `bytes_total{direction}` and
    /// `refused_total{reason}`.
    pub fn register(&self, registry: &mut Registry) {
        let (services, clients) = (self.services.clone(), self.clients.clone());
        registry.register("services", "Services with a registration", services);
        let help = "Gateways that are joined to a service, or wait for it";
        registry.register("clients", help, clients);
        let help = "Bytes that the other side has taken";
        registry.register("bytes", help, self.bytes.clone());
        registry.register("refused", "Connections refused", self.refused.clone());
    }

    /// Notes that a connection was refused.
    pub(super) fn refuse(&self, code: RelayCode) {
        self.refused.get_or_create(&Refusal::by(code)).inc();
    }
}

impl Default for RelayMetrics {
    fn default() -> Self {
        let bytes = Family::<Towards, Counter>::default();
        let towards = |direction| bytes.get_or_create_owned(&Towards { direction });
        let (to_service, to_gateway) = (towards("to_service"), towards("to_gateway"));
        let refused = Family::<Refusal, Counter>::default();
        // All are there from the beginning: a rate begins at zero.
        for &code in RelayCode::ALL.iter().filter(|code| **code != RelayCode::Ok) {
            drop(refused.get_or_create_owned(&Refusal::by(code)));
        }
        Self {
            services: Gauge::default(),
            clients: Gauge::default(),
            to_service,
            to_gateway,
            bytes,
            refused,
        }
    }
}

impl Refusal {
    fn by(code: RelayCode) -> Self {
        Self {
            reason: match code {
                RelayCode::Ok => "none",
                RelayCode::NoSuchService => "no_such_service",
                RelayCode::NotAdmitted => "not_admitted",
                RelayCode::BadProof => "bad_proof",
                RelayCode::Busy => "busy",
                RelayCode::Limit => "limit",
                RelayCode::Draining => "draining",
                RelayCode::Version => "version",
                RelayCode::ServiceSilent => "service_silent",
            },
        }
    }
}

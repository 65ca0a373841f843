//! Enrolment with a ticket: the gateway's side of stream `enroll` (protocol.md 5).

use std::{sync::Arc, time::Duration};

use channel::{Admission, Fingerprint, KeyKind, Purpose, SigningKey};
use hsm::{CertifyKey, Endorsement, HsmError};
use link::{Address, LinkError, Messages, StreamName};
use sha2::{Digest, Sha256};
use wire::{
    enrol::{self, CertifiedKey, Challenge, EnrolCode, Evidence, Outcome, Request},
    ticket::{Ticket, TicketError},
};

use crate::{
    enrolment::{EnrolledService, EnrolmentFile},
    identity::Identity,
    service::{Peer, Service},
    uplink::{TOKEN_ADVICE, initiator},
};

/// What `gatewayctl enroll` tells.
#[derive(Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// The name the service gave this gateway.
    pub name: String,
    /// The service, as the configuration names it.
    pub service: String,
    /// The address it was reached at.
    pub via: String,
}

/// Why a gateway was not enrolled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrollError {
    /// No identity to enrol.
    #[error("there is no identity yet")]
    NoIdentity,
    /// Not a ticket, or mistyped.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// The ticket is another service's than the one the configuration pins.
    #[error("the ticket is from {found}, the configuration pins {pinned}")]
    OtherService {
        /// The ticket's service.
        found: String,
        /// The configured key.
        pinned: String,
    },
    /// No such service, or more than one to choose from.
    #[error("which service? there are: {0}")]
    WhichService(String),
    /// The ticket and the configuration name no address that can be used.
    #[error("neither ticket nor configuration names an address")]
    NoAddress,
    /// What a relay wants to see cannot be read.
    #[error("relay_token cannot be used")]
    Token(#[source] anyhow::Error),
    /// No address led to the service.
    #[error("the service was not reached")]
    Link(#[from] LinkError),
    /// The service sent what this version does not understand.
    #[error("the service broke the rules of enrolment: {0}")]
    Protocol(String),
    /// The TPM did not prove what the service asked.
    #[error("the TPM did not do its part")]
    Tpm(#[from] HsmError),
    /// The service said no.
    #[error("{words}")]
    Refused {
        /// Why.
        code: EnrolCode,
        /// Why, as the service puts it.
        words: String,
    },
    /// The service took its time.
    #[error("the service did not answer within {ENROL_TIME_MAX:?}")]
    Late,
    /// What the service granted could not be kept.
    #[error("the enrolment could not be kept")]
    State(#[source] anyhow::Error),
}

impl EnrollError {
    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> &str {
        match self {
            Self::NoIdentity => "gatewayctl init",
            Self::Ticket(_) => "copy the whole ticket, from gwt1- to its end",
            Self::OtherService { .. } => "ask the service's operator; do not go on",
            Self::WhichService(_) => "gatewayctl enroll --service NAME -",
            Self::NoAddress => "name one in addresses of the [[service]]",
            Self::Token(_) => TOKEN_ADVICE,
            Self::Link(error) => error.advice(),
            Self::Protocol(_) => "update both sides to the same version",
            Self::Tpm(error) => error.advice(),
            Self::Refused { code, .. } => refusal_advice(*code),
            Self::Late => "try again with the same ticket",
            Self::State(_) => "check the disk that holds the state; then try again",
        }
    }
}

/// Enrols at the service that the ticket names, and keeps what it granted.
///
/// # Errors
///
/// As [`EnrollError`] says; nothing is changed then, and the same ticket may be tried again
/// unless the service refused it.
pub async fn enroll(
    ticket: &str,
    wanted: Option<&str>,
    identity: &Identity,
    services: &[Arc<Service>],
    file: &EnrolmentFile,
) -> Result<Enrolled, EnrollError> {
    let ticket = Ticket::parse(ticket)?;
    let service = choose(services, wanted, &ticket)?;
    let key = Fingerprint::new(KeyKind::ServiceIdentity, ticket.service);
    if let Some(peer) = service.peer().filter(|peer| peer.key != key) {
        return Err(EnrollError::OtherService {
            found: key.to_string(),
            pinned: peer.key.to_string(),
        });
    }
    let parsed = ticket.urls.iter().filter_map(|url| url.parse().ok());
    let addresses: Vec<Address> = parsed.collect();
    // Only an enrolment that succeeds changes the peer.
    let candidate = service.candidate(key, addresses.clone(), false).await;
    let candidate = candidate.map_err(EnrollError::State)?;

    let applicant = Applicant {
        ticket: &ticket,
        identity,
        // Before a session's time runs: an RSA key takes a TPM seconds to make.
        endorsement: identity.hsm().endorsement(None).await?,
    };
    let (via, name) = try_addresses(&applicant, service, &candidate).await?;
    let granted = EnrolledService {
        key: key.to_string(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
    };
    keep(identity, service, file, &name, granted).map_err(EnrollError::State)?;
    let named = service.set_peer(key, addresses, true).await;
    named.map_err(EnrollError::State)?;
    Ok(Enrolled {
        name,
        service: service.name.clone(),
        via,
    })
}

/// The service that the ticket is for: the one named, the one that pins its key, or the only one
/// without a key.
fn choose<'a>(
    services: &'a [Arc<Service>],
    wanted: Option<&str>,
    ticket: &Ticket,
) -> Result<&'a Arc<Service>, EnrollError> {
    let names = || {
        let names: Vec<_> = services
            .iter()
            .map(|service| service.name.as_str())
            .collect();
        EnrollError::WhichService(names.join(", "))
    };
    if let Some(wanted) = wanted {
        let named = services.iter().find(|service| service.name == wanted);
        return named.ok_or_else(names);
    }
    let pinned = |service: &&Arc<Service>| {
        let peer = service.peer();
        peer.is_some_and(|peer| *peer.key.bytes() == ticket.service)
    };
    if let Some(service) = services.iter().find(pinned) {
        return Ok(service);
    }
    match services {
        [only] => Ok(only),
        _ => {
            let mut keyless = services.iter().filter(|service| service.peer().is_none());
            match (keyless.next(), keyless.next()) {
                (Some(only), None) => Ok(only),
                _ => Err(names()),
            }
        }
    }
}

/// Who wants to be enrolled, and by what.
struct Applicant<'a> {
    ticket: &'a Ticket,
    identity: &'a Identity,
    endorsement: Endorsement,
}

/// Tries each address once; one whose link fails leads to the next.
async fn try_addresses(
    applicant: &Applicant<'_>,
    service: &Service,
    peer: &Peer,
) -> Result<(String, String), EnrollError> {
    let mut last = EnrollError::NoAddress;
    for address in &peer.addresses {
        let attempt =
            tokio::time::timeout(ENROL_TIME_MAX, enroll_at(address, applicant, service, peer));
        match attempt.await {
            Ok(Ok(name)) => return Ok((address.host().to_owned(), name)),
            Ok(Err(EnrollError::Link(error))) => last = EnrollError::Link(error),
            Ok(Err(error)) => return Err(error),
            Err(_) => last = EnrollError::Late,
        }
    }
    Err(last)
}

async fn enroll_at(
    address: &Address,
    applicant: &Applicant<'_>,
    service: &Service,
    peer: &Peer,
) -> Result<String, EnrollError> {
    let config = initiator(applicant.identity, peer, Purpose::Enrol);
    let token = service.relay_token().map_err(EnrollError::Token)?;
    let stream = link::dial(address, &peer.key, token.as_ref()).await?;
    let link = link::connect_over(stream, config, applicant.identity, service).await?;
    let h = link.handshake_hash;
    let (driver, streams) = link.split();
    let conversation = async {
        let messages = streams.open(StreamName::Enroll).await?;
        let outcome = converse(messages, &h, applicant).await;
        streams.close(Admission::Ok);
        outcome
    };
    // The conversation may fail because the link did; then the link knows why.
    let (outcome, end) = tokio::join!(conversation, driver.run());
    let outcome = match (outcome, end) {
        (Err(EnrollError::Link(LinkError::Ended)), Err(error)) => return Err(error.into()),
        (outcome, _) => outcome?,
    };
    let code = outcome.code;
    if code != EnrolCode::Ok {
        let words = outcome.detail.unwrap_or_else(|| code.to_string());
        return Err(EnrollError::Refused { code, words });
    }
    let name = outcome.name;
    name.ok_or_else(|| EnrollError::Protocol("no name was given".into()))
}

/// The four messages.
async fn converse(
    mut messages: Messages,
    h: &[u8; 32],
    applicant: &Applicant<'_>,
) -> Result<Outcome, EnrollError> {
    let Applicant {
        ticket,
        identity,
        endorsement,
    } = applicant;
    let keys = identity.keys();
    let mut request = Request {
        ticket_id: Some(ticket.id),
        proof: None,
        ek_certificates: endorsement.certificates.clone(),
        ek: endorsement.public.clone(),
        ak: keys.attestation_public.clone(),
        identity: keys.identity_public.clone(),
        channel: keys.channel_public.clone(),
    };
    request.proof = Some(enrol::proof(&ticket.key(), h, &request));
    let request = request.encode();
    messages.send(&request).await?;

    let challenge_bytes = receive(&mut messages).await?;
    if let Ok(outcome) = Outcome::decode(&challenge_bytes) {
        return Ok(outcome);
    }
    let challenge = Challenge::decode(&challenge_bytes).map_err(protocol)?;
    let t = enrol::transcript(h, &request, &challenge_bytes);
    let hsm = identity.hsm();
    let secret = hsm
        .activate(endorsement.kind, challenge.credential, challenge.secret)
        .await?;
    let certify = |key, certified| {
        let data = enrol::certify_data(certified, &t);
        async move { hsm.certify(key, data).await }
    };
    let possession: [u8; 32] = Sha256::digest(enrol::possession_message(&t)).into();
    let evidence = Evidence {
        activated: enrol::activated(&secret, &t),
        identity: certify(CertifyKey::Identity, CertifiedKey::Identity).await?,
        channel: certify(CertifyKey::Channel, CertifiedKey::Channel).await?,
        possession: identity
            .sign(possession)
            .await
            .map_err(LinkError::LocalKey)?,
    };
    messages.send(&evidence.encode()).await?;
    Outcome::decode(&receive(&mut messages).await?).map_err(protocol)
}

async fn receive(messages: &mut Messages) -> Result<Vec<u8>, EnrollError> {
    let received = messages.recv().await?;
    received.ok_or_else(|| EnrollError::Protocol("the stream ended early".into()))
}

fn protocol(error: wire::WireError) -> EnrollError {
    EnrollError::Protocol(error.to_string())
}

/// Writes down who knows this gateway now.
fn keep(
    identity: &Identity,
    service: &Service,
    file: &EnrolmentFile,
    name: &str,
    granted: EnrolledService,
) -> anyhow::Result<()> {
    file.change(|content| {
        content.gateway = Some(identity.fingerprint().to_string());
        content.name = Some(name.to_owned());
        content.services.insert(service.name.clone(), granted);
    })?;
    Ok(())
}

fn refusal_advice(code: EnrolCode) -> &'static str {
    match code {
        EnrolCode::TicketUnknown
        | EnrolCode::TicketExpired
        | EnrolCode::TicketUsed
        | EnrolCode::ProofWrong => "ask for a new ticket: gateway-cloud invite NAME",
        EnrolCode::KeyRefused => "gatewayctl check tpm",
        EnrolCode::AlreadyEnrolled => "ask for: gateway-cloud invite --replace NAME",
        EnrolCode::NotAllowed => "ask the service's operator",
        EnrolCode::Later | EnrolCode::Ok => "try again in a minute",
    }
}

/// protocol.md 5.2: one session, one attempt, 60 s.
const ENROL_TIME_MAX: Duration = Duration::from_secs(60);

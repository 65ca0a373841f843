//! The service's side of stream `enroll` (protocol.md 5): a gateway with a ticket proves that its
//! keys live in one TPM, and is registered.

use std::time::SystemTime;

use anyhow::Context;
use channel::PublicKey;
use getrandom::SysRng;
use link::{Messages, PeerHello};
use rand_core::UnwrapErr;
use subtle::ConstantTimeEq;
use tokio::task::block_in_place;
use wire::enrol::{self, EnrolCode, Evidence, Outcome, Request};

use crate::{
    evidence::{ClaimedKeys, EvidenceError, OpenChallenge, certificate},
    registry::{Claim, Registry, TicketRefusal},
    serve::Service,
};

/// Why a gateway was not enrolled, in the code and words it is told.
struct Refusal {
    name: String,
    code: EnrolCode,
    words: String,
}

/// Talks to one enrolling gateway to the end.
///
/// # Errors
///
/// If the link or our own registry fails; the gateway may try again. One that is refused is told
/// why, and that is no error.
pub async fn converse(
    service: &Service,
    mut messages: Messages,
    hello: &PeerHello,
    h: &[u8; 32],
) -> anyhow::Result<()> {
    let outcome = match enrol_one(service, &mut messages, hello, h).await {
        Ok(Ok(outcome)) => outcome,
        Err(error) => {
            let later = Outcome {
                code: EnrolCode::Later,
                gateway: None,
                name: None,
                detail: None,
            };
            // If it was the link that failed, this fails too.
            drop(messages.send(&later.encode()).await);
            return Err(error);
        }
        Ok(Err(refusal)) => {
            tracing::warn!(name = refusal.name, "enrolment refused: {}", refusal.words);
            let registry = &service.registry;
            block_in_place(|| registry.note_refusal(&refusal.name, &refusal.words))?;
            Outcome {
                code: refusal.code,
                gateway: None,
                name: None,
                detail: Some(refusal.words),
            }
        }
    };
    messages.send(&outcome.encode()).await?;
    Ok(())
}

async fn enrol_one(
    service: &Service,
    messages: &mut Messages,
    hello: &PeerHello,
    h: &[u8; 32],
) -> anyhow::Result<Result<Outcome, Refusal>> {
    let request_bytes = messages.recv().await?.context("the gateway said nothing")?;
    let Ok(request) = Request::decode(&request_bytes) else {
        return Ok(Err(refuse(
            "",
            EnrolCode::KeyRefused,
            "the request is not understood",
        )));
    };
    let registry = &service.registry;
    let claim = match block_in_place(|| claim(registry, &request, h))? {
        Ok(claim) => claim,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let refused = |error: &EvidenceError| Refusal {
        name: claim.name.clone(),
        code: EnrolCode::KeyRefused,
        words: chain(error),
    };
    let made = check_keys(service, &request, &hello.static_key);
    let (keys, open) = match made {
        Ok(made) => made,
        Err(error) => return Ok(Err(refused(&error))),
    };
    let challenge_bytes = open.challenge.encode();
    messages.send(&challenge_bytes).await?;

    let evidence_bytes = messages.recv().await?.context("the gateway gave up")?;
    let Ok(evidence) = Evidence::decode(&evidence_bytes) else {
        return Ok(Err(refuse(
            &claim.name,
            EnrolCode::KeyRefused,
            "the evidence is not understood",
        )));
    };
    let t = enrol::transcript(h, &request_bytes, &challenge_bytes);
    let gateway = match keys.verify(&evidence, &open, &t) {
        Ok(gateway) => gateway,
        Err(error) => return Ok(Err(refused(&error))),
    };
    if let Err(refusal) = block_in_place(|| registry.register(&claim, &gateway))? {
        return Ok(Err(ticket_refusal(&claim.name, &refusal)));
    }
    tracing::info!(gateway = claim.name, "enrolled");
    Ok(Ok(Outcome {
        code: EnrolCode::Ok,
        gateway: Some(gateway.fingerprint),
        name: Some(claim.name),
        detail: None,
    }))
}

/// protocol.md 5.3, 1: the ticket is known, fresh and not used, and the gateway knows its secret.
fn claim(
    registry: &Registry,
    request: &Request,
    h: &[u8; 32],
) -> anyhow::Result<Result<Claim, Refusal>> {
    let (Some(ticket_id), Some(proof)) = (request.ticket_id, request.proof) else {
        return Ok(Err(refuse("", EnrolCode::NotAllowed, "a ticket is needed")));
    };
    let key = match registry.ticket_key(&ticket_id, &request.ek)? {
        Ok(key) => key,
        Err(refusal) => return Ok(Err(ticket_refusal("", &refusal))),
    };
    if !bool::from(enrol::proof(&key, h, request).ct_eq(&proof)) {
        registry.wrong_proof(&ticket_id)?;
        return Ok(Err(ticket_refusal("", &TicketRefusal::ProofWrong)));
    }
    let claimed = registry.claim(&ticket_id, &request.ek)?;
    Ok(claimed.map_err(|refusal| ticket_refusal("", &refusal)))
}

fn check_keys(
    service: &Service,
    request: &Request,
    session_key: &PublicKey,
) -> Result<(ClaimedKeys, OpenChallenge), EvidenceError> {
    let keys = ClaimedKeys::check(request, session_key)?;
    if let Some(roots) = &service.endorsement_roots {
        let certificates = &request.ek_certificates;
        certificate::verify(certificates, roots, SystemTime::now(), keys.endorsement())?;
    }
    let open = keys.challenge(&mut UnwrapErr(SysRng))?;
    Ok((keys, open))
}

fn ticket_refusal(name: &str, refusal: &TicketRefusal) -> Refusal {
    let code = match refusal {
        TicketRefusal::Unknown => EnrolCode::TicketUnknown,
        TicketRefusal::Expired { .. } => EnrolCode::TicketExpired,
        TicketRefusal::Used { .. } => EnrolCode::TicketUsed,
        TicketRefusal::ProofWrong => EnrolCode::ProofWrong,
        TicketRefusal::Registered => EnrolCode::AlreadyEnrolled,
    };
    refuse(name, code, &refusal.to_string())
}

fn refuse(name: &str, code: EnrolCode, words: &str) -> Refusal {
    Refusal {
        name: name.to_owned(),
        code,
        words: words.to_owned(),
    }
}

/// An error and its causes in one line.
fn chain(error: &EvidenceError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push(' ');
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

//! Tickets: from invitation to registration (protocol.md 5.1).
//!
//! `new → claimed(EK) → used`. The first valid proof claims a ticket; the same TPM may try again
//! until it expires, even once it is used, since the answer may have been lost; five wrong proofs burn it; `used` commits with the registration.

use anyhow::ensure;
use rusqlite::{ErrorCode, OptionalExtension, Row, Transaction, params};
use wire::ticket::TicketKey;

use super::{GatewayState, NewGateway, Registry, audit, now_ms};

/// What the operator grants.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// The gateway's name.
    pub name: String,
    /// `key=value`.
    pub labels: Vec<String>,
    /// Until when, in milliseconds since 1970 by the service's clock.
    pub expires_ms: i64,
}

/// A ticket that a TPM has claimed.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The ticket.
    pub ticket_id: [u8; 8],
    /// The name it grants.
    pub name: String,
}

/// Why a ticket does not let a gateway in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketRefusal {
    /// No such ticket here.
    #[error("the ticket is not one of this service")]
    Unknown,
    /// Its time is over.
    #[error("the ticket expired at {}", time_of_day(*.expired_ms))]
    Expired {
        /// Since when, in milliseconds since 1970.
        expired_ms: i64,
    },
    /// Another TPM was faster, or it was used before.
    #[error("the ticket was used{}", by_another(*.used_ms))]
    Used {
        /// When, in milliseconds since 1970, if the enrolment was finished.
        used_ms: Option<i64>,
    },
    /// The gateway does not know the ticket's secret.
    #[error("the ticket's proof is wrong")]
    ProofWrong,
    /// The ticket is fine, but the gateway is not new.
    #[error("its name, its TPM or one of its keys is registered already")]
    Registered,
}

struct TicketRow {
    key: [u8; 32],
    name: String,
    labels: String,
    expires_ms: i64,
    state: String,
    claimed_by: Option<Vec<u8>>,
    used_ms: Option<i64>,
}

impl Registry {
    /// Keeps a ticket's key and what it grants.
    ///
    /// # Errors
    ///
    /// If a gateway of this name is enrolled, or the database refuses.
    pub fn invite(
        &self,
        ticket_id: &[u8; 8],
        key: &TicketKey,
        invitation: &Invitation,
    ) -> anyhow::Result<()> {
        self.change(|transaction| {
            let holder: Option<String> = transaction
                .prepare_cached(
                    "SELECT state FROM gateway WHERE name = ?1 AND state IN ('enrolled', 'suspended')",
                )?
                .query_row([&invitation.name], |row| row.get(0))
                .optional()?;
            ensure!(
                holder.is_none(),
                "a gateway named {:?} is enrolled; choose another name",
                invitation.name
            );
            transaction
                .prepare_cached(
                    "INSERT INTO ticket (id, key, name, labels, expires_ms, state)
                     VALUES (?1, ?2, ?3, ?4, ?5, 'new')",
                )?
                .execute(params![
                    ticket_id,
                    key.as_bytes(),
                    invitation.name,
                    invitation.labels.join("\n"),
                    invitation.expires_ms
                ])?;
            audit(transaction, "invite", &invitation.name, None, "")?;
            Ok(())
        })
    }

    /// The key against which a gateway's proof is checked.
    ///
    /// # Errors
    ///
    /// The inner refusal says why the ticket does not let this TPM in.
    pub fn ticket_key(
        &self,
        ticket_id: &[u8; 8],
        endorsement: &[u8],
    ) -> anyhow::Result<Result<TicketKey, TicketRefusal>> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(SELECT_TICKET)?;
        let row = statement.query_row([ticket_id], ticket_row).optional()?;
        Ok(usable(row, endorsement).map(|row| TicketKey::from_bytes(row.key)))
    }

    /// Claims a ticket for the TPM whose proof was right.
    ///
    /// # Errors
    ///
    /// The inner refusal if another TPM was faster.
    pub fn claim(
        &self,
        ticket_id: &[u8; 8],
        endorsement: &[u8],
    ) -> anyhow::Result<Result<Claim, TicketRefusal>> {
        self.change(|transaction| {
            let row = match usable(read(transaction, ticket_id)?, endorsement) {
                Ok(row) => row,
                Err(refusal) => return Ok(Err(refusal)),
            };
            transaction
                .prepare_cached(
                    "UPDATE ticket SET state = 'claimed', claimed_by = ?2
                     WHERE id = ?1 AND state = 'new'",
                )?
                .execute(params![ticket_id, endorsement])?;
            Ok(Ok(Claim {
                ticket_id: *ticket_id,
                name: row.name,
            }))
        })
    }

    /// Counts a wrong proof; the fifth burns the ticket.
    ///
    /// # Errors
    ///
    /// If the database refuses.
    pub fn wrong_proof(&self, ticket_id: &[u8; 8]) -> anyhow::Result<()> {
        self.change(|transaction| {
            transaction
                .prepare_cached(
                    "UPDATE ticket SET wrong_proofs = wrong_proofs + 1,
                        state = iif(wrong_proofs + 1 >= ?2, 'burnt', state)
                     WHERE id = ?1 AND state IN ('new', 'claimed')",
                )?
                .execute(params![ticket_id, WRONG_PROOFS_MAX])?;
            audit(transaction, "wrong proof", "", None, &hex(ticket_id))?;
            Ok(())
        })
    }

    /// Writes down that an enrolment was refused.
    ///
    /// # Errors
    ///
    /// If the database refuses.
    pub fn note_refusal(&self, name: &str, why: &str) -> anyhow::Result<()> {
        self.change(|transaction| Ok(audit(transaction, "enrolment refused", name, None, why)?))
    }

    /// Registers a gateway and uses up its ticket, in one transaction. The same gateway again
    /// under the same ticket is fine: its answer may have been lost.
    ///
    /// # Errors
    ///
    /// The inner refusal if the ticket is gone meanwhile, or if the name, the TPM or a key is
    /// registered already; the outer error if the database refuses.
    pub fn register(
        &self,
        claim: &Claim,
        gateway: &NewGateway,
    ) -> anyhow::Result<Result<(), TicketRefusal>> {
        self.change(|transaction| {
            let row = match usable(read(transaction, &claim.ticket_id)?, &gateway.endorsement) {
                Ok(row) => row,
                Err(refusal) => return Ok(Err(refusal)),
            };
            if row.state == "used" {
                let known = is_registered(transaction, claim, gateway)?;
                return Ok(known.then_some(()).ok_or(TicketRefusal::Registered));
            }
            let [identity_name, channel_name, attestation_name] = &gateway.names;
            let inserted = transaction
                .prepare_cached(
                    "INSERT INTO gateway (fingerprint, name, state, identity, channel, attestation,
                        endorsement, identity_name, channel_name, attestation_name, ticket, labels,
                        enrolled_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
                )?
                .execute(params![
                    gateway.fingerprint,
                    claim.name,
                    GatewayState::Enrolled.word(),
                    gateway.identity.as_bytes(),
                    gateway.channel.as_bytes(),
                    gateway.attestation.as_bytes(),
                    gateway.endorsement,
                    identity_name,
                    channel_name,
                    attestation_name,
                    claim.ticket_id,
                    row.labels,
                    now_ms(),
                ]);
            if let Err(error) = inserted {
                return match error.sqlite_error_code() {
                    Some(ErrorCode::ConstraintViolation) => Ok(Err(TicketRefusal::Registered)),
                    Some(_) | None => Err(error.into()),
                };
            }
            transaction
                .prepare_cached("UPDATE ticket SET state = 'used', used_ms = ?2 WHERE id = ?1")?
                .execute(params![claim.ticket_id, now_ms()])?;
            audit(
                transaction,
                "enrolled",
                &claim.name,
                Some(&gateway.fingerprint),
                "",
            )?;
            Ok(Ok(()))
        })
    }
}

/// Whether exactly this gateway was registered by this ticket and may still come in.
fn is_registered(
    transaction: &Transaction<'_>,
    claim: &Claim,
    gateway: &NewGateway,
) -> rusqlite::Result<bool> {
    transaction
        .prepare_cached(
            "SELECT 1 FROM gateway WHERE ticket = ?1 AND fingerprint = ?2 AND channel = ?3
                AND attestation = ?4 AND endorsement = ?5 AND state = ?6",
        )?
        .exists(params![
            claim.ticket_id,
            gateway.fingerprint,
            gateway.channel.as_bytes(),
            gateway.attestation.as_bytes(),
            gateway.endorsement,
            GatewayState::Enrolled.word(),
        ])
}

fn read(transaction: &Transaction<'_>, ticket_id: &[u8; 8]) -> rusqlite::Result<Option<TicketRow>> {
    transaction
        .prepare_cached(SELECT_TICKET)?
        .query_row([ticket_id], ticket_row)
        .optional()
}

fn ticket_row(row: &Row<'_>) -> rusqlite::Result<TicketRow> {
    Ok(TicketRow {
        key: row.get("key")?,
        name: row.get("name")?,
        labels: row.get("labels")?,
        expires_ms: row.get("expires_ms")?,
        state: row.get("state")?,
        claimed_by: row.get("claimed_by")?,
        used_ms: row.get("used_ms")?,
    })
}

/// Whether a ticket still lets this TPM in. One that it has used does until it expires: the answer
/// may have been lost.
fn usable(row: Option<TicketRow>, endorsement: &[u8]) -> Result<TicketRow, TicketRefusal> {
    let row = row.ok_or(TicketRefusal::Unknown)?;
    if row.state == "burnt" {
        return Err(TicketRefusal::ProofWrong);
    }
    let claimed = row.claimed_by.as_deref();
    let of_another = claimed.is_some_and(|claimed| claimed != endorsement);
    let expired = row.expires_ms <= now_ms();
    if row.state == "used" && (of_another || expired) {
        return Err(TicketRefusal::Used {
            used_ms: row.used_ms,
        });
    }
    if expired {
        return Err(TicketRefusal::Expired {
            expired_ms: row.expires_ms,
        });
    }
    if of_another {
        return Err(TicketRefusal::Used { used_ms: None });
    }
    Ok(row)
}

fn by_another(used_ms: Option<i64>) -> String {
    match used_ms {
        Some(at) => format!(" at {}", time_of_day(at)),
        None => " by another TPM".to_owned(),
    }
}

/// Hours, minutes and seconds in UTC.
fn time_of_day(ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(ms) {
        Ok(time) => time.strftime("%H:%M:%S").to_string(),
        Err(_) => "an unknown time".to_owned(),
    }
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

const SELECT_TICKET: &str =
    "SELECT key, name, labels, expires_ms, state, claimed_by, used_ms FROM ticket WHERE id = ?1";

/// protocol.md 5.1.
const WRONG_PROOFS_MAX: i64 = 5;

#[cfg(test)]
mod tests {
    use channel::{SigningKey, SoftwareSigningKey};
    use rand_core::UnwrapErr;

    use super::*;

    #[test]
    fn a_ticket_registers_one_gateway_once() {
        let (registry, _folder) = registry();
        let id = invite(&registry, "greenhouse-7", MINUTE_MS);
        let claim = registry.claim(&id, b"ek").unwrap().unwrap();
        assert_eq!(claim.name, "greenhouse-7");
        registry.register(&claim, &gateway(b"ek")).unwrap().unwrap();

        let another = registry.claim(&id, b"other").unwrap().unwrap_err();
        assert!(matches!(another, TicketRefusal::Used { used_ms: Some(_) }));
        let claim = registry.claim(&id, b"ek").unwrap().unwrap();
        let other_keys = registry.register(&claim, &gateway(b"ek")).unwrap();
        assert_eq!(other_keys, Err(TicketRefusal::Registered));
        assert_eq!(registry.gateways().unwrap()[0].name, "greenhouse-7");
    }

    #[test]
    fn a_gateway_whose_answer_was_lost_is_answered_again() {
        let (registry, _folder) = registry();
        let id = invite(&registry, "a", MINUTE_MS);
        let gateway = gateway(b"ek");
        for _ in 0..2 {
            let claim = registry.claim(&id, b"ek").unwrap().unwrap();
            registry.register(&claim, &gateway).unwrap().unwrap();
        }
        assert_eq!(registry.gateways().unwrap().len(), 1);
    }

    #[test]
    fn the_first_tpm_to_prove_claims_a_ticket_and_may_try_again() {
        let (registry, _folder) = registry();
        let id = invite(&registry, "a", MINUTE_MS);
        registry.claim(&id, b"first").unwrap().unwrap();
        let other = registry.claim(&id, b"second").unwrap().unwrap_err();
        assert_eq!(other, TicketRefusal::Used { used_ms: None });
        registry.claim(&id, b"first").unwrap().unwrap();
    }

    #[test]
    fn an_expired_or_foreign_ticket_is_refused() {
        let (registry, _folder) = registry();
        let id = invite(&registry, "a", -1);
        let refusal = registry.ticket_key(&id, b"ek").unwrap().err().unwrap();
        assert!(matches!(refusal, TicketRefusal::Expired { .. }));
        let foreign = registry.ticket_key(&[9; 8], b"ek").unwrap().err().unwrap();
        assert_eq!(foreign, TicketRefusal::Unknown);
    }

    #[test]
    fn five_wrong_proofs_burn_a_ticket() {
        let (registry, _folder) = registry();
        let id = invite(&registry, "a", MINUTE_MS);
        for _ in 0..4 {
            registry.wrong_proof(&id).unwrap();
        }
        assert!(registry.ticket_key(&id, b"ek").unwrap().is_ok());
        registry.wrong_proof(&id).unwrap();
        let refusal = registry.ticket_key(&id, b"ek").unwrap().err().unwrap();
        assert_eq!(refusal, TicketRefusal::ProofWrong);
    }

    #[test]
    fn a_tpm_or_name_that_is_enrolled_is_not_enrolled_again() {
        let (registry, _folder) = registry();
        let id = invite(&registry, "a", MINUTE_MS);
        let claim = registry.claim(&id, b"ek").unwrap().unwrap();
        registry.register(&claim, &gateway(b"ek")).unwrap().unwrap();

        let second = invite(&registry, "b", MINUTE_MS);
        let claim = registry.claim(&second, b"ek").unwrap().unwrap();
        let refused = registry.register(&claim, &gateway(b"ek")).unwrap();
        assert_eq!(refused, Err(TicketRefusal::Registered));
        // The failed registration left the ticket as it was.
        assert!(registry.ticket_key(&second, b"ek").unwrap().is_ok());

        let invitation = Invitation {
            name: "a".into(),
            labels: Vec::new(),
            expires_ms: i64::MAX,
        };
        let key = TicketKey::from_bytes([1; 32]);
        assert!(registry.invite(&[7; 8], &key, &invitation).is_err());
    }

    const MINUTE_MS: i64 = 60_000;

    fn registry() -> (Registry, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (Registry::open(folder.path()).unwrap(), folder)
    }

    fn invite(registry: &Registry, name: &str, ttl_ms: i64) -> [u8; 8] {
        let mut id = [0; 8];
        getrandom::fill(&mut id).unwrap();
        let invitation = Invitation {
            name: name.into(),
            labels: vec!["site=venlo".into()],
            expires_ms: now_ms() + ttl_ms,
        };
        let key = TicketKey::from_bytes([1; 32]);
        registry.invite(&id, &key, &invitation).unwrap();
        id
    }

    fn gateway(endorsement: &[u8]) -> NewGateway {
        let mut rng = UnwrapErr(getrandom::SysRng);
        let mut key = || SigningKey::public(&SoftwareSigningKey::generate(&mut rng));
        NewGateway {
            fingerprint: [3; 32],
            identity: key(),
            channel: key(),
            attestation: key(),
            endorsement: endorsement.to_vec(),
            names: [[0; 34]; 3],
        }
    }
}

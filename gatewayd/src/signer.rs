//! Has the TPM sign the headers of epochs, behind the sealer's back.
//!
//! An epoch opens and fills in software; its header waits here until the TPM answers, and the
//! uplink waits for the header.

use std::{sync::Arc, time::Duration};

use channel::{HeaderSigner, SigningKey, UnsignedHeader};
use spool::Spool;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{backoff::Backoff, identity::Identity};

/// Signs every header that waits, until `stop`.
///
/// Those of this run are signed as witnessed; those that a dead run left are signed as adopted:
/// found on disk, not seen to be made (protocol.md 3.1).
///
/// # Errors
///
/// If the spool's thread is gone. A TPM that does not sign is asked again.
pub async fn run(
    spool: Spool,
    run_id: [u8; 16],
    mut identity: watch::Receiver<Option<Arc<Identity>>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut changed = spool.changed();
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    loop {
        let identity_now = identity.borrow_and_update().clone();
        let signing = async {
            match &identity_now {
                Some(identity) => sign_waiting(&spool, run_id, identity).await,
                None => Ok(()),
            }
        };
        // A TPM that hangs does not hold up the end.
        let Some(signed) = stop.run_until_cancelled(signing).await else {
            return Ok(());
        };
        let pause = match signed {
            Ok(()) => {
                backoff.reset();
                None
            }
            Err(error) => {
                tracing::warn!("epoch headers wait: {error:#}");
                Some(backoff.pause())
            }
        };
        // All of these may be dropped and asked again.
        tokio::select! {
            // First: whoever stops too may be gone already, which is no failure then.
            biased;
            () = stop.cancelled() => return Ok(()),
            changed = changed.changed(), if pause.is_none() => changed?,
            changed = identity.changed() => changed?,
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

async fn sign_waiting(spool: &Spool, run_id: [u8; 16], identity: &Identity) -> anyhow::Result<()> {
    loop {
        // At most so many at once, so ask until there are none.
        let waiting = spool.unsigned_headers().await?;
        if waiting.is_empty() {
            return Ok(());
        }
        for (epoch_id, payload) in waiting {
            match UnsignedHeader::from_payload(&payload) {
                Ok(header) if header.terms().gateway == identity.fingerprint() => {
                    sign(spool, run_id, identity, &header).await?;
                }
                other => {
                    // Made under an identity that is gone, or damaged: nobody can vouch for it any
                    // more, so it waits for no signature.
                    tracing::warn!(damaged = other.is_err(), "an epoch is set aside unsigned");
                    spool.set_aside(epoch_id).await?;
                }
            }
        }
    }
}

async fn sign(
    spool: &Spool,
    run_id: [u8; 16],
    identity: &Identity,
    header: &UnsignedHeader,
) -> anyhow::Result<()> {
    let signer = if header.terms().run_id == run_id {
        HeaderSigner::Own
    } else {
        HeaderSigner::Adopted
    };
    let signature = identity.sign(header.digest(signer)).await?;
    spool
        .sign_header(header.epoch_id(), header.finish(signature))
        .await?;
    tracing::debug!(?signer, "epoch header signed");
    Ok(())
}

/// A TPM that was reset answers again within a second.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// Recording goes on meanwhile; only delivery waits.
const RETRY_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use channel::{
        Epoch, EpochClock, EpochTerms, Fingerprint, Header, KeyKind, PublicKey, RecordKey,
    };
    use hsm::{Hsm, HsmConfig, swtpm::Swtpm};
    use spool::{Lane, NewEpoch, StoredHeader};
    use wire::Class;

    use super::*;
    use crate::fixture::{open_spool, rng};

    #[tokio::test]
    async fn epochs_of_this_run_are_witnessed_those_of_a_dead_one_adopted_and_others_left() {
        let tpm = Swtpm::start().unwrap();
        let hsm = Hsm::start(HsmConfig {
            tpm: tpm.tpm(),
            keys: tpm.folder().join("keys"),
            timeout: Duration::from_secs(10),
        });
        let public = hsm.provision(false).await.unwrap();
        let key = PublicKey::parse(&public.identity).unwrap();
        let identity = Arc::new(Identity::new(hsm, public).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let spool = open_spool(folder.path());
        let stranger = Fingerprint::new(KeyKind::GatewayIdentity, [9; 32]);
        let gateway = identity.fingerprint();
        let own = open(&spool, Class::Critical, gateway, RUN).await;
        let adopted = open(&spool, Class::Normal, gateway, [0; 16]).await;
        let foreign = open(&spool, Class::Bulk, stranger, RUN).await;

        // The TPM comes later than the epochs.
        let slot = watch::Sender::new(None);
        let stop = CancellationToken::new();
        let running = run(spool.clone(), RUN, slot.subscribe(), stop.clone());
        let looking = async {
            slot.send_replace(Some(identity));
            let mut changed = spool.changed();
            while !spool.unsigned_headers().await.unwrap().is_empty() {
                changed.changed().await.unwrap();
            }
            stop.cancel();
        };
        tokio::join!(async { running.await.unwrap() }, looking);

        for (epoch_id, is_adopted) in [(own, false), (adopted, true)] {
            let header = spool.header(epoch_id).await.unwrap();
            let Some(StoredHeader::Signed(header)) = header else {
                panic!("not signed");
            };
            let header = Header::verify(&header, &key, &service()).unwrap();
            assert_eq!(header.adopted(), is_adopted);
        }
        let left = spool.header(foreign).await.unwrap();
        let Some(StoredHeader::Signed(left) | StoredHeader::Unsigned(left)) = left else {
            panic!("it is kept");
        };
        assert!(Header::verify(&left, &key, &service()).is_err());
    }

    #[tokio::test]
    async fn a_stop_is_no_failure_although_others_are_gone_first() {
        let folder = tempfile::tempdir().unwrap();
        let spool = open_spool(folder.path());
        for _ in 0..64 {
            let slot = watch::Sender::new(None);
            let stop = CancellationToken::new();
            let running = run(spool.clone(), RUN, slot.subscribe(), stop.clone());
            let stopping = async move {
                stop.cancel();
                drop(slot);
            };
            let (ended, ()) = tokio::join!(running, stopping);
            ended.unwrap();
        }
    }

    async fn open(spool: &Spool, class: Class, gateway: Fingerprint, run_id: [u8; 16]) -> [u8; 32] {
        let terms = EpochTerms {
            gateway,
            service: service(),
            class: class.into(),
            chain_id: spool.chain_id(),
            index: 0,
            run_id,
            previous: None,
            opened: EpochClock {
                boot_id: [2; 16],
                boottime_ms: 3,
                wall_ms: 4,
                clock: 0,
            },
        };
        let record = RecordKey::generate(&mut rng()).public();
        let (epoch, header) = Epoch::open(terms, &record, &mut rng()).unwrap();
        let opened = spool.open_epoch(NewEpoch {
            lane: Lane {
                service: *service().bytes(),
                class,
            },
            epoch_id: epoch.id(),
            index: 0,
            unsigned_header: header.payload().to_vec(),
        });
        opened.await.unwrap();
        epoch.id()
    }

    fn service() -> Fingerprint {
        Fingerprint::new(KeyKind::ServiceIdentity, [7; 32])
    }

    const RUN: [u8; 16] = [1; 16];
}

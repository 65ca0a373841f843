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
                    // more. It keeps its payload, and waits for no signature.
                    tracing::warn!(damaged = other.is_err(), "an epoch is set aside unsigned");
                    spool.set_aside(epoch_id).await?;
                    spool.sign_header(epoch_id, payload).await?;
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

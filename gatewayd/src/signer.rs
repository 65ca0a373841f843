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
        let signed = match &identity_now {
            Some(identity) => sign_waiting(&spool, run_id, identity).await,
            None => Ok(()),
        };
        let retry = match signed {
            Ok(()) => {
                backoff.reset();
                None
            }
            Err(error) => {
                tracing::warn!("epoch headers wait: {error:#}");
                Some(backoff.next())
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changed.changed(), if retry.is_none() => changed?,
            _ = identity.changed(), if retry.is_none() => {}
            () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
        }
    }
}

async fn sign_waiting(spool: &Spool, run_id: [u8; 16], identity: &Identity) -> anyhow::Result<()> {
    for (epoch_id, payload) in spool.unsigned_headers().await? {
        let header = UnsignedHeader::from_payload(&payload)?;
        if header.terms().gateway != identity.fingerprint() {
            // Made under an identity that is gone; nobody can vouch for it any more.
            spool.set_aside(epoch_id).await?;
            tracing::warn!("an epoch of an earlier identity is set aside");
            continue;
        }
        let signer = if header.terms().run_id == run_id {
            HeaderSigner::Own
        } else {
            HeaderSigner::Adopted
        };
        let signature = identity.sign(header.digest(signer)).await?;
        spool
            .sign_header(epoch_id, header.finish(signature))
            .await?;
        tracing::debug!(?signer, "epoch header signed");
    }
    Ok(())
}

/// A TPM that was reset answers again within a second.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// Recording goes on meanwhile; only delivery waits.
const RETRY_MAX: Duration = Duration::from_secs(60);

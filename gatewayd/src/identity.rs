//! The gateway's identity: keys in the TPM, given to `channel` as the permissions it asks for.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use channel::{
    Fingerprint, KeyError, KeyFuture, KeyKind, PublicKey, SharedSecret, SigningKey, StaticKey,
};
use hsm::{Hsm, HsmError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;

/// An identity whose keys the TPM has loaded once in this run.
pub struct Identity {
    hsm: Hsm,
    keys: hsm::Public,
    identity: PublicKey,
    channel: PublicKey,
}

impl Identity {
    /// Takes the keys that the TPM holds.
    ///
    /// # Errors
    ///
    /// If the TPM gave something that is no P-256 key.
    pub fn new(hsm: Hsm, keys: hsm::Public) -> anyhow::Result<Self> {
        Ok(Self {
            identity: PublicKey::parse(&keys.identity).context("the TPM's identity key")?,
            channel: PublicKey::parse(&keys.channel).context("the TPM's channel key")?,
            hsm,
            keys,
        })
    }

    /// The name of this gateway to everyone.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(KeyKind::GatewayIdentity, self.identity.as_bytes())
    }

    /// What the TPM says of its keys, for enrolment.
    #[must_use]
    pub fn keys(&self) -> &hsm::Public {
        &self.keys
    }

    /// The TPM, for certification and activation.
    #[must_use]
    pub fn hsm(&self) -> &Hsm {
        &self.hsm
    }
}

impl StaticKey for Identity {
    fn public(&self) -> PublicKey {
        self.channel
    }

    fn ecdh(&self, peer: PublicKey) -> KeyFuture<'_, SharedSecret> {
        Box::pin(async move {
            let secret = self.hsm.ecdh(*peer.as_bytes()).await;
            secret.map(SharedSecret::new).map_err(KeyError::new)
        })
    }
}

impl SigningKey for Identity {
    fn public(&self) -> PublicKey {
        self.identity
    }

    fn sign(&self, digest: [u8; 32]) -> KeyFuture<'_, [u8; 64]> {
        Box::pin(async move { self.hsm.sign(digest).await.map_err(KeyError::new) })
    }
}

/// Who this gateway is, once the TPM has said so; empty before `gatewayctl init`.
pub type IdentitySlot = watch::Sender<Option<Arc<Identity>>>;

/// Loads the identity at start, and again and again while the TPM cannot: recording goes on
/// meanwhile. Ends its attempts when the identity is there, also by `gatewayctl init`.
///
/// # Errors
///
/// If the TPM holds something that is no key of ours.
pub async fn run(hsm: Hsm, slot: Arc<IdentitySlot>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    let mut last_problem = String::new();
    while slot.borrow().is_none() {
        // A TPM that hangs does not hold up the end.
        let Some(loaded) = stop.run_until_cancelled(hsm.load()).await else {
            return Ok(());
        };
        match loaded {
            Ok(public) => {
                let identity = Identity::new(hsm.clone(), public)?;
                tracing::info!(gateway = %identity.fingerprint().short(), "identity loaded");
                slot.send_if_modified(|slot| {
                    // `gatewayctl init` may have made a newer one meanwhile.
                    let empty = slot.is_none();
                    if empty {
                        *slot = Some(Arc::new(identity));
                    }
                    empty
                });
                break;
            }
            Err(HsmError::NotProvisioned { .. }) => {
                tracing::info!("no identity yet; next: gatewayctl init");
                break;
            }
            Err(error) => {
                let problem = error.to_string();
                if problem != last_problem {
                    tracing::warn!(advice = error.advice(), "cannot use the TPM: {problem}");
                    last_problem = problem;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.pause()) => {}
        }
    }
    stop.cancelled().await;
    Ok(())
}

/// A TPM that was reset answers again within a second.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// One that is absent may be repaired by hand; a minute is soon enough.
const RETRY_MAX: Duration = Duration::from_secs(60);

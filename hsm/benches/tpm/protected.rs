//! The operations through `hsm`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hsm::swtpm::{Direction, Frame, Swtpm};
use hsm::{Hsm, HsmConfig, Tpm};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use wire::tpm::{PcrSelection, PolicyAuthority, PolicyDigest, SignedPolicy};
use zeroize::Zeroizing;

use crate::Operation;

/// A gateway's keys, and a secret sealed for an authority.
pub(crate) struct Protected {
    hsm: Hsm,
    peer: [u8; 65],
    sealed: String,
    authority: PolicyAuthority,
    policy: SignedPolicy,
}

impl Protected {
    pub(crate) async fn provision(tpm: Tpm, keys: PathBuf) -> Self {
        let hsm = Hsm::start(HsmConfig {
            tpm,
            keys,
            timeout: Duration::from_secs(30),
        });
        hsm.provision(false).await.unwrap();
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let point = key.verifying_key().to_sec1_point(false);
        let point = point.as_bytes().try_into().unwrap();
        let authority = PolicyAuthority::new(point, b"bench").unwrap();
        let secret = Zeroizing::new(vec![1; 32]);
        let sealed = hsm.seal(secret, authority.clone()).await.unwrap();
        let state = hsm.quote(pcrs(), [0; 32]).await.unwrap().pcrs;
        let message = authority.message(PolicyDigest::new().and_pcrs(&state));
        let signature: Signature = key.sign(&message);
        let policy = SignedPolicy {
            pcrs: pcrs(),
            counter: None,
            signature: signature.to_bytes().into(),
        };
        Self {
            hsm,
            peer: point,
            sealed,
            authority,
            policy,
        }
    }

    pub(crate) async fn call(&self, operation: Operation) {
        match operation {
            Operation::Agree => drop(self.hsm.ecdh(self.peer).await.unwrap()),
            Operation::Sign => drop(self.hsm.sign([3; 32]).await.unwrap()),
            Operation::InTurn => {
                self.hsm.sign([3; 32]).await.unwrap();
                self.hsm.ecdh(self.peer).await.unwrap();
            }
            Operation::Quote => drop(self.hsm.quote(pcrs(), [4; 32]).await.unwrap()),
            Operation::Unseal => {
                let policies = vec![self.policy.clone()];
                let opened = self
                    .hsm
                    .unseal(&self.sealed, self.authority.clone(), policies);
                opened.await.unwrap();
            }
        }
    }
}

/// How many commands a call is, and how many of them run in an HMAC or policy session.
#[derive(Clone, Copy)]
pub(crate) struct Commands {
    burst: [usize; 2],
    cold: [usize; 2],
}

impl fmt::Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([burst, burst_in], [cold, cold_in]) = (self.burst, self.cold);
        write!(f, "{burst}, {burst_in}; {cold}, {cold_in}")
    }
}

/// Counts on the fixture's bus what each operation sends.
pub(crate) async fn count_commands() -> Vec<Commands> {
    let tpm = Swtpm::start().unwrap();
    let protected = Protected::provision(tpm.tpm(), tpm.folder().join("keys")).await;
    let mut counted = Vec::new();
    for operation in Operation::ALL {
        protected.call(operation).await;
        tpm.bus().forget();
        protected.call(operation).await;
        let burst = count(&tpm);
        rest(&tpm).await;
        tpm.bus().forget();
        protected.call(operation).await;
        rest(&tpm).await;
        counted.push(Commands {
            burst,
            cold: count(&tpm),
        });
    }
    counted
}

async fn rest(tpm: &Swtpm) {
    tokio::time::sleep(crate::REST).await;
    tpm.wait_at_rest(Duration::from_secs(10)).unwrap();
}

fn count(tpm: &Swtpm) -> [usize; 2] {
    let frames = tpm.bus().frames();
    let sent = frames
        .iter()
        .filter(|frame| frame.direction == Direction::Command);
    let in_session = sent.clone().filter(|frame| is_in_session(frame));
    [sent.count(), in_session.count()]
}

/// Whether it is authorized (`TPM_ST_SESSIONS`) by something else than a password (`TPM_RS_PW`).
fn is_in_session(frame: &Frame) -> bool {
    frame.bytes.starts_with(&[0x80, 0x02]) && !frame.contains(&[0x40, 0, 0, 9])
}

/// What a quote is usually about.
fn pcrs() -> PcrSelection {
    [0, 7].into_iter().collect()
}

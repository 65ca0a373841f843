//! Every answer of the TPM altered, cut short, repeated and held back, over every command in use:
//! never a wrong result, never a hang, and the next call works.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hsm::swtpm::{Direction, Swtpm};
use hsm::{CertifyKey, EndorsementKind, Hsm, HsmError, Public};
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use support::command::{
    ACTIVATE_CREDENTIAL, CERTIFY, CREATE, CREATE_PRIMARY, ECDH_ZGEN, EVICT_CONTROL, FLUSH_CONTEXT,
    GET_CAPABILITY, LOAD, LOAD_EXTERNAL, NV_DEFINE_SPACE, NV_INCREMENT, NV_READ, NV_READ_PUBLIC,
    PCR_READ, POLICY_AUTHORIZE, POLICY_GET_DIGEST, POLICY_NV, POLICY_OR, POLICY_PCR,
    POLICY_RESTART, POLICY_SECRET, QUOTE, READ_PUBLIC, SIGN, START_AUTH_SESSION, STARTUP, UNSEAL,
    VERIFY_SIGNATURE,
};
use support::{at_rest, digest, hsm, hsm_with, make_credential, point, secret_key, tool};
use tokio::sync::OnceCell;
use wire::tpm::{CounterLimit, PcrSelection, SignedPolicy};
use zeroize::Zeroizing;

#[tokio::test]
async fn a_key_agreement_survives_every_altered_answer() {
    let site = Site::start().await;
    let channel = p256::PublicKey::from_sec1_bytes(&site.public.channel).unwrap();
    let peer = secret_key(1);
    let expected = p256::ecdh::diffie_hellman(peer.to_nonzero_scalar(), channel.as_affine());
    let call = async |handle: &Hsm| {
        let agreed = handle.ecdh(point(&peer)).await?;
        assert_eq!(agreed.as_slice(), expected.raw_secret_bytes().as_slice());
        Ok(())
    };
    let codes = [
        GET_CAPABILITY,
        READ_PUBLIC,
        START_AUTH_SESSION,
        LOAD,
        ECDH_ZGEN,
        FLUSH_CONTEXT,
    ];
    site.torment(call, &codes).await;
}

#[tokio::test]
async fn a_signature_survives_every_altered_answer() {
    let site = Site::start().await;
    let identity = VerifyingKey::from_sec1_bytes(&site.public.identity).unwrap();
    let call = async |handle: &Hsm| {
        let signature = handle.sign(digest(1)).await?;
        let signature = Signature::from_slice(&signature).unwrap();
        identity.verify_prehash(&digest(1), &signature).unwrap();
        Ok(())
    };
    site.torment(call, &[SIGN]).await;
}

#[tokio::test]
async fn a_certification_and_a_quote_survive_every_altered_answer() {
    let site = Site::start().await;
    let area = &site.public.attestation_public;
    let (x, y) = (area.len() - 66, area.len() - 32);
    let attestation =
        VerifyingKey::from_sec1_bytes(&[&[4], &area[x..x + 32], &area[y..]].concat()).unwrap();
    let check = |attest: &[u8], signature: &[u8], qualifying: &[u8; 32]| {
        let signature = wire::tpm::ecdsa_signature(signature).unwrap();
        let signature = Signature::from_slice(&signature).unwrap();
        attestation.verify(attest, &signature).unwrap();
        assert!(attest.windows(32).any(|part| part == qualifying));
    };
    let call = async |handle: &Hsm| {
        let (attest, signature) = handle.certify(CertifyKey::Channel, digest(2)).await?;
        check(&attest, &signature, &digest(2));
        Ok(())
    };
    site.torment(call, &[CERTIFY]).await;

    let pcrs: PcrSelection = [0, 7].into_iter().collect();
    let call = async |handle: &Hsm| {
        let quoted = handle.quote(pcrs, digest(3)).await?;
        check(&quoted.attest, &quoted.signature, &digest(3));
        let signed = quoted.pcrs.digest();
        assert!(quoted.attest.ends_with(&signed));
        Ok(())
    };
    site.torment(call, &[QUOTE, PCR_READ]).await;
}

#[tokio::test]
async fn an_activated_credential_survives_every_altered_answer() {
    let site = Site::start().await;
    let (credential, secret) = make_credential(&site.tpm, "attestation", b"of the credential");
    tool(&site.tpm, "tpm2_flushcontext -t");
    let call = async |handle: &Hsm| {
        let opened = handle
            .activate(EndorsementKind::P256, credential.clone(), secret.clone())
            .await?;
        assert_eq!(opened.as_slice(), b"of the credential");
        Ok(())
    };
    let codes = [CREATE_PRIMARY, POLICY_SECRET, ACTIVATE_CREDENTIAL];
    site.torment(call, &codes).await;

    // A credential for another key, so that PolicyOR is on the bus: it is refused in any case.
    let call = async |handle: &Hsm| {
        let refused = handle
            .activate(EndorsementKind::P384, credential.clone(), secret.clone())
            .await;
        match refused {
            Ok(_) => panic!("it opened with another key"),
            Err(HsmError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    };
    site.torment(call, &[POLICY_OR]).await;
}

#[tokio::test]
async fn the_certificates_of_the_endorsement_key_survive_every_altered_answer() {
    let site = Site::start().await;
    let certificate = [vec![0x30, 0x82, 0x01, 0x00], vec![7; 256]].concat();
    std::fs::write(site.tpm.folder().join("nv.bin"), &certificate).unwrap();
    tool(
        &site.tpm,
        "tpm2_nvdefine 0x1c0000a -C o -s 260 -a ownerwrite|ownerread|authread|no_da",
    );
    tool(&site.tpm, "tpm2_nvwrite 0x1c0000a -C o -i nv.bin");
    let honest = hsm(&site.tpm).endorsement(None).await.unwrap();
    assert_eq!(honest.certificates, [certificate]);
    let call = async |handle: &Hsm| {
        let endorsement = handle.endorsement(Some(EndorsementKind::P256)).await?;
        assert_eq!(endorsement.public, honest.public);
        // Which indices there are nobody authenticates: a certificate may be hidden.
        if !endorsement.certificates.is_empty() {
            assert_eq!(endorsement.certificates, honest.certificates);
        }
        Ok(())
    };
    site.torment(call, &[NV_READ_PUBLIC, NV_READ]).await;
}

#[tokio::test]
async fn a_counter_survives_every_altered_answer() {
    let site = Site::start().await;
    let last = AtomicUsize::new(0);
    let call = async |handle: &Hsm| {
        let value = usize::try_from(handle.increment(1).await?).unwrap();
        assert!(last.swap(value, Ordering::SeqCst) < value);
        Ok(())
    };
    site.torment(call, &[NV_INCREMENT]).await;

    // A new one each time.
    let (number, tpm) = (AtomicUsize::new(10), &site.tpm);
    let call = async |handle: &Hsm| {
        let number = u8::try_from(number.fetch_add(1, Ordering::SeqCst) % 200).unwrap() + 10;
        let made = handle.counter(number).await;
        let index = 0x0186_7764 + u32::from(number);
        undefine(tpm, index);
        made.map(drop)
    };
    site.torment(call, &[NV_DEFINE_SPACE]).await;
}

#[tokio::test]
async fn a_sealed_secret_survives_every_altered_answer() {
    let site = Site::start().await;
    let authority = support::authority();
    let handle = hsm(&site.tpm);
    let secret = Zeroizing::new(b"of the seal".to_vec());
    let sealed = handle
        .seal(secret.clone(), authority.clone())
        .await
        .unwrap();
    let limit = CounterLimit {
        number: 2,
        value_max: handle.counter(2).await.unwrap(),
    };
    at_rest(&site.tpm);
    let fits = support::signed_policy(Some(limit));
    let unfit = SignedPolicy {
        pcrs: [17].into_iter().collect(),
        ..fits.clone()
    };
    let policies = vec![unfit, fits];
    let call = async |handle: &Hsm| {
        let sealed = handle.seal(secret.clone(), authority.clone()).await?;
        let other = hsm(&site.tpm);
        let opened = other.unseal(&sealed, authority.clone(), policies.clone());
        assert_eq!(opened.await.unwrap().as_slice(), b"of the seal");
        Ok(())
    };
    site.torment(call, &[CREATE]).await;
    let call = async |handle: &Hsm| {
        let opened = handle
            .unseal(&sealed, authority.clone(), policies.clone())
            .await?;
        assert_eq!(opened.as_slice(), b"of the seal");
        Ok(())
    };
    let codes = [
        READ_PUBLIC,
        START_AUTH_SESSION,
        LOAD,
        POLICY_PCR,
        NV_READ_PUBLIC,
        POLICY_NV,
        POLICY_GET_DIGEST,
        POLICY_RESTART,
        LOAD_EXTERNAL,
        VERIFY_SIGNATURE,
        POLICY_AUTHORIZE,
        UNSEAL,
        FLUSH_CONTEXT,
    ];
    site.torment(call, &codes).await;
}

#[tokio::test]
async fn a_root_key_made_anew_survives_every_altered_answer() {
    let site = Site::start().await;
    let tpm = &site.tpm;
    let call = async |handle: &Hsm| {
        evict_parent(tpm);
        let loaded = handle.load().await?;
        assert_eq!(loaded.identity, site.public.identity);
        Ok(())
    };
    site.torment(call, &[CREATE_PRIMARY, EVICT_CONTROL]).await;
}

#[tokio::test]
async fn the_first_root_key_is_pinned_right_or_not_at_all() {
    let site = Site::start().await;
    let tpm = &site.tpm;
    let root = support::manifest(tpm)["parent"].clone();
    // Nothing authenticates this answer but that the key goes on to be used.
    for byte in (10..400).step_by(7) {
        evict_parent(tpm);
        std::fs::remove_dir_all(support::keys(tpm)).unwrap_or_default();
        let mut is_first = true;
        tpm.bus().alter_answers(move |code, bytes| {
            if code == CREATE_PRIMARY && std::mem::take(&mut is_first) {
                flip(bytes, byte);
            }
        });
        if hsm(tpm).provision(false).await.is_ok() {
            assert_eq!(support::manifest(tpm)["parent"], root, "{byte}");
        }
        tpm.bus().behave();
        let handle = hsm(tpm);
        let made = handle.provision(false).await.unwrap();
        assert_eq!(support::manifest(tpm)["parent"], root, "{byte}");
        assert_eq!(handle.load().await.unwrap(), made);
    }
}

#[tokio::test]
async fn a_start_of_the_tpm_survives_every_altered_answer() {
    let site = Site::start().await;
    let control = site.tpm.control_socket();
    let reset = format!("swtpm_ioctl --unix {} -i", control.display());
    let call = async |handle: &Hsm| {
        tool(&site.tpm, &reset);
        handle.sign(digest(1)).await.map(drop)
    };
    site.torment(call, &[STARTUP]).await;
}

/// A TPM with the gateway's keys.
struct Site {
    tpm: Swtpm,
    public: Public,
}

/// An answer of an honest run.
struct Answer {
    /// Its place among the answers to this code in one call.
    place: usize,
    code: u32,
    length: usize,
}

impl Answer {
    /// Tells when it is this answer's turn. What an earlier call still puts away does not count: it
    /// is other codes; nor does a TPM's wish for a repetition.
    fn turn(&self) -> impl FnMut(u32, &[u8]) -> bool + Send + 'static {
        let (wanted, mut left) = (self.code, self.place);
        move |code, answer| {
            if code != wanted || answer[6..10] != [0; 4] {
                return false;
            }
            let is_due = left == 0;
            left = left.checked_sub(1).unwrap_or(usize::MAX);
            is_due
        }
    }
}

impl Site {
    async fn start() -> Self {
        let tpm = Swtpm::start().unwrap();
        let handle = hsm(&tpm);
        let public = handle.provision(false).await.unwrap();
        at_rest(&tpm);
        Self { tpm, public }
    }

    /// Makes the call once for each way to alter each of its answers to `codes`.
    async fn torment(&self, call: impl AsyncFn(&Hsm) -> Result<(), HsmError>, codes: &[u32]) {
        let answers = self.honest_run(&call).await;
        let seen: BTreeSet<u32> = answers.iter().map(|answer| answer.code).collect();
        for code in codes {
            assert!(seen.contains(code), "no {code:#x} among {seen:x?}");
        }
        let mut done = BTreeSet::new();
        for answer in answers.iter().filter(|answer| codes.contains(&answer.code)) {
            // Of answers that are alike, one.
            if !done.insert((answer.code, answer.length)) {
                continue;
            }
            for byte in 0..answer.length {
                let flip = move |bytes: &mut Vec<u8>| flip(bytes, byte);
                // A length that is too long is waited for; nothing else costs time.
                let limit = if LENGTH.contains(&byte) {
                    SHORT_LIMIT
                } else {
                    LIMIT
                };
                let noticed = self.once(&call, answer, limit, flip).await;
                let is_certain = AUTHENTICATED.contains(&answer.code) && HEADER <= byte;
                assert!(noticed || !is_certain, "{:#x} {byte}", answer.code);
            }
            for length in (10..answer.length).step_by(4) {
                let cut = move |bytes: &mut Vec<u8>| cut(bytes, length);
                self.once(&call, answer, LIMIT, cut).await;
            }
            self.repeat(&call, answer).await;
            self.hold_back(&call, answer).await;
        }
    }

    async fn honest_run(&self, call: &impl AsyncFn(&Hsm) -> Result<(), HsmError>) -> Vec<Answer> {
        self.tpm.bus().forget();
        call(&hsm(&self.tpm)).await.unwrap();
        at_rest(&self.tpm);
        let frames = self.tpm.bus().frames();
        let commands = frames
            .iter()
            .filter(|frame| frame.direction == Direction::Command);
        let answers = frames
            .iter()
            .filter(|frame| frame.direction == Direction::Answer);
        let mut places = BTreeMap::<u32, usize>::new();
        commands
            .zip(answers)
            .filter(|(_, answer)| answer.code() == 0)
            .map(|(command, answer)| {
                let code = command.code();
                let place = places.entry(code).or_default();
                *place += 1;
                Answer {
                    place: *place - 1,
                    code,
                    length: answer.bytes.len(),
                }
            })
            .collect()
    }

    /// Makes the call with one altered answer, and again on an honest bus; returns whether the first
    /// failed.
    async fn once(
        &self,
        call: &impl AsyncFn(&Hsm) -> Result<(), HsmError>,
        answer: &Answer,
        limit: Duration,
        mut alter: impl FnMut(&mut Vec<u8>) + Send + 'static,
    ) -> bool {
        let mut is_due = answer.turn();
        self.tpm.bus().alter_answers(move |code, bytes| {
            if is_due(code, bytes) {
                alter(bytes);
            }
        });
        let handle = hsm_with(&self.tpm, limit);
        // It checks its result itself.
        let result = call(&handle).await;
        self.tpm.bus().behave();
        if matches!(result, Err(HsmError::Tampered)) {
            assert_eq!(handle.health().await.tampered, 1);
        }
        let late = matches!(result, Err(HsmError::Timeout { .. }));
        assert!(
            !late || limit == SHORT_LIMIT,
            "it hangs: {:#x}",
            answer.code
        );
        self.works_again(call, &handle).await;
        result.is_err()
    }

    /// The answer that the same command had in the call before.
    async fn repeat(&self, call: &impl AsyncFn(&Hsm) -> Result<(), HsmError>, answer: &Answer) {
        let old = Arc::new(OnceCell::new());
        let (kept, mut is_due) = (Arc::clone(&old), answer.turn());
        self.tpm.bus().alter_answers(move |code, bytes| {
            if is_due(code, bytes) {
                kept.set(bytes.clone()).unwrap();
            }
        });
        let _ = call(&hsm(&self.tpm)).await;
        self.tpm.bus().behave();
        at_rest(&self.tpm);
        let again = move |bytes: &mut Vec<u8>| bytes.clone_from(old.get().unwrap());
        self.once(call, answer, LIMIT, again).await;
    }

    async fn hold_back(&self, call: &impl AsyncFn(&Hsm) -> Result<(), HsmError>, answer: &Answer) {
        let (bus, mut is_due) = (self.tpm.bus().clone(), answer.turn());
        self.tpm.bus().alter_answers(move |code, bytes| {
            if is_due(code, bytes) {
                bus.stop_answering();
            }
        });
        let handle = hsm_with(&self.tpm, SHORT_LIMIT);
        let started = Instant::now();
        let result = call(&handle).await;
        assert!(started.elapsed() < BOUND);
        if let Err(error) = result {
            assert!(
                matches!(error, HsmError::Timeout { .. } | HsmError::Refused { .. }),
                "{error}"
            );
        }
        self.tpm.bus().behave();
        self.works_again(call, &handle).await;
    }

    /// On a busy machine a short limit passes now and then, so not only the first call counts.
    async fn works_again(&self, call: &impl AsyncFn(&Hsm) -> Result<(), HsmError>, handle: &Hsm) {
        let give_up = Instant::now() + BOUND;
        while let Err(error) = call(handle).await {
            let is_late = matches!(error, HsmError::Timeout { .. } | HsmError::Busy);
            assert!(is_late && Instant::now() < give_up, "{error}");
        }
    }
}

/// Another bit in each byte.
fn flip(bytes: &mut [u8], byte: usize) {
    // A call may answer otherwise, and shorter, once it has been made before.
    if let Some(flipped) = bytes.get_mut(byte) {
        *flipped ^= 1 << (byte % 8);
    }
}

/// Cuts an answer so that its header says the same.
fn cut(bytes: &mut Vec<u8>, length: usize) {
    bytes.truncate(length);
    let length = u32::try_from(bytes.len()).unwrap();
    bytes[2..6].copy_from_slice(&length.to_be_bytes());
}

/// Removes the root key past the bus.
fn evict_parent(tpm: &Swtpm) {
    let parent = 0x8100_0001_u32.to_be_bytes();
    let body = [&OWNER[..], &parent, &PASSWORD, &parent].concat();
    support::send(tpm, EVICT_CONTROL, &body);
}

/// Removes an NV index past the bus, if it is there.
fn undefine(tpm: &Swtpm, index: u32) {
    let body = [&OWNER[..], &index.to_be_bytes(), &PASSWORD].concat();
    support::send(tpm, NV_UNDEFINE_SPACE, &body);
}

const NV_UNDEFINE_SPACE: u32 = 0x122;

/// `TPM_RH_OWNER`.
const OWNER: [u8; 4] = 0x4000_0001_u32.to_be_bytes();

/// One authorization: `TPM_RS_PW` and nothing else.
const PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];

/// Whose answers carry an HMAC that ends the call if it is wrong. (An increment is looked up instead;
/// a sealed object is loaded in the open, and found out later.)
const AUTHENTICATED: [u32; 10] = [
    SIGN,
    ECDH_ZGEN,
    CERTIFY,
    QUOTE,
    POLICY_SECRET,
    ACTIVATE_CREDENTIAL,
    NV_READ,
    CREATE,
    EVICT_CONTROL,
    UNSEAL,
];

/// Tag, length, code, and the length of the parameters, which no HMAC covers.
const HEADER: usize = 14;

/// Where a frame says how long it is.
const LENGTH: std::ops::Range<usize> = 2..6;

/// Many times what a call takes, also on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(15);

/// For answers that never come.
const SHORT_LIMIT: Duration = Duration::from_millis(250);

/// More than any limit that a call has.
const BOUND: Duration = Duration::from_secs(40);

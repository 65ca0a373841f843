//! A service registers a gateway that has a ticket and keys in one TPM, and nobody else.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use std::{fs, time::Duration};

use channel::{
    Admission, KeyError, KeyFuture, PublicKey, Purpose, SharedSecret, SoftwareStaticKey, StaticKey,
};
use cloud::{
    evidence::{ClaimedKeys, EndorsementKey, EvidenceError},
    invite,
    roots::EndorsementRoots,
};
use hsm::{CertifyKey, EndorsementKind, Hsm, HsmConfig, HsmError, Public, swtpm::Swtpm};
use link::{Messages, StreamName};
use sha2::{Digest, Sha256};
use support::{
    Cloud, PATIENCE, REGISTRY, Session,
    authority::{Authority, ENDORSEMENT},
    rng,
};
use tokio::time::timeout;
use wire::{
    enrol::{self, CertifiedKey, Challenge, EnrolCode, Evidence, Outcome, Request},
    ticket::Ticket,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_with_a_ticket_is_registered_and_comes_in() {
    let (cloud, tpm) = (Cloud::start().await, Tpm::start().await);
    let ticket = ticket(&cloud, "greenhouse-7", MINUTE);
    let refused = cloud.connect(&tpm, Purpose::Deliver).await;
    assert!(refused.is_err());

    let outcome = tpm.enrol(&cloud, &ticket).await;

    assert_eq!(outcome.code, EnrolCode::Ok);
    assert_eq!(outcome.name.as_deref(), Some("greenhouse-7"));
    let [gateway] = &cloud.registry.gateways().unwrap()[..] else {
        panic!("not one gateway");
    };
    assert_eq!(gateway.name, "greenhouse-7");
    assert_eq!(gateway.identity.as_bytes(), &tpm.public.identity);
    assert_eq!(Some(gateway.fingerprint), outcome.gateway);
    assert_eq!(state_of(&cloud, &ticket), "used");
    let audited: i64 = cloud.registered("SELECT count(*) FROM audit WHERE event = 'enrolled'");
    assert_eq!(audited, 1);
    cloud.connect(&tpm, Purpose::Deliver).await.unwrap();

    // The answer may have been lost.
    let again = tpm.enrol(&cloud, &ticket).await;
    assert_eq!(again, outcome);
    // But the ticket is nobody else's, and the TPM needs no other.
    let refusals = Refusals::of(&cloud, 1);
    let other = stranger_with(&cloud, &ticket, b"another endorsement key").await;
    refusals.assert(&other, EnrolCode::TicketUsed, 1);
    let second = self::ticket(&cloud, "greenhouse-8", MINUTE);
    let twice = tpm.enrol(&cloud, &second).await;
    refusals.assert(&twice, EnrolCode::AlreadyEnrolled, 2);
    assert_eq!(state_of(&cloud, &second), "claimed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_is_not_good_lets_nobody_in() {
    let cloud = Cloud::start().await;
    let refusals = Refusals::of(&cloud, 0);
    let foreign = ticket(&Cloud::start().await, "a", MINUTE);
    let outcome = stranger_with(&cloud, &foreign, b"ek").await;
    refusals.assert(&outcome, EnrolCode::TicketUnknown, 1);

    let expired = ticket(&cloud, "b", Duration::ZERO);
    let outcome = stranger_with(&cloud, &expired, b"ek").await;
    refusals.assert(&outcome, EnrolCode::TicketExpired, 2);

    let outcome = stranger(&cloud, |_| Request {
        ticket_id: None,
        proof: None,
        ..keys_of_nobody(b"ek")
    })
    .await;
    refusals.assert(&outcome, EnrolCode::NotAllowed, 3);

    // The first with a valid proof has it, even if its keys are then refused.
    let claimed = ticket(&cloud, "c", MINUTE);
    let outcome = stranger_with(&cloud, &claimed, b"first").await;
    refusals.assert(&outcome, EnrolCode::KeyRefused, 4);
    let outcome = stranger_with(&cloud, &claimed, b"second").await;
    refusals.assert(&outcome, EnrolCode::TicketUsed, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_wrong_proofs_burn_a_ticket() {
    let cloud = Cloud::start().await;
    let refusals = Refusals::of(&cloud, 0);
    let good = ticket(&cloud, "a", MINUTE);
    for attempt in 1..=5 {
        let outcome = stranger(&cloud, |h| {
            let mut request = prove(keys_of_nobody(b"ek"), &good, h);
            match attempt {
                // A proof of other keys, of another session, of another secret.
                1 => request.ek = b"swapped".to_vec(),
                2 => request.proof = prove(keys_of_nobody(b"ek"), &good, &[1; 32]).proof,
                _ => request.proof = Some([0; 32]),
            }
            request
        })
        .await;
        refusals.assert(&outcome, EnrolCode::ProofWrong, attempt);
    }
    assert_eq!(state_of(&cloud, &good), "burnt");
    let outcome = stranger_with(&cloud, &good, b"ek").await;
    refusals.assert(&outcome, EnrolCode::ProofWrong, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_decide_says_later() {
    let cloud = Cloud::start().await;
    let good = ticket(&cloud, "a", MINUTE);
    cloud.change(REGISTRY, "ALTER TABLE ticket RENAME TO elsewhere");
    let outcome = stranger_with(&cloud, &good, b"ek").await;
    assert_eq!(outcome.code, EnrolCode::Later);
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_of_another_session_is_refused_and_another_attempt_is_not() {
    let (cloud, tpm) = (Cloud::start().await, Tpm::start().await);
    let refusals = Refusals::of(&cloud, 0);
    let ticket = ticket(&cloud, "greenhouse-7", MINUTE);
    // A gateway that is cut off after message 1, and one after it has made message 3.
    drop(tpm.begin(&cloud, &ticket).await);
    let earlier = tpm.begin(&cloud, &ticket).await;
    let evidence = tpm.evidence(&earlier).await;
    drop(earlier);

    let later = tpm.begin(&cloud, &ticket).await;
    let outcome = later.answer(&evidence).await;

    refusals.assert(&outcome, EnrolCode::KeyRefused, 1);
    assert_eq!(tpm.enrol(&cloud, &ticket).await.code, EnrolCode::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_channel_key_must_be_the_one_of_the_session() {
    let (cloud, tpm) = (Cloud::start().await, Tpm::start().await);
    let refusals = Refusals::of(&cloud, 0);
    let ticket = ticket(&cloud, "greenhouse-7", MINUTE);
    let outcome = stranger(&cloud, |h| prove(tpm.claims.clone(), &ticket, h)).await;
    refusals.assert(&outcome, EnrolCode::KeyRefused, 1);
    let why = outcome.detail.unwrap();
    assert!(why.contains("not the one of the session"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_vendors_are_trusted_a_ticket_alone_enrols_no_tpm() {
    let (vendor, impostor) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    fs::copy(vendor.file("root"), folder.path().join("vendor.pem")).unwrap();
    let roots = EndorsementRoots::load(folder.path()).unwrap();
    let (cloud, mut tpm) = (Cloud::start_trusting(roots).await, Tpm::start().await);
    let refusals = Refusals::of(&cloud, 0);
    let ticket = ticket(&cloud, "greenhouse-7", MINUTE);
    let key = EndorsementKey::parse(&tpm.claims.ek).unwrap();
    let key = key.subject_public_key_info().unwrap();
    for (count, certificates, why) in [
        (1, vec![], "is missing"),
        (
            2,
            vec![impostor.certificate("root", &key, ENDORSEMENT)],
            "the endorsement certificate does not lead to a root",
        ),
    ] {
        tpm.claims.ek_certificates = certificates;
        let request = |h: &[u8; 32]| prove(tpm.claims.clone(), &ticket, h);
        let begun = Conversation::begin(&cloud, &tpm, request).await;
        let outcome = begun.err().expect("a challenge");
        refusals.assert(&outcome, EnrolCode::KeyRefused, count);
        let told = outcome.detail.unwrap();
        assert!(told.contains(why), "{told}");
        let audited: String =
            cloud.registered("SELECT detail FROM audit ORDER BY rowid DESC LIMIT 1");
        assert_eq!(audited, told);
    }

    tpm.claims.ek_certificates = vec![vendor.certificate("root", &key, ENDORSEMENT)];
    let outcome = tpm.enrol(&cloud, &ticket).await;
    assert_eq!(outcome.code, EnrolCode::Ok, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_enrols_by_whichever_key_its_vendor_certified() {
    for kind in [EndorsementKind::P384, EndorsementKind::Rsa2048] {
        let swtpm = Swtpm::start_certified().unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (name, file) in ["root.pem", "issuer.pem"].iter().zip(swtpm.authority()) {
            fs::copy(file, folder.path().join(name)).unwrap();
        }
        let roots = EndorsementRoots::load(folder.path()).unwrap();
        let cloud = Cloud::start_trusting(roots).await;
        let tpm = Tpm::with(swtpm, Some(kind)).await;
        assert_eq!(tpm.kind, kind);

        let outcome = tpm
            .enrol(&cloud, &ticket(&cloud, "greenhouse-7", MINUTE))
            .await;

        assert_eq!(outcome.code, EnrolCode::Ok, "{kind:?}: {outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_two_tpms_are_not_activated() {
    let (cloud, tpm, other) = tokio::join!(Cloud::start(), Tpm::start(), Tpm::start());
    let refusals = Refusals::of(&cloud, 0);
    let mut lent_endorsement = tpm.claims.clone();
    lent_endorsement.ek = other.claims.ek.clone();
    let mut lent_attestation = tpm.claims.clone();
    lent_attestation.ak = other.claims.ak.clone();
    for (count, mixed) in (1..).zip([lent_attestation, lent_endorsement]) {
        // Each mix has its own endorsement key, so its own ticket.
        let ticket = ticket(&cloud, "greenhouse-7", MINUTE);
        let request = |h: &[u8; 32]| prove(mixed.clone(), &ticket, h);
        let begun = Conversation::begin(&cloud, &tpm, request).await.unwrap();
        for tpm in [&tpm, &other] {
            let opened = tpm.activate(&begun.challenge).await;
            assert!(matches!(opened, Err(HsmError::Refused { .. })));
        }
        let guessed = tpm.evidence_with(&begun, &[0; 32]).await;
        let outcome = begun.answer(&guessed).await;
        refusals.assert(&outcome, EnrolCode::KeyRefused, count);
        let why = outcome.detail.unwrap();
        assert!(why.contains("was not opened"), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_must_be_what_its_role_asks_for() {
    let tpm = Tpm::start().await;
    let good = tpm.claims.clone();
    let session_key = tpm.public();
    let check = |request: &Request| {
        let checked = ClaimedKeys::check(request, &session_key);
        checked.map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(check(&good), Ok(()));
    let edits: [(Edit, &str); 7] = [
        (
            |keys| keys.ak = keys.identity.clone(),
            "the attestation key",
        ),
        (|keys| keys.identity = keys.ak.clone(), "the identity key"),
        (
            |keys| keys.channel = keys.identity.clone(),
            "the channel key",
        ),
        (|keys| keys.identity.push(0), "the identity key"),
        (|keys| keys.ek = keys.ak.clone(), "the endorsement key"),
        (
            |keys| move_point(&keys.identity.clone(), &mut keys.channel),
            "the channel key is not the one of the session",
        ),
        (
            |keys| move_point(&keys.channel.clone(), &mut keys.identity),
            "two of the keys are the same",
        ),
    ];
    for (edit, expected) in edits {
        let mut request = good.clone();
        edit(&mut request);
        assert_eq!(check(&request), Err(expected.to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_piece_of_evidence_counts() {
    let tpm = Tpm::start().await;
    let request = tpm.claims.clone();
    let keys = ClaimedKeys::check(&request, &tpm.public()).unwrap();
    let open = keys.challenge(&mut rng()).unwrap();
    let t = enrol::transcript(&[1; 32], &request.encode(), &open.challenge.encode());
    let secret = tpm.activate(&open.challenge).await.unwrap();
    let good = tpm.prove(&secret, &t).await;
    let verify = |evidence: &Evidence, t: &[u8; 32]| keys.verify(evidence, &open, t);
    assert!(verify(&good, &t).is_ok());
    assert!(matches!(
        verify(&good, &[0; 32]),
        Err(EvidenceError::NotActivated)
    ));

    // The right secret, and certificates of another transcript.
    let mut stale = tpm.prove(&secret, &[2; 32]).await;
    stale.activated = good.activated;
    assert!(is_bad_certification(verify(&stale, &t).err(), "identity"));

    let mut bad = good.clone();
    bad.activated[31] ^= 1;
    assert!(matches!(verify(&bad, &t), Err(EvidenceError::NotActivated)));
    let mut bad = good.clone();
    bad.possession[40] ^= 1;
    assert!(matches!(verify(&bad, &t), Err(EvidenceError::NoPossession)));
    let mut bad = good.clone();
    std::mem::swap(&mut bad.identity, &mut bad.channel);
    assert!(is_bad_certification(verify(&bad, &t).err(), "identity"));

    let pieces: [(&str, Piece); 2] = [
        ("identity", |evidence| &mut evidence.identity),
        ("channel", |evidence| &mut evidence.channel),
    ];
    for (role, piece) in pieces {
        // Whichever byte of the attest changes, something notices.
        for place in 0..good.identity.0.len() {
            let mut bad = good.clone();
            piece(&mut bad).0[place] ^= 1;
            assert!(verify(&bad, &t).is_err(), "{role} attest {place}");
        }
        // Magic, type, and a byte too many are noticed before the signature.
        for place in [0, 5] {
            let mut bad = good.clone();
            piece(&mut bad).0[place] ^= 1;
            assert!(is_bad_certification(verify(&bad, &t).err(), role));
        }
        let mut bad = good.clone();
        piece(&mut bad).0.push(0);
        assert!(is_bad_certification(verify(&bad, &t).err(), role));
        let mut bad = good.clone();
        piece(&mut bad).1.push(0);
        assert!(is_bad_certification(verify(&bad, &t).err(), role));
        let mut bad = good.clone();
        *piece(&mut bad).1.last_mut().unwrap() ^= 1;
        assert!(matches!(
            verify(&bad, &t),
            Err(EvidenceError::NotCertified { role: found }) if found == role
        ));
    }
}

type Edit = fn(&mut Request);

/// One of the two certificates: attest and signature.
type Piece = fn(&mut Evidence) -> &mut (Vec<u8>, Vec<u8>);

fn is_bad_certification(error: Option<EvidenceError>, expected: &str) -> bool {
    matches!(error, Some(EvidenceError::Certification { role, .. }) if role == expected)
}

/// Gives a key the point of another; each area ends with X and Y, 32 bytes and their size.
fn move_point(from: &[u8], to: &mut [u8]) {
    let (start, end) = (from.len() - 68, to.len() - 68);
    to[end..].copy_from_slice(&from[start..]);
}

/// A software TPM with a gateway's keys.
struct Tpm {
    hsm: Hsm,
    public: Public,
    kind: EndorsementKind,
    /// Message 1 but for the ticket.
    claims: Request,
    _swtpm: Swtpm,
}

impl Tpm {
    async fn start() -> Self {
        Self::with(Swtpm::start().unwrap(), None).await
    }

    async fn with(swtpm: Swtpm, kind: Option<EndorsementKind>) -> Self {
        let hsm = Hsm::start(HsmConfig {
            tpm: swtpm.tpm(),
            keys: swtpm.folder().join("keys"),
            timeout: PATIENCE,
        });
        let public = hsm.provision(false).await.unwrap();
        let endorsement = hsm.endorsement(kind).await.unwrap();
        Self {
            claims: Request {
                ticket_id: None,
                proof: None,
                ek_certificates: endorsement.certificates,
                ek: endorsement.public,
                ak: public.attestation_public.clone(),
                identity: public.identity_public.clone(),
                channel: public.channel_public.clone(),
            },
            kind: endorsement.kind,
            public,
            hsm,
            _swtpm: swtpm,
        }
    }

    /// An honest enrolment from start to end.
    async fn enrol(&self, cloud: &Cloud, ticket: &Ticket) -> Outcome {
        let begun = self.begin(cloud, ticket).await;
        let evidence = self.evidence(&begun).await;
        begun.answer(&evidence).await
    }

    async fn begin(&self, cloud: &Cloud, ticket: &Ticket) -> Conversation {
        let request = |h: &[u8; 32]| prove(self.claims.clone(), ticket, h);
        Conversation::begin(cloud, self, request).await.unwrap()
    }

    async fn evidence(&self, begun: &Conversation) -> Evidence {
        let secret = self.activate(&begun.challenge).await.unwrap();
        self.evidence_with(begun, &secret).await
    }

    async fn evidence_with(&self, begun: &Conversation, secret: &[u8]) -> Evidence {
        let t = enrol::transcript(&begun.session.h, &begun.request, &begun.challenge.encode());
        self.prove(secret, &t).await
    }

    async fn activate(&self, challenge: &Challenge) -> Result<Vec<u8>, HsmError> {
        let (credential, secret) = (challenge.credential.clone(), challenge.secret.clone());
        let opened = self.hsm.activate(self.kind, credential, secret).await?;
        Ok(opened.to_vec())
    }

    async fn prove(&self, secret: &[u8], t: &[u8; 32]) -> Evidence {
        let certify = async |key, kind| {
            let data = enrol::certify_data(kind, t);
            self.hsm.certify(key, data).await.unwrap()
        };
        let possession = Sha256::digest(enrol::possession_message(t)).into();
        Evidence {
            activated: enrol::activated(secret, t),
            identity: certify(CertifyKey::Identity, CertifiedKey::Identity).await,
            channel: certify(CertifyKey::Channel, CertifiedKey::Channel).await,
            possession: self.hsm.sign(possession).await.unwrap(),
        }
    }
}

impl StaticKey for Tpm {
    fn public(&self) -> PublicKey {
        PublicKey::parse(&self.public.channel).unwrap()
    }

    fn ecdh(&self, peer: PublicKey) -> KeyFuture<'_, SharedSecret> {
        Box::pin(async move {
            let secret = self.hsm.ecdh(*peer.as_bytes()).await;
            secret.map(SharedSecret::new).map_err(KeyError::new)
        })
    }
}

/// An enrolment that has got its challenge.
struct Conversation {
    session: Session,
    messages: Messages,
    request: Vec<u8>,
    challenge: Challenge,
}

impl Conversation {
    /// Sends message 1; returns what it is answered if that is no challenge.
    async fn begin(
        cloud: &Cloud,
        key: &dyn StaticKey,
        request: impl FnOnce(&[u8; 32]) -> Request,
    ) -> Result<Self, Outcome> {
        let session = cloud.connect(key, Purpose::Enrol).await.unwrap();
        let mut messages = session.streams.open(StreamName::Enroll).await.unwrap();
        let request = request(&session.h).encode();
        messages.send(&request).await.unwrap();
        let answer = received(&mut messages).await;
        match Challenge::decode(&answer) {
            Ok(challenge) => Ok(Self {
                session,
                messages,
                request,
                challenge,
            }),
            Err(_) => Err(Outcome::decode(&answer).unwrap()),
        }
    }

    /// Sends message 3; returns message 4, after which the service ends the session.
    async fn answer(mut self, evidence: &Evidence) -> Outcome {
        self.messages.send(&evidence.encode()).await.unwrap();
        let outcome = Outcome::decode(&received(&mut self.messages).await).unwrap();
        drop(self.messages);
        assert_eq!(self.session.ended().await, Admission::Ok);
        outcome
    }
}

async fn received(messages: &mut Messages) -> Vec<u8> {
    let received = timeout(PATIENCE, messages.recv()).await;
    let received = received.expect("no answer").unwrap();
    received.expect("the stream has ended")
}

/// How somebody with a software key is refused.
async fn stranger(cloud: &Cloud, request: impl FnOnce(&[u8; 32]) -> Request) -> Outcome {
    let key = SoftwareStaticKey::generate(&mut rng());
    match Conversation::begin(cloud, &key, request).await {
        Err(outcome) => outcome,
        Ok(_) => panic!("a stranger was challenged"),
    }
}

/// How somebody is refused who knows the ticket's secret.
async fn stranger_with(cloud: &Cloud, ticket: &Ticket, endorsement: &[u8]) -> Outcome {
    stranger(cloud, |h| prove(keys_of_nobody(endorsement), ticket, h)).await
}

fn keys_of_nobody(endorsement: &[u8]) -> Request {
    Request {
        ticket_id: None,
        proof: None,
        ek_certificates: Vec::new(),
        ek: endorsement.to_vec(),
        ak: Vec::new(),
        identity: Vec::new(),
        channel: Vec::new(),
    }
}

/// The request with a ticket and its proof.
fn prove(mut request: Request, ticket: &Ticket, h: &[u8; 32]) -> Request {
    request.ticket_id = Some(ticket.id);
    request.proof = Some(enrol::proof(&ticket.key(), h, &request));
    request
}

fn ticket(cloud: &Cloud, name: &str, ttl: Duration) -> Ticket {
    let invited = invite::invite(
        &cloud.registry,
        *cloud.fingerprint().bytes(),
        &[cloud.address.to_string()],
        (name, &[]),
        ttl,
    );
    Ticket::parse(&invited.unwrap().ticket).unwrap()
}

fn state_of(cloud: &Cloud, ticket: &Ticket) -> String {
    let id = data_encoding::HEXLOWER.encode(&ticket.id);
    cloud.registered(&format!("SELECT state FROM ticket WHERE id = x'{id}'"))
}

/// Looks into the registry after each refusal.
struct Refusals<'a> {
    cloud: &'a Cloud,
    gateways: i64,
}

impl<'a> Refusals<'a> {
    /// Of a service with so many gateways.
    fn of(cloud: &'a Cloud, gateways: i64) -> Self {
        Self { cloud, gateways }
    }

    /// The `count`th refusal, with this code, registered nobody and was audited.
    fn assert(&self, outcome: &Outcome, code: EnrolCode, count: i64) {
        assert_eq!(outcome.code, code, "{outcome:?}");
        assert_eq!((outcome.gateway, outcome.name.as_deref()), (None, None));
        let gateways: i64 = self.cloud.registered("SELECT count(*) FROM gateway");
        assert_eq!(gateways, self.gateways);
        let query = "SELECT count(*) FROM audit WHERE event = 'enrolment refused'";
        let audited: i64 = self.cloud.registered(query);
        assert_eq!(audited, count);
    }
}

const MINUTE: Duration = Duration::from_secs(60);

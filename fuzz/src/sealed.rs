//! What is signed or sealed and kept: statements, headers of epochs, batches.
//!
//! Keys are those of `channel/tests/vectors/seal.txt`, which foreign software made.

use std::sync::{LazyLock, Mutex};

use channel::{
    EpochOpener, Fingerprint, Header, KeyKind, PublicKey, RecordKey, SealedBatch,
    SoftwareSigningKey, Statement, StatementContent, UnsignedHeader,
};
use coset::{CborSerializable as _, CoseSign1Builder, HeaderBuilder, iana};

use crate::input::Input;

/// The first byte chooses: a statement as it came, or a payload that the pinned identity signs.
pub(crate) fn statement(bytes: &[u8]) -> bool {
    let mut input = Input(bytes);
    let is_raw = input.byte() % 2 == 0;
    let made;
    let bytes = if is_raw {
        input.rest()
    } else {
        made = signed(input.rest(), b"gatewayd/1 statement", &SERVICE);
        &made
    };
    let pin = Fingerprint::of(KeyKind::ServiceIdentity, &vector("service_public"));
    let Ok(statement) = Statement::verify(bytes, &pin) else {
        return false;
    };
    assert_eq!(statement.bytes(), bytes);
    assert_eq!(Statement::service_of(bytes), Ok(pin));
    assert_eq!(statement.succeeds(None), Ok(true));
    assert_eq!(statement.succeeds(Some(&statement)), Ok(false));
    // All but the signature, in which two signers may differ.
    let again = StatementContent {
        serial: statement.serial(),
        channel_keys: statement.channel_keys().to_vec(),
        record_keys: statement.record_keys().to_vec(),
        online_keys: statement.online_keys().to_vec(),
    };
    let again = Statement::issue(again, &SERVICE).unwrap();
    let unsigned = bytes.len() - 64;
    assert_eq!(again.bytes()[..unsigned], bytes[..unsigned]);
    true
}

/// The first byte chooses: a header as it came, or a payload that the gateway signs, as its own or
/// as adopted.
pub(crate) fn header(bytes: &[u8]) -> bool {
    let mut input = Input(bytes);
    let how = input.byte() % 3;
    let payload = input.rest();
    let made;
    let (bytes, aad): (&[u8], &[u8]) = match how {
        0 => (payload, b""),
        1 => {
            made = signed(payload, b"gatewayd/1 epoch", &IDENTITY);
            (&made, b"gatewayd/1 epoch")
        }
        _ => {
            made = signed(payload, b"gatewayd/1 epoch adopted", &IDENTITY);
            (&made, b"gatewayd/1 epoch adopted")
        }
    };
    let Ok(header) = verify(bytes) else {
        return false;
    };
    assert_eq!(
        Header::gateway_of(bytes).unwrap(),
        *header.terms().gateway.bytes()
    );
    if !aad.is_empty() {
        assert_eq!(header.adopted(), aad.ends_with(b"adopted"));
        let again = UnsignedHeader::from_payload(payload).unwrap();
        assert_eq!(again.epoch_id(), header.epoch_id());
        assert_eq!(again.terms(), header.terms());
        assert_eq!(again.payload(), payload);
    }
    // A header by the gateway itself, with any `enc` and `commit`, opens or does not.
    let _ = EpochOpener::new(&header, &RECORD_KEY);
    true
}

/// A batch as it came. Only three batches exist that open.
pub(crate) fn batch(bytes: &[u8]) -> bool {
    let Ok(batch) = SealedBatch::decode(bytes) else {
        return false;
    };
    assert_eq!(batch.encode(), bytes);
    let opened = OPENER.lock().unwrap().open(&batch).is_ok();
    let genuine = (0..3).any(|number| vector(&format!("batch_{number}")) == bytes);
    assert_eq!(opened, genuine);
    true
}

pub(crate) fn statement_seeds() -> Vec<Vec<u8>> {
    let statement = vector("statement");
    let payload = payload_of(&statement);
    [(0, statement), (1, payload)].map(chosen).into()
}

pub(crate) fn header_seeds() -> Vec<Vec<u8>> {
    let payload = vector("header_payload");
    let seeds = [
        (0, vector("header")),
        (0, vector("header_adopted")),
        (0, vector("header_high_s")),
        (1, payload.clone()),
        (2, payload),
    ];
    seeds.map(chosen).into()
}

pub(crate) fn batch_seeds() -> Vec<Vec<u8>> {
    (0..3)
        .map(|number| vector(&format!("batch_{number}")))
        .collect()
}

fn chosen((choice, bytes): (u8, Vec<u8>)) -> Vec<u8> {
    [&[choice], &bytes[..]].concat()
}

fn verify(bytes: &[u8]) -> Result<Header, channel::OpenError> {
    let identity = PublicKey::parse(&vector("identity_public")).unwrap();
    let service = Fingerprint::of(KeyKind::ServiceIdentity, &vector("service_public"));
    Header::verify(bytes, &identity, &service)
}

/// `COSE_Sign1` around any payload, as coset writes it.
pub(crate) fn signed(payload: &[u8], aad: &[u8], key: &SoftwareSigningKey) -> Vec<u8> {
    let protected = HeaderBuilder::new()
        .algorithm(iana::Algorithm::ES256)
        .build();
    CoseSign1Builder::new()
        .protected(protected)
        .payload(payload.to_vec())
        .create_signature(aad, |message| key.sign_now(message).to_vec())
        .build()
        .to_vec()
        .unwrap()
}

/// The payload in a `COSE_Sign1`.
pub(crate) fn payload_of(signed: &[u8]) -> Vec<u8> {
    coset::CoseSign1::from_slice(signed)
        .unwrap()
        .payload
        .unwrap()
}

fn vector(name: &str) -> Vec<u8> {
    let value = VECTORS
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
    hex::decode(value.unwrap()).unwrap()
}

static SERVICE: LazyLock<SoftwareSigningKey> =
    LazyLock::new(|| SoftwareSigningKey::from_bytes(&vector("service_scalar")).unwrap());
static IDENTITY: LazyLock<SoftwareSigningKey> =
    LazyLock::new(|| SoftwareSigningKey::from_bytes(&vector("identity_scalar")).unwrap());
static RECORD_KEY: LazyLock<RecordKey> =
    LazyLock::new(|| RecordKey::from_bytes(&vector("xwing_seed")).unwrap());
static OPENER: LazyLock<Mutex<EpochOpener>> = LazyLock::new(|| {
    let header = verify(&vector("header")).unwrap();
    Mutex::new(EpochOpener::new(&header, &RECORD_KEY).unwrap())
});

const VECTORS: &str = include_str!("../../channel/tests/vectors/seal.txt");

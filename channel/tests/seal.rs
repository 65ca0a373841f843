//! The seal between a gateway and a service: what opens, and all that must not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

use channel::{
    BATCH_PLAINTEXT_BYTES_MAX, BATCHES_MAX, BatchFormatError, Epoch, EpochClock, EpochOpener,
    EpochTerms, Fingerprint, Header, HeaderSigner, KeyKind, OpenError, Previous, PublicKey,
    RecordKey, RecordPublicKey, SealError, SealedBatch, SignatureError, SigningKey,
    SoftwareSigningKey, TermsError, UnsignedHeader,
};
use proptest::collection::vec;
use proptest::prelude::*;

use fixture::{ListedRng, rng, vector};

mod fixture;

#[test]
fn a_foreign_epoch_is_verified_and_opened() {
    let pair = Pair::foreign();
    let header = pair.verify(&vector("header")).unwrap();
    assert_eq!(header.epoch_id(), *vector("epoch_id"));
    assert_eq!(header.record_key(), pair.record_key.fingerprint());
    assert_eq!(*header.terms(), pair.terms);
    assert!(!header.adopted());

    let mut opener = EpochOpener::new(&header, &pair.record_key).unwrap();
    for number in [2, 0, 1] {
        let batch = SealedBatch::decode(&vector(&format!("batch_{number}"))).unwrap();
        let plaintext = opener.open(&batch).unwrap();
        assert_eq!(*plaintext, format!("batch {number}").into_bytes());
        assert_eq!(batch.chain(), *vector(&format!("chain_{number}")));
    }
}

#[test]
fn our_epoch_is_byte_for_byte_the_foreign_one() {
    let pair = Pair::foreign();
    let (mut epoch, unsigned) = pair.open();
    assert_eq!(unsigned.payload(), vector("header_payload"));
    assert_eq!(epoch.id(), *vector("epoch_id"));
    assert_eq!(epoch.head(), epoch.id());
    assert_eq!(pair.sign(&unsigned, HeaderSigner::Own), vector("header"));
    assert_eq!(
        pair.sign(&unsigned, HeaderSigner::Adopted),
        vector("header_adopted")
    );

    for number in 0..3 {
        let plaintext = format!("batch {number}");
        let batch = epoch.seal(plaintext.as_bytes()).unwrap();
        assert_eq!(batch.encode(), vector(&format!("batch_{number}")));
        assert_eq!(epoch.head(), *vector(&format!("chain_{number}")));
        assert_eq!(epoch.count(), number + 1);
    }
}

#[test]
fn each_flipped_byte_of_a_header_is_refused() {
    let pair = Pair::foreign();
    let header = vector("header");
    for i in 0..header.len() {
        let mut other = header.clone();
        other[i] ^= 1 << (i % 8);
        assert!(pair.verify(&other).is_err(), "byte {i}");
    }
}

#[test]
fn a_cut_or_longer_header_is_refused() {
    let pair = Pair::foreign();
    let header = vector("header");
    for length in 0..header.len() {
        let cut = &header[..length];
        assert_eq!(pair.verify(cut).err(), Some(OpenError::Malformed));
    }
    let longer = [&*header, &[0]].concat();
    assert_eq!(pair.verify(&longer).err(), Some(OpenError::Malformed));
}

#[test]
fn each_flipped_bit_of_a_batch_is_refused() {
    let pair = Pair::foreign();
    let mut opener = pair.opener();
    let bytes = vector("batch_1");
    for i in 0..bytes.len() * 8 {
        let mut other = bytes.clone();
        other[i / 8] ^= 1 << (i % 8);
        let opened = SealedBatch::decode(&other).is_ok_and(|batch| opener.open(&batch).is_ok());
        assert!(!opened, "bit {i}");
    }
}

#[test]
fn a_header_with_a_high_s_is_refused() {
    let error = Pair::foreign().verify(&vector("header_high_s")).err();
    assert!(matches!(error, Some(OpenError::Signature(_))), "{error:?}");
}

#[test]
fn an_adopted_header_is_told_apart() {
    let pair = Pair::foreign();
    let header = pair.verify(&vector("header_adopted")).unwrap();
    assert!(header.adopted());
    assert_eq!(header.epoch_id(), *vector("epoch_id"));
    assert!(EpochOpener::new(&header, &pair.record_key).is_ok());
}

#[test]
fn a_signature_for_another_purpose_is_none() {
    let pair = Pair::foreign();
    let (_, unsigned) = pair.open();
    let signature = pair.identity.sign_now(unsigned.payload());
    assert_eq!(
        pair.verify(&unsigned.finish(signature)).err(),
        Some(OpenError::Signature(SignatureError::Wrong))
    );
}

#[test]
fn a_header_for_another_service_is_refused() {
    let pair = Pair::foreign();
    let other = Fingerprint::new(KeyKind::ServiceIdentity, [7; 32]);
    assert_eq!(
        Header::verify(&vector("header"), &pair.identity.public(), &other).err(),
        Some(OpenError::OtherService)
    );
}

#[test]
fn a_header_of_another_gateway_is_refused() {
    let pair = Pair::foreign();
    let other = SoftwareSigningKey::generate(&mut rng(1));
    assert_eq!(
        Header::verify(&vector("header"), &other.public(), &pair.terms.service).err(),
        Some(OpenError::OtherGateway)
    );
    // Signed by the one gateway, in the name of the other.
    let (_, unsigned) = pair.open();
    let signature = other.sign_now(&vector("to_be_signed"));
    assert_eq!(
        pair.verify(&unsigned.finish(signature)).err(),
        Some(OpenError::Signature(SignatureError::Wrong))
    );
}

#[test]
fn the_gateway_is_found_before_anything_is_verified() {
    let pair = Pair::foreign();
    assert_eq!(
        Header::gateway_of(&vector("header")),
        Ok(*pair.terms.gateway.bytes())
    );
    assert_eq!(Header::gateway_of(b"header"), Err(OpenError::Malformed));
}

#[test]
fn an_unknown_version_is_refused_by_name() {
    let pair = Pair::foreign();
    let mut payload = vector("header_payload");
    assert_eq!(payload[1..3], [1, 1]);
    payload[2] = 2;
    let header = pair.sign_payload(&payload);
    assert_eq!(pair.verify(&header).err(), Some(OpenError::Version(2)));
    assert_eq!(Header::gateway_of(&header), Err(OpenError::Version(2)));

    // A version to come, with fields to come.
    let header = pair.sign_payload(&[0xA2, 1, 9, 13, 0xF5]);
    assert_eq!(Header::gateway_of(&header), Err(OpenError::Version(9)));
}

/// Gateway B takes `enc` and `commit` of gateway A and signs them as its own.
#[test]
fn the_encapsulated_key_of_a_gateway_gives_no_key_to_another() {
    let a = Pair::foreign();
    let (_, unsigned) = a.open();
    let b = Pair {
        identity: SoftwareSigningKey::generate(&mut rng(1)),
        ..Pair::foreign()
    };
    let name = Fingerprint::of(KeyKind::GatewayIdentity, b.identity.public().as_bytes());
    let stolen = replaced(unsigned.payload(), a.terms.gateway.bytes(), name.bytes());

    let header = b.verify(&b.sign_payload(&stolen)).unwrap();

    assert_eq!(header.terms().gateway, name);
    assert_eq!(
        EpochOpener::new(&header, &b.record_key).err(),
        Some(OpenError::Commitment)
    );
}

#[test]
fn another_commitment_gives_no_key() {
    let pair = Pair::foreign();
    let mut payload = vector("header_payload");
    let last = payload.len() - 1;
    payload[last] ^= 1;
    let header = pair.verify(&pair.sign_payload(&payload)).unwrap();
    assert_eq!(
        EpochOpener::new(&header, &pair.record_key).err(),
        Some(OpenError::Commitment)
    );
}

#[test]
fn another_record_key_gives_no_key() {
    let pair = Pair::foreign();
    let other = RecordKey::generate(&mut rng(1));
    let header = pair.verify(&vector("header")).unwrap();
    assert_eq!(
        EpochOpener::new(&header, &other).err(),
        Some(OpenError::OtherRecordKey)
    );

    // The header names the other key, but was not made with it.
    let payload = replaced(
        &vector("header_payload"),
        pair.record_key.fingerprint().bytes(),
        other.fingerprint().bytes(),
    );
    let header = pair.verify(&pair.sign_payload(&payload)).unwrap();
    assert_eq!(
        EpochOpener::new(&header, &other).err(),
        Some(OpenError::Commitment)
    );
}

#[test]
fn a_batch_opens_in_its_own_place_only() {
    let pair = Pair::foreign();
    let (mut epoch, _) = pair.open();
    let _first = epoch.seal(b"first").unwrap();
    let batch = epoch.seal(b"second").unwrap();
    let mut opener = pair.opener();
    assert_eq!(**opener.open(&batch).unwrap(), *b"second");

    let mut elsewhere = batch.clone();
    elsewhere.epoch_id[0] ^= 1;
    assert_eq!(opener.open(&elsewhere).err(), Some(OpenError::OtherEpoch));

    for number in [0, 2, 65_535, 65_536, u32::MAX] {
        let elsewhere = SealedBatch {
            number,
            ..batch.clone()
        };
        assert_eq!(opener.open(&elsewhere).err(), Some(OpenError::Altered));
    }

    let elsewhere = SealedBatch {
        prev: [0; 32],
        ..batch.clone()
    };
    assert_eq!(opener.open(&elsewhere).err(), Some(OpenError::Altered));
    assert!(opener.open(&batch).is_ok());
}

/// The batch claims to be of an epoch of another lane, service or time.
#[test]
fn a_batch_opens_in_no_other_epoch() {
    let batch = {
        let (mut epoch, _) = Pair::foreign().open();
        epoch.seal(b"payload").unwrap()
    };
    let edits: [fn(&mut EpochTerms); 4] = [
        |terms| terms.class = 0,
        |terms| terms.index += 1,
        |terms| terms.run_id = [1; 16],
        |terms| terms.service = Fingerprint::new(KeyKind::ServiceIdentity, [1; 32]),
    ];
    for edit in edits {
        let mut pair = Pair::foreign();
        edit(&mut pair.terms);
        // Even with the same encapsulation.
        let (_, unsigned) = pair.open();
        let header = pair
            .verify(&pair.sign(&unsigned, HeaderSigner::Own))
            .unwrap();
        let mut opener = EpochOpener::new(&header, &pair.record_key).unwrap();

        assert_eq!(opener.open(&batch).err(), Some(OpenError::OtherEpoch));
        let claimed = SealedBatch {
            epoch_id: header.epoch_id(),
            prev: header.epoch_id(),
            ..batch.clone()
        };
        assert_eq!(opener.open(&claimed).err(), Some(OpenError::Altered));
    }
}

#[test]
fn each_epoch_has_a_key_of_its_own() {
    let pair = Pair::foreign();
    let public = pair.record_key.public();
    let open = |seed| Epoch::open(pair.terms.clone(), &public, &mut rng(seed)).unwrap();
    let (mut one, _) = open(1);
    let (mut other, _) = open(2);

    assert_ne!(one.id(), other.id());
    assert_ne!(
        one.seal(b"payload").unwrap().ciphertext,
        other.seal(b"payload").unwrap().ciphertext
    );
}

/// `append` fails after sealing: the batch stays what it is, and its number is not used again.
#[test]
fn a_number_is_spent_when_sealing_starts() {
    let pair = Pair::foreign();
    let (mut epoch, _) = pair.open();
    let failed = epoch.seal(b"payload").unwrap();
    let bytes = failed.encode();

    let again = epoch.seal(b"payload").unwrap();

    assert_eq!((failed.number, again.number), (0, 1));
    assert_eq!(again.prev, failed.chain());
    assert_ne!(failed.ciphertext, again.ciphertext);
    assert_eq!(failed.encode(), bytes);
    assert_eq!(SealedBatch::decode(&bytes), Ok(failed.clone()));
    let mut opener = pair.opener();
    assert_eq!(**opener.open(&again).unwrap(), *b"payload");
    assert_eq!(**opener.open(&failed).unwrap(), *b"payload");
}

#[test]
fn a_batch_that_is_too_large_spends_nothing() {
    let pair = Pair::foreign();
    let (mut epoch, _) = pair.open();
    let bytes = BATCH_PLAINTEXT_BYTES_MAX + 1;
    let error = epoch.seal(&vec![0; bytes]).unwrap_err();
    assert!(matches!(error, SealError::TooLarge { bytes: b } if b == bytes));
    assert_eq!((epoch.count(), epoch.head()), (0, epoch.id()));

    let largest = epoch.seal(&vec![7; BATCH_PLAINTEXT_BYTES_MAX]).unwrap();
    assert_eq!(largest.ciphertext.len(), 1024 * 1024);
    let largest = SealedBatch::decode(&largest.encode()).unwrap();
    let plaintext = pair.opener().open(&largest).unwrap();
    assert_eq!(*plaintext, [7; BATCH_PLAINTEXT_BYTES_MAX]);
}

#[test]
fn an_epoch_is_full_after_65536_batches_and_its_last_opens_first() {
    let pair = Pair::foreign();
    let (mut epoch, _) = pair.open();
    for number in 0..BATCHES_MAX - 1 {
        assert!(!epoch.is_full());
        assert_eq!(epoch.seal(b"").unwrap().number, number);
    }
    let last = epoch.seal(b"last").unwrap();

    assert!(epoch.is_full());
    assert_eq!(epoch.count(), 65_536);
    assert!(matches!(epoch.seal(b""), Err(SealError::Full)));
    assert_eq!(last.number, 65_535);
    let last = SealedBatch::decode(&last.encode()).unwrap();
    assert_eq!(**pair.opener().open(&last).unwrap(), *b"last");
}

#[test]
fn terms_that_no_gateway_can_mean_are_refused() {
    type Edit = fn(&mut EpochTerms);
    let edits: [(Edit, TermsError); 8] = [
        (|t| t.gateway = t.service, TermsError::Gateway),
        (|t| t.service = t.gateway, TermsError::Service),
        (|t| t.class = 3, TermsError::Class(3)),
        (|t| t.opened.clock = 3, TermsError::Clock(3)),
        (|t| t.previous = None, TermsError::Previous { index: 1000 }),
        (|t| t.index = 0, TermsError::Previous { index: 0 }),
        (
            |t| t.previous.as_mut().unwrap().count = 65_537,
            TermsError::Count(65_537),
        ),
        (
            |t| t.gateway = Fingerprint::new(KeyKind::GatewayChannel, [1; 32]),
            TermsError::Gateway,
        ),
    ];
    for (edit, expected) in edits {
        let mut pair = Pair::foreign();
        edit(&mut pair.terms);
        let record_key = pair.record_key.public();
        match Epoch::open(pair.terms, &record_key, &mut rng(1)).map(drop) {
            Err(SealError::Terms(error)) => assert_eq!(error, expected),
            result => panic!("{expected:?}: {result:?}"),
        }
    }
}

#[test]
fn the_first_epoch_of_a_chain_has_none_before_it() {
    let mut pair = Pair::foreign();
    pair.terms.index = 0;
    pair.terms.previous = None;
    let (_, unsigned) = pair.open();
    let header = pair
        .verify(&pair.sign(&unsigned, HeaderSigner::Own))
        .unwrap();
    assert_eq!(*header.terms(), pair.terms);
    assert!(EpochOpener::new(&header, &pair.record_key).is_ok());
}

#[test]
fn an_unsigned_header_survives_the_disk() {
    let pair = Pair::foreign();
    let (epoch, unsigned) = pair.open();
    let restored = UnsignedHeader::from_payload(unsigned.payload()).unwrap();
    assert_eq!(restored, unsigned);
    assert_eq!(restored.epoch_id(), epoch.id());

    let header = pair.sign(&restored, HeaderSigner::Adopted);
    assert!(pair.verify(&header).unwrap().adopted());

    let payload = unsigned.payload();
    for damaged in [&payload[1..], &payload[..payload.len() - 1], &[]] {
        assert!(matches!(
            UnsignedHeader::from_payload(damaged),
            Err(SealError::HeaderDamaged)
        ));
    }
}

#[test]
fn a_batch_of_another_form_is_refused() {
    let batch = SealedBatch::decode(&vector("batch_1")).unwrap();
    let with = |number, ciphertext: usize| {
        SealedBatch::decode(
            &SealedBatch {
                number,
                ciphertext: vec![0; ciphertext],
                ..batch.clone()
            }
            .encode(),
        )
    };
    assert!(with(65_535, 16).is_ok());
    assert!(with(0, 1024 * 1024).is_ok());
    assert_eq!(with(65_536, 16), Err(BatchFormatError::Malformed));
    assert_eq!(with(0, 15), Err(BatchFormatError::Malformed));
    let bytes = 1024 * 1024 + 1;
    assert_eq!(with(0, bytes), Err(BatchFormatError::TooLarge { bytes }));

    let bytes = vector("batch_1");
    let number = 35;
    assert_eq!(bytes[number], 1);
    for (other, why) in [
        ([&*bytes, &[0]].concat(), "trailing byte"),
        (bytes[..bytes.len() - 1].to_vec(), "cut"),
        ([&[0x98, 4], &bytes[1..]].concat(), "long array"),
        (
            [&[0x9F], &bytes[1..], &[0xFF]].concat(),
            "array of unknown length",
        ),
        (
            [&bytes[..number], &[0x18, 1], &bytes[number + 1..]].concat(),
            "long number",
        ),
        ([&[0xC1], &*bytes].concat(), "tag"),
    ] {
        assert_eq!(
            SealedBatch::decode(&other),
            Err(BatchFormatError::Malformed),
            "{why}"
        );
    }
}

proptest! {
    /// Whatever is sealed opens to the same bytes, in whatever order it arrives.
    #[test]
    fn any_order_opens(
        (plaintexts, order) in vec(vec(any::<u8>(), 0..64), 1..24).prop_flat_map(|plaintexts| {
            let order = Just((0..plaintexts.len()).collect::<Vec<_>>()).prop_shuffle();
            (Just(plaintexts), order)
        }),
    ) {
        let pair = Pair::foreign();
        let (mut epoch, _) = pair.open();
        let batches: Vec<_> = plaintexts
            .iter()
            .map(|plaintext| epoch.seal(plaintext).unwrap())
            .collect();

        let mut opener = pair.opener();
        for i in order {
            prop_assert_eq!(&*opener.open(&batches[i]).unwrap(), &plaintexts[i]);
        }
        for neighbours in batches.windows(2) {
            prop_assert_eq!(neighbours[1].prev, neighbours[0].chain());
        }
    }

    /// Bytes from anywhere are errors, never a crash.
    #[test]
    fn foreign_bytes_are_refused(bytes in vec(any::<u8>(), 0..2500)) {
        prop_assert!(Pair::foreign().verify(&bytes).is_err());
        prop_assert!(Header::gateway_of(&bytes).is_err());
        prop_assert!(SealedBatch::decode(&bytes).is_err());
        prop_assert!(UnsignedHeader::from_payload(&bytes).is_err());
        prop_assert!(PublicKey::parse(&bytes).is_err());
    }

    /// The same, where the damage is small.
    #[test]
    fn a_header_with_any_bytes_replaced_is_refused(
        at in 0_usize..1500,
        patch in vec(any::<u8>(), 1..9),
    ) {
        let good = vector("header");
        let end = (at + patch.len()).min(good.len());
        let start = at.min(end);
        let other = [&good[..start], &*patch, &good[end..]].concat();
        prop_assume!(other != good);
        prop_assert!(Pair::foreign().verify(&other).is_err());
    }
}

/// A gateway and a service, with the keys and terms of the vectors.
struct Pair {
    identity: SoftwareSigningKey,
    record_key: RecordKey,
    terms: EpochTerms,
}

impl Pair {
    fn foreign() -> Self {
        let counted =
            |from: u8| -> [u8; 16] { Vec::from_iter(from..from + 16).try_into().unwrap() };
        Self {
            identity: SoftwareSigningKey::from_bytes(&vector("identity_scalar")).unwrap(),
            record_key: RecordKey::from_bytes(&vector("xwing_seed")).unwrap(),
            terms: EpochTerms {
                gateway: Fingerprint::of(KeyKind::GatewayIdentity, &vector("identity_public")),
                service: Fingerprint::of(KeyKind::ServiceIdentity, &vector("service_public")),
                class: 1,
                chain_id: counted(0x50),
                index: 1000,
                run_id: counted(0x70),
                previous: Some(Previous {
                    epoch_id: [0x81; 32],
                    count: 65_536,
                    head: [0x83; 32],
                    clean: false,
                }),
                opened: EpochClock {
                    boot_id: counted(0xA0),
                    boottime_ms: 123_456_789,
                    wall_ms: -1,
                    clock: 1,
                },
            },
        }
    }

    /// Opens an epoch with the randomness of the vectors.
    fn open(&self) -> (Epoch, UnsignedHeader) {
        let public = RecordPublicKey::from_bytes(&vector("xwing_public")).unwrap();
        let mut rng = ListedRng(vector("xwing_randomness"));
        Epoch::open(self.terms.clone(), &public, &mut rng).unwrap()
    }

    fn sign(&self, unsigned: &UnsignedHeader, signer: HeaderSigner) -> Vec<u8> {
        let aad: &[u8] = match signer {
            HeaderSigner::Own => b"gatewayd/1 epoch",
            HeaderSigner::Adopted => b"gatewayd/1 epoch adopted",
        };
        let message = sig_structure(unsigned.payload(), aad);
        assert_eq!(
            unsigned.digest(signer),
            *<sha2::Sha256 as sha2::Digest>::digest(&message)
        );
        unsigned.finish(self.identity.sign_now(&message))
    }

    /// Signs what our own code would not.
    fn sign_payload(&self, payload: &[u8]) -> Vec<u8> {
        use coset::{CborSerializable as _, CoseSign1Builder, HeaderBuilder, iana};
        let protected = HeaderBuilder::new()
            .algorithm(iana::Algorithm::ES256)
            .build();
        CoseSign1Builder::new()
            .protected(protected)
            .payload(payload.to_vec())
            .create_signature(b"gatewayd/1 epoch", |message| {
                self.identity.sign_now(message).to_vec()
            })
            .build()
            .to_vec()
            .unwrap()
    }

    fn verify(&self, header: &[u8]) -> Result<Header, OpenError> {
        Header::verify(header, &self.identity.public(), &self.terms.service)
    }

    fn opener(&self) -> EpochOpener {
        let header = self.verify(&vector("header")).unwrap();
        EpochOpener::new(&header, &self.record_key).unwrap()
    }
}

/// RFC 9052, 4.4, as coset writes it.
fn sig_structure(payload: &[u8], aad: &[u8]) -> Vec<u8> {
    use coset::{CoseSign1Builder, HeaderBuilder, iana};
    CoseSign1Builder::new()
        .protected(
            HeaderBuilder::new()
                .algorithm(iana::Algorithm::ES256)
                .build(),
        )
        .payload(payload.to_vec())
        .build()
        .tbs_data(aad)
}

/// Replaces the one occurrence of `old`.
fn replaced(bytes: &[u8], old: &[u8; 32], new: &[u8; 32]) -> Vec<u8> {
    let at = bytes.windows(32).position(|window| window == old).unwrap();
    [&bytes[..at], new, &bytes[at + 32..]].concat()
}

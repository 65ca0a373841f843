//! Properties of every message: it comes back as it was, and nothing else is taken for it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

use proptest::array::{uniform8, uniform16, uniform32};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use wire::batch::{
    Batch, LedgerEntry, LossReason, LostBatches, RunEvent, Tally, decode_tallies, encode_tallies,
};
use wire::enrol::{Challenge, EnrolCode, Evidence, Outcome, Request};
use wire::relay::{Answer, ClientMessage, RelayCode, ToRegistered, Token};
use wire::ticket::Ticket;
use wire::tpm::{Certification, QualifiedName, Quote, TpmHierarchy, TpmPublic};
use wire::upload::{LaneKnown, LaneOffer, ProblemCode, ToGateway, ToService};
use wire::{Class, ClockState, Decimal, Measurement, Quality, Reading, Time, Unit, Value};

proptest! {
    /// Every batch comes back as it was, and no batch has a second encoding.
    #[test]
    fn batches_come_back(batch in batch(), bit: usize, cut: usize) {
        let bytes = batch.encode();
        prop_assert_eq!(Batch::decode(&bytes), Ok(batch));
        one_encoding(&bytes, bit, cut, |bytes| Batch::decode(bytes).map(|batch| batch.encode()))?;
    }

    /// Every ledger entry comes back as it was.
    #[test]
    fn ledger_entries_come_back(entry in entry(), bit: usize, cut: usize) {
        let bytes = entry.encode();
        prop_assert_eq!(LedgerEntry::decode(&bytes), Ok(entry.clone()));
        one_encoding(&bytes, bit, cut, |bytes| LedgerEntry::decode(bytes).map(|e| e.encode()))?;

        let tallies = encode_tallies(&entry.tallies);
        prop_assert_eq!(decode_tallies(&tallies), Ok(entry.tallies));
    }

    /// Every upload message to the service comes back as it was.
    #[test]
    fn messages_to_the_service_come_back(message in to_service(), bit: usize, cut: usize) {
        let bytes = message.encode();
        prop_assert_eq!(ToService::decode(&bytes), Ok(message));
        one_encoding(&bytes, bit, cut, |bytes| ToService::decode(bytes).map(|m| m.encode()))?;
    }

    /// Every upload message to the gateway comes back as it was.
    #[test]
    fn messages_to_the_gateway_come_back(message in to_gateway(), bit: usize, cut: usize) {
        let bytes = message.encode();
        prop_assert_eq!(ToGateway::decode(&bytes), Ok(message));
        one_encoding(&bytes, bit, cut, |bytes| ToGateway::decode(bytes).map(|m| m.encode()))?;
    }

    /// Every enrolment message comes back as it was.
    #[test]
    fn enrolment_messages_come_back(
        request in request(),
        challenge in challenge(),
        evidence in evidence(),
        outcome in outcome(),
        bit: usize,
        cut: usize,
    ) {
        let bytes = request.encode();
        prop_assert_eq!(Request::decode(&bytes), Ok(request));
        one_encoding(&bytes, bit, cut, |bytes| Request::decode(bytes).map(|m| m.encode()))?;
        let bytes = challenge.encode();
        prop_assert_eq!(Challenge::decode(&bytes), Ok(challenge));
        one_encoding(&bytes, bit, cut, |bytes| Challenge::decode(bytes).map(|m| m.encode()))?;
        let bytes = evidence.encode();
        prop_assert_eq!(Evidence::decode(&bytes), Ok(evidence));
        one_encoding(&bytes, bit, cut, |bytes| Evidence::decode(bytes).map(|m| m.encode()))?;
        let bytes = outcome.encode();
        prop_assert_eq!(Outcome::decode(&bytes), Ok(outcome));
        one_encoding(&bytes, bit, cut, |bytes| Outcome::decode(bytes).map(|m| m.encode()))?;
    }

    /// Every relay message comes back as it was.
    #[test]
    fn relay_messages_come_back(
        message in client_message(),
        to_registered in to_registered(),
        code in select(RelayCode::ALL),
        bit: usize,
        cut: usize,
    ) {
        let bytes = message.encode();
        prop_assert_eq!(ClientMessage::decode(&bytes), Ok(message));
        one_encoding(&bytes, bit, cut, |bytes| ClientMessage::decode(bytes).map(|m| m.encode()))?;
        let bytes = to_registered.encode();
        prop_assert_eq!(ToRegistered::decode(&bytes), Ok(to_registered));
        one_encoding(&bytes, bit, cut, |bytes| ToRegistered::decode(bytes).map(|m| m.encode()))?;
        prop_assert_eq!(Answer::decode(&Answer { code }.encode()), Ok(Answer { code }));
    }

    /// Every ticket comes back as it was.
    #[test]
    fn tickets_come_back(
        service: [u8; 32],
        id: [u8; 8],
        secret: [u8; 16],
        urls in vec("[a-z:/.0-9]{0,60}", 1..=4),
        ek: Option<[u8; 32]>,
    ) {
        let ticket = Ticket { service, id, secret: secret.into(), urls, ek };
        let text = ticket.to_text();
        let read = Ticket::parse(&text).unwrap();
        prop_assert_eq!(read.to_text(), text);
        prop_assert_eq!((read.service, read.id, read.ek), (service, id, ek));
        prop_assert_eq!(*read.secret, secret);
        prop_assert_eq!(read.urls, ticket.urls);
    }

    /// No bytes from outside panic a decoder, and whatever is accepted has no other encoding.
    #[test]
    fn decoders_survive_any_bytes(bytes in prop_oneof![vec(any::<u8>(), 0..200), cbor_like()]) {
        canonical_or_refused(&bytes, |bytes| Batch::decode(bytes).map(|m| m.encode()))?;
        canonical_or_refused(&bytes, |bytes| LedgerEntry::decode(bytes).map(|m| m.encode()))?;
        canonical_or_refused(&bytes, |bytes| decode_tallies(bytes).map(|m| encode_tallies(&m)))?;
        canonical_or_refused(&bytes, |bytes| ToService::decode(bytes).map(|m| m.encode()))?;
        canonical_or_refused(&bytes, |bytes| ToGateway::decode(bytes).map(|m| m.encode()))?;
        canonical_or_refused(&bytes, |bytes| Request::decode(bytes).map(|m| m.encode()))?;
        canonical_or_refused(&bytes, |bytes| Challenge::decode(bytes).map(|m| m.encode()))?;
        canonical_or_refused(&bytes, |bytes| Evidence::decode(bytes).map(|m| m.encode()))?;
        canonical_or_refused(&bytes, |bytes| Outcome::decode(bytes).map(|m| m.encode()))?;
        canonical_or_refused(&bytes, |bytes| ClientMessage::decode(bytes).map(|m| m.encode()))?;
        canonical_or_refused(&bytes, |bytes| ToRegistered::decode(bytes).map(|m| m.encode()))?;
        canonical_or_refused(&bytes, |bytes| Answer::decode(bytes).map(|m| m.encode()))?;
        if let Ok(key) = TpmPublic::parse(&bytes) {
            prop_assert_eq!(key.as_bytes(), &bytes[..]);
        }
        // Behind what every attest starts with: magic and type.
        let signer = QualifiedName::primary(TpmHierarchy::Owner, &[0; 34]);
        let quote = [b"\xffTCG\x80\x18".as_slice(), &bytes].concat();
        prop_assert!(Quote::verify(&quote, &signer, &[]).is_err());
        let certification = [b"\xffTCG\x80\x17".as_slice(), &bytes].concat();
        prop_assert!(Certification::verify(&certification, &[0; 34], &[]).is_err());
    }

    /// No text panics the ticket reader.
    #[test]
    fn tickets_survive_any_text(text in ".{0,80}|(gwt1-)?[a-z2-7]{0,200}") {
        prop_assert!(Ticket::parse(&text).is_err());
    }
}

/// A message with a byte behind it, cut short, or with one bit flipped, is refused or another one.
fn one_encoding<E: std::fmt::Debug>(
    bytes: &[u8],
    bit: usize,
    cut: usize,
    again: impl Fn(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<(), TestCaseError> {
    prop_assert!(again(&[bytes, &[0]].concat()).is_err());
    // A batch may be cut after its pack: that is a batch too.
    canonical_or_refused(&bytes[..cut % bytes.len()], &again)?;
    let mut flipped = bytes.to_vec();
    flipped[bit / 8 % bytes.len()] ^= 1 << (bit % 8);
    canonical_or_refused(&flipped, again)
}

/// Whatever a decoder accepts, it would write just so.
fn canonical_or_refused<E: std::fmt::Debug>(
    bytes: &[u8],
    again: impl Fn(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<(), TestCaseError> {
    if let Ok(again) = again(bytes) {
        prop_assert_eq!(again, bytes);
    }
    Ok(())
}

/// Heads of CBOR items with small arguments, which reach deeper than random bytes.
fn cbor_like() -> impl Strategy<Value = Vec<u8>> {
    let head = (0_u8..8, 0_u8..28).prop_map(|(major, argument)| major << 5 | argument);
    vec(head, 0..60)
}

fn batch() -> impl Strategy<Value = Batch> {
    let base_name = "|[A-Za-z0-9][A-Za-z0-9:./_-]{0,60}";
    let lists = (
        vec(reading(), 0..6),
        vec(entry(), 0..3),
        vec(run_event(), 0..3),
    );
    (base_name, lists).prop_map(|(base_name, (readings, ledger, run_events))| Batch {
        base_name,
        readings,
        ledger,
        run_events,
    })
}

fn reading() -> impl Strategy<Value = Reading> {
    (name(), any::<u32>(), any::<u64>(), time(), measurement()).prop_map(
        |(sensor, sensor_number, sequence, time, measurement)| Reading {
            sensor,
            sensor_number,
            sequence,
            time,
            measurement,
        },
    )
}

fn time() -> impl Strategy<Value = Time> {
    let wall_ms = prop_oneof![any::<i64>(), 0..2_000_000_000_000_i64];
    (wall_ms, any::<u64>(), select(ClockState::ALL)).prop_map(|(wall_ms, boottime_ms, clock)| {
        Time {
            wall_ms,
            boottime_ms,
            clock,
        }
    })
}

fn measurement() -> impl Strategy<Value = Measurement> {
    let unit = option::of(select(Unit::ALL));
    (name(), value(), unit, select(Quality::ALL)).prop_map(|(channel, value, unit, quality)| {
        Measurement {
            channel,
            value,
            unit,
            quality,
        }
    })
}

/// Any value but NaN, which does not equal itself.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Integer),
        any::<(i64, i8)>()
            .prop_map(|(mantissa, exponent)| { Value::Decimal(Decimal::new(mantissa, exponent)) }),
        any::<f64>().prop_map(Value::Float),
        any::<f32>().prop_map(|value| Value::Float(value.into())),
        ".{0,40}".prop_map(Value::Text),
        vec(any::<u8>(), 0..40).prop_map(Value::Bytes),
    ]
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9][a-z0-9_-]{0,62}"
}

fn entry() -> impl Strategy<Value = LedgerEntry> {
    let identity = (
        any::<u64>(),
        uniform16(any::<u8>()),
        select(LossReason::ALL),
    );
    let span = any::<(i64, i64)>();
    let lists = (
        vec(tally(), 0..4),
        vec(lost_batches(), 0..4),
        vec((any::<u32>(), name()), 0..4),
    );
    (identity, span, lists).prop_map(|(identity, (from_ms, until_ms), lists)| {
        let (id, chain_id, reason) = identity;
        let (tallies, batches, names) = lists;
        LedgerEntry {
            id,
            chain_id,
            reason,
            tallies,
            from_ms,
            until_ms,
            batches,
            names,
        }
    })
}

fn tally() -> impl Strategy<Value = Tally> {
    any::<(u32, [u8; 16], u64, u64, u64)>().prop_map(|(sensor_number, run_id, one, two, count)| {
        Tally {
            sensor_number,
            run_id,
            first: one.min(two),
            last: one.max(two),
            count,
        }
    })
}

fn lost_batches() -> impl Strategy<Value = LostBatches> {
    (uniform32(any::<u8>()), any::<u32>(), any::<u32>()).prop_map(|(epoch_id, one, two)| {
        LostBatches {
            epoch_id,
            first: one.min(two),
            last: one.max(two),
        }
    })
}

fn run_event() -> impl Strategy<Value = RunEvent> {
    let start = (uniform16(any::<u8>()), vec((any::<u32>(), name()), 0..4));
    let end = (uniform16(any::<u8>()), vec(any::<(u32, u64)>(), 0..4));
    prop_oneof![
        start.prop_map(|(run_id, sensors)| RunEvent::Start { run_id, sensors }),
        end.prop_map(|(run_id, last)| RunEvent::End { run_id, last }),
    ]
}

fn to_service() -> impl Strategy<Value = ToService> {
    let oldest = option::of((uniform32(any::<u8>()), 0..65_536_u32));
    let offer = (select(Class::ALL), uniform16(any::<u8>()), oldest).prop_map(
        |(class, chain_id, oldest)| LaneOffer {
            class,
            chain_id,
            oldest,
        },
    );
    let below = (
        uniform16(any::<u8>()),
        uniform32(any::<u8>()),
        0..=65_536_u32,
    );
    prop_oneof![
        vec(offer, 0..4).prop_map(ToService::Hello),
        vec(any::<u8>(), 0..300).prop_map(ToService::Header),
        vec(any::<u8>(), 0..300).prop_map(ToService::Batch),
        below.prop_map(|(chain_id, epoch_id, from)| ToService::Below {
            chain_id,
            epoch_id,
            from
        }),
    ]
}

fn to_gateway() -> impl Strategy<Value = ToGateway> {
    let epoch_id = || uniform32(any::<u8>());
    let known = (
        select(Class::ALL),
        uniform16(any::<u8>()),
        any::<u64>(),
        epoch_id(),
        0..=65_536_u32,
    );
    let known = known.prop_map(|(class, chain_id, index, epoch_id, next)| LaneKnown {
        class,
        chain_id,
        index,
        epoch_id,
        next,
    });
    let problem = (
        epoch_id(),
        option::of(0..65_536_u32),
        select(ProblemCode::ALL),
    );
    prop_oneof![
        (any::<u32>(), vec(known, 0..4))
            .prop_map(|(window, lanes)| ToGateway::Welcome { window, lanes }),
        (epoch_id(), 0..=65_536_u32).prop_map(|(epoch_id, next)| ToGateway::Ack { epoch_id, next }),
        problem.prop_map(|(epoch_id, number, code)| ToGateway::Problem {
            epoch_id,
            number,
            code
        }),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let ticket = (
        option::of(uniform8(any::<u8>())),
        option::of(uniform32(any::<u8>())),
    );
    let keys = (bytes(), bytes(), bytes(), bytes());
    (ticket, vec(bytes(), 0..3), keys).prop_map(
        |((ticket_id, proof), ek_certificates, (ek, ak, identity, channel))| Request {
            ticket_id,
            proof,
            ek_certificates,
            ek,
            ak,
            identity,
            channel,
        },
    )
}

fn challenge() -> impl Strategy<Value = Challenge> {
    (uniform32(any::<u8>()), bytes(), bytes()).prop_map(|(nonce, credential, secret)| Challenge {
        nonce,
        credential,
        secret,
    })
}

fn evidence() -> impl Strategy<Value = Evidence> {
    let certified = || (bytes(), bytes());
    let halves = (uniform32(any::<u8>()), uniform32(any::<u8>()));
    (uniform32(any::<u8>()), certified(), certified(), halves).prop_map(
        |(activated, identity, channel, (r, s))| Evidence {
            activated,
            identity,
            channel,
            possession: [r, s].concat().try_into().unwrap(),
        },
    )
}

fn outcome() -> impl Strategy<Value = Outcome> {
    (
        select(EnrolCode::ALL),
        option::of(uniform32(any::<u8>())),
        option::of(".{0,40}"),
        option::of(".{0,40}"),
    )
        .prop_map(|(code, gateway, name, detail)| Outcome {
            code,
            gateway,
            name,
            detail,
        })
}

fn client_message() -> impl Strategy<Value = ClientMessage> {
    let halves = (uniform32(any::<u8>()), uniform32(any::<u8>()));
    let token = (uniform8(any::<u8>()), uniform32(any::<u8>()));
    let token = option::of(token.prop_map(|(id, admit)| Token { id, admit }));
    prop_oneof![
        (bytes(), halves).prop_map(|(statement, (r, s))| ClientMessage::Register {
            statement,
            signature: [r, s].concat().try_into().unwrap(),
        }),
        (uniform32(any::<u8>()), token)
            .prop_map(|(service, token)| ClientMessage::Hello { service, token }),
        uniform16(any::<u8>()).prop_map(|id| ClientMessage::Accept { id }),
    ]
}

fn to_registered() -> impl Strategy<Value = ToRegistered> {
    prop_oneof![
        uniform16(any::<u8>()).prop_map(|id| ToRegistered::Incoming { id }),
        Just(ToRegistered::Ping),
        Just(ToRegistered::Pong),
        Just(ToRegistered::Drain),
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..80)
}

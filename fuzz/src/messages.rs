//! The messages of `wire`: each has one encoding, and every other is refused.

use std::fmt::Debug;
use std::{fs, path::Path};

use data_encoding::BASE32_NOPAD;
use sha2::{Digest as _, Sha256};
use wire::batch::{Batch, LedgerEntry, decode_tallies, encode_tallies};
use wire::enrol::{Challenge, Evidence, Outcome, Request};
use wire::relay::{Answer, ClientMessage, Greeting, ToRegistered};
use wire::ticket::Ticket;
use wire::upload::{ToGateway, ToService};

pub(crate) fn batch(bytes: &[u8]) -> bool {
    one_encoding(bytes, |bytes| Batch::decode(bytes).map(|m| m.encode()))
}

pub(crate) fn ledger(bytes: &[u8]) -> bool {
    one_encoding(bytes, |bytes| {
        LedgerEntry::decode(bytes).map(|m| m.encode())
    }) | one_encoding(bytes, |bytes| {
        decode_tallies(bytes).map(|m| encode_tallies(&m))
    })
}

pub(crate) fn upload(bytes: &[u8]) -> bool {
    one_encoding(bytes, |bytes| ToService::decode(bytes).map(|m| m.encode()))
        | one_encoding(bytes, |bytes| ToGateway::decode(bytes).map(|m| m.encode()))
}

pub(crate) fn enrolment(bytes: &[u8]) -> bool {
    one_encoding(bytes, |bytes| Request::decode(bytes).map(|m| m.encode()))
        | one_encoding(bytes, |bytes| Challenge::decode(bytes).map(|m| m.encode()))
        | one_encoding(bytes, |bytes| Evidence::decode(bytes).map(|m| m.encode()))
        | one_encoding(bytes, |bytes| Outcome::decode(bytes).map(|m| m.encode()))
}

pub(crate) fn relay(bytes: &[u8]) -> bool {
    let greeting = <&[u8; 36]>::try_from(bytes).is_ok_and(|bytes| {
        one_encoding(bytes, |_| {
            Greeting::decode(bytes).map(|m| m.encode().to_vec())
        })
    });
    greeting
        | one_encoding(bytes, |bytes| {
            ClientMessage::decode(bytes).map(|m| m.encode())
        })
        | one_encoding(bytes, |bytes| {
            ToRegistered::decode(bytes).map(|m| m.encode())
        })
        | one_encoding(bytes, |bytes| Answer::decode(bytes).map(|m| m.encode()))
}

/// The bytes as text that somebody typed, and as content that somebody put into a good ticket.
pub(crate) fn ticket(bytes: &[u8]) -> bool {
    let typed = std::str::from_utf8(bytes).is_ok_and(|text| {
        Ticket::parse(text).is_ok_and(|ticket| {
            let letters: String = text
                .chars()
                .filter(|letter| !letter.is_whitespace() && *letter != '-')
                .map(|letter| letter.to_ascii_lowercase())
                .collect();
            assert_eq!(ticket.to_text().replace('-', ""), letters);
            true
        })
    });
    let made = ticket_of(bytes);
    typed
        | Ticket::parse(&made).is_ok_and(|ticket| {
            assert_eq!(*ticket.to_text(), made);
            true
        })
}

/// protocol.md 5.1.
fn ticket_of(content: &[u8]) -> String {
    let sum = Sha256::new()
        .chain_update(b"gatewayd/1 ticket sum\0")
        .chain_update(content)
        .finalize();
    let encoded = BASE32_NOPAD.encode(&[content, &sum[..4]].concat());
    format!("gwt1-{}", encoded.to_ascii_lowercase())
}

/// Whatever is accepted would be written just so.
fn one_encoding<E: Debug>(bytes: &[u8], again: impl Fn(&[u8]) -> Result<Vec<u8>, E>) -> bool {
    let Ok(written) = again(bytes) else {
        return false;
    };
    assert_eq!(written, bytes);
    true
}

/// All that stands in hexadecimal in the tests of `wire`: the vectors of other software, for the
/// most part.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    gather(Path::new(WIRE), &mut found);
    found.sort();
    found.dedup();
    found
}

/// Contents without their sum, and one ticket as typed.
pub(crate) fn ticket_seeds() -> Vec<Vec<u8>> {
    let ticket = |urls: &[&str], ek| Ticket {
        service: [1; 32],
        id: [2; 8],
        secret: [3; 16].into(),
        urls: urls.iter().map(|url| (*url).to_owned()).collect(),
        ek,
    };
    let made = [
        ticket(&["tcp://a:1"], None),
        ticket(&["relay://r.example:7000", "b", "c", "d"], Some([4; 32])),
    ];
    let mut seeds = Vec::new();
    for ticket in made {
        let text = ticket.to_text();
        let letters = text["gwt1-".len()..].to_ascii_uppercase();
        let bytes = BASE32_NOPAD.decode(letters.as_bytes()).unwrap();
        seeds.push(text.as_bytes().to_vec());
        seeds.push(bytes[..bytes.len() - 4].to_vec());
    }
    seeds
}

fn gather(folder: &Path, found: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, found);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let literals = text.split('"').skip(1).step_by(2);
        found.extend(literals.filter_map(|literal| {
            let digits: String = literal
                .chars()
                .filter(|letter| !letter.is_whitespace() && *letter != '\\')
                .collect();
            hex::decode(digits).ok().filter(|bytes| !bytes.is_empty())
        }));
    }
}

const WIRE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../wire/src");

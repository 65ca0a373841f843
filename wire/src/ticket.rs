//! Tickets: what an operator hands to the person at the gateway; see `protocol.md` 5.1.

use data_encoding::BASE32_NOPAD;
use zeroize::{Zeroize, Zeroizing};

use crate::WireError;
use crate::cbor::{self, Message, Reader, Writer};
use crate::mac::{hash, mac};

/// Permission to enrol one gateway at one service, once and for a short time.
///
/// Holds a secret, so it has no `Debug` and no `Clone`.
pub struct Ticket {
    /// The fingerprint of the service's identity key, which the gateway pins.
    pub service: [u8; 32],
    /// How the service finds the ticket again.
    pub id: [u8; 8],
    /// The secret; only its [`key`](Ticket::key) is ever used.
    pub secret: Zeroizing<[u8; 16]>,
    /// Where the service can be reached: 1 to 4 addresses.
    pub urls: Vec<String>,
    /// The only endorsement key that may use the ticket: SHA-256 of its `TPMT_PUBLIC`.
    pub ek: Option<[u8; 32]>,
}

/// What the service stores of a ticket's secret, and what proofs are made with.
#[derive(Clone)]
pub struct TicketKey(Zeroizing<[u8; 32]>);

/// Why a text is not taken for a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// It does not start like a ticket, or is far too long.
    #[error("this is not a ticket: tickets start with \"gwt1-\"")]
    NotATicket,

    /// It starts like a ticket, but a character is wrong, missing or doubled.
    #[error("the ticket has a typing error")]
    Typo,

    /// It arrived unharmed, but does not hold what a ticket holds.
    #[error("the ticket is damaged, or made by a newer version")]
    Content(#[source] WireError),
}

impl Ticket {
    /// Reads a ticket as people paste it: case, white space and hyphens do not matter.
    ///
    /// # Errors
    ///
    /// [`TicketError`], which tells a typing error from something that never was a ticket.
    pub fn parse(text: &str) -> Result<Self, TicketError> {
        if TEXT_BYTES_MAX < text.len() {
            return Err(TicketError::NotATicket);
        }
        let mut letters = Zeroizing::new(String::with_capacity(text.len()));
        letters.extend(
            text.chars()
                .filter(|letter| !letter.is_whitespace() && *letter != '-')
                .map(|letter| letter.to_ascii_uppercase()),
        );
        let encoded = letters
            .strip_prefix(PREFIX_LETTERS)
            .ok_or(TicketError::NotATicket)?;
        let bytes = BASE32_NOPAD
            .decode(encoded.as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| TicketError::Typo)?;
        match bytes.split_last_chunk() {
            Some((content, sum)) if *sum == checksum(content) => {
                cbor::decode(content).map_err(TicketError::Content)
            }
            Some(_) | None => Err(TicketError::Typo),
        }
    }

    /// The ticket as one line of text: `gwt1-` and lower-case base32.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        // Room for all, so that no part of the secret stays behind in a moved buffer.
        let mut writer = Writer::with_capacity(TEXT_BYTES_MAX);
        self.write(&mut writer);
        let mut bytes = Zeroizing::new(writer.into_bytes());
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);

        let mut encoded = Zeroizing::new(BASE32_NOPAD.encode(&bytes));
        encoded.make_ascii_lowercase();
        Zeroizing::new([PREFIX, &encoded].concat())
    }

    /// `M(secret, "gatewayd/1 ticket")`: what the service stores, and what proofs are made with.
    #[must_use]
    pub fn key(&self) -> TicketKey {
        let mut key = mac(&*self.secret, &[b"gatewayd/1 ticket\0"]);
        let ticket_key = TicketKey::from_bytes(key);
        key.zeroize();
        ticket_key
    }
}

impl TicketKey {
    /// A key from the service's store.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key's bytes, for the service's store.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// `{1: service, 2: id, 3: secret, 4: [url], ? 5: ek}`
impl Message for Ticket {
    fn write(&self, writer: &mut Writer) {
        writer.map(4 + usize::from(self.ek.is_some()));
        writer.key(&[1]).bytes(&self.service);
        writer.key(&[2]).bytes(&self.id);
        writer.key(&[3]).bytes(&*self.secret);
        writer.key(&[4]).list(&self.urls, |writer, url| {
            writer.text(url);
        });
        if let Some(ek) = &self.ek {
            writer.key(&[5]).bytes(ek);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut pairs = reader.map()?;
        let ticket = Self {
            service: pairs.required(&[1], Reader::sized)?,
            id: pairs.required(&[2], Reader::sized)?,
            secret: Zeroizing::new(pairs.required(&[3], Reader::sized)?),
            urls: pairs.required(&[4], |reader| reader.list(Reader::text))?,
            ek: pairs.optional(&[5], Reader::sized)?,
        };
        pairs.end()?;
        if !(1..=URLS_MAX).contains(&ticket.urls.len()) {
            return Err(WireError::Value { field: "urls" });
        }
        Ok(ticket)
    }
}

/// The first 4 bytes of `H("gatewayd/1 ticket sum" ‖ content)`.
fn checksum(content: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = hash(&[b"gatewayd/1 ticket sum\0", content]);
    [a, b, c, d]
}

/// How a ticket's text starts.
const PREFIX: &str = "gwt1-";

/// The same, as compared.
const PREFIX_LETTERS: &str = "GWT1";

/// Most addresses in a ticket (`protocol.md` 5.1).
pub const URLS_MAX: usize = 4;

/// Longest text taken for a ticket. Four addresses, each of a longest host name (253 characters,
/// RFC 1035), a port and a fingerprint, take about 2200 characters in base32.
const TEXT_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    // All texts below are made with cbor2 (canonical), hashlib, hmac and base64 of Python.

    #[test]
    fn a_ticket_has_this_text() {
        assert_eq!(*ticket().to_text(), TICKET);
        assert_eq!(*bound_ticket().to_text(), BOUND_TICKET);
        assert_eq!(
            hex::encode(ticket().key().as_bytes()),
            "77555fe1e3dbc9b635d2c5066ff7271755b32e75f6671c6a263c6b7ed164332f"
        );
    }

    #[test]
    fn a_ticket_reads_back_as_it_was() {
        for (text, made) in [(TICKET, ticket()), (BOUND_TICKET, bound_ticket())] {
            let read = Ticket::parse(text).ok().unwrap();
            assert_eq!(read.service, made.service);
            assert_eq!(read.id, made.id);
            assert_eq!(*read.secret, *made.secret);
            assert_eq!(read.urls, made.urls);
            assert_eq!(read.ek, made.ek);
        }
    }

    #[test]
    fn case_blanks_and_hyphens_do_not_matter() {
        let mut dressed = format!(" {}\n", TICKET.to_uppercase());
        for at in [60, 40, 23, 7, 3] {
            dressed.insert_str(at, if at % 2 == 0 { "-" } else { " \r\n" });
        }
        assert_eq!(*Ticket::parse(&dressed).ok().unwrap().to_text(), TICKET);
    }

    #[test]
    fn a_typing_error_is_not_taken_for_something_else() {
        for at in PREFIX.len()..TICKET.len() {
            let letter = if &TICKET[at..=at] == "q" { "r" } else { "q" };
            let wrong = [&TICKET[..at], letter, &TICKET[at + 1..]].concat();
            let missing = [&TICKET[..at], &TICKET[at + 1..]].concat();
            let not_base32 = [&TICKET[..at], "1", &TICKET[at + 1..]].concat();
            for text in [wrong, missing, not_base32, TICKET[..at].to_owned()] {
                assert_eq!(error(&text), TicketError::Typo, "{text}");
            }
        }
    }

    #[test]
    fn other_texts_are_not_tickets() {
        let long = format!("{TICKET}{}", "-".repeat(TEXT_BYTES_MAX));
        for text in [
            "",
            "gwt",
            "gwt2-aaaa",
            "sv-mfzwi2ln",
            "täglich",
            &TICKET[5..],
            &long,
        ] {
            assert_eq!(error(text), TicketError::NotATicket, "{text}");
        }
    }

    #[test]
    fn a_whole_text_with_other_content_is_refused() {
        let value = WireError::Value { field: "urls" };
        assert_eq!(error(NO_URL), TicketError::Content(value));
        assert_eq!(error(FIVE_URLS), TicketError::Content(value));
        assert!(matches!(
            error(UNKNOWN_KEY),
            TicketError::Content(WireError::Malformed { .. })
        ));
    }

    #[test]
    fn the_largest_ticket_is_read() {
        let host = format!("{}.example", "a".repeat(245));
        let url = format!("relay://{host}:65535/sv-{}", "a".repeat(52));
        let ticket = Ticket {
            urls: vec![url; URLS_MAX],
            ..bound_ticket()
        };
        assert!(Ticket::parse(&ticket.to_text()).is_ok());
    }

    fn error(text: &str) -> TicketError {
        Ticket::parse(text).err().unwrap()
    }

    fn ticket() -> Ticket {
        Ticket {
            service: [0x66; 32],
            id: [0, 1, 2, 3, 4, 5, 6, 7],
            secret: Zeroizing::new(std::array::from_fn(|at| 0xa0 + u8::try_from(at).unwrap())),
            urls: vec![
                "relay://relay-a.example:4430".into(),
                "tcp://farm.example:4431".into(),
            ],
            ek: None,
        }
    }

    fn bound_ticket() -> Ticket {
        Ticket {
            urls: vec!["tcp://a:1".into()],
            ek: Some([0x77; 32]),
            ..ticket()
        }
    }

    const TICKET: &str = "gwt1-uqavqidgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmybeqaabaibqibiga4bvbif\
        bukr2jjngu6uktkvlvsw25lyeqj4by4tfnrqxsorpf5zgk3dbpewwcltfpbqw24dmmu5dinbtgb3xiy3qhix\
        s6ztbojws4zlymfwxa3dfhi2dimzrwtjb6si";
    const BOUND_TICKET: &str = "gwt1-uuavqidgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmybeqaabaibqibiga4bvbif\
        bukr2jjngu6uktkvlvsw25lyeqfuxiy3qhixs6yj2gecvqidxo53xo53xo53xo53xo53xo53xo53xo53xo53\
        xo53xo53xo53xo6zoeiid";
    const NO_URL: &str = "gwt1-uqavqidgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmybeqaabaibqibiga4bvbif\
        bukr2jjngu6uktkvlvsw25lyeqa6hlskm";
    const FIVE_URLS: &str = "gwt1-uqavqidgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmybeqaabaibqibiga4bvbif\
        bukr2jjngu6uktkvlvsw25lyeqvqwcylbmfqwcylbmhjkqz6x";
    const UNKNOWN_KEY: &str = "gwt1-uuavqidgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmybeqaabaibqibiga4bvbif\
        bukr2jjngu6uktkvlvsw25lyeqj4by4tfnrqxsorpf5zgk3dbpewwcltfpbqw24dmmu5dinbtgb3xiy3qhix\
        s6ztbojws4zlymfwxa3dfhi2dimzrayazo5gv5y";
}

//! Key files and sealed secrets: the TSS2 private key in PEM.
//!
//! The form is that of <https://www.hansenpartnership.com/draft-bottomley-tpm2-keys.html>, which
//! OpenSSL's `tpm2` provider and tpm2-tools read:
//!
//! ```text
//! TPMKey ::= SEQUENCE {
//!     type       OBJECT IDENTIFIER,      -- loadable key or sealed data
//!     emptyAuth  [0] EXPLICIT BOOLEAN,   -- TRUE: our keys have no password
//!     parent     INTEGER,                -- 0x81000001
//!     pubkey     OCTET STRING,           -- TPM2B_PUBLIC
//!     privkey    OCTET STRING }          -- TPM2B_PRIVATE
//! ```
//!
//! The private part is encrypted to the parent, and no other TPM can use it. The reader takes back
//! exactly what the writer writes; the form's optional fields mean keys that are not ours.

use data_encoding::BASE64;

/// What a file holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Form {
    /// A key to load.
    Key,
    /// Sealed data.
    Sealed,
}

impl Form {
    /// `type` of the file.
    fn oid(self) -> &'static [u8] {
        match self {
            Self::Key => KEY,
            Self::Sealed => SEALED,
        }
    }
}

/// Writes a file; both parts without the `TPM2B` size in front.
pub(crate) fn encode(form: Form, public: &[u8], private: &[u8]) -> Option<String> {
    let mut fields = [form.oid(), EMPTY_AUTH, PARENT].concat();
    for part in [public, private] {
        let size = u16::try_from(part.len()).ok()?;
        let sized = [&size.to_be_bytes(), part].concat();
        fields.extend(element(OCTET_STRING, &sized)?);
    }
    let text = BASE64.encode(&element(SEQUENCE, &fields)?);

    let mut pem = String::from(BEGIN);
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(LINE_CHARACTERS));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str(END);
    Some(pem)
}

/// Reads a file; `None` if it is not one that [`encode`] writes.
pub(crate) fn decode(form: Form, pem: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let text: String = pem
        .strip_prefix(BEGIN)?
        .strip_suffix(END)?
        .split_ascii_whitespace()
        .collect();
    let bytes = BASE64.decode(text.as_bytes()).ok()?;

    let mut rest = bytes.as_slice();
    let mut fields = take(&mut rest, SEQUENCE)?;
    if !rest.is_empty() {
        return None;
    }
    for expected in [form.oid(), EMPTY_AUTH, PARENT] {
        fields = fields.strip_prefix(expected)?;
    }
    let public = unsized_part(take(&mut fields, OCTET_STRING)?)?;
    let private = unsized_part(take(&mut fields, OCTET_STRING)?)?;
    fields
        .is_empty()
        .then(|| (public.to_vec(), private.to_vec()))
}

/// Strips the `TPM2B` size, if it is right.
fn unsized_part(part: &[u8]) -> Option<&[u8]> {
    let (size, content) = part.split_first_chunk()?;
    (usize::from(u16::from_be_bytes(*size)) == content.len()).then_some(content)
}

/// Writes one DER element; `None` above 65,535 bytes, which no TPM key reaches.
fn element(tag: u8, content: &[u8]) -> Option<Vec<u8>> {
    let [high, low] = u16::try_from(content.len()).ok()?.to_be_bytes();
    let header = match (high, low) {
        (0, 0..=0x7F) => vec![tag, low],
        (0, 0x80..) => vec![tag, 0x81, low],
        (1.., _) => vec![tag, 0x82, high, low],
    };
    Some([header.as_slice(), content].concat())
}

/// Reads the content of one DER element of the given kind.
fn take<'a>(bytes: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let rest = bytes.strip_prefix(&[tag])?;
    let (length, rest) = match *rest {
        [length @ 0..=0x7F, ref rest @ ..] => (usize::from(length), rest),
        [0x81, length @ 0x80..=0xFF, ref rest @ ..] => (usize::from(length), rest),
        [0x82, high @ 1..=0xFF, low, ref rest @ ..] => {
            (usize::from(u16::from_be_bytes([high, low])), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    Some(content)
}

const BEGIN: &str = "-----BEGIN TSS2 PRIVATE KEY-----\n";
const END: &str = "-----END TSS2 PRIVATE KEY-----\n";

/// RFC 7468, section 2.
const LINE_CHARACTERS: usize = 64;

const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;

/// `2.23.133.10.1.3`, loadable key.
const KEY: &[u8] = &[0x06, 0x06, 0x67, 0x81, 0x05, 0x0A, 0x01, 0x03];
/// `2.23.133.10.1.5`, sealed data.
const SEALED: &[u8] = &[0x06, 0x06, 0x67, 0x81, 0x05, 0x0A, 0x01, 0x05];
/// `[0] EXPLICIT BOOLEAN TRUE`.
const EMPTY_AUTH: &[u8] = &[0xA0, 0x03, 0x01, 0x01, 0xFF];
/// `INTEGER 0x81000001`.
const PARENT: &[u8] = &[0x02, 0x05, 0x00, 0x81, 0x00, 0x00, 0x01];

#[cfg(test)]
mod tests {
    use super::*;

    /// Tag, length of two bytes and size.
    const PRIVATE_HEADER: usize = 5;

    #[test]
    fn a_key_survives_its_file() {
        for (public, private) in [(0, 0), (90, 126), (90, 250), (300, 70_000 / 2)] {
            let parts = (vec![7; public], vec![9; private]);
            let pem = encode(Form::Key, &parts.0, &parts.1).unwrap();
            assert_eq!(decode(Form::Sealed, &pem), None);
            assert_eq!(decode(Form::Key, &pem), Some(parts));
        }
    }

    #[test]
    fn a_file_cut_or_changed_anywhere_is_no_key() {
        let pem = encode(Form::Key, &[7; 90], &[9; 126]).unwrap();
        for end in 0..pem.len() {
            assert_eq!(decode(Form::Key, &pem[..end]), None, "{end}");
        }
        let der = BASE64
            .decode(
                pem[BEGIN.len()..pem.len() - END.len()]
                    .replace('\n', "")
                    .as_bytes(),
            )
            .unwrap();
        // Every byte but the two parts' own content has one right value.
        let private = der.len() - 126;
        let public = private - PRIVATE_HEADER - 90;
        let content = (public..public + 90).chain(private..der.len());
        let fixed = (0..der.len()).filter(|index| !content.clone().any(|other| other == *index));
        for index in fixed {
            let mut changed = der.clone();
            changed[index] ^= 1;
            let changed = format!("{BEGIN}{}\n{END}", BASE64.encode(&changed));
            assert_eq!(decode(Form::Key, &changed), None, "byte {index}");
        }
    }
}

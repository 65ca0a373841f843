//! Names of keys that people copy and programs compare.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};

/// What a key is for. The same bytes in another role are another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyKind {
    /// A gateway's ECDSA identity.
    GatewayIdentity = 1,
    /// A gateway's ECDH key.
    GatewayChannel = 2,
    /// A gateway's restricted attestation key.
    Attestation = 3,
    /// A service's ECDSA identity: the pin.
    ServiceIdentity = 4,
    /// A service's X-Wing key, to which epochs are sealed.
    Record = 5,
    /// A service's online key, or an operator's command key.
    Online = 6,
}

impl KeyKind {
    const ALL: [Self; 6] = [
        Self::GatewayIdentity,
        Self::GatewayChannel,
        Self::Attestation,
        Self::ServiceIdentity,
        Self::Record,
        Self::Online,
    ];

    /// The byte that is hashed before the key.
    fn number(self) -> u8 {
        match self {
            Self::GatewayIdentity => 1,
            Self::GatewayChannel => 2,
            Self::Attestation => 3,
            Self::ServiceIdentity => 4,
            Self::Record => 5,
            Self::Online => 6,
        }
    }

    /// The letters before the hyphen.
    fn prefix(self) -> &'static str {
        match self {
            Self::GatewayIdentity => "gi",
            Self::GatewayChannel => "gc",
            Self::Attestation => "ak",
            Self::ServiceIdentity => "sv",
            Self::Record => "rk",
            Self::Online => "ok",
        }
    }
}

/// The name of a key: `H("gatewayd/1 key" ‖ kind ‖ public key)`.
///
/// Printed and read as two letters for the kind, a hyphen, and 52 characters of RFC 4648 base32 in
/// lower case without padding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint {
    kind: KeyKind,
    bytes: [u8; 32],
}

impl Fingerprint {
    /// Names a public key: 65 bytes `04 ‖ X ‖ Y`, or 1216 bytes for [`KeyKind::Record`].
    #[must_use]
    pub fn of(kind: KeyKind, public_key: &[u8]) -> Self {
        let hash = Sha256::new()
            .chain_update(LABEL)
            .chain_update([kind.number()])
            .chain_update(public_key)
            .finalize();
        Self::new(kind, hash.into())
    }

    /// Takes the hash from where it was kept without its kind.
    #[must_use]
    pub fn new(kind: KeyKind, bytes: [u8; 32]) -> Self {
        Self { kind, bytes }
    }

    /// What the named key is for.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The hash, as it travels.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// The first 16 characters in groups of four, such as `mfzw-i2ln-oqqh-k5lb`.
    ///
    /// For people who compare two screens; 80 bits, so never read back.
    #[must_use]
    pub fn short(&self) -> String {
        let mut short = String::with_capacity(19);
        for (i, letter) in self.letters().chars().take(16).enumerate() {
            if i != 0 && i % 4 == 0 {
                short.push('-');
            }
            short.push(letter);
        }
        short
    }

    fn letters(&self) -> String {
        BASE32_NOPAD.encode(&self.bytes).to_ascii_lowercase()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}", self.kind.prefix(), self.letters()))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintFormatError;

    /// Reads exactly what `Display` prints: one key has one spelling.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (prefix, letters) = text.split_once('-').ok_or(FingerprintFormatError::Kind)?;
        let kind = KeyKind::ALL
            .into_iter()
            .find(|kind| kind.prefix() == prefix)
            .ok_or(FingerprintFormatError::Kind)?;
        if letters.len() != LETTERS {
            return Err(FingerprintFormatError::Length {
                characters: letters.chars().count(),
            });
        }
        if letters.bytes().any(|letter| letter.is_ascii_uppercase()) {
            return Err(FingerprintFormatError::Letters);
        }
        // Non-zero spare bits are refused here too.
        let bytes = BASE32_NOPAD
            .decode(letters.to_ascii_uppercase().as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(FingerprintFormatError::Letters)?;
        Ok(Self { kind, bytes })
    }
}

/// Why a text is not a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FingerprintFormatError {
    /// It does not begin with the two letters of a kind and a hyphen.
    #[error("fingerprint does not begin with gi-, gc-, ak-, sv-, rk- or ok-")]
    Kind,

    /// It is cut, or longer than a fingerprint. Short forms are never read.
    #[error("fingerprint has {characters} characters after the hyphen, expected {LETTERS}")]
    Length {
        /// Characters after the hyphen.
        characters: usize,
    },

    /// Some character is not `a`-`z` or `2`-`7`, or the last one is none that ends 32 bytes.
    #[error("fingerprint is misspelt")]
    Letters,
}

/// 256 bits at 5 bits a character, rounded up; the last character has 4 spare bits.
const LETTERS: usize = 52;

const LABEL: &[u8] = b"gatewayd/1 key\0";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{vector, vector_text};

    #[test]
    fn each_kind_has_its_name_for_the_same_key() {
        let key = vector("identity_public");
        for kind in KeyKind::ALL {
            let text = vector_text(&format!("fingerprint_{}", kind.prefix()));
            let fingerprint = Fingerprint::of(kind, &key);
            assert_eq!(fingerprint.to_string(), text);
            assert_eq!(text.parse(), Ok(fingerprint));
            assert_eq!(fingerprint.kind(), kind);
        }
    }

    #[test]
    fn spare_bits_must_be_zero() {
        let text = vector_text("fingerprint_gi");
        let (start, last) = text.split_at(text.len() - 1);
        assert_eq!(last, "a");
        for last in "bcdefghijklmnop".chars() {
            assert_eq!(
                format!("{start}{last}").parse::<Fingerprint>(),
                Err(FingerprintFormatError::Letters)
            );
        }
    }

    #[test]
    fn one_key_has_one_spelling() {
        use FingerprintFormatError::{Kind, Length, Letters};
        let text = vector_text("fingerprint_gi");
        let (_, letters) = text.split_once('-').unwrap();

        for (other, error) in [
            (text.to_ascii_uppercase(), Kind),
            (format!("gi-{}", letters.to_ascii_uppercase()), Letters),
            (format!("xx-{letters}"), Kind),
            (format!("gi{letters}"), Kind),
            (letters.to_owned(), Kind),
            (String::new(), Kind),
            (format!(" {text}"), Kind),
            (format!("{text}="), Length { characters: 53 }),
            (format!("{text} "), Length { characters: 53 }),
            (text[..54].to_owned(), Length { characters: 51 }),
            (
                "gi-pwom-ygvi-piqg-dplv".to_owned(),
                Length { characters: 19 },
            ),
            (text.replace('p', "1"), Letters),
            (format!("gi-{}", "é".repeat(26)), Letters),
        ] {
            assert_eq!(other.parse::<Fingerprint>(), Err(error), "{other:?}");
        }
    }

    #[test]
    fn the_short_form_is_the_beginning_in_groups_of_four() {
        let fingerprint: Fingerprint = vector_text("fingerprint_gi").parse().unwrap();
        assert_eq!(fingerprint.short(), "pwom-ygvi-piqg-dplv");
    }
}

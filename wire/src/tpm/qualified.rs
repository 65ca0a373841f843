//! Where in a TPM a key stands.

use super::ALG_SHA256;
use crate::mac::hash;

/// A key's Qualified Name: its Name and those of all keys above it, up to the hierarchy (Part 1,
/// *Names*).
///
/// An attest says by it which key made it. Two TPMs have different storage root keys, so the same
/// key pair in two TPMs has two Qualified Names. All Names here are over SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QualifiedName([u8; 34]);

/// On top of which seed a primary key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TpmHierarchy {
    /// Storage: keys of whoever owns the machine.
    Owner,
    /// Endorsement: keys that the vendor vouches for.
    Endorsement,
    /// Platform: keys of the firmware.
    Platform,
    /// Null: keys that last until the TPM is reset.
    Null,
}

impl QualifiedName {
    /// That of a primary key with this `name`.
    #[must_use]
    pub fn primary(hierarchy: TpmHierarchy, name: &[u8; 34]) -> Self {
        Self(sha256_name(&[&hierarchy.handle().to_be_bytes(), name]))
    }

    /// That of a key with this `name` whose parent is this key.
    #[must_use]
    pub fn child(&self, name: &[u8; 34]) -> Self {
        Self(sha256_name(&[&self.0, name]))
    }

    /// As an attest has it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 34] {
        &self.0
    }

    pub(super) fn from_bytes(bytes: [u8; 34]) -> Self {
        Self(bytes)
    }
}

impl TpmHierarchy {
    /// Its `TPM_RH` (Part 2, *Permanent Handles*).
    fn handle(self) -> u32 {
        match self {
            Self::Owner => 0x4000_0001,
            Self::Null => 0x4000_0007,
            Self::Endorsement => 0x4000_000b,
            Self::Platform => 0x4000_000c,
        }
    }
}

/// The number of SHA-256, then the digest of `parts`.
pub(super) fn sha256_name(parts: &[&[u8]]) -> [u8; 34] {
    let mut name = [0; 34];
    let algorithm = ALG_SHA256.to_be_bytes();
    let digest = hash(parts);
    for (to, from) in name.iter_mut().zip(algorithm.iter().chain(&digest)) {
        *to = *from;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::super::vectors::{self, bytes};
    use super::*;

    #[test]
    fn qualified_names_are_those_of_the_tpm() {
        let root = QualifiedName::primary(TpmHierarchy::Owner, &vectors::name(vectors::ROOT_NAME));
        let attestation = root.child(&vectors::name(vectors::ATTESTATION_NAME));
        let channel = root.child(&vectors::name(vectors::CHANNEL_NAME));

        // In a certification: after magic, type and length; and at its end.
        let attest = bytes(vectors::CERTIFICATION);
        assert_eq!(attestation.as_bytes()[..], attest[8..42]);
        assert_eq!(channel.as_bytes()[..], attest[attest.len() - 34..]);
    }

    #[test]
    fn each_hierarchy_gives_its_own_qualified_name() {
        use TpmHierarchy::{Endorsement, Null, Owner, Platform};
        let name = vectors::name(vectors::ROOT_NAME);
        let all = [Owner, Endorsement, Platform, Null];
        for (place, one) in all.iter().enumerate() {
            for other in &all[place + 1..] {
                let made = QualifiedName::primary(*one, &name);
                assert_ne!(made, QualifiedName::primary(*other, &name));
            }
        }
    }
}

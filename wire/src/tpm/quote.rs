//! What an attestation key says about the PCRs, so about the software that was started.

use super::attest::{Attest, ClockInfo};
use super::pcr::{PcrSelection, PcrValues};
use super::qualified::QualifiedName;
use super::{TpmError, TpmField};
use crate::mac::hash;

/// What `TPM2_Quote` attested, about PCRs of the SHA-256 bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    pcrs: PcrSelection,
    digest: [u8; 32],
    clock: ClockInfo,
    firmware_version: u64,
}

impl Quote {
    /// Checks a `TPMS_ATTEST` (Part 2, 10.12.12): a quote that a TPM made in answer to
    /// `qualifying`, by the attestation key with the Qualified Name `signer`.
    ///
    /// That the signature over `attest` is that key's is for the caller to verify.
    ///
    /// # Errors
    ///
    /// [`TpmError::NotMadeByTpm`], [`TpmError::NotQuote`], [`TpmError::OtherChallenge`] and
    /// [`TpmError::OtherSigner`]; [`TpmError::Banks`] and [`TpmError::Unsupported`] if it is not
    /// about one SHA-256 bank; [`TpmError::Truncated`] and [`TpmError::Trailing`].
    pub fn verify(
        attest: &[u8],
        signer: &QualifiedName,
        qualifying: &[u8],
    ) -> Result<Self, TpmError> {
        let mut head = Attest::read(attest, ATTEST_QUOTE, TpmError::NotQuote)?;
        let pcrs = PcrSelection::read(&mut head.rest)?;
        let digest = head.rest.sized_array(TpmField::Digest)?;
        head.rest.end()?;
        head.check_challenge(qualifying)?;
        if head.signer != *signer {
            return Err(TpmError::OtherSigner);
        }
        Ok(Self {
            pcrs,
            digest,
            clock: head.clock,
            firmware_version: head.firmware_version,
        })
    }

    /// Checks that the PCRs of the quote are those of `values`, no more and no fewer, and held
    /// these.
    ///
    /// # Errors
    ///
    /// [`TpmError::OtherPcrs`] or [`TpmError::OtherValues`].
    pub fn check_values(&self, values: &PcrValues) -> Result<(), TpmError> {
        let expected = values.selection();
        if self.pcrs != expected {
            return Err(TpmError::OtherPcrs {
                quoted: self.pcrs,
                expected,
            });
        }
        if self.digest != values.digest() {
            return Err(TpmError::OtherValues);
        }
        Ok(())
    }

    /// Which PCRs it is about; a gateway can also quote none.
    #[must_use]
    pub fn pcrs(&self) -> PcrSelection {
        self.pcrs
    }

    /// [`PcrValues::digest`] of what the PCRs held.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// How long the TPM has run, and how often it was started.
    #[must_use]
    pub fn clock(&self) -> ClockInfo {
        self.clock
    }

    /// Version of the TPM's firmware; shifted as [`ClockInfo`] says.
    #[must_use]
    pub fn firmware_version(&self) -> u64 {
        self.firmware_version
    }
}

/// The qualifying data of a quote that answers `nonce` in the session with handshake hash `h`: a
/// quote made for one session is worth nothing in another (`protocol.md` 2.3).
#[must_use]
pub fn quote_data(nonce: &[u8; 32], h: &[u8; 32]) -> [u8; 32] {
    hash(&[b"gatewayd/1 quote\0", h, nonce])
}

/// `TPM_ST_ATTEST_QUOTE` (Part 2, 6.9).
const ATTEST_QUOTE: u16 = 0x8018;

#[cfg(test)]
mod tests {
    use super::super::vectors::{self, bytes};
    use super::*;

    #[test]
    fn a_quote_by_a_tpm_is_accepted() {
        let quote = verify(&bytes(vectors::QUOTE)).unwrap();
        assert_eq!(quote.pcrs().to_string(), "0,7,16");
        assert_eq!(quote.check_values(&values()), Ok(()));
        assert_eq!(quote.digest(), &values().digest());
        let clock = ClockInfo {
            clock_ms: 0x34f,
            reset_count: 0x6676_4622,
            restart_count: 0x9902_5690,
            safe: true,
        };
        assert_eq!(quote.clock(), clock);
        assert_eq!(quote.firmware_version(), 0x894a_de9a_7d9c_542f);
    }

    #[test]
    fn the_challenge_of_a_quote_is_bound_to_the_session() {
        assert_eq!(quote_data(&NONCE, &H), *vectors::quote_challenge());
        assert_ne!(quote_data(&H, &NONCE), quote_data(&NONCE, &H));
    }

    #[test]
    fn a_quote_for_something_else_is_refused() {
        let attest = bytes(vectors::QUOTE);
        let with = |at: usize| {
            let mut other = attest.clone();
            other[at] ^= 1;
            verify(&other).err()
        };
        assert_eq!(with(0), Some(TpmError::NotMadeByTpm));
        assert_eq!(with(4), Some(TpmError::NotQuote));
        assert_eq!(with(41), Some(TpmError::OtherSigner));
        assert_eq!(with(44), Some(TpmError::OtherChallenge));
        let other_session = quote_data(&NONCE, &[0x12; 32]);
        assert_eq!(
            Quote::verify(&attest, &vectors::signer(), &other_session),
            Err(TpmError::OtherChallenge)
        );
        let root = QualifiedName::primary(
            super::super::TpmHierarchy::Endorsement,
            &vectors::name(vectors::ROOT_NAME),
        );
        let elsewhere = root.child(&vectors::name(vectors::ATTESTATION_NAME));
        assert_eq!(
            Quote::verify(&attest, &elsewhere, vectors::quote_challenge()),
            Err(TpmError::OtherSigner)
        );
    }

    #[test]
    fn a_certification_is_no_quote() {
        assert_eq!(
            verify(&bytes(vectors::CERTIFICATION)),
            Err(TpmError::NotQuote)
        );
    }

    #[test]
    fn quotes_of_other_banks_are_refused() {
        assert_eq!(
            verify(&bytes(vectors::QUOTE_OF_TWO_BANKS)),
            Err(TpmError::Banks { banks: 2 })
        );
        assert_eq!(
            verify(&bytes(vectors::QUOTE_OF_SHA384)),
            Err(TpmError::Unsupported {
                field: TpmField::Bank,
                value: 0x0c
            })
        );
    }

    #[test]
    fn only_the_quoted_values_of_exactly_the_quoted_pcrs_fit() {
        let quote = verify(&bytes(vectors::QUOTE)).unwrap();
        for number in values().selection().iter() {
            let mut other = *values().value(number).unwrap();
            other[31] ^= 1;
            let changed = changed(|values| values.push((number, other)));
            assert_eq!(quote.check_values(&changed), Err(TpmError::OtherValues));
        }
        let fewer = changed(|values| values.truncate(2));
        let more = changed(|values| values.push((8, [0; 32])));
        for (expected, words) in [(fewer, "not 0,7"), (more, "not 0,7,8,16")] {
            let refused = quote.check_values(&expected).unwrap_err();
            assert!(matches!(refused, TpmError::OtherPcrs { .. }));
            assert!(refused.to_string().ends_with(words), "{refused}");
        }
    }

    #[test]
    fn every_cut_of_a_quote_and_every_addition_is_refused() {
        let attest = bytes(vectors::QUOTE);
        for length in 0..attest.len() {
            assert_eq!(verify(&attest[..length]), Err(TpmError::Truncated));
        }
        assert_eq!(
            verify(&[attest.as_slice(), &[0]].concat()),
            Err(TpmError::Trailing { bytes: 1 })
        );
    }

    #[test]
    fn no_flipped_bit_of_a_quote_goes_unseen() {
        let attest = bytes(vectors::QUOTE);
        let good = verify(&attest);
        assert!(good.is_ok());
        for bit in 0..attest.len() * 8 {
            let mut other = attest.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(verify(&other), good, "bit {bit}");
        }
    }

    fn verify(attest: &[u8]) -> Result<Quote, TpmError> {
        Quote::verify(attest, &vectors::signer(), vectors::quote_challenge())
    }

    fn values() -> PcrValues {
        changed(|_| {})
    }

    fn changed(change: impl FnOnce(&mut Vec<(u8, [u8; 32])>)) -> PcrValues {
        let held = vectors::PCRS.map(|(number, value)| (number, bytes(value).try_into().unwrap()));
        let mut held = held.to_vec();
        change(&mut held);
        held.into_iter().collect()
    }

    const H: [u8; 32] = [0x11; 32];
    const NONCE: [u8; 32] = [0x22; 32];
}

//! TPM2_MakeCredential in software, to a P-256 endorsement key (TPM 2.0 Library, Part 1, 24 and
//! annex C.6; the key derivations are Part 1, 11.4.10).

use aes::Aes128;
use cfb_mode::{BufEncryptor, cipher::KeyIvInit};
use hmac::{Hmac, KeyInit, Mac};
use p256::{NonZeroScalar, elliptic_curve::sec1::ToSec1Point};
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// What TPM2_ActivateCredential takes.
pub(super) struct Credential {
    /// Content of TPM2B_ID_OBJECT.
    pub(super) blob: Vec<u8>,
    /// Content of TPM2B_ENCRYPTED_SECRET.
    pub(super) encrypted_seed: Vec<u8>,
}

/// Why no credential can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// Not the template, or no point on the curve.
    #[error("is no P-256 key of the TCG's template")]
    NotAKey,
}

/// The point of an endorsement key made by the TCG's template L-2, as `04 ‖ X ‖ Y`; `None` for any
/// other public area. (TCG EK Credential Profile 2.5, B.3.4.)
pub(super) fn endorsement_point(public: &[u8]) -> Option<[u8; 65]> {
    let rest = public.strip_prefix(TEMPLATE_L2.as_slice())?;
    let (x, rest) = rest.strip_prefix(&[0, 32])?.split_at_checked(32)?;
    let y = rest.strip_prefix(&[0, 32])?;
    let mut point = [0; 65];
    let (tag, coordinates) = point.split_at_mut(1);
    tag.copy_from_slice(&[4]);
    let (left, right) = coordinates.split_at_mut(32);
    left.copy_from_slice(x);
    if y.len() != right.len() {
        return None;
    }
    right.copy_from_slice(y);
    Some(point)
}

/// Makes a credential that opens only in the TPM that holds the endorsement key *and* an object of
/// this Name.
pub(super) fn make(
    endorsement: &[u8],
    name: &[u8; 34],
    secret: &[u8; 32],
    rng: &mut dyn CryptoRng,
) -> Result<Credential, CredentialError> {
    let point = endorsement_point(endorsement).ok_or(CredentialError::NotAKey)?;
    let key = p256::PublicKey::from_sec1_bytes(&point).map_err(|_| CredentialError::NotAKey)?;
    let ephemeral = ephemeral(rng);
    let shared = p256::ecdh::diffie_hellman(&ephemeral, key.as_affine());
    let ephemeral = p256::PublicKey::from_secret_scalar(&ephemeral).to_sec1_point(false);
    let (Some(x), Some(y)) = (ephemeral.x(), ephemeral.y()) else {
        return Err(CredentialError::NotAKey);
    };
    let key_x = point.get(1..33).ok_or(CredentialError::NotAKey)?;
    let seed = kdf_e(shared.raw_secret_bytes(), b"IDENTITY\0", x, key_x);

    let storage = kdf_a(&*seed, b"STORAGE\0", name, 128);
    let aes_key = storage
        .first_chunk::<16>()
        .ok_or(CredentialError::NotAKey)?;
    let mut identity = sized(secret);
    BufEncryptor::<Aes128>::new(aes_key.into(), &[0; 16].into()).encrypt(&mut identity);

    let integrity_key = kdf_a(&*seed, b"INTEGRITY\0", &[], 256);
    let mut integrity = hmac(&*integrity_key);
    integrity.update(&identity);
    integrity.update(name);
    let mut blob = sized(&integrity.finalize().into_bytes());
    blob.extend(identity);
    let mut encrypted_seed = sized(x);
    encrypted_seed.extend(sized(y));
    Ok(Credential {
        blob,
        encrypted_seed,
    })
}

/// A scalar by rejection: 32 random bytes are one but once in 2^32 times.
fn ephemeral(rng: &mut dyn CryptoRng) -> NonZeroScalar {
    loop {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *bytes);
        if let Ok(key) = p256::SecretKey::from_slice(&*bytes) {
            return key.to_nonzero_scalar();
        }
    }
}

/// KDFe with SHA-256 for one block: H(1 ‖ Z ‖ label ‖ party U ‖ party V).
fn kdf_e(z: &[u8], label: &[u8], u: &[u8], v: &[u8]) -> Zeroizing<[u8; 32]> {
    let hash = Sha256::new()
        .chain_update(1_u32.to_be_bytes())
        .chain_update(z)
        .chain_update(label)
        .chain_update(u)
        .chain_update(v);
    Zeroizing::new(hash.finalize().into())
}

/// KDFa with SHA-256 for one block: HMAC(key, 1 ‖ label ‖ context ‖ bits); of it, the first
/// `bits` count.
fn kdf_a(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Zeroizing<[u8; 32]> {
    let mut mac = hmac(key);
    mac.update(&1_u32.to_be_bytes());
    mac.update(label);
    mac.update(context);
    mac.update(&bits.to_be_bytes());
    Zeroizing::new(mac.finalize().into_bytes().into())
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    #[allow(
        clippy::expect_used,
        reason = "HMAC takes a key of any length (RFC 2104)"
    )]
    Hmac::new_from_slice(key).expect("any length is a key")
}

/// A TPM2B: two bytes of length, then the bytes, which are 32 wherever this is called.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    let mut out = length.to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// TPMT_PUBLIC of template L-2 up to the point: ECC, SHA-256, the attributes, the policy
/// PolicySecret(endorsement hierarchy), AES-128-CFB, no scheme, P-256, no KDF.
const TEMPLATE_L2: [u8; 54] = [
    0x00, 0x23, 0x00, 0x0B, 0x00, 0x03, 0x00, 0xB2, 0x00, 0x20, 0x83, 0x71, 0x97, 0x67, 0x44, 0x84,
    0xB3, 0xF8, 0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24, 0xFD, 0x52, 0xD7, 0x6E, 0x06, 0x52,
    0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA, 0x00, 0x06, 0x00, 0x80, 0x00, 0x43,
    0x00, 0x10, 0x00, 0x03, 0x00, 0x10,
];

#[cfg(test)]
mod tests {
    use std::{fs, process::Command, time::Duration};

    use getrandom::SysRng;
    use hsm::{EndorsementKind, Hsm, HsmConfig, HsmError, swtpm::Swtpm};
    use rand_core::UnwrapErr;
    use wire::tpm::TpmPublic;

    use super::*;

    #[test]
    fn a_credential_opens_with_foreign_tools() {
        let tpm = Swtpm::start().unwrap();
        tool(&tpm, "tpm2_createek -G ecc -c ek.ctx -u ek.pub");
        tool(&tpm, "tpm2_flushcontext -t");
        tool(
            &tpm,
            "tpm2_createak -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pub -n ak.name",
        );
        tool(&tpm, "tpm2_flushcontext -t");
        tool(&tpm, "tpm2_flushcontext -l");
        let file = |name| fs::read(tpm.folder().join(name)).unwrap();
        // TPM2B_PUBLIC: the area with its size in front.
        let endorsement = &file("ek.pub")[2..];
        let name = file("ak.name").try_into().unwrap();

        let made = make(endorsement, &name, &SECRET, &mut UnwrapErr(SysRng)).unwrap();

        // The tools' own frame: magic, version, TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET.
        let mut framed = vec![0xBA, 0xDC, 0xC0, 0xDE, 0, 0, 0, 1];
        framed.extend(sized(&made.blob));
        framed.extend(sized(&made.encrypted_seed));
        fs::write(tpm.folder().join("credential.bin"), framed).unwrap();
        tool(&tpm, "tpm2_startauthsession --policy-session -S policy.ctx");
        tool(&tpm, "tpm2_policysecret -S policy.ctx -c e");
        tool(
            &tpm,
            "tpm2_activatecredential -c ak.ctx -C ek.ctx -i credential.bin -o opened \
             -P session:policy.ctx",
        );
        assert_eq!(file("opened"), SECRET);
    }

    #[tokio::test]
    async fn a_credential_opens_in_the_tpm_that_has_both_keys_and_no_other() {
        let (ours, theirs) = (Swtpm::start().unwrap(), Swtpm::start().unwrap());
        let (hsm, other) = (hsm(&ours), hsm(&theirs));
        let public = hsm.provision(false).await.unwrap();
        let other_public = other.provision(false).await.unwrap();
        let kind = Some(EndorsementKind::P256);
        let endorsement = hsm.endorsement(kind).await.unwrap().public;
        let other_endorsement = other.endorsement(kind).await.unwrap().public;
        let for_keys = |endorsement: &[u8], attestation: &[u8]| {
            let name = TpmPublic::parse(attestation).unwrap().name();
            make(endorsement, &name, &SECRET, &mut UnwrapErr(SysRng)).unwrap()
        };

        let made = for_keys(&endorsement, &public.attestation_public);
        let opened = hsm.activate(
            EndorsementKind::P256,
            made.blob.clone(),
            made.encrypted_seed.clone(),
        );
        assert_eq!(opened.await.unwrap().as_slice(), SECRET);

        let foreign = [
            made,
            for_keys(&endorsement, &other_public.attestation_public),
            for_keys(&other_endorsement, &public.attestation_public),
        ];
        for made in foreign {
            let refused = other
                .activate(EndorsementKind::P256, made.blob, made.encrypted_seed)
                .await;
            assert!(matches!(refused, Err(HsmError::Refused { .. })));
        }
    }

    #[tokio::test]
    async fn only_the_template_of_the_tcg_is_an_endorsement_key() {
        let tpm = Swtpm::start().unwrap();
        let hsm = hsm(&tpm);
        let public = hsm.provision(false).await.unwrap();
        let good = hsm
            .endorsement(Some(EndorsementKind::P256))
            .await
            .unwrap()
            .public;
        assert!(endorsement_point(&good).is_some());
        assert_eq!(endorsement_point(&public.attestation_public), None);
        for place in (0..TEMPLATE_L2.len()).chain([54, 55, 88, 89]) {
            let mut other = good.clone();
            other[place] ^= 1;
            assert_eq!(endorsement_point(&other), None, "byte {place}");
        }
        for length in 0..good.len() {
            assert_eq!(endorsement_point(&good[..length]), None);
        }
        assert_eq!(endorsement_point(&[&good[..], &[0]].concat()), None);
    }

    #[test]
    fn no_credential_is_made_to_a_point_off_the_curve() {
        let mut key = TEMPLATE_L2.to_vec();
        key.extend(sized(&[7; 32]));
        key.extend(sized(&[7; 32]));
        let made = make(&key, &[0; 34], &SECRET, &mut UnwrapErr(SysRng));
        assert_eq!(made.err(), Some(CredentialError::NotAKey));
    }

    fn hsm(tpm: &Swtpm) -> Hsm {
        Hsm::start(HsmConfig {
            tpm: tpm.tpm(),
            keys: tpm.folder().join("keys"),
            timeout: Duration::from_secs(30),
        })
    }

    /// Runs one of tpm2-tools in the TPM's folder.
    fn tool(tpm: &Swtpm, line: &str) {
        let mut words = line.split_whitespace();
        let program = words.next().unwrap();
        let output = Command::new(program)
            .args(words)
            .current_dir(tpm.folder())
            .env("TPM2TOOLS_TCTI", tpm.tcti())
            .env("TSS2_LOG", "all+none")
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}; apt install tpm2-tools"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {said}");
    }

    const SECRET: [u8; 32] = [0x5C; 32];
}

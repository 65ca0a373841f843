//! TPM2_MakeCredential in software (TPM 2.0 Library, Part 1, 24; for RSA annex B.10.4, for ECC annex
//! C.6).

mod kdf;

use aes::{Aes128, Aes256};
use cfb_mode::{
    BufEncryptor,
    cipher::{BlockCipherEncrypt, InnerIvInit, KeyInit},
};
use p256::elliptic_curve::{
    AffinePoint, CurveArithmetic, FieldBytes, PublicKey, SecretKey, ecdh::diffie_hellman,
    point::AffineCoordinates,
};
use rand_core::CryptoRng;
use rsa::{oaep::EncryptingKey, traits::RandomizedEncryptor};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use self::kdf::Hash;
use super::endorsement::{EndorsementKey, Key};

/// What TPM2_ActivateCredential takes.
pub(super) struct Credential {
    /// Content of TPM2B_ID_OBJECT.
    pub(super) blob: Vec<u8>,
    /// Content of TPM2B_ENCRYPTED_SECRET.
    pub(super) encrypted_seed: Vec<u8>,
}

/// Why no credential can be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// RSA does not take what we give it.
    #[error("cannot be encrypted to:")]
    Rsa(#[source] rsa::errors::Error),
    /// The cipher does not take what we give it.
    #[error("derived a key of the wrong length")]
    Length,
}

/// Makes a credential that opens only in the TPM that holds the endorsement key *and* an object of
/// this Name.
pub(super) fn make(
    endorsement: &EndorsementKey,
    name: &[u8; 34],
    secret: &[u8; 32],
    rng: &mut dyn CryptoRng,
) -> Result<Credential, CredentialError> {
    // The hash of the key's Name, and its cipher: what its template says.
    let (hash, cipher_bits, encrypt): (_, _, Cipher) = match endorsement.key() {
        Key::Rsa2048(_) | Key::P256(_) => (Hash::Sha256, 128, encrypt::<Aes128>),
        Key::P384(_) => (Hash::Sha384, 256, encrypt::<Aes256>),
    };
    let (seed, encrypted_seed) = match endorsement.key() {
        Key::Rsa2048(key) => encrypted_seed(key, rng)?,
        Key::P256(key) => agreed_seed(key, hash, rng),
        Key::P384(key) => agreed_seed(key, hash, rng),
    };

    let mut identity = sized(secret);
    let cipher_key = hash.kdf_a(&seed, b"STORAGE\0", name, cipher_bits);
    encrypt(&cipher_key, &mut identity)?;

    let integrity_key = hash.kdf_a(&seed, b"INTEGRITY\0", &[], hash.bits());
    let mut blob = sized(&hash.hmac(&integrity_key, &[&identity, name]));
    blob.extend(identity);
    Ok(Credential {
        blob,
        encrypted_seed,
    })
}

/// A random seed, encrypted with OAEP (Part 1, B.10.4).
fn encrypted_seed(
    key: &rsa::PublicKey,
    rng: &mut dyn CryptoRng,
) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), CredentialError> {
    let mut seed = Zeroizing::new(vec![0; 32]);
    rng.fill_bytes(&mut seed);
    let oaep = EncryptingKey::<Sha256>::new_with_label(key.clone(), LABEL);
    let encrypted = oaep.encrypt_with_rng(rng, &seed);
    Ok((seed, encrypted.map_err(CredentialError::Rsa)?))
}

/// A seed agreed on with a fresh key, and that key (Part 1, C.6.1).
fn agreed_seed<C>(
    key: &PublicKey<C>,
    hash: Hash,
    rng: &mut dyn CryptoRng,
) -> (Zeroizing<Vec<u8>>, Vec<u8>)
where
    C: CurveArithmetic,
    AffinePoint<C>: AffineCoordinates<FieldRepr = FieldBytes<C>>,
{
    let ephemeral = ephemeral::<C>(rng);
    let shared = diffie_hellman(ephemeral.to_nonzero_scalar(), key.as_affine());
    let point = ephemeral.public_key();
    let (x, y) = (point.as_affine().x(), point.as_affine().y());
    let parties = [x.as_slice(), &key.as_affine().x()];
    let seed = hash.kdf_e(shared.raw_secret_bytes(), LABEL, parties);
    let mut encrypted = sized(&x);
    encrypted.extend(sized(&y));
    (seed, encrypted)
}

/// A key by rejection: random bytes are one but once in 2^32 times.
fn ephemeral<C: CurveArithmetic>(rng: &mut dyn CryptoRng) -> SecretKey<C> {
    loop {
        let mut bytes = FieldBytes::<C>::default();
        rng.fill_bytes(&mut bytes);
        let key = SecretKey::from_bytes(&bytes);
        bytes.zeroize();
        if let Ok(key) = key {
            return key;
        }
    }
}

/// Encrypts a text in place with a key.
type Cipher = fn(&[u8], &mut [u8]) -> Result<(), CredentialError>;

/// CFB with a zero IV: the key is used once.
fn encrypt<C: BlockCipherEncrypt + KeyInit>(
    key: &[u8],
    text: &mut [u8],
) -> Result<(), CredentialError> {
    let cipher = C::new_from_slice(key).map_err(|_| CredentialError::Length)?;
    BufEncryptor::inner_iv_init(cipher, &Default::default()).encrypt(text);
    Ok(())
}

/// A TPM2B: two bytes of length, then the bytes, which are at most 48 wherever this is called.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    let mut out = length.to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// With its zero byte, as all labels of a TPM.
const LABEL: &[u8] = b"IDENTITY\0";

#[cfg(test)]
mod tests {
    use std::{fs, process::Command, time::Duration};

    use getrandom::SysRng;
    use hsm::{EndorsementKind, Hsm, HsmConfig, HsmError, swtpm::Swtpm};
    use rand_core::UnwrapErr;
    use wire::tpm::TpmPublic;

    use super::super::endorsement::EndorsementKind as Kind;
    use super::*;

    #[test]
    fn a_credential_opens_with_foreign_tools_for_each_kind_of_endorsement_key() {
        let tpm = Swtpm::start().unwrap();
        for line in [
            "tpm2_createprimary -C o -G ecc -c root.ctx",
            "tpm2_create -C root.ctx -G ecc:ecdsa-sha256:null -u ak.pub -r ak.priv \
             -a fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign",
            "tpm2_flushcontext -t",
            "tpm2_load -C root.ctx -u ak.pub -r ak.priv -c ak.ctx -n ak.name",
            "tpm2_flushcontext -t",
        ] {
            tool(&tpm, line);
        }
        let flush = ["tpm2_flushcontext -t", "tpm2_flushcontext -l"];
        let policy = [
            "tpm2_startauthsession --policy-session -S policy.ctx",
            "tpm2_policysecret -S policy.ctx -c e",
        ];
        for (kind, words, policy, auth) in [
            (Kind::Rsa2048, "rsa", &policy[..], "-P session:policy.ctx"),
            (Kind::P256, "ecc", &policy[..], "-P session:policy.ctx"),
            // Its user may use it with the empty password.
            (Kind::P384, "ecc384", &[], ""),
        ] {
            tool(
                &tpm,
                &format!("tpm2_createek -G {words} -c ek.ctx -u ek.pub"),
            );
            tool(&tpm, "tpm2_flushcontext -t");
            let file = |name: &str| fs::read(tpm.folder().join(name)).unwrap();
            // TPM2B_PUBLIC: the area with its size in front.
            let endorsement = EndorsementKey::parse(&file("ek.pub")[2..]).unwrap();
            assert_eq!(endorsement.kind(), kind);
            let name = file("ak.name").try_into().unwrap();

            let open = |name: &[u8; 34]| {
                let made = make(&endorsement, name, &SECRET, &mut UnwrapErr(SysRng)).unwrap();
                // The tools' own frame: magic, version, TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET.
                let mut framed = vec![0xBA, 0xDC, 0xC0, 0xDE, 0, 0, 0, 1];
                framed.extend(sized(&made.blob));
                framed.extend(sized(&made.encrypted_seed));
                fs::write(tpm.folder().join("credential.bin"), framed).unwrap();
                for line in flush.iter().chain(policy) {
                    tool(&tpm, line);
                }
                let line = format!(
                    "tpm2_activatecredential -c ak.ctx -C ek.ctx -i credential.bin \
                     -o opened-{words} {auth}"
                );
                try_tool(&tpm, &line).map(|()| file(&format!("opened-{words}")))
            };
            assert_eq!(open(&name).unwrap(), SECRET, "{kind}");
            let mut other: [u8; 34] = name;
            other[33] ^= 1;
            let refused = open(&other).unwrap_err();
            assert!(refused.contains("integrity check failed"), "{refused}");
        }
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
            let endorsement = EndorsementKey::parse(endorsement).unwrap();
            make(&endorsement, &name, &SECRET, &mut UnwrapErr(SysRng)).unwrap()
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

    fn hsm(tpm: &Swtpm) -> Hsm {
        Hsm::start(HsmConfig {
            tpm: tpm.tpm(),
            keys: tpm.folder().join("keys"),
            timeout: Duration::from_secs(30),
        })
    }

    /// Runs one of tpm2-tools in the TPM's folder.
    fn tool(tpm: &Swtpm, line: &str) {
        try_tool(tpm, line).unwrap();
    }

    /// The same, with what it says if it fails.
    fn try_tool(tpm: &Swtpm, line: &str) -> Result<(), String> {
        let mut words = line.split_whitespace();
        let program = words.next().unwrap();
        let output = Command::new(program)
            .args(words)
            .current_dir(tpm.folder())
            .env("TPM2TOOLS_TCTI", tpm.tcti())
            .env("TSS2_LOG", "all+none")
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}; apt install tpm2-tools"));
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{line}: {said}"))
    }

    const SECRET: [u8; 32] = [0x5C; 32];
}

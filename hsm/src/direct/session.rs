//! A policy session of our own: salted to the storage root key, with encrypted answers
//! (*TPM 2.0 Library Specification*, Part 1, 11.4.10, 19.6 and 21).

use aes::Aes128;
use cfb_mode::BufDecryptor;
use cfb_mode::cipher::KeyIvInit as _;
use getrandom::SysRng;
use hmac::{Hmac, KeyInit as _, Mac as _};
use p256::elliptic_curve::sec1::ToSec1Point as _;
use rand_core::TryRng as _;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::command::{Answer, Command, Cursor, put_sized};
use super::{ALG_SHA256, Direct};
use crate::error::HsmError;
use crate::response::Operation;

/// A policy session whose key only this process and the holder of the salt key can know.
pub(crate) struct PolicySession {
    handle: u32,
    key: Zeroizing<[u8; 32]>,
    nonce_tpm: Vec<u8>,
    nonce_caller: [u8; 32],
}

impl Direct {
    /// Starts a policy session salted to the key `point` (`04‖X‖Y`) at `salt_key`; the caller has
    /// compared its Name with the pin.
    pub(crate) fn start_policy(
        &mut self,
        salt_key: u32,
        point: &[u8; 65],
    ) -> Result<PolicySession, HsmError> {
        let salt = Salt::new(point)?;
        let nonce_caller: [u8; 32] = random()?;
        let command = Command::new(CC_START_AUTH_SESSION)
            .handle(salt_key)
            .handle(RH_NULL)
            .sized(&nonce_caller)
            .sized(&salt.encrypted)
            .bytes(&[SE_POLICY])
            .short(ALG_AES)
            .short(AES_BITS)
            .short(ALG_CFB)
            .short(ALG_SHA256);
        let answer = self.run(&command, Operation::Session)?;
        let mut content = answer.content();
        let (handle, nonce_tpm) = (content.word()?, content.sized()?.to_vec());
        Ok(PolicySession {
            handle,
            key: kdf_a(&*salt.value, b"ATH\0", &nonce_tpm, &nonce_caller),
            nonce_tpm,
            nonce_caller,
        })
    }
}

impl PolicySession {
    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }

    /// Authorizes a command on one object of this Name, and asks for an encrypted answer.
    pub(super) fn authorize(
        &mut self,
        command: Command,
        name: &[u8; 34],
    ) -> Result<Command, HsmError> {
        self.nonce_caller = random()?;
        let parameters = Sha256::new()
            .chain_update(command.code().to_be_bytes())
            .chain_update(name)
            .chain_update(command.parameters())
            .finalize();
        let mut authorization = self.handle.to_be_bytes().to_vec();
        put_sized(&mut authorization, &self.nonce_caller);
        authorization.push(ATTRIBUTES);
        let mac = self
            .mac()
            .chain_update(parameters)
            .chain_update(self.nonce_caller)
            .chain_update(&self.nonce_tpm)
            .chain_update([ATTRIBUTES]);
        put_sized(&mut authorization, &mac.finalize().into_bytes());
        Ok(command.authorized(authorization))
    }

    /// Checks the answer to an authorized command, and decrypts its first parameter.
    pub(super) fn open(
        &mut self,
        code: u32,
        answer: &Answer,
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        let parts = answer.authorized()?;
        let mut authorization = parts.authorization;
        self.nonce_tpm = authorization.sized()?.to_vec();
        let attributes = authorization.byte()?;
        let given = authorization.sized()?;
        if !authorization.rest().is_empty() {
            return Err(HsmError::Tampered);
        }
        let parameters = Sha256::new()
            .chain_update(answer.code().to_be_bytes())
            .chain_update(code.to_be_bytes())
            .chain_update(parts.parameters)
            .finalize();
        let mac = self
            .mac()
            .chain_update(parameters)
            .chain_update(&self.nonce_tpm)
            .chain_update(self.nonce_caller)
            .chain_update([attributes]);
        // In constant time.
        mac.verify_slice(given).map_err(|_| HsmError::Tampered)?;
        if attributes & ENCRYPT == 0 {
            return Err(HsmError::Tampered);
        }
        let mut secret = Zeroizing::new(Cursor::new(parts.parameters).sized()?.to_vec());
        let key_and_iv = kdf_a(&*self.key, b"CFB\0", &self.nonce_tpm, &self.nonce_caller);
        let (key, iv) = key_and_iv.split_at(AES_BYTES);
        let mut cipher =
            BufDecryptor::<Aes128>::new_from_slices(key, iv).map_err(|_| HsmError::Tampered)?;
        cipher.decrypt(&mut secret);
        Ok(secret)
    }

    fn mac(&self) -> Hmac<Sha256> {
        keyed(&*self.key)
    }
}

/// A secret for the holder of a key.
struct Salt {
    value: Zeroizing<[u8; 32]>,
    /// `TPMS_ECC_POINT`: the ephemeral key.
    encrypted: Vec<u8>,
}

impl Salt {
    fn new(point: &[u8; 65]) -> Result<Self, HsmError> {
        let key = p256::PublicKey::from_sec1_bytes(point).map_err(|_| HsmError::Tampered)?;
        let ephemeral = loop {
            let scalar = Zeroizing::new(random::<32>()?);
            // But once in 2^32 times it is one.
            if let Ok(ephemeral) = p256::SecretKey::from_slice(&*scalar) {
                break ephemeral;
            }
        };
        let shared = p256::ecdh::diffie_hellman(ephemeral.to_nonzero_scalar(), key.as_affine());
        let public = ephemeral.public_key().to_sec1_point(false);
        let (Some(x), Some(y)) = (public.x(), public.y()) else {
            return Err(HsmError::NotAPoint);
        };
        let mut encrypted = Vec::new();
        put_sized(&mut encrypted, x);
        put_sized(&mut encrypted, y);
        let own_x = point.get(1..33).unwrap_or_default();
        // KDFe for one block (Part 1, 11.4.10.3).
        let value = Sha256::new()
            .chain_update(1_u32.to_be_bytes())
            .chain_update(shared.raw_secret_bytes())
            .chain_update(b"SECRET\0")
            .chain_update(x)
            .chain_update(own_x)
            .finalize();
        Ok(Self {
            value: Zeroizing::new(value.into()),
            encrypted,
        })
    }
}

/// KDFa with SHA-256 for one block, 256 bits (Part 1, 11.4.10.2).
fn kdf_a(key: &[u8], label: &[u8], u: &[u8], v: &[u8]) -> Zeroizing<[u8; 32]> {
    let mac = keyed(key)
        .chain_update(1_u32.to_be_bytes())
        .chain_update(label)
        .chain_update(u)
        .chain_update(v)
        .chain_update(256_u32.to_be_bytes());
    Zeroizing::new(mac.finalize().into_bytes().into())
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    #[allow(
        clippy::expect_used,
        reason = "HMAC takes a key of any length (RFC 2104)"
    )]
    Hmac::new_from_slice(key).expect("any length is a key")
}

fn random<const N: usize>() -> Result<[u8; N], HsmError> {
    let mut bytes = [0; N];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|_| HsmError::NoRandomness)?;
    Ok(bytes)
}

const CC_START_AUTH_SESSION: u32 = 0x176;

/// `TPM_RH_NULL`.
const RH_NULL: u32 = 0x4000_0007;

/// `TPM_SE_POLICY` (Part 2, 6.11).
const SE_POLICY: u8 = 1;

// `TPM_ALG_ID` (Part 2, 6.3).
const ALG_AES: u16 = 0x0006;
const ALG_CFB: u16 = 0x0043;

const AES_BITS: u16 = 128;
const AES_BYTES: usize = 16;

/// `TPMA_SESSION` (Part 2, 8.4): encrypt the answer, keep the session.
const ATTRIBUTES: u8 = ENCRYPT | 1;
const ENCRYPT: u8 = 1 << 6;

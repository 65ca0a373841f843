//! What the tests share: a handle on a software TPM, and tpm2-tools on the same one.

#![allow(dead_code, reason = "no test uses all of it")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use hsm::swtpm::Swtpm;
use hsm::{Hsm, HsmConfig};
use p256::SecretKey;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use sha2::{Digest, Sha256};
use wire::tpm::{CounterLimit, PcrValues, PolicyAuthority, PolicyDigest, SignedPolicy};

/// A handle on `tpm`; its keys are in the TPM's folder, so every handle has the same.
pub(crate) fn hsm(tpm: &Swtpm) -> Hsm {
    hsm_with(tpm, TIMEOUT)
}

pub(crate) fn hsm_with(tpm: &Swtpm, timeout: Duration) -> Hsm {
    Hsm::start(HsmConfig {
        tpm: tpm.tpm(),
        keys: keys(tpm),
        timeout,
    })
}

pub(crate) fn keys(tpm: &Swtpm) -> PathBuf {
    tpm.folder().join("keys")
}

/// Runs one of tpm2-tools in the TPM's folder and returns what it printed.
pub(crate) fn tool(tpm: &Swtpm, line: &str) -> String {
    let output = run(tpm, line);
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Whether one of tpm2-tools refuses.
pub(crate) fn fails(tpm: &Swtpm, line: &str) -> bool {
    !run(tpm, line).status.success()
}

pub(crate) fn run(tpm: &Swtpm, line: &str) -> Output {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    Command::new(program)
        .args(words)
        .current_dir(tpm.folder())
        .env("TPM2TOOLS_TCTI", tpm.tcti())
        .env("TPM2OPENSSL_TCTI", tpm.tcti())
        .env("TSS2_LOG", "all+none")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; make setup"))
}

pub(crate) fn file(tpm: &Swtpm, name: &str) -> Vec<u8> {
    std::fs::read(tpm.folder().join(name)).unwrap()
}

/// A key that is the same in every run.
pub(crate) fn secret_key(number: u32) -> SecretKey {
    SecretKey::from_slice(&digest(number)).unwrap()
}

pub(crate) fn digest(number: u32) -> [u8; 32] {
    Sha256::digest(number.to_be_bytes()).into()
}

/// `04‖X‖Y`.
pub(crate) fn point(key: &SecretKey) -> [u8; 65] {
    key.public_key()
        .to_sec1_bytes()
        .as_ref()
        .try_into()
        .unwrap()
}

/// TPM command codes (TPM 2.0 Part 2, 6.5.2).
pub(crate) mod command {
    pub(crate) const EVICT_CONTROL: u32 = 0x120;
    pub(crate) const NV_DEFINE_SPACE: u32 = 0x12A;
    pub(crate) const CREATE_PRIMARY: u32 = 0x131;
    pub(crate) const NV_INCREMENT: u32 = 0x134;
    pub(crate) const STARTUP: u32 = 0x144;
    pub(crate) const ACTIVATE_CREDENTIAL: u32 = 0x147;
    pub(crate) const CERTIFY: u32 = 0x148;
    pub(crate) const POLICY_NV: u32 = 0x149;
    pub(crate) const NV_READ: u32 = 0x14E;
    pub(crate) const POLICY_SECRET: u32 = 0x151;
    pub(crate) const CREATE: u32 = 0x153;
    pub(crate) const ECDH_ZGEN: u32 = 0x154;
    pub(crate) const LOAD: u32 = 0x157;
    pub(crate) const QUOTE: u32 = 0x158;
    pub(crate) const SIGN: u32 = 0x15D;
    pub(crate) const UNSEAL: u32 = 0x15E;
    pub(crate) const FLUSH_CONTEXT: u32 = 0x165;
    pub(crate) const LOAD_EXTERNAL: u32 = 0x167;
    pub(crate) const NV_READ_PUBLIC: u32 = 0x169;
    pub(crate) const POLICY_AUTHORIZE: u32 = 0x16A;
    pub(crate) const POLICY_OR: u32 = 0x171;
    pub(crate) const READ_PUBLIC: u32 = 0x173;
    pub(crate) const START_AUTH_SESSION: u32 = 0x176;
    pub(crate) const VERIFY_SIGNATURE: u32 = 0x177;
    pub(crate) const GET_CAPABILITY: u32 = 0x17A;
    pub(crate) const PCR_READ: u32 = 0x17E;
    pub(crate) const POLICY_PCR: u32 = 0x17F;
    pub(crate) const PCR_EXTEND: u32 = 0x182;
    pub(crate) const POLICY_RESTART: u32 = 0x180;
    pub(crate) const POLICY_GET_DIGEST: u32 = 0x189;
}

/// Cuts the power of a TPM, by its process id.
pub(crate) fn kill(process: u32) {
    use nix::sys::signal::{Signal, kill};
    let process = nix::unistd::Pid::from_raw(process.try_into().unwrap());
    // It may be gone already.
    let _ = kill(process, Signal::SIGKILL);
}

/// What `manifest.json` says.
pub(crate) fn manifest(tpm: &Swtpm) -> serde_json::Value {
    let text = std::fs::read(keys(tpm).join("manifest.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Sends a command with authorizations past the bus, as a second program on the machine would;
/// returns the response code.
pub(crate) fn send(tpm: &Swtpm, code: u32, body: &[u8]) -> u32 {
    send_to(&tpm.data_socket(), code, body)
}

/// As [`send`], while the bus is held.
pub(crate) fn send_to(socket: &Path, code: u32, body: &[u8]) -> u32 {
    let length = u32::try_from(10 + body.len()).unwrap();
    let header = [
        &[0x80, 0x02],
        &length.to_be_bytes()[..],
        &code.to_be_bytes(),
    ]
    .concat();
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&[&header, body].concat()).unwrap();
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).unwrap();
    u32::from_be_bytes(*answer.last_chunk().unwrap())
}

/// Extends a PCR past the bus, so that a test may do it while the bus is held.
pub(crate) fn extend_on(socket: &Path, pcr: u8) {
    // An empty password; one digest, SHA-256.
    let password = hex::decode("00000009400000090000000000").unwrap();
    let digests = hex::decode("00000001000b").unwrap();
    let body = [&[0, 0, 0, pcr], &password[..], &digests, &[7; 32]].concat();
    assert_eq!(send_to(socket, command::PCR_EXTEND, &body), 0);
}

/// An authority whose key is the ninth.
pub(crate) fn authority() -> PolicyAuthority {
    PolicyAuthority::new(point(&secret_key(9)), b"test").unwrap()
}

/// A policy about PCR 16 as it is after a start, signed by [`authority`].
pub(crate) fn signed_policy(counter: Option<CounterLimit>) -> SignedPolicy {
    let pcrs: PcrValues = [(16, [0; 32])].into_iter().collect();
    let mut policy = PolicyDigest::new().and_pcrs(&pcrs);
    if let Some(limit) = counter {
        policy = policy.and_counter(limit);
    }
    let key = SigningKey::from(secret_key(9));
    let signature: Signature = key.sign(&authority().message(policy));
    SignedPolicy {
        pcrs: pcrs.selection(),
        counter,
        signature: signature.to_bytes().into(),
    }
}

/// Puts a key into the answer to `TPM2_ReadPublic` of an ECC key.
pub(crate) fn put_parent(answer: &mut [u8], point: &[u8; 65]) {
    // Header, TPM2B_PUBLIC, TPM2B_NAME; the public area ends with X and Y, sized.
    let end = 12 + usize::from(u16::from_be_bytes([answer[10], answer[11]]));
    answer[end - 66..end - 34].copy_from_slice(&point[1..33]);
    answer[end - 32..end].copy_from_slice(&point[33..]);
}

/// Many times what an operation takes, also on a machine that does much else.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until the handle has ended its burst of work, which it does after it has answered: the TPM
/// has no slots for it and the tools at once.
pub(crate) fn at_rest(tpm: &Swtpm) {
    tpm.wait_at_rest(TIMEOUT).unwrap();
}

/// Takes a key file apart with OpenSSL and loads it with tpm2-tools; leaves `KEY.ctx` and
/// `KEY.name` in the TPM's folder.
pub(crate) fn load_key(tpm: &Swtpm, key: &str) {
    let parse = format!("openssl asn1parse -in keys/{key}.pem");
    let printed = tool(tpm, &parse);
    let offsets: Vec<_> = printed
        .lines()
        .filter(|line| line.contains("OCTET STRING"))
        .map(|line| line.split(':').next().unwrap().trim())
        .collect();
    assert_eq!(offsets.len(), 2, "{printed}");
    for (part, offset) in ["pub", "priv"].iter().zip(offsets) {
        tool(
            tpm,
            &format!("{parse} -strparse {offset} -noout -out {key}.{part}"),
        );
    }
    tool(
        tpm,
        &format!("tpm2_load -C 0x81000001 -u {key}.pub -r {key}.priv -c {key}.ctx -n {key}.name"),
    );
    // Without a resource manager the tools leave in the TPM what they saved.
    tool(tpm, "tpm2_flushcontext -t");
}

/// Makes a credential for `key` with tpm2-tools, and leaves the contexts of it and of the
/// endorsement key in the TPM's folder.
pub(crate) fn make_credential(tpm: &Swtpm, key: &str, secret: &[u8]) -> (Vec<u8>, Vec<u8>) {
    tool(tpm, "tpm2_createek -G ecc -c ek.ctx -u ek.pub");
    tool(tpm, "tpm2_flushcontext -t");
    load_key(tpm, key);
    std::fs::write(tpm.folder().join("secret.bin"), secret).unwrap();
    let name = hex::encode(file(tpm, &format!("{key}.name")));
    tool(
        tpm,
        &format!("tpm2_makecredential -u ek.pub -s secret.bin -n {name} -o credential.bin"),
    );
    // Magic and version, 8 bytes, then TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET.
    let blob = file(tpm, "credential.bin");
    let sized = |start: usize| {
        let size = usize::from(u16::from_be_bytes([blob[start], blob[start + 1]]));
        start + 2..start + 2 + size
    };
    let credential = sized(8);
    let encrypted = sized(credential.end);
    assert_eq!(encrypted.end, blob.len());
    (blob[credential].to_vec(), blob[encrypted].to_vec())
}

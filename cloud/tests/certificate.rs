//! A vendor's certificate is believed for the key, the time, the purpose and by the roots it has.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use cloud::{
    evidence::{CertificateError, EndorsementKey, EndorsementKind, certificate::verify},
    roots::EndorsementRoots,
};
use hsm::swtpm::Swtpm;
use support::authority::{Authority, ENDORSEMENT};
use tempfile::TempDir;

#[test]
fn certificates_of_a_certified_tpm_lead_to_its_vendors_root() {
    let (tpm, other) = (Certified::start(), Certified::start());
    let [root, issuer] = tpm.swtpm.authority();
    let roots = roots(&[&root, &issuer]);
    let now = SystemTime::now();
    for (kind, key, certificate) in tpm.keys() {
        assert_eq!(key.kind(), kind);
        let sent = [certificate.clone()];
        verify(&sent, &roots, now, &key).unwrap();

        // The issuer may be sent as well as known.
        let only_root = self::roots(&[&root]);
        let refused = verify(&sent, &only_root, now, &key);
        assert!(matches!(refused, Err(CertificateError::UnknownRoot)));
        let with_issuer = [certificate.clone(), pem_to_der(&issuer)];
        verify(&with_issuer, &only_root, now, &key).unwrap();

        // What fills the NV index behind it changes nothing.
        for padding in [[0x00; 300], [0xFF; 300]] {
            let padded = [certificate.as_slice(), &padding].concat();
            verify(&[padded], &roots, now, &key).unwrap();
        }

        // Same names, other keys.
        let [root, issuer] = other.swtpm.authority();
        let foreign = self::roots(&[&root, &issuer]);
        let refused = verify(&sent, &foreign, now, &key);
        assert!(matches!(refused, Err(CertificateError::UnknownRoot)));
    }
}

#[test]
fn a_certificate_is_for_one_key() {
    let (tpm, other) = (Certified::start(), Certified::start());
    let [root, issuer] = tpm.swtpm.authority();
    let roots = roots(&[&root, &issuer]);
    let [(_, rsa, rsa_certificate), (_, p384, p384_certificate)] = tpm.keys();
    let [(_, other_rsa, _), (_, other_p384, _)] = other.keys();
    for (key, certificate) in [
        (&other_rsa, &rsa_certificate),
        (&other_p384, &p384_certificate),
        (&p384, &rsa_certificate),
        (&rsa, &p384_certificate),
    ] {
        let sent = [certificate.clone()];
        let refused = verify(&sent, &roots, SystemTime::now(), key);
        assert!(matches!(refused, Err(CertificateError::OtherKey)));
    }
    // The first is the key's own.
    let both = [p384_certificate, rsa_certificate];
    let refused = verify(&both, &roots, SystemTime::now(), &rsa);
    assert!(matches!(refused, Err(CertificateError::OtherKey)));
}

#[test]
fn no_flipped_byte_of_a_certificate_and_no_cut_is_accepted() {
    let tpm = Certified::start();
    let [root, issuer] = tpm.swtpm.authority();
    let roots = roots(&[&root, &issuer]);
    for (kind, key, certificate) in tpm.keys() {
        for place in 0..certificate.len() {
            let mut other = certificate.clone();
            other[place] ^= 1;
            let refused = verify(&[other], &roots, SystemTime::now(), &key);
            assert!(refused.is_err(), "{kind} {place}");
        }
        for length in 0..certificate.len() {
            let cut = [certificate[..length].to_vec()];
            let refused = verify(&cut, &roots, SystemTime::now(), &key);
            assert!(matches!(
                refused,
                Err(CertificateError::NotDer { number: 1 })
            ));
        }
        let sent = [certificate.clone(), b"issuer".to_vec()];
        let refused = verify(&sent, &roots, SystemTime::now(), &key);
        assert!(matches!(
            refused,
            Err(CertificateError::NotDer { number: 2 })
        ));
        let refused = verify(&[], &roots, SystemTime::now(), &key);
        assert!(matches!(refused, Err(CertificateError::Missing)));
    }
}

#[test]
fn a_certificate_has_its_time() {
    let (authority, key) = (Authority::new(), key());
    let roots = roots(&[&authority.file("root")]);
    let now = SystemTime::now();
    let sent = [authority.certificate("root", &spki(&key), ENDORSEMENT)];
    let at = |time| verify(&sent, &roots, time, &key);
    at(now).unwrap();
    let refused = at(now + 2 * DAY);
    assert!(matches!(refused, Err(CertificateError::Expired(_))));
    let words = refused.unwrap_err().to_string();
    assert!(words.starts_with("expired on 20"), "{words}");
    let refused = at(now - DAY);
    assert!(matches!(refused, Err(CertificateError::NotYetValid(_))));
    let refused = at(SystemTime::UNIX_EPOCH - DAY);
    assert!(matches!(refused, Err(CertificateError::NotYetValid(_))));
}

#[test]
fn a_certificate_has_its_purpose_and_no_other() {
    let (authority, key) = (Authority::new(), key());
    let roots = roots(&[&authority.file("root")]);
    let issued = |issuer: &str, extensions: &str| {
        let sent = [authority.certificate(issuer, &spki(&key), extensions)];
        verify(&sent, &roots, SystemTime::now(), &key)
    };
    issued("root", ENDORSEMENT).unwrap();
    issued("root", "extendedKeyUsage=serverAuth,2.23.133.8.1").unwrap();
    for extensions in [
        "basicConstraints=critical,CA:FALSE",
        "extendedKeyUsage=serverAuth",
        "extendedKeyUsage=2.23.133.8.3",
        "extendedKeyUsage=anyExtendedKeyUsage",
    ] {
        let refused = issued("root", extensions);
        assert!(
            matches!(refused, Err(CertificateError::OtherPurpose)),
            "{extensions}: {refused:?}"
        );
    }
    // An authority's own certificate is none of a TPM.
    let refused = issued(
        "root",
        "basicConstraints=CA:TRUE\nextendedKeyUsage=2.23.133.8.1",
    );
    assert!(matches!(refused, Err(CertificateError::Refused(_))));
    let refused = issued("root", &format!("{ENDORSEMENT}1.2.3.4=critical,DER:0500"));
    assert!(matches!(refused, Err(CertificateError::Refused(_))));
}

#[test]
fn only_an_authority_issues() {
    let (authority, key) = (Authority::new(), key());
    let roots = roots(&[&authority.file("root")]);
    for (name, extensions, good) in [
        ("issuer", "basicConstraints=critical,CA:TRUE", true),
        ("nobody", "basicConstraints=critical,CA:FALSE", false),
        ("silent", "subjectKeyIdentifier=hash", false),
        (
            "limited",
            "basicConstraints=CA:TRUE\nextendedKeyUsage=serverAuth",
            false,
        ),
        // Another TPM's owner, who has its endorsement certificate.
        ("owner", ENDORSEMENT, false),
    ] {
        authority.subordinate(name, "root", extensions);
        let sent = [
            authority.certificate(name, &spki(&key), ENDORSEMENT),
            authority.der(name),
        ];
        let verified = verify(&sent, &roots, SystemTime::now(), &key);
        assert_eq!(verified.is_ok(), good, "{name}: {verified:?}");
        // In the folder it is no better than on the wire.
        let folder = self::roots(&[&authority.file("root"), &authority.file(name)]);
        assert_eq!(folder.counts(), (1, 1));
        let verified = verify(&sent[..1], &folder, SystemTime::now(), &key);
        assert_eq!(verified.is_ok(), good, "{name}: {verified:?}");
    }
}

#[test]
fn a_folder_that_is_no_good_is_named_with_what_to_do() {
    let authority = Authority::new();
    authority.subordinate("issuer", "root", "basicConstraints=critical,CA:TRUE");
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &[u8]| {
        fs::write(folder.path().join(name), content).unwrap();
    };
    let words = |path: &Path| format!("{:#}", EndorsementRoots::load(path).unwrap_err());

    let missing = words(&folder.path().join("nowhere"));
    assert!(missing.contains("nowhere; make the folder"), "{missing}");
    let empty = words(folder.path());
    assert!(
        empty.contains("has no root (self-signed) certificate"),
        "{empty}"
    );
    put("a.pem", &fs::read(authority.file("issuer")).unwrap());
    let rootless = words(folder.path());
    assert!(rootless.contains("has no root"), "{rootless}");

    put("b.pem", &fs::read(authority.file("root")).unwrap());
    put(".hidden", b"nothing");
    assert_eq!(
        EndorsementRoots::load(folder.path()).unwrap().counts(),
        (1, 1)
    );
    put("b.pem", &authority.der("root"));
    assert_eq!(
        EndorsementRoots::load(folder.path()).unwrap().counts(),
        (1, 1)
    );

    let pem = fs::read_to_string(authority.file("root")).unwrap();
    let der = authority.der("root");
    for (content, why) in [
        (b"hello".to_vec(), "has no certificate in it"),
        (pem.replace("END", "ENDE").into_bytes(), "is no PEM"),
        (pem.replacen("M", "!", 1).into_bytes(), "is no PEM"),
        (
            der[..der.len() - 1].to_vec(),
            "is no certificate that can be used",
        ),
        (
            [der.as_slice(), &[0]].concat(),
            "is no certificate that can be used",
        ),
        (vec![b' '; 5 * 1024 * 1024], "has more than"),
    ] {
        put("c.pem", &content);
        let said = words(folder.path());
        assert!(said.contains("c.pem: repair or remove it"), "{said}");
        assert!(said.contains(why), "{said}");
    }
}

/// A TPM as a vendor ships it.
struct Certified {
    swtpm: Swtpm,
}

impl Certified {
    fn start() -> Self {
        let swtpm = Swtpm::start_certified().unwrap();
        Self { swtpm }
    }

    /// Its endorsement keys and their certificates, read with tpm2-tools.
    fn keys(&self) -> [(EndorsementKind, EndorsementKey, Vec<u8>); 2] {
        [
            (EndorsementKind::Rsa2048, "0x81010001", "0x01C00002"),
            (EndorsementKind::P384, "0x81010016", "0x01C00016"),
        ]
        .map(|(kind, handle, index)| {
            self.tool(&format!("tpm2_readpublic -c {handle} -o ek.pub"));
            self.tool(&format!("tpm2_nvread {index} -C o -o ek.crt"));
            let file = |name| fs::read(self.swtpm.folder().join(name)).unwrap();
            let key = EndorsementKey::parse(&file("ek.pub")[2..]).unwrap();
            (kind, key, file("ek.crt"))
        })
    }

    fn tool(&self, line: &str) {
        let mut words = line.split_whitespace();
        let output = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.swtpm.folder())
            .env("TPM2TOOLS_TCTI", self.swtpm.tcti())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {said}");
    }
}

/// Roots from a folder with these files.
fn roots(files: &[&PathBuf]) -> EndorsementRoots {
    let folder: TempDir = tempfile::tempdir().unwrap();
    for (number, file) in files.iter().enumerate() {
        fs::copy(file, folder.path().join(format!("{number}.pem"))).unwrap();
    }
    EndorsementRoots::load(folder.path()).unwrap()
}

fn pem_to_der(file: &Path) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(["x509", "-outform", "DER", "-in"])
        .arg(file)
        .output()
        .unwrap();
    output.stdout
}

/// Some endorsement key.
fn key() -> EndorsementKey {
    let tpm = Swtpm::start().unwrap();
    let output = Command::new("tpm2_createek")
        .args(["-G", "ecc", "-c", "ek.ctx", "-u", "ek.pub"])
        .current_dir(tpm.folder())
        .env("TPM2TOOLS_TCTI", tpm.tcti())
        .output()
        .unwrap();
    assert!(output.status.success());
    EndorsementKey::parse(&fs::read(tpm.folder().join("ek.pub")).unwrap()[2..]).unwrap()
}

fn spki(key: &EndorsementKey) -> Vec<u8> {
    key.subject_public_key_info().unwrap()
}

const DAY: Duration = Duration::from_secs(86_400);

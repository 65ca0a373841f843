//! A vendor's certificate authority, made with openssl.

use std::{fs, path::PathBuf, process::Command};

use tempfile::TempDir;

/// A folder of keys and certificates; each certificate is `NAME.pem`.
pub(crate) struct Authority(TempDir);

impl Authority {
    /// With a root that is called `root`.
    pub(crate) fn new() -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        let config = "[req]\ndistinguished_name=name\nprompt=no\n[name]\nCN=root\n\
                      [root]\nbasicConstraints=critical,CA:TRUE\n";
        fs::write(authority.0.path().join("config"), config).unwrap();
        authority.key("root");
        authority.openssl(
            "req -x509 -new -config config -extensions root -key root.key -days 3650 -out root.pem",
        );
        authority
    }

    /// A certificate by `issuer` for a new key of its own, with these extensions.
    pub(crate) fn subordinate(&self, name: &str, issuer: &str, extensions: &str) {
        self.key(name);
        self.openssl(&format!("pkey -in {name}.key -pubout -out {name}.pub"));
        self.certify(name, issuer, extensions);
    }

    /// A certificate by `issuer` for this public key (DER), good for one day; returns its DER.
    pub(crate) fn certificate(&self, issuer: &str, key: &[u8], extensions: &str) -> Vec<u8> {
        fs::write(self.0.path().join("leaf.der"), key).unwrap();
        self.openssl("pkey -pubin -inform DER -in leaf.der -out leaf.pub");
        self.certify("leaf", issuer, extensions);
        self.der("leaf")
    }

    /// The DER of a certificate.
    pub(crate) fn der(&self, name: &str) -> Vec<u8> {
        self.openssl(&format!("x509 -in {name}.pem -outform DER -out {name}.crt"));
        fs::read(self.0.path().join(format!("{name}.crt"))).unwrap()
    }

    /// The file of a certificate.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.pem"))
    }

    fn certify(&self, name: &str, issuer: &str, extensions: &str) {
        fs::write(self.0.path().join("extensions"), extensions).unwrap();
        // The request only lends its form; its key is replaced.
        self.openssl(&format!(
            "req -new -config config -key root.key -subj /CN={name} -out request"
        ));
        self.openssl(&format!(
            "x509 -req -in request -force_pubkey {name}.pub -CA {issuer}.pem -CAkey {issuer}.key \
             -CAcreateserial -days 1 -extfile extensions -out {name}.pem"
        ));
    }

    fn key(&self, name: &str) {
        self.openssl(&format!(
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}.key"
        ));
    }

    fn openssl(&self, line: &str) {
        let output = Command::new("openssl")
            .args(line.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {line}: {said}");
    }
}

/// Extensions of an endorsement certificate.
pub(crate) const ENDORSEMENT: &str =
    "basicConstraints=critical,CA:FALSE\nextendedKeyUsage=2.23.133.8.1\n";

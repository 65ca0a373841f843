//! The vendors' certificates that endorsement certificates must lead to: a folder of files.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use rustls_pki_types::{CertificateDer, TrustAnchor, pem::PemObject};
use webpki::{EndEntityCert, anchor_from_trusted_cert};

/// Whom this service believes about TPMs.
#[derive(Clone, Debug)]
pub struct EndorsementRoots {
    pub(crate) anchors: Vec<TrustAnchor<'static>>,
    /// Certificates between a root and an endorsement key; they prove nothing by themselves.
    pub(crate) issuers: Vec<CertificateDer<'static>>,
}

impl EndorsementRoots {
    /// Reads a folder of certificates, PEM (any number in a file) or DER; hidden files are left out.
    ///
    /// A certificate whose subject is its issuer is a root, with no regard to its time; any other
    /// one is an issuer.
    ///
    /// # Errors
    ///
    /// If the folder cannot be read, has no root, or has a file that is no certificate.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let shown = folder.display();
        let files = files(folder).with_context(|| {
            format!("cannot read {shown}; make the folder, with your TPM vendors' certificates")
        })?;
        let mut roots = Self {
            anchors: Vec::new(),
            issuers: Vec::new(),
        };
        for file in files {
            let added = roots.add(&file);
            added.with_context(|| format!("{}: repair or remove it", file.display()))?;
        }
        ensure!(
            !roots.anchors.is_empty(),
            "{shown} has no root (self-signed) certificate, so no TPM could enrol; put those of \
             your TPM vendors there, PEM or DER"
        );
        Ok(roots)
    }

    /// How many roots, and how many issuers.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.anchors.len(), self.issuers.len())
    }

    fn add(&mut self, file: &Path) -> anyhow::Result<()> {
        for certificate in certificates(&bytes(file)?)? {
            let read = EndEntityCert::try_from(&certificate);
            let read = read.context("is no certificate that can be used")?;
            if read.subject() == read.issuer() {
                let anchor = anchor_from_trusted_cert(&certificate)?;
                self.anchors.push(anchor.to_owned());
            } else {
                self.issuers.push(certificate);
            }
        }
        ensure!(
            self.anchors.len() + self.issuers.len() <= CERTIFICATES_MAX,
            "there are more than {CERTIFICATES_MAX} certificates"
        );
        Ok(())
    }
}

/// The files to read, in an order that does not change.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn bytes(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limited = File::open(file)?.take(FILE_BYTES_MAX + 1);
    { limited }.read_to_end(&mut bytes)?;
    ensure!(
        bytes.len() as u64 <= FILE_BYTES_MAX,
        "has more than {FILE_BYTES_MAX} bytes"
    );
    Ok(bytes)
}

fn certificates(bytes: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    // A SEQUENCE, so DER; no text begins so.
    if bytes.starts_with(&[0x30, 0x82]) {
        return Ok(vec![CertificateDer::from(bytes.to_vec())]);
    }
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(bytes) {
        match certificate {
            Ok(certificate) => certificates.push(certificate),
            Err(error) => bail!("is no PEM: {error}"),
        }
    }
    ensure!(!certificates.is_empty(), "has no certificate in it");
    Ok(certificates)
}

/// All TPM vendors together publish some hundred certificates.
const CERTIFICATES_MAX: usize = 1_000;

/// Room for all of those in one file.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

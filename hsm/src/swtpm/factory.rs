//! What a vendor does before a TPM is sold: endorsement keys, and certificates of them.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// Makes the state of a TPM in `folder` with `swtpm_setup`: an RSA-2048 and a P-384 endorsement key
/// with a certificate each, issued by an authority of the TPM's own in `folder/authority`.
pub(super) fn manufacture(folder: &Path) -> io::Result<()> {
    let authority = folder.join(AUTHORITY);
    fs::create_dir(&authority)?;
    let (ca, ca_options, setup) = (
        authority.join("localca.conf"),
        authority.join("localca.options"),
        authority.join("setup.conf"),
    );
    let at = |name: &str| authority.join(name).display().to_string();
    fs::write(
        &ca,
        format!(
            "statedir = {}\nsigningkey = {}\nissuercert = {}\ncertserial = {}\n",
            authority.display(),
            at("issuer-key.pem"),
            at(ISSUER),
            at("serial"),
        ),
    )?;
    fs::write(
        &ca_options,
        "--platform-manufacturer gatewayd\n--platform-version 1\n--platform-model test\n",
    )?;
    fs::write(
        &setup,
        format!(
            "create_certs_tool=swtpm_localca\ncreate_certs_tool_config={}\n\
             create_certs_tool_options={}\n",
            ca.display(),
            ca_options.display(),
        ),
    )?;
    let output = Command::new("swtpm_setup")
        .args(["--tpm2", "--create-ek-cert", "--tpmstate"])
        .arg(folder)
        .arg("--config")
        .arg(&setup)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                io::Error::new(
                    error.kind(),
                    "swtpm_setup is not installed: apt install swtpm-tools",
                )
            } else {
                error
            }
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        return Err(io::Error::other(format!("swtpm_setup failed: {said}")));
    }
    Ok(())
}

/// Folder of the authority, beside the TPM's state.
pub(super) const AUTHORITY: &str = "authority";
/// Certificate of the authority that issued the endorsement certificates, PEM.
pub(super) const ISSUER: &str = "issuer.pem";
/// Certificate of the root above it, PEM; `swtpm_localca` names it so.
pub(super) const ROOT: &str = "swtpm-localca-rootca-cert.pem";

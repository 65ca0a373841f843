//! What is said about `gatewayctl spool export`.

use serde::{Deserialize, Serialize};

/// Body of `POST /v1/spool/export`. The answer is a file of protocol.md 3.5.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// Which `[[service]]` it is for, where that is not clear.
    #[serde(default)]
    pub service: Option<String>,
    /// Only what was not exported before.
    #[serde(default)]
    pub new: bool,
}

/// Body of `POST /v1/spool/exported`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedRequest {
    /// Epoch in hexadecimal digits, and one more than its highest number in the file.
    pub epochs: Vec<(String, u32)>,
}

/// Answer to `POST /v1/spool/exported`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExportedAnswer {
    /// `exported/1`.
    pub schema: String,
}

/// Header of the answer: about how many bytes it has.
pub const EXPORT_BYTES_HEADER: &str = "gatewayd-bytes";

/// Header of the answer: how many epochs wait for the TPM's signature, and are left out.
pub const EXPORT_UNSIGNED_HEADER: &str = "gatewayd-unsigned-epochs";

/// An export ends with the first batch beyond this: FAT, which is on most sticks, has files of less
/// than 4 GiB.
pub const EXPORT_BYTES_MAX: u64 = 3 * 1024 * 1024 * 1024;

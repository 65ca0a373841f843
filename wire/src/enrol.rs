//! Messages of the `enroll` stream, and what is computed from them; see `protocol.md` 5.2.

use crate::WireError;
use crate::cbor::{self, Message, Reader, Writer};
use crate::closed::coded;
use crate::mac::{hash, mac};
use crate::ticket::TicketKey;

/// Message 1, gateway to service: who wants to be enrolled, and by which ticket.
///
/// The keys are TPM structures (`TPMT_PUBLIC`) as the gateway states them: nothing is proven yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The ticket; `None` on an allow-list.
    pub ticket_id: Option<[u8; 8]>,
    /// [`proof`] of the ticket; `None` without one.
    pub proof: Option<[u8; 32]>,
    /// The endorsement key's certificates, DER.
    pub ek_certificates: Vec<Vec<u8>>,
    /// The endorsement key.
    pub ek: Vec<u8>,
    /// The attestation key.
    pub ak: Vec<u8>,
    /// The identity key.
    pub identity: Vec<u8>,
    /// The channel key.
    pub channel: Vec<u8>,
}

/// Message 2, service to gateway: a secret that only the TPM with that EK and AK can recover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Random; makes the transcript fresh.
    pub nonce: [u8; 32],
    /// What `TPM2_MakeCredential` calls the credential blob.
    pub credential: Vec<u8>,
    /// The blob's key, encrypted to the EK.
    pub secret: Vec<u8>,
}

/// Message 3, gateway to service: the answer, and certificates by the AK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// [`activated`] with the recovered secret.
    pub activated: [u8; 32],
    /// The identity key, certified by the AK: attest and signature.
    pub identity: (Vec<u8>, Vec<u8>),
    /// The channel key, certified by the AK: attest and signature.
    pub channel: (Vec<u8>, Vec<u8>),
    /// ES256 by the identity key over [`possession_message`].
    pub possession: [u8; 64],
}

/// Message 4, service to gateway: how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Enrolled, or why not.
    pub code: EnrolCode,
    /// The fingerprint under which the gateway is registered.
    pub gateway: Option<[u8; 32]>,
    /// The name that the operator gave to the gateway.
    pub name: Option<String>,
    /// What else a person at the gateway should know.
    pub detail: Option<String>,
}

coded! {
    /// How an enrolment ended.
    EnrolCode "enrolment code" {
        /// The gateway is registered.
        Ok = 0 => "enrolled",
        /// The service made no such ticket.
        TicketUnknown = 1 => "the service does not know this ticket",
        /// The ticket's time is over.
        TicketExpired = 2 => "the ticket has expired",
        /// The ticket enrolled a gateway, or another gateway claimed it.
        TicketUsed = 3 => "the ticket has been used",
        /// The proof does not fit the ticket.
        ProofWrong = 4 => "the ticket's proof is wrong",
        /// A key, a certificate or a signature fails the checklist of `protocol.md` 5.3.
        KeyRefused = 5 => "a key of this TPM was refused",
        /// This TPM or one of its keys is registered already.
        AlreadyEnrolled = 6 => "this TPM is enrolled already",
        /// No ticket, and not on the allow-list.
        NotAllowed = 7 => "enrolment is not allowed without a ticket",
        /// The service cannot decide now.
        Later = 8 => "the service is busy; try again later",
    }
}

/// A key that the AK certifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertifiedKey {
    /// The gateway's identity key.
    Identity,
    /// The gateway's channel key.
    Channel,
}

/// Proves knowledge of the ticket, for this session and these keys only.
///
/// `M(ticket key, "gatewayd/1 enrol" ‖ h ‖ H(fields 3 to 7 as a map))`: `ticket_id` and `proof` of
/// `request` are not covered, and may be unset. `h` is the session's handshake hash.
#[must_use]
pub fn proof(ticket_key: &TicketKey, h: &[u8; 32], request: &Request) -> [u8; 32] {
    let mut writer = Writer::default();
    writer.map(5);
    request.write_keys(&mut writer);
    let keys = hash(&[&writer.into_bytes()]);
    mac(ticket_key.as_bytes(), &[b"gatewayd/1 enrol\0", h, &keys])
}

/// The transcript hash `T`, to which all evidence is bound.
///
/// Takes messages 1 and 2 as they travelled, and `h`, the session's handshake hash.
#[must_use]
pub fn transcript(h: &[u8; 32], request_bytes: &[u8], challenge_bytes: &[u8]) -> [u8; 32] {
    hash(&[
        b"gatewayd/1 transcript\0",
        h,
        &hash(&[request_bytes]),
        &hash(&[challenge_bytes]),
    ])
}

/// Shows that `secret` was recovered, without showing it; `t` is the [`transcript`].
#[must_use]
pub fn activated(secret: &[u8], t: &[u8; 32]) -> [u8; 32] {
    mac(secret, &[b"gatewayd/1 activated\0", t])
}

/// What the identity key signs; `t` is the [`transcript`].
#[must_use]
pub fn possession_message(t: &[u8; 32]) -> Vec<u8> {
    [b"gatewayd/1 possess\0".as_slice(), t].concat()
}

/// The qualifying data with which the AK certifies `key`; `t` is the [`transcript`].
#[must_use]
pub fn certify_data(key: CertifiedKey, t: &[u8; 32]) -> [u8; 32] {
    let label: &[u8] = match key {
        CertifiedKey::Identity => b"gatewayd/1 certify identity\0",
        CertifiedKey::Channel => b"gatewayd/1 certify channel\0",
    };
    hash(&[label, t])
}

/// Adds `encode` and `decode` to a message.
macro_rules! message {
    ($($name:ident)+) => {$(
        impl $name {
            /// The message's bytes.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                cbor::encode(self)
            }

            /// Reads the message.
            ///
            /// # Errors
            ///
            /// [`WireError`] if these are not its bytes.
            pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
                cbor::decode_bounded(bytes, MESSAGE_BYTES_MAX)
            }
        }
    )+};
}

message! { Request Challenge Evidence Outcome }

impl Request {
    /// Fields 3 to 7.
    fn write_keys(&self, writer: &mut Writer) {
        writer
            .key(&[3])
            .list(&self.ek_certificates, |writer, certificate| {
                writer.bytes(certificate);
            })
            .key(&[4])
            .bytes(&self.ek)
            .key(&[5])
            .bytes(&self.ak)
            .key(&[6])
            .bytes(&self.identity)
            .key(&[7])
            .bytes(&self.channel);
    }
}

impl Message for Request {
    fn write(&self, writer: &mut Writer) {
        writer.map(7);
        writer
            .key(&[1])
            .nullable(self.ticket_id.as_ref().map(<[u8; 8]>::as_slice));
        writer
            .key(&[2])
            .nullable(self.proof.as_ref().map(<[u8; 32]>::as_slice));
        self.write_keys(writer);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut pairs = reader.map()?;
        let request = Self {
            ticket_id: pairs.required(&[1], |reader| reader.nullable(Reader::sized))?,
            proof: pairs.required(&[2], |reader| reader.nullable(Reader::sized))?,
            ek_certificates: pairs.required(&[3], |reader| {
                reader.list(|reader| reader.bytes_up_to("EK certificate", CERTIFICATE_BYTES_MAX))
            })?,
            ek: pairs.required(&[4], tpm_structure)?,
            ak: pairs.required(&[5], tpm_structure)?,
            identity: pairs.required(&[6], tpm_structure)?,
            channel: pairs.required(&[7], tpm_structure)?,
        };
        pairs.end()?;
        if request.ek_certificates.len() > CERTIFICATES_MAX {
            return Err(WireError::Value {
                field: "number of EK certificates",
            });
        }
        Ok(request)
    }
}

impl Message for Challenge {
    fn write(&self, writer: &mut Writer) {
        writer.map(3);
        writer.key(&[1]).bytes(&self.nonce);
        writer.key(&[2]).bytes(&self.credential);
        writer.key(&[3]).bytes(&self.secret);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut pairs = reader.map()?;
        let challenge = Self {
            nonce: pairs.required(&[1], Reader::sized)?,
            credential: pairs.required(&[2], tpm_structure)?,
            secret: pairs.required(&[3], tpm_structure)?,
        };
        pairs.end()?;
        Ok(challenge)
    }
}

impl Message for Evidence {
    fn write(&self, writer: &mut Writer) {
        writer.map(4);
        writer.key(&[1]).bytes(&self.activated);
        write_certified(writer.key(&[2]), &self.identity);
        write_certified(writer.key(&[3]), &self.channel);
        writer.key(&[4]).bytes(&self.possession);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut pairs = reader.map()?;
        let evidence = Self {
            activated: pairs.required(&[1], Reader::sized)?,
            identity: pairs.required(&[2], read_certified)?,
            channel: pairs.required(&[3], read_certified)?,
            possession: pairs.required(&[4], Reader::sized)?,
        };
        pairs.end()?;
        Ok(evidence)
    }
}

impl Message for Outcome {
    fn write(&self, writer: &mut Writer) {
        let optional = [
            self.gateway.is_some(),
            self.name.is_some(),
            self.detail.is_some(),
        ];
        writer.map(1 + optional.into_iter().filter(|present| *present).count());
        writer.key(&[1]).uint(u8::from(self.code));
        if let Some(gateway) = &self.gateway {
            writer.key(&[2]).bytes(gateway);
        }
        if let Some(name) = &self.name {
            writer.key(&[3]).text(name);
        }
        if let Some(detail) = &self.detail {
            writer.key(&[4]).text(detail);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut pairs = reader.map()?;
        let outcome = Self {
            code: pairs.required(&[1], Reader::code)?,
            gateway: pairs.optional(&[2], Reader::sized)?,
            name: pairs.optional(&[3], Reader::text)?,
            detail: pairs.optional(&[4], Reader::text)?,
        };
        pairs.end()?;
        Ok(outcome)
    }
}

fn write_certified(writer: &mut Writer, (attest, signature): &(Vec<u8>, Vec<u8>)) {
    writer.array(2).bytes(attest).bytes(signature);
}

fn read_certified(reader: &mut Reader<'_>) -> Result<(Vec<u8>, Vec<u8>), WireError> {
    reader.array(2)?;
    Ok((tpm_structure(reader)?, tpm_structure(reader)?))
}

fn tpm_structure(reader: &mut Reader<'_>) -> Result<Vec<u8>, WireError> {
    reader.bytes_up_to("TPM structure", TPM_STRUCTURE_BYTES_MAX)
}

/// Longest message: an unknown gateway's session ends after 64 KiB (`protocol.md` 2.3).
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Most endorsement certificates in a [`Request`]: a vendor leaves one and two or three issuers.
pub const CERTIFICATES_MAX: usize = 16;

/// Longest endorsement certificate: vendors' have 800 to 1,500 bytes, and some are padded to the
/// size of their NV index.
pub const CERTIFICATE_BYTES_MAX: usize = 8 * 1024;

/// Longest structure of a TPM. The public area of an RSA-2048 key has 314 bytes, an encrypted secret
/// 256, an attest with SHA-256 Names 173.
pub const TPM_STRUCTURE_BYTES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    // All bytes below are made with cbor2 (canonical), hashlib and hmac of Python.

    #[test]
    fn messages_have_these_bytes() {
        let by_list = Request {
            ticket_id: None,
            proof: None,
            ek_certificates: Vec::new(),
            ..request()
        };
        let evidence = Evidence {
            activated: [0x33; 32],
            identity: (b"a1".to_vec(), b"s1".to_vec()),
            channel: (b"a2".to_vec(), b"s2".to_vec()),
            possession: [0x44; 64],
        };
        let accepted = Outcome {
            code: EnrolCode::Ok,
            gateway: Some([0x55; 32]),
            name: Some("greenhouse-7".into()),
            detail: None,
        };
        let refused = Outcome {
            code: EnrolCode::KeyRefused,
            gateway: None,
            name: None,
            detail: Some("EK is not in the list".into()),
        };

        assert_eq!(hex::encode(request().encode()), REQUEST);
        assert_eq!(hex::encode(by_list.encode()), REQUEST_BY_LIST);
        assert_eq!(hex::encode(challenge().encode()), CHALLENGE);
        assert_eq!(hex::encode(evidence.encode()), EVIDENCE);
        assert_eq!(hex::encode(accepted.encode()), ACCEPTED);
        assert_eq!(hex::encode(refused.encode()), REFUSED);

        assert_eq!(Request::decode(&request().encode()), Ok(request()));
        assert_eq!(Request::decode(&by_list.encode()), Ok(by_list));
        assert_eq!(Challenge::decode(&challenge().encode()), Ok(challenge()));
        assert_eq!(Evidence::decode(&evidence.encode()), Ok(evidence));
        assert_eq!(Outcome::decode(&accepted.encode()), Ok(accepted));
        assert_eq!(Outcome::decode(&refused.encode()), Ok(refused));
    }

    #[test]
    fn the_proof_covers_the_session_and_the_keys() {
        let key = TicketKey::from_bytes([0x5a; 32]);
        assert_eq!(proof(&key, &H, &request()), request().proof.unwrap());

        let unset = Request {
            ticket_id: None,
            proof: None,
            ..request()
        };
        assert_eq!(proof(&key, &H, &unset), proof(&key, &H, &request()));

        let other_key = TicketKey::from_bytes([0x5b; 32]);
        assert_ne!(
            proof(&other_key, &H, &request()),
            proof(&key, &H, &request())
        );
        assert_ne!(
            proof(&key, &[0x12; 32], &request()),
            proof(&key, &H, &request())
        );
        for change in [
            |request: &mut Request| request.ek_certificates.clear(),
            |request: &mut Request| request.ek.clear(),
            |request: &mut Request| request.ak.clear(),
            |request: &mut Request| request.identity.clear(),
            |request: &mut Request| request.channel.clear(),
        ] {
            let mut other = request();
            change(&mut other);
            assert_ne!(proof(&key, &H, &other), proof(&key, &H, &request()));
        }
    }

    #[test]
    fn what_is_bound_to_the_transcript_is_this() {
        let t = transcript(&H, &request().encode(), &challenge().encode());
        assert_eq!(
            hex::encode(t),
            "b5213cc68b9f1b2a3e37c9802512799be0f0e463ccffef255af74effa15b1388"
        );
        assert_eq!(
            hex::encode(activated(b"secret", &t)),
            "4b09bfe5c42176de0c2a6d322a161f19fb3f38f5f4b80251db4cb44f5b2ec802"
        );
        assert_eq!(
            hex::encode(certify_data(CertifiedKey::Identity, &t)),
            "9729dfc269f7017b5b00a1c01381af3692c5e2cda860663372356ee4de27523f"
        );
        assert_eq!(
            hex::encode(certify_data(CertifiedKey::Channel, &t)),
            "5919e3c0d7cb610fe44e19b097a350f859a3397ac3948cee5689e975bd7005f7"
        );
        assert_eq!(
            possession_message(&t),
            [b"gatewayd/1 possess\0".as_slice(), &t].concat()
        );
    }

    #[test]
    fn unknown_keys_and_codes_are_refused() {
        let extra = hex::decode(ACCEPTED.replacen("a3", "a4", 1) + "0500").unwrap();
        assert!(matches!(
            Outcome::decode(&extra),
            Err(WireError::Malformed { .. })
        ));
        assert_eq!(
            Outcome::decode(&[0xa1, 0x01, 0x09]),
            Err(WireError::Value {
                field: "enrolment code"
            })
        );
        let mut long = request();
        long.ek = vec![0; MESSAGE_BYTES_MAX];
        assert!(matches!(
            Request::decode(&long.encode()),
            Err(WireError::Oversized { .. })
        ));
    }

    #[test]
    fn every_field_has_a_bound() {
        let longest = vec![0; TPM_STRUCTURE_BYTES_MAX];
        let full = Request {
            ek_certificates: vec![vec![0; 3_000]; CERTIFICATES_MAX],
            ek: longest.clone(),
            ak: longest.clone(),
            identity: longest.clone(),
            channel: longest.clone(),
            ..request()
        };
        assert_eq!(Request::decode(&full.encode()), Ok(full.clone()));
        let changes: [fn(&mut Request); 6] = [
            |request| request.ek_certificates.push(Vec::new()),
            |request| request.ek_certificates = vec![vec![0; CERTIFICATE_BYTES_MAX + 1]],
            |request| request.ek.push(0),
            |request| request.ak.push(0),
            |request| request.identity.push(0),
            |request| request.channel.push(0),
        ];
        for change in changes {
            let mut request = full.clone();
            change(&mut request);
            let refused = Request::decode(&request.encode());
            assert!(matches!(refused, Err(WireError::Value { .. })));
        }
        let structure = WireError::Value {
            field: "TPM structure",
        };
        let challenge = Challenge {
            credential: longest.clone(),
            secret: longest.clone(),
            ..challenge()
        };
        assert_eq!(
            Challenge::decode(&challenge.encode()),
            Ok(challenge.clone())
        );
        for change in [
            |challenge: &mut Challenge| challenge.credential.push(0),
            |challenge: &mut Challenge| challenge.secret.push(0),
        ] {
            let mut challenge = challenge.clone();
            change(&mut challenge);
            let refused = Challenge::decode(&challenge.encode());
            assert_eq!(refused, Err(structure));
        }
        let evidence = Evidence {
            activated: [0; 32],
            identity: (longest.clone(), longest.clone()),
            channel: (longest.clone(), longest),
            possession: [0; 64],
        };
        assert_eq!(Evidence::decode(&evidence.encode()), Ok(evidence.clone()));
        for change in [
            |evidence: &mut Evidence| evidence.identity.0.push(0),
            |evidence: &mut Evidence| evidence.identity.1.push(0),
            |evidence: &mut Evidence| evidence.channel.0.push(0),
            |evidence: &mut Evidence| evidence.channel.1.push(0),
        ] {
            let mut evidence = evidence.clone();
            change(&mut evidence);
            assert_eq!(Evidence::decode(&evidence.encode()), Err(structure));
        }
    }

    fn request() -> Request {
        Request {
            ticket_id: Some([0, 1, 2, 3, 4, 5, 6, 7]),
            proof: Some(PROOF),
            ek_certificates: vec![b"der1".to_vec(), b"der2".to_vec()],
            ek: b"ek".to_vec(),
            ak: b"ak".to_vec(),
            identity: b"identity".to_vec(),
            channel: b"channel".to_vec(),
        }
    }

    fn challenge() -> Challenge {
        Challenge {
            nonce: [0x22; 32],
            credential: b"blob".to_vec(),
            secret: b"seed".to_vec(),
        }
    }

    const H: [u8; 32] = [0x11; 32];
    const PROOF: [u8; 32] = [
        0x80, 0x25, 0x03, 0xcd, 0x9f, 0xca, 0x8f, 0x3a, 0x3f, 0xd3, 0xa5, 0x54, 0xd2, 0x31, 0x0a,
        0x9c, 0x4f, 0xee, 0xa2, 0x3d, 0x17, 0xdd, 0x1e, 0xde, 0x89, 0x67, 0x8a, 0xd2, 0xf4, 0xf9,
        0x19, 0x13,
    ];
    const REQUEST: &str = "a701480001020304050607025820802503cd9fca8f3a3fd3a554d2310a9c4feea23d17dd1ede89678ad2\
        f4f919130382446465723144646572320442656b0542616b06486964656e7469747907476368616e6e65\
        6c";
    const REQUEST_BY_LIST: &str =
        "a701f602f603800442656b0542616b06486964656e7469747907476368616e6e656c";
    const CHALLENGE: &str = "a301582022222222222222222222222222222222222222222222222222222222222222220244626c6f62\
        034473656564";
    const EVIDENCE: &str = "a40158203333333333333333333333333333333333333333333333333333333333333333028242613142\
        733103824261324273320458404444444444444444444444444444444444444444444444444444444444\
        4444444444444444444444444444444444444444444444444444444444444444444444";
    const ACCEPTED: &str = "a301000258205555555555555555555555555555555555555555555555555555555555555555036c6772\
        65656e686f7573652d37";
    const REFUSED: &str = "a201050475454b206973206e6f7420696e20746865206c697374";
}

//! The statement of a service: which keys it uses today, signed by the one key that never changes
//! (protocol.md 1).

use minicbor::Decoder;

use crate::cbor::{self, Malformed};
use crate::cose::{self, Signed};
use crate::keys::{
    Fingerprint, KeyKind, PublicKey, RecordPublicKey, SignatureError, SigningKey as _,
    SoftwareSigningKey,
};

/// A statement whose signature was verified against the service's identity.
///
/// Statements do not expire: gateways have no clock to trust, and outages last. A newer one
/// [`succeeds`](Self::succeeds) the one held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    bytes: Vec<u8>,
    service: PublicKey,
    content: StatementContent,
}

/// What a statement says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatementContent {
    /// Rises with every statement of a service. Never 0, which means "none held".
    pub serial: u64,
    /// One to four Noise static keys.
    pub channel_keys: Vec<PublicKey>,
    /// One to eight record keys; the first is used for new epochs.
    pub record_keys: Vec<RecordPublicKey>,
    /// At most four keys that act for the service at a relay or in commands.
    pub online_keys: Vec<OnlineKey>,
}

/// A key that a service keeps within reach, and what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnlineKey {
    /// An ECDSA P-256 key.
    pub key: PublicKey,
    /// The sum of [`RELAY`](Self::RELAY) and [`COMMAND`](Self::COMMAND); other bits mean nothing
    /// yet.
    pub bits: u64,
}

impl OnlineKey {
    /// Bit 0: may register the service at a relay.
    pub const RELAY: u64 = 1;
    /// Bit 1: may sign commands, where a gateway's configuration lets `service` do so.
    pub const COMMAND: u64 = 2;
}

impl Statement {
    /// Makes and signs a statement.
    ///
    /// # Errors
    ///
    /// [`StatementError::Malformed`] if there are too few or too many keys, or the serial is 0.
    pub fn issue(
        content: StatementContent,
        identity: &SoftwareSigningKey,
    ) -> Result<Self, StatementError> {
        content.check()?;
        let service = identity.public();
        let payload = content.encode(&service);
        let signature = identity.sign_now(&cose::to_be_signed(&payload, AAD));
        Ok(Self {
            bytes: cose::assemble(&payload, &signature),
            service,
            content,
        })
    }

    /// Which service a statement says it is of. Nothing is verified: it is for whoever knows no pin,
    /// like a relay, to verify the statement against itself.
    ///
    /// # Errors
    ///
    /// [`StatementError::Malformed`].
    pub fn service_of(bytes: &[u8]) -> Result<Fingerprint, StatementError> {
        let signed = Signed::decode(bytes)?;
        let (service, _) = StatementContent::decode(signed.payload)?;
        Ok(Fingerprint::of(
            KeyKind::ServiceIdentity,
            service.as_bytes(),
        ))
    }

    /// Takes a statement as it came from outside.
    ///
    /// # Errors
    ///
    /// [`StatementError::Malformed`]; [`StatementError::OtherService`] if it was made by another
    /// identity than `pin` names; [`StatementError::Signature`].
    pub fn verify(bytes: &[u8], pin: &Fingerprint) -> Result<Self, StatementError> {
        let signed = Signed::decode(bytes)?;
        let (service, content) = StatementContent::decode(signed.payload)?;
        if Fingerprint::of(KeyKind::ServiceIdentity, service.as_bytes()) != *pin {
            return Err(StatementError::OtherService);
        }
        signed.verify(AAD, &service)?;
        Ok(Self {
            bytes: bytes.to_vec(),
            service,
            content,
        })
    }

    /// Compares this statement with the one `held`; `Ok(true)` if it is new and must be kept,
    /// `Ok(false)` if it is the one held.
    ///
    /// # Errors
    ///
    /// [`StatementError::OtherService`], [`StatementError::Older`], or
    /// [`StatementError::SameSerial`]: keep the one held and end the session.
    pub fn succeeds(&self, held: Option<&Self>) -> Result<bool, StatementError> {
        let Some(held) = held else {
            return Ok(true);
        };
        if self.service != held.service {
            return Err(StatementError::OtherService);
        }
        if self.serial() < held.serial() {
            return Err(StatementError::Older {
                serial: self.serial(),
                held: held.serial(),
            });
        }
        if self.serial() == held.serial() && self.bytes != held.bytes {
            return Err(StatementError::SameSerial {
                serial: self.serial(),
            });
        }
        Ok(held.serial() < self.serial())
    }

    /// The identity that signed.
    #[must_use]
    pub fn service(&self) -> PublicKey {
        self.service
    }

    /// The name of that identity: what gateways pin.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(KeyKind::ServiceIdentity, self.service.as_bytes())
    }

    /// Rises with every statement of a service, from 1.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.content.serial
    }

    /// The Noise static keys of the service, at least one.
    #[must_use]
    pub fn channel_keys(&self) -> &[PublicKey] {
        &self.content.channel_keys
    }

    /// The record keys, at least one; the first is used for new epochs.
    #[must_use]
    pub fn record_keys(&self) -> &[RecordPublicKey] {
        &self.content.record_keys
    }

    /// The keys that act for the service.
    #[must_use]
    pub fn online_keys(&self) -> &[OnlineKey] {
        &self.content.online_keys
    }

    /// The statement as it is kept and sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl StatementContent {
    fn check(&self) -> Result<(), Malformed> {
        let within = |(min, max): (usize, usize), keys: usize| (min..=max).contains(&keys);
        cbor::demand(
            self.serial != 0
                && within(CHANNEL_KEYS, self.channel_keys.len())
                && within(RECORD_KEYS, self.record_keys.len())
                && within(ONLINE_KEYS, self.online_keys.len()),
        )
    }

    fn encode(&self, service: &PublicKey) -> Vec<u8> {
        cbor::encode(|e| {
            e.map(5)?.u8(1)?.bytes(service.as_bytes())?;
            e.u8(2)?.u64(self.serial)?;
            e.u8(3)?.array(count(&self.channel_keys))?;
            for key in &self.channel_keys {
                e.bytes(key.as_bytes())?;
            }
            e.u8(4)?.array(count(&self.record_keys))?;
            for key in &self.record_keys {
                e.bytes(&key.to_bytes())?;
            }
            e.u8(5)?.array(count(&self.online_keys))?;
            for online in &self.online_keys {
                e.array(2)?.bytes(online.key.as_bytes())?.u64(online.bits)?;
            }
            Ok(())
        })
    }

    fn decode(payload: &[u8]) -> Result<(PublicKey, Self), Malformed> {
        let mut decoder = Decoder::new(payload);
        let d = &mut decoder;
        cbor::map(d, 5)?;
        cbor::key(d, 1)?;
        let service = public_key(d)?;
        cbor::key(d, 2)?;
        let serial = d.u64()?;
        cbor::key(d, 3)?;
        let channel_keys = cbor::list(d, CHANNEL_KEYS, public_key)?;
        cbor::key(d, 4)?;
        let record_keys = cbor::list(d, RECORD_KEYS, |d| {
            RecordPublicKey::from_bytes(d.bytes()?).map_err(|_| Malformed)
        })?;
        cbor::key(d, 5)?;
        let online_keys = cbor::list(d, ONLINE_KEYS, |d| {
            cbor::array(d, 2)?;
            Ok(OnlineKey {
                key: public_key(d)?,
                bits: d.u64()?,
            })
        })?;
        let content = Self {
            serial,
            channel_keys,
            record_keys,
            online_keys,
        };
        content.check()?;
        cbor::check(payload, &content.encode(&service))?;
        Ok((service, content))
    }
}

fn public_key(decoder: &mut Decoder<'_>) -> Result<PublicKey, Malformed> {
    PublicKey::parse(decoder.bytes()?).map_err(|_| Malformed)
}

/// How many keys, for the head of an array; `check` keeps it below nine.
fn count<T>(keys: &[T]) -> u64 {
    u64::try_from(keys.len()).unwrap_or(u64::MAX)
}

/// Why a statement is refused. In each case the one held stays in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatementError {
    /// Not a statement of this version in deterministic CBOR.
    #[error("statement is malformed")]
    Malformed,

    /// Made by another identity than the pinned one.
    #[error("statement is of another service")]
    OtherService,

    /// The identity did not sign this.
    #[error("statement is not signed by its service")]
    Signature(#[from] SignatureError),

    /// Older than the one held: somebody plays back what the service has withdrawn.
    #[error("statement {serial} is older than statement {held}, which is held")]
    Older {
        /// Serial of the refused statement.
        serial: u64,
        /// Serial of the statement held.
        held: u64,
    },

    /// Two statements under one serial: the service's identity key is used in two places.
    #[error("another statement with serial {serial} is held")]
    SameSerial {
        /// The serial of both.
        serial: u64,
    },
}

impl From<Malformed> for StatementError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// How many channel keys, from and to: today's, its successor, and as many again for a second site.
const CHANNEL_KEYS: (usize, usize) = (1, 4);

/// How many record keys, from and to: two years of a change each 90 days.
const RECORD_KEYS: (usize, usize) = (1, 8);

/// How many online keys, from and to.
const ONLINE_KEYS: (usize, usize) = (0, 4);

const AAD: &[u8] = b"gatewayd/1 statement";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyFormatError;
    use crate::fixture::vector;

    #[test]
    fn a_foreign_statement_is_verified() {
        let identity = identity();
        let statement = Statement::verify(&vector("statement"), &pin()).unwrap();

        assert_eq!(statement.service(), identity.public());
        assert_eq!(statement.fingerprint(), pin());
        assert_eq!(statement.serial(), 7);
        assert_eq!(statement.channel_keys(), content(7).channel_keys);
        assert_eq!(
            statement.record_keys()[0].to_bytes(),
            vector("xwing_public")
        );
        assert_eq!(statement.record_keys().len(), 2);
        assert_eq!(statement.online_keys(), content(7).online_keys);
        assert_eq!(statement.bytes(), vector("statement"));
    }

    #[test]
    fn our_statement_is_byte_for_byte_the_foreign_one() {
        let statement = Statement::issue(content(7), &identity()).unwrap();
        assert_eq!(statement.bytes(), vector("statement"));
        assert_eq!(Statement::verify(statement.bytes(), &pin()), Ok(statement));
    }

    #[test]
    fn each_flipped_byte_is_refused() {
        let bytes = vector("statement");
        for i in 0..bytes.len() {
            let mut other = bytes.clone();
            other[i] ^= 1 << (i % 8);
            assert!(Statement::verify(&other, &pin()).is_err(), "byte {i}");
        }
        for length in 0..bytes.len() {
            assert!(Statement::verify(&bytes[..length], &pin()).is_err());
        }
        let longer = [&*bytes, &[0]].concat();
        assert_eq!(
            Statement::verify(&longer, &pin()),
            Err(StatementError::Malformed)
        );
    }

    #[test]
    fn a_statement_of_another_identity_is_refused() {
        let other = SoftwareSigningKey::from_bytes(&vector("identity_scalar")).unwrap();
        let statement = Statement::issue(content(8), &other).unwrap();
        assert_eq!(
            Statement::verify(statement.bytes(), &pin()),
            Err(StatementError::OtherService)
        );

        // The pinned identity named inside, the signature by somebody else.
        let payload = content(8).encode(&identity().public());
        let signature = other.sign_now(&cose::to_be_signed(&payload, AAD));
        assert_eq!(
            Statement::verify(&cose::assemble(&payload, &signature), &pin()),
            Err(StatementError::Signature(SignatureError::Wrong))
        );
    }

    #[test]
    fn a_pin_of_another_kind_is_refused() {
        let pin = Fingerprint::new(KeyKind::Online, *pin().bytes());
        assert_eq!(
            Statement::verify(&vector("statement"), &pin),
            Err(StatementError::OtherService)
        );
    }

    #[test]
    fn a_signature_for_another_purpose_is_refused() {
        let payload = content(7).encode(&identity().public());
        let signature = identity().sign_now(&cose::to_be_signed(&payload, b"gatewayd/1 command"));
        assert_eq!(
            Statement::verify(&cose::assemble(&payload, &signature), &pin()),
            Err(StatementError::Signature(SignatureError::Wrong))
        );
    }

    #[test]
    fn serials_only_rise() {
        let issue = |content| Statement::issue(content, &identity()).unwrap();
        let held = issue(content(7));

        assert_eq!(held.succeeds(None), Ok(true));
        assert_eq!(issue(content(8)).succeeds(Some(&held)), Ok(true));
        assert_eq!(held.clone().succeeds(Some(&held)), Ok(false));
        assert_eq!(
            issue(content(6)).succeeds(Some(&held)),
            Err(StatementError::Older { serial: 6, held: 7 })
        );

        let mut other = content(7);
        other.online_keys.clear();
        assert_eq!(
            issue(other).succeeds(Some(&held)),
            Err(StatementError::SameSerial { serial: 7 })
        );

        let stranger = SoftwareSigningKey::from_bytes(&vector("identity_scalar")).unwrap();
        let foreign = Statement::issue(content(8), &stranger).unwrap();
        assert_eq!(
            foreign.succeeds(Some(&held)),
            Err(StatementError::OtherService)
        );
    }

    #[test]
    fn a_statement_has_one_to_four_channel_keys_and_so_on() {
        let largest = || StatementContent {
            serial: u64::MAX,
            channel_keys: vec![content(7).channel_keys[0]; 4],
            record_keys: vec![content(7).record_keys[0].clone(); 8],
            online_keys: vec![
                OnlineKey {
                    bits: u64::MAX,
                    ..content(7).online_keys[0]
                };
                4
            ],
        };
        let statement = Statement::issue(largest(), &identity()).unwrap();
        assert_eq!(Statement::verify(statement.bytes(), &pin()), Ok(statement));

        let edits: [fn(&mut StatementContent); 6] = [
            |content| content.serial = 0,
            |content| content.channel_keys.clear(),
            |content| content.channel_keys.push(content.channel_keys[0]),
            |content| content.record_keys.clear(),
            |content| content.record_keys.push(content.record_keys[0].clone()),
            |content| content.online_keys.push(content.online_keys[0]),
        ];
        for edit in edits {
            let mut content = largest();
            edit(&mut content);
            assert_eq!(
                Statement::issue(content.clone(), &identity()),
                Err(StatementError::Malformed)
            );
            let payload = content.encode(&identity().public());
            let signature = identity().sign_now(&cose::to_be_signed(&payload, AAD));
            assert_eq!(
                Statement::verify(&cose::assemble(&payload, &signature), &pin()),
                Err(StatementError::Malformed)
            );
        }
    }

    /// Signed by the pinned identity, so only the encoding is at fault.
    #[test]
    fn another_encoding_of_the_same_content_is_refused() {
        let payload = content(7).encode(&identity().public());
        let serial = 69..71;
        assert_eq!(payload[serial.clone()], [2, 7]);
        let replaced = |range: std::ops::Range<usize>, by: &[u8]| {
            [&payload[..range.start], by, &payload[range.end..]].concat()
        };
        for (other, why) in [
            (replaced(serial.clone(), &[2, 0x18, 7]), "long integer"),
            (replaced(serial.clone(), &[0x18, 2, 7]), "long key"),
            (replaced(serial.clone(), &[1, 7]), "doubled key"),
            (replaced(0..1, &[0xA4]), "too few entries"),
            (replaced(0..1, &[0xBF]), "map of unknown length"),
            (
                replaced(0..1, &[0xA6])
                    .into_iter()
                    .chain([6, 0])
                    .collect::<Vec<u8>>(),
                "unknown key",
            ),
            ([&*payload, &[0]].concat(), "trailing byte"),
        ] {
            let signature = identity().sign_now(&cose::to_be_signed(&other, AAD));
            assert_eq!(
                Statement::verify(&cose::assemble(&other, &signature), &pin()),
                Err(StatementError::Malformed),
                "{why}"
            );
        }
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        let mut payload = content(7).encode(&identity().public());
        let key = vector("channel_public");
        let at = payload
            .windows(65)
            .position(|window| window == key)
            .unwrap();
        payload[at + 64] ^= 1;
        assert_eq!(
            PublicKey::parse(&payload[at..at + 65]),
            Err(KeyFormatError::Point)
        );
        let signature = identity().sign_now(&cose::to_be_signed(&payload, AAD));
        assert_eq!(
            Statement::verify(&cose::assemble(&payload, &signature), &pin()),
            Err(StatementError::Malformed)
        );
    }

    fn identity() -> SoftwareSigningKey {
        SoftwareSigningKey::from_bytes(&vector("service_scalar")).unwrap()
    }

    fn pin() -> Fingerprint {
        Fingerprint::of(KeyKind::ServiceIdentity, &vector("service_public"))
    }

    fn content(serial: u64) -> StatementContent {
        let key = |name| PublicKey::parse(&vector(name)).unwrap();
        let record_key = |name| RecordPublicKey::from_bytes(&vector(name)).unwrap();
        StatementContent {
            serial,
            channel_keys: vec![key("channel_public")],
            record_keys: vec![
                record_key("xwing_public"),
                record_key("xwing_second_public"),
            ],
            online_keys: vec![OnlineKey {
                key: key("online_public"),
                bits: OnlineKey::RELAY | OnlineKey::COMMAND,
            }],
        }
    }
}

//! The same operations as single TPM commands with an empty password, which the bus is told.

use std::str::FromStr as _;

use tss_esapi::Context;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::{KeyHandle, ObjectHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Data, Digest, EccPoint, EccScheme, HashScheme, HashcheckTicket, KeyDerivationFunctionScheme,
    KeyedHashScheme, PcrSelectionList, PcrSlot, Private, Public, PublicBuilder,
    PublicEccParameters, PublicKeyedHashParameters, SensitiveData, SignatureScheme,
    SymmetricDefinitionObject,
};
use tss_esapi::tcti_ldr::{NetworkTPMConfig, TctiNameConf};
use tss_esapi::tss2_esys::{TPM2B_DIGEST, TPMT_TK_HASHCHECK};

use crate::Operation;

/// Objects under the storage root key, and those of them that are loaded.
pub(crate) struct Bare {
    context: Context,
    parent: KeyHandle,
    channel: (Private, Public),
    identity: (Private, Public),
    attestation: (Private, Public),
    sealed: (Private, Public),
    loaded: Vec<KeyHandle>,
    peer: EccPoint,
}

impl Bare {
    /// Makes its objects in a TPM where `hsm` has made the storage root key.
    pub(crate) fn open(port: u16) -> Self {
        let address = NetworkTPMConfig::from_str(&format!("host=127.0.0.1,port={port}"));
        let mut context = Context::new(TctiNameConf::Swtpm(address.unwrap())).unwrap();
        let handle = PersistentTpmHandle::new(0x8100_0001).unwrap();
        let parent = context.tr_from_tpm_public(TpmHandle::Persistent(handle));
        let parent = KeyHandle::from(parent.unwrap());
        context.set_sessions((Some(AuthSession::Password), None, None));
        let mut make = |public, secret| {
            let made = context.create(parent, public, None, secret, None, None);
            made.map(|made| (made.out_private, made.out_public))
                .unwrap()
        };
        let secret = SensitiveData::try_from(vec![1; 32]).unwrap();
        let channel = make(key(false, false), None);
        let Public::Ecc { unique: peer, .. } = channel.1.clone() else {
            panic!("not an elliptic key");
        };
        Self {
            channel,
            identity: make(key(true, false), None),
            attestation: make(key(true, true), None),
            sealed: make(data(), Some(secret)),
            context,
            parent,
            loaded: Vec::new(),
            peer,
        }
    }

    /// Loads what the operation uses.
    pub(crate) fn load(&mut self, operation: Operation) {
        let objects = match operation {
            Operation::Agree => vec![&self.channel],
            Operation::Sign => vec![&self.identity],
            Operation::InTurn => vec![&self.identity, &self.channel],
            Operation::Quote => vec![&self.attestation],
            Operation::Unseal => vec![&self.sealed],
        };
        for (private, public) in objects {
            let loaded = self
                .context
                .load(self.parent, private.clone(), public.clone());
            self.loaded.push(loaded.unwrap());
        }
    }

    /// Flushes it.
    pub(crate) fn flush(&mut self) {
        for handle in self.loaded.drain(..) {
            self.context
                .execute_without_session(|context| context.flush_context(handle.into()))
                .unwrap();
        }
    }

    pub(crate) fn call(&mut self, operation: Operation) {
        let (first, last) = (self.loaded[0], self.loaded[self.loaded.len() - 1]);
        match operation {
            Operation::Agree => self.agree(first),
            Operation::Sign => self.sign(first),
            Operation::InTurn => {
                self.sign(first);
                self.agree(last);
            }
            Operation::Quote => {
                let pcrs = PcrSelectionList::builder()
                    .with_selection(HashingAlgorithm::Sha256, &[PcrSlot::Slot0, PcrSlot::Slot7])
                    .build();
                let nonce = Data::try_from(vec![4; 32]).unwrap();
                let quoted = self
                    .context
                    .quote(first, nonce, SignatureScheme::Null, pcrs.unwrap());
                quoted.unwrap();
            }
            Operation::Unseal => drop(self.context.unseal(ObjectHandle::from(first)).unwrap()),
        }
    }

    fn agree(&mut self, key: KeyHandle) {
        self.context.ecdh_z_gen(key, self.peer.clone()).unwrap();
    }

    fn sign(&mut self, key: KeyHandle) {
        let digest = Digest::try_from(vec![3; 32]).unwrap();
        let ticket = HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
            tag: TPM2_ST_HASHCHECK,
            hierarchy: TPM2_RH_NULL,
            digest: TPM2B_DIGEST::default(),
        });
        let signed = self
            .context
            .sign(key, digest, SignatureScheme::Null, ticket.unwrap());
        signed.unwrap();
    }
}

/// A P-256 key that signs or agrees.
fn key(signs: bool, restricted: bool) -> Public {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_sign_encrypt(signs)
        .with_decrypt(!signs)
        .with_restricted(restricted);
    let scheme = if signs {
        EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256))
    } else {
        EccScheme::Null
    };
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes.build().unwrap())
        .with_ecc_parameters(PublicEccParameters::new(
            SymmetricDefinitionObject::Null,
            scheme,
            EccCurve::NistP256,
            KeyDerivationFunctionScheme::Null,
        ))
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
        .unwrap()
}

/// Data that an empty password opens.
fn data() -> Public {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_user_with_auth(true)
        .with_no_da(true);
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes.build().unwrap())
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::default())
        .build()
        .unwrap()
}

//! Sessions: how a command is authorized, authenticated and encrypted, and for how long.

use tss_esapi::Context;
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{KeyHandle, ObjectHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::SymmetricDefinition;

use crate::connection::Connection;
use crate::error::HsmError;
use crate::response::{During, Operation};

impl Connection {
    /// Runs one command in the burst's session: authorized, authenticated and encrypted.
    pub(crate) fn in_session<T>(
        &mut self,
        operation: Operation,
        command: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, HsmError> {
        let session = self.session()?;
        self.context()?
            .execute_with_session(Some(session), command)
            .during(operation)
    }

    /// Runs one command that authorizes two keys: the first in the burst's session, as above, the
    /// second in a session of its own.
    pub(crate) fn in_session_and<T>(
        &mut self,
        operation: Operation,
        second: AuthSession,
        command: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, HsmError> {
        let first = self.session()?;
        self.context()?
            .execute_with_sessions((Some(first), Some(second), None), command)
            .during(operation)
    }

    /// The burst's session, started by the first who asks. It encrypts the first parameter of each
    /// command and answer.
    fn session(&mut self) -> Result<AuthSession, HsmError> {
        if let Some(session) = self.session {
            return Ok(session);
        }
        let session = self.salted(SessionType::Hmac, HashingAlgorithm::Sha256)?;
        let (attributes, mask) = SessionAttributesBuilder::new()
            .with_decrypt(true)
            .with_encrypt(true)
            .build();
        self.context()?
            .tr_sess_set_attributes(session, attributes, mask)
            .during(Operation::Session)?;
        self.session = Some(session);
        Ok(session)
    }

    /// Starts a session salted to the storage root key; the caller ends it.
    pub(crate) fn salted(
        &mut self,
        kind: SessionType,
        hash: HashingAlgorithm,
    ) -> Result<AuthSession, HsmError> {
        let parent = self.parent()?;
        self.salted_to(parent, kind, hash)
    }

    /// Starts a session whose key only this process and the holder of `salt_key` can know.
    pub(crate) fn salted_to(
        &mut self,
        salt_key: KeyHandle,
        kind: SessionType,
        hash: HashingAlgorithm,
    ) -> Result<AuthSession, HsmError> {
        let session = self
            .context()?
            .start_auth_session(
                Some(salt_key),
                None,
                None,
                kind,
                SymmetricDefinition::AES_128_CFB,
                hash,
            )
            .during(Operation::Session)?
            .ok_or(HsmError::Tampered)?;
        let (attributes, mask) = SessionAttributesBuilder::new()
            .with_continue_session(true)
            .build();
        self.context()?
            .tr_sess_set_attributes(session, attributes, mask)
            .during(Operation::Session)?;
        Ok(session)
    }

    pub(crate) fn end(&mut self, session: AuthSession) -> Result<(), HsmError> {
        self.flush(SessionHandle::from(session))
    }

    pub(crate) fn flush(&mut self, handle: impl Into<ObjectHandle>) -> Result<(), HsmError> {
        self.context()?
            .flush_context(handle.into())
            .during(Operation::Session)
    }

    /// Ends the burst: no session and no key stays in the TPM while nobody works.
    pub(crate) fn rest(&mut self) -> Result<(), HsmError> {
        if let Some((_, handle)) = self.loaded.take() {
            self.flush(handle)?;
        }
        if let Some(session) = self.session.take() {
            self.end(session)?;
        }
        Ok(())
    }

    /// Runs a command that needs no authorization and carries nothing that matters.
    pub(crate) fn in_the_open<T>(
        &mut self,
        operation: Operation,
        command: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, HsmError> {
        self.context()?
            .execute_without_session(command)
            .during(operation)
    }

    /// Runs a command that needs an authorization and carries nothing that matters, where there is
    /// no key yet to salt a session to. The empty password is no secret.
    pub(crate) fn with_empty_password<T>(
        &mut self,
        operation: Operation,
        command: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, HsmError> {
        self.context()?
            .execute_with_session(Some(AuthSession::Password), command)
            .during(operation)
    }
}

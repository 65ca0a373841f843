//! Commands that the library has no function for, spoken with the TPM directly.
//!
//! tss-esapi 7.7 cannot send `TPM2_PolicyNV`, so a policy that ends with a counter could not be
//! met. This is the one conversation that needs it, opening a sealed secret, from its policy session
//! to the end; everything else goes through the library. The two never talk at the same time.
//!
//! Layouts: *TPM 2.0 Library Specification*, Part 3; sessions: Part 1, 17 and 19.

mod command;
mod session;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpStream;

use wire::tpm::{CounterLimit, PcrSelection, PolicyAuthority, UNSIGNED_LE};
use zeroize::Zeroizing;

use crate::config::Tpm;
use crate::error::HsmError;
use crate::owner::Office;
use crate::response::{Operation, of_number};
use command::{Answer, Command};
pub(crate) use session::PolicySession;

/// A connection of our own.
pub(crate) struct Direct {
    stream: Box<dyn ReadWrite + Send>,
    /// The right to use it.
    office: Office,
}

trait ReadWrite: Read + Write {}
impl ReadWrite for File {}
impl ReadWrite for TcpStream {}

/// Proof by the TPM that it has verified a signature: `TPMT_TK_VERIFIED`.
pub(crate) struct Ticket(Vec<u8>);

impl Direct {
    /// Opens the TPM. It must have been started up, and nobody else may talk with it now, unless a
    /// resource manager stands between.
    pub(crate) fn open(tpm: &Tpm, office: Office) -> Result<Self, HsmError> {
        let stream: io::Result<Box<dyn ReadWrite + Send>> = match tpm {
            Tpm::Device(path) => OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .map(|file| Box::new(file) as _),
            Tpm::Swtpm { host, port } => TcpStream::connect((host.as_str(), *port))
                .and_then(|stream| stream.set_nodelay(true).map(|()| Box::new(stream) as _)),
        };
        let stream = stream.map_err(|_| HsmError::Transport)?;
        Ok(Self { stream, office })
    }

    /// Public area of the key at a handle, as the answer says it.
    pub(crate) fn read_public(&mut self, handle: u32) -> Result<Vec<u8>, HsmError> {
        let answer = self.run(
            &Command::new(CC_READ_PUBLIC).handle(handle),
            Operation::Parent,
        )?;
        let mut content = answer.content();
        content.sized().map(<[u8]>::to_vec)
    }

    /// Loads a key that only verifies; returns its handle.
    pub(crate) fn load_external(&mut self, public: &[u8]) -> Result<u32, HsmError> {
        let command = Command::new(CC_LOAD_EXTERNAL)
            .sized(&[])
            .sized(public)
            .word(RH_OWNER);
        self.run(&command, Operation::Unseal)?.content().word()
    }

    /// Has the TPM verify an ECDSA signature (SHA-256, P-256).
    pub(crate) fn verify(
        &mut self,
        key: u32,
        digest: &[u8; 32],
        signature: &[u8; 64],
    ) -> Result<Ticket, HsmError> {
        let (r, s) = signature.split_at(32);
        let command = Command::new(CC_VERIFY_SIGNATURE)
            .handle(key)
            .sized(digest)
            .short(ALG_ECDSA)
            .short(ALG_SHA256)
            .sized(r)
            .sized(s);
        let answer = self.run(&command, Operation::Unseal)?;
        Ok(Ticket(answer.content().rest().to_vec()))
    }

    /// Loads an object under a parent that has an empty password; returns its handle. What the
    /// answer says of the object is not believed: its Name goes into every authorization.
    pub(crate) fn load(
        &mut self,
        parent: u32,
        private: &[u8],
        public: &[u8],
    ) -> Result<u32, HsmError> {
        let command = Command::new(CC_LOAD)
            .handle(parent)
            .empty_password()
            .sized(private)
            .sized(public);
        self.run(&command, Operation::Load)?.handle()
    }

    /// Demands of the session that the PCRs are as they are now.
    pub(crate) fn policy_pcr(
        &mut self,
        session: &PolicySession,
        pcrs: PcrSelection,
    ) -> Result<(), HsmError> {
        let command = Command::new(CC_POLICY_PCR)
            .handle(session.handle())
            .sized(&[])
            .bytes(&pcrs.to_bytes());
        self.run(&command, Operation::Unseal).map(drop)
    }

    /// Name of an NV index, as the answer says it; `None` if there is no such index.
    pub(crate) fn index_name(&mut self, index: u32) -> Result<Option<Vec<u8>>, HsmError> {
        let answer = self.ask(&Command::new(CC_NV_READ_PUBLIC).handle(index))?;
        match answer.code() {
            0 => {
                let mut content = answer.content();
                content.sized()?;
                content.sized().map(|name| Some(name.to_vec()))
            }
            RC_NO_SUCH_HANDLE => Ok(None),
            code => Err(of_number(Operation::Unseal, code)),
        }
    }

    /// Demands of the session that a counter is at most at its limit.
    ///
    /// # Errors
    ///
    /// [`HsmError::Refused`] with `TPM_RC_POLICY` if it is not.
    pub(crate) fn policy_counter(
        &mut self,
        session: &PolicySession,
        limit: CounterLimit,
    ) -> Result<(), HsmError> {
        let command = Command::new(CC_POLICY_NV)
            .handle(limit.index())
            .handle(limit.index())
            .handle(session.handle())
            .empty_password()
            .sized(&limit.value_max.to_be_bytes())
            .short(0)
            .short(UNSIGNED_LE);
        self.run(&command, Operation::Unseal).map(drop)
    }

    /// What the session's policy is by now.
    pub(crate) fn policy_digest(&mut self, session: &PolicySession) -> Result<[u8; 32], HsmError> {
        let command = Command::new(CC_POLICY_GET_DIGEST).handle(session.handle());
        let answer = self.run(&command, Operation::Unseal)?;
        let mut content = answer.content();
        content.sized()?.try_into().map_err(|_| HsmError::Tampered)
    }

    /// Puts the authority's policy in the place of the one that it has signed.
    pub(crate) fn policy_authorize(
        &mut self,
        session: &PolicySession,
        approved: &[u8; 32],
        authority: &PolicyAuthority,
        ticket: &Ticket,
    ) -> Result<(), HsmError> {
        let command = Command::new(CC_POLICY_AUTHORIZE)
            .handle(session.handle())
            .sized(approved)
            .sized(authority.reference())
            .sized(&authority.key_name())
            .bytes(&ticket.0);
        self.run(&command, Operation::Unseal).map(drop)
    }

    /// Forgets all that was demanded of the session.
    pub(crate) fn policy_restart(&mut self, session: &PolicySession) -> Result<(), HsmError> {
        let command = Command::new(CC_POLICY_RESTART).handle(session.handle());
        self.run(&command, Operation::Unseal).map(drop)
    }

    /// Opens a sealed object of this Name, encrypted on its way by the session.
    pub(crate) fn unseal(
        &mut self,
        session: &mut PolicySession,
        object: u32,
        name: &[u8; 34],
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        let command = session.authorize(Command::new(CC_UNSEAL).handle(object), name)?;
        let answer = self.run(&command, Operation::Unseal)?;
        session.open(CC_UNSEAL, &answer)
    }

    /// Puts a key, object or session away.
    pub(crate) fn flush(&mut self, handle: u32) -> Result<(), HsmError> {
        let command = Command::new(CC_FLUSH_CONTEXT).word(handle);
        self.run(&command, Operation::Session).map(drop)
    }

    fn run(&mut self, command: &Command, operation: Operation) -> Result<Answer, HsmError> {
        let answer = self.ask(command)?;
        match answer.code() {
            0 => Ok(answer),
            code => Err(of_number(operation, code)),
        }
    }

    fn ask(&mut self, command: &Command) -> Result<Answer, HsmError> {
        if self.office.is_left() {
            return Err(HsmError::Busy);
        }
        let answer = self.exchange(&command.to_bytes()).map_err(|error| {
            if error.kind() == io::ErrorKind::InvalidData {
                HsmError::Tampered
            } else {
                HsmError::Transport
            }
        })?;
        Answer::parse(answer)
    }

    /// Sends one command and reads one answer; it ends the thread's wait when the TPM does.
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.stream.write_all(command)?;
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        let mut read = 0;
        loop {
            // A device gives a whole answer at once, and none of it to whoever asks for less.
            let free = answer.get_mut(read..).unwrap_or_default();
            match self.stream.read(free)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => read += more,
            }
            let so_far = answer.get(..read).unwrap_or_default();
            match command::announced(so_far) {
                Some(whole) if ANSWER_BYTES_MAX < whole => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                Some(whole) if whole <= read => {
                    answer.truncate(read);
                    return Ok(answer);
                }
                Some(_) | None => {}
            }
        }
    }
}

// `TPM_CC` (Part 2, 6.5.2).
const CC_POLICY_NV: u32 = 0x149;
const CC_LOAD: u32 = 0x157;
const CC_UNSEAL: u32 = 0x15E;
const CC_FLUSH_CONTEXT: u32 = 0x165;
const CC_LOAD_EXTERNAL: u32 = 0x167;
const CC_NV_READ_PUBLIC: u32 = 0x169;
const CC_POLICY_AUTHORIZE: u32 = 0x16A;
const CC_READ_PUBLIC: u32 = 0x173;
const CC_VERIFY_SIGNATURE: u32 = 0x177;
const CC_POLICY_PCR: u32 = 0x17F;
const CC_POLICY_RESTART: u32 = 0x180;
const CC_POLICY_GET_DIGEST: u32 = 0x189;

/// `TPM_RC_HANDLE` about the first handle (Part 2, 6.6.3).
const RC_NO_SUCH_HANDLE: u32 = 0x18B;

// `TPM_ALG_ID` (Part 2, 6.3).
const ALG_SHA256: u16 = 0x000B;
const ALG_ECDSA: u16 = 0x0018;

/// `TPM_RH_OWNER`: a verified signature is worth a ticket under a hierarchy only.
const RH_OWNER: u32 = 0x4000_0001;

/// As in the kernel's driver and in swtpm.
const ANSWER_BYTES_MAX: usize = 4096;

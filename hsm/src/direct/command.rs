//! Commands and answers as bytes (*TPM 2.0 Library Specification*, Part 1, 18).

use crate::error::HsmError;

/// A command: handles, perhaps an authorization, parameters.
pub(super) struct Command {
    code: u32,
    handles: Vec<u8>,
    authorization: Vec<u8>,
    parameters: Vec<u8>,
}

impl Command {
    pub(super) fn new(code: u32) -> Self {
        Self {
            code,
            handles: Vec::new(),
            authorization: Vec::new(),
            parameters: Vec::new(),
        }
    }

    pub(super) fn code(&self) -> u32 {
        self.code
    }

    pub(super) fn parameters(&self) -> &[u8] {
        &self.parameters
    }

    pub(super) fn handle(mut self, handle: u32) -> Self {
        self.handles.extend(handle.to_be_bytes());
        self
    }

    /// Authorizes with an empty password, which is no secret.
    pub(super) fn empty_password(self) -> Self {
        let password = [&RS_PW.to_be_bytes()[..], &[0, 0, 0, 0, 0]].concat();
        self.authorized(password)
    }

    /// Authorizes with a `TPMS_AUTH_COMMAND`.
    pub(super) fn authorized(mut self, authorization: Vec<u8>) -> Self {
        self.authorization = authorization;
        self
    }

    /// Appends a `TPM2B`.
    pub(super) fn sized(mut self, content: &[u8]) -> Self {
        put_sized(&mut self.parameters, content);
        self
    }

    pub(super) fn short(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn word(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.parameters.extend(bytes);
        self
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut body = self.handles.clone();
        let tag = if self.authorization.is_empty() {
            ST_NO_SESSIONS
        } else {
            body.extend(size32(self.authorization.len()));
            body.extend(&self.authorization);
            ST_SESSIONS
        };
        body.extend(&self.parameters);
        let mut bytes = tag.to_be_bytes().to_vec();
        bytes.extend(size32(HEADER_BYTES + body.len()));
        bytes.extend(self.code.to_be_bytes());
        bytes.extend(body);
        bytes
    }
}

/// An answer whose length is what it says.
pub(super) struct Answer {
    bytes: Vec<u8>,
    code: u32,
    has_session: bool,
}

/// The two parts of an answer to an authorized command that returns no handle.
pub(super) struct Authorized<'a> {
    pub(super) parameters: &'a [u8],
    pub(super) authorization: Cursor<'a>,
}

impl Answer {
    pub(super) fn parse(bytes: Vec<u8>) -> Result<Self, HsmError> {
        let mut head = Cursor(&bytes);
        let (tag, length, code) = (head.short()?, head.word()?, head.word()?);
        if usize::try_from(length) != Ok(bytes.len()) {
            return Err(HsmError::Tampered);
        }
        let has_session = match tag {
            ST_NO_SESSIONS => false,
            ST_SESSIONS => true,
            _ => return Err(HsmError::Tampered),
        };
        Ok(Self {
            bytes,
            code,
            has_session,
        })
    }

    pub(super) fn code(&self) -> u32 {
        self.code
    }

    /// All behind the header.
    pub(super) fn content(&self) -> Cursor<'_> {
        Cursor(self.bytes.get(HEADER_BYTES..).unwrap_or_default())
    }

    /// The handle that the command returned.
    pub(super) fn handle(&self) -> Result<u32, HsmError> {
        self.content().word()
    }

    /// Takes apart the answer to an authorized command that returns no handle.
    pub(super) fn authorized(&self) -> Result<Authorized<'_>, HsmError> {
        if !self.has_session {
            return Err(HsmError::Tampered);
        }
        let mut content = self.content();
        let length = usize::try_from(content.word()?).map_err(|_| HsmError::Tampered)?;
        let parameters = content.take(length)?;
        Ok(Authorized {
            parameters,
            authorization: content,
        })
    }
}

/// What is left to read. An answer that ends too early was altered.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn byte(&mut self) -> Result<u8, HsmError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn short(&mut self) -> Result<u16, HsmError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn word(&mut self) -> Result<u32, HsmError> {
        self.array().map(u32::from_be_bytes)
    }

    /// The content of a `TPM2B`.
    pub(super) fn sized(&mut self) -> Result<&'a [u8], HsmError> {
        let length = usize::from(self.short()?);
        self.take(length)
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], HsmError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(HsmError::Tampered)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HsmError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(HsmError::Tampered)?;
        self.0 = rest;
        Ok(*array)
    }
}

/// The length that the beginning of an answer announces.
pub(super) fn announced(beginning: &[u8]) -> Option<usize> {
    let length = beginning.get(2..)?.first_chunk()?;
    usize::try_from(u32::from_be_bytes(*length)).ok()
}

/// Appends a `TPM2B`. Nothing that goes into one here is longer than a key.
pub(super) fn put_sized(bytes: &mut Vec<u8>, content: &[u8]) {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_be_bytes());
    bytes.extend(content);
}

fn size32(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// Tag, length, code.
const HEADER_BYTES: usize = 10;

// `TPM_ST` (Part 2, 6.9).
const ST_NO_SESSIONS: u16 = 0x8001;
const ST_SESSIONS: u16 = 0x8002;

/// `TPM_RS_PW`.
const RS_PW: u32 = 0x4000_0009;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_the_layout_of_the_specification() {
        let plain = Command::new(0x165).word(0x0300_0001).to_bytes();
        assert_eq!(hex::encode(plain), "80010000000e0000016503000001");
        // As tpm2_nvread of tpm2-tools 5.4 sends it: 8 bytes of index 0x1867767 at 0.
        let authorized = Command::new(0x14E)
            .handle(0x0186_7767)
            .handle(0x0186_7767)
            .empty_password()
            .short(8)
            .short(0);
        assert_eq!(
            hex::encode(authorized.to_bytes()),
            "8002000000230000014e018677670186776700000009400000090000000000 00080000"
                .replace(' ', "")
        );
    }

    #[test]
    fn an_answer_cut_or_of_another_length_or_tag_is_refused() {
        let good = hex::decode("80010000000c000000000005").unwrap();
        assert_eq!(
            Answer::parse(good.clone())
                .unwrap()
                .content()
                .short()
                .unwrap(),
            5
        );
        for length in 0..good.len() {
            assert!(Answer::parse(good[..length].to_vec()).is_err(), "{length}");
        }
        assert!(Answer::parse([&good[..], &[0]].concat()).is_err());
        let mut tag = good;
        tag[1] = 3;
        assert!(Answer::parse(tag).is_err());
    }
}

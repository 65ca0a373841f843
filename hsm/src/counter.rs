//! Monotonic counters in the TPM's non-volatile memory: they never go back, whatever happens to
//! disk, power or software.

use tss_esapi::attributes::NvIndexAttributesBuilder;
use tss_esapi::constants::NvIndexType;
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, ObjectHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::structures::{NvPublic, NvPublicBuilder};

use wire::tpm::{counter_index, counter_name};

use crate::connection::Connection;
use crate::engine::Engine;
use crate::error::HsmError;
use crate::response::{During, Operation};

impl Engine {
    pub(crate) fn counter(&mut self, number: u8) -> Result<u64, HsmError> {
        let keys = self.keys()?;
        self.ready(&keys)?.counter(number)
    }

    /// Adds one. `before` outlives the attempts of one call: it is the value that the first of them
    /// found, so that an increment which took place although its answer was lost is not made again.
    pub(crate) fn increment(
        &mut self,
        number: u8,
        before: &mut Option<u64>,
    ) -> Result<u64, HsmError> {
        let keys = self.keys()?;
        let connection = self.ready(&keys)?;
        let value = connection.counter(number)?;
        let before = *before.get_or_insert(value);
        if before < value {
            return Ok(value);
        }
        if let Err(mut error) = connection.add_one(number) {
            self.abandon_connection();
            // What matters is whether it took place, and only the counter itself can say.
            let value = self.ready(&keys)?.counter(number)?;
            if value <= before {
                return Err(error);
            }
            self.after_failure(&mut error);
            return Ok(value);
        }
        let value = self.ready(&keys)?.counter(number)?;
        if value <= before {
            return Err(HsmError::Tampered);
        }
        Ok(value)
    }
}

impl Connection {
    /// Reads a counter, and makes it first if it is not there.
    fn counter(&mut self, number: u8) -> Result<u64, HsmError> {
        let index = NvIndexTpmHandle::new(counter_index(number)).during(Operation::Counter)?;
        let there = self.handles(index.into(), 1)?;
        if !there.contains(&TpmHandle::NvIndex(index)) {
            let fresh = public(index, false)?;
            let defined = self.in_session(Operation::Define, |context| {
                context.nv_define_space(Provision::Owner, None, fresh)
            })?;
            // Until its first increment a counter has no value (TPM 2.0 Part 3, 31.8).
            return self.with_value(defined);
        }
        let (mut object, written) = self.find_counter(number, index)?;
        let handle = NvIndexHandle::from(object);
        let value = if written {
            self.value(handle)?
        } else {
            self.with_value(handle)?
        };
        self.in_the_open(Operation::Counter, |context| context.tr_close(&mut object))?;
        Ok(value)
    }

    fn add_one(&mut self, number: u8) -> Result<(), HsmError> {
        let index = NvIndexTpmHandle::new(counter_index(number)).during(Operation::Counter)?;
        let (mut object, _) = self.find_counter(number, index)?;
        self.raise(NvIndexHandle::from(object))?;
        self.in_the_open(Operation::Counter, |context| context.tr_close(&mut object))
    }

    /// Takes an NV index for a counter of ours, if it is; and whether it has a value.
    ///
    /// The library authorizes by the Name that comes with the answer, and computes none of its own:
    /// whoever is on the bus could lead us to another index. So that Name must be our counter's.
    fn find_counter(
        &mut self,
        number: u8,
        index: NvIndexTpmHandle,
    ) -> Result<(ObjectHandle, bool), HsmError> {
        let object = self.in_the_open(Operation::Counter, |context| {
            context.tr_from_tpm_public(TpmHandle::NvIndex(index))
        })?;
        let (found, name) = self.in_the_open(Operation::Counter, |context| {
            context.nv_read_public(NvIndexHandle::from(object))
        })?;
        let written = if found == public(index, true)? {
            true
        } else if found == public(index, false)? {
            false
        } else {
            return Err(HsmError::ForeignIndex {
                index: index.into(),
            });
        };
        if name.value() != counter_name(number, written) {
            return Err(HsmError::Tampered);
        }
        Ok((object, written))
    }

    /// Gives a new counter its first value.
    fn with_value(&mut self, handle: NvIndexHandle) -> Result<u64, HsmError> {
        self.raise(handle)?;
        self.value(handle)
    }

    fn raise(&mut self, handle: NvIndexHandle) -> Result<(), HsmError> {
        self.in_session(Operation::Counter, |context| {
            context.nv_increment(NvAuth::NvIndex(handle), handle)
        })
    }

    fn value(&mut self, handle: NvIndexHandle) -> Result<u64, HsmError> {
        let read = self.in_session(Operation::Counter, |context| {
            context.nv_read(NvAuth::NvIndex(handle), handle, VALUE_BYTES, 0)
        })?;
        let bytes: [u8; 8] = read.value().try_into().map_err(|_| HsmError::Tampered)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

/// A counter with an empty password that no power cut can lock; it is `written` once it has a
/// value.
fn public(index: NvIndexTpmHandle, written: bool) -> Result<NvPublic, HsmError> {
    let attributes = NvIndexAttributesBuilder::new()
        .with_nv_index_type(NvIndexType::Counter)
        .with_auth_read(true)
        .with_auth_write(true)
        .with_no_da(true)
        .with_written(written)
        .build()
        .during(Operation::Counter)?;
    NvPublicBuilder::new()
        .with_nv_index(index)
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(attributes)
        .with_data_area_size(usize::from(VALUE_BYTES))
        .build()
        .during(Operation::Counter)
}

const VALUE_BYTES: u16 = 8;

//! Which requests fetch the channels of a device: as few as possible, nothing that was not asked.

use wire::Measurement;

use super::conversion;
use super::frame::{REGISTERS_MAX, Request};
use super::{ChannelConfig, DeviceConfig};

/// Returns the requests for all channels of `device`.
///
/// Channels that touch or overlap share a request, up to 125 registers. A gap is never read
/// across: many devices refuse a request that touches a register they do not have. A channel is
/// never split over two requests, so that its registers are of one moment.
pub(super) fn requests(device: &DeviceConfig) -> Vec<Request> {
    let mut channels: Vec<&ChannelConfig> = device.channels.iter().collect();
    channels.sort_by_key(|channel| (channel.register, channel.address));

    let mut requests: Vec<Request> = Vec::new();
    for channel in channels {
        let merged = requests.last().and_then(|last| extend(last, channel));
        match (merged, requests.last_mut()) {
            (Some(merged), Some(last)) => *last = merged,
            _ => requests.push(Request {
                slave_id: device.slave_id,
                register: channel.register,
                address: channel.address,
                count: channel.registers(),
            }),
        }
    }
    requests
}

/// Reads the channels of `device` that lie wholly within the answer to `request`.
pub(super) fn read(
    device: &DeviceConfig,
    request: &Request,
    registers: &[u16],
) -> Vec<Measurement> {
    let channels = device.channels.iter();
    channels
        .filter(|channel| channel.register == request.register)
        .filter_map(|channel| {
            let first = usize::from(channel.address.checked_sub(request.address)?);
            let end = first + usize::from(channel.registers());
            let registers = registers.get(first..end)?;
            Some(conversion::measure(channel, device.byte_order, registers))
        })
        .collect()
}

/// Returns `request` made long enough for `channel`, which does not start before it; none if
/// there is a gap or the limit is reached.
fn extend(request: &Request, channel: &ChannelConfig) -> Option<Request> {
    let first = channel.address.checked_sub(request.address)?;
    let count = request.count.max(first.checked_add(channel.registers())?);
    let fits =
        channel.register == request.register && first <= request.count && count <= REGISTERS_MAX;
    fits.then_some(Request { count, ..*request })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::Value;

    use super::*;
    use crate::modbus::fixture::{channel, device};
    use crate::modbus::{DataType, Register};

    #[test]
    fn touching_and_overlapping_channels_share_a_request() {
        let mut device = device(1);
        device.channels = vec![
            channel("energy", 2, DataType::Uint32),
            channel("temperature", 0, DataType::Int16),
            channel("humidity", 1, DataType::Uint16),
            channel("energy_high", 2, DataType::Uint16),
        ];
        assert_eq!(spans(&device), [(0, 4)]);
    }

    #[test]
    fn no_register_is_read_that_was_not_asked() {
        let mut device = device(1);
        device.channels = vec![
            channel("a", 0, DataType::Int16),
            channel("b", 2, DataType::Int16),
        ];
        assert_eq!(spans(&device), [(0, 1), (2, 1)]);
    }

    #[test]
    fn the_two_tables_are_asked_apart() {
        let mut device = device(1);
        let mut holding = channel("b", 1, DataType::Int16);
        holding.register = Register::Holding;
        device.channels = vec![channel("a", 0, DataType::Int16), holding];
        assert_eq!(requests(&device).len(), 2);
    }

    #[test]
    fn the_last_register_of_a_table_is_read() {
        let mut device = device(1);
        device.channels = vec![
            channel("a", u16::MAX, DataType::Int16),
            channel("b", u16::MAX - 1, DataType::Int16),
        ];
        assert_eq!(spans(&device), [(u16::MAX - 1, 2)]);
    }

    proptest! {
        /// Each channel is in one answer, whole, and reads its own registers there; no request
        /// is too long, and none holds a register that no channel has.
        #[test]
        fn every_channel_is_fetched_whole(
            places in proptest::collection::vec((0..400_u16, 0..14_usize, 1..=125_u16), 1..40),
        ) {
            let mut device = device(1);
            device.channels = places.into_iter().map(|(address, data_type, length)| {
                let mut channel = channel("a", address, DataType::ALL[data_type].1);
                channel.length = length;
                channel
            }).collect();
            let requests = requests(&device);

            let mut fetched = 0;
            for request in &requests {
                prop_assert!((1..=REGISTERS_MAX).contains(&request.count));
                let registers = vec![0; request.count.into()];
                fetched += read(&device, request, &registers).len();
                for address in request.address..request.address + request.count {
                    let has = |channel: &ChannelConfig| {
                        (channel.address..channel.address + channel.registers()).contains(&address)
                    };
                    prop_assert!(device.channels.iter().any(has));
                }
            }
            prop_assert!(device.channels.len() <= fetched);
        }

        /// Answers of any length, to any request: no panic.
        #[test]
        fn reading_survives_any_answer(
            address: u16,
            count in 0..=REGISTERS_MAX,
            registers in proptest::collection::vec(any::<u16>(), 0..130),
        ) {
            let request = Request { slave_id: 1, register: Register::Input, address, count };
            let mut device = device(1);
            device.channels = DataType::ALL.map(|(_, it)| channel("a", address, it)).to_vec();
            let _ = read(&device, &request, &registers);
        }
    }

    #[test]
    fn each_channel_reads_its_own_registers() {
        let mut device = device(1);
        device.channels = vec![
            channel("a", 7, DataType::Uint16),
            channel("b", 5, DataType::Uint16),
        ];
        let request = Request {
            slave_id: 1,
            register: Register::Input,
            address: 5,
            count: 3,
        };

        let measured = read(&device, &request, &[50, 60, 70]);

        let values: Vec<_> = measured
            .into_iter()
            .map(|it| (it.channel, it.value))
            .collect();
        let expected = [("a", 70), ("b", 50)];
        assert_eq!(
            values,
            expected.map(|(name, value)| (name.to_owned(), Value::Integer(value)))
        );
    }

    fn spans(device: &DeviceConfig) -> Vec<(u16, u16)> {
        let requests = requests(device).into_iter();
        requests
            .map(|request| (request.address, request.count))
            .collect()
    }
}

//! `org.bluez.Device1`.

use std::collections::HashMap;

use zbus::object_server::InterfaceRef;
use zbus::{ObjectPath, OwnedVariant, Variant, fdo, interface};

use super::{ADAPTER_PATH, payload};

pub(super) struct Device {
    address: [u8; 6],
    air: Air,
}

/// What one advertisement carries.
pub(super) struct Air {
    /// In dBm.
    signal_strength: i16,
    service_data: HashMap<String, Vec<u8>>,
    manufacturer_data: HashMap<u16, Vec<u8>>,
}

impl Device {
    pub(super) fn bthome(address: [u8; 6], step: u64) -> Self {
        let air = Air {
            signal_strength: signal_strength(step),
            service_data: HashMap::from([(BTHOME_UUID.to_owned(), payload::bthome(step))]),
            manufacturer_data: HashMap::new(),
        };
        Self { address, air }
    }

    pub(super) fn ruuvi(address: [u8; 6], step: u64) -> Self {
        let air = Air {
            signal_strength: signal_strength(step),
            service_data: HashMap::new(),
            manufacturer_data: HashMap::from([(RUUVI_COMPANY, payload::ruuvi(step))]),
        };
        Self { address, air }
    }

    pub(super) fn path(&self) -> String {
        path(self.address)
    }

    pub(super) fn into_air(self) -> Air {
        self.air
    }

    /// Advertises once more, in the signals that BlueZ sends for it.
    pub(super) async fn say(known: &InterfaceRef<Self>, air: Air) -> zbus::Result<()> {
        known.get_mut().await.air = air;
        let device = known.get().await;
        let emitter = known.signal_emitter();
        device.r_s_s_i_changed(emitter).await?;
        if !device.air.service_data.is_empty() {
            device.service_data_changed(emitter).await?;
        }
        if !device.air.manufacturer_data.is_empty() {
            device.manufacturer_data_changed(emitter).await?;
        }
        Ok(())
    }
}

#[interface(name = "org.bluez.Device1")]
impl Device {
    #[zbus(property)]
    fn address(&self) -> String {
        self.address.map(|byte| format!("{byte:02X}")).join(":")
    }

    #[zbus(property)]
    fn address_type(&self) -> &'static str {
        "random"
    }

    #[zbus(property)]
    fn alias(&self) -> String {
        self.address.map(|byte| format!("{byte:02X}")).join("-")
    }

    #[zbus(property)]
    fn adapter(&self) -> ObjectPath<'static> {
        ObjectPath::from_static_str_unchecked(ADAPTER_PATH)
    }

    #[zbus(property)]
    fn paired(&self) -> bool {
        false
    }

    #[zbus(property)]
    fn trusted(&self) -> bool {
        false
    }

    #[zbus(property)]
    fn blocked(&self) -> bool {
        false
    }

    #[zbus(property)]
    fn legacy_pairing(&self) -> bool {
        false
    }

    #[zbus(property)]
    fn connected(&self) -> bool {
        false
    }

    #[zbus(property)]
    fn services_resolved(&self) -> bool {
        false
    }

    #[zbus(property, name = "RSSI")]
    fn signal_strength(&self) -> i16 {
        self.air.signal_strength
    }

    /// `a{sv}`, each value `ay`.
    #[zbus(property)]
    fn service_data(&self) -> fdo::Result<HashMap<String, OwnedVariant>> {
        variants(&self.air.service_data)
    }

    /// `a{qv}`, each value `ay`.
    #[zbus(property)]
    fn manufacturer_data(&self) -> fdo::Result<HashMap<u16, OwnedVariant>> {
        variants(&self.air.manufacturer_data)
    }
}

/// Where BlueZ has the device with this address.
pub(super) fn path(address: [u8; 6]) -> String {
    let address = address.map(|byte| format!("{byte:02X}")).join("_");
    format!("{ADAPTER_PATH}/dev_{address}")
}

fn variants<Key: Clone + std::hash::Hash + Eq>(
    payloads: &HashMap<Key, Vec<u8>>,
) -> fdo::Result<HashMap<Key, OwnedVariant>> {
    payloads
        .iter()
        .map(|(key, payload)| {
            let value = Variant::from(payload.as_slice()).try_to_owned();
            let value = value.map_err(|error| fdo::Error::Failed(error.to_string()))?;
            Ok((key.clone(), value))
        })
        .collect()
}

/// Wavers by a few dB, as it does.
fn signal_strength(step: u64) -> i16 {
    let [low, ..] = step.to_le_bytes();
    -61 - i16::from(low % 5)
}

/// The service of BTHome v2.
const BTHOME_UUID: &str = "0000fcd2-0000-1000-8000-00805f9b34fb";

/// Company identifier of Ruuvi Innovations.
const RUUVI_COMPANY: u16 = 0x0499;

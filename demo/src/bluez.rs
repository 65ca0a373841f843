//! A stand-in for `bluetoothd`: one adapter, and two sensors on the air.
//!
//! It serves `org.bluez` on a bus of the caller's, with the objects, properties and D-Bus types
//! that a scan meets (BlueZ's `doc/org.bluez.Adapter.rst` and `org.bluez.Device.rst`). As with
//! the real one, devices exist only while somebody discovers, the first advertisement of a device
//! comes with its object and later ones as changed properties, and a client that leaves the bus
//! ends its discovery.
//!
//! The sensors are a BTHome v2 thermometer ([`BTHOME_ADDRESS`]) and a RuuviTag
//! ([`RUUVI_ADDRESS`]). They begin with the vectors of their formats' documents, and each
//! advertisement says something new.

mod adapter;
mod device;
mod payload;

pub use payload::{bthome, ruuvi};

use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use zbus::{Connection, fdo};

use adapter::{Adapter, Discovery};
use device::Device;

/// Address of the BTHome thermometer.
pub const BTHOME_ADDRESS: [u8; 6] = [0x54, 0x48, 0xE6, 0x8F, 0x80, 0xA5];

/// Address of the RuuviTag.
pub const RUUVI_ADDRESS: [u8; 6] = [0xCB, 0xB8, 0x33, 0x4C, 0x88, 0x4F];

/// A running stand-in; it is gone from the bus when dropped.
#[derive(Debug)]
pub struct StandIn {
    connection: Connection,
    discovery: watch::Sender<Discovery>,
}

impl StandIn {
    /// Takes the name `org.bluez` on the bus at `address`, such as `unix:path=/run/bus`.
    ///
    /// # Errors
    ///
    /// If the bus cannot be reached, or the name is taken.
    pub async fn start(address: &str) -> zbus::Result<Self> {
        let discovery = watch::Sender::default();
        let adapter = Adapter::new(discovery.clone());
        let connection = zbus::connection::Builder::address(address)
            .serve_at("/", fdo::ObjectManager)
            .serve_at(ADAPTER_PATH, adapter)
            .name("org.bluez")
            .build()
            .await?;
        Ok(Self {
            connection,
            discovery,
        })
    }

    /// Advertises each sensor once in every `interval` in which somebody discovers.
    ///
    /// Cancel-safe; only ever returns with an error.
    ///
    /// # Errors
    ///
    /// If the bus is lost.
    pub async fn advertise(&self, interval: Duration) -> zbus::Result<()> {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let bus = fdo::DBusProxy::new(&self.connection).await?;
        let mut owners = bus.receive_name_owner_changed().await?;
        let mut step = 0;
        let mut on_air = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let wanted = self.discovery.borrow().client.is_some();
                    if wanted {
                        self.say(step).await?;
                        step += 1;
                    } else if on_air {
                        self.fall_silent().await?;
                    }
                    on_air = wanted;
                }
                change = owners.next() => {
                    let change = change.ok_or_else(|| zbus::Error::Failure(BUS_LOST.to_owned()))?;
                    let change = change.args()?;
                    if change.new_owner().is_none() {
                        self.forget_client(change.name().as_str());
                    }
                }
            }
        }
    }

    async fn say(&self, step: u64) -> zbus::Result<()> {
        let objects = self.connection.object_server();
        for device in [
            Device::bthome(BTHOME_ADDRESS, step),
            Device::ruuvi(RUUVI_ADDRESS, step),
        ] {
            let path = device.path();
            match objects.interface::<_, Device>(path.as_str()).await {
                Ok(known) => Device::say(&known, device.into_air()).await?,
                Err(zbus::Error::InterfaceNotFound) => {
                    objects.at(path, device).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn fall_silent(&self) -> zbus::Result<()> {
        let objects = self.connection.object_server();
        for address in [BTHOME_ADDRESS, RUUVI_ADDRESS] {
            objects.remove::<Device, _>(device::path(address)).await?;
        }
        Ok(())
    }

    fn forget_client(&self, name: &str) {
        self.discovery.send_if_modified(|discovery| {
            let left = discovery.client.as_deref() == Some(name);
            if left {
                discovery.client = None;
            }
            left
        });
    }
}

/// Where BlueZ has its first adapter.
const ADAPTER_PATH: &str = "/org/bluez/hci0";

const BUS_LOST: &str = "the bus was lost";

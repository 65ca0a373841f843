//! The adapter, through BlueZ: the only file that knows btleplug.
//!
//! Built around what btleplug 0.13 and bluez-async 0.9 do:
//! - The tasks they spawn outlive their `Manager` and keep its bus connection open, and a dropped
//!   event stream spawns one that may panic. So each [`Radio`] has a runtime on a thread of its
//!   own, and ends by ending that runtime: connection, tasks and match rules go with it.
//! - Connecting to the bus blocks, and a call on a lost bus never returns. The thread takes the
//!   first, [`CALL_TIME_MAX`] the second.
//! - The queue behind the event stream has no bound, so nothing here waits for the receiver.
//! - A device's first advertisement is reported without its payload, which is in its properties.
//! - A vanished adapter, a restarted daemon and a lost bus are all just silence.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use btleplug::api::bleuuid::uuid_from_u16;
use btleplug::api::{Central, CentralEvent, Manager as _, Peripheral as _, ScanFilter};
use btleplug::platform::{Adapter, Manager, PeripheralId};
use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::scanner::Counters;
use super::{BleConfig, BleFormat, BleSensor, bthome, ruuvi};
use crate::{Attachment, SensorError};

/// A running scan.
pub(super) struct Radio {
    heard: mpsc::Receiver<Heard>,
}

/// A payload from a configured sensor.
#[derive(Debug)]
pub(super) struct Heard {
    /// Index of the sensor in the configuration.
    pub(super) sensor: usize,
    pub(super) payload: Vec<u8>,
}

impl Radio {
    /// Connects to the bus and starts to scan.
    ///
    /// Counts into `counters` what is unknown and what finds no room.
    ///
    /// # Errors
    ///
    /// [`SensorError::Absent`] or [`SensorError::Denied`]: the adapter, the daemon or the bus.
    pub(super) async fn open(
        config: Arc<BleConfig>,
        counters: Arc<Counters>,
    ) -> Result<Self, SensorError> {
        let (offer, heard) = mpsc::channel(HEARD_MAX);
        let (opened, is_open) = oneshot::channel();
        let scan = Scan {
            config,
            counters,
            offer,
        };
        std::thread::Builder::new()
            .name("ble".to_owned())
            .spawn(move || scan.run(opened))
            .map_err(absent)?;
        match timeout(OPEN_TIME_MAX, is_open).await {
            Ok(Ok(result)) => result.map(|()| Self { heard }),
            Ok(Err(_)) | Err(_) => Err(SensorError::Absent(Attachment::BlueZ)),
        }
    }

    /// Waits for the next payload; `None` when the scan is over and a new `Radio` is due.
    ///
    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }
}

/// What the thread behind a [`Radio`] does.
struct Scan {
    config: Arc<BleConfig>,
    counters: Arc<Counters>,
    offer: mpsc::Sender<Heard>,
}

impl Scan {
    /// Scans until the radio is silent for good, or nobody listens any more.
    fn run(self, opened: oneshot::Sender<Result<(), SensorError>>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = opened.send(Err(absent(error)));
                return;
            }
        };
        runtime.block_on(async {
            let abandoned = self.offer.clone();
            tokio::select! {
                () = abandoned.closed() => {}
                () = self.scan(opened) => {}
            }
        });
    }

    async fn scan(&self, opened: oneshot::Sender<Result<(), SensorError>>) {
        let (adapter, mut events) = match self.start().await {
            Ok(started) => started,
            Err(error) => {
                let _ = opened.send(Err(error));
                return;
            }
        };
        let _ = opened.send(Ok(()));
        listen(
            &mut events,
            async |event| self.hear(&adapter, event).await,
            async || restart(&adapter).await,
        )
        .await;
        tracing::info!("the Bluetooth scan went silent; starting anew");
    }

    /// Scans before it subscribes: the stream starts with the devices that are known by then, so
    /// that nothing is missed, and no stream is dropped if the scan is refused.
    async fn start(
        &self,
    ) -> Result<(Adapter, impl Stream<Item = CentralEvent> + Unpin + use<>), SensorError> {
        let manager = call(Manager::new()).await.map_err(bluez)?;
        let adapter = self.choose(&manager).await?;
        call(adapter.start_scan(ScanFilter::default()))
            .await
            .map_err(|error| self.refused(&error))?;
        let events = call(adapter.events())
            .await
            .map_err(|error| self.refused(&error))?;
        Ok((adapter, events))
    }

    /// Finds the configured adapter, or the first by name.
    async fn choose(&self, manager: &Manager) -> Result<Adapter, SensorError> {
        let wanted = self.config.adapter.as_str();
        let mut found = Vec::new();
        for adapter in call(manager.adapters()).await.map_err(bluez)? {
            // Says "hci0 (usb:v1D6Bp0246d0542)"; an adapter that cannot say it is just leaving.
            let Ok(description) = call(adapter.adapter_info()).await else {
                continue;
            };
            let name = description.split(' ').next().unwrap_or_default().to_owned();
            let chosen = wanted == "auto" || wanted == name || {
                let address = call(adapter.adapter_address()).await.ok().flatten();
                address.is_some_and(|address| address.to_string().eq_ignore_ascii_case(wanted))
            };
            if chosen {
                found.push((name, adapter));
            }
        }
        found
            .into_iter()
            .min_by(|(one, _), (other, _)| one.cmp(other))
            .map(|(_, adapter)| adapter)
            .ok_or_else(|| SensorError::Absent(Attachment::Adapter(wanted.to_owned())))
    }

    fn refused(&self, error: &CallError) -> SensorError {
        tracing::debug!(%error, "the Bluetooth adapter does not scan");
        let adapter = Attachment::Adapter(self.config.adapter.clone());
        match error {
            CallError::Denied => SensorError::Denied(adapter),
            CallError::Failed(_) | CallError::TimedOut => SensorError::Absent(adapter),
        }
    }

    async fn hear(&self, adapter: &Adapter, event: CentralEvent) {
        match event {
            CentralEvent::ServiceDataAdvertisement { id, service_data } => {
                let payload = service_data.get(&uuid_from_u16(bthome::SERVICE));
                self.offer(&id, BleFormat::Bthome, payload);
            }
            CentralEvent::ManufacturerDataAdvertisement {
                id,
                manufacturer_data,
            } => self.offer(
                &id,
                BleFormat::Ruuvi,
                manufacturer_data.get(&ruuvi::COMPANY),
            ),
            CentralEvent::DeviceDiscovered(id) if self.sensors_at(&id).next().is_some() => {
                self.hear_first(adapter, &id).await;
            }
            CentralEvent::DeviceDiscovered(_)
            | CentralEvent::DeviceUpdated(_)
            | CentralEvent::DeviceConnected(_)
            | CentralEvent::DeviceDisconnected(_)
            | CentralEvent::DeviceServicesModified(_)
            | CentralEvent::ServicesAdvertisement { .. }
            | CentralEvent::RssiUpdate { .. }
            | CentralEvent::StateUpdate(_) => {}
        }
    }

    /// Fetches the payload of a device's first advertisement.
    async fn hear_first(&self, adapter: &Adapter, id: &PeripheralId) {
        let Ok(device) = call(adapter.peripheral(id)).await else {
            return;
        };
        let Ok(Some(said)) = call(device.properties()).await else {
            return;
        };
        // BlueZ forgets the signal strength when a scan ends, and keeps the payload: without one
        // this is what the device said at some earlier time.
        if said.rssi.is_some() {
            let service_data = said.service_data.get(&uuid_from_u16(bthome::SERVICE));
            self.offer(id, BleFormat::Bthome, service_data);
            self.offer(
                id,
                BleFormat::Ruuvi,
                said.manufacturer_data.get(&ruuvi::COMPANY),
            );
        }
    }

    /// Passes a payload on to the sensors that it belongs to, if there is room.
    fn offer(&self, id: &PeripheralId, format: BleFormat, payload: Option<&Vec<u8>>) {
        if self.sensors_at(id).next().is_none() {
            self.counters.unknown.fetch_add(1, Ordering::Relaxed);
        }
        let Some(payload) = payload else {
            return;
        };
        for (sensor, _) in self
            .sensors_at(id)
            .filter(|(_, sensor)| sensor.format == format)
        {
            let heard = Heard {
                sensor,
                payload: payload.clone(),
            };
            if self.offer.try_send(heard).is_err() {
                self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn sensors_at(&self, id: &PeripheralId) -> impl Iterator<Item = (usize, &BleSensor)> {
        let address = address_in(&id.to_string());
        let sensors = self.config.sensors.iter().enumerate();
        sensors.filter(move |(_, sensor)| Some(sensor.address) == address)
    }
}

/// Hears events until there are none for [`SILENCE_MAX`], and again after a `restart`.
async fn listen<T>(
    events: &mut (impl Stream<Item = T> + Unpin),
    mut hear: impl AsyncFnMut(T),
    mut restart: impl AsyncFnMut() -> Result<(), CallError>,
) {
    let mut restarted = false;
    loop {
        match timeout(SILENCE_MAX, events.next()).await {
            Ok(Some(event)) => {
                restarted = false;
                hear(event).await;
            }
            Ok(None) => return,
            Err(_) if restarted => return,
            Err(_) => {
                if restart().await.is_err() {
                    return;
                }
                restarted = true;
            }
        }
    }
}

/// Ends and starts the scan: after a restart of the daemon nobody scans, and nobody says so.
async fn restart(adapter: &Adapter) -> Result<(), CallError> {
    if let Err(error) = call(adapter.stop_scan()).await {
        tracing::debug!(%error, "there was no scan to stop");
    }
    call(adapter.start_scan(ScanFilter::default())).await
}

/// Why a call over the bus gave nothing.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("the bus does not let us")]
    Denied,
    #[error(transparent)]
    Failed(btleplug::Error),
    #[error("no answer in {CALL_TIME_MAX:?}")]
    TimedOut,
}

async fn call<T>(answer: impl Future<Output = btleplug::Result<T>>) -> Result<T, CallError> {
    match timeout(CALL_TIME_MAX, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        // The name of the D-Bus error is nowhere but in the debug form.
        Ok(Err(error)) if format!("{error:?}").contains(ACCESS_DENIED) => Err(CallError::Denied),
        Ok(Err(error)) => Err(CallError::Failed(error)),
        Err(_) => Err(CallError::TimedOut),
    }
}

fn bluez(error: CallError) -> SensorError {
    match error {
        CallError::Denied => SensorError::Denied(Attachment::BlueZ),
        CallError::Failed(_) | CallError::TimedOut => absent(error),
    }
}

fn absent(error: impl fmt::Display) -> SensorError {
    tracing::debug!(%error, "the Bluetooth daemon is out of reach");
    SensorError::Absent(Attachment::BlueZ)
}

/// Reads the address out of a device's object path, such as `hci0/dev_CB_B8_33_4C_88_4F`.
fn address_in(path: &str) -> Option<[u8; 6]> {
    let (_, address) = path.rsplit_once("/dev_")?;
    let bytes: Option<Vec<u8>> = address
        .split('_')
        .map(|digits| u8::from_str_radix(digits, 16).ok())
        .collect();
    bytes?.try_into().ok()
}

/// Payloads that may wait for the caller: some seconds of the busiest air, about 10 KiB.
const HEARD_MAX: usize = 64;

/// For each call over the bus; bluetoothd answers in milliseconds, or is stuck.
const CALL_TIME_MAX: Duration = Duration::from_secs(5);

/// For a whole start of at most five calls and the connection, which has no deadline of its own.
const OPEN_TIME_MAX: Duration = Duration::from_secs(30);

/// As long as Home Assistant's habluetooth believes in a scanner that hears nothing.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// End of the D-Bus error's name.
const ACCESS_DENIED: &str = "org.freedesktop.DBus.Error.AccessDenied";

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_radio_is_restarted_once_and_then_given_up() {
        let mut restarts = 0;
        let started = tokio::time::Instant::now();

        listen(
            &mut stream::pending::<()>(),
            async |()| {},
            async || {
                restarts += 1;
                Ok(())
            },
        )
        .await;

        assert_eq!(restarts, 1);
        assert_eq!(started.elapsed(), 2 * SILENCE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_radio_that_does_not_restart_is_given_up_at_once() {
        let started = tokio::time::Instant::now();

        listen(
            &mut stream::pending::<()>(),
            async |()| {},
            async || Err(CallError::TimedOut),
        )
        .await;

        assert_eq!(started.elapsed(), SILENCE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_radio_that_speaks_after_a_restart_may_be_restarted_again() {
        let hears_every_100_s = stream::unfold(0, async |heard| {
            tokio::time::sleep(Duration::from_secs(100)).await;
            (heard < 3).then_some(((), heard + 1))
        });
        let mut heard = 0;
        let mut restarts = 0;

        listen(
            &mut pin!(hears_every_100_s),
            async |()| heard += 1,
            async || {
                restarts += 1;
                Ok(())
            },
        )
        .await;

        assert_eq!((heard, restarts), (3, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bus_that_never_answers_is_not_waited_for() {
        let answer = call(std::future::pending::<btleplug::Result<()>>()).await;

        assert!(matches!(answer, Err(CallError::TimedOut)));
    }

    #[test]
    fn a_device_is_known_by_the_address_in_its_path() {
        assert_eq!(
            address_in("hci0/dev_CB_B8_33_4C_88_4F"),
            Some([0xCB, 0xB8, 0x33, 0x4C, 0x88, 0x4F])
        );
        for other in [
            "hci0",
            "hci0/dev_",
            "hci0/dev_CB_B8_33_4C_88",
            "hci0/dev_CB_B8_33_4C_88_4F_00",
        ] {
            assert_eq!(address_in(other), None, "{other}");
        }
    }
}

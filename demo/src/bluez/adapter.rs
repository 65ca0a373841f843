//! `org.bluez.Adapter1`.

use std::collections::HashMap;

use tokio::sync::watch;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{OwnedVariant, interface};

/// Who discovers devices; one client at a time is enough for a stand-in.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    /// Unique bus name of the client.
    pub(super) client: Option<String>,
}

pub(super) struct Adapter {
    discovery: watch::Sender<Discovery>,
    powered: bool,
}

impl Adapter {
    pub(super) fn new(discovery: watch::Sender<Discovery>) -> Self {
        Self {
            discovery,
            powered: true,
        }
    }
}

#[interface(name = "org.bluez.Adapter1")]
impl Adapter {
    async fn start_discovery(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<(), Error> {
        if !self.powered {
            return Err(Error::NotReady("Resource Not Ready".to_owned()));
        }
        let client = header.sender().map(ToString::to_string);
        if client.is_some() && self.discovery.borrow().client == client {
            return Err(Error::InProgress(
                "Operation already in progress".to_owned(),
            ));
        }
        self.discovery.send_replace(Discovery { client });
        self.discovering_changed(&emitter).await?;
        Ok(())
    }

    async fn stop_discovery(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<(), Error> {
        let client = header.sender().map(ToString::to_string);
        if self.discovery.borrow().client != client {
            return Err(Error::Failed("No discovery started".to_owned()));
        }
        self.discovery.send_replace(Discovery::default());
        self.discovering_changed(&emitter).await?;
        Ok(())
    }

    /// Takes any filter: the stand-in is heard in every one of them.
    fn set_discovery_filter(&self, _filter: HashMap<String, OwnedVariant>) {}

    #[zbus(property)]
    fn address(&self) -> &'static str {
        "F0:F1:F2:F3:F4:F5"
    }

    #[zbus(property)]
    fn address_type(&self) -> &'static str {
        "public"
    }

    #[zbus(property)]
    fn name(&self) -> &'static str {
        "stand-in"
    }

    #[zbus(property)]
    fn alias(&self) -> &'static str {
        "stand-in"
    }

    #[zbus(property)]
    fn powered(&self) -> bool {
        self.powered
    }

    #[zbus(property)]
    fn set_powered(&mut self, powered: bool) {
        self.powered = powered;
    }

    #[zbus(property)]
    fn discovering(&self) -> bool {
        self.discovery.borrow().client.is_some()
    }

    /// As BlueZ 5.66 has it on Linux.
    #[zbus(property)]
    fn modalias(&self) -> &'static str {
        "usb:v1D6Bp0246d0542"
    }
}

/// The errors of BlueZ that a scan can meet.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.bluez.Error")]
enum Error {
    #[zbus(error)]
    ZBus(zbus::Error),
    NotReady(String),
    InProgress(String),
    Failed(String),
}

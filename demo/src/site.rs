//! A gateway, a relay and a service on this machine, each a process of its own, in one folder.

mod files;

use std::{
    ffi::OsString,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Output,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, ensure};
use hsm::swtpm::Swtpm;
use serde_json::Value;
use tokio::process::Command;

use crate::{
    process::{Process, ours, python, run, success, until},
    wiretap::Wiretap,
};

/// Everything that a site has. Parts that are `None` do not run.
pub struct Site {
    folder: PathBuf,
    /// The software TPM.
    pub tpm: Swtpm,
    /// What stands before the relay and records.
    pub wiretap: Wiretap,
    relay_port: u16,
    /// Where the service listens itself.
    pub direct_port: u16,
    /// The relay.
    pub relay: Option<Process>,
    /// The service.
    pub service: Option<Process>,
    /// The gateway.
    pub gateway: Option<Process>,
    /// What its environment has besides.
    pub gateway_env: Vec<(&'static str, OsString)>,
    /// The Modbus slave and the serial cable to it.
    pub modbus: Vec<Process>,
    /// The bus of the machine and the BlueZ on it.
    pub bluez: Vec<Process>,
}

impl Site {
    /// Prepares a site in `folder`, which is emptied; starts the TPM and the wiretap only.
    ///
    /// # Errors
    ///
    /// If something is missing: `make setup` installs it.
    pub async fn prepare(folder: &Path) -> anyhow::Result<Self> {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        for part in ["tpm", "gateway", "cloud"] {
            std::fs::create_dir_all(folder.join(part))?;
        }
        let folder = folder.canonicalize()?;
        ensure!(
            folder.as_os_str().len() <= FOLDER_BYTES_MAX,
            "{} is too long a path for Unix sockets; move the checkout to a shorter one",
            folder.display()
        );
        let tpm = Swtpm::start_in(&folder.join("tpm")).context("cannot start the TPM")?;
        let relay_port = free_port()?;
        let wiretap = Wiretap::start(relay_port, folder.join("relayed.bin")).await?;
        let site = Self {
            folder,
            tpm,
            wiretap,
            relay_port,
            direct_port: free_port()?,
            relay: None,
            service: None,
            gateway: None,
            gateway_env: Vec::new(),
            modbus: Vec::new(),
            bluez: Vec::new(),
        };
        site.write_cloud_config("\"open\"")?;
        site.write_bus_config()?;
        Ok(site)
    }

    /// Starts the Modbus slave at the other end of a serial cable.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub async fn start_modbus(&mut self) -> anyhow::Result<()> {
        let (ours, theirs) = (self.path("serial"), self.path("serial-slave"));
        let end = |path: &Path| format!("pty,raw,echo=0,link={}", path.display());
        let cable = Process::start(
            "cable",
            &self.folder,
            Command::new("socat").args([end(&ours), end(&theirs)]),
        )?;
        self.modbus.push(cable);
        until("the serial cable", START_TIME_MAX, || async {
            Ok(ours.exists() && theirs.exists())
        })
        .await?;
        let slave = Process::start(
            "modbus",
            &self.folder,
            python("modbus_slave.py")?.arg(&theirs),
        )?;
        self.modbus.push(slave);
        self.wait_for_log("modbus", "ready").await
    }

    /// Starts a bus of its own and the BlueZ stand-in on it.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub async fn start_bluez(&mut self) -> anyhow::Result<()> {
        let bus = Process::start(
            "dbus",
            &self.folder,
            Command::new("dbus-daemon")
                .arg("--nofork")
                .arg(format!("--config-file={}", self.path("bus.conf").display())),
        )?;
        self.bluez.push(bus);
        let socket = self.path("bus");
        until("the bus", START_TIME_MAX, || async { Ok(socket.exists()) }).await?;
        let bluez = Process::start(
            "bluez",
            &self.folder,
            ours("bluez-stand-in")?
                .args(["--interval-ms", "500"])
                .env("DBUS_SYSTEM_BUS_ADDRESS", self.bus_address()),
        )?;
        self.bluez.push(bluez);
        self.wait_for_log("bluez", "READY").await
    }

    /// Starts the relay.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub async fn start_relay(&mut self) -> anyhow::Result<()> {
        let mut command = self.gateway_cloud()?;
        let relay = Process::start("relay", &self.folder, command.arg("relay"))?;
        self.relay = Some(relay);
        let port = self.relay_port;
        until("the relay", START_TIME_MAX, || async {
            Ok(tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_ok())
        })
        .await
    }

    /// Makes the service's keys, if they are not there, and starts it.
    ///
    /// # Errors
    ///
    /// If it does not come up and register at the relay.
    pub async fn start_service(&mut self) -> anyhow::Result<()> {
        let made = run(self.gateway_cloud()?.arg("init"), "").await?;
        success("gateway-cloud init", &made)?;
        let registered_before = self.log("service").matches("registered relay=").count();
        let mut command = self.gateway_cloud()?;
        let service = Process::start("service", &self.folder, command.arg("serve"))?;
        self.service = Some(service);
        until("the service at the relay", START_TIME_MAX, || async {
            Ok(registered_before < self.log("service").matches("registered relay=").count())
        })
        .await
    }

    /// Starts the gateway with the configuration in `gateway/gatewayd.toml`.
    ///
    /// # Errors
    ///
    /// If its control socket does not answer.
    pub async fn start_gateway(&mut self) -> anyhow::Result<()> {
        let gateway = Process::start(
            "gatewayd",
            &self.folder,
            ours("gatewayd")?
                .arg("--config")
                .arg(self.path("gateway/gatewayd.toml"))
                .arg("--state")
                .arg(self.path("gateway/state"))
                .arg("--socket")
                .arg(self.socket())
                .env("TSS2_LOG", "all+none")
                .envs(self.gateway_env.iter().cloned())
                .env("DBUS_SYSTEM_BUS_ADDRESS", self.bus_address()),
        )?;
        self.gateway = Some(gateway);
        let socket = self.socket();
        until("the gateway", START_TIME_MAX, || async {
            Ok(tokio::net::UnixStream::connect(&socket).await.is_ok())
        })
        .await
    }

    /// Makes the identity and enrols it with a fresh ticket; returns the identity's fingerprint.
    ///
    /// # Errors
    ///
    /// What either side said.
    pub async fn enrol(&self, name: &str) -> anyhow::Result<String> {
        let made = self.gatewayctl(&["init"], "").await?;
        let identity = success("gatewayctl init", &made)?;
        let ticket = self.invite(name, &[]).await?;
        let enrolled = self.gatewayctl(&["enroll", "-"], &ticket).await?;
        success("gatewayctl enroll", &enrolled)?;
        Ok(identity)
    }

    /// A ticket of the service.
    ///
    /// # Errors
    ///
    /// What the service said.
    pub async fn invite(&self, name: &str, options: &[&str]) -> anyhow::Result<String> {
        let mut command = self.gateway_cloud()?;
        let invited = run(command.arg("invite").arg(name).args(options), "").await?;
        success("gateway-cloud invite", &invited)
    }

    /// Runs `gatewayctl`.
    ///
    /// # Errors
    ///
    /// If it cannot be run; what it says is in the output.
    pub async fn gatewayctl(&self, args: &[&str], input: &str) -> anyhow::Result<Output> {
        let mut command = ours("gatewayctl")?;
        run(command.arg("--socket").arg(self.socket()).args(args), input).await
    }

    /// `gatewayctl status --json`.
    ///
    /// # Errors
    ///
    /// If the daemon does not answer.
    pub async fn status(&self) -> anyhow::Result<Value> {
        let output = self.gatewayctl(&["status", "--json"], "").await?;
        let text = success("gatewayctl status", &output)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until everything that the gateway stored is acknowledged.
    ///
    /// # Errors
    ///
    /// If it is not within `limit`.
    pub async fn delivered(&self, limit: Duration) -> anyhow::Result<()> {
        until("an empty spool", limit, || async {
            let status = self.status().await?;
            let stored = number(&status, "/spool/stored_readings");
            Ok(0 < stored && number(&status, "/spool/batches") == 0)
        })
        .await
    }

    /// Copies the gateway's spool as it is at this moment to `name` in the site's folder.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn keep_spool(&self, name: &str) -> anyhow::Result<()> {
        let kept = self.path(name);
        std::fs::create_dir_all(&kept)?;
        for entry in std::fs::read_dir(self.path("gateway/state/spool"))? {
            let file = entry?;
            std::fs::copy(file.path(), kept.join(file.file_name()))?;
        }
        Ok(())
    }

    /// `gateway-cloud` with this site's configuration and state.
    ///
    /// # Errors
    ///
    /// If it was not built.
    pub fn gateway_cloud(&self) -> anyhow::Result<Command> {
        let mut command = ours("gateway-cloud")?;
        command
            .arg("--config")
            .arg(self.path("cloud/gateway-cloud.toml"))
            .arg("--state")
            .arg(self.path("cloud"));
        Ok(command)
    }

    /// A path in the site's folder.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.join(relative)
    }

    /// The database that readings go to.
    #[must_use]
    pub fn readings(&self) -> PathBuf {
        self.path("cloud/readings.db")
    }

    /// The gateway's control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("gateway/control.sock")
    }

    /// What a process has said so far.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// Waits until a process says something.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub async fn wait_for_log(&self, name: &str, words: &str) -> anyhow::Result<()> {
        until(
            format!("{name} to say {words:?}"),
            START_TIME_MAX,
            || async { Ok(self.log(name).contains(words)) },
        )
        .await
    }

    fn bus_address(&self) -> String {
        format!("unix:path={}", self.path("bus").display())
    }
}

/// A number in a JSON answer; 0 if there is none.
#[must_use]
pub fn number(json: &Value, pointer: &str) -> u64 {
    json.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

/// A port that nobody listens on. Somebody else could take it before we do; then the start fails
/// and says so.
/// A port for a process that binds it a little later: below those that Linux gives to connections
/// (32768 and up, ip(7)), so that none of them takes it meanwhile.
///
/// # Errors
///
/// If all are taken.
pub fn free_port() -> anyhow::Result<u16> {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    for _ in 0..PORTS {
        let asked = ASKED.fetch_add(1, Ordering::Relaxed);
        // Other processes begin elsewhere.
        let offset = std::process::id().wrapping_mul(101).wrapping_add(asked) % PORTS;
        let port = PORTS_FIRST + u16::try_from(offset)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port is free")
}

const PORTS_FIRST: u16 = 12_000;
const PORTS: u32 = 20_000;

/// `sun_path` has 108 bytes (unix(7)); the longest name of ours below the folder has 21.
const FOLDER_BYTES_MAX: usize = 86;

/// Python needs seconds on a busy machine.
const START_TIME_MAX: Duration = Duration::from_secs(30);

//! What all files say together, and the tables of the daemon itself.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::Level;

use drivers::ble::BleConfig;

use super::sensor::{Driver, Sensor};
use super::service::{self, Service};
use super::source::{self, Bus};
use super::table::{LATER, Table};
use super::value::Span;
use super::{BatchConfig, Config, TpmConfig};

/// What the files said so far.
#[derive(Default)]
pub(super) struct Draft<'f> {
    name: Option<String>,
    log: Option<Level>,
    tpm_device: Option<hsm::Tpm>,
    tpm_timeout: Option<Duration>,
    tpm_pcrs: Option<BTreeSet<u8>>,
    spool_max_bytes: Option<u64>,
    spool_min_free_bytes: Option<u64>,
    batch_interval: Option<Duration>,
    batch_readings_max: Option<usize>,
    pub(super) services: Vec<Service<'f>>,
    pub(super) buses: Vec<Bus<'f>>,
    ble_adapter: Option<String>,
    pub(super) sensors: Vec<Sensor<'f>>,
}

impl<'f> Draft<'f> {
    /// Reads one file on top of those before: later values win, lists are appended.
    pub(super) fn read(&mut self, mut file: Table<'f>) {
        if let Some(name) = file.text("name")
            && file.check_name(name, "name")
        {
            self.name = Some(name.it.to_owned());
        }
        if let Some(mut log) = file.table("log") {
            let level = log.word("level", &LEVELS, &[]).map(|level| level.it);
            self.log = level.or(self.log);
            log.finish();
        }
        if let Some(tpm) = file.table("tpm") {
            self.read_tpm(tpm);
        }
        if let Some(mut spool) = file.table("spool") {
            let max_bytes = spool.size("max_size", &(spool::MAX_BYTES_MIN..=TIB));
            self.spool_max_bytes = max_bytes.or(self.spool_max_bytes);
            let min_free_bytes = spool.size("min_free", &(0..=TIB));
            self.spool_min_free_bytes = min_free_bytes.or(self.spool_min_free_bytes);
            spool.finish();
        }
        if let Some(mut batch) = file.table("batch") {
            let interval = batch.duration("interval", &BATCH_INTERVAL);
            self.batch_interval = interval.or(self.batch_interval);
            let readings_max = batch.integer("max_readings", 1..=BATCH_READINGS_MAX);
            let readings_max = readings_max.map(|readings_max| readings_max.it);
            self.batch_readings_max = readings_max.or(self.batch_readings_max);
            batch.finish();
        }
        if let Some(ble) = file.table("ble") {
            self.ble_adapter = source::adapter(ble).or(self.ble_adapter.take());
        }
        let services = file.tables("service");
        self.services
            .extend(services.into_iter().map(Service::read));
        let buses = file.tables("bus");
        self.buses.extend(buses.into_iter().map(Bus::read));
        let sensors = file.tables("sensor");
        self.sensors.extend(sensors.into_iter().map(Sensor::read));
        file.refuse(&["allow", "clock", "metrics"], LATER);
        file.finish();
    }

    fn read_tpm(&mut self, mut tpm: Table<'f>) {
        let like = r#"a path such as "/dev/tpmrm0", or "swtpm:HOST:PORT""#;
        let device = tpm.parsed("device", |text| text.parse().ok(), ("a TPM", like));
        self.tpm_device = device.map(|device| device.it).or(self.tpm_device.take());
        let timeout = tpm.duration("timeout", &TPM_TIMEOUT);
        self.tpm_timeout = timeout.or(self.tpm_timeout);
        if let Some(pcrs) = tpm.integers("pcrs", &(0..=PCR_MAX)) {
            let known = self.tpm_pcrs.get_or_insert_default();
            known.extend(pcrs.into_iter().map(|pcr| pcr.it));
        }
        tpm.finish();
    }

    /// Fills in what the files left out. Right only if no mistake was noted.
    pub(super) fn finish(self) -> Config {
        let (tpm, spool, batch) = (self.tpm(), self.spool(), self.batch());
        let mut services: Vec<_> = self.services.into_iter().map(|it| it.config).collect();
        if services.is_empty() {
            services.push(service::usual());
        }
        let mut buses: Vec<_> = self
            .buses
            .into_iter()
            .map(|bus| (bus.config, Vec::new()))
            .collect();
        let mut sensors = Vec::new();
        let mut broadcasters = Vec::new();
        for sensor in self.sensors {
            match sensor.driver.filter(|_| sensor.config.enabled) {
                Some(Driver::Modbus(device)) => {
                    let mut buses = buses.iter_mut();
                    let bus = buses.find(|(bus, _)| bus.name == sensor.config.source);
                    if let Some((_, devices)) = bus {
                        devices.push(device.config);
                    }
                }
                Some(Driver::Ble(broadcaster)) => broadcasters.push(broadcaster.config),
                None => {}
            }
            sensors.push(sensor.config);
        }
        let adapter = self
            .ble_adapter
            .unwrap_or_else(|| source::ANY_ADAPTER.to_owned());
        let ble = (!broadcasters.is_empty()).then_some(BleConfig {
            adapter,
            sensors: broadcasters,
        });
        Config {
            name: self.name.unwrap_or_else(host_name),
            log: self.log.unwrap_or(Level::INFO),
            tpm,
            spool,
            batch,
            services,
            sensors,
            buses,
            ble,
        }
    }

    fn tpm(&self) -> TpmConfig {
        let pcrs = self.tpm_pcrs.clone().unwrap_or(BTreeSet::from(TPM_PCRS));
        let device = self.tpm_device.clone();
        TpmConfig {
            device: device.unwrap_or_else(|| hsm::Tpm::Device(TPM_DEVICE.into())),
            timeout: self.tpm_timeout.unwrap_or(TPM_TIMEOUT_USUAL),
            pcrs: pcrs.into_iter().collect(),
        }
    }

    fn spool(&self) -> spool::Limits {
        spool::Limits {
            max_bytes: self.spool_max_bytes.unwrap_or(256 * MIB),
            min_free_bytes: self.spool_min_free_bytes.unwrap_or(512 * MIB),
        }
    }

    fn batch(&self) -> BatchConfig {
        BatchConfig {
            interval: self.batch_interval.unwrap_or(Duration::from_secs(1)),
            readings_max: self.batch_readings_max.unwrap_or(1000),
        }
    }
}

/// The host's name as a name of ours: in lower case, without its domain.
fn host_name() -> String {
    let found = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name_of_host(&found)
}

fn name_of_host(host: &str) -> String {
    let host = host.trim().split('.').next().unwrap_or_default();
    let fits = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let name: String = host
        .to_ascii_lowercase()
        .chars()
        .map(|letter| if fits(letter) { letter } else { '-' })
        .collect();
    let name: String = name
        .trim_start_matches(['-', '_'])
        .chars()
        .take(wire::NAME_BYTES_MAX)
        .collect();
    if name.is_empty() {
        "gateway".to_owned()
    } else {
        name
    }
}

const LEVELS: [(&str, Level); 5] = [
    ("error", Level::ERROR),
    ("warn", Level::WARN),
    ("info", Level::INFO),
    ("debug", Level::DEBUG),
    ("trace", Level::TRACE),
];

/// Where the kernel's resource manager is: other programs may use the TPM too.
const TPM_DEVICE: &str = "/dev/tpmrm0";

/// Firmware, its configuration, the boot loader and the Secure Boot policy (TCG PC Client Platform
/// Firmware Profile, PCR usage).
const TPM_PCRS: [u8; 4] = [0, 2, 4, 7];

/// A TPM has 24 PCRs (TCG PC Client Platform TPM Profile).
const PCR_MAX: u8 = 23;

/// Slow chips need seconds to make a key; after minutes nothing will come.
const TPM_TIMEOUT: Span = Span {
    bounds: Duration::from_secs(1)..=Duration::from_secs(5 * 60),
    or_zero: false,
};

const TPM_TIMEOUT_USUAL: Duration = Duration::from_secs(30);

/// Shorter, and a batch has one reading; longer, and a power cut costs more than a minute.
const BATCH_INTERVAL: Span = Span {
    bounds: Duration::from_millis(100)..=Duration::from_secs(60),
    or_zero: false,
};

/// At 100 bytes a reading, a batch still fits a message.
const BATCH_READINGS_MAX: usize = 10_000;

const MIB: u64 = 1 << 20;

/// More than any gateway's disk has.
const TIB: u64 = 1 << 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_name_becomes_a_name() {
        assert_eq!(name_of_host("greenhouse-7\n"), "greenhouse-7");
        assert_eq!(name_of_host("Barn_2.farm.example"), "barn_2");
        assert_eq!(name_of_host("--größe"), "gr--e");
        assert_eq!(name_of_host(""), "gateway");
        assert!(wire::is_name(&name_of_host(&"a".repeat(200))));
        assert!(wire::is_name(&host_name()));
    }
}

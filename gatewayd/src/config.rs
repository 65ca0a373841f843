//! `/etc/gatewayd/gatewayd.toml` and `conf.d/*.toml` beside it: read once at start.
//!
//! Two forms: the files, as people wrote them, and [`Config`], which the daemon runs on; nothing
//! after [`Config::load`] checks it again. Loading names every mistake in every file at once.
//!
//! | part        | what it knows                                                      |
//! |-------------|--------------------------------------------------------------------|
//! | `mistakes`  | where a mistake is, and how it is told                             |
//! | `table`     | one TOML table: which keys it has and which were asked for         |
//! | `value`     | the kinds of values and their bounds; `quantity` and `words` below |
//! | `draft`     | what all files say together, and the tables of the daemon itself   |
//! | `service`   | `[[service]]`; `pattern` says which sensors it receives            |
//! | `source`    | `[[bus]]` and `[ble]`                                              |
//! | `sensor`    | `[[sensor]]`, with the keys of each format in `modbus` and `ble`   |
//! | `check`     | what only all files together can tell                              |

mod ble;
mod check;
mod draft;
mod mistakes;
mod modbus;
mod pattern;
mod quantity;
mod sensor;
mod service;
mod source;
mod table;
mod value;
mod words;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use channel::Fingerprint;
use drivers::{ble::BleConfig, modbus::DeviceConfig, serial::BusConfig};
use wire::Class;

use draft::Draft;
use mistakes::{BYTES_MAX, File, Notebook};
use table::Table;

pub use mistakes::{Mistake, Mistakes};
pub use pattern::Patterns;

/// Settings that have been checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What people call this gateway; the host name unless the file says otherwise.
    pub name: String,
    /// What the log leaves out.
    pub log: tracing::Level,
    /// The chip that holds the identity.
    pub tpm: TpmConfig,
    /// How much the spool may take.
    pub spool: spool::Limits,
    /// When a batch is closed.
    pub batch: BatchConfig,
    /// Who receives readings, at least one, in the order of the files.
    pub services: Vec<ServiceConfig>,
    /// What makes readings, in the order of the files. A sensor's number is its place here, so
    /// those that are off are here too.
    pub sensors: Vec<SensorConfig>,
    /// Serial ports with the devices that are on, in the order of the files.
    pub buses: Vec<(BusConfig, Vec<DeviceConfig>)>,
    /// The Bluetooth sensors that are on; `None` if there are none.
    pub ble: Option<BleConfig>,
}

/// The chip that holds the identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmConfig {
    /// How it is reached.
    pub device: hsm::Tpm,
    /// How long an operation may take, 1 s to 5 min.
    pub timeout: Duration,
    /// The PCRs that a quote covers, 0 to 23, rising.
    pub pcrs: Vec<u8>,
}

/// When a batch is closed: on whichever limit comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchConfig {
    /// Time since its first reading, 100 ms to 1 min.
    pub interval: Duration,
    /// Number of its readings, 1 to 10,000.
    pub readings_max: usize,
}

/// One receiver of readings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Its name here.
    pub name: String,
    /// Where it is reached, 8 at most; empty: as its ticket says.
    pub addresses: Vec<link::Address>,
    /// Its identity; `None`: as its ticket says.
    pub key: Option<Fingerprint>,
    /// The sensors whose readings leave for it.
    pub sensors: Patterns,
    /// What its relays want to see.
    pub relay_token: Option<secret::Secret>,
}

/// What the daemon knows about a sensor, whatever its format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SensorConfig {
    /// Its name.
    pub name: String,
    /// How urgent its readings are.
    pub class: Class,
    /// The bus it is on, or `ble`.
    pub source: String,
    /// Whether it is listened to.
    pub enabled: bool,
    /// How often it is polled, or the most often a sensor that speaks by itself is heard; zero:
    /// whenever it speaks.
    pub interval: Duration,
    /// How long it may say nothing before it counts as silent, 1 s to 30 d.
    pub silent_after: Duration,
    /// The channels that have a class of their own.
    pub channel_classes: BTreeMap<String, Class>,
}

impl Config {
    /// Reads the file at `path`, and `conf.d/*.toml` in the same folder in the order of their
    /// names: tables merge key by key, the later file wins; lists are appended.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Unreadable`] if a file cannot be read; a folder `conf.d` need not exist.
    /// [`ConfigError::Mistakes`] with all mistakes in all files.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut files = Vec::new();
        for path in paths(path)? {
            let bytes = read(&path).map_err(|source| ConfigError::Unreadable {
                path: path.clone(),
                source,
            })?;
            files.push(File::new(files.len(), path, bytes));
        }
        Self::from_files(&files).map_err(ConfigError::Mistakes)
    }

    fn from_files(files: &[File]) -> Result<Self, Mistakes> {
        let notebook = Notebook::default();
        let tables: Vec<_> = files
            .iter()
            .map(|file| (file, file.parse(&notebook)))
            .collect();
        let mut draft = Draft::default();
        for (file, table) in &tables {
            if let Some(table) = table {
                draft.read(Table::root(file, &notebook, table));
            }
        }
        check::repeats(&draft, &notebook);
        // What nobody finds may stand in a file that nobody could read.
        if tables.iter().all(|(_, table)| table.is_some()) {
            check::references(&draft, &notebook);
        }
        match notebook.close() {
            Some(mistakes) => Err(mistakes),
            None => Ok(draft.finish()),
        }
    }
}

/// The files of the configuration, in the order in which they are read.
fn paths(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let mut paths = vec![path.to_owned()];
    let folder = path.with_file_name("conf.d");
    match more_paths(&folder) {
        Ok(more) => paths.extend(more),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            let path = folder;
            return Err(ConfigError::Unreadable { path, source });
        }
    }
    Ok(paths)
}

/// The `*.toml` in a folder, by name, but those that editors hide while they work.
fn more_paths(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name.ends_with(b".toml") && !name.starts_with(b".") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads a file, and stops soon after it is too long.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(BYTES_MAX).map_or(u64::MAX, |limit| limit + 1);
    std::fs::File::open(path)?
        .take(limit)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Why there is no [`Config`].
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or folder cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },

    /// The files can be read, and not be obeyed.
    #[error("{0}")]
    Mistakes(Mistakes),
}

#[cfg(test)]
mod tests {
    use drivers::ble::{BleFormat, BleSensor};
    use drivers::modbus::{ByteOrder, ChannelConfig, DataType, Register};
    use drivers::serial::Parity;
    use proptest::prelude::*;
    use wire::{Decimal, Unit};

    use super::*;

    #[test]
    fn an_empty_file_is_valid_and_has_the_defaults() {
        let config = check(&[""]).unwrap();
        assert!(wire::is_name(&config.name));
        let expected = Config {
            name: config.name.clone(),
            log: tracing::Level::INFO,
            tpm: TpmConfig {
                device: hsm::Tpm::Device("/dev/tpmrm0".into()),
                timeout: Duration::from_secs(30),
                pcrs: vec![0, 2, 4, 7],
            },
            spool: spool::Limits {
                max_bytes: 256 << 20,
                min_free_bytes: 512 << 20,
            },
            batch: BatchConfig {
                interval: Duration::from_secs(1),
                readings_max: 1000,
            },
            services: vec![ServiceConfig {
                name: "cloud".into(),
                addresses: vec![],
                key: None,
                sensors: Patterns::default(),
                relay_token: None,
            }],
            sensors: vec![],
            buses: vec![],
            ble: None,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn the_daemon_and_its_services_are_as_the_example_says() {
        let config = check(&[EXAMPLE]).unwrap();
        assert_eq!(config.name, "greenhouse-7");
        assert_eq!(config.log, tracing::Level::DEBUG);
        assert_eq!(config.tpm.device, "swtpm:127.0.0.1:2321".parse().unwrap());
        assert_eq!(config.tpm.pcrs, [0, 7]);
        assert_eq!(config.spool.max_bytes, 64 << 20);
        assert_eq!(config.batch.interval, Duration::from_millis(500));

        let [farm, board] = config.services.as_slice() else {
            panic!("{:?}", config.services);
        };
        assert_eq!(farm.name, "farm");
        assert_eq!(farm.addresses.len(), 2);
        assert_eq!(farm.key, None);
        assert!(farm.sensors.matches("climate"));
        assert_eq!(board.name, "water-board");
        assert_eq!(
            board.addresses,
            ["tcp://intake.example:4431".parse().unwrap()]
        );
        assert_eq!(board.key, Some(KEY.parse().unwrap()));
        assert!(board.sensors.matches("irrigation"));
        assert!(!board.sensors.matches("climate"));
    }

    #[test]
    fn buses_have_the_devices_that_are_on() {
        let config = check(&[EXAMPLE]).unwrap();
        let [(rs485, devices), (spare, none)] = config.buses.as_slice() else {
            panic!("{:?}", config.buses);
        };
        let expected = BusConfig {
            name: "rs485".into(),
            port: "/dev/serial/by-id/usb-FTDI-port0".into(),
            baud_rate: 19_200,
            data_bits: 8,
            parity: Parity::Even,
            stop_bits: 1,
            timeout: Duration::from_secs(1),
            pause_between_requests: Duration::from_millis(20),
        };
        assert_eq!(rs485, &expected);
        assert_eq!((spare.name.as_str(), none.len()), ("spare", 0));

        let [climate, irrigation] = devices.as_slice() else {
            panic!("{devices:?}");
        };
        assert_eq!((climate.slave_id, climate.byte_order), (1, ByteOrder::Abcd));
        assert_eq!(climate.interval, Duration::from_secs(5));
        let co2 = ChannelConfig {
            name: "co2".into(),
            register: Register::Input,
            address: 4,
            data_type: DataType::Uint16,
            length: 1,
            scale: Decimal::new(1, 0),
            offset: Decimal::new(0, 0),
            unit: Unit::parse("ppm"),
            range: None,
            invalid: vec![0xffff],
        };
        let temperature = ChannelConfig {
            name: "temperature".into(),
            address: 0,
            data_type: DataType::Int16,
            scale: Decimal::new(1, -1),
            offset: Decimal::new(-5, -1),
            unit: Unit::parse("Cel"),
            range: Some((Decimal::new(-40, 0), Decimal::new(805, -1))),
            invalid: vec![],
            ..co2.clone()
        };
        assert_eq!(climate.channels, [co2, temperature]);
        assert_eq!(
            (irrigation.slave_id, irrigation.byte_order),
            (2, ByteOrder::Cdab)
        );
        assert_eq!(irrigation.timeout, Some(Duration::from_millis(300)));
        assert_eq!(irrigation.interval, Duration::from_secs(10));
        assert_eq!(irrigation.channels[0].register, Register::Holding);
    }

    #[test]
    fn a_sensor_that_is_off_keeps_its_number_and_nothing_else() {
        let config = check(&[EXAMPLE]).unwrap();
        let names: Vec<_> = config.sensors.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(
            names,
            ["climate", "meter", "irrigation", "door", "bed-1", "bed-2"]
        );
        assert!(!config.sensors[1].enabled && !config.sensors[5].enabled);

        let irrigation = &config.sensors[2];
        assert_eq!(
            (irrigation.class, irrigation.source.as_str()),
            (Class::Critical, "rs485")
        );
        assert_eq!(
            irrigation.channel_classes,
            [("serial".into(), Class::Bulk)].into()
        );
        assert_eq!(irrigation.silent_after, Duration::from_secs(600));
        assert_eq!(
            config.sensors[4].silent_after,
            Duration::from_secs(3 * 3600)
        );

        let broadcaster = |sensor: &str, address, format, interval| BleSensor {
            sensor: sensor.into(),
            address,
            format,
            interval,
        };
        let (door, bed) = (
            [0x54, 0x48, 0xe6, 0x8f, 0x80, 0xa5],
            [0xcb, 0xb8, 0x33, 0x4c, 0x88, 0x4f],
        );
        let expected = BleConfig {
            adapter: "hci1".into(),
            sensors: vec![
                broadcaster("door", door, BleFormat::Bthome, Duration::ZERO),
                broadcaster("bed-1", bed, BleFormat::Ruuvi, Duration::from_secs(3600)),
            ],
        };
        assert_eq!(config.ble, Some(expected));
    }

    #[test]
    fn the_mistakes_of_all_files_are_told_at_once_and_in_order() {
        let main = r#"name = "greenhouse-7"
[spool]
max_siz = "256MiB"
[[bus]]
name = "rs485"
port = "/dev/ttyUSB0"
[[sensor]]
name = "climate"
source = "rs485"
format = "modbus"
slave_id = 1
channels.temperature = { address = 0, type = "INT61" }
[[sensor]]
name = "meter"
source = "rs485"
format = "modbus"
slave_id = 1
channels.energy = { address = 0, type = "UINT32" }
"#;
        let door = r#"[[sensor]]
name = "door"
source = "ble"
format = "bthome"
address = "54:48:E6:8F:80:A5"
key = "231d39c1d7cc1ab1aee224cd096db932"
[[sensor]]
name = "climate"
source = "rs458"
format = "nmea"
"#;
        let expected = r#"0.toml:3: spool.max_siz: unknown key; nearest is "max_size"
0.toml:12: sensor "climate": type "INT61" is unknown; nearest is "INT16"
0.toml:17: sensor "meter": slave_id 1 on "rs485" is taken by "climate" (line 11)
1.toml:6: sensor "door": key is inline; use "credential:NAME" or "file:/PATH"
1.toml:8: sensor "climate": name "climate" is taken by another (0.toml:8)
1.toml:9: sensor "climate": source "rs458" is no bus; nearest is "rs485"
1.toml:10: sensor "climate": format "nmea" is not supported by this version; there are: modbus, bthome, ruuvi
7 mistakes in 2 files."#;
        let mistakes = check(&[main, door]).unwrap_err();
        assert_eq!(mistakes.to_string(), expected);
        assert_eq!((mistakes.len(), mistakes.iter().count()), (7, 7));
        let one = check(&["nam = 1"]).unwrap_err().to_string();
        assert_eq!(
            one,
            "0.toml:1: nam: unknown key; nearest is \"name\"\n1 mistake in 1 file."
        );
    }

    #[test]
    fn a_file_that_is_not_toml_has_one_mistake_and_hides_none_elsewhere() {
        let broken = "name = \"a\"\n\n[spool\nmax_size = 1\n";
        let sensor = format!("log.level = \"loud\"\n{SENSOR}");
        let mistakes = check(&[broken, &sensor]).unwrap_err();
        let lines: Vec<_> = mistakes
            .iter()
            .map(|it| (it.path.clone(), it.line))
            .collect();
        // The bus of the sensor may well be in the broken file.
        assert_eq!(lines, [("0.toml".into(), 3), ("1.toml".into(), 1)]);
        assert!(
            mistakes
                .to_string()
                .starts_with("0.toml:3: this is not TOML: "),
            "{mistakes}"
        );

        let not_text = File::new(
            0,
            "0.toml".into(),
            b"name = \"a\"\n\nb = \"\xff\"\n".to_vec(),
        );
        let mistakes = Config::from_files(&[not_text]).unwrap_err();
        let expected = "0.toml:3: this is not UTF-8; save the file as UTF-8";
        assert!(mistakes.to_string().starts_with(expected), "{mistakes}");

        let endless = File::new(0, "0.toml".into(), vec![b'\n'; BYTES_MAX + 1]);
        let mistakes = Config::from_files(&[endless]).unwrap_err();
        assert!(
            mistakes.to_string().contains("more than 4 MiB"),
            "{mistakes}"
        );
        let large = File::new(0, "0.toml".into(), vec![b'\n'; BYTES_MAX]);
        assert!(Config::from_files(&[large]).is_ok());
    }

    #[test]
    fn every_bound_is_kept() {
        for (wanted, inside, outside) in BOUNDS {
            for value in inside {
                let text = expand(&wanted.replace('?', value));
                assert!(
                    check(&[&text]).is_ok(),
                    "{text}\n{}",
                    check(&[&text]).unwrap_err()
                );
            }
            for value in outside {
                let text = expand(&wanted.replace('?', value));
                let mistakes = check(&[&text]).expect_err(&text);
                assert_eq!(mistakes.len(), 1, "{text}\n{mistakes}");
            }
        }
    }

    #[test]
    fn every_bound_of_a_channel_is_kept() {
        let fine = [
            r#"address = 65535, type = "INT16", register = "holding""#,
            r#"address = 65532, type = "FLOAT64", scale = 1e-3, offset = -273.15, range = [1, 1]"#,
            r#"address = 0, type = "STRING", length = 125"#,
            r#"address = 0, type = "UINT64", invalid = [-1, 0xFFFF_FFFF_FFFF_FFFF]"#,
            r#"address = 0, type = "INT8L", invalid = [-128, 255], unit = "Cel", class = "bulk""#,
        ];
        for channel in fine {
            let text = expand(&format!(
                "@device\nslave_id = 1\nchannels.b = {{ {channel} }}"
            ));
            assert!(
                check(&[&text]).is_ok(),
                "{text}\n{}",
                check(&[&text]).unwrap_err()
            );
        }
        for (channel, why) in WRONG_CHANNELS {
            let text = expand(&format!(
                "@device\nslave_id = 1\nchannels.b = {{ {channel} }}"
            ));
            let mistakes = check(&[&text]).expect_err(&text).to_string();
            assert!(mistakes.contains(why), "{text}\n{mistakes}");
            assert!(
                mistakes.ends_with("\n1 mistake in 1 file."),
                "{text}\n{mistakes}"
            );
        }
    }

    #[test]
    fn numbers_of_channels_are_bounded() {
        let channels = |number| {
            let channel = |i| format!("channels.c{i} = {{ address = {i}, type = \"INT16\" }}\n");
            let channels: String = (0..number).map(channel).collect();
            expand(&format!("@bare\nslave_id = 1\n{channels}"))
        };
        assert!(check(&[&channels(1)]).is_ok());
        assert!(check(&[&channels(256)]).is_ok());
        assert_eq!(check(&[&channels(0)]).unwrap_err().len(), 1);
        assert_eq!(check(&[&channels(257)]).unwrap_err().len(), 1);
    }

    #[test]
    fn a_bare_number_names_the_string_meant() {
        for (text, expected) in [
            (
                "batch.interval = 5",
                "batch.interval: 5 is a bare number; write \"5s\"",
            ),
            (
                "batch.interval = \"5\"",
                "batch.interval: \"5\" is a bare number; write \"5s\"",
            ),
            (
                "batch.interval = 0.5",
                "batch.interval: 0.5 is a bare number; write \"500ms\"",
            ),
            (
                "spool.max_size = 256",
                "spool.max_size: 256 is a bare number; write \"256MiB\"",
            ),
            (
                "@sensor\ninterval = 60",
                "sensor \"s\": interval 60 is a bare number; write \"1min\"",
            ),
            (
                "tpm.timeout = -1",
                "tpm.timeout: -1 is a bare number; write it like \"500ms\", \"30s\"",
            ),
        ] {
            let mistakes = check(&[&expand(text)]).unwrap_err().to_string();
            assert!(mistakes.contains(expected), "{mistakes}");
        }
    }

    #[test]
    fn what_a_later_version_has_is_refused_in_so_many_words() {
        for text in [
            "[clock]\nsources = [\"ntp\"]",
            "metrics.listen = \"127.0.0.1:9464\"",
            "[[allow]]\nwho = \"farm\"",
            "ble.max_connections = 3",
            "@service\nshare = \"25%\"",
            "@bus\nrs485 = {}",
            "@bus\nworkarounds.pause_after_connect = \"1s\"",
            "@sensor\naddress_style = \"40001\"",
            "@sensor\nworkarounds = {}",
            "@sensor\nframing = \"cobs\"",
            "@sensor\nkey = \"credential:meter\"",
            "@ruuvi\naddress = \"CB:B8:33:4C:88:4F\"\nmatch = {}",
            "@ruuvi\naddress = \"CB:B8:33:4C:88:4F\"\nkey = \"file:/a\"",
            "[[sensor]]\nname = \"x\"\nsource = \"ble\"\nformat = \"gatt\"\nservices = []",
        ] {
            let mistakes = check(&[&expand(text)]).expect_err(text);
            assert_eq!(mistakes.len(), 1, "{mistakes}");
            assert!(
                mistakes
                    .to_string()
                    .contains("not supported by this version"),
                "{mistakes}"
            );
        }
    }

    #[test]
    fn a_secret_in_a_file_is_never_shown() {
        for key in ["\"5eC-r3t\"", "[\"5eC-r3t\"]", "{ a = \"5eC-r3t\" }"] {
            let text = format!("@ruuvi\naddress = \"CB:B8:33:4C:88:4F\"\nkey = {key}");
            let mistakes = check(&[&expand(&text)]).unwrap_err().to_string();
            assert!(mistakes.contains("key is inline"), "{mistakes}");
            assert!(!mistakes.contains("5eC-r3t"), "{mistakes}");
        }
    }

    #[test]
    fn what_only_one_may_have_is_given_once() {
        let bed = |name: &str, address: &str| {
            format!(
                "[[sensor]]\nname = \"{name}\"\nsource = \"ble\"\nformat = \"ruuvi\"\n\
                 address = \"{address}\"\n"
            )
        };
        let beds = [bed("a", "cb:b8:33:4c:88:4f"), bed("b", "CB:B8:33:4C:88:4F")].concat();
        let ports = "[[bus]]\nname = \"a\"\nport = \"/dev/x\"\n".to_owned()
            + "[[bus]]\nname = \"b\"\nport = \"/dev/x\"";
        let keys = format!("[[service]]\nname = \"a\"\nkey = \"{KEY}\"\n").to_owned()
            + &format!("[[service]]\nname = \"b\"\nkey = \"{KEY}\"\n");
        let names = "[[service]]\nname = \"a\"\n[[service]]\nname = \"a\"";
        for (text, expected) in [
            (
                beds.as_str(),
                "0.toml:10: sensor \"b\": address is taken by \"a\" (line 5)",
            ),
            (
                &ports,
                "0.toml:6: bus \"b\": port \"/dev/x\" is taken by \"a\" (line 3)",
            ),
            (
                &keys,
                "0.toml:6: service \"b\": key is taken by \"a\" (line 3)",
            ),
            (
                names,
                "0.toml:4: service \"a\": name \"a\" is taken by another (line 2)",
            ),
        ] {
            let mistakes = check(&[text]).unwrap_err().to_string();
            assert!(
                mistakes.starts_with(&format!("{expected}\n1 mistake ")),
                "{mistakes}"
            );
        }
    }

    #[test]
    fn what_is_named_must_be_there_and_fit() {
        let gi = KEY.replace("sv-", "gi-");
        let other = KEY.replace("sv-m", "sv-n");
        for (text, expected) in [
            ("@sensor\n[[sensor]]", "sensor: name is missing"),
            (
                "[[bus]]\nname = \"ble\"\nport = \"/dev/x\"",
                "\"ble\" means Bluetooth",
            ),
            ("[[bus]]\nname = \"a\"", "port is missing"),
            (
                "[[bus]]\nname = \"a\"\nport = \"ttyUSB0\"",
                "is not the path of a port",
            ),
            ("[sensor]\nname = \"a\"", "write [[sensor]]"),
            ("sensor = [1]", "wants a table"),
            ("spool = 1", "wants a table"),
            ("@bus\ndata_bits = 7\n@sensor-only", "has not 8 data_bits"),
            (
                "@bus\n@ruuvi-on-bus",
                "its format is broadcast; write \"ble\"",
            ),
            ("@modbus-on-ble", "does not speak \"modbus\""),
            (
                "@service\nsensors = [\"clima\"]\n@sensor",
                "\"clima\" is no sensor",
            ),
            ("@service\nsensors = [\"!gps\"]", "\"gps\" is no sensor"),
            ("@service\nsensors = []", "is empty"),
            ("@service\nsensors = [\"A\"]", "is not a pattern"),
            (
                "@service\nkey = \"sv-short\"",
                "is not the fingerprint of a service",
            ),
            (
                &format!("@service\nkey = \"{gi}\""),
                "is not the fingerprint of a service",
            ),
            (
                &format!("@service\nkey = \"{KEY}\"\naddresses = [\"relay://h:1/{other}\"]"),
                "another service than key",
            ),
        ] {
            let mistakes = check(&[&expand(text)]).expect_err(text).to_string();
            assert!(mistakes.contains(expected), "{text}\n{mistakes}");
        }
    }

    #[test]
    fn files_beside_it_are_read_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("gatewayd.toml");
        let more = folder.path().join("conf.d");
        std::fs::write(
            &main,
            "name = \"a\"\nspool.min_free = \"1GiB\"\ntpm.pcrs = [7]",
        )
        .unwrap();
        assert_eq!(Config::load(&main).unwrap().name, "a");

        std::fs::create_dir(&more).unwrap();
        let bus = "[[bus]]\nname = \"b\"\nport = \"/dev/b\"";
        let last = "name = \"c\"\nspool.max_size = \"8MiB\"\ntpm.pcrs = [1]\n";
        std::fs::write(
            more.join("20.toml"),
            format!("{last}[[bus]]\nname = \"c\"\nport = \"/c\""),
        )
        .unwrap();
        std::fs::write(more.join("10.toml"), format!("name = \"b\"\n{bus}")).unwrap();
        std::fs::write(more.join("10.toml.bak"), "wrong").unwrap();
        std::fs::write(more.join(".#20.toml"), "wrong").unwrap();
        let config = Config::load(&main).unwrap();
        assert_eq!(config.name, "c");
        assert_eq!(config.tpm.pcrs, [1, 7]);
        assert_eq!(
            (config.spool.max_bytes, config.spool.min_free_bytes),
            (8 << 20, 1 << 30)
        );
        let buses: Vec<_> = config
            .buses
            .iter()
            .map(|(bus, _)| bus.name.as_str())
            .collect();
        assert_eq!(buses, ["b", "c"]);

        std::fs::create_dir(more.join("30.toml")).unwrap();
        let error = Config::load(&main).unwrap_err();
        let path_expected = more.join("30.toml");
        assert!(matches!(error, ConfigError::Unreadable { path, .. } if path == path_expected));
        let error = Config::load(&folder.path().join("none.toml")).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap();
        let cause = cause.downcast_ref::<io::Error>().unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_shipped_file_does_nothing_and_its_examples_work() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/gatewayd.toml");
        let shipped = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            Config::load(Path::new(path)).unwrap(),
            check(&[""]).unwrap()
        );

        let is_setting = |line: &&str| line.starts_with('[') || line.contains(" = ");
        let lines = shipped.lines().filter_map(|line| line.strip_prefix("# "));
        let examples: Vec<_> = lines.filter(is_setting).collect();
        let config = check(&[&examples.join("\n")]).unwrap();
        assert_eq!(config.name, "greenhouse-7");
        assert_eq!((config.sensors.len(), config.services.len()), (2, 1));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".*", more in "[a-z\\[\\]{}=.,\"'\n0-9_#-]*") {
            let _ = check(&[&text, &more]);
        }

        /// Near what is right, every branch is within reach.
        #[test]
        fn a_spoilt_file_is_read_without_a_panic(
            from in 0..EXAMPLE.len(),
            length in 0..40_usize,
            with in "[a-z\\[\\]{}=., \"\n0-9_-]{0,6}|nan|true|-1|[0-9]{1,40}|1e[0-9]{1,6}",
        ) {
            let mut text = EXAMPLE.to_owned();
            text.replace_range(from..text.len().min(from + length), &with);
            if let Err(mistakes) = check(&[&text, EXAMPLE]) {
                let lines = text.matches('\n').count().max(EXAMPLE.matches('\n').count()) + 1;
                for mistake in mistakes.iter() {
                    prop_assert!((1..=lines).contains(&mistake.line), "{}", mistake);
                    prop_assert_eq!(mistake.to_string().lines().count(), 1);
                }
            }
        }
    }

    fn check(texts: &[&str]) -> Result<Config, Mistakes> {
        let files: Vec<_> = (0..)
            .zip(texts)
            .map(|(i, text)| File::new(i, format!("{i}.toml").into(), text.as_bytes().to_vec()))
            .collect();
        Config::from_files(&files)
    }

    /// Puts the items that a case needs in place of `@word`.
    fn expand(text: &str) -> String {
        let bus = "[[bus]]\nname = \"b\"\nport = \"/dev/x\"";
        let sensor = "[[sensor]]\nname = \"s\"\nsource = \"b\"\nformat = \"modbus\"";
        let ruuvi = "[[sensor]]\nname = \"r\"\nsource = \"ble\"\nformat = \"ruuvi\"";
        let channel = "channels.a = { address = 0, type = \"INT16\" }";
        let address = "address = \"CB:B8:33:4C:88:4F\"";
        text.replace("@service", "[[service]]\nname = \"farm\"")
            .replace("@bus", bus)
            .replace(
                "@sensor-only",
                &format!("{sensor}\nslave_id = 1\n{channel}"),
            )
            .replace(
                "@sensor",
                &format!("{bus}\n{sensor}\nslave_id = 1\n{channel}"),
            )
            .replace("@device", &format!("{bus}\n{sensor}\n{channel}"))
            .replace("@bare", &format!("{bus}\n{sensor}"))
            .replace(
                "@modbus-on-ble",
                &format!(
                    "{}\nslave_id = 1\n{channel}",
                    sensor.replace("\"b\"", "\"ble\"")
                ),
            )
            .replace(
                "@ruuvi-on-bus",
                &format!("{}\n{address}", ruuvi.replace("ble", "b")),
            )
            .replace("@ruuvi", ruuvi)
    }

    const SENSOR: &str = r#"[[sensor]]
name = "climate"
source = "rs485"
format = "modbus"
slave_id = 1
channels.temperature = { address = 0, type = "INT16" }
"#;

    /// Where, what is just inside, what is just outside.
    const BOUNDS: [(&str, &[&str], &[&str]); 26] = [
        (
            "name = ?",
            &["\"a\"", "\"7_-\""],
            &["\"\"", "\"A\"", "\"-a\"", "7"],
        ),
        ("log.level = ?", &["\"trace\""], &["\"all\"", "true"]),
        (
            "tpm.device = ?",
            &["\"/dev/tpm0\"", "\"swtpm:localhost:2321\""],
            &["\"tpm0\"", "\"swtpm:a\""],
        ),
        (
            "tpm.timeout = ?",
            &["\"1s\"", "\"5min\""],
            &["\"999ms\"", "\"301s\"", "5"],
        ),
        (
            "tpm.pcrs = ?",
            &["[]", "[0, 23]"],
            &["[-1]", "[24]", "[\"1\"]", "7"],
        ),
        (
            "spool.max_size = ?",
            &["\"4MiB\"", "\"1TiB\""],
            &["\"4095KiB\"", "\"1025GiB\"", "64"],
        ),
        (
            "spool.min_free = ?",
            &["\"0B\"", "\"1TiB\""],
            &["\"2TiB\"", "\"1MB\"", "[]"],
        ),
        (
            "batch.interval = ?",
            &["\"100ms\"", "\"1min\""],
            &["\"99ms\"", "\"61s\"", "\"0s\""],
        ),
        (
            "batch.max_readings = ?",
            &["1", "10000"],
            &["0", "10001", "1.5", "\"1\""],
        ),
        (
            "ble.adapter = ?",
            &["\"auto\"", "\"hci12\"", "\"00:11:22:33:44:5f\""],
            &["\"hci\"", "\"\"", "0"],
        ),
        (
            "ble.unknown = ?",
            &["\"ignore\""],
            &["\"list\"", "\"collect\"", "\"x\""],
        ),
        (
            "@bus\nbaud_rate = ?",
            &["300", "4_000_000"],
            &["299", "4000001", "99999999999"],
        ),
        ("@bus\ndata_bits = ?", &["5", "8"], &["4", "9"]),
        (
            "@bus\nparity = ?",
            &["\"N\"", "\"E\"", "\"O\""],
            &["\"M\"", "\"n\""],
        ),
        ("@bus\nstop_bits = ?", &["1", "2"], &["0", "3"]),
        (
            "@bus\ntimeout = ?",
            &["\"10ms\"", "\"1min\""],
            &["\"9ms\"", "\"61s\""],
        ),
        (
            "@bus\nworkarounds.pause_between_requests = ?",
            &["\"0s\"", "\"1min\""],
            &["\"61s\"", "20"],
        ),
        (
            "@sensor\nclass = ?",
            &["\"bulk\"", "\"critical\""],
            &["\"high\""],
        ),
        (
            "@sensor\nenabled = ?",
            &["true", "false"],
            &["\"yes\"", "1"],
        ),
        (
            "@sensor\ninterval = ?",
            &["\"0s\"", "\"100ms\"", "\"1d\""],
            &["\"99ms\"", "\"25h\"", "5"],
        ),
        (
            "@sensor\nsilent_after = ?",
            &["\"1s\"", "\"30d\""],
            &["\"0s\"", "\"999ms\"", "\"31d\""],
        ),
        (
            "@sensor\ntimeout = ?",
            &["\"10ms\"", "\"1min\""],
            &["\"9ms\"", "\"61s\""],
        ),
        (
            "@sensor\nbyte_order = ?",
            &["\"DCBA\"", "\"BADC\""],
            &["\"ACBD\""],
        ),
        (
            "@device\nslave_id = ?",
            &["1", "247"],
            &["0", "248", "-1", "\"1\""],
        ),
        (
            "@ruuvi\naddress = ?",
            &["\"cb:B8:33:4C:88:4F\""],
            &[
                "\"cb:B8:33:4C:88\"",
                "\"cb:B8:33:4C:88:4F:00\"",
                "\"+b:B8:33:4C:88:4F\"",
                "1",
            ],
        ),
        (
            "@service\naddresses = ?",
            &["[\"tcp://h:1\"]", "[\"relay://[::1]:65535\"]"],
            &["[]", "[\"h:1\"]", "\"tcp://h:1\"", NINE],
        ),
    ];

    /// A channel, and what its one mistake says.
    const WRONG_CHANNELS: [(&str, &str); 22] = [
        (r#"type = "INT16""#, "address is missing"),
        ("address = 0", "type is missing"),
        (r#"address = 65536, type = "INT16""#, "write 0 to 65535"),
        (
            r#"address = 65535, type = "INT32""#,
            "the value ends after 65535",
        ),
        (
            r#"address = 0, type = "BIT""#,
            "not supported by this version",
        ),
        (
            r#"address = 0, type = "INT16", register = "coil""#,
            "not supported by this version",
        ),
        (
            r#"address = 0, type = "INT16", bit = 3"#,
            "not supported by this version",
        ),
        (
            r#"address = 0, type = "INT16", length = 2"#,
            "is for type \"STRING\"",
        ),
        (
            r#"address = 0, type = "STRING", length = 126"#,
            "write 1 to 125",
        ),
        (
            r#"address = 0, type = "STRING", length = 0"#,
            "write 1 to 125",
        ),
        (
            r#"address = 0, type = "STRING", scale = 2"#,
            "is for numbers",
        ),
        (
            r#"address = 0, type = "INT16", scale = 0.0"#,
            "makes every value the same",
        ),
        (
            r#"address = 0, type = "INT16", scale = nan"#,
            "kept exactly",
        ),
        (
            r#"address = 0, type = "INT16", offset = 1e999"#,
            "kept exactly",
        ),
        (
            r#"address = 0, type = "INT16", offset = 0.12345678901234567891"#,
            "kept exactly",
        ),
        (
            r#"address = 0, type = "INT16", range = [2, 1]"#,
            "write [1, 2]",
        ),
        (
            r#"address = 0, type = "INT16", range = [2]"#,
            "wants two numbers",
        ),
        (r#"address = 0, type = "INT16", range = 2"#, "wants a list"),
        (
            r#"address = 0, type = "INT16", invalid = [65536]"#,
            "write -32768 to 65535",
        ),
        (
            r#"address = 0, type = "INT8H", invalid = [-129]"#,
            "write -128 to 255",
        ),
        (
            r#"address = 0, type = "INT16", unit = "cel""#,
            "nearest is \"Cel\"",
        ),
        (
            r#"address = 0, type = "INT16", typ = 1"#,
            "nearest is \"type\"",
        ),
    ];

    const NINE: &str = r#"["tcp://h:1", "tcp://h:2", "tcp://h:3", "tcp://h:4", "tcp://h:5", "tcp://h:6", "tcp://h:7", "tcp://h:8", "tcp://h:9"]"#;

    const KEY: &str = "sv-mfzwi2lnoqqhk5lbnz2ca3lvmnxca43fmnzgk5bamnugc3tomvwa";

    const EXAMPLE: &str = r#"name = "greenhouse-7"
log.level = "debug"
[tpm]
device = "swtpm:127.0.0.1:2321"
pcrs = [7, 0]
[spool]                        # when full: oldest bulk first, then normal, then critical
max_size = "64MiB"             # the whole directory, write-ahead log included
[batch]
interval = "500ms"

[[service]]                    # a ticket brings its addresses and key; written here, they win
name = "farm"
addresses = ["relay://relay-a.example:4430", "relay://relay-b.example:4430"]
[[service]]
name = "water-board"
addresses = ["tcp://intake.example:4431"]
key = "sv-mfzwi2lnoqqhk5lbnz2ca3lvmnxca43fmnzgk5bamnugc3tomvwa"   # the service's fingerprint
sensors = ["irrigation", "tank*"]   # nothing else leaves for this service

[[bus]]                        # a serial port; a sick sensor costs its own time slot only
name = "rs485"
port = "/dev/serial/by-id/usb-FTDI-port0"
baud_rate = 19200
parity = "E"
workarounds = { pause_between_requests = "20ms" }
[[sensor]]
name = "climate"
source = "rs485"
format = "modbus"
slave_id = 1
interval = "5s"
channels.temperature = { register = "input", address = 0, type = "INT16", scale = 0.1, offset = -0.5, unit = "Cel", range = [-40, 80.5] }
channels.co2 = { register = "input", address = 4, type = "UINT16", unit = "ppm", invalid = [0xFFFF] }
[[sensor]]
name = "meter"
enabled = false
source = "rs485"
format = "modbus"
slave_id = 17
channels.energy = { address = 73, type = "UINT32", scale = 10, unit = "Wh" }
[[sensor]]
name = "irrigation"
source = "rs485"
format = "modbus"
slave_id = 2
class = "critical"             # evicted last, sent first
byte_order = "CDAB"            # this maker swaps the words
timeout = "300ms"
channels.flow = { address = 10, type = "FLOAT32", unit = "l/s" }
channels.serial = { address = 20, type = "STRING", length = 8, class = "bulk" }
[[bus]]
name = "spare"
port = "/dev/ttyS1"

[ble]
adapter = "hci1"
unknown = "ignore"
[[sensor]]
name = "door"
source = "ble"
format = "bthome"
address = "54:48:E6:8F:80:A5"
[[sensor]]
name = "bed-1"
source = "ble"
format = "ruuvi"
address = "CB:B8:33:4C:88:4F"
interval = "1h"
[[sensor]]
name = "bed-2"
source = "ble"
format = "ruuvi"
address = "CB:B8:33:4C:88:50"
enabled = false
"#;
}

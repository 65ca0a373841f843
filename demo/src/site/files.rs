//! The configuration files of a site.

use std::fs;

use super::Site;

impl Site {
    /// Writes the gateway's configuration: the TPM, then `sensors`.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn write_gateway_config(&self, sensors: &str) -> anyhow::Result<()> {
        let hsm::Tpm::Swtpm { host, port } = self.tpm.tpm() else {
            anyhow::bail!("the TPM has no address");
        };
        let text = format!(
            "name = \"greenhouse-7\"\n[tpm]\ndevice = \"swtpm:{host}:{port}\"\n\
             [spool]\nmax_size = \"16MiB\"\nmin_free = \"0MiB\"\n{sensors}"
        );
        fs::write(self.path("gateway/gatewayd.toml"), text)?;
        Ok(())
    }

    /// Two Modbus devices on the cable of [`Site::start_modbus`].
    #[must_use]
    pub fn modbus_sensors(&self) -> String {
        format!(
            r#"
[[bus]]
name = "rs485"
port = "{port}"

[[sensor]]
name = "climate"
source = "rs485"
format = "modbus"
slave_id = 1
interval = "500ms"
channels.temperature = {{ register = "input", address = 0, type = "INT16", scale = 0.1, unit = "Cel" }}
channels.humidity = {{ register = "input", address = 1, type = "UINT16", scale = 0.1, unit = "%RH" }}
channels.co2 = {{ register = "input", address = 2, type = "UINT16", unit = "ppm" }}

[[sensor]]
name = "irrigation"
source = "rs485"
format = "modbus"
slave_id = 2
interval = "1s"
class = "critical"
byte_order = "CDAB"
channels.flow = {{ address = 10, type = "FLOAT32", unit = "l/s" }}
channels.setpoint = {{ address = 20, type = "INT16", scale = 0.1, unit = "Cel" }}
"#,
            port = self.path("serial").display()
        )
    }

    /// The two devices of the BlueZ stand-in.
    #[must_use]
    pub fn ble_sensors(&self) -> &'static str {
        r#"
[[sensor]]
name = "door-room"
source = "ble"
format = "bthome"
address = "54:48:E6:8F:80:A5"

[[sensor]]
name = "bed-1"
source = "ble"
format = "ruuvi"
address = "CB:B8:33:4C:88:4F"
class = "bulk"
"#
    }

    /// Relay and service; everybody knows the relay by the wiretap's address. `admit` is the rest of
    /// a line, and may be followed by others: `"open"`.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn write_cloud_config(&self, admit: &str) -> anyhow::Result<()> {
        let (relay, direct, tap) = (self.relay_port, self.direct_port, self.wiretap.port);
        let text = format!(
            "listen = \"127.0.0.1:{direct}\"\nrelays = [\"relay://127.0.0.1:{tap}\"]\n\
             [relay]\nadmit = {admit}\nlisten = \"127.0.0.1:{relay}\"\nnames = [\"127.0.0.1:{tap}\"]\n"
        );
        fs::write(self.path("cloud/gateway-cloud.toml"), text)?;
        Ok(())
    }

    /// A system bus on which everybody may own and call everything.
    pub(super) fn write_bus_config(&self) -> anyhow::Result<()> {
        let text = format!(
            r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={}</listen>
  <policy context="default">
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"#,
            self.path("bus").display()
        );
        fs::write(self.path("bus.conf"), text)?;
        Ok(())
    }
}

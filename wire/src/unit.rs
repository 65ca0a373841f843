use std::fmt;

/// Declares [`Unit`]: each line is a variant, its registered symbol, and what it means.
macro_rules! units {
    ($($variant:ident $symbol:literal $meaning:literal)+) => {
        /// A unit of measurement, spelled as in IANA's SenML registry.
        ///
        /// Primary units are those of RFC 8428 (12.1), RFC 8798 (2) and `NTU`; after them come the
        /// secondary units of RFC 8798 (3) and the later `CoRE-1` entries. RFC 8798 lets packs use
        /// those where the data model at hand is based on them, as meters and weather stations are.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Unit {
            $(#[doc = $meaning] $variant,)+
        }

        impl Unit {
            /// Every unit, primary ones first.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Finds a unit by its registered symbol, which is case-sensitive.
            #[must_use]
            pub fn parse(symbol: &str) -> Option<Self> {
                match symbol {
                    $($symbol => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The registered symbol.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $symbol,)+
                }
            }
        }
    };
}

units! {
    Meter "m" "meter"
    Kilogram "kg" "kilogram"
    Gram "g" "gram; prefer `kg`"
    Second "s" "second"
    Ampere "A" "ampere"
    Kelvin "K" "kelvin"
    Candela "cd" "candela"
    Mole "mol" "mole"
    Hertz "Hz" "hertz"
    Radian "rad" "radian"
    Steradian "sr" "steradian"
    Newton "N" "newton"
    Pascal "Pa" "pascal"
    Joule "J" "joule"
    Watt "W" "watt"
    Coulomb "C" "coulomb"
    Volt "V" "volt"
    Farad "F" "farad"
    Ohm "Ohm" "ohm"
    Siemens "S" "siemens"
    Weber "Wb" "weber"
    Tesla "T" "tesla"
    Henry "H" "henry"
    Celsius "Cel" "degree Celsius"
    Lumen "lm" "lumen"
    Lux "lx" "lux"
    Becquerel "Bq" "becquerel"
    Gray "Gy" "gray"
    Sievert "Sv" "sievert"
    Katal "kat" "katal"
    SquareMeter "m2" "square meter (area)"
    CubicMeter "m3" "cubic meter (volume)"
    Liter "l" "liter; prefer `m3`"
    MeterPerSecond "m/s" "meter per second (velocity)"
    MeterPerSquareSecond "m/s2" "meter per square second (acceleration)"
    CubicMeterPerSecond "m3/s" "cubic meter per second (flow rate)"
    LiterPerSecond "l/s" "liter per second; prefer `m3/s`"
    WattPerSquareMeter "W/m2" "watt per square meter (irradiance)"
    CandelaPerSquareMeter "cd/m2" "candela per square meter (luminance)"
    Bit "bit" "bit (information content)"
    BitPerSecond "bit/s" "bit per second (data rate)"
    Latitude "lat" "degrees of latitude (WGS 84)"
    Longitude "lon" "degrees of longitude (WGS 84)"
    Ph "pH" "pH value (acidity)"
    Decibel "dB" "decibel"
    DecibelWatt "dBW" "decibel relative to 1 W (power level)"
    BelSoundPressure "Bspl" "bel (sound pressure level); prefer `dB`"
    Count "count" "1 (counter value)"
    Ratio "/" "1 (ratio, such as the position of a switch)"
    Percent "%" "1/100 (ratio); prefer `/`"
    RelativeHumidity "%RH" "percent of relative humidity"
    BatteryPercent "%EL" "percent of battery energy left"
    BatterySeconds "EL" "seconds of battery energy left"
    PerSecond "1/s" "1 per second (event rate)"
    PerMinute "1/min" "1 per minute (event rate); prefer `1/s`"
    BeatPerMinute "beat/min" "heart beats per minute; prefer `1/s`"
    Beats "beats" "cumulative heart beats; prefer `count`"
    SiemensPerMeter "S/m" "siemens per meter (conductivity)"
    Byte "B" "byte (information content)"
    VoltAmpere "VA" "volt-ampere (apparent power)"
    VoltAmpereSecond "VAs" "volt-ampere second (apparent energy)"
    Var "var" "volt-ampere reactive (reactive power)"
    VarSecond "vars" "volt-ampere-reactive second (reactive energy)"
    JoulePerMeter "J/m" "joule per meter (energy per distance)"
    KilogramPerCubicMeter "kg/m3" "kilogram per cubic meter (density, concentration)"
    Degree "deg" "degree (angle); prefer `rad`"
    NephelometricTurbidity "NTU" "nephelometric turbidity unit (ISO 7027-1)"

    Millisecond "ms" "millisecond: 1/1000 s"
    Minute "min" "minute: 60 s"
    Hour "h" "hour: 3600 s"
    Megahertz "MHz" "megahertz: 1 000 000 Hz"
    Kilowatt "kW" "kilowatt: 1000 W"
    KilovoltAmpere "kVA" "kilovolt-ampere: 1000 VA"
    Kilovar "kvar" "kilovar: 1000 var"
    AmpereHour "Ah" "ampere-hour: 3600 C"
    WattHour "Wh" "watt-hour: 3600 J"
    KilowattHour "kWh" "kilowatt-hour: 3 600 000 J"
    VarHour "varh" "var-hour: 3600 vars"
    KilovarHour "kvarh" "kilovar-hour: 3 600 000 vars"
    KilovoltAmpereHour "kVAh" "kilovolt-ampere-hour: 3 600 000 VAs"
    WattHourPerKilometer "Wh/km" "watt-hour per kilometer: 3.6 J/m"
    Kibibyte "KiB" "kibibyte: 1024 B"
    Gigabyte "GB" "gigabyte: 10⁹ B"
    MegabitPerSecond "Mbit/s" "megabit per second: 1 000 000 bit/s"
    BytePerSecond "B/s" "byte per second: 8 bit/s"
    MegabytePerSecond "MB/s" "megabyte per second: 8 000 000 bit/s"
    Millivolt "mV" "millivolt: 1/1000 V"
    Milliampere "mA" "milliampere: 1/1000 A"
    DecibelMilliwatt "dBm" "decibel relative to 1 mW: dBW − 30"
    MicrogramPerCubicMeter "ug/m3" "microgram per cubic meter: 10⁻⁹ kg/m3"
    MillimeterPerHour "mm/h" "millimeter per hour: 1/3 600 000 m/s"
    MeterPerHour "m/h" "meter per hour: 1/3600 m/s"
    PartsPerMillion "ppm" "parts per million: 10⁻⁶"
    PerHundred "/100" "percent: 1/100"
    PerThousand "/1000" "permille: 1/1000"
    Hectopascal "hPa" "hectopascal: 100 Pa"
    Millimeter "mm" "millimeter: 1/1000 m"
    Centimeter "cm" "centimeter: 1/100 m"
    Kilometer "km" "kilometer: 1000 m"
    KilometerPerHour "km/h" "kilometer per hour: 1/3.6 m/s"
    PartsPerBillion "ppb" "parts per billion: 10⁻⁹"
    PartsPerTrillion "ppt" "parts per trillion: 10⁻¹²"
    VoltAmpereHour "VAh" "volt-ampere-hour: 3600 VAs"
    MilligramPerLiter "mg/l" "milligram per liter: 1/1000 kg/m3"
    MicrogramPerLiter "ug/l" "microgram per liter: 10⁻⁶ kg/m3"
    GramPerLiter "g/l" "gram per liter: 1 kg/m3"
}

impl fmt::Display for Unit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_symbol_finds_its_unit() {
        for unit in Unit::ALL {
            assert_eq!(Unit::parse(unit.as_str()), Some(*unit));
            assert_eq!(unit.to_string(), unit.as_str());
        }
    }

    #[test]
    fn symbols_are_case_sensitive_and_closed() {
        assert_eq!(Unit::parse("S"), Some(Unit::Siemens));
        assert_eq!(Unit::parse("s"), Some(Unit::Second));
        for other in ["", "cel", "°C", "C ", "kwh", "Unit"] {
            assert_eq!(Unit::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_registry_is_complete_as_far_as_it_is_cited() {
        // 58 of RFC 8428, 8 of RFC 8798 and NTU; 33 secondary of RFC 8798, 6 of CoRE-1.
        assert_eq!(Unit::ALL.len(), 58 + 8 + 1 + 33 + 6);
    }
}

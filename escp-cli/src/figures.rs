//! Sizes, rates, times and counts as people read them.

use std::time::Duration;

/// How rates are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// `--bits`.
    pub(crate) bits: bool,
}

impl Figures {
    /// Bytes a second, or bits.
    pub(crate) fn rate(self, bytes_per_second: u64) -> String {
        if self.bits {
            let units = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
            scaled(u128::from(bytes_per_second) * 8, 1000, &units)
        } else {
            format!("{}/s", size(bytes_per_second))
        }
    }
}

/// Bytes in units of 1024: `3.25 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    scaled(bytes.into(), 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// Three digits or more, whole below the first step.
fn scaled(value: u128, step: u128, units: &[&str]) -> String {
    let mut divisor = 1;
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    while value / divisor >= step {
        let Some(next) = units.next() else { break };
        unit = next;
        divisor *= step;
    }
    if divisor == 1 {
        return format!("{value} {unit}");
    }
    let hundredths = value * 100 / divisor;
    let (whole, rest) = (hundredths / 100, hundredths % 100);
    match whole {
        0..10 => format!("{whole}.{rest:02} {unit}"),
        10..100 => format!("{whole}.{} {unit}", rest / 10),
        _ => format!("{whole} {unit}"),
    }
}

/// `0:07`, `1:02:03`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// `0.024 s`, `6.1 s`, `1:02:03`: three digits or more.
pub(crate) fn precise(time: Duration) -> String {
    let millis = time.as_millis();
    match millis {
        0..1000 => format!("0.{millis:03} s"),
        1000..100_000 => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
        _ => duration(time),
    }
}

/// `12,345`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 file`, `12 files`.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(number), if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well_at_every_magnitude() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 << 20, "10.0 MiB"),
            (1023 << 20, "1023 MiB"),
            (7 << 30, "7.00 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size(bytes), shown);
        }
        assert_eq!(Figures { bits: true }.rate(125_000_000), "1.00 Gbit/s");
        assert_eq!(Figures { bits: true }.rate(u64::MAX), "147573952 Tbit/s");
        assert_eq!(Figures { bits: false }.rate(1 << 30), "1.00 GiB/s");
        assert_eq!(duration(Duration::from_millis(7900)), "0:07");
        assert_eq!(duration(Duration::from_secs(3723)), "1:02:03");
        for (millis, shown) in [(0, "0.000 s"), (24, "0.024 s"), (6190, "6.1 s"), (3_723_000, "1:02:03")] {
            assert_eq!(precise(Duration::from_millis(millis)), shown);
        }
        assert_eq!(
            (grouped(0), grouped(999), grouped(1_234_567)),
            ("0".into(), "999".into(), "1,234,567".into())
        );
        assert_eq!(counted(1, "file", "files"), "1 file");
        assert_eq!(counted(1200, "file", "files"), "1,200 files");
    }
}

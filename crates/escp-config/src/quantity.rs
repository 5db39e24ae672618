//! Sizes, rates and durations as people write them.

use std::time::Duration;

const BINARY: [(char, u64); 4] = [('k', 1 << 10), ('m', 1 << 20), ('g', 1 << 30), ('t', 1 << 40)];
const DECIMAL: [(char, u64); 4] =
    [('k', 1_000), ('m', 1_000_000), ('g', 1_000_000_000), ('t', 1_000_000_000_000)];

/// Reads a size in bytes: digits, with or without one of K, M, G, T (powers of 1024), in either case, with
/// or without a `B` or `iB` behind it: `1048576`, `4M`, `4MiB`, `1g`.
///
/// # Errors
/// One sentence that says what was expected.
pub fn parse_size(text: &str) -> Result<u64, String> {
    scaled(text, &BINARY, &["ib", "b"])
        .ok_or_else(|| format!("'{}' is not a size (like 1048576, 512K, 4M or 2G)", text.escape_debug()))
}

/// Reads a rate in bits per second: digits, with or without one of K, M, G, T (powers of 1000), in either
/// case, with or without `bit` or `bit/s` behind it: `10G`, `500Mbit/s`.
///
/// # Errors
/// One sentence that says what was expected.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    scaled(text, &DECIMAL, &["bit/s", "bit"]).ok_or_else(|| {
        format!("'{}' is not a rate in bits per second (like 10G or 500M)", text.escape_debug())
    })
}

/// Reads a duration: digits and one of `ms`, `s`, `m`, `h`; seconds where no unit is given.
///
/// # Errors
/// One sentence that says what was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let per_unit = match unit.to_ascii_lowercase().as_str() {
        "ms" => Some(1),
        "" | "s" => Some(1_000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    digits
        .parse::<u64>()
        .ok()
        .zip(per_unit)
        .and_then(|(count, per_unit)| count.checked_mul(per_unit))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("'{}' is not a duration (like 500ms, 30s, 5m or 1h)", text.escape_debug()))
}

/// Writes a size so that [`parse_size`] reads it back: the largest unit that divides it.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    format_scaled(bytes, &BINARY)
}

/// Writes a rate so that [`parse_rate`] reads it back: the largest unit that divides it.
#[must_use]
pub fn format_rate(bits_per_second: u64) -> String {
    format_scaled(bits_per_second, &DECIMAL)
}

/// Writes a duration so that [`parse_duration`] reads it back, to the millisecond.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    match milliseconds {
        0 => "0s".to_owned(),
        _ if milliseconds.is_multiple_of(3_600_000) => format!("{}h", milliseconds / 3_600_000),
        _ if milliseconds.is_multiple_of(60_000) => format!("{}m", milliseconds / 60_000),
        _ if milliseconds.is_multiple_of(1_000) => format!("{}s", milliseconds / 1_000),
        _ => format!("{milliseconds}ms"),
    }
}

fn scaled(text: &str, units: &[(char, u64)], endings: &[&str]) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let split = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (digits, unit) = lower.split_at(split);
    let count: u64 = digits.parse().ok()?;
    let mut rest = unit;
    let mut factor = 1;
    if let Some((letter, by)) = units.iter().find(|(letter, _)| unit.starts_with(*letter)) {
        factor = *by;
        rest = unit.strip_prefix(*letter).unwrap_or_default();
    }
    // "4iB" is nothing; a bare "4b" is four bytes.
    let known = rest.is_empty() || endings.iter().any(|e| rest == *e && !(factor == 1 && *e == "ib"));
    if known { count.checked_mul(factor) } else { None }
}

fn format_scaled(value: u64, units: &[(char, u64)]) -> String {
    units
        .iter()
        .rev()
        .find(|(_, by)| value != 0 && value.is_multiple_of(*by))
        .map_or_else(|| value.to_string(), |(letter, by)| format!("{}{}", value / by, letter.to_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_binary_and_case_does_not_matter() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1024),
            ("4M", 4 << 20),
            ("4mib", 4 << 20),
            ("4MB", 4 << 20),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
            ("7b", 7),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "4X", "-1", "4 M", "1.5G", "4MM", "4ib", "99999999999T", "0x10", "٤M", "4M\n"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_decimal() {
        assert_eq!(parse_rate("10G"), Ok(10_000_000_000));
        assert_eq!(parse_rate("500mbit/s"), Ok(500_000_000));
        assert_eq!(parse_rate("8bit"), Ok(8));
        assert!(parse_rate("10GB").is_err());
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2H"), Ok(Duration::from_secs(7200)));
        for text in ["", "s", "1d", "-1s", "1.5s", "18446744073709551615h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_never_carries_control_characters() {
        assert!(!parse_size("\u{1b}[31m").unwrap_err().contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value: u64, milliseconds in 0..u64::MAX / 4_000_000) {
            prop_assert_eq!(parse_size(&format_size(value)), Ok(value));
            prop_assert_eq!(parse_rate(&format_rate(value)), Ok(value));
            let duration = Duration::from_millis(milliseconds);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn nothing_panics(text in "\\PC*") {
            let _ = (parse_size(&text), parse_rate(&text), parse_duration(&text));
        }
    }
}

//! Values as the file writes them, read with their bounds. Each refusal is one clause for the user.

use crate::{
    LogTarget, MAX_BLOCK_SIZE, MIN_BLOCK_SIZE, format_duration, format_size, parse_duration, parse_rate,
    parse_size,
};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub(crate) fn assign<T>(field: &mut T, value: Result<T, String>) -> Result<(), String> {
    *field = value?;
    Ok(())
}

pub(crate) fn off<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if text == "off" {
        Ok(None)
    } else {
        parse(text).map(Some).map_err(|reason| format!("{reason}, nor 'off'"))
    }
}

pub(crate) fn off_or<T>(value: Option<T>, write: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "off".to_owned(), write)
}

pub(crate) fn one_of<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<T, String> {
    known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        format!("'{}' is not one of {}", text.escape_debug(), names.join(", "))
    })
}

pub(crate) fn yes_or_no(text: &str) -> Result<bool, String> {
    one_of(text, &[("yes", true), ("no", false), ("true", true), ("false", false)])
}

pub(crate) fn number<T>(text: &str, range: RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten().filter(|value| range.contains(value)).ok_or_else(|| {
        format!("'{}' is not a number from {} to {}", text.escape_debug(), range.start(), range.end())
    })
}

pub(crate) fn size(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if range.contains(&bytes) {
        return Ok(bytes);
    }
    Err(format!(
        "{} is not from {} to {}",
        text.escape_debug(),
        format_size(*range.start()),
        format_size(*range.end())
    ))
}

pub(crate) fn block_size(text: &str) -> Result<u32, String> {
    let bytes = size(text, MIN_BLOCK_SIZE.into()..=MAX_BLOCK_SIZE.into())?;
    u32::try_from(bytes)
        .ok()
        .filter(|bytes| bytes % 4096 == 0)
        .ok_or_else(|| format!("{} is not a multiple of 4K", text.escape_debug()))
}

pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let rate = parse_rate(text)?;
    let known = (1_000_000..=10_000_000_000_000).contains(&rate);
    known.then_some(rate).ok_or_else(|| format!("{} is not from 1M to 10T", text.escape_debug()))
}

pub(crate) fn duration(text: &str, seconds: RangeInclusive<u64>) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    let (least, most) = (Duration::from_secs(*seconds.start()), Duration::from_secs(*seconds.end()));
    if (least..=most).contains(&duration) {
        return Ok(duration);
    }
    Err(format!(
        "{} is not from {} to {}",
        text.escape_debug(),
        format_duration(least),
        format_duration(most)
    ))
}

fn absolute(text: &str) -> Option<PathBuf> {
    let usable = Path::new(text).is_absolute() && !text.contains('\0');
    usable.then(|| PathBuf::from(text))
}

pub(crate) fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = absolute(text).ok_or_else(|| format!("'{}' is not an absolute path", text.escape_debug()))?;
    // sockaddr_un has 108 bytes with the final NUL, unix(7).
    match text.len() {
        0..=107 => Ok(path),
        length => Err(format!("a socket's path has at most 107 bytes, this one has {length}")),
    }
}

pub(crate) fn metrics_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0).map(Some).ok_or_else(|| {
        format!(
            "'{}' is not an address with a port (like 127.0.0.1:9232 or [::1]:9232), nor 'off'",
            text.escape_debug()
        )
    })
}

pub(crate) fn log_target(text: &str) -> Result<LogTarget, String> {
    match text {
        "stderr" => Ok(LogTarget::Stderr),
        "journald" => Ok(LogTarget::Journald),
        path => absolute(path)
            .map(LogTarget::File)
            .ok_or_else(|| format!("'{}' is not stderr, journald or an absolute path", path.escape_debug())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_path_fits_its_address() {
        let long = format!("/{}", "s".repeat(107));
        assert!(socket_path(&long).unwrap_err().contains("107 bytes"));
        assert!(socket_path(&long[..107]).is_ok());
    }
}

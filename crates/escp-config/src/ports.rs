//! A range of TCP ports.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Most ports of one range: each is a listening socket of the daemon, per address family.
const MAX_PORTS: u16 = 256;

/// A range of TCP ports, both ends included: `1232-1242`, or `1232` for one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The first port, at least 1.
    pub first: u16,
    /// The last port, not below `first`.
    pub last: u16,
}

impl PortRange {
    /// The predecessor's range, the default.
    pub const DEFAULT: Self = Self { first: 1232, last: 1242 };

    /// Every port, in order.
    pub fn iter(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        self.iter().contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("'{}' is not a port or a range of ports (like 1232 or 1232-1242)", text.escape_debug())
        };
        let port = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse::<u16>().ok().filter(|port| *port > 0),
            false => None,
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = port(first).zip(port(last)).ok_or_else(wrong)?;
        if first > last {
            return Err(format!("the range {first}-{last} runs backwards; write {last}-{first}"));
        }
        if last - first >= MAX_PORTS {
            return Err(format!("{first}-{last} has more than {MAX_PORTS} ports"));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_port_or_a_range() {
        assert_eq!("1232-1242".parse(), Ok(PortRange::DEFAULT));
        assert_eq!("80".parse(), Ok(PortRange { first: 80, last: 80 }));
        assert_eq!(PortRange::DEFAULT.iter().count(), 11);
        assert!(PortRange::DEFAULT.contains(1242) && !PortRange::DEFAULT.contains(1243));
        for text in ["", "-", "0", "0-5", "70000", "5-", "-5", "+5", "9-8", "1-2-3", "1-1000", " 1"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
        for text in ["80", "1232-1242"] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
        }
    }
}

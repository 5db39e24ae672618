//! Where a file is: what `[user@]host:path`, `scp://…` and plain paths mean. The rules are scp's.

use escp_agent::escape::escaped;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A source or target as the user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path of this host.
    Local(OsString),
    /// A path of another host.
    Remote(Remote),
}

/// A path of another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Whom and where to log in.
    pub(crate) login: Login,
    /// What stands after the colon, bytes; empty means the home directory.
    pub(crate) path: Vec<u8>,
}

/// Whom and where to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Login {
    /// The user, if one was named.
    pub(crate) user: Option<String>,
    /// The host without brackets, as ssh takes it: a name, an address or an alias of ssh's configuration.
    pub(crate) host: String,
    /// A port named in a URI.
    pub(crate) port: Option<u16>,
}

impl Place {
    /// Reads a source or target.
    ///
    /// # Errors
    /// One sentence, for a URI, user or host that cannot be one.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Err("an empty name stands where a source or target belongs".into());
        }
        if let Some(rest) = bytes.strip_prefix(b"scp://") {
            return uri(rest).map(Self::Remote).ok_or_else(|| {
                format!("'{}' is not of the form scp://[user@]host[:port]/path", escaped(bytes))
            });
        }
        let Some(colon) = colon(bytes) else { return Ok(Self::Local(text.to_owned())) };
        let (before, after) = (&bytes[..colon], &bytes[colon + 1..]);
        let (user, host) = match before.iter().rposition(|&byte| byte == b'@') {
            Some(at) => (Some(&before[..at]), &before[at + 1..]),
            None => (None, before),
        };
        let login = Login { user: user.map(valid_user).transpose()?, host: valid_host(host)?, port: None };
        Ok(Self::Remote(Remote { login, path: after.to_vec() }))
    }
}

/// Where the colon is that ends a host, if there is one: not first, not behind a slash, and not inside
/// brackets that open the name or the part behind an `@`.
fn colon(name: &[u8]) -> Option<usize> {
    if name.first() == Some(&b':') {
        return None;
    }
    let mut bracket = name.first() == Some(&b'[');
    for (at, &byte) in name.iter().enumerate() {
        let next = name.get(at + 1);
        match byte {
            b'@' if next == Some(&b'[') => bracket = true,
            b']' if bracket && next == Some(&b':') => return Some(at + 1),
            b':' if !bracket => return Some(at),
            b'/' => return None,
            _ => {}
        }
    }
    None
}

fn valid_user(user: &[u8]) -> Result<String, String> {
    let bad = |byte: &u8| byte.is_ascii_control() || b" '\"`;&<>|(){}$".contains(byte);
    match std::str::from_utf8(user) {
        Ok(text) if !user.is_empty() && user[0] != b'-' && !user.iter().any(bad) => Ok(text.to_owned()),
        _ => Err(format!("'{}' cannot be a user's name", escaped(user))),
    }
}

/// The host without its brackets. ssh knows what hosts are; only what it could mistake for something else
/// is refused here.
fn valid_host(host: &[u8]) -> Result<String, String> {
    let inner = host.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")).unwrap_or(host);
    let bad = |byte: &u8| !byte.is_ascii_graphic() || b"'\"`$\\;&<>|(){}[]/,*?!".contains(byte);
    match std::str::from_utf8(inner) {
        Ok(text) if !inner.is_empty() && inner[0] != b'-' && !inner.iter().any(bad) => Ok(text.to_owned()),
        _ => Err(format!(
            "'{}' cannot be a host's name (write ./ in front of a local name with a colon)",
            escaped(host)
        )),
    }
}

/// What follows `scp://`: `[user[;parameters]@]host[:port][/path]`, percent-encoded. The path is relative
/// to the home directory; a second slash makes it absolute.
fn uri(rest: &[u8]) -> Option<Remote> {
    let (authority, path) = match rest.iter().position(|&byte| byte == b'/') {
        Some(slash) => (&rest[..slash], &rest[slash + 1..]),
        None => (rest, &[][..]),
    };
    let (user, authority) = match authority.iter().rposition(|&byte| byte == b'@') {
        Some(at) => {
            let user = authority[..at].split(|&byte| byte == b';').next()?;
            (Some(valid_user(&percent_decoded(user)?).ok()?), &authority[at + 1..])
        }
        None => (None, authority),
    };
    let colon = if authority.first() == Some(&b'[') {
        let close = authority.iter().position(|&byte| byte == b']')?;
        match authority.get(close + 1) {
            None => None,
            Some(b':') => Some(close + 1),
            Some(_) => return None,
        }
    } else {
        authority.iter().position(|&byte| byte == b':')
    };
    let (host, port) = match colon {
        Some(at) => (&authority[..at], Some(port(&authority[at + 1..])?)),
        None => (authority, None),
    };
    let login = Login { user, host: valid_host(host).ok()?, port };
    Some(Remote { login, path: percent_decoded(path)? })
}

fn port(digits: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(digits).ok()?;
    text.parse().ok().filter(|&port| port != 0 && text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Undoes `%xx`. A NUL, or a percent sign without two digits, is no path.
fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(*bytes.next()?).to_digit(16);
            let value = u8::try_from(digit()? * 16 + digit()?).ok()?;
            out.push(value);
        } else {
            out.push(byte);
        }
    }
    (!out.contains(&0)).then_some(out)
}

impl Remote {
    /// The host as people write it: an IPv6 address in brackets.
    pub(crate) fn host_shown(&self) -> String {
        if self.login.host.contains(':') { format!("[{}]", self.login.host) } else { self.login.host.clone() }
    }

    /// Bytes of `dummy:SIZE`, made up in place of a source. It reads like a host named `dummy`.
    pub(crate) fn as_dummy(&self) -> Option<OsString> {
        let plain = self.login.user.is_none() && self.login.port.is_none() && self.login.host == "dummy";
        plain.then(|| OsString::from_vec([b"dummy:", self.path.as_slice()].concat()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `user host port path` of a remote place, or `local` and the path.
    fn shown(text: &str) -> String {
        match Place::parse(OsStr::new(text)) {
            Ok(Place::Local(path)) => format!("local {}", path.display()),
            Ok(Place::Remote(remote)) => format!(
                "{} {} {} {}",
                remote.login.user.as_deref().unwrap_or("-"),
                remote.login.host,
                remote.login.port.map_or("-".into(), |port| port.to_string()),
                String::from_utf8_lossy(&remote.path)
            ),
            Err(_) => "refused".into(),
        }
    }

    #[test]
    fn names_mean_what_they_mean_to_scp() {
        for (text, meaning) in [
            ("file", "local file"),
            ("./a:b", "local ./a:b"),
            ("/a:b", "local /a:b"),
            ("dir/a:b", "local dir/a:b"),
            (":b", "local :b"),
            ("-", "local -"),
            ("[a", "local [a"),
            ("[a]", "local [a]"),
            ("a@b", "local a@b"),
            ("host:", "- host - "),
            ("host:path", "- host - path"),
            ("host:/path", "- host - /path"),
            ("host:~/path", "- host - ~/path"),
            ("host:a:b", "- host - a:b"),
            ("host::b", "- host - :b"),
            ("host:a b;c", "- host - a b;c"),
            ("user@host:path", "user host - path"),
            ("user@name@host:path", "user@name host - path"),
            ("host:user@x", "- host - user@x"),
            ("[::1]:path", "- ::1 - path"),
            ("user@[::1]:path", "user ::1 - path"),
            ("[fe80::1%eth0]:path", "- fe80::1%eth0 - path"),
            ("[host]:path", "- host - path"),
            ("[::1]", "local [::1]"),
            ("::1:path", "local ::1:path"),
            ("scp://host", "- host - "),
            ("scp://host/", "- host - "),
            ("scp://host/path", "- host - path"),
            ("scp://host//path", "- host - /path"),
            ("scp://user@host:2222/a%20b", "user host 2222 a b"),
            ("scp://us%65r@host/a", "user host - a"),
            ("scp://user;x=y@host/a", "user host - a"),
            ("scp://[::1]:22/a:b", "- ::1 22 a:b"),
            ("scp://host/a@b", "- host - a@b"),
        ] {
            assert_eq!(shown(text), meaning, "{text}");
        }
    }

    #[test]
    fn what_ssh_could_mistake_is_refused() {
        for text in [
            "",
            "-oProxyCommand=x:path",
            "@host:path",
            "-l@host:path",
            "user@:path",
            "us er@host:path",
            "us$er@host:path",
            "ho st:path",
            "ho\nst:path",
            "h;x:path",
            "[]:path",
            "scp://",
            "scp:///path",
            "scp://@host/path",
            "scp://host:/path",
            "scp://host:0/path",
            "scp://host:65536/path",
            "scp://host:+1/path",
            "scp://host/%zz",
            "scp://host/%0",
            "scp://host/%00",
            "scp://[::1/path",
            "scp://[::1]x/path",
        ] {
            assert_eq!(shown(text), "refused", "{text:?}");
        }
    }

    #[test]
    fn bytes_of_names_are_kept() {
        let place = Place::parse(OsStr::from_bytes(b"host:\xff\n")).unwrap();
        assert!(matches!(place, Place::Remote(remote) if remote.path == b"\xff\n"));
    }

    #[test]
    fn an_address_is_shown_in_brackets() {
        let Ok(Place::Remote(remote)) = Place::parse(OsStr::new("[::1]:x")) else { panic!() };
        assert_eq!(remote.host_shown(), "[::1]");
    }
}

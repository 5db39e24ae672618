//! Paths of the far side: `~` and patterns, expanded without a shell as scp does over SFTP.
//!
//! `*`, `?` and `[...]` match within one component, never a leading dot; a backslash takes the next
//! character as it is. Matches come sorted by their bytes. A pattern that matches nothing is taken
//! literally.

use crate::path::split_last;
use crate::reason::why;
use crate::receive::{IN_PARTS, MAX_TAKEN};
use crate::send::Source;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::CString;

/// Expands `patterns` as the far side of a download does: scp's globs, without a shell; `~` and relative
/// paths start at the home directory (the working directory of a program that ssh starts).
///
/// A pattern without a match becomes a [`Source::Missing`], so the count of sources is that of the result.
///
/// # Errors
/// A sentence, when there are more than a receiver takes.
pub fn expand_sources(patterns: &[Vec<u8>]) -> Result<Vec<Source>, String> {
    expand_at_most(MAX_TAKEN, patterns)
}

fn expand_at_most(limit: usize, patterns: &[Vec<u8>]) -> Result<Vec<Source>, String> {
    let mut sources = Vec::new();
    for pattern in patterns {
        // One more tells that there are too many.
        match expand(pattern, limit + 1) {
            Ok(paths) => sources.extend(paths.into_iter().map(Source::Path)),
            Err(text) => sources.push(Source::Missing { path: pattern.clone(), text }),
        }
        if sources.len() > limit {
            return Err(format!("more than {limit} names match, the most of one run; {IN_PARTS}"));
        }
    }
    Ok(sources)
}

/// What a pattern stands for: at least one path, and the first `limit` at most.
fn expand(pattern: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, String> {
    let pattern = home_expanded(pattern)?;
    let mut paths = Vec::new();
    if has_magic(&pattern) {
        search(Vec::new(), &pattern, limit, &mut paths);
        paths.sort_unstable();
    }
    if paths.is_empty() {
        let literal = unescaped(&pattern);
        statat(CWD, literal.as_slice(), AtFlags::empty()).map_err(why)?;
        paths.push(literal);
    }
    Ok(paths)
}

/// Replaces a leading `~` or `~user`. The home directory of this user is the working directory.
pub(crate) fn home_expanded(path: &[u8]) -> Result<Vec<u8>, String> {
    let Some(rest) = path.strip_prefix(b"~") else {
        return Ok(if path.is_empty() { b".".to_vec() } else { path.to_vec() });
    };
    let end = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
    let (user, rest) = rest.split_at(end);
    if user.is_empty() {
        let start = rest.iter().position(|&byte| byte != b'/').unwrap_or(rest.len());
        let rest = rest.get(start..).unwrap_or_default();
        return Ok(if rest.is_empty() { b".".to_vec() } else { rest.to_vec() });
    }
    let unknown = || format!("there is no user '{}' here", crate::escape::escaped(user));
    let name = CString::new(user).map_err(|_| unknown())?;
    let mut home = match escp_sys::account::home_of(&name) {
        Ok(home) => home.ok_or_else(unknown)?,
        Err(error) => {
            return Err(format!("the home of '{}' is not known: {error}", crate::escape::escaped(user)));
        }
    };
    home.extend_from_slice(rest);
    Ok(home)
}

/// Whether `pattern` is more than a literal name.
fn has_magic(pattern: &[u8]) -> bool {
    let mut bytes = pattern.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'*' | b'?' => return true,
            b'[' if bytes.clone().any(|&byte| byte == b']') => return true,
            _ => {}
        }
    }
    false
}

/// The pattern with its backslashes taken away.
pub(crate) fn unescaped(pattern: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(pattern.len());
    let mut bytes = pattern.iter();
    while let Some(&byte) = bytes.next() {
        match (byte, bytes.clone().next()) {
            (b'\\', Some(&next)) => {
                bytes.next();
                out.push(next);
            }
            _ => out.push(byte),
        }
    }
    out
}

/// Adds existing paths that start with the literal `found` and go on as `pattern` says, until there are `limit`.
fn search(mut found: Vec<u8>, pattern: &[u8], limit: usize, paths: &mut Vec<Vec<u8>>) {
    let slashes = pattern.iter().take_while(|&&byte| byte == b'/').count();
    let (lead, pattern) = pattern.split_at(slashes);
    found.extend_from_slice(lead);
    let end = pattern.iter().position(|&byte| byte == b'/').unwrap_or(pattern.len());
    let (component, rest) = pattern.split_at(end);
    if component.is_empty() {
        // A trailing slash asks for a directory.
        if statat(CWD, found.as_slice(), AtFlags::empty()).is_ok() {
            paths.push(found);
        }
        return;
    }
    if !has_magic(component) {
        found.extend_from_slice(&unescaped(component));
        if !rest.is_empty() {
            search(found, rest, limit, paths);
        } else if statat(CWD, found.as_slice(), AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            paths.push(found);
        }
        return;
    }
    // A directory that cannot be read matches nothing, as in scp.
    let wanted = |name: &[u8], kind| {
        let leads_on = matches!(kind, FileType::Directory | FileType::Symlink | FileType::Unknown);
        matches(component, name) && (rest.is_empty() || leads_on)
    };
    // Not each of those leads to a match where more has to.
    let most = if rest.is_empty() { limit } else { usize::MAX };
    for name in names_in(&found, most, wanted).unwrap_or_default() {
        if paths.len() >= limit {
            return;
        }
        let path = [found.as_slice(), &name].concat();
        if rest.is_empty() {
            paths.push(path);
        } else {
            search(path, rest, limit, paths);
        }
    }
}

/// Names in a directory that are wanted, `limit` at most.
fn names_in(
    directory: &[u8],
    limit: usize,
    wanted: impl Fn(&[u8], FileType) -> bool,
) -> Result<Vec<Vec<u8>>, Errno> {
    let path = if directory.is_empty() { b"." } else { directory };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut names = Vec::new();
    for entry in Dir::new(openat(CWD, path, flags, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") && wanted(name, entry.file_type()) {
            names.push(name.to_vec());
        }
        if names.len() >= limit {
            break;
        }
    }
    Ok(names)
}

/// The names that top-level entries may have: what the last components of requested patterns can have led to. There may
/// be tens of thousands of either.
#[derive(Debug, Default)]
pub(crate) struct Requested {
    literal: HashSet<Vec<u8>>,
    patterns: HashSet<Vec<u8>>,
    /// Sources without a name of their own, such as `.`.
    nameless: bool,
    /// `~user`: what the account says.
    any: bool,
}

impl Requested {
    /// What `sources`, as they were typed, may lead to.
    pub(crate) fn new(sources: &[Vec<u8>]) -> Self {
        let mut requested = Self::default();
        for source in sources {
            match split_last(source).1 {
                b"" | b"." | b".." | b"/" => requested.nameless = true,
                b"~" if source == b"~" => requested.nameless = true,
                last if last == source && last.starts_with(b"~") => requested.any = true,
                last => {
                    requested.literal.insert(unescaped(last));
                    if has_magic(last) {
                        requested.patterns.insert(last.to_vec());
                    }
                }
            }
        }
        requested
    }

    /// Whether an entry of this name may come.
    pub(crate) fn may_be_named(&self, name: &[u8]) -> bool {
        if name.is_empty() {
            return self.nameless;
        }
        self.any || self.literal.contains(name) || self.patterns.iter().any(|pattern| matches(pattern, name))
    }
}

/// Whether one component matches a pattern. Takes time in the product of both lengths at most.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.starts_with(b".") && !pattern.starts_with(b".") && !pattern.starts_with(b"\\.") {
        return false;
    }
    let (mut p, mut n) = (0, 0);
    // Where to go on when the last star has to take one character more.
    let mut retry: Option<(usize, usize)> = None;
    while let Some(&byte) = name.get(n) {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p + 1, n));
            p += 1;
            continue;
        }
        if let Some(length) = one_matches(pattern.get(p..).unwrap_or_default(), byte) {
            p += length;
            n += 1;
            continue;
        }
        match retry {
            Some((after_star, taken)) => {
                retry = Some((after_star, taken + 1));
                (p, n) = (after_star, taken + 1);
            }
            None => return false,
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|&byte| byte == b'*')
}

/// Whether the pattern's first element takes `byte`, and how long that element is.
fn one_matches(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [b'[', rest @ ..] => match set_matches(rest, byte) {
            Some((true, length)) => Some(length + 1),
            Some((false, _)) => None,
            // No closing bracket: a bracket like any other character.
            None => (byte == b'[').then_some(1),
        },
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// Whether a set, given from behind its `[`, holds `byte`, and its length with the `]`.
fn set_matches(set: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = set.first() == Some(&b'!');
    let mut at = usize::from(negated);
    let first = at;
    let mut holds = false;
    loop {
        let mut low = *set.get(at)?;
        if low == b']' && at > first {
            return Some((holds != negated, at + 1));
        }
        if let Some((class, length)) = class_at(set.get(at..).unwrap_or_default()) {
            holds |= class(&byte);
            at += length;
            continue;
        }
        if low == b'\\' {
            at += 1;
            low = *set.get(at)?;
        }
        at += 1;
        let mut high = low;
        if set.get(at) == Some(&b'-') && set.get(at + 1).is_some_and(|&next| next != b']') {
            at += 1;
            high = *set.get(at)?;
            if high == b'\\' {
                at += 1;
                high = *set.get(at)?;
            }
            at += 1;
        }
        holds |= (low..=high).contains(&byte);
    }
}

type Class = fn(&u8) -> bool;

/// A class such as `[:digit:]` at the start of `set`, and its length.
fn class_at(set: &[u8]) -> Option<(Class, usize)> {
    let classes: [(&[u8], Class); 12] = [
        (b"[:alnum:]", u8::is_ascii_alphanumeric),
        (b"[:alpha:]", u8::is_ascii_alphabetic),
        (b"[:blank:]", |byte| matches!(byte, b' ' | b'\t')),
        (b"[:cntrl:]", u8::is_ascii_control),
        (b"[:digit:]", u8::is_ascii_digit),
        (b"[:graph:]", u8::is_ascii_graphic),
        (b"[:lower:]", u8::is_ascii_lowercase),
        (b"[:print:]", |byte| matches!(byte, b' '..=b'~')),
        (b"[:punct:]", u8::is_ascii_punctuation),
        (b"[:space:]", |byte| matches!(byte, b' ' | b'\t'..=b'\r')),
        (b"[:upper:]", u8::is_ascii_uppercase),
        (b"[:xdigit:]", u8::is_ascii_hexdigit),
    ];
    classes.into_iter().find(|(name, _)| set.starts_with(name)).map(|(name, class)| (class, name.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_match_as_in_scp() {
        let cases: [(&[u8], &[u8], bool); 26] = [
            (b"*", b"a", true),
            (b"*", b".a", false),
            (b".*", b".a", true),
            (b"?a", b".a", false),
            (b"a*b*c", b"aXbYbZc", true),
            (b"a*b*c", b"aXbYbZ", false),
            (b"*.txt", b"\xff\n.txt", true),
            (b"a?c", b"abc", true),
            (b"a?c", b"ac", false),
            (b"[abc]", b"b", true),
            (b"[!abc]", b"b", false),
            (b"[!abc]", b"d", true),
            (b"[a-c]x", b"bx", true),
            (b"[]]", b"]", true),
            (b"[a-]", b"-", true),
            (b"[[:digit:]x]", b"7", true),
            (b"[[:digit:]x]", b"y", false),
            (b"[ab", b"[ab", true),
            (b"\\*", b"*", true),
            (b"\\*", b"a", false),
            (b"a\\[b", b"a[b", true),
            (b"*a", b"aaab", false),
            (b"**a", b"aa", true),
            (b"", b"", true),
            (b"[\\]]", b"]", true),
            (b"{a,b}", b"a", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(
                matches(pattern, name),
                expected,
                "{} {}",
                pattern.escape_ascii(),
                name.escape_ascii()
            );
        }
    }

    #[test]
    fn a_pattern_made_to_be_slow_is_not() {
        let pattern = [b"*a".repeat(100), b"b".to_vec()].concat();
        assert!(!matches(&pattern, &b"a".repeat(250)));
    }

    #[test]
    fn expands_in_order_and_takes_what_does_not_match_literally() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().as_os_str().as_encoded_bytes().to_vec();
        let at = |path: &str| [base.as_slice(), b"/", path.as_bytes()].concat();
        for directory in ["d1", "d2", "d2/sub"] {
            std::fs::create_dir(root.path().join(directory)).unwrap();
        }
        for file in ["b", "a", ".hidden", "d1/x", "d2/x", "d2/y", "q[1]", "star*"] {
            std::fs::write(root.path().join(file), b"").unwrap();
        }
        let list = |pattern: &str| {
            expand(&at(pattern), 100).map(|mut paths| {
                paths.iter_mut().for_each(|path| drop(path.drain(..=base.len())));
                paths.into_iter().map(|path| String::from_utf8(path).unwrap()).collect::<Vec<_>>()
            })
        };
        assert_eq!(list("[ab]").unwrap(), ["a", "b"]);
        assert_eq!(list("d*/x").unwrap(), ["d1/x", "d2/x"]);
        assert_eq!(list("*/sub").unwrap(), ["d2/sub"]);
        assert_eq!(list("d?/*").unwrap(), ["d1/x", "d2/sub", "d2/x", "d2/y"]);
        assert_eq!(list("q[1]").unwrap(), ["q[1]"]);
        assert_eq!(list("star\\*").unwrap(), ["star*"]);
        assert_eq!(list(".h*").unwrap(), [".hidden"]);
        assert_eq!(list("d1/").unwrap(), ["d1/"]);
        assert_eq!(list("nothing*").unwrap_err(), "No such file or directory");
        let too_many = |limit, patterns: &[&str]| {
            let patterns: Vec<_> = patterns.iter().map(|pattern| at(pattern)).collect();
            expand_at_most(limit, &patterns)
                .is_err_and(|text| text.contains("more than") && text.contains("-r"))
        };
        assert!(!too_many(4, &["d?/*"]) && too_many(3, &["d?/*"]) && too_many(3, &["*/*"]));
        assert!(!too_many(5, &["a", "d?/*"]) && too_many(4, &["a", "d?/*"]) && too_many(1, &["a", "none"]));
        let sources = expand_sources(&[at("a"), at("none")]).unwrap();
        assert_eq!(sources.first(), Some(&Source::Path(at("a"))));
        assert!(matches!(sources.get(1), Some(Source::Missing { .. })));
    }

    #[test]
    fn the_home_directory_is_the_working_directory() {
        let cases: [(&[u8], &[u8]); 7] = [
            (b"", b"."),
            (b"~", b"."),
            (b"~/", b"."),
            (b"~//a", b"a"),
            (b"~/a", b"a"),
            (b"a~", b"a~"),
            (b"~root", b"/root"),
        ];
        for (path, expected) in cases {
            assert_eq!(home_expanded(path).unwrap(), expected);
        }
        assert_eq!(
            home_expanded(b"~root/x").unwrap(),
            [home_expanded(b"~root").unwrap(), b"/x".to_vec()].concat()
        );
        assert!(home_expanded(b"~no-such-user-here/x").unwrap_err().contains("no-such-user-here"));
    }

    #[test]
    fn only_requested_names_may_come() {
        let cases: [(&[u8], &[u8], bool); 12] = [
            (b"~root", b"", false),
            (b"dir/*.txt", b"a.txt", true),
            (b"dir/*.txt", b".bashrc", false),
            (b"dir/a", b"a", true),
            (b"dir/a/", b"a", true),
            (b"dir/a", b"b", false),
            (b"dir/.", b"", true),
            (b"dir", b"", false),
            (b"~", b"", true),
            (b"~/x", b"x", true),
            (b"q[1]", b"q[1]", true),
            (b"~root", b"root", true),
        ];
        for (requested, name, expected) in cases {
            let requested = [requested.to_vec()];
            let may = Requested::new(&requested).may_be_named(name);
            assert_eq!(may, expected, "{}", requested[0].escape_ascii());
        }
        let two = Requested::new(&[b"a".to_vec(), b"dir/.".to_vec()]);
        assert!(two.may_be_named(b"a") && two.may_be_named(b"") && !two.may_be_named(b"b"));
        assert!(!Requested::new(&[]).may_be_named(b"a"));
    }
}

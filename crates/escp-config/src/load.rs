//! From a file to settings: walks the YAML document along the table of keys, so that every error carries
//! the line it stands in.

use crate::{Config, ConfigError, DEFAULT_PATH, KEYS, Key};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Largest configuration that is read, in bytes. A full one has about 5,000.
const MAX_LENGTH: u64 = 256 * 1024;

pub(crate) fn read(path: Option<&Path>) -> Result<Config, ConfigError> {
    let file = path.unwrap_or(Path::new(DEFAULT_PATH));
    match text(file) {
        Ok(text) => parse(&text).map_err(|error| error.file(file)),
        Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(Config::default()),
        Err(error) => Err(unreadable(&error).file(file)),
    }
}

pub(crate) fn text(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    let length = File::open(file)?.take(MAX_LENGTH + 1).read_to_string(&mut text)?;
    if length as u64 > MAX_LENGTH {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MAX_LENGTH} bytes")));
    }
    Ok(text)
}

pub(crate) fn unreadable(error: &io::Error) -> ConfigError {
    ConfigError::new(format!("cannot read the configuration: {error}"))
}

pub(crate) fn parse(text: &str) -> Result<Config, ConfigError> {
    pass(text, &BTreeSet::new()).map_err(|stop| stop.error)
}

/// Where a pass stopped, and why.
pub(crate) struct Stop {
    /// Which key of the document it was, counted from 0; `None` when the document as a whole is broken.
    pub(crate) occurrence: Option<usize>,
    pub(crate) error: ConfigError,
}

/// Reads the document once, passing over the keys in `skip`, up to the first problem.
pub(crate) fn pass(text: &str, skip: &BTreeSet<usize>) -> Result<Config, Stop> {
    let mut walk =
        Walk { config: Config::default(), seen: BTreeSet::new(), skip, at: None, next: 0, locate: None };
    if holds_nothing(text) {
        return Ok(walk.config);
    }
    // Once for the syntax alone: after this, an error belongs to the key it is found at.
    let syntax = IgnoredAny::deserialize(serde_yaml::Deserializer::from_str(text)).map(drop);
    let done =
        syntax.and_then(|()| Document(&mut walk).deserialize(serde_yaml::Deserializer::from_str(text)));
    done.map(|()| walk.config.clone()).map_err(|error| walk.stop(&error))
}

/// The line that sets `name`, if one does. The document must be one that [`parse`] takes.
pub(crate) fn line_of(text: &str, name: &str) -> Option<usize> {
    let skip = BTreeSet::new();
    let mut walk = Walk {
        config: Config::default(),
        seen: BTreeSet::new(),
        skip: &skip,
        at: None,
        next: 0,
        locate: Some(name),
    };
    // The error of the walk is the only thing that knows the line.
    let done = Document(&mut walk).deserialize(serde_yaml::Deserializer::from_str(text));
    done.err().and_then(|error| error.location()).map(|location| location.line())
}

/// Nothing but comments and blank lines: no YAML document at all, and every default.
fn holds_nothing(text: &str) -> bool {
    text.lines().map(str::trim_start).all(|line| line.is_empty() || line.starts_with('#'))
}

struct Walk<'a> {
    config: Config,
    seen: BTreeSet<String>,
    skip: &'a BTreeSet<usize>,
    /// The key being read, and what is wrong with it should the parser give up now.
    at: Option<At>,
    next: usize,
    locate: Option<&'a str>,
}

struct At {
    occurrence: usize,
    name: String,
    problem: String,
}

/// What stands behind a key.
enum Meaning {
    Value(&'static Key),
    Section(&'static str),
    Skipped,
}

impl Walk<'_> {
    /// Takes a key of the document; `Err` when it is unknown, repeated, or the one to locate.
    fn enter(&mut self, section: Option<&'static str>, key: &str) -> Result<Meaning, ()> {
        let name = section.map_or_else(|| key.to_owned(), |section| format!("{section}.{key}"));
        let occurrence = self.next;
        self.next += 1;
        if self.skip.contains(&occurrence) {
            return Ok(Meaning::Skipped);
        }
        self.at = Some(At { occurrence, name: name.clone(), problem: String::new() });
        if self.locate == Some(name.as_str()) {
            return Err(());
        }
        let meaning = KEYS
            .iter()
            .find(|known| known.name == name)
            .map(Meaning::Value)
            .or_else(|| sections().find(|known| *known == name).map(Meaning::Section));
        match meaning {
            None => self.problem(suggestion(&name)),
            Some(_) if !self.seen.insert(name) => self.problem("is set a second time".to_owned()),
            Some(meaning) => {
                self.expect(&meaning);
                return Ok(meaning);
            }
        }
        Err(())
    }

    fn expect(&mut self, meaning: &Meaning) {
        self.problem(match meaning {
            Meaning::Section(_) => "is a section: its keys stand below it, indented".to_owned(),
            _ => "takes one value, neither a list nor a section".to_owned(),
        });
    }

    fn problem(&mut self, problem: String) {
        if let Some(at) = &mut self.at {
            at.problem = problem;
        }
    }

    fn stop(self, error: &serde_yaml::Error) -> Stop {
        let line = error.location().map(|location| location.line());
        match self.at {
            Some(at) => Stop {
                occurrence: Some(at.occurrence),
                error: ConfigError::new(at.problem).key(at.name).line(line),
            },
            None => Stop {
                occurrence: None,
                error: ConfigError::new(format!("not understood: {}", error.to_string().escape_debug()))
                    .line(line),
            },
        }
    }
}

fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(|key| key.name.split_once('.').map(|(section, _)| section))
}

fn suggestion(name: &str) -> String {
    let known = KEYS.iter().map(|key| key.name).chain(sections());
    // A key written outside its section is nearest by its last part.
    let last = |text: &str| text.rsplit('.').next().unwrap_or_default().to_owned();
    let nearness = |known: &str| {
        strsim::normalized_damerau_levenshtein(known, name)
            .max(strsim::normalized_damerau_levenshtein(&last(known), &last(name)))
    };
    let nearest = known.max_by(|a, b| nearness(a).total_cmp(&nearness(b)));
    format!("is no known key; the nearest is {}", nearest.unwrap_or_default())
}

struct Document<'a, 'b>(&'a mut Walk<'b>);

impl<'de> DeserializeSeed<'de> for Document<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(Section { walk: self.0, name: None })
    }
}

/// The keys of the document, or of one section.
struct Section<'a, 'b> {
    walk: &'a mut Walk<'b>,
    name: Option<&'static str>,
}

impl<'de> Visitor<'de> for Section<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keys and values")
    }

    // A section, or a document, whose every key is commented out.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(meaning) = map.next_key_seed(KeyName { walk: &mut *self.walk, section: self.name })? {
            match meaning {
                Meaning::Value(key) => map.next_value_seed(Value { walk: &mut *self.walk, key })?,
                Meaning::Section(name) => {
                    map.next_value_seed(SectionValue { walk: &mut *self.walk, name })?
                }
                Meaning::Skipped => drop(map.next_value::<IgnoredAny>()?),
            }
            self.walk.at = None;
        }
        Ok(())
    }
}

struct SectionValue<'a, 'b> {
    walk: &'a mut Walk<'b>,
    name: &'static str,
}

impl<'de> DeserializeSeed<'de> for SectionValue<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(Section { walk: self.walk, name: Some(self.name) })
    }
}

struct KeyName<'a, 'b> {
    walk: &'a mut Walk<'b>,
    section: Option<&'static str>,
}

impl<'de> DeserializeSeed<'de> for KeyName<'_, '_> {
    type Value = Meaning;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Meaning, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyName<'_, '_> {
    type Value = Meaning;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Meaning, E> {
        self.walk.enter(self.section, key).map_err(|()| E::custom("key"))
    }
}

struct Value<'a, 'b> {
    walk: &'a mut Walk<'b>,
    key: &'static Key,
}

impl<'de> DeserializeSeed<'de> for Value<'_, '_> {
    type Value = ();

    // As text, whatever YAML would make of it: `cpumask: 10` is a mask, not the number ten.
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Value<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        let set = if text.is_empty() {
            Err(format!("has no value; write one ({}) or remove the key", self.key.values))
        } else {
            (self.key.set)(&mut self.walk.config, text)
        };
        set.map_err(|problem| {
            self.walk.problem(problem);
            E::custom("value")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogLevel, PortRange};
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("/etc/escp.conf")).unwrap_err().to_string()
    }

    #[test]
    fn reads_keys_sections_and_the_predecessors_masks() {
        let text =
            "cpumask: FFFF\nnodemask: 1\nports: 2000-2010\nlog:\n  level: debug\nlimits:\n  sessions: 3\n";
        let config = parse(text).unwrap();
        assert_eq!(config.cpumask.as_slice().len(), 16);
        assert_eq!(config.nodemask.as_slice(), [0]);
        assert_eq!(config.ports, PortRange { first: 2000, last: 2010 });
        assert_eq!(config.log.level, LogLevel::Debug);
        assert_eq!(config.limits.sessions, 3);
        assert_eq!(parse("cpumask: 10\n").unwrap().cpumask.as_slice(), [4]);
        assert_eq!(parse("ports: 1232\n").unwrap().ports.last, 1232);
    }

    #[test]
    fn nothing_set_means_the_defaults() {
        for text in ["", "\n\n", "# only words\n", "{}", "limits:\n  # sessions: 3\nlog:\n", "---\n", "~"] {
            assert_eq!(parse(text).unwrap_or_else(|e| panic!("{text:?}: {e}")), Config::default());
        }
    }

    #[test]
    fn errors_name_file_line_key_and_the_nearest_key() {
        assert_eq!(
            error("socket: /s\n\nprots: 1\n"),
            "/etc/escp.conf:3: prots: is no known key; the nearest is ports"
        );
        assert!(
            error("limits:\n  sesions: 1\n")
                .ends_with(":2: limits.sesions: is no known key; the nearest is limits.sessions")
        );
        assert!(error("level: info\n").ends_with("the nearest is log.level"));
        assert_eq!(
            error("log:\n  level: info\n  format: text\n  level: warn\n"),
            "/etc/escp.conf:4: log.level: is set a second time"
        );
        assert!(error("a: 1\nports: 0\n").contains(":1: a:"));
        assert!(error("ports: 1\nstreams: 0\n").contains(":2: streams: '0' is not a number from 1 to 256"));
    }

    #[test]
    fn other_forms_are_refused_with_the_line() {
        assert!(error("ports: [1, 2]\n").contains(":1: ports: takes one value"));
        assert!(error("\nports:\n  first: 2\n").contains("ports: takes one value"));
        assert!(error("limits: 3\n").contains(":1: limits: is a section"));
        assert!(error("ports:\n").contains(":1: ports: has no value"));
        assert!(error("ports: 1\n  x: 2\n").contains("not understood"));
        assert!(error("just words\n").contains("not understood"));
        assert!(error("- 1\n- 2\n").contains("not understood"));
        assert!(error("? [a]\n: 1\n").contains("not understood"));
        assert!(error("ports: 1\n---\nports: 2\n").contains("not understood"));
        assert!(error("a\u{1b}[31m: 1\n").chars().all(|c| !c.is_control()));
        assert!(error("\"a\\e[31m\": 1\n").chars().all(|c| !c.is_control()));
    }

    #[test]
    fn a_missing_file_is_an_error_only_if_it_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none.conf");
        let error = read(Some(&missing)).unwrap_err().to_string();
        assert!(error.contains("none.conf: cannot read the configuration: No such file"), "{error}");
        let directory = read(Some(dir.path())).unwrap_err().to_string();
        assert!(directory.contains("cannot read"), "{directory}");
    }

    #[test]
    fn an_endless_file_is_not_read_to_its_end() {
        assert!(read(Some(Path::new("/dev/zero"))).unwrap_err().to_string().contains("more than"));
    }

    #[test]
    fn a_key_is_found_again_by_its_line() {
        let text = "# x\nlimits:\n  sessions: 3\n  unproven: 99\nports: 1\n";
        assert_eq!(line_of(text, "limits.unproven"), Some(4));
        assert_eq!(line_of(text, "ports"), Some(5));
        assert_eq!(line_of(text, "socket"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}|([a-z&*!:>|{}\\[\\]\"' ~.,\n-]{0,60})") {
            let _ = parse(&text);
        }
    }
}

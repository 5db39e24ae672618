//! The documentation of the keys, made from their table.

use crate::{Config, KEYS};
use std::fmt::Write as _;

/// The table of keys for the handbook, in Markdown.
#[must_use]
pub fn reference() -> String {
    let defaults = Config::default();
    let mut table = String::from(
        "| Key | Values | Default | Read by | A change applies | Meaning |\n|---|---|---|---|---|---|\n",
    );
    for key in KEYS {
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "| `{}` | {} | `{}` | {} | {} | {} |",
            key.name,
            key.values,
            key.value(&defaults),
            key.reader.name(),
            key.applies.name(),
            key.meaning
        );
    }
    table
}

/// The configuration file as it is shipped: every key with its default, commented out by a single `#`, below
/// its meaning behind `##`.
#[must_use]
pub fn sample() -> String {
    let defaults = Config::default();
    let mut text = String::from(
        "## Configuration of escp and escpd. YAML; unknown keys are refused.\n\
         ## Every key stands here with its default. To change one, remove the single # before it\n\
         ## (and before the section above it, if it is indented).\n\
         ## escpd --check-config shows every mistake; systemctl reload escpd applies what it can.\n",
    );
    let mut section = None;
    for key in KEYS {
        let (of, name) = key.name.split_once('.').map_or((None, key.name), |(of, name)| (Some(of), name));
        text.push('\n');
        if of != section
            && let Some(of) = of
        {
            let _ = writeln!(text, "#{of}:");
        }
        section = of;
        let indent = if of.is_some() { "  " } else { "" };
        let about = format!("{} Values: {}.", key.meaning, key.values.replace('`', ""));
        for line in wrapped(&about, 94) {
            let _ = writeln!(text, "{indent}## {line}");
        }
        let _ = writeln!(text, "#{indent}{name}: {}", key.value(&defaults));
    }
    text
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Rewrites the shipped file and the handbook's table instead of comparing, when set.
    const BLESS: &str = "ESCP_BLESS";

    fn shipped(path: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
    }

    #[test]
    fn the_shipped_file_is_made_from_the_table() {
        let path = shipped("config/escp.conf");
        if std::env::var_os(BLESS).is_some() {
            std::fs::write(&path, sample()).unwrap();
        }
        let file = std::fs::read_to_string(&path).unwrap();
        assert_eq!(file, sample(), "run the test with {BLESS}=1 after a change of the table");
    }

    #[test]
    fn the_shipped_file_sets_the_defaults_as_it_is_and_without_its_comments() {
        let commented = sample();
        assert_eq!(Config::parse(&commented, Path::new("sample")).unwrap(), Config::default());
        let bare: String = commented
            .lines()
            .filter(|line| !line.trim_start().starts_with("##"))
            .map(|line| format!("{}\n", line.strip_prefix('#').unwrap_or(line)))
            .collect();
        assert_eq!(Config::parse(&bare, Path::new("sample")).unwrap(), Config::default());
        for key in KEYS {
            let last = key.name.rsplit('.').next().unwrap();
            assert!(bare.contains(&format!("{last}: ")), "{}", key.name);
        }
    }

    #[test]
    fn the_handbook_has_the_table() {
        let path = shipped("docs/OPERATIONS.md");
        let (begin, end) = ("<!-- keys -->\n", "<!-- end of keys -->");
        let text = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = text.split_once(begin).unwrap();
        let (table, after) = rest.split_once(end).unwrap();
        if std::env::var_os(BLESS).is_some() {
            std::fs::write(&path, format!("{before}{begin}{}{end}{after}", reference())).unwrap();
        } else {
            assert_eq!(table, reference(), "run the test with {BLESS}=1 after a change of the table");
        }
    }
}

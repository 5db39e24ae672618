//! Rules about single files.

use super::Finding;
use super::source::{SourceFile, has_word};

/// Longest Rust file, in lines. Functions are clippy's (`too-many-lines-threshold`).
const MAX_LINES: usize = 500;
/// Module names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 7] = ["util", "utils", "common", "helper", "helpers", "types", "misc"];
/// What prints where only a person who looks at this very test sees it.
const PRINTS: [&str; 2] = ["println!(", "print!("];
/// Places of one machine; the tree must work from any clone. Split, or this file would break its own rule.
const WORKPLACES: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("/tm", "p/w/")];
/// Marks of unfinished work.
const UNFINISHED: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
/// Brand names and phrases of text that was pasted without being read, in ROT13 and lower case.
const PASTED: [&str; 7] =
    ["pungtcg", "pynhqr", "naguebcvp", "bcranv", "pbcvybg", "nf na nv", "ynathntr zbqry"];

/// Checks one file.
pub(crate) fn check(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    if file.is_rust() {
        rust(file, &mut findings);
    }
    prose(file, &mut findings);
    findings
}

/// Checks what only all files together show.
pub(crate) fn check_together(files: &[SourceFile]) -> Vec<Finding> {
    let users: Vec<&SourceFile> = files
        .iter()
        .filter(|f| f.path.starts_with("crates/escp-buf/") && f.is_rust() && has_word(&f.code, "tokio_uring"))
        .collect();
    users
        .iter()
        .skip(1)
        .map(|file| Finding {
            place: file.path.clone(),
            line: 0,
            text: format!("tokio_uring is for one file of escp-buf, and {} has it", users[0].path),
        })
        .collect()
}

fn rust(file: &SourceFile, findings: &mut Vec<Finding>) {
    let mut add = |line: usize, text: String| {
        findings.push(Finding { place: file.path.clone(), line, text });
    };
    let lines = file.text.lines().count();
    if lines > MAX_LINES {
        add(0, format!("{lines} lines; split it, {MAX_LINES} are the limit"));
    }
    let stem = file.name().trim_end_matches(".rs");
    if EMPTY_NAMES.contains(&stem) {
        add(0, format!("a module named '{stem}' says nothing; name it after what it does"));
    }
    let mut opened = false;
    for (index, (line, text)) in file.code.lines().zip(file.text.lines()).enumerate() {
        let number = index + 1;
        if has_word(line, "unsafe") && !may_be_unsafe(&file.path) {
            add(number, "unsafe belongs in escp-sys or escp-buf".to_owned());
        }
        if has_word(line, "tokio_uring") && !may_name_uring(&file.path) {
            add(
                number,
                "tokio_uring belongs in the engine's uring files and the benches' floor by it".to_owned(),
            );
        }
        // Whatever it was imported as; nothing else of ours has the name.
        let ends = has_word(line, "exit") || line.contains("process::abort");
        if ends && file.name() != "main.rs" {
            add(number, "ending the process belongs in main.rs; return an error instead".to_owned());
        }
        if (opened || PRINTS.iter().any(|print| line.contains(print))) && skips(text) {
            add(
                number,
                "a runner hides what a passing test prints; escp_testkit::say_skipped shows it".to_owned(),
            );
        }
        opened = PRINTS.iter().any(|print| line.trim_end().ends_with(print));
        if let Some(name) = declared_module(line).filter(|name| EMPTY_NAMES.contains(name)) {
            add(number, format!("a module named '{name}' says nothing; name it after what it does"));
        }
        if line.contains("todo!(") || line.contains("unimplemented!(") {
            add(number, "finish it, or leave it out".to_owned());
        }
    }
}

/// Whether a line has a text that begins like the word of a test that does not run.
fn skips(line: &str) -> bool {
    let line = line.to_lowercase();
    line.contains("\"skip") || line.contains("\"\\nskip")
}

fn may_be_unsafe(path: &str) -> bool {
    path.starts_with("crates/escp-sys/") || path.starts_with("crates/escp-buf/")
}

fn may_name_uring(path: &str) -> bool {
    let engine = path.strip_prefix("crates/escp-engine/src/").is_some_and(|below| {
        below.split('/').any(|part| part == "uring" || part.starts_with("uring") && part.ends_with(".rs"))
    });
    engine || path == "benches/src/floor/uring.rs" || path.starts_with("crates/escp-buf/")
}

fn declared_module(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) ")).unwrap_or(line);
    let name = line.strip_prefix("mod ")?;
    Some(name.trim_end_matches([' ', ';', '{']))
}

fn prose(file: &SourceFile, findings: &mut Vec<Finding>) {
    // Someone else's words: licence texts, resolved versions.
    if file.path.starts_with("LICENSE") || file.path.ends_with("Cargo.lock") {
        return;
    }
    for (index, line) in file.text.lines().enumerate() {
        let mut add = |text: String| {
            findings.push(Finding { place: file.path.clone(), line: index + 1, text });
        };
        if let Some(mark) = UNFINISHED.into_iter().find(|mark| has_word(line, mark)) {
            add(format!("'{mark}': do it, or file it where work is tracked"));
        }
        if let Some(place) = WORKPLACES.into_iter().find(|place| line.contains(place)) {
            add(format!("'{place}' exists on one machine only"));
        }
        let folded: String = line.to_lowercase().chars().map(rot13).collect();
        if PASTED.into_iter().any(|phrase| has_word(&folded, phrase)) {
            add("this does not belong in the tree; say it in the project's own words".to_owned());
        }
    }
}

fn rot13(c: char) -> char {
    match c {
        'a'..='m' => char::from(c as u8 + 13),
        'n'..='z' => char::from(c as u8 - 13),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::{check, check_together, rot13};
    use crate::tidy::source::SourceFile;

    fn found(path: &str, text: &str) -> usize {
        check(&SourceFile::new(path, text.to_owned())).len()
    }

    #[test]
    fn unsafe_outside_its_crates_is_found() {
        let code = "fn f() { unsafe { g() } }\n";
        assert_eq!(found("crates/escp-agent/src/a.rs", code), 1);
        assert_eq!(found("tests/tests/a.rs", code), 1);
        assert_eq!(found("crates/escp-sys/src/a.rs", code), 0);
        assert_eq!(found("crates/escp-buf/src/a.rs", code), 0);
        assert_eq!(found("crates/escp-agent/src/a.rs", "#![forbid(unsafe_code)]\n// unsafe\n"), 0);
    }

    #[test]
    fn tokio_uring_outside_its_files_is_found() {
        let code = "use tokio_uring::fs::File;\n";
        assert_eq!(found("crates/escp-engine/src/worker.rs", code), 1);
        assert_eq!(found("escpd/src/uring.rs", code), 1);
        assert_eq!(found("crates/escp-engine/src/disk/uring.rs", code), 0);
        assert_eq!(found("crates/escp-engine/src/uring/net.rs", code), 0);
        assert_eq!(found("crates/escp-engine/src/net/uring_send.rs", code), 0);
        assert_eq!(found("benches/src/floor/uring.rs", code), 0);
        assert_eq!(found("benches/src/floor.rs", code), 1);
    }

    #[test]
    fn a_second_tokio_uring_file_of_the_pool_is_found() {
        let file = |path: &str| SourceFile::new(path, "use tokio_uring::buf::IoBuf;\n".to_owned());
        assert_eq!(check_together(&[file("crates/escp-buf/src/a.rs")]).len(), 0);
        assert_eq!(
            check_together(&[file("crates/escp-buf/src/a.rs"), file("crates/escp-buf/src/b.rs")]).len(),
            1
        );
    }

    #[test]
    fn ending_the_process_outside_main_is_found() {
        let code = "fn f() { std::process::exit(1) }\n";
        assert_eq!(found("escp-cli/src/args.rs", code), 1);
        assert_eq!(found("escp-cli/src/main.rs", code), 0);
        let imported = "use std::process::{self, exit};\nfn f() { exit(1) }\nfn g() { process::abort() }\n";
        assert_eq!(found("escp-cli/src/args.rs", imported), 3);
        assert_eq!(found("escp-cli/src/args.rs", "fn f(exit_status: u8) {} // exit\n"), 0);
        // What clap's errors offer.
        assert_eq!(found("escp-cli/src/args.rs", "fn f(e: Error) { e.exit() }\n"), 1);
    }

    #[test]
    fn a_skip_that_nobody_sees_is_found() {
        for rest in
            ["(\"SKIP: no promtool\");\n", "(\"skipped: {error}\");\n", "(\n    \"SKIPPED: {error}\"\n);\n"]
        {
            for print in ["println!", "return eprintln!"] {
                assert_eq!(found("escpd/tests/units.rs", &format!("{print}{rest}")), 1, "{print}{rest}");
            }
        }
        let seen = "say_skipped(&test_name(), \"skipped\");\nprintln!(\"{skipped}\");\n";
        assert_eq!(found("escpd/tests/units.rs", seen), 0);
    }

    #[test]
    fn a_long_file_is_found_at_the_limit_only() {
        assert_eq!(found("a/src/b.rs", &"//\n".repeat(500)), 0);
        assert_eq!(found("a/src/b.rs", &"//\n".repeat(501)), 1);
        assert_eq!(found("docs/LONG.md", &"line\n".repeat(5000)), 0);
    }

    #[test]
    fn names_that_say_nothing_are_found() {
        assert_eq!(found("crates/escp-sys/src/util.rs", ""), 1);
        assert_eq!(found("crates/escp-sys/src/a.rs", "pub mod helpers;\n"), 1);
        assert_eq!(found("crates/escp-sys/src/a.rs", "mod utility_bills;\n"), 0);
    }

    #[test]
    fn unfinished_work_is_found() {
        assert_eq!(found("a/src/b.rs", &format!("// {}: later\n", super::UNFINISHED[0])), 1);
        assert_eq!(found("README.md", &format!("{} this\n", super::UNFINISHED[1])), 1);
        assert_eq!(found("a/src/b.rs", "fn f() { todo!(\"x\") }\n"), 1);
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        assert_eq!(found("docs/A.md", &format!("see {}main/x\n", super::WORKPLACES[0])), 1);
        assert_eq!(found("docs/A.md", "install to /usr/local/bin, framework/x\n"), 0);
    }

    #[test]
    fn pasted_phrases_are_found_and_the_list_is_not() {
        let phrase: String = super::PASTED[5].chars().map(rot13).collect();
        assert_eq!(found("docs/A.md", &format!("Well, {phrase}, I\n")), 1);
        assert_eq!(found("docs/A.md", "as an aid\n"), 0);
    }
}

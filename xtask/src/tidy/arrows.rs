//! Which of our crates may name which: the arrows of the architecture.

use super::Finding;
use serde_json::Value;

/// Package and the packages of ours it may depend on. What is not listed here may depend on none, and a
/// package that is missing here is a finding.
const ARROWS: &[(&str, &[&str])] = &[
    ("escp-proto", &[]),
    ("escp-crypto", &[]),
    ("escp-buf", &[]),
    ("escp-sys", &[]),
    ("escp-config", &[]),
    ("escp-engine-api", &[]),
    ("escp-ipc", &["escp-engine-api", "escp-sys"]),
    ("escp-engine", &["escp-proto", "escp-crypto", "escp-buf", "escp-sys", "escp-engine-api"]),
    // The agent computes the master secret from the hellos, so it needs escp-crypto for that type.
    ("escp-agent", &["escp-proto", "escp-crypto", "escp-sys", "escp-engine-api"]),
    // The broker proves first packets with the session's routing key, a type of escp-crypto.
    ("escpd", &["escp-engine", "escp-ipc", "escp-config", "escp-sys", "escp-engine-api", "escp-crypto"]),
    ("escp-cli", &["escp-agent", "escp-ipc", "escp-engine", "escp-config", "escp-sys", "escp-engine-api"]),
    ("escp-testkit", &["escp-sys"]),
    ("xtask", &["escp-testkit"]),
    // Tests and benches may look at everything.
    ("escp-tests", &["*"]),
    ("escp-benches", &["*"]),
];

/// Checks `cargo metadata`'s answer.
///
/// # Errors
/// When it is not of the expected form.
pub(crate) fn check(metadata: &Value) -> Result<Vec<Finding>, String> {
    let packages = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    let ours: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().ok_or("a package without a name")?;
        let dependencies = package["dependencies"].as_array().ok_or("a package without dependencies")?;
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            findings.push(finding(name, "is not in the table of allowed arrows (xtask/src/tidy/arrows.rs)"));
            continue;
        };
        if allowed.contains(&"*") {
            continue;
        }
        for dependency in dependencies {
            let target = dependency["name"].as_str().unwrap_or_default();
            // A test may use any library of ours; what ships may not.
            let shipped = dependency["kind"].as_str() != Some("dev");
            if shipped && ours.contains(&target) && !allowed.contains(&target) {
                findings.push(finding(name, &format!("must not depend on {target}")));
            }
        }
    }
    Ok(findings)
}

fn finding(package: &str, text: &str) -> Finding {
    Finding { place: package.to_owned(), line: 0, text: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::check;
    use serde_json::json;

    fn two(from: &str, to: &str, kind: Option<&str>) -> serde_json::Value {
        json!({ "packages": [
            { "name": from, "dependencies": [ { "name": to, "kind": kind }, { "name": "serde", "kind": null } ] },
            { "name": to, "dependencies": [] },
        ]})
    }

    #[test]
    fn an_allowed_arrow_passes() {
        assert_eq!(check(&two("escp-engine", "escp-buf", None)).unwrap(), []);
    }

    #[test]
    fn a_forbidden_arrow_is_found_whatever_its_direction() {
        for (from, to) in
            [("escp-proto", "escp-crypto"), ("escp-sys", "escp-engine"), ("escpd", "escp-agent")]
        {
            let found = check(&two(from, to, None)).unwrap();
            assert_eq!(found.len(), 1, "{from} -> {to}");
            assert!(found[0].text.contains(to));
            assert_eq!(check(&two(from, to, Some("build"))).unwrap().len(), 1, "a build script ships too");
        }
    }

    #[test]
    fn a_test_may_use_what_a_crate_may_not() {
        assert_eq!(check(&two("escp-ipc", "escp-proto", Some("dev"))).unwrap(), []);
    }

    #[test]
    fn an_unknown_package_is_found() {
        assert_eq!(check(&two("escp-engine", "escp-magic", None)).unwrap().len(), 2);
    }
}

//! The programs under test, built and put where every user can run them.

use crate::{Checked, Trouble, lock};
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What is built and installed: Cargo package and binary.
const PROGRAMS: [(&str, &str); 2] = [("escp-cli", "escp"), ("escpd", "escpd")];
/// Copies of earlier builds are removed after this.
const OLD: Duration = Duration::from_secs(3600);

/// The directory with `escp` and `escpd` as last built; every user may run them.
///
/// Under a test runner they are built once per run, else by each process.
///
/// # Errors
/// When they cannot be built or copied.
pub fn installed() -> Checked<PathBuf> {
    let built = build_directory()?;
    // A lock of this tree's: another's build may take minutes.
    let _one_at_a_time = lock::hold_at(&built.join(".escp-tests.lock"))?;
    build(&built)?;
    install(&built, &lock::shared_directory()?.join("programs"))
}

/// Builds `escp` and `escpd` for release; returns the directory that they are in.
///
/// # Errors
/// When they cannot be built.
pub fn built_for_release() -> Checked<PathBuf> {
    let directory = build_directory()?;
    let _one_at_a_time = lock::hold_at(&directory.join(".escp-tests.lock"))?;
    compile(true)?;
    Ok(directory.parent().unwrap_or(&directory).join("release"))
}

/// Copies them from a build directory to one that every user reaches.
///
/// # Errors
/// When they are not there, or cannot be copied.
pub fn copy(built: &Path, to: &Path) -> Checked {
    for (_, program) in PROGRAMS {
        std::fs::copy(built.join(program), to.join(program))?;
        std::fs::set_permissions(to.join(program), Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Copies the programs of a build directory below `store`, to a place named after what they are.
fn install(built: &Path, store: &Path) -> Checked<PathBuf> {
    let _one_at_a_time = lock::hold("programs")?;
    let mut print = String::new();
    for (_, program) in PROGRAMS {
        let meta = std::fs::metadata(built.join(program))?;
        print.push_str(&format!("{:x}-{:x}-{:x}.", meta.ino(), meta.size(), meta.mtime_nsec()));
    }
    let target = store.join(print.trim_end_matches('.'));
    if target.is_dir() {
        // Still in use, so not old.
        std::fs::File::open(&target)?.set_modified(std::time::SystemTime::now())?;
        return Ok(target);
    }
    std::fs::create_dir_all(store)?;
    std::fs::set_permissions(store, Permissions::from_mode(0o755))?;
    remove_old(store);
    let fresh = store.join(format!("new-{}", std::process::id()));
    std::fs::create_dir(&fresh)?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(0o755))?;
    copy(built, &fresh)?;
    std::fs::rename(&fresh, &target)?;
    Ok(target)
}

fn remove_old(store: &Path) {
    for entry in std::fs::read_dir(store).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|meta| meta.modified()).map(|time| time.elapsed());
        if matches!(age, Ok(Ok(age)) if age > OLD) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// `target/<profile>`, from where the running test or task lies.
fn build_directory() -> Checked<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.parent().ok_or_else(|| Trouble::new("the test lies nowhere"))?;
    let directory =
        if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    Ok(directory.to_path_buf())
}

fn build(built: &Path) -> Checked {
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| format!("process {}", std::process::id()));
    let stamp = built.join(".escp-tests-built-for");
    let present = PROGRAMS.iter().all(|(_, program)| built.join(program).is_file());
    if present && std::fs::read_to_string(&stamp).is_ok_and(|last| last == run) {
        return Ok(());
    }
    compile(built.ends_with("release"))?;
    std::fs::write(stamp, run)?;
    Ok(())
}

fn compile(release: bool) -> Checked {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--locked"]);
    if release {
        command.arg("--release");
    }
    for (package, program) in PROGRAMS {
        command.args(["--package", package, "--bin", program]);
    }
    // Variables that Cargo sets for a test would make the build see another configuration.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_") && text != "CARGO_HOME" && text != "CARGO_TARGET_DIR" {
            command.env_remove(&name);
        }
    }
    // A runner that kills a slow test kills its process group; a build must not be cut in the middle.
    command.process_group(0);
    let result = command.output()?;
    if !result.status.success() {
        return Err(Trouble::new(format!(
            "building the programs failed: {}",
            String::from_utf8_lossy(&result.stderr)
        )));
    }
    Ok(())
}

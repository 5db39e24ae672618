//! `--profile`: where the CPU time of one run goes, as a flame graph and as a list.
//!
//! perf samples the processes of the world and everything they start; stacks are unwound from the binaries' own
//! unwind tables, since release builds keep no frame pointers.

use crate::ground::Ground;
use crate::machine::running;
use escp_testkit::run::Run;
use escp_testkit::{Checked, Trouble};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Samples per second and processor; odd, so as not to march in step with the kernel's timer.
const FREQUENCY: &str = "299";
/// How much of each stack is kept, in bytes.
const STACKS: &str = "dwarf,16384";
/// Lines of the list.
const LINES: usize = 30;

/// Runs `work` under perf and writes `NAME.svg` and `NAME.txt` into `directory`. Returns their common path.
pub(crate) fn record(
    ground: &Ground,
    directory: &Path,
    name: &str,
    work: impl FnOnce() -> Checked,
) -> Checked<PathBuf> {
    escp_testkit::run::program("perf")
        .map_err(|_| Trouble::new("--profile needs perf (Debian package linux-perf)"))?;
    std::fs::create_dir_all(directory)?;
    let path = directory.join(name.replace([' ', '/', ','], "-"));
    let data = path.with_extension("perf");
    // What they start belongs to it too: near programs are ours, far ones sshd's, workers the daemons'.
    let mut pids = running(ground.group.as_ref());
    pids.insert(std::process::id());
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let perf = Run::new("perf", None)
        .args(["record", "--quiet", "-e", "cpu-clock", "-F", FREQUENCY, "--call-graph", STACKS, "-o"])
        .arg(&data)
        .args(["-p", &pids.join(",")])
        .patience(Duration::from_secs(3600))
        .start()?;
    // It says nothing when it is ready.
    std::thread::sleep(Duration::from_millis(700));
    let outcome = work();
    perf.signal(Signal::INT)?;
    perf.end()?;
    outcome?;
    let script = Run::new("perf", None)
        .args(["script", "--no-inline", "-F", "comm,pid,ip,sym", "-i"])
        .arg(&data)
        .patience(Duration::from_secs(600))
        .succeed()?;
    let _ = std::fs::remove_file(&data);
    let stacks = collapse(&script.stdout, std::process::id());
    std::fs::write(path.with_extension("txt"), list(&stacks))?;
    std::fs::write(path.with_extension("svg"), graph(name, &stacks))?;
    Ok(path)
}

/// Samples by stack, the program first, then from the outermost frame to the innermost.
type Stacks = BTreeMap<Vec<String>, u64>;

/// Reads what `perf script` printed, leaving out the process `own`.
fn collapse(script: &str, own: u32) -> Stacks {
    let mut stacks = Stacks::new();
    for sample in script.split("\n\n") {
        let mut lines = sample.lines().skip_while(|line| line.trim().is_empty());
        let Some(head) = lines.next() else { continue };
        let Some((command, pid)) = head.trim().rsplit_once(' ') else { continue };
        if pid == own.to_string() {
            continue;
        }
        let mut frames: Vec<String> = lines.filter_map(frame).collect();
        // Threads that do the same are one.
        let command = command.trim().trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
        frames.push(command.to_owned());
        frames.reverse();
        *stacks.entry(frames).or_default() += 1;
    }
    stacks
}

/// `ADDRESS SYMBOL`; kernel addresses are in the upper half.
fn frame(line: &str) -> Option<String> {
    let (address, symbol) = line.trim().split_once(' ')?;
    let kernel = if address.len() == 16 && address.starts_with("ffff") { "_[k]" } else { "" };
    Some(format!("{symbol}{kernel}"))
}

#[expect(clippy::cast_precision_loss, reason = "samples of one run")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// The innermost frames with the most samples, by program.
fn list(stacks: &Stacks) -> String {
    let whole: u64 = stacks.values().sum();
    let mut by_leaf: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (frames, count) in stacks {
        let (first, last) =
            (frames.first().map_or("", String::as_str), frames.last().map_or("", String::as_str));
        *by_leaf.entry((first, last)).or_default() += count;
    }
    let mut rows: Vec<_> = by_leaf.into_iter().collect();
    rows.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let mut out = format!("{whole} samples, {FREQUENCY} per second and processor\n");
    for ((program, symbol), count) in rows.into_iter().take(LINES) {
        let _ = writeln!(out, "{:>5.1} %  {program:<16} {symbol}", share(count, whole) * 100.0);
    }
    out
}

/// A box of the graph: all samples that share a stack so far.
#[derive(Default)]
struct Node {
    count: u64,
    inner: BTreeMap<String, Node>,
}

const WIDTH: f64 = 1600.0;
const HEIGHT: f64 = 16.0;

/// The flame graph, outermost frames at the bottom; a box tells its name and share when pointed at.
fn graph(title: &str, stacks: &Stacks) -> String {
    let mut root = Node::default();
    for (frames, count) in stacks {
        root.count += count;
        frames.iter().fold(&mut root, |node, frame| {
            let inner = node.inner.entry(frame.clone()).or_default();
            inner.count += count;
            inner
        });
    }
    #[expect(clippy::cast_precision_loss, reason = "frames of a stack")]
    let bottom = (stacks.keys().map(Vec::len).max().unwrap_or(0) as f64 + 2.0) * HEIGHT;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" font-family=\"monospace\" font-size=\"11\">\n\
         <text x=\"4\" y=\"12\">{} ({} samples)</text>\n",
        bottom + HEIGHT,
        escaped(title),
        root.count
    );
    draw(&root, root.count, 0.0, bottom, &mut out);
    out.push_str("</svg>\n");
    out
}

fn draw(node: &Node, whole: u64, mut left: f64, bottom: f64, out: &mut String) {
    /// Narrower ones nobody sees.
    const LEAST: f64 = 0.4;
    for (name, inner) in &node.inner {
        let width = share(inner.count, whole) * WIDTH;
        if width >= LEAST {
            let hue = if name.ends_with("_[k]") { 210 } else { 30 };
            let lightness = 60 + name.bytes().map(u32::from).sum::<u32>() % 25;
            let top = bottom - HEIGHT;
            let label = escaped(name);
            let _ = writeln!(
                out,
                "<g><title>{label} {:.2} %</title><rect x=\"{left:.1}\" y=\"{top}\" width=\"{width:.1}\" \
                 height=\"{}\" fill=\"hsl({hue},70%,{lightness}%)\"/>",
                share(inner.count, whole) * 100.0,
                HEIGHT - 1.0
            );
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a width of the page"
            )]
            let room = ((width - 4.0) / 6.7).max(0.0) as usize;
            if room > 2 {
                let short = escaped(&name.chars().take(room).collect::<String>());
                let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{}\">{short}</text>", left + 2.0, top + 12.0);
            }
            out.push_str("</g>\n");
            draw(inner, whole, left, top, out);
        }
        left += width;
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::{collapse, graph, list};

    const SCRIPT: &str = "escp-0 12\n\t1a b<c>\n\t2b main\n\nescp 12\n\tffffffff81000000 write\n\t2b main\n\n\
                          escp 12\n\t1a b<c>\n\t2b main\n\nescp-bench 7\n\t1a own\n\n";

    #[test]
    fn samples_are_summed_by_stack_from_the_outside_in() {
        let stacks = collapse(SCRIPT, 7);
        let told: Vec<_> = stacks.iter().map(|(frames, count)| (frames.join(";"), *count)).collect();
        assert_eq!(told, [("escp;main;b<c>".to_owned(), 2), ("escp;main;write_[k]".to_owned(), 1)]);
    }

    #[test]
    fn list_and_graph_show_the_shares() {
        let stacks = collapse(SCRIPT, 7);
        assert!(list(&stacks).contains("66.7 %  escp             b<c>"), "{}", list(&stacks));
        let svg = graph("B1 & more", &stacks);
        assert!(svg.contains("b&lt;c&gt; 66.67 %") && svg.contains("B1 &amp; more (3 samples)"), "{svg}");
        assert!(svg.contains("main 100.00 %"), "{svg}");
    }
}

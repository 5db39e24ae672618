//! Sets of CPUs and NUMA nodes, written as the predecessor writes them: hexadecimal, lowest bit first.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

/// Most CPUs or nodes a mask may name: the kernel's own largest NR_CPUS is 8192.
const MAX_BITS: usize = 8192;

/// CPUs the data threads may run on. Empty: all of the process's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuMask(Vec<u16>);

/// NUMA nodes whose CPUs the data threads may run on. Empty: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeMask(Vec<u16>);

impl CpuMask {
    /// Reads `FFFF`, `0xffff`, the comma-grouped form of /proc, or `all`.
    ///
    /// # Errors
    /// One sentence that says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        bits(text, "CPU").map(Self)
    }

    /// The CPUs it names, in order; empty for `all`.
    #[must_use]
    pub fn as_slice(&self) -> &[u16] {
        &self.0
    }
}

impl NodeMask {
    /// Reads `3`, `0x3`, the comma-grouped form of /proc, or `all`.
    ///
    /// # Errors
    /// One sentence that says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        bits(text, "node").map(Self)
    }

    /// The nodes it names, in order; empty for `all`.
    #[must_use]
    pub fn as_slice(&self) -> &[u16] {
        &self.0
    }
}

impl fmt::Display for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Display for NodeMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

fn bits(text: &str, what: &str) -> Result<Vec<u16>, String> {
    if text == "all" {
        return Ok(Vec::new());
    }
    let wrong = || {
        format!(
            "'{}' is not a mask in hexadecimal (like FFFF: the lowest bit is {what} 0) or 'all'",
            text.escape_debug()
        )
    };
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let digits: Vec<u32> = digits
        .chars()
        .filter(|c| *c != ',')
        .map(|c| c.to_digit(16))
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    if digits.is_empty() {
        return Err(wrong());
    }
    if digits.len() > MAX_BITS / 4 {
        return Err(format!("the mask names more than {MAX_BITS} {what}s"));
    }
    let numbered = digits.iter().rev().zip((0u16..).step_by(4));
    let set: Vec<u16> = numbered
        .flat_map(|(digit, base)| {
            (0u16..4).filter(move |bit| digit >> bit & 1 == 1).map(move |bit| base + bit)
        })
        .collect();
    if set.is_empty() {
        return Err(format!("the mask '{}' names no {what}", text.escape_debug()));
    }
    Ok(set)
}

fn hex(set: &[u16]) -> String {
    let Some(highest) = set.last() else { return "all".to_owned() };
    let mut digits = vec![0u32; usize::from(highest / 4) + 1];
    for bit in set {
        if let Some(digit) = digits.get_mut(usize::from(bit / 4)) {
            *digit |= 1 << (bit % 4);
        }
    }
    digits.iter().rev().filter_map(|digit| char::from_digit(*digit, 16)).collect::<String>().to_uppercase()
}

/// The CPUs that both masks allow and that are online, from a directory laid out like /sys/devices/system.
/// Empty when neither mask narrows anything.
pub(crate) fn expand(
    cpus: &CpuMask,
    nodes: &NodeMask,
    system: &Path,
) -> Result<Vec<u16>, (&'static str, String)> {
    if cpus.0.is_empty() && nodes.0.is_empty() {
        return Ok(Vec::new());
    }
    let online = read_list(&system.join("cpu/online")).map_err(|reason| ("cpumask", reason))?;
    let mut allowed = online.clone();
    if !cpus.0.is_empty() {
        allowed.retain(|cpu| cpus.0.contains(cpu));
        if allowed.is_empty() {
            let reason =
                format!("none of the CPUs in the mask {cpus} is online (online: {})", ranges(&online));
            return Err(("cpumask", reason));
        }
    }
    if !nodes.0.is_empty() {
        let of_nodes = cpus_of_nodes(nodes, system).map_err(|reason| ("nodemask", reason))?;
        allowed.retain(|cpu| of_nodes.contains(cpu));
        if allowed.is_empty() {
            return Err(("nodemask", format!("the nodes {nodes} have no CPU that cpumask {cpus} allows")));
        }
    }
    Ok(allowed.into_iter().collect())
}

fn cpus_of_nodes(nodes: &NodeMask, system: &Path) -> Result<BTreeSet<u16>, String> {
    let mut cpus = BTreeSet::new();
    let mut found = false;
    for node in &nodes.0 {
        let list = system.join(format!("node/node{node}/cpulist"));
        // As with CPUs: a mask written for the largest host of a site serves the smaller ones too.
        if list.exists() {
            found = true;
            cpus.extend(read_list(&list)?);
        }
    }
    if found { Ok(cpus) } else { Err(format!("this host has none of the nodes in the mask {nodes}")) }
}

/// Reads a list of the kernel's form, `0-3,8,10-11`.
fn read_list(path: &Path) -> Result<BTreeSet<u16>, String> {
    let text =
        fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mut set = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = first.parse::<u16>().ok().zip(last.parse::<u16>().ok());
        let (first, last) = range.ok_or_else(|| format!("cannot read {}: '{part}'", path.display()))?;
        set.extend(first..=last);
    }
    Ok(set)
}

fn ranges(set: &BTreeSet<u16>) -> String {
    match (set.first(), set.last()) {
        (Some(first), Some(last)) if first != last => format!("{} of {first}-{last}", set.len()),
        (Some(only), _) => only.to_string(),
        _ => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(dir: &Path) {
        for (path, text) in
            [("cpu/online", "0-7\n"), ("node/node0/cpulist", "0-3\n"), ("node/node1/cpulist", "4-5,6-7\n")]
        {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn cpus(mask: &str, nodes: &str) -> Result<Vec<u16>, (&'static str, String)> {
        let dir = tempfile::tempdir().unwrap();
        system(dir.path());
        expand(&CpuMask::parse(mask).unwrap(), &NodeMask::parse(nodes).unwrap(), dir.path())
    }

    #[test]
    fn the_lowest_bit_is_cpu_0() {
        assert_eq!(CpuMask::parse("FFFF").unwrap().as_slice(), (0..16).collect::<Vec<_>>());
        assert_eq!(CpuMask::parse("0x5").unwrap().as_slice(), [0, 2]);
        assert_eq!(CpuMask::parse("10").unwrap().as_slice(), [4]);
        assert_eq!(CpuMask::parse("1,00000000").unwrap().as_slice(), [32]);
        assert_eq!(CpuMask::parse("all").unwrap(), CpuMask::default());
        for text in ["", "0", "0x", "G", "-1", "F F", "all "] {
            assert!(CpuMask::parse(text).is_err(), "{text}");
        }
        assert!(CpuMask::parse(&"F".repeat(2048)).is_ok());
        assert!(CpuMask::parse(&"F".repeat(2049)).unwrap_err().contains("8192"));
    }

    #[test]
    fn masks_are_written_as_they_are_read() {
        for text in ["all", "1", "FFFF", "10", "80000001", "A5"] {
            assert_eq!(CpuMask::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn masks_are_cut_to_the_host() {
        assert_eq!(cpus("all", "all").unwrap(), Vec::<u16>::new());
        assert_eq!(cpus("FFFF", "all").unwrap(), (0..8).collect::<Vec<_>>());
        assert_eq!(cpus("all", "2").unwrap(), [4, 5, 6, 7]);
        assert_eq!(cpus("3C", "1").unwrap(), [2, 3]);
        assert_eq!(cpus("all", "7").unwrap(), (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn a_mask_that_leaves_nothing_is_an_error() {
        assert_eq!(cpus("100", "all").unwrap_err().0, "cpumask");
        assert_eq!(cpus("F", "2").unwrap_err().0, "nodemask");
        assert!(cpus("all", "4").unwrap_err().1.contains("none of the nodes"));
    }
}

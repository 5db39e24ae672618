//! On which CPUs data threads run: those that were asked for, else those near the network card.
//!
//! Memory follows: a thread's buffers are touched for the first time by itself, after it was placed, and the
//! kernel takes pages of the node that touches them.

use escp_engine_api::placement::{Placement, Reason};
use escp_sys::interface;
use rustix::thread::sched_getaffinity;
use std::collections::BTreeSet;
use std::net::TcpStream;
use std::path::Path;

/// How deep bonds, bridges and VLANs are followed to the card below them.
const LAYERS: u32 = 4;

/// Decides for a session with this data connection. `asked` are CPUs by mask; `sys` is laid out like /sys.
pub(crate) fn decide(asked: &[u16], socket: &TcpStream, sys: &Path) -> Placement {
    let nodes = nodes(sys);
    if !asked.is_empty() {
        let of_asked = nodes.iter().filter(|(_, cpus)| asked.iter().any(|cpu| cpus.contains(cpu)));
        let nodes = of_asked.map(|(node, _)| *node).collect();
        return Placement { reason: Reason::Mask, nodes, cpus: asked.to_vec() };
    }
    let interface = || {
        let address = socket.local_addr().ok()?.ip();
        interface::with_address(socket, address).ok().flatten()
    };
    let near = (nodes.len() > 1).then(interface).flatten().and_then(|name| near(sys, &name, &nodes));
    match near {
        Some((node, cpus)) => Placement { reason: Reason::Card, nodes: vec![node], cpus },
        None => Placement { reason: Reason::Nothing, nodes: Vec::new(), cpus: Vec::new() },
    }
}

/// How many CPUs data threads may run on: those of a mask, else all that this process has.
pub(crate) fn cores(mask: &[u16]) -> usize {
    match mask.len() {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        masked => masked,
    }
}

type Node = (u16, BTreeSet<u16>);

/// The node of an interface's card, and those of its CPUs that this process may use.
fn near(sys: &Path, interface: &str, nodes: &[Node]) -> Option<(u16, Vec<u16>)> {
    let of_card = card_nodes(&sys.join("class/net"), interface, LAYERS);
    // A bond over cards of two nodes is near to neither.
    let [node] = of_card.into_iter().collect::<Vec<_>>()[..] else { return None };
    let (_, cpus) = nodes.iter().find(|(number, _)| *number == node)?;
    let own = sched_getaffinity(None).ok()?;
    let usable: Vec<u16> = cpus.iter().copied().filter(|cpu| own.is_set(usize::from(*cpu))).collect();
    (!usable.is_empty()).then_some((node, usable))
}

fn card_nodes(class: &Path, interface: &str, layers: u32) -> BTreeSet<u16> {
    let directory = class.join(interface);
    let number = std::fs::read_to_string(directory.join("device/numa_node")).ok();
    // -1: the firmware names none.
    if let Some(node) = number.and_then(|text| text.trim().parse().ok()) {
        return BTreeSet::from([node]);
    }
    let lower = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let lower =
        lower.filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("lower_")?.to_owned()));
    if layers == 0 {
        BTreeSet::new()
    } else {
        lower.flat_map(|name| card_nodes(class, &name, layers - 1)).collect()
    }
}

/// The nodes with CPUs.
fn nodes(sys: &Path) -> Vec<Node> {
    let base = sys.join("devices/system/node");
    let list =
        |path: &Path| std::fs::read_to_string(path).ok().map(|text| numbers(&text)).unwrap_or_default();
    let nodes = list(&base.join("online")).into_iter();
    nodes
        .map(|node| (node, list(&base.join(format!("node{node}/cpulist")))))
        .filter(|(_, c)| !c.is_empty())
        .collect()
}

/// Numbers of the kernel's form, `0-3,8`. What is none of it is left out.
fn numbers(text: &str) -> BTreeSet<u16> {
    let ranges = text.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::net::TcpListener;

    fn sys(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const TWO: [(&str, &str); 3] = [
        ("devices/system/node/online", "0-1\n"),
        ("devices/system/node/node0/cpulist", "0\n"),
        ("devices/system/node/node1/cpulist", "1-3,8\n"),
    ];

    fn connection() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    }

    /// Nearness by this machine's own CPU 0 and interface `lo`, with a card under it.
    fn decided(more: &[(&str, &str)]) -> Placement {
        let root = sys(&[&TWO[..], more].concat());
        decide(&[], &connection(), root.path())
    }

    #[test]
    fn threads_go_to_the_node_of_the_card() {
        let placed = decided(&[("class/net/lo/device/numa_node", "0\n")]);
        assert_eq!(placed, Placement { reason: Reason::Card, nodes: vec![0], cpus: vec![0] });
        assert!(placed.to_string().contains("CPUs 0, on NUMA node 0"));
    }

    #[test]
    fn what_lies_over_a_card_is_seen_through() {
        let bond = [("class/net/lo/lower_eth0/x", ""), ("class/net/eth0/device/numa_node", "0")];
        assert_eq!(decided(&bond).nodes, [0]);
        let two = [&bond[..], &[("class/net/lo/lower_eth1/x", ""), ("class/net/eth1/device/numa_node", "1")]];
        assert_eq!(decided(&two.concat()).reason, Reason::Nothing);
        // An interface over itself ends somewhere.
        assert_eq!(decided(&[("class/net/lo/lower_lo/x", "")]).reason, Reason::Nothing);
    }

    #[test]
    fn nothing_to_do_leaves_the_threads_alone() {
        for more in
            [&[][..], &[("class/net/lo/device/numa_node", "-1")], &[("class/net/lo/device/numa_node", "7")]]
        {
            assert_eq!(decided(more).reason, Reason::Nothing);
        }
        let one = sys(&[
            ("devices/system/node/online", "0"),
            ("devices/system/node/node0/cpulist", "0-1"),
            ("class/net/lo/device/numa_node", "0"),
        ]);
        assert_eq!(decide(&[], &connection(), one.path()).reason, Reason::Nothing);
        let none = tempfile::tempdir().unwrap();
        assert_eq!(decide(&[], &connection(), none.path()).reason, Reason::Nothing);
    }

    #[test]
    fn a_mask_outweighs_the_card() {
        let root = sys(&[&TWO[..], &[("class/net/lo/device/numa_node", "0")]].concat());
        let placed = decide(&[2, 3, 8], &connection(), root.path());
        assert_eq!(placed, Placement { reason: Reason::Mask, nodes: vec![1], cpus: vec![2, 3, 8] });
        assert!(placed.to_string().contains("CPUs 2-3,8 (NUMA nodes 1)"), "{placed}");
    }
}

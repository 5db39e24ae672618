//! Where a session's data threads run, as an engine tells its host.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a session's data threads run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Placement {
    /// Why there.
    pub reason: Reason,
    /// NUMA nodes of `cpus`; empty: any.
    pub nodes: Vec<u16>,
    /// CPUs; empty: any that the process has.
    pub cpus: Vec<u16>,
}

/// What decided a [`Placement`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// cpumask or nodemask.
    Mask,
    /// The network card of the route.
    Card,
    /// Nothing: one node, a loopback or virtual interface, or a card that belongs to no node.
    Nothing,
}

impl Reason {
    /// The value of the metric's label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mask => "mask",
            Self::Card => "card",
            Self::Nothing => "nothing",
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cpus, nodes) = (ranges(&self.cpus), ranges(&self.nodes));
        match self.reason {
            Reason::Mask => write!(f, "data threads run on CPUs {cpus} (NUMA nodes {nodes}), as configured"),
            Reason::Card => {
                write!(f, "data threads run on CPUs {cpus}, on NUMA node {nodes} like the network card")
            }
            Reason::Nothing => f.write_str("data threads run on any CPU"),
        }
    }
}

/// Numbers in the kernel's form; `any` for none.
#[must_use]
pub fn ranges(sorted: &[u16]) -> String {
    if sorted.is_empty() {
        return "any".to_owned();
    }
    let runs = sorted.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    let texts = runs.filter_map(|run| match run {
        [one] => Some(one.to_string()),
        [first, .., last] => Some(format!("{first}-{last}")),
        [] => None,
    });
    texts.collect::<Vec<_>>().join(",")
}

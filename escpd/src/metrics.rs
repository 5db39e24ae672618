//! The daemon's numbers in the text format of Prometheus.
//!
//! The `direction` of every byte counter is that of the file data seen from this host: `in` is received
//! from the network and written to disk, `out` is read from disk and sent. So the three counters of one
//! direction belong to the same files and can be compared.

use crate::http::Site;
use crate::ledger::Ledger;
use escp_engine::meter::Counter;
use escp_engine_api::placement::{Placement, ranges};
use prometheus::{
    Error, Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

/// What /metrics and /healthz show.
#[derive(Debug)]
pub(crate) struct Numbers {
    ledger: Arc<Ledger>,
    draining: Arc<AtomicBool>,
    started: f64,
}

impl Numbers {
    /// Shows `ledger`; `draining` is set when no new session is taken any more.
    pub(crate) fn new(ledger: Arc<Ledger>, draining: Arc<AtomicBool>) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        Self { ledger, draining, started }
    }
}

impl Site for Numbers {
    fn metrics(&self) -> Result<String, String> {
        exposition(&self.ledger, self.started).map_err(|error| error.to_string())
    }

    fn health(&self) -> Result<(), &'static str> {
        if self.draining.load(Relaxed) { Err("draining") } else { Ok(()) }
    }
}

/// Every number as it is now. The registry is made anew each time, since the ledger already holds the
/// totals; that costs less than the HTTP request around it.
fn exposition(ledger: &Ledger, started: f64) -> Result<String, Error> {
    let registry = Registry::new();
    bytes(&registry, ledger)?;
    sessions(&registry, ledger)?;
    files_and_errors(&registry, ledger)?;
    process(&registry, started)?;
    TextEncoder::new().encode_to_string(&registry.gather())
}

fn bytes(registry: &Registry, ledger: &Ledger) -> Result<(), Error> {
    let totals = ledger.totals();
    let family = |name: &str, help: &str, inward: Counter, outward: Counter| {
        let values = [("in", totals[inward as usize]), ("out", totals[outward as usize])];
        counters(registry, name, help, "direction", &values)
    };
    family(
        "escp_bytes_network_total",
        "Bytes of data streams on the wire, record headers and tags included, by direction of the file data.",
        Counter::BytesNetworkIn,
        Counter::BytesNetworkOut,
    )?;
    family(
        "escp_bytes_disk_total",
        "Bytes of files written (in) and read (out), without padding.",
        Counter::BytesDiskWritten,
        Counter::BytesDiskRead,
    )?;
    family(
        "escp_bytes_compressed_total",
        "Bytes of file data as they travelled, without headers; compressed records count whole.",
        Counter::BytesCompressedIn,
        Counter::BytesCompressedOut,
    )
}

fn sessions(registry: &Registry, ledger: &Ledger) -> Result<(), Error> {
    let active = IntGauge::new("escp_sessions_active", "Sessions that are running.")?;
    active.set(i64::try_from(ledger.active()).unwrap_or(i64::MAX));
    registry.register(Box::new(active))?;

    let results: Vec<_> =
        ledger.results().into_iter().map(|(result, count)| (result.name(), count)).collect();
    counters(
        registry,
        "escp_sessions_total",
        "Sessions that are over, by how they ended.",
        "result",
        &results,
    )?;

    let refused: Vec<_> = ledger.turned_away().into_iter().map(|(why, count)| (why.name(), count)).collect();
    let help = "Local connections that got no session, by reason; their users were told it.";
    counters(registry, "escp_sessions_refused_total", help, "reason", &refused)?;

    let engines = |totals: &[u64]| {
        [
            ("uring", Counter::SessionsUring),
            ("posix", Counter::SessionsPosix),
            ("dummy", Counter::SessionsDummy),
        ]
        .map(|(engine, counter)| (engine, totals.get(counter as usize).copied().unwrap_or(0)))
    };
    let help = "Sessions opened, by the engine they got.";
    counters(registry, "escp_engine_sessions_total", help, "engine", &engines(&ledger.totals()))?;
    let help = "Sessions that are running, by the engine they got.";
    gauges(registry, "escp_engine_sessions_active", help, "engine", &engines(&ledger.live_totals()))?;
    placements(registry, ledger)
}

fn placements(registry: &Registry, ledger: &Ledger) -> Result<(), Error> {
    let help = "Sessions that are running, by where their data threads may run and what decided it.";
    let family = IntGaugeVec::new(Opts::new("escp_sessions_placed", help), &["reason", "nodes", "cpus"])?;
    for (Placement { reason, nodes, cpus }, count) in ledger.placements() {
        let labels = [reason.name(), &ranges(&nodes), &ranges(&cpus)];
        family.with_label_values(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register(Box::new(family))
}

fn files_and_errors(registry: &Registry, ledger: &Ledger) -> Result<(), Error> {
    let totals = ledger.totals();
    let of = |counter: Counter| totals[counter as usize];
    let files = [
        ("sent", of(Counter::FilesSent)),
        ("received", of(Counter::FilesReceived)),
        ("failed", of(Counter::FilesFailed)),
    ];
    counters(
        registry,
        "escp_files_total",
        "Files that went through the engine, by result.",
        "result",
        &files,
    )?;
    let errors = [
        ("disk", of(Counter::ErrorsDisk)),
        ("network", of(Counter::ErrorsNetwork)),
        ("protocol", of(Counter::ErrorsProtocol)),
    ];
    counters(registry, "escp_errors_total", "Errors that engines met, by kind.", "kind", &errors)?;
    counter(
        registry,
        "escp_direct_fallbacks_total",
        "Files that fell back from O_DIRECT to buffered I/O.",
        of(Counter::DirectFallbacks),
    )?;
    counter(
        registry,
        "escp_connections_refused_total",
        "TCP connections closed because they did not prove that they belong to a session.",
        ledger.refused_connections(),
    )
}

fn process(registry: &Registry, started: f64) -> Result<(), Error> {
    let help = "Always 1; the labels say which escpd this is.";
    let labels = ["version", "protocol", "target"];
    let info = IntGaugeVec::new(Opts::new("escp_build_info", help), &labels)?;
    let protocol = escp_engine::PROTOCOL_VERSION.to_string();
    let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    info.with_label_values(&[env!("CARGO_PKG_VERSION"), &protocol, &target]).set(1);
    registry.register(Box::new(info))?;

    let start = Gauge::new("process_start_time_seconds", "When this escpd started, in seconds since 1970.")?;
    start.set(started);
    registry.register(Box::new(start))
}

fn counter(registry: &Registry, name: &str, help: &str, value: u64) -> Result<(), Error> {
    let counter = IntCounter::new(name, help)?;
    counter.inc_by(value);
    registry.register(Box::new(counter))
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: &[(&str, u64)],
) -> Result<(), Error> {
    let family = IntCounterVec::new(Opts::new(name, help), &[label])?;
    values.iter().for_each(|(of, value)| family.with_label_values(&[*of]).inc_by(*value));
    registry.register(Box::new(family))
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: &[(&str, u64)],
) -> Result<(), Error> {
    let family = IntGaugeVec::new(Opts::new(name, help), &[label])?;
    for (of, value) in values {
        family.with_label_values(&[*of]).set(i64::try_from(*value).unwrap_or(i64::MAX));
    }
    registry.register(Box::new(family))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::SessionResult;
    use escp_engine_api::placement::Reason;
    use escp_sys::counters::CounterPage;
    use std::collections::BTreeSet;
    use std::io::Write;
    use std::path::Path;
    use std::process::{Command, Stdio};

    fn example() -> String {
        let ledger = Ledger::new();
        for (key, counter) in Counter::ALL.iter().enumerate() {
            let page = Arc::new(CounterPage::new().unwrap());
            page.counters()[*counter as usize].store(1000 + key as u64, Relaxed);
            ledger.begin(key as u64, 1000, 1, page);
        }
        ledger.finish(0, SessionResult::Ended);
        let card = Placement { reason: Reason::Card, nodes: vec![1], cpus: vec![4, 5, 6, 12] };
        let anywhere = Placement { reason: Reason::Nothing, nodes: Vec::new(), cpus: Vec::new() };
        for (key, placement) in [(1, &card), (2, &card), (3, &anywhere), (3, &card), (999, &card)] {
            ledger.place(key, placement.clone());
        }
        ledger.strangers().store(77, Relaxed);
        exposition(&ledger, 1.5e9).unwrap()
    }

    #[test]
    fn every_counter_is_shown_to_the_byte_and_under_its_own_name() {
        let text = example();
        for (counter, shown) in [
            (Counter::BytesNetworkIn, "escp_bytes_network_total{direction=\"in\"}"),
            (Counter::BytesNetworkOut, "escp_bytes_network_total{direction=\"out\"}"),
            (Counter::BytesDiskRead, "escp_bytes_disk_total{direction=\"out\"}"),
            (Counter::BytesDiskWritten, "escp_bytes_disk_total{direction=\"in\"}"),
            (Counter::BytesCompressedIn, "escp_bytes_compressed_total{direction=\"in\"}"),
            (Counter::BytesCompressedOut, "escp_bytes_compressed_total{direction=\"out\"}"),
            (Counter::FilesSent, "escp_files_total{result=\"sent\"}"),
            (Counter::FilesReceived, "escp_files_total{result=\"received\"}"),
            (Counter::FilesFailed, "escp_files_total{result=\"failed\"}"),
            (Counter::DirectFallbacks, "escp_direct_fallbacks_total"),
            (Counter::SessionsUring, "escp_engine_sessions_total{engine=\"uring\"}"),
            (Counter::SessionsPosix, "escp_engine_sessions_total{engine=\"posix\"}"),
            (Counter::SessionsDummy, "escp_engine_sessions_total{engine=\"dummy\"}"),
            (Counter::ErrorsDisk, "escp_errors_total{kind=\"disk\"}"),
            (Counter::ErrorsNetwork, "escp_errors_total{kind=\"network\"}"),
            (Counter::ErrorsProtocol, "escp_errors_total{kind=\"protocol\"}"),
        ] {
            let line = format!("{shown} {}\n", 1000 + counter as usize);
            assert!(text.contains(&line), "{line} in\n{text}");
        }
        for line in [
            "escp_connections_refused_total 77\n".to_owned(),
            format!("escp_sessions_active {}\n", Counter::ALL.len() - 1),
            "escp_sessions_total{result=\"ended\"} 1\n".to_owned(),
            "escp_sessions_total{result=\"worker_died\"} 0\n".to_owned(),
            "escp_sessions_placed{cpus=\"4-6,12\",nodes=\"1\",reason=\"card\"} 2\n".to_owned(),
            "escp_sessions_placed{cpus=\"any\",nodes=\"any\",reason=\"nothing\"} 1\n".to_owned(),
            "process_start_time_seconds 1500000000\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} in\n{text}");
        }
    }

    #[test]
    fn large_totals_are_written_in_full() {
        let ledger = Ledger::new();
        let page = Arc::new(CounterPage::new().unwrap());
        page.counters()[Counter::BytesDiskRead as usize].store(9_007_199_254_740_991, Relaxed);
        ledger.begin(1, 0, 1, page);
        let text = exposition(&ledger, 0.0).unwrap();
        assert!(text.contains("escp_bytes_disk_total{direction=\"out\"} 9007199254740991\n"), "{text}");
    }

    #[test]
    fn every_family_has_its_help_and_type_once_and_before_its_values() {
        let (mut helped, mut typed) = (BTreeSet::new(), BTreeSet::new());
        for line in example().lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(typed.insert(name.to_owned()), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            } else {
                let name = line.split(['{', ' ']).next().unwrap();
                assert!(helped.contains(name) && typed.contains(name), "{line}");
            }
        }
        assert_eq!(helped, typed);
        assert!(helped.len() >= 14);
    }

    #[test]
    fn label_values_are_escaped() {
        let registry = Registry::new();
        counters(&registry, "escp_x_total", "Help\nwith \\ signs.", "of", &[("a\"b\\c\nd", 1)]).unwrap();
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("escp_x_total{of=\"a\\\"b\\\\c\\nd\"} 1\n"), "{text}");
        assert!(text.contains("# HELP escp_x_total Help\\nwith \\\\ signs.\n"), "{text}");
    }

    fn families() -> BTreeSet<String> {
        let name = |line: &str| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned);
        example().lines().filter_map(name).collect()
    }

    /// Words of a file that look like a family of ours.
    fn named_in(path: &str) -> BTreeSet<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        let text = std::fs::read_to_string(path).unwrap();
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.filter(|word| word.starts_with("escp_")).map(str::to_owned).collect()
    }

    #[test]
    fn the_handbook_and_the_alerts_name_what_there_is() {
        let families = families();
        let handbook = named_in("docs/OPERATIONS.md");
        let missing: Vec<_> = families
            .iter()
            .filter(|family| family.starts_with("escp_") && !handbook.contains(*family))
            .collect();
        assert!(missing.is_empty(), "not in docs/OPERATIONS.md: {missing:?}");
        // Options of the command line have the same prefix.
        let other = ["escp_port", "escp_portrange"];
        for named in handbook.union(&named_in("config/prometheus/escp.rules.yml")) {
            assert!(families.contains(named) || other.contains(&named.as_str()), "{named} is no family");
        }
    }

    #[test]
    fn promtool_has_nothing_to_say_about_them() {
        let promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut promtool = match promtool {
            Ok(promtool) => promtool,
            Err(error) => {
                let why = format!("promtool (package prometheus) cannot be run: {error}");
                return escp_testkit::say_skipped(&escp_testkit::test_name(), &why);
            }
        };
        promtool.stdin.take().unwrap().write_all(example().as_bytes()).unwrap();
        let said = promtool.wait_with_output().unwrap();
        let words =
            format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        assert!(said.status.success() && words.is_empty(), "{words}");
    }
}

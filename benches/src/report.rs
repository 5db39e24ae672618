//! Medians, ratios, the table for people and the data for programs.

use crate::contender::Role;
use crate::machine::Cost;
use crate::series::{Series, median, own};
use crate::workload::{Unit, Workload};
use serde_json::{Value, json};
use std::fmt::Write;

impl Unit {
    /// What divides the seconds of a run.
    pub(crate) fn amount(self) -> f64 {
        match self {
            Self::Gib(amount) => amount,
            Self::Files(count) => f64::from(count),
            Self::Start => 1.0,
        }
    }

    fn speed_name(self) -> &'static str {
        match self {
            Self::Gib(_) => "GiB/s",
            Self::Files(_) => "files/s",
            Self::Start => "ms",
        }
    }

    fn cpu_name(self) -> &'static str {
        match self {
            Self::Gib(_) => "CPU-s/GiB",
            Self::Files(_) => "CPU-s/1000",
            Self::Start => "CPU-ms",
        }
    }

    /// In the unit of [`Unit::speed_name`].
    fn speed(self, seconds: f64) -> f64 {
        if self == Self::Start { seconds * 1000.0 } else { self.amount() / seconds }
    }

    /// In the unit of [`Unit::cpu_name`].
    fn cpu(self, seconds: f64) -> f64 {
        match self {
            Self::Gib(amount) => seconds / amount,
            Self::Files(count) => seconds * 1000.0 / f64::from(count),
            Self::Start => seconds * 1000.0,
        }
    }
}

/// Whom the others of a lane are compared with.
fn subject(all: &[Series], lane: u16) -> Option<&Series> {
    all.iter().find(|series| series.contender.role == Role::Escp && series.contender.lane == lane)
}

/// The better of a lane's floors: the one that took less CPU time.
fn floor(all: &[Series], lane: u16) -> Option<&Series> {
    let ran = |series: &&Series| series.failure.is_none() && series.contender.lane == lane;
    let floors = all.iter().filter(|series| series.contender.role == Role::Floor).filter(ran);
    floors.min_by(|a, b| a.median(own).total_cmp(&b.median(own)))
}

/// The share of the machine's work that was not ours, over all runs.
fn foreign(all: &[Series]) -> f64 {
    let costs = || all.iter().flat_map(|series| series.runs.iter().flatten());
    let (machine, ours) = (costs().map(|cost| cost.cpu).sum::<f64>(), costs().map(own).sum::<f64>());
    if machine > 0.0 { (1.0 - ours / machine).max(0.0) } else { 0.0 }
}

/// The table of one workload.
pub(crate) fn table(workload: &Workload, all: &[Series]) -> String {
    let unit = workload.unit;
    let rounds = all.iter().map(|series| series.runs.len()).max().unwrap_or(0);
    let width = all.iter().map(|series| series.contender.name.len()).max().unwrap_or(0).max(18);
    let mut out = format!("\n{}  {} ({rounds} rounds, medians)\n", workload.name, workload.title);
    let _ = writeln!(
        out,
        "  {:<width$} {:>9} {:>17} {:>10} {:>8} {:>9} {:>8}   escp against it",
        "",
        unit.speed_name(),
        "least .. most",
        unit.cpu_name(),
        "machine",
        "MiB (one)",
        "wire MiB"
    );
    for series in all {
        if series.failure.is_some() {
            let _ = writeln!(out, "  {:<width$} failed", series.contender.name);
            continue;
        }
        let _ = writeln!(out, "{}", line(unit, series, subject(all, series.contender.lane), width));
    }
    for escp in all.iter().filter(|series| series.contender.role == Role::Escp) {
        if let Some(floor) = floor(all, escp.contender.lane) {
            let (names, cpu) = ((&escp.contender.name, &floor.contender.name), escp.ratio(floor, own));
            let _ = writeln!(out, "  {}: {cpu:.2} of the CPU of the better floor ({})", names.0, names.1);
        }
    }
    for verdict in crate::login::verdicts(all) {
        let _ = writeln!(out, "  {verdict}");
    }
    if let Some(verdict) = crate::distance::verdict(workload, all) {
        let _ = writeln!(out, "  {verdict}");
    }
    let foreign = foreign(all);
    if foreign > 0.10 {
        let _ = writeln!(
            out,
            "  not quiet: {:.0} % of the machine's work was not of these runs; only ratios mean anything",
            foreign * 100.0
        );
    }
    out
}

fn line(unit: Unit, series: &Series, subject: Option<&Series>, width: usize) -> String {
    let speeds = || series.runs.iter().flatten().map(|cost| unit.speed(cost.seconds));
    let least = speeds().fold(f64::INFINITY, f64::min);
    let most = speeds().fold(f64::NEG_INFINITY, f64::max);
    let mut out = format!(
        "  {:<width$} {:>9} {:>17} {:>10.3} {:>8.3} {:>9} {:>8.0}",
        series.contender.name,
        figure(unit.speed(series.median(|cost| cost.seconds))),
        format!("{} .. {}", figure(least), figure(most)),
        unit.cpu(series.median(own)),
        unit.cpu(series.median(|cost| cost.cpu)),
        format!(
            "{:.0} ({:.0})",
            series.median(|cost| cost.peak_mib),
            series.median(|cost| cost.peak_process_mib)
        ),
        series.median(|cost| cost.wire_mib),
    );
    if let Some(value) = unfairness(series) {
        let _ = write!(out, "   parts within {:.0} % of their median", value * 100.0);
    }
    let Some(subject) = subject.filter(|subject| subject.contender.name != series.contender.name) else {
        return out;
    };
    let cpu = subject.ratio(series, own);
    if unit == Unit::Start {
        let difference =
            series.runs.iter().zip(&subject.runs).filter_map(|(other, escp)| {
                Some((escp.as_ref()?.seconds - other.as_ref()?.seconds) * 1000.0)
            });
        let _ = write!(out, "   {:+.0} ms", median(difference));
    } else {
        let _ =
            write!(out, "   {:.2} times as fast, {cpu:.2} of its CPU", series.ratio(subject, |c| c.seconds));
    }
    out
}

/// How far the part that differs most is from the median of a run's parts, as a share; the median over runs.
fn unfairness(series: &Series) -> Option<f64> {
    let of_run = |cost: &Cost| {
        let middle = median(cost.parts.iter().copied());
        cost.parts.iter().map(|part| (part / middle - 1.0).abs()).fold(0.0, f64::max)
    };
    let value = median(series.runs.iter().flatten().filter(|cost| !cost.parts.is_empty()).map(of_run));
    value.is_finite().then_some(value)
}

fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The same as data, one object per contender.
pub(crate) fn data(workload: &Workload, all: &[Series], about: &Value) -> Vec<Value> {
    let unit = workload.unit;
    let object = |series: &Series| {
        let subject = subject(all, series.contender.lane);
        let ratio = |of: fn(&Cost) -> f64| subject.map(|subject| subject.ratio(series, of));
        let floor = floor(all, series.contender.lane).filter(|_| series.contender.role == Role::Escp);
        json!({
            "about": about,
            "workload": workload.name,
            "title": workload.title,
            "medium": workload.trip.medium,
            "amount": unit,
            "contender": series.contender.name,
            "role": series.contender.role,
            "lane": series.contender.lane,
            "failure": series.failure,
            "speed": unit.speed(series.median(|cost| cost.seconds)),
            "speed_unit": unit.speed_name(),
            "cpu": unit.cpu(series.median(own)),
            "machine_cpu": unit.cpu(series.median(|cost| cost.cpu)),
            "cpu_unit": unit.cpu_name(),
            "peak_mib": series.median(|cost| cost.peak_mib),
            "peak_process_mib": series.median(|cost| cost.peak_process_mib),
            "wire_mib": series.median(|cost| cost.wire_mib),
            "escp_seconds_ratio": ratio(|cost| cost.seconds),
            "escp_cpu_ratio": ratio(own),
            "floor": floor.map(|floor| &floor.contender.name),
            "floor_cpu_ratio": floor.map(|floor| series.ratio(floor, own)),
            "foreign_share": foreign(all),
            "runs": series.runs,
        })
    };
    all.iter().map(object).collect()
}

/// A line of the history: escp's own figures, and how it stands to the others.
pub(crate) fn history(workload: &Workload, all: &[Series], about: &Value) -> Vec<String> {
    let unit = workload.unit;
    let lines = all.iter().filter(|series| series.contender.role == Role::Escp && series.failure.is_none());
    lines
        .map(|escp| {
            let others = all.iter().filter(|other| {
                other.failure.is_none()
                    && other.contender.lane == escp.contender.lane
                    && other.contender.name != escp.contender.name
                    && !crate::login::is_all_of(&other.contender)
                    && (other.contender.role != Role::Floor
                        || floor(all, other.contender.lane).is_some_and(|floor| std::ptr::eq(floor, *other)))
            });
            let against: Vec<String> = others
                .map(|other| match other.contender.role {
                    Role::Limit | Role::Floor => {
                        format!("{} CPU x{:.2}", other.contender.name, escp.ratio(other, own))
                    }
                    _ => format!("{} {:.1}x", other.contender.name, other.ratio(escp, |cost| cost.seconds)),
                })
                .collect();
            format!(
                "| {} | {} | {} | {} | {} {} | {:.3} | {} | `{}` |",
                about["date"].as_str().unwrap_or_default(),
                about["commit"].as_str().unwrap_or_default(),
                workload.name,
                escp.contender.name,
                figure(unit.speed(escp.median(|cost| cost.seconds))),
                unit.speed_name(),
                unit.cpu(escp.median(own)),
                against.join(", "),
                about["command"].as_str().unwrap_or_default(),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{data, history, table};
    use crate::contender::{Role, Trip};
    use crate::ground::Medium;
    use crate::series::Series;
    use crate::series::tests::series;
    use crate::workload::{Unit, Workload};
    use serde_json::json;

    fn workload() -> Workload {
        let trip = Trip { medium: Medium::Tmpfs, name: "x".to_owned(), tree: false };
        Workload::new("B1", "a title".to_owned(), Unit::Gib(4.0), trip, Vec::new(), 1)
    }

    #[test]
    fn escp_is_held_against_the_better_floor() {
        let in_role = |role, mut series: Series| {
            series.contender.role = role;
            series
        };
        let mut failed = in_role(Role::Floor, series("floor that failed", &[1.0]));
        failed.failure = Some("why".to_owned());
        let all = [
            in_role(Role::Escp, series("escp", &[6.0, 6.0])),
            in_role(Role::Floor, series("floor", &[5.0, 5.0])),
            in_role(Role::Floor, series("floor, io_uring", &[4.0, 4.0])),
            failed,
        ];
        let text = table(&workload(), &all);
        assert!(text.contains("escp: 1.50 of the CPU of the better floor (floor, io_uring)\n"), "{text}");
        let kept = history(&workload(), &all, &json!({}));
        assert!(kept[0].contains("| floor, io_uring CPU x1.50 |"), "{kept:?}");
        let data = data(&workload(), &all, &json!({}));
        assert_eq!(
            (&data[0]["floor"], &data[0]["floor_cpu_ratio"]),
            (&json!("floor, io_uring"), &json!(1.5))
        );
        assert!(data[1]["floor"].is_null());
    }

    #[test]
    fn a_failed_contender_stays_in_the_table() {
        let mut failed = series("b", &[]);
        failed.failure = Some("why".to_owned());
        let text = table(&workload(), &[series("a", &[2.0]), failed]);
        assert!(text.contains("2.00 GiB/s") || text.contains("2.00"), "{text}");
        assert!(text.contains("b                  failed"), "{text}");
    }
}

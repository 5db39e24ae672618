//! What logging in costs. The limits of the machine log in nowhere, so escp stands against them twice: in all, and once
//! it is logged in.

use crate::contender::{Contender, Role, eight_at_once};
use crate::series::{Series, median};

/// One login, and nothing else.
pub(crate) const ONE: &str = "ssh true";
/// Eight of them at once.
pub(crate) const EIGHT: &str = "eight ssh true";

const LOG_IN: &str = "ssh -F {config} {far} true";

/// Logs in once.
pub(crate) fn one() -> Contender {
    Contender::limit_without_files(ONE, LOG_IN)
}

/// Logs in eight times at once.
pub(crate) fn eight() -> Contender {
    Contender::limit_without_files(EIGHT, &eight_at_once(LOG_IN))
}

/// Whether a contender does nothing but log in.
pub(crate) fn is_all_of(contender: &Contender) -> bool {
    [ONE, EIGHT].contains(&contender.name.as_str())
}

/// How fast escp is against each limit, in all and once those who log in have done so; nothing where logging in was not
/// measured.
pub(crate) fn verdicts(all: &[Series]) -> Vec<String> {
    let ran = |series: &&Series| series.failure.is_none();
    let mut lines = Vec::new();
    for escp in all.iter().filter(|series| series.contender.role == Role::Escp).filter(ran) {
        let others = all.iter().filter(ran).filter(|Series { contender: other, .. }| {
            let limits = matches!(other.role, Role::Limit | Role::Floor);
            let otherwise = other.role == Role::Peer && other.login() != escp.contender.login();
            other.lane == escp.contender.lane && !is_all_of(other) && (limits || otherwise)
        });
        for other in others {
            let Some((whole, moving)) = against(all, escp, other) else { continue };
            lines.push(format!(
                "{}: {whole:.2} times as fast as {} in all, {moving:.2} once logged in",
                escp.contender.name, other.contender.name
            ));
        }
    }
    lines
}

/// The other's time in parts of escp's: in all, and without the logins of either. In the rounds in which all of them ran.
fn against(all: &[Series], escp: &Series, other: &Series) -> Option<(f64, f64)> {
    let seconds = |series: &Series| -> Vec<Option<f64>> {
        series.runs.iter().map(|run| run.as_ref().map(|cost| cost.seconds)).collect()
    };
    let login = |series: &Series| -> Option<Vec<Option<f64>>> {
        match series.contender.login() {
            None => Some(vec![Some(0.0); series.runs.len()]),
            Some(name) => all.iter().find(|login| login.contender.name == name).map(seconds),
        }
    };
    let (ours, theirs) = (login(escp)?, login(other)?);
    let (escp, other) = (seconds(escp), seconds(other));
    let rounds = || {
        let logins = ours.iter().zip(&theirs);
        let rounds = escp.iter().zip(&other).zip(logins);
        rounds.filter_map(|((escp, other), (ours, theirs))| Some(((*escp)?, (*other)?, (*ours)?, (*theirs)?)))
    };
    let whole = median(rounds().map(|(escp, other, ..)| other / escp));
    let moving = median(rounds().map(|(escp, other, ours, theirs)| (other - theirs) / (escp - ours)));
    Some((whole, moving))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::tests::series;

    #[test]
    fn logins_are_taken_off_whom_they_belong_to() {
        let mut escp = series("escp", &[3.0, 3.0]);
        escp.contender.role = Role::Escp;
        let mut limit = series("copier", &[1.0, 1.0]);
        limit.contender = Contender::limit("copier", "");
        let mut login = series(ONE, &[1.0, 1.0]);
        login.contender = one();
        let mut floor = series("floor, through ssh", &[2.0, 2.0]);
        floor.contender.role = Role::Floor;
        let peer = series("scp", &[9.0, 9.0]);
        let said = verdicts(&[escp.clone(), limit.clone(), login, floor, peer]);
        assert_eq!(
            said,
            [
                "escp: 0.33 times as fast as copier in all, 0.50 once logged in",
                "escp: 0.67 times as fast as floor, through ssh in all, 0.50 once logged in"
            ]
        );
        assert!(verdicts(&[escp, limit]).is_empty(), "logging in was not measured");
    }
}

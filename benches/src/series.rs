//! What contenders cost, run by run: medians and ratios.

use crate::contender::Contender;
use crate::machine::Cost;

/// What one contender cost, run by run.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) contender: Contender,
    /// `None`: it failed in that round.
    pub(crate) runs: Vec<Option<Cost>>,
    /// Why it failed, if it did; it does not run again then.
    pub(crate) failure: Option<String>,
}

/// The median: the middle one, or the mean of the two in the middle. NaN of nothing.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (Some(&value), 1) => value,
        (Some(&value), _) => {
            f64::midpoint(values.get(middle.wrapping_sub(1)).copied().unwrap_or(value), value)
        }
        (None, _) => f64::NAN,
    }
}

impl Series {
    pub(crate) fn median(&self, of: impl Fn(&Cost) -> f64) -> f64 {
        median(self.runs.iter().flatten().map(of))
    }

    /// Median over the rounds of this one's value divided by the other's in the same round.
    pub(crate) fn ratio(&self, other: &Self, of: impl Fn(&Cost) -> f64) -> f64 {
        let pairs = self.runs.iter().zip(&other.runs);
        median(pairs.filter_map(|(a, b)| Some(of(a.as_ref()?) / of(b.as_ref()?))).filter(|r| r.is_finite()))
    }
}

/// CPU seconds of those who took part, or of the machine where only that is known.
pub(crate) fn own(cost: &Cost) -> f64 {
    cost.own_cpu.unwrap_or(cost.cpu)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Series, median};
    use crate::contender::Contender;
    use crate::machine::Cost;

    pub(crate) fn series(name: &str, seconds: &[f64]) -> Series {
        let cost =
            |&seconds: &f64| Some(Cost { seconds, cpu: seconds, own_cpu: Some(seconds), ..Cost::default() });
        Series {
            contender: Contender::peer(name, ""),
            runs: seconds.iter().map(cost).collect(),
            failure: None,
        }
    }

    #[test]
    fn medians_of_odd_even_and_nothing() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The machine was twice as slow in the second round, for both.
        let (a, b) = (series("a", &[1.0, 2.0, 1.0]), series("b", &[3.0, 6.0, 3.0]));
        assert_eq!(b.ratio(&a, |cost| cost.seconds), 3.0);
    }
}

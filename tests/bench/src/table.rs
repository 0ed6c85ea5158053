//! Medians, ratios, Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A row of the table with all its samples.
pub(crate) struct Line {
    name: String,
    unit: &'static str,
    against: Option<char>,
    mark: Option<f64>,
    samples: BTreeMap<char, Vec<f64>>,
}

impl Line {
    /// The mark is the highest ratio to `against`.
    pub(crate) fn ratio(name: &str, unit: &'static str, against: char, mark: Option<f64>) -> Self {
        Self { name: name.into(), unit, against: Some(against), mark, samples: BTreeMap::new() }
    }

    /// The mark is the highest value.
    pub(crate) fn value(name: impl Into<String>, unit: &'static str, mark: Option<f64>) -> Self {
        Self { name: name.into(), unit, against: None, mark, samples: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, peer: char, sample: f64) {
        self.samples.entry(peer).or_default().push(sample);
    }

    /// Round by round: what shakes the machine shakes both.
    fn ratios(&self, peer: char) -> Option<Vec<f64>> {
        let base = self.samples.get(&self.against?)?;
        Some(self.samples.get(&peer)?.iter().zip(base).map(|(value, base)| value / base).collect())
    }

    fn cell(&self, peer: char) -> Option<String> {
        let value = number(median(self.samples.get(&peer)?)?);
        Some(match self.ratios(peer) {
            Some(ratios) if self.against != Some(peer) => format!("{value} ({:.2})", median(&ratios)?),
            _ => value,
        })
    }

    fn verdict(&self) -> Option<String> {
        let mark = self.mark?;
        let (reached, against) = match self.against {
            Some(against) => (self.ratios('S').as_deref().and_then(median), format!(" {against}")),
            None => (self.samples.get(&'S').map(Vec::as_slice).and_then(median), format!(" {}", self.unit)),
        };
        let verdict = reached.map_or("", |reached| if reached <= mark { ": met" } else { ": **missed**" });
        Some(format!("≤ {mark}{against}{verdict}"))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The ratio of the lowest samples: what a busy machine spoils least.
    fn of_lowest(&self, peer: char) -> Option<String> {
        let lowest = |peer: char| self.samples.get(&peer)?.iter().copied().min_by(f64::total_cmp);
        Some(format!("; lowest by lowest {:.2}", lowest(peer)? / lowest(self.against?)?))
    }

    /// Lowest, median and highest ratio of one peer, or value if there is no ratio: to see how far to trust them.
    pub(crate) fn spread(&self, peer: char) -> Option<String> {
        let (mut all, what) = match self.against {
            Some(against) => (self.ratios(peer)?, format!("{peer}/{against}")),
            None => (self.samples.get(&peer)?.clone(), format!("{peer}, {},", self.unit)),
        };
        all.sort_unstable_by(f64::total_cmp);
        let (low, high) = (all.first()?, all.last()?);
        let middle = median(&all)?;
        let lowest = self.of_lowest(peer).unwrap_or_default();
        Some(format!("{}: {what} {low:.2} … {middle:.2} … {high:.2}{lowest}", self.name))
    }
}

pub(crate) fn markdown(lines: &[Line], peers: &[char]) -> String {
    let mut out = String::from("| work | unit |");
    for peer in peers {
        let _ = write!(out, " {peer} |");
    }
    out += " ratio to | mark |\n|---|---|";
    out += &"--:|".repeat(peers.len());
    out += ":-:|---|\n";
    for line in lines {
        let _ = write!(out, "| {} | {} |", line.name, line.unit);
        for &peer in peers {
            let _ = write!(out, " {} |", line.cell(peer).unwrap_or_else(|| "–".into()));
        }
        let against = line.against.map_or_else(|| "–".into(), |against| against.to_string());
        let _ = writeln!(out, " {against} | {} |", line.verdict().unwrap_or_default());
    }
    out
}

fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (low, high) = (sorted.get((sorted.len().max(1) - 1) / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

/// Three significant digits or so.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

//! The table of figures, and the arithmetic of medians.

/// A measured figure, with the one that it is to reach.
#[derive(Debug)]
pub struct Figure {
    pub name: &'static str,
    /// The figure, in words.
    pub figure: String,
    /// Its ceiling, in words.
    pub ceiling: String,
    pub ratio: String,
    pub demanded: &'static str,
    pub is_met: bool,
}

/// All figures of one run.
#[derive(Debug)]
pub struct Table(Vec<Figure>);

impl Table {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Says at once what was found; the whole table follows at the end.
    pub fn add(&mut self, figure: Figure) {
        println!("{}: {} (ceiling {})", figure.name, figure.figure, figure.ceiling);
        self.0.push(figure);
    }

    pub fn print(&self) {
        println!(
            "\n| figure | measured | ceiling | ratio | at least | |\n|---|---|---|---|---|---|"
        );
        for Figure { name, figure, ceiling, ratio, demanded, is_met } in &self.0 {
            let verdict = if *is_met { "met" } else { "MISSED" };
            println!("| {name} | {figure} | {ceiling} | {ratio} | {demanded} | {verdict} |");
        }
    }
}

/// The middle of `values`.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The value that a share of `values` does not exceed.
pub fn percentile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * share) as usize;
    values.get(place.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// The median of the ratios of pairs that were measured one after the other.
pub fn median_ratio(pairs: &[(f64, f64)]) -> f64 {
    let mut ratios: Vec<f64> = pairs.iter().map(|(figure, ceiling)| figure / ceiling).collect();
    median(&mut ratios)
}

/// The medians of both columns.
pub fn medians(pairs: &[(f64, f64)]) -> (f64, f64) {
    let mut figures: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
    let mut ceilings: Vec<f64> = pairs.iter().map(|pair| pair.1).collect();
    (median(&mut figures), median(&mut ceilings))
}

/// A rate in thousands a second.
pub fn thousands(rate: f64) -> String {
    format!("{:.1} k/s", rate / 1_000.0)
}

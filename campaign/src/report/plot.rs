//! Small plots as SVG, without any script.

use maud::{Markup, PreEscaped, html};

use super::data::{Bin, Distribution};
use super::text;

/// Ticks of a linear axis from 0: multiples of 1, 2 or 5 times a power of ten, at most `most` + 1 of them, the last not below `max`.
#[must_use]
pub fn linear(max: f64, most: u32) -> Vec<f64> {
    if !max.is_finite() || max <= 0.0 {
        return vec![0.0, 1.0];
    }
    let raw = max / f64::from(most.max(1));
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power);
    let step = step.into_iter().find(|s| *s >= raw * 0.999_999);
    let step = step.unwrap_or(10.0 * power);
    let n = (max / step - 1e-9).ceil() as u64;
    (0..=n).map(|i| i as f64 * step).collect()
}

/// Ticks of a logarithmic axis between two values, both above 0: powers of ten, and 2 and 5 times them if there are few.
#[must_use]
pub fn logarithmic(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let digits: &[f64] = if high / low < 150.0 {
        &[1.0, 2.0, 5.0]
    } else {
        &[1.0]
    };
    let every = ((last - first) / 7 + 1).max(1);
    (first..=last)
        .filter(|k| digits.len() > 1 || (k - first) % every == 0)
        .flat_map(|k| digits.iter().map(move |d| d * 10f64.powi(k)))
        .filter(|tick| *tick >= low * 0.999_999 && *tick <= high * 1.000_001)
        .collect()
}

/// A coordinate with one decimal.
fn at(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// A logarithmic axis from left to right, with a place of its own for 0 if that is among the values.
struct LogAxis {
    low: f64,
    high: f64,
    left: f64,
    right: f64,
    zero: Option<f64>,
}

impl LogAxis {
    fn new(bins: &[Bin], left: f64, right: f64) -> LogAxis {
        let positive = || bins.iter().filter(|bin| bin.low > 0.0);
        let low = positive().map(|bin| bin.low).fold(f64::INFINITY, f64::min);
        let high = positive().map(|bin| bin.high).fold(0.0, f64::max);
        let (mut low, mut high) = if high > low { (low, high) } else { (1.0, 10.0) };
        // Less than a decade looks like noise: widen to a full one.
        while high / low < 9.99 {
            low /= 1.25;
            high *= 1.25;
        }
        let zero = bins.iter().any(|bin| bin.low == 0.0).then_some(left);
        let left = zero.map_or(left, |left| left + 40.0);
        LogAxis {
            low,
            high,
            left,
            right,
            zero,
        }
    }

    fn x(&self, value: f64) -> f64 {
        if value <= 0.0 {
            return self.zero.map_or(self.left, |zero| zero + 14.0);
        }
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        self.left + share.clamp(0.0, 1.0) * (self.right - self.left)
    }

    fn span(&self, bin: &Bin) -> (f64, f64) {
        match self.zero {
            Some(zero) if bin.low == 0.0 => (zero + 2.0, zero + 26.0),
            _ => (self.x(bin.low), self.x(bin.high)),
        }
    }
}

/// How a distribution is to be shown.
pub struct Labels<'a> {
    /// Title of the plot.
    pub title: &'a str,
    /// What the axis is of.
    pub axis: &'a str,
    /// A value of it as text.
    pub show: &'a dyn Fn(f64) -> String,
}

/// Histogram on a logarithmic axis with the cumulative share as a line, and marks at median, 90 % and 99 %.
#[must_use]
pub fn distribution(of: &Distribution, labels: &Labels<'_>) -> Markup {
    let (width, height) = (560.0, 300.0);
    let (left, right, top, bottom) = (52.0, width - 48.0, 46.0, height - 52.0);
    let axis = LogAxis::new(&of.bins, left, right);
    let most = of.bins.iter().map(|bin| bin.count).max().unwrap_or(1);
    let counts = linear(most as f64, 4);
    let top_count = counts.last().copied().unwrap_or(1.0).max(1.0);
    let y = |share: f64| bottom - share * (bottom - top);
    let marks = [("median", of.median), ("90 %", of.p90), ("99 %", of.p99)];
    let show = labels.show;
    let summary = format!(
        "{}: {} values, median {}, 90 % {}, 99 % {}, largest {}",
        labels.title,
        text::count(of.count),
        show(of.median as f64),
        show(of.p90 as f64),
        show(of.p99 as f64),
        show(of.max as f64)
    );
    html! {
        svg.plot viewBox=(format!("0 0 {width} {height}")) role="img" {
            title { (summary) }
            @for tick in &counts {
                line.grid x1=(at(left)) x2=(at(right)) y1=(at(y(tick / top_count))) y2=(at(y(tick / top_count))) {}
                text.tick.end x=(at(left - 7.0)) y=(at(y(tick / top_count) + 4.0)) { (text::three(*tick)) }
            }
            @for bin in of.bins.iter().filter(|bin| bin.count > 0) {
                @let (from, to) = axis.span(bin);
                rect.column x=(at(from + 0.5)) width=(at((to - from - 1.0).max(1.0))) y=(at(y(bin.count as f64 / top_count))) height=(at(bottom - y(bin.count as f64 / top_count))) {
                    title { (bin_title(bin, show)) ": " (text::count(bin.count)) " of " (text::count(of.count)) }
                }
            }
            (cumulative(of, &axis, &y))
            @for share in [0.0, 0.5, 1.0] {
                text.tick.cumulative x=(at(right + 7.0)) y=(at(y(share) + 4.0)) { (format!("{} %", share * 100.0)) }
            }
            line.axis x1=(at(left)) x2=(at(right)) y1=(at(bottom)) y2=(at(bottom)) {}
            @if let Some(zero) = axis.zero { text.tick.middle x=(at(zero + 14.0)) y=(at(bottom + 18.0)) { "0" } }
            @for tick in logarithmic(axis.low, axis.high) {
                line.axis x1=(at(axis.x(tick))) x2=(at(axis.x(tick))) y1=(at(bottom)) y2=(at(bottom + 4.0)) {}
                text.tick.middle x=(at(axis.x(tick))) y=(at(bottom + 18.0)) { (show(tick)) }
            }
            text.label.middle x=(at((left + right) / 2.0)) y=(at(height - 10.0)) { (labels.axis) }
            @for (n, (name, value)) in marks.iter().enumerate() {
                @let x = axis.x(*value as f64);
                @let label_y = 12.0 + 12.0 * n as f64;
                line.mark x1=(at(x)) x2=(at(x)) y1=(at(label_y + 2.0)) y2=(at(bottom)) {}
                text.marked.(if x > (left + right) / 2.0 { "end" } else { "start" })
                    x=(at(if x > (left + right) / 2.0 { x - 4.0 } else { x + 4.0 })) y=(at(label_y + 2.0)) {
                    (name) " " (show(*value as f64))
                }
            }
        }
    }
}

fn bin_title(bin: &Bin, show: &dyn Fn(f64) -> String) -> String {
    match bin.low {
        0.0 => "0".to_owned(),
        low => format!("{} to {}", show(low), show(bin.high)),
    }
}

/// The share of values up to each, as steps; at most one per pixel.
fn cumulative(of: &Distribution, axis: &LogAxis, y: &impl Fn(f64) -> f64) -> Markup {
    let mut path = format!("M{} {}", at(axis.zero.unwrap_or(axis.left)), at(y(0.0)));
    let (mut seen, mut drawn) = (0u64, f64::NEG_INFINITY);
    for (value, count) in of.sketch.values() {
        seen += count;
        let x = axis.x(value as f64);
        let share = seen as f64 / of.count.max(1) as f64;
        if x - drawn >= 0.9 || seen == of.count {
            path.push_str(&format!("H{}V{}", at(x), at(y(share))));
            drawn = x;
        }
    }
    path.push_str(&format!("H{}", at(axis.right)));
    html! { path.ecdf d=(path) { title { "cumulative share" } } }
}

/// A share with its interval, for [`intervals`].
pub struct Whisker {
    /// Its name.
    pub name: String,
    /// The share.
    pub share: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// What stands beside it.
    pub note: String,
}

/// Shares with intervals on one logarithmic axis. A share of 0 has no place there: its interval is drawn from the left edge.
#[must_use]
pub fn intervals(rows: &[Whisker], title: &str) -> Markup {
    let (width, step, top) = (560.0, 44.0, 6.0);
    let bottom = top + step * rows.len() as f64;
    let height = bottom + 42.0;
    let (left, right) = (58.0, width - 24.0);
    let least = rows
        .iter()
        .flat_map(|row| [row.low, row.share, row.high])
        .filter(|value| *value > 0.0)
        .fold(0.05, f64::min);
    let low = 10f64.powf((least / 1.5).log10().floor());
    let x = |share: f64| {
        let part = (share.max(low) / low).ln() / (1.0 / low).ln();
        left + part * (right - left)
    };
    html! {
        svg.plot.intervals viewBox=(format!("0 0 {width} {height}")) role="img" {
            title { (title) }
            @for tick in logarithmic(low, 1.0) {
                line.grid x1=(at(x(tick))) x2=(at(x(tick))) y1=(at(top)) y2=(at(bottom)) {}
                text.tick.middle x=(at(x(tick))) y=(at(bottom + 18.0)) { (text::percent(tick)) }
            }
            line.axis x1=(at(left)) x2=(at(right)) y1=(at(bottom)) y2=(at(bottom)) {}
            text.label.middle x=(at((left + right) / 2.0)) y=(at(bottom + 36.0)) { "share of faults that were visible (logarithmic)" }
            @for (n, row) in rows.iter().enumerate() {
                (whisker(row, top + step * n as f64 + 14.0, left, right, &x))
            }
        }
    }
}

/// One of them, at this height, with its note below it.
fn whisker(row: &Whisker, y: f64, left: f64, right: f64, x: &impl Fn(f64) -> f64) -> Markup {
    let (from, to) = match row.share > 0.0 {
        true => (x(row.low), x(row.high)),
        false => (left, x(row.high)),
    };
    // About 6 px a character; the note stays inside.
    let half = 3.4 * row.note.chars().count() as f64;
    let middle = x(row.share).max((from + to) / 2.0);
    let middle = middle.min(right - half).max(left + half);
    let end =
        |x: f64| html! { line.whisker x1=(at(x)) x2=(at(x)) y1=(at(y - 5.0)) y2=(at(y + 5.0)) {} };
    html! {
        text.name.end x=(at(left - 8.0)) y=(at(y + 5.0)) { (row.name) }
        g {
            title { (row.name) ": " (row.note) }
            line.whisker.none[row.share == 0.0] x1=(at(from)) x2=(at(to)) y1=(at(y)) y2=(at(y)) {}
            @if row.share > 0.0 {
                (end(from))
                circle.dot cx=(at(x(row.share))) cy=(at(y)) r="5" {}
            } @else {
                path.dot d=(format!("M{} {} l7 -5 v10 z", at(left), at(y))) {}
            }
            (end(to))
            text.marked.middle x=(at(middle)) y=(at(y + 19.0)) { (row.note) }
        }
    }
}

/// The shades that shares are shown in: 0 is the lightest (nothing), [`SHADES`] − 1 all.
pub const SHADES: usize = 9;

/// The shade of a share. Only 0 has the first one, so that a single hit among many is seen.
#[must_use]
pub fn shade(hits: u64, of: u64) -> usize {
    if hits == 0 || of == 0 {
        return 0;
    }
    let share = hits as f64 / of as f64;
    ((share * (SHADES - 1) as f64).ceil() as usize).clamp(1, SHADES - 1)
}

/// One cell of a map, in these pixels: its rectangle is smaller where there are few trials, because its colour then says little.
#[must_use]
pub fn cell(place: (f64, f64), size: (f64, f64), shade: usize, part: f64, title: &str) -> Markup {
    let part = part.sqrt().clamp(0.35, 1.0);
    // Of several bits together only the height says it: they keep their place on the axis.
    let of_width = if size.0 > size.1 { 1.0 } else { part };
    let (wide, high) = ((size.0 - 1.0) * of_width, (size.1 - 1.0) * part);
    // Written by hand: there are thousands of them. All but the title are numbers.
    let escaped = html! { (title) }.into_string();
    PreEscaped(format!(
        "<rect class=\"h{shade}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>{escaped}</title></rect>",
        at(place.0 + (size.0 - wide) / 2.0),
        at(place.1 + (size.1 - high) / 2.0),
        at(wide),
        at(high)
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::report::sketch::Sketch;

    #[test]
    fn linear_ticks_are_round_and_cover() {
        assert_eq!(linear(10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(linear(7.3, 4), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(linear(1.0, 4), [0.0, 0.5, 1.0]);
        assert_eq!(linear(0.0, 4), [0.0, 1.0]);
        assert_eq!(linear(f64::NAN, 4), [0.0, 1.0]);
        for max in 1..2000u32 {
            let ticks = linear(f64::from(max), 4);
            assert!(ticks.len() <= 6, "{max}: {ticks:?}");
            assert!(ticks.last().unwrap() >= &f64::from(max), "{max}: {ticks:?}");
        }
    }

    #[test]
    fn logarithmic_ticks_are_few_and_inside() {
        assert_eq!(logarithmic(1.0, 10.0), [1.0, 2.0, 5.0, 10.0]);
        assert_eq!(logarithmic(1.0, 10_000.0).len(), 5);
        assert!(logarithmic(1e-9, 1e9).len() <= 9);
    }

    #[test]
    fn shades_tell_none_from_one_and_most_from_all() {
        assert_eq!(shade(0, 10), 0);
        assert_eq!(shade(1, 1_000_000), 1);
        assert_eq!(shade(9, 10), 8);
        assert_eq!(shade(1, 2), 4);
        assert_eq!(shade(0, 0), 0);
    }

    #[test]
    fn titles_of_cells_are_escaped() {
        let svg = cell((0.0, 0.0), (10.0, 10.0), 3, 1.0, "<script>&\"").into_string();
        assert!(!svg.contains("<script>"), "{svg}");
        assert!(svg.contains("&lt;script&gt;&amp;"), "{svg}");
    }

    #[test]
    fn every_value_has_a_place_on_the_axis() {
        for values in [vec![0], vec![5], vec![0, 1, 1_000_000], vec![u64::MAX]] {
            let mut sketch = Sketch::default();
            values.iter().for_each(|v| sketch.add(*v));
            let bins = sketch.bins(5);
            let bins: Vec<Bin> = bins
                .iter()
                .map(|b| Bin {
                    low: b.0,
                    high: b.1,
                    count: b.2,
                })
                .collect();
            let axis = LogAxis::new(&bins, 50.0, 500.0);
            for value in values {
                let x = axis.x(value as f64);
                assert!((50.0..=500.0).contains(&x), "{value}: {x}");
            }
        }
    }
}

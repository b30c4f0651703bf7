//! Maps: of bits, and of the address space.

use maud::{Markup, PreEscaped, html};

use super::super::data::{BitPart, MapPart, Report};
use super::super::plot::{SHADES, cell, shade};
use super::super::strip::BINS;
use super::super::tally::Hits;
use super::super::text::{bytes, count, percent, shown};
use super::{section, so_many, tabs};

/// Outcomes by register or class of memory, and bit.
pub fn bits(report: &Report) -> Markup {
    section(
        "bits",
        "By bit",
        html! {
            @if report.bits.is_empty() {
                p.none { "No fault of this campaign changes bits." }
            } @else {
                p.note {
                    "Share of faults that had any consequence (were not masked). A cell is smaller where fewer trials hit it: its colour then says little. "
                    "Vector registers: both 64-bit lanes together; memory: bits of the 64-bit word, low byte first."
                }
                (ramp())
                (tabs("bits", "", &panes(&report.bits, |part| part.replicas, heat_map)))
            }
        },
    )
}

/// For each number of replicas what `show` makes of its parts.
fn panes<T>(
    parts: &[T],
    replicas: impl Fn(&T) -> u8,
    show: impl Fn(&[&T]) -> Markup,
) -> Vec<(String, Markup)> {
    let mut numbers: Vec<u8> = parts.iter().map(&replicas).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let pane = |n: u8| {
        let of: Vec<&T> = parts.iter().filter(|part| replicas(part) == n).collect();
        (so_many(n), show(&of))
    };
    numbers.into_iter().map(pane).collect()
}

fn ramp() -> Markup {
    html! {
        div.ramp {
            span { "0 %" }
            @for n in 0..SHADES { span.sample.(format!("s{n}")) {} }
            span { "100 %" }
        }
    }
}

fn title(hits: Hits) -> String {
    let share = hits.unmasked as f64 / hits.trials.max(1) as f64;
    format!(
        "{} of {} not masked ({}), {} visible",
        count(hits.unmasked),
        count(hits.trials),
        percent(share),
        count(hits.visible)
    )
}

/// Trials that a cell of the map of bits shall have on average, before bits are put together.
const ENOUGH: f64 = 4.0;

/// How many neighbouring bits are shown together: with few trials a map of single bits is nothing but noise.
fn together(rows: &[&BitPart]) -> usize {
    let cells = || rows.iter().flat_map(|row| &row.bits);
    let trials: u64 = cells().map(|hits| hits.trials).sum();
    let mean = trials as f64 / cells().count().max(1) as f64;
    let fits = [1, 2, 4, 8]
        .into_iter()
        .find(|n| mean * *n as f64 >= ENOUGH);
    fits.unwrap_or(8)
}

fn heat_map(rows: &[&BitPart]) -> Markup {
    let (size, left, top) = (13.0, 92.0, 22.0);
    let (width, height) = (
        left + 64.0 * size + 4.0,
        top + rows.len() as f64 * size + 4.0,
    );
    let step = together(rows);
    let sums: Vec<Vec<Hits>> = (rows.iter())
        .map(|row| {
            let groups = row.bits.chunks(step);
            groups
                .map(|bits| bits.iter().fold(Hits::default(), |sum, hits| sum + *hits))
                .collect()
        })
        .collect();
    let most = sums.iter().flatten().map(|hits| hits.trials).max();
    let most = most.unwrap_or(1).max(1) as f64;
    html! {
        @if step > 1 { p.note { "With this few trials, " (step) " neighbouring bits are shown together." } }
        div.scroll {
            svg.heat viewBox=(format!("0 0 {width} {height}")) role="img" {
                title { "Share of faults that were not masked, by register or class of memory (rows) and bit (columns)" }
                @for bit in (0..64).step_by(8).chain([63]) {
                    text.tick.middle x=(left + (f64::from(bit) + 0.5) * size) y=(top - 7.0) { (bit) }
                }
                @for (y, (row, sums)) in rows.iter().zip(&sums).enumerate() {
                    @let top = top + y as f64 * size;
                    text.tick.end x=(left - 7.0) y=(top + size - 3.0) { (shown(&row.row)) }
                    @for (n, hits) in sums.iter().enumerate().filter(|(_, hits)| hits.trials > 0) {
                        @let title = format!("{} {}: {}", shown(&row.row), bits_named(n * step, step), title(*hits));
                        (cell(
                            (left + (n * step) as f64 * size, top),
                            (size * step as f64, size),
                            shade(hits.unmasked, hits.trials),
                            hits.trials as f64 / most,
                            &title,
                        ))
                    }
                }
            }
        }
    }
}

fn bits_named(first: usize, n: usize) -> String {
    match n {
        1 => format!("bit {first}"),
        n => format!("bits {first} to {}", first + n - 1),
    }
}

/// Outcomes by region and offset.
pub fn map(report: &Report) -> Markup {
    section(
        "map",
        "Vulnerability map of the address space",
        html! {
            @if report.map.is_empty() {
                p.none { "No fault of this campaign hits memory." }
            } @else {
                p.note {
                    "Each strip is a region from the first byte that was hit to the last. Colour: share of faults that were not masked; below it, how many trials hit the bin. "
                    "Offsets are those of the region, so they mean the same in every replica's layout."
                }
                (ramp())
                (tabs("map", "", &panes(&report.map, |part| part.replicas, strips)))
            }
        },
    )
}

fn strips(regions: &[&MapPart]) -> Markup {
    html! {
        div.strips {
            @for region in regions {
                @let hits = region.bins.iter().fold(Hits::default(), |sum, bin| sum + bin.hits);
                div.strip {
                    div.name {
                        b { (shown(&region.region)) }
                        span { (percent(hits.unmasked as f64 / hits.trials.max(1) as f64)) " of " (count(hits.trials)) }
                    }
                    (strip(region))
                    div.scale { span { (bytes(start(region))) } span { (bytes(region.bin_bytes)) " per bin" } span { (bytes(end(region))) } }
                }
            }
        }
    }
}

/// The beginning of the first bin of a region.
fn start(region: &MapPart) -> u64 {
    region.bins.iter().map(|bin| bin.offset).min().unwrap_or(0)
}

/// The end of the last bin of a region.
fn end(region: &MapPart) -> u64 {
    let last = region.bins.iter().map(|bin| bin.offset).max().unwrap_or(0);
    last.saturating_add(region.bin_bytes)
}

fn strip(region: &MapPart) -> Markup {
    let (start, width) = (start(region), region.bin_bytes.max(1));
    let bins = ((end(region) - start) / width).clamp(1, BINS as u64);
    let most = region.bins.iter().map(|bin| bin.hits.trials).max();
    let most = most.unwrap_or(1).max(1) as f64;
    html! {
        svg.map viewBox=(format!("0 0 {} 40", bins * 10)) preserveAspectRatio="none" role="img" {
            title { "Region " (shown(&region.region)) ": share of faults not masked by offset" }
            rect.empty x="0" y="0" width=(bins * 10) height="26" {}
            @for bin in &region.bins {
                @let x = (bin.offset - start) / width * 10;
                @let deep = 12.0 * bin.hits.trials as f64 / most;
                @let text = format!("{} +{:#x}: {}", shown(&region.region), bin.offset, title(bin.hits));
                g {
                    title { (text) }
                    (PreEscaped(format!("<rect class=\"h{}\" x=\"{x}\" y=\"0\" width=\"10\" height=\"26\"/><rect class=\"depth\" x=\"{x}\" y=\"28\" width=\"9\" height=\"{deep:.1}\"/>", shade(bin.hits.unmasked, bin.hits.trials))))
                }
            }
        }
    }
}

//! Triggers come where their distributions say.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

use statrs::distribution::{ContinuousCDF, Normal};

use super::stream::joined;
use super::tests::{P, alike, chi_square, drawer};
use super::*;
use crate::model::Trigger;

fn boundaries(drawer: &Drawer, draws: u64) -> Vec<u64> {
    (0..draws)
        .map(|draw| match drawer.draw(draw).trigger {
            Trigger::Boundary { boundary } => boundary,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn uniform_triggers_come_alike_over_the_whole_trial() {
    let all = drawer("[[fault]]\nmodel = \"crash\"");
    let drawn = boundaries(&all, 30_000);
    assert_eq!(
        (drawn.iter().min(), drawn.iter().max()),
        (Some(&1), Some(&300))
    );
    alike(drawn.into_iter(), 300);

    let part = drawer("[[fault]]\nmodel = \"crash\"\nfrom = \"10%\"\nto = 50");
    let drawn = boundaries(&part, 5000);
    assert_eq!(
        (drawn.iter().min(), drawn.iter().max()),
        (Some(&31), Some(&50))
    );
    alike(drawn.into_iter(), 20);

    let range = drawer("[[fault]]\nmodel = \"crash\"\nat = [5, 9]");
    alike(boundaries(&range, 2000).into_iter(), 5);
    let fixed = drawer("[[fault]]\nmodel = \"crash\"\nat = \"100%\"");
    assert!(
        boundaries(&fixed, 50)
            .iter()
            .all(|boundary| *boundary == 300)
    );
}

/// Counts per tenth of the trial against what a cumulative distribution function says, both cut to the trial.
fn by_tenths(drawn: &[u64], length: f64, cdf: impl Fn(f64) -> f64) {
    let mut counts = [0u64; 10];
    for value in drawn {
        counts[((*value as f64 / length) * 10.0) as usize] += 1;
    }
    let all = cdf(length) - cdf(0.0);
    let expected: Vec<f64> = (0..10)
        .map(|tenth| {
            let (from, to) = (f64::from(tenth) / 10.0, f64::from(tenth + 1) / 10.0);
            (cdf(to * length) - cdf(from * length)) / all * drawn.len() as f64
        })
        .collect();
    let p = chi_square(&counts, &expected);
    assert!(
        p > P,
        "chance {p}: {counts:?} where {expected:?} is expected"
    );
}

fn times(drawer: &Drawer, draws: u64) -> Vec<u64> {
    (0..draws)
        .map(|draw| match drawer.draw(draw).trigger {
            Trigger::Time { ns } => ns,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn normal_triggers_are_normal() {
    let drawer = drawer(
        "[[fault]]\nmodel = \"crash\"\nwhen = \"time\"\ndistribution = \"normal\"\nmean = \"40%\"\ndeviation = 8",
    );
    let normal = Normal::new(16e6, 8e6).unwrap();
    by_tenths(&times(&drawer, 50_000), 40e6, |x| normal.cdf(x));
}

#[test]
fn exponential_triggers_are_exponential() {
    let drawer = drawer(
        "[[fault]]\nmodel = \"crash\"\nwhen = \"time\"\ndistribution = \"exponential\"\nmean = \"25%\"",
    );
    by_tenths(&times(&drawer, 50_000), 40e6, |x| 1.0 - (-x / 10e6).exp());
}

#[test]
fn exact_samples_follow_their_distributions_far_out() {
    let mut stream = Stream::new("tails", 0, "test");
    let mut counts = [0u64; 8];
    let draws = 200_000;
    for _ in 0..draws {
        let (whole, _) = stream.exponential();
        counts[whole.min(7) as usize] += 1;
    }
    let expected: Vec<f64> = (0..8)
        .map(|k| {
            let k = f64::from(k);
            let upto = if k == 7.0 { 0.0 } else { (-(k + 1.0)).exp() };
            ((-k).exp() - upto) * draws as f64
        })
        .collect();
    assert!(chi_square(&counts, &expected) > P);

    // Halves of standard deviations up to four, with their signs.
    let normal = Normal::new(0.0, 1.0).unwrap();
    let mut counts = [0u64; 16];
    for _ in 0..draws {
        let (whole, fraction, negative) = stream.normal();
        let size = joined(whole, fraction);
        let value = if negative { -size } else { size };
        counts[((value * 2.0).floor() + 8.0).clamp(0.0, 15.0) as usize] += 1;
    }
    let edge = |i: i32| match i {
        -8 => 0.0,
        8 => 1.0,
        i => normal.cdf(f64::from(i) / 2.0),
    };
    let expected: Vec<f64> = (-8..8)
        .map(|i| (edge(i + 1) - edge(i)) * draws as f64)
        .collect();
    assert!(chi_square(&counts, &expected) > P);
}

#[test]
fn bursts_lie_around_their_centres() {
    let drawer = drawer(
        "[[fault]]\nmodel = \"crash\"\ndistribution = \"burst\"\ncentres = [\"0%\", 151]\nwidth = \"10%\"",
    );
    let drawn = boundaries(&drawer, 4000);
    // Half of the first burst is before the beginning.
    let (early, late): (Vec<u64>, Vec<u64>) = drawn.into_iter().partition(|at| *at <= 15);
    alike(early.iter().map(|_| 0).chain(late.iter().map(|_| 1)), 2);
    assert!(late.iter().all(|at| (136..=166).contains(at)));
    alike(early.into_iter(), 15);
    alike(late.into_iter(), 31);
}

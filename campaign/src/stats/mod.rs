//! What can be said of outcome rates from counts.
//!
//! | module | what it does |
//! | --- | --- |
//! | `beta` | the regularised incomplete beta function and its inverse, exact enough for a million trials |
//! | [`interval`](Interval) | Clopper–Pearson and Wilson intervals, one-sided bounds, statements where nothing was seen |
//! | [`plan`] | how many trials a wished half-width needs |
//! | [`sequential`] | stopping when an interval is narrow enough, and what looking repeatedly costs |
//! | [`strata`] | one rate from several strata with weights |
//! | [`compare`] | two campaigns, or two N of one: Fisher, Newcombe, McNemar |
//! | [`table`](OutcomeTable) | counts per N, stratum and outcome |
//!
//! Sources: C. J. Clopper, E. S. Pearson, Biometrika 26 (1934) 404; E. B. Wilson, JASA 22 (1927) 209; R. G. Newcombe, Statistics in
//! Medicine 17 (1998) 857 (one proportion), 873 (independent difference) and 2635 (paired difference); L. D. Brown, T. T. Cai,
//! A. DasGupta, Statistical Science 16 (2001) 101; G. Y. Zou, W. Huang, X. Zhang, Computational Statistics & Data Analysis 53 (2009)
//! 1080 (strata); J. A. Hanley, A. Lippman-Hand, JAMA 249 (1983) 1743 (nothing seen).

mod beta;
pub mod compare;
mod interval;
pub mod plan;
pub mod sequential;
pub mod strata;
mod table;

#[cfg(test)]
mod simulation;

pub use interval::{Confidence, Interval, Method, Rate, clopper_pearson, upper_bound, wilson};
pub use table::{Counts, OutcomeTable, Row};

/// Why a statistic cannot be had.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StatsError {
    /// A confidence that is none.
    #[error("a confidence of {0} is not between 0 and 1 (95 % is 0.95)")]
    Confidence(f64),
    /// A half-width that no interval can have.
    #[error("a half-width of {0} is not between 0 and 0.5 (1 % is 0.01)")]
    HalfWidth(f64),
    /// A rate that is none.
    #[error("a rate of {0} is not between 0 and 1")]
    Rate(f64),
    /// More trials would be needed than anybody can run.
    #[error("that needs more than {0} trials")]
    TooMany(u64),
}

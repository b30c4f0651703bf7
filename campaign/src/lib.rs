//! Fault-injection campaigns: thousands of reproducible trials of an appliance, alone and under voting, with outcome classes,
//! confidence intervals and a report.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`bench`] | plays trials |
//! | [`draw`] | draws faults from the campaign's seed |
//! | [`file`] | the campaign file |
//! | [`inject`] | faults for real |
//! | [`model`] | the words that all others use: faults, triggers, outcomes, the record of a trial |
//! | [`run`] | the runner: jobs, results, resuming, shards, merging |
//! | [`report`] | what was found, as a page, as JSON and as CSV |
//! | [`talk`] | what a client says and hears: recorded once, played to every trial, judged |
//! | [`stats`] | intervals, planning, stopping, comparing; counts per N, stratum and outcome |
//!
//! The rooms below do not know of campaigns: staged sets are in `quorate_executor::stage`, faults of a machine in `quorate_vmm::fault`.

pub mod bench;
pub mod cli;
pub mod draw;
pub mod file;
pub mod inject;
pub mod model;
pub mod report;
pub mod run;
pub mod stats;
pub mod talk;

//! Layout diversity as `quorate status --layout` shows it: every region of every replica at its own place, and at another one in
//! the next run (R8).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use quorate_tests::one_at_a_time;
use quorate_tests::set::Options;

/// Regions that lie at one place in all replicas of a set, by design: allocators seed decisions with addresses of threads'
/// control blocks, and those decisions show (`abi/src/boot.rs`). From run to run it moves as the others do.
const SHARED: &[&str] = &["threads"];
const REGIONS: usize = 12;
const REPLICAS: usize = 5;

/// Region, then its address in each replica.
fn layouts(arguments: &[&str]) -> BTreeMap<String, Vec<String>> {
    let set = Options::redis()
        .replicas(REPLICAS)
        .arguments(arguments)
        .start()
        .unwrap();
    let status = set.status().unwrap();
    let table = set.command(&["status", "--layout"]).unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    let mut layouts = BTreeMap::<String, Vec<String>>::new();
    for replica in status["replicas"].as_array().unwrap() {
        for (region, address) in replica["layout"].as_object().unwrap() {
            let address = address.as_str().unwrap();
            assert!(table.contains(address), "{address} is not in:\n{table}");
            layouts
                .entry(region.clone())
                .or_default()
                .push(address.to_owned());
        }
    }
    assert_eq!(set.stop().unwrap().code, 0);
    println!("  {arguments:?}: kernel {:?}", layouts["kernel"]);
    assert_eq!(layouts.len(), REGIONS);
    assert!(
        layouts
            .values()
            .all(|addresses| addresses.len() == REPLICAS)
    );
    layouts
}

fn distinct(addresses: &[String]) -> usize {
    addresses.iter().collect::<BTreeSet<_>>().len()
}

#[test]
fn random_layouts_differ_in_all_replicas_and_between_runs() {
    let _turn = one_at_a_time("two runs with random layouts");
    let (one, other) = (
        layouts(&["--layout", "random"]),
        layouts(&["--layout", "random"]),
    );
    for (region, addresses) in &one {
        let places = if SHARED.contains(&region.as_str()) {
            1
        } else {
            REPLICAS
        };
        assert_eq!(distinct(addresses), places, "{region}: {addresses:?}");
        let both = [&addresses[..], &other[region]].concat();
        assert_eq!(
            distinct(&both),
            2 * places,
            "{region} in two runs: {both:?}"
        );
    }
}

#[test]
fn the_same_layout_is_the_same_and_a_seed_repeats_one() {
    let _turn = one_at_a_time("--layout same, and one seed twice");
    for (region, addresses) in layouts(&["--layout", "same"]) {
        assert_eq!(distinct(&addresses), 1, "{region}: {addresses:?}");
    }
    let seeded = ["--layout", "random", "--seed", "layout"];
    assert_eq!(layouts(&seeded), layouts(&seeded));
}

//! The pages of one range of memory as a persistent map: a copy shares everything with its original, and changing a page of the
//! copy copies only the two nodes above it.

use quorate_abi::PAGE_SIZE;
use std::sync::Arc;

/// What is in a page.
pub(crate) type Page = [u8; PAGE_SIZE as usize];

/// Children of a node: 64 pages, and 64 times 64 of them.
const FAN: usize = 64;
const BRANCH: usize = FAN * FAN;

#[derive(Clone, Debug)]
struct Leaf([Option<Arc<Page>>; FAN]);

#[derive(Clone, Debug)]
struct Branch([Option<Arc<Leaf>>; FAN]);

/// Pages by their number in the range. A page that is not there is what the range's backing says: zeroes, or the file's.
#[derive(Clone, Debug)]
pub(crate) struct PageMap {
    branches: Vec<Option<Arc<Branch>>>,
    pages: usize,
    kept: usize,
}

impl PageMap {
    /// None of `pages` pages is there.
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            branches: vec![None; pages.div_ceil(BRANCH)],
            pages,
            kept: 0,
        }
    }

    /// How many pages are there.
    pub(crate) fn kept(&self) -> usize {
        self.kept
    }

    /// How many pages the range has.
    pub(crate) fn len(&self) -> usize {
        self.pages
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Arc<Page>> {
        let branch = self.branches.get(index / BRANCH)?.as_ref()?;
        branch.0[index / FAN % FAN].as_ref()?.0[index % FAN].as_ref()
    }

    /// Puts a page there, or takes it away. What lies beyond the range is left out.
    pub(crate) fn set(&mut self, index: usize, page: Option<Arc<Page>>) {
        if index >= self.pages || (page.is_none() && self.get(index).is_none()) {
            return;
        }
        let Some(slot) = self.branches.get_mut(index / BRANCH) else {
            return;
        };
        let branch = slot.get_or_insert_with(|| Arc::new(Branch([const { None }; FAN])));
        let leaf = Arc::make_mut(branch).0[index / FAN % FAN]
            .get_or_insert_with(|| Arc::new(Leaf([const { None }; FAN])));
        let place = &mut Arc::make_mut(leaf).0[index % FAN];
        self.kept += usize::from(page.is_some());
        self.kept -= usize::from(place.is_some());
        *place = page;
    }

    /// The pages that are there, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Arc<Page>)> {
        self.leaves().flat_map(|(first, leaf)| {
            let pages = leaf.0.iter().enumerate();
            pages.filter_map(move |(at, page)| Some((first + at, page.as_ref()?)))
        })
    }

    fn leaves(&self) -> impl Iterator<Item = (usize, &Arc<Leaf>)> {
        let branches = self.branches.iter().enumerate();
        let branches = branches.filter_map(|(at, branch)| Some((at * BRANCH, branch.as_ref()?)));
        branches.flat_map(|(first, branch)| {
            let leaves = branch.0.iter().enumerate();
            leaves.filter_map(move |(at, leaf)| Some((first + at * FAN, leaf.as_ref()?)))
        })
    }

    /// Calls `differs` with the number of every page that is not one and the same in both maps. Pages that both share cost
    /// nothing; pages with equal contents in two places are named.
    pub(crate) fn differing(&self, other: &Self, differs: &mut dyn FnMut(usize)) {
        let count = self.branches.len().max(other.branches.len());
        for at in 0..count {
            let branch = |map: &Self| map.branches.get(at).and_then(Clone::clone);
            let (left, right) = (branch(self), branch(other));
            if same(left.as_ref(), right.as_ref()) {
                continue;
            }
            for leaf_at in 0..FAN {
                let left = left.as_ref().and_then(|it| it.0[leaf_at].as_ref());
                let right = right.as_ref().and_then(|it| it.0[leaf_at].as_ref());
                if same(left, right) {
                    continue;
                }
                for page_at in 0..FAN {
                    let left = left.and_then(|it| it.0[page_at].as_ref());
                    let right = right.and_then(|it| it.0[page_at].as_ref());
                    if !same(left, right) {
                        differs(at * BRANCH + leaf_at * FAN + page_at);
                    }
                }
            }
        }
    }
}

fn same<T>(left: Option<&Arc<T>>, right: Option<&Arc<T>>) -> bool {
    match (left, right) {
        (None, None) => true,
        (Some(left), Some(right)) => Arc::ptr_eq(left, right),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const PAGES: usize = 2 * BRANCH + 100;

    fn page(tag: u8) -> Arc<Page> {
        Arc::new([tag; PAGE_SIZE as usize])
    }

    #[test]
    fn what_is_beyond_the_range_is_left_out() {
        let mut map = PageMap::new(100);
        map.set(100, Some(page(1)));
        map.set(usize::MAX, Some(page(1)));
        assert!(map.get(100).is_none() && map.get(usize::MAX).is_none());
        assert_eq!(map.iter().count(), 0);
    }

    proptest! {
        /// The map against the standard library's, and two copies against each other.
        #[test]
        fn copies_stay_what_they_were(
            first in prop::collection::vec((0..PAGES, 0u8..4), 0..60),
            second in prop::collection::vec((0..PAGES, 0u8..4), 0..60),
        ) {
            let mut map = PageMap::new(PAGES);
            let mut model = BTreeMap::new();
            let change = |map: &mut PageMap, model: &mut BTreeMap<usize, u8>, all: &[(usize, u8)]| {
                for &(at, tag) in all {
                    map.set(at, (tag > 0).then(|| page(tag)));
                    if tag > 0 { model.insert(at, tag); } else { model.remove(&at); }
                }
            };
            change(&mut map, &mut model, &first);
            let (before, before_model) = (map.clone(), model.clone());
            change(&mut map, &mut model, &second);
            for (map, model) in [(&before, &before_model), (&map, &model)] {
                let found: Vec<(usize, u8)> = map.iter().map(|(at, page)| (at, page[0])).collect();
                prop_assert_eq!(map.kept(), model.len());
                prop_assert_eq!(found, model.iter().map(|(&at, &tag)| (at, tag)).collect::<Vec<_>>());
            }
            let mut differing = Vec::new();
            before.differing(&map, &mut |at| differing.push(at));
            prop_assert!(differing.is_sorted_by(|a, b| a < b));
            for at in 0..PAGES {
                if before_model.get(&at) != model.get(&at) {
                    prop_assert!(differing.contains(&at));
                }
            }
            let touched = |at: &usize| second.iter().any(|(changed, _)| changed == at);
            prop_assert!(differing.iter().all(touched));
        }
    }
}

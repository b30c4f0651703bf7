//! A map from block numbers that is copied at once: copies share what neither has changed since. This makes a checkpoint's view
//! of a disk cost nothing when it is taken.

use std::sync::Arc;

/// Children of a node: 6 bits of the block's number each.
const FAN: usize = 64;
const BITS: u32 = 6;
/// Levels: enough for the blocks of the largest disk.
const LEVELS: u32 = 5;

const _: () = assert!(
    quorate_devices::MAX_DISK_BYTES / super::view::BLOCK <= 1 << (BITS * LEVELS),
    "the tree has too few levels"
);

#[derive(Clone, Debug)]
// The inner nodes are the smaller part of a tree by far, and their pointers need no second hop.
#[allow(clippy::large_enum_variant)]
enum Node<T> {
    Inner([Option<Arc<Node<T>>>; FAN]),
    Leaf(Box<[Option<T>; FAN]>),
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Tree<T> {
    root: Option<Arc<Node<T>>>,
    len: u64,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self { root: None, len: 0 }
    }
}

fn at(block: u64, level: u32) -> usize {
    (block >> (BITS * level)) as usize % FAN
}

impl<T: Clone> Tree<T> {
    /// Blocks in it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// What is there for a block.
    pub fn get(&self, block: u64) -> Option<&T> {
        let mut node = self.root.as_deref()?;
        for level in (0..LEVELS).rev() {
            match node {
                Node::Inner(children) => node = children[at(block, level)].as_deref()?,
                Node::Leaf(values) => return values[at(block, 0)].as_ref(),
            }
        }
        match node {
            Node::Leaf(values) => values[at(block, 0)].as_ref(),
            Node::Inner(_) => None,
        }
    }

    /// The place of a block, made if it is not there; to be filled with [`Tree::put`].
    fn slot(&mut self, block: u64) -> Option<&mut Option<T>> {
        fn fresh<T: Clone>(level: u32) -> Arc<Node<T>> {
            Arc::new(match level {
                0 => Node::Leaf(Box::new([const { None }; FAN])),
                _ => Node::Inner([const { None }; FAN]),
            })
        }
        let mut node = Arc::make_mut(self.root.get_or_insert_with(|| fresh(LEVELS - 1)));
        for level in (0..LEVELS).rev() {
            match node {
                Node::Inner(children) => {
                    let child = &mut children[at(block, level)];
                    node = Arc::make_mut(child.get_or_insert_with(|| fresh(level - 1)));
                }
                Node::Leaf(values) => return Some(&mut values[at(block, 0)]),
            }
        }
        None
    }

    /// Puts a value there, or takes it out.
    pub fn put(&mut self, block: u64, value: Option<T>) {
        if value.is_none() && self.get(block).is_none() {
            return;
        }
        let adds = value.is_some();
        let Some(slot) = self.slot(block) else {
            return;
        };
        let had = std::mem::replace(slot, value).is_some();
        self.len = self.len + u64::from(adds) - u64::from(had);
        if self.len == 0 {
            self.root = None;
        }
    }

    /// All of it, ascending.
    pub fn for_each(&self, mut each: impl FnMut(u64, &T)) {
        fn walk<T>(node: &Node<T>, prefix: u64, each: &mut impl FnMut(u64, &T)) {
            match node {
                Node::Inner(children) => {
                    for (i, child) in children.iter().enumerate() {
                        if let Some(child) = child {
                            walk(child, prefix << BITS | i as u64, each);
                        }
                    }
                }
                Node::Leaf(values) => {
                    for (i, value) in values.iter().enumerate() {
                        if let Some(value) = value {
                            each(prefix << BITS | i as u64, value);
                        }
                    }
                }
            }
        }
        if let Some(root) = &self.root {
            walk(root, 0, &mut each);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn holds_what_a_map_holds_and_copies_keep_what_they_had() {
        let (mut tree, mut map) = (Tree::default(), BTreeMap::new());
        let mut copies = Vec::new();
        let mut x = 1u64;
        for i in 0..4000u64 {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // Near each other, and all over the largest disk.
            let block = if x & 1 == 0 {
                (x >> 40) % 300
            } else {
                (x >> 20) % (1 << 28)
            };
            let value = (x >> 8 & 3 != 0).then_some(i);
            tree.put(block, value);
            match value {
                Some(value) => map.insert(block, value),
                None => map.remove(&block),
            };
            if i % 500 == 0 {
                copies.push((tree.clone(), map.clone()));
            }
        }
        copies.push((tree, map));
        for (tree, map) in copies {
            let mut all = BTreeMap::new();
            tree.for_each(|block, value| {
                all.insert(block, *value);
            });
            assert_eq!(all, map);
            assert_eq!(tree.len(), map.len() as u64);
            for block in (0..300).chain([1 << 27]) {
                assert_eq!(tree.get(block), map.get(&block));
            }
        }
    }
}
